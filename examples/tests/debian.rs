//! A real Debian 12: cloud-init applies the seed that NovaCron makes, and the guest agent is the real one. Through a
//! cluster, then through the hypervisor alone, which adopts the guest, then through a cluster again.
#![allow(clippy::unwrap_used, reason = "to panic is to fail the test")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use novacron_core::cluster::{Cluster, ImageSpec, VmHandle};
use novacron_core::driver::{AgentOutput, Call, ConsoleStart, DomainOwner, Hypervisor};
use novacron_core::model::{CloudInit, DiskSource, Exit, ImageSource, NetworkKind, NicSpec};
use novacron_core::store::SqliteStore;
use novacron_core::{Bytes, Deadline, ErrorKind, MiB, Phase, VmSpec};
use novacron_kvm::QemuHypervisor;
use novacron_storage::LocalStorage;
use tokio::io::AsyncReadExt;

/// Two minutes on an idle machine without hardware virtualisation.
const BOOT: Duration = Duration::from_secs(900);
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEXAMPLEEXAMPLEEXAMPLEEXAMPLEEXAMPLEEXAM ada@example";
const USER_DATA: &str = "#cloud-config
users:
  - name: ada
    ssh_authorized_keys:
      - KEY
write_files:
  - path: /etc/from-seed
    permissions: '0640'
    content: written by the seed
final_message: SEED-APPLIED after $UPTIME seconds
";
/// What the agent keeps of a program's output.
const KEPT: usize = 16 << 20;

fn call() -> Call {
    Call::within(Duration::from_secs(60))
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(180))
}

/// The folder of one test; a guest that is left in it is killed.
struct Site(tempfile::TempDir);

impl Site {
    fn node(&self) -> PathBuf {
        self.0.path().join("node")
    }

    async fn cluster(&self) -> Cluster {
        let path = self.0.path();
        let cluster = Cluster::builder("debian")
            .store(SqliteStore::open(path.join("cluster.db")).await.unwrap())
            .storage("pool", LocalStorage::open(path.join("pool")).await.unwrap())
            .node("here", QemuHypervisor::new(self.node()))
            .build()
            .await
            .unwrap();
        cluster.nodes().wait_available(soon()).await.unwrap();
        cluster
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for vm in std::fs::read_dir(self.node())
            .into_iter()
            .flatten()
            .flatten()
        {
            let lock = std::fs::read_to_string(vm.path().join("run.lock")).unwrap_or_default();
            let pid = lock.split(' ').nth(1).and_then(|pid| pid.parse().ok());
            let here = |pid: &i32| {
                std::fs::read_link(format!("/proc/{pid}/cwd"))
                    .is_ok_and(|cwd| cwd.starts_with(self.0.path()))
            };
            if let Some(pid) = pid.filter(here).and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

fn image() -> PathBuf {
    let image = std::env::var_os("NOVACRON_DEBIAN_IMAGE");
    image
        .expect("NOVACRON_DEBIAN_IMAGE names the disk: make test-debian")
        .into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "builds and boots a whole Debian, which takes minutes: make test-debian"]
async fn cloud_init_applies_the_seed_and_the_agent_answers() {
    let site = Site(tempfile::tempdir().unwrap());
    let cluster = site.cluster().await;
    let vm = create(&cluster, &image()).await;
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    let applied = tokio::time::timeout(BOOT, said(&vm, "SEED-APPLIED after ")).await;
    eprintln!("{}", applied.expect("cloud-init ends in time"));

    // What the seed asked for, through the agent.
    let mac = agent_is_there(&vm).await;
    let sh = async |line: &str| run(&vm, &["/bin/sh", "-c", line]).await;
    let text = async |line: &str| {
        let output = sh(line).await;
        assert_eq!(output.exit_code, Some(0), "{line}: {output:?}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_eq!(text("hostname").await, "hello-debian");
    assert_eq!(text("cat /etc/from-seed").await, "written by the seed");
    assert_eq!(text("stat -c %a /etc/from-seed").await, "640");
    assert_eq!(text("cat /home/ada/.ssh/authorized_keys").await, KEY);
    assert_eq!(text("cat /sys/class/net/e*/address").await, mac);
    let result = text("cat /run/cloud-init/result.json").await;
    assert!(
        result.contains("NoCloud") && result.contains("\"errors\": []"),
        "{result}"
    );
    let blocks: u64 = text("stat -f -c %b /").await.parse().unwrap();
    assert!(
        blocks * 4096 > 3 << 30,
        "the root file system has grown: {blocks} blocks"
    );

    // How programs end.
    let killed = sh("kill -9 $$").await;
    assert_eq!((killed.exit_code, killed.signal), (None, Some(9)));
    let long = sh("head -c 17000000 /dev/zero; echo short >&2").await;
    assert_eq!((long.exit_code, long.stdout.len()), (Some(0), KEPT));
    assert!(long.stdout_truncated && !long.stderr_truncated);
    assert_eq!(long.stderr, "short\n");
    let boot_id = text("cat /proc/sys/kernel/random/boot_id").await;

    // The hypervisor alone adopts it, and freezes its file systems.
    cluster.shutdown(soon()).await.unwrap();
    drop((cluster, vm));
    let hypervisor = QemuHypervisor::new(site.node());
    let listed = hypervisor.list(call()).await.unwrap();
    let [domain] = listed.as_slice() else {
        panic!("{listed:?}")
    };
    let DomainOwner::NovaCron(id) = domain.owner else {
        panic!("{domain:?}")
    };
    let agent = hypervisor.guest_agent().unwrap();
    agent.ping(call(), id).await.unwrap();
    assert!(agent.freeze(call(), id).await.unwrap() >= 1);
    let argv = ["/bin/true".to_owned()];
    let frozen = agent.exec(call(), id, &argv, None).await.unwrap_err();
    assert_eq!(frozen.kind(), ErrorKind::FailedPrecondition, "{frozen}");
    assert!(agent.thaw(call(), id).await.unwrap() >= 1);
    assert_eq!(agent.thaw(call(), id).await.unwrap(), 0, "none is frozen");
    drop(hypervisor);

    // A cluster again: the same guest, which powers off when it is asked, and then nothing is left.
    let cluster = site.cluster().await;
    let vm = cluster.vms().by_name("debian").await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    let same = run(&vm, &["/bin/cat", "/proc/sys/kernel/random/boot_id"]).await;
    assert_eq!(String::from_utf8_lossy(&same.stdout).trim(), boot_id);
    vm.stop().await.unwrap().wait(soon()).await.unwrap();
    let run = vm.get().await.unwrap().run.unwrap();
    assert_eq!(run.exit, Some(Exit::Requested));
    vm.delete().await.unwrap().wait(soon()).await.unwrap();
    let image = cluster.images().by_name("debian-12").await.unwrap();
    image.delete().await.unwrap().wait(soon()).await.unwrap();
    cluster.shutdown(soon()).await.unwrap();
    drop((cluster, vm, image));
    let hypervisor = QemuHypervisor::new(site.node());
    assert!(hypervisor.list(call()).await.unwrap().is_empty());
}

async fn create(cluster: &Cluster, disk: &Path) -> VmHandle {
    let image = ImageSpec::new("debian-12", ImageSource::File(disk.to_owned()));
    let image = cluster.images().create(image).await.unwrap();
    image.operation().unwrap().wait(soon()).await.unwrap();
    let network = cluster
        .networks()
        .create("nat", NetworkKind::User)
        .await
        .unwrap()
        .id();
    let root = DiskSource::Image {
        image: "debian-12".to_owned(),
        size: Some(Bytes::mib(4096)),
        pool: None,
    };
    let nic = NicSpec::new(network);
    let seed = CloudInit {
        hostname: Some("hello-debian".to_owned()),
        user_data: USER_DATA.replace("KEY", KEY),
        ..CloudInit::default()
    };
    let mut spec = VmSpec::new("debian")
        .vcpus(2)
        .memory(MiB(768))
        .disk("root", root);
    spec = spec.nic(nic).cloud_init(seed);
    cluster.vms().create(spec).await.unwrap()
}

/// Waits for a line on the console that holds this; the line. Prints what the guest says if it ends before.
async fn said(vm: &VmHandle, wanted: &str) -> String {
    let mut console = vm.console(call(), ConsoleStart::Offset(0)).await.unwrap();
    let mut seen = String::new();
    loop {
        let mut lines = seen.split_inclusive('\n');
        if let Some(line) = lines.find(|line| line.contains(wanted) && line.ends_with('\n')) {
            return line.trim().to_owned();
        }
        let mut chunk = [0; 4096];
        let count = console.stream.read(&mut chunk).await.unwrap();
        assert!(count > 0, "the console ended: {seen}");
        seen.push_str(&String::from_utf8_lossy(&chunk[..count]));
    }
}

/// Waits for the agent; the MAC address of the guest's NIC.
async fn agent_is_there(vm: &VmHandle) -> String {
    let mut look = tokio::time::interval(Duration::from_millis(200));
    let answers = async {
        loop {
            look.tick().await;
            let Ok(addresses) = vm.addresses(Call::within(Duration::from_secs(5))).await else {
                continue;
            };
            let outside = addresses
                .iter()
                .find(|a| a.address.to_string() == "10.0.2.15");
            if let Some(outside) = outside {
                assert_eq!(outside.prefix, 24);
                return outside.mac.unwrap().to_string();
            }
        }
    };
    tokio::time::timeout(BOOT, answers)
        .await
        .expect("the agent answers, with an address")
}

async fn run(vm: &VmHandle, argv: &[&str]) -> AgentOutput {
    let argv: Vec<String> = argv.iter().map(|&word| word.to_owned()).collect();
    vm.exec(call(), &argv).await.unwrap()
}
