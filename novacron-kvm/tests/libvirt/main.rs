//! `LibvirtHypervisor` on a libvirtd of each test's own: the core's suite, and what a daemon does that dies or hangs.
#![allow(clippy::unwrap_used, reason = "to panic is to fail the test")]

#[path = "../common/mod.rs"]
mod common;
mod conformance;
mod daemon;
mod faults;
mod remote;
