//! Any JSON given as a spec is either refused, with the field of every problem, or gives records that are read again as
//! they were written, also by the next process.

use std::fmt::Debug;

use novacron_core::cluster::{ImageSpec, VolumeSpec, spec_from_json};
use novacron_core::model::NetworkKind;
use novacron_core::{Cluster, Error, ErrorKind, VmSpec};
use proptest::collection::vec;
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{SOURCE, Site};

/// A change of one place of a document.
#[derive(Clone, Debug)]
enum Mutation {
    Replace(Value),
    Remove,
    Twice,
    Unknown(String, Value),
}

fn value() -> impl Strategy<Value = Value> {
    const TEXTS: &[&str] = &[
        "",
        "a",
        "web-1",
        "../x",
        "a\0b",
        "\u{202e}",
        "/boot/vmlinuz",
        "#cloud-config\n",
        "on",
        "off",
        "uefi",
        "raw",
        "debian",
        "shared",
        "node-0",
        "52:54:00:00:00:01",
        "53:54:00:00:00:01",
        "127.0.0.1",
        "tcp",
        "https://a/b",
    ];
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop::sample::select(vec![0_u64, 1, 22, 512, 1 << 20, (1 << 30) + 1, u64::MAX])
            .prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(TEXTS).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        (0_usize..40_000).prop_map(|n| Value::from("\u{1}".repeat(n))),
        Just(json!([])),
        Just(json!({})),
        Just(json!({"name": "x"})),
        Just(json!({"k": "v"})),
    ]
}

fn mutations() -> impl Strategy<Value = Vec<(prop::sample::Index, Mutation)>> {
    let one = prop_oneof![
        5 => value().prop_map(Mutation::Replace),
        1 => Just(Mutation::Remove),
        1 => Just(Mutation::Twice),
        1 => ("[a-z]{1,8}", value()).prop_map(|(key, value)| Mutation::Unknown(key, value)),
    ];
    vec((any::<prop::sample::Index>(), one), 0..3)
}

/// The paths of a document's places, its root excepted.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(map) => map.iter().map(|(k, v)| (k.clone(), v)).collect(),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .map(|(i, v)| (i.to_string(), v))
            .collect(),
        _ => Vec::new(),
    };
    for (key, child) in children {
        let path = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
        found.push(path.clone());
        places(child, &path, found);
    }
}

fn mutate(mut document: Value, mutations: Vec<(prop::sample::Index, Mutation)>) -> Value {
    for (index, mutation) in mutations {
        let mut paths = Vec::new();
        places(&document, "", &mut paths);
        if paths.is_empty() {
            continue;
        }
        let path = &paths[index.index(paths.len())];
        let (parent, key) = path.rsplit_once('/').unwrap();
        match (document.pointer_mut(parent).unwrap(), mutation) {
            (Value::Object(map), Mutation::Remove) => drop(map.remove(key)),
            (Value::Array(list), Mutation::Remove) => drop(list.remove(key.parse().unwrap())),
            (Value::Array(list), Mutation::Twice) => {
                let twin = list[key.parse::<usize>().unwrap()].clone();
                list.push(twin);
            }
            (Value::Object(map), Mutation::Unknown(name, value)) => drop(map.insert(name, value)),
            (_, Mutation::Replace(value)) => *document.pointer_mut(path).unwrap() = value,
            _ => {}
        }
    }
    document
}

/// A spec, if the JSON is one at all (else it is told where not); then it is written as it is read.
fn parse<T: DeserializeOwned + serde::Serialize + PartialEq + Debug>(
    document: &Value,
) -> Option<T> {
    let json = serde_json::to_vec(document).unwrap();
    let spec: T = spec_from_json(&json)
        .map_err(|error| refused(&error))
        .ok()?;
    let again: T = serde_json::from_str(&serde_json::to_string(&spec).unwrap()).unwrap();
    assert_eq!(spec, again);
    Some(spec)
}

fn refused(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(!error.problems().is_empty(), "{error}");
    assert!(
        error.problems().iter().all(|p| !p.field.is_empty()),
        "{error}"
    );
    assert!(error.problems().iter().all(|p| p.to_string().len() < 1_000));
}

/// Runs a case on a cluster of its own.
fn on_a_site<F: Future<Output = ()>>(case: impl FnOnce(Site, Cluster) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut site = Site::new(1);
        let cluster = site.start().await;
        case(site, cluster).await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_vm(mutations in mutations()) {
        on_a_site(|mut site, cluster| async move {
            let image = ImageSpec::new("debian", site.add_source());
            cluster.images().create(image).await.unwrap();
            let network = cluster.networks().create("lan", NetworkKind::User).await.unwrap();
            let volume = VolumeSpec::new("data", novacron_core::Bytes::gib(1));
            let volume = cluster.volumes().create(volume).await.unwrap();
            let document = json!({
                "name": "web-1", "labels": {"tier": "web"}, "annotations": {"note": "a\nb"},
                "hardware": {
                    "vcpus": 2, "memory": 512, "firmware": "bios", "tpm": {"passphrase": {"name": "tpm/web-1"}},
                    "cpu": {"model": {"named": "Nehalem"}, "features": {"vmx": false}, "topology": {"sockets": 2, "cores": 1, "threads": 1}},
                    "kernel": {"kernel": "/boot/vmlinuz", "initrd": "/boot/initrd", "cmdline": "console=ttyS0"},
                },
                "power": "off", "restart": "on_failure", "node": "node-0", "stop_grace_secs": 60,
                "disks": [
                    {"name": "root", "source": {"image": {"image": "debian", "size": 4 << 30, "pool": "shared"}}},
                    {"name": "swap", "source": {"blank": {"size": 1 << 30, "pool": null}}},
                    {"name": "data", "source": {"volume": {"volume": volume.id().to_string()}}},
                ],
                "nics": [{
                    "network": network.id().to_string(), "mac": "52:54:00:12:34:56",
                    "forwards": [{"protocol": "tcp", "host_addr": "127.0.0.1", "host_port": 2222, "guest_port": 22}],
                }],
                "cloud_init": {
                    "hostname": "web-1", "user_data": "#cloud-config\n", "network_config": "version: 2",
                    "secrets": {"PASSWORD": {"name": "vault/web-1"}},
                },
            });
            let Some(spec) = parse::<VmSpec>(&mutate(document, mutations)) else { return };
            let vm = match cluster.vms().create(spec.clone()).await {
                Ok(vm) => vm,
                Err(error) => return refused(&error),
            };
            let written = vm.get().await.unwrap().vm;
            assert_eq!(written.meta.name.as_str(), spec.name);
            assert_eq!((&written.meta.labels, &written.meta.annotations), (&spec.labels, &spec.annotations));
            let machine = &written.machine;
            assert_eq!(&machine.hardware, &spec.hardware);
            assert_eq!((machine.guest_disks().count(), machine.nics.len()), (spec.disks.len(), spec.nics.len()));
            assert_eq!((&machine.cloud_init, &written.node), (&spec.cloud_init, &spec.node));
            drop(cluster);
            let again = site.start().await.vms().by_id(vm.id()).get().await.unwrap().vm;
            assert_eq!(again.value, written.value);
        });
    }

    #[test]
    fn any_volume(mutations in mutations()) {
        on_a_site(|mut site, cluster| async move {
            let document = json!({
                "name": "data", "size": 1 << 30, "pool": "shared", "format": "qcow2", "source": "blank",
                "labels": {"tier": "web"}, "annotations": {"note": "x"},
            });
            let Some(spec) = parse::<VolumeSpec>(&mutate(document, mutations)) else { return };
            let volume = match cluster.volumes().create(spec.clone()).await {
                Ok(volume) => volume,
                Err(error) => return refused(&error),
            };
            let written = volume.get().await.unwrap().volume;
            assert_eq!((written.meta.name.as_str(), written.size), (&*spec.name, spec.size));
            assert_eq!((&written.meta.labels, &written.meta.annotations), (&spec.labels, &spec.annotations));
            drop(cluster);
            let again = site.start().await.volumes().by_id(volume.id()).get().await.unwrap().volume;
            assert_eq!(again.value, written.value);
        });
    }

    #[test]
    fn any_image(mutations in mutations()) {
        on_a_site(|mut site, cluster| async move {
            let document = json!({
                "name": "debian", "source": {"file": SOURCE}, "sha256": "0".repeat(64), "pool": "shared",
                "labels": {"os": "debian"}, "annotations": {"note": "x"},
            });
            let Some(spec) = parse::<ImageSpec>(&mutate(document, mutations)) else { return };
            let image = match cluster.images().create(spec.clone()).await {
                Ok(image) => image,
                Err(error) => return refused(&error),
            };
            let written = image.get().await.unwrap().image;
            assert_eq!((&written.source, &written.sha256), (&spec.source, &spec.sha256));
            drop(cluster);
            let again = site.start().await.images().by_id(image.id()).get().await.unwrap().image;
            assert_eq!(again.value, written.value);
        });
    }

    #[test]
    fn any_network(bridge in any::<bool>(), mutations in mutations()) {
        on_a_site(|mut site, cluster| async move {
            let document = json!({"kind": if bridge { json!({"bridge": {"bridge": "br0"}}) } else { json!("user") }});
            let document = mutate(document, mutations);
            let kind = document.get("kind").unwrap_or(&Value::Null);
            let Some(kind) = parse::<NetworkKind>(kind) else { return };
            let network = match cluster.networks().create("lan", kind.clone()).await {
                Ok(network) => network,
                Err(error) => return refused(&error),
            };
            let written = network.get().await.unwrap();
            assert_eq!(written.kind, kind);
            drop(cluster);
            let again = site.start().await.networks().by_id(network.id()).get().await.unwrap();
            assert_eq!(again.value, written.value);
        });
    }
}
