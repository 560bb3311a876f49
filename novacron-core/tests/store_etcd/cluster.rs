//! A cluster whose store is etcd: created, dropped, built again.

use std::time::Duration;

use novacron_core::model::{DiskSource, PoolId};
use novacron_core::sim::{SimHypervisor, SimStorage, SimWorld};
use novacron_core::store::EtcdStore;
use novacron_core::{Bytes, Cluster, Deadline, MiB, Phase, VmSpec};

use super::support::etcd::{Etcd, Setup};

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_lives_on_etcd() {
    let mut etcd = Etcd::start_with(3, &Setup::default());
    let world = SimWorld::new(1);
    world.add_pool(PoolId::new("shared").unwrap(), Bytes::gib(100));
    let hosts = [(); 2].map(|()| world.add_host(8, MiB(16_384)));
    let build = async |store: EtcdStore| {
        let pool = SimStorage::new(&world, PoolId::new("shared").unwrap());
        Cluster::builder("prod")
            .store(store)
            .node("alpha", SimHypervisor::new(&world, hosts[0]))
            .node("beta", SimHypervisor::new(&world, hosts[1]))
            .storage("shared", pool)
            .build()
            .await
            .unwrap()
    };
    let cluster = build(etcd.connect().await).await;
    cluster.nodes().wait_available(soon()).await.unwrap();
    let disk = DiskSource::Blank {
        size: Bytes::gib(1),
        pool: None,
    };
    let spec = |name: &str| {
        VmSpec::new(name)
            .vcpus(1)
            .memory(MiB(512))
            .disk("root", disk.clone())
    };
    let first = cluster.vms().create(spec("web-1")).await.unwrap();
    first.wait_for(Phase::Running, soon()).await.unwrap();
    let leader = etcd.leader();
    etcd.kill(leader);
    let second = cluster.vms().create(spec("web-2")).await.unwrap();
    second.wait_for(Phase::Running, soon()).await.unwrap();
    let ids = [first.id(), second.id()];
    drop((first, second, cluster));

    etcd.restart(leader);
    let cluster = build(etcd.connect().await).await;
    for id in ids {
        let vm = cluster.vms().by_id(id);
        vm.wait_for(Phase::Running, soon()).await.unwrap();
    }
    let vm = cluster.vms().by_id(ids[0]);
    vm.delete().await.unwrap().wait(soon()).await.unwrap();
    cluster.shutdown(soon()).await.unwrap();
}
