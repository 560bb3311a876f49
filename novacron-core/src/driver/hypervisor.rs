//! A hypervisor: one host's domains. It takes a fully resolved [`DomainSpec`] and decides nothing.
//!
//! ```text
//!   define ──► Defined ── start(paused) ──► Paused ⇄ Running ── stop, or by itself ──► Ended ── undefine ──► (nothing)
//! ```
//! A domain is named by cluster, VM and epoch, so that a sweep can tell this start's artefacts from an older one's and
//! from others'. An epoch is started once. [`DomainState::Ended`] is a promise: this epoch does not run and never will;
//! a driver that is not sure answers [`DomainState::Unknown`].

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use uuid::Uuid;

use super::{
    Attachment, BlockExport, Call, DomainStats, HotPlug, MemorySnapshots, MigrationEndpoint,
};
use crate::error::{Error, ErrorKind, Problem, Result};
use crate::model::{
    ClusterId, CpuModel, DiskOptions, Epoch, Exit, Hardware, HostInfo, MacAddr, NicOptions,
    NodeCapabilities, PortBinding, PortForward, PortId, SnapshotId, VmId, VolumeId,
};

/// Names a domain: one start of one VM of one cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DomainId {
    /// The cluster.
    pub cluster: ClusterId,
    /// The VM.
    pub vm: VmId,
    /// The start.
    pub epoch: Epoch,
}

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.vm, self.epoch)
    }
}

/// Everything a hypervisor needs to make a domain.
#[derive(Clone, Debug)]
pub struct DomainSpec {
    /// Its identity.
    pub id: DomainId,
    /// The VM's name, for people (process title, `virsh list`).
    pub name: String,
    /// What the machine has of its own. Its [`CpuModel::Baseline`] has been replaced by a name.
    pub hardware: Hardware,
    /// Disks, in the order in which the guest boots from those of them that its boot order has next.
    pub disks: Vec<DiskAttachment>,
    /// NICs, in order.
    pub nics: Vec<NicAttachment>,
    /// What the guest compares to know that it went back in time; it is no identity.
    pub generation_id: Uuid,
    /// Where its firmware's variables are kept: all zeros at first, then what a driver put there for the firmware. Without it
    /// they are the start's own, and end with it.
    pub nvram: Option<DiskAttachment>,
    /// Where its TPM keeps what it remembers, if it has one: all zeros at first. Without it, it forgets with each start.
    pub tpm: Option<TpmState>,
    /// The NoCloud seed, if there is one.
    pub seed: Option<Seed>,
}

/// Where a TPM keeps what it remembers.
#[derive(Clone, Debug)]
pub struct TpmState {
    /// The volume.
    pub disk: DiskAttachment,
    /// The passphrase of its encryption, if it is encrypted.
    pub passphrase: Option<SecretString>,
}

impl DomainSpec {
    /// Whether such a domain can be on a host that can do this, and at all: what every driver's `define` looks at first.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] with every problem by its field; [`ErrorKind::Unsupported`] with what the host lacks.
    pub fn check(&self, operation: &'static str, host: &NodeCapabilities) -> Result<()> {
        let hardware = &self.hardware;
        let of_hardware = hardware.problems().into_iter();
        let mut problems: Vec<_> = of_hardware.map(|p| p.under("hardware")).collect();
        let mut check = |good: bool, field: String, message: &str| {
            if !good {
                let message = message.to_owned();
                problems.push(Problem { field, message });
            }
        };
        let name = &self.name;
        check(
            (1..=255).contains(&name.len()) && !name.chars().any(char::is_control),
            "name".to_owned(),
            "must be 1 to 255 bytes without control characters",
        );
        check(
            hardware.cpu.model != CpuModel::Baseline,
            "hardware.cpu.model".to_owned(),
            "a baseline is chosen before a driver is asked",
        );
        check(
            self.nvram.is_none() || hardware.firmware.has_variables(),
            "nvram".to_owned(),
            "the firmware has no variables",
        );
        check(
            self.tpm.is_none() || hardware.tpm.is_some(),
            "tpm".to_owned(),
            "the machine has no TPM",
        );
        let options = self.disks.iter().map(|disk| &disk.options);
        if let Some(why) = hardware.too_many(options) {
            check(false, "disks".to_owned(), &why);
        }
        let tpm = self.tpm.as_ref().map(|tpm| &tpm.disk);
        let mut volumes = BTreeSet::new();
        for (disk, field) in [(self.nvram.as_ref(), "nvram"), (tpm, "tpm")] {
            let first = disk.is_none_or(|disk| volumes.insert(disk.volume));
            check(first, field.to_owned(), "is attached twice");
        }
        for (i, disk) in self.disks.iter().enumerate() {
            let first = volumes.insert(disk.volume);
            check(first, format!("disks[{i}].volume"), "is attached twice");
            for problem in disk.options.problems() {
                let problem = problem.under(&format!("disks[{i}].options"));
                check(false, problem.field, &problem.message);
            }
        }
        let mut ports = BTreeSet::new();
        for (i, nic) in self.nics.iter().enumerate() {
            let first = ports.insert(nic.port);
            check(first, format!("nics[{i}].port"), "is attached twice");
            for problem in nic.problems() {
                let problem = problem.under(&format!("nics[{i}].options"));
                check(false, problem.field, &problem.message);
            }
        }
        if !problems.is_empty() {
            return Err(Error::invalid(operation, problems));
        }
        let id = self.id;
        let disks = self.disks.iter().map(|disk| &disk.options);
        let needs = hardware.needs(disks, self.nics.iter().map(|nic| &nic.options));
        let lacking = host.lacking(&hardware.cpu, &needs);
        let lacking = lacking.or_else(|| {
            let (wanted, most) = (hardware.vcpus, host.max_vcpus);
            (wanted > most).then(|| format!("take {most} vCPUs at most, and this is {wanted}"))
        });
        match lacking {
            None => Ok(()),
            Some(why) => {
                let message = format!("guests of this host {why}");
                Err(Error::new(ErrorKind::Unsupported, operation, message).with("domain", id))
            }
        }
    }
}

/// A disk to give to a domain.
#[derive(Clone, Debug)]
pub struct DiskAttachment {
    /// The disk's name in the VM: the serial that the guest sees (its first 20 bytes).
    pub name: String,
    /// The volume.
    pub volume: VolumeId,
    /// Where its data is.
    pub attachment: Attachment,
    /// How the guest is given it.
    pub options: DiskOptions,
}

/// A NIC to give to a domain.
#[derive(Clone, Debug)]
pub struct NicAttachment {
    /// The port.
    pub port: PortId,
    /// The MAC address.
    pub mac: MacAddr,
    /// How it is reached on this host.
    pub binding: PortBinding,
    /// Port forwards (user-mode networks only).
    pub forwards: Vec<PortForward>,
    /// How the guest is given it.
    pub options: NicOptions,
}

impl NicAttachment {
    fn problems(&self) -> Vec<Problem> {
        let mut problems = self.options.problems();
        if self.binding == PortBinding::User {
            problems.extend(self.options.problems_without_device());
        }
        problems
    }

    /// Whether there can be such a NIC: what every driver's `attach_nic` looks at first.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] with every problem by its field.
    pub fn check(&self, operation: &'static str) -> Result<()> {
        match self.problems() {
            problems if problems.is_empty() => Ok(()),
            problems => Err(Error::invalid(operation, problems)),
        }
    }
}

/// The files of a NoCloud seed, its secrets filled in: it never leaves memory but into a file that only its owner reads.
#[derive(Clone, Debug)]
pub struct Seed {
    /// `meta-data`.
    pub meta_data: String,
    /// `user-data`.
    pub user_data: SecretString,
    /// `network-config`, version 2.
    pub network_config: Option<String>,
}

/// A domain as the hypervisor sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// Whose it is.
    pub owner: DomainOwner,
    /// What it does.
    pub state: DomainState,
    /// The volumes that are attached to it as disks now.
    pub disks: Vec<VolumeId>,
    /// The ports that are attached to it now.
    pub nics: Vec<PortId>,
}

/// Whose a domain is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DomainOwner {
    /// Made by NovaCron; perhaps for another cluster.
    NovaCron(DomainId),
    /// Somebody else's, by the name the hypervisor has for it. Never touched.
    Foreign(String),
}

/// What a domain does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DomainState {
    /// Made, never started.
    Defined,
    /// In memory, its vCPUs held.
    Paused,
    /// Its vCPUs run.
    Running,
    /// It does not run, and never will: the VM's next start is another epoch.
    Ended(Exit),
    /// The hypervisor cannot tell.
    Unknown(String),
}

/// How to stop a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Press the power button (ACPI). The guest may ignore it.
    Shutdown,
    /// End it now.
    Kill,
}

/// What a stop came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReport {
    /// The guest was asked; an event will tell when it ends.
    Asked,
    /// It has ended: the driver saw its process go, or its run lock free.
    Ended,
}

/// What a hypervisor pushes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HypervisorEvent {
    /// About which domain.
    pub domain: DomainId,
    /// What happened.
    pub event: GuestEvent,
}

/// What happened to a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestEvent {
    /// Its state changed: inspect it.
    StateChanged,
    /// The guest restarted itself, or was reset.
    Reset,
    /// The guest no longer fed its watchdog, whose action follows.
    Watchdog,
    /// The guest agent came or went.
    Agent {
        /// Whether it answers now.
        connected: bool,
    },
}

/// One host's domains.
#[async_trait]
pub trait Hypervisor: fmt::Debug + Send + Sync + 'static {
    /// Who the host is and what it can do now.
    ///
    /// *Holds on return:* host UUID and boot id are those of the machine that runs the guests.
    async fn probe(&self, call: Call) -> Result<HostInfo>;

    /// Every domain on the host: ours, other clusters', and foreign ones.
    ///
    /// *Holds on return:* complete: a domain of ours that is missing does not exist, and no call that ended before can
    /// still make it.
    async fn list(&self, call: Call) -> Result<Vec<Domain>>;

    /// One domain, or none if it is not defined.
    async fn inspect(&self, call: Call, id: DomainId) -> Result<Option<Domain>>;

    /// Names the domain on the host.
    ///
    /// *Holds on return:* it is listed, and nothing runs. *A second identical call* changes nothing; one with another
    /// spec for a domain that is [`DomainState::Defined`] replaces it, and for any other changes nothing. *Left behind on
    /// failure:* only what `undefine` removes; nothing, if it fails as [`DomainSpec::check`] does, which comes first.
    async fn define(&self, call: Call, spec: &DomainSpec) -> Result<()>;

    /// Starts a defined domain with its vCPUs held.
    ///
    /// *Holds on return:* the domain is [`DomainState::Paused`], holds its run lock, and no other epoch of the VM runs
    /// on this host. *A second identical call*, while it is paused or running, changes nothing. *Errors:*
    /// `FailedPrecondition` when another epoch of the VM holds the run lock, or when this epoch has ended: an epoch is
    /// started once; also when another domain has the image of one of its disks open, as in
    /// [`HotPlug::attach_disk`]. *Left behind on failure:* only what `undefine` removes; the error carries the
    /// hypervisor's last words.
    async fn start(&self, call: Call, id: DomainId) -> Result<()>;

    /// Lets the vCPUs run. *A second identical call* changes nothing.
    async fn resume(&self, call: Call, id: DomainId) -> Result<()>;

    /// Holds the vCPUs. *A second identical call* changes nothing.
    async fn pause(&self, call: Call, id: DomainId) -> Result<()>;

    /// Stops a domain.
    ///
    /// *Holds on return:* for [`StopReport::Ended`], the domain does not run, never will, and its images are closed. One
    /// that was only defined has then ended too, whichever the mode: a later `start` of it is refused. *A second
    /// identical call* asks again, or answers `Ended`. A domain that does not exist has ended.
    async fn stop(&self, call: Call, id: DomainId, mode: StopMode) -> Result<StopReport>;

    /// Presses the reset button. Needs a started domain.
    async fn reset(&self, call: Call, id: DomainId) -> Result<()>;

    /// Removes every artefact of a domain that does not run.
    ///
    /// *Holds on return:* nothing of it is left and, as no call that makes it is under way, nothing comes back. *A
    /// second identical call* changes nothing. *Errors:* `FailedPrecondition` when it runs.
    async fn undefine(&self, call: Call, id: DomainId) -> Result<()>;

    /// Numbers of a started domain.
    async fn stats(&self, call: Call, id: DomainId) -> Result<DomainStats>;

    /// What happens to domains from now on: pushed, not polled. A reader that falls behind loses events and is told by
    /// the stream's end; it then lists and asks for a new stream.
    fn events(&self) -> BoxStream<'static, HypervisorEvent>;

    /// Attach and detach while the guest runs.
    fn hot_plug(&self) -> Option<&dyn HotPlug> {
        None
    }

    /// Serial consoles.
    fn consoles(&self) -> Option<&dyn Consoles> {
        None
    }

    /// Screens.
    fn screens(&self) -> Option<&dyn Screens> {
        None
    }

    /// Finding out what is wrong with a guest.
    fn diagnostics(&self) -> Option<&dyn Diagnostics> {
        None
    }

    /// The guest agent.
    fn guest_agent(&self) -> Option<&dyn GuestAgent> {
        None
    }

    /// The hypervisor's step of a live disk snapshot.
    fn disk_pivot(&self) -> Option<&dyn DiskPivot> {
        None
    }

    /// Saving a guest's memory, and starting from it.
    fn memory_snapshots(&self) -> Option<&dyn MemorySnapshots> {
        None
    }

    /// Live migration to and from this host.
    fn migration(&self) -> Option<&dyn MigrationEndpoint> {
        None
    }

    /// Reading a running domain's disks as they were at one point.
    fn block_export(&self) -> Option<&dyn BlockExport> {
        None
    }
}

/// A byte stream in both directions.
pub trait ByteStream: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> ByteStream for T {}

/// Where a console's stream begins. Offsets count the bytes that the guest has written since the domain was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConsoleStart {
    /// At most this many bytes before the end.
    Last(u64),
    /// This offset: where a reader that lost its stream goes on.
    Offset(u64),
}

/// An open console.
pub struct ConsoleStream {
    /// The offset of the first byte that will be read; each byte read is one more.
    pub offset: u64,
    /// The bytes. What is written goes to the guest.
    pub stream: Pin<Box<dyn ByteStream>>,
}

impl fmt::Debug for ConsoleStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsoleStream")
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}

/// Serial consoles.
#[async_trait]
pub trait Consoles: Send + Sync {
    /// The console's bytes from `start` on, and then live. Several readers each see everything.
    ///
    /// *Holds on return:* the stream begins at `start` or, where those bytes are not kept any more, at the oldest that
    /// are; an offset that the guest has not come to is the end. Which it is, the stream's offset says. A reader that is
    /// so slow that its next bytes are not kept any more gets an error, and opens anew. The stream of a domain that has
    /// ended ends after its last byte.
    async fn open(&self, call: Call, id: DomainId, start: ConsoleStart) -> Result<ConsoleStream>;
}

/// Screens, by VNC (the RFB protocol, RFC 6143).
#[async_trait]
pub trait Screens: Send + Sync {
    /// A connection to a started domain's screen, from the server's `ProtocolVersion` on. It asks for no password: whoever
    /// calls decides who may look and type. How several viewers get on is theirs to say (`ClientInit`'s shared flag).
    ///
    /// *Ends* with the domain.
    async fn vnc(&self, call: Call, id: DomainId) -> Result<Pin<Box<dyn ByteStream>>>;
}

/// Finding out what is wrong with a guest that hangs, or may be broken into.
#[async_trait]
pub trait Diagnostics: Send + Sync {
    /// Gives each vCPU of a started domain a non-maskable interrupt. What its kernel makes of that is for it to say: Linux
    /// logs it, or panics (`kernel.unknown_nmi_panic`), Windows writes a crash dump.
    async fn inject_nmi(&self, call: Call, id: DomainId) -> Result<()>;

    /// Writes a started domain's memory into a new file of the host, as an ELF core for `crash` or `drgn`. The vCPUs are held
    /// meanwhile. The file has what the guest has in memory, secrets and all; it is its owner's alone.
    ///
    /// *Holds on return:* the file is whole, and the domain goes on as before. *Errors:* `AlreadyExists` for a file that is
    /// there, where the driver can see it. *Left behind on failure:* nothing; after `OutcomeUnknown` the dump may go on.
    async fn dump_memory(&self, call: Call, id: DomainId, file: &Path) -> Result<()>;
}

/// The guest agent. Its answers are the guest's word, and as hostile as the guest.
#[async_trait]
pub trait GuestAgent: Send + Sync {
    /// Whether it answers.
    async fn ping(&self, call: Call, id: DomainId) -> Result<()>;

    /// Runs a program in the guest and waits for its end. *On a passed deadline* the program may still run.
    async fn exec(
        &self,
        call: Call,
        id: DomainId,
        argv: &[String],
        stdin: Option<Bytes>,
    ) -> Result<AgentOutput>;

    /// Freezes the guest's file systems; returns how many. Undone by [`GuestAgent::thaw`].
    async fn freeze(&self, call: Call, id: DomainId) -> Result<u32>;

    /// Thaws them; those that are not frozen are no error.
    async fn thaw(&self, call: Call, id: DomainId) -> Result<u32>;

    /// The guest's addresses.
    async fn addresses(&self, call: Call, id: DomainId) -> Result<Vec<GuestAddress>>;
}

/// What a program in the guest came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentOutput {
    /// Its exit code; none if a signal ended it.
    pub exit_code: Option<i32>,
    /// The signal that ended it (on Windows the exception, as a signed number); none if it exited.
    pub signal: Option<i32>,
    /// Standard output, from its beginning, as far as the agent keeps it.
    pub stdout: Bytes,
    /// Standard error, likewise.
    pub stderr: Bytes,
    /// The program wrote more to its standard output than the agent kept.
    pub stdout_truncated: bool,
    /// The program wrote more to its standard error than the agent kept.
    pub stderr_truncated: bool,
}

/// An address of an interface in the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestAddress {
    /// The interface's name in the guest.
    pub interface: String,
    /// Its MAC address, if it has one.
    pub mac: Option<MacAddr>,
    /// The address.
    pub address: IpAddr,
    /// Length of the network's prefix.
    pub prefix: u8,
}

/// The middle step of a live snapshot: `storage.snapshot_prepare` → **pivot** → `storage.snapshot_commit`.
#[async_trait]
pub trait DiskPivot: Send + Sync {
    /// From now on the domain writes a disk's data to the new layer at `path`, which was prepared on top of the present
    /// one.
    ///
    /// *Holds on return:* every write that the guest saw complete before is below the new layer. *A second identical
    /// call* changes nothing.
    async fn pivot(
        &self,
        call: Call,
        id: DomainId,
        volume: VolumeId,
        snapshot: SnapshotId,
        path: PathBuf,
    ) -> Result<()>;
}
