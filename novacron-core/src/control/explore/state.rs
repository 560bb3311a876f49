//! One state of the exploration: the records, the processes, the hosts; and what may still befall them.
//!
//! Made finite by what is left out of it. Time stands still: every instant is the same, so that whatever waits for time to
//! pass may happen at once, or never. A record's version is the smallest number that nothing else in the state takes for
//! a version of that record: only whether two are the same counts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, RwLock};

use super::drivers::{Answer, Request};
use super::site::Site;
use crate::control::cache::Cache;
use crate::control::owned::Owned;
use crate::control::part::Part;
use crate::control::plan::{Command, ObjectKey, Outcome};
use crate::control::session::LEADER;
use crate::control::world::World;
use crate::model::{MemberId, NodeId};
use crate::store::check::{Facts, evaluate};
use crate::store::{Change, Key, Op, Precondition, Revision};
use crate::time::Timestamp;

/// The one instant.
pub(super) const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

pub(super) fn fingerprint(text: &str) -> u128 {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, text).hash(&mut hasher);
        u128::from(hasher.finish())
    };
    half(0) << 64 | half(1)
}

/// The records as of one moment.
#[derive(Debug)]
pub(super) struct View {
    pub(super) records: BTreeMap<Key, (Revision, bytes::Bytes)>,
    pub(super) cache: Arc<RwLock<Cache>>,
    pub(super) print: u128,
}

impl View {
    pub(super) fn new(records: BTreeMap<Key, (Revision, bytes::Bytes)>) -> Self {
        let mut cache = Cache::default();
        cache.revision = Revision(1);
        for (key, (version, value)) in &records {
            let change = Change {
                key: key.clone(),
                value: Some(value.clone()),
            };
            let taken = cache.apply(&change, *version, &mut Vec::new());
            taken.expect("a record that can be read");
        }
        Self {
            print: fingerprint(&format!("{records:?}")),
            cache: Arc::new(RwLock::new(cache)),
            records,
        }
    }

    pub(super) fn cache(&self) -> std::sync::RwLockReadGuard<'_, Cache> {
        self.cache.read().expect("no panic")
    }

    /// What has to change to come from here to `next`.
    pub(super) fn changes_to(&self, next: &Self) -> Vec<Change> {
        let put = next
            .records
            .iter()
            .filter(|(key, now)| self.records.get(*key) != Some(now))
            .map(|(key, (_, value))| (key, Some(value.clone())));
        let gone = self
            .records
            .keys()
            .filter(|k| !next.records.contains_key(*k));
        let change = |(key, value): (&Key, _)| Change {
            key: key.clone(),
            value,
        };
        put.chain(gone.map(|k| (k, None))).map(change).collect()
    }
}

/// A commit on its way to the store.
#[derive(Clone)]
pub(super) struct Sent {
    pub(super) by: MemberId,
    /// As what its sender decided it; none for what needs no part.
    pub(super) part: Option<Part>,
    pub(super) requires: Vec<Precondition>,
    pub(super) ops: Vec<Op>,
}

/// States are told apart by it, so the values are in it.
impl fmt::Debug for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {:?}", self.by, self.part, self.requires)?;
        self.ops.iter().try_for_each(|op| match op {
            Op::Put(key, value) => write!(f, " {key}={value:?}"),
            Op::Delete(key) => write!(f, " no {key}"),
        })
    }
}

/// What holds an object of a process busy.
#[derive(Clone, Debug)]
pub(super) enum Task {
    Commit(Sent),
    Command {
        command: Command,
        answers: Vec<Answer>,
        /// What it asks next; none when it has ended.
        next: Option<Request>,
    },
    /// Its commit is done, and the process must see so many more before it sees that one.
    Settling(usize),
}

/// A process: what the production's runtime holds between two turns.
#[derive(Clone, Debug)]
pub(super) struct Process {
    pub(super) slot: usize,
    pub(super) member: MemberId,
    /// The token of the leader's lease that it believes to hold.
    pub(super) leads: Option<u64>,
    pub(super) owned: Owned,
    pub(super) world: World,
    pub(super) outcomes: BTreeMap<ObjectKey, Outcome>,
    pub(super) failures: BTreeMap<ObjectKey, u32>,
    pub(super) tasks: BTreeMap<ObjectKey, Task>,
    pub(super) print: u128,
}

impl Process {
    pub(super) fn new(slot: usize, member: MemberId) -> Self {
        Self {
            slot,
            member,
            leads: None,
            owned: Owned::default(),
            world: World::default(),
            outcomes: BTreeMap::new(),
            failures: BTreeMap::new(),
            tasks: BTreeMap::new(),
            print: 0,
        }
    }

    /// To be called when it has changed.
    pub(super) fn normal(mut self) -> Self {
        let world = &mut self.world;
        world.leases.clear();
        for (node, seen) in &mut world.nodes {
            // Observations are compared with each other only.
            let base = seen.observations;
            for (_, run) in world.runs.iter_mut().filter(|((n, _), _)| n == node) {
                run.touched = (run.touched + 1).saturating_sub(base);
                run.unsettled = run.unsettled.map(|at| (at + 1).saturating_sub(base));
            }
            seen.observations = 1;
            seen.tried.prune(std::time::Duration::ZERO, NOW);
        }
        self.print = 0;
        self.print = fingerprint(&format!("{self:?}"));
        self
    }
}

/// How often what goes wrong may still go wrong, and what users still ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Budget {
    /// Processes that die.
    pub(super) crashes: u8,
    /// Leases of a living process that run out.
    pub(super) leases: u8,
    /// The leader's lease, while its holder lives.
    pub(super) leaders: u8,
    /// Calls that fail without an effect.
    pub(super) failures: u8,
    /// Calls whose outcome is unknown, and that may take effect later.
    pub(super) lost: u8,
    /// Hosts that boot by themselves.
    pub(super) reboots: u8,
    /// Guests that end by themselves.
    pub(super) exits: u8,
    /// Requests of the scenario's list that were made.
    pub(super) requests: u8,
}

#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) process: Arc<Process>,
    /// Which of the views it has.
    pub(super) at: usize,
}

#[derive(Clone, Debug)]
pub(super) struct State {
    /// From the oldest that a process has to the present one.
    pub(super) views: Vec<Arc<View>>,
    /// None while it is down.
    pub(super) slots: Vec<Option<Slot>>,
    pub(super) site: Site,
    /// Who holds the leader's lease, under which token.
    pub(super) leader: Option<(MemberId, u64)>,
    /// The members that hold their lease.
    pub(super) alive: BTreeSet<MemberId>,
    /// Commits of processes that died: they may still come in.
    pub(super) orphans: Vec<Sent>,
    pub(super) budget: Budget,
    pub(super) members: u64,
}

impl Facts for State {
    type Error = std::convert::Infallible;

    fn version(&self, key: &Key) -> Result<Option<Revision>, Self::Error> {
        Ok(self.present().records.get(key).map(|(version, _)| *version))
    }

    fn holds(&self, name: &str, token: u64) -> Result<bool, Self::Error> {
        Ok(name == LEADER && self.leader.is_some_and(|(_, held)| held == token))
    }
}

impl State {
    pub(super) fn present(&self) -> &Arc<View> {
        self.views.last().expect("a view")
    }

    /// Whether the commit would be applied now.
    pub(super) fn admits(&self, sent: &Sent) -> crate::Result<()> {
        let Ok(verdict) = evaluate(&sent.requires, self);
        verdict
    }

    /// Whether the commit can never be applied any more.
    fn is_hopeless(&self, sent: &Sent) -> bool {
        sent.requires.iter().any(|p| match p {
            Precondition::At(..) | Precondition::Lease { .. } => {
                let Ok(verdict) = evaluate(std::slice::from_ref(p), self);
                verdict.is_err()
            }
            Precondition::Absent(_) | Precondition::Present(_) => false,
        })
    }

    /// Every precondition that is on its way.
    fn preconditions(&self) -> impl Iterator<Item = &Precondition> {
        let tasks = self
            .slots
            .iter()
            .flatten()
            .flat_map(|s| s.process.tasks.values());
        let sent = tasks.filter_map(|task| match task {
            Task::Commit(sent) => Some(sent),
            _ => None,
        });
        sent.chain(&self.orphans).flat_map(|sent| &sent.requires)
    }

    /// A version of the record that nobody takes for another.
    pub(super) fn fresh_version(&self, key: &Key) -> Revision {
        let seen = self.views.iter().filter_map(|view| view.records.get(key));
        let required = self.preconditions().filter_map(|p| match p {
            Precondition::At(of, version) if of == key => Some(*version),
            _ => None,
        });
        let used: BTreeSet<_> = seen.map(|(version, _)| *version).chain(required).collect();
        (1..)
            .map(Revision)
            .find(|v| !used.contains(v))
            .expect("one of all")
    }

    /// A token of the leader's lease that nobody takes for another.
    pub(super) fn fresh_token(&self) -> u64 {
        let believed = self.slots.iter().flatten().filter_map(|s| s.process.leads);
        let required = self.preconditions().filter_map(|p| match p {
            Precondition::Lease { token, .. } => Some(*token),
            _ => None,
        });
        let used: BTreeSet<_> = believed.chain(required).collect();
        (1..)
            .find(|token| !used.contains(token))
            .expect("one of all")
    }

    /// Forgets what nothing can depend on any more; the state's fingerprint.
    pub(super) fn normalise(&mut self) -> u128 {
        let oldest = self.slots.iter().flatten().map(|s| s.at).min();
        let oldest = oldest.unwrap_or(self.views.len() - 1);
        self.views.drain(..oldest);
        for slot in self.slots.iter_mut().flatten() {
            slot.at -= oldest;
        }
        let mut orphans = std::mem::take(&mut self.orphans);
        orphans.retain(|sent| !self.is_hopeless(sent));
        self.orphans = orphans;
        let views: Vec<_> = self.views.iter().map(|v| v.print).collect();
        let slots: Vec<_> = self
            .slots
            .iter()
            .map(|s| s.as_ref().map(|s| (s.process.print, s.at)))
            .collect();
        fingerprint(&format!(
            "{views:?} {slots:?} {:?} {:?} {:?} {:?} {:?} {}",
            self.site, self.leader, self.alive, self.orphans, self.budget, self.members
        ))
    }

    pub(super) fn wants_on(&self) -> bool {
        let present = self.present().cache();
        present
            .vms
            .values()
            .any(|vm| vm.power.state == crate::model::Power::On)
    }

    /// Where the domains run.
    pub(super) fn running(&self) -> Vec<(NodeId, crate::driver::DomainId)> {
        let hosts = self.site.hosts.iter();
        let running = hosts.flat_map(|(node, h)| h.running().map(|(id, _)| (node.clone(), *id)));
        running.collect()
    }
}
