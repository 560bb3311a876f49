//! The simulated hypervisor against the suite: at once, and with calls that take their time.
#![cfg(feature = "conformance")]
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use novacron_core::conformance::hypervisor::{Ability, GuestAct, HypervisorFixture};
use novacron_core::driver::{
    Attachment, AttachmentSource, DiskAttachment, DomainId, DomainSpec, Hypervisor, NicAttachment,
};
use novacron_core::model::{
    Bytes, DiskOptions, Epoch, Exit, Hardware, HostId, MacAddr, MiB, NicOptions, PortBinding,
    PortId, SnapshotId, VolumeFormat, VolumeId,
};
use novacron_core::sim::{Latency, SimHypervisor, SimWorld};
use novacron_core::{SeededIds, Timestamp};
use uuid::Uuid;

struct Fixture {
    world: SimWorld,
    host: HostId,
    ids: SeededIds,
}

impl Fixture {
    fn new() -> Self {
        let world = SimWorld::new(1);
        Self {
            host: world.add_host(4, MiB(8_192)),
            world,
            ids: SeededIds::from_seed(1),
        }
    }

    fn slow() -> Self {
        let fixture = Self::new();
        let latency = Duration::ZERO..=Duration::from_millis(3);
        fixture.world.set_latency(Latency {
            call: latency.clone(),
            shutdown: latency,
        });
        fixture
    }

    fn disk_from(&self, name: &str, path: &str) -> DiskAttachment {
        DiskAttachment {
            name: name.to_owned(),
            volume: VolumeId::generate(Timestamp::from_millis(0), &self.ids),
            attachment: Attachment {
                source: AttachmentSource::File(path.into()),
                format: VolumeFormat::Qcow2,
                epoch: Epoch(1),
                enforces_writer: false,
            },
            options: DiskOptions::default(),
        }
    }
}

#[async_trait]
impl HypervisorFixture for Fixture {
    fn lacks(&self) -> BTreeSet<Ability> {
        [
            Ability::Consoles,
            Ability::Diagnostics,
            Ability::GuestAgent,
            Ability::Screens,
        ]
        .into()
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(10)
    }

    async fn open(&self) -> Arc<dyn Hypervisor> {
        Arc::new(SimHypervisor::new(&self.world, self.host))
    }

    async fn close(&self, hypervisor: Arc<dyn Hypervisor>) {
        drop(hypervisor);
    }

    async fn spec(&self, id: DomainId) -> DomainSpec {
        DomainSpec {
            id,
            name: "guest".to_owned(),
            hardware: Hardware::new(2, MiB(256)),
            disks: vec![self.disk("root").await, self.disk("data").await],
            nics: vec![self.nic().await],
            nvram: None,
            generation_id: Uuid::nil(),
            tpm: None,
            seed: None,
        }
    }

    async fn unstartable(&self, id: DomainId) -> DomainSpec {
        let mut spec = self.spec(id).await;
        let mut disk = self.disk_from("missing", "");
        let path = format!("/sim/pool/{}/base", disk.volume);
        disk.attachment.source = AttachmentSource::File(path.into());
        spec.disks.push(disk);
        spec
    }

    async fn disk(&self, name: &str) -> DiskAttachment {
        self.disk_from(name, "/elsewhere/disk.qcow2")
    }

    fn disk_size(&self) -> Bytes {
        Bytes::mib(8)
    }

    async fn nic(&self) -> NicAttachment {
        NicAttachment {
            port: PortId::generate(Timestamp::from_millis(0), &self.ids),
            mac: MacAddr::from_bits(1),
            binding: PortBinding::User,
            forwards: Vec::new(),
            options: NicOptions::default(),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        unreachable!("{name}: there are no diagnostics")
    }

    async fn layer(&self, disk: &DiskAttachment, snapshot: SnapshotId) -> PathBuf {
        format!("/elsewhere/{}-{snapshot}.qcow2", disk.name).into()
    }

    async fn booted(&self, _: DomainId) {}

    async fn guest_does(&self, id: DomainId, act: GuestAct) {
        let exit = match act {
            GuestAct::PowerOff => Exit::GuestShutdown,
            GuestAct::Panic => Exit::Panicked,
            GuestAct::Crash => Exit::Crashed {
                detail: "killed".to_owned(),
            },
        };
        assert!(self.world.end_guest(self.host, id, exit), "it is started");
    }

    async fn add_foreign(&self) -> String {
        self.world.add_foreign(self.host, "somebody's");
        "somebody's".to_owned()
    }

    async fn foreign_runs(&self, name: &str) -> bool {
        self.world.foreign(self.host).iter().any(|f| f == name)
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let violations = self.world.violations();
        assert!(
            violations.is_empty() || std::thread::panicking(),
            "{violations:?}"
        );
    }
}

mod at_once {
    novacron_core::hypervisor_conformance!(super::Fixture::new());
}

mod with_latency {
    novacron_core::hypervisor_conformance!(super::Fixture::slow());
}
