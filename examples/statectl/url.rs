//! Stores by URL. Secrets do not stand in a URL, which others can read in the list of processes.
//!
//! | URL | what else is read |
//! |---|---|
//! | `sqlite:<path>` | |
//! | `postgres://<user>@<host>[:<port>][,…]/<database>[?schema=<schema>]` | `NOVACRON_POSTGRES_PASSWORD`; over TLS if `NOVACRON_POSTGRES_CA` names a file, and if wanted `_CERT` and `_KEY` do |
//! | `etcd://<host:port>[,…][/<prefix>]` | `NOVACRON_ETCD_USER` and `NOVACRON_ETCD_PASSWORD`, if there are users |
//! | `etcds://…`, over TLS | also the files that `NOVACRON_ETCD_CA`, and if wanted `_CERT` and `_KEY`, name |

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use novacron_core::store::{SqliteStore, Store};
use novacron_core::{Error, ErrorKind, Result};

/// A store that was opened.
pub(crate) struct Opened {
    pub(crate) store: Arc<dyn Store>,
    /// How it is closed.
    closing: Pin<Box<dyn Future<Output = Result<()>>>>,
}

impl Opened {
    pub(crate) async fn close(self) -> Result<()> {
        self.closing.await
    }
}

/// What a store is opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    /// It must be there: no file and no schema is made.
    Reading,
    Writing,
}

/// Opens a store that is to be read.
pub(crate) async fn existing(url: &str) -> Result<Opened> {
    open_for(For::Reading, url).await
}

/// Opens a store, and makes it if it is not there.
pub(crate) async fn open(url: &str) -> Result<Opened> {
    open_for(For::Writing, url).await
}

async fn open_for(purpose: For, url: &str) -> Result<Opened> {
    match url.split_once(':') {
        Some(("sqlite", path)) if !path.is_empty() => sqlite(purpose, path).await,
        Some(("postgres" | "postgresql", _)) => postgres(purpose, url).await,
        Some((scheme @ ("etcd" | "etcds"), rest)) => etcd(scheme, rest).await,
        _ => Err(failed(ErrorKind::Invalid, "this is no URL of a store").with("url", url)),
    }
}

async fn sqlite(purpose: For, path: &str) -> Result<Opened> {
    if purpose == For::Reading && !Path::new(path).exists() {
        let error = failed(ErrorKind::NotFound, "there is no such database");
        return Err(error.with("path", path));
    }
    let sqlite = SqliteStore::open(path).await?;
    Ok(Opened {
        store: Arc::new(sqlite.clone()),
        closing: Box::pin(async move { sqlite.close().await }),
    })
}

#[cfg(not(feature = "postgres"))]
async fn postgres(_: For, _: &str) -> Result<Opened> {
    let message =
        "this statectl was built without postgres: cargo run --features postgres --bin statectl";
    Err(failed(ErrorKind::Unsupported, message))
}

#[cfg(feature = "postgres")]
async fn postgres(purpose: For, url: &str) -> Result<Opened> {
    use novacron_core::store::{PostgresOptions, PostgresStore, PostgresTls};

    let environment = Environment("NOVACRON_POSTGRES");
    let (place, parameters) = url.split_once('?').unwrap_or((url, ""));
    let (schemas, others): (Vec<_>, Vec<_>) = parameters
        .split('&')
        .filter(|parameter| !parameter.is_empty())
        .partition(|parameter| parameter.starts_with("schema="));
    let user = place.split_once('@').map_or("", |(user, _)| user);
    let user = user.split_once("://").map_or("", |(_, user)| user);
    if user.contains(':') || others.iter().any(|it| it.starts_with("password=")) {
        let message = "a password stands in the URL, where others can read it: \
                       put it into NOVACRON_POSTGRES_PASSWORD";
        return Err(failed(ErrorKind::Invalid, message));
    }
    let mut options = PostgresOptions::new(&format!("{place}?{}", others.join("&")))?;
    if let Some(schema) = schemas.last() {
        options.schema = schema["schema=".len()..].to_owned();
    }
    options.migrate = purpose == For::Writing;
    if let Some(password) = environment.get("PASSWORD") {
        options = options.with_password(&password.into());
    }
    if let Some(authorities) = environment.file("CA")? {
        let mut tls = PostgresTls::new(authorities.as_bytes())?;
        if let Some((chain, key)) = environment.file("CERT")?.zip(environment.file("KEY")?) {
            tls = tls.with_client_certificate(chain.as_bytes(), &key.into())?;
        }
        options.tls = Some(tls);
    }
    let postgres = PostgresStore::connect(options).await?;
    Ok(Opened {
        store: Arc::new(postgres.clone()),
        closing: Box::pin(async move { postgres.close().await }),
    })
}

#[cfg(not(feature = "etcd"))]
async fn etcd(_: &str, _: &str) -> Result<Opened> {
    let message = "this statectl was built without etcd: cargo run --features etcd --bin statectl";
    Err(failed(ErrorKind::Unsupported, message))
}

#[cfg(feature = "etcd")]
async fn etcd(scheme: &str, rest: &str) -> Result<Opened> {
    use novacron_core::store::{EtcdOptions, EtcdStore, EtcdTls, EtcdUser};

    let environment = Environment("NOVACRON_ETCD");
    let rest = rest.strip_prefix("//").unwrap_or(rest);
    let (hosts, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let http = if scheme == "etcds" { "https" } else { "http" };
    let hosts = hosts.split(',').filter(|host| !host.is_empty());
    let mut options = EtcdOptions::new(hosts.map(|host| format!("{http}://{host}")));
    if !prefix.is_empty() {
        options.prefix = format!("/{prefix}");
    }
    if let Some(name) = environment.get("USER") {
        let password = environment.get("PASSWORD").unwrap_or_default().into();
        options.user = Some(EtcdUser { name, password });
    }
    if scheme == "etcds" {
        let (certificate, key) = (environment.file("CERT")?, environment.file("KEY")?);
        options.tls = Some(EtcdTls {
            ca: environment.file("CA")?.unwrap_or_default(),
            identity: certificate.zip(key.map(Into::into)),
            server_name: None,
        });
    }
    Ok(Opened {
        store: Arc::new(EtcdStore::connect(options).await?),
        closing: Box::pin(async { Ok(()) }),
    })
}

/// The variables of the environment that begin with this.
#[cfg(any(feature = "etcd", feature = "postgres"))]
struct Environment(&'static str);

#[cfg(any(feature = "etcd", feature = "postgres"))]
impl Environment {
    fn get(&self, name: &str) -> Option<String> {
        std::env::var(format!("{}_{name}", self.0)).ok()
    }

    /// What is in the file that a variable names.
    fn file(&self, name: &str) -> Result<Option<String>> {
        let Some(path) = self.get(name) else {
            return Ok(None);
        };
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) => {
                let message = "a file that the environment names cannot be read";
                let error = failed(ErrorKind::NotFound, message).caused_by(error);
                Err(error.with("path", path))
            }
        }
    }
}

fn failed(kind: ErrorKind, message: &'static str) -> Error {
    Error::new(kind, "statectl.open", message)
}
