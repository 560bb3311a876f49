//! The exploration of the failover and run-epoch protocol: every order in which a few processes, a few hosts and what
//! goes wrong can act, up to a bound.
//!
//! ```text
//!   scenario ─► first state ─► search ── every step that is possible (steps) ──► states, each once (state)
//!                                │           │ a process's turn: the production's Runtime (vessel)
//!                                │           │ a command's calls: the production's execute (drivers)
//!                                │           └ what a call does: hosts and pool (site)
//!                                └─ in every state: the invariants; at the end: a way back to good from everywhere
//! ```
//! What processes do is the production's code; made up are the order of things, the hosts, and what goes wrong. The
//! simulation draws long stories at random; this takes short ones, and leaves none of them out.
//!
//! | invariant | |
//! |---|---|
//! | a VM runs on one host at most, and only an epoch that holds the claim runs | in every state: so a claim was released with a proof that was true, and stays true |
//! | only the epoch that holds a volume's claim writes it | in every state |
//! | what is written is written by who is the leader, or the owner, at that moment | at every commit that is applied |
//! | from every state, when nothing goes wrong any more, the VM runs, or is off, as it should, and nothing of it is left | by the usual order ([`search`]) |
//!
//! An ordinary run leaves the usual order as often as is explored in seconds; `NOVACRON_EXPLORE=n` does it n times
//! (`make explore`). A panic tells the shortest way to what is broken.
//!
//! Left out, to keep it finite: how long anything takes, other objects than one VM and its volume, ports, live changes of
//! devices, events of hypervisors (a host is looked at anew at any time that there is news instead), and a process that
//! reads everything anew.

mod drivers;
mod fate;
mod scenario;
mod search;
mod site;
mod state;
mod steps;
mod vessel;
mod words;

use scenario::{Ask, NOTHING, Scenario, SlotOf, node};
use search::explore;
use state::Budget;

use crate::model::Role;

fn slot(drives: &[&str], role: Role) -> SlotOf {
    SlotOf {
        drives: drives.iter().map(|name| node(name)).collect(),
        role,
    }
}

/// P0 looks after host a, P1 leads and looks after host b.
fn two_hosts(name: &'static str) -> Scenario {
    Scenario {
        name,
        nodes: vec![node("a"), node("b")],
        slots: vec![slot(&["a"], Role::Owner), slot(&["b"], Role::Both)],
        volume: false,
        epochs: 2,
        budget: NOTHING,
        requests: Vec::new(),
    }
}

fn check(delays: u8, scenario: Scenario) {
    let wanted = std::env::var("NOVACRON_EXPLORE").ok();
    let delays = wanted.map_or(delays, |n| n.parse().expect("how often"));
    let explored = explore(scenario, delays);
    println!("{explored}");
    assert!(explored.fault.is_none(), "{explored}");
}

/// The owner of a host loses its lease, or dies, whatever it is doing: the host is fenced, the VM started elsewhere.
#[test]
fn an_owner_is_lost() {
    let budget = Budget {
        leases: 1,
        crashes: 1,
        ..NOTHING
    };
    check(
        0,
        Scenario {
            budget,
            ..two_hosts("an owner is lost")
        },
    );
}

/// The same with a volume, which has to be let go of.
#[test]
fn an_owner_of_a_writer_is_lost() {
    let budget = Budget {
        leases: 1,
        ..NOTHING
    };
    check(
        1,
        Scenario {
            volume: true,
            budget,
            ..two_hosts("an owner of a writer is lost")
        },
    );
}

/// An owner is lost, and calls fail, or take effect late: of the fence too.
#[test]
fn a_fence_lies() {
    let budget = Budget {
        leases: 1,
        failures: 1,
        lost: 1,
        ..NOTHING
    };
    check(
        0,
        Scenario {
            budget,
            ..two_hosts("a fence lies")
        },
    );
}

/// Two processes drive host a: the second takes over from the first, and a user moves the VM to host b.
#[test]
fn a_remote_host_is_taken_over() {
    let budget = Budget {
        leases: 1,
        ..NOTHING
    };
    let slots = vec![slot(&["a"], Role::Owner), slot(&["a", "b"], Role::Both)];
    check(
        0,
        Scenario {
            slots,
            budget,
            requests: vec![Ask::Off, Ask::OnAt("b")],
            ..two_hosts("a remote host is taken over")
        },
    );
}

/// Two processes may lead; each looks after a host.
#[test]
fn two_lead() {
    let budget = Budget {
        leaders: 1,
        leases: 1,
        ..NOTHING
    };
    let slots = vec![slot(&["a"], Role::Both), slot(&["b"], Role::Both)];
    check(
        1,
        Scenario {
            slots,
            budget,
            ..two_hosts("two lead")
        },
    );
}

/// A host boots and a call is lost, whatever is under way; a user stops the VM.
#[test]
fn a_host_boots() {
    let budget = Budget {
        reboots: 1,
        lost: 1,
        ..NOTHING
    };
    check(
        0,
        Scenario {
            budget,
            requests: vec![Ask::Off],
            ..two_hosts("a host boots")
        },
    );
}

/// A guest ends by itself and its owner is lost, in whichever order.
#[test]
fn a_guest_ends() {
    let budget = Budget {
        leases: 1,
        exits: 1,
        ..NOTHING
    };
    check(
        0,
        Scenario {
            budget,
            ..two_hosts("a guest ends")
        },
    );
}

/// An owner is lost, and that alone: so that the usual order can be left more often.
#[test]
fn an_owner_is_slow() {
    let budget = Budget {
        leases: 1,
        ..NOTHING
    };
    check(
        1,
        Scenario {
            budget,
            ..two_hosts("an owner is slow")
        },
    );
}
