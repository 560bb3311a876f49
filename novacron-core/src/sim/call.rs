//! How a driver's call reaches the world.
//!
//! ```text
//!   call ── its process's line is held (SimLine): it waits; its answer does too
//!     ├──── deadline passed ──────────► DeadlineExceeded, nothing sent
//!     ├──── place does not answer ────► Unavailable, nothing sent
//!     ├──── no fate, no latency ──────► effect and answer, here and now
//!     └──── a task of the world's ─┬──► effect, then the answer, before the deadline
//!                                  ├──► OutcomeUnknown at the deadline, the effect later (State::late)
//!                                  └──► no answer until the world is healed
//! ```
//! The task holds no part of the caller: a dropped future, or a crash of the simulated process, changes nothing.

use std::time::Duration;

use rand::Rng;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::faults::{Fate, duration};
use super::state::{Late, Place, State};
use super::world::SimWorld;
use crate::driver::{Call, DomainId};
use crate::error::{Error, ErrorKind, Result};

/// A call under way.
struct Order {
    op: &'static str,
    place: Place,
    domain: Option<DomainId>,
    /// The host's boots when it was sent; one that has booted since carries nothing out.
    boots: u64,
    deadline: Instant,
    /// When it takes effect, if nothing befalls it.
    due: Instant,
    fate: Fate,
}

/// What became of a call when it came in.
enum Taken<T, F> {
    Done(T),
    Sent(Order, F),
}

impl SimWorld {
    /// Carries out a call of a driver.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        op: &'static str,
        place: Place,
        domain: Option<DomainId>,
        call: Call,
        effect: impl FnOnce(&mut State) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.line_is_free().await;
        let result = self.send(op, place, domain, call, effect).await;
        self.line_is_free().await;
        result
    }

    async fn send<T: Send + 'static>(
        &self,
        op: &'static str,
        place: Place,
        domain: Option<DomainId>,
        call: Call,
        effect: impl FnOnce(&mut State) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let now = Instant::now();
        let deadline = call.deadline.instant();
        if deadline <= now {
            let message = "the deadline passed before the call was sent";
            return Err(Error::new(ErrorKind::DeadlineExceeded, op, message));
        }
        let taken = self.act(|state| {
            let boots = state.reach(op, &place)?;
            let fate = state.plan.fate(op, &mut state.rng);
            let latency = duration(&mut state.rng, &state.latency.call);
            if fate == Fate::Plain && latency.is_zero() {
                return effect(state).map(Taken::Done);
            }
            state.under_way += 1;
            let due = now + latency;
            let order = Order {
                op,
                place,
                domain,
                boots,
                deadline,
                due,
                fate,
            };
            Ok(Taken::Sent(order, effect))
        })?;
        let (order, effect) = match taken {
            Taken::Done(result) => return Ok(result),
            Taken::Sent(order, effect) => (order, effect),
        };
        let (answer, receiver) = oneshot::channel();
        tokio::spawn(self.clone().carry_out(order, effect, answer));
        receiver.await.unwrap_or_else(|_| {
            let message = "the world ended before the call did";
            Err(Error::new(ErrorKind::Internal, op, message))
        })
    }

    async fn carry_out<T: Send + 'static>(
        self,
        order: Order,
        effect: impl FnOnce(&mut State) -> Result<T> + Send + 'static,
        answer: oneshot::Sender<Result<T>>,
    ) {
        match order.fate {
            Fate::Hang(delay) => self.hang(&order, delay, effect, answer).await,
            Fate::LieLate(by) => {
                let due = order.deadline + by;
                self.late(order, due, effect, answer).await;
            }
            _ if order.due >= order.deadline => {
                let due = order.due;
                self.late(order, due, effect, answer).await;
            }
            _ => {
                until(order.due).await;
                let result = self.act(|state| {
                    state.orphan = answer.is_closed();
                    match order.fate {
                        Fate::Fail => Err(order.failed(state, false)),
                        Fate::FailAfterEffect => {
                            order.perform(state, effect)?;
                            Err(order.failed(state, true))
                        }
                        _ => order.perform(state, effect),
                    }
                });
                drop(answer.send(result));
            }
        }
        self.lock().under_way -= 1;
    }

    /// Answers at the deadline that the outcome is unknown; the effect comes later.
    async fn late<T: Send + 'static>(
        &self,
        order: Order,
        due: Instant,
        effect: impl FnOnce(&mut State) -> Result<T> + Send + 'static,
        answer: oneshot::Sender<Result<T>>,
    ) {
        until(order.deadline).await;
        let message = "no answer within the deadline";
        let told = answer
            .send(Err(order.error(ErrorKind::OutcomeUnknown, message)))
            .is_ok();
        if order.fate == Fate::Fail {
            return;
        }
        let (place, domain) = (order.place.clone(), order.domain);
        let deed = Box::new(move |state: &mut State| {
            state.orphan = true;
            drop(order.perform(state, effect));
        });
        if told {
            // The call has ended, so that a list settles it.
            let serial = {
                let mut state = self.lock();
                let serial = state.next_serial();
                let late = Late {
                    place,
                    domain,
                    deed,
                };
                state.late.insert(serial, late);
                serial
            };
            until(due).await;
            self.act(|state| {
                if let Some(late) = state.late.remove(&serial) {
                    (late.deed)(state);
                }
            });
        } else {
            until(due).await;
            self.act(deed);
        }
    }

    /// Answers when the world is healed; the effect comes after `delay`, or never.
    async fn hang<T: Send + 'static>(
        &self,
        order: &Order,
        delay: Option<Duration>,
        effect: impl FnOnce(&mut State) -> Result<T> + Send + 'static,
        answer: oneshot::Sender<Result<T>>,
    ) {
        let healed = self.healed();
        let result = match delay {
            Some(delay) => {
                until(order.due + delay).await;
                self.act(|state| {
                    state.orphan = answer.is_closed();
                    order.perform(state, effect)
                })
            }
            None => Err(order.error(ErrorKind::OutcomeUnknown, "the connection was lost")),
        };
        healed.await;
        drop(answer.send(result));
    }
}

impl Order {
    /// The effect, unless the host has booted since; the answer, unless nobody can give it.
    fn perform<T>(
        &self,
        state: &mut State,
        effect: impl FnOnce(&mut State) -> Result<T>,
    ) -> Result<T> {
        if state.boots(&self.place) != self.boots {
            return Err(self.error(ErrorKind::OutcomeUnknown, "the host has booted anew"));
        }
        let result = effect(state);
        state.orphan = false;
        if state.reach(self.op, &self.place).is_err() {
            return Err(self.error(ErrorKind::OutcomeUnknown, "the connection was lost"));
        }
        result
    }

    fn error(&self, kind: ErrorKind, message: &'static str) -> Error {
        let error = Error::new(kind, self.op, message);
        match self.domain {
            Some(id) => error.with("domain", id),
            None => error,
        }
    }

    /// An injected failure.
    fn failed(&self, state: &mut State, done: bool) -> Error {
        state.note(|| format!("{} {:?} fails, done: {done}", self.op, self.domain));
        let kind = match state.rng.random_range(0..if done { 3 } else { 2 }) {
            0 => ErrorKind::Unavailable,
            1 => ErrorKind::Internal,
            _ => ErrorKind::OutcomeUnknown,
        };
        self.error(kind, "injected failure")
    }
}

impl State {
    /// The boots of the host, if the place answers.
    fn reach(&self, op: &'static str, place: &Place) -> Result<u64> {
        let out = match place {
            Place::Host(host) => self.hosts.get(host).map(|h| h.outage),
            Place::Power(host) => self.hosts.get(host).map(|_| None),
            Place::Pool(pool) => self.pools.get(pool).map(|p| p.outage),
        };
        match out {
            Some(None) => Ok(self.boots(place)),
            Some(Some(_)) => Err(Error::new(ErrorKind::Unavailable, op, "no answer")),
            None => Err(Error::new(
                ErrorKind::Unavailable,
                op,
                format!("{place:?} is not in this world"),
            )),
        }
    }

    fn boots(&self, place: &Place) -> u64 {
        match place {
            Place::Host(host) => self.hosts.get(host).map_or(0, |h| h.boots),
            Place::Pool(_) | Place::Power(_) => 0,
        }
    }
}

/// Waits; the world's own time.
pub(super) async fn until(instant: Instant) {
    tokio::time::sleep_until(instant).await;
}
