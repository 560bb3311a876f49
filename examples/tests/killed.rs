//! The host application is killed at odd moments, again and again, with real guests under it: nothing it was told is
//! lost, no guest runs twice, and in the end nothing is left.
//!
//! This test is its own child: with the variable below set it is a host application that asks for one change after
//! another and writes down what was acknowledged.

#![expect(clippy::unwrap_used, reason = "to panic is to fail the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use novacron_core::cluster::{Cluster, ListRequest, VolumeSpec};
use novacron_core::driver::{Call, Hypervisor, StorageBackend};
use novacron_core::model::{DiskOptions, DiskSource, Power, Tpm};
use novacron_core::store::SqliteStore;
use novacron_core::{Bytes, Deadline, ErrorKind, MiB, Phase, RequestOptions, VmSpec};
use novacron_kvm::QemuHypervisor;
use novacron_storage::LocalStorage;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// What the child is told: the folder, and its seed; no seed lets it come to an end.
const CHILD: &str = "NOVACRON_KILLED_CHILD";
const KILLS: u64 = 12;
const VMS: [&str; 2] = ["one", "two"];

#[test]
fn the_host_application_is_killed_at_odd_moments() {
    if let Ok(told) = std::env::var(CHILD) {
        let (dir, seed) = told.split_once(':').unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        return match seed.parse() {
            Ok(seed) => runtime.block_on(live(Path::new(dir), seed)),
            Err(_) => runtime.block_on(settle(Path::new(dir))),
        };
    }
    let seed = std::env::var("NOVACRON_KILLED_SEED").map_or(1, |seed| seed.parse().unwrap());
    let mut rng = StdRng::seed_from_u64(seed);
    let dir = tempfile::Builder::new().prefix("nck").tempdir().unwrap();
    let guests = Guests(dir.path().to_owned());
    for life in 0..KILLS {
        let mut child = start(dir.path(), &(seed * 1000 + life).to_string());
        pass(Duration::from_millis(rng.random_range(50..2500)));
        assert!(
            child.0.try_wait().unwrap().is_none(),
            "life {life} ended by itself"
        );
        drop(child);
        let running = guests.by_vm();
        assert!(
            running.values().all(|n| *n == 1),
            "life {life}: {running:?}"
        );
    }
    let ended = start(dir.path(), "end").0.wait().unwrap();
    assert!(ended.success(), "NOVACRON_KILLED_SEED={seed}: see above");
    assert_eq!(guests.by_vm(), BTreeMap::new());
}

/// The moment is odd on purpose: nothing is waited for.
#[expect(
    clippy::disallowed_methods,
    reason = "the parent has no runtime, and no event to wait for"
)]
fn pass(time: Duration) {
    std::thread::sleep(time);
}

/// A child, killed when it is let go.
struct Life(Child);

impl Drop for Life {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(dir: &Path, seed: &str) -> Life {
    let child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "the_host_application_is_killed_at_odd_moments",
            "--nocapture",
        ])
        .env(CHILD, format!("{}:{seed}", dir.display()))
        .stdout(Stdio::null())
        .spawn();
    Life(child.unwrap())
}

/// The processes of this test's guests, ended with it.
struct Guests(std::path::PathBuf);

impl Guests {
    fn pids(&self) -> Vec<(u32, String)> {
        let name = self.0.to_str().unwrap();
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let found = entries.filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let command = std::fs::read(entry.path().join("cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            let is_guest = |program: &&str| command.contains(*program) && command.contains(name);
            let found = ["qemu-system", "swtpm"].iter().any(is_guest);
            found.then_some((pid, command))
        });
        found.collect()
    }

    /// How many processes each VM has: its name is the guest's name; and how many starts' TPMs there are, of which one VM has
    /// the only. For a moment a TPM is two processes, which are the same: a daemon and who made it.
    fn by_vm(&self) -> BTreeMap<String, usize> {
        let mut count = BTreeMap::new();
        let mut tpms = BTreeSet::new();
        for (_, command) in self.pids() {
            let guest = |vm: &&&str| command.contains(&format!("guest={vm}"));
            match VMS.iter().find(guest) {
                Some(vm) => *count.entry((*vm).to_owned()).or_default() += 1,
                None => drop(tpms.insert(command)),
            }
        }
        if !tpms.is_empty() {
            count.insert("TPM".to_owned(), tpms.len());
        }
        count
    }
}

impl Drop for Guests {
    fn drop(&mut self) {
        for (pid, _) in self.pids() {
            let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

fn hypervisor(dir: &Path) -> QemuHypervisor {
    QemuHypervisor::new(dir.join("node"))
}

async fn open(dir: &Path) -> Cluster {
    let cluster = Cluster::builder("killed")
        .store(SqliteStore::open(dir.join("cluster.db")).await.unwrap())
        .node("here", hypervisor(dir))
        .storage("pool", LocalStorage::open(dir.join("pool")).await.unwrap())
        .build()
        .await
        .unwrap();
    cluster.nodes().wait_available(soon()).await.unwrap();
    cluster
}

/// Writes down what was acknowledged: the last line about a thing counts.
fn note(dir: &Path, thing: &str, told: &str) {
    let mut notes = OpenOptions::new();
    let mut notes = notes
        .create(true)
        .append(true)
        .open(dir.join("notes"))
        .unwrap();
    writeln!(notes, "{thing} {told}").unwrap();
}

fn notes(dir: &Path) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(dir.join("notes")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines
        .map(|(thing, told)| (thing.to_owned(), told.to_owned()))
        .collect()
}

/// The volume that a VM is given and deprived of.
fn data(vm: &str) -> (String, VolumeSpec) {
    let name = format!("data-{vm}");
    (name.clone(), VolumeSpec::new(name, Bytes::mib(16)))
}

fn keyed(cluster: &Cluster, key: &str) -> Cluster {
    cluster.with(RequestOptions {
        idempotency_key: Some(key.to_owned()),
        ..RequestOptions::default()
    })
}

/// One change after another, until the end comes from outside.
async fn live(dir: &Path, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let cluster = open(dir).await;
    let disk = || DiskSource::Blank {
        size: Bytes::mib(16),
        pool: None,
    };
    for name in VMS {
        // Asked for in every life; made once.
        let mut spec = VmSpec::new(name).memory(MiB(64)).disk("root", disk());
        spec.hardware.tpm = (name == VMS[1]).then(Tpm::default);
        keyed(&cluster, name).vms().create(spec).await.unwrap();
        // One each: a guest without a system never lets go of a disk that it is asked for.
        let (volume, spec) = data(name);
        keyed(&cluster, &volume)
            .volumes()
            .create(spec)
            .await
            .unwrap();
    }
    for step in 0.. {
        let name = VMS[rng.random_range(0..VMS.len())];
        let vm = cluster.vms().by_name(name).await.unwrap();
        let data = cluster.volumes().by_name(&data(name).0).await.unwrap();
        let (is_power, asked) = match rng.random_range(0..10) {
            0..4 => (true, vm.start().await),
            4..6 => (true, vm.kill().await),
            6 => (true, vm.pause().await),
            7 => (
                false,
                vm.attach("data", data.id(), DiskOptions::default()).await,
            ),
            8 => (false, vm.detach("data").await),
            _ => {
                let snapshot = format!("s{seed}-{step}");
                let made = cluster.snapshots().create(&snapshot, data.id()).await;
                if made.is_ok() {
                    note(dir, &snapshot, "taken");
                }
                continue;
            }
        };
        match asked {
            Ok(operation) => {
                if is_power {
                    let serial = vm.get().await.unwrap().vm.power.serial;
                    note(dir, name, &serial.to_string());
                }
                // Now and then it comes about before the next change is asked for.
                if rng.random_bool(0.5) {
                    let _ = operation
                        .wait(Deadline::after(Duration::from_secs(5)))
                        .await;
                }
            }
            Err(error) => assert!(
                matches!(
                    error.kind(),
                    ErrorKind::Invalid | ErrorKind::NotFound | ErrorKind::Conflict
                ),
                "{name}: {error}"
            ),
        }
    }
}

/// What was told is so, or becomes so; then everything is deleted, and nothing is left.
async fn settle(dir: &Path) {
    let cluster = open(dir).await;
    let told = notes(dir);
    for name in VMS {
        let vm = cluster.vms().by_name(name).await.unwrap();
        let view = vm.get().await.unwrap();
        let phase = match view.vm.power.state {
            Power::On => Phase::Running,
            Power::Off => Phase::Stopped,
            Power::Paused => Phase::Paused,
        };
        // Requests that were acknowledged; the very last may have been so just before the end, and not be noted.
        let told: u64 = told.get(name).map_or(0, |n| n.parse().unwrap());
        let serial = view.vm.power.serial;
        assert!(
            (told..=told + 1).contains(&serial),
            "{name}: {told}, {serial}"
        );
        if let Err(error) = vm.wait_for(phase, soon()).await {
            panic!("{name} is not {phase}: {error}; {:#?}", vm.get().await);
        }
    }
    for snapshot in told.iter().filter(|(_, told)| *told == "taken") {
        cluster.snapshots().by_name(snapshot.0).await.unwrap();
    }
    for name in VMS {
        let vm = cluster.vms().by_name(name).await.unwrap();
        vm.delete().await.unwrap().wait(soon()).await.unwrap();
    }
    for name in VMS {
        let data = cluster.volumes().by_name(&data(name).0).await.unwrap();
        data.delete().await.unwrap().wait(soon()).await.unwrap();
    }
    let left = cluster.volumes().list(&ListRequest::new()).await.unwrap();
    assert!(left.items.is_empty(), "{:?}", left.items);
    cluster.shutdown(soon()).await.unwrap();
    // The folders are theirs as long as somebody has a handle.
    drop(cluster);
    let call = Call::within(Duration::from_secs(20));
    assert!(hypervisor(dir).list(call).await.unwrap().is_empty());
    let pool = LocalStorage::open(dir.join("pool")).await.unwrap();
    assert!(pool.list(call).await.unwrap().is_empty());
}
