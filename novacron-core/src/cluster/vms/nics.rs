//! NICs of a VM, beside those that it was created with.

use super::super::object::find;
use super::super::operations::OperationHandle;
use super::super::request::{problem, refuse};
use super::super::{RequestOptions, check};
use super::VmHandle;
use super::handle::{needing, next_generation, running_on};
use crate::control::cache::Cache;
use crate::control::plan::Draft;
use crate::error::{Error, ErrorKind, Problem, Result};
use crate::model::{
    MacAddr, Network, NetworkKind, Nic, NicOptions, NicSpec, Port, PortId, Vm, VmId,
};
use crate::store::Revision;
use crate::time::{IdSource, Timestamp};

/// The port of a new NIC, as a record in the draft, if its network stays as it was read.
pub(super) fn new_port(
    draft: Draft,
    vm: VmId,
    nic: &NicSpec,
    network: Revision,
    now: Timestamp,
    ids: &dyn IdSource,
) -> Result<(Draft, Nic)> {
    let port = Port {
        id: PortId::generate(now, ids),
        vm,
        network: nic.network,
        mac: nic.mac.unwrap_or_else(|| MacAddr::from_bits(ids.bits())),
        forwards: nic.forwards.clone(),
    };
    let draft = draft
        .unchanged::<Network>(&nic.network, Some(network))
        .put(&port.id, &port)?;
    let options = nic.options.clone();
    let port = port.id;
    Ok((draft, Nic { port, options }))
}

/// The version of the network that a new NIC is on, or what is wrong with its network, or with its options there.
pub(super) fn joinable(
    cache: &Cache,
    options: &RequestOptions,
    nic: &NicSpec,
) -> Result<Revision, Vec<Problem>> {
    let network = nic.network;
    let why = match find::<Network>(cache, options, "network.get", network) {
        Err(_) => format!("the project has no network {network}"),
        Ok(found) if found.meta.deleted_at.is_some() => {
            format!("network {network} is being deleted")
        }
        Ok(found) => {
            let problems = problems_of(&nic.options, &found.kind);
            return match problems.is_empty() {
                true => Ok(found.version),
                false => Err(problems),
            };
        }
    };
    Err(vec![problem("network", why)])
}

/// What is wrong with a NIC's options on a network.
fn problems_of(options: &NicOptions, network: &NetworkKind) -> Vec<Problem> {
    let problems = options.problems_on(network).into_iter();
    problems.map(|p| p.under("options")).collect()
}

fn as_spec(port: &Port, options: &NicOptions) -> NicSpec {
    NicSpec {
        network: port.network,
        mac: Some(port.mac),
        forwards: port.forwards.clone(),
        options: options.clone(),
    }
}

fn no_such_nic(verb: &'static str, port: PortId) -> Error {
    Error::new(ErrorKind::NotFound, verb, "the VM has no such NIC").with("port", port)
}

impl VmHandle {
    /// Gives it a NIC, while it runs if it runs. Its port is the last one of [`Machine::nics`](crate::model::Machine).
    ///
    /// # Errors
    /// As [`VmHandle::start`]; [`ErrorKind::Invalid`] when the VM has too many NICs, the MAC address is another NIC's, a
    /// forward is wrong, or the network does not exist.
    pub async fn attach_nic(&self, nic: NicSpec) -> Result<OperationHandle> {
        const VERB: &str = "vm.attach-nic";
        let (inner, options) = (self.inner(), self.cluster.options());
        let (now, request) = (inner.clock.now(), nic.clone());
        self.cluster
            .change::<Vm>(VERB, self.id, &request, |vm, draft, cache| {
                let present = vm.machine.nics.iter();
                let mut all: Vec<NicSpec> = present
                    .filter_map(|nic| Some(as_spec(cache.ports.get(&nic.port)?, &nic.options)))
                    .collect();
                all.push(nic.clone());
                let mut problems = check::nics(&all);
                let at = format!("nics[{}]", all.len() - 1);
                let version = joinable(cache, options, &nic).unwrap_or_else(|wrong| {
                    problems.extend(wrong.into_iter().map(|p| p.under(&at)));
                    Revision::default()
                });
                let place = running_on(vm.id, cache);
                let lacking = place.and_then(|place| place.lacking(nic.options.needs()));
                problems.extend(lacking.map(|why| problem(format!("{at}.options"), why)));
                refuse(VERB, problems)?;
                let draft = needing(nic.options.needs(), vm.id, draft, cache);
                let (draft, nic) = new_port(draft, vm.id, &nic, version, now, &*inner.ids)?;
                vm.machine.nics.push(nic);
                Ok((draft, next_generation(vm)))
            })
            .await
    }

    /// Takes a NIC back, with its port.
    ///
    /// # Errors
    /// As [`VmHandle::start`]; [`ErrorKind::NotFound`] also when the VM has no such NIC.
    pub async fn detach_nic(&self, port: PortId) -> Result<OperationHandle> {
        const VERB: &str = "vm.detach-nic";
        self.cluster
            .change::<Vm>(VERB, self.id, &port, |vm, draft, _| {
                let before = vm.machine.nics.len();
                vm.machine.nics.retain(|nic| nic.port != port);
                if vm.machine.nics.len() == before {
                    return Err(no_such_nic(VERB, port));
                }
                Ok((draft, next_generation(vm)))
            })
            .await
    }

    /// Changes how it is given a NIC. [`NicOptions::changes`] says beforehand what a running guest is given at once (its
    /// link and its limits) and what waits for the next start.
    ///
    /// # Errors
    /// As [`VmHandle::start`]; [`ErrorKind::NotFound`] also when the VM has no such NIC; [`ErrorKind::Invalid`] with
    /// every problem.
    pub async fn set_nic(&self, port: PortId, options: NicOptions) -> Result<OperationHandle> {
        const VERB: &str = "vm.set-nic";
        let request = (port, options.clone());
        self.cluster
            .change::<Vm>(VERB, self.id, &request, |vm, draft, cache| {
                let found = vm.machine.nics.iter_mut().find(|nic| nic.port == port);
                let known = cache.ports.get(&port);
                let network = known.and_then(|port| cache.networks.get(&port.network));
                let (Some(found), Some(network)) = (found, network) else {
                    return Err(no_such_nic(VERB, port));
                };
                let mut problems = problems_of(&options, &network.kind);
                let place = running_on(vm.id, cache);
                let lacking = place.and_then(|place| place.lacking(options.live_needs()));
                problems.extend(lacking.map(|why| problem("options.limits", why)));
                refuse(VERB, problems)?;
                let draft = needing(options.live_needs(), vm.id, draft, cache);
                found.options = options;
                Ok((draft, next_generation(vm)))
            })
            .await
    }
}
