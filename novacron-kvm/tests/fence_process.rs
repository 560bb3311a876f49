//! The fence of a cluster on one machine: an owner process and its real guests are ended together.
#![allow(clippy::unwrap_used, reason = "to panic is to fail the test")]

mod common;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use common::*;
use novacron_core::ErrorKind;
use novacron_core::driver::{DomainState, Fence, FenceTarget, Hypervisor};
use novacron_core::model::HostId;
use novacron_kvm::QemuHypervisor;
use novacron_kvm::fence::ProcessFence;
use rustix::process::Signal;
use tokio::time::timeout;

const STATE: &str = "NOVACRON_TEST_FENCED_STATE";

/// The owner: this test binary, run again with the variable set. It starts two guests, says so, and then a third over
/// and over until it is ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owner() {
    let Ok(folder) = std::env::var(STATE) else {
        return;
    };
    let bench = Bench::new();
    let hypervisor = QemuHypervisor::new(folder);
    for _ in 0..2 {
        let spec = bench.guest();
        hypervisor.define(call(), &spec).await.unwrap();
        hypervisor.start(call(), spec.id).await.unwrap();
        hypervisor.resume(call(), spec.id).await.unwrap();
    }
    let info = hypervisor.probe(call()).await.unwrap();
    println!("\nUP={} {}", info.host, info.boot_id);
    loop {
        let spec = bench.guest();
        hypervisor.define(call(), &spec).await.unwrap();
        hypervisor.start(call(), spec.id).await.unwrap();
    }
}

/// An owner that runs, and its guests.
struct Host {
    bench: Bench,
    owner: Child,
    target: FenceTarget,
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.owner.kill();
        let _ = self.owner.wait();
    }
}

impl Host {
    async fn up() -> Self {
        guest_dir();
        let bench = Bench::new();
        let mut owner = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "owner", "--nocapture"])
            .env(STATE, bench.state())
            .env("TMPDIR", bench.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(owner.stdout.take().unwrap());
        let find = move || {
            output
                .lines()
                .find_map(|line| Some(line.unwrap().strip_prefix("UP=")?.to_owned()))
        };
        let up = timeout(BOOT, tokio::task::spawn_blocking(find)).await;
        let up = up.unwrap().unwrap().expect("the owner came up");
        let (host, boot_id) = up.split_once(' ').unwrap();
        let target = FenceTarget {
            node: "alpha".parse().unwrap(),
            host: host.parse().unwrap(),
            boot_id: boot_id.trim().to_owned(),
        };
        Self {
            bench,
            owner,
            target,
        }
    }

    fn fence(&self) -> ProcessFence {
        ProcessFence::new(self.bench.state())
    }

    /// The VMs' folders.
    fn vms(&self) -> Vec<PathBuf> {
        let vms = self.bench.left();
        vms.iter().map(|vm| self.bench.state().join(vm)).collect()
    }

    /// The processes in a VM's folder that have not ended, as the kernel tells.
    fn guests(&self) -> Vec<u32> {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid: &u32| {
            std::fs::read_link(format!("/proc/{pid}/cwd"))
                .is_ok_and(|cwd| cwd.starts_with(self.bench.path()))
        })
        .collect()
    }

    fn ended(&mut self) -> bool {
        self.owner.try_wait().unwrap().is_some()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owner_and_guests_are_ended_together_also_one_that_is_being_started() {
    let mut host = Host::up().await;
    assert!(host.guests().len() >= 2);
    let receipt = host.fence().fence(call(), &host.target).await.unwrap();
    assert_eq!(receipt.method, "process");
    let killed = format!("process {} was killed", host.owner.id());
    assert!(receipt.detail.contains(&killed), "{receipt:?}");
    assert_eq!(host.guests(), [0; 0], "{receipt:?}");
    assert!(host.ended());

    // Whoever comes next finds what there was, and that it has ended.
    let hypervisor = host.bench.hypervisor();
    let domains = hypervisor.list(call()).await.unwrap();
    assert!(domains.len() >= 2 && host.vms().len() == domains.len());
    for domain in &domains {
        let over = matches!(domain.state, DomainState::Ended(_) | DomainState::Defined);
        assert!(over, "{domain:?}");
    }
    // That one is not ended by who runs in the same process.
    let own = host.fence().fence(call(), &host.target).await.unwrap_err();
    assert_eq!(own.kind(), ErrorKind::FailedPrecondition, "{own}");
    drop(hypervisor);
    let again = host.fence().fence(call(), &host.target).await.unwrap();
    assert!(again.detail.contains("no process"), "{again:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owners_that_are_stopped_or_died_by_themselves() {
    let mut host = Host::up().await;
    signal(host.owner.id(), Signal::STOP);
    host.fence().fence(call(), &host.target).await.unwrap();
    assert_eq!(host.guests(), [0; 0]);
    assert!(host.ended());

    let mut host = Host::up().await;
    kill(host.owner.id());
    host.owner.wait().unwrap();
    assert!(host.guests().len() >= 2, "guests outlive their owner");
    let receipt = host.fence().fence(call(), &host.target).await.unwrap();
    assert!(receipt.detail.contains("no process"), "{receipt:?}");
    assert_eq!(host.guests(), [0; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_hosts_are_refused_and_go_on() {
    let mut host = Host::up().await;
    let another = FenceTarget {
        host: HostId::from_uuid(uuid::Uuid::from_u128(7)),
        ..host.target.clone()
    };
    let booted_anew = FenceTarget {
        boot_id: "9f4b5b0c-0000-4000-8000-000000000000".to_owned(),
        ..host.target.clone()
    };
    for target in [another, booted_anew] {
        let refused = host.fence().fence(call(), &target).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::FailedPrecondition, "{refused}");
        assert!(refused.message().contains("wrong host"), "{refused}");
    }
    let empty = Bench::new();
    let unknown = ProcessFence::new(empty.path());
    let refused = unknown.fence(call(), &host.target).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound, "{refused}");
    assert!(!host.ended() && host.guests().len() >= 2);
}
