//! Who runs libvirt's event loop.
//!
//! libvirt has one loop for a whole process, and it must be there before the first connection. By default it is its own,
//! on one thread that is started with the first connection of the first hypervisor and goes with the process: it cannot
//! be taken back. An application that uses libvirt elsewhere, too, and runs a loop for that, says so.

use std::sync::OnceLock;
use std::time::Duration;

use super::sys::{self, LvError};

/// Who runs libvirt's event loop: there is one for the whole process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum EventLoop {
    /// A thread of NovaCron's, started when the first connection is made. libvirt's printing to standard error is
    /// switched off then, for the whole process.
    #[default]
    Own,
    /// The host application: it has registered an implementation (`virEventRegisterImpl` or
    /// `virEventRegisterDefaultImpl`) before the first call of the hypervisor, and runs it.
    Host,
}

static OWN: OnceLock<Result<(), LvError>> = OnceLock::new();
/// After an error of the loop, which should not be.
const RETRY: Duration = Duration::from_millis(100);

impl EventLoop {
    /// Makes sure that there is one.
    pub(super) fn ensure(self) -> Result<(), LvError> {
        match self {
            Self::Host => Ok(()),
            Self::Own => OWN.get_or_init(start).clone(),
        }
    }
}

fn start() -> Result<(), LvError> {
    sys::quiet();
    sys::register_event_loop()?;
    let run = || {
        loop {
            if let Err(error) = sys::run_event_loop_once() {
                tracing::error!(%error, "libvirt's event loop fails");
                std::thread::park_timeout(RETRY);
            }
        }
    };
    let thread = std::thread::Builder::new().name("libvirt-events".to_owned());
    let started = thread.spawn(run);
    started
        .map(drop)
        .map_err(|error| LvError::ours(format!("no thread for libvirt's events: {error}")))
}
