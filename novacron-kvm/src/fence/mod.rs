//! Fences for real hosts: each takes from one host the ability to run and to start guests, and proves that it has.
//!
//! | fence | how | for whom |
//! |---|---|---|
//! | [`ProcessFence`] | ends the owner's process and its guests | a cluster on one machine, and tests |
//!
//! What each proves, and which to choose: `docs/guides/fencing.md`.

mod process;

pub use process::ProcessFence;
