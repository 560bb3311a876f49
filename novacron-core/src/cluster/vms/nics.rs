//! NICs of a VM, beside those that it was created with.

use super::super::object::find;
use super::super::operations::OperationHandle;
use super::super::request::{problem, refuse};
use super::super::{RequestOptions, check};
use super::VmHandle;
use super::handle::next_generation;
use crate::control::cache::Cache;
use crate::control::plan::Draft;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{MacAddr, Network, NetworkId, Nic, NicSpec, Port, PortId, Vm, VmId};
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
    Ok((draft, Nic { port: port.id }))
}

/// The version of a network that a new port can be on, or why there can be none.
pub(super) fn joinable(
    cache: &Cache,
    options: &RequestOptions,
    network: NetworkId,
) -> Result<Revision, String> {
    match find::<Network>(cache, options, "network.get", network) {
        Err(_) => Err(format!("the project has no network {network}")),
        Ok(found) if found.meta.deleted_at.is_some() => {
            Err(format!("network {network} is being deleted"))
        }
        Ok(found) => Ok(found.version),
    }
}

fn as_spec(port: &Port) -> NicSpec {
    NicSpec {
        network: port.network,
        mac: Some(port.mac),
        forwards: port.forwards.clone(),
    }
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
                let present = present.filter_map(|nic| cache.ports.get(&nic.port));
                let mut all: Vec<NicSpec> = present.map(|port| as_spec(port)).collect();
                all.push(nic.clone());
                let mut problems = check::nics(&all);
                let version = joinable(cache, options, nic.network).unwrap_or_else(|why| {
                    problems.push(problem(format!("nics[{}].network", all.len() - 1), why));
                    Revision::default()
                });
                refuse(VERB, problems)?;
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
                    let message = "the VM has no such NIC";
                    return Err(Error::new(ErrorKind::NotFound, VERB, message).with("port", port));
                }
                Ok((draft, next_generation(vm)))
            })
            .await
    }
}
