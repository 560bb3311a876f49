//! The core's suite for hypervisors, on real guests.
#![allow(clippy::unwrap_used, reason = "to panic is to fail the test")]

mod common;

use std::collections::BTreeSet;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;
use common::*;
use novacron_core::conformance::hypervisor::{Ability, GuestAct, HypervisorFixture};
use novacron_core::driver::{DiskAttachment, DomainId, DomainSpec, Hypervisor, NicAttachment};
use novacron_core::model::{Bytes, SnapshotId};
use novacron_kvm::QemuHypervisor;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

struct Fixture {
    bench: Bench,
    open: Mutex<Option<Weak<QemuHypervisor>>>,
    foreign: Mutex<Option<Child>>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(foreign) = self.foreign.get_mut().unwrap() {
            let _ = foreign.kill();
            let _ = foreign.wait();
        }
    }
}

impl Fixture {
    fn new() -> Self {
        Self {
            bench: Bench::new(),
            open: Mutex::default(),
            foreign: Mutex::default(),
        }
    }

    fn current(&self) -> Option<Arc<QemuHypervisor>> {
        self.open.lock().unwrap().as_ref()?.upgrade()
    }
}

#[async_trait]
impl HypervisorFixture for Fixture {
    fn lacks(&self) -> BTreeSet<Ability> {
        BTreeSet::new()
    }

    fn patience(&self) -> Duration {
        BOOT
    }

    async fn open(&self) -> Arc<dyn Hypervisor> {
        let hypervisor = Arc::new(self.bench.hypervisor());
        *self.open.lock().unwrap() = Some(Arc::downgrade(&hypervisor));
        hypervisor
    }

    async fn close(&self, hypervisor: Arc<dyn Hypervisor>) {
        drop(hypervisor);
        assert!(self.current().is_none(), "somebody still uses it");
    }

    async fn spec(&self, id: DomainId) -> DomainSpec {
        self.bench.furnished(id)
    }

    async fn unstartable(&self, id: DomainId) -> DomainSpec {
        self.bench.unstartable(id)
    }

    async fn disk(&self, name: &str) -> DiskAttachment {
        self.bench.disk(name, "16M")
    }

    fn disk_size(&self) -> Bytes {
        Bytes::mib(16)
    }

    async fn nic(&self) -> NicAttachment {
        self.bench.nic(None)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.bench.path().join(name)
    }

    async fn layer(&self, disk: &DiskAttachment, snapshot: SnapshotId) -> PathBuf {
        self.bench.layer(disk, snapshot)
    }

    async fn booted(&self, id: DomainId) {
        let hypervisor = self.current().expect("it is open");
        Shell::open(&*hypervisor, id).await.ready().await;
    }

    async fn guest_does(&self, id: DomainId, act: GuestAct) {
        let line = match act {
            GuestAct::Crash => return kill(self.bench.pid(id)),
            GuestAct::Panic => "echo c >/proc/sysrq-trigger\n",
            GuestAct::PowerOff => "poweroff\n",
        };
        match self.current() {
            Some(hypervisor) => Shell::open(&*hypervisor, id).await.send(line).await,
            None => {
                let dir = self.bench.dir(id);
                let mut console = UnixStream::connect(dir.join("con")).await.unwrap();
                console.write_all(line.as_bytes()).await.unwrap();
                // The console stays open: QEMU drops what the guest has not read yet when its client goes.
                halted(&dir.join("qmp")).await;
            }
        }
    }

    /// A process that holds a VM's lock, in a folder whose spec is damaged.
    async fn add_foreign(&self) -> String {
        let id = self.bench.domain_id();
        let dir = self.bench.dir(id);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("spec.json"), "{").unwrap();
        let lock = dir.with_file_name("run.lock");
        let mut holder = Command::new("flock")
            .args(["--no-fork", "--exclusive", lock.to_str().unwrap()])
            .args(["sh", "-c", "echo locked; exec sleep 1000"])
            .current_dir(&dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut word = [0; 6];
        holder.stdout.take().unwrap().read_exact(&mut word).unwrap();
        std::fs::write(&lock, format!("{} {}", id.epoch, holder.id())).unwrap();
        *self.foreign.lock().unwrap() = Some(holder);
        id.to_string()
    }

    async fn foreign_runs(&self, _name: &str) -> bool {
        let mut foreign = self.foreign.lock().unwrap();
        foreign.as_mut().unwrap().try_wait().unwrap().is_none()
    }
}

novacron_core::hypervisor_conformance!(Fixture::new());
