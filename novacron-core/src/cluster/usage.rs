//! What a project uses: a sum over its records, taken when it is asked for (decision 3).

use super::{Cluster, RequestOptions};
use crate::control::cache::Cache;
use crate::error::Result;
use crate::model::{Bytes, MiB, Name, Volume, VolumeSource};

/// What a project's objects ask for, whether they run or not. One that is being deleted counts until it is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Usage {
    /// VMs.
    pub vms: u64,
    /// vCPUs of all VMs.
    pub vcpus: u64,
    /// Memory of all VMs.
    pub memory: MiB,
    /// Volumes, those that were made with a VM too.
    pub volumes: u64,
    /// Size of all volumes as their guests see it; what they take up on disk may be less. A clone of an image that is not
    /// imported yet counts as nothing, unless its size was asked for.
    pub volume_bytes: Bytes,
}

/// Its size; that of what it begins as while it is being made.
fn size_of(volume: &Volume, cache: &Cache) -> Bytes {
    let own = volume.size_by(cache.volume_status.get(&volume.id).map(|s| &s.0));
    let origin = match volume.source {
        _ if own > Bytes(0) => None,
        VolumeSource::Blank => None,
        VolumeSource::Image(image) => cache.image_status.get(&image).map(|s| s.0.size),
        VolumeSource::Snapshot(of) => cache.snapshot_status.get(&of).map(|s| s.0.size),
    };
    origin.unwrap_or(own)
}

impl Cluster {
    /// What `project` uses. One without objects uses nothing; whether it exists is not known here.
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`](crate::ErrorKind::PermissionDenied); those of the store.
    pub async fn usage(&self, project: &Name) -> Result<Usage> {
        let options = RequestOptions {
            project: project.clone(),
            ..self.options().clone()
        };
        self.inner.authorize(&options, "usage.get")?;
        self.inner
            .read(|cache| {
                let mut usage = Usage::default();
                for vm in cache.vms.values().filter(|v| v.meta.project == *project) {
                    usage.vms += 1;
                    usage.vcpus += u64::from(vm.machine.hardware.vcpus);
                    usage.memory.0 += vm.machine.hardware.memory.0;
                }
                for volume in cache
                    .volumes
                    .values()
                    .filter(|v| v.meta.project == *project)
                {
                    usage.volumes += 1;
                    usage.volume_bytes.0 += size_of(volume, cache).0;
                }
                usage
            })
            .await
    }
}
