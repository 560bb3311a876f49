//! The ways to a libvirtd: by TLS and by SSH, as to another host, and a user's own session.

use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use futures::StreamExt;
use novacron_core::ErrorKind;
use novacron_core::driver::{Call, DomainState, GuestEvent, Hypervisor, StopMode, StopReport};
use novacron_kvm::LibvirtHypervisor;
use rustix::process::getuid;
use tokio::task::block_in_place;
use tokio::time::timeout;

use crate::common::*;
use crate::daemon::{Daemon, pki, wait_for};

/// What every way must carry: a guest's life with its events, numbers and a disk that comes and goes, also after the daemon
/// was killed.
async fn a_guests_life(bench: &Bench, daemon: &Daemon, uri: &str) {
    let hypervisor = LibvirtHypervisor::new(uri).state_dir(daemon.file("state"));
    let h = &hypervisor;
    let host = h.probe(call()).await.unwrap();
    assert_eq!(h.list(call()).await.unwrap(), []);
    let mut spec = bench.guest();
    spec.disks = vec![bench.disk("root", "8M")];
    let id = spec.id;
    h.define(call(), &spec).await.unwrap();
    let mut events = h.events();
    h.start(call(), id).await.unwrap();
    let changed = async {
        loop {
            let event = events.next().await.expect("the stream goes on");
            if event.domain == id && event.event == GuestEvent::StateChanged {
                return;
            }
        }
    };
    timeout(SOON, changed).await.expect("the start's event");
    assert_eq!(state(h, id).await, DomainState::Paused);
    h.resume(call(), id).await.unwrap();
    let stats = h.stats(call(), id).await.unwrap();
    assert_eq!(stats.disks.len(), 1);

    let pid = daemon.guest(id);
    block_in_place(|| daemon.kill());
    block_in_place(|| daemon.start());
    let again = async { while h.probe(Call::within(SOON)).await.is_err() {} };
    timeout(SOON, again).await.expect("a connection");
    assert_eq!(h.probe(call()).await.unwrap().host, host.host);
    assert_eq!(state(h, id).await, DomainState::Running);
    assert_eq!(daemon.guest(id), pid);

    let disk = bench.disk("more", "8M");
    let plug = h.hot_plug().unwrap();
    plug.attach_disk(call(), id, &disk).await.unwrap();
    assert_eq!(domain(h, id).await.disks.len(), 2);
    assert_eq!(
        h.stop(call(), id, StopMode::Kill).await.unwrap(),
        StopReport::Ended
    );
    h.undefine(call(), id).await.unwrap();
    assert_eq!(h.list(call()).await.unwrap(), []);
    // What needs this host's files is not there for another one.
    assert!(h.consoles().is_none());
}

/// What is said of a connection that cannot be made.
async fn refusal(uri: &str) -> (ErrorKind, String) {
    let hypervisor = LibvirtHypervisor::new(uri);
    let error = hypervisor.probe(call()).await.unwrap_err();
    (error.kind(), error.report())
}

fn needs_root() {
    assert!(
        getuid().is_root(),
        "a system's libvirtd is root's: sudo make test"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_is_reached_by_tls() {
    needs_root();
    let (bench, port) = (Bench::new(), free_port());
    let daemon = Daemon::listening(Some(port));
    pki(bench.path(), "others");
    let uri = |pki: &Path| {
        format!(
            "qemu+tls://127.0.0.1:{port}/system?pkipath={}",
            pki.display()
        )
    };
    a_guests_life(&bench, &daemon, &uri(&daemon.file("pki"))).await;
    let (kind, words) = refusal(&uri(&bench.path().join("others"))).await;
    assert_eq!(kind, ErrorKind::PermissionDenied);
    assert!(words.contains("certificate"), "{words}");
    let (_, words) = refusal(&uri(&bench.path().join("nothing"))).await;
    assert!(words.contains("nothing/cacert.pem"), "{words}");
    // The certificate is of an address, not of this name.
    let named = uri(&daemon.file("pki")).replace("127.0.0.1", "localhost");
    let (_, words) = refusal(&named).await;
    assert!(words.contains("localhost"), "{words}");
}

/// An SSH server on loopback.
struct Sshd(Child);

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Sshd {
    /// Lets root in by the key `user` in the folder; `other` is a key, too. It sees a home of the test's making.
    fn up(dir: &Path, port: u16) -> Self {
        let made = |command: &mut Command, package: &str| {
            let output = command.stdin(Stdio::null()).output();
            let output = output.unwrap_or_else(|e| panic!("{e}: apt-get install {package}"));
            assert!(output.status.success(), "{output:?}");
        };
        for name in ["user", "other"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]);
            made(keygen.arg(dir.join(name)), "openssh-client");
        }
        let host = dir.join("host");
        let mut keygen = Command::new("dropbearkey");
        made(
            keygen.args(["-t", "ed25519", "-f"]).arg(&host),
            "dropbear-bin",
        );
        let (home, private) = (dir.join("home"), std::fs::Permissions::from_mode(0o700));
        std::fs::create_dir_all(home.join(".ssh")).unwrap();
        std::fs::set_permissions(&home, private).unwrap();
        std::fs::copy(dir.join("user.pub"), home.join(".ssh/authorized_keys")).unwrap();

        let mut sshd = Command::new("unshare");
        sshd.args(["--mount", "sh", "-c"]);
        sshd.arg("mount --bind \"$0\" ~ && exec dropbear -F -E -s -p \"$1\" -r \"$2\"");
        sshd.arg(home).arg(format!("127.0.0.1:{port}")).arg(host);
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap());
        sshd.env("PATH", path).env("HOME", "/root");
        let sshd = sshd.stdin(Stdio::null()).stderr(Stdio::null()).spawn();
        let sshd = Self(sshd.expect("apt-get install util-linux"));
        let there = || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
        wait_for(SOON, "dropbear (apt-get install dropbear-bin)", there);
        sshd
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_is_reached_by_ssh() {
    needs_root();
    let (bench, port) = (Bench::new(), free_port());
    let daemon = Daemon::up();
    let _sshd = Sshd::up(bench.path(), port);
    let uri = |key: &str| {
        format!(
            "qemu+ssh://root@127.0.0.1:{port}/system?keyfile={}&no_verify=1&no_tty=1&proxy=netcat&socket={}",
            bench.path().join(key).display(),
            daemon.socket().display()
        )
    };
    a_guests_life(&bench, &daemon, &uri("user")).await;
    let (kind, words) = refusal(&uri("other")).await;
    assert_eq!(kind, ErrorKind::Unavailable);
    assert!(words.contains("Permission denied"), "{words}");
}

/// The suite's tests that a session has to pass, as a user who is not root. (Run by another one, all of them are.)
#[test]
fn a_user_has_a_session() {
    const TESTS: [&str; 5] = [
        "conformance::event_tells_each_change_of_state",
        "conformance::disk_is_attached_and_detached",
        "conformance::console_gives_what_the_guest_writes",
        "conformance::reopened_driver_finds_what_is_started",
        "conformance::undefine_of_an_ended_domain_leaves_nothing",
    ];
    let mut run = Command::new("unshare");
    run.args(["--user", "--map-user=1000", "--map-group=1000"]);
    // Nothing of it outlives this test, also when it is killed.
    run.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
    // The shell buries whoever's parent went: libvirtd waits for that.
    run.args(["sh", "-c", "\"$@\"; exit $?", "sh"]);
    run.arg(std::env::current_exe().unwrap());
    run.args(["--exact", "--test-threads=1"]).args(TESTS);
    let output = run.output().expect("apt-get install util-linux");
    let told = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let passed = format!("{} passed; 0 failed", TESTS.len());
    assert!(told.contains(&passed), "{told}\n{errors}");
}
