//! The core's suite for hypervisors, on real guests of a real libvirtd.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;
use novacron_core::conformance::hypervisor::{Ability, GuestAct, HypervisorFixture};
use novacron_core::driver::{DiskAttachment, DomainId, DomainSpec, Hypervisor, NicAttachment};
use novacron_core::model::{Bytes, SnapshotId};
use novacron_kvm::LibvirtHypervisor;

use crate::common::*;
use crate::daemon::{Daemon, name_of, wait_for};

struct Fixture {
    bench: Bench,
    daemon: Daemon,
    open: Mutex<Option<Weak<LibvirtHypervisor>>>,
}

impl Fixture {
    fn new() -> Self {
        Self {
            bench: Bench::new(),
            daemon: Daemon::up(),
            open: Mutex::default(),
        }
    }

    fn current(&self) -> Option<Arc<LibvirtHypervisor>> {
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
        let hypervisor = Arc::new(self.daemon.hypervisor());
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
            GuestAct::Crash => return kill(self.daemon.guest(id)),
            GuestAct::Panic => "echo c >/proc/sysrq-trigger\n",
            GuestAct::PowerOff => "poweroff\n",
        };
        if let Some(hypervisor) = self.current() {
            return Shell::open(&*hypervisor, id).await.send(line).await;
        }
        // Nobody of ours listens: typed at the console's terminal.
        let name = name_of(id);
        let terminal = self.daemon.virsh(&["ttyconsole", &name]).unwrap();
        let mut terminal = std::fs::File::options()
            .write(true)
            .open(terminal.trim())
            .unwrap();
        terminal.write_all(line.as_bytes()).unwrap();
        wait_for(BOOT, "the guest's end", || {
            let state = self.daemon.virsh(&["domstate", &name]).unwrap();
            matches!(state.trim(), "shut off" | "crashed")
        });
    }

    async fn add_foreign(&self) -> String {
        let name = "somebody-elses";
        let xml = self.bench.path().join("foreign.xml");
        let text = format!(
            "<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory>\
             <os><type arch='x86_64' machine='pc'>hvm</type></os></domain>"
        );
        std::fs::write(&xml, text).unwrap();
        let started = self.daemon.virsh(&["create", xml.to_str().unwrap()]);
        started.expect("a domain of somebody else's");
        name.to_owned()
    }

    async fn foreign_runs(&self, name: &str) -> bool {
        let state = self.daemon.virsh(&["domstate", name]);
        state.is_some_and(|state| state.trim() == "running")
    }
}

novacron_core::hypervisor_conformance!(Fixture::new());
