//! Named points at which a test ends the process as `kill -9` would. Outside of this crate's own tests they are
//! nothing.

/// Ends the process here, when a test has asked for it.
#[cfg(test)]
pub(crate) fn point(name: &str) {
    if std::env::var("NOVACRON_STORAGE_CRASH_AT").is_ok_and(|at| at == name) {
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // The signal is delivered before the next instruction of user space, or very soon after.
        loop {
            std::thread::park();
        }
    }
}

/// Nothing.
#[cfg(not(test))]
#[inline]
pub(crate) fn point(_name: &str) {}
