//! Failover with real processes and real guests, in short: what `make ha` shows at length.
#![allow(clippy::unwrap_used, reason = "to panic is to fail the test")]

use std::process::Command;

fn told(store: &str, stories: &str) {
    let ha = env!("CARGO_BIN_EXE_ha");
    // Network namespaces are root's.
    let mut command = if rustix::process::getuid().is_root() {
        Command::new(ha)
    } else {
        let mut sudo = Command::new("sudo");
        sudo.args(["-n", ha]);
        sudo
    };
    let output = command
        .args(["--store", store, "--story", stories])
        .output()
        .unwrap_or_else(|e| panic!("{e}: run this test as root, or install sudo"));
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{stdout}\n{stderr}");
    let end = "no guest and no file of one is left";
    assert!(stdout.contains(end), "{stdout}");
}

#[test]
fn hosts_fail_over_etcd() {
    told("etcd", "reach,kill,partition,pause");
}

#[test]
fn hosts_fail_over_postgres() {
    told("postgres", "reach,kill");
}
