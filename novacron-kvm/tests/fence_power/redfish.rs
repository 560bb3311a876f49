//! `RedfishFence`, against sushy-tools' emulator.

use std::sync::Arc;

use novacron_core::ErrorKind;
use novacron_core::driver::Fence;
use novacron_kvm::fence::{RedfishFence, RedfishOptions};

use crate::machine::{Machine, PASSWORD, USER, UUID};
use crate::{Fixture, Kind, call, off_and_on_again, target};

struct Redfish {
    address: String,
    authorities: String,
}

impl Redfish {
    fn options(&self) -> RedfishOptions {
        RedfishOptions {
            authorities: Some(self.authorities.clone()),
            system_uuid: Some(UUID.parse().unwrap()),
            ..RedfishOptions::new(&self.address, USER, PASSWORD.to_owned())
        }
    }
}

fn fence(options: RedfishOptions) -> RedfishFence {
    RedfishFence::new(options).unwrap()
}

impl Kind for Redfish {
    fn begin(machine: &mut Machine) -> Self {
        Self {
            address: machine.redfish(),
            authorities: std::fs::read_to_string(machine.file("bmc.pem")).unwrap(),
        }
    }

    fn fence(&self) -> Arc<dyn Fence> {
        Arc::new(fence(self.options()))
    }

    fn wrong(&self) -> Option<Arc<dyn Fence>> {
        Some(Arc::new(fence(RedfishOptions {
            system_uuid: Some(uuid::Uuid::from_u128(7)),
            ..self.options()
        })))
    }

    fn broken(&self) -> Vec<Arc<dyn Fence>> {
        let wrong_password = RedfishOptions {
            password: "another-word".to_owned().into(),
            ..self.options()
        };
        let distrusted = RedfishOptions {
            authorities: None,
            ..self.options()
        };
        let cut_off = RedfishOptions {
            address: "https://127.0.0.1:1".to_owned(),
            ..self.options()
        };
        [wrong_password, distrusted, cut_off]
            .map(|options| Arc::new(fence(options)) as Arc<dyn Fence>)
            .into()
    }
}

novacron_core::fence_conformance!(Fixture::<Redfish>::new());

#[tokio::test]
async fn a_machine_that_came_up_is_switched_off_and_on_again() {
    let mut machine = Machine::up();
    let redfish = Redfish::begin(&mut machine);
    let and_on = RedfishOptions {
        power_on_again: true,
        system: Some(UUID.to_owned()),
        ..redfish.options()
    };
    off_and_on_again(machine, fence(redfish.options()), fence(and_on)).await;
}

#[tokio::test]
async fn what_is_wrong_is_told() {
    let mut machine = Machine::up();
    let redfish = Redfish::begin(&mut machine);
    let refused = async |options: RedfishOptions, kind, words: &str| {
        let error = fence(options).fence(call(), &target()).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.message().contains(words), "{error}");
        assert_eq!(machine.guests().len(), 1);
    };
    let options = || redfish.options();
    let wrong_password = RedfishOptions {
        password: "another-word".to_owned().into(),
        ..options()
    };
    refused(wrong_password, ErrorKind::PermissionDenied, "401").await;
    let no_such = RedfishOptions {
        system: Some("nothing".to_owned()),
        ..options()
    };
    refused(no_such, ErrorKind::NotFound, "404").await;
    let distrusted = RedfishOptions {
        authorities: None,
        ..options()
    };
    refused(distrusted, ErrorKind::FailedPrecondition, "certificate").await;
    let another_name = RedfishOptions {
        address: options().address.replace("127.0.0.1", "localhost"),
        ..options()
    };
    refused(another_name, ErrorKind::FailedPrecondition, "certificate").await;
    let another = RedfishOptions {
        system_uuid: Some(uuid::Uuid::from_u128(7)),
        ..options()
    };
    refused(another, ErrorKind::FailedPrecondition, "wrong host").await;
}
