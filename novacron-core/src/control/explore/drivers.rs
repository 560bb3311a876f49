//! Drivers and a store that answer from a script: a command is carried out by the production's [`execute`], one call at
//! a time.
//!
//! A command under way is its answers so far. To go on, it is begun anew and its first calls are answered as they were
//! before; the first call for which there is no answer yet is what it asks next. So a state of the exploration can be
//! kept and gone on from many times, which a future cannot.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};

use crate::control::executor::{Completion, Drivers, execute};
use crate::control::plan::{Command, ObjectKey};
use crate::driver::{
    Artefact, ArtefactId, AttachRequest, Attachment, AttachmentSource, Call, CreateVolume, Domain,
    DomainId, DomainSpec, DomainStats, Fence, FenceTarget, Hypervisor, HypervisorEvent, PoolInfo,
    StopMode, StopReport, StorageBackend, VolumeInfo,
};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{self, Epoch, FenceReceipt, HostInfo, NodeId, SnapshotId, VmId, VolumeId};
use crate::store::{
    Commit, Key, Lease, LeaseAnswer, ListOptions, Page, Record, Revision, Store, TxnId, TxnOutcome,
    WatchStream,
};

/// A call of a driver, or of the store by a command.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Request {
    Probe(NodeId),
    List(NodeId),
    Inspect(NodeId, DomainId),
    Define(NodeId, DomainId, Vec<VolumeId>),
    Start(NodeId, DomainId),
    Resume(NodeId, DomainId),
    Pause(NodeId, DomainId),
    Stop(NodeId, DomainId, bool),
    Undefine(NodeId, DomainId),
    Attach(VolumeId, NodeId, VmId, Epoch),
    Detach(VolumeId, NodeId, VmId, Epoch),
    Fence(NodeId),
    Read(Key),
    Lease(String),
}

impl Request {
    /// Whether a call whose answer is lost may still change anything.
    pub(super) fn has_effect(&self) -> bool {
        !matches!(
            self,
            Self::Probe(_) | Self::List(_) | Self::Inspect(..) | Self::Read(_)
        )
    }
}

/// States are told apart by its `Debug`, so nothing of it may be missing there.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    Done,
    Host(HostInfo),
    Domains(Vec<Domain>),
    Domain(Option<Domain>),
    Record(Option<(Key, Revision, Bytes)>),
    /// Whether the lease was granted.
    Lease(bool),
    Failed(ErrorKind),
}

#[derive(Debug, Default)]
pub(super) struct Script(Mutex<Lines>);

#[derive(Debug, Default)]
struct Lines {
    answers: Vec<Answer>,
    asked: Option<Request>,
}

impl Script {
    async fn ask(&self, request: Request) -> Result<Answer> {
        let answer = {
            let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let answer = lines.answers.pop();
            if answer.is_none() {
                lines.asked = Some(request);
            }
            answer
        };
        match answer {
            Some(Answer::Failed(kind)) => Err(Error::new(kind, "explore", "it did not answer")),
            Some(answer) => Ok(answer),
            None => std::future::pending().await,
        }
    }

    /// Carries the command out as far as the answers go: what it asks next, or what it came to.
    pub(super) fn carry_on(
        &self,
        drivers: &Arc<Drivers>,
        key: &ObjectKey,
        command: &Command,
        answers: &[Answer],
    ) -> std::result::Result<Request, Box<Completion>> {
        *self.0.lock().unwrap() = Lines {
            answers: answers.iter().rev().cloned().collect(),
            asked: None,
        };
        let work = pin!(execute(Arc::clone(drivers), key.clone(), command.clone()));
        match work.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(completion) => Err(Box::new(completion)),
            Poll::Pending => Ok(self.0.lock().unwrap().asked.take().expect("a question")),
        }
    }
}

/// What the exploration has no part for.
fn none_here<T>() -> Result<T> {
    let message = "the exploration has no such call";
    Err(Error::new(ErrorKind::Unsupported, "explore", message))
}

macro_rules! expect {
    ($asked:expr, $answer:pat => $value:expr) => {
        match $asked.await? {
            $answer => Ok($value),
            other => panic!("{other:?} is no answer to that"),
        }
    };
}

#[derive(Debug)]
pub(super) struct Host(pub(super) NodeId, pub(super) Arc<Script>);

#[async_trait]
impl Hypervisor for Host {
    async fn probe(&self, _: Call) -> Result<HostInfo> {
        expect!(self.1.ask(Request::Probe(self.0.clone())), Answer::Host(host) => host)
    }
    async fn list(&self, _: Call) -> Result<Vec<Domain>> {
        expect!(self.1.ask(Request::List(self.0.clone())), Answer::Domains(list) => list)
    }
    async fn inspect(&self, _: Call, id: DomainId) -> Result<Option<Domain>> {
        expect!(self.1.ask(Request::Inspect(self.0.clone(), id)), Answer::Domain(domain) => domain)
    }
    async fn define(&self, _: Call, spec: &DomainSpec) -> Result<()> {
        let disks = spec.disks.iter().map(|d| d.volume).collect();
        let request = Request::Define(self.0.clone(), spec.id, disks);
        expect!(self.1.ask(request), Answer::Done => ())
    }
    async fn start(&self, _: Call, id: DomainId) -> Result<()> {
        expect!(self.1.ask(Request::Start(self.0.clone(), id)), Answer::Done => ())
    }
    async fn resume(&self, _: Call, id: DomainId) -> Result<()> {
        expect!(self.1.ask(Request::Resume(self.0.clone(), id)), Answer::Done => ())
    }
    async fn pause(&self, _: Call, id: DomainId) -> Result<()> {
        expect!(self.1.ask(Request::Pause(self.0.clone(), id)), Answer::Done => ())
    }
    async fn stop(&self, _: Call, id: DomainId, mode: StopMode) -> Result<StopReport> {
        let kill = mode == StopMode::Kill;
        let report = if kill {
            StopReport::Ended
        } else {
            StopReport::Asked
        };
        expect!(self.1.ask(Request::Stop(self.0.clone(), id, kill)), Answer::Done => report)
    }
    async fn reset(&self, _: Call, _: DomainId) -> Result<()> {
        none_here()
    }
    async fn undefine(&self, _: Call, id: DomainId) -> Result<()> {
        expect!(self.1.ask(Request::Undefine(self.0.clone(), id)), Answer::Done => ())
    }
    async fn stats(&self, _: Call, _: DomainId) -> Result<DomainStats> {
        none_here()
    }
    fn events(&self) -> BoxStream<'static, HypervisorEvent> {
        stream::pending().boxed()
    }
}

#[derive(Debug)]
pub(super) struct Pool(pub(super) Arc<Script>);

#[async_trait]
impl StorageBackend for Pool {
    async fn probe(&self, _: Call) -> Result<PoolInfo> {
        none_here()
    }
    async fn list(&self, _: Call) -> Result<Vec<Artefact>> {
        none_here()
    }
    async fn create(&self, _: Call, _: &CreateVolume) -> Result<VolumeInfo> {
        none_here()
    }
    async fn inspect(&self, _: Call, _: ArtefactId) -> Result<Option<VolumeInfo>> {
        none_here()
    }
    async fn resize(&self, _: Call, _: VolumeId, _: model::Bytes) -> Result<VolumeInfo> {
        none_here()
    }
    async fn delete(&self, _: Call, _: ArtefactId) -> Result<()> {
        none_here()
    }
    async fn attach(&self, _: Call, id: VolumeId, by: &AttachRequest) -> Result<Attachment> {
        let request = Request::Attach(id, by.node.clone(), by.vm, by.epoch);
        let attachment = Attachment {
            source: AttachmentSource::File("/explored".into()),
            format: model::VolumeFormat::Raw,
            epoch: by.epoch,
            enforces_writer: false,
        };
        expect!(self.0.ask(request), Answer::Done => attachment)
    }
    async fn detach(&self, _: Call, id: VolumeId, by: &AttachRequest) -> Result<()> {
        let request = Request::Detach(id, by.node.clone(), by.vm, by.epoch);
        expect!(self.0.ask(request), Answer::Done => ())
    }
    async fn snapshot_prepare(
        &self,
        _: Call,
        _: VolumeId,
        _: SnapshotId,
        _: Option<&AttachRequest>,
    ) -> Result<Option<Attachment>> {
        none_here()
    }
    async fn snapshot_commit(&self, _: Call, _: VolumeId, _: SnapshotId) -> Result<()> {
        none_here()
    }
    async fn snapshot_delete(&self, _: Call, _: VolumeId, _: SnapshotId) -> Result<()> {
        none_here()
    }
    async fn restore(&self, _: Call, _: VolumeId, _: SnapshotId) -> Result<()> {
        none_here()
    }
}

#[derive(Debug)]
pub(super) struct Power(pub(super) Arc<Script>);

#[async_trait]
impl Fence for Power {
    async fn fence(&self, _: Call, target: &FenceTarget) -> Result<FenceReceipt> {
        let receipt = FenceReceipt {
            method: "power".to_owned(),
            detail: "booted anew".to_owned(),
        };
        expect!(self.0.ask(Request::Fence(target.node.clone())), Answer::Done => receipt)
    }
}

/// The store as commands have it. What the runtime commits goes another way.
#[derive(Debug)]
pub(super) struct Records(pub(super) Arc<Script>);

#[async_trait]
impl Store for Records {
    fn exclusive(&self) -> bool {
        false
    }
    async fn revision(&self) -> Result<Revision> {
        none_here()
    }
    async fn get(&self, key: &Key) -> Result<Option<Record>> {
        expect!(self.0.ask(Request::Read(key.clone())), Answer::Record(record) => {
            record.map(|(key, version, value)| Record { key, version, value })
        })
    }
    async fn list(&self, _: &str, _: ListOptions) -> Result<Page> {
        none_here()
    }
    async fn commit(&self, _: Commit) -> Result<Revision> {
        none_here()
    }
    async fn outcome(&self, _: TxnId) -> Result<TxnOutcome> {
        none_here()
    }
    async fn watch(&self, _: Vec<String>, _: Revision) -> Result<WatchStream> {
        none_here()
    }
    async fn compact(&self, _: Revision) -> Result<()> {
        none_here()
    }
    async fn lease_acquire(&self, name: &str, _: &str, _: Duration) -> Result<LeaseAnswer> {
        let granted = |granted| match granted {
            true => LeaseAnswer::Granted(Lease {
                name: name.to_owned(),
                holder: String::new(),
                token: 1,
                ttl: Duration::ZERO,
            }),
            false => LeaseAnswer::HeldBy {
                holder: "another".to_owned(),
                remaining: Duration::ZERO,
            },
        };
        expect!(self.0.ask(Request::Lease(name.to_owned())), Answer::Lease(g) => granted(g))
    }
    async fn lease_renew(&self, _: &Lease) -> Result<()> {
        none_here()
    }
    async fn lease_release(&self, _: &Lease) -> Result<()> {
        none_here()
    }
    async fn put_beat(&self, _: &Key, _: Option<Bytes>) -> Result<()> {
        none_here()
    }
    async fn beats(&self, _: &str) -> Result<Vec<(Key, Bytes)>> {
        none_here()
    }
}
