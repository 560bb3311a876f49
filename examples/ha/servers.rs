//! The store's servers: an etcd member in each host's namespace, or one PostgreSQL in the hub's.
//!
//! Each is a child of its own, ended by its own process id when it is let go, and by the kernel when the director is
//! killed.

use std::fs::File;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::Instant;

use crate::Result;
use crate::net::{HOSTS, HUB, Net, address};

/// Which store, and what is needed to reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Etcd,
    Postgres,
}

impl Place {
    pub(crate) fn parse(word: &str) -> Option<Self> {
        match word {
            "etcd" => Some(Self::Etcd),
            "postgres" => Some(Self::Postgres),
            _ => None,
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Postgres => "postgres",
        }
    }

    /// Where etcd's members are.
    pub(crate) fn endpoints() -> Vec<String> {
        HOSTS.iter().map(|host| endpoint(host)).collect()
    }

    /// Where PostgreSQL is. Only the namespaces reach it, so it asks for no password.
    pub(crate) fn connection() -> String {
        format!("host={HUB} user=postgres dbname=postgres")
    }
}

fn endpoint(host: &str) -> String {
    format!("http://{}:2379", address(host))
}

/// The servers.
#[derive(Debug)]
pub(crate) struct Servers {
    dir: PathBuf,
    running: Vec<(String, Process)>,
}

/// A server's process, killed when it is let go.
#[derive(Debug)]
struct Process(Child);

impl Process {
    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
        Ok(kill_process(pid.ok_or("no pid")?, signal)?)
    }

    fn end(&mut self, signal: Signal) -> Result<()> {
        self.signal(signal)?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Servers {
    /// Starts them with their data in `dir`. That they answer the caller sees by connecting.
    pub(crate) fn start(place: &Place, dir: &Path, net: &Net) -> Result<Self> {
        let mut servers = Self {
            dir: dir.to_owned(),
            running: Vec::new(),
        };
        std::fs::create_dir_all(dir)?;
        match place {
            Place::Etcd => {
                for host in HOSTS {
                    servers.start_etcd(host, net)?;
                }
            }
            Place::Postgres => {
                servers.init_postgres()?;
                servers.start_postgres()?;
            }
        }
        Ok(servers)
    }

    /// Starts the member of a host, again after a [`Servers::kill`].
    pub(crate) fn start_etcd(&mut self, host: &str, net: &Net) -> Result<()> {
        let peer = |host: &str| format!("http://{}:2380", address(host));
        let all: Vec<_> = HOSTS.iter().map(|h| format!("{h}={}", peer(h))).collect();
        let mut command = dying("ip");
        command
            .args(["netns", "exec", &net.namespace(host), "etcd"])
            .args(["--name", host])
            .arg("--data-dir")
            .arg(self.dir.join(host))
            .args(["--listen-client-urls", &endpoint(host)])
            .args(["--advertise-client-urls", &endpoint(host)])
            .args(["--listen-peer-urls", &peer(host)])
            .args(["--initial-advertise-peer-urls", &peer(host)])
            .args(["--initial-cluster", &all.join(",")])
            .args(["--log-level", "warn"]);
        self.run(host, command, "apt-get install etcd-server etcd-client")
    }

    fn init_postgres(&self) -> Result<()> {
        let user = Command::new("id").args(["-u", "postgres"]).output()?;
        let user: u32 = String::from_utf8(user.stdout)?
            .trim()
            .parse()
            .map_err(|_| "there is no user postgres: apt-get install postgresql")?;
        chown(&self.dir, Some(user), None)?;
        let output = postgres("initdb")?
            .arg("-D")
            .arg(self.dir.join("data"))
            .args(["-U", "postgres", "-E", "UTF8", "--locale=C", "--auth=trust"])
            .output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("initdb: {}", said.trim()).into());
        }
        let hosts = "host all all 10.77.0.0/24 trust\n";
        let access = self.dir.join("data/pg_hba.conf");
        let mut rules = std::fs::read_to_string(&access)?;
        rules.push_str(hosts);
        Ok(std::fs::write(access, rules)?)
    }

    /// Starts PostgreSQL, again after a [`Servers::kill`].
    pub(crate) fn start_postgres(&mut self) -> Result<()> {
        let mut command = postgres("postgres")?;
        command
            .arg("-D")
            .arg(self.dir.join("data"))
            .arg("-k")
            .arg(&self.dir)
            .args(["-c", &format!("listen_addresses={HUB}")]);
        self.run("postgres", command, "apt-get install postgresql")
    }

    fn run(&mut self, name: &str, mut command: Command, install: &str) -> Result<()> {
        let log = self.dir.parent().unwrap_or(&self.dir).join("logs");
        std::fs::create_dir_all(&log)?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(log.join(format!("store-{name}.log")))?;
        let child = command
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|e| format!("{name}: {e}; {install}"))?;
        self.running.push((name.to_owned(), Process(child)));
        Ok(())
    }

    /// Ends a server by a signal, and waits until it is gone: etcd's by the name of its host, or `postgres`.
    pub(crate) fn kill(&mut self, name: &str, signal: Signal) -> Result<()> {
        let at = self.running.iter().position(|(n, _)| n == name);
        let (_, mut process) = self.running.remove(at.ok_or("that server does not run")?);
        process.end(signal)
    }

    /// Waits until etcd lets the lease of a process go, which lies on `host` and cannot renew it any more.
    pub(crate) async fn etcd_lets_go(host: &str, member: u64) -> Result<Instant> {
        let others = HOSTS.iter().filter(|other| **other != host);
        let others: Vec<_> = others.map(|host| endpoint(host)).collect();
        let mut child = tokio::process::Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", others.join(",")))
            .args(["watch", &format!("/novacron/l/member/{member}")])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
        while let Some(line) = lines.next_line().await? {
            if line == "DELETE" {
                return Ok(Instant::now());
            }
        }
        Err("etcdctl watch ended by itself".into())
    }

    /// The host whose etcd member leads.
    pub(crate) fn etcd_leader() -> Result<&'static str> {
        for host in HOSTS {
            let output = Command::new("etcdctl")
                .env("ETCDCTL_API", "3")
                .arg(format!("--endpoints={}", endpoint(host)))
                .args(["endpoint", "status", "--write-out=json"])
                .output()
                .map_err(|e| format!("etcdctl: {e}; apt-get install etcd-client"))?;
            let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let status = &status[0]["Status"];
            if status["leader"].is_u64() && status["leader"] == status["header"]["member_id"] {
                return Ok(host);
            }
        }
        Err("no member of etcd leads".into())
    }
}

/// A command that the kernel kills with the thread that started it: the director's first, which lives as long as it does.
fn dying(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]);
    command
}

/// A program of the newest PostgreSQL here, as the user `postgres`.
fn postgres(program: &str) -> Result<Command> {
    let install = "PostgreSQL is not installed: apt-get install postgresql";
    let found = std::fs::read_dir("/usr/lib/postgresql").map_err(|_| install)?;
    let version = |path: &PathBuf| -> Option<u32> { path.file_name()?.to_str()?.parse().ok() };
    let newest = found
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join("bin").join(program).exists())
        .max_by_key(version)
        .ok_or(install)?;
    let mut command = dying("--reuid=postgres");
    command
        .args(["--regid=postgres", "--init-groups"])
        .arg(newest.join("bin").join(program))
        .current_dir("/")
        .env("LC_ALL", "C");
    Ok(command)
}
