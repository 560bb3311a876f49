//! Lists page by page, events, audit, usage.

use std::collections::BTreeSet;

use novacron_core::cluster::{
    DEFAULT_PAGE, ImageSpec, ListRequest, MAX_PAGE, Page, PageToken, Usage, VolumeSpec,
};
use novacron_core::model::{Name, NetworkKind, ObjectRef, Power, VmId};
use novacron_core::store::{Commit, Key, Op, Revision, Store, TxnId};
use novacron_core::{Bytes, Cluster, ErrorKind, MiB, Phase, RequestOptions, Result};

use crate::{Site, soon, spec};

fn off(i: usize) -> novacron_core::VmSpec {
    let mut spec = spec(&format!("vm-{i}")).power(Power::Off);
    let parity = if i.is_multiple_of(2) { "even" } else { "odd" };
    spec.labels.insert("parity".to_owned(), parity.to_owned());
    spec
}

async fn create(cluster: &Cluster, i: usize) -> VmId {
    cluster.vms().create(off(i)).await.unwrap().id()
}

#[tokio::test(start_paused = true)]
async fn a_walk_sees_what_was_there_throughout_exactly_once() {
    let mut site = Site::new(1);
    let mut cluster = site.start().await;
    for limit in [1, 2, 3, 7, 100] {
        let mut stay: BTreeSet<VmId> = BTreeSet::new();
        let mut go = Vec::new();
        for i in 0..12 {
            let id = create(&cluster, 100 * limit + i).await;
            if i % 4 == 1 {
                go.push(id);
            } else {
                stay.insert(id);
            }
        }
        let (mut seen, mut request) = (Vec::new(), ListRequest::new().limit(limit));
        let mut turn = 0;
        loop {
            let page = cluster.vms().list(&request).await.unwrap();
            assert!(page.items.len() <= limit);
            seen.extend(page.items.iter().map(|v| v.vm.id));
            let Some(token) = page.next else { break };
            // Meanwhile one is deleted, one is made, and the process is another one.
            if let Some(id) = go.pop() {
                let vm = cluster.vms().by_id(id);
                vm.delete().await.unwrap().wait(soon()).await.unwrap();
                create(&cluster, 100 * limit + 20 + turn).await;
                drop(cluster);
                cluster = site.start().await;
            }
            turn += 1;
            request = request.after(PageToken::from(token.to_string()));
        }
        let once: BTreeSet<VmId> = seen.iter().copied().collect();
        assert_eq!(once.len(), seen.len(), "seen twice, by {limit}");
        assert!(stay.is_subset(&once), "not seen, by {limit}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_list_has_the_same_shape_limits_and_tokens() {
    let mut site = Site::new(2);
    let cluster = site.start().await;
    let source = site.add_source();
    for i in 0..3 {
        create(&cluster, i).await;
        let volume = VolumeSpec::new(format!("vol-{i}"), Bytes::gib(1));
        let volume = cluster.volumes().create(volume).await.unwrap();
        volume.operation().unwrap().wait(soon()).await.unwrap();
        let (name, snapshots) = (format!("snap-{i}"), cluster.snapshots());
        snapshots.create(&name, volume.id()).await.unwrap();
        let image = ImageSpec::new(format!("image-{i}"), source.clone());
        cluster.images().create(image).await.unwrap();
        let network = cluster.networks();
        network
            .create(&format!("net-{i}"), NetworkKind::User)
            .await
            .unwrap();
    }
    let (vms, volumes, images) = (cluster.vms(), cluster.volumes(), cluster.images());
    let (snapshots, networks, nodes) = (cluster.snapshots(), cluster.networks(), cluster.nodes());
    let vm = vms.by_name("vm-0").await.unwrap().id();
    let object = ObjectRef::Vm(vm);
    let mut tokens: Vec<PageToken> = Vec::new();
    /// The pages' sizes and the token of the first.
    fn look<T>(page: Result<Page<T>>) -> Result<(usize, Option<PageToken>)> {
        page.map(|p| (p.items.len(), p.next))
    }
    macro_rules! each {
        ($($name:literal $labelled:literal |$request:ident| $list:expr;)*) => {$(
            let $request = &ListRequest::new().limit(1);
            let (items, next) = look($list.await).unwrap();
            assert_eq!(items, 1, $name);
            if let Some(token) = next {
                let $request = &ListRequest::new().after(token.clone());
                assert!(look($list.await).is_ok(), $name);
                tokens.push(token);
            } else {
                assert_eq!($name, "events_of");
            }
            for limit in [0, MAX_PAGE + 1, usize::MAX] {
                let $request = &ListRequest::new().limit(limit);
                let refused = look($list.await).unwrap_err();
                assert_eq!(refused.problems()[0].field, "limit", $name);
            }
            let $request = &ListRequest::new().after(PageToken::from("damaged".to_owned()));
            let refused = look($list.await).unwrap_err();
            assert_eq!(refused.problems()[0].field, "token", $name);
            let $request = &ListRequest::new().label("parity", "odd");
            let labelled = look($list.await);
            assert_eq!(labelled.is_ok(), $labelled, $name);
            if let Err(refused) = labelled {
                assert_eq!(refused.problems()[0].field, "labels", $name);
            }
        )*};
    }
    each! {
        "vms" true |request| vms.list(request);
        "volumes" true |request| volumes.list(request);
        "images" true |request| images.list(request);
        "snapshots" true |request| snapshots.list(request);
        "networks" true |request| networks.list(request);
        "nodes" false |request| nodes.list(request);
        "operations" false |request| cluster.operations(request);
        "events" false |request| cluster.events(request);
        "audit" false |request| cluster.audit(request);
    }
    assert_eq!(tokens.len(), 9);
    // A token of one list is no token of another.
    for token in &tokens[1..] {
        let refused = vms.list(&ListRequest::new().after(token.clone())).await;
        assert_eq!(refused.unwrap_err().problems()[0].field, "token");
    }
    let token = &tokens[0];
    let selected = ListRequest::new()
        .after(token.clone())
        .label("parity", "odd");
    assert!(vms.list(&selected).await.is_err());
    let odd = vms
        .list(&ListRequest::new().label("parity", "odd"))
        .await
        .unwrap();
    assert_eq!(odd.items.len(), 1);
    assert_eq!(odd.items[0].vm.meta.name.as_str(), "vm-1");
    assert_eq!(ListRequest::default().limit, DEFAULT_PAGE);
    let of_none = cluster
        .events_of(&object, &ListRequest::new())
        .await
        .unwrap();
    assert!(of_none.items.is_empty() && of_none.next.is_none());
}

#[tokio::test(start_paused = true)]
async fn what_happened_can_be_read_also_when_the_object_is_gone() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let alice = cluster.with(RequestOptions {
        principal: "alice".to_owned(),
        project: Name::new("shop").unwrap(),
        ..RequestOptions::default()
    });
    let vm = alice.vms().create(spec("web")).await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    vm.delete().await.unwrap().wait(soon()).await.unwrap();
    create(&cluster, 1).await;

    let object = ObjectRef::Vm(vm.id());
    let (mut reasons, mut request) = (Vec::new(), ListRequest::new().limit(2));
    loop {
        let page = alice.events_of(&object, &request).await.unwrap();
        reasons.extend(page.items.into_iter().map(|e| e.reason));
        match page.next {
            Some(token) => request = request.after(token),
            None => break,
        }
    }
    assert_eq!(reasons.first().map(String::as_str), Some("placed"));
    assert_eq!(reasons.last().map(String::as_str), Some("deleted"));
    let others = cluster.events_of(&object, &ListRequest::new()).await;
    assert!(others.unwrap().items.is_empty(), "another project's events");

    let audit = alice.audit(&ListRequest::new()).await.unwrap().items;
    let said: Vec<_> = audit.iter().map(|a| (&*a.principal, &*a.verb)).collect();
    assert_eq!(said, [("alice", "vm.create"), ("alice", "vm.delete")]);
    let events = alice.events(&ListRequest::new()).await.unwrap().items;
    let shop =
        |e: &novacron_core::model::Event| e.project.as_ref().is_none_or(|p| p.as_str() == "shop");
    assert!(events.iter().all(shop) && events.iter().any(|e| e.object == object));
    let operations = alice.operations(&ListRequest::new()).await.unwrap().items;
    assert_eq!(operations.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn usage_is_what_the_project_asks_for() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let source = site.add_source();
    let image = ImageSpec::new("debian", source);
    let image = cluster.images().create(image).await.unwrap();
    image.operation().unwrap().wait(soon()).await.unwrap();
    let spec = novacron_core::VmSpec::new("web").vcpus(3).memory(MiB(512));
    let vm = cluster.vms().create(spec.image("debian")).await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    let volume = VolumeSpec::new("data", Bytes::gib(3));
    cluster.volumes().create(volume).await.unwrap();

    let mine = Name::new("default").unwrap();
    let wanted = Usage {
        vms: 1,
        vcpus: 3,
        memory: MiB(512),
        volumes: 2,
        volume_bytes: Bytes::gib(5),
    };
    assert_eq!(cluster.usage(&mine).await.unwrap(), wanted);
    let other = Name::new("other").unwrap();
    assert_eq!(cluster.usage(&other).await.unwrap(), Usage::default());
    vm.delete().await.unwrap().wait(soon()).await.unwrap();
    let left = cluster.usage(&mine).await.unwrap();
    assert_eq!((left.vms, left.volumes), (0, 1));
    let gone = vm.get().await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
}

/// Commits that touch nothing that is listed go into the revision too, or the store would have forgotten it one day.
#[tokio::test(start_paused = true)]
async fn a_pages_revision_can_be_watched_from_however_quiet_it_was() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let mut revision = Revision::default();
    for i in 0..5 {
        let mut commit = Commit::new(TxnId(uuid::Uuid::from_u128(i)));
        let key = Key::new(format!("elsewhere/{i}")).unwrap();
        commit.push(Op::Put(key, "1".into()));
        revision = site.store.commit(commit).await.unwrap();
    }
    let page = cluster.vms().list(&ListRequest::new()).await.unwrap();
    assert_eq!(page.revision, revision);
    site.store.compact(revision).await.unwrap();
    assert!(cluster.watch(Some(page.revision)).await.is_ok());
}
