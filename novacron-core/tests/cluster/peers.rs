//! Guests of another process: asked through it, over loopback, in real time.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures::future::join_all;
use novacron_core::cluster::{ListRequest, Peers};
use novacron_core::driver::{Call, ConsoleStart};
use novacron_core::model::Role;
use novacron_core::sim::FaultPlan;
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

fn one_that_is_asked() -> [Option<Peers>; 2] {
    [Peers::listening(loopback()), Peers::asking_only()].map(Some)
}

/// The one address at which a process of the cluster is asked.
async fn address(cluster: &Cluster) -> String {
    let members = cluster.members().list(&ListRequest::new()).await.unwrap();
    let mut endpoints = members.items.iter().filter_map(|m| m.endpoint.as_ref());
    endpoints.find_map(|e| e.address.clone()).unwrap()
}

/// Waits until the other side lets go of a connection, and has said next to nothing.
async fn closed(mut connection: TcpStream) {
    let mut answer = Vec::new();
    // It may end in a reset, too.
    let _ = connection.read_to_end(&mut answer).await;
    assert!(answer.len() < 16, "{answer:?}");
}

#[tokio::test]
async fn a_guest_is_asked_through_the_process_that_looks_after_it() {
    let mut ground = Ground::new(1);
    let [owner, controller] = two(&mut ground, one_that_is_asked()).await;
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
    let address = address(&controller).await;
    let mut stranger = TcpStream::connect(&address).await.unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    closed(stranger).await;
    there.stats(call()).await.unwrap();

    // Who asks too much is told so before it has asked.
    let argv = ["x".repeat(300_000)];
    let (long, words) = kind(there.exec(call(), &argv).await);
    assert_eq!(long, ErrorKind::Invalid);
    assert!(words.contains("may have 262144 bytes"), "{words}");

    // A shutdown waits for no stranger, and lets nobody in.
    let stranger = TcpStream::connect(&address).await.unwrap();
    owner.shutdown(soon()).await.unwrap();
    let prompt = Duration::from_secs(5);
    tokio::time::timeout(prompt, closed(stranger))
        .await
        .unwrap();
    TcpStream::connect(&address).await.unwrap_err();
    drop((owner, here));
    let (lost, words) = kind(there.stats(call()).await);
    assert_eq!(lost, ErrorKind::Unavailable, "{words}");
}

#[tokio::test]
async fn who_connects_and_shows_nothing_keeps_nobody_out() {
    let mut ground = Ground::new(1);
    let [owner, controller] = two(&mut ground, one_that_is_asked()).await;
    let address = address(&owner).await;
    let mut strangers = Vec::new();
    for _ in 0..150 {
        strangers.push(TcpStream::connect(&address).await.unwrap());
    }
    let vm = controller.vms().by_name("web").await.unwrap();
    let prompt = Call::within(Duration::from_secs(8));
    vm.stats(prompt).await.unwrap();
}

#[tokio::test]
async fn questions_that_a_driver_does_not_answer_end_with_their_askers() {
    let mut ground = Ground::new(1);
    let [_owner, controller] = two(&mut ground, one_that_is_asked()).await;
    let vm = controller.vms().by_name("web").await.unwrap();
    ground.site.world.faults(FaultPlan {
        only: &["sim.stats"],
        hang: 1.0,
        ..FaultPlan::default()
    });
    // More than are answered at a time.
    let asked = (0..300).map(|_| vm.stats(Call::within(Duration::from_secs(10))));
    let mut kinds = BTreeMap::new();
    for answer in join_all(asked).await {
        let error = answer.unwrap_err();
        *kinds.entry(error.kind().as_str()).or_insert(0) += 1;
        let full = error.kind() == ErrorKind::Exhausted;
        assert_eq!(error.is_retryable(), full, "{error}");
    }
    assert_eq!(
        kinds,
        BTreeMap::from([("deadline-exceeded", 256), ("exhausted", 44)])
    );
    // The driver's calls still hang.
    ground.site.world.faults(FaultPlan::default());
    let answered = async {
        while let Err(error) = vm.stats(call()).await {
            assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
        }
    };
    tokio::time::timeout(Duration::from_secs(10), answered)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_store_that_does_not_answer_does_not_hold_a_question_past_its_deadline() {
    let mut ground = Ground::new(1);
    let (builder, line) = ground.builder(Role::Both, &[0]);
    let cluster = builder.build().await.unwrap();
    let vm = cluster.vms().create(spec("web")).await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    line.cut();
    let brief = Call::within(Duration::from_millis(50));
    let (late, words) = kind(vm.stats(brief).await);
    assert_eq!(late, ErrorKind::DeadlineExceeded, "{words}");
    line.mend();
    vm.stats(call()).await.unwrap();
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
    let announced = |address: &str| Peers::listening(loopback()).announced_as(address);
    let taken = Peers::listening(taken.local_addr().unwrap());
    let unused = Peers::asking_only().announced_as("10.0.0.7:7000");
    let wrong = [
        "",
        "alpha",
        "alpha:",
        ":7000",
        "alpha:0",
        "0.0.0.0:7000",
        "fd00::7:7000",
        "a b:1",
    ];
    let refused = [(taken, ErrorKind::FailedPrecondition)].into_iter();
    let invalid = [Peers::listening(everywhere), unused];
    let invalid = invalid.into_iter().chain(wrong.map(announced));
    for (peers, expected) in refused.chain(invalid.map(|peers| (peers, ErrorKind::Invalid))) {
        let (builder, _) = ground.builder(Role::Owner, &[0]);
        let built = builder.peers(peers.clone()).build().await;
        assert_eq!(kind(built).0, expected, "{peers:?}");
    }
    for right in ["10.0.0.7:7000", "[fd00::7]:7000", "alpha.example:7000"] {
        let mut ground = Ground::new(1);
        let (builder, _) = ground.builder(Role::Owner, &[0]);
        let built = builder.peers(announced(right)).build().await.unwrap();
        let members = built.members().list(&ListRequest::new()).await.unwrap();
        let address = members.items[0].endpoint.as_ref().unwrap().address.clone();
        assert_eq!(address.as_deref(), Some(right));
    }
}
