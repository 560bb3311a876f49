//! The hosts and the pool: what a call does when it comes in, and what one whose answer was lost may still do.
//!
//! The rules are those of the traits' contracts: an epoch is started once and not beside another one of its VM on the same
//! host; a list ends what calls that have ended may still do on its host, an undefine what they may still do to its domain,
//! a boot what any call may that was sent before.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::drivers::{Answer, Request};
use crate::driver::{Domain, DomainId, DomainOwner, DomainState};
use crate::error::ErrorKind;
use crate::model::{Epoch, Exit, HostId, HostInfo, MiB, NodeCapabilities, NodeId, VmId, VolumeId};

#[derive(Clone, Debug, Default)]
pub(super) struct Site {
    pub(super) hosts: BTreeMap<NodeId, Machine>,
    /// Calls that may still take effect.
    pub(super) late: BTreeSet<Late>,
    attached: BTreeSet<(VolumeId, NodeId, VmId, Epoch)>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Machine {
    pub(super) boots: u8,
    pub(super) domains: BTreeMap<DomainId, Domain>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Late {
    pub(super) request: Request,
    /// The host's boots when it was lost.
    boots: u8,
    /// Whether its caller was told that the outcome is unknown; one that died was not.
    ended: bool,
}

/// The host that a call acts on, and its domain.
fn place(request: &Request) -> Option<(&NodeId, Option<DomainId>)> {
    match request {
        Request::Define(node, id, _)
        | Request::Start(node, id)
        | Request::Resume(node, id)
        | Request::Pause(node, id)
        | Request::Stop(node, id, _)
        | Request::Undefine(node, id)
        | Request::Inspect(node, id) => Some((node, Some(*id))),
        Request::Probe(node) | Request::List(node) => Some((node, None)),
        Request::Attach(..)
        | Request::Detach(..)
        | Request::Fence(_)
        | Request::Read(_)
        | Request::Lease(_) => None,
    }
}

impl Machine {
    pub(super) fn info(&self, node: &NodeId) -> HostInfo {
        let name = node.as_str().bytes().next().unwrap_or_default();
        HostInfo {
            host: HostId::from_uuid(Uuid::from_u128(u128::from(name))),
            boot_id: format!("boot {}", self.boots),
            capabilities: NodeCapabilities {
                cpus: 4,
                max_vcpus: 4,
                memory: MiB(4096),
                ..NodeCapabilities::default()
            },
        }
    }

    pub(super) fn running(&self) -> impl Iterator<Item = (&DomainId, &Domain)> {
        self.domains
            .iter()
            .filter(|(_, domain)| domain.state == DomainState::Running)
    }
}

fn is_started(domain: &Domain) -> bool {
    matches!(domain.state, DomainState::Paused | DomainState::Running)
}

impl Site {
    pub(super) fn reboot(&mut self, node: &NodeId) {
        if let Some(host) = self.hosts.get_mut(node) {
            host.boots += 1;
            host.domains.clear();
        }
        let hosts = &self.hosts;
        self.late.retain(|late| match place(&late.request) {
            Some((node, _)) => hosts[node].boots == late.boots,
            None => true,
        });
    }

    /// The answer to a call is lost, and it has not been carried out: it may still be.
    pub(super) fn lose(&mut self, request: &Request, ended: bool) {
        if request.has_effect() {
            let boots = place(request).map_or(0, |(node, _)| self.hosts[node].boots);
            let request = request.clone();
            self.late.insert(Late {
                request,
                boots,
                ended,
            });
        }
    }

    /// A late call is carried out after all.
    pub(super) fn carry_out_late(&mut self, late: &Late) {
        self.late.remove(late);
        self.carry_out(&late.request);
    }

    /// A call comes in. Those of the store are not the site's.
    pub(super) fn carry_out(&mut self, request: &Request) -> Answer {
        let refused = Answer::Failed(ErrorKind::FailedPrecondition);
        let ended = |late: &Late, on: &NodeId, domain: Option<DomainId>| {
            place(&late.request)
                .is_some_and(|(n, d)| n == on && late.ended && (domain.is_none() || d == domain))
        };
        match request {
            Request::Fence(node) => self.reboot(node),
            Request::Attach(volume, node, vm, epoch) => {
                self.attached.insert((*volume, node.clone(), *vm, *epoch));
            }
            Request::Detach(volume, node, vm, epoch) => {
                self.attached.remove(&(*volume, node.clone(), *vm, *epoch));
            }
            Request::List(node) => self.late.retain(|late| !ended(late, node, None)),
            Request::Undefine(node, id) => {
                if self.hosts[node].domains.get(id).is_some_and(is_started) {
                    return refused;
                }
                self.late.retain(|late| !ended(late, node, Some(*id)));
            }
            _ => {}
        }
        let Some((node, id)) = place(request) else {
            return Answer::Done;
        };
        let Some(host) = self.hosts.get_mut(node) else {
            return Answer::Failed(ErrorKind::Unavailable);
        };
        let Some(id) = id else {
            return match request {
                Request::List(_) => Answer::Domains(host.domains.values().cloned().collect()),
                _ => Answer::Host(host.info(node)),
            };
        };
        if let Request::Define(_, _, disks) = request {
            let domain = Domain {
                owner: DomainOwner::NovaCron(id),
                state: DomainState::Defined,
                disks: disks.clone(),
                nics: Vec::new(),
            };
            let known = host.domains.get(&id);
            if known.is_none_or(|d| d.state == DomainState::Defined) {
                host.domains.insert(id, domain);
            }
            return Answer::Done;
        }
        let locked = host
            .domains
            .iter()
            .any(|(other, d)| *other != id && other.vm == id.vm && is_started(d));
        let Some(domain) = host.domains.get_mut(&id) else {
            return match request {
                Request::Inspect(..) => Answer::Domain(None),
                Request::Stop(..) | Request::Undefine(..) => Answer::Done,
                _ => Answer::Failed(ErrorKind::NotFound),
            };
        };
        let ended = matches!(domain.state, DomainState::Ended(_));
        match request {
            Request::Inspect(..) => return Answer::Domain(Some(domain.clone())),
            Request::Undefine(..) => drop(host.domains.remove(&id)),
            Request::Start(..) if domain.state == DomainState::Defined && !locked => {
                domain.state = DomainState::Paused;
            }
            Request::Start(..) if is_started(domain) => {}
            Request::Resume(..) if is_started(domain) => domain.state = DomainState::Running,
            Request::Pause(..) if is_started(domain) => domain.state = DomainState::Paused,
            Request::Stop(..) if !ended => domain.state = DomainState::Ended(Exit::Requested),
            Request::Stop(..) => {}
            _ => return refused,
        }
        Answer::Done
    }
}
