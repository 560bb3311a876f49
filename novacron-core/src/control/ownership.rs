//! Taking what nobody looks after.
//!
//! ```text
//!   no owner, or one that is not alive, or was fenced ── this process drives it ──► this process's
//! ```
//! Of several processes that drive the same remote hypervisor, or reach the same pool, the first to commit has it; the
//! others stand by. The record is written conditional on what it was, so whoever had it before can commit nothing more for
//! it. A new owner knows nothing of what the one before saw: it observes before it decides.

use super::cache::Cache;
use super::part::is_kept;
use super::plan::{Draft, Plan};
use crate::error::Result;
use crate::model::{Member, MemberId, Ownership, Versioned};
use crate::records::Stored;
use crate::time::Timestamp;

/// Takes it, unless somebody alive has it.
pub(crate) fn take<T>(
    id: &T::Id,
    me: MemberId,
    owner: Option<&Versioned<T>>,
    cache: &Cache,
    now: Timestamp,
) -> Result<Plan>
where
    T: Stored + From<Ownership> + std::ops::Deref<Target = Ownership>,
{
    let Some(this) = cache.members.get(&me).filter(|m| m.is_alive()) else {
        return Ok(Plan::nothing());
    };
    if owner.is_some_and(|o| is_kept(o, cache)) {
        return Ok(Plan::nothing());
    }
    let ownership = Ownership {
        member: me,
        since: now,
        fencing: None,
        fenced: None,
    };
    Ok(Plan::commit(
        Draft::new()
            .unchanged::<Member>(&me, Some(this.version))
            .unchanged::<T>(id, owner.map(|o| o.version))
            .put(id, &T::from(ownership))?,
    ))
}
