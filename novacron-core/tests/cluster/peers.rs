//! Guests of another process: asked through it, over loopback, in real time.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use novacron_core::cluster::{ListRequest, Peers};
use novacron_core::driver::{Call, ConsoleStart};
use novacron_core::model::Role;
use novacron_core::{Cluster, ErrorKind, Phase, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::ground::{Ground, node};
use crate::{soon, spec};

fn loopback() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

fn call() -> Call {
    Call::within(Duration::from_secs(20))
}

fn kind<T: std::fmt::Debug>(result: Result<T>) -> (ErrorKind, String) {
    let error = result.unwrap_err();
    (error.kind(), error.report())
}

/// The owner of a host with a guest, and a controller; both as `peers` says.
async fn two(ground: &mut Ground, peers: [Option<Peers>; 2]) -> [Cluster; 2] {
    let [owner, controller] = peers;
    let mut build = async |role, hosts: &[usize], peers| {
        let (builder, _) = ground.builder(role, hosts);
        match peers {
            Some(peers) => builder.peers(peers),
            None => builder,
        }
        .build()
        .await
        .unwrap()
    };
    let controller = build(Role::Controller, &[], controller).await;
    let owner = build(Role::Owner, &[0], owner).await;
    let mut web = spec("web");
    web.node = Some(node(0));
    let vm = controller.vms().create(web).await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    [owner, controller]
}

#[tokio::test]
async fn a_guest_is_asked_through_the_process_that_looks_after_it() {
    let mut ground = Ground::new(1);
    let peers = [Peers::listening(loopback()), Peers::asking_only()];
    let [owner, controller] = two(&mut ground, peers.map(Some)).await;
    let here = owner.vms().by_name("web").await.unwrap();
    let there = controller.vms().by_name("web").await.unwrap();
    let (near, far) = (here.stats(call()).await, there.stats(call()).await);
    let (near, far) = (near.unwrap(), far.unwrap());
    assert_eq!(near.disks.len(), far.disks.len());
    assert!(far.vcpu_ns[0] >= near.vcpu_ns[0]);
    // What the driver refuses is told in its words.
    let argv = ["true".to_owned()];
    for vm in [&here, &there] {
        let (kind, words) = kind(vm.exec(call(), &argv).await);
        assert_eq!(kind, ErrorKind::Unsupported);
        assert!(words.contains("no such interface"), "{words}");
    }
    let console = there.console(call(), ConsoleStart::Last(0)).await;
    assert_eq!(kind(console).0, ErrorKind::Unsupported);

    // Whoever is no process of the cluster gets nothing, and keeps nobody out.
    let request = ListRequest::new();
    let members = controller.members().list(&request).await.unwrap().items;
    let address = members
        .iter()
        .find_map(|m| m.endpoint.as_ref()?.address.clone());
    let mut stranger = TcpStream::connect(address.unwrap()).await.unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // The connection may end in a reset, too.
    let _ = stranger.read_to_end(&mut answer).await;
    assert!(answer.len() < 16, "{answer:?}");
    there.stats(call()).await.unwrap();

    drop((owner, here));
    let (lost, words) = kind(there.stats(call()).await);
    assert_eq!(lost, ErrorKind::Unavailable, "{words}");
}

#[tokio::test]
async fn who_cannot_ask_or_be_asked_is_told_so() {
    for (peers, why) in [
        (
            [Some(Peers::listening(loopback())), None],
            "to reach it, see Builder::peers",
        ),
        (
            [None, Some(Peers::asking_only())],
            "does not let itself be asked",
        ),
        (
            [Some(Peers::asking_only()), Some(Peers::asking_only())],
            "does not let itself be asked",
        ),
    ] {
        let mut ground = Ground::new(1);
        let [_owner, controller] = two(&mut ground, peers).await;
        let vm = controller.vms().by_name("web").await.unwrap();
        let (kind, words) = kind(vm.stats(call()).await);
        assert_eq!(kind, ErrorKind::Unsupported);
        assert!(words.contains(why), "{words}");
    }
}

#[tokio::test]
async fn an_address_that_cannot_be_taken_or_reached_is_refused() {
    let mut ground = Ground::new(1);
    let taken = std::net::TcpListener::bind(loopback()).unwrap();
    let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    for (on, expected) in [
        (taken.local_addr().unwrap(), ErrorKind::FailedPrecondition),
        (everywhere, ErrorKind::Invalid),
    ] {
        let (builder, _) = ground.builder(Role::Owner, &[0]);
        let built = builder.peers(Peers::listening(on)).build().await;
        assert_eq!(kind(built).0, expected);
    }
}
