//! Breadth first through every state, so that the first trace to a broken invariant is a shortest one.

use std::collections::{HashMap, VecDeque};
use std::fmt;

use super::scenario::Scenario;
use super::state::State;
use super::steps::Stepper;
use crate::lifecycle::RunPhase;

/// What an exploration came to.
#[derive(Debug)]
pub(super) struct Explored {
    pub(super) name: &'static str,
    pub(super) states: usize,
    pub(super) steps: usize,
    /// The longest way to a state, in steps.
    pub(super) depth: u32,
    /// Whether that is every state there is.
    pub(super) complete: bool,
    pub(super) fault: Option<Fault>,
}

/// An invariant that is broken, and the way there.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) what: String,
    pub(super) trace: Vec<String>,
}

impl fmt::Display for Explored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let complete = if self.complete { "all" } else { "the first" };
        write!(
            f,
            "{}: {complete} {} states, {} steps between them, up to {} deep",
            self.name, self.states, self.steps, self.depth
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

/// How a state was come to: from which, by which of its steps.
#[derive(Clone, Copy)]
struct Way {
    from: u32,
    step: u16,
    depth: u16,
}

/// The invariant that does not hold in a state.
fn broken(state: &State) -> Option<String> {
    let running = state.running();
    for (i, (node, id)) in running.iter().enumerate() {
        if let Some((other, twin)) = running[i + 1..].iter().find(|(_, t)| t.vm == id.vm) {
            let (one, two) = (id.epoch, twin.epoch);
            return Some(format!("the VM runs twice: epoch {one} on {node}, epoch {two} on {other}"));
        }
        let present = state.present().cache();
        let claim = present.claims.get(&id.vm);
        let holds = claim.is_some_and(|c| {
            c.is_held() && c.epoch == id.epoch && c.place.node() == Some(node)
        });
        if !holds {
            return Some(format!("epoch {} runs on {node} without a claim", id.epoch));
        }
        let disks = &state.site.hosts[node].domains[id].disks;
        for volume in disks {
            let writer = present.volume_claims.get(volume);
            if writer.is_none_or(|w| w.epoch != id.epoch || w.orphaned) {
                return Some(format!("epoch {} writes a volume that is not its", id.epoch));
            }
        }
    }
    None
}

/// Whether everything is as it should be.
fn is_good(state: &State) -> bool {
    let running = state.running();
    if !state.wants_on() {
        return running.is_empty();
    }
    let present = state.present().cache();
    let [(node, id)] = &running[..] else {
        return false;
    };
    let run = present.runs.get(&(node.clone(), id.vm));
    run.is_some_and(|run| run.epoch == id.epoch && run.phase == RunPhase::Running)
}

/// Explores at most so many states.
pub(super) fn explore(scenario: Scenario, most: usize) -> Explored {
    let mut explored = Explored {
        name: scenario.name,
        states: 1,
        steps: 0,
        depth: 0,
        complete: true,
        fault: None,
    };
    let mut stepper = Stepper::new(scenario);
    let mut first = stepper.first();
    let mut known = HashMap::from([(first.normalise(), 0_u32)]);
    let mut ways = vec![Way {
        from: 0,
        step: 0,
        depth: 0,
    }];
    // Steps that nothing has to go wrong for, the other way round: to, from.
    let mut back: Vec<(u32, u32)> = Vec::new();
    let mut good: Vec<u32> = Vec::new();
    let mut open = VecDeque::from([(0_u32, first)]);
    while let Some((at, state)) = open.pop_front() {
        let depth = ways[at as usize].depth;
        explored.depth = u32::from(depth);
        let next = stepper.all(&state);
        if stepper.cut_short || is_good(&state) {
            good.push(at);
        }
        for (step, mut next) in next.into_iter().enumerate() {
            explored.steps += 1;
            let print = next.state.normalise();
            let fresh = u32::try_from(ways.len()).expect("so many states");
            let (to, is_new) = match known.get(&print) {
                Some(to) => (*to, false),
                None => (fresh, true),
            };
            if !next.is_fault {
                back.push((to, at));
            }
            let way = Way {
                from: at,
                step: u16::try_from(step).expect("so many steps"),
                depth: depth + 1,
            };
            let fault = next.broken.take().or_else(|| is_new.then(|| broken(&next.state))?);
            if let Some(what) = fault {
                let trace = trace(&mut stepper, &ways, way);
                explored.fault = Some(Fault { what, trace });
                return explored;
            }
            if !is_new {
                continue;
            }
            if ways.len() >= most {
                explored.complete = false;
                continue;
            }
            known.insert(print, to);
            ways.push(way);
            explored.states += 1;
            open.push_back((to, next.state));
        }
        if !explored.complete {
            // What is open yet is looked at no more.
            break;
        }
    }
    if explored.complete {
        explored.fault = dead_end(&mut stepper, &ways, &mut back, good);
    }
    explored
}

/// A state from which no way that nothing has to go wrong on leads to a good one.
fn dead_end(
    stepper: &mut Stepper,
    ways: &[Way],
    back: &mut [(u32, u32)],
    good: Vec<u32>,
) -> Option<Fault> {
    back.sort_unstable();
    let mut can = vec![false; ways.len()];
    let mut open = good;
    while let Some(at) = open.pop() {
        if std::mem::replace(&mut can[at as usize], true) {
            continue;
        }
        let begin = back.partition_point(|(to, _)| *to < at);
        let from = back[begin..].iter().take_while(|(to, _)| *to == at);
        open.extend(from.map(|(_, from)| *from));
    }
    let stuck = can.iter().position(|can| !can)?;
    let many = can.iter().filter(|can| !**can).count();
    let trace = trace(stepper, ways, ways[stuck]);
    let what = format!("{many} states from which the VM never comes right");
    Some(Fault { what, trace })
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
