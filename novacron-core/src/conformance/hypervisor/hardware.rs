//! What a machine is made of.

use super::{HypervisorFixture, Subject};
use crate::ErrorKind;
use crate::driver::{DomainSpec, DomainState};
use crate::model::{Capability, Cpu, CpuModel, CpuTopology, Firmware, newest_cpu_model};

/// Hardware that no host can have is refused with its fields, and nothing is defined.
pub async fn hardware_that_cannot_be_is_refused_before_anything_is_made(
    fixture: &dyn HypervisorFixture,
) {
    let s = Subject::open(fixture).await;
    let mut spec = fixture.spec(s.fresh()).await;
    spec.hardware.cpu = Cpu {
        model: CpuModel::Named("qemu64,+vmx".to_owned()),
        features: [("</feature>".to_owned(), true)].into(),
        topology: Some(CpuTopology {
            sockets: spec.hardware.vcpus,
            cores: 2,
            threads: 1,
        }),
    };
    let refused = s.hypervisor.define(s.call(), &spec).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
    let fields: Vec<_> = refused
        .problems()
        .iter()
        .map(|p| p.field.as_str())
        .collect();
    let wanted = [
        "hardware.cpu.model",
        "hardware.cpu.features[\"</feature>\"]",
        "hardware.cpu.topology",
    ];
    assert_eq!(fields, wanted, "{refused}");
    assert_eq!(s.inspect(spec.id).await, None);
}

/// Hardware that the host does not tell of in its capabilities is refused by its name, and nothing is defined.
pub async fn hardware_that_the_host_lacks_is_refused_before_anything_is_made(
    fixture: &dyn HypervisorFixture,
) {
    let s = Subject::open(fixture).await;
    let can = s.hypervisor.probe(s.call()).await.unwrap().capabilities;
    let spec = fixture.spec(s.fresh()).await;
    let mut lacking: Vec<(&str, DomainSpec)> = Vec::new();
    let mut with = |word, change: &dyn Fn(&mut DomainSpec)| {
        let mut spec = spec.clone();
        change(&mut spec);
        lacking.push((word, spec));
    };
    with("NoSuchModel", &|spec| {
        spec.hardware.cpu.model = CpuModel::Named("NoSuchModel".to_owned());
    });
    with("no-such-feature", &|spec| {
        let features = &mut spec.hardware.cpu.features;
        features.insert("no-such-feature".to_owned(), true);
    });
    let most = can.max_vcpus.to_string();
    if can.max_vcpus < 1024 {
        with(&most, &|spec| spec.hardware.vcpus = can.max_vcpus + 1);
    }
    if !can.can.contains(&Capability::Uefi) {
        with("UEFI", &|spec| spec.hardware.firmware = Firmware::Uefi);
    }
    for (word, spec) in lacking {
        let refused = s.hypervisor.define(s.call(), &spec).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
        assert!(refused.to_string().contains(word), "{refused}");
        assert_eq!(s.inspect(spec.id).await, None);
    }
}

/// A guest starts on the newest CPU model that the host tells of, less a feature, with its vCPUs as threads of a core.
pub async fn cpu_of_a_named_model_and_topology_starts(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let can = s.hypervisor.probe(s.call()).await.unwrap().capabilities;
    let Some(model) = newest_cpu_model(&*can.cpu_models) else {
        return;
    };
    let mut spec = fixture.spec(s.fresh()).await;
    let features = can.cpu_features.iter().filter(|f| *f == "aes");
    spec.hardware.cpu = Cpu {
        model: CpuModel::Named(model.to_owned()),
        features: features.map(|f| (f.clone(), false)).collect(),
        topology: Some(CpuTopology {
            sockets: 1,
            cores: 1,
            threads: spec.hardware.vcpus,
        }),
    };
    s.define_as(&spec).await;
    s.start(spec.id).await;
    assert_eq!(s.state(spec.id).await, DomainState::Paused);
    s.kill(spec.id).await;
}
