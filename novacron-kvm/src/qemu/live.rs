//! A running domain's connections, and the watcher that turns what QEMU says into events and ends.

use std::sync::{Arc, Weak};
use std::time::Duration;

use novacron_core::driver::{Call, DomainId, GuestEvent, HypervisorEvent};
use serde_json::{Value, json};
use tokio::sync::{OnceCell, broadcast, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::monitor::{Monitor, Status};
use super::state::Slot;
use crate::agent::Agent;
use crate::console::ConsoleHub;
use crate::process::{EndCause, Process, RunDir};
use crate::qmp::{Event, Qmp, QmpError};

/// How long QEMU may take for an answer that needs no work.
const SOON: Duration = Duration::from_secs(10);

/// A marker: the guest was asked to power off, so that its poweroff is an end on request.
pub(super) const ASKED: &str = "asked.json";

/// The connections to one running QEMU. Dropping it closes them; QEMU goes on.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) dir: RunDir,
    pub(super) process: Arc<Process>,
    pub(super) qmp: Qmp,
    pub(super) agent: Agent,
    console: OnceCell<ConsoleHub>,
    over: watch::Receiver<bool>,
    watcher: AbortHandle,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

impl Live {
    /// Takes up a QEMU whose monitor was just connected.
    pub(super) async fn new(
        id: DomainId,
        dir: RunDir,
        process: Arc<Process>,
        qmp: Qmp,
        slot: Weak<Slot>,
        events: broadcast::Sender<HypervisorEvent>,
    ) -> Self {
        let (over_sender, over) = watch::channel(false);
        let watcher = Watcher {
            id,
            dir: dir.clone(),
            process: Arc::clone(&process),
            told: qmp.events(),
            qmp: qmp.clone(),
            slot,
            events,
            over: over_sender,
        };
        let watcher = tokio::spawn(watcher.run()).abort_handle();
        let agent = Agent::new(dir.file("ga"));
        let live = Self {
            dir,
            process,
            qmp,
            agent,
            console: OnceCell::new(),
            over,
            watcher,
        };
        // The hub drains the console from now on; a console that cannot be connected is told when it is asked for.
        let _ = live.console().await;
        live
    }

    /// The console.
    pub(super) async fn console(&self) -> std::io::Result<&ConsoleHub> {
        let connect =
            async || ConsoleHub::connect(&self.dir.file("con"), self.dir.file("console.log")).await;
        self.console.get_or_try_init(connect).await
    }

    /// Its monitor, for one call.
    pub(super) fn monitor(&self, call: Call, operation: &'static str) -> Monitor<'_> {
        Monitor {
            qmp: &self.qmp,
            call,
            operation,
        }
    }

    /// Whether its end has been seen.
    pub(super) fn is_over(&self) -> bool {
        *self.over.borrow()
    }

    /// Resolves when its end has been seen and noted.
    pub(super) async fn over(&self) {
        let mut over = self.over.clone();
        // An error means that the watcher is gone, which it is only after the end.
        let _ = over.wait_for(|over| *over).await;
    }
}

struct Watcher {
    id: DomainId,
    dir: RunDir,
    process: Arc<Process>,
    qmp: Qmp,
    told: broadcast::Receiver<Event>,
    slot: Weak<Slot>,
    events: broadcast::Sender<HypervisorEvent>,
    over: watch::Sender<bool>,
}

impl Watcher {
    async fn run(mut self) {
        let process = Arc::clone(&self.process);
        let ended = process.ended();
        tokio::pin!(ended);
        // It may have ended while nobody was there.
        self.look().await;
        let status = loop {
            tokio::select! {
                status = &mut ended => break status,
                told = self.told.recv() => match told {
                    Ok(event) => self.hear(&event).await,
                    Err(broadcast::error::RecvError::Lagged(_)) => {
                        self.look().await;
                        self.push(GuestEvent::StateChanged);
                    }
                    // The monitor is gone; the process follows.
                    Err(broadcast::error::RecvError::Closed) => break ended.await,
                },
            }
        };
        let status = status.unwrap_or_else(|error| {
            tracing::warn!(%error, domain = %self.id, "QEMU's end cannot be waited for");
            None
        });
        match self.dir.how_it_ended(status) {
            Ok(end) => tracing::debug!(domain = %self.id, ?end, "ended"),
            Err(error) => tracing::warn!(%error, domain = %self.id, "how it ended cannot be noted"),
        }
        self.over.send_replace(true);
        self.push(GuestEvent::StateChanged);
        // Last, since it may drop what aborts this task.
        if let Some(slot) = self.slot.upgrade() {
            slot.forget_ended();
        }
    }

    async fn hear(&self, event: &Event) {
        match event.name.as_str() {
            "SHUTDOWN" if from_outside(event) => {
                self.note(EndCause::Terminated);
            }
            "SHUTDOWN" | "GUEST_PANICKED" => self.look().await,
            "STOP" => {
                self.look().await;
                self.push(GuestEvent::StateChanged);
            }
            "RESUME" => self.push(GuestEvent::StateChanged),
            "RESET" => self.push(GuestEvent::Reset),
            "WATCHDOG" => self.push(GuestEvent::Watchdog),
            "VSERPORT_CHANGE" if event.data.get("id").and_then(Value::as_str) == Some("agent") => {
                let connected = event
                    .data
                    .get("open")
                    .and_then(Value::as_bool)
                    .unwrap_or(false);
                self.push(GuestEvent::Agent { connected });
            }
            _ => {}
        }
    }

    /// Ends QEMU if the guest has ended.
    async fn look(&self) {
        match Status::of(&self.qmp, SOON).await {
            Ok(status) if status.is_shutdown() => {
                let asked = self.dir.read::<bool>(ASKED).ok().flatten().unwrap_or(false);
                self.end(if asked {
                    EndCause::Requested
                } else {
                    EndCause::GuestShutdown
                })
                .await;
            }
            Ok(status) if status.is_panicked() => self.end(EndCause::GuestPanic).await,
            Ok(_) | Err(QmpError::Disconnected { .. }) => {}
            Err(error) => tracing::warn!(%error, domain = %self.id, "no status"),
        }
    }

    async fn end(&self, cause: EndCause) {
        // Without the note it would read as a crash: QEMU stays, and says it again to the next who asks.
        if self.note(cause) {
            quit(&self.qmp, &self.process).await;
        }
    }

    fn note(&self, cause: EndCause) -> bool {
        let noted = self.dir.note_end(cause);
        if let Err(error) = &noted {
            tracing::error!(%error, domain = %self.id, "the guest's end cannot be noted");
        }
        noted.is_ok()
    }

    fn push(&self, event: GuestEvent) {
        // Nobody listening is no error.
        let _ = self.events.send(HypervisorEvent {
            domain: self.id,
            event,
        });
    }
}

/// Whether QEMU says that somebody on the host ends it. Our own `quit` says so too, but its reason was noted before.
fn from_outside(event: &Event) -> bool {
    let reason = event.data.get("reason").and_then(Value::as_str);
    matches!(reason, Some("host-signal" | "host-qmp-quit" | "host-ui"))
}

/// Tells QEMU to quit, so that it closes its images in order; kills it if it does not.
pub(super) async fn quit(qmp: &Qmp, process: &Process) {
    // It may quit before it answers.
    let _ = qmp.execute("quit", json!({}), SOON).await;
    if timeout(SOON, qmp.closed()).await.is_err()
        && let Err(error) = process.kill()
    {
        tracing::error!(%error, pid = process.pid(), "QEMU neither quits nor can be killed");
    }
}
