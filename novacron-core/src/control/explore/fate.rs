//! What befalls processes and hosts, and what users ask: the steps that are nobody's turn, and what time brings.

use std::sync::Arc;

use super::state::{Process, Sent, Slot, State, Task};
use super::steps::{Next, Stepper, fault, plain, put_member};
use super::words::told_ops;
use crate::driver::DomainState;
use crate::model::{Exit, MemberId};

impl Stepper {
    pub(super) fn leases(&mut self, state: &State, n: usize, next: &mut Vec<Next>) {
        let Some(slot) = &state.slots[n] else { return };
        let (member, name) = (slot.process.member, self.scenario.name(n));
        if !state.alive.contains(&member) {
            let mut after = state.clone();
            after.alive.insert(member);
            next.push(plain(format!("{name} has its lease again"), after));
        } else if state.budget.leases > 0 {
            let mut after = state.clone();
            after.budget.leases -= 1;
            after.alive.remove(&member);
            next.push(fault(
                format!("{name}'s lease runs out: it is cut off, or slow"),
                after,
            ));
        }
        if let Some(token) = slot.process.leads
            && state.leader != Some((member, token))
        {
            let mut after = state.clone();
            let mut process = (*slot.process).clone();
            process.leads = None;
            self.set(&mut after, n, process);
            next.push(plain(
                format!("{name} learns that it does not lead any more"),
                after,
            ));
        }
        match state.leader {
            None if self.scenario.leads(n) => {
                let mut after = state.clone();
                let token = state.fresh_token();
                after.leader = Some((member, token));
                let mut process = (*slot.process).clone();
                process.leads = Some(token);
                self.set(&mut after, n, process);
                next.push(plain(
                    format!("{name} is granted the leader's lease"),
                    after,
                ));
            }
            Some((leader, _)) if leader == member && state.budget.leaders > 0 => {
                let mut after = state.clone();
                after.budget.leaders -= 1;
                after.leader = None;
                next.push(fault(
                    format!("{name}'s lease as the leader runs out"),
                    after,
                ));
            }
            _ => {}
        }
    }

    pub(super) fn dies(&mut self, state: &State, n: usize, next: &mut Vec<Next>) {
        let Some(slot) = &state.slots[n] else { return };
        if state.budget.crashes == 0 {
            return;
        }
        let mut after = state.clone();
        after.budget.crashes -= 1;
        for task in slot.process.tasks.values() {
            match task {
                Task::Commit(sent) => after.orphans.push(sent.clone()),
                Task::Command {
                    next: Some(request),
                    ..
                } => after.site.lose(request, false),
                _ => {}
            }
        }
        after.slots[n] = None;
        next.push(fault(format!("{} dies", self.scenario.name(n)), after));
    }

    /// A new process in place of one that died.
    pub(super) fn joins(&mut self, state: &State, n: usize, next: &mut Vec<Next>) {
        let mut after = state.clone();
        after.members += 1;
        let member = MemberId(after.members);
        let sent = Sent {
            by: member,
            part: None,
            requires: Vec::new(),
            ops: vec![put_member(member, self.scenario.role(n))],
        };
        self.apply(&mut after, &sent);
        after.alive.insert(member);
        let view = Arc::clone(after.present());
        let process = self.vessel.joined(&Process::new(n, member), &view);
        let process = self.process(process);
        let at = after.views.len() - 1;
        after.slots[n] = Some(Slot { process, at });
        next.push(plain(
            format!("{} is started again, as {member}", self.scenario.name(n)),
            after,
        ));
    }

    /// What happens outside of the processes.
    pub(super) fn befalls(&mut self, state: &State, next: &mut Vec<Next>) {
        let living = |member| {
            state
                .slots
                .iter()
                .flatten()
                .any(|s| s.process.member == member)
        };
        for member in &state.alive {
            if !living(*member) {
                let mut after = state.clone();
                after.alive.remove(member);
                next.push(plain(
                    format!("the lease of {member}, which is dead, runs out"),
                    after,
                ));
            }
        }
        if let Some((leader, _)) = state.leader.filter(|(leader, _)| !living(*leader)) {
            let mut after = state.clone();
            after.leader = None;
            next.push(plain(
                format!("the leader's lease of {leader}, which is dead, runs out"),
                after,
            ));
        }
        for late in &state.site.late {
            let mut after = state.clone();
            after.site.carry_out_late(late);
            next.push(plain(format!("late: {:?}", late.request), after));
        }
        for (i, sent) in state.orphans.iter().enumerate() {
            if state.admits(sent).is_ok() {
                let mut after = state.clone();
                after.orphans.remove(i);
                let broken = self.apply(&mut after, sent);
                next.push(Next {
                    broken,
                    ..plain(
                        format!("late: a dead process's commit: {}", told_ops(&sent.ops)),
                        after,
                    )
                });
            }
        }
        if state.budget.reboots > 0 {
            for node in state.site.hosts.keys() {
                let mut after = state.clone();
                after.budget.reboots -= 1;
                after.site.reboot(node);
                next.push(fault(format!("host {node} boots"), after));
            }
        }
        if state.budget.exits > 0 {
            for (node, id) in state.running() {
                let mut after = state.clone();
                after.budget.exits -= 1;
                let host = after.site.hosts.get_mut(&node);
                if let Some(domain) = host.and_then(|h| h.domains.get_mut(&id)) {
                    domain.state = DomainState::Ended(Exit::Panicked);
                }
                next.push(fault(
                    format!("the guest {} on {node} ends", id.epoch),
                    after,
                ));
            }
        }
        if let Some(request) = self
            .scenario
            .requests
            .get(usize::from(state.budget.requests))
        {
            let mut after = state.clone();
            after.budget.requests += 1;
            let request = *request;
            let ops = self.scenario.asked(request, &state.present().cache());
            let sent = Sent {
                by: MemberId(0),
                part: None,
                requires: Vec::new(),
                ops,
            };
            self.apply(&mut after, &sent);
            next.push(fault(format!("a user: {request:?}"), after));
        }
    }
}
