//! A libvirtd of a test's own, with real guests, and nothing left of it when the test ends.
//!
//! A shell does what it is told line by line, starts libvirtd, and ends when nobody can tell it anything any more, also when
//! the test was killed. Root gets a system's libvirtd in namespaces of its own (processes, mounts, network, host name), with its
//! folders in the test's: with the shell ends every process in them. Other users get a session's one. Its socket lies in
//! the test's folder, so that it is reached from outside. What libvirt finds out about QEMU takes ten seconds: it is kept
//! for the next test.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use novacron_core::driver::DomainId;
use novacron_kvm::LibvirtHypervisor;
use rustix::process::getuid;

use crate::common::{BOOT, SOON, kill};

const DEPS: &str = "apt-get install libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients";

/// A libvirtd, started.
pub(crate) struct Daemon {
    folder: tempfile::TempDir,
    /// The port for TLS, if it listens on one.
    tls: Option<u16>,
    shell: Mutex<Sh>,
}

/// The shell that starts it.
struct Sh {
    process: Child,
    /// Gone, it ends.
    lines: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Sh {
    /// Has it do something; whether that succeeded.
    fn does(&mut self, command: &str) -> bool {
        writeln!(
            self.lines.as_mut().unwrap(),
            "if {command}; then echo yes; else echo no; fi"
        )
        .unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        assert!(["yes\n", "no\n"].contains(&&*answer), "{command}: {answer}");
        answer == "yes\n"
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let shell = self.shell.get_mut().unwrap_or_else(|it| it.into_inner());
        drop(shell.lines.take());
        let _ = shell.process.wait();
        for pid in self.guests() {
            kill(pid);
        }
        // Said here, since nothing fails any more: a guest that is left would go on for days.
        if !std::thread::panicking() {
            wait_for(SOON, "the guests' end", || self.guests().is_empty());
        }
    }
}

impl Daemon {
    pub(crate) fn up() -> Self {
        Self::listening(None)
    }

    /// One that is reached by TLS, too, on this port of loopback, with what `pki` makes.
    pub(crate) fn listening(tls: Option<u16>) -> Self {
        let folder = tempfile::Builder::new().prefix("lv").tempdir().unwrap();
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder.path(), open).unwrap();
        let file = |name: &str| folder.path().join(name);
        let write = |name: &str, text: &str| std::fs::write(file(name), text).unwrap();
        for dir in ["etc", "run", "lib", "cache", "log", "lock", "state"] {
            std::fs::create_dir(file(dir)).unwrap();
        }
        let host = uuid::Uuid::from_u128(0x1f3b_5c2e_0000_4000_8000_0000_0000_beef);
        write(
            "etc/libvirtd.conf",
            &format!(
                "unix_sock_rw_perms = \"0700\"\nauth_unix_ro = \"none\"\nauth_unix_rw = \"none\"\n\
                 listen_tls = {}\nlisten_tcp = 0\nhost_uuid = \"{host}\"\n{}",
                u8::from(tls.is_some()),
                tls.map(|port| listens(port, folder.path()))
                    .unwrap_or_default()
            ),
        );
        // libvirt looks its own user up, even where it is told another one; a test's machine may not have it.
        for file in ["passwd", "group"] {
            let mut users = std::fs::read_to_string(format!("/etc/{file}")).unwrap();
            if !users.contains("\nlibvirt-qemu:") {
                users.push_str(match file {
                    "passwd" => "libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin\n",
                    _ => "libvirt-qemu:x:64055:\n",
                });
            }
            write(file, &users);
        }
        let users = "user = \"root\"\ngroup = \"root\"\n";
        write(
            "etc/qemu.conf",
            &format!(
                "{}security_driver = \"none\"\nstdio_handler = \"file\"\nnamespaces = [ ]\n\
                 cgroup_controllers = [ ]\nremember_owner = 0\nmax_processes = 0\n",
                if getuid().is_root() { users } else { "" }
            ),
        );
        let daemon = Self {
            shell: Mutex::new(shell(folder.path(), tls.is_none())),
            folder,
            tls,
        };
        copy(&kept(), &daemon.probed());
        daemon.start();
        copy(&daemon.probed(), &kept());
        daemon
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What libvirt found out about QEMU.
    fn probed(&self) -> PathBuf {
        let session = if getuid().is_root() { "" } else { "libvirt/" };
        self.file(&format!("cache/{session}qemu/capabilities"))
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.file(if getuid().is_root() {
            "run/libvirt-sock"
        } else {
            "run/libvirt/libvirt-sock"
        })
    }

    pub(crate) fn uri(&self) -> String {
        let kind = if getuid().is_root() {
            "system"
        } else {
            "session"
        };
        format!("qemu+unix:///{kind}?socket={}", self.socket().display())
    }

    pub(crate) fn hypervisor(&self) -> LibvirtHypervisor {
        LibvirtHypervisor::new(self.uri()).state_dir(self.file("state"))
    }

    /// Starts it, and waits until it answers.
    pub(crate) fn start(&self) {
        let _ = std::fs::remove_file(self.socket());
        let dir = self.folder.path().display();
        let listen = if self.tls.is_some() { "-l" } else { "" };
        let run = format!("libvirtd {listen} -f {dir}/etc/libvirtd.conf -p {dir}/libvirtd.pid");
        self.does(&format!(
            "{{ {run} >>{dir}/libvirtd.log 2>&1 <&- & daemon=$!; }}"
        ));
        wait_for(BOOT, "libvirtd", || {
            if !self.does("kill -0 $daemon 2>&-") {
                let words = std::fs::read_to_string(self.file("libvirtd.log")).unwrap();
                panic!("libvirtd ended: {words}; {DEPS}");
            }
            self.virsh(&["version"]).is_some()
        });
    }

    /// Runs a command of the shell's where the daemon runs, in its namespaces.
    pub(crate) fn does(&self, command: &str) -> bool {
        self.shell.lock().unwrap().does(command)
    }

    /// Ends it, as a crash would.
    pub(crate) fn kill(&self) {
        assert!(self.does("kill -9 $daemon"));
        self.does("wait $daemon 2>&-");
    }

    /// Stops it, as if it hung; or lets it go on.
    pub(crate) fn hang(&self, on: bool) {
        let signal = if on { "STOP" } else { "CONT" };
        assert!(self.does(&format!("kill -{signal} $daemon")));
    }

    /// What a command of libvirt's prints, if it succeeds.
    pub(crate) fn virsh(&self, arguments: &[&str]) -> Option<String> {
        let mut virsh = Command::new("virsh");
        virsh.args(["-q", "-c", &self.uri()]).args(arguments);
        let output = virsh.stdin(Stdio::null()).output().expect(DEPS);
        let done = output.status.success();
        done.then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The QEMUs of this libvirtd: libvirt hands its own `TMPDIR` on to them, which names the test's folder. Their command
    /// lines do not.
    pub(crate) fn guests(&self) -> Vec<u32> {
        let tmp = format!("TMPDIR={}", self.folder.path().display());
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid: &u32| {
            let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let ours = environ
                .split(|byte| *byte == 0)
                .any(|v| v == tmp.as_bytes());
            ours && line_of(*pid).contains("qemu-system")
        })
        .collect()
    }

    /// A domain's QEMU.
    pub(crate) fn guest(&self, id: DomainId) -> u32 {
        let name = format!("guest={},", name_of(id));
        let mut pids = self.guests();
        pids.retain(|pid| line_of(*pid).contains(&name));
        let [pid] = pids[..] else {
            panic!("one QEMU per domain: {pids:?}");
        };
        pid
    }
}

/// What a libvirtd is told that listens for TLS.
fn listens(port: u16, folder: &Path) -> String {
    pki(folder, "pki");
    let file = |name: &str| folder.join("pki").join(name).display().to_string();
    format!(
        "listen_addr = \"127.0.0.1\"\ntls_port = \"{port}\"\nauth_tls = \"none\"\n\
         key_file = \"{}\"\ncert_file = \"{}\"\nca_file = \"{}\"\n",
        file("serverkey.pem"),
        file("servercert.pem"),
        file("cacert.pem")
    )
}

/// An authority in `folder/name`, with a key and a certificate for a server on loopback and for a client.
pub(crate) fn pki(folder: &Path, name: &str) {
    let dir = folder.join(name);
    std::fs::create_dir(&dir).unwrap();
    let script = "set -e; new='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'; \
         openssl req -x509 $new -days 2 -subj /CN=test -keyout ca.key -out cacert.pem; \
         echo subjectAltName=IP:127.0.0.1 >names; \
         for who in server client; do openssl req $new -subj /CN=127.0.0.1 -keyout ${who}key.pem -out $who.csr; \
         openssl x509 -req -in $who.csr -CA cacert.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out ${who}cert.pem; done";
    let mut openssl = Command::new("sh");
    let made = openssl.args(["-c", script]).current_dir(&dir).output();
    let made = made.unwrap();
    let words = String::from_utf8_lossy(&made.stderr).into_owned();
    assert!(made.status.success(), "{words}; apt-get install openssl");
}

/// The shell that does what it is told, in the places where the libvirtd is to be: in a network of its own if `alone`.
fn shell(folder: &Path, alone: bool) -> Sh {
    let dir = folder.display();
    let mut command = if getuid().is_root() {
        for there in [
            "/etc/libvirt",
            "/run/libvirt",
            "/var/lib/libvirt",
            "/var/cache/libvirt",
            "/var/log/libvirt",
            "/run/lock",
        ] {
            std::fs::create_dir_all(there).unwrap();
        }
        let script = format!(
            "set -e; mount --bind {dir}/etc /etc/libvirt; mount --bind {dir}/run /run/libvirt; \
             mount --bind {dir}/passwd /etc/passwd; mount --bind {dir}/group /etc/group; \
             mount --bind {dir}/lib /var/lib/libvirt; mount --bind {dir}/cache /var/cache/libvirt; \
             mount --bind {dir}/log /var/log/libvirt; mount --bind {dir}/lock /run/lock; hostname libvirt-test; set +e; {READS}"
        );
        let mut command = Command::new("unshare");
        // The first shell waits for the second one, and so buries whoever's parent went.
        let places = if alone { "-mnuip" } else { "-muip" };
        command.args([places, "--fork", "--mount-proc"]);
        command.args(["sh", "-c", "sh -c \"$0\"; exit", &script]);
        command
    } else {
        std::fs::create_dir_all(folder.join("etc/libvirt")).unwrap();
        std::fs::copy(
            folder.join("etc/qemu.conf"),
            folder.join("etc/libvirt/qemu.conf"),
        )
        .unwrap();
        let mut command = Command::new("sh");
        for (name, sub) in [
            ("HOME", "lib"),
            ("XDG_RUNTIME_DIR", "run"),
            ("XDG_CACHE_HOME", "cache"),
            ("XDG_DATA_HOME", "lib"),
            ("XDG_CONFIG_HOME", "etc"),
        ] {
            command.env(name, folder.join(sub));
        }
        command.args(["-c", &format!("{READS}; kill -9 $daemon")]);
        command
    };
    command
        .env("TMPDIR", folder)
        .env("PATH", format!("{}:/usr/sbin:/sbin", env!("PATH")))
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut process = command.spawn().expect("apt-get install util-linux");
    Sh {
        lines: process.stdin.take(),
        answers: BufReader::new(process.stdout.take().unwrap()),
        process,
    }
}

const READS: &str = "while read -r line; do eval \"$line\"; done";

/// The name that libvirt knows a domain of the bench's by.
pub(crate) fn name_of(id: DomainId) -> String {
    format!("web-1-{id}")
}

fn line_of(pid: u32) -> String {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).into_owned()
}

/// Where what libvirt found out about QEMU is kept between tests.
fn kept() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    root.join("target/libvirt-capabilities")
}

/// Copies the files of a folder that are not there yet.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).into_iter().flatten().flatten() {
        let (there, name) = (to.join(entry.file_name()), std::process::id());
        if !there.exists() {
            let fresh = to.join(format!("{name}.new"));
            std::fs::copy(entry.path(), &fresh).unwrap();
            std::fs::rename(fresh, there).unwrap();
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a program of somebody else's is awaited that tells nobody"
)]
pub(crate) fn wait_for(limit: Duration, what: &str, there: impl Fn() -> bool) {
    let since = std::time::Instant::now();
    while !there() {
        assert!(since.elapsed() < limit, "{what}: not there in time");
        std::thread::sleep(Duration::from_millis(20));
    }
}
