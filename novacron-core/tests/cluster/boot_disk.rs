//! What a VM boots from, replaced while it is off.

use novacron_core::cluster::{ImageSpec, VmHandle, VolumeSpec};
use novacron_core::model::{Disk, DiskRole, DiskSource, Power};
use novacron_core::{Bytes, Cluster, ErrorKind, Phase};

use crate::{Site, soon, spec};

async fn image(site: &Site, cluster: &Cluster, name: &str) {
    let spec = ImageSpec::new(name, site.add_source());
    let image = cluster.images().create(spec).await.unwrap();
    image.operation().unwrap().wait(soon()).await.unwrap();
}

async fn names(vm: &VmHandle) -> Vec<String> {
    let disks = vm.get().await.unwrap().vm.value.machine.disks;
    disks.into_iter().map(|disk| disk.name).collect()
}

async fn boots(vm: &VmHandle) {
    vm.start().await.unwrap().wait(soon()).await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    vm.stop().await.unwrap().wait(soon()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_rescued_vm_boots_from_a_disk_beside_its_own_until_that_is_over() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    image(&site, &cluster, "rescue-me").await;
    let vm = cluster.vms().create(spec("web")).await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    let refused = vm.rescue("rescue-me").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
    assert!(refused.message().contains("the VM is running"), "{refused}");
    vm.stop().await.unwrap().wait(soon()).await.unwrap();
    let refused = vm.rescue("nothing").await.unwrap_err();
    assert_eq!(refused.problems()[0].field, "image");
    let refused = vm.unrescue().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);

    vm.rescue("rescue-me").await.unwrap();
    assert_eq!(names(&vm).await, [Disk::RESCUE, "root"]);
    let rescue = vm
        .get()
        .await
        .unwrap()
        .vm
        .machine
        .volume(DiskRole::Rescue)
        .unwrap();
    boots(&vm).await;
    for refused in [
        vm.rescue("rescue-me").await,
        vm.rebuild("root", "rescue-me").await,
        vm.detach(Disk::RESCUE).await,
    ] {
        let kind = refused.unwrap_err().kind();
        assert!(
            [ErrorKind::FailedPrecondition, ErrorKind::NotFound].contains(&kind),
            "{kind:?}"
        );
    }
    vm.unrescue().await.unwrap();
    assert_eq!(names(&vm).await, ["root"]);
    boots(&vm).await;
    let gone = cluster.volumes().by_id(rescue).get().await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn a_rebuilt_vm_has_a_new_first_disk_and_all_else() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    image(&site, &cluster, "newer").await;
    let data = VolumeSpec::new("data", Bytes::gib(1));
    let data = cluster.volumes().create(data).await.unwrap().id();
    let asked = spec("web").power(Power::Off);
    let asked = asked.disk("data", DiskSource::Volume { volume: data });
    let vm = cluster.vms().create(asked).await.unwrap();
    let machine = async || vm.get().await.unwrap().vm.value.machine;
    let before = machine().await;
    vm.rebuild("root", "newer").await.unwrap();
    let after = machine().await;
    assert_ne!(after.disks[0].volume, before.disks[0].volume);
    assert_eq!(after.disks[1], before.disks[1]);
    assert_eq!(names(&vm).await, ["root", "data"]);
    boots(&vm).await;
    let old = cluster.volumes().by_id(before.disks[0].volume);
    assert_eq!(old.get().await.unwrap_err().kind(), ErrorKind::NotFound);

    // What would go with it, and was not spoken of, keeps it.
    let snapshots = cluster.snapshots();
    let taken = snapshots.create("before", after.disks[0].volume).await;
    let taken = taken.unwrap();
    taken.operation().unwrap().wait(soon()).await.unwrap();
    let refused = vm.rebuild("root", "newer").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
    let refused = vm.rebuild("other", "newer").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound);
    taken.delete().await.unwrap().wait(soon()).await.unwrap();

    // A disk that is a volume of its own stays.
    vm.rebuild("data", "newer").await.unwrap();
    let rebuilt = machine().await;
    assert_ne!(rebuilt.disks[1].volume, data);
    assert!(rebuilt.disks[1].delete_with_vm);
    boots(&vm).await;
    cluster.volumes().by_id(data).get().await.unwrap();
    vm.delete().await.unwrap().wait(soon()).await.unwrap();
    // The image, and data.
    assert_eq!(site.world.artefacts().volumes.len(), 2);
}
