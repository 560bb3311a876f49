//! What the benches share: figures as lines, where a part works, parts as processes of their own.
//!
//! ```text
//!   figure <name> <value> <unit> goal <op> <number>     what docs/SPECIFICATION.md promises
//!   figure <name> <value> <unit>                        what is only reported
//!   # …                                                 what else helps to read them
//! ```
//! Nothing is judged: a slow machine is no failure. Only a part that cannot measure fails, and says why. Each part is a
//! process of its own, so that none inherits another's memory. Files lie under `target/bench`, on the disk of the clone,
//! and are gone at the end.

pub mod figure;
pub mod parts;
pub mod sim;
pub mod site;

/// The outcome of a part.
pub type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;
