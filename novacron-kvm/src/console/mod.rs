//! A guest's serial console: a two-way byte stream with history, for any number of readers.
//!
//! ```text
//!  guest ─► QEMU ─┬─► console.log  (appended by QEMU itself, whoever is there) ──► each reader, at its own offset
//!                 └─► console.sock (QEMU takes one client: the hub)  ──► drained; "there is more" to the readers
//!  writers ──► hub ──► console.sock ──► guest
//! ```
//! The log is the one source of what the guest said: readers take every byte from it, at offsets that only grow. So a
//! slow reader delays nobody and loses nothing, history and live bytes join without a seam, and a console goes on at the
//! same offset after the host application was restarted. The socket carries input, and tells when to look at the log.
//!
//! A guest may write for ever. While the hub runs it gives the head of a long log back to the file system by punching a
//! hole: at least the last [`KEEP`] bytes stay, and offsets stay what they are. [`place`] puts a reader that asks for older
//! bytes at the oldest that are there; one whose next bytes go while it reads gets an error, since it would not know how
//! many it missed. Without a host application the log grows without such a bound.
//!
//! When QEMU is gone, readers get the rest of the log and then the end.

mod hub;
mod reader;

pub(crate) use hub::ConsoleHub;
#[cfg(feature = "libvirt")]
pub(crate) use hub::Progress;
pub(crate) use reader::{ConsoleReader, place};

#[cfg(test)]
mod tests;
