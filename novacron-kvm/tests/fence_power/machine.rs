//! The machine whose power is switched: a real guest of a libvirt of the test's own, behind a BMC that others wrote.
//!
//! ```text
//!   fence ──https──► sushy-emulator ─┐
//!         ──ipmitool► virtualbmc ────┴──► libvirtd (a user's, in the test's folder) ──► QEMU: the machine
//! ```
//! Root cannot have a libvirtd of its own that is not the system's: then all of it but the BMCs is another user's.

use std::ffi::OsStr;
use std::io::Write;
use std::net::UdpSocket;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, getuid, kill_process_group};

use crate::common::{BOOT, SOON, free_port, guest_dir, kill};

/// The machine's name, and its UUID.
pub(crate) const NAME: &str = "machine";
pub(crate) const UUID: &str = "1f3b5c2e-0000-4000-8000-00000000beef";
pub(crate) const USER: &str = "admin";
pub(crate) const PASSWORD: &str = "hidden-word";
/// Of that password.
#[cfg(feature = "redfish")]
const BCRYPT: &str = "$2b$04$yFP9/mk97FDd3g8BIMtYYuyI9Eb4PUVksS9IQc2PM9L7AyJGMLzGe";
/// Debian's `nobody`, for whom root runs libvirt.
const NOBODY: u32 = 65_534;
const DEPS: &str = "make deps (apt-get install libvirt-daemon libvirt-clients python3-libvirt python3-venv ipmitool)";

/// A machine that can be switched on.
pub(crate) struct Machine {
    folder: tempfile::TempDir,
    programs: Vec<Program>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.programs.clear();
        for pid in self.guests() {
            kill(pid);
        }
    }
}

/// A program that leads a process group, and ends with the test.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let group = Pid::from_child(&self.0);
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.0.wait();
    }
}

impl Machine {
    /// A libvirtd that knows the machine, switched on.
    pub(crate) fn up() -> Self {
        let guest = guest_dir();
        let mut machine = Self {
            folder: tempfile::Builder::new().prefix("nc").tempdir().unwrap(),
            programs: Vec::new(),
        };
        for file in ["vmlinuz", "initrd.img"] {
            std::fs::copy(guest.join(file), machine.file(file)).unwrap();
        }
        for dir in ["run", "cache", "data", "home", "config", "config/libvirt"] {
            std::fs::create_dir(machine.file(dir)).unwrap();
        }
        let config = "stdio_handler = \"file\"\nsecurity_driver = \"none\"\n";
        std::fs::write(machine.file("config/libvirt/qemu.conf"), config).unwrap();
        std::fs::write(machine.file("machine.xml"), machine.xml()).unwrap();
        if getuid().is_root() {
            give_away(machine.folder.path());
        }
        let mut libvirtd = if getuid().is_root() {
            let mut nobodys = dying(format!("--reuid={NOBODY}"));
            nobodys.arg(format!("--regid={NOBODY}"));
            nobodys.args(["--clear-groups", "/usr/sbin/libvirtd"]);
            nobodys
        } else {
            dying("/usr/sbin/libvirtd")
        };
        for (name, dir) in [
            ("HOME", "home"),
            ("XDG_RUNTIME_DIR", "run"),
            ("XDG_CACHE_HOME", "cache"),
            ("XDG_DATA_HOME", "data"),
            ("XDG_CONFIG_HOME", "config"),
        ] {
            libvirtd.env(name, machine.file(dir));
        }
        machine.start("libvirtd", libvirtd);
        let socket = machine.socket();
        wait("libvirtd", || socket.exists());
        machine.virsh(&["define", machine.file("machine.xml").to_str().unwrap()]);
        machine.virsh(&["start", NAME]);
        machine
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn xml(&self) -> String {
        let dir = self.folder.path().display();
        format!(
            "<domain type='qemu'><name>{NAME}</name><uuid>{UUID}</uuid><memory unit='MiB'>128</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='pc'>hvm</type><kernel>{dir}/vmlinuz</kernel>\
             <initrd>{dir}/initrd.img</initrd><cmdline>console=ttyS0 quiet</cmdline></os><features><acpi/></features>\
             <devices><serial type='file'><source path='{dir}/console.log' append='on'/></serial></devices></domain>"
        )
    }

    fn socket(&self) -> PathBuf {
        self.file("run/libvirt/libvirt-sock")
    }

    fn uri(&self) -> String {
        format!("qemu+unix:///session?socket={}", self.socket().display())
    }

    /// A command of libvirt's about the machine.
    pub(crate) fn virsh(&self, arguments: &[&str]) {
        let output = Command::new("virsh")
            .args(["-c", &self.uri()])
            .args(arguments)
            .output()
            .expect(DEPS);
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "virsh {arguments:?}: {words}");
    }

    /// The same, whatever comes of it.
    pub(crate) fn try_virsh(&self, arguments: &[&str]) {
        let mut virsh = Command::new("virsh");
        virsh.args(["-c", &self.uri()]).args(arguments);
        virsh.output().expect(DEPS);
    }

    /// The QEMUs that are the machine, as the kernel tells.
    pub(crate) fn guests(&self) -> Vec<u32> {
        let folder = self.folder.path().to_str().unwrap().to_owned();
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid: &u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            line.contains("qemu-system") && line.contains(&folder)
        })
        .collect()
    }

    /// Waits until the machine has come up this often; the boot ids that it had.
    pub(crate) fn booted(&self, times: usize) -> Vec<String> {
        let boots = || {
            let console = std::fs::read(self.file("console.log")).unwrap_or_default();
            let console = String::from_utf8_lossy(&console).into_owned();
            let ready = console
                .lines()
                .filter(|line| line.contains("NOVACRON-GUEST-READY"));
            let ids = ready.filter_map(|line| line.split("boot_id=").nth(1));
            ids.map(|id| id.trim().to_owned()).collect::<Vec<_>>()
        };
        wait_for(BOOT, "the machine's boot", || boots().len() >= times);
        boots()
    }

    /// The path of one of the programs that `make deps` got from PyPI.
    fn pypi(program: &str) -> PathBuf {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let path = root.join("target/venv/bin").join(program);
        assert!(path.exists(), "there is no {}: {DEPS}", path.display());
        path
    }

    fn start(&mut self, name: &str, mut command: Command) {
        let log = self.file(&format!("{name}.log"));
        let log = std::fs::File::create(log).unwrap();
        command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.programs.push(Program(command.spawn().expect(DEPS)));
    }

    /// A Redfish BMC; its address. It vouches for itself with `bmc.pem`.
    #[cfg(feature = "redfish")]
    pub(crate) fn redfish(&mut self) -> String {
        let (certificate, key) = (self.file("bmc.pem"), self.file("bmc.key"));
        let mut openssl = Command::new("openssl");
        openssl
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
            ])
            .args(["-nodes", "-days", "2", "-subj", "/CN=bmc"])
            .args(["-addext", "subjectAltName=IP:127.0.0.1"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .arg("-out")
            .arg(&certificate)
            .arg("-keyout")
            .arg(&key);
        let output = openssl.output().expect("apt-get install openssl");
        assert!(output.status.success(), "{output:?}");
        std::fs::write(self.file("users"), format!("{USER}:{BCRYPT}\n")).unwrap();
        let config = format!("SUSHY_EMULATOR_AUTH_FILE = {:?}\n", self.file("users"));
        std::fs::write(self.file("sushy.conf"), config).unwrap();

        let port = free_port();
        let mut sushy = dying(Self::pypi("sushy-emulator"));
        sushy
            .args(["-i", "127.0.0.1", "-p", &port.to_string()])
            .args(["--libvirt-uri", &self.uri(), "--config"])
            .arg(self.file("sushy.conf"))
            .arg("--ssl-certificate")
            .arg(certificate)
            .arg("--ssl-key")
            .arg(key);
        self.start("sushy-emulator", sushy);
        wait("sushy-emulator", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        format!("https://127.0.0.1:{port}")
    }

    /// An IPMI BMC; its port on the loopback.
    pub(crate) fn ipmi(&mut self) -> u16 {
        let (port, control) = (free_udp_port(), free_port());
        std::fs::create_dir_all(self.file("vbmc").join(NAME)).unwrap();
        let bmc = format!(
            "[VirtualBMC]\nusername = {USER}\npassword = {PASSWORD}\naddress = 127.0.0.1\nport = {port}\n\
             domain_name = {NAME}\nlibvirt_uri = {}\nactive = True\n",
            self.uri()
        );
        std::fs::write(self.file("vbmc").join(NAME).join("config"), bmc).unwrap();
        let config = format!(
            "[default]\nconfig_dir = {}\npid_file = {}\nserver_port = {control}\n",
            self.file("vbmc").display(),
            self.file("vbmc.pid").display()
        );
        std::fs::write(self.file("vbmc.conf"), config).unwrap();
        let mut vbmcd = dying(Self::pypi("vbmcd"));
        vbmcd
            .arg("--foreground")
            .env("VIRTUALBMC_CONFIG", self.file("vbmc.conf"));
        self.start("vbmcd", vbmcd);
        // Get Channel Authentication Capabilities: what every client asks first.
        let ask = [
            6, 0, 0xff, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0x20, 0x18, 0xc8, 0x81, 0, 0x38, 0x8e, 4,
            0xb5,
        ];
        let asker = UdpSocket::bind("127.0.0.1:0").unwrap();
        asker
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        wait("vbmcd", || {
            let _ = asker.send_to(&ask, ("127.0.0.1", port));
            asker.recv(&mut [0; 64]).is_ok()
        });
        port
    }

    /// What the programs said, for a test that fails.
    pub(crate) fn show_logs(&self) {
        for name in ["libvirtd.log", "sushy-emulator.log", "vbmcd.log"] {
            let log = std::fs::read(self.file(name)).unwrap_or_default();
            let _ = writeln!(
                std::io::stderr(),
                "{name}: {}",
                String::from_utf8_lossy(&log)
            );
        }
    }
}

/// A command that the kernel kills with the thread that started it.
fn dying(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

fn free_udp_port() -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().port()
}

/// Gives a folder and what is in it to [`NOBODY`].
fn give_away(path: &Path) {
    chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    if path.is_dir() {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        for entry in std::fs::read_dir(path).unwrap() {
            give_away(&entry.unwrap().path());
        }
    }
}

fn wait(what: &str, there: impl Fn() -> bool) {
    wait_for(SOON, what, there);
}

#[expect(
    clippy::disallowed_methods,
    reason = "a program of somebody else's is awaited that tells nobody"
)]
fn wait_for(limit: Duration, what: &str, there: impl Fn() -> bool) {
    let since = std::time::Instant::now();
    while !there() {
        assert!(since.elapsed() < limit, "{what}: not there in time");
        std::thread::sleep(Duration::from_millis(20));
    }
}
