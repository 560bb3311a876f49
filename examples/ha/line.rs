//! The time line: everything that was seen, by whom, in one order.
//!
//! ```text
//!   the store's watch ──► members, owners, claims, runs, events ──┐
//!   each host's output ─► leads, fencing, fenced ─────────────────┼─► Line ─► printed, waited for, measured
//!   /proc, console logs ► QEMU processes, heartbeats ─────────────┘
//! ```

#![expect(clippy::print_stdout, reason = "the output of a program for people")]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use novacron_core::Deadline;
use novacron_core::lifecycle::RunPhase;
use novacron_core::model::{FenceReceipt, VmId};
use novacron_examples::Result;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::host::Said;

/// Something that was seen.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum What {
    /// The director did something, or found something.
    Note(String),
    /// A host's process said something.
    Said(Said),
    /// A host's process has ended.
    Ended,
    /// A process of the cluster is alive, was shut down, is lost.
    Member(u64, &'static str),
    /// A node has this owner now.
    Owner(String, u64),
    /// A node's owner was lost, and this proves that its host runs nothing.
    Receipt(String, FenceReceipt),
    /// A node answers, or does not.
    Node(String, &'static str),
    /// A VM may run, on this node in this epoch.
    Granted(VmId, String, u64),
    /// A VM's epoch is over, and proved to be.
    Released(VmId, u64, String),
    /// Where a run stands.
    Run(VmId, String, u64, RunPhase),
    /// A QEMU process is there, or is gone.
    Qemu(VmId, String, u64, bool),
    /// The first heartbeat of a guest's boot.
    FirstBeat(VmId, String, u64),
}

/// Something that was seen, and when.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) at: Instant,
    pub(crate) who: String,
    pub(crate) what: What,
}

#[derive(Debug)]
struct State {
    zero: Instant,
    seen: Vec<Seen>,
    names: Vec<(VmId, String)>,
}

/// The time line. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    state: Arc<Mutex<State>>,
    grown: watch::Sender<usize>,
}

impl Line {
    pub(crate) fn new() -> Self {
        let state = State {
            zero: Instant::now(),
            seen: Vec::new(),
            names: Vec::new(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            grown: watch::Sender::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a VM is called.
    pub(crate) fn name(&self, vm: VmId, name: &str) {
        self.state().names.push((vm, name.to_owned()));
    }

    /// Times are told from now on. Returns a place in the line: what follows is of this story.
    pub(crate) fn begin(&self, title: &str) -> usize {
        let mut state = self.state();
        state.zero = Instant::now();
        println!("\n== {title}");
        state.seen.len()
    }

    /// How long after the story's zero.
    pub(crate) fn ms(&self, at: Instant) -> i64 {
        let zero = self.state().zero;
        let ms = |d: Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
        match at.checked_duration_since(zero) {
            Some(after) => ms(after),
            None => -ms(zero.duration_since(at)),
        }
    }

    /// Adds what was seen just now.
    pub(crate) fn saw(&self, who: &str, what: What) {
        let mut state = self.state();
        let at = Instant::now();
        let told = state.told(&what);
        println!(
            "{:>7} ms  {who:<8} {told}",
            at.duration_since(state.zero).as_millis()
        );
        state.seen.push(Seen {
            at,
            who: who.to_owned(),
            what,
        });
        self.grown.send_replace(state.seen.len());
    }

    pub(crate) fn note(&self, text: impl Into<String>) {
        self.saw("director", What::Note(text.into()));
    }

    /// Shows something that nobody waits for.
    pub(crate) fn summary(&self, text: &str) {
        println!("    | {text}");
    }

    /// Everything since a place in the line.
    pub(crate) fn since(&self, from: usize) -> Vec<Seen> {
        self.state().seen[from..].to_vec()
    }

    /// Waits for the first since `from` that `wanted` takes.
    pub(crate) async fn wait<T>(
        &self,
        from: usize,
        deadline: Deadline,
        what: &str,
        mut wanted: impl FnMut(&Seen) -> Option<T>,
    ) -> Result<T> {
        let mut grown = self.grown.subscribe();
        let mut next = from;
        loop {
            let seen = self.since(next);
            if let Some(found) = seen.iter().find_map(&mut wanted) {
                return Ok(found);
            }
            next += seen.len();
            let more = tokio::time::timeout_at(deadline.instant(), grown.wait_for(|n| *n > next));
            if more.await.is_err() {
                return Err(format!("it did not come about in time: {what}").into());
            }
        }
    }
}

impl State {
    fn vm(&self, id: VmId) -> String {
        let name = self.names.iter().find(|(vm, _)| *vm == id);
        name.map_or_else(|| id.to_string(), |(_, name)| name.clone())
    }

    fn told(&self, what: &What) -> String {
        match what {
            What::Note(text) => text.clone(),
            What::Said(Said::Joined(n)) => format!("has joined as member {n}"),
            What::Said(Said::Leads(true)) => "leads".to_owned(),
            What::Said(Said::Leads(false)) => "leads no more".to_owned(),
            What::Said(Said::Fencing(node)) => format!("fences host {node} …"),
            What::Said(Said::Fenced(node, told)) => format!("… host {node}: {told}"),
            What::Said(Said::Tried(1, told)) => format!("the feature level: {told}"),
            What::Said(Said::Tried(_, told)) => format!("a request of the next level: {told}"),
            What::Ended => "its process has ended".to_owned(),
            What::Member(n, state) => format!("member {n} is {state}"),
            What::Owner(node, n) => format!("node {node} is looked after by member {n}"),
            What::Receipt(node, receipt) => format!("node {node} is fenced, by {}", receipt.method),
            What::Node(node, state) => format!("node {node} is {state}"),
            What::Granted(vm, node, epoch) => {
                format!("{} is placed on {node} (epoch {epoch})", self.vm(*vm))
            }
            What::Released(vm, epoch, proof) => {
                format!("{}: claim of epoch {epoch} released: {proof}", self.vm(*vm))
            }
            What::Run(vm, node, epoch, phase) => {
                format!("{} is {phase} on {node} (epoch {epoch})", self.vm(*vm))
            }
            What::Qemu(vm, node, epoch, there) => {
                let word = if *there { "runs" } else { "is gone" };
                format!("{}: QEMU of epoch {epoch} {word}", self.vm_at(*vm, node))
            }
            What::FirstBeat(vm, node, epoch) => {
                format!(
                    "{}: first heartbeat of epoch {epoch}",
                    self.vm_at(*vm, node)
                )
            }
        }
    }

    fn vm_at(&self, vm: VmId, node: &str) -> String {
        format!("{} on {node}", self.vm(vm))
    }
}
