//! How a decision comes about: from the view alone, told as it was, undone by nothing.

use std::collections::BTreeMap;

use rand::seq::SliceRandom;

use super::SchedulerFixture;
use super::subject::{
    Account, VIEW, answers, any_request, burst, cluster, decide, each_seed, host, node, request,
};
use crate::driver::HostChange;
use crate::model::MiB;
use crate::store::Revision;

/// The same view and the same burst give the same answers, to the last word.
pub fn same_view_and_requests_give_the_same_answers(fixture: &dyn SchedulerFixture) {
    each_seed(|rng| {
        let (hosts, burst) = (cluster(rng), burst(rng));
        let first = answers(&mut *fixture.scheduler().open(hosts.clone(), VIEW), &burst);
        let second = answers(&mut *fixture.scheduler().open(hosts, VIEW), &burst);
        assert_eq!(first, second);
    });
}

/// The order in which hosts are told changes no answer.
pub fn order_of_hosts_is_irrelevant(fixture: &dyn SchedulerFixture) {
    let scheduler = fixture.scheduler();
    each_seed(|rng| {
        let (hosts, burst) = (cluster(rng), burst(rng));
        let mut mixed = hosts.clone();
        mixed.shuffle(rng);
        let straight = answers(&mut *scheduler.open(hosts, VIEW), &burst);
        let mixed_up = answers(&mut *scheduler.open(mixed.clone(), VIEW), &burst);
        assert_eq!(straight, mixed_up);
        let mut told_later = scheduler.open(Vec::new(), Revision(1));
        let changes = mixed.into_iter().map(HostChange::Set).collect();
        told_later.apply(changes, VIEW);
        assert_eq!(straight, answers(&mut *told_later, &burst));
    });
}

/// What was decided before changes an answer only by what it booked: a placer that has been at work and a fresh one
/// over the same view agree.
pub fn history_changes_no_answer(fixture: &dyn SchedulerFixture) {
    let scheduler = fixture.scheduler();
    each_seed(|rng| {
        let hosts = cluster(rng);
        let mut account = Account::new(fixture, &hosts);
        let mut placer = scheduler.open(hosts, VIEW);
        for request in burst(rng) {
            let fresh = scheduler.open(account.hosts(), VIEW).decide(&request);
            assert_eq!(placer.decide(&request), fresh, "{request:?}");
            if let Ok(decision) = fresh {
                account.book(&request, &super::subject::winner(&decision));
            }
        }
    });
}

/// A verdict is none exactly for the hosts that may take the request; so a request is placed if there is one, on one.
pub fn explain_agrees_with_decide(fixture: &dyn SchedulerFixture) {
    let scheduler = fixture.scheduler();
    each_seed(|rng| {
        let hosts = cluster(rng);
        let account = Account::new(fixture, &hosts);
        let placer = scheduler.open(hosts.clone(), VIEW);
        for request in burst(rng) {
            let verdicts: BTreeMap<_, _> = hosts
                .iter()
                .map(|h| (h.node.clone(), placer.explain(&request, &h.node)))
                .collect();
            match decide(&mut *placer.fork(), &request) {
                Some(node) => assert_eq!(verdicts[&node], None, "{request:?} on {node}"),
                None => assert!(verdicts.values().all(Option::is_some), "{verdicts:?}"),
            }
            for host in &hosts {
                let fits = account.fits(&request, &host.node);
                assert_eq!(verdicts[&host.node].is_none(), fits, "{}", host.node);
            }
            assert!(placer.explain(&request, &node(999)).is_some());
        }
    });
}

/// A verdict follows what is booked.
pub fn explain_follows_what_is_booked(fixture: &dyn SchedulerFixture) {
    let mut placer = fixture.scheduler().open(vec![host(0, 8, 1_000)], VIEW);
    assert_eq!(placer.explain(&request(1, 1_000), &node(0)), None);
    placer.decide(&request(1, 1)).unwrap();
    assert!(placer.explain(&request(1, 1_000), &node(0)).is_some());
    assert_eq!(placer.explain(&request(1, 999), &node(0)), None);
}

/// A rejection counts each host once, under the rule that its verdict names.
pub fn rejections_count_every_host(fixture: &dyn SchedulerFixture) {
    let scheduler = fixture.scheduler();
    each_seed(|rng| {
        let hosts = cluster(rng);
        let mut placer = scheduler.open(hosts.clone(), VIEW);
        let mut absurd = any_request(rng);
        absurd.memory = MiB(1 << 40);
        let rejected = placer.decide(&absurd).unwrap_err();
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for host in &hosts {
            let rule = placer.explain(&absurd, &host.node).unwrap();
            *counts.entry(rule).or_default() += 1;
        }
        assert_eq!(rejected.rejections, counts);
    });
}

/// What is tried on a fork, and told to it, changes nothing in the original; the fork begins as the original is.
pub fn fork_does_not_change_the_original(fixture: &dyn SchedulerFixture) {
    let scheduler = fixture.scheduler();
    each_seed(|rng| {
        let (hosts, before, tried) = (cluster(rng), burst(rng), burst(rng));
        let mut placer = scheduler.open(hosts.clone(), VIEW);
        let mut twin = scheduler.open(hosts.clone(), VIEW);
        answers(&mut *placer, &before);
        answers(&mut *twin, &before);
        let mut fork = placer.fork();
        let on_fork = answers(&mut *fork, &tried);
        let gone = hosts.iter().map(|h| HostChange::Removed(h.node.clone()));
        fork.apply(gone.collect(), Revision(VIEW.0 + 1));
        assert_eq!(decide(&mut *fork, &request(1, 1)), None);
        let on_original = answers(&mut *placer, &tried);
        assert_eq!(on_original, on_fork, "the fork begins as the original is");
        assert_eq!(on_original, answers(&mut *twin, &tried));
    });
}

/// A host that is told anew is as told, whatever was booked on it; one that is removed takes nothing.
pub fn changes_are_taken(fixture: &dyn SchedulerFixture) {
    let mut placer = fixture.scheduler().open(vec![host(0, 8, 1_000)], VIEW);
    placer.decide(&request(1, 1_000)).unwrap();
    assert_eq!(decide(&mut *placer, &request(1, 1)), None);
    placer.apply(vec![HostChange::Set(host(0, 8, 1_000))], Revision(8));
    placer.decide(&request(1, 600)).unwrap();
    let larger = vec![HostChange::Set(host(1, 8, 2_000))];
    placer.apply(larger, Revision(9));
    assert_eq!(decide(&mut *placer, &request(1, 1_500)), Some(node(1)));
    let gone = [0, 1].map(|n| HostChange::Removed(node(n)));
    placer.apply(gone.to_vec(), Revision(10));
    assert_eq!(decide(&mut *placer, &request(1, 1)), None);
    assert!(placer.explain(&request(1, 1), &node(0)).is_some());
    // One that never was can be removed.
    placer.apply(vec![HostChange::Removed(node(77))], Revision(11));
}

/// A request that was turned down books nothing.
pub fn rejected_request_books_nothing(fixture: &dyn SchedulerFixture) {
    let mut placer = fixture.scheduler().open(vec![host(0, 8, 1_000)], VIEW);
    for _ in 0..3 {
        assert_eq!(decide(&mut *placer, &request(1, 1_001)), None);
    }
    placer.decide(&request(1, 1_000)).unwrap();
}
