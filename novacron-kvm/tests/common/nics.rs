//! What a guest sees of a NIC on a bridge of the host, whoever runs it.

use std::io::Write;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use novacron_core::driver::{Hypervisor, StopMode};
use novacron_core::model::{LinkState, NicLimits, PortBinding};
use novacron_core::{ErrorKind, Result};

use crate::common::*;

const BYTES: usize = 3 << 20;
const RATE: NicLimits = NicLimits {
    inbound_bytes_sec: Some(1 << 20),
    outbound_bytes_sec: None,
};

/// Queues, MTU and link of a NIC on this bridge are the guest's to see. With an address of this process's on the bridge, and
/// one for the guest beside it, the limits hold, too: from the start, and until they are lifted.
pub(crate) async fn is_seen(
    bench: &Bench,
    hypervisor: &dyn Hypervisor,
    bridge: &str,
    addresses: Option<(&str, &str)>,
) {
    let mut spec = bench.guest();
    spec.hardware.vcpus = 2;
    let mut nic = bench.nic(None);
    nic.binding = PortBinding::Bridge {
        bridge: bridge.to_owned(),
    };
    nic.options.queues = 2;
    nic.options.mtu = Some(1400);
    nic.options.link = LinkState::Down;
    if addresses.is_some() {
        nic.options.limits = RATE;
    }
    spec.nics = vec![nic.clone()];
    let (mut shell, _) = boot(hypervisor, &spec).await;
    let plug = hypervisor.hot_plug().unwrap();
    let set = async |link, limits: NicLimits| {
        plug.set_nic(call(), spec.id, nic.port, link, &limits).await
    };
    let at = "/sys/class/net/eth0";
    let queues = shell.run(&format!("ls {at}/queues | grep -c rx")).await;
    assert_eq!(queues, "2");
    assert_eq!(shell.run(&format!("cat {at}/mtu")).await, "1400");
    shell.run("ip link set eth0 up").await;
    assert_eq!(shell.run(&format!("cat {at}/carrier")).await, "0");
    let limits = nic.options.limits;
    set(LinkState::Up, limits).await.unwrap();
    let carrier = |is| format!("until grep -q {is} {at}/carrier; do :; done");
    shell.run(&carrier(1)).await;

    if let Some((host, guest)) = addresses {
        shell.run(&format!("ip addr add {guest}/30 dev eth0")).await;
        limits_hold(&mut shell, host, &set).await;
    }
    set(LinkState::Down, NicLimits::default()).await.unwrap();
    shell.run(&carrier(0)).await;
    hypervisor
        .stop(call(), spec.id, StopMode::Kill)
        .await
        .unwrap();
    hypervisor.undefine(call(), spec.id).await.unwrap();
}

async fn limits_hold(
    shell: &mut Shell,
    host: &str,
    set: &impl AsyncFn(LinkState, NicLimits) -> Result<()>,
) {
    let listener = TcpListener::bind((host, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let sender = std::thread::spawn(move || {
        for _ in 0..2 {
            let (mut to, _) = listener.accept().unwrap();
            to.write_all(&vec![0; BYTES]).unwrap();
        }
    });
    let receive = format!("nc {host} {port} | wc -c");
    let mut received = async || {
        let before = Instant::now();
        assert_eq!(shell.run(&receive).await, BYTES.to_string());
        before.elapsed()
    };
    let slow = received().await;
    assert!(slow >= Duration::from_secs(2), "{slow:?}");
    set(LinkState::Up, NicLimits::default()).await.unwrap();
    let fast = received().await;
    assert!(fast < slow, "{fast:?} without a limit, {slow:?} with one");
    sender.join().unwrap();
    let outbound = NicLimits {
        outbound_bytes_sec: Some(1 << 20),
        ..NicLimits::default()
    };
    // Many kernels have no policer: then the words say what failed.
    if let Err(error) = set(LinkState::Up, outbound).await {
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.message().contains("police"), "{error}");
    }
}
