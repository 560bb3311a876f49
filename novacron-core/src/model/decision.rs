//! Why a VM was placed where it is: enough to explain it, and to compute it again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ids::PlaceId;
use super::revision::Revision;

/// A placement decision as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    /// The scheduler's name and version.
    pub scheduler: String,
    /// The revision of the view that it saw.
    pub view: Revision,
    /// The seed of its ties.
    pub seed: u64,
    /// Where to.
    pub winner: PlaceId,
    /// How many places each rule turned down.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rejections: BTreeMap<String, u32>,
}
