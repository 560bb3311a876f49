//! `IpmiFence`, against virtualbmc.

use std::net::UdpSocket;
use std::sync::Arc;

use novacron_core::ErrorKind;
use novacron_core::driver::Fence;
use novacron_kvm::fence::{IpmiFence, IpmiOptions};

use crate::machine::{Machine, PASSWORD, USER};
use crate::{Fixture, Kind, call, off_and_on_again, target};

struct Ipmi {
    port: u16,
    /// Where nobody answers.
    silence: UdpSocket,
}

impl Ipmi {
    fn options(&self) -> IpmiOptions {
        IpmiOptions {
            port: self.port,
            ..IpmiOptions::new("127.0.0.1", USER, PASSWORD.to_owned())
        }
    }
}

fn fence(options: IpmiOptions) -> IpmiFence {
    IpmiFence::new(options).unwrap()
}

impl Kind for Ipmi {
    fn begin(machine: &mut Machine) -> Self {
        Self {
            port: machine.ipmi(),
            silence: UdpSocket::bind("127.0.0.1:0").unwrap(),
        }
    }

    fn fence(&self) -> Arc<dyn Fence> {
        Arc::new(fence(self.options()))
    }

    fn wrong(&self) -> Option<Arc<dyn Fence>> {
        None
    }

    fn broken(&self) -> Vec<Arc<dyn Fence>> {
        let wrong_password = IpmiOptions {
            password: "another-word".to_owned().into(),
            ..self.options()
        };
        let cut_off = IpmiOptions {
            port: self.silence.local_addr().unwrap().port(),
            ..self.options()
        };
        vec![Arc::new(fence(wrong_password)), Arc::new(fence(cut_off))]
    }
}

novacron_core::fence_conformance!(Fixture::<Ipmi>::new());

#[tokio::test]
async fn a_machine_that_came_up_is_switched_off_and_on_again() {
    let mut machine = Machine::up();
    let ipmi = Ipmi::begin(&mut machine);
    let and_on = IpmiOptions {
        power_on_again: true,
        ..ipmi.options()
    };
    off_and_on_again(machine, fence(ipmi.options()), fence(and_on)).await;
}

#[tokio::test]
async fn what_is_wrong_is_told() {
    let mut machine = Machine::up();
    let ipmi = Ipmi::begin(&mut machine);
    let refused = async |options: IpmiOptions| {
        let error = fence(options).fence(call(), &target()).await.unwrap_err();
        assert_eq!(machine.guests().len(), 1);
        error
    };
    let wrong_password = refused(IpmiOptions {
        password: "another-word".to_owned().into(),
        ..ipmi.options()
    });
    let error = wrong_password.await;
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert!(error.message().contains("password"), "{error}");

    let missing = refused(IpmiOptions {
        program: "/nonexistent/ipmitool".into(),
        ..ipmi.options()
    });
    let error = missing.await;
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(
        error.message().contains("apt-get install ipmitool"),
        "{error}"
    );

    let error = IpmiFence::new(IpmiOptions::new("-H", "", PASSWORD.to_owned())).unwrap_err();
    assert_eq!(error.problems().len(), 2, "{error}");
}
