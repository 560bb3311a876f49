//! The steps of a start, of an adaptation and of an end, through hypervisor and storage together.
//!
//! ```text
//!   start:   attach volumes → define → start (held) → READ BOOT ID, OWNER AND CLAIM AGAIN → resume
//!   adapt:   detach what the assignment no longer names → set what the rest may do → attach what it names anew
//!   retire:  (kill) → undefine → detach volumes → proof
//! ```
//! The claim is read from the store, not from the cache, after the domain exists: whoever took it away before that
//! sees no running guest, and whoever takes it away later finds the domain and must first prove it stopped. A start
//! that lost its claim undoes itself; so does one whose host booted meanwhile, for the run says under which boot it
//! began, and the owner takes another one for the proof that it is over.
//!
//! The owner is read likewise. One that takes a node over, looks, and does not find the domain says that the run is over: a
//! domain that appears after that look appears after the taking, too, and does not run. It is left as it is, for it is the
//! new owner's.
//!
//! A device cannot be given held, so an owner that stands still between that look and what it does then may give a disk
//! that the new owner has taken back meanwhile, or take one that it has given. The image's lock keeps a second writer out, and
//! the new owner makes the devices those of the assignment once more when it sees them.

use std::collections::BTreeSet;
use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};

use super::executor::Drivers;
use crate::driver::{
    AttachRequest, Call, DiskAttachment, Domain, DomainId, DomainSpec, DomainState, HotPlug,
    Hypervisor, NicAttachment, Seed, StopMode, StopReport, TpmState,
};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{
    AssignedDisk, Assignment, BootDevice, Claim, CloudInit, DiskRole, HostBoot, Machine, NodeId,
    PoolId, Power, StopProof, Tpm, VolumeId,
};
use crate::records::{self, NodeOwner, Stored};
use crate::store::{Revision, Store};

/// One run on one node, as long as its process has the right to change it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Right<'a> {
    drivers: &'a Drivers,
    node: &'a NodeId,
    id: DomainId,
    /// The version of the node's ownership under which the change was decided.
    owned: Revision,
}

impl<'a> Right<'a> {
    pub(crate) fn new(
        drivers: &'a Drivers,
        node: &'a NodeId,
        id: DomainId,
        owned: Revision,
    ) -> Self {
        Self {
            drivers,
            node,
            id,
            owned,
        }
    }

    async fn holds(&self) -> Result<()> {
        may_run(&*self.drivers.store, self.node, self.id, self.owned).await
    }
}

/// Whether the store says that the node was not taken anew since, and that this epoch may run there. Linearizable.
async fn may_run(store: &dyn Store, node: &NodeId, id: DomainId, owned: Revision) -> Result<()> {
    let owner = store.get(&<NodeOwner as Stored>::key(node)).await?;
    if owner.is_none_or(|owner| owner.version != owned) {
        let message = "the node was taken anew before the guest ran";
        let error = Error::new(ErrorKind::Conflict, "run.owner", message);
        return Err(error.with("node", node).with("vm", id.vm));
    }
    let claim = store.get(&<Claim as Stored>::key(&id.vm)).await?;
    let claim: Option<Claim> = claim.map(|r| records::from_record(&r)).transpose()?;
    match claim {
        Some(c) if c.is_held() && c.epoch == id.epoch && c.place.node() == Some(node) => Ok(()),
        _ => Err(Error::new(
            ErrorKind::FailedPrecondition,
            "run.claim",
            "the claim was taken away before the guest ran",
        )
        .with("vm", id.vm)
        .with("epoch", id.epoch)),
    }
}

/// Whether it is the host that the run began on, and has not booted since.
async fn same_boot(
    hypervisor: &Arc<dyn Hypervisor>,
    call: Call,
    began: Option<&HostBoot>,
) -> Result<()> {
    let now = hypervisor.probe(call).await?;
    match began {
        Some(began) if began.host != now.host || began.boot_id != now.boot_id => Err(Error::new(
            ErrorKind::FailedPrecondition,
            "run.boot",
            "the host booted anew, or is another one, before the guest ran",
        )),
        _ => Ok(()),
    }
}

fn attach_request(node: &NodeId, id: DomainId) -> AttachRequest {
    AttachRequest {
        node: node.clone(),
        vm: id.vm,
        epoch: id.epoch,
    }
}

async fn attach(
    drivers: &Drivers,
    call: Call,
    node: &NodeId,
    id: DomainId,
    disk: &AssignedDisk,
    machine: &Machine,
) -> Result<DiskAttachment> {
    let attachment = drivers
        .pool(&disk.pool)?
        .attach(call, disk.volume, &attach_request(node, id))
        .await?;
    Ok(DiskAttachment {
        name: disk.name.clone(),
        volume: disk.volume,
        attachment,
        options: machine.disk(disk.volume).cloned().unwrap_or_default(),
    })
}

pub(super) async fn detach(
    drivers: &Drivers,
    call: Call,
    pool: &PoolId,
    volume: VolumeId,
    by: &AttachRequest,
) -> Result<()> {
    match drivers.pool(pool)?.detach(call, volume, by).await {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The seed's files, with the secrets filled in.
async fn seed(
    drivers: &Drivers,
    call: Call,
    id: DomainId,
    assignment: &Assignment,
    init: &CloudInit,
) -> Result<Seed> {
    let hostname = init.hostname.as_deref().unwrap_or(&assignment.name);
    let mut user_data = String::new();
    // A rescued VM's is meant for its own disks, which stand in other places now.
    if assignment.machine.volume(DiskRole::Rescue).is_none() {
        user_data.clone_from(&init.user_data);
        for (variable, secret) in &init.secrets {
            let value = drivers.secrets.open(call, secret).await?;
            user_data = user_data.replace(&format!("${{{variable}}}"), value.expose_secret());
        }
    }
    Ok(Seed {
        meta_data: format!("instance-id: {}\nlocal-hostname: {hostname}\n", id.vm),
        user_data: SecretString::from(user_data),
        network_config: init.network_config.clone(),
    })
}

pub(crate) async fn start(
    right: &Right<'_>,
    call: Call,
    began: Option<&HostBoot>,
    assignment: &Assignment,
    nics: &[NicAttachment],
) -> Result<()> {
    let Right {
        drivers, node, id, ..
    } = *right;
    let hypervisor = drivers.node(node)?;
    // Before anything is made: a claim that is gone already costs nothing.
    right.holds().await?;
    let present = hypervisor.inspect(call, id).await?;
    let state = present.as_ref().map(|domain| &domain.state);
    if let Some(DomainState::Unknown(why)) = state {
        let message = format!("nobody can tell whether it runs: {why}");
        return Err(Error::new(ErrorKind::OutcomeUnknown, "run.start", message));
    }
    let is_started = matches!(state, Some(DomainState::Paused | DomainState::Running));
    if let Some(domain) = present.filter(|_| is_started) {
        // Made for an earlier assignment of this epoch, perhaps.
        if let Some(plug) = hypervisor.hot_plug() {
            set_live(plug, call, (id, &domain), assignment, 0).await?;
        }
    } else {
        let machine = &assignment.machine;
        let mut disks = Vec::with_capacity(assignment.disks.len());
        let (mut nvram, mut tpm) = (None, None);
        for disk in &assignment.disks {
            let attachment = attach(drivers, call, node, id, disk, machine).await?;
            match machine.role(disk.volume) {
                Some(DiskRole::Nvram) => nvram = Some(attachment),
                Some(DiskRole::Tpm) => tpm = Some(attachment),
                Some(DiskRole::Disk | DiskRole::Rescue) | None => disks.push(attachment),
            }
        }
        let seed = match &machine.cloud_init {
            Some(init) => Some(seed(drivers, call, id, assignment, init).await?),
            None => None,
        };
        let tpm = match (tpm, &machine.hardware.tpm) {
            (Some(disk), Some(Tpm { passphrase })) => Some(TpmState {
                disk,
                passphrase: match passphrase {
                    Some(secret) => Some(drivers.secrets.open(call, secret).await?),
                    None => None,
                },
            }),
            _ => None,
        };
        let mut hardware = machine.hardware.clone();
        if machine.volume(DiskRole::Rescue).is_some() {
            hardware.boot_order = vec![BootDevice::Disk];
        }
        let spec = DomainSpec {
            id,
            name: assignment.name.clone(),
            hardware,
            disks,
            nics: nics.to_vec(),
            generation_id: machine.generation_id,
            nvram,
            tpm,
            seed,
        };
        hypervisor.define(call, &spec).await?;
        hypervisor.start(call, id).await?;
    }
    let held = match same_boot(hypervisor, call, began).await {
        Ok(()) => right.holds().await,
        rebooted => rebooted,
    };
    if let Err(lost) = held {
        if lost.kind() == ErrorKind::FailedPrecondition {
            hypervisor.stop(call, id, StopMode::Kill).await?;
            hypervisor.undefine(call, id).await?;
            let by = attach_request(node, id);
            for disk in &assignment.disks {
                detach(drivers, call, &disk.pool, disk.volume, &by).await?;
            }
        }
        return Err(lost);
    }
    if assignment.power.state == Power::On {
        hypervisor.resume(call, id).await?;
    }
    Ok(())
}

pub(crate) async fn resume(right: &Right<'_>, call: Call) -> Result<()> {
    right.holds().await?;
    let hypervisor = right.drivers.node(right.node)?;
    hypervisor.resume(call, right.id).await
}

pub(crate) async fn adapt(
    right: &Right<'_>,
    call: Call,
    assignment: &Assignment,
    since: u64,
    nics: &[NicAttachment],
    leaving: &[(PoolId, VolumeId)],
) -> Result<()> {
    let Right {
        drivers, node, id, ..
    } = *right;
    let hypervisor = drivers.node(node)?;
    let Some(domain) = hypervisor.inspect(call, id).await? else {
        return Err(
            Error::new(ErrorKind::NotFound, "run.adapt", "the domain is gone").with("domain", id),
        );
    };
    let ports: BTreeSet<_> = nics.iter().map(|n| n.port).collect();
    let coming: Vec<_> = assignment
        .guest_disks()
        .filter(|d| !domain.disks.contains(&d.volume))
        .collect();
    // What the domain shows, also if it is of no pool any more, and what may be half attached.
    let mut leaving_disks: BTreeSet<_> = leaving.iter().map(|(_, volume)| *volume).collect();
    leaving_disks.extend(&domain.disks);
    for disk in &assignment.disks {
        leaving_disks.remove(&disk.volume);
    }
    let leaving_nics: Vec<_> = domain
        .nics
        .iter()
        .filter(|p| !ports.contains(p))
        .copied()
        .collect();
    let coming_nics: Vec<_> = nics
        .iter()
        .filter(|n| !domain.nics.contains(&n.port))
        .collect();
    let nothing_leaves = leaving_disks.is_empty() && leaving_nics.is_empty();
    let nothing_comes = coming.is_empty() && coming_nics.is_empty();
    let Some(plug) = hypervisor.hot_plug() else {
        let disks = assignment.disks.iter().map(|disk| disk.live_generation);
        let ports = assignment.ports.iter().map(|port| port.live_generation);
        let is_set = disks.chain(ports).all(|generation| generation <= since);
        if nothing_leaves && nothing_comes && is_set {
            return Ok(());
        }
        return Err(Error::new(
            ErrorKind::Unsupported,
            "run.adapt",
            "this hypervisor cannot change devices while a guest runs",
        ));
    };
    right.holds().await?;
    // A guest that does not let go of one device gets the others nevertheless.
    let (mut kept, mut refused) = (BTreeSet::new(), Ok(()));
    for volume in leaving_disks {
        if let Err(error) = plug.detach_disk(call, id, volume).await {
            kept.insert(volume);
            refused = refused.and(Err(error));
        }
    }
    for port in leaving_nics {
        let detached = plug.detach_nic(call, id, port).await;
        refused = refused.and(detached);
    }
    let rest = async {
        let gone = leaving.iter().filter(|(_, volume)| !kept.contains(volume));
        for (pool, volume) in gone {
            detach(drivers, call, pool, *volume, &attach_request(node, id)).await?;
        }
        // The guest may have taken its time to let go.
        if !(nothing_leaves || nothing_comes) {
            right.holds().await?;
        }
        set_live(plug, call, (id, &domain), assignment, since).await?;
        for disk in coming {
            let attachment = attach(drivers, call, node, id, disk, &assignment.machine).await?;
            plug.attach_disk(call, id, &attachment).await?;
        }
        for nic in coming_nics {
            plug.attach_nic(call, id, nic).await?;
        }
        Ok(())
    };
    let rest = rest.await;
    refused.and(rest)
}

/// Sets what was changed, after a generation, of how the domain is given the devices that it has.
async fn set_live(
    plug: &dyn HotPlug,
    call: Call,
    (id, domain): (DomainId, &Domain),
    assignment: &Assignment,
    since: u64,
) -> Result<()> {
    let machine = &assignment.machine;
    for disk in assignment
        .disks
        .iter()
        .filter(|d| d.live_generation > since)
    {
        if domain.disks.contains(&disk.volume) {
            let limits = machine.disk(disk.volume).map(|disk| disk.limits);
            plug.set_disk_limits(call, id, disk.volume, &limits.unwrap_or_default())
                .await?;
        }
    }
    for nic in assignment
        .ports
        .iter()
        .filter(|p| p.live_generation > since)
    {
        if domain.nics.contains(&nic.port) {
            let options = machine.nic(nic.port).cloned().unwrap_or_default();
            plug.set_nic(call, id, nic.port, options.link, &options.limits)
                .await?;
        }
    }
    Ok(())
}

/// Ends a run for good; the proof is the driver's word.
pub(crate) async fn retire(
    drivers: &Drivers,
    call: Call,
    node: &NodeId,
    id: DomainId,
    kill: bool,
    disks: &[(PoolId, VolumeId)],
) -> Result<StopProof> {
    let hypervisor = Arc::clone(drivers.node(node)?);
    if kill && hypervisor.stop(call, id, StopMode::Kill).await? != StopReport::Ended {
        return Err(Error::new(
            ErrorKind::Internal,
            "run.retire",
            "the driver did not end a killed domain",
        )
        .with("domain", id));
    }
    let host = hypervisor.probe(call).await?;
    hypervisor.undefine(call, id).await?;
    for (pool, volume) in disks {
        detach(drivers, call, pool, *volume, &attach_request(node, id)).await?;
    }
    Ok(StopProof::DriverConfirmed {
        host: host.host,
        boot_id: host.boot_id,
        at: drivers.clock.now(),
    })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::model::{ClusterId, Epoch, MemberId, Ownership, VmId};
    use crate::store::{Commit, MemoryStore, TxnId};
    use crate::time::{TimerClock, Timestamp};

    #[tokio::test(start_paused = true)]
    async fn a_node_that_was_taken_anew_lets_nothing_of_before_run() {
        let store = MemoryStore::new(Arc::new(TimerClock::starting_at(Timestamp::from_millis(1))));
        let node = NodeId::new("alpha").unwrap();
        let id = DomainId {
            cluster: ClusterId::from_uuid(Uuid::from_u128(1)),
            vm: VmId::from_uuid(Uuid::from_u128(2)),
            epoch: Epoch(3),
        };
        let take = async |member| {
            let owner = NodeOwner(Ownership {
                member: MemberId(member),
                since: Timestamp::from_millis(1),
                fencing: None,
                fenced: None,
            });
            let mut commit = Commit::new(TxnId(Uuid::from_u128(u128::from(member))));
            commit.push(records::put(&node, &owner).unwrap());
            store.commit(commit).await.unwrap()
        };
        let kind = async |owned| {
            let may = may_run(&store, &node, id, owned).await;
            may.unwrap_err().kind()
        };
        let first = take(7).await;
        // The owner is right, and there is no claim.
        assert_eq!(kind(first).await, ErrorKind::FailedPrecondition);
        take(8).await;
        assert_eq!(kind(first).await, ErrorKind::Conflict);
        // Its own, but not what this was decided under.
        let third = take(9).await;
        assert_eq!(kind(first).await, ErrorKind::Conflict);
        assert_eq!(kind(third).await, ErrorKind::FailedPrecondition);
    }
}
