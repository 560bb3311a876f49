//! libvirt's event loop, which is the process's: registered once, before the first connection, and never taken back.

use std::ffi::c_void;
use std::ptr;

use virt_sys as sys;

use super::{LvResult, done};

/// Registers libvirt's own implementation. To be called once in a process, before any connection is opened.
pub(in super::super) fn register_event_loop() -> LvResult<()> {
    // SAFETY: no arguments; it may be called before anything else of libvirt's.
    done(unsafe { sys::virEventRegisterDefaultImpl() })
}

/// Waits for the next events and calls back. One thread at a time.
pub(in super::super) fn run_event_loop_once() -> LvResult<()> {
    // SAFETY: no arguments; the implementation was registered by the caller.
    done(unsafe { sys::virEventRunDefaultImpl() })
}

/// Keeps libvirt from printing errors to standard error: they are answered, and the host application owns its output.
pub(in super::super) fn quiet() {
    unsafe extern "C" fn nothing(_: *mut c_void, _: sys::virErrorPtr) {}
    // SAFETY: the handler is a function of the program, uses no data, and takes the error by reference only.
    unsafe { sys::virSetErrorFunc(ptr::null_mut(), Some(nothing)) };
}
