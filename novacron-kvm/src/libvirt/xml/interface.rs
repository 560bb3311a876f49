//! `<interface>`: a NIC.

use serde::{Deserialize, Serialize};

use super::{Alias, Boot, Target};

/// `<interface>`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename = "interface")]
pub(in super::super) struct Interface {
    #[serde(rename = "@type")]
    pub(in super::super) kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in super::super) mac: Option<Mac>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in super::super) source: Option<InterfaceSource>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in super::super) target: Option<Target>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in super::super) model: Option<InterfaceModel>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in super::super) driver: Option<InterfaceDriver>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in super::super) bandwidth: Option<Bandwidth>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in super::super) mtu: Option<Mtu>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in super::super) link: Option<Link>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in super::super) boot: Option<Boot>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in super::super) rom: Option<Rom>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in super::super) alias: Option<Alias>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(in super::super) struct Mac {
    #[serde(rename = "@address")]
    pub(in super::super) address: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(in super::super) struct InterfaceSource {
    #[serde(rename = "@bridge", skip_serializing_if = "Option::is_none")]
    pub(in super::super) bridge: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(in super::super) struct InterfaceModel {
    #[serde(rename = "@type")]
    pub(in super::super) kind: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(in super::super) struct InterfaceDriver {
    #[serde(rename = "@queues")]
    pub(in super::super) queues: u16,
}

/// A NIC's limits, each side from the guest's point of view.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(in super::super) struct Bandwidth {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in super::super) inbound: Option<Average>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in super::super) outbound: Option<Average>,
}

/// In KiB per second.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(in super::super) struct Average {
    #[serde(rename = "@average")]
    pub(in super::super) average: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(in super::super) struct Mtu {
    #[serde(rename = "@size")]
    pub(in super::super) size: u16,
}

/// Whether a NIC's cable is plugged in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(in super::super) struct Link {
    #[serde(rename = "@state")]
    pub(in super::super) state: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(in super::super) struct Rom {
    #[serde(rename = "@enabled", skip_serializing_if = "Option::is_none")]
    pub(in super::super) enabled: Option<String>,
}
