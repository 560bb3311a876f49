//! What can happen in a state, and the state after it.
//!
//! | step | what is the production's in it |
//! |---|---|
//! | a process looks at an object | `Runtime::reconcile` (part, guard, reconciler), `Runtime::begin` |
//! | its commit comes in | the preconditions as every store evaluates them; `Runtime::take_ended` |
//! | a call of its command is answered, or is not | `execute` and everything below it |
//! | it learns what the command came to | `Runtime::take_ended` |
//! | it sees one more commit | `Runtime::apply`, `Cache::apply` |
//!
//! Any process may be slow in any of them. It always believes that it is alive and, once it led, that it leads until it
//! learns better, which may be never: that includes every pause, every cut and every clock that is wrong.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::drivers::{Answer, Request};
use super::scenario::Scenario;
use super::state::{NOW, Process, Sent, State, Task, View};
use super::vessel::Vessel;
use super::words::{short, told, told_ops};
use crate::control::cache::PREFIXES;
use crate::control::part::{Part, part_of};
use crate::control::plan::{Command, Draft, ObjectKey};
use crate::control::runtime::Ended;
use crate::control::session::member_lease;
use crate::error::ErrorKind;
use crate::model::{Claim, Member, MemberId, MemberState, Role};
use crate::records::{self, NodeOwner, Stored};
use crate::store::{Key, Op, Revision};

/// A step, and what came of it.
pub(super) struct Next {
    /// For people; asked for only where a trace is told.
    pub(super) what: String,
    /// Whose turn it is: a process, or, after them, everything else. None for what goes wrong, and for what a user does:
    /// it comes when it likes, and must not be needed to come right.
    pub(super) turn: Option<usize>,
    pub(super) state: State,
    /// An invariant that the step itself breaks.
    pub(super) broken: Option<String>,
}

/// How a call is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Done,
    /// Nothing happened.
    Failed,
    /// Nobody knows: it may be carried out later.
    Lost,
}

pub(super) struct Stepper {
    pub(super) scenario: Scenario,
    pub(super) vessel: Vessel,
    views: HashMap<u128, Arc<View>>,
    processes: HashMap<u128, Arc<Process>>,
    /// Whether a VM's start was left out because it would have been one too many.
    pub(super) cut_short: bool,
}

impl Stepper {
    pub(super) fn new(scenario: Scenario) -> Self {
        Self {
            vessel: Vessel::new(&scenario),
            scenario,
            views: HashMap::new(),
            processes: HashMap::new(),
            cut_short: false,
        }
    }

    fn view(&mut self, records: BTreeMap<Key, (Revision, bytes::Bytes)>) -> Arc<View> {
        let print = super::state::fingerprint(&format!("{records:?}"));
        let fresh = || Arc::new(View::new(records));
        Arc::clone(self.views.entry(print).or_insert_with(fresh))
    }

    pub(super) fn process(&mut self, process: Process) -> Arc<Process> {
        let process = process.normal();
        let known = self.processes.entry(process.print);
        Arc::clone(known.or_insert_with(|| Arc::new(process)))
    }

    /// Where everything begins.
    pub(super) fn first(&mut self) -> State {
        let mut state = self.scenario.first();
        let records = state.present().records.clone();
        state.views = vec![self.view(records)];
        for slot in state.slots.iter_mut().flatten() {
            // As a new owner of what the records give it.
            let process = self.vessel.joined(&slot.process, &state.views[0]);
            let process = process.normal();
            slot.process = Arc::clone(
                self.processes
                    .entry(process.print)
                    .or_insert(Arc::new(process)),
            );
        }
        state
    }

    pub(super) fn set(&mut self, state: &mut State, n: usize, process: Process) {
        let process = self.process(process);
        if let Some(slot) = &mut state.slots[n] {
            slot.process = process;
        }
    }

    /// Everything that can happen next.
    pub(super) fn all(&mut self, state: &State) -> Vec<Next> {
        self.cut_short = false;
        let mut next = Vec::new();
        for n in 0..state.slots.len() {
            let Some(slot) = state.slots[n].clone() else {
                self.joins(state, n, &mut next);
                continue;
            };
            let begin = next.len();
            self.leases(state, n, &mut next);
            if slot.at + 1 < state.views.len() {
                self.sees(state, n, &mut next);
            }
            for (key, task) in &slot.process.tasks {
                self.goes_on(state, n, key, task, &mut next);
            }
            let view = Arc::clone(&state.views[slot.at]);
            let keys = self.scenario.keys(&view.cache());
            for key in keys {
                if !slot.process.tasks.contains_key(&key) {
                    self.looks(state, n, &key, &view, &mut next);
                }
            }
            self.dies(state, n, &mut next);
            for step in &mut next[begin..] {
                step.turn = step.turn.map(|_| n);
            }
        }
        self.befalls(state, &mut next);
        next
    }

    fn looks(
        &mut self,
        state: &State,
        n: usize,
        key: &ObjectKey,
        view: &View,
        next: &mut Vec<Next>,
    ) {
        let Some(slot) = &state.slots[n] else { return };
        let process = &slot.process;
        if let ObjectKey::Member(id) = key
            && *id != process.member
            && state.alive.contains(id)
        {
            return; // It would only be told for how long.
        }
        let (plan, mut looked) = self.vessel.look(process, view, key);
        let name = self.scenario.name(n);
        if let Some(draft) = plan.commit {
            let what = format!("{name} looks at {key} and commits");
            let sent = self.sent(process.member, key, view, draft);
            if self.is_one_too_many(&sent) {
                self.cut_short = true;
                return;
            }
            looked.tasks.insert(key.clone(), Task::Commit(sent));
            let mut after = state.clone();
            self.set(&mut after, n, looked);
            next.push(plain(what, after));
        } else if let Some(command) = plan.command {
            if matches!(command, Command::Inventory { .. }) {
                return;
            }
            self.commands(state, n, key, command, looked, next);
        } else if let ObjectKey::Node(node) = key
            && Vessel::is_news(process, node, &state.site)
        {
            // The time for the next look at it has come.
            let mut stale = (**process).clone();
            stale.world.nodes.entry(node.clone()).or_default().stale = true;
            let (plan, looked) = self.vessel.look(&stale, view, key);
            if let Some(command) = plan.command {
                self.commands(state, n, key, command, looked, next);
            }
        }
    }

    fn commands(
        &mut self,
        state: &State,
        n: usize,
        key: &ObjectKey,
        command: Command,
        mut looked: Process,
        next: &mut Vec<Next>,
    ) {
        let what = format!("{} begins {}", self.scenario.name(n), short(&command));
        let asks = self.vessel.carry_on(n, key, &command, &[]);
        let task = Task::Command {
            command,
            answers: Vec::new(),
            next: asks.ok(),
        };
        looked.tasks.insert(key.clone(), task);
        let mut after = state.clone();
        self.set(&mut after, n, looked);
        next.push(plain(what, after));
    }

    fn sent(&self, by: MemberId, key: &ObjectKey, view: &View, draft: Draft) -> Sent {
        let kept = |op: &Op| PREFIXES.iter().any(|p| op.key().as_str().starts_with(p));
        let is_taken = match key {
            ObjectKey::Node(_) | ObjectKey::Pool(_) => draft
                .ops
                .iter()
                .any(|op| op.key().kind() == "owner" && !is_fenced(op)),
            ObjectKey::Member(id) => *id == by,
            _ => false,
        };
        Sent {
            by,
            part: part_of(key, &view.cache()).filter(|_| !is_taken),
            requires: draft.requires,
            ops: draft.ops.into_iter().filter(kept).map(timeless).collect(),
        }
    }

    fn is_one_too_many(&self, sent: &Sent) -> bool {
        sent.ops.iter().any(|op| match op {
            Op::Put(key, value) if key.as_str().starts_with("claim/vm/") => {
                let claim: Claim = records::decode(key, value).expect("a claim");
                claim.epoch.0 > self.scenario.epochs
            }
            _ => false,
        })
    }

    fn goes_on(
        &mut self,
        state: &State,
        n: usize,
        key: &ObjectKey,
        task: &Task,
        next: &mut Vec<Next>,
    ) {
        match task {
            Task::Settling(_) => {}
            Task::Commit(sent) => self.commit_comes_in(state, n, key, sent, next),
            Task::Command {
                command,
                answers,
                next: None,
            } => self.learns(state, n, key, command, answers, next),
            Task::Command {
                next: Some(request),
                ..
            } => {
                self.answered(state, n, key, request, Fate::Done, next);
                if state.budget.failures > 0 {
                    self.answered(state, n, key, request, Fate::Failed, next);
                }
                if state.budget.lost > 0 && request.has_effect() {
                    self.answered(state, n, key, request, Fate::Lost, next);
                }
            }
        }
    }

    fn commit_comes_in(
        &mut self,
        state: &State,
        n: usize,
        key: &ObjectKey,
        sent: &Sent,
        next: &mut Vec<Next>,
    ) {
        let Some(slot) = &state.slots[n] else { return };
        let mut process = (*slot.process).clone();
        process.tasks.remove(key);
        let mut after = state.clone();
        let name = self.scenario.name(n);
        let verdict = state.admits(sent);
        let (what, broken) = match &verdict {
            Ok(()) => {
                let broken = self.apply(&mut after, sent);
                (
                    format!(
                        "{name}'s commit of {key} is applied: {}",
                        told_ops(&sent.ops)
                    ),
                    broken,
                )
            }
            Err(_) => (format!("{name}'s commit of {key} is refused"), None),
        };
        let applied = verdict.is_ok();
        let result = verdict.map(|()| Revision(1));
        let ended = Ended::Commit {
            key: key.clone(),
            result,
        };
        let view = Arc::clone(&state.views[slot.at]);
        let mut process = self.vessel.takes(&process, &view, key, ended);
        if applied {
            let behind = after.views.len() - 1 - slot.at;
            process.tasks.insert(key.clone(), Task::Settling(behind));
        }
        self.set(&mut after, n, process);
        next.push(Next {
            broken,
            ..plain(what, after)
        });
    }

    /// Applies it; the invariant that this breaks.
    pub(super) fn apply(&mut self, state: &mut State, sent: &Sent) -> Option<String> {
        let holds = match &sent.part {
            None => true,
            Some(Part::Leader) => state.leader.is_some_and(|(member, _)| member == sent.by),
            Some(part @ (Part::Node(_) | Part::Pool(_))) => {
                let present = state.present().cache();
                let owner = match part {
                    Part::Node(node) => present.node_owners.get(node).map(|o| o.member),
                    Part::Pool(pool) => present.pool_owners.get(pool).map(|o| o.member),
                    Part::Leader => None,
                };
                owner == Some(sent.by)
            }
        };
        let mut records = state.present().records.clone();
        for op in &sent.ops {
            match op {
                Op::Put(key, value) => {
                    let version = state.fresh_version(key);
                    records.insert(key.clone(), (version, value.clone()));
                }
                Op::Delete(key) => drop(records.remove(key)),
            }
        }
        let view = self.view(records);
        state.views.push(view);
        (!holds).then(|| {
            format!(
                "{} wrote as {:?}, which it is not any more",
                sent.by, sent.part
            )
        })
    }

    fn answered(
        &mut self,
        state: &State,
        n: usize,
        key: &ObjectKey,
        request: &Request,
        fate: Fate,
        next: &mut Vec<Next>,
    ) {
        let Some(slot) = &state.slots[n] else { return };
        let mut after = state.clone();
        let answer = match fate {
            Fate::Done => answer(&mut after, request, slot.process.member),
            Fate::Failed => {
                after.budget.failures -= 1;
                Answer::Failed(ErrorKind::Unavailable)
            }
            Fate::Lost => {
                after.budget.lost -= 1;
                after.site.lose(request, true);
                Answer::Failed(ErrorKind::OutcomeUnknown)
            }
        };
        let what = format!(
            "{}'s call {request:?}: {}",
            self.scenario.name(n),
            match &answer {
                Answer::Failed(kind) => format!("{kind:?}"),
                _ => "done".to_owned(),
            }
        );
        let mut process = (*slot.process).clone();
        if let Some(Task::Command {
            command,
            answers,
            next,
        }) = process.tasks.get_mut(key)
        {
            answers.push(answer);
            *next = self.vessel.carry_on(n, key, command, answers).ok();
        }
        self.set(&mut after, n, process);
        next.push(Next {
            turn: (fate == Fate::Done).then_some(n),
            ..plain(what, after)
        });
    }

    fn learns(
        &mut self,
        state: &State,
        n: usize,
        key: &ObjectKey,
        command: &Command,
        answers: &[Answer],
        next: &mut Vec<Next>,
    ) {
        let Some(slot) = &state.slots[n] else { return };
        let Err(completion) = self.vessel.carry_on(n, key, command, answers) else {
            return;
        };
        let what = format!(
            "{}'s {} ends: {}",
            self.scenario.name(n),
            short(command),
            told(&completion)
        );
        let mut process = (*slot.process).clone();
        process.tasks.remove(key);
        let view = Arc::clone(&state.views[slot.at]);
        let process = self
            .vessel
            .takes(&process, &view, key, Ended::Command(completion));
        let mut after = state.clone();
        self.set(&mut after, n, process);
        next.push(plain(what, after));
    }

    fn sees(&mut self, state: &State, n: usize, next: &mut Vec<Next>) {
        let Some(slot) = &state.slots[n] else { return };
        let (old, new) = (
            Arc::clone(&state.views[slot.at]),
            Arc::clone(&state.views[slot.at + 1]),
        );
        let mut process = self.vessel.sees(&slot.process, &old, &new);
        process.tasks.retain(|_, task| match task {
            Task::Settling(behind) => {
                *behind -= 1;
                *behind > 0
            }
            _ => true,
        });
        let mut after = state.clone();
        if let Some(slot) = &mut after.slots[n] {
            slot.at += 1;
        }
        self.set(&mut after, n, process);
        next.push(plain(
            format!("{} sees one more commit", self.scenario.name(n)),
            after,
        ));
    }
}

pub(super) fn plain(what: String, state: State) -> Next {
    Next {
        what,
        turn: Some(state.slots.len()),
        state,
        broken: None,
    }
}

pub(super) fn fault(what: String, state: State) -> Next {
    Next {
        turn: None,
        ..plain(what, state)
    }
}

/// What a call comes to in the state.
fn answer(state: &mut State, request: &Request, by: MemberId) -> Answer {
    match request {
        Request::Read(key) => {
            let record = state.present().records.get(key);
            Answer::Record(record.map(|(version, value)| (key.clone(), *version, value.clone())))
        }
        Request::Lease(name) => {
            let held = |m: &MemberId| *m != by && member_lease(*m) == *name;
            Answer::Lease(!state.alive.iter().any(held))
        }
        _ => state.site.carry_out(request),
    }
}

pub(super) fn put_member(id: MemberId, role: Role) -> Op {
    let member = Member {
        id,
        name: String::new(),
        version: String::new(),
        level: records::LEVEL,
        role,
        joined_at: NOW,
        clock_off_secs: None,
        endpoint: None,
        state: MemberState::Alive,
    };
    records::put(&id, &member).expect("a record")
}

fn is_fenced(op: &Op) -> bool {
    match op {
        Op::Put(key, value) if NodeOwner::parse(key).is_some() => {
            let owner: NodeOwner = records::decode(key, value).expect("an owner");
            owner.fencing.is_some()
        }
        _ => false,
    }
}

/// Every instant is the same one.
fn timeless(op: Op) -> Op {
    fn walk(value: &mut serde_json::Value) {
        use serde_json::Value;
        match value {
            Value::Number(n) if n.as_u64().is_some_and(|n| n > NOW.as_millis()) => {
                *value = NOW.as_millis().into();
            }
            Value::Array(list) => list.iter_mut().for_each(walk),
            Value::Object(map) => map.values_mut().for_each(walk),
            _ => {}
        }
    }
    match op {
        Op::Put(key, value) => {
            let mut json = serde_json::from_slice(&value).expect("JSON");
            walk(&mut json);
            Op::Put(key, serde_json::to_vec(&json).expect("JSON").into())
        }
        gone @ Op::Delete(_) => gone,
    }
}
