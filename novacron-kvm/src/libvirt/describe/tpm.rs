//! A TPM, as libvirt is told of it: one that this process starts beside QEMU.

use std::path::Path;

use novacron_core::driver::DomainId;
use novacron_core::{Error, ErrorKind, Result};

use super::path;
use crate::libvirt::xml::{TpmBackend, TpmSource, TpmXml};
use crate::tpm::SOCKET;

pub(super) fn describe_tpm(
    id: DomainId,
    folder: Option<&Path>,
    operation: &'static str,
) -> Result<TpmXml> {
    let Some(folder) = folder else {
        let message = "a TPM is emulated by a process beside libvirt's QEMU; \
                       on a local libvirt, give the hypervisor a state folder";
        return Err(Error::new(ErrorKind::Unsupported, operation, message).with("domain", id));
    };
    Ok(TpmXml {
        model: "tpm-crb".to_owned(),
        backend: TpmBackend {
            kind: "external".to_owned(),
            source: Some(TpmSource {
                kind: "unix".to_owned(),
                mode: "connect".to_owned(),
                path: path(&folder.join(SOCKET), operation)?,
            }),
        },
    })
}
