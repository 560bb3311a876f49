//! What no record explains, and what cannot be swept.

use std::time::Duration;

use novacron_core::cluster::ListRequest;
use novacron_core::driver::{ArtefactId, Call, CreateSource, CreateVolume, StorageBackend};
use novacron_core::model::{
    ClusterId, ImageId, ImageSource, NodeId, PoolId, PoolState, VolumeFormat, VolumeId,
};
use novacron_core::sim::{SimHypervisor, SimStorage};
use novacron_core::store::{Commit, Key, Op, Store, TxnId};
use novacron_core::{Bytes, Cluster, Deadline, ErrorKind};

use crate::{SOURCE, Site};

/// Time is tokio's, and paused: this only lets it go on.
#[expect(clippy::disallowed_methods, reason = "the test is the clock")]
async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

fn shared() -> PoolId {
    PoolId::new("shared").unwrap()
}

/// Makes something in the pool that no record names.
async fn make(site: &Site, cluster: ClusterId, id: ArtefactId, source: CreateSource) {
    let request = CreateVolume {
        cluster,
        id,
        size: match source {
            CreateSource::Blank => Bytes::gib(300),
            _ => Bytes(0),
        },
        format: VolumeFormat::Qcow2,
        source,
    };
    let storage = SimStorage::new(&site.world, shared());
    let call = Call::within(Duration::from_secs(5));
    storage.create(call, &request).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stray_that_does_not_go_keeps_neither_the_others_nor_the_look_at_the_pool() {
    let mut site = Site::new(1);
    site.add_source();
    let cluster = site.start().await;
    let image = |n: u128| ImageId::from_uuid(uuid::Uuid::from_u128(n));
    for n in [1, 2] {
        let source = CreateSource::Import {
            source: ImageSource::File(SOURCE.into()),
            sha256: None,
        };
        make(&site, cluster.id(), ArtefactId::Image(image(n)), source).await;
        let mut commit = Commit::new(TxnId(uuid::Uuid::from_u128(n)));
        let key = Key::new(format!("grave/image/{}", image(n))).unwrap();
        commit.push(Op::Put(
            key,
            r#"{"v":1,"body":{"at":1700000000000}}"#.into(),
        ));
        site.store.commit(commit).await.unwrap();
    }
    // Nobody may remove the clone, so the first image does not go.
    let clone = VolumeId::from_uuid(uuid::Uuid::from_u128(3));
    let source = CreateSource::Image(image(1));
    make(&site, cluster.id(), ArtefactId::Volume(clone), source).await;
    pass(Duration::from_secs(90)).await;
    let left = site.world.artefacts().volumes;
    assert_eq!(left.len(), 2, "the second image is gone: {left:?}");
    site.world.set_pool_reachable(&shared(), false);
    pass(Duration::from_secs(45)).await;
    let status = cluster
        .pools()
        .get(&shared())
        .await
        .unwrap()
        .status
        .unwrap();
    assert_eq!(status.state, PoolState::Unreachable);
    assert_eq!(status.unknown_artefacts.names, [format!("volume/{clone}")]);
}

#[tokio::test(start_paused = true)]
async fn a_pool_tells_what_it_holds_and_whether_it_answers() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let lost = VolumeId::from_uuid(cluster.id().uuid());
    make(
        &site,
        cluster.id(),
        ArtefactId::Volume(lost),
        CreateSource::Blank,
    )
    .await;
    pass(Duration::from_secs(120)).await;
    let listed = cluster.pools().list(&ListRequest::new()).await.unwrap();
    assert_eq!(listed.items.len(), 1);
    let status = cluster
        .pools()
        .get(&shared())
        .await
        .unwrap()
        .status
        .unwrap();
    assert_eq!(listed.items[0].status, Some(status.clone()));
    assert_eq!(status.state, PoolState::Available);
    assert_eq!(status.capacity, Bytes::gib(1000));
    assert_eq!(status.unknown_artefacts.names, [format!("volume/{lost}")]);

    site.world.set_pool_reachable(&shared(), false);
    pass(Duration::from_secs(120)).await;
    let status = cluster
        .pools()
        .get(&shared())
        .await
        .unwrap()
        .status
        .unwrap();
    assert_eq!(status.state, PoolState::Unreachable);
    assert!(!status.message.is_empty());
    // It is asked again every two seconds, however long it has not answered.
    pass(Duration::from_secs(600)).await;
    site.world.set_pool_reachable(&shared(), true);
    pass(Duration::from_secs(3)).await;
    let status = cluster
        .pools()
        .get(&shared())
        .await
        .unwrap()
        .status
        .unwrap();
    assert_eq!(
        (status.state, status.message.as_str()),
        (PoolState::Available, "")
    );
    assert_eq!(
        site.world.artefacts().volumes.len(),
        1,
        "it was not touched"
    );
}

#[tokio::test(start_paused = true)]
async fn a_host_full_of_others_things_still_has_a_status() {
    let mut site = Site::new(1);
    let host = site.world.hosts()[0];
    for n in 0..130 {
        site.world.add_foreign(host, format!("theirs-{n:03}"));
    }
    let cluster = site.start().await;
    let node = NodeId::new("node-0").unwrap();
    let unknown = cluster
        .nodes()
        .get(&node)
        .await
        .unwrap()
        .status
        .unwrap()
        .unknown_domains;
    assert_eq!((unknown.names.len(), unknown.more), (100, 30));
    assert_eq!(unknown.names[0], "theirs-000");
}

#[tokio::test(start_paused = true)]
async fn a_host_that_does_not_answer_is_asked_every_two_seconds() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let host = site.world.hosts()[0];
    site.world.set_reachable(host, false);
    pass(Duration::from_secs(900)).await;
    site.world.set_reachable(host, true);
    let deadline = Deadline::after(Duration::from_secs(3));
    cluster.nodes().wait_available(deadline).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_rhythm_without_a_pause_is_refused() {
    let site = Site::new(1);
    let refused = Cluster::builder("test")
        .store(site.store.clone())
        .node(
            "node-0",
            SimHypervisor::new(&site.world, site.world.hosts()[0]),
        )
        .resync(Duration::ZERO)
        .build()
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    assert_eq!(refused.problems()[0].field, "resync", "{refused}");
}
