//! The leader's look at a process: is it still there?
//!
//! ```text
//!   alive ── its lease ran out, and the leader holds it now ──► lost ── it asks again ──► alive
//!     └──── it shut down ──► left
//! ```
//! The leader asks for the lease when it should have run out. That it is granted is the proof that the process has not
//! renewed it; and while the leader has it the process, should it only have been slow, does not count itself as alive.
//! What it owned can be taken from then on.
//!
//! Where the store was away for longer than the leases last, all have run out, and nobody is to blame. So a leader takes
//! nobody for lost before it has renewed its own lease in time for as long as a lease lasts, and believes no answer that
//! was long on its way: otherwise whoever is back first would have every other host fenced.
//!
//! One that has left or was lost is forgotten when nothing names it any more.

use std::time::Duration;

use super::cache::Cache;
use super::plan::{Command, Draft, Outcome, Plan};
use super::world::World;
use crate::error::Result;
use crate::model::{Member, MemberId, MemberState};
use crate::time::Timestamp;

/// How long after it ended a process is remembered at least.
const KEPT: Duration = Duration::from_secs(3600);

/// This process's own record: it is alive again when it was taken for lost and has its lease back; and while it leads, its
/// clock is the one that the others' are compared with.
pub(crate) fn own(me: MemberId, leads: bool, cache: &Cache) -> Result<Plan> {
    let Some(member) = cache.members.get(&me) else {
        return Ok(Plan::nothing());
    };
    let mut now = member.value.clone();
    if matches!(member.state, MemberState::Lost { .. }) {
        tracing::warn!(member = %me, "this process was taken for lost, and is back");
        now.state = MemberState::Alive;
    }
    if leads {
        now.clock_off_secs = None;
    }
    if now == member.value {
        return Ok(Plan::nothing());
    }
    Ok(Plan::commit(
        Draft::new()
            .unchanged::<Member>(&me, Some(member.version))
            .put(&me, &now)?,
    ))
}

/// Whether what is seen of a clock differs from what its member's record says: by more than clocks drift in an hour or two.
fn is_news(told: Option<i64>, seen: Option<i64>) -> bool {
    match (told, seen) {
        (Some(told), Some(seen)) => told.abs_diff(seen) > 10,
        (told, seen) => told != seen,
    }
}

/// Another process, seen by the leader, which takes none for lost before `from`.
pub(crate) fn reconcile(
    id: MemberId,
    cache: &Cache,
    world: &World,
    outcome: Option<&Outcome>,
    from: Timestamp,
    now: Timestamp,
) -> Result<Plan> {
    let Some(member) = cache.members.get(&id) else {
        return Ok(Plan::nothing());
    };
    let unchanged = || Draft::new().unchanged::<Member>(&id, Some(member.version));
    let at = match member.state {
        MemberState::Alive => {
            if matches!(outcome, Some(Outcome::Lapsed(of)) if *of == member.version) {
                tracing::warn!(member = %id, name = member.name, "a process of the cluster was lost");
                let lost = Member {
                    state: MemberState::Lost { at: now },
                    ..member.value.clone()
                };
                return Ok(Plan::commit(unchanged().put(&id, &lost)?));
            }
            let lease = world.leases.get(&id);
            if let Some(lease) = lease
                && is_news(member.clock_off_secs, lease.clock_off_secs)
            {
                if let Some(secs) = lease.clock_off_secs {
                    let (member, name) = (id, &member.name);
                    tracing::warn!(%member, name, secs, "a process's clock is ahead of this one's, or behind: set it");
                }
                let told = Member {
                    clock_off_secs: lease.clock_off_secs,
                    ..member.value.clone()
                };
                return Ok(Plan::commit(unchanged().put(&id, &told)?));
            }
            return Ok(match lease {
                _ if now < from => Plan::wake_at(from),
                Some(lease) if now < lease.runs_out => Plan::wake_at(lease.runs_out),
                _ => Plan::command(Command::CheckMember {
                    member: id,
                    of: member.version,
                }),
            });
        }
        MemberState::Left { at } | MemberState::Lost { at } => at,
    };
    let named = cache.node_owners.values().any(|o| o.member == id)
        || cache.pool_owners.values().any(|o| o.member == id);
    if now < at.plus(KEPT) || named {
        return Ok(Plan::wake_at(now.plus(KEPT)));
    }
    Ok(Plan::commit(unchanged().delete::<Member>(&id)))
}
