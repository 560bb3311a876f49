//! A NIC on a bridge of the host, where this process may make one; else the refusal, with its reason.
#![allow(clippy::unwrap_used, reason = "to panic is to fail the test")]

mod common;
#[path = "common/nics.rs"]
mod nics;

use std::path::Path;
use std::process::Command;

use common::*;
use novacron_core::ErrorKind;
use novacron_core::driver::{Hypervisor, StopMode};
use novacron_core::model::{BootDevice, Capability, PortBinding};
use tokio::io::AsyncBufReadExt;

fn ip(arguments: &[&str]) -> bool {
    Command::new("ip")
        .args(arguments)
        .status()
        .is_ok_and(|status| status.success())
}

/// A bridge of the host, removed with it.
struct Bridge(String);

impl Bridge {
    /// Of the n-th test of this process; and whether this process may make one.
    fn up(n: u32) -> (Self, bool) {
        let bridge = Self(format!("nct{n}-{}", std::process::id()));
        let made = ip(&["link", "add", &bridge.0, "type", "bridge"]);
        (bridge, made)
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        ip(&["link", "del", &self.0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_sees_the_nic_that_was_asked_for_and_its_limits_hold() {
    let bench = Bench::new();
    let (bridge, made) = Bridge::up(1);
    if !made {
        eprintln!("no bridge can be made here");
        return;
    }
    // Of the network for documentation, others for each process.
    let n = std::process::id() % 64 * 4;
    let (host, guest) = (format!("192.0.2.{}", n + 1), format!("192.0.2.{}", n + 2));
    assert!(ip(&[
        "addr",
        "add",
        &format!("{host}/30"),
        "dev",
        &bridge.0
    ]));
    assert!(ip(&["link", "set", &bridge.0, "up"]));
    let addresses = Some((host.as_str(), guest.as_str()));
    nics::is_seen(&bench, &bench.hypervisor(), &bridge.0, addresses).await;
}

/// A machine with nothing but a NIC asks its network for something to boot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_boots_from_its_network() {
    let bench = Bench::new();
    let hypervisor = bench.hypervisor();
    let (bridge, made) = Bridge::up(2);
    if !made {
        eprintln!("no bridge can be made here");
        return;
    }
    assert!(ip(&["link", "set", &bridge.0, "up"]));
    // It tells whose frames the bridge has seen.
    let mut monitor = tokio::process::Command::new("bridge")
        .args(["monitor", "fdb"])
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut seen = tokio::io::BufReader::new(monitor.stdout.take().unwrap()).lines();
    let mut spec = bench.guest();
    spec.hardware.kernel = None;
    spec.hardware.boot_order = vec![BootDevice::Network];
    let mut nic = bench.nic(None);
    nic.binding = PortBinding::Bridge {
        bridge: bridge.0.clone(),
    };
    let mac = nic.mac.to_string();
    spec.nics = vec![nic];
    hypervisor.define(call(), &spec).await.unwrap();
    hypervisor.start(call(), spec.id).await.unwrap();
    hypervisor.resume(call(), spec.id).await.unwrap();
    let asks = async {
        while let Some(line) = seen.next_line().await.unwrap() {
            if line.contains(&mac) && line.contains(&bridge.0) {
                return;
            }
        }
        panic!("`bridge monitor` ended");
    };
    tokio::time::timeout(SOON, asks).await.unwrap();
    let stop = hypervisor.stop(call(), spec.id, StopMode::Kill);
    stop.await.unwrap();
    hypervisor.undefine(call(), spec.id).await.unwrap();
}

#[tokio::test]
async fn a_tap_is_put_on_its_bridge_and_goes_with_its_guest() {
    let bench = Bench::new();
    let hypervisor = bench.hypervisor();
    let can = hypervisor.probe(call()).await.unwrap().capabilities.can;
    let can = can.contains(&Capability::Bridge);
    let (bridge, made) = Bridge::up(0);
    let ports = || {
        let folder = Path::new("/sys/class/net").join(&bridge.0).join("brif");
        std::fs::read_dir(folder).into_iter().flatten().count()
    };
    let mut spec = bench.guest();
    spec.nics = vec![bench.nic(None)];
    spec.nics[0].binding = PortBinding::Bridge {
        bridge: bridge.0.clone(),
    };
    hypervisor.define(call(), &spec).await.unwrap();
    let started = hypervisor.start(call(), spec.id).await;
    if !(made && can) {
        eprintln!(
            "no bridge can be made here (made: {made}, taps: {can}): only the refusal is looked at"
        );
        let error = started.unwrap_err();
        let allowed = [
            ErrorKind::FailedPrecondition,
            ErrorKind::PermissionDenied,
            ErrorKind::Unsupported,
        ];
        assert!(
            allowed.contains(&error.kind()) && error.message().contains(&bridge.0),
            "{error}"
        );
        return;
    }
    started.unwrap();
    assert_eq!(ports(), 1);
    let stats = hypervisor.stats(call(), spec.id).await.unwrap();
    assert_eq!(stats.nics.len(), 1);
    assert_eq!(stats.nics[0].port, spec.nics[0].port);
    let mut second = bench.nic(None);
    second.binding = spec.nics[0].binding.clone();
    let plug = hypervisor.hot_plug().unwrap();
    plug.attach_nic(call(), spec.id, &second).await.unwrap();
    assert_eq!(ports(), 2);
    hypervisor
        .stop(call(), spec.id, StopMode::Kill)
        .await
        .unwrap();
    assert_eq!(ports(), 0, "taps go with their QEMU");
    hypervisor.undefine(call(), spec.id).await.unwrap();
}

struct Tap(String);

impl Drop for Tap {
    fn drop(&mut self) {
        ip(&["link", "del", &self.0]);
    }
}

#[tokio::test]
async fn a_tap_that_a_network_driver_made_is_used_and_stays() {
    let bench = Bench::new();
    let hypervisor = bench.hypervisor();
    let tap = Tap(format!("ncr{}", std::process::id()));
    let mut spec = bench.guest();
    spec.nics = vec![bench.nic(None)];
    spec.nics[0].binding = PortBinding::Tap {
        device: tap.0.clone(),
    };
    hypervisor.define(call(), &spec).await.unwrap();
    let missing = hypervisor.start(call(), spec.id).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::FailedPrecondition, "{missing}");
    assert!(missing.message().contains(&tap.0), "{missing}");
    hypervisor.undefine(call(), spec.id).await.unwrap();

    if !ip(&["tuntap", "add", "dev", &tap.0, "mode", "tap"]) {
        eprintln!("no tap device can be made here: only the refusal is looked at");
        return;
    }
    let mut spec = bench.guest();
    spec.nics = vec![bench.nic(None)];
    spec.nics[0].binding = PortBinding::Tap {
        device: tap.0.clone(),
    };
    hypervisor.define(call(), &spec).await.unwrap();
    hypervisor.start(call(), spec.id).await.unwrap();
    let carrier = Path::new("/sys/class/net").join(&tap.0).join("tun_flags");
    assert!(carrier.exists());
    let stats = hypervisor.stats(call(), spec.id).await.unwrap();
    assert_eq!(stats.nics[0].port, spec.nics[0].port);
    hypervisor
        .stop(call(), spec.id, StopMode::Kill)
        .await
        .unwrap();
    assert!(carrier.exists(), "it is its driver's, not QEMU's");
    hypervisor.undefine(call(), spec.id).await.unwrap();
}
