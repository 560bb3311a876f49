//! libvirt's last error, taken from the thread that it happened on.

use std::ffi::CStr;

use virt_sys as sys;

/// What libvirt says went wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(in super::super) struct LvError {
    /// `virErrorNumber`; zero for one of our own.
    pub(in super::super) code: u32,
    /// The part of libvirt that it comes from: `virErrorDomain`.
    pub(in super::super) domain: u32,
    /// In words.
    pub(in super::super) message: String,
}

impl LvError {
    /// Of the call before on this thread.
    pub(super) fn last() -> Self {
        // SAFETY: the error belongs to this thread and stays until its next libvirt call; its message is null or a
        // NUL-terminated string, and is copied before the error is reset.
        unsafe {
            let error = sys::virGetLastError();
            let Some(found) = error.as_ref() else {
                return Self::ours("libvirt failed and gives no reason");
            };
            let message = if found.message.is_null() {
                "libvirt gives no reason".to_owned()
            } else {
                CStr::from_ptr(found.message).to_string_lossy().into_owned()
            };
            let error = Self {
                code: found.code.unsigned_abs(),
                domain: found.domain.unsigned_abs(),
                message,
            };
            sys::virResetLastError();
            error
        }
    }

    pub(in super::super) fn ours(message: impl Into<String>) -> Self {
        Self {
            code: 0,
            domain: 0,
            message: message.into(),
        }
    }

    /// Whether it is this one of libvirt's errors.
    pub(in super::super) fn is(&self, code: sys::virErrorNumber) -> bool {
        self.code == code
    }
}
