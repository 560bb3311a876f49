//! What becomes of domains: the one place where their state changes, and the indexes and events with it.

use tokio::time::Instant;
use uuid::Uuid;

use rand::RngCore;

use super::faults::{chance, duration};
use super::observe::ViolationKind;
use super::state::{SimDisk, State};
use crate::driver::{DomainId, DomainState, GuestEvent};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Epoch, Exit, HostId, MiB, VolumeId};

impl State {
    /// Changes a domain's state; sees violations; tells the listeners. Nothing happens if it has this state already.
    pub(super) fn enter(&mut self, host: HostId, id: DomainId, next: DomainState) {
        let Some(domain) = self
            .hosts
            .get_mut(&host)
            .and_then(|h| h.domains.get_mut(&id))
        else {
            return;
        };
        if domain.state == next {
            return;
        }
        let (was_started, was_running) = (domain.is_started(), domain.since.is_some());
        let runs = next == DomainState::Running;
        match (domain.since, runs) {
            (None, true) => domain.since = Some(Instant::now()),
            (Some(since), false) => {
                domain.ran += since.elapsed();
                domain.since = None;
            }
            _ => {}
        }
        domain.state = next;
        let (is_started, memory) = (domain.is_started(), domain.memory.0);
        let disks: Vec<VolumeId> = domain.disks.iter().map(|d| d.volume).collect();
        if let Some(h) = self.hosts.get_mut(&host) {
            match (was_started, is_started) {
                (false, true) => h.used.0 += memory,
                (true, false) => h.used = MiB(h.used.0.saturating_sub(memory)),
                _ => {}
            }
        }
        for volume in &disks {
            if is_started {
                self.open.insert((*volume, host, id));
            } else {
                self.open.remove(&(*volume, host, id));
            }
        }
        self.note_state(host, id);
        if runs && !was_running {
            let twin = self.runners(id.vm).find(|other| *other != (host, id));
            self.running.insert((id.vm, host, id));
            if let Some(first) = twin {
                let second = (host, id);
                self.violation(ViolationKind::RunsTwice { first, second });
            }
            for volume in disks {
                self.begin_writing(host, id, volume);
            }
        } else if was_running && !runs {
            self.running.remove(&(id.vm, host, id));
            for volume in disks {
                self.writing.remove(&(volume, host, id));
            }
        }
        self.push(host, id, GuestEvent::StateChanged);
    }

    fn note_state(&mut self, host: HostId, id: DomainId) {
        if self.log.is_some() {
            let domain = self.hosts.get(&host).and_then(|h| h.domains.get(&id));
            let state = domain.map(|d| d.state.clone());
            self.note(|| format!("host {host} domain {id} {state:?}"));
        }
    }

    /// A running domain got a volume.
    pub(super) fn begin_writing(&mut self, host: HostId, id: DomainId, volume: VolumeId) {
        let twin = self.writers_of(volume).find(|other| *other != (host, id));
        self.writing.insert((volume, host, id));
        if let Some(first) = twin {
            let second = (host, id);
            self.violation(ViolationKind::TwoWriters {
                volume,
                first,
                second,
            });
        }
    }

    /// Starts a domain with its vCPUs held.
    pub(super) fn start(&mut self, op: &'static str, host: HostId, id: DomainId) -> Result<()> {
        let domain = self.domain(op, host, id)?;
        match &domain.state {
            DomainState::Paused | DomainState::Running => return Ok(()),
            DomainState::Defined => {}
            DomainState::Ended(_) | DomainState::Unknown(_) => {
                return Err(refused(
                    op,
                    id,
                    "this start has ended; an epoch is started once",
                ));
            }
        }
        let (memory, disks) = (domain.memory, domain.disks.clone());
        let nics = domain.nics.clone();
        let h = self.host(op, host)?;
        let of_vm = |epoch| DomainId { epoch, ..id };
        if let Some((other, _)) = h
            .domains
            .range(of_vm(Epoch(0))..=of_vm(Epoch(u64::MAX)))
            .find(|(other, d)| **other != id && d.is_started())
        {
            return Err(
                refused(op, id, "another start of the VM holds the run lock").with("holder", other),
            );
        }
        if h.used.0 + memory.0 > h.memory.0 {
            return Err(Error::new(ErrorKind::Exhausted, op, "out of memory").with("domain", id));
        }
        let taps = nics.iter().filter(|nic| nic.needs_device);
        let mut taps = taps.map(|nic| nic.port);
        let no_port = taps.find(|port| !h.ports.contains_key(port));
        let no_port = no_port.map(|port| format!("port {port} has no device on this host"));
        let no_disk = disks.iter().find(|d| !self.is_there(d));
        let no_disk = no_disk.map(|d| format!("cannot open volume {}: it is not there", d.volume));
        let locked = disks
            .iter()
            .find_map(|d| self.may_open(op, d.volume, (host, id)).err());
        let locked = locked.map(|e| format!("cannot open a volume: {e}"));
        if let Some(detail) = no_port.or(no_disk).or(locked) {
            let exit = Exit::StartFailed {
                detail: detail.clone(),
            };
            self.enter(host, id, DomainState::Ended(exit));
            return Err(Error::new(ErrorKind::FailedPrecondition, op, detail).with("domain", id));
        }
        self.enter(host, id, DomainState::Paused);
        Ok(())
    }

    /// Whether a disk can be opened, as far as this world knows.
    fn is_there(&self, disk: &SimDisk) -> bool {
        disk.pool.as_ref().is_none_or(|pool| {
            self.pools
                .get(pool)
                .is_some_and(|p| p.has_volume(disk.volume))
        })
    }

    /// Ends a guest that is started; others stay as they are.
    pub(super) fn end(&mut self, host: HostId, id: DomainId, exit: Exit) -> bool {
        let started = self
            .hosts
            .get(&host)
            .and_then(|h| h.domains.get(&id))
            .is_some_and(super::state::SimDomain::is_started);
        if started {
            self.enter(host, id, DomainState::Ended(exit));
        }
        started
    }

    /// Presses a started guest's power button.
    pub(super) fn press(&mut self, host: HostId, id: DomainId) {
        if chance(&mut self.rng, self.plan.ignore_acpi) {
            self.note(|| format!("host {host} domain {id} ignores its power button"));
            return;
        }
        let takes = duration(&mut self.rng, &self.latency.shutdown);
        if takes.is_zero() {
            self.go_down(host, id);
        } else {
            self.agenda
                .push((takes, Box::new(move |state| state.go_down(host, id))));
        }
    }

    /// The guest has noticed its power button: it ends now, or when its vCPUs run again.
    fn go_down(&mut self, host: HostId, id: DomainId) {
        if let Some(domain) = self
            .hosts
            .get_mut(&host)
            .and_then(|h| h.domains.get_mut(&id))
        {
            if domain.state == DomainState::Running {
                self.enter(host, id, DomainState::Ended(Exit::Requested));
            } else {
                domain.pressed = domain.is_started();
            }
        }
    }

    /// Lets the vCPUs run.
    pub(super) fn resume(&mut self, op: &'static str, host: HostId, id: DomainId) -> Result<()> {
        let domain = self.domain(op, host, id)?;
        if !domain.is_started() {
            return Err(refused(op, id, "it is not started"));
        }
        let pressed = std::mem::take(&mut domain.pressed);
        self.enter(host, id, DomainState::Running);
        if pressed {
            self.enter(host, id, DomainState::Ended(Exit::Requested));
        }
        Ok(())
    }

    /// The host boots anew: nothing of its memory is left.
    pub(super) fn reboot(&mut self, host: HostId) {
        let boot_id = self.fresh_uuid();
        let Some(h) = self.hosts.get_mut(&host) else {
            return;
        };
        h.boot_id = boot_id;
        h.boots += 1;
        h.booted.notify_waiters();
        h.used = MiB(0);
        h.ports.clear();
        h.foreign.clear();
        h.listeners.clear();
        let domains = std::mem::take(&mut h.domains);
        for (id, domain) in domains {
            self.running.remove(&(id.vm, host, id));
            for disk in domain.disks {
                self.writing.remove(&(disk.volume, host, id));
                self.open.remove(&(disk.volume, host, id));
            }
        }
        self.note(|| format!("host {host} has booted anew"));
    }

    /// A fresh id.
    pub(super) fn fresh_uuid(&mut self) -> Uuid {
        let mut bytes = [0; 16];
        self.ids.fill_bytes(&mut bytes);
        uuid::Builder::from_random_bytes(bytes).into_uuid()
    }
}

/// The domain's state does not allow the call.
pub(super) fn refused(op: &'static str, id: DomainId, why: &'static str) -> Error {
    Error::new(ErrorKind::FailedPrecondition, op, why).with("domain", id)
}
