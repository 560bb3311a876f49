//! Rolling upgrades: builds of two feature levels over one store.
//!
//! ```text
//!   every process at level n ── one after the other is replaced by a build of level n+1 ──► all know n+1, all write n
//!        ▲ any of them may be taken back until                                                   │ an operator finalises
//!        └───────────────────────────────────────────────────────────────────────────────        ▼
//!                                                             n+1 is written; who knows only n cannot join any more
//! ```
//! The cluster's level is the record `cluster/level`, which also says who raised it. A request that needs a record of a higher one is refused until it is
//! raised, so nothing is written that some living process cannot read. A build knows its level and the one before.

use super::Cluster;
use crate::control::commit::{commit_known, finish};
use crate::control::plan::Draft;
use crate::error::{Error, ErrorKind, Result};
use crate::model::Member;
use crate::records::{
    self, LEVEL, LevelRecord, decode, encode, from_record, level_key, members_key, unchanged,
};
use crate::store::{ListOptions, Op, Precondition, Store};

/// What the cluster writes, and what this build could.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureLevel {
    /// The level of what is written.
    pub cluster: u32,
    /// The newest one that this build knows.
    pub build: u32,
}

/// The cluster's level, and what a commit that depends on it requires.
pub(super) async fn read(store: &dyn Store) -> Result<(Option<u32>, Precondition)> {
    let key = level_key();
    match store.get(&key).await? {
        Some(record) => {
            let at: LevelRecord = decode(&key, &record.value)?;
            Ok((Some(at.level), Precondition::At(key, record.version)))
        }
        None => Ok((None, Precondition::Absent(key))),
    }
}

/// Whether a build of this level can work on a cluster of that one.
pub(super) fn check(cluster: u32) -> Result<()> {
    let why = if cluster > LEVEL {
        "upgrade it"
    } else if cluster + 1 < LEVEL {
        "a build of the level between must be in use first, and the upgrade to it finalised"
    } else {
        return Ok(());
    };
    let message =
        format!("the cluster is at feature level {cluster}, this build knows level {LEVEL}: {why}");
    Err(Error::new(
        ErrorKind::FailedPrecondition,
        "cluster.join",
        message,
    ))
}

impl Cluster {
    /// The cluster's feature level, and that of this build.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn feature_level(&self) -> Result<FeatureLevel> {
        self.inner.authorize(self.options(), "cluster.get")?;
        let (level, _) = read(&*self.inner.store).await?;
        Ok(FeatureLevel {
            cluster: level.unwrap_or(1),
            build: LEVEL,
        })
    }

    /// Raises the cluster's feature level to the highest that every living process knows: the last step of a rolling
    /// upgrade, which cannot be taken back. True when it returns.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] with the processes that still run an older build, when there is nothing to raise
    /// because of them; [`ErrorKind::Conflict`] when a process joined meanwhile.
    pub async fn finalize_upgrade(&self) -> Result<FeatureLevel> {
        const VERB: &str = "cluster.finalize-upgrade";
        let (inner, options) = (&self.inner, self.options());
        inner.authorize(options, VERB)?;
        inner.is_open()?;
        let store = &*inner.store;
        let (level, unchanged_level) = read(store).await?;
        let level = level.unwrap_or(1);
        let mut draft = Draft::new();
        // A process joins by counting itself: one that does at this moment counts anew, and looks at the level again.
        let counter = members_key();
        if let Some(counted) = store.get(&counter).await? {
            let as_it_was = Precondition::At(counter.clone(), counted.version);
            draft.requires.push(as_it_was);
            draft.ops.push(Op::Put(counter, counted.value));
        }
        let everyone = ListOptions {
            limit: usize::MAX,
            ..ListOptions::default()
        };
        let (mut lowest, mut behind) = (LEVEL, Vec::new());
        for record in store.list("member/", everyone).await?.records {
            let member: Member = from_record(&record)?;
            if !member.is_alive() {
                continue;
            }
            if member.level <= level && level < LEVEL {
                behind.push(format!("{} ({})", member.name, member.version));
            }
            lowest = lowest.min(member.level);
            // One that was taken for lost and is back is of an old build too.
            let id = member.id;
            draft
                .requires
                .push(unchanged::<Member>(&id, Some(record.version)));
        }
        if lowest > level {
            let now = inner.clock.now();
            let raised = LevelRecord {
                level: lowest,
                by: options.principal.clone(),
                at: now,
            };
            draft.requires.push(unchanged_level);
            draft.ops.push(Op::Put(level_key(), encode(&raised)?));
            let at = commit_known(store, finish(draft, now, &*inner.ids)?).await?;
            inner.reach(at).await?;
        } else if !behind.is_empty() {
            let message = format!(
                "these processes know feature level {level} only: {}",
                behind.join(", ")
            );
            return Err(Error::new(ErrorKind::FailedPrecondition, VERB, message));
        }
        Ok(FeatureLevel {
            cluster: lowest.max(level),
            build: LEVEL,
        })
    }

    /// The records that cannot be read, each with why: written by hand, damaged, or by a newer build. They are left out, and
    /// hurt no other object.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn damaged_records(&self) -> Result<Vec<(String, String)>> {
        self.inner.authorize(self.options(), "cluster.get")?;
        let told = |(key, why): (&crate::store::Key, &String)| (key.to_string(), why.clone());
        self.inner
            .read(|cache| cache.damaged.iter().map(told).collect())
            .await
    }
}

/// Whether the cluster may be given what the draft holds, by this build.
pub(super) fn allows(cluster: u32, draft: &Draft, verb: &'static str) -> Result<()> {
    let needed = records::level_of(&draft.ops);
    let message = if cluster > LEVEL {
        format!(
            "the cluster was raised to feature level {cluster}, this build knows level {LEVEL}: upgrade it"
        )
    } else if needed > cluster {
        format!(
            "it needs feature level {needed}, and the cluster is at {cluster}: finalise the upgrade first"
        )
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::FailedPrecondition, verb, message))
}
