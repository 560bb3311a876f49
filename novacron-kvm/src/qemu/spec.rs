//! A domain's spec as it lies in its run directory: what `start` reads, also after the host application was restarted.
//!
//! It holds no secret: the seed's files go into `seed.iso`, a TPM's passphrase into `tpm.key` (mode 0600), and only the
//! fact that there is a seed stands here.

use std::path::PathBuf;

use novacron_core::driver::{
    Attachment, AttachmentSource, DiskAttachment, DomainId, DomainSpec, NicAttachment,
};
use novacron_core::model::{
    DiskBus, DiskOptions, Epoch, Hardware, MacAddr, NicOptions, PortBinding, PortForward, PortId,
    VolumeFormat, VolumeId,
};
use novacron_core::{Error, ErrorKind, Problem, Result};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::firmware::state_path;
use crate::process::{ProcessError, RunDir};
use crate::tpm::Kept;

const FILE: &str = "spec.json";

/// The spec of one start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredSpec {
    pub(super) id: DomainId,
    pub(super) name: String,
    pub(super) hardware: Hardware,
    pub(super) disks: Vec<StoredDisk>,
    pub(super) nics: Vec<StoredNic>,
    pub(super) seed: bool,
    pub(super) generation_id: Uuid,
    /// The volume of its firmware's variables.
    pub(super) nvram: Option<PathBuf>,
    /// Where its TPM's state is kept.
    pub(super) tpm: Option<Kept>,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredDisk {
    pub(super) name: String,
    pub(super) volume: VolumeId,
    pub(super) source: StoredSource,
    pub(super) format: VolumeFormat,
    pub(super) epoch: Epoch,
    pub(super) options: DiskOptions,
}

/// Where a disk's data is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum StoredSource {
    File(PathBuf),
    BlockDevice(PathBuf),
    Nbd { socket: PathBuf, export: String },
}

/// A NIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredNic {
    pub(super) port: PortId,
    pub(super) mac: MacAddr,
    pub(super) binding: PortBinding,
    pub(super) forwards: Vec<PortForward>,
    pub(super) options: NicOptions,
}

impl StoredSpec {
    /// What is kept of a spec that was checked, if it can be kept at all.
    pub(super) fn of(spec: &DomainSpec, operation: &'static str) -> Result<Self> {
        let stored = Self {
            id: spec.id,
            name: spec.name.clone(),
            hardware: spec.hardware.clone(),
            disks: spec
                .disks
                .iter()
                .map(|disk| StoredDisk::of(disk, operation))
                .collect::<Result<_>>()?,
            nics: spec.nics.iter().map(StoredNic::of).collect(),
            seed: spec.seed.is_some(),
            generation_id: spec.generation_id,
            nvram: match &spec.nvram {
                Some(nvram) => Some(text(state_path(nvram, operation)?, operation)?),
                None => None,
            },
            tpm: Kept::of(spec, operation)?,
        };
        if stored.disks.len() + stored.nics.len() > super::args::MAX_DEVICES {
            let message = "more disks and NICs than the machine has places for";
            let problem = Problem {
                field: "disks".to_owned(),
                message: message.to_owned(),
            };
            return Err(Error::invalid(operation, vec![problem]));
        }
        Ok(stored)
    }

    /// The disks on a bus.
    pub(super) fn on_bus(&self, bus: DiskBus) -> impl Iterator<Item = &StoredDisk> {
        let on_bus = move |disk: &&StoredDisk| disk.options.bus == bus;
        self.disks.iter().filter(on_bus)
    }

    /// The spec of a directory; `None` when nothing was defined there.
    pub(super) fn read(dir: &RunDir) -> Result<Option<Self>, ProcessError> {
        dir.read(FILE)
    }

    /// Writes it down, durably.
    pub(super) fn write(&self, dir: &RunDir) -> Result<(), ProcessError> {
        dir.write(FILE, self)
    }
}

impl StoredDisk {
    /// What is kept of a disk.
    pub(super) fn of(disk: &DiskAttachment, operation: &'static str) -> Result<Self> {
        let Attachment {
            source,
            format,
            epoch,
            ..
        } = &disk.attachment;
        let source = match source {
            AttachmentSource::File(path) => StoredSource::File(text(path, operation)?),
            AttachmentSource::BlockDevice(path) => {
                StoredSource::BlockDevice(text(path, operation)?)
            }
            AttachmentSource::Nbd { socket, export } => StoredSource::Nbd {
                socket: text(socket, operation)?,
                export: export.clone(),
            },
            other => {
                let message = format!("QEMU is not told how to reach a volume by {other:?}");
                return Err(Error::new(ErrorKind::Unsupported, operation, message));
            }
        };
        let (name, volume) = (disk.name.clone(), disk.volume);
        Ok(Self {
            name,
            volume,
            source,
            format: *format,
            epoch: *epoch,
            options: disk.options.clone(),
        })
    }
}

impl StoredNic {
    /// What is kept of a NIC.
    pub(super) fn of(nic: &NicAttachment) -> Self {
        let NicAttachment {
            port,
            mac,
            binding,
            forwards,
            options,
        } = nic;
        Self {
            port: *port,
            mac: *mac,
            binding: binding.clone(),
            forwards: forwards.clone(),
            options: options.clone(),
        }
    }
}

/// QEMU's monitor speaks JSON, so a path must be text; and it must not depend on who reads it.
fn text(path: &std::path::Path, operation: &'static str) -> Result<PathBuf> {
    if path.to_str().is_some() && path.is_absolute() {
        return Ok(path.to_owned());
    }
    let message = format!("{} is not an absolute path in UTF-8", path.display());
    Err(Error::new(ErrorKind::Invalid, operation, message))
}
