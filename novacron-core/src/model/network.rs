//! Networks and ports, as far as a user-mode or a bridge NIC needs them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ids::{NetworkId, NodeId, PortId, VmId};
use super::meta::Meta;
use super::run::Epoch;
use crate::error::{Error, ErrorKind};

/// A network's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Its id.
    pub id: NetworkId,
    /// Name and history.
    pub meta: Meta,
    /// How it is made.
    pub kind: NetworkKind,
}

/// How a network is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum NetworkKind {
    /// QEMU's user-mode stack: each VM alone behind NAT; needs no privilege.
    User,
    /// A tap device on a bridge that exists on the node.
    Bridge {
        /// The bridge's interface name.
        bridge: String,
    },
}

/// A NIC's connection to a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Its id.
    pub id: PortId,
    /// The VM it belongs to.
    pub vm: VmId,
    /// The network.
    pub network: NetworkId,
    /// The MAC address.
    pub mac: MacAddr,
    /// Ports of the host that lead into the guest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forwards: Vec<PortForward>,
}

/// The status record of a port, written by the owner of the node where its VM's start is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortStatus {
    /// The VM.
    pub vm: VmId,
    /// Where.
    pub node: NodeId,
    /// The VM's start.
    pub epoch: Epoch,
    /// Where it stands.
    pub state: PortState,
}

/// Where a port stands. One without a status is bound nowhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortState {
    /// It is being made.
    Binding,
    /// A NIC can use it.
    Bound(PortBinding),
    /// It could not be made.
    Failed {
        /// Why.
        reason: String,
    },
}

/// How a hypervisor reaches a port on its host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum PortBinding {
    /// By the hypervisor's own user-mode stack.
    User,
    /// By a tap device that the hypervisor makes and puts on this bridge.
    Bridge {
        /// The bridge's interface name.
        bridge: String,
    },
    /// By a tap device that is there and connected already.
    Tap {
        /// The device's interface name.
        device: String,
    },
}

/// A port of the host that leads to a port of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortForward {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The host's address to listen on.
    pub host_addr: IpAddr,
    /// The host's port.
    pub host_port: u16,
    /// The guest's port.
    pub guest_port: u16,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// An Ethernet address, as `52:54:00:12:34:56`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// A unicast address under QEMU's prefix `52:54:00`, from 24 given bits.
    pub fn from_bits(bits: u128) -> Self {
        let [a, b, c, ..] = bits.to_le_bytes();
        Self([0x52, 0x54, 0x00, a, b, c])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let parse = || {
            let mut bytes = [0; 6];
            let mut parts = text.split(':');
            for byte in &mut bytes {
                let part = parts
                    .next()
                    .filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))?;
                *byte = u8::from_str_radix(part, 16).ok()?;
            }
            // The lowest bit of the first byte marks a group address, which no NIC can have.
            (parts.next().is_none() && bytes[0] & 1 == 0).then_some(Self(bytes))
        };
        parse().ok_or_else(|| {
            let shown: String = text.chars().take(32).collect();
            Error::new(
                ErrorKind::Invalid,
                "mac.parse",
                format!("{shown:?} is not a unicast MAC address as 52:54:00:12:34:56"),
            )
        })
    }
}

impl TryFrom<String> for MacAddr {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}
