//! The fences that switch a machine's power, by BMCs that others wrote, on a machine that is a real guest.
#![allow(clippy::unwrap_used, reason = "to panic is to fail the test")]

#[path = "../common/mod.rs"]
mod common;
mod ipmi;
mod machine;
#[cfg(feature = "redfish")]
mod redfish;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use novacron_core::conformance::fence::{FenceAbility, FenceFixture, HostCondition};
use novacron_core::driver::{Call, Fence, FenceTarget};
use novacron_core::model::HostId;

use crate::machine::{Machine, NAME, PASSWORD};

/// A target; what is behind a BMC is not told by it.
fn target() -> FenceTarget {
    FenceTarget {
        node: "alpha".parse().unwrap(),
        host: HostId::from_uuid(uuid::Uuid::from_u128(1)),
        boot_id: "9f4b5b0c-0000-4000-8000-000000000000".to_owned(),
    }
}

fn call() -> Call {
    Call::within(common::SOON)
}

/// One kind of BMC, and the fences for it.
trait Kind: Send + Sync {
    /// The BMC of this machine.
    fn begin(machine: &mut Machine) -> Self;

    fn fence(&self) -> Arc<dyn Fence>;

    /// None if it cannot be told that it is another machine's.
    fn wrong(&self) -> Option<Arc<dyn Fence>>;

    fn broken(&self) -> Vec<Arc<dyn Fence>>;
}

/// The core's suite, for one kind.
struct Fixture<K> {
    up: Mutex<Option<(Machine, Arc<K>)>>,
}

impl<K> Fixture<K> {
    fn new() -> Self {
        Self {
            up: Mutex::default(),
        }
    }

    fn with<T>(&self, look: impl FnOnce(&Machine, &Arc<K>) -> T) -> T {
        let up = self.up.lock().unwrap();
        let (machine, kind) = up.as_ref().expect("it is up");
        look(machine, kind)
    }
}

impl<K> Drop for Fixture<K> {
    fn drop(&mut self) {
        if let (true, Ok(Some((machine, _)))) = (std::thread::panicking(), self.up.get_mut()) {
            machine.show_logs();
        }
    }
}

#[async_trait]
impl<K: Kind + 'static> FenceFixture for Fixture<K> {
    fn lacks(&self) -> BTreeSet<FenceAbility> {
        let tells = self
            .up
            .lock()
            .unwrap()
            .as_ref()
            .is_some_and(|(_, kind)| kind.wrong().is_some());
        let lacks = (!tells).then_some(FenceAbility::WrongHost);
        lacks.into_iter().collect()
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(20)
    }

    async fn host(&self, condition: HostCondition) -> FenceTarget {
        // On the test's own thread: what it starts ends with it.
        let mut machine = Machine::up();
        let kind = Arc::new(K::begin(&mut machine));
        match condition {
            HostCondition::Runs => {}
            HostCondition::StandsStill => machine.virsh(&["suspend", NAME]),
            HostCondition::Died => machine.virsh(&["destroy", NAME]),
        }
        *self.up.lock().unwrap() = Some((machine, kind));
        target()
    }

    fn fence(&self) -> Arc<dyn Fence> {
        self.with(|_, kind| kind.fence())
    }

    async fn runs(&self) -> bool {
        self.with(|machine, _| !machine.guests().is_empty())
    }

    async fn provoke(&self) {
        self.with(|machine, _| machine.try_virsh(&["resume", NAME]));
    }

    fn wrong(&self, target: &FenceTarget) -> (Arc<dyn Fence>, FenceTarget) {
        let fence = self.with(|_, kind| kind.wrong());
        (fence.expect("it can be told"), target.clone())
    }

    fn broken(&self) -> Vec<Arc<dyn Fence>> {
        self.with(|_, kind| kind.broken())
    }

    fn secrets(&self) -> Vec<String> {
        vec![PASSWORD.to_owned(), "another-word".to_owned()]
    }
}

/// A machine that came up is off when the fence returns; told so, the fence switches it on again, and it boots anew.
async fn off_and_on_again(machine: Machine, off: impl Fence, and_on: impl Fence) {
    let before = machine.booted(1);
    let receipt = off.fence(call(), &target()).await.unwrap();
    assert!(receipt.detail.contains(" before)"), "{receipt:?}");
    assert_eq!(machine.guests(), [0; 0], "{receipt:?}");
    let receipt = off.fence(call(), &target()).await.unwrap();
    assert!(receipt.detail.contains("off already"), "{receipt:?}");
    let receipt = and_on.fence(call(), &target()).await.unwrap();
    assert!(receipt.detail.contains("switch on again"), "{receipt:?}");
    let boots = machine.booted(2);
    assert_eq!(boots[0], before[0]);
    assert_ne!(boots[1], before[0]);
    assert_eq!(machine.guests().len(), 1);
}
