//! Stores by URL. Secrets do not stand in a URL, which others can read in the list of processes.
//!
//! | URL | what else is read |
//! |---|---|
//! | `sqlite:<path>` | |
//! | `etcd://<host:port>[,…][/<prefix>]` | `NOVACRON_ETCD_USER` and `NOVACRON_ETCD_PASSWORD`, if there are users |
//! | `etcds://…`, over TLS | also the files that `NOVACRON_ETCD_CA`, and if wanted `_CERT` and `_KEY`, name |

use std::path::Path;
use std::sync::Arc;

use novacron_core::store::{SqliteStore, Store};
use novacron_core::{Error, ErrorKind, Result};

/// A store that was opened.
pub(crate) struct Opened {
    pub(crate) store: Arc<dyn Store>,
    /// The one that must be closed.
    pub(crate) sqlite: Option<SqliteStore>,
}

/// Opens a store that is to be read: a file is not made.
pub(crate) async fn existing(url: &str) -> Result<Opened> {
    if let Some(path) = url.strip_prefix("sqlite:")
        && !Path::new(path).exists()
    {
        return Err(Error::new(
            ErrorKind::NotFound,
            "statectl.open",
            "there is no such database",
        )
        .with("path", path));
    }
    open(url).await
}

/// Opens a store.
pub(crate) async fn open(url: &str) -> Result<Opened> {
    match url.split_once(':') {
        Some(("sqlite", path)) if !path.is_empty() => {
            let sqlite = SqliteStore::open(path).await?;
            Ok(Opened {
                store: Arc::new(sqlite.clone()),
                sqlite: Some(sqlite),
            })
        }
        Some((scheme @ ("etcd" | "etcds"), rest)) => etcd(scheme, rest).await,
        _ => Err(Error::new(
            ErrorKind::Invalid,
            "statectl.open",
            "this is no URL of a store",
        )
        .with("url", url)),
    }
}

#[cfg(not(feature = "etcd"))]
async fn etcd(_: &str, _: &str) -> Result<Opened> {
    let message = "this statectl was built without etcd: cargo run --features etcd --bin statectl";
    Err(Error::new(ErrorKind::Unsupported, "statectl.open", message))
}

#[cfg(feature = "etcd")]
async fn etcd(scheme: &str, rest: &str) -> Result<Opened> {
    use novacron_core::store::{EtcdOptions, EtcdStore, EtcdTls, EtcdUser};

    let set = |name: &str| std::env::var(format!("NOVACRON_ETCD_{name}")).ok();
    let file = |name: &str| match set(name) {
        None => Ok(None),
        Some(path) => match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) => {
                let message = "a file that the environment names cannot be read";
                let error =
                    Error::new(ErrorKind::NotFound, "statectl.open", message).caused_by(error);
                Err(error.with("path", path))
            }
        },
    };
    let rest = rest.strip_prefix("//").unwrap_or(rest);
    let (hosts, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let http = if scheme == "etcds" { "https" } else { "http" };
    let hosts = hosts.split(',').filter(|host| !host.is_empty());
    let mut options = EtcdOptions::new(hosts.map(|host| format!("{http}://{host}")));
    if !prefix.is_empty() {
        options.prefix = format!("/{prefix}");
    }
    if let Some(name) = set("USER") {
        let password = set("PASSWORD").unwrap_or_default().into();
        options.user = Some(EtcdUser { name, password });
    }
    if scheme == "etcds" {
        let (certificate, key) = (file("CERT")?, file("KEY")?);
        options.tls = Some(EtcdTls {
            ca: file("CA")?.unwrap_or_default(),
            identity: certificate.zip(key.map(Into::into)),
            server_name: None,
        });
    }
    Ok(Opened {
        store: Arc::new(EtcdStore::connect(options).await?),
        sqlite: None,
    })
}
