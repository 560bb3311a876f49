//! The control loop: makes the world follow the records, and the records tell the world.
//!
//! ```text
//!   Store ──watch──► Cache ──┐
//!                            ├─ Snapshot ─► reconcile(key) ─► Plan { commit?, command?, wake? }
//!   drivers ─seen──► World ──┘                                   │          │
//!      ▲                                                         ▼          ▼
//!      └────────────────────── Executor ◄──────── command      Store      timer
//! ```
//! Which process holds which role: [`session`] and [`part`].
//!
//! One task ([`runtime`], its intake in [`changes`] and [`ended`]) owns queue, cache and world; a reconciler is a pure
//! function of them, one object at a time. A plan either commits or commands, so that a command is only ever issued for
//! what a committed record already says (**name, then make**). While a commit or a command of an object is under way,
//! the object is busy and is looked at again afterwards. [`executor`] owns the commands' tasks; one that passes its
//! deadline is dropped, its outcome is unknown, and the node is observed again before anything else happens to the
//! object.
//!
//! | reconciler | role | makes true |
//! |---|---|---|
//! | [`vm`] | leader | every VM that should be on has a place, a claim and an assignment; none has two |
//! | [`evacuate`] | leader | a VM that is to leave its node has room elsewhere, then goes there |
//! | [`run`] | owner | the domain follows the assignment; the run tells what is |
//! | [`port`] | owner | every port of a start is bound on its node before the domain is made, and released after it |
//! | [`storage`], [`snapshot`] | pool owner | volumes, images and snapshots exist as they should |
//! | [`network`] | leader | a network that is marked deleted goes when no port is on it |
//! | [`node`] | owner | the host is observed, strays are swept or reported |
//! | [`pool`] | pool owner | the same of a pool |
//! | [`operation`] | leader | every operation ends |
//! | [`member`] | leader | a process whose lease ran out is known to be lost |
//! | [`failover`] | leader | of a node that nobody looks after it is said what is known, and it is fenced where that helps |
//! | [`ownership`] | every process | what nobody looks after, and it can, it takes |
//! | [`reasons`] | every process | the others know why what it looks after does not get on |
//! | [`retention`] | leader | what has ended is forgotten after a while |
//! | [`action`] | owner | every verb is carried out at most once |

pub(crate) mod action;
pub(crate) mod cache;
mod changes;
pub(crate) mod clock;
pub(crate) mod commit;
mod ended;
pub(crate) mod evacuate;
pub(crate) mod executor;
#[cfg(test)]
mod explore;
mod failover;
pub(crate) mod index;
pub(crate) mod member;
mod network;
pub(crate) mod node;
pub(crate) mod operation;
pub(crate) mod owned;
pub(crate) mod ownership;
mod panics;
pub(crate) mod part;
pub(crate) mod placing;
pub(crate) mod plan;
mod pool;
pub(crate) mod port;
pub(crate) mod queue;
pub(crate) mod reasons;
pub(crate) mod resolve;
pub(crate) mod retention;
pub(crate) mod run;
pub(crate) mod runtime;
pub(crate) mod session;
mod snapshot;
pub(crate) mod start;
pub(crate) mod storage;
pub(crate) mod vm;
pub(crate) mod waiters;
mod wake;
pub(crate) mod watchdog;
pub(crate) mod world;
