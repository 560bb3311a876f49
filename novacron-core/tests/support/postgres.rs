//! A PostgreSQL server of a test's own: an unprivileged process with its data in a temporary folder, on a socket there
//! and, if asked, on a port of the loopback. It dies with the test, however that ends.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use novacron_core::store::{PostgresOptions, PostgresStore};

use super::process::free_port;

/// The password of `postgres` and of every role that a test makes.
pub(crate) const PASSWORD: &str = "correct-horse-battery";

/// How long the server may take to start or to recover.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server.
pub(crate) struct Server {
    folder: PathBuf,
    port: u16,
    tcp: bool,
    settings: Vec<String>,
    /// No file of it may grow beyond this: as if the disk were full.
    file_bytes: Option<u64>,
    postmaster: Option<Postmaster>,
}

/// Its main process, and what its thread says when it has ended.
struct Postmaster {
    pid: u32,
    ended: Mutex<mpsc::Receiver<()>>,
}

impl Server {
    /// The one that the tests of a process share; each has a schema of its own.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Server> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(false, &[]))
    }

    /// A server of the caller's, on the loopback too if `tcp`, with more settings.
    pub(crate) fn start(tcp: bool, settings: &[&str]) -> Self {
        Self::start_with(tcp, settings, None)
    }

    /// A server on a disk that is full as soon as one of its files has that many bytes.
    pub(crate) fn start_small(file_bytes: u64) -> Self {
        Self::start_with(false, &[], Some(file_bytes))
    }

    fn start_with(tcp: bool, settings: &[&str], file_bytes: Option<u64>) -> Self {
        remove_leftovers();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = base().join(format!("novacron-pg-{}-{count}", std::process::id()));
        let template = template();
        let copied = Command::new("cp")
            .arg("-a")
            .arg(&template)
            .arg(&folder)
            .status()
            .unwrap();
        assert!(
            copied.success(),
            "cp -a {} {}",
            template.display(),
            folder.display()
        );
        let port = if tcp { free_port() } else { 5432 };
        let settings = settings.iter().map(ToString::to_string).collect();
        let mut server = Self {
            folder,
            port,
            tcp,
            settings,
            file_bytes,
            postmaster: None,
        };
        server.run();
        server
    }

    /// A standby that follows this one, on a socket of its own.
    pub(crate) fn standby(&self, settings: &[&str]) -> Self {
        let folder = PathBuf::from(format!("{}-standby", self.folder.display()));
        let output = unprivileged(bin("pg_basebackup"))
            .arg("-h")
            .arg(&self.folder)
            .args([
                "-p",
                &self.port.to_string(),
                "-U",
                "postgres",
                "-R",
                "-c",
                "fast",
                "-D",
            ])
            .arg(&folder)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        // The data folder has the socket in it, and the copy its lock.
        for name in ["log", ".s.PGSQL.5432.lock"] {
            let _ = fs::remove_file(folder.join(name));
        }
        let mut standby = Self {
            folder,
            port: self.port,
            tcp: false,
            settings: settings.iter().map(ToString::to_string).collect(),
            file_bytes: None,
            postmaster: None,
        };
        standby.run();
        standby
    }

    /// Starts it, again after a [`kill`](Self::kill), and waits until it answers.
    pub(crate) fn run(&mut self) {
        assert!(self.postmaster.is_none());
        let end = Instant::now() + PATIENCE;
        loop {
            self.postmaster = Some(self.spawn());
            while Instant::now() < end {
                let ready = unprivileged(bin("pg_isready"))
                    .arg("-q")
                    .arg("-h")
                    .arg(&self.folder)
                    .args(["-p", &self.port.to_string()])
                    .status()
                    .unwrap();
                if ready.success() {
                    return;
                }
                let postmaster = self.postmaster.as_ref().unwrap();
                if postmaster.ended_within(Duration::from_millis(20)) {
                    break;
                }
            }
            // After a kill its children may still be attached to the shared memory for a moment.
            self.postmaster = None;
            assert!(Instant::now() < end, "no PostgreSQL: {}", self.log());
        }
    }

    fn spawn(&self) -> Postmaster {
        let mut command = match self.file_bytes {
            None => unprivileged(bin("postgres")),
            Some(bytes) => {
                let mut command = unprivileged("prlimit");
                command.arg(format!("--fsize={bytes}")).arg(bin("postgres"));
                command
            }
        };
        command
            .arg("-D")
            .arg(&self.folder)
            .args(["-p", &self.port.to_string()]);
        command.arg("-k").arg(&self.folder);
        let listen = if self.tcp { "127.0.0.1" } else { "" };
        command.args(["-c", &format!("listen_addresses={listen}")]);
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.join("log"))
            .unwrap();
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        // It dies with the thread that started it, which therefore waits for it.
        let (started, pid) = mpsc::channel();
        let (tell, ended) = mpsc::channel();
        std::thread::spawn(move || {
            let mut child = command
                .spawn()
                .unwrap_or_else(|e| panic!("{}: {e}", install()));
            started.send(child.id()).unwrap();
            let _ = child.wait();
            let _ = tell.send(());
        });
        Postmaster {
            pid: pid.recv().unwrap(),
            ended: Mutex::new(ended),
        }
    }

    /// Ends every process of it at once, as a power cut does. Without its main process alone, a commit that waits for
    /// the standby would be shown to readers for a moment, and may not outlive the fail-over.
    pub(crate) fn kill(&mut self) {
        self.pause();
        let postmaster = self.postmaster.take().expect("it runs");
        let children = children(postmaster.pid);
        signal("KILL", &[postmaster.pid]);
        assert!(postmaster.ended_within(PATIENCE));
        signal("KILL", &children);
    }

    /// Stops every process of it where it stands; until [`resume`](Self::resume) it neither answers nor hangs up.
    pub(crate) fn pause(&self) {
        let pid = self.postmaster.as_ref().expect("it runs").pid;
        signal("STOP", &[pid]);
        signal("STOP", &children(pid));
    }

    pub(crate) fn resume(&self) {
        let pid = self.postmaster.as_ref().expect("it runs").pid;
        signal("CONT", &children(pid));
        signal("CONT", &[pid]);
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The end of its log.
    pub(crate) fn log(&self) -> String {
        let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let last: Vec<_> = log.lines().rev().take(30).collect();
        last.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// A connection string for its socket, where everybody is let in.
    pub(crate) fn string(&self, user: &str, database: &str) -> String {
        format!(
            "host={} port={} user={user} dbname={database}",
            self.folder.display(),
            self.port
        )
    }

    /// A connection string for the loopback, where a password is asked for.
    pub(crate) fn tcp_string(&self, host: &str, user: &str) -> String {
        assert!(self.tcp);
        format!(
            "host={host} hostaddr=127.0.0.1 port={} user={user} dbname=postgres",
            self.port
        )
    }

    /// Options for a store in `schema`.
    pub(crate) fn options(&self, schema: &str) -> PostgresOptions {
        let mut options = PostgresOptions::new(&self.string("postgres", "postgres")).unwrap();
        schema.clone_into(&mut options.schema);
        options.connections = 4;
        options
    }

    /// A store in `schema`.
    pub(crate) async fn store(&self, schema: &str) -> PostgresStore {
        PostgresStore::connect(self.options(schema)).await.unwrap()
    }

    /// Lets time pass for a store: the server's clock cannot be moved, what it is compared with can.
    pub(crate) async fn pass(&self, schema: &str, by: Duration) {
        let by = by.as_millis();
        let sql = format!(
            "UPDATE {schema}.leases SET expires = expires - {by} * interval '1 ms';
             UPDATE {schema}.txns SET at = at - {by} * interval '1 ms'"
        );
        self.sql(&sql).await;
    }

    /// Runs SQL as the administrator.
    pub(crate) async fn sql(&self, sql: &str) {
        let client = self.client().await;
        client
            .batch_execute(sql)
            .await
            .unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    /// A connection of the administrator's.
    pub(crate) async fn client(&self) -> tokio_postgres::Client {
        let string = self.string("postgres", "postgres");
        let (client, connection) = tokio_postgres::connect(&string, tokio_postgres::NoTls)
            .await
            .unwrap();
        tokio::spawn(connection);
        client
    }
}

impl Postmaster {
    fn ended_within(&self, patience: Duration) -> bool {
        self.ended.lock().unwrap().recv_timeout(patience).is_ok()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(postmaster) = self.postmaster.take() {
            signal("CONT", &[postmaster.pid]);
            let children = children(postmaster.pid);
            signal("KILL", &[postmaster.pid]);
            signal("KILL", &children);
            postmaster.ended_within(PATIENCE);
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A name for a schema that no other test of this process has.
pub(crate) fn schema() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("nc_{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

fn base() -> PathBuf {
    // Not `temp_dir()`: the path of a socket has at most 107 bytes.
    PathBuf::from("/tmp")
}

/// The folder of a fresh cluster, made once: `initdb` takes longer than a copy.
fn template() -> PathBuf {
    let binary = bin("postgres");
    let version = Command::new(&binary)
        .arg("--version")
        .output()
        .unwrap()
        .stdout;
    let version: String = String::from_utf8(version)
        .unwrap()
        .chars()
        .filter(char::is_ascii_digit)
        .collect();
    let user = rustix::process::getuid().as_raw();
    let made = base().join(format!("novacron-pgt-{version}-{user}-1"));
    if made.exists() {
        return made;
    }
    let draft = base().join(format!("novacron-pg-{}-template", std::process::id()));
    let secret = base().join(format!("novacron-pg-{}-password", std::process::id()));
    fs::File::create(&secret)
        .unwrap()
        .write_all(PASSWORD.as_bytes())
        .unwrap();
    let output = unprivileged(bin("initdb"))
        .arg("-D")
        .arg(&draft)
        .arg("--pwfile")
        .arg(&secret)
        .args([
            "-U",
            "postgres",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
            "--wal-segsize=1",
        ])
        .args(["--auth-local=trust", "--auth-host=scram-sha-256"])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "initdb: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let _ = fs::remove_file(&secret);
    // The processes of a test are killed, the machine is not: nothing of this needs the disk.
    let settings = "fsync = off\nshared_buffers = 16MB\nmax_connections = 80\nmax_wal_size = 64MB\nmin_wal_size = 8MB\n\
                    log_line_prefix = '%m [%p] %u '\nautovacuum_naptime = 5s\n";
    fs::File::options()
        .append(true)
        .open(draft.join("postgresql.conf"))
        .unwrap()
        .write_all(settings.as_bytes())
        .unwrap();
    if fs::rename(&draft, &made).is_err() {
        // Another process was faster.
        let _ = fs::remove_dir_all(&draft);
    }
    made
}

/// A program of the newest PostgreSQL here.
pub(crate) fn bin(name: &str) -> PathBuf {
    let version = |path: &PathBuf| -> Option<u32> { path.file_name()?.to_str()?.parse().ok() };
    let found = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let found = found.filter_map(|entry| Some(entry.ok()?.path()));
    let newest = found
        .filter(|path| path.join("bin").join(name).exists())
        .max_by_key(version);
    match newest {
        Some(path) => path.join("bin").join(name),
        None => panic!("{}", install()),
    }
}

fn install() -> &'static str {
    "PostgreSQL is not installed; run: make deps (or: apt-get install postgresql)"
}

/// A command in a folder that its user may enter, with messages in English.
fn unprivileged(program: impl AsRef<OsStr>) -> Command {
    let mut command = super::process::unprivileged(program);
    command.current_dir("/").env("LC_ALL", "C");
    command
}

fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

fn signal(name: &str, pids: &[u32]) {
    for pid in pids {
        let _ = Command::new("kill")
            .args([&format!("-{name}"), &pid.to_string()])
            .stderr(Stdio::null())
            .status();
    }
}

/// Removes what the tests of processes left that are no more.
fn remove_leftovers() {
    for entry in fs::read_dir(base()).unwrap().flatten() {
        let name = entry.file_name();
        let Some(rest) = name
            .to_str()
            .and_then(|name| name.strip_prefix("novacron-pg-"))
        else {
            continue;
        };
        let pid = rest.split('-').next().unwrap_or_default();
        if pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists() {
            let _ = fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path()));
        }
    }
}
