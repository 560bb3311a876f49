//! How to migrate, as a plan. Pure: what is known goes in, steps come out; one engine carries them out.
//!
//! ```text
//!   MigrationInput ─┬─ preflight ──► obstacles
//!                   ├─ predict ────► duration, downtime, bytes
//!                   └─ plan ───────► MigrationPlan { steps } ──► engine ──► the two owners' MigrationEndpoints, storage
//! ```
//! A step is "ensure": the engine may carry it out again after a crash, from its number in the record. Steps before
//! [`MigrationStep::HandOver`] are undone by the engine in reverse order, without being told how; those after it are
//! repeated until they succeed. So a plan has one hand-over, everything that it must not fail after comes before it, and
//! at every step exactly one side is runnable ([`super::MigrationEndpoint`] says who).

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{MigrationLimits, SwitchMode};
use crate::model::{Bandwidth, Bytes, MiB, NodeCapabilities, NodeId, VmId, VolumeId};
use crate::time::Timestamp;

/// All that a strategy may look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationInput {
    /// The VM.
    pub vm: VmId,
    /// Whether it runs; a stopped one only moves its data.
    pub running: bool,
    /// vCPUs.
    pub vcpus: u32,
    /// Memory.
    pub memory: MiB,
    /// How fast it dirties memory, if that was measured.
    pub dirtied: Option<Bandwidth>,
    /// Its disks.
    pub disks: Vec<MigrationDisk>,
    /// From where.
    pub source: MigrationSide,
    /// To where.
    pub target: MigrationSide,
    /// What is between them.
    pub link: Link,
    /// What the caller allows.
    pub policy: MigrationPolicy,
}

/// A disk as a migration sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationDisk {
    /// The volume.
    pub volume: VolumeId,
    /// Its size.
    pub size: Bytes,
    /// Bytes that it takes up.
    pub stored: Bytes,
    /// How fast it is written, if that was measured.
    pub written: Option<Bandwidth>,
    /// Whether the target reaches it where it is.
    pub shared: bool,
}

/// One side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationSide {
    /// The node.
    pub node: NodeId,
    /// What it can do now.
    pub capabilities: NodeCapabilities,
    /// Whether its driver has a [`MigrationEndpoint`](super::MigrationEndpoint).
    pub live: bool,
    /// Whether its driver has [`MemorySnapshots`](super::MemorySnapshots).
    pub memory_snapshots: bool,
}

/// What is between two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// What one migration may count on.
    pub bandwidth: Bandwidth,
    /// There and back.
    pub round_trip: Duration,
}

/// What the caller allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrationPolicy {
    /// The longest that the guest may stand still; for a cold move, may be down.
    pub downtime: Duration,
    /// The longest that it may take in all.
    pub duration: Duration,
    /// The most that it may take of the link.
    pub bandwidth: Option<Bandwidth>,
    /// Whether a guest may run before all its memory is there: a broken link then stops it until the link is repaired.
    pub post_copy: bool,
    /// How much the guest may be slowed down, percent.
    pub throttle_percent: u8,
}

/// Why it does not go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Obstacle {
    /// A short stable word, as `cpu-model`.
    pub rule: String,
    /// One sentence for a person: what is, and what would help.
    pub message: String,
}

/// What a migration is expected to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prediction {
    /// In all: likely, and at worst.
    pub duration: (Duration, Duration),
    /// The guest stands still: likely, and at worst.
    pub downtime: (Duration, Duration),
    /// Over the link.
    pub bytes: Bytes,
    /// Whether pre-copy comes to an end by itself.
    pub converges: bool,
}

/// What to do, and what was expected of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrationPlan {
    /// The strategy and its version.
    pub strategy: String,
    /// The steps, in order.
    pub steps: Vec<MigrationStep>,
    /// What was expected when it was made.
    pub prediction: Prediction,
}

/// One step. Those that concern a live stream are calls of [`MigrationEndpoint`](super::MigrationEndpoint).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum MigrationStep {
    /// The disks that the target does not reach are made there, empty.
    MakeDisks(BTreeSet<VolumeId>),
    /// Copies those disks' data while the guest runs, or while nothing does; repeated, only what changed.
    CopyDisks(BTreeSet<VolumeId>),
    /// Ports are made at the target, without traffic.
    PrepareNetwork,
    /// The target waits for the stream; the claim names its successor.
    Prepare {
        /// Whether it may go over to post-copy.
        post_copy: bool,
        /// Parallel connections.
        channels: u8,
        /// Compress the stream.
        compress: bool,
        /// Disks whose data goes along.
        copied: BTreeSet<VolumeId>,
    },
    /// The source streams.
    Start(MigrationLimits),
    /// Goes on under other limits.
    Adjust(MigrationLimits),
    /// Waits until the source is held.
    AwaitHeld {
        /// For so long.
        within: Duration,
        /// What then takes the place of the remaining steps; the migration is aborted if there is none.
        otherwise: Vec<MigrationStep>,
    },
    /// Holds the source's vCPUs while the stream goes on: before the hand-over of a post-copy.
    Pause,
    /// Ends the copying.
    Switch(SwitchMode),
    /// Writes the guest's memory to a volume that both sides reach.
    SaveMemory,
    /// Stops the guest at the source: asks, and ends it after the grace.
    Stop {
        /// How long a guest that was asked may take.
        grace: Duration,
    },
    /// The claim and the volumes' claims go to the target, in one commit. There is no way back.
    HandOver,
    /// The traffic goes to the target.
    MoveNetwork,
    /// Starts the guest at the target anew.
    StartTarget,
    /// Starts it at the target from its memory.
    StartFromMemory,
    /// Lets the target's vCPUs run.
    Resume,
    /// Waits until all is at the target, then the source forgets the domain and lets go of disks and ports.
    Confirm,
}

/// Makes migration plans. No I/O, no clock, no randomness of its own.
pub trait MigrationStrategy: fmt::Debug + Send + Sync + 'static {
    /// Its name and version, as they stand in a plan.
    fn name(&self) -> &str;

    /// Every reason why this strategy cannot do it; none if it can. The same input gives the same answer.
    fn preflight(&self, input: &MigrationInput) -> Vec<Obstacle>;

    /// What it is expected to take; none if that cannot be said, as without a measured rate of change.
    fn predict(&self, input: &MigrationInput) -> Option<Prediction>;

    /// What to do. The same arguments give the same plan.
    ///
    /// *Holds on return:* on every path through the steps there is one [`MigrationStep::HandOver`], exactly one side is
    /// runnable after each step, and no wait is without an end. The policy is kept if the prediction holds.
    ///
    /// # Errors
    /// The obstacles of [`MigrationStrategy::preflight`], or those of a policy that cannot be kept.
    fn plan(
        &self,
        input: &MigrationInput,
        now: Timestamp,
        seed: u64,
    ) -> Result<MigrationPlan, Vec<Obstacle>>;
}
