//! How a process joins a cluster: under which number, with which nodes and pools.
//!
//! ```text
//!   cluster/self       made with the first build, compared with every later one
//!   cluster/level      made with the first build; a build that does not know it is refused
//!   cluster/members    counted up, so that no two processes have one number
//!   member/<number>    this process; in a store that one process has at a time, those before are marked as lost
//!   node/… pool/…      made if they are new; another host, another pool under a name that is known is refused
//!   owner/…            taken, where nobody alive has it
//! ```
//! The lease of its number comes first, so that nobody takes the new process for lost. The first commit is conditional on
//! the count and holds the member: whoever comes second counts again. What a process cannot take now it takes when the
//! owner is lost ([`crate::control`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::builder::PoolsByName;
use super::upgrade;
use crate::control::commit::{commit_known, finish};
use crate::control::plan::Draft;
use crate::control::runtime::wait;
use crate::control::session::{Holder, member_lease};
use crate::driver::{Call, Hypervisor, StorageBackend};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{
    ClusterId, Endpoint, Member, MemberId, MemberState, Name, Node, NodeId, NodeStatus, Ownership,
    Pool, PoolId, PoolStatus, Role,
};
use crate::records::{
    ClusterRecord, LEVEL, LevelRecord, NodeOwner, PoolOwner, Stored, decode, encode, from_record,
    level_key, members_key, put, unchanged,
};
use crate::store::{Key, LeaseAnswer, ListOptions, MAX_OPS, Op, Precondition, Store};
use crate::time::{Clock, IdSource};

/// Between two tries at a number that another process is taking.
const TURN: Duration = Duration::from_millis(50);
/// How long a host is asked which one it is.
const PROBE: Duration = Duration::from_secs(5);

/// What a driver answers in time, also one that is stuck and heeds no deadline.
async fn answer<T>(probe: impl Future<Output = Result<T>>) -> Option<T> {
    tokio::time::timeout(PROBE, probe).await.ok()?.ok()
}

/// What a process is called if nobody says.
pub(super) fn process_name() -> String {
    let system = rustix::system::uname();
    let host = system.nodename().to_string_lossy().into_owned();
    format!("{host}/{}", std::process::id())
}

/// The cluster's id: read, or made with the first build.
pub(super) async fn identify(
    store: &dyn Store,
    name: &Name,
    clock: &dyn Clock,
    ids: &dyn IdSource,
) -> Result<ClusterId> {
    let key = Key::of_parts(&[&"cluster", &"self"]);
    loop {
        if let Some(record) = store.get(&key).await? {
            let stored: ClusterRecord = decode(&key, &record.value)?;
            if stored.name != *name {
                let message = format!(
                    "the store holds the cluster {:?}, not {:?}",
                    stored.name.as_str(),
                    name.as_str()
                );
                return Err(Error::new(
                    ErrorKind::FailedPrecondition,
                    "cluster.build",
                    message,
                ));
            }
            return Ok(stored.id);
        }
        let now = clock.now();
        let record = ClusterRecord {
            id: ClusterId::generate(now, ids),
            name: name.clone(),
        };
        let mut draft = Draft::new();
        draft.requires.push(Precondition::Absent(key.clone()));
        draft.ops.push(Op::Put(key.clone(), encode(&record)?));
        match commit_known(store, finish(draft, now, ids)?).await {
            Err(e) if e.kind() == ErrorKind::Conflict => {}
            Err(e) => return Err(e),
            Ok(_) => return Ok(record.id),
        }
    }
}

/// A process that joins.
pub(super) struct Joining<'a> {
    pub(super) store: &'a dyn Store,
    pub(super) nodes: &'a BTreeMap<NodeId, Arc<dyn Hypervisor>>,
    pub(super) pools: &'a PoolsByName,
    pub(super) name: &'a str,
    pub(super) role: Role,
    pub(super) endpoint: Option<Endpoint>,
    pub(super) holder: &'a Holder,
    pub(super) clock: &'a dyn Clock,
    pub(super) ids: &'a dyn IdSource,
}

/// A record to write, and what it was.
type Step = (Precondition, Op);

impl Joining<'_> {
    /// Writes this process down, and what it comes with.
    pub(super) async fn join(&self) -> Result<MemberId> {
        let members = loop {
            match self.count_in().await {
                // Another process joined at the same time.
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                result => break result?,
            }
        };
        let (me, members) = members;
        loop {
            match self.come_with(me, &members).await {
                // Another process took something, or a user changed it.
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                Ok(()) => return Ok(me),
                Err(error) => {
                    self.leave(me).await?;
                    return Err(error);
                }
            }
        }
    }

    /// What has joined and cannot stay is gone at once.
    async fn leave(&self, me: MemberId) -> Result<()> {
        let lease = member_lease(me);
        let Holder { name, ttl } = self.holder;
        match self.store.lease_acquire(&lease, name, *ttl).await? {
            LeaseAnswer::Granted(lease) => self.store.lease_release(&lease).await,
            LeaseAnswer::HeldBy { .. } => Ok(()),
        }
    }

    /// Whether a node that a living process looks after is the host that this process was given under that name.
    async fn same_host(&self, id: &NodeId, hypervisor: &dyn Hypervisor) -> Result<()> {
        let Some(status) = self.store.get(&NodeStatus::key(id)).await? else {
            return Ok(());
        };
        let theirs = from_record::<NodeStatus>(&status)?.host.map(|h| h.host);
        // One that does not answer is no error here: connecting is supervised, later.
        let ours = answer(hypervisor.probe(Call::within(PROBE))).await;
        match (theirs, ours.map(|h| h.host)) {
            (Some(theirs), Some(ours)) if theirs != ours => {
                let message = format!(
                    "node {id} is host {theirs}, which a living process looks after; this process was given host {ours} under that name"
                );
                Err(
                    Error::new(ErrorKind::FailedPrecondition, "cluster.join", message)
                        .with("node", id),
                )
            }
            _ => Ok(()),
        }
    }

    /// Whether the pool is the one that the records know under that name.
    async fn same_pool(&self, id: &PoolId, backend: &dyn StorageBackend) -> Result<()> {
        let Some(status) = self.store.get(&PoolStatus::key(id)).await? else {
            return Ok(());
        };
        let known = from_record::<PoolStatus>(&status)?.identity;
        // One that does not answer is no error here.
        let ours = answer(backend.probe(Call::within(PROBE))).await;
        match (known, ours.and_then(|info| info.identity)) {
            (Some(known), Some(ours)) if known != ours => {
                let message = format!(
                    "pool {id} is {known}, and this process was given {ours} under that name: is its file system mounted, is it another cluster's store?"
                );
                let error = Error::new(ErrorKind::FailedPrecondition, "cluster.join", message);
                Err(error.with("pool", id))
            }
            _ => Ok(()),
        }
    }

    async fn commit(&self, steps: &[Step]) -> Result<()> {
        let mut draft = Draft::new();
        (draft.requires, draft.ops) = steps.iter().cloned().unzip();
        commit_known(self.store, finish(draft, self.clock.now(), self.ids)?)
            .await
            .map(drop)
    }

    /// This process's number, and every process there was.
    async fn count_in(&self) -> Result<(MemberId, BTreeMap<MemberId, Member>)> {
        let (level, no_level) = upgrade::read(self.store).await?;
        upgrade::check(level.unwrap_or(LEVEL))?;
        let counter = members_key();
        let (last, counted): (u64, _) = match self.store.get(&counter).await? {
            Some(record) => {
                let counted = Precondition::At(counter.clone(), record.version);
                (decode(&counter, &record.value)?, counted)
            }
            None => (0, Precondition::Absent(counter.clone())),
        };
        let now = self.clock.now();
        let lease = member_lease(MemberId(last + 1));
        let Holder { name, ttl } = self.holder;
        let lease = match self.store.lease_acquire(&lease, name, *ttl).await? {
            LeaseAnswer::Granted(lease) => lease,
            LeaseAnswer::HeldBy { .. } => {
                wait(Some(TURN)).await;
                let message = "another process is joining under the same number";
                return Err(Error::new(ErrorKind::Conflict, "cluster.join", message));
            }
        };
        let me = Member {
            id: MemberId(last + 1),
            name: self.name.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            level: LEVEL,
            role: self.role,
            joined_at: now,
            clock_off_secs: None,
            endpoint: self.endpoint.clone(),
            state: MemberState::Alive,
        };
        let mut steps = vec![
            (counted, Op::Put(counter, encode(&me.id.0)?)),
            (unchanged::<Member>(&me.id, None), put(&me.id, &me)?),
        ];
        if level.is_none() {
            let first = LevelRecord {
                level: LEVEL,
                by: me.name.clone(),
                at: now,
            };
            steps.push((no_level, Op::Put(level_key(), encode(&first)?)));
        }
        let mut members = BTreeMap::from([(me.id, me.clone())]);
        let everyone = ListOptions {
            limit: usize::MAX,
            ..ListOptions::default()
        };
        for record in self.store.list("member/", everyone).await?.records {
            let mut member: Member = from_record(&record)?;
            if self.store.exclusive() && member.is_alive() {
                member.state = MemberState::Lost { at: now };
                steps.push((
                    unchanged::<Member>(&member.id, Some(record.version)),
                    put(&member.id, &member)?,
                ));
            }
            members.insert(member.id, member);
        }
        for chunk in steps.chunks(MAX_OPS) {
            if let Err(error) = self.commit(chunk).await {
                self.store.lease_release(&lease).await?;
                return Err(error);
            }
        }
        Ok((me.id, members))
    }

    /// Writes nodes and pools that are new, and takes what nobody alive has.
    async fn come_with(&self, me: MemberId, members: &BTreeMap<MemberId, Member>) -> Result<()> {
        let mut steps = Vec::new();
        for (id, hypervisor) in self.nodes {
            if self.store.get(&Node::key(id)).await?.is_none() {
                let node = Node {
                    id: id.clone(),
                    schedulable: true,
                    evacuation: None,
                    generation: 1,
                };
                steps.push((unchanged::<Node>(id, None), put(id, &node)?));
            }
            match self.take::<NodeOwner>(id, me, members).await? {
                Some(step) => steps.push(step),
                None => self.same_host(id, &**hypervisor).await?,
            }
        }
        for (id, (scope, backend)) in self.pools {
            self.same_pool(id, &**backend).await?;
            let pool = Pool {
                id: id.clone(),
                scope: scope.clone(),
            };
            let stored = self.store.get(&Pool::key(id)).await?;
            let known = stored.as_ref().map(from_record::<Pool>).transpose()?;
            if known.as_ref() != Some(&pool) {
                let version = stored.map(|record| record.version);
                steps.push((unchanged::<Pool>(id, version), put(id, &pool)?));
            }
            steps.extend(self.take::<PoolOwner>(id, me, members).await?);
        }
        for chunk in steps.chunks(MAX_OPS) {
            self.commit(chunk).await?;
        }
        Ok(())
    }

    /// The step that takes it, unless somebody alive, or this process, has it.
    async fn take<T>(
        &self,
        id: &T::Id,
        me: MemberId,
        members: &BTreeMap<MemberId, Member>,
    ) -> Result<Option<Step>>
    where
        T: Stored + From<Ownership> + std::ops::Deref<Target = Ownership>,
    {
        let stored = self.store.get(&T::key(id)).await?;
        let owner = stored.as_ref().map(from_record::<T>).transpose()?;
        let alive = |o: &T| members.get(&o.member).is_some_and(Member::is_alive);
        if owner.as_ref().is_some_and(alive) {
            return Ok(None);
        }
        let ownership = Ownership {
            member: me,
            since: self.clock.now(),
            fencing: None,
            fenced: None,
        };
        let was = unchanged::<T>(id, stored.map(|record| record.version));
        Ok(Some((was, put(id, &T::from(ownership))?)))
    }
}
