//! What every [`Hypervisor`] does, one function per sentence of its contract.
//!
//! ```text
//!   fixture ──open──► Subject (driver + helpers) ──► naming · life · stopping · events · inside · hot_plug · deadlines
//! ```
//! An implementer writes a [`HypervisorFixture`] and calls [`hypervisor_conformance!`](crate::hypervisor_conformance) in
//! a test file. What a driver, its host or its guest cannot do is declared in [`HypervisorFixture::lacks`]: a behaviour
//! that needs it then holds without a look, and an accessor that contradicts the declaration fails every behaviour that
//! would use it.

mod deadlines;
mod events;
mod hardware;
mod hot_plug;
mod inside;
mod life;
mod naming;
mod stopping;
mod subject;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub use deadlines::*;
pub use events::*;
pub use hardware::*;
pub use hot_plug::*;
pub use inside::*;
pub use life::*;
pub use naming::*;
pub use stopping::*;

use self::subject::Subject;
use crate::driver::{DiskAttachment, DomainId, DomainSpec, Hypervisor, NicAttachment};
use crate::model::{Bytes, SnapshotId};

/// What a driver, its host or its guest may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Ability {
    /// [`Hypervisor::hot_plug`].
    HotPlug,
    /// [`Hypervisor::disk_pivot`].
    DiskPivot,
    /// [`Hypervisor::consoles`].
    Consoles,
    /// [`Hypervisor::screens`].
    Screens,
    /// [`Hypervisor::diagnostics`].
    Diagnostics,
    /// [`Hypervisor::guest_agent`].
    GuestAgent,
    /// The guest ends when its power button is pressed.
    PowerButton,
    /// The guest can be made to do this.
    Guest(GuestAct),
    /// A domain of somebody else's can be made on the host.
    Foreign,
}

/// What a guest does by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GuestAct {
    /// It powers itself off.
    PowerOff,
    /// Its kernel panics.
    Panic,
    /// Its hypervisor process dies.
    Crash,
}

/// How the suite gets a hypervisor, and guests that boot.
///
/// Domains that a behaviour leaves, also by a panic, are the fixture's to remove when it is dropped.
#[async_trait]
pub trait HypervisorFixture: Send + Sync {
    /// What cannot be looked at here.
    fn lacks(&self) -> BTreeSet<Ability>;

    /// How long a call, or a guest's way up or down, may take.
    fn patience(&self) -> Duration;

    /// The fixture's host, at first without domains of NovaCron's. Called again after [`HypervisorFixture::close`].
    async fn open(&self) -> Arc<dyn Hypervisor>;

    /// Ends the driver, which has no other user any more, as an exit of the host application does.
    async fn close(&self, hypervisor: Arc<dyn Hypervisor>);

    /// A domain of this name that boots: with disks and NICs of its own.
    async fn spec(&self, id: DomainId) -> DomainSpec;

    /// A domain of this name that can be defined, and not started.
    async fn unstartable(&self, id: DomainId) -> DomainSpec;

    /// A fresh disk of [`HypervisorFixture::disk_size`] under this name.
    async fn disk(&self, name: &str) -> DiskAttachment;

    /// The size of those disks.
    fn disk_size(&self) -> Bytes;

    /// A fresh NIC.
    async fn nic(&self) -> NicAttachment;

    /// A path at which the host's hypervisor can make a file, and nothing is. Not called without [`Ability::Diagnostics`].
    fn file(&self, name: &str) -> PathBuf;

    /// A layer that was prepared on top of a disk's present one. Not called without [`Ability::DiskPivot`].
    async fn layer(&self, disk: &DiskAttachment, snapshot: SnapshotId) -> PathBuf;

    /// Returns when the guest has come up: it notices its power button, and hot-plugged devices.
    async fn booted(&self, id: DomainId);

    /// Makes the guest do this. Not called without the ability. The driver may be closed.
    async fn guest_does(&self, id: DomainId, act: GuestAct);

    /// Makes a domain of somebody else's, running; returns its name. Not called without [`Ability::Foreign`].
    async fn add_foreign(&self) -> String;

    /// Whether that one still runs.
    async fn foreign_runs(&self, name: &str) -> bool;
}

/// Makes one `#[tokio::test]` of every behaviour. The argument is an expression for a fresh
/// [`HypervisorFixture`](crate::conformance::hypervisor::HypervisorFixture); it is evaluated in each test and may
/// `.await`.
#[macro_export]
macro_rules! hypervisor_conformance {
    ($fixture:expr) => {
        $crate::hypervisor_conformance! { @each $fixture;
            probe_tells_the_host
            accessors_are_those_that_are_declared
            empty_host_lists_nothing
            define_makes_it_listed_and_nothing_run
            define_again_changes_nothing
            define_with_another_spec_replaces_it
            define_of_a_started_domain_changes_nothing
            define_of_another_epoch_is_apart
            hardware_that_cannot_be_is_refused_before_anything_is_made
            hardware_that_the_host_lacks_is_refused_before_anything_is_made
            cpu_of_a_named_model_and_topology_starts
            hardware_starts_as_far_as_the_host_has_it
            disk_starts_on_every_bus_of_the_host
            disk_options_that_cannot_be_are_refused
            disk_limits_are_set_while_it_runs
            medium_is_put_into_a_drive_and_taken_out
            nics_start_as_far_as_the_host_has_them
            link_is_set_while_it_runs
            inspect_of_nothing_is_none
            inspect_shows_owner_disks_and_nics
            list_is_complete
            list_tells_clusters_apart
            foreign_domains_are_listed_and_never_touched
            undefine_leaves_nothing
            undefine_of_nothing_changes_nothing
            undefine_refuses_a_started_domain
            undefine_of_an_ended_domain_leaves_nothing
            reopened_driver_finds_what_was_defined
            start_holds_the_vcpus
            start_again_changes_nothing
            start_of_nothing_is_refused
            start_of_an_ended_domain_is_refused
            start_of_an_ended_domain_is_refused_after_reopening
            start_is_refused_while_another_epoch_is_started
            start_is_refused_while_another_epoch_runs_after_reopening
            start_follows_an_epoch_that_has_ended
            start_of_another_vm_is_apart
            start_that_fails_leaves_what_undefine_removes
            resume_lets_it_run
            pause_holds_the_vcpus
            pause_of_a_held_domain_changes_nothing
            resume_pause_and_reset_need_a_started_domain
            reset_tells_and_the_domain_runs_on
            reopened_driver_finds_what_is_started
            stop_of_nothing_has_ended
            stop_of_a_defined_domain_has_ended
            kill_ends_a_running_domain
            kill_ends_a_paused_domain
            stop_again_has_ended
            kill_closes_the_images
            shutdown_is_asked_and_the_guest_ends
            shutdown_again_asks_again
            shutdown_of_a_paused_domain_can_be_followed_by_a_kill
            guest_that_powers_itself_off_has_ended
            guest_that_panics_has_ended
            guest_whose_process_dies_has_ended
            end_is_kept_until_undefined
            event_tells_each_change_of_state
            event_tells_that_an_asked_guest_ended
            event_tells_that_a_guest_ended_by_itself
            event_tells_of_adopted_domains
            events_reach_every_reader
            events_name_their_domain
            stats_cover_the_domain
            stats_grow_while_it_runs
            stats_need_a_started_domain
            console_gives_what_the_guest_writes
            console_goes_on_at_an_offset
            screen_is_shown
            screen_needs_a_started_domain
            memory_is_dumped_into_a_new_file
            diagnostics_need_a_started_domain
            guest_agent_answers
            disk_is_attached_and_detached
            disk_that_another_domain_has_is_refused
            detach_of_a_disk_that_is_not_attached_is_no_error
            nic_is_attached_and_detached
            attached_disk_is_known_after_reopening
            hot_plug_needs_a_started_domain
            attached_disk_is_resized
            pivot_goes_over_to_the_new_layer
            pivot_of_a_disk_that_is_not_attached_is_refused
            reads_after_their_deadline_are_refused
            changes_after_their_deadline_do_not_happen
            hot_plug_after_its_deadline_does_not_happen
            calls_end_about_their_deadline
        }
    };
    (@each $fixture:expr; $($behaviour:ident)*) => {
        $(
            #[tokio::test]
            async fn $behaviour() {
                $crate::conformance::hypervisor::$behaviour(&$fixture).await;
            }
        )*
    };
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_macro_lists_every_behaviour() {
        let files = [
            include_str!("hardware.rs"),
            include_str!("naming.rs"),
            include_str!("life.rs"),
            include_str!("stopping.rs"),
            include_str!("events.rs"),
            include_str!("inside.rs"),
            include_str!("hot_plug.rs"),
            include_str!("deadlines.rs"),
        ];
        crate::conformance::assert_lists(include_str!("mod.rs"), "pub async fn ", &files);
    }
}
