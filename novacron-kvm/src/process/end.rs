//! How a run ended.

use serde::{Deserialize, Serialize};

/// Why QEMU is no longer there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EndCause {
    /// The guest powered itself off.
    GuestShutdown,
    /// The guest's kernel panicked.
    GuestPanic,
    /// QEMU did not come up.
    StartFailed,
    /// We were asked to end it.
    Requested,
    /// Somebody ended QEMU in an orderly way (SIGTERM, or `quit` on the monitor) and it was not us.
    Terminated,
    /// QEMU exited with this status: it refused to start or gave up.
    Exited(i32),
    /// QEMU was killed by this signal, or crashed with it.
    Killed(i32),
    /// QEMU is gone and nobody saw how.
    Vanished,
    /// The host was restarted meanwhile.
    HostRebooted,
}

/// The end of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct End {
    /// Why.
    pub(crate) cause: EndCause,
    /// The last lines that QEMU wrote to stderr.
    pub(crate) last_words: String,
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.cause {
            EndCause::GuestShutdown => f.write_str("the guest powered off")?,
            EndCause::GuestPanic => f.write_str("the guest's kernel panicked")?,
            EndCause::StartFailed => f.write_str("QEMU did not come up")?,
            EndCause::Requested => f.write_str("it was ended on request")?,
            EndCause::Terminated => f.write_str("QEMU was told to end by somebody else")?,
            EndCause::Exited(status) => write!(f, "QEMU exited with status {status}")?,
            EndCause::Killed(signal) => write!(f, "QEMU was killed by signal {signal}")?,
            EndCause::Vanished => f.write_str("QEMU vanished while nobody watched")?,
            EndCause::HostRebooted => f.write_str("the host was restarted")?,
        }
        if !self.last_words.is_empty() {
            write!(f, "; its last words: {}", self.last_words)?;
        }
        Ok(())
    }
}
