//! Volumes and images as files in a folder.
//!
//! ```text
//! <dir>/volumes/<uuid>/  cluster        whose it is; written before the directory gets its name
//! <dir>/images/<uuid>/   volume.json    what is there: the commit point of every change
//!                        lock           held by whoever changes the artefact
//!                        data.lock      held by whoever reads its layers, or removes one
//!                        base.qcow2     the first layer (or base.raw)
//!                        <snapshot>.qcow2      the layer above a snapshot
//!                        <snapshot>-<n>.qcow2  the layer above a snapshot that was restored
//! <dir>/pool             its own id: a folder that was copied as a whole is the same pool
//! <dir>/parts/volumes/, <dir>/parts/images/    being made or being removed; `list` shows it, `delete` removes it
//!   <uuid>.<cluster>.<call>/
//! ```
//! A change makes new files beside the old ones, syncs them, then replaces `volume.json` by an atomic rename; files
//! that it does not name are swept by the next change. A directory without `volume.json` is half made. A linked clone
//! is a qcow2 layer over `../../images/<uuid>/…`, so a pool can be moved as a whole.
//!
//! Which call excludes which, across tasks (an async lock) and across processes and hosts of a shared folder (`flock`):
//!
//! | call | `lock` | `data.lock` |
//! |---|---|---|
//! | create | exclusive | its source's: shared |
//! | attach, detach, resize, snapshot_prepare, snapshot_commit | exclusive | |
//! | snapshot_delete, restore, delete | exclusive | exclusive |
//! | export | | shared |
//! | probe, list, inspect | | |
//!
//! So a backup that reads a snapshot for an hour keeps nobody from taking the next one. Who uses a volume is in its
//! record, from attach to detach; a guest that runs is seen as well by the locks that QEMU holds on the image
//! ([`writer`]), whoever started it. Both keep resize and restore out, the second also delete and export.
//!
//! A call whose future is dropped leaves what a crash would: its child is killed, its lock is free once the child is
//! gone, and the next call on the artefact sweeps.

mod chain;
mod copy;
mod create;
mod delete;
mod export;
mod import;
mod layout;
mod lock;
mod merge;
mod record;
mod snapshot;
mod volume;
mod writer;

#[cfg(feature = "http")]
mod http;

#[cfg(test)]
mod crash_tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use novacron_core::driver::{
    Artefact, ArtefactId, AttachRequest, Attachment, AttachmentSource, Call, CreateVolume,
    PoolInfo, StorageBackend, VolumeInfo, VolumeTransfer,
};
use novacron_core::model::{self, Epoch, SnapshotId, VolumeFormat, VolumeId};
use novacron_core::{Error, ErrorKind, Result};

use self::layout::Layout;
pub(crate) use self::lock::Held;
use self::lock::Locks;
use crate::failure::of_io;
use crate::qemu_img::QemuImg;
use crate::task::blocking;

/// Volumes and images in a folder, of one node or shared by several.
///
/// Cheap to clone; every clone is the same pool. Which nodes reach the folder is said to the cluster, not here.
#[derive(Clone, Debug)]
pub struct LocalStorage {
    pool: Arc<Pool>,
}

/// How a [`LocalStorage`] is opened.
#[derive(Clone, Debug)]
pub struct LocalStorageBuilder {
    dir: PathBuf,
    qemu_img: PathBuf,
    max_size: model::Bytes,
}

/// What every call works on.
#[derive(Debug)]
struct Pool {
    layout: Layout,
    qemu: QemuImg,
    max_size: u64,
    locks: Locks,
    /// Held shared while an artefact gets its name, which a call that has ended may still be about to. `list` waits for
    /// those before it looks, so that what it does not find does not come.
    naming: Arc<std::sync::RwLock<()>>,
}

impl LocalStorage {
    /// Opens the pool in `dir`, which is made if it is not there.
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`] for a folder that cannot be written.
    pub async fn open(dir: impl Into<PathBuf>) -> Result<Self> {
        Self::builder(dir).open().await
    }

    /// Opens a pool with other settings than the usual ones.
    pub fn builder(dir: impl Into<PathBuf>) -> LocalStorageBuilder {
        LocalStorageBuilder {
            dir: dir.into(),
            qemu_img: "qemu-img".into(),
            max_size: model::Bytes(64 << 40),
        }
    }

    /// The folder, as an absolute path.
    pub fn dir(&self) -> &Path {
        self.pool.layout.root()
    }
}

impl LocalStorageBuilder {
    /// Which `qemu-img` to run; by default the one in `PATH`.
    #[must_use]
    pub fn qemu_img(mut self, program: impl Into<PathBuf>) -> Self {
        self.qemu_img = program.into();
        self
    }

    /// The largest disk that is made or let in; by default 64 TiB.
    #[must_use]
    pub fn max_size(mut self, size: model::Bytes) -> Self {
        self.max_size = size;
        self
    }

    /// Opens the pool.
    ///
    /// # Errors
    /// As [`LocalStorage::open`].
    pub async fn open(self) -> Result<LocalStorage> {
        let dir = self.dir;
        let layout = blocking("storage.open", move || Layout::open(&dir)).await?;
        Ok(LocalStorage {
            pool: Arc::new(Pool {
                layout,
                qemu: QemuImg::new(self.qemu_img),
                max_size: self.max_size.0,
                locks: Locks::default(),
                naming: Arc::default(),
            }),
        })
    }
}

impl Pool {
    async fn probe(&self, call: Call) -> Result<PoolInfo> {
        const OP: &str = "storage.probe";
        self.qemu.answers(OP, call.deadline).await?;
        let layout = self.layout.clone();
        blocking(OP, move || {
            let root = layout.root();
            let identity = layout.identity(OP)?;
            let stat = rustix::fs::statvfs(root)
                .map_err(|e| of_io(OP, "cannot ask the file system", root, e.into()))?;
            Ok(PoolInfo {
                capacity: model::Bytes(stat.f_blocks.saturating_mul(stat.f_frsize)),
                free: model::Bytes(stat.f_bavail.saturating_mul(stat.f_frsize)),
                identity: Some(identity),
            })
        })
        .await
    }
}

fn attachment(path: PathBuf, format: VolumeFormat, epoch: Epoch) -> Attachment {
    Attachment {
        source: AttachmentSource::File(path),
        format,
        epoch,
        enforces_writer: false,
    }
}

/// What is said of something that is not there, or not made completely.
fn missing(operation: &'static str, id: ArtefactId) -> Error {
    Error::new(
        ErrorKind::NotFound,
        operation,
        format!("there is no {id} in the pool"),
    )
}

/// How long past its deadline a change may take to kill its child and to clean up.
const GRACE: Duration = Duration::from_secs(5);

/// An error if the deadline has passed already.
fn in_time(op: &'static str, call: Call) -> Result<()> {
    if call.deadline.remaining().is_zero() {
        return Err(Error::new(
            ErrorKind::DeadlineExceeded,
            op,
            "the deadline passed before the call",
        ));
    }
    Ok(())
}

/// A call that changes nothing, ended at its deadline also when the file system hangs.
async fn reading<T>(
    op: &'static str,
    call: Call,
    work: impl Future<Output = Result<T>> + Send,
) -> Result<T> {
    in_time(op, call)?;
    match tokio::time::timeout_at(call.deadline.instant(), work).await {
        Ok(result) => result,
        Err(_) => Err(Error::new(
            ErrorKind::DeadlineExceeded,
            op,
            "the deadline passed; does the file system answer?",
        )),
    }
}

/// A call that changes something. It watches the deadline itself; this is for a file system that hangs.
async fn changing<T>(
    op: &'static str,
    call: Call,
    work: impl Future<Output = Result<T>> + Send,
) -> Result<T> {
    in_time(op, call)?;
    match tokio::time::timeout_at(call.deadline.instant() + GRACE, work).await {
        Ok(result) => result,
        Err(_) => Err(Error::new(
            ErrorKind::OutcomeUnknown,
            op,
            "the deadline passed and the file system does not answer",
        )),
    }
}

#[async_trait]
impl StorageBackend for LocalStorage {
    async fn probe(&self, call: Call) -> Result<PoolInfo> {
        reading("storage.probe", call, self.pool.probe(call)).await
    }

    async fn list(&self, call: Call) -> Result<Vec<Artefact>> {
        const OP: &str = "storage.list";
        let (layout, naming) = (self.pool.layout.clone(), Arc::clone(&self.pool.naming));
        let list = blocking(OP, move || {
            drop(naming.write().unwrap_or_else(PoisonError::into_inner));
            layout.list()
        });
        reading(OP, call, list).await
    }

    async fn create(&self, call: Call, request: &CreateVolume) -> Result<VolumeInfo> {
        let work = Arc::clone(&self.pool).create(call, request);
        changing("storage.create", call, work).await
    }

    async fn inspect(&self, call: Call, id: ArtefactId) -> Result<Option<VolumeInfo>> {
        const OP: &str = "storage.inspect";
        reading(OP, call, self.pool.inspect(OP, id)).await
    }

    async fn resize(&self, call: Call, id: VolumeId, size: model::Bytes) -> Result<VolumeInfo> {
        changing("storage.resize", call, self.pool.resize(call, id, size)).await
    }

    async fn delete(&self, call: Call, id: ArtefactId) -> Result<()> {
        changing("storage.delete", call, self.pool.delete(call, id)).await
    }

    async fn attach(
        &self,
        call: Call,
        id: VolumeId,
        request: &AttachRequest,
    ) -> Result<Attachment> {
        changing("storage.attach", call, self.pool.attach(call, id, request)).await
    }

    async fn detach(&self, call: Call, id: VolumeId, request: &AttachRequest) -> Result<()> {
        changing("storage.detach", call, self.pool.detach(call, id, request)).await
    }

    async fn snapshot_prepare(
        &self,
        call: Call,
        id: VolumeId,
        snapshot: SnapshotId,
        writer: Option<&AttachRequest>,
    ) -> Result<Option<Attachment>> {
        let work = self.pool.snapshot_prepare(call, id, snapshot, writer);
        changing("storage.snapshot-prepare", call, work).await
    }

    async fn snapshot_commit(&self, call: Call, id: VolumeId, snapshot: SnapshotId) -> Result<()> {
        let work = self.pool.snapshot_commit(call, id, snapshot);
        changing("storage.snapshot-commit", call, work).await
    }

    async fn snapshot_delete(&self, call: Call, id: VolumeId, snapshot: SnapshotId) -> Result<()> {
        let work = self.pool.snapshot_delete(call, id, snapshot);
        changing("storage.snapshot-delete", call, work).await
    }

    async fn restore(&self, call: Call, id: VolumeId, snapshot: SnapshotId) -> Result<()> {
        let work = self.pool.restore(call, id, snapshot);
        changing("storage.restore", call, work).await
    }

    fn transfer(&self) -> Option<&dyn VolumeTransfer> {
        Some(self)
    }
}

#[async_trait]
impl VolumeTransfer for LocalStorage {
    async fn export(
        &self,
        call: Call,
        id: ArtefactId,
        snapshot: Option<SnapshotId>,
    ) -> Result<BoxStream<'static, Result<Bytes>>> {
        let work = Arc::clone(&self.pool).export(call, id, snapshot);
        reading("storage.export", call, work).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_list_waits_for_whoever_is_giving_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let pool = LocalStorage::open(dir.path()).await.unwrap();
        let naming = Arc::clone(&pool.pool.naming);
        let (held, release) = (std::sync::mpsc::channel(), std::sync::mpsc::channel::<()>());
        let hanging = std::thread::spawn(move || {
            let _naming = naming.read().unwrap();
            held.0.send(()).unwrap();
            // An error means that the test has failed: it ends as well.
            let _ = release.1.recv();
        });
        held.1.recv().unwrap();
        let short = Call::within(Duration::from_millis(50));
        let waited = pool.list(short).await.unwrap_err();
        assert_eq!(waited.kind(), ErrorKind::DeadlineExceeded);
        drop(release.0);
        hanging.join().unwrap();
        let call = Call::within(Duration::from_secs(60));
        assert_eq!(pool.list(call).await.unwrap(), []);
    }
}
