//! The host's hardware watchdog: a timer outside of every process that resets the machine unless it is fed.
//!
//! ```text
//!   arm ──► running ── feed ──► running ── … ── disarm ──► stopped
//!              └─ not fed for `timeout`, its process killed, stopped or gone ──► the machine is reset
//! ```
//! It can prove that a host cut itself off only if nothing but a word of its process stops it. So a device that stops by
//! itself when its file is closed, as it is when a process is killed, is refused: it has to know the "magic close". The
//! timeout is what the device says that it took, which may be more than was asked for.
//!
//! [`HostWatchdog`] is what [`Builder::self_fence`] is given, and decides nothing: the control loop says when.
//!
//! [`Builder::self_fence`]: novacron_core::cluster::Builder::self_fence

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use novacron_core::driver::{Call, Watchdog};
use novacron_core::{Error, ErrorKind, Result};
use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, Updater, ioctl, opcode};

const OPERATION: &str = "watchdog";

/// `struct watchdog_info` of `linux/watchdog.h`.
#[repr(C)]
struct Info {
    options: u32,
    _firmware: u32,
    identity: [u8; 32],
}

const GET_SUPPORT: Opcode = opcode::read::<Info>(b'W', 0);
const KEEP_ALIVE: Opcode = opcode::read::<i32>(b'W', 5);
const SET_TIMEOUT: Opcode = opcode::read_write::<i32>(b'W', 6);
const CAN_SET_TIMEOUT: u32 = 0x80;
const MAGIC_CLOSE: u32 = 0x100;
const FEEDABLE: u32 = 0x8000;

/// The host's watchdog, for [`Builder::self_fence`](novacron_core::cluster::Builder::self_fence). Cheap to clone.
///
/// Dropped while it is armed it stays so: the machine is reset.
#[derive(Clone, Debug)]
pub struct HostWatchdog {
    device: PathBuf,
    timeout: Duration,
    armed: Arc<Mutex<Option<HardwareWatchdog>>>,
}

impl HostWatchdog {
    /// The watchdog behind a device, as `/dev/watchdog`, that is to wait this long to be fed; whole seconds, rounded up.
    pub fn new(device: impl Into<PathBuf>, timeout: Duration) -> Self {
        Self {
            device: device.into(),
            timeout,
            armed: Arc::default(),
        }
    }

    /// The device's calls block.
    async fn on_device<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Option<HardwareWatchdog>, &Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let this = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let mut armed = this.armed.lock().unwrap_or_else(PoisonError::into_inner);
            work(&mut armed, &this)
        });
        done.await.map_err(|error| {
            let message = "the call to the watchdog did not end";
            Error::new(ErrorKind::OutcomeUnknown, OPERATION, message).caused_by(error)
        })?
    }
}

#[async_trait]
impl Watchdog for HostWatchdog {
    async fn arm(&self, call: Call) -> Result<Duration> {
        let arm = self.on_device(|armed, this| match armed {
            Some(watchdog) => watchdog.feed().map(|()| watchdog.timeout()),
            None => {
                let watchdog = HardwareWatchdog::arm(&this.device, this.timeout)?;
                Ok(armed.insert(watchdog).timeout())
            }
        });
        within(call, arm).await
    }

    async fn feed(&self) -> Result<()> {
        self.on_device(|armed, _| armed.as_ref().map_or(Ok(()), HardwareWatchdog::feed))
            .await
    }

    async fn disarm(&self, call: Call) -> Result<()> {
        let disarm =
            self.on_device(|armed, _| armed.take().map_or(Ok(()), HardwareWatchdog::disarm));
        within(call, disarm).await
    }
}

/// A device that does not answer may still do what it was asked for.
async fn within<T>(call: Call, work: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout_at(call.deadline.instant(), work).await {
        Ok(done) => done,
        Err(_) => {
            let message = "the deadline passed and the watchdog does not answer";
            Err(Error::new(ErrorKind::OutcomeUnknown, OPERATION, message))
        }
    }
}

/// An armed watchdog. Dropping it leaves it armed: the machine is reset.
#[derive(Debug)]
struct HardwareWatchdog {
    device: File,
    path: PathBuf,
    identity: String,
    timeout: Duration,
}

impl HardwareWatchdog {
    /// Arms the watchdog behind `device` (`/dev/watchdog`): from here on the machine is reset unless it is fed.
    ///
    /// `timeout` is rounded up to whole seconds; `timeout` tells what the device made of it.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] when there is no such device, or it is none that proves anything; such a one is
    /// stopped again. [`ErrorKind::FailedPrecondition`] when another process has it. Other errors may leave it armed.
    fn arm(device: &Path, timeout: Duration) -> Result<Self> {
        let opened = OpenOptions::new()
            .write(true)
            .custom_flags(rustix::fs::OFlags::CLOEXEC.bits().cast_signed())
            .open(device);
        let file = opened.map_err(|error| {
            let (kind, message) = match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::BUSY) => (
                    ErrorKind::FailedPrecondition,
                    "another process has the watchdog",
                ),
                Some(Errno::NOENT | Errno::NODEV | Errno::NXIO) => {
                    (ErrorKind::Unsupported, "there is no watchdog")
                }
                Some(Errno::ACCESS | Errno::PERM) => (
                    ErrorKind::PermissionDenied,
                    "this user may not arm the watchdog",
                ),
                _ => (ErrorKind::Unavailable, "the watchdog cannot be opened"),
            };
            Error::new(kind, OPERATION, message)
                .with("device", device.display())
                .caused_by(error)
        })?;
        let mut watchdog = Self {
            device: file,
            path: device.to_owned(),
            identity: String::new(),
            timeout: Duration::ZERO,
        };
        // SAFETY: WDIOC_GETSUPPORT writes one `struct watchdog_info`, which `Info` is.
        let info: Info = unsafe { ioctl(&watchdog.device, Getter::<GET_SUPPORT, Info>::new()) }
            .map_err(|error| watchdog.failed("is not one", error.into()))?;
        watchdog.identity = String::from_utf8_lossy(&info.identity)
            .trim_end_matches('\0')
            .to_owned();
        let needed = CAN_SET_TIMEOUT | MAGIC_CLOSE | FEEDABLE;
        if info.options & needed != needed {
            let message = format!(
                "the watchdog ({}) proves nothing: it has no timeout to set, or stops when its process is killed",
                watchdog.identity
            );
            let path = watchdog.path.display().to_string();
            watchdog.disarm()?;
            return Err(Error::new(ErrorKind::Unsupported, OPERATION, message).with("device", path));
        }
        let whole = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
        let mut seconds = i32::try_from(whole).unwrap_or(i32::MAX);
        // SAFETY: WDIOC_SETTIMEOUT reads one int, and writes back what it made of it.
        unsafe {
            ioctl(
                &watchdog.device,
                Updater::<SET_TIMEOUT, i32>::new(&mut seconds),
            )
        }
        .map_err(|error| watchdog.failed("does not take the timeout", error.into()))?;
        watchdog.timeout = Duration::from_secs(seconds.unsigned_abs().into());
        watchdog.feed()?;
        Ok(watchdog)
    }

    /// For how long it waits to be fed.
    fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Feeds it: the timeout begins anew.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`]: it runs on, and the machine will be reset unless a later call succeeds.
    fn feed(&self) -> Result<()> {
        // SAFETY: WDIOC_KEEPALIVE is declared as writing an int; the room for one is there.
        let fed = unsafe { ioctl(&self.device, Getter::<KEEP_ALIVE, i32>::new()) };
        fed.map(drop)
            .map_err(|error| self.failed("cannot be fed", error.into()))
    }

    /// Stops it, by the magic close.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`]: it runs on, and the machine will be reset. A kernel that was told never to stop a
    /// watchdog (`nowayout`) gives no error and resets the machine all the same.
    fn disarm(mut self) -> Result<()> {
        self.device
            .write_all(b"V")
            .map_err(|error| self.failed("cannot be stopped", error))
    }

    fn failed(&self, what: &str, error: io::Error) -> Error {
        let message = format!("the watchdog {what}");
        Error::new(ErrorKind::Unavailable, OPERATION, message)
            .with("device", self.path.display())
            .caused_by(error)
    }
}
