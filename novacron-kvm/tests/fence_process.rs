//! The fence of a cluster on one machine: an owner process and its real guests are ended together.
#![allow(clippy::unwrap_used, reason = "to panic is to fail the test")]

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use common::*;
use novacron_core::ErrorKind;
use novacron_core::conformance::fence::{FenceAbility, FenceFixture, HostCondition};
use novacron_core::driver::{Call, DomainState, Fence, FenceTarget, Hypervisor};
use novacron_core::model::{HostId, Tpm};
use novacron_kvm::QemuHypervisor;
use novacron_kvm::fence::ProcessFence;
use rustix::process::{Pid, Signal, kill_process};
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
    let guest = || {
        let mut spec = bench.guest();
        spec.hardware.tpm = Some(Tpm::default());
        spec
    };
    for _ in 0..2 {
        let spec = guest();
        hypervisor.define(call(), &spec).await.unwrap();
        hypervisor.start(call(), spec.id).await.unwrap();
        hypervisor.resume(call(), spec.id).await.unwrap();
    }
    let info = hypervisor.probe(call()).await.unwrap();
    println!("\nUP={} {}", info.host, info.boot_id);
    loop {
        let spec = guest();
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
        // A fence that did not do its work leaves them.
        for pid in self.guests() {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            let _ = pid.map(|pid| kill_process(pid, Signal::KILL));
        }
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

    /// The processes in a VM's folder, and those that were told of one, that have not ended, as the kernel tells.
    fn guests(&self) -> Vec<u32> {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let state = self.bench.state().display().to_string();
        pids.filter(|pid: &u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&state)
                || std::fs::read_link(format!("/proc/{pid}/cwd"))
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
    // Two QEMUs, and what emulates their TPMs.
    assert!(host.guests().len() >= 4);
    let receipt = host.fence().fence(call(), &host.target).await.unwrap();
    assert_eq!(receipt.method, "process");
    let killed = format!("process {} was killed", host.owner.id());
    assert!(receipt.detail.contains(&killed), "{receipt:?}");
    assert_eq!(host.guests(), [0; 0], "{receipt:?}");
    assert!(host.ended());

    // Whoever comes next finds what there was, and that it has ended.
    let hypervisor = host.bench.hypervisor();
    let domains = hypervisor.list(call()).await.unwrap();
    // One whose folder had no spec yet is not listed.
    assert!(domains.len() >= 2 && host.vms().len() >= domains.len());
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

/// A process that ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A lock's file may name a process that has nothing to do with it: its pid was reused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn innocent_processes_are_not_killed_and_what_is_unclear_proves_nothing() {
    let host = Host::up().await;
    let vm = host.vms().remove(0);
    let mut innocent = Ended(Command::new("sleep").arg("1000").spawn().unwrap());
    host.fence().fence(call(), &host.target).await.unwrap();
    let lock = vm.join("run.lock");
    let holder = Command::new("flock")
        .args(["--no-fork", "--exclusive", lock.to_str().unwrap()])
        .args(["sh", "-c", "echo locked; exec sleep 1000"])
        .stdout(Stdio::piped())
        .spawn();
    let mut holder = Ended(holder.unwrap());
    let mut word = [0; 6];
    holder
        .0
        .stdout
        .take()
        .unwrap()
        .read_exact(&mut word)
        .unwrap();
    std::fs::write(&lock, format!("1 {}", innocent.0.id())).unwrap();

    let call_soon = Call::within(Duration::from_millis(300));
    let unclear = host.fence().fence(call_soon, &host.target).await;
    assert!(innocent.0.try_wait().unwrap().is_none());
    let unclear = unclear.unwrap_err();
    assert_eq!(unclear.kind(), ErrorKind::OutcomeUnknown, "{unclear}");
    assert!(unclear.message().contains("run.lock"), "{unclear}");
    drop(holder);
    host.fence().fence(call(), &host.target).await.unwrap();
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

/// The core's suite.
#[derive(Default)]
struct Fixture {
    host: Mutex<Option<Host>>,
}

impl Fixture {
    fn with<T>(&self, look: impl FnOnce(&mut Host) -> T) -> T {
        look(self.host.lock().unwrap().as_mut().expect("it is up"))
    }
}

#[async_trait]
impl FenceFixture for Fixture {
    fn lacks(&self) -> BTreeSet<FenceAbility> {
        [FenceAbility::Broken, FenceAbility::Secrets].into()
    }

    fn patience(&self) -> Duration {
        SOON
    }

    async fn host(&self, condition: HostCondition) -> FenceTarget {
        let mut host = Host::up().await;
        match condition {
            HostCondition::Runs => {}
            HostCondition::StandsStill => signal(host.owner.id(), Signal::STOP),
            HostCondition::Died => {
                kill(host.owner.id());
                host.owner.wait().unwrap();
                assert!(host.guests().len() >= 2, "guests outlive their owner");
            }
        }
        let target = host.target.clone();
        *self.host.lock().unwrap() = Some(host);
        target
    }

    fn fence(&self) -> Arc<dyn Fence> {
        Arc::new(self.with(|host| host.fence()))
    }

    async fn runs(&self) -> bool {
        self.with(|host| !host.guests().is_empty() || !host.ended())
    }

    async fn provoke(&self) {
        // The owner is the test's child: its pid is nobody else's before it was waited for.
        self.with(|host| {
            if !host.ended() {
                signal(host.owner.id(), Signal::CONT);
            }
        });
    }

    fn wrong(&self, target: &FenceTarget) -> (Arc<dyn Fence>, FenceTarget) {
        let target = FenceTarget {
            host: HostId::from_uuid(uuid::Uuid::from_u128(7)),
            ..target.clone()
        };
        (self.fence(), target)
    }

    fn broken(&self) -> Vec<Arc<dyn Fence>> {
        Vec::new()
    }

    fn secrets(&self) -> Vec<String> {
        Vec::new()
    }
}

novacron_core::fence_conformance!(Fixture::default());
