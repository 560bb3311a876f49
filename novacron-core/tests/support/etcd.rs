//! etcd servers of a test, on free ports of loopback, gone with the test.
//!
//! Each server is a child of its own that is ended by its own process id: when [`Etcd`] is dropped, also by a panic, and
//! by the kernel (`setpriv --pdeathsig`) when the test's process is killed.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::fs::File;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use novacron_core::store::{EtcdOptions, EtcdStore};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::process::{dying, free_port, nap};

/// How a server is started beside its defaults.
#[derive(Clone, Default)]
pub(crate) struct Setup {
    /// More arguments.
    pub(crate) args: Vec<String>,
    /// Whether clients must come by https.
    pub(crate) tls: bool,
}

pub(crate) struct Etcd {
    folder: tempfile::TempDir,
    setup: Setup,
    members: Vec<Member>,
}

struct Member {
    client: u16,
    peer: u16,
    child: Option<Child>,
}

impl Etcd {
    pub(crate) fn start() -> Self {
        Self::start_with(1, &Setup::default())
    }

    pub(crate) fn start_with(members: usize, setup: &Setup) -> Self {
        for program in ["etcd", "etcdctl"] {
            let found = Command::new(program).arg("--version").output();
            assert!(
                found.is_ok(),
                "{program} is missing: apt-get install etcd-server etcd-client"
            );
        }
        // A free port may be taken by another before etcd has it.
        for _ in 0..5 {
            if let Some(started) = Self::try_start(members, setup.clone()) {
                return started;
            }
        }
        panic!("etcd does not start");
    }

    /// A server that begins with what `etcdctl snapshot save` wrote.
    pub(crate) fn restored(snapshot: &Path) -> Self {
        let mut etcd = Self::start();
        etcd.kill(0);
        let data = etcd.folder.path().join("n0");
        std::fs::remove_dir_all(&data).unwrap();
        let peer = format!("http://127.0.0.1:{}", etcd.members[0].peer);
        etcd.ctl(&[
            "snapshot",
            "restore",
            snapshot.to_str().unwrap(),
            &format!("--data-dir={}", data.display()),
            "--name=n0",
            &format!("--initial-cluster=n0={peer}"),
            &format!("--initial-advertise-peer-urls={peer}"),
        ]);
        etcd.restart(0);
        etcd
    }

    fn try_start(members: usize, setup: Setup) -> Option<Self> {
        let members = (0..members).map(|_| Member {
            client: free_port(),
            peer: free_port(),
            child: None,
        });
        let mut etcd = Self {
            folder: tempfile::tempdir().unwrap(),
            setup,
            members: members.collect(),
        };
        (0..etcd.members.len()).for_each(|i| etcd.spawn(i));
        (0..etcd.members.len())
            .all(|i| etcd.listens(i))
            .then_some(etcd)
    }

    fn spawn(&mut self, i: usize) {
        let scheme = if self.setup.tls { "https" } else { "http" };
        let cluster = self.members.iter().enumerate();
        let cluster: Vec<_> = cluster
            .map(|(i, m)| format!("n{i}=http://127.0.0.1:{}", m.peer))
            .collect();
        let member = &self.members[i];
        let client = format!("{scheme}://127.0.0.1:{}", member.client);
        let peer = format!("http://127.0.0.1:{}", member.peer);
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join(format!("n{i}.log")))
            .unwrap();
        let child = dying("etcd")
            .args(["--name", &format!("n{i}")])
            .arg("--data-dir")
            .arg(self.folder.path().join(format!("n{i}")))
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &cluster.join(",")])
            .args(["--log-level", "error"])
            .args(&self.setup.args)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.members[i].child = Some(child);
    }

    /// Waits until a member listens; false when it has ended.
    fn listens(&mut self, i: usize) -> bool {
        let until = Instant::now() + Duration::from_secs(30);
        while Instant::now() < until {
            if TcpStream::connect(("127.0.0.1", self.members[i].client)).is_ok() {
                return true;
            }
            let child = self.members[i].child.as_mut().unwrap();
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            nap(Duration::from_millis(20));
        }
        false
    }

    pub(crate) fn port(&self, i: usize) -> u16 {
        self.members[i].client
    }

    pub(crate) fn endpoint(&self, i: usize) -> String {
        let scheme = if self.setup.tls { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port(i))
    }

    pub(crate) fn endpoints(&self) -> Vec<String> {
        (0..self.members.len()).map(|i| self.endpoint(i)).collect()
    }

    pub(crate) fn options(&self) -> EtcdOptions {
        EtcdOptions::new(self.endpoints())
    }

    pub(crate) async fn connect(&self) -> EtcdStore {
        EtcdStore::connect(self.options()).await.unwrap()
    }

    fn signal(&self, i: usize, signal: Signal) {
        let id = self.members[i].child.as_ref().unwrap().id();
        let pid = Pid::from_raw(i32::try_from(id).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self, i: usize) {
        let mut child = self.members[i].child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Starts a member again on its data.
    pub(crate) fn restart(&mut self, i: usize) {
        self.spawn(i);
        assert!(self.listens(i), "etcd does not start again");
    }

    pub(crate) fn pause(&self, i: usize) {
        self.signal(i, Signal::STOP);
    }

    pub(crate) fn resume(&self, i: usize) {
        self.signal(i, Signal::CONT);
    }

    /// What `etcdctl` says.
    pub(crate) fn ctl(&self, args: &[&str]) -> String {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.endpoints().join(",")))
            .args(args)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "etcdctl {args:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn ctl_json(&self, args: &[&str]) -> Value {
        let text = self.ctl(&[args, &["--write-out=json"]].concat());
        serde_json::from_str(&text).unwrap()
    }

    /// Which member leads; waits until one does.
    pub(crate) fn leader(&self) -> usize {
        for _ in 0..200 {
            for i in (0..self.members.len()).filter(|i| self.members[*i].child.is_some()) {
                let endpoint = format!("--endpoints={}", self.endpoint(i));
                let output = Command::new("etcdctl")
                    .env("ETCDCTL_API", "3")
                    .args([&endpoint, "endpoint", "status", "--write-out=json"])
                    .output()
                    .unwrap();
                let Ok(status) = serde_json::from_slice::<Value>(&output.stdout) else {
                    continue;
                };
                let status = &status[0]["Status"];
                if status["leader"].as_u64().is_some_and(|leader| leader != 0)
                    && status["leader"] == status["header"]["member_id"]
                {
                    return i;
                }
            }
            nap(Duration::from_millis(50));
        }
        panic!("no leader");
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for mut child in self.members.iter_mut().filter_map(|m| m.child.take()) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
