//! A call on a thread that may block, and how it looks at a domain.
//!
//! A look reads the notes, then which starts are under way, then the state: a start that comes in between shows as a domain
//! that was never started, or as one that runs, and never as one that has ended.

use std::collections::HashSet;
use std::sync::Arc;

use novacron_core::driver::{Call, Domain, DomainId, DomainOwner, DomainState};
use novacron_core::model::Exit;
use novacron_core::{Error, ErrorKind, Result};
use uuid::Uuid;

use super::describe::uuid_of;
use super::ends;
use super::error::{self, remaining};
use super::link::Live;
use super::notes::{Ended, IDENTITY, Note, Started};
use super::pool::Effect;
use super::state::{State, lock};
use super::sys::{self, Conn, Dom, LvError, LvResult, code};
use super::xml::DomainXml;

/// A call on a thread that may block.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) state: Arc<State>,
    pub(super) live: Arc<Live>,
    pub(super) conn: Conn,
    pub(super) call: Call,
    pub(super) operation: &'static str,
    pub(super) effect: Effect,
}

/// Said of a domain that libvirt is creating.
const STARTING_UP: &str = "libvirt has not finished its start; if that lasts, a libvirtd died over it: end libvirtd, \
    remove its status file of the domain (/run/libvirt/qemu/NAME.xml), and start it again";

/// A domain of NovaCron's.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) dom: Dom,
    pub(super) id: DomainId,
    /// As it is defined.
    pub(super) defined: DomainXml,
}

/// What a look at a domain shows.
#[derive(Debug)]
pub(super) enum Seen {
    /// It was never started.
    Defined,
    /// It is in memory.
    Live(DomainState),
    /// It has ended.
    Ended(Exit),
    /// That cannot be told.
    Unknown(String),
}

impl Task {
    /// Fails when the deadline has passed: nothing more is begun.
    pub(super) fn in_time(&self) -> Result<()> {
        remaining(self.call, self.operation).map(drop)
    }

    /// libvirt's answer, as the one error.
    pub(super) fn ok<T>(&self, answer: LvResult<T>) -> Result<T> {
        answer.map_err(|error| self.error(&error))
    }

    pub(super) fn error(&self, error: &LvError) -> Error {
        error::libvirt(self.operation, error, self.effect, self.is_lost())
    }

    /// Whether the call's connection is over, or the hypervisor's.
    pub(super) fn is_lost(&self) -> bool {
        !self.conn.is_alive() || self.live.is_lost()
    }

    /// Writes into a definition.
    pub(super) fn note<N: Note>(&self, dom: &Dom, note: &N) -> Result<()> {
        let element = quick_xml::se::to_string(note).map_err(|error| {
            let message = "a note cannot be written as XML";
            Error::new(ErrorKind::Internal, self.operation, message).caused_by(error)
        })?;
        let key = format!("novacron-{}", N::KEY);
        self.ok(dom.note(&element, &key, &N::namespace()))
    }

    /// Whose a domain is, if it is one of NovaCron's: from memory, or asked.
    pub(super) fn known(&self, uuid: Uuid) -> Option<DomainId> {
        if let Some(id) = lock(&self.state.known).get(&uuid) {
            return Some(*id);
        }
        let dom = self.conn.lookup(uuid).ok()??;
        Some(self.found(dom).ok()??.id)
    }

    /// A domain, if it is one of NovaCron's. One that goes while it is looked at is none.
    pub(super) fn found(&self, dom: Dom) -> Result<Option<Found>> {
        let text = match dom.xml(true) {
            Err(error) if error.is(code::VIR_ERR_NO_DOMAIN) => return Ok(None),
            text => self.ok(text)?,
        };
        let defined = match DomainXml::of_text(&text) {
            Ok(defined) => defined,
            Err(_) if !text.contains(IDENTITY) => return Ok(None),
            Err(error) => return Err(self.senseless(error)),
        };
        let Some(identity) = &defined.metadata.domain else {
            return Ok(None);
        };
        let id = identity.id();
        if defined.uuid != Some(uuid_of(id)) {
            return Ok(None);
        }
        lock(&self.state.known).insert(uuid_of(id), id);
        Ok(Some(Found { dom, id, defined }))
    }

    /// The domain of this name, if it is defined.
    pub(super) fn find(&self, id: DomainId) -> Result<Option<Found>> {
        match self.ok(self.conn.lookup(uuid_of(id)))? {
            Some(dom) => match self.found(dom)? {
                // It is there, so it is not to be taken for one that is gone.
                None if self.ok(self.conn.lookup(uuid_of(id)))?.is_some() => {
                    let message = "the domain has lost what NovaCron wrote into its metadata";
                    let error = Error::new(ErrorKind::Corrupt, self.operation, message);
                    Err(error.with("domain", id))
                }
                found => Ok(found),
            },
            None => Ok(None),
        }
    }

    /// Finds a domain and looks at it.
    pub(super) fn look(&self, id: DomainId) -> Result<Option<(Found, Seen)>> {
        let Some(found) = self.find(id)? else {
            self.state.console_ended(id);
            return Ok(None);
        };
        let starting = self.state.starting();
        let state = self.ok(found.dom.state())?;
        let seen = self.seen(&found, &starting, state)?;
        Ok(Some((found, seen)))
    }

    /// A domain's state, unless it went while we looked.
    pub(super) fn state_of(&self, dom: &Dom) -> Result<Option<sys::State>> {
        match dom.state() {
            Err(error) if error.is(code::VIR_ERR_NO_DOMAIN) => Ok(None),
            state => self.ok(state).map(Some),
        }
    }

    /// What a domain's notes, the starts under way, and its state come to, read in this order. Its end is finished if its
    /// guest has ended.
    pub(super) fn seen(
        &self,
        found: &Found,
        starting: &HashSet<DomainId>,
        state: sys::State,
    ) -> Result<Seen> {
        let seen = self.seen_at(found, starting, state)?;
        if let Seen::Ended(_) = seen {
            self.state.console_ended(found.id);
        }
        Ok(seen)
    }

    fn seen_at(
        &self,
        found: &Found,
        starting: &HashSet<DomainId>,
        state: sys::State,
    ) -> Result<Seen> {
        let notes = &found.defined.metadata;
        let ended = notes.ended.as_ref().map(Ended::exit);
        match (state.state, ended) {
            (code::VIR_DOMAIN_SHUTOFF, Some(exit)) => Ok(Seen::Ended(exit)),
            (code::VIR_DOMAIN_SHUTOFF, None) => {
                if notes.started.is_none() && notes.asked.is_none() {
                    return Ok(Seen::Defined);
                }
                if starting.contains(&found.id) {
                    return Ok(Seen::Unknown("it is being started".to_owned()));
                }
                let terminated = lock(&self.state.terminated).contains(&uuid_of(found.id));
                let asked = notes.asked.as_ref().map(|asked| asked.how);
                let exit = if notes.started.is_none() {
                    Exit::Requested
                } else {
                    ends::exit(asked, state.reason, terminated)
                };
                self.note(&found.dom, &Ended::of(&exit))?;
                Ok(Seen::Ended(exit))
            }
            (code::VIR_DOMAIN_CRASHED, _) => {
                // Its QEMU is kept, so that the reason is not lost: noted first, then ended.
                let exit = ends::crash(state.reason);
                self.note(&found.dom, &Ended::of(&exit))?;
                Ok(self.end(found, exit))
            }
            // It ended, and what holds it is a start that came too late: its vCPUs never ran.
            (code::VIR_DOMAIN_PAUSED, Some(exit)) => Ok(self.end(found, exit)),
            // It is being created; or a libvirtd died over that. Of a create that had no QEMU yet, libvirt 9.0 then never
            // finds out, nor does it end it.
            (code::VIR_DOMAIN_PAUSED, None)
                if state.reason == code::VIR_DOMAIN_PAUSED_STARTING_UP =>
            {
                Ok(Seen::Unknown(STARTING_UP.to_owned()))
            }
            (_, Some(_)) => Ok(Seen::Unknown(
                "it has ended, and somebody else started it again".to_owned(),
            )),
            (state, None) => {
                if notes.started.is_none() {
                    // Somebody else started it: that counts.
                    self.note(&found.dom, &Started {})?;
                }
                Ok(match state {
                    code::VIR_DOMAIN_PAUSED | code::VIR_DOMAIN_PMSUSPENDED => {
                        Seen::Live(DomainState::Paused)
                    }
                    code::VIR_DOMAIN_NOSTATE => {
                        Seen::Unknown("libvirt does not tell its state".to_owned())
                    }
                    _ => Seen::Live(DomainState::Running),
                })
            }
        }
    }

    /// Ends a domain whose end is noted.
    fn end(&self, found: &Found, exit: Exit) -> Seen {
        match found.dom.destroy() {
            Err(error) if !error.is(code::VIR_ERR_OPERATION_INVALID) => {
                Seen::Unknown(format!("its process cannot be ended: {error}"))
            }
            _ => Seen::Ended(exit),
        }
    }

    /// A domain that must have been started.
    pub(super) fn started(&self, id: DomainId) -> Result<(Found, DomainState)> {
        match self.look(id)? {
            None => Err(error::not_found(self.operation, id)),
            Some((found, seen)) => self.live(id, seen).map(|state| (found, state)),
        }
    }

    /// The state of a domain that must be live.
    pub(super) fn live(&self, id: DomainId, seen: Seen) -> Result<DomainState> {
        let precondition = |message: String| error::precondition(self.operation, id, message);
        match seen {
            Seen::Live(state) => Ok(state),
            Seen::Defined => Err(precondition("the domain has not been started".to_owned())),
            Seen::Ended(exit) => Err(precondition(format!("the domain has ended: {exit}"))),
            Seen::Unknown(reason) => {
                let error = Error::new(ErrorKind::Unavailable, self.operation, reason);
                Err(error.with("domain", id))
            }
        }
    }

    /// A running domain as it is now, with the notes, which only its definition has.
    pub(super) fn running_xml(&self, found: &Found) -> Result<DomainXml> {
        let text = self.ok(found.dom.xml(false))?;
        let running = DomainXml::of_text(&text).map_err(|error| self.senseless(error))?;
        Ok(DomainXml {
            metadata: found.defined.metadata.clone(),
            ..running
        })
    }

    fn senseless(&self, error: quick_xml::DeError) -> Error {
        let message = "libvirt's description of the domain makes no sense";
        Error::new(ErrorKind::Corrupt, self.operation, message).caused_by(error)
    }

    /// A domain of NovaCron's, as the contract names it.
    pub(super) fn domain(&self, found: &Found, seen: Seen) -> Result<Domain> {
        let (state, domain) = match seen {
            Seen::Defined => (DomainState::Defined, found.defined.clone()),
            Seen::Live(state) => (state, self.running_xml(found)?),
            Seen::Ended(exit) => (DomainState::Ended(exit), <_>::default()),
            Seen::Unknown(reason) => (DomainState::Unknown(reason), <_>::default()),
        };
        Ok(Domain {
            owner: DomainOwner::NovaCron(found.id),
            state,
            disks: domain.volumes().map(|(volume, _)| volume).collect(),
            nics: (domain.devices.interfaces.iter())
                .filter_map(super::xml::Interface::port)
                .collect(),
        })
    }
}
