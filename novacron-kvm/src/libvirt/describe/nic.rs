//! A NIC as libvirt's XML.

use novacron_core::driver::NicAttachment;
use novacron_core::model::{LinkState, NicLimits, NicModel, PortBinding, PortId};
use novacron_core::{Error, ErrorKind, Result};

use super::super::xml::{
    Alias, Average, Bandwidth, Boot, Interface, InterfaceDriver, InterfaceModel, InterfaceSource,
    Link, Mac, Mtu, Rom, Target,
};

pub(in super::super) fn nic_alias(port: PortId) -> String {
    format!("ua-nic-{port}")
}

impl Interface {
    /// The port, if it is one of ours.
    pub(in super::super) fn port(&self) -> Option<PortId> {
        let alias = self.alias.as_ref()?;
        alias.name.strip_prefix("ua-nic-")?.parse().ok()
    }
}

/// A NIC, at its place in the order of booting. One that the guest does not boot from has no boot ROM.
pub(in super::super) fn describe_nic(
    nic: &NicAttachment,
    boot: Option<Boot>,
    operation: &'static str,
) -> Result<Interface> {
    let options = &nic.options;
    if !nic.forwards.is_empty() {
        let message = "libvirt's user-mode networks forward no ports here";
        return Err(Error::new(ErrorKind::Unsupported, operation, message).with("port", nic.port));
    }
    let (kind, source, target) = match &nic.binding {
        PortBinding::User => ("user", None, None),
        PortBinding::Bridge { bridge } => {
            let bridge = Some(bridge.clone());
            ("bridge", Some(InterfaceSource { bridge }), None)
        }
        PortBinding::Tap { device } => {
            let target = Target {
                device: Some(device.clone()),
                managed: Some("no".to_owned()),
                ..Target::default()
            };
            ("ethernet", None, Some(target))
        }
    };
    Ok(Interface {
        kind: kind.to_owned(),
        mac: Some(Mac {
            address: nic.mac.to_string(),
        }),
        source,
        target,
        model: Some(InterfaceModel {
            kind: match options.model {
                NicModel::Virtio => "virtio",
                NicModel::E1000e => "e1000e",
            }
            .to_owned(),
        }),
        driver: (options.queues > 1).then_some(InterfaceDriver {
            queues: options.queues,
        }),
        mtu: options.mtu.map(|size| Mtu { size }),
        link: Some(Link::of(options.link)),
        bandwidth: bandwidth(&options.limits),
        rom: boot.is_none().then(|| Rom {
            enabled: Some("no".to_owned()),
        }),
        boot,
        alias: Some(Alias {
            name: nic_alias(nic.port),
        }),
    })
}

impl Link {
    pub(in super::super) fn of(link: LinkState) -> Self {
        let state = match link {
            LinkState::Up => "up",
            LinkState::Down => "down",
        };
        Self {
            state: state.to_owned(),
        }
    }
}

pub(in super::super) fn bandwidth(limits: &NicLimits) -> Option<Bandwidth> {
    let average = |limit: Option<u64>| {
        limit.map(|limit| Average {
            average: kib(limit),
        })
    };
    (*limits != NicLimits::default()).then(|| Bandwidth {
        inbound: average(limits.inbound_bytes_sec),
        outbound: average(limits.outbound_bytes_sec),
    })
}

/// As libvirt counts a NIC's rate: no more than was said.
pub(in super::super) fn kib(bytes: u64) -> u64 {
    bytes / 1024
}
