//! The hardware that a guest of QEMU was asked for.
#![allow(clippy::unwrap_used, reason = "to panic is to fail the test")]

mod common;
#[path = "common/hardware.rs"]
mod hardware;
#[path = "common/initramfs.rs"]
mod initramfs;
#[path = "common/media.rs"]
mod media;
#[path = "common/tpm.rs"]
mod tpm;

use common::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_sees_the_hardware_that_was_asked_for() {
    let bench = Bench::new();
    hardware::is_seen(&bench, &bench.hypervisor()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_does_not_feed_its_watchdog_is_reset() {
    let bench = Bench::new();
    hardware::watchdog_resets(&bench, &bench.hypervisor()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tpm_remembers() {
    let bench = Bench::new();
    tpm::state_stays(&bench, &bench.hypervisor()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn media_come_and_go_while_the_guest_runs() {
    let bench = Bench::new();
    media::come_and_go(&bench, &bench.hypervisor()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_boots_from_a_medium() {
    let bench = Bench::new();
    media::boots(&bench, &bench.hypervisor()).await;
}
