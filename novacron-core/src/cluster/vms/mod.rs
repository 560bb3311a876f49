//! Virtual machines.
//!
//! [`Vms::create`] makes one (`create`), a [`VmHandle`] shows it (here), changes what it should be (`handle`), explains
//! where it could be (`explain`), and reaches into the running guest (`reach`).

mod boot_disk;
mod create;
mod explain;
mod handle;
mod nics;
mod reach;

use std::ops::ControlFlow;
use std::sync::Arc;

pub use explain::{PlacementView, Verdict};

use super::Inner;
use super::object::{Object, object_parts, siblings};
use crate::control::cache::Cache;
use crate::control::operation::{phase_of, worded};
use crate::control::plan::ObjectKey;
use crate::control::resolve::started_with;
use crate::error::{Error, ErrorKind, Result};
use crate::lifecycle::Phase;
use crate::model::{
    Claim, FieldChange, Machine, PlaceId, Run, Versioned, Vm, VmId, Volume, VolumeId,
};
use crate::time::{Deadline, Timestamp};

/// A VM as it is: what was asked for, and what is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmView {
    /// What should be.
    pub vm: Versioned<Vm>,
    /// What is, in one word.
    pub phase: Phase,
    /// Why it is not (yet) what it should be: for people. For a VM without a place, how many nodes each rule turned
    /// down.
    pub reason: String,
    /// Where it is, or was last.
    pub place: Option<PlaceId>,
    /// The claim, with the placement's explanation.
    pub claim: Option<Claim>,
    /// The present run.
    pub run: Option<Run>,
    /// The machine as the present run has it.
    pub machine: Option<Machine>,
}

impl VmView {
    /// What of the machine takes effect with the next start, because the present run was started before it was changed.
    pub fn pending(&self) -> Vec<FieldChange> {
        let has = self.machine.as_ref();
        has.map_or_else(Vec::new, |has| has.changes(&self.vm.machine))
    }
}

siblings! {
    "vm", Vm, VmId, VmView, Vms, VmHandle,
    /// Deletes it with everything that was made with it. A running guest is ended at once.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
}

impl Object for Vm {
    type View = VmView;
    object_parts!("vm", Vm, vms);

    fn view(vm: &Versioned<Self>, cache: &Cache, now: Timestamp) -> VmView {
        let (phase, reason) = phase_of(vm, cache, now);
        let claim = cache.claims.get(&vm.id).map(|c| c.value.clone());
        VmView {
            vm: vm.clone(),
            phase,
            reason,
            place: claim.as_ref().map(|c| c.place.clone()),
            claim,
            run: cache.run_of(vm.id).map(|r| r.value.clone()),
            machine: started_with(vm.id, cache).cloned(),
        }
    }

    fn in_use(&self, _: &Cache) -> Option<String> {
        let why = "its delete protection is on: `VmHandle::update` turns it off";
        self.delete_protection.then(|| why.to_owned())
    }
}

/// The volume, if a VM can have it, or why not. Whoever takes it touches its record, so that of two at once one is let in.
fn attachable<'c>(
    cache: &'c Cache,
    project: &crate::model::Name,
    volume: VolumeId,
    vm: Option<VmId>,
) -> Result<&'c Versioned<Volume>, String> {
    match cache.volumes.get(&volume) {
        Some(v) if v.meta.project != *project => Err(format!("there is no volume {volume}")),
        None => Err(format!("there is no volume {volume}")),
        Some(v) if v.meta.deleted_at.is_some() => Err(format!("volume {volume} is being deleted")),
        Some(v) => match cache.users_of(volume).find(|user| Some(*user) != vm) {
            Some(user) => Err(format!("volume {volume} is attached to VM {user}")),
            None => Ok(v),
        },
    }
}

impl VmHandle {
    fn inner(&self) -> &Arc<Inner> {
        &self.cluster.inner
    }

    /// Waits until the VM is in `phase`.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] with the reason when it failed instead, [`ErrorKind::NotFound`] when it is
    /// gone, [`ErrorKind::DeadlineExceeded`] with the phase and the reason when the waiting ended first: the VM goes on.
    pub async fn wait_for(&self, phase: Phase, deadline: Deadline) -> Result<VmView> {
        self.get().await?;
        let clock = Arc::clone(&self.inner().clock);
        self.inner()
            .wait(&ObjectKey::Vm(self.id), deadline, |cache| {
                let Some(vm) = cache.vms.get(&self.id) else {
                    let gone = Error::new(ErrorKind::NotFound, "vm.wait", "the VM is gone");
                    return ControlFlow::Break(Err(gone.with("vm", self.id)));
                };
                let view = Vm::view(vm, cache, clock.now());
                if view.phase == phase {
                    return ControlFlow::Break(Ok(view));
                }
                if view.phase == Phase::Failed {
                    let failed = Error::new(ErrorKind::FailedPrecondition, "vm.wait", view.reason);
                    return ControlFlow::Break(Err(failed.with("vm", self.id)));
                }
                ControlFlow::Continue(worded(view.phase, &view.reason))
            })
            .await
    }
}
