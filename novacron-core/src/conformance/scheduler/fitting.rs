//! What may be chosen: capacity, wishes, capabilities.

use super::SchedulerFixture;
use super::subject::{
    Account, VIEW, any_request, burst, cluster, decide, each_seed, host, node, request, winner,
};
use crate::driver::{HostChange, PlacementRequest};
use crate::model::MiB;

/// A burst of requests, each booked, never takes more than there is, nor a host that may not take it.
pub fn capacity_is_never_exceeded(fixture: &dyn SchedulerFixture) {
    let scheduler = fixture.scheduler();
    each_seed(|rng| {
        let hosts = cluster(rng);
        let mut account = Account::new(fixture, &hosts);
        let mut placer = scheduler.open(hosts, VIEW);
        for request in burst(rng) {
            if let Some(node) = decide(&mut *placer, &request) {
                assert!(account.fits(&request, &node), "{request:?} on {node}");
                account.book(&request, &node);
            }
        }
    });
}

/// A request that fits on a host is placed.
pub fn feasible_request_is_placed(fixture: &dyn SchedulerFixture) {
    let scheduler = fixture.scheduler();
    each_seed(|rng| {
        let hosts = cluster(rng);
        let mut account = Account::new(fixture, &hosts);
        let mut placer = scheduler.open(hosts.clone(), VIEW);
        for request in burst(rng) {
            let feasible = hosts.iter().any(|h| account.fits(&request, &h.node));
            let chosen = decide(&mut *placer, &request);
            assert_eq!(chosen.is_some(), feasible, "{request:?}");
            if let Some(node) = chosen {
                account.book(&request, &node);
            }
        }
    });
}

/// Equal requests fill a cluster to the last place, and no further.
pub fn burst_fills_the_cluster(fixture: &dyn SchedulerFixture) {
    let hosts = (0..5).map(|n| host(n, 64, 1_000)).collect();
    let mut placer = fixture.scheduler().open(hosts, VIEW);
    for _ in 0..5 * 4 {
        placer.decide(&request(1, 250)).unwrap();
    }
    assert_eq!(decide(&mut *placer, &request(1, 250)), None);
}

/// A request for a node goes there or nowhere.
pub fn only_is_honoured(fixture: &dyn SchedulerFixture) {
    let hosts: Vec<_> = (0..5).map(|n| host(n, 8, 1_000)).collect();
    let mut placer = fixture.scheduler().open(hosts, VIEW);
    let only = PlacementRequest {
        only: Some(node(3)),
        prefer: Some(node(1)),
        ..request(1, 600)
    };
    assert_eq!(decide(&mut *placer, &only), Some(node(3)));
    assert_eq!(decide(&mut *placer, &only), None, "it is full");
    let unknown = PlacementRequest {
        only: Some(node(99)),
        ..request(1, 1)
    };
    assert_eq!(decide(&mut *placer, &unknown), None);
}

/// A request goes only where its volumes are reached.
pub fn reachable_is_honoured(fixture: &dyn SchedulerFixture) {
    let hosts: Vec<_> = (0..5).map(|n| host(n, 8, 1_000)).collect();
    let mut placer = fixture.scheduler().open(hosts, VIEW);
    let limited = |nodes: &[usize]| PlacementRequest {
        reachable: Some(nodes.iter().map(|n| node(*n)).collect()),
        ..request(1, 600)
    };
    let first = decide(&mut *placer, &limited(&[2, 4])).unwrap();
    let second = decide(&mut *placer, &limited(&[2, 4])).unwrap();
    let mut both = [first, second];
    both.sort_unstable();
    assert_eq!(both, [node(2), node(4)]);
    assert_eq!(decide(&mut *placer, &limited(&[2, 4])), None);
    assert_eq!(decide(&mut *placer, &limited(&[])), None);
}

/// A request goes to no node that it is to be kept apart from, even if it wishes for it or asks for no other.
pub fn avoid_is_honoured(fixture: &dyn SchedulerFixture) {
    let hosts: Vec<_> = (0..3).map(|n| host(n, 8, 1_000)).collect();
    let mut placer = fixture.scheduler().open(hosts, VIEW);
    let apart = |nodes: &[usize]| PlacementRequest {
        avoid: nodes.iter().map(|n| node(*n)).collect(),
        prefer: Some(node(0)),
        ..request(1, 100)
    };
    assert_eq!(decide(&mut *placer, &apart(&[0, 2])), Some(node(1)));
    assert_eq!(decide(&mut *placer, &apart(&[0, 1, 2])), None);
    let only = PlacementRequest {
        only: Some(node(0)),
        ..apart(&[0])
    };
    assert_eq!(decide(&mut *placer, &only), None);
    assert_eq!(decide(&mut *placer, &apart(&[1])), Some(node(0)));
}

/// A wish is fulfilled if everything fits there, and passed over if not.
pub fn prefer_is_honoured_where_it_fits(fixture: &dyn SchedulerFixture) {
    let scheduler = fixture.scheduler();
    each_seed(|rng| {
        let hosts = cluster(rng);
        let account = Account::new(fixture, &hosts);
        let mut request = any_request(rng);
        request.prefer = Some(hosts[0].node.clone());
        let chosen = decide(&mut *scheduler.open(hosts.clone(), VIEW), &request);
        if account.fits(&request, &hosts[0].node) {
            assert_eq!(chosen, request.prefer);
        } else {
            assert_ne!(chosen, request.prefer);
        }
    });
}

/// A host that is not open takes nothing, even if it is asked for; open again, it does.
pub fn closed_host_takes_nothing(fixture: &dyn SchedulerFixture) {
    let mut closed = host(0, 8, 1_000);
    closed.open = false;
    let mut placer = fixture.scheduler().open(vec![closed.clone()], VIEW);
    let only = PlacementRequest {
        only: Some(node(0)),
        ..request(1, 1)
    };
    assert_eq!(decide(&mut *placer, &request(1, 1)), None);
    assert_eq!(decide(&mut *placer, &only), None);
    closed.open = true;
    placer.apply(vec![HostChange::Set(closed)], VIEW);
    assert_eq!(decide(&mut *placer, &only), Some(node(0)));
}

/// A guest that needs more vCPUs than one guest can have is not placed, whatever else is free.
pub fn vcpus_of_one_guest_are_limited(fixture: &dyn SchedulerFixture) {
    let mut small = host(0, 64, 1_000);
    small.capabilities.max_vcpus = 4;
    let mut placer = fixture.scheduler().open(vec![small], VIEW);
    assert_eq!(decide(&mut *placer, &request(5, 1)), None);
    assert_eq!(decide(&mut *placer, &request(4, 1)), Some(node(0)));
}

/// What exceeds every host is turned down, also when it exceeds reason.
pub fn absurd_request_is_rejected(fixture: &dyn SchedulerFixture) {
    let mut used = host(0, 64, 1_000);
    used.used_memory = MiB(500);
    let mut placer = fixture.scheduler().open(vec![used], VIEW);
    for absurd in [
        request(u32::MAX, 1),
        request(1, u64::MAX / 2),
        request(u32::MAX, u64::MAX / 2),
        request(1, u64::MAX),
        request(u32::MAX, u64::MAX),
    ] {
        assert_eq!(decide(&mut *placer, &absurd), None, "{absurd:?}");
    }
    assert!(placer.decide(&request(1, 500)).is_ok());
}

/// One more host, of any kind, never makes a request infeasible that was feasible.
pub fn another_host_does_not_make_a_request_infeasible(fixture: &dyn SchedulerFixture) {
    let scheduler = fixture.scheduler();
    each_seed(|rng| {
        let (mut hosts, request) = (cluster(rng), any_request(rng));
        let without = decide(&mut *scheduler.open(hosts.clone(), VIEW), &request);
        let mut more = cluster(rng).remove(0);
        more.node = node(500);
        hosts.push(more);
        let with = decide(&mut *scheduler.open(hosts, VIEW), &request);
        assert!(without.is_none() || with.is_some(), "{request:?}");
    });
}

/// A cluster without nodes takes nothing.
pub fn empty_cluster_takes_nothing(fixture: &dyn SchedulerFixture) {
    let mut placer = fixture.scheduler().open(Vec::new(), VIEW);
    assert_eq!(decide(&mut *placer, &request(1, 1)), None);
}

/// A decision says which view and seed it was made from.
pub fn decision_names_its_view_and_seed(fixture: &dyn SchedulerFixture) {
    let mut placer = fixture.scheduler().open(vec![host(0, 8, 1_000)], VIEW);
    let asked = PlacementRequest {
        seed: 42,
        ..request(1, 1)
    };
    let decision = placer.decide(&asked).unwrap();
    assert_eq!((decision.view, decision.seed), (VIEW, 42));
    assert!(!decision.scheduler.is_empty());
    let later = crate::store::Revision(VIEW.0 + 1);
    placer.apply(Vec::new(), later);
    assert_eq!(placer.decide(&asked).unwrap().view, later);
    assert_eq!(winner(&decision), node(0));
}
