//! The two ends of a live migration. One engine calls both; the ends speak to each other only through the stream.
//!
//! The domain at the target is the VM's **next epoch**. Who may run is said by the VM's claim and by nothing else: the
//! claim names its holder, and while a migration is under way also its successor (place and epoch); the hand-over flips
//! the two in one commit. A target runs only by [`Hypervisor::resume`](super::Hypervisor::resume), which the engine calls
//! after that commit; a source that has let go (`resume` of it is refused) runs again only by
//! [`MigrationEndpoint::abort`], called only before it. Nothing is handed over while the source's vCPUs may run.
//!
//! ```text
//!  target: prepare ─► Waiting ───────────────────────────► Complete ──────────────► resume
//!               │ ticket                                       ▲         ▲
//!  source: start ─► Copying ─► Held ─ switch(Complete) ─► Complete ─ HAND-OVER ─► confirm
//!                      └─ pause ─ HAND-OVER ─ switch(PostCopy) ─► PostCopy ⇄ Broken ─► Complete ─► confirm
//!          abort, up to the hand-over ─► NotMigrating, as before
//! ```
//! | phase of the source | its vCPUs | the target's | runnable |
//! |---|---|---|---|
//! | Copying | as before | held | source |
//! | Held | held | held, incomplete | source, by `abort` |
//! | Complete | held, or gone | held, complete | the claim's holder; if the source is gone, the target after the hand-over |
//! | PostCopy, Broken | held for good | run by `resume`, stop while broken | target |
//!
//! So aborted in any phase, and killed between any two calls, exactly one side is runnable, and the claim says which. A
//! source whose stream fails while it copies goes on as it was: running, or paused. So for post-copy the engine pauses it
//! first; if the switch is then refused, another commit takes the hand-over back before the source is resumed.
//!
//! Not known here: claims, networks, storage (the engine attaches the disks for the target's epoch beforehand), retries.

use std::time::Duration;

use async_trait::async_trait;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::{Call, DomainId, DomainSpec};
use crate::error::Result;
use crate::model::{Bandwidth, Bytes, VolumeId};
use crate::time::Timestamp;

/// Lets one source stream to one target, once. It travels to the source's owner; its secret is worthless afterwards.
#[derive(Clone, Debug)]
pub struct MigrationTicket {
    /// Where the target listens, in words that the two endpoints understand.
    pub address: String,
    /// What the source proves itself with.
    pub secret: SecretString,
    /// A target that nobody streamed to by then ends by itself.
    pub expires: Timestamp,
}

/// What both ends must agree on.
#[derive(Clone, Debug)]
pub struct MigrationOptions {
    /// What may be changed on the way.
    pub limits: MigrationLimits,
    /// Whether it may go over to post-copy.
    pub post_copy: bool,
    /// Parallel connections; at least one.
    pub channels: u8,
    /// Compress the stream, if both ends can.
    pub compress: bool,
    /// How the stream is kept from others.
    pub security: StreamSecurity,
    /// Volumes whose data goes along, since the target has them on storage of its own. All others are the same at both.
    pub copied: Vec<VolumeId>,
}

/// What may be changed while the stream runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrationLimits {
    /// The most that memory and disks together may take; as much as there is if none.
    pub bandwidth: Option<Bandwidth>,
    /// Converged is what can be sent in this time with the vCPUs held.
    pub downtime: Duration,
    /// How much the guest may be slowed down so that it converges, percent; zero for not at all.
    pub throttle_percent: u8,
}

/// How a stream is kept from others.
#[derive(Clone, Debug)]
pub enum StreamSecurity {
    /// TLS with the ticket's secret as its key.
    Ticket,
    /// TLS, each end by its certificate.
    Certificates(TlsIdentity),
    /// Not at all: for a network that nobody else is on.
    Plain,
}

/// One end's part of a mutual TLS connection.
#[derive(Clone, Debug)]
pub struct TlsIdentity {
    /// The authorities that may have signed the other end's certificate, PEM.
    pub authorities: String,
    /// This end's certificate with its chain, PEM.
    pub certificate: String,
    /// The key of it, PEM.
    pub key: SecretString,
    /// The name that the other end's certificate must have.
    pub peer: String,
}

/// Where one end stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MigrationPhase {
    /// No migration of this domain is under way; at a source also after one that failed or was aborted, and why.
    NotMigrating(Option<String>),
    /// A target: nothing has come yet, or not all.
    Waiting,
    /// A source: memory and disks are sent while the guest runs, or is paused.
    Copying,
    /// A source: what is left fits the downtime; the vCPUs are held until `switch` or `abort`.
    Held,
    /// The target runs, or may, and the rest follows.
    PostCopy,
    /// Post-copy lost its stream: `prepare` and `start` again repair it.
    Broken(String),
    /// All is at the target.
    Complete,
}

/// How far a migration is. Numbers of a source; a target may know only its phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationProgress {
    /// Where this end stands.
    pub phase: MigrationPhase,
    /// Since `start`.
    pub elapsed: Duration,
    /// Bytes that went over the wire.
    pub sent: Bytes,
    /// Memory that is still to be sent, of how much.
    pub memory: (Bytes, Bytes),
    /// Data of disks that is still to be sent, of how much.
    pub disks: (Bytes, Bytes),
    /// How fast the guest dirties memory, if that was measured.
    pub dirtied: Option<Bandwidth>,
    /// How fast the stream is now.
    pub throughput: Bandwidth,
    /// Times that memory was gone through.
    pub rounds: u64,
    /// How long the vCPUs have been held, or would be if it were switched now.
    pub downtime: Duration,
}

/// How to end the copying.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SwitchMode {
    /// Send the rest with the vCPUs held. Needs [`MigrationPhase::Held`].
    Complete,
    /// The target runs first and the rest follows. Needs [`MigrationPhase::Copying`] with the source paused, or Held;
    /// post-copy among the options of both ends; and the claim handed over.
    PostCopy,
}

/// What an abort came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortReport {
    /// This end is as before: the source runs if it did, and the target is [`DomainState::Ended`](super::DomainState).
    AsBefore,
    /// A source that is complete and gone, or in post-copy: only the target can go on.
    TooLate,
}

/// Both ends of live migrations from and to this host.
#[async_trait]
pub trait MigrationEndpoint: Send + Sync {
    /// **Target.** Makes a domain that waits for the stream.
    ///
    /// *Needs:* the VM's next epoch, in a machine that the source's state fits; its disks attached. *Holds on return:* it
    /// is listed as [`Paused`](super::DomainState::Paused), holds its run lock, and neither runs nor can be resumed before
    /// it is complete. *A second identical call* gives a fresh ticket and makes the one before worthless; on a broken
    /// post-copy it lets the source take the stream up again. *Left behind on failure:* only what `undefine` removes.
    async fn prepare(
        &self,
        call: Call,
        target: &DomainSpec,
        options: &MigrationOptions,
        expires: Timestamp,
    ) -> Result<MigrationTicket>;

    /// **Source.** Begins to stream a started domain to the holder of the ticket.
    ///
    /// *Needs:* `target` and `options` as they were prepared. *Holds on return:* the phase is Copying, or a later one.
    /// *A second identical call* changes nothing; with the fresh ticket of a broken post-copy it goes on. *Left behind on
    /// failure:* nothing: the domain is as before. *Errors:* `FailedPrecondition` while another migration of it runs;
    /// `PermissionDenied` when the target takes another ticket by now.
    async fn start(
        &self,
        call: Call,
        source: DomainId,
        target: &DomainSpec,
        ticket: &MigrationTicket,
        options: &MigrationOptions,
    ) -> Result<()>;

    /// **Either end.** How far it is. Every change of phase is also told as
    /// [`GuestEvent::StateChanged`](super::GuestEvent).
    async fn progress(&self, call: Call, id: DomainId) -> Result<MigrationProgress>;

    /// **Source.** Changes the limits on the way. *A second identical call* changes nothing.
    async fn adjust(&self, call: Call, source: DomainId, limits: MigrationLimits) -> Result<()>;

    /// **Source.** Ends the copying.
    ///
    /// *Holds on return:* the phase is Complete, or PostCopy (or Complete already). *A second identical call* changes
    /// nothing. *Errors:* `FailedPrecondition` in another phase: nothing happened. *Left behind on failure:* the phase
    /// that `progress` tells.
    async fn switch(&self, call: Call, source: DomainId, mode: SwitchMode) -> Result<()>;

    /// **Either end.** Gives the migration up.
    ///
    /// *Needs:* for the source, the claim is its own. *Holds on return:* [`AbortReport::AsBefore`], nothing of the
    /// migration is under way at this end. *A second identical call* answers the same; without a migration it is as before
    /// already.
    async fn abort(&self, call: Call, id: DomainId) -> Result<AbortReport>;

    /// **Source.** Forgets the domain.
    ///
    /// *Needs:* the claim handed over, and the phase Complete. *Holds on return:* the domain has ended, its images are
    /// closed and its run lock is free. *A second identical call* changes nothing. *Errors:* `FailedPrecondition` in
    /// another phase.
    async fn confirm(&self, call: Call, source: DomainId) -> Result<()>;
}
