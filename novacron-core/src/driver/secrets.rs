//! Where secrets come from.

use std::fmt;

use async_trait::async_trait;
use secrecy::SecretString;

use super::Call;
use crate::error::{Error, ErrorKind, Result};
use crate::model::SecretRef;

/// Opens the secrets that specs refer to.
#[async_trait]
pub trait SecretSource: fmt::Debug + Send + Sync + 'static {
    /// The secret's value. *Errors:* `NotFound` when there is none of that name.
    async fn open(&self, call: Call, secret: &SecretRef) -> Result<SecretString>;
}

/// Has no secrets.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSecrets;

#[async_trait]
impl SecretSource for NoSecrets {
    async fn open(&self, _call: Call, secret: &SecretRef) -> Result<SecretString> {
        Err(Error::new(
            ErrorKind::NotFound,
            "secret.open",
            "the cluster was built without a SecretSource",
        )
        .with("secret", &secret.name))
    }
}
