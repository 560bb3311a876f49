//! Volumes for NovaCron: raw and qcow2 files.
//!
//! [`LocalStorage`] keeps volumes and images in a folder, of one node or shared by several, and makes them with
//! `qemu-img` (Debian and Ubuntu: `apt install qemu-utils`). It implements
//! [`StorageBackend`](novacron_core::driver::StorageBackend).
//!
//! ```no_run
//! # async fn f() -> novacron_core::Result<()> {
//! use novacron_storage::LocalStorage;
//!
//! let pool = LocalStorage::open("/srv/novacron").await?;
//! # let _ = pool;
//! # Ok(())
//! # }
//! ```

mod crash;
mod failure;
mod image;
mod local;
mod qemu_img;
mod task;

pub use local::{LocalStorage, LocalStorageBuilder};
