//! The virtual machine cluster in a library: model, traits, store, control loop.
//!
//! A program embeds this crate and has its own control plane for virtual machines over many hosts. It says what should
//! be ([`VmSpec`]) to a [`Cluster`]; the control loop inside makes the world follow and writes what is. The guests outlive
//! the program, and its next start adopts them.
//!
//! ```
//! use std::time::Duration;
//!
//! use novacron_core::model::{DiskSource, PoolId};
//! use novacron_core::sim::{SimHypervisor, SimStorage, SimWorld};
//! use novacron_core::store::SqliteStore;
//! use novacron_core::{Bytes, Cluster, Deadline, MiB, Phase, Result, VmSpec};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<()> {
//! # let folder = tempfile::tempdir().expect("a temporary folder");
//! # let path = folder.path().join("novacron.db");
//! let soon = || Deadline::after(Duration::from_secs(60));
//! let world = SimWorld::new(1); // simulated hosts; `QemuHypervisor` and `LocalStorage` are real ones
//! world.add_pool(PoolId::new("shared")?, Bytes::gib(100));
//! let cluster = Cluster::builder("prod")
//!     .store(SqliteStore::open(path).await?)
//!     .node("alpha", SimHypervisor::new(&world, world.add_host(8, MiB(16_384))))
//!     .storage("shared", SimStorage::new(&world, PoolId::new("shared")?))
//!     .build()
//!     .await?;
//!
//! let root = DiskSource::Blank { size: Bytes::gib(10), pool: None };
//! let vm = cluster.vms().create(VmSpec::new("web-1").memory(MiB(1024)).disk("root", root)).await?;
//! vm.wait_for(Phase::Running, soon()).await?;
//! vm.stop().await?.wait(soon()).await?; // an operation: progress, cancel, result
//! cluster.shutdown(soon()).await
//! # }
//! ```
//!
//! # Where what is
//! [`cluster`]: what a program holds. [`model`]: the objects. [`driver`]: the traits to implement, in words.
//! [`store`]: where the records are, and the contract of a [`Store`](store::Store). [`lifecycle`]: the phases of a run.
//!
//! # The other crates
//! `novacron-kvm` has `QemuHypervisor` (QEMU without a daemon or root), `novacron-storage` has `LocalStorage` (raw and
//! qcow2 files). `novacron-sched` and `novacron-cloud` are empty as yet. Each depends on this crate alone.
//!
//! # Features
//! | feature | default | brings |
//! |---|---|---|
//! | `sqlite` | yes | `store::SqliteStore`, with sqlite3 built in (needs a C compiler) |
//! | `postgres` | | `store::PostgresStore`, shared by many processes; TLS by rustls with ring (needs a C compiler) |
//! | `etcd` | | `store::EtcdStore`, over TLS by rustls if wanted (needs a C compiler) |
//! | `peers` | | [`cluster::Peers`]: consoles, screens, statistics and agents of guests that another process looks after, over TLS by rustls with ring (needs a C compiler) |
//! | `sim` | | the module `sim`: simulated drivers, to test a program without a hypervisor |
//! | `conformance` | | the module `conformance`: one suite per trait, for whoever implements one; brings `sim` |
//!
//! # Logs
//! Everything is told by `tracing`, with targets that begin with `novacron_`: what a person should look at as `error` and
//! `warn`, each failed command of the control loop as `debug`. Nothing is set up here: without a subscriber nothing is
//! written. What users of VMs should know is not in the log but in events and operations.

// The tests' PostgreSQL server names this crate as tests outside of it do.
#[cfg(all(test, feature = "postgres"))]
extern crate self as novacron_core;

pub mod cluster;
#[cfg(feature = "conformance")]
pub mod conformance;
pub(crate) mod control;
pub mod driver;
mod error;
pub mod lifecycle;
pub mod model;
#[cfg(feature = "peers")]
mod peers;
mod question;
mod records;
#[cfg(feature = "sim")]
pub mod sim;
pub mod store;
mod time;

pub use cluster::{Cluster, RequestOptions};
pub use error::{Error, ErrorKind, Problem, Result};
pub use lifecycle::Phase;
pub use model::{Bytes, MiB, VmSpec};
pub use time::{Clock, Deadline, IdSource, SeededIds, SystemClock, TimerClock, Timestamp};
