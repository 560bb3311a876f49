//! How a NIC is given to its guest. Names and meanings are libvirt's.

use serde::{Deserialize, Serialize};

use super::network::NetworkKind;
use super::node::Capability;
use super::settings::{Effect, FieldChange};
use crate::error::Problem;

/// How a NIC is given to its guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NicOptions {
    /// The device that the guest sees.
    pub model: NicModel,
    /// Pairs of queues: as many vCPUs of the guest can send and receive at once.
    pub queues: u16,
    /// The largest packet in bytes, of the host's device and of what the guest is told; the network's own if none.
    pub mtu: Option<u16>,
    /// Whether its cable is plugged in, changed while the guest runs.
    pub link: LinkState,
    /// How much the guest may send and receive, changed while it runs.
    pub limits: NicLimits,
}

impl Default for NicOptions {
    fn default() -> Self {
        Self {
            model: NicModel::default(),
            queues: 1,
            mtu: None,
            link: LinkState::default(),
            limits: NicLimits::default(),
        }
    }
}

impl NicOptions {
    /// Whether nothing was asked for.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// What is wrong with them, wherever the NIC is to be, by their fields.
    pub fn problems(&self) -> Vec<Problem> {
        let virtio = self.model == NicModel::Virtio;
        let checks = [
            (
                !(1..=MAX_QUEUES).contains(&self.queues),
                "queues",
                "must be 1 to 256",
            ),
            (
                self.queues > 1 && !virtio,
                "queues",
                "only `virtio` NICs have more than one pair",
            ),
            (
                self.mtu.is_some_and(|mtu| mtu < MIN_MTU),
                "mtu",
                "must be 1280 to 65535",
            ),
            (
                self.mtu.is_some() && !virtio,
                "mtu",
                "only `virtio` NICs tell their guest",
            ),
            (
                self.limits
                    .numbers()
                    .any(|limit| !NicLimits::RANGE.contains(&limit)),
                "limits",
                "each is 1024 to 10^10 bytes per second; without one there is no limit",
            ),
        ];
        Problem::those(checks)
    }

    /// What is wrong with them on a network whose NICs have no device on the host, by their fields.
    pub fn problems_without_device(&self) -> Vec<Problem> {
        let message = "NICs of user-mode networks have no device on the host for it";
        Problem::those([
            (self.queues > 1, "queues", message),
            (self.mtu.is_some(), "mtu", message),
            (self.limits != NicLimits::default(), "limits", message),
        ])
    }

    /// What is wrong with them on a network of this kind, by their fields.
    pub(crate) fn problems_on(&self, network: &NetworkKind) -> Vec<Problem> {
        let mut problems = self.problems();
        if matches!(network, NetworkKind::User) {
            problems.extend(self.problems_without_device());
        }
        problems
    }

    /// What a host has to be able to do for it.
    pub fn needs(&self) -> impl Iterator<Item = Capability> {
        let model = (self.model == NicModel::E1000e).then_some(Capability::E1000eNics);
        model.into_iter().chain(self.live_needs())
    }

    /// What of it a host has to be able to do while the guest runs.
    pub(crate) fn live_needs(&self) -> Option<Capability> {
        let limited = self.limits != NicLimits::default();
        limited.then_some(Capability::NicLimits)
    }

    /// What differs in `new`, by field, and when that takes effect for a guest that runs.
    pub fn changes(&self, new: &Self) -> Vec<FieldChange> {
        let Self {
            model,
            queues,
            mtu,
            link,
            limits,
        } = self;
        let fields = [
            ("model", *model != new.model, Effect::Restart),
            ("queues", *queues != new.queues, Effect::Restart),
            ("mtu", *mtu != new.mtu, Effect::Restart),
            ("link", *link != new.link, Effect::Live),
            ("limits", *limits != new.limits, Effect::Live),
        ];
        FieldChange::of(fields).collect()
    }

    /// These, with what of `new` can be had while the guest runs.
    #[must_use]
    pub fn with_live(self, new: &Self) -> Self {
        Self {
            link: new.link,
            limits: new.limits,
            ..self
        }
    }
}

/// What Linux takes for a tap device (`MAX_TAP_QUEUES`).
const MAX_QUEUES: u16 = 256;
/// The least that IPv6 works with (RFC 8200): a bridge takes the least of its devices', for everybody on it.
const MIN_MTU: u16 = 1280;

/// The device that a guest sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NicModel {
    /// virtio-net: the fastest, for guests that have its driver.
    #[default]
    Virtio,
    /// Intel's 82574: for guests that have no virtio driver.
    E1000e,
}

/// Whether a NIC's cable is plugged in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// It is.
    #[default]
    Up,
    /// It is not.
    Down,
}

/// How much a guest may send and receive over a NIC; no limit where there is none. In and out are the guest's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NicLimits {
    /// Bytes received per second: what comes faster waits on the host, and is dropped if that takes too long.
    pub inbound_bytes_sec: Option<u64>,
    /// Bytes sent per second: what is sent faster is dropped.
    pub outbound_bytes_sec: Option<u64>,
}

impl NicLimits {
    /// libvirt counts whole KiB, and the kernel's least is below.
    const RANGE: std::ops::RangeInclusive<u64> = 1024..=10_000_000_000;

    fn numbers(&self) -> impl Iterator<Item = u64> {
        let all = [self.inbound_bytes_sec, self.outbound_bytes_sec];
        all.into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(problems: &[Problem]) -> Vec<&str> {
        problems.iter().map(|p| p.field.as_str()).collect()
    }

    #[test]
    fn options_that_do_not_go_together_are_named() {
        let options = NicOptions {
            model: NicModel::E1000e,
            queues: 2,
            mtu: Some(1279),
            link: LinkState::Down,
            limits: NicLimits {
                inbound_bytes_sec: Some(1),
                ..NicLimits::default()
            },
        };
        let wrong = options.problems();
        assert_eq!(fields(&wrong), ["queues", "mtu", "mtu", "limits"]);
        let wrong = options.problems_without_device();
        assert_eq!(fields(&wrong), ["queues", "mtu", "limits"]);
        let good = NicOptions {
            link: LinkState::Down,
            ..NicOptions::default()
        };
        assert_eq!(good.problems_on(&NetworkKind::User), []);
    }

    #[test]
    fn link_and_limits_are_live() {
        let old = NicOptions::default();
        let new = NicOptions {
            model: NicModel::E1000e,
            link: LinkState::Down,
            limits: NicLimits {
                outbound_bytes_sec: Some(1 << 20),
                ..NicLimits::default()
            },
            ..NicOptions::default()
        };
        let kept = old.with_live(&new);
        let waiting = kept.changes(&new).into_iter();
        let waiting: Vec<_> = waiting.map(|c| (c.field, c.effect)).collect();
        assert_eq!(waiting, [("model".to_owned(), Effect::Restart)]);
        assert_eq!((kept.link, kept.limits), (new.link, new.limits));
    }
}
