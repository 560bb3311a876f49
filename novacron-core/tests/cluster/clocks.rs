//! Processes whose hosts' clocks are wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use novacron_core::cluster::ListRequest;
use novacron_core::model::{MemberId, Role};
use novacron_core::store::Store as _;
use novacron_core::{Clock, Cluster, Phase, TimerClock, Timestamp};
use tokio::time::Instant;

use crate::ground::{Ground, TTL, node};
use crate::{Changes, soon, spec};

/// A clock that can be set.
#[derive(Clone, Debug)]
struct Set {
    right: TimerClock,
    /// Seconds.
    ahead: Arc<AtomicI64>,
}

impl Clock for Set {
    fn now(&self) -> Timestamp {
        let ahead = self.ahead.load(Ordering::Relaxed);
        let by = Duration::from_secs(ahead.unsigned_abs());
        match ahead {
            0.. => self.right.now().plus(by),
            _ => self.right.now().minus(by),
        }
    }
}

const HOUR: Duration = Duration::from_secs(3600);

/// What is told of a process's clock, once something else is told than `before`.
async fn told(cluster: &Cluster, member: MemberId, before: Option<i64>) -> Option<i64> {
    let mut changes = Changes::of(cluster).await;
    loop {
        let members = cluster.members().list(&ListRequest::new()).await.unwrap();
        let found = members.items.iter().find(|m| m.id == member).unwrap();
        if found.clock_off_secs != before {
            return found.clock_off_secs;
        }
        changes.next().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_an_hour_off_is_told_and_hurts_nothing() {
    let mut ground = Ground::new(4);
    let right = ground.clock;
    let (leader, _) = ground.process(Role::Both, &[0]).await;
    ground.clock = TimerClock::starting_at(right.now().plus(HOUR));
    let (ahead, _) = ground.process(Role::Owner, &[1]).await;
    ground.clock = TimerClock::starting_at(right.now().minus(HOUR));
    let (behind, _) = ground.process(Role::Both, &[2]).await;
    // Less than twice the time to live: it may as well be the way of the message.
    ground.clock = TimerClock::starting_at(right.now().plus(TTL));
    let (near, _) = ground.process(Role::Owner, &[3]).await;

    let me = |cluster: &Cluster| cluster.members().me();
    let fast = told(&leader, me(&ahead), None).await.unwrap();
    let slow = told(&leader, me(&behind), None).await.unwrap();
    assert!((3590..=3610).contains(&fast), "{fast}");
    assert!((-3610..=-3590).contains(&slow), "{slow}");

    for (n, cluster) in [&leader, &ahead, &behind, &near].into_iter().enumerate() {
        let vm = cluster
            .vms()
            .create(spec(&format!("vm-{n}")))
            .await
            .unwrap();
        vm.wait_for(Phase::Running, soon()).await.unwrap();
        let stop = vm.stop().await.unwrap();
        stop.wait(soon()).await.unwrap();
    }
    let members = near.members().list(&ListRequest::new()).await.unwrap();
    let named = members.items.iter().filter(|m| m.clock_off_secs.is_some());
    assert_eq!(named.count(), 2, "{members:?}");

    // Who leads next tells what it sees by its own clock.
    leader.shutdown(soon()).await.unwrap();
    assert_eq!(told(&behind, me(&behind), Some(slow)).await, None);
    let further = told(&behind, me(&ahead), Some(fast)).await.unwrap();
    assert!((7190..=7210).contains(&further), "{further}");
    let hour = told(&behind, me(&near), None).await.unwrap();
    assert!((3600..=3620).contains(&hour), "{hour}");
}

#[tokio::test(start_paused = true)]
#[expect(clippy::disallowed_methods, reason = "the test is the clock")]
async fn the_time_of_a_process_that_is_gone_is_forgotten_with_it() {
    let mut ground = Ground::new(0);
    let (stays, _) = ground.process(Role::Both, &[]).await;
    let (leaves, _) = ground.process(Role::Both, &[]).await;
    let times = async || ground.store.beats("clock/").await.unwrap().len();
    assert_eq!(times().await, 2);
    leaves.shutdown(soon()).await.unwrap();
    tokio::time::sleep(HOUR).await;
    while times().await > 1 {
        tokio::time::sleep(TTL).await;
    }
    assert!(stays.members().leads());
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_by_an_hour_delays_nothing() {
    for secs in [-3600, 3600] {
        let mut ground = Ground::new(2);
        let clock = Set {
            right: ground.clock,
            ahead: Arc::default(),
        };
        let (builder, _) = ground.builder(Role::Both, &[0]);
        let leader = builder.clock(clock.clone()).build().await.unwrap();
        let (other, _) = ground.process(Role::Owner, &[1]).await;
        leader.nodes().wait_available(soon()).await.unwrap();
        let vm = leader
            .vms()
            .create(spec("web").node(node(0)))
            .await
            .unwrap();
        vm.wait_for(Phase::Running, soon()).await.unwrap();

        clock.ahead.store(secs, Ordering::Relaxed);
        let set = Instant::now();
        let me = other.members().me();
        drop(other);
        let mut changes = Changes::of(&leader).await;
        loop {
            let members = leader.members().list(&ListRequest::new()).await.unwrap();
            if members.items.iter().any(|m| m.id == me && !m.is_alive()) {
                break;
            }
            changes.next().await;
        }
        // Its lease had to run out, and the leader to be sure that the store is well.
        assert!(set.elapsed() < TTL * 3, "{:?}", set.elapsed());
        vm.stop().await.unwrap().wait(soon()).await.unwrap();
    }
}
