//! The processes of a cluster, and which of them looks after what.
//!
//! ```text
//!   member/<member>        the member, the leader    a process that was built over the records; ends as left or lost
//!   owner/node/<node>      the owner, the leader     who looks after a host's domains; that it was fenced when nobody did
//!   owner/pool/<pool>      the owner                 who looks after a pool's artefacts
//! ```
//! A member is alive while it holds the lease `member/<member>`. What an owner commits requires that its ownership record
//! is as it was: whoever takes over writes that record, so the one before can write nothing more.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::ids::MemberId;
use crate::time::Timestamp;

/// What a process does in the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It may lead: place VMs, grant claims, end operations. It looks after no host and no pool.
    Controller,
    /// It looks after its hosts and pools, and never leads.
    Owner,
    /// Both.
    #[default]
    Both,
}

impl Role {
    /// Whether it may lead.
    pub fn leads(self) -> bool {
        self != Self::Owner
    }

    /// Whether it looks after its hosts and pools.
    pub fn owns(self) -> bool {
        self != Self::Controller
    }
}

/// A process of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Which.
    pub id: MemberId,
    /// For people: where it runs.
    pub name: String,
    /// Its version of NovaCron.
    pub version: String,
    /// The newest feature level that it knows.
    #[serde(default = "first_level")]
    pub level: u32,
    /// What it does.
    pub role: Role,
    /// When it was built.
    pub joined_at: Timestamp,
    /// By how much its host's clock is ahead of the leader's, in seconds; negative when it is behind. Only told while that is
    /// certainly more than twice as long as its lease lasts. The process goes by the leader's clock then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_off_secs: Option<i64>,
    /// Where other processes ask it about its guests, if it was built to be asked or to ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// Whether it is still there.
    pub state: MemberState,
}

fn first_level() -> u32 {
    1
}

impl Member {
    /// Whether it may own anything.
    pub fn is_alive(&self) -> bool {
        self.state == MemberState::Alive
    }
}

/// How a process proves to others who it is, and where they reach it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// Its key.
    pub key: PeerKey,
    /// Its `host:port`; none if it only asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// A process's public Ed25519 key; in text its 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PeerKey(pub [u8; 32]);

impl fmt::Display for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerKey({self})")
    }
}

impl From<PeerKey> for String {
    fn from(key: PeerKey) -> Self {
        key.to_string()
    }
}

impl TryFrom<String> for PeerKey {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        const WANTED: &str = "a key is 64 hex digits";
        let mut key = [0; 32];
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(WANTED);
        }
        for (at, byte) in key.iter_mut().enumerate() {
            let digits = text.get(at * 2..at * 2 + 2).ok_or(WANTED)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| WANTED)?;
        }
        Ok(Self(key))
    }
}

/// Whether a process is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberState {
    /// As far as is known: its lease is held, or was a moment ago.
    Alive,
    /// It shut down, and said so.
    Left {
        /// When.
        at: Timestamp,
    },
    /// Its lease ran out.
    Lost {
        /// When that was seen.
        at: Timestamp,
    },
}

/// Who looks after a node or a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ownership {
    /// Who.
    pub member: MemberId,
    /// Since when.
    pub since: Timestamp,
    /// Since when the leader has the node's host fenced: from then on its owner, if it comes back, must take it anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fencing: Option<Timestamp>,
    /// Of a node whose owner was lost: what proves that its host runs nothing of before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fenced: Option<FenceReceipt>,
}

/// What a fence says it did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FenceReceipt {
    /// How, as `redfish` or `ipmi`.
    pub method: String,
    /// For people: what was done, and what was seen afterwards.
    pub detail: String,
}
