//! Start, adopt and lose a process. `sleep` and `sh` stand in for QEMU: nothing here depends on what runs.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::timeout;

use super::end::EndCause;
use super::identity::Identity;
use super::*;

const SOON: Duration = Duration::from_secs(10);

struct Fixture {
    _temporary: tempfile::TempDir,
    dir: RunDir,
}

impl Fixture {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let dir = RunDir::new(&temporary.path().join("vm"), 7);
        dir.create().unwrap();
        Self {
            _temporary: temporary,
            dir,
        }
    }

    fn start(&self, binary: &str, arguments: &[&str]) -> Result<Process, ProcessError> {
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        let lock = self.dir.lock()?;
        launch(
            &self.dir,
            lock,
            Launch {
                binary: Path::new(binary),
                arguments: &arguments,
                listeners: vec![],
            },
        )
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Ok(Found::Running(process)) = self.dir.inspect() {
            let _ = process.kill();
        }
    }
}

#[tokio::test]
async fn runs_is_found_again_and_its_death_is_told() {
    let vm = Fixture::new();
    assert!(matches!(vm.dir.inspect().unwrap(), Found::Never));
    let process = vm.start("/bin/sleep", &["60"]).unwrap();
    assert_eq!(
        std::fs::metadata(vm.dir.path())
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o700
    );
    assert_eq!(
        vm.dir.read::<Identity>("run.json").unwrap().unwrap().pid,
        process.pid()
    );
    let pid = rustix::process::Pid::from_raw(process.pid() as i32);
    assert_eq!(
        rustix::process::getsid(pid).unwrap(),
        pid.unwrap(),
        "a session of its own"
    );

    let again = vm.start("/bin/sleep", &["60"]).unwrap_err();
    assert!(
        matches!(again, ProcessError::AlreadyRuns { holder: Some(holder), .. } if holder.pid == process.pid()),
        "{again}"
    );
    assert!(matches!(
        vm.dir.remove(),
        Err(ProcessError::AlreadyRuns { .. })
    ));

    let Found::Running(adopted) = vm.dir.inspect().unwrap() else {
        panic!("not found")
    };
    assert_eq!(adopted.pid(), process.pid());
    adopted.kill().unwrap();
    let status = timeout(SOON, process.ended()).await.unwrap().unwrap();
    assert_eq!(status, Some(EndCause::Killed(9)));
    // The status is gone with the reaping; without a note it would be `Vanished`.
    vm.dir.how_it_ended(status).unwrap();
    let Found::Gone(end) = vm.dir.inspect().unwrap() else {
        panic!("still there")
    };
    assert_eq!(end.cause, EndCause::Killed(9));

    let later = RunDir::new(vm.dir.path().parent().unwrap(), 8);
    later.create().unwrap();
    let lock = later.lock().unwrap();
    let arguments = ["60".into()];
    let launch_of = Launch {
        binary: Path::new("/bin/sleep"),
        arguments: &arguments,
        listeners: vec![],
    };
    let process = launch(&later, lock, launch_of).unwrap();
    let Found::Gone(_) = vm.dir.inspect().unwrap() else {
        panic!("the later start is not this one")
    };
    assert!(matches!(later.inspect().unwrap(), Found::Running(_)));
    vm.dir.remove().unwrap();
    assert!(!vm.dir.path().exists());
    process.kill().unwrap();
    process.ended().await.unwrap();
    later.remove().unwrap();
    assert!(
        !later.path().parent().unwrap().exists(),
        "the VM's folder went with its last start"
    );
}

#[tokio::test]
#[allow(deprecated, reason = "see `Process::ended`")]
async fn a_zombie_is_gone_and_is_reaped_by_whoever_looks() {
    let vm = Fixture::new();
    let process = vm
        .start(
            "/bin/sh",
            &["-c", "echo 'no such option: -frob' >&2; exit 3"],
        )
        .unwrap();
    let pid = process.pid();
    // Wait for the end without reaping.
    let pidfd = rustix::process::pidfd_open(
        rustix::process::Pid::from_raw(pid as i32).unwrap(),
        rustix::process::PidfdFlags::empty(),
    );
    let watched =
        tokio::io::unix::AsyncFd::with_interest(pidfd.unwrap(), tokio::io::Interest::READABLE)
            .unwrap();
    let _ = timeout(SOON, watched.readable()).await.unwrap().unwrap();
    assert!(
        std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .unwrap()
            .contains(") Z ")
    );

    let Found::Gone(end) = vm.dir.inspect().unwrap() else {
        panic!("a zombie looks alive")
    };
    assert_eq!(end.cause, EndCause::Exited(3));
    assert_eq!(
        end.to_string(),
        "QEMU exited with status 3; its last words: no such option: -frob"
    );
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "reaped");
}

#[test]
fn a_reused_pid_is_not_ours() {
    let vm = Fixture::new();
    drop(vm.dir.lock().unwrap());
    let own = Identity::of(std::process::id()).unwrap().unwrap();
    vm.dir.note_start().unwrap();
    vm.dir
        .write(
            "run.json",
            &Identity {
                start_time: own.start_time - 1,
                ..own.clone()
            },
        )
        .unwrap();
    let Found::Gone(end) = vm.dir.inspect().unwrap() else {
        panic!("a stranger was adopted")
    };
    assert_eq!(end.cause, EndCause::Vanished);

    let vm = Fixture::new();
    vm.dir.write("started.json", &"an earlier boot").unwrap();
    vm.dir
        .write(
            "run.json",
            &Identity {
                boot_id: "an earlier boot".into(),
                ..own
            },
        )
        .unwrap();
    let Found::Gone(end) = vm.dir.inspect().unwrap() else {
        panic!("a stranger was adopted")
    };
    assert_eq!(end.cause, EndCause::HostRebooted);
}

/// As after the host application was killed: QEMU is nobody's child, so only its log tells.
#[test]
fn a_qemu_that_was_told_to_end_while_nobody_watched_did_not_crash() {
    let vm = Fixture::new();
    vm.dir.note_start().unwrap();
    let words = "qemu-system-x86_64: terminating on signal 15 from pid 1 (/sbin/init)\n";
    vm.dir.write_bytes("qemu.log", words.as_bytes()).unwrap();
    let Found::Gone(end) = vm.dir.inspect().unwrap() else {
        panic!("still there")
    };
    assert_eq!(end.cause, EndCause::Terminated);
    assert!(end.to_string().contains("signal 15"), "{end}");
}

#[test]
fn a_poweroff_that_was_noted_stays_a_poweroff() {
    let vm = Fixture::new();
    drop(vm.dir.lock().unwrap());
    vm.dir.note_end(EndCause::GuestShutdown).unwrap();
    vm.dir.note_end(EndCause::Requested).unwrap();
    let Found::Gone(end) = vm.dir.inspect().unwrap() else {
        panic!("still there")
    };
    assert_eq!(end.cause, EndCause::GuestShutdown);
}

#[test]
fn a_missing_binary_leaves_nothing_running() {
    let vm = Fixture::new();
    let error = vm.start("/no/such/qemu", &[]).unwrap_err();
    assert_eq!(error.to_string(), "cannot start /no/such/qemu");
    assert!(matches!(vm.dir.inspect().unwrap(), Found::Never));
}

#[test]
fn a_path_too_long_for_sockets_is_refused_up_front() {
    let folder = |bytes: usize| PathBuf::from(format!("/{}", "x".repeat(bytes - 1)));
    fits(&folder(55)).unwrap();
    let error = fits(&folder(56)).unwrap_err();
    assert!(
        error.to_string().contains("56 bytes and the limit is 55"),
        "{error}"
    );
}

#[test]
fn secrets_of_our_environment_do_not_reach_the_child() {
    let vm = Fixture::new();
    let process = vm.start("/bin/sleep", &["60"]).unwrap();
    let environment = std::fs::read_to_string(format!("/proc/{}/environ", process.pid())).unwrap();
    assert!(!environment.contains("CARGO"), "{environment}");
}
