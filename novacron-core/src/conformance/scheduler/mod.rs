//! What every [`Scheduler`] does, one function per sentence of its contract.
//!
//! ```text
//!   fixture ──► Scheduler ──open──► Placer, held against a plain account of what fits ──► fitting · deciding
//! ```
//! An implementer writes a [`SchedulerFixture`] and calls [`scheduler_conformance!`](crate::scheduler_conformance) in a
//! test file. Most behaviours look at many random clusters; the output of one that fails names the cluster's seed, and
//! the same seeds are looked at in every run.

mod deciding;
mod fitting;
mod subject;

use std::sync::Arc;

pub use deciding::*;
pub use fitting::*;

use crate::driver::Scheduler;

/// How the suite gets a scheduler.
pub trait SchedulerFixture {
    /// The scheduler, without any rule but that everything fits.
    fn scheduler(&self) -> Arc<dyn Scheduler>;

    /// vCPUs of guests that it places per CPU of a host. Memory is never overcommitted.
    fn cpu_overcommit(&self) -> u32;
}

/// Makes one `#[test]` of every behaviour. The argument is an expression for a fresh
/// [`SchedulerFixture`](crate::conformance::scheduler::SchedulerFixture); it is evaluated in each test.
#[macro_export]
macro_rules! scheduler_conformance {
    ($fixture:expr) => {
        $crate::scheduler_conformance! { @each $fixture;
            capacity_is_never_exceeded
            feasible_request_is_placed
            burst_fills_the_cluster
            only_is_honoured
            reachable_is_honoured
            avoid_is_honoured
            prefer_is_honoured_where_it_fits
            closed_host_takes_nothing
            vcpus_of_one_guest_are_limited
            absurd_request_is_rejected
            another_host_does_not_make_a_request_infeasible
            empty_cluster_takes_nothing
            decision_names_its_view_and_seed
            same_view_and_requests_give_the_same_answers
            order_of_hosts_is_irrelevant
            history_changes_no_answer
            explain_agrees_with_decide
            explain_follows_what_is_booked
            rejections_count_every_host
            fork_does_not_change_the_original
            changes_are_taken
            rejected_request_books_nothing
        }
    };
    (@each $fixture:expr; $($behaviour:ident)*) => {
        $(
            #[test]
            fn $behaviour() {
                $crate::conformance::scheduler::$behaviour(&$fixture);
            }
        )*
    };
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_macro_lists_every_behaviour() {
        let files = [include_str!("fitting.rs"), include_str!("deciding.rs")];
        crate::conformance::assert_lists(include_str!("mod.rs"), "pub fn ", &files);
    }
}
