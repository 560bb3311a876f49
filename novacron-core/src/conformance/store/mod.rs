//! What every [`Store`] does, one function per sentence of its contract.
//!
//! ```text
//!   fixture ──open──► Subject (store + helpers) ──► reads · commits · outcomes · watches · leases · beats · order · reopening
//! ```
//! An implementer writes a [`StoreFixture`] and calls [`store_conformance!`](crate::store_conformance) in a test file.
//! Nothing here waits for time to pass: leases run on the fixture's clock, and a watch tells by a bookmark that there
//! is no more to come. A store that never answers fails after [`PATIENCE`].

mod commits;
mod history;
mod leases;
mod order;
mod outcomes;
mod reads;
mod reopening;
mod subject;
mod watches;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub use commits::*;
pub use history::{Checked, History, Load, Violation};
pub use leases::*;
pub use order::*;
pub use outcomes::*;
pub use reads::*;
pub use reopening::*;
pub use watches::*;

use self::subject::Subject;
use crate::store::Store;

/// How long an answer may take before it counts as missing.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How the suite gets a store.
#[async_trait]
pub trait StoreFixture: Send + Sync {
    /// A store without data. Called once for a fixture.
    async fn open(&self) -> Arc<dyn Store>;

    /// Ends `store` (which has no other user any more) and opens the same data anew.
    async fn reopen(&self, store: Arc<dyn Store>) -> Arc<dyn Store>;

    /// Lets `by` pass on the clock by which the store's leases expire.
    async fn advance(&self, by: Duration);
}

/// Makes one `#[tokio::test]` of every behaviour. The argument is an expression for a fresh
/// [`StoreFixture`](crate::conformance::store::StoreFixture); it is evaluated in each test and may `.await`.
#[macro_export]
macro_rules! store_conformance {
    ($fixture:expr) => {
        $crate::store_conformance! { @each $fixture;
            empty_store_is_at_revision_zero
            get_sees_every_commit_that_returned
            list_sees_every_commit_that_returned
            list_is_in_key_order_under_its_prefix
            list_continues_after_a_key
            list_tells_exactly_whether_more_follow
            list_with_limit_zero_tells_the_revision
            revision_is_that_of_a_list
            list_pages_share_one_revision_while_others_write
            list_at_an_old_revision_shows_it
            list_at_a_compacted_revision_is_refused
            list_at_a_future_revision_is_refused
            compaction_keeps_what_is_present
            commit_applies_every_operation_at_one_revision
            commit_revisions_grow
            commit_with_a_failed_precondition_applies_nothing
            delete_of_an_absent_key_is_no_error
            precondition_absent
            precondition_present
            precondition_at_a_revision
            precondition_is_not_fooled_by_delete_and_create
            precondition_on_a_key_that_is_not_written
            failed_precondition_is_named_by_index_and_key
            limit_on_the_size_of_a_value
            limit_on_the_number_of_operations
            limit_on_the_number_of_preconditions
            limit_on_the_size_of_a_commit
            commit_naming_a_key_twice_is_refused
            commit_without_operations_is_refused
            conflicting_commits_have_one_winner
            concurrent_increments_lose_nothing
            crossed_preconditions_let_one_through
            same_transaction_twice_is_applied_once
            same_transaction_at_the_same_time_is_applied_once
            outcome_of_a_commit_is_its_revision
            outcome_of_a_transaction_never_seen_is_final
            outcome_after_a_conflict_is_not_committed
            outcome_outlives_compaction
            watch_from_zero_delivers_everything
            watch_delivers_what_is_committed_later
            watch_delivers_commits_whole
            watch_tells_deletes
            watch_filters_by_prefix
            watch_of_several_prefixes
            watch_bookmarks_when_caught_up
            watch_bookmark_passes_what_others_wrote
            watch_keeps_the_order_of_each_key
            watch_resumes_without_loss
            watch_after_a_list_misses_nothing
            watch_by_a_slow_reader_loses_nothing_in_silence
            watch_after_a_compacted_revision_is_refused
            watch_after_a_future_revision_is_refused
            lease_is_granted_when_free
            lease_held_by_another_is_refused
            lease_of_another_name_is_apart
            lease_asked_for_again_keeps_its_token
            lease_expires_by_the_clock
            lease_renewal_extends_it
            lease_renewal_after_expiry_is_refused
            lease_renewal_by_a_former_holder_is_refused
            lease_released_is_free_at_once
            lease_release_by_a_former_holder_changes_nothing
            lease_token_grows_with_every_grant
            lease_wanted_by_many_goes_to_one
            lease_precondition_lets_the_holder_commit
            lease_precondition_fences_the_expired
            lease_precondition_fences_the_former_holder
            lease_changes_no_revision
            beats_are_overwritten_and_listed_by_prefix
            beat_can_be_removed
            beat_that_is_too_large_is_refused
            beats_leave_no_trace_in_the_history
            calls_of_many_clients_are_linearizable
            reopened_store_has_every_commit
            reopened_store_knows_outcomes
            reopened_store_keeps_leases_and_tokens
            reopened_store_keeps_history_and_compaction
        }
    };
    (@each $fixture:expr; $($behaviour:ident)*) => {
        $(
            #[tokio::test]
            async fn $behaviour() {
                $crate::conformance::store::$behaviour(&$fixture).await;
            }
        )*
    };
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_macro_lists_every_behaviour() {
        let files = [
            include_str!("reads.rs"),
            include_str!("commits.rs"),
            include_str!("outcomes.rs"),
            include_str!("watches.rs"),
            include_str!("leases.rs"),
            include_str!("order.rs"),
            include_str!("reopening.rs"),
        ];
        let defined = files
            .iter()
            .flat_map(|file| file.lines())
            .filter_map(|line| line.strip_prefix("pub async fn "));
        let mut defined: Vec<_> = defined
            .map(|rest| rest.split('(').next().unwrap())
            .collect();
        let (_, list) = include_str!("mod.rs")
            .split_once("@each $fixture;\n")
            .unwrap();
        let mut listed: Vec<_> = list.split('}').next().unwrap().split_whitespace().collect();
        defined.sort_unstable();
        listed.sort_unstable();
        assert_eq!(defined, listed);
    }
}
