//! `events`.

use futures::StreamExt;
use futures::stream::BoxStream;

use super::{Ability, GuestAct, HypervisorFixture, Subject};
use crate::driver::{DomainId, DomainState, GuestEvent, HypervisorEvent, StopMode};

type Events = BoxStream<'static, HypervisorEvent>;

/// Reads on until a domain's event comes.
pub(super) async fn wait_for(
    s: &Subject<'_>,
    events: &mut Events,
    id: DomainId,
    event: &GuestEvent,
) {
    let wait = async {
        while let Some(next) = events.next().await {
            if next.domain == id && next.event == *event {
                return;
            }
        }
        panic!("the events ended before {event:?} of {id}");
    };
    s.soon(&format!("{event:?} of {id}"), wait).await;
}

/// Reads on until an event comes at which the domain is in a state.
async fn wait_for_state(
    s: &Subject<'_>,
    events: &mut Events,
    id: DomainId,
    wanted: impl Fn(&DomainState) -> bool,
) {
    loop {
        wait_for(s, events, id, &GuestEvent::StateChanged).await;
        if wanted(&s.state(id).await) {
            return;
        }
    }
}

/// Each change of state is pushed, and inspect shows the new state when its event has come.
pub async fn event_tells_each_change_of_state(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let id = s.defined().await.id;
    let mut events = s.hypervisor.events();
    s.start(id).await;
    wait_for_state(&s, &mut events, id, |state| *state == DomainState::Paused).await;
    s.resume(id).await;
    wait_for_state(&s, &mut events, id, |state| *state == DomainState::Running).await;
    s.pause(id).await;
    wait_for_state(&s, &mut events, id, |state| *state == DomainState::Paused).await;
    s.kill(id).await;
    wait_for_state(&s, &mut events, id, |state| {
        matches!(state, DomainState::Ended(_))
    })
    .await;
}

/// The end of a guest that was asked is pushed.
pub async fn event_tells_that_an_asked_guest_ended(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    if !s.can(Ability::PowerButton) {
        return;
    }
    let id = s.booted().await.id;
    let mut events = s.hypervisor.events();
    s.stop(id, StopMode::Shutdown).await;
    wait_for_state(&s, &mut events, id, |state| {
        matches!(state, DomainState::Ended(_))
    })
    .await;
}

/// The end of a guest that ended by itself is pushed.
pub async fn event_tells_that_a_guest_ended_by_itself(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    if !s.can(Ability::Guest(GuestAct::PowerOff)) {
        return;
    }
    let id = s.booted().await.id;
    let mut events = s.hypervisor.events();
    fixture.guest_does(id, GuestAct::PowerOff).await;
    wait_for_state(&s, &mut events, id, |state| {
        matches!(state, DomainState::Ended(_))
    })
    .await;
}

/// Guests that were started before the driver was opened anew have events too.
pub async fn event_tells_of_adopted_domains(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let id = s.running().await.id;
    let s = s.reopen().await;
    let mut events = s.hypervisor.events();
    s.pause(id).await;
    wait_for_state(&s, &mut events, id, |state| *state == DomainState::Paused).await;
}

/// Each reader gets every event.
pub async fn events_reach_every_reader(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let id = s.defined().await.id;
    let (mut first, mut second) = (s.hypervisor.events(), s.hypervisor.events());
    s.start(id).await;
    for events in [&mut first, &mut second] {
        wait_for(&s, events, id, &GuestEvent::StateChanged).await;
    }
    // One that goes does not end the other.
    drop(first);
    s.resume(id).await;
    wait_for_state(&s, &mut second, id, |state| *state == DomainState::Running).await;
}

/// Events name the domain that they are about.
pub async fn events_name_their_domain(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let (first, second) = (s.defined().await.id, s.defined().await.id);
    let mut events = s.hypervisor.events();
    s.start(second).await;
    wait_for_state(&s, &mut events, second, |state| {
        *state == DomainState::Paused
    })
    .await;
    s.start(first).await;
    wait_for_state(&s, &mut events, first, |state| {
        *state == DomainState::Paused
    })
    .await;
}
