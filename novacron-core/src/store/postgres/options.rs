//! How the store reaches its server, and how long it tries.

use std::fmt;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::{ExposeSecret as _, SecretString};
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

#[cfg(doc)]
use super::PostgresStore;
use crate::error::{Error, ErrorKind, Result};

/// How a [`PostgresStore`] is opened. Neither a password nor a key is ever printed.
#[derive(Clone)]
pub struct PostgresOptions {
    server: Config,
    /// The schema that holds the tables: several clusters share a database under different ones.
    pub schema: String,
    /// Certificates for TLS; without, connections are not encrypted.
    pub tls: Option<PostgresTls>,
    /// The most connections for reads, leases and beats; one more writes and one listens.
    pub connections: usize,
    /// How long a call may take, with every retry in it.
    pub deadline: Duration,
    /// How often to look for commits of other processes should their notifications be lost.
    pub poll: Duration,
    /// About how many bytes of recent commits are kept in memory for watches; slower ones read the database.
    pub watch_bytes: usize,
    /// Whether to make the schema or bring it up to date; otherwise an older one is refused, with how to do it.
    pub migrate: bool,
}

impl PostgresOptions {
    /// Options from a connection string: `postgresql://user@host/database`, or `host=a,b user=… dbname=…`. Of several
    /// hosts the first is used that takes writes. A password may stand in it, or be given apart.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when it is none, or names no host, user or database; the message does not repeat it.
    pub fn new(connection: &str) -> Result<Self> {
        let invalid = |message| Error::new(ErrorKind::Invalid, "store.open", message);
        let server: Config = connection
            .parse()
            .map_err(|e| invalid("this is not a PostgreSQL connection string").caused_by(e))?;
        if server.get_hosts().is_empty() && server.get_hostaddrs().is_empty() {
            return Err(invalid("the connection string names no host"));
        }
        if server.get_user().is_none() {
            return Err(invalid("the connection string names no user"));
        }
        if server.get_dbname().is_none() {
            return Err(invalid("the connection string names no database"));
        }
        Ok(Self {
            server,
            schema: "novacron".to_owned(),
            tls: None,
            connections: 8,
            deadline: Duration::from_secs(10),
            poll: Duration::from_secs(2),
            watch_bytes: 16 << 20,
            migrate: true,
        })
    }

    /// Sets the password.
    #[must_use]
    pub fn with_password(mut self, password: &SecretString) -> Self {
        self.server.password(password.expose_secret());
        self
    }

    /// Fails unless the options fit each other.
    pub(super) fn check(&self) -> Result<()> {
        let invalid = |message: String| Err(Error::new(ErrorKind::Invalid, "store.open", message));
        check_schema(&self.schema)?;
        if self.deadline < Duration::from_millis(100) {
            return invalid("a deadline of less than 100 ms".to_owned());
        }
        if self.tls.is_none() && self.server.get_ssl_mode() == SslMode::Require {
            let message =
                "the connection string wants TLS: give the certificates it is checked with (`tls`)";
            return invalid(message.to_owned());
        }
        Ok(())
    }

    /// The client's configuration.
    pub(super) fn config(&self) -> Config {
        let mut config = self.server.clone();
        if config.get_application_name().is_none() {
            config.application_name("novacron");
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(self.deadline.min(Duration::from_secs(5)));
        }
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(self.deadline);
        }
        config
            .keepalives_idle(Duration::from_secs(15))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3)
            .target_session_attrs(TargetSessionAttrs::ReadWrite)
            .ssl_mode(if self.tls.is_some() {
                SslMode::Require
            } else {
                SslMode::Disable
            });
        config
    }

    /// Where the server is, for messages.
    pub(super) fn place(&self) -> String {
        let hosts = self.server.get_hosts().iter().map(|host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.display().to_string(),
        });
        let hosts: Vec<_> = if self.server.get_hosts().is_empty() {
            let addresses = self.server.get_hostaddrs();
            addresses.iter().map(ToString::to_string).collect()
        } else {
            hosts.collect()
        };
        format!(
            "{}/{}",
            hosts.join(","),
            self.server.get_dbname().unwrap_or_default()
        )
    }

    pub(super) fn user(&self) -> &str {
        self.server.get_user().unwrap_or_default()
    }
}

impl fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresOptions")
            .field("server", &self.place())
            .field("user", &self.user())
            .field("schema", &self.schema)
            .field("tls", &self.tls)
            .field("connections", &self.connections)
            .field("deadline", &self.deadline)
            .field("poll", &self.poll)
            .field("watch_bytes", &self.watch_bytes)
            .field("migrate", &self.migrate)
            .finish()
    }
}

/// What TLS needs. The server's certificate must be of one of the authorities and carry the name in the connection
/// string (`verify-full`, as libpq calls it); there is no weaker mode.
#[derive(Clone)]
pub struct PostgresTls {
    authorities: Vec<CertificateDer<'static>>,
    client: Option<(
        Vec<CertificateDer<'static>>,
        std::sync::Arc<PrivateKeyDer<'static>>,
    )>,
}

impl PostgresTls {
    /// TLS with the authorities whose certificates stand in `pem`.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when it holds no certificate.
    pub fn new(pem: &[u8]) -> Result<Self> {
        let authorities = certificates(pem, "the authorities' file")?;
        Ok(Self {
            authorities,
            client: None,
        })
    }

    /// Also proves who this client is, by a certificate (with its chain) and its key, both PEM.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when there is no certificate or no key in them.
    pub fn with_client_certificate(mut self, pem: &[u8], key: &SecretString) -> Result<Self> {
        let chain = certificates(pem, "the client certificate's file")?;
        let key = PrivateKeyDer::from_pem_slice(key.expose_secret().as_bytes()).map_err(|_| {
            // The cause might show some of it.
            let message = "the client's key is no PEM private key";
            Error::new(ErrorKind::Invalid, "store.open", message)
        })?;
        self.client = Some((chain, std::sync::Arc::new(key)));
        Ok(self)
    }

    /// The configuration of rustls.
    pub(super) fn config(&self) -> Result<rustls::ClientConfig> {
        let invalid = |message: &'static str, e: rustls::Error| {
            Error::new(ErrorKind::Invalid, "store.open", message).caused_by(e)
        };
        let mut roots = rustls::RootCertStore::empty();
        for authority in &self.authorities {
            roots
                .add(authority.clone())
                .map_err(|e| invalid("an authority's certificate cannot be used", e))?;
        }
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| invalid("TLS cannot be set up", e))?
            .with_root_certificates(roots);
        match &self.client {
            None => Ok(builder.with_no_client_auth()),
            Some((chain, key)) => builder
                .with_client_auth_cert(chain.clone(), key.clone_key())
                .map_err(|e| invalid("the client's certificate and key cannot be used", e)),
        }
    }
}

impl fmt::Debug for PostgresTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresTls")
            .field("authorities", &self.authorities.len())
            .field("client_certificate", &self.client.is_some())
            .finish()
    }
}

/// Fails unless `name` can be a schema's.
pub(super) fn check_schema(name: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    let ok =
        !name.is_empty() && name.len() <= 63 && name.bytes().all(plain) && !name.starts_with("pg_");
    if ok {
        return Ok(());
    }
    let message = format!(
        "{name:?} is not a schema's name: 1 to 63 characters [a-z0-9_], not beginning with pg_"
    );
    Err(Error::new(ErrorKind::Invalid, "store.open", message))
}

fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => {
            let message = format!("there is no PEM certificate in {what}, or one is damaged");
            Err(Error::new(ErrorKind::Invalid, "store.open", message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "hunter2-hunter2";

    #[test]
    fn no_debug_and_no_error_shows_the_password() {
        for text in [
            format!("postgresql://panel:{SECRET}@db.example/panel"),
            format!("host=db.example user=panel dbname=panel password={SECRET}"),
        ] {
            let options = PostgresOptions::new(&text).unwrap();
            assert!(!format!("{options:?}").contains(SECRET), "{options:?}");
        }
        let options = PostgresOptions::new("postgresql://panel@db.example/panel").unwrap();
        let options = options.with_password(&SecretString::from(SECRET));
        assert!(!format!("{options:?} {:?}", options.config()).contains(SECRET));
        for broken in [
            format!("host=h user=u dbname=d password='{SECRET}"),
            format!("password={SECRET}"),
            SECRET.to_owned(),
            format!("postgresql://u:{SECRET}@h:x/d"),
            format!("host=h user=u dbname=d port={SECRET}"),
        ] {
            let error = PostgresOptions::new(&broken).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(
                !format!("{error:?} {}", error.report()).contains(SECRET),
                "{error:?}"
            );
        }
    }

    #[test]
    fn options_that_cannot_work_are_refused() {
        let good = PostgresOptions::new("postgresql://u@h/d").unwrap();
        good.check().unwrap();
        let mut options = good.clone();
        for name in [
            "",
            "Upper",
            "with space",
            "quo\"te",
            "pg_mine",
            &"x".repeat(64),
        ] {
            name.clone_into(&mut options.schema);
            assert_eq!(
                options.check().unwrap_err().kind(),
                ErrorKind::Invalid,
                "{name:?}"
            );
        }
        let tls = PostgresOptions::new("postgresql://u@h/d?sslmode=require").unwrap();
        assert_eq!(tls.check().unwrap_err().kind(), ErrorKind::Invalid);
        for text in ["postgresql://u@/d", "postgresql://h/d", "postgresql://u@h"] {
            assert_eq!(
                PostgresOptions::new(text).unwrap_err().kind(),
                ErrorKind::Invalid,
                "{text}"
            );
        }
        assert!(PostgresTls::new(b"no certificate").is_err());
    }
}
