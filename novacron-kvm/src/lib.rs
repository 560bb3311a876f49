//! QEMU (and libvirt) hypervisors for NovaCron
#![deny(missing_docs)]

pub mod accel;
mod agent;
mod console;
mod lines;
mod probe;
mod process;
mod qmp;
pub mod seed;
