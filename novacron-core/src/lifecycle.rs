//! The life cycle of one run of a VM on a node: one total function.
//!
//! ```text
//!                 Begin              Ran                  Held
//!   Assigned ───────────► Starting ───────► Running ◄───────────► Paused
//!      │                     │                │          Ran        │
//!      │ Abandon             │ Stop           │ Stop                │ Stop
//!      │                     ▼                ▼                     │
//!      │                  Stopping ◄─────────────────────────────────
//!      │                     │
//!      ▼        Ended        ▼  Ended (from every phase but Assigned and Stopped: guests end by themselves)
//!   Stopped ◄─────────────────
//!
//!   Starting, Running, Paused, Stopping ── LoseSight ──► Unknown ── Ran | Held | Stop | Ended ──► as above
//! ```
//! The node's owner alone walks it. `Ended` and `Abandon` are the only ways to [`RunPhase::Stopped`], and the run
//! record takes a [`StopProof`](crate::model::StopProof) with them. `Unknown` leads to no start: there is no edge from
//! it to `Starting`. A restart is a new run with a new epoch, made by the leader.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunPhase {
    /// Given to the owner, nothing done yet.
    Assigned,
    /// A start may have been issued.
    Starting,
    /// Its vCPUs run.
    Running,
    /// In memory, its vCPUs held.
    Paused,
    /// A stop may have been issued.
    Stopping,
    /// It does not run and cannot begin to: there is a proof.
    Stopped,
    /// It cannot be seen whether it runs.
    Unknown,
}

/// What happens to a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RunEvent {
    /// The owner is about to issue the start.
    Begin,
    /// It was seen running.
    Ran,
    /// It was seen held (paused).
    Held,
    /// The owner is about to issue a stop.
    Stop,
    /// It was proved to have ended.
    Ended,
    /// It was never started, and is given up.
    Abandon,
    /// The hypervisor does not answer.
    LoseSight,
}

impl RunPhase {
    /// Every phase.
    pub const ALL: [Self; 7] = [
        Self::Assigned,
        Self::Starting,
        Self::Running,
        Self::Paused,
        Self::Stopping,
        Self::Stopped,
        Self::Unknown,
    ];

    /// Whether a guest may exist in this phase.
    pub fn may_run(self) -> bool {
        !matches!(self, Self::Assigned | Self::Stopped)
    }

    /// Whether an operator's word can end it: not while it is seen to run.
    pub(crate) fn may_be_confirmed_stopped(self) -> bool {
        matches!(self, Self::Starting | Self::Stopping | Self::Unknown)
    }

    /// The phase after `event`. Total: every pair has an answer.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] that names phase and event when the life cycle has no such edge.
    pub fn on(self, event: RunEvent) -> Result<Self, Error> {
        use RunEvent as E;
        use RunPhase as P;
        Ok(match (self, event) {
            (P::Assigned, E::Begin) => P::Starting,
            (P::Assigned, E::Abandon) => P::Stopped,
            (P::Starting | P::Running | P::Paused | P::Unknown, E::Ran) => P::Running,
            // A start leaves the guest held until the claim has been read again: that is still the start.
            (P::Starting, E::Held) => P::Starting,
            (P::Running | P::Paused | P::Unknown, E::Held) => P::Paused,
            (P::Starting | P::Running | P::Paused | P::Stopping | P::Unknown, E::Stop) => {
                P::Stopping
            }
            // A guest that is asked to stop is seen running, or held, until it ends.
            (P::Stopping, E::Ran | E::Held) => P::Stopping,
            (P::Starting | P::Running | P::Paused | P::Stopping | P::Unknown, E::Ended) => {
                P::Stopped
            }
            (P::Starting | P::Running | P::Paused | P::Stopping | P::Unknown, E::LoseSight) => {
                P::Unknown
            }
            (P::Assigned, E::Ran | E::Held | E::Stop | E::Ended | E::LoseSight)
            | (
                P::Starting | P::Running | P::Paused | P::Stopping | P::Unknown,
                E::Begin | E::Abandon,
            )
            | (P::Stopped, _) => {
                return Err(Error::new(
                    ErrorKind::FailedPrecondition,
                    "run.transition",
                    format!("a run that is {self} does not take the event {event:?}"),
                ));
            }
        })
    }
}

impl fmt::Display for RunPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Assigned => "assigned",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Unknown => "unknown",
        })
    }
}

/// What a user sees of a VM: its claim, its run and its wanted state in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Waiting for a place or for its volumes; the status says why.
    Pending,
    /// Placed and on its way to run.
    Starting,
    /// Running.
    Running,
    /// In memory, held.
    Paused,
    /// On its way down.
    Stopping,
    /// Off.
    Stopped,
    /// It is not tried any more: its start budget is used up, until a new power request; or a volume or a network that
    /// it names failed or is gone, until it names another.
    Failed,
    /// It cannot be seen whether it runs; the status says what would tell.
    Unknown,
    /// Going, with everything it named.
    Deleting,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pending => "pending",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
            Self::Deleting => "deleting",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const EVENTS: [RunEvent; 7] = [
        RunEvent::Begin,
        RunEvent::Ran,
        RunEvent::Held,
        RunEvent::Stop,
        RunEvent::Ended,
        RunEvent::Abandon,
        RunEvent::LoseSight,
    ];

    /// Walks every path from `Assigned` and checks what the module header promises of each edge.
    #[test]
    fn every_reachable_edge_keeps_the_promises() {
        let mut seen = BTreeSet::from([RunPhase::Assigned]);
        let mut open = vec![RunPhase::Assigned];
        while let Some(phase) = open.pop() {
            for event in EVENTS {
                match phase.on(event) {
                    Ok(next) => {
                        if next == RunPhase::Stopped {
                            assert!(
                                matches!(event, RunEvent::Ended | RunEvent::Abandon),
                                "{phase} {event:?}"
                            );
                        }
                        if next == RunPhase::Starting && phase != RunPhase::Starting {
                            assert_eq!((phase, event), (RunPhase::Assigned, RunEvent::Begin));
                        }
                        assert_ne!(next, RunPhase::Assigned);
                        if seen.insert(next) {
                            open.push(next);
                        }
                    }
                    Err(e) => {
                        assert_eq!(e.kind(), ErrorKind::FailedPrecondition);
                        assert!(e.message().contains(&phase.to_string()), "{e}");
                        assert!(e.message().contains(&format!("{event:?}")), "{e}");
                    }
                }
            }
        }
        assert_eq!(
            seen,
            BTreeSet::from(RunPhase::ALL),
            "every phase is reachable"
        );
    }

    #[test]
    fn every_phase_can_end() {
        for phase in RunPhase::ALL {
            let ends = phase == RunPhase::Stopped
                || phase
                    .on(RunEvent::Ended)
                    .is_ok_and(|p| p == RunPhase::Stopped)
                || phase
                    .on(RunEvent::Abandon)
                    .is_ok_and(|p| p == RunPhase::Stopped);
            assert!(ends, "{phase}");
        }
    }

    #[test]
    fn stopped_is_final() {
        for event in EVENTS {
            assert!(RunPhase::Stopped.on(event).is_err());
        }
    }
}
