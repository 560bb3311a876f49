//! The order in which a guest's firmware tries its devices, and the places of its CD-ROM drives.

use novacron_core::model::{BootDevice, Hardware};

/// The place of the n-th device of a kind among all that the guest may boot from, from 0; none if it boots from no such
/// device, or from a kernel. `count` says how many devices of a kind there are.
pub(crate) fn place(
    hardware: &Hardware,
    device: BootDevice,
    n: usize,
    count: impl Fn(BootDevice) -> usize,
) -> Option<usize> {
    if hardware.kernel.is_some() {
        return None;
    }
    let order = &hardware.boot_order;
    let at = order.iter().position(|found| *found == device)?;
    let before: usize = order[..at].iter().map(|device| count(*device)).sum();
    Some(before + n)
}

/// The SATA port of a CD-ROM drive, from 0: drives have the last ones of the machine's six, in their order.
pub(crate) fn drive_port(hardware: &Hardware, drive: u8) -> u8 {
    6_u8.saturating_sub(hardware.cdroms) + drive
}
