//! `LibvirtHypervisor` on a libvirtd of each test's own: the core's suite, and what a daemon does that dies or hangs.
#![allow(clippy::unwrap_used, reason = "to panic is to fail the test")]

#[path = "../common/mod.rs"]
mod common;
mod conformance;
mod daemon;
mod faults;
#[path = "../common/firmware.rs"]
mod firmware;
#[path = "../common/hardware.rs"]
mod hardware;
#[path = "../common/initramfs.rs"]
mod initramfs;
#[path = "../common/media.rs"]
mod media;
#[path = "../common/nics.rs"]
mod nics;
mod remote;
#[path = "../common/tpm.rs"]
mod tpm;

// No limits here: libvirt makes them of a queue (sfq) that not every kernel has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_sees_the_nic_that_was_asked_for() {
    let (bench, daemon) = (common::Bench::new(), daemon::Daemon::up());
    assert!(daemon.does("ip link add br0 type bridge && ip link set br0 up"));
    nics::is_seen(&bench, &daemon.hypervisor(), "br0", None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_sees_the_hardware_that_was_asked_for() {
    let (bench, daemon) = (common::Bench::new(), daemon::Daemon::up());
    hardware::is_seen(&bench, &daemon.hypervisor()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secure_boot_is_on_and_variables_stay_with_the_vm() {
    let (bench, daemon) = (common::Bench::new(), daemon::Daemon::up());
    firmware::variables_stay(&bench, &daemon.hypervisor()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tpm_remembers() {
    let (bench, daemon) = (common::Bench::new(), daemon::Daemon::up());
    tpm::state_stays(&bench, &daemon.hypervisor()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_does_not_feed_its_watchdog_is_reset() {
    let (bench, daemon) = (common::Bench::new(), daemon::Daemon::up());
    hardware::watchdog_resets(&bench, &daemon.hypervisor()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn media_come_and_go_while_the_guest_runs() {
    let (bench, daemon) = (common::Bench::new(), daemon::Daemon::up());
    media::come_and_go(&bench, &daemon.hypervisor()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_boots_from_a_medium() {
    let (bench, daemon) = (common::Bench::new(), daemon::Daemon::up());
    media::boots(&bench, &daemon.hypervisor()).await;
}
