//! Where everything of one demonstration lies, and how the supervisor tells it to its children.

use std::path::PathBuf;

use novacron_core::cluster::Cluster;
use novacron_core::store::SqliteStore;
use novacron_kvm::QemuHypervisor;
use novacron_storage::LocalStorage;
use tokio::process::Command;

use crate::Result;

const LIFE: &str = "NOVACRON_QUICKSTART_LIFE";
const DIR: &str = "NOVACRON_QUICKSTART_DIR";
const DISK: &str = "NOVACRON_QUICKSTART_DISK";

/// The two nodes. Both are this machine here, so each is given the id of a host of its own.
pub(crate) const NODES: [(&str, &str); 2] = [
    ("alpha", "0a000000-0000-4000-8000-000000000001"),
    ("beta", "0b000000-0000-4000-8000-000000000002"),
];

/// Which of the host application's lives this is: the first ends by SIGKILL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    First,
    Second,
}

/// The folders and files of one demonstration.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    /// The temporary folder that holds everything else.
    pub(crate) dir: PathBuf,
    /// The guest's disk, an image to import.
    pub(crate) disk: PathBuf,
}

impl Site {
    /// What the supervisor told this process, if it is a child.
    pub(crate) fn of_child() -> Option<(Life, Self)> {
        let life = match std::env::var(LIFE).ok()?.as_str() {
            "first" => Life::First,
            _ => Life::Second,
        };
        let dir = std::env::var_os(DIR)?.into();
        let disk = std::env::var_os(DISK)?.into();
        Some((life, Self { dir, disk }))
    }

    /// This program again, as the host application.
    pub(crate) fn child(&self, life: Life) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        let word = if life == Life::First {
            "first"
        } else {
            "second"
        };
        command
            .env(LIFE, word)
            .env(DIR, &self.dir)
            .env(DISK, &self.disk);
        Ok(command)
    }

    /// The state folder of a node.
    pub(crate) fn node_dir(&self, name: &str) -> PathBuf {
        self.dir.join("nodes").join(name)
    }

    /// The folder of the pool that both nodes share.
    pub(crate) fn pool_dir(&self) -> PathBuf {
        self.dir.join("pool")
    }

    /// What the first life leaves to the second.
    pub(crate) fn notes(&self) -> PathBuf {
        self.dir.join("notes")
    }

    /// A node's hypervisor.
    pub(crate) fn hypervisor(&self, name: &str, host: &str) -> Result<QemuHypervisor> {
        Ok(QemuHypervisor::new(self.node_dir(name)).host_id(host.parse()?))
    }

    /// The shared pool.
    pub(crate) async fn storage(&self) -> Result<LocalStorage> {
        Ok(LocalStorage::open(self.pool_dir()).await?)
    }

    /// The cluster: its records in SQLite, two nodes, one pool that both reach.
    pub(crate) async fn cluster(&self) -> Result<Cluster> {
        let store = SqliteStore::open(self.dir.join("cluster.db")).await?;
        let mut builder = Cluster::builder("quickstart")
            .store(store)
            .storage("shared", self.storage().await?);
        for (name, host) in NODES {
            builder = builder.node(name, self.hypervisor(name, host)?);
        }
        Ok(builder.build().await?)
    }
}
