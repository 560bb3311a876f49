//! A storage driver in front of another one, in which a test stops or refuses the calls that it names.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use novacron_core::driver::{
    Artefact, ArtefactId, AttachRequest, Attachment, Call, ChangedBlocks, CreateVolume, PoolInfo,
    StorageBackend, VolumeInfo, VolumeTransfer,
};
use novacron_core::model::{Bytes, SnapshotId, VolumeId};
use novacron_core::sim::SimStorage;
use novacron_core::{Error, ErrorKind, Result};
use tokio::sync::watch;

#[derive(Clone, Debug)]
pub struct Gate {
    inner: SimStorage,
    rules: watch::Sender<BTreeMap<&'static str, Rule>>,
    calls: Arc<Mutex<BTreeMap<&'static str, u32>>>,
}

#[derive(Clone, Copy, Debug)]
enum Rule {
    Hold,
    Fail(ErrorKind),
}

impl Gate {
    pub fn new(inner: SimStorage) -> Self {
        Self {
            inner,
            rules: watch::Sender::new(BTreeMap::new()),
            calls: Arc::default(),
        }
    }

    /// Calls of this method wait from now on.
    pub fn hold(&self, op: &'static str) {
        self.set(op, Rule::Hold);
    }

    /// Calls of this method fail from now on, without effect.
    pub fn fail(&self, op: &'static str, kind: ErrorKind) {
        self.set(op, Rule::Fail(kind));
    }

    fn set(&self, op: &'static str, rule: Rule) {
        self.rules.send_modify(|rules| {
            rules.insert(op, rule);
        });
    }

    /// Everything passes again.
    pub fn open(&self) {
        self.rules.send_replace(BTreeMap::new());
    }

    /// How often the method was called.
    pub fn calls(&self, op: &'static str) -> u32 {
        self.calls.lock().unwrap().get(op).copied().unwrap_or(0)
    }

    /// Returns when the method has been called.
    pub async fn called(&self, op: &'static str) {
        while self.calls(op) == 0 {
            tokio::task::yield_now().await;
        }
    }

    async fn pass(&self, op: &'static str) -> Result<()> {
        *self.calls.lock().unwrap().entry(op).or_default() += 1;
        let mut rules = self.rules.subscribe();
        let free = rules.wait_for(|r| !matches!(r.get(op), Some(Rule::Hold)));
        match free.await.unwrap().get(op) {
            Some(Rule::Fail(kind)) => Err(Error::new(*kind, op, "refused by the test")),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl StorageBackend for Gate {
    async fn probe(&self, call: Call) -> Result<PoolInfo> {
        self.pass("probe").await?;
        self.inner.probe(call).await
    }

    async fn list(&self, call: Call) -> Result<Vec<Artefact>> {
        self.pass("list").await?;
        self.inner.list(call).await
    }

    async fn create(&self, call: Call, request: &CreateVolume) -> Result<VolumeInfo> {
        self.pass("create").await?;
        self.inner.create(call, request).await
    }

    async fn inspect(&self, call: Call, id: ArtefactId) -> Result<Option<VolumeInfo>> {
        self.pass("inspect").await?;
        self.inner.inspect(call, id).await
    }

    async fn resize(&self, call: Call, id: VolumeId, size: Bytes) -> Result<VolumeInfo> {
        self.pass("resize").await?;
        self.inner.resize(call, id, size).await
    }

    async fn delete(&self, call: Call, id: ArtefactId) -> Result<()> {
        self.pass("delete").await?;
        self.inner.delete(call, id).await
    }

    async fn attach(&self, call: Call, id: VolumeId, who: &AttachRequest) -> Result<Attachment> {
        self.pass("attach").await?;
        self.inner.attach(call, id, who).await
    }

    async fn detach(&self, call: Call, id: VolumeId, who: &AttachRequest) -> Result<()> {
        self.pass("detach").await?;
        self.inner.detach(call, id, who).await
    }

    async fn snapshot_prepare(
        &self,
        call: Call,
        id: VolumeId,
        snapshot: SnapshotId,
        writer: Option<&AttachRequest>,
    ) -> Result<Option<Attachment>> {
        self.pass("snapshot_prepare").await?;
        self.inner
            .snapshot_prepare(call, id, snapshot, writer)
            .await
    }

    async fn snapshot_commit(&self, call: Call, id: VolumeId, snapshot: SnapshotId) -> Result<()> {
        self.pass("snapshot_commit").await?;
        self.inner.snapshot_commit(call, id, snapshot).await
    }

    async fn snapshot_delete(&self, call: Call, id: VolumeId, snapshot: SnapshotId) -> Result<()> {
        self.pass("snapshot_delete").await?;
        self.inner.snapshot_delete(call, id, snapshot).await
    }

    async fn restore(&self, call: Call, id: VolumeId, snapshot: SnapshotId) -> Result<()> {
        self.pass("restore").await?;
        self.inner.restore(call, id, snapshot).await
    }

    fn transfer(&self) -> Option<&dyn VolumeTransfer> {
        self.inner.transfer()
    }

    fn changed_blocks(&self) -> Option<&dyn ChangedBlocks> {
        self.inner.changed_blocks()
    }
}
