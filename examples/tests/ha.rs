//! Failover with real processes and real guests, in short: what `make ha` shows at length.

use std::process::Command;

fn told(store: &str, stories: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_ha"))
        .args(["--store", store, "--story", stories])
        .output()
        .unwrap();
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert!(
        stdout.contains("no guest and no file of one is left"),
        "{stdout}"
    );
}

#[test]
fn hosts_fail_over_etcd() {
    told("etcd", "kill,partition,pause");
}

#[test]
fn hosts_fail_over_postgres() {
    told("postgres", "kill");
}
