//! A folder, a hypervisor and real guests for the tests. Whatever QEMU a test leaves behind is killed by its pid.
#![allow(dead_code, reason = "no test file uses all of it")]
#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "to panic is to fail the test"
)]

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use futures::stream::BoxStream;
use novacron_core::driver::{
    Attachment, AttachmentSource, Call, ConsoleStart, ConsoleStream, DiskAttachment, Domain,
    DomainId, DomainSpec, DomainState, GuestEvent, Hypervisor, HypervisorEvent, NicAttachment,
};
use novacron_core::model::{
    ClusterId, DiskOptions, Epoch, Hardware, KernelBoot, MacAddr, MiB, NicOptions, PortBinding,
    PortForward, PortId, Protocol, SnapshotId, VmId, VolumeFormat, VolumeId,
};
use novacron_core::{Clock, IdSource, SeededIds, SystemClock, Timestamp};
use novacron_kvm::QemuHypervisor;
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;
use uuid::Uuid;

/// Long enough for a slow machine to boot a guest in software.
pub(crate) const BOOT: Duration = Duration::from_secs(120);
pub(crate) const SOON: Duration = Duration::from_secs(30);

pub(crate) fn call() -> Call {
    Call::within(SOON)
}

/// A port of the loopback that nobody has; it may be taken by another before it is used.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// The folder with the guest's kernel and initial RAM disk; built when its sources are newer.
pub(crate) fn guest_dir() -> PathBuf {
    built("initrd.img", |dir| vec!["--direct".into(), dir.into()])
}

/// The disk that the guest boots from; built when its sources are newer. To be read only.
pub(crate) fn guest_disk() -> PathBuf {
    built("disk.qcow2", |dir| vec![dir.join("disk.qcow2").into()]).join("disk.qcow2")
}

/// The folder of the guest's files, with this one in it: made by build.sh with these arguments, if it is not there.
fn built(file: &str, arguments: impl FnOnce(&Path) -> Vec<OsString>) -> PathBuf {
    if let Some(dir) = std::env::var_os("NOVACRON_GUEST_DIR") {
        return dir.into();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned();
    let dir = root.join("target/guest");
    std::fs::create_dir_all(&dir).unwrap();
    let lock = std::fs::File::create(root.join("target/guest.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let sources = root.join("examples/guest");
    let made = std::fs::metadata(dir.join(file)).and_then(|file| file.modified());
    if made.map_or(true, |made| made < newest(&sources)) {
        let script = sources.join("build.sh");
        let status = Command::new(script).args(arguments(&dir)).status().unwrap();
        assert!(
            status.success(),
            "the test guest cannot be built; see the words of build.sh above"
        );
    }
    dir
}

/// When something below this path was changed last.
fn newest(path: &Path) -> SystemTime {
    let own = std::fs::symlink_metadata(path).unwrap().modified().unwrap();
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .map(|entry| newest(&entry.path()))
        .fold(own, Ord::max)
}

/// A folder for one test.
pub(crate) struct Bench {
    folder: tempfile::TempDir,
    ids: SeededIds,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            ids: SeededIds::from_os(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.path().join("state")
    }

    pub(crate) fn hypervisor(&self) -> QemuHypervisor {
        QemuHypervisor::new(self.state())
    }

    fn now(&self) -> Timestamp {
        SystemClock.now()
    }

    pub(crate) fn domain_id(&self) -> DomainId {
        DomainId {
            cluster: ClusterId::generate(self.now(), &self.ids),
            vm: VmId::generate(self.now(), &self.ids),
            epoch: Epoch(1),
        }
    }

    /// A guest that boots the test kernel.
    pub(crate) fn guest(&self) -> DomainSpec {
        let dir = guest_dir();
        let mut hardware = Hardware::new(1, MiB(192));
        hardware.kernel = Some(KernelBoot {
            kernel: dir.join("vmlinuz"),
            initrd: Some(dir.join("initrd.img")),
            cmdline: "console=ttyS0 quiet".into(),
        });
        DomainSpec {
            id: self.domain_id(),
            name: "web-1".into(),
            hardware,
            disks: vec![],
            nics: vec![],
            nvram: None,
            generation_id: Uuid::from_u128(7),
            tpm: None,
            seed: None,
        }
    }

    /// The same, under a name, with a disk and a NIC of its own.
    pub(crate) fn furnished(&self, id: DomainId) -> DomainSpec {
        DomainSpec {
            id,
            disks: vec![self.disk(&format!("root-{id}"), "8M")],
            nics: vec![self.nic(None)],
            ..self.guest()
        }
    }

    /// The same, without the file of its disk.
    pub(crate) fn unstartable(&self, id: DomainId) -> DomainSpec {
        let spec = self.furnished(id);
        std::fs::remove_file(file_of(&spec.disks[0])).unwrap();
        spec
    }

    /// A layer on top of a disk's present one.
    pub(crate) fn layer(&self, disk: &DiskAttachment, snapshot: SnapshotId) -> PathBuf {
        let path = self.path().join(format!("{snapshot}.qcow2"));
        let (text, base) = (path.to_str().unwrap(), file_of(disk));
        let base = base.to_str().unwrap();
        qemu_img(&[
            "create", "-q", "-f", "qcow2", "-F", "qcow2", "-u", "-b", base, text, "8M",
        ]);
        path
    }

    /// An empty qcow2 disk.
    pub(crate) fn disk(&self, name: &str, size: &str) -> DiskAttachment {
        let path = self.path().join(format!("{name}.qcow2"));
        qemu_img(&["create", "-q", "-f", "qcow2", path.to_str().unwrap(), size]);
        self.attachment(name, path)
    }

    /// A disk that the guest boots from.
    pub(crate) fn boot_disk(&self, name: &str) -> DiskAttachment {
        let path = self.path().join(format!("{name}.qcow2"));
        let (base, text) = (guest_disk(), path.to_str().unwrap());
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            "-b",
            base.to_str().unwrap(),
            text,
        ]);
        self.attachment(name, path)
    }

    pub(crate) fn attachment(&self, name: &str, path: PathBuf) -> DiskAttachment {
        DiskAttachment {
            name: name.into(),
            volume: VolumeId::generate(self.now(), &self.ids),
            attachment: Attachment {
                source: AttachmentSource::File(path),
                format: VolumeFormat::Qcow2,
                epoch: Epoch(1),
                enforces_writer: false,
            },
            options: DiskOptions::default(),
        }
    }

    /// A NIC in user mode, with this port of the host leading to port 80.
    pub(crate) fn nic(&self, forward: Option<u16>) -> NicAttachment {
        let rule = |host_port| PortForward {
            protocol: Protocol::Tcp,
            host_addr: "127.0.0.1".parse().unwrap(),
            host_port,
            guest_port: 80,
        };
        NicAttachment {
            port: PortId::generate(self.now(), &self.ids),
            mac: MacAddr::from_bits(self.ids.bits()),
            binding: PortBinding::User,
            forwards: forward.map(rule).into_iter().collect(),
            options: NicOptions::default(),
        }
    }

    /// The folders of domains that are left.
    pub(crate) fn left(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.state())
            .into_iter()
            .flatten()
            .flatten();
        names
            .map(|entry| entry.file_name().into_string().unwrap())
            .filter(|name| name != "lock")
            .collect()
    }

    /// The run directory of a domain.
    pub(crate) fn dir(&self, id: DomainId) -> PathBuf {
        let vm = self.state().join(id.vm.to_string());
        vm.join(id.epoch.to_string())
    }

    /// The pid of a VM's QEMU.
    pub(crate) fn pid(&self, id: DomainId) -> u32 {
        let text =
            std::fs::read_to_string(self.state().join(id.vm.to_string()).join("run.lock")).unwrap();
        text.split(' ').nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for vm in std::fs::read_dir(self.state())
            .into_iter()
            .flatten()
            .flatten()
        {
            let text = std::fs::read_to_string(vm.path().join("run.lock")).unwrap_or_default();
            let Some(pid) = text.split(' ').nth(1).and_then(|pid| pid.parse().ok()) else {
                continue;
            };
            let here = std::fs::read_link(format!("/proc/{pid}/cwd"))
                .is_ok_and(|cwd| cwd.starts_with(self.path()));
            if here {
                kill(pid);
            }
        }
    }
}

pub(crate) fn kill(pid: u32) {
    signal(pid, Signal::KILL);
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    let _ = rustix::process::kill_process(pid, signal);
}

pub(crate) fn qemu_img(arguments: &[&str]) -> String {
    let output = Command::new("qemu-img")
        .args(arguments)
        .output()
        .expect("apt-get install qemu-utils");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "qemu-img {arguments:?}: {words}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn file_of(disk: &DiskAttachment) -> PathBuf {
    match &disk.attachment.source {
        AttachmentSource::File(path) => path.clone(),
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn domain(hypervisor: &(impl Hypervisor + ?Sized), id: DomainId) -> Domain {
    hypervisor
        .inspect(call(), id)
        .await
        .unwrap()
        .expect("it is defined")
}

pub(crate) async fn state(hypervisor: &(impl Hypervisor + ?Sized), id: DomainId) -> DomainState {
    domain(hypervisor, id).await.state
}

/// Waits for an event of a domain.
pub(crate) async fn wait_event(
    events: &mut BoxStream<'static, HypervisorEvent>,
    id: DomainId,
    wanted: GuestEvent,
) {
    let wanted = HypervisorEvent {
        domain: id,
        event: wanted,
    };
    // The guest may have to boot before it does what is waited for.
    let seen = async { while events.next().await.expect("the stream goes on") != wanted {} };
    timeout(BOOT, seen)
        .await
        .unwrap_or_else(|_| panic!("no {wanted:?}"));
}

/// Waits until a domain has ended, led by the events.
pub(crate) async fn wait_end(
    hypervisor: &(impl Hypervisor + ?Sized),
    events: &mut BoxStream<'static, HypervisorEvent>,
    id: DomainId,
) -> DomainState {
    loop {
        match state(hypervisor, id).await {
            ended @ DomainState::Ended(_) => return ended,
            _ => wait_event(events, id, GuestEvent::StateChanged).await,
        }
    }
}

/// The guest's shell on its console.
pub(crate) struct Shell {
    console: ConsoleStream,
    seen: String,
}

impl Shell {
    /// Opens it with all of the history.
    pub(crate) async fn open(hypervisor: &(impl Hypervisor + ?Sized), id: DomainId) -> Self {
        Self::open_at(hypervisor, id, ConsoleStart::Last(u64::MAX)).await
    }

    /// Opens it from there on.
    pub(crate) async fn open_at(
        hypervisor: &(impl Hypervisor + ?Sized),
        id: DomainId,
        start: ConsoleStart,
    ) -> Self {
        let consoles = hypervisor.consoles().unwrap();
        Self::on(consoles.open(call(), id, start).await.unwrap())
    }

    /// On a console that is open.
    pub(crate) fn on(console: ConsoleStream) -> Self {
        Self {
            console,
            seen: String::new(),
        }
    }

    /// The console, with what was not read yet.
    pub(crate) fn into_inner(self) -> ConsoleStream {
        self.console
    }

    /// The offset of what was not read yet.
    pub(crate) fn offset(&self) -> u64 {
        self.console.offset
    }

    /// Waits for text; what came before it, and it.
    pub(crate) async fn wait(&mut self, text: &str, limit: Duration) -> String {
        let found = async {
            loop {
                if let Some(at) = self.seen.find(text) {
                    let rest = self.seen.split_off(at + text.len());
                    return std::mem::replace(&mut self.seen, rest);
                }
                let mut chunk = [0; 4096];
                let count = self.console.stream.read(&mut chunk).await.unwrap();
                self.console.offset += count as u64;
                assert!(
                    count > 0,
                    "the console ended without {text:?}: {}",
                    self.seen
                );
                self.seen
                    .push_str(&String::from_utf8_lossy(&chunk[..count]));
            }
        };
        match timeout(limit, found).await {
            Ok(found) => found,
            Err(_) => panic!("no {text:?} on the console, but: {}", self.seen),
        }
    }

    /// Waits for the ready line and the prompt; the guest's boot id.
    pub(crate) async fn ready(&mut self) -> String {
        let start = self.wait("NOVACRON-GUEST-READY", BOOT).await;
        drop(start);
        let rest = self.wait("# ", SOON).await;
        let (_, id) = rest.split_once("boot_id=").unwrap();
        id.split_whitespace().next().unwrap().to_owned()
    }

    /// Opens the console of a guest that booted earlier, past its history; the boot id that stands there.
    pub(crate) async fn again(
        hypervisor: &(impl Hypervisor + ?Sized),
        id: DomainId,
        tag: &str,
    ) -> (Self, String) {
        let mut shell = Self::open(hypervisor, id).await;
        let boot_id = shell.ready().await;
        shell.send(&format!("echo m\"\"ark-{tag}\n")).await;
        shell.wait(&format!("mark-{tag}"), SOON).await;
        shell.wait("# ", SOON).await;
        (shell, boot_id)
    }

    pub(crate) async fn send(&mut self, text: &str) {
        self.console
            .stream
            .write_all(text.as_bytes())
            .await
            .unwrap();
    }

    /// Runs a command; what it printed.
    pub(crate) async fn run(&mut self, command: &str) -> String {
        self.send(&format!("{command}; echo d\"\"one=$?\n")).await;
        let output = self.wait("done=", SOON).await;
        let status = self.wait("# ", SOON).await;
        assert_eq!(
            status.trim_end_matches("# ").trim(),
            "0",
            "`{command}`: {output}"
        );
        output
            .trim_end_matches("done=")
            .replace('\r', "")
            .trim()
            .to_owned()
    }

    /// Reads to the end.
    pub(crate) async fn ended(&mut self) {
        let mut rest = Vec::new();
        timeout(SOON, self.console.stream.read_to_end(&mut rest))
            .await
            .expect("the console ends")
            .unwrap();
    }
}

/// Defines, starts and resumes a guest, and waits until it is ready.
pub(crate) async fn boot(
    hypervisor: &(impl Hypervisor + ?Sized),
    spec: &DomainSpec,
) -> (Shell, String) {
    hypervisor.define(call(), spec).await.unwrap();
    hypervisor.start(call(), spec.id).await.unwrap();
    hypervisor.resume(call(), spec.id).await.unwrap();
    let mut shell = Shell::open(hypervisor, spec.id).await;
    let boot_id = shell.ready().await;
    (shell, boot_id)
}

/// Waits, as the monitor's one client while no hypervisor is there, until the guest has powered off or panicked.
pub(crate) async fn halted(socket: &Path) {
    let stream = UnixStream::connect(socket).await.unwrap();
    let mut lines = BufReader::new(stream);
    let ask = "{\"execute\":\"qmp_capabilities\"}{\"execute\":\"query-status\"}\n";
    lines.write_all(ask.as_bytes()).await.unwrap();
    let signs = [
        "\"SHUTDOWN\"",
        "\"GUEST_PANICKED\"",
        "\"shutdown\"",
        "\"guest-panicked\"",
    ];
    let halts = async {
        let mut line = String::new();
        while !signs.iter().any(|sign| line.contains(sign)) {
            line.clear();
            assert!(lines.read_line(&mut line).await.unwrap() > 0, "QEMU ended");
        }
    };
    timeout(BOOT, halts).await.expect("the guest halts");
}
