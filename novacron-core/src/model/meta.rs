//! What every object that a user creates has in common.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ids::Name;
use super::revision::Revision;
use crate::time::Timestamp;

/// Name, ownership and history of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    /// Unique per project and kind.
    pub name: Name,
    /// Whose it is.
    pub project: Name,
    /// For selection: short keys and values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// For the host application: not looked at by NovaCron.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// When it was created.
    pub created_at: Timestamp,
    /// Grows with every change of the spec.
    pub generation: u64,
    /// When its deletion was asked for; it is gone once everything that it named is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<Timestamp>,
}

impl Meta {
    /// That of a new object.
    pub(crate) fn new(name: Name, project: Name, now: Timestamp) -> Self {
        Self {
            name,
            project,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            created_at: now,
            generation: 1,
            deleted_at: None,
        }
    }
}

/// An object as it was read: its value and the revision that wrote it, for
/// `RequestOptions::expected_version`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned<T> {
    /// The revision that wrote it.
    pub version: Revision,
    /// The value.
    pub value: T,
}

impl<T> std::ops::Deref for Versioned<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}
