//! References to secrets. A spec never holds a secret, only where to find it.

use serde::{Deserialize, Serialize};

/// Names a secret that the host application's `SecretSource` can open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretRef {
    /// The secret's name, as the host application knows it.
    pub name: String,
}

impl SecretRef {
    pub(crate) const RULE: &str = "a secret's name of 1 to 128 bytes";

    /// Whether its name can be a secret's.
    pub(crate) fn is_named(&self) -> bool {
        (1..=128).contains(&self.name.len())
    }
}
