//! The examples of NovaCron, and the README, whose programs are compiled here: this crate alone has every crate at hand.
#![doc = include_str!("../../README.md")]

pub mod guest_disk;
pub mod leftovers;

/// The guides with programs in them, which are compiled here.
#[cfg(doctest)]
mod guides {
    #[doc = include_str!("../../docs/guides/guest-systems.md")]
    #[doc = include_str!("../../docs/guides/hardware.md")]
    struct Compiled;
}

/// What can go wrong in an example is told to a person, so one type for all of it will do.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
/// With [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Ends when somebody presses Ctrl-C or asks the program to end.
pub async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminated) => tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminated.recv() => {}
        },
        Err(_) => drop(tokio::signal::ctrl_c().await),
    }
}
