//! The core's suite for hypervisors, on real guests.
#![allow(clippy::unwrap_used, reason = "to panic is to fail the test")]

mod common;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;
use common::*;
use novacron_core::conformance::hypervisor::{Ability, GuestAct, HypervisorFixture};
use novacron_core::driver::{DiskAttachment, DomainId, DomainSpec, Hypervisor, NicAttachment};
use novacron_core::model::{Bytes, SnapshotId};
use novacron_kvm::QemuHypervisor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

struct Fixture {
    bench: Bench,
    open: Mutex<Option<Weak<QemuHypervisor>>>,
}

impl Fixture {
    fn new() -> Self {
        Self {
            bench: Bench::new(),
            open: Mutex::default(),
        }
    }

    fn current(&self) -> Option<Arc<QemuHypervisor>> {
        self.open.lock().unwrap().as_ref()?.upgrade()
    }
}

#[async_trait]
impl HypervisorFixture for Fixture {
    /// The test guest has no driver for the panic device, and nothing tells whose a strange QEMU is.
    fn lacks(&self) -> BTreeSet<Ability> {
        [Ability::Guest(GuestAct::Panic), Ability::Foreign].into()
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
        let disks = vec![self.bench.disk(&format!("root-{id}"), "8M")];
        DomainSpec {
            id,
            disks,
            nics: vec![self.bench.nic(None)],
            ..self.bench.guest()
        }
    }

    async fn unstartable(&self, id: DomainId) -> DomainSpec {
        let spec = self.spec(id).await;
        std::fs::remove_file(file_of(&spec.disks[0])).unwrap();
        spec
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

    async fn layer(&self, disk: &DiskAttachment, snapshot: SnapshotId) -> PathBuf {
        let (path, base) = (
            self.bench.path().join(format!("{snapshot}.qcow2")),
            file_of(disk),
        );
        let (text, base) = (path.to_str().unwrap(), base.to_str().unwrap());
        qemu_img(&[
            "create", "-q", "-f", "qcow2", "-F", "qcow2", "-u", "-b", base, text, "8M",
        ]);
        path
    }

    async fn booted(&self, id: DomainId) {
        let hypervisor = self.current().expect("it is open");
        Shell::open(&hypervisor, id).await.ready().await;
    }

    async fn guest_does(&self, id: DomainId, act: GuestAct) {
        match act {
            GuestAct::Crash => kill(self.bench.pid(id)),
            GuestAct::Panic => unreachable!("declared as lacking"),
            GuestAct::PowerOff => match self.current() {
                Some(hypervisor) => Shell::open(&hypervisor, id).await.send("poweroff\n").await,
                None => {
                    let socket = format!("{}/{}/con", id.vm, id.epoch);
                    let mut console = UnixStream::connect(self.bench.state().join(socket))
                        .await
                        .unwrap();
                    // QEMU drops what the guest has not read yet when its client goes.
                    console
                        .write_all(b"echo g\"\"oes; poweroff\n")
                        .await
                        .unwrap();
                    let (mut heard, mut chunk) = (String::new(), [0; 256]);
                    while !heard.contains("goes") {
                        let count = console.read(&mut chunk).await.unwrap();
                        assert!(count > 0, "the console ended: {heard}");
                        heard.push_str(&String::from_utf8_lossy(&chunk[..count]));
                    }
                }
            },
        }
    }

    async fn add_foreign(&self) -> String {
        unreachable!("declared as lacking")
    }

    async fn foreign_runs(&self, _name: &str) -> bool {
        unreachable!("declared as lacking")
    }
}

novacron_core::hypervisor_conformance!(Fixture::new());
