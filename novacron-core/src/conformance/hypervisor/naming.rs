//! `probe`, `define`, `list`, `inspect`, `undefine`.

use super::subject::{name, next_epoch};
use super::{Ability, HypervisorFixture, Subject};
use crate::ErrorKind;
use crate::conformance::refusal;
use crate::driver::{DomainId, DomainOwner, DomainState};
use crate::model::ClusterId;

/// A probe tells the same host and boot each time, also after the driver was opened anew, and a host that can run one
/// of the fixture's guests.
pub async fn probe_tells_the_host(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let first = s.hypervisor.probe(s.call()).await.unwrap();
    assert!(!first.boot_id.is_empty(), "a boot id");
    let spec = fixture.spec(s.fresh()).await;
    let can = &first.capabilities;
    assert!(
        can.cpus > 0 && can.max_vcpus >= spec.hardware.vcpus,
        "{can:?}"
    );
    assert!(can.memory >= spec.hardware.memory, "{can:?}");
    let s = s.reopen().await;
    let second = s.hypervisor.probe(s.call()).await.unwrap();
    assert_eq!((second.host, second.boot_id), (first.host, first.boot_id));
}

/// The driver has exactly the accessors that the fixture does not say it lacks.
pub async fn accessors_are_those_that_are_declared(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    s.hot_plug();
    s.disk_pivot();
    s.guest_agent();
    s.declared(Ability::Consoles, s.hypervisor.consoles());
    s.screens();
    s.diagnostics();
}

/// A host without domains lists none of NovaCron's.
pub async fn empty_host_lists_nothing(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    assert_eq!(s.listed().await, []);
}

/// A defined domain is listed, and nothing runs.
pub async fn define_makes_it_listed_and_nothing_run(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let spec = s.defined().await;
    assert_eq!(s.state(spec.id).await, DomainState::Defined);
    assert_eq!(s.listed().await, [spec.id]);
}

/// A second identical define changes nothing.
pub async fn define_again_changes_nothing(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let spec = s.defined().await;
    let before = s.inspect(spec.id).await;
    s.define_as(&spec).await;
    assert_eq!(s.inspect(spec.id).await, before);
    assert_eq!(s.listed().await, [spec.id]);
}

/// A define with another spec replaces that of a domain which has not been started.
pub async fn define_with_another_spec_replaces_it(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let mut spec = s.defined().await;
    let disk = fixture.disk("added").await;
    spec.disks.push(disk.clone());
    s.define_as(&spec).await;
    let domain = s.inspect(spec.id).await.unwrap();
    assert_eq!(domain.state, DomainState::Defined);
    assert!(domain.disks.contains(&disk.volume), "{domain:?}");
    spec.disks.pop();
    s.define_as(&spec).await;
    let domain = s.inspect(spec.id).await.unwrap();
    assert!(!domain.disks.contains(&disk.volume), "{domain:?}");
}

/// An identical define of a domain that is paused, runs or has ended changes nothing.
pub async fn define_of_a_started_domain_changes_nothing(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let spec = s.paused().await;
    s.define_as(&spec).await;
    assert_eq!(s.state(spec.id).await, DomainState::Paused);
    s.resume(spec.id).await;
    s.define_as(&spec).await;
    assert_eq!(s.state(spec.id).await, DomainState::Running);
    s.kill(spec.id).await;
    let ended = s.state(spec.id).await;
    s.define_as(&spec).await;
    assert_eq!(s.state(spec.id).await, ended);
}

/// Another epoch of a running VM can be named; it is a domain apart.
pub async fn define_of_another_epoch_is_apart(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let first = s.running().await.id;
    let second = s.define(next_epoch(first)).await.id;
    assert_eq!(s.state(first).await, DomainState::Running);
    assert_eq!(s.state(second).await, DomainState::Defined);
    assert_eq!(s.listed().await, [first, second]);
    s.undefine(second).await;
    assert_eq!(s.listed().await, [first]);
    assert_eq!(s.state(first).await, DomainState::Running);
}

/// Inspect of a domain that is not defined is none, whether its VM is known or not.
pub async fn inspect_of_nothing_is_none(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    assert_eq!(s.inspect(s.fresh()).await, None);
    let id = s.defined().await.id;
    assert_eq!(s.inspect(next_epoch(id)).await, None);
    let cluster = ClusterId::generate(crate::Timestamp::from_millis(1), &s.ids);
    assert_eq!(s.inspect(DomainId { cluster, ..id }).await, None);
}

/// Inspect shows whose a domain is, its volumes and its ports.
pub async fn inspect_shows_owner_disks_and_nics(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let spec = s.defined().await;
    for start in [false, true] {
        if start {
            s.start(spec.id).await;
        }
        let domain = s.inspect(spec.id).await.unwrap();
        assert_eq!(domain.owner, DomainOwner::NovaCron(spec.id));
        let volumes: Vec<_> = spec.disks.iter().map(|d| d.volume).collect();
        let ports: Vec<_> = spec.nics.iter().map(|n| n.port).collect();
        assert_eq!(domain.disks, volumes, "started: {start}");
        assert_eq!(domain.nics, ports, "started: {start}");
    }
}

/// A list has every domain in every state, each as inspect shows it.
pub async fn list_is_complete(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let defined = s.defined().await.id;
    let paused = s.paused().await.id;
    let running = s.running().await.id;
    let ended = s.running().await.id;
    s.kill(ended).await;
    let mut all = vec![defined, paused, running, ended];
    all.sort_unstable();
    assert_eq!(s.listed().await, all);
    for domain in s.list().await {
        if let Some(id) = name(&domain) {
            assert_eq!(s.inspect(id).await, Some(domain));
        }
    }
}

/// Domains of another cluster are listed under its name and have a life of their own.
pub async fn list_tells_clusters_apart(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let ours = s.defined().await.id;
    let cluster = ClusterId::generate(crate::Timestamp::from_millis(1), &s.ids);
    let theirs = s
        .define(DomainId {
            cluster,
            ..s.fresh()
        })
        .await
        .id;
    let mut both = vec![ours, theirs];
    both.sort_unstable();
    assert_eq!(s.listed().await, both);
    s.undefine(ours).await;
    assert_eq!(s.listed().await, [theirs]);
}

/// Domains of others are listed as foreign, and nothing that NovaCron does to its own touches them.
pub async fn foreign_domains_are_listed_and_never_touched(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    if !s.can(Ability::Foreign) {
        return;
    }
    let foreign = fixture.add_foreign().await;
    let spec = s.running().await;
    let is_listed = |list: Vec<crate::driver::Domain>| {
        let owner = DomainOwner::Foreign(foreign.clone());
        list.iter().any(|d| d.owner == owner)
    };
    assert!(is_listed(s.list().await), "{foreign} is listed");
    s.kill(spec.id).await;
    s.undefine(spec.id).await;
    let s = s.reopen().await;
    assert!(is_listed(s.list().await), "{foreign} is listed");
    assert!(fixture.foreign_runs(&foreign).await, "{foreign} runs on");
}

/// After an undefine nothing is left; a second one changes nothing.
pub async fn undefine_leaves_nothing(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let id = s.defined().await.id;
    for _ in 0..2 {
        s.undefine(id).await;
        assert_eq!(s.inspect(id).await, None);
        assert_eq!(s.listed().await, []);
    }
}

/// Undefine of a domain that never was is no error.
pub async fn undefine_of_nothing_changes_nothing(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let other = s.defined().await.id;
    s.undefine(s.fresh()).await;
    assert_eq!(s.listed().await, [other]);
}

/// A domain that is paused or runs is not undefined.
pub async fn undefine_refuses_a_started_domain(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let id = s.paused().await.id;
    for state in [DomainState::Paused, DomainState::Running] {
        if state == DomainState::Running {
            s.resume(id).await;
        }
        let refused = s.hypervisor.undefine(s.call(), id).await;
        let kind = refusal("undefine of a started domain", refused);
        assert_eq!(kind, ErrorKind::FailedPrecondition, "{state:?}");
        assert_eq!(s.state(id).await, state);
    }
}

/// A domain that has ended can be undefined, and then nothing is left.
pub async fn undefine_of_an_ended_domain_leaves_nothing(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let id = s.running().await.id;
    s.kill(id).await;
    s.undefine(id).await;
    assert_eq!(s.inspect(id).await, None);
    let s = s.reopen().await;
    assert_eq!(s.listed().await, []);
}

/// What was defined is there when the driver is opened anew.
pub async fn reopened_driver_finds_what_was_defined(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let id = s.defined().await.id;
    let before = s.inspect(id).await;
    let s = s.reopen().await;
    assert_eq!(s.inspect(id).await, before);
    s.start(id).await;
    assert_eq!(s.state(id).await, DomainState::Paused);
}
