//! `LibvirtHypervisor`: the domains of a host that a libvirt manages, here or elsewhere.
//!
//! ```text
//!   call ─► turn of the domain ─► a thread that may block (pool) ─► look: notes, state ─► libvirt ─► answer
//!                                     ▲ its connection (link): supervised, made anew           (sys: all `unsafe`)
//!   libvirt ─ event loop ─► a thread per connection ─► ends are noted ─► streams of events
//! ```
//! **libvirt's definitions and what runs are the whole state.** A domain is one start: defined persistently under a name
//! and a UUID made from cluster, VM and epoch, never started by libvirt itself; the guest sees the VM's id. What NovaCron
//! has to remember stands in the definition's metadata (`notes`): so another process, after a crash, on another machine,
//! goes on where the last one was. Domains without that metadata are somebody else's: they are listed, and nothing changes
//! them.
//!
//! **An end is noted before it is told**, by whoever sees it first: the thread that gets libvirt's events, or the next
//! look. libvirt keeps the reason of an end in its memory only; a guest that ends while nobody is told, and before
//! libvirt is restarted, has ended as nobody knows how, and that is what is said.
//!
//! No call of libvirt's has a deadline, so callers have (`pool`); a daemon that dies, hangs or is cut off ends calls with
//! `Unavailable`, `DeadlineExceeded` or `OutcomeUnknown`, and leaves guests alone (`link`). One thing is left open: a
//! define that a daemon took, hanging, from a connection that was ended since, shows when it comes true, and not before.
//!
//! Pools, networks and migration of libvirt's own are not used: volumes and ports come resolved.

mod agent;
mod consoles;
mod describe;
mod diagnostics;
mod ends;
mod error;
mod event_loop;
mod host;
mod hot_plug;
mod hypervisor;
mod life;
mod link;
mod look;
mod media;
mod notes;
mod pool;
mod screens;
mod state;
mod stats;
mod sys;
mod uri;
mod xml;

use std::path::PathBuf;
use std::sync::Arc;

use novacron_core::model::HostId;

use crate::accel::AccelChoice;
pub use event_loop::EventLoop;
use state::{Config, State};

/// A hypervisor behind libvirt: of this host, or of another one.
///
/// Needs the feature `libvirt`, which links `libvirt.so.0` by the crate `virt-sys`. Both are under the **LGPL-2.1**, not
/// under NovaCron's licences: whoever ships a program with this feature keeps to that one, too.
///
/// ```no_run
/// use novacron_core::driver::{Call, Hypervisor};
/// use novacron_kvm::LibvirtHypervisor;
/// use std::time::Duration;
///
/// # async fn example() -> novacron_core::Result<()> {
/// // Nothing is touched before the first call; connecting is supervised, and a daemon that is away is no error here.
/// let here = LibvirtHypervisor::new("qemu:///system").state_dir("/var/lib/my-panel/domains");
/// let there = LibvirtHypervisor::new("qemu+tls://beta/system");
/// for hypervisor in [here, there] {
///     let host = hypervisor.probe(Call::within(Duration::from_secs(10))).await?;
///     println!("{}: {}", host.host, host.capabilities.hypervisor);
/// }
/// # Ok(())
/// # }
/// ```
/// Any URI of libvirt's QEMU driver will do: `qemu:///system`, `qemu:///session`, `qemu:///embed?root=/srv/x` (the driver
/// in this process, without a daemon), `qemu+unix`, `qemu+tls`, `qemu+ssh`. Credentials come from the URI and libvirt's
/// `auth.conf`: nobody is asked. Dropping the value closes its connections and leaves guests running, also those of an
/// embedded driver.
///
/// | | local, with a state folder | local, without | another host |
/// |---|---|---|---|
/// | life, events, numbers, hot-plug, agent, pivot, diagnostics | yes | yes | yes |
/// | a cloud-init seed, UEFI | yes | refused | refused |
/// | consoles | yes | no | no |
/// | screens | yes | yes | no |
/// | boot id | the host's | the host's | none: a reboot proves nothing |
#[derive(Debug)]
pub struct LibvirtHypervisor {
    state: Arc<State>,
}

impl LibvirtHypervisor {
    /// A hypervisor at this URI.
    pub fn new(uri: impl Into<String>) -> Self {
        Self::with(Config {
            uri: uri.into(),
            folder: None,
            event_loop: EventLoop::default(),
            accel: AccelChoice::Auto,
            host: None,
        })
    }

    /// Keeps seeds and the logs of consoles in this folder of this host, if the URI leads to this host; else it is of no
    /// use, and is not touched. libvirt's QEMU, perhaps another user, must be able to pass through the folders above.
    #[must_use]
    pub fn state_dir(self, folder: impl Into<PathBuf>) -> Self {
        let config = self.state.config.clone();
        let folder = folder.into();
        let folder = std::path::absolute(&folder).unwrap_or(folder);
        Self::with(Config {
            folder: uri::is_local(&config.uri).then_some(folder),
            ..config
        })
    }

    /// Who runs libvirt's event loop, of which a process has one.
    #[must_use]
    pub fn event_loop(self, event_loop: EventLoop) -> Self {
        Self::with(Config {
            event_loop,
            ..self.state.config.clone()
        })
    }

    /// Accelerates guests this way; on a local libvirt the variable `NOVACRON_ACCEL` goes before.
    #[must_use]
    pub fn accel(self, choice: AccelChoice) -> Self {
        Self::with(Config {
            accel: choice,
            ..self.state.config.clone()
        })
    }

    /// Reports this host id in place of libvirt's UUID of the host: for hosts whose firmware gives libvirt none, where it
    /// makes up another one at each of its starts.
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
