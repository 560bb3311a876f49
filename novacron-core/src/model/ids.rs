//! The one registry of typed ids and names.
//!
//! Objects that users create have a UUID (version 7: time-ordered, made by [`crate::IdSource`]); nodes, pools and
//! regions are named by the host application, and the name is the identity, as in `run/alpha/<vm>`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Error, ErrorKind};
use crate::time::{IdSource, Timestamp};

/// A time-ordered UUID (version 7, RFC 9562, with its counter): milliseconds, the upper 32 of the given bits, the lower
/// 42. Of one source that counts in the upper bits, ids of one millisecond are in the order of their making too.
pub(crate) fn uuid_v7(now: Timestamp, ids: &dyn IdSource) -> Uuid {
    let given = ids.bits();
    let (counter, random) = (given >> 96, given & ((1 << 42) - 1));
    let version = (0x7 << 76) | ((counter >> 20) << 64);
    let variant = (0x2 << 62) | ((counter & 0xf_ffff) << 42);
    Uuid::from_u128((u128::from(now.as_millis()) << 80) | version | variant | random)
}

macro_rules! uuid_ids {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A fresh id.
            pub fn generate(now: Timestamp, ids: &dyn IdSource) -> Self {
                Self(uuid_v7(now, ids))
            }

            /// An id from a UUID.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID.
            pub const fn uuid(self) -> Uuid {
                self.0
            }

            /// The time in the id: when it was made, if [`Self::generate`] made it.
            pub const fn created_at(self) -> Timestamp {
                Timestamp::from_millis((self.0.as_u128() >> 80) as u64)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                Uuid::try_parse(text).map(Self).map_err(|e| {
                    let shown: String = text.chars().take(80).collect();
                    Error::new(ErrorKind::Invalid, "id.parse", format!("{shown:?} is not a UUID")).caused_by(e)
                })
            }
        }
    )*};
}

uuid_ids! {
    /// A cluster: stamped on every artefact, so that two clusters on one host tell theirs apart.
    ClusterId
    /// A virtual machine.
    VmId
    /// A volume.
    VolumeId
    /// An image.
    ImageId
    /// A network.
    NetworkId
    /// A port: one NIC's connection to a network.
    PortId
    /// A snapshot of a volume.
    SnapshotId
    /// A point in a running domain's life from which its disks' changes are counted.
    CheckpointId
    /// A running domain's disks, readable as they were at one point.
    ExportId
    /// A caller's handle on a change.
    OperationId
    /// A one-off verb, as a reset.
    ActionId
    /// An event.
    EventId
    /// A host, by the UUID that its hypervisor reports.
    HostId
}

/// A process of the cluster: the how-manieth that was built over its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemberId(pub u64);

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for MemberId {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        text.parse().map(Self).map_err(|e| {
            let shown: String = text.chars().take(80).collect();
            let message = format!("{shown:?} is not a member's number");
            Error::new(ErrorKind::Invalid, "id.parse", message).caused_by(e)
        })
    }
}

/// The longest name: a DNS label.
pub const MAX_NAME: usize = 63;

/// What is wrong with `text` as a name, if anything.
pub(crate) fn name_problem(text: &str) -> Option<String> {
    let ok = (1..=MAX_NAME).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
        && !text.starts_with(['-', '.'])
        && !text.ends_with(['-', '.'])
        && !text.contains("..");
    if ok {
        return None;
    }
    let shown: String = text.chars().take(MAX_NAME).collect();
    Some(format!(
        "{shown:?} is not a name: 1 to {MAX_NAME} characters of a-z, 0-9, '-' and '.', beginning and ending with a letter or digit"
    ))
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// A name from text.
            ///
            /// # Errors
            /// [`ErrorKind::Invalid`] unless it is a DNS label (1 to 63 of `a-z 0-9 - .`).
            pub fn new(text: impl AsRef<str>) -> Result<Self, Error> {
                match name_problem(text.as_ref()) {
                    None => Ok(Self(text.as_ref().into())),
                    Some(problem) => Err(Error::new(ErrorKind::Invalid, "name.parse", problem)),
                }
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<Self, Error> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                Self::new(text)
            }
        }
    )*};
}

names! {
    /// The name of an object that a user created, unique per project and kind.
    Name
    /// A node: one hypervisor under management.
    NodeId
    /// A storage pool.
    PoolId
    /// A cloud region.
    RegionId
}

/// Where a VM can be: a node or a cloud region.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlaceId {
    /// A hypervisor's node.
    Node(NodeId),
    /// A region of a cloud.
    Region(RegionId),
}

impl PlaceId {
    /// The node, if it is one.
    pub fn node(&self) -> Option<&NodeId> {
        match self {
            Self::Node(node) => Some(node),
            Self::Region(_) => None,
        }
    }
}

impl fmt::Display for PlaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => node.fmt(f),
            Self::Region(region) => region.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SeededIds;

    #[test]
    fn ids_are_version_7_and_ordered_by_time() {
        let ids = SeededIds::from_seed(1);
        let a = VmId::generate(Timestamp::from_millis(1_000), &ids);
        let b = VmId::generate(Timestamp::from_millis(1_001), &ids);
        assert!(a < b);
        let same: Vec<_> = (0..10_000)
            .map(|_| VmId::generate(Timestamp::from_millis(1_002), &ids))
            .collect();
        assert!(same.is_sorted_by(|a, b| a < b), "in the order of making");
        assert_eq!(a.uuid().get_version_num(), 7);
        assert_eq!(a.uuid().get_variant(), uuid::Variant::RFC4122);
        assert_eq!(a.to_string().parse::<VmId>().unwrap(), a);
    }

    #[test]
    fn hostile_names_are_refused() {
        for bad in [
            "",
            "../etc",
            "a/b",
            "A",
            "web_1",
            "-a",
            "a-",
            "a..b",
            "ｗeb",
            "a\u{202e}b",
            "a\0b",
            &"x".repeat(10_240),
        ] {
            assert!(Name::new(bad).is_err(), "{bad:?}");
        }
        assert!(Name::new("web-1.prod").is_ok());
        assert!(serde_json::from_str::<NodeId>("\"a/b\"").is_err());
    }
}
