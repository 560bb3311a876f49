//! libvirt's C library behind safe types: the one place of this crate's libvirt driver with `unsafe` in it.
//!
//! ```text
//!   Conn ──► Dom (holds a reference of its connection) ──► Stream (a console's)
//!     └────► Subscription: a callback that libvirt calls on the event loop's thread, until it is dropped
//! ```
//! It goes by `virt-sys` alone and not by the crate `virt`, whose handles panic in `Drop` when a daemon is gone
//! (docs/decisions/0013-libvirt-by-virt-sys.md). What every `unsafe` here rests on:
//!
//! - A handle's pointer came from libvirt, is not null, and the handle owns one reference of it: it is valid until
//!   `Drop`, which gives the reference back once.
//! - libvirt's objects are counted and locked by libvirt itself, so a connection may go from thread to thread: `Conn` is
//!   `Send`. It is not `Sync`, although libvirt promises that, and what hangs on it stays on its thread: when a connection
//!   is lost on which several threads are in calls, libvirt's client before 10.3 reads the stack of one that has gone
//!   (CVE-2024-4418). Debian 12's does. What is shared all the same calls nobody, or holds a lock, and says so.
//! - Strings go in as `CString`s that outlive the call, and come out as `malloc`ed ones that [`taken`] copies and frees.
//! - An error is thread-local. It is read by [`LvError::last`] right after the call that failed, on its thread.
//! - A callback's data is a number in our [`registry`], and no memory. A panic does not cross into C.
//!
//! Every call may block for as long as a daemon hangs: this module knows no deadline, its callers' threads do.
#![allow(
    unsafe_code,
    reason = "the boundary to a C library; each block says why it is sound"
)]

mod callback;
mod connection;
mod domain;
mod error;
mod event_loop;
mod registry;
mod stats;
mod stream;

use std::ffi::{CStr, CString, c_char, c_void};

pub(super) use callback::{Event, Subscription};
pub(super) use connection::Conn;
pub(super) use domain::{Dom, State, Undefine};
pub(super) use error::LvError;
pub(super) use event_loop::{quiet, register_event_loop, run_event_loop_once};
pub(super) use stats::Stats;
pub(super) use stream::{Readiness, Stream};

/// The numbers of libvirt's that the driver decides on.
pub(super) mod code {
    pub(in super::super) use virt_sys::{
        VIR_DOMAIN_CRASHED, VIR_DOMAIN_CRASHED_PANICKED, VIR_DOMAIN_EVENT_CRASHED,
        VIR_DOMAIN_EVENT_DEFINED, VIR_DOMAIN_EVENT_SHUTDOWN, VIR_DOMAIN_EVENT_SHUTDOWN_HOST,
        VIR_DOMAIN_EVENT_STOPPED, VIR_DOMAIN_EVENT_UNDEFINED, VIR_DOMAIN_NOSTATE,
        VIR_DOMAIN_PAUSED, VIR_DOMAIN_PAUSED_STARTING_UP, VIR_DOMAIN_PMSUSPENDED,
        VIR_DOMAIN_RUNNING, VIR_DOMAIN_SHUTOFF, VIR_DOMAIN_SHUTOFF_CRASHED,
        VIR_DOMAIN_SHUTOFF_DAEMON, VIR_DOMAIN_SHUTOFF_DESTROYED, VIR_DOMAIN_SHUTOFF_FAILED,
        VIR_DOMAIN_SHUTOFF_FROM_SNAPSHOT, VIR_DOMAIN_SHUTOFF_MIGRATED, VIR_DOMAIN_SHUTOFF_SAVED,
        VIR_DOMAIN_SHUTOFF_SHUTDOWN, VIR_ERR_ACCESS_DENIED, VIR_ERR_AGENT_COMMAND_FAILED,
        VIR_ERR_AGENT_COMMAND_TIMEOUT, VIR_ERR_AGENT_UNRESPONSIVE, VIR_ERR_AGENT_UNSYNCED,
        VIR_ERR_ARGUMENT_UNSUPPORTED, VIR_ERR_AUTH_CANCELLED, VIR_ERR_AUTH_FAILED,
        VIR_ERR_AUTH_UNAVAILABLE, VIR_ERR_CONFIG_UNSUPPORTED, VIR_ERR_DEVICE_MISSING,
        VIR_ERR_DOM_EXIST, VIR_ERR_INVALID_ARG, VIR_ERR_INVALID_CONN, VIR_ERR_NO_CONNECT,
        VIR_ERR_NO_DOMAIN, VIR_ERR_NO_MEMORY, VIR_ERR_NO_SUPPORT, VIR_ERR_OPERATION_DENIED,
        VIR_ERR_OPERATION_FAILED, VIR_ERR_OPERATION_INVALID, VIR_ERR_OPERATION_TIMEOUT,
        VIR_ERR_OPERATION_UNSUPPORTED, VIR_ERR_RESOURCE_BUSY, VIR_ERR_RPC, VIR_ERR_XML_DETAIL,
        VIR_ERR_XML_ERROR, VIR_ERR_XML_INVALID_SCHEMA,
    };
}

/// What the driver's calls answer.
pub(super) type LvResult<T> = Result<T, LvError>;

/// Text for libvirt. A NUL cannot be passed on: what lies behind it would be cut off in silence.
fn text(text: &str) -> LvResult<CString> {
    CString::new(text).map_err(|_| LvError::ours("a text for libvirt holds a NUL"))
}

/// Drops what a daemon is told of, which may hang, on a thread of its own.
pub(super) fn aside(what: impl Send + 'static) {
    let thread = std::thread::Builder::new().name("libvirt-close".to_owned());
    // Without a thread it is dropped here and now.
    let _ = thread.spawn(move || drop(what));
}

/// A string that libvirt `malloc`ed for us: copied, and freed.
fn taken(text: *mut c_char) -> LvResult<String> {
    if text.is_null() {
        return Err(LvError::last());
    }
    // SAFETY: not null, so a NUL-terminated string that libvirt handed over; it is read before it is freed, once.
    unsafe {
        let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
        libc_free(text.cast());
        Ok(copy)
    }
}

unsafe extern "C" {
    /// libvirt allocates by the C library's `malloc`.
    #[link_name = "free"]
    fn libc_free(memory: *mut c_void);
}

/// A call that answers zero or more, or a negative number with an error behind it.
fn counted(answer: i32) -> LvResult<i32> {
    if answer < 0 {
        Err(LvError::last())
    } else {
        Ok(answer)
    }
}

/// The same, where the number says nothing.
fn done(answer: i32) -> LvResult<()> {
    counted(answer).map(drop)
}

#[cfg(test)]
mod tests;
