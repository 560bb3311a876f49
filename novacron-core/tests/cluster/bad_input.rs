//! Bad input: refused with every problem and its field, or kept from doing harm; and nothing is written.

use std::collections::BTreeMap;

use novacron_core::cluster::{ImageSpec, VolumeSpec};
use novacron_core::model::{
    DiskOptions, DiskSource, ImageSource, NetworkId, NetworkKind, NicSpec, NodeId, PoolId, Power,
    VmId, VolumeId,
};
use novacron_core::sim::SimStorage;
use novacron_core::store::{Commit, Key, Op, Store, TxnId};
use novacron_core::{Bytes, Cluster, Error, ErrorKind, VmSpec};
use uuid::Uuid;

use crate::{SOURCE, Site, soon, spec};

fn fields(error: &Error) -> Vec<&str> {
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    let problems = error.problems();
    assert!(problems.iter().all(|p| !p.message.is_empty()));
    // A hostile value is shown in part only.
    assert!(problems.iter().all(|p| p.to_string().len() < 600));
    problems.iter().map(|p| p.field.as_str()).collect()
}

/// What pretends to be a name.
fn hostile() -> Vec<String> {
    let long = "x".repeat(10_240);
    let texts = [
        "",
        "/",
        "..",
        "../../etc/passwd",
        "a/b",
        "a\\b",
        "a\0b",
        "a\nb",
        "a b",
        "A",
        "-a",
        "a-",
        "a.",
        ".a",
        "ｗeb",
        "а",
        "a\u{202e}b",
        "a\u{200b}b",
        "a\u{301}",
        "💥",
        "%2e%2e",
        "$(id)",
        "a;b",
        "'",
        &long,
    ];
    texts.into_iter().map(str::to_owned).collect()
}

#[tokio::test(start_paused = true)]
async fn hostile_names_are_refused_everywhere() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let volume = VolumeSpec::new("data", Bytes::gib(1));
    let volume = cluster.volumes().create(volume).await.unwrap().id();
    let vm = spec("web").power(Power::Off);
    let vm = cluster.vms().create(vm).await.unwrap();
    let before = site.written().await;
    let source = ImageSource::File(SOURCE.into());
    for name in hostile() {
        let refused = cluster.vms().create(spec(&name)).await.unwrap_err();
        assert_eq!(fields(&refused), ["name"], "{name:?}");
        let volumes = cluster.volumes();
        let refused = volumes.create(VolumeSpec::new(&*name, Bytes::gib(1))).await;
        assert_eq!(fields(&refused.unwrap_err()), ["name"], "{name:?}");
        let image = ImageSpec::new(&*name, source.clone());
        let refused = cluster.images().create(image).await.unwrap_err();
        assert_eq!(fields(&refused), ["name"], "{name:?}");
        let refused = cluster.snapshots().create(&name, volume).await.unwrap_err();
        assert_eq!(fields(&refused), ["name"], "{name:?}");
        let refused = cluster.networks().create(&name, NetworkKind::User).await;
        assert_eq!(fields(&refused.unwrap_err()), ["name"], "{name:?}");
        let refused = vm
            .attach(&name, volume, DiskOptions::default())
            .await
            .unwrap_err();
        assert_eq!(fields(&refused), ["disk"], "{name:?}");
        let disk = DiskSource::Image {
            image: name.clone(),
            size: None,
            pool: None,
        };
        let refused = cluster
            .vms()
            .create(VmSpec::new("a").disk(&*name, disk))
            .await;
        let refused = refused.unwrap_err();
        assert!(fields(&refused).contains(&"disks[0].name"), "{name:?}");
        assert!(
            fields(&refused).contains(&"disks[0].source.image"),
            "{name:?}"
        );
        let found = cluster.vms().by_name(&name).await.unwrap_err();
        assert_eq!(found.kind(), ErrorKind::Invalid, "{name:?}");
    }
    for bridge in [
        "",
        ".",
        "..",
        "a/b",
        "br 0",
        "br0\n",
        "sixteen-letters-",
        "br\u{e4}",
    ] {
        let bridge = bridge.to_owned();
        let refused = cluster
            .networks()
            .create("lan", NetworkKind::Bridge { bridge })
            .await;
        assert_eq!(fields(&refused.unwrap_err()), ["kind.bridge"]);
    }
    assert_eq!(site.written().await, before);
}

#[tokio::test(start_paused = true)]
async fn every_problem_of_a_spec_is_named_at_once() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let before = site.written().await;
    let volume = VolumeId::from_uuid(Uuid::from_u128(7));
    let image = |image: &str| DiskSource::Image {
        image: image.to_owned(),
        size: Some(Bytes(511)),
        pool: None,
    };
    let blank = DiskSource::Blank {
        size: Bytes(0),
        pool: Some(PoolId::new("nowhere").unwrap()),
    };
    let dangling = VmSpec::new("web")
        .vcpus(0)
        .disk("a", image("nothing"))
        .disk("b", blank)
        .disk("c", DiskSource::Volume { volume })
        .disk("d", DiskSource::Volume { volume })
        .nic(NicSpec::new(NetworkId::from_uuid(Uuid::from_u128(8))))
        .node(NodeId::new("node-9").unwrap());
    let refused = cluster.vms().create(dangling).await.unwrap_err();
    let wanted = [
        "hardware.vcpus",
        "disks[0].source.size",
        "disks[1].source.size",
        "disks[3].source.volume",
        "disks[0].source.image",
        "disks[1].source.pool",
        "disks[2].source.volume",
        "disks[3].source.volume",
        "nics[0].network",
        "node",
    ];
    assert_eq!(fields(&refused), wanted);

    let many: BTreeMap<String, String> = (0..100)
        .map(|i| (i.to_string(), "x".repeat(1025)))
        .collect();
    let mut volume = VolumeSpec::new("..", Bytes(u64::MAX));
    volume.pool = Some(PoolId::new("nowhere").unwrap());
    volume.labels = many.clone();
    let refused = cluster.volumes().create(volume).await.unwrap_err();
    let named = fields(&refused);
    for field in ["name", "size", "labels", "labels[\"0\"]", "pool"] {
        assert!(named.contains(&field), "{field} in {named:?}");
    }
    let mut image = ImageSpec::new("..", ImageSource::File("relative/../path".into()));
    image.sha256 = Some("zz".to_owned());
    image.annotations = many;
    image.pool = Some(PoolId::new("nowhere").unwrap());
    let refused = cluster.images().create(image).await.unwrap_err();
    let named = fields(&refused);
    for field in ["name", "source.file", "sha256", "annotations", "pool"] {
        assert!(named.contains(&field), "{field} in {named:?}");
    }
    for url in [
        "",
        "ftp://a/b",
        "https://",
        "http:///b",
        "https://a/ b",
        "javascript:1",
    ] {
        let image = ImageSpec::new("a", ImageSource::Url(url.to_owned()));
        let refused = cluster.images().create(image).await.unwrap_err();
        assert_eq!(fields(&refused), ["source.url"], "{url:?}");
    }
    assert_eq!(site.written().await, before);
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn a_path_that_is_no_text_is_refused() {
    use std::os::unix::ffi::OsStringExt as _;
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let path = std::ffi::OsString::from_vec(b"/images/\xff".to_vec());
    let refused = cluster.images().import_file("a", path).await.unwrap_err();
    assert_eq!(fields(&refused), ["source.file"]);
}

#[tokio::test(start_paused = true)]
async fn a_volume_is_attached_once() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let volume = VolumeSpec::new("data", Bytes::gib(1));
    let volume = cluster.volumes().create(volume).await.unwrap().id();
    let with = |name| {
        spec(name)
            .power(Power::Off)
            .disk("data", DiskSource::Volume { volume })
    };
    let first = cluster.vms().create(with("first")).await.unwrap();
    let refused = cluster.vms().create(with("second")).await.unwrap_err();
    assert_eq!(fields(&refused), ["disks[1].source.volume"]);
    let second = spec("second").power(Power::Off);
    let second = cluster.vms().create(second).await.unwrap();
    for (vm, disk) in [(&first, "again"), (&second, "data")] {
        let refused = vm
            .attach(disk, volume, DiskOptions::default())
            .await
            .unwrap_err();
        assert_eq!(fields(&refused), ["volume"]);
    }
    for i in 0..23 {
        let volume = VolumeSpec::new(format!("more-{i}"), Bytes::gib(1));
        let volume = cluster.volumes().create(volume).await.unwrap().id();
        second
            .attach(&format!("more-{i}"), volume, DiskOptions::default())
            .await
            .unwrap();
    }
    let one_more = VolumeSpec::new("too-many", Bytes::gib(1));
    let one_more = cluster.volumes().create(one_more).await.unwrap().id();
    let refused = second
        .attach("too-many", one_more, DiskOptions::default())
        .await
        .unwrap_err();
    assert_eq!(fields(&refused), ["disk"]);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_record_hurts_no_other_object() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let vm = cluster.vms().create(spec("web")).await.unwrap();
    drop(cluster);
    let newer: &[u8] = br#"{"v":999,"body":{"what":"is this"}}"#;
    let id = Uuid::from_u128(9);
    for (i, kind) in (0..).zip(["vm", "volume", "operation", "event", "audit", "network"]) {
        for (j, value) in (0..).zip([&b"{"[..], b"{}", b"null", newer]) {
            let mut commit = Commit::new(TxnId(Uuid::from_u128(1000 + 10 * i + j)));
            let key = Key::new(format!("{kind}/{}", Uuid::from_u128(id.as_u128() + j)));
            commit.push(Op::Put(key.unwrap(), value.to_vec().into()));
            site.store.commit(commit).await.unwrap();
        }
    }
    let cluster = site.start().await;
    let all = novacron_core::cluster::ListRequest::new();
    assert_eq!(cluster.vms().list(&all).await.unwrap().items.len(), 1);
    assert!(!cluster.events(&all).await.unwrap().items.is_empty());
    assert_eq!(cluster.audit(&all).await.unwrap().items.len(), 1);
    let damaged = cluster.vms().by_id(VmId::from_uuid(id)).get().await;
    assert_eq!(damaged.unwrap_err().kind(), ErrorKind::NotFound);
    let vm = cluster.vms().by_id(vm.id());
    vm.stop().await.unwrap().wait(soon()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_store_of_another_cluster_and_wrong_names_are_refused() {
    let mut site = Site::new(1);
    drop(site.start().await);
    let other = Cluster::builder("other").store(site.store.clone()).build();
    let other = other.await.unwrap_err();
    assert_eq!(other.kind(), ErrorKind::FailedPrecondition, "{other}");
    let wrong = Cluster::builder("../other")
        .store(site.store.clone())
        .build();
    assert_eq!(fields(&wrong.await.unwrap_err()), ["name"]);
    let none = Cluster::builder("test").build().await.unwrap_err();
    assert_eq!(fields(&none), ["store"]);
}

#[cfg(feature = "sqlite")]
mod on_disk {
    use super::*;
    use novacron_core::store::SqliteStore;

    /// One process owns the file; what is left of a database is refused. Both before a cluster can be built on it
    /// (`tests/store_sqlite.rs` has every kind of damage, `tests/store_sqlite_processes.rs` other processes).
    #[tokio::test]
    async fn one_cluster_per_file_and_none_on_a_damaged_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("novacron.db");
        let store = SqliteStore::open(&path).await.unwrap();
        let cluster = Cluster::builder("test")
            .store(store.clone())
            .build()
            .await
            .unwrap();
        let second = SqliteStore::open(&path).await.unwrap_err();
        assert!(
            second.to_string().contains(&std::process::id().to_string()),
            "{second}"
        );
        cluster.shutdown(soon()).await.unwrap();
        drop(cluster);
        store.close().await.unwrap();

        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let damaged = SqliteStore::open(&path).await.unwrap_err();
        assert_eq!(damaged.kind(), ErrorKind::Corrupt, "{damaged}");
    }
}

#[tokio::test(start_paused = true)]
async fn another_pool_under_a_known_name_is_refused() {
    let mut site = Site::new(1);
    let pool = PoolId::new("shared").unwrap();
    site.world.set_pool_identity(&pool, Uuid::from_u128(1));
    let cluster = site.start().await;
    let volume = VolumeSpec::new("data", Bytes::gib(1));
    let volume = cluster.volumes().create(volume).await.unwrap();
    volume.operation().unwrap().wait(soon()).await.unwrap();
    drop((cluster, volume));
    let join = || {
        Cluster::builder("test")
            .store(site.store.clone())
            .clock(site.clock)
            .storage("shared", SimStorage::new(&site.world, pool.clone()))
            .build()
    };
    site.world.set_pool_identity(&pool, Uuid::from_u128(2));
    let refused = join().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
    assert!(
        refused.message().contains("is its file system mounted"),
        "{refused}"
    );
    site.world.set_pool_identity(&pool, Uuid::from_u128(1));
    join().await.unwrap();
}
