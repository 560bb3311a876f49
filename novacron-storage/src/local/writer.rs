//! Whether somebody writes to a layer.
//!
//! QEMU and its tools mark what they do with a file by locks on single bytes of it (`file-posix.c`, since 2.10): byte
//! 101 is locked by whoever may write, byte 103 by whoever may change its length. Asking for a conflicting lock, without
//! taking it, tells whether one is held; NFS passes the question on to the server. libvirt and `qemu-system` take these
//! locks by default.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use novacron_core::{Error, ErrorKind, Result};

use crate::failure::of_io;

const MAY_WRITE: libc::off_t = 101;
const MAY_WRITE_OR_RESIZE: libc::off_t = 3;

/// Whether some process may write to the file.
pub(super) fn is_written(op: &'static str, path: &Path) -> Result<bool> {
    let fail = |e| of_io(op, "cannot ask who uses the file", path, e);
    let file = File::open(path).map_err(fail)?;
    // SAFETY: `flock` is plain integers, for which zeroes are a value.
    let mut ask: libc::flock = unsafe { std::mem::zeroed() };
    ask.l_type = libc::F_WRLCK as libc::c_short;
    ask.l_whence = libc::SEEK_SET as libc::c_short;
    ask.l_start = MAY_WRITE;
    ask.l_len = MAY_WRITE_OR_RESIZE;
    // rustix has the call, but takes the -1 that stands for the owner of QEMU's kind of lock for a defect.
    // SAFETY: the descriptor is open for the whole call, and `ask` is a valid `flock` that the kernel may fill in.
    let asked = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut ask) };
    if asked == 0 {
        return Ok(libc::c_int::from(ask.l_type) != libc::F_UNLCK);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // A file system without such locks: QEMU holds none there either.
        Some(libc::ENOLCK | libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP) => Ok(false),
        _ => Err(fail(error)),
    }
}

/// An error if some process may write to the file.
pub(super) fn refuse_written(op: &'static str, path: &Path) -> Result<()> {
    if !is_written(op, path)? {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::FailedPrecondition,
        op,
        "a running guest or another process writes to it; stop it first",
    )
    .with("path", path.display()))
}
