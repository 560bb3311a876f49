//! QEMU (and libvirt) hypervisors for NovaCron
#![deny(missing_docs)]

mod lines;
mod process;
mod qmp;
