//! Hosts that end themselves when their process is lost.

use std::time::Duration;

use async_trait::async_trait;
use novacron_core::driver::{Call, Watchdog};
use novacron_core::model::Role;
use novacron_core::sim::SimWatchdog;
use novacron_core::{Cluster, Deadline, Error, ErrorKind, Phase, Result};

use crate::ground::{Ground, TTL, node};
use crate::{Changes, soon, spec};

const TIMEOUT: Duration = Duration::from_secs(30);

/// Two hosts; each is lost a second after its process.
fn ground() -> Ground {
    let mut ground = Ground::new(2);
    ground.lost_after = Duration::from_secs(1);
    ground
}

fn watchdog(ground: &Ground, n: usize) -> SimWatchdog {
    SimWatchdog::new(&ground.site.world, ground.site.world.hosts()[n], TIMEOUT)
}

/// The process of a host, which ends itself when that process is lost.
async fn process(ground: &mut Ground, n: usize) -> Cluster {
    let watchdog = watchdog(ground, n);
    process_with(ground, n, watchdog).await
}

async fn process_with(ground: &mut Ground, n: usize, watchdog: impl Watchdog) -> Cluster {
    let (builder, _) = ground.builder(Role::Both, &[n]);
    let builder = builder.self_fence(node(n).to_string(), watchdog);
    builder.build().await.unwrap()
}

/// Runs a VM on a node, from which it may leave.
async fn run(cluster: &Cluster, name: &str, at: usize) -> novacron_core::model::VmId {
    let other = node(1 - at);
    let nodes = cluster.nodes();
    nodes.set_schedulable(&other, false).await.unwrap();
    let vm = cluster.vms().create(spec(name)).await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    nodes.set_schedulable(&other, true).await.unwrap();
    vm.id()
}

#[tokio::test(start_paused = true)]
async fn a_lost_host_ends_itself_before_its_vms_run_elsewhere() {
    let mut ground = ground();
    let first = process(&mut ground, 0).await;
    let second = process(&mut ground, 1).await;
    first.nodes().wait_available(soon()).await.unwrap();
    let id = run(&second, "a", 0).await;
    let status = second.nodes().get(&node(0)).await.unwrap().status.unwrap();
    assert_eq!(status.watchdog_secs, Some(30));
    let host = ground.site.world.hosts()[0];
    let boot = ground.site.world.boot_id(host);
    drop(first);
    let vm = second.vms().by_id(id);
    let mut changes = Changes::of(&second).await;
    loop {
        let view = vm.get().await.unwrap();
        if view.run.as_ref().is_some_and(|run| run.node == node(1)) {
            break;
        }
        changes.next().await;
    }
    assert_ne!(ground.site.world.boot_id(host), boot, "it ended itself");
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    assert_eq!(ground.site.world.running(id).len(), 1);
    // Back again, it is used like any other.
    let again = process(&mut ground, 0).await;
    again.nodes().wait_available(soon()).await.unwrap();
    run(&again, "b", 0).await;
    assert!(ground.site.world.violations().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_process_that_is_started_again_in_time_keeps_its_guests() {
    let mut ground = ground();
    let first = process(&mut ground, 0).await;
    let second = process(&mut ground, 1).await;
    first.nodes().wait_available(soon()).await.unwrap();
    let id = run(&second, "a", 0).await;
    drop(first);
    let again = process(&mut ground, 0).await;
    let late = Deadline::after(TIMEOUT * 4);
    let waited = second.vms().by_id(id).wait_for(Phase::Stopped, late).await;
    assert_eq!(waited.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    let view = again.vms().by_id(id).get().await.unwrap();
    assert_eq!((view.run.unwrap().epoch.0, view.phase), (1, Phase::Running));

    // One that shuts down leaves its guests running, and nothing ends them.
    again.shutdown(soon()).await.unwrap();
    let late = Deadline::after(TIMEOUT * 4);
    let waited = second.vms().by_id(id).wait_for(Phase::Stopped, late).await;
    assert_eq!(waited.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(ground.site.world.running(id).len(), 1);
    assert!(ground.site.world.violations().is_empty());
}

/// A host without one.
#[derive(Debug)]
struct Broken;

#[async_trait]
impl Watchdog for Broken {
    async fn arm(&self, _: Call) -> Result<Duration> {
        let message = "there is no watchdog";
        Err(Error::new(ErrorKind::Unsupported, "test.watchdog", message))
    }

    async fn feed(&self) -> Result<()> {
        Ok(())
    }

    async fn disarm(&self, _: Call) -> Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_begun_on_a_host_whose_watchdog_is_not_armed() {
    let mut ground = ground();
    let world = ground.site.world.clone();
    let short = SimWatchdog::new(&world, world.hosts()[0], TTL);
    for watchdog in [Box::new(short) as Box<dyn Watchdog>, Box::new(Broken)] {
        let cluster = process_with(&mut ground, 0, Any(watchdog)).await;
        let vm = cluster.vms().create(spec("a")).await.unwrap();
        let view = vm.wait_for(Phase::Running, soon()).await;
        assert_eq!(view.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
        assert!(world.artefacts().domains.is_empty());
        let reason = cluster.nodes().get(&node(0)).await.unwrap().reason;
        assert!(reason.is_some_and(|r| r.contains("watchdog")));
        vm.delete().await.unwrap().wait(soon()).await.unwrap();
        cluster.shutdown(soon()).await.unwrap();
    }
}

#[derive(Debug)]
struct Any(Box<dyn Watchdog>);

#[async_trait]
impl Watchdog for Any {
    async fn arm(&self, call: Call) -> Result<Duration> {
        self.0.arm(call).await
    }

    async fn feed(&self) -> Result<()> {
        self.0.feed().await
    }

    async fn disarm(&self, call: Call) -> Result<()> {
        self.0.disarm(call).await
    }
}
