//! Volumes for NovaCron: raw and qcow2 files
