//! Where everything of one demonstration lies, and how the supervisor tells it to its children.

use std::path::PathBuf;

use novacron_core::cluster::Cluster;
use novacron_core::driver::{Call, Domain, Hypervisor};
use novacron_core::store::SqliteStore;
use novacron_kvm::QemuHypervisor;
use novacron_storage::LocalStorage;
use tokio::process::Command;

use crate::Result;

const LIFE: &str = "NOVACRON_QUICKSTART_LIFE";
const DIR: &str = "NOVACRON_QUICKSTART_DIR";
const DISK: &str = "NOVACRON_QUICKSTART_DISK";
const BETA: &str = "NOVACRON_QUICKSTART_BETA";

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

/// By what a node drives its guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    Qemu,
    #[cfg(feature = "libvirt")]
    Libvirt,
}

/// A node's hypervisor.
enum Either {
    Qemu(QemuHypervisor),
    #[cfg(feature = "libvirt")]
    Libvirt(novacron_kvm::LibvirtHypervisor),
}

/// The folders and files of one demonstration.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    /// The temporary folder that holds everything else.
    pub(crate) dir: PathBuf,
    /// The guest's disk, an image to import.
    pub(crate) disk: PathBuf,
    /// What drives the second node.
    pub(crate) beta: Driver,
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
        let beta = match std::env::var(BETA).ok()?.as_str() {
            #[cfg(feature = "libvirt")]
            "libvirt" => Driver::Libvirt,
            _ => Driver::Qemu,
        };
        Some((life, Self { dir, disk, beta }))
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
            .env(DISK, &self.disk)
            .env(BETA, format!("{:?}", self.beta).to_lowercase())
            // libvirt's library would write to standard error.
            .env(
                "LIBVIRT_LOG_OUTPUTS",
                format!("3:file:{}", self.dir.join("libvirt.log").display()),
            );
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
    fn hypervisor(&self, name: &str, host: &str) -> Result<Either> {
        let (dir, host) = (self.node_dir(name), host.parse()?);
        #[cfg(feature = "libvirt")]
        if name == "beta" && self.beta == Driver::Libvirt {
            let root = self.dir.join("libvirt");
            std::fs::create_dir_all(root.join("etc"))?;
            // Its QEMU runs as whoever this is, and writes its console's log by itself.
            let own = "security_driver = \"none\"\nstdio_handler = \"file\"\nremember_owner = 0\n\
                       user = \"+0\"\ngroup = \"+0\"\nnamespaces = []\ncgroup_controllers = []\n";
            std::fs::write(root.join("etc/qemu.conf"), own)?;
            let uri = format!("qemu:///embed?root={}", root.display());
            let libvirt = novacron_kvm::LibvirtHypervisor::new(uri);
            return Ok(Either::Libvirt(libvirt.state_dir(dir).host_id(host)));
        }
        Ok(Either::Qemu(QemuHypervisor::new(dir).host_id(host)))
    }

    /// What a node's hypervisor says that is there.
    pub(crate) async fn domains(&self, name: &str, host: &str, call: Call) -> Result<Vec<Domain>> {
        Ok(match self.hypervisor(name, host)? {
            Either::Qemu(qemu) => qemu.list(call).await?,
            #[cfg(feature = "libvirt")]
            Either::Libvirt(libvirt) => libvirt.list(call).await?,
        })
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
            builder = match self.hypervisor(name, host)? {
                Either::Qemu(qemu) => builder.node(name, qemu),
                #[cfg(feature = "libvirt")]
                Either::Libvirt(libvirt) => builder.node(name, libvirt),
            };
        }
        Ok(builder.build().await?)
    }
}
