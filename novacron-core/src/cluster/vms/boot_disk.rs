//! What a VM boots from, replaced while it is off.
//!
//! ```text
//!   rebuild:   [root', data]            root is deleted, if it was made with the VM
//!   rescue:    [rescue, root, data] ── unrescue ──► [root, data]      rescue is deleted
//! ```
//! New volumes are linked clones of an image, made with the VM, in the pool of the disk that the VM booted from: it can be
//! started where it could be before. Each is one commit, in which no start can have begun. What is deleted is deleted with
//! that commit, so it is only made when nothing but the pool's space can keep the clone from being made.

use super::super::check;
use super::super::operations::OperationHandle;
use super::super::request::problem;
use super::VmHandle;
use super::create::{cloned, image_named, new_volume};
use super::handle::{next_generation, no_such_disk, started_as_seen};
use crate::control::cache::Cache;
use crate::control::operation::phase_of;
use crate::control::plan::Draft;
use crate::error::{Error, ErrorKind, Result};
use crate::lifecycle::Phase;
use crate::model::{
    Disk, DiskBus, DiskOptions, DiskRole, Image, ImageId, StorageState, Vm, VolumeFormat, VolumeId,
    VolumeSource,
};

impl VmHandle {
    /// Replaces a disk by a new clone of an image, of the size of the old one at least. The VM keeps its name, its id, its
    /// addresses, its settings, its other disks and its firmware's variables; of this disk nothing is kept, unless it was a
    /// volume of its own: that one stays, detached. What cloud-init runs once, it runs again on the new disk.
    ///
    /// ```
    /// use novacron_core::cluster::VmHandle;
    /// use novacron_core::{Deadline, Result};
    /// use std::time::Duration;
    ///
    /// # async fn example(vm: &VmHandle) -> Result<()> {
    /// vm.stop().await?.wait(Deadline::after(Duration::from_secs(120))).await?;
    /// vm.rebuild("root", "debian-12").await?;
    /// vm.start().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], also when the VM has no such disk; [`ErrorKind::FailedPrecondition`] unless it is off, while
    /// it is rescued, and while the disk's volume has snapshots, which would go with it; [`ErrorKind::Invalid`] for an image
    /// that the project has not, that is not available, or that lies in another pool than the disk.
    pub async fn rebuild(&self, disk: &str, image: &str) -> Result<OperationHandle> {
        const VERB: &str = "vm.rebuild";
        let id = image_named(&self.cluster, image).await?;
        self.cluster
            .change::<Vm>(VERB, self.id, &(disk, image), |vm, draft, cache| {
                let draft = self.while_off(VERB, vm, draft, cache)?;
                if vm.machine.volume(DiskRole::Rescue).is_some() {
                    let message = "the VM boots from its rescue disk: end the rescue first";
                    return Err(Error::new(ErrorKind::FailedPrecondition, VERB, message));
                }
                let is_it = |found: &Disk| found.name == disk && found.role == DiskRole::Disk;
                let Some(at) = vm.machine.disks.iter().position(is_it) else {
                    return Err(no_such_disk(VERB, disk));
                };
                let Disk {
                    volume: old,
                    delete_with_vm,
                    ..
                } = vm.machine.disks[at];
                if delete_with_vm && cache.snapshots_of(old).next().is_some() {
                    let message =
                        "the disk has snapshots, which would be deleted with it: delete them first";
                    return Err(Error::new(ErrorKind::FailedPrecondition, VERB, message));
                }
                let (draft, new) =
                    self.clone_of(VERB, vm, draft, cache, (image, id), (disk, old))?;
                vm.machine.disks[at].volume = new;
                vm.machine.disks[at].delete_with_vm = true;
                let draft = match delete_with_vm {
                    true => self.without(draft, cache, old)?,
                    false => draft,
                };
                Ok((draft, next_generation(vm)))
            })
            .await
    }

    /// Makes its next starts boot from a new clone of an image, beside its own disks, so that these can be mended from there.
    /// It has the VM's host name and network there, and not its user-data, which is meant for the VM's own disks. An image of
    /// another kind than the VM's own is told from its disks more easily.
    ///
    /// # Errors
    /// As [`VmHandle::rebuild`]; [`ErrorKind::Invalid`] also for a VM that boots from no disk.
    pub async fn rescue(&self, image: &str) -> Result<OperationHandle> {
        const VERB: &str = "vm.rescue";
        let id = image_named(&self.cluster, image).await?;
        self.cluster
            .change::<Vm>(VERB, self.id, &image, |vm, draft, cache| {
                let draft = self.while_off(VERB, vm, draft, cache)?;
                if vm.machine.volume(DiskRole::Rescue).is_some() {
                    let message = "the VM has a rescue disk";
                    return Err(Error::new(ErrorKind::FailedPrecondition, VERB, message));
                }
                let is_medium = |disk: &&Disk| disk.options.bus == DiskBus::Cdrom;
                let first = vm.machine.guest_disks().min_by_key(is_medium);
                let first = first.filter(|_| vm.machine.hardware.kernel.is_none());
                let refused = |why| Err(Error::invalid(VERB, vec![problem("image", why)]));
                let Some(first) = first.map(|disk| disk.volume) else {
                    return refused("the VM boots from no disk".to_owned());
                };
                let (count, most) = (vm.machine.guest_disks().count(), check::MAX_DISKS);
                if count >= most {
                    return refused(format!("the VM has {count} disks, the most it can"));
                }
                let beside = (Disk::RESCUE, first);
                let (draft, volume) = self.clone_of(VERB, vm, draft, cache, (image, id), beside)?;
                let disk = Disk {
                    name: Disk::RESCUE.to_owned(),
                    volume,
                    delete_with_vm: true,
                    options: DiskOptions::default(),
                    role: DiskRole::Rescue,
                };
                vm.machine.disks.insert(0, disk);
                Ok((draft, next_generation(vm)))
            })
            .await
    }

    /// Ends its rescue: it boots from its own first disk again, and the rescue disk is deleted.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::FailedPrecondition`] unless it is off, and rescued.
    pub async fn unrescue(&self) -> Result<OperationHandle> {
        const VERB: &str = "vm.unrescue";
        self.cluster
            .change::<Vm>(VERB, self.id, &(), |vm, draft, cache| {
                let draft = self.while_off(VERB, vm, draft, cache)?;
                let Some(volume) = vm.machine.volume(DiskRole::Rescue) else {
                    let message = "the VM has no rescue disk";
                    return Err(Error::new(ErrorKind::FailedPrecondition, VERB, message));
                };
                vm.machine.disks.retain(|disk| disk.volume != volume);
                let draft = self.without(draft, cache, volume)?;
                Ok((draft, next_generation(vm)))
            })
            .await
    }

    /// The draft of a change that is only made if the VM is off, and no start begins before it is committed.
    fn while_off(&self, verb: &'static str, vm: &Vm, draft: Draft, cache: &Cache) -> Result<Draft> {
        let (phase, _) = phase_of(vm, cache, self.inner().clock.now());
        if phase != Phase::Stopped {
            let message = format!("the VM is {phase}; its boot disk is replaced while it is off");
            return Err(Error::new(ErrorKind::FailedPrecondition, verb, message));
        }
        Ok(started_as_seen(vm.id, draft, cache))
    }

    /// The record of a new volume of the VM's that is a clone of an image, beside or in place of another one.
    fn clone_of(
        &self,
        verb: &'static str,
        vm: &Vm,
        draft: Draft,
        cache: &Cache,
        (name, id): (&str, Option<ImageId>),
        (disk, beside): (&str, VolumeId),
    ) -> Result<(Draft, VolumeId)> {
        let refused = |why| Error::invalid(verb, vec![problem("image", why)]);
        let old = cache.volumes.get(&beside);
        let pool = old.map(|old| &old.pool);
        let found = cloned(cache, (name, id), pool).map_err(|(_, why)| refused(why))?;
        let status = cache.image_status.get(&found.id).map(|status| &status.0);
        let Some(status) = status.filter(|status| status.state == StorageState::Available) else {
            return Err(refused(format!("image {name:?} is not available")));
        };
        // In place of another one, the guest has as much room as before.
        let is_rebuilt = disk != Disk::RESCUE;
        let had = old.filter(|_| is_rebuilt).map(|old| {
            let status = cache.volume_status.get(&beside);
            old.size_by(status.map(|status| &status.0))
        });
        let (inner, now) = (self.inner(), self.inner().clock.now());
        let id = VolumeId::generate(now, &*inner.ids);
        let size = had.unwrap_or_default().max(status.size);
        let source = VolumeSource::Image(found.id);
        let made = (found.pool.clone(), source, size, VolumeFormat::Qcow2);
        let draft = draft.unchanged::<Image>(&found.id, Some(found.version));
        new_volume(draft, (id, disk), made, (self.id, &vm.meta), now)
    }

    /// The draft with a volume of the VM's deleted.
    fn without(&self, draft: Draft, cache: &Cache, volume: VolumeId) -> Result<Draft> {
        match cache.volumes.get(&volume) {
            Some(found) => draft.delete_volume(found, self.inner().clock.now()),
            None => Ok(draft),
        }
    }
}
