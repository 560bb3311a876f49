//! A console's byte stream. A callback tells when it can be read or written.
//!
//! Several threads use one: the event loop's takes bytes out while others put some in. So it has a connection for itself,
//! and puts in one at a time; the rest asks nobody.

use std::ffi::{c_int, c_uint, c_void};
use std::ptr::{self, NonNull};
use std::sync::{Mutex, PoisonError};

use uuid::Uuid;
use virt_sys as sys;

use super::registry::{Place, Registry};
use super::{Conn, Dom, LvError, LvResult, aside, done};

static READY: Registry<Readiness> = Registry::new();

/// What a stream is ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Readiness {
    /// Bytes can be taken out.
    pub(in super::super) readable: bool,
    /// Bytes can be put in.
    pub(in super::super) writable: bool,
    /// It has ended.
    pub(in super::super) ended: bool,
}

/// A stream. Dropping it ends it, on a thread of its own: the daemon is told, which may hang.
pub(in super::super) struct Stream {
    stream: Pointer,
    /// Held by whoever has something sent by it.
    conn: Mutex<Conn>,
    watcher: Mutex<Option<Place<Readiness>>>,
}

#[derive(Clone, Copy)]
struct Pointer(NonNull<sys::_virStream>);

// SAFETY: libvirt's streams are bound to no thread, and lock themselves (see the module's header).
unsafe impl Send for Pointer {}
// SAFETY: as above; the one call that asks the daemon is made by one thread at a time.
unsafe impl Sync for Pointer {}

impl Drop for Stream {
    fn drop(&mut self) {
        aside(Ending(self.stream));
    }
}

/// Ends a stream by its own end.
struct Ending(Pointer);

impl Drop for Ending {
    fn drop(&mut self) {
        let stream = self.0.0.as_ptr();
        // SAFETY: a valid stream; the one reference that its handle owned is given back, and with it the last one of its
        // connection. Errors (it has ended already) change nothing.
        unsafe {
            sys::virStreamEventRemoveCallback(stream);
            sys::virStreamAbort(stream);
            sys::virStreamFree(stream);
        }
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}

impl Stream {
    /// A stream of a domain's first serial console, by a connection that is the stream's from now on. It fails while
    /// somebody else has the console, `virsh console` for one.
    pub(in super::super) fn console(conn: Conn, domain: Uuid) -> LvResult<Self> {
        let domain = conn
            .lookup(domain)?
            .ok_or_else(|| LvError::ours("the domain is gone"))?;
        // SAFETY: a valid connection; the stream takes a reference of its own.
        let stream = unsafe { sys::virStreamNew(conn.pointer(), sys::VIR_STREAM_NONBLOCK) };
        let stream = NonNull::new(stream).ok_or_else(LvError::last)?;
        let stream = Self {
            stream: Pointer(stream),
            conn: Mutex::new(conn),
            watcher: Mutex::default(),
        };
        stream.open(&domain).map(|()| stream)
    }

    fn open(&self, domain: &Dom) -> LvResult<()> {
        let safe = sys::VIR_DOMAIN_CONSOLE_SAFE as c_uint;
        let mut opened = -1;
        // A driver that cannot vouch for safety refuses the flag.
        for flags in [safe, 0] {
            // SAFETY: a valid domain and a valid stream of its connection; no name means the first console.
            opened = unsafe {
                sys::virDomainOpenConsole(domain.pointer(), ptr::null(), self.pointer(), flags)
            };
            if opened >= 0 {
                break;
            }
        }
        done(opened)
    }

    fn pointer(&self) -> sys::virStreamPtr {
        self.stream.0.as_ptr()
    }

    /// Has libvirt call `sink`, on the event loop's thread, when the stream can be read, or has ended, and after
    /// [`Stream::watch_writes`] when it can be written. Once.
    pub(in super::super) fn watch(
        &self,
        sink: impl Fn(Readiness) + Send + Sync + 'static,
    ) -> LvResult<()> {
        let watcher = READY.add(sink);
        // SAFETY: a valid stream; the data is a number.
        done(unsafe {
            let data = watcher.data();
            sys::virStreamEventAddCallback(self.pointer(), READS, Some(ready), data, None)
        })?;
        *self.watcher.lock().unwrap_or_else(PoisonError::into_inner) = Some(watcher);
        Ok(())
    }

    /// Whether to be told, too, when it can be written.
    pub(in super::super) fn watch_writes(&self, on: bool) -> LvResult<()> {
        let events = if on { READS | WRITES } else { READS };
        // SAFETY: a valid stream with a callback.
        done(unsafe { sys::virStreamEventUpdateCallback(self.pointer(), events) })
    }

    /// Has it tell nothing any more.
    pub(in super::super) fn unwatch(&self) -> LvResult<()> {
        // SAFETY: a valid stream with a callback.
        done(unsafe { sys::virStreamEventUpdateCallback(self.pointer(), 0) })
    }

    /// Takes bytes out: how many, none at the end, or nothing yet.
    pub(in super::super) fn receive(&self, buffer: &mut [u8]) -> LvResult<Option<usize>> {
        // SAFETY: a valid stream; libvirt writes at most that many bytes.
        let count =
            unsafe { sys::virStreamRecv(self.pointer(), buffer.as_mut_ptr().cast(), buffer.len()) };
        amount(count)
    }

    /// Puts bytes in: how many, or nothing yet.
    pub(in super::super) fn send(&self, bytes: &[u8]) -> LvResult<Option<usize>> {
        let _one = self.conn.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: a valid stream; libvirt reads that many bytes.
        let count =
            unsafe { sys::virStreamSend(self.pointer(), bytes.as_ptr().cast(), bytes.len()) };
        amount(count)
    }
}

const READS: c_int = (sys::VIR_STREAM_EVENT_READABLE
    | sys::VIR_STREAM_EVENT_ERROR
    | sys::VIR_STREAM_EVENT_HANGUP) as c_int;
const WRITES: c_int = sys::VIR_STREAM_EVENT_WRITABLE as c_int;

/// libvirt answers -2 for a stream that would block.
fn amount(count: c_int) -> LvResult<Option<usize>> {
    match count {
        -2 => Ok(None),
        count if count < 0 => Err(LvError::last()),
        count => Ok(usize::try_from(count).ok()),
    }
}

unsafe extern "C" fn ready(_: sys::virStreamPtr, events: c_int, data: *mut c_void) {
    let events = events.unsigned_abs();
    let readiness = Readiness {
        readable: events & sys::VIR_STREAM_EVENT_READABLE != 0,
        writable: events & sys::VIR_STREAM_EVENT_WRITABLE != 0,
        ended: events & (sys::VIR_STREAM_EVENT_ERROR | sys::VIR_STREAM_EVENT_HANGUP) != 0,
    };
    READY.call(data, readiness);
}
