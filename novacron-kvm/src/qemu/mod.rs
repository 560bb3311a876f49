//! `QemuHypervisor`: one host's domains, each a QEMU process of its own.
//!
//! ```text
//!   <state>/lock                    held by the one hypervisor that uses the folder
//!   <state>/<vm>/run.lock           held by the VM's QEMU, whichever start of it that is
//!   <state>/<vm>/<epoch>/           one domain: spec.json, seed.iso, qmp, con, ga, vnc, console.log, qemu.log, exit.json
//!
//!   call ─► observe: spec.json? ─► run.lock held by this epoch? ─► live: monitor, console, agent, watcher
//!                    │ no: absent        │ no: defined, or ended          │ one connection each, opened when first needed
//! ```
//! **What is on disk and what runs is the whole state**; memory holds connections only. So a new hypervisor on the same
//! folder, after an exit or a crash of the last, goes on where that one was: whoever first looks at a running domain
//! (`list` looks at all) connects to it, and from then on its watcher pushes its events.
//!
//! **An end is noted before it is made.** A guest that powers off leaves QEMU paused; its watcher, there now or started
//! later, writes down why, tells QEMU to quit, and waits for the process. A QEMU that is gone without a note crashed.
//!
//! Two locks order the calls on a domain: `turn` is held by what changes it (define, start, undefine, hot-plug, pivot),
//! `connecting` while its connections are made. A kill takes neither. Locks of the folder are flocks: they go with
//! their holder. Other clusters' domains in the folder are listed with their ids, and answer to them only. A QEMU that
//! holds a VM's lock and whose spec is lost is listed as foreign, and never touched; QEMUs outside of the folder are not
//! listed: nothing tells whose a process is.

mod agent;
mod args;
mod consoles;
mod devices;
mod diagnostics;
pub(crate) mod error;
mod host;
mod hot_plug;
mod hypervisor;
mod live;
mod media;
mod monitor;
mod net;
mod pivot;
mod screens;
mod shaping;
mod spec;
mod start;
mod state;
mod stats;

use std::path::PathBuf;
use std::sync::Arc;

use novacron_core::model::HostId;

use crate::accel::AccelChoice;
#[cfg(feature = "libvirt")]
pub(crate) use args::{BALLOON_STATS_SECS, reports_free_pages};
#[cfg(feature = "libvirt")]
pub(crate) use args::{smbios, watchdog_action};
#[cfg(feature = "libvirt")]
pub(crate) use consoles::Stream as ConsoleIo;
#[cfg(feature = "libvirt")]
pub(crate) use host::huge_pages;
pub(crate) use state::names;
use state::{Config, State};

/// The most vCPUs of a guest.
const MAX_VCPUS: u32 = 255;

/// A hypervisor that runs `qemu-system-x86_64` processes on this host: no daemon, no root needed.
///
/// ```
/// use novacron_kvm::QemuHypervisor;
///
/// let hypervisor = QemuHypervisor::new("/var/lib/my-panel/vms");
/// ```
/// Nothing is touched before the first call. The state folder must lie on the host itself, belong to this hypervisor
/// alone, and have an absolute path of at most 55 bytes, since unix sockets lie in it: `probe` refuses a longer one, so
/// that nothing is placed on such a node. Dropping the value closes connections
/// and leaves guests running; a new value on the same folder adopts them.
#[derive(Debug)]
pub struct QemuHypervisor {
    state: Arc<State>,
}

impl QemuHypervisor {
    /// A hypervisor that keeps its domains in this folder, with the `qemu-system-x86_64` of the `PATH`, accelerated where
    /// that works, and a host id made from the machine's and the folder's path.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self::with(Config {
            folder: state_dir.into(),
            qemu: "qemu-system-x86_64".into(),
            accel: AccelChoice::Auto,
            host: None,
        })
    }

    /// Uses this binary.
    #[must_use]
    pub fn qemu(self, path: impl Into<PathBuf>) -> Self {
        Self::with(Config {
            qemu: path.into(),
            ..self.state.config.clone()
        })
    }

    /// Accelerates guests this way; the variable `NOVACRON_ACCEL` goes before.
    #[must_use]
    pub fn accel(self, choice: AccelChoice) -> Self {
        Self::with(Config {
            accel: choice,
            ..self.state.config.clone()
        })
    }

    /// Reports this host id: two hypervisors on one machine can be two hosts.
    #[must_use]
    pub fn host_id(self, id: HostId) -> Self {
        Self::with(Config {
            host: Some(id),
            ..self.state.config.clone()
        })
    }

    fn with(config: Config) -> Self {
        Self {
            state: Arc::new(State::new(config)),
        }
    }
}
