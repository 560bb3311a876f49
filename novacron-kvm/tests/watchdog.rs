//! The hardware watchdog, on a real one: QEMU's i6300esb, in a guest whose first program is this test binary.
//!
//! ```text
//!   host: QEMU, its events ◄── WATCHDOG, RESET ── guest: init (this binary) ──► a process that arms it and feeds it
//!                                                            └─ kills it, stops it, or lets it disarm
//! ```
#![allow(clippy::unwrap_used, reason = "to panic is to fail the test")]

mod common;
#[path = "common/initramfs.rs"]
mod initramfs;

use std::ffi::CString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{BOOT, SOON};
use initramfs::{Archive, generic_kernel};
use novacron_core::ErrorKind;
use novacron_core::driver::{Call, Watchdog};
use novacron_kvm::HostWatchdog;
use rustix::fs::{FileType, Mode};
use rustix::process::Signal;

/// What the guest does to the process that feeds: `kill`, `stop`, `disarm`. The kernel's command line gives it to init.
const GUEST: &str = "NOVACRON_TEST_GUEST";
const DEVICE: &str = "/dev/watchdog";
const TIMEOUT: Duration = Duration::from_secs(3);

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    runtime.unwrap().block_on(work)
}

fn arm(watchdog: &HostWatchdog) -> novacron_core::Result<Duration> {
    run(watchdog.arm(Call::within(SOON)))
}

/// The first program of the guest.
#[test]
fn init() {
    let Ok(act) = std::env::var(GUEST) else {
        return;
    };
    for module in ["watchdog", "i6300esb"] {
        let file = File::open(format!("/{module}.ko")).unwrap();
        rustix::system::finit_module(&file, &CString::default(), 0).unwrap();
    }
    let device = rustix::fs::makedev(10, 130);
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::mknodat(
        rustix::fs::CWD,
        DEVICE,
        FileType::CharacterDevice,
        mode,
        device,
    )
    .unwrap();
    let none = arm(&HostWatchdog::new("/dev/none", TIMEOUT)).unwrap_err();
    assert_eq!(none.kind(), ErrorKind::Unsupported);

    let mut feeder = Command::new("/init")
        .args(["--exact", "feeder", "--nocapture"])
        .env(FEEDER, &act)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(feeder.stdout.take().unwrap()).lines();
    // It is fed for longer than its timeout before something happens to who feeds it.
    for line in lines {
        let line = line.unwrap();
        println!("{line}");
        // One that disarms does so by itself, and then the device is free.
        if line.contains("fed for long") && act != "disarm" {
            let busy = arm(&HostWatchdog::new(DEVICE, TIMEOUT)).unwrap_err();
            assert_eq!(busy.kind(), ErrorKind::FailedPrecondition);
            let signal = match act.as_str() {
                "kill" => Signal::KILL,
                "stop" => Signal::STOP,
                _ => unreachable!("{act}"),
            };
            common::signal(feeder.id(), signal);
            println!("ACT={act}");
            break;
        }
    }
    // One that is stopped never ends.
    feeder.wait().unwrap();
    if act == "disarm" {
        println!("DISARMED");
    }
    nap(Duration::from_secs(1000));
}

const FEEDER: &str = "NOVACRON_TEST_FEEDER";

/// The process in the guest that arms the watchdog.
#[test]
fn feeder() {
    let Ok(act) = std::env::var(FEEDER) else {
        return;
    };
    let watchdog = HostWatchdog::new(DEVICE, TIMEOUT);
    // One that is not armed is not armed by being fed.
    run(watchdog.feed()).unwrap();
    let timeout = arm(&watchdog).unwrap();
    println!("ARMED={timeout:?}");
    assert!(timeout >= TIMEOUT);
    for _ in 0..10 {
        nap(TIMEOUT / 5);
        run(watchdog.feed()).unwrap();
    }
    println!("fed for long");
    if act == "disarm" {
        return run(watchdog.disarm(Call::within(SOON))).unwrap();
    }
    loop {
        nap(TIMEOUT / 5);
        run(watchdog.feed()).unwrap();
    }
}

#[test]
fn a_process_that_is_killed_or_stopped_no_longer_feeds_it_and_the_machine_is_reset() {
    for act in ["kill", "stop"] {
        let mut machine = Machine::up(act);
        machine.console(&format!("ACT={act}"));
        assert_eq!(machine.event(BOOT), "WATCHDOG", "{}", machine.text());
        assert_eq!(machine.event(SOON), "RESET");
    }
}

#[test]
fn one_that_is_disarmed_resets_nothing() {
    let mut machine = Machine::up("disarm");
    machine.console("DISARMED");
    let waited = TIMEOUT * 3;
    machine
        .events
        .get_ref()
        .set_read_timeout(Some(waited))
        .unwrap();
    let mut line = String::new();
    let nothing = machine.events.read_line(&mut line).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock, "{line}");
}

/// A guest with a watchdog.
struct Machine {
    folder: tempfile::TempDir,
    qemu: Child,
    events: BufReader<UnixStream>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Machine {
    fn up(act: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kernel = generic_kernel();
        let initramfs = folder.path().join("initramfs");
        std::fs::write(&initramfs, initramfs_of(&kernel)).unwrap();
        let (console, socket) = (folder.path().join("console"), folder.path().join("qmp"));
        let qemu = Command::new("qemu-system-x86_64")
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-M", "q35", "-accel", "tcg", "-m", "512", "-device", "i6300esb"])
            .args(["-watchdog-action", "reset"])
            .arg("-kernel")
            .arg(kernel.join("vmlinuz"))
            .arg("-initrd")
            .arg(&initramfs)
            .arg("-append")
            .arg(format!(
                "console=ttyS0 quiet panic=-1 rdinit=/init {GUEST}={act} -- --exact init --nocapture"
            ))
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .stdin(Stdio::null())
            .spawn()
            .expect("apt-get install qemu-system-x86");
        let mut stream = None;
        wait(SOON, "QEMU", || {
            stream = UnixStream::connect(&socket).ok();
            stream.is_some()
        });
        let mut events = BufReader::new(stream.unwrap());
        let command = b"{\"execute\":\"qmp_capabilities\"}\n";
        events.get_mut().write_all(command).unwrap();
        for _ in ["the greeting", "the answer"] {
            events.read_line(&mut String::new()).unwrap();
        }
        Self {
            folder,
            qemu,
            events,
        }
    }

    fn text(&self) -> String {
        let text = std::fs::read(self.folder.path().join("console")).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Waits for words on the console.
    fn console(&self, words: &str) {
        wait(BOOT, words, || {
            let text = self.text();
            assert!(!text.contains("panicked"), "{text}");
            text.contains(words)
        });
    }

    /// The next event.
    fn event(&mut self, limit: Duration) -> String {
        self.events.get_ref().set_read_timeout(Some(limit)).unwrap();
        let mut line = String::new();
        self.events.read_line(&mut line).unwrap();
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        event["event"].as_str().unwrap().to_owned()
    }
}

/// This binary as `/init`, with the libraries that it needs and the driver.
fn initramfs_of(kernel: &Path) -> Vec<u8> {
    let binary = std::env::current_exe().unwrap();
    let listed = Command::new("ldd").arg(&binary).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let libraries = listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from);
    let mut archive = Archive::default();
    archive.add("init", &stripped(&binary));
    archive.device("dev/console", 5, 1);
    for module in ["watchdog.ko", "i6300esb.ko"] {
        archive.add(module, &std::fs::read(kernel.join(module)).unwrap());
    }
    for library in libraries {
        let name = library.strip_prefix("/").unwrap().to_str().unwrap();
        archive.add(name, &std::fs::read(&library).unwrap());
    }
    archive.end()
}

/// Without its debug information, which would fill the guest's memory.
fn stripped(binary: &Path) -> Vec<u8> {
    let to = tempfile::NamedTempFile::new().unwrap();
    let mut strip = Command::new("strip");
    strip.arg("-o").arg(to.path()).arg(binary);
    assert!(strip.status().expect("apt-get install binutils").success());
    std::fs::read(to.path()).unwrap()
}

fn wait(limit: Duration, what: &str, mut there: impl FnMut() -> bool) {
    let since = std::time::Instant::now();
    while !there() {
        assert!(since.elapsed() < limit, "{what}: not there in time");
        nap(Duration::from_millis(20));
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a guest that tells nobody, and a timer's own time"
)]
fn nap(time: Duration) {
    std::thread::sleep(time);
}
