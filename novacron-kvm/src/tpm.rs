//! swtpm: a guest's TPM 2.0, in a process of its own beside QEMU.
//!
//! ```text
//!   QEMU ── a socket in the start's folder ── swtpm ── the volume
//! ```
//! It is started before QEMU, and ends when QEMU closes the socket, however that came about. `undefine` and the fence end
//! what is left, and wait for it: the volume is let go of after that, so that no two of them write to one. It is a daemon,
//! and outlives the host application as QEMU does.
//!
//! Which process it is, is told by the socket's path, which no other has on its command line.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use novacron_core::driver::DomainSpec;
use novacron_core::{Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::firmware::state_path;

/// Where QEMU finds it, in the start's folder.
pub(crate) const SOCKET: &str = "tpm";
/// Where the passphrase of its state's encryption is, readable by its owner only.
pub(crate) const PASSPHRASE: &str = "tpm.key";
/// Where one that forgets keeps its state until then.
const OWN_STATE: &str = "tpm.state";
const WORDS: &str = "swtpm is told paths of UTF-8 without a comma only";
/// How long it may take to come up, to say what it can, and to end when it is asked to.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long one that does not say what it can is not asked again.
const SULK: Duration = Duration::from_secs(60);

/// Where a TPM's state is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// In the start's folder, and lost with it, if none.
    volume: Option<PathBuf>,
    /// Whether the start's folder holds a passphrase for it.
    is_encrypted: bool,
}

impl Kept {
    /// That of a domain, if it has a TPM.
    pub(crate) fn of(spec: &DomainSpec, operation: &'static str) -> Result<Option<Self>> {
        if spec.hardware.tpm.is_none() {
            return Ok(None);
        }
        let volume = match &spec.tpm {
            Some(tpm) => Some(named(state_path(&tpm.disk, operation)?, operation)?),
            None => None,
        };
        let is_encrypted = passphrase(spec).is_some();
        Ok(Some(Self {
            volume,
            is_encrypted,
        }))
    }
}

/// The passphrase of a domain's TPM.
pub(crate) fn passphrase(spec: &DomainSpec) -> Option<&[u8]> {
    let passphrase = spec.tpm.as_ref()?.passphrase.as_ref()?;
    Some(passphrase.expose_secret().as_bytes())
}

/// What to start.
#[derive(Debug)]
pub(crate) struct Swtpm<'a> {
    pub(crate) program: &'a Path,
    /// The start's folder.
    pub(crate) folder: &'a Path,
    pub(crate) kept: &'a Kept,
    /// The file in the folder to which it adds what it says.
    pub(crate) log: &'a str,
    /// Whose QEMU it is, by user and group, if not ours.
    pub(crate) user: Option<(u32, u32)>,
}

/// Why it did not start.
#[derive(Debug)]
pub(crate) enum Failed {
    /// It says so.
    Refused(String),
    /// What was tried around it failed.
    Io(io::Error),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The host's program, if it has one that keeps its state in a file: 0.7 or newer.
#[derive(Debug, Default)]
pub(crate) struct Program(Mutex<Known>);

/// What is known of it.
#[derive(Debug, Default)]
enum Known {
    #[default]
    Nothing,
    /// It did not say what it can, at that time.
    Mute(Instant),
    There(PathBuf),
}

impl Program {
    /// Where it is, looked for until it is found. Blocks.
    ///
    /// # Errors
    /// `Unsupported` when there is none; `Unavailable` while one is left alone because it did not say what it can.
    pub(crate) fn find(&self, operation: &'static str) -> Result<PathBuf> {
        let mute = || {
            let message =
                "this host's swtpm does not say what it can; it is asked again in a minute";
            Error::new(ErrorKind::Unavailable, operation, message)
        };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Known::There(program) => return Ok(program.clone()),
            Known::Mute(since) if since.elapsed() < SULK => return Err(mute()),
            Known::Mute(_) | Known::Nothing => {}
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let programs = std::env::split_paths(&path).map(|folder| folder.join("swtpm"));
        *known = Known::Nothing;
        for program in programs.filter(|program| program.is_file()) {
            match keeps_state_in_a_file(&program) {
                Ok(true) => {
                    *known = Known::There(program.clone());
                    return Ok(program);
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, program = %program.display(), "it does not say what it can");
                    *known = Known::Mute(Instant::now());
                }
            }
        }
        match *known {
            Known::Mute(_) => Err(mute()),
            Known::Nothing | Known::There(_) => Err(missing(operation)),
        }
    }
}

fn keeps_state_in_a_file(program: &Path) -> io::Result<bool> {
    let (_, told) = run(Command::new(program).args(["socket", "--print-capabilities"]))?;
    let told: Value = serde_json::from_str(&told)?;
    let features = told.get("features").and_then(Value::as_array);
    let can = |need: &str| features.is_some_and(|all| all.iter().any(|feature| feature == need));
    Ok(can("tpm-2.0") && can("nvram-backend-file"))
}

fn missing(operation: &'static str) -> Error {
    let message =
        "this host has no swtpm (0.7 or newer); on Debian and Ubuntu: apt-get install swtpm";
    Error::new(ErrorKind::Unsupported, operation, message)
}

/// The volume's path, if swtpm can be told it.
fn named(path: &Path, operation: &'static str) -> Result<PathBuf> {
    if path.to_str().is_none_or(|text| text.contains(',')) {
        let error = Error::new(ErrorKind::Unsupported, operation, WORDS);
        return Err(error.with("path", path.display()));
    }
    Ok(path.to_owned())
}

impl Swtpm<'_> {
    /// Starts it; it listens when this returns. Whoever starts it is the only one to start this VM. Blocks. The passphrase is
    /// gone from the folder then.
    pub(crate) fn start(&self) -> Result<(), Failed> {
        end(self.folder)?;
        // By its daemon, which goes to the root folder.
        let folder = whole(self.folder)?;
        if folder.to_str().is_none_or(|text| text.contains(',')) {
            return Err(Failed::Refused(format!("{WORDS}: {}", folder.display())));
        }
        let at = |name: &str| folder.join(name).display().to_string();
        let volume = self.kept.volume.as_ref();
        let state = volume.map_or_else(|| at(OWN_STATE), |volume| volume.display().to_string());
        let mut listens = listens_at(&folder);
        if let Some((user, group)) = self.user {
            listens += &format!(",uid={user},gid={group}");
        }
        let mut command = Command::new(self.program);
        command.args(["socket", "--tpm2", "--daemon", "--terminate"]);
        command.args(["--ctrl", &listens]);
        command.args(["--tpmstate", &format!("backend-uri=file://{state}")]);
        command.args(["--log", &format!("file={},level=1", at(self.log))]);
        if self.kept.is_encrypted {
            let file = at(PASSPHRASE);
            let key = format!("pwdfile={file},mode=aes-256-cbc,kdf=pbkdf2");
            command.args(["--key", &key]);
        }
        let path = std::env::var_os("PATH").map(|path| ("PATH", path));
        command.env_clear().envs(path);
        match run(&mut command)? {
            (true, _) => remove(&folder.join(PASSPHRASE)).map_err(Failed::Io),
            (false, words) => {
                let log = fs::read_to_string(folder.join(self.log)).unwrap_or_default();
                let last = log.lines().last().unwrap_or_default();
                let words = words.trim();
                Err(Failed::Refused(format!(
                    "swtpm did not start: {words} {last}"
                )))
            }
        }
    }
}

/// Ends that of a start, whose QEMU has ended or never came. Blocks.
pub(crate) fn end(folder: &Path) -> io::Result<()> {
    end_all(&listens_at(&whole(folder)?))?;
    remove(&folder.join(SOCKET))
}

/// Ends those of every start in a state folder. Blocks.
pub(crate) fn end_below(folder: &Path) -> io::Result<()> {
    let folder = whole(folder)?;
    end_all(&format!("{LISTENS}{}/", folder.display()))
}

/// The folder's one name.
fn whole(folder: &Path) -> io::Result<PathBuf> {
    fs::canonicalize(folder).or_else(|_| std::path::absolute(folder))
}

fn end_all(listening: &str) -> io::Result<()> {
    loop {
        // One that was found may have been making its daemon.
        let found = running(listening)?;
        if found.is_empty() {
            return Ok(());
        }
        for process in found {
            end_one(&process)?;
        }
    }
}

fn end_one(process: &OwnedFd) -> io::Result<()> {
    // Asked to end, it finishes what it writes.
    for signal in [Signal::TERM, Signal::KILL] {
        match pidfd_send_signal(process, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
        if is_gone(process, PATIENCE)? {
            return Ok(());
        }
    }
    let message = "swtpm was killed and has not ended yet";
    Err(io::Error::new(io::ErrorKind::TimedOut, message))
}

/// Removes a file that may not be there.
fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The processes that have an argument which begins so. Its own note of its pid would come after it listens.
fn running(listening: &str) -> io::Result<Vec<OwnedFd>> {
    let is_it = |pid: i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        words.any(|word| word.starts_with(listening.as_bytes()))
    };
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // Once more when it is open: from there on its pid is not another's.
        if is_it(pid)
            && let Some(raw) = Pid::from_raw(pid)
            && let Ok(process) = pidfd_open(raw, PidfdFlags::empty())
            && is_it(pid)
        {
            found.push(process);
        }
    }
    Ok(found)
}

/// How the argument begins that says where it listens.
const LISTENS: &str = "type=unixio,path=";

/// That argument, which no other process has.
fn listens_at(folder: &Path) -> String {
    format!("{LISTENS}{},mode=0600", folder.join(SOCKET).display())
}

fn is_gone(process: &OwnedFd, within: Duration) -> io::Result<bool> {
    let until = Instant::now() + within;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut watched = [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)];
        match poll(&mut watched, Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Runs it to its end: whether it succeeded, and what it printed.
fn run(command: &mut Command) -> io::Result<(bool, String)> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).spawn()?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let in_time = pid.ok_or(io::Error::from(io::ErrorKind::NotFound));
    let in_time = in_time.and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::empty())?));
    let in_time = in_time.and_then(|process| is_gone(&process, PATIENCE));
    if !matches!(in_time, Ok(true)) {
        child.kill()?;
    }
    let output = child.wait_with_output()?;
    if !in_time? {
        let message = format!("swtpm did not answer within {PATIENCE:?}");
        return Err(io::Error::new(io::ErrorKind::TimedOut, message));
    }
    let succeeded = output.status.success();
    let printed = if succeeded {
        output.stdout
    } else {
        output.stderr
    };
    Ok((succeeded, String::from_utf8_lossy(&printed).into_owned()))
}
