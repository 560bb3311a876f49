//! References to secrets. A spec never holds a secret, only where to find it.

use serde::{Deserialize, Serialize};

/// Names a secret that the host application's `SecretSource` can open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretRef {
    /// The secret's name, as the host application knows it.
    pub name: String,
}
