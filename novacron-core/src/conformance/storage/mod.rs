//! What every [`StorageBackend`] does, one function per sentence of its contract.
//!
//! ```text
//!   fixture ──open──► Subject (driver + helpers) ──► making · keeping · attaching · snapshots · deadlines
//! ```
//! An implementer writes a [`StorageFixture`] and calls [`storage_conformance!`](crate::storage_conformance) in a test
//! file. Data is written and read by the fixture, through an [`Attachment`], as a guest would: the suite looks at one
//! byte that a region is filled with. What a driver or its host cannot do is declared in [`StorageFixture::lacks`].

mod attaching;
mod deadlines;
mod keeping;
mod making;
mod snapshots;
mod subject;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub use attaching::*;
pub use deadlines::*;
pub use keeping::*;
pub use making::*;
pub use snapshots::*;

use self::subject::Subject;
use crate::driver::{Attachment, CreateSource, StorageBackend};
use crate::model::{Bytes, ImageSource, NodeId};

/// What a driver or its host may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Ability {
    /// [`StorageBackend::transfer`].
    Transfer,
    /// The fixture can ask for more than fits into the pool.
    Fill,
}

/// Something that can be imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestSource {
    /// Where it is.
    pub source: ImageSource,
    /// The SHA-256 of its bytes, 64 hex digits.
    pub sha256: String,
    /// Its size as a disk: at least 1 MiB, at most 8 MiB, a multiple of 1 MiB.
    pub size: Bytes,
}

/// How the suite gets a pool, and data in it.
#[async_trait]
pub trait StorageFixture: Send + Sync {
    /// What cannot be looked at here.
    fn lacks(&self) -> BTreeSet<Ability>;

    /// How long a call may take.
    fn patience(&self) -> Duration;

    /// A node that reaches the pool.
    fn node(&self) -> NodeId;

    /// The fixture's pool, at first empty. Called again after [`StorageFixture::close`].
    async fn open(&self) -> Arc<dyn StorageBackend>;

    /// Ends the driver, which has no other user any more.
    async fn close(&self, backend: Arc<dyn StorageBackend>);

    /// A source whose every byte, as a disk, is `fill`.
    async fn source(&self, fill: u8) -> TestSource;

    /// A source that is not what it claims to be.
    async fn damaged_source(&self) -> ImageSource;

    /// A source that is not there.
    fn missing_source(&self) -> ImageSource;

    /// What to create, and of which size, so that it does not fit. Not called without [`Ability::Fill`].
    async fn too_much(&self) -> (CreateSource, Bytes);

    /// Fills the first 64 KiB with a byte, through to the disk.
    async fn write(&self, attachment: &Attachment, fill: u8);

    /// The byte that the first 64 KiB are filled with.
    async fn read(&self, attachment: &Attachment) -> u8;
}

/// Makes one `#[tokio::test]` of every behaviour. The argument is an expression for a fresh
/// [`StorageFixture`](crate::conformance::storage::StorageFixture); it is evaluated in each test and may `.await`.
#[macro_export]
macro_rules! storage_conformance {
    ($fixture:expr) => {
        $crate::storage_conformance! { @each $fixture;
            blank_volume_has_its_size_and_reads_zeroes
            create_again_changes_nothing
            reopened_pool_has_what_was_made
            import_has_the_sources_data_and_size
            import_without_a_checksum_is_made
            import_with_a_larger_size_has_it
            import_with_a_smaller_size_is_refused
            import_with_another_checksum_is_refused
            import_of_a_damaged_source_is_refused
            import_of_a_missing_source_is_refused
            create_in_a_full_pool_is_refused
            clone_has_the_images_data
            clone_with_a_larger_size_has_it
            clone_with_a_smaller_size_is_refused
            clone_is_apart_from_its_image
            clone_of_a_missing_image_is_refused
            copy_of_a_snapshot_is_apart
            copy_with_a_smaller_size_is_refused
            copy_of_a_missing_snapshot_is_refused
            probe_tells_the_capacity
            empty_pool_lists_nothing
            list_is_complete_and_tells_clusters_apart
            list_after_a_create_that_ended_is_final
            inspect_of_nothing_is_none
            resize_grows_and_keeps_the_data
            resize_never_shrinks
            resize_of_nothing_is_not_found
            delete_leaves_nothing
            delete_of_nothing_changes_nothing
            delete_of_an_image_with_clones_is_refused
            delete_of_one_leaves_the_others
            attach_tells_where_the_data_is
            attach_again_answers_the_same
            attach_for_the_next_epoch_has_its_number
            attach_of_nothing_is_not_found
            detach_can_be_repeated
            data_outlives_the_attachment
            snapshot_is_shown_and_the_volume_goes_on
            prepare_changes_nothing_for_the_guest
            prepare_again_answers_the_same
            prepare_for_nobody_gives_no_layer
            prepare_for_a_writer_that_is_not_attached_is_refused
            prepare_while_another_is_prepared_is_refused
            commit_makes_the_prepared_layer_the_active_one
            commit_again_changes_nothing
            commit_of_nothing_is_refused
            live_snapshot_has_what_was_written_before_the_pivot
            restore_brings_the_data_back
            restore_of_nothing_is_refused
            restore_of_an_attached_volume_is_refused
            snapshot_delete_keeps_what_others_need
            snapshot_delete_takes_back_a_prepared_one
            snapshot_delete_of_nothing_changes_nothing
            export_has_every_byte
            reads_after_their_deadline_are_refused
            changes_after_their_deadline_do_not_happen
            create_ends_about_its_deadline
        }
    };
    (@each $fixture:expr; $($behaviour:ident)*) => {
        $(
            #[tokio::test]
            async fn $behaviour() {
                $crate::conformance::storage::$behaviour(&$fixture).await;
            }
        )*
    };
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_macro_lists_every_behaviour() {
        let files = [
            include_str!("making.rs"),
            include_str!("keeping.rs"),
            include_str!("attaching.rs"),
            include_str!("snapshots.rs"),
            include_str!("deadlines.rs"),
        ];
        crate::conformance::assert_lists(include_str!("mod.rs"), "pub async fn ", &files);
    }
}
