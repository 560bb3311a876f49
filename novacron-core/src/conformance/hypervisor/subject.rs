//! A hypervisor under test, with the few calls that nearly every behaviour makes.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use super::{Ability, HypervisorFixture};
use crate::conformance::within;
use crate::driver::{
    Call, Diagnostics, DiskPivot, Domain, DomainId, DomainOwner, DomainSpec, DomainState,
    GuestAgent, HotPlug, Hypervisor, Screens, StopMode, StopReport,
};
use crate::model::{ClusterId, Epoch, Exit, VmId};
use crate::time::{Deadline, SeededIds, Timestamp};

/// A hypervisor under test.
pub(super) struct Subject<'f> {
    pub(super) fixture: &'f dyn HypervisorFixture,
    pub(super) hypervisor: Arc<dyn Hypervisor>,
    pub(super) cluster: ClusterId,
    pub(super) ids: SeededIds,
}

const NO_TIME: Timestamp = Timestamp::from_millis(0);

impl<'f> Subject<'f> {
    pub(super) async fn open(fixture: &'f dyn HypervisorFixture) -> Self {
        let ids = SeededIds::from_os();
        Self {
            hypervisor: within(fixture.patience(), "open", fixture.open()).await,
            fixture,
            cluster: ClusterId::generate(NO_TIME, &ids),
            ids,
        }
    }

    /// Ends the driver and opens it anew, as after a restart of the host application.
    pub(super) async fn reopen(self) -> Self {
        self.reopen_after(std::future::ready(())).await
    }

    /// The same, with something that happens while no driver looks.
    pub(super) async fn reopen_after(self, meanwhile: impl Future<Output = ()>) -> Self {
        let Self {
            fixture,
            hypervisor,
            cluster,
            ids,
        } = self;
        within(fixture.patience(), "close", fixture.close(hypervisor)).await;
        within(fixture.patience(), "what happens meanwhile", meanwhile).await;
        Self {
            hypervisor: within(fixture.patience(), "open", fixture.open()).await,
            fixture,
            cluster,
            ids,
        }
    }

    /// Whether the fixture says that a behaviour can be looked at.
    pub(super) fn can(&self, ability: Ability) -> bool {
        !self.fixture.lacks().contains(&ability)
    }

    /// The accessor, which must be there exactly if the fixture says so.
    pub(super) fn hot_plug(&self) -> Option<&dyn HotPlug> {
        self.declared(Ability::HotPlug, self.hypervisor.hot_plug())
    }

    pub(super) fn disk_pivot(&self) -> Option<&dyn DiskPivot> {
        self.declared(Ability::DiskPivot, self.hypervisor.disk_pivot())
    }

    pub(super) fn diagnostics(&self) -> Option<&dyn Diagnostics> {
        self.declared(Ability::Diagnostics, self.hypervisor.diagnostics())
    }

    pub(super) fn screens(&self) -> Option<&dyn Screens> {
        self.declared(Ability::Screens, self.hypervisor.screens())
    }

    pub(super) fn guest_agent(&self) -> Option<&dyn GuestAgent> {
        self.declared(Ability::GuestAgent, self.hypervisor.guest_agent())
    }

    pub(super) fn declared<T>(&self, ability: Ability, accessor: Option<T>) -> Option<T> {
        assert_eq!(
            accessor.is_some(),
            self.can(ability),
            "what the fixture says it lacks and the driver's accessor differ: {ability:?}"
        );
        accessor
    }

    pub(super) fn call(&self) -> Call {
        Call::within(self.fixture.patience())
    }

    /// A name that was never used.
    pub(super) fn fresh(&self) -> DomainId {
        DomainId {
            cluster: self.cluster,
            vm: VmId::generate(NO_TIME, &self.ids),
            epoch: Epoch(1),
        }
    }

    pub(super) async fn soon<T>(&self, what: &str, future: impl Future<Output = T>) -> T {
        within(self.fixture.patience() * 2, what, future).await
    }

    pub(super) async fn define(&self, id: DomainId) -> DomainSpec {
        let spec = self.soon("a spec", self.fixture.spec(id)).await;
        assert_eq!(
            spec.id, id,
            "the fixture's spec has the id that was asked for"
        );
        self.define_as(&spec).await;
        spec
    }

    pub(super) async fn define_as(&self, spec: &DomainSpec) {
        let define = self.hypervisor.define(self.call(), spec);
        self.soon("define", define).await.unwrap();
    }

    pub(super) async fn start(&self, id: DomainId) {
        let start = self.hypervisor.start(self.call(), id);
        self.soon("start", start).await.unwrap();
    }

    pub(super) async fn resume(&self, id: DomainId) {
        let resume = self.hypervisor.resume(self.call(), id);
        self.soon("resume", resume).await.unwrap();
    }

    pub(super) async fn pause(&self, id: DomainId) {
        let pause = self.hypervisor.pause(self.call(), id);
        self.soon("pause", pause).await.unwrap();
    }

    pub(super) async fn stop(&self, id: DomainId, mode: StopMode) -> StopReport {
        let stop = self.hypervisor.stop(self.call(), id, mode);
        self.soon("stop", stop).await.unwrap()
    }

    pub(super) async fn kill(&self, id: DomainId) {
        assert_eq!(self.stop(id, StopMode::Kill).await, StopReport::Ended);
    }

    pub(super) async fn undefine(&self, id: DomainId) {
        let undefine = self.hypervisor.undefine(self.call(), id);
        self.soon("undefine", undefine).await.unwrap();
    }

    /// A defined domain.
    pub(super) async fn defined(&self) -> DomainSpec {
        self.define(self.fresh()).await
    }

    /// A started domain, its vCPUs held.
    pub(super) async fn paused(&self) -> DomainSpec {
        let spec = self.defined().await;
        self.start(spec.id).await;
        spec
    }

    /// A running domain.
    pub(super) async fn running(&self) -> DomainSpec {
        let spec = self.paused().await;
        self.resume(spec.id).await;
        spec
    }

    /// A running domain whose guest has come up.
    pub(super) async fn booted(&self) -> DomainSpec {
        let spec = self.running().await;
        self.soon("the guest to come up", self.fixture.booted(spec.id))
            .await;
        spec
    }

    pub(super) async fn inspect(&self, id: DomainId) -> Option<Domain> {
        let inspect = self.hypervisor.inspect(self.call(), id);
        self.soon("inspect", inspect).await.unwrap()
    }

    pub(super) async fn state(&self, id: DomainId) -> DomainState {
        match self.inspect(id).await {
            Some(domain) => domain.state,
            None => panic!("domain {id} is not defined"),
        }
    }

    /// Waits for a state, as one who polls.
    pub(super) async fn reaches(
        &self,
        what: &str,
        id: DomainId,
        wanted: impl Fn(&DomainState) -> bool,
    ) -> DomainState {
        let mut state = self.state(id).await;
        let until = Deadline::after(self.fixture.patience());
        while !wanted(&state) {
            assert!(
                !until.remaining().is_zero(),
                "domain {id} does not become {what}: it is {state:?}"
            );
            pause(Duration::from_millis(20)).await;
            state = self.state(id).await;
        }
        state
    }

    /// How a domain ended, once it has.
    pub(super) async fn exit(&self, id: DomainId) -> Exit {
        let ended = |state: &DomainState| matches!(state, DomainState::Ended(_));
        match self.reaches("ended", id, ended).await {
            DomainState::Ended(exit) => exit,
            other => panic!("domain {id}: {other:?}"),
        }
    }

    pub(super) async fn list(&self) -> Vec<Domain> {
        let list = self.hypervisor.list(self.call());
        self.soon("list", list).await.unwrap()
    }

    /// The domains of NovaCron's that are listed, in order.
    pub(super) async fn listed(&self) -> Vec<DomainId> {
        let mut listed: Vec<_> = self.list().await.iter().filter_map(name).collect();
        listed.sort_unstable();
        listed
    }
}

/// A domain's name, if it is one of NovaCron's.
pub(super) fn name(domain: &Domain) -> Option<DomainId> {
    match domain.owner {
        DomainOwner::NovaCron(id) => Some(id),
        DomainOwner::Foreign(_) => None,
    }
}

/// Another start of the same VM.
pub(super) fn next_epoch(id: DomainId) -> DomainId {
    DomainId {
        epoch: Epoch(id.epoch.0 + 1),
        ..id
    }
}

/// A call whose time is over.
pub(super) fn too_late() -> Call {
    Call::within(Duration::ZERO)
}

#[expect(
    clippy::disallowed_methods,
    reason = "between two looks at a real guest"
)]
pub(super) async fn pause(duration: Duration) {
    tokio::time::sleep(duration).await;
}
