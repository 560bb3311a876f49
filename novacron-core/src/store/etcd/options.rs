//! Where etcd is, and who asks.

use std::fmt;
use std::time::Duration;

use secrecy::SecretString;

use crate::error::{Error, Problem, Result};

/// The longest prefix, bytes: it stands in front of every key of a commit, which must stay below etcd's 1.5 MiB.
const MAX_PREFIX_BYTES: usize = 128;

/// Where and how an [`EtcdStore`](super::EtcdStore) connects.
#[derive(Clone, Debug)]
pub struct EtcdOptions {
    /// The members, as `https://10.0.0.1:2379`. One is enough to begin with; with all of them, the loss of some is
    /// survived.
    pub endpoints: Vec<String>,
    /// What every key begins with. Clusters with different prefixes can share an etcd.
    pub prefix: String,
    /// Who asks, if etcd's authentication is on.
    pub user: Option<EtcdUser>,
    /// Needed for `https` endpoints.
    pub tls: Option<EtcdTls>,
    /// How long one call of the store may take, with every retry.
    pub timeout: Duration,
    /// About how many bytes of recent commits are kept in memory for watches; slower ones ask etcd.
    pub watch_bytes: usize,
}

impl EtcdOptions {
    /// The defaults, for these members.
    pub fn new<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            prefix: "/novacron/".to_owned(),
            user: None,
            tls: None,
            timeout: Duration::from_secs(10),
            watch_bytes: 16 << 20,
        }
    }

    /// Checks what can be checked without a connection.
    pub(super) fn check(&self) -> Result<()> {
        let mut problems = Vec::new();
        let mut problem = |field: String, message: &str| {
            problems.push(Problem {
                field,
                message: message.to_owned(),
            });
        };
        if self.endpoints.is_empty() {
            problem("endpoints".to_owned(), "at least one is needed");
        }
        for (i, endpoint) in self.endpoints.iter().enumerate() {
            let field = format!("endpoints[{i}]");
            match endpoint.split_once("://") {
                Some((_, rest)) if rest.contains('@') => {
                    problem(field, "the user stands in `user`, not in the URL");
                }
                Some(("http", _)) if self.tls.is_some() => {
                    problem(field, "`tls` is given, but this is http and not https");
                }
                Some(("https", _)) if self.tls.is_none() => {
                    problem(field, "https needs `tls`, with the CA of etcd");
                }
                Some(("http" | "https", rest)) if !rest.is_empty() => {}
                _ => problem(field, "must be http://host:port or https://host:port"),
            }
        }
        let pem = |text: &str| text.contains("-----BEGIN CERTIFICATE-----");
        if let Some(tls) = &self.tls {
            if !pem(&tls.ca) {
                problem("tls.ca".to_owned(), "holds no certificate in PEM");
            }
            if tls.identity.as_ref().is_some_and(|(text, _)| !pem(text)) {
                problem("tls.identity".to_owned(), "holds no certificate in PEM");
            }
        }
        if self.prefix.is_empty() || self.prefix.len() > MAX_PREFIX_BYTES {
            problem("prefix".to_owned(), "must have 1 to 128 bytes");
        }
        if self.timeout < Duration::from_millis(100) {
            problem("timeout".to_owned(), "must be 100 ms or more");
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(Error::invalid("store.open", problems))
        }
    }
}

/// A user of etcd's authentication.
#[derive(Clone, Debug)]
pub struct EtcdUser {
    /// Its name.
    pub name: String,
    /// Its password.
    pub password: SecretString,
}

/// Transport security. The certificates are PEM text.
#[derive(Clone)]
pub struct EtcdTls {
    /// The authority that etcd's certificates must come from: the only one that is trusted.
    pub ca: String,
    /// The certificate and the private key by which this client shows itself, if etcd asks for one.
    pub identity: Option<(String, SecretString)>,
    /// The name that etcd's certificates must have; the endpoint's host if none is given.
    pub server_name: Option<String>,
}

impl fmt::Debug for EtcdTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdTls")
            .field("server_name", &self.server_name)
            .field("identity", &self.identity.is_some())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_shown() {
        let mut options = EtcdOptions::new(["https://127.0.0.1:2379"]);
        options.user = Some(EtcdUser {
            name: "panel".to_owned(),
            password: "hunter2".into(),
        });
        options.tls = Some(EtcdTls {
            ca: "-----CA-----".to_owned(),
            identity: Some(("-----CERT-----".to_owned(), "-----KEY-----".into())),
            server_name: None,
        });
        let shown = format!("{options:?}");
        assert!(shown.contains("panel"), "{shown}");
        assert!(
            !shown.contains("hunter2") && !shown.contains("KEY"),
            "{shown}"
        );
    }

    #[test]
    fn every_problem_is_named() {
        let mut options = EtcdOptions::new([
            "127.0.0.1:2379",
            "https://127.0.0.1:2379",
            "http://u:p@127.0.0.1",
        ]);
        options.prefix = String::new();
        options.timeout = Duration::ZERO;
        let error = options.check().unwrap_err();
        let fields: Vec<_> = error.problems().iter().map(|p| p.field.as_str()).collect();
        let expected = [
            "endpoints[0]",
            "endpoints[1]",
            "endpoints[2]",
            "prefix",
            "timeout",
        ];
        assert_eq!(fields, expected);
        assert!(!format!("{error:?}").contains("u:p"), "{error:?}");
        let none: [&str; 0] = [];
        assert_eq!(
            EtcdOptions::new(none).check().unwrap_err().problems().len(),
            1
        );
    }
}
