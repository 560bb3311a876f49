//! QEMU hypervisors for NovaCron: a `qemu-system-*` binary driven over QMP, no daemon, no root needed.
//!
//! [`QemuHypervisor`] implements the core's `Hypervisor`. The parts, each with its design in its module's header:
//! `process` (QEMU started detached, found again by its run lock), `qmp` (its monitor), `console` (the serial console), `agent` (the guest agent), [`seed`] (the cloud-init
//! CD), [`fence`] (making certain that a host runs nothing), [`accel`] (KVM or TCG), `probe` (what the binary can do).
//!
//! # Guests outlive the host application, under systemd too
//! Each QEMU is a session of its own, so neither the end nor a crash of the host application touches it. systemd,
//! however, ends a service by killing its whole control group, guests included. A host application that runs as a
//! service therefore sets, in its unit:
//!
//! ```ini
//! [Service]
//! KillMode=process
//! ```
//!
//! Then `systemctl stop` and `restart` signal the application only, and its next start adopts the guests. systemd will
//! log that processes were left in the control group; that is meant so. Memory and CPU limits of the unit count the
//! guests in. An application that wants them counted apart puts each QEMU into a scope of its own
//! (`StartTransientUnit` on systemd's bus, with the pid) right after the start.
#![deny(missing_docs)]

pub mod accel;
mod agent;
mod boot;
mod console;
mod cpu;
mod events;
pub mod fence;
mod firmware;
#[cfg(feature = "libvirt")]
mod libvirt;
mod lines;
mod media;
mod privilege;
mod probe;
mod process;
mod qemu;
mod qmp;
pub mod seed;
mod tpm;
mod watchdog;

#[cfg(feature = "libvirt")]
pub use libvirt::{EventLoop, LibvirtHypervisor};
pub use qemu::QemuHypervisor;
pub use watchdog::HostWatchdog;
