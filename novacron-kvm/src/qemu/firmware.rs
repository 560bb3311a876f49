//! OVMF: where distributions keep it.
//!
//! Each start has variables of its own: copied from the template into its run directory, and removed with it. So what a
//! guest writes into them (boot entries, enrolled keys) lasts until its end, and a disk boots by the path for removable
//! media, `EFI/BOOT/BOOTX64.EFI`, which cloud images have.

use std::path::{Path, PathBuf};

/// Code and template of the variables, the more capacious first.
const KNOWN: [(&str, &str); 6] = [
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

/// The firmware's files on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ovmf {
    /// The code, read-only and shared by all.
    pub(super) code: PathBuf,
    /// What a domain's own variables begin as.
    pub(super) variables: PathBuf,
}

impl Ovmf {
    /// Finds it.
    pub(super) fn find() -> Option<Self> {
        let there = |(code, variables): &&(&str, &str)| {
            Path::new(code).exists() && Path::new(variables).exists()
        };
        KNOWN.iter().find(there).map(|(code, variables)| Self {
            code: code.into(),
            variables: variables.into(),
        })
    }
}
