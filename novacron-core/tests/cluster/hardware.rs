//! Hardware that not every node can give.

use std::collections::BTreeMap;
use std::time::Duration;

use novacron_core::cluster::Verdict;
use novacron_core::model::{
    Bytes, CpuModel, CpuTopology, DiskOptions, DiskRole, Firmware, SecretRef, Tpm,
};
use novacron_core::{Deadline, ErrorKind, Phase};

use crate::ground::node;
use crate::{Site, soon, spec};

/// Intel's of 2013 and of 2008.
fn two_ages() -> Site {
    let site = Site::new(2);
    let old = site.world.hosts()[1];
    site.world.set_cpu(old, &["qemu64", "Nehalem"], &["sse4.2"]);
    site
}

#[tokio::test(start_paused = true)]
async fn a_baseline_is_the_newest_model_of_all_nodes_and_stays() {
    let mut site = two_ages();
    let cluster = site.start().await;
    let baseline = cluster.nodes().cpu_baseline().await.unwrap();
    assert_eq!(baseline.model.as_deref(), Some("Nehalem"));
    let asked = spec("web").cpu_model(CpuModel::Baseline);
    let vm = cluster.vms().create(asked.clone()).await.unwrap();
    let model = async || vm.get().await.unwrap().vm.value.machine.hardware.cpu.model;
    let nehalem = CpuModel::Named("Nehalem".to_owned());
    assert_eq!(model().await, nehalem);
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    assert_eq!(model().await, nehalem);

    // For one node alone, it is that node's.
    let mut pinned = asked.node(node(0));
    pinned.name = "pinned".to_owned();
    let pinned = cluster.vms().create(pinned).await.unwrap();
    let view = pinned.get().await.unwrap();
    let haswell = CpuModel::Named("Haswell".to_owned());
    assert_eq!(view.vm.value.machine.hardware.cpu.model, haswell);
}

#[tokio::test(start_paused = true)]
async fn nodes_without_a_model_in_common_have_no_baseline() {
    let mut site = two_ages();
    let other = site.world.hosts()[0];
    site.world.set_cpu(other, &["POWER9"], &[]);
    let cluster = site.start().await;
    let asked = spec("web").cpu_model(CpuModel::Baseline);
    let refused = cluster.vms().create(asked).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    assert_eq!(refused.problems()[0].field, "hardware.cpu.model");
}

#[tokio::test(start_paused = true)]
async fn a_named_cpu_goes_where_it_is_and_the_others_say_what_they_lack() {
    let mut site = two_ages();
    let cluster = site.start().await;
    for n in 0..8 {
        let named = spec(&format!("web-{n}")).cpu_model(CpuModel::Named("Haswell".to_owned()));
        let vm = cluster.vms().create(named).await.unwrap();
        let view = vm.wait_for(Phase::Running, soon()).await.unwrap();
        assert_eq!(view.place.unwrap().node(), Some(&node(0)));
        let verdicts = vm.explain().await.unwrap().verdicts;
        let lacks = Verdict::TurnedDown("lack the CPU model Haswell".to_owned());
        assert_eq!(
            verdicts,
            BTreeMap::from([(node(0), Verdict::Fits), (node(1), lacks)])
        );
    }
    let mut none = spec("none");
    none.hardware
        .cpu
        .features
        .insert("avx512f".to_owned(), true);
    let vm = cluster.vms().create(none).await.unwrap();
    let late = vm.wait_for(Phase::Running, Deadline::after(Duration::from_secs(5)));
    let why = late.await.unwrap_err().to_string();
    assert!(
        why.contains("2 node(s) lack the CPU feature avx512f"),
        "{why}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_topology_has_to_make_the_vcpus() {
    let cluster = Site::new(1).start().await;
    let mut wrong = spec("web").vcpus(4);
    wrong.hardware.cpu.topology = Some(CpuTopology {
        sockets: 2,
        cores: 1,
        threads: 1,
    });
    let refused = cluster.vms().create(wrong).await.unwrap_err();
    let [problem] = refused.problems() else {
        panic!("{refused}")
    };
    assert_eq!(problem.field, "hardware.cpu.topology");
}

#[tokio::test(start_paused = true)]
async fn the_state_of_firmware_and_tpm_is_the_vms_and_goes_with_it() {
    let mut site = Site::new(2);
    let cluster = site.start().await;
    let mut asked = spec("web").node(node(0));
    asked.hardware.firmware = Firmware::UefiSecureBoot;
    asked.hardware.tpm = Some(Tpm::default());
    let vm = cluster.vms().create(asked.clone()).await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    let roles = [DiskRole::Nvram, DiskRole::Tpm];
    let state = async || {
        let machine = vm.get().await.unwrap().vm.machine.clone();
        roles.map(|role| machine.volume(role).unwrap())
    };
    let volumes = state().await;
    assert_eq!(vm.get().await.unwrap().vm.machine.guest_disks().count(), 1);

    // It moves with it, and stays through its starts.
    vm.stop().await.unwrap().wait(soon()).await.unwrap();
    let moved = vm.move_to(node(1)).await.unwrap();
    moved.wait(soon()).await.unwrap();
    vm.start().await.unwrap().wait(soon()).await.unwrap();
    assert_eq!(state().await, volumes);

    // It is no disk of the guest's, for anybody.
    for (role, volume) in roles.into_iter().zip(volumes) {
        let name = role.name().unwrap();
        for refused in [
            vm.detach(name).await,
            vm.set_disk(name, DiskOptions::default()).await,
        ] {
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::NotFound);
        }
        let snapshot = cluster.snapshots().create("before", volume).await;
        assert_eq!(snapshot.unwrap_err().kind(), ErrorKind::Unsupported);
        let grown = cluster.volumes().by_id(volume).grow(Bytes::gib(1)).await;
        assert_eq!(grown.unwrap_err().problems()[0].field, "size");
        let mut named = asked.clone();
        named.name = "named".to_owned();
        named.disks[0].name = name.to_owned();
        let refused = cluster.vms().create(named).await.unwrap_err();
        assert_eq!(refused.problems()[0].field, "disks[0].name");
    }

    vm.delete().await.unwrap().wait(soon()).await.unwrap();
    for volume in volumes {
        let gone = cluster.volumes().by_id(volume).get().await;
        assert_eq!(gone.unwrap_err().kind(), ErrorKind::NotFound);
    }
    assert_eq!(site.world.artefacts().volumes.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_tpm_is_encrypted_by_a_secret_that_is_there() {
    let cluster = Site::new(1).start().await;
    let mut asked = spec("web");
    let tpm = |name: &str| {
        let name = name.to_owned();
        Some(Tpm {
            passphrase: Some(SecretRef { name }),
        })
    };
    asked.hardware.tpm = tpm("");
    let refused = cluster.vms().create(asked.clone()).await.unwrap_err();
    assert_eq!(refused.problems()[0].field, "hardware.tpm.passphrase");

    // Nobody has one here: it does not start without.
    asked.hardware.tpm = tpm("vault/web");
    let vm = cluster.vms().create(asked).await.unwrap();
    let never = vm.wait_for(Phase::Running, soon()).await.unwrap_err();
    assert!(never.to_string().contains("secret=vault/web"), "{never}");
}
