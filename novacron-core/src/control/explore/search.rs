//! Breadth first through the states, so that the first trace to a broken invariant is a shortest one.
//!
//! All orders of all steps are too many: a failover takes some sixty of them. So there is a usual order, in which a
//! process goes on until it has nothing to do and then the next one has its turn, and the exploration takes every order
//! that leaves the usual one at most so many times: by a turn of somebody else, or by another step of the same one.
//! What goes wrong, and what users ask, does not count: it comes at every moment.
//!
//! The usual order is fair, and nothing goes wrong in it: from every state it must lead to one in which nobody has anything
//! to do and everything is as it should be.

use std::collections::{HashMap, VecDeque};
use std::fmt;

use super::scenario::Scenario;
use super::state::State;
use super::steps::{Next, Stepper};
use crate::lifecycle::RunPhase;

/// What an exploration came to.
#[derive(Debug)]
pub(super) struct Explored {
    pub(super) name: &'static str,
    pub(super) delays: u8,
    pub(super) states: usize,
    pub(super) steps: usize,
    /// The longest way to a state, in steps.
    pub(super) depth: u16,
    pub(super) fault: Option<Fault>,
}

/// A rule that is broken, and the way there.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) what: String,
    pub(super) trace: Vec<String>,
}

impl fmt::Display for Explored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {} times out of order: {} states, {} steps, up to {} deep",
            self.name, self.delays, self.states, self.steps, self.depth
        )?;
        let Some(fault) = &self.fault else {
            return Ok(());
        };
        write!(f, "\n  BROKEN: {}", fault.what)?;
        for (n, step) in fault.trace.iter().enumerate() {
            write!(f, "\n  {:>3}. {step}", n + 1)?;
        }
        Ok(())
    }
}

/// How a state was come to.
#[derive(Clone, Copy)]
struct Way {
    from: u32,
    /// Which of that one's steps it was.
    step: u16,
    depth: u16,
    /// The state after it in the usual order.
    usual: u32,
}

const NONE: u32 = u32::MAX;

/// A state to go on from.
struct Open {
    at: u32,
    state: State,
    /// Whose turn it is.
    turn: usize,
    /// How often the usual order may still be left.
    delays: u8,
}

/// The invariant that does not hold in a state.
fn broken(state: &State) -> Option<String> {
    let running = state.running();
    for (i, (node, id)) in running.iter().enumerate() {
        if let Some((other, twin)) = running[i + 1..].iter().find(|(_, t)| t.vm == id.vm) {
            let (one, two) = (id.epoch, twin.epoch);
            return Some(format!(
                "the VM runs twice: epoch {one} on {node}, epoch {two} on {other}"
            ));
        }
        let present = state.present().cache();
        let claim = present.claims.get(&id.vm);
        let holds = claim
            .is_some_and(|c| c.is_held() && c.epoch == id.epoch && c.place.node() == Some(node));
        if !holds {
            return Some(format!("epoch {} runs on {node} without a claim", id.epoch));
        }
        for volume in &state.site.hosts[node].domains[id].disks {
            let writer = present.volume_claims.get(volume);
            if writer.is_none_or(|w| w.epoch != id.epoch || w.orphaned) {
                return Some(format!(
                    "epoch {} writes a volume that is not its",
                    id.epoch
                ));
            }
        }
    }
    None
}

/// Why not everything is as it should be.
fn amiss(state: &State) -> Option<&'static str> {
    let domains = state.site.hosts.values().map(|h| h.domains.len()).sum();
    let running = state.running();
    let present = state.present().cache();
    match (state.wants_on(), &running[..], domains) {
        (false, [], 0) => None,
        (false, [], _) | (true, [_], 2..) => Some("something is left"),
        (false, ..) => Some("the VM should be off"),
        (true, [(node, id)], _) => {
            let run = present.runs.get(&(node.clone(), id.vm));
            let known = run.is_some_and(|r| r.epoch == id.epoch && r.phase == RunPhase::Running);
            (!known).then_some("nobody knows that the VM runs")
        }
        (true, ..) => Some("the VM should run"),
    }
}

/// The step of the usual order: the first one of whose turn it is, or of the next who has one.
fn usual(next: &[Next], turn: usize, turns: usize) -> Option<usize> {
    let of = |who: usize| next.iter().position(|n| n.turn == Some(who));
    (0..turns).find_map(|n| of((turn + n) % turns))
}

/// Explores every order that leaves the usual one at most so many times.
pub(super) fn explore(scenario: Scenario, delays: u8) -> Explored {
    let mut explored = Explored {
        name: scenario.name,
        delays,
        states: 1,
        steps: 0,
        depth: 0,
        fault: None,
    };
    let turns = scenario.slots.len() + 1;
    let mut stepper = Stepper::new(scenario);
    let mut first = stepper.first();
    // The states, with whose turn it is, and how often the order may be left from there on.
    let mut known = HashMap::from([((first.normalise(), 0), (0_u32, delays))]);
    let mut ways = vec![Way {
        from: 0,
        step: 0,
        depth: 0,
        usual: NONE,
    }];
    let mut open = VecDeque::from([Open {
        at: 0,
        state: first,
        turn: 0,
        delays,
    }]);
    while let Some(Open {
        at,
        state,
        turn,
        delays,
    }) = open.pop_front()
    {
        let depth = ways[at as usize].depth;
        explored.depth = explored.depth.max(depth);
        let next = stepper.all(&state);
        let usual = usual(&next, turn, turns);
        let amiss = amiss(&state).filter(|_| usual.is_none() && !stepper.cut_short);
        if let Some(what) = amiss {
            let what = format!("nobody has anything to do, and {what}");
            let trace = trace(&mut stepper, &ways, ways[at as usize]);
            explored.fault = Some(Fault { what, trace });
            return explored;
        }
        for (step, mut next) in next.into_iter().enumerate() {
            let is_usual = usual == Some(step);
            let left = match next.turn {
                Some(_) if !is_usual => delays.checked_sub(1),
                _ => Some(delays),
            };
            let Some(left) = left else { continue };
            explored.steps += 1;
            let print = (next.state.normalise(), next.turn.unwrap_or(turn));
            let fresh = u32::try_from(ways.len()).expect("so many states");
            let way = Way {
                from: at,
                step: u16::try_from(step).expect("so many steps"),
                depth: depth + 1,
                usual: NONE,
            };
            let before = known.get(&print).copied();
            let fault = next.broken.take();
            let fault = fault.or_else(|| before.is_none().then(|| broken(&next.state))?);
            if let Some(what) = fault {
                let trace = trace(&mut stepper, &ways, way);
                explored.fault = Some(Fault { what, trace });
                return explored;
            }
            let to = before.map_or(fresh, |(to, _)| to);
            if before.is_none() {
                ways.push(way);
                explored.states += 1;
            }
            if is_usual {
                ways[at as usize].usual = to;
            }
            if before.is_some_and(|(_, had)| had >= left) {
                continue;
            }
            known.insert(print, (to, left));
            open.push_back(Open {
                at: to,
                state: next.state,
                turn: print.1,
                delays: left,
            });
        }
    }
    if let Some(at) = round_and_round(&ways) {
        let what = "from here on the usual order goes round and round".to_owned();
        let trace = trace(&mut stepper, &ways, ways[at]);
        explored.fault = Some(Fault { what, trace });
    }
    explored
}

/// A state from which the usual order never comes to an end.
fn round_and_round(ways: &[Way]) -> Option<usize> {
    let mut ends = vec![false; ways.len()];
    for begin in 0..ways.len() {
        let (mut at, mut path) = (begin, Vec::new());
        while !ends[at] {
            path.push(at);
            if path.len() > ways.len() {
                return Some(begin);
            }
            match ways[at].usual {
                NONE => break,
                next => at = next as usize,
            }
        }
        for at in path {
            ends[at] = true;
        }
    }
    None
}

/// The steps to the end of the way, told.
fn trace(stepper: &mut Stepper, ways: &[Way], end: Way) -> Vec<String> {
    let mut steps = Vec::new();
    let mut way = end;
    while way.depth > 0 {
        steps.push(way.step);
        way = ways[way.from as usize];
    }
    let mut state = stepper.first();
    state.normalise();
    let mut told = Vec::new();
    for step in steps.into_iter().rev() {
        let next = stepper.all(&state);
        let Some(next) = next.into_iter().nth(usize::from(step)) else {
            break;
        };
        told.push(next.what);
        state = next.state;
        state.normalise();
    }
    told
}
