//! Processes that a test starts: they die with it, however it ends.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::ffi::OsStr;
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

/// A command that the kernel kills with the thread that started it.
pub(crate) fn dying(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

/// As [`dying`], as the user `postgres` if the test is root's: PostgreSQL refuses that.
pub(crate) fn unprivileged(program: impl AsRef<OsStr>) -> Command {
    if !rustix::process::getuid().is_root() {
        return dying(program);
    }
    let mut command = dying("--reuid=postgres");
    command
        .args(["--regid=postgres", "--init-groups"])
        .arg(program);
    command
}

/// A port of the loopback that nobody has; it may be taken by another before it is used.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}

#[expect(
    clippy::disallowed_methods,
    reason = "a process is awaited that tells nobody"
)]
pub(crate) fn nap(time: Duration) {
    std::thread::sleep(time);
}
