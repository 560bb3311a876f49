//! QEMU (and libvirt) hypervisors for NovaCron
