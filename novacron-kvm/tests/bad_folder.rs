//! A state folder that is full or read-only: each is said, and nothing is left that `undefine` does not remove.
#![allow(clippy::unwrap_used, reason = "to panic is to fail the test")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::*;
use novacron_core::ErrorKind;
use novacron_core::driver::{Hypervisor, Seed};
use novacron_kvm::QemuHypervisor;

const FOLDER: &str = "NOVACRON_TEST_FOLDER";

#[tokio::test]
async fn a_full_or_read_only_folder_is_said() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else {
        return in_a_namespace("a_full_or_read_only_folder_is_said");
    };
    let bench = Bench::new();
    mount("size=64k", &folder);
    let hypervisor = QemuHypervisor::new(&folder);
    let mut spec = bench.guest();
    hypervisor.define(call(), &spec).await.unwrap();
    hypervisor.undefine(call(), spec.id).await.unwrap();
    spec.seed = Some(Seed {
        meta_data: "instance-id: i-1\n".into(),
        user_data: "x".repeat(256 << 10).into(),
        network_config: None,
    });
    let full = hypervisor.define(call(), &spec).await.unwrap_err();
    assert_eq!(full.kind(), ErrorKind::Exhausted, "{full}");
    assert!(full.message().contains("seed.iso"), "{full}");
    hypervisor.undefine(call(), spec.id).await.unwrap();
    assert_eq!(names(&folder), ["lock"]);

    // A file system with a file open for writing, the lock, cannot be made read-only.
    drop(hypervisor);
    mount("remount,ro", &folder);
    let hypervisor = QemuHypervisor::new(&folder);
    let refused = hypervisor.define(call(), &spec).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied, "{refused}");
    assert!(refused.message().contains("Read-only"), "{refused}");
    assert_eq!(names(&folder), ["lock"]);
}

/// Runs the test again in a mount namespace of its own, where it may mount. Root needs no more than that; others get a
/// user namespace too.
fn in_a_namespace(test: &str) {
    let folder = tempfile::tempdir().unwrap();
    let user: &[&str] = if rustix::process::geteuid().is_root() {
        &[]
    } else {
        &["--user", "--map-root-user"]
    };
    let output = Command::new("unshare")
        .args(user)
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(FOLDER, folder.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "needs a mount namespace (root, or unprivileged user namespaces):\n{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn mount(options: &str, folder: &Path) {
    let status = Command::new("mount")
        .args(["-t", "tmpfs", "-o", options, "tmpfs"])
        .arg(folder)
        .status();
    assert!(status.unwrap().success(), "mount -o {options}");
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
    entries
        .map(|entry| name(entry).into_string().unwrap())
        .collect()
}
