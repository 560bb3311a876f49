//! OVMF: where distributions keep it, and the variables of a machine.
//!
//! ```text
//!   code        read-only, shared by all
//!   variables   a volume of the VM's: zeros ── prepared ──► a copy of the template ── the guest ──► its own
//! ```
//! A volume is written once, its head last: one that was cut off is begun anew, and one that has a head is never touched. A
//! start without such a volume has a copy in its own folder, which goes with it: a disk boots then by the path for
//! removable media, `EFI/BOOT/BOOTX64.EFI`, which cloud images have.
//!
//! Variables fit builds of one size only. A host with another build is told from the head (a firmware volume's, of the
//! Platform Initialization specification, volume 3, 3.2.1), and refused.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use novacron_core::driver::{AttachmentSource, DiskAttachment};
use novacron_core::model::{Firmware, VolumeFormat};
use novacron_core::{Error, ErrorKind, Result};

use crate::process::ProcessError;

/// Code and template of the variables, the more capacious first.
const PLAIN: [(&str, &str); 6] = [
    (
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
    ),
    (
        "/usr/share/OVMF/OVMF_CODE.fd",
        "/usr/share/OVMF/OVMF_VARS.fd",
    ),
    (
        "/usr/share/edk2/ovmf/OVMF_CODE.fd",
        "/usr/share/edk2/ovmf/OVMF_VARS.fd",
    ),
    (
        "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
        "/usr/share/edk2/x64/OVMF_VARS.4m.fd",
    ),
    (
        "/usr/share/edk2-ovmf/x64/OVMF_CODE.fd",
        "/usr/share/edk2-ovmf/x64/OVMF_VARS.fd",
    ),
    (
        "/usr/share/qemu/ovmf-x86_64-code.bin",
        "/usr/share/qemu/ovmf-x86_64-vars.bin",
    ),
];

/// The same with Secure Boot, and Microsoft's keys enrolled.
const SECURE: [(&str, &str); 4] = [
    (
        "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.ms.fd",
    ),
    (
        "/usr/share/OVMF/OVMF_CODE.secboot.fd",
        "/usr/share/OVMF/OVMF_VARS.ms.fd",
    ),
    (
        "/usr/share/edk2/ovmf/OVMF_CODE.secboot.fd",
        "/usr/share/edk2/ovmf/OVMF_VARS.secboot.fd",
    ),
    (
        "/usr/share/qemu/ovmf-x86_64-ms-code.bin",
        "/usr/share/qemu/ovmf-x86_64-ms-vars.bin",
    ),
];

/// How much of a volume is written last, and shows whether anything was.
const HEAD: usize = 4096;

/// The firmware's files on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ovmf {
    /// The code, read-only and shared by all.
    pub(crate) code: PathBuf,
    /// What a machine's own variables begin as.
    pub(crate) variables: PathBuf,
    /// Whether it starts what is signed only. It keeps its keys from the guest in system management mode.
    pub(crate) is_secure: bool,
}

impl Ovmf {
    /// Finds it.
    pub(crate) fn find(firmware: Firmware) -> Option<Self> {
        let is_secure = firmware == Firmware::UefiSecureBoot;
        let known: &[_] = if is_secure { &SECURE } else { &PLAIN };
        let there = |(code, variables): &&(&str, &str)| {
            Path::new(code).exists() && Path::new(variables).exists()
        };
        known.iter().find(there).map(|(code, variables)| Self {
            code: code.into(),
            variables: variables.into(),
            is_secure,
        })
    }

    /// That of a machine, if it has one.
    pub(crate) fn of(firmware: Firmware, operation: &'static str) -> Result<Option<Self>> {
        if !firmware.has_variables() {
            return Ok(None);
        }
        Self::find(firmware).map(Some).ok_or_else(|| {
            let message =
                "no such UEFI firmware on this host; on Debian and Ubuntu: apt-get install ovmf";
            Error::new(ErrorKind::Unsupported, operation, message)
        })
    }

    /// Makes a volume that holds nothing these variables. Returns how long they are.
    pub(crate) fn prepare(&self, volume: &Path, operation: &'static str) -> Result<u64> {
        let failed = |action, path: &Path, error| {
            crate::qemu::error::process(operation, ProcessError::io(action, path)(error))
        };
        let template =
            std::fs::read(&self.variables).map_err(|e| failed("read", &self.variables, e))?;
        let refused = |message: String| {
            Err(
                Error::new(ErrorKind::FailedPrecondition, operation, message)
                    .with("path", volume.display()),
            )
        };
        let opened = OpenOptions::new().read(true).write(true).open(volume);
        let file = opened.map_err(|e| failed("open", volume, e))?;
        let mut head = [0; HEAD];
        if let Err(error) = file.read_exact_at(&mut head, 0) {
            return Err(failed("read", volume, error));
        }
        if head == [0; HEAD] {
            write(&file, &template).map_err(|e| failed("write", volume, e))?;
            return Ok(template.len() as u64);
        }
        match (volume_length(&head), volume_length(&template)) {
            (None, _) => {
                refused("the volume holds something else than variables of a firmware".to_owned())
            }
            (Some(has), Some(fits)) if has != fits => refused(format!(
                "the variables are {has} bytes, of another build of the firmware than this host's {}, whose are {fits}",
                self.code.display()
            )),
            _ => Ok(template.len() as u64),
        }
    }
}

fn write(file: &File, template: &[u8]) -> std::io::Result<()> {
    let (head, rest) = template.split_at(HEAD.min(template.len()));
    file.write_all_at(rest, HEAD as u64)?;
    file.sync_data()?;
    file.write_all_at(head, 0)?;
    file.sync_data()
}

/// `FvLength`, if these bytes begin a firmware volume.
fn volume_length(head: &[u8]) -> Option<u64> {
    let length = head.get(32..40)?.try_into().ok()?;
    (head.get(40..44)? == b"_FVH").then(|| u64::from_le_bytes(length))
}

/// Where the state of a machine's device is: a raw file or block device of this host.
pub(crate) fn state_path<'a>(
    disk: &'a DiskAttachment,
    operation: &'static str,
) -> Result<&'a Path> {
    let attachment = &disk.attachment;
    match &attachment.source {
        AttachmentSource::File(path) | AttachmentSource::BlockDevice(path)
            if attachment.format == VolumeFormat::Raw =>
        {
            Ok(path)
        }
        other => {
            let (format, message) = (
                attachment.format,
                "a firmware's variables and a TPM's state are kept in raw files and block devices",
            );
            Err(Error::new(ErrorKind::Unsupported, operation, message)
                .with("volume", disk.volume)
                .with("is", format!("{format:?} {other:?}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ovmf(template: &Path, bytes: &[u8]) -> Ovmf {
        std::fs::write(template, bytes).unwrap();
        Ovmf {
            code: "/code.fd".into(),
            variables: template.into(),
            is_secure: false,
        }
    }

    fn variables(length: u64) -> Vec<u8> {
        let mut bytes = vec![0xff; usize::try_from(length).unwrap()];
        bytes[32..40].copy_from_slice(&length.to_le_bytes());
        bytes[40..44].copy_from_slice(b"_FVH");
        bytes
    }

    #[test]
    fn a_volume_is_written_once_and_only_by_a_build_that_it_fits() {
        const OPERATION: &str = "test";
        let folder = tempfile::tempdir().unwrap();
        let (template, volume) = (folder.path().join("t"), folder.path().join("v"));
        let small = ovmf(&template, &variables(8192));
        std::fs::write(&volume, vec![0; 16384]).unwrap();
        assert_eq!(small.prepare(&volume, OPERATION).unwrap(), 8192);
        let mut written = std::fs::read(&volume).unwrap();
        assert_eq!(written[..8192], variables(8192));
        assert_eq!(written[8192..], [0; 8192]);

        // What the guest wrote stays.
        written[100] = 7;
        std::fs::write(&volume, &written).unwrap();
        assert_eq!(small.prepare(&volume, OPERATION).unwrap(), 8192);
        assert_eq!(std::fs::read(&volume).unwrap(), written);

        // Cut off before its head was written.
        let mut cut = written.clone();
        cut[..HEAD].fill(0);
        std::fs::write(&volume, &cut).unwrap();
        small.prepare(&volume, OPERATION).unwrap();
        assert_eq!(std::fs::read(&volume).unwrap()[..8192], variables(8192));

        let large = ovmf(&template, &variables(12288));
        let refused = large.prepare(&volume, OPERATION).unwrap_err();
        assert!(
            refused.message().contains("8192 bytes, of another build"),
            "{refused}"
        );
        std::fs::write(&volume, [1; 8192]).unwrap();
        let refused = large.prepare(&volume, OPERATION).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::FailedPrecondition, "{refused}");
    }
}
