//! What a VM boots from, replaced while it is off.
//!
//! ```text
//!   rebuild:   [root', data]            root is deleted, if it was made with the VM
//!   rescue:    [rescue, root, data] ── unrescue ──► [root, data]      rescue is deleted
//! ```
//! New volumes are linked clones of an image, made with the VM. Each is one commit, in which no start can have begun.

use std::collections::BTreeMap;

use super::super::check;
use super::super::operations::OperationHandle;
use super::super::request::{problem, refuse};
use super::VmHandle;
use super::create::cloned;
use super::handle::next_generation;
use crate::control::cache::Cache;
use crate::control::operation::phase_of;
use crate::control::plan::Draft;
use crate::error::{Error, ErrorKind, Result};
use crate::lifecycle::Phase;
use crate::model::{
    Claim, Disk, DiskOptions, DiskRole, Image, ImageId, Meta, Name, Vm, Volume, VolumeFormat,
    VolumeId, VolumeSource,
};

impl VmHandle {
    /// Replaces its first disk by a new clone of an image. The VM keeps its name, its id, its addresses, its settings and its
    /// other disks; of the first disk nothing is kept, unless it was a volume of its own: that one stays, detached.
    ///
    /// ```
    /// use novacron_core::cluster::VmHandle;
    /// use novacron_core::{Deadline, Result};
    /// use std::time::Duration;
    ///
    /// # async fn example(vm: &VmHandle) -> Result<()> {
    /// vm.stop().await?.wait(Deadline::after(Duration::from_secs(120))).await?;
    /// vm.rebuild("debian-12").await?;
    /// vm.start().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::FailedPrecondition`] unless it is off, and while it is rescued;
    /// [`ErrorKind::Invalid`] for an image that the project has not, and when the VM has no disk.
    pub async fn rebuild(&self, image: &str) -> Result<OperationHandle> {
        const VERB: &str = "vm.rebuild";
        let id = self.image(image).await?;
        self.cluster
            .change::<Vm>(VERB, self.id, &image, |vm, draft, cache| {
                let draft = self.while_off(VERB, vm, draft, cache)?;
                if vm.machine.rescue().is_some() {
                    let message = "the VM boots from its rescue disk: end the rescue first";
                    return Err(Error::new(ErrorKind::FailedPrecondition, VERB, message));
                }
                let is_disk = |disk: &&mut Disk| disk.role == DiskRole::Disk;
                let Some(first) = vm.machine.disks.iter_mut().find(is_disk) else {
                    let message = "the VM has no disk to replace".to_owned();
                    return Err(Error::invalid(VERB, vec![problem("image", message)]));
                };
                let (draft, new) = self.clone_of(VERB, draft, cache, (image, id), &first.name)?;
                let old = std::mem::replace(&mut first.volume, new);
                let draft = match std::mem::replace(&mut first.delete_with_vm, true) {
                    true => self.without(draft, cache, old)?,
                    false => draft,
                };
                Ok((draft, next_generation(vm)))
            })
            .await
    }

    /// Makes its next starts boot from a new clone of an image, beside its own disks, so that these can be mended from there.
    ///
    /// # Errors
    /// As [`VmHandle::rebuild`].
    pub async fn rescue(&self, image: &str) -> Result<OperationHandle> {
        const VERB: &str = "vm.rescue";
        let id = self.image(image).await?;
        self.cluster
            .change::<Vm>(VERB, self.id, &image, |vm, draft, cache| {
                let draft = self.while_off(VERB, vm, draft, cache)?;
                if vm.machine.rescue().is_some() {
                    let message = "the VM has a rescue disk";
                    return Err(Error::new(ErrorKind::FailedPrecondition, VERB, message));
                }
                let (count, most) = (vm.machine.guest_disks().count(), check::MAX_DISKS);
                let full =
                    (count >= most).then(|| format!("the VM has {count} disks, the most it can"));
                let kernel = vm.machine.hardware.kernel.is_some();
                let kernel = kernel
                    .then(|| "the VM boots a kernel of its host, and from no disk".to_owned());
                let problems = full.into_iter().chain(kernel);
                refuse(VERB, problems.map(|why| problem("image", why)).collect())?;
                let (draft, volume) =
                    self.clone_of(VERB, draft, cache, (image, id), Disk::RESCUE)?;
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
                let Some(volume) = vm.machine.rescue() else {
                    let message = "the VM has no rescue disk";
                    return Err(Error::new(ErrorKind::FailedPrecondition, VERB, message));
                };
                vm.machine.disks.retain(|disk| disk.volume != volume);
                let draft = self.without(draft, cache, volume)?;
                Ok((draft, next_generation(vm)))
            })
            .await
    }

    /// The project's image of this name, if there is one.
    async fn image(&self, name: &str) -> Result<Option<ImageId>> {
        // What cannot be a name is nobody's.
        let Ok(name) = Name::new(name) else {
            return Ok(None);
        };
        let project = &self.cluster.options().project;
        self.inner().lookup(project, "image", &name).await
    }

    /// The draft of a change that is only made if the VM is off, and no start begins before it is committed.
    fn while_off(&self, verb: &'static str, vm: &Vm, draft: Draft, cache: &Cache) -> Result<Draft> {
        let (phase, _) = phase_of(vm, cache, self.inner().clock.now());
        if phase != Phase::Stopped {
            let message = format!("the VM is {phase}; its boot disk is replaced while it is off");
            return Err(Error::new(ErrorKind::FailedPrecondition, verb, message));
        }
        let claim = cache.claims.get(&vm.id).map(|claim| claim.version);
        Ok(draft.unchanged::<Claim>(&vm.id, claim))
    }

    /// The record of a new volume of the VM's that is a clone of an image.
    fn clone_of(
        &self,
        verb: &'static str,
        draft: Draft,
        cache: &Cache,
        (name, id): (&str, Option<ImageId>),
        disk: &str,
    ) -> Result<(Draft, VolumeId)> {
        let images: BTreeMap<_, _> = id.map(|id| (name.to_owned(), id)).into_iter().collect();
        let found = cloned(cache, &images, name, None)
            .map_err(|(_, why)| Error::invalid(verb, vec![problem("image", why)]))?;
        let (inner, project) = (self.inner(), self.cluster.options().project.clone());
        let now = inner.clock.now();
        let volume = Volume {
            id: VolumeId::generate(now, &*inner.ids),
            meta: Meta::new(Name::new(disk)?, project, now),
            pool: found.pool.clone(),
            source: VolumeSource::Image(found.id),
            size: crate::model::Bytes(0),
            format: VolumeFormat::Qcow2,
            made_with: Some(self.id),
        };
        let draft = draft.unchanged::<Image>(&found.id, Some(found.version));
        Ok((draft.put(&volume.id, &volume)?, volume.id))
    }

    /// The draft with a volume of the VM's deleted.
    fn without(&self, draft: Draft, cache: &Cache, volume: VolumeId) -> Result<Draft> {
        let Some(found) = cache.volumes.get(&volume) else {
            return Ok(draft);
        };
        let mut marked = found.value.clone();
        marked.meta.deleted_at = Some(self.inner().clock.now());
        draft
            .unchanged::<Volume>(&volume, Some(found.version))
            .put(&volume, &marked)
    }
}
