//! The CPUs that guests of this host can have, asked of its QEMU, and the one that a guest is given.

use std::collections::BTreeSet;
use std::sync::Arc;

use novacron_core::model::{Cpu, CpuModel, newest_cpu_model};
use serde_json::Value;

use crate::accel::Accel;

/// The models that QEMU has for other ends than to be a guest's named CPU.
const NOT_NAMED: [&str; 3] = ["base", "host", "max"];

/// The enlightenments that Windows makes use of and that kernels since 4.20 have.
const HYPERV: &str = ",hv-relaxed=on,hv-vapic=on,hv-spinlocks=0x1fff,hv-vpindex=on,hv-runtime=on,hv-time=on,\
                      hv-synic=on,hv-stimer=on,hv-frequencies=on,hv-tlbflush=on,hv-ipi=on";

/// What guests can be given under one kind of acceleration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cpus {
    /// The models of which the host lacks nothing.
    pub(crate) models: Arc<BTreeSet<String>>,
    /// The features of everything that the host can give.
    pub(crate) features: Arc<BTreeSet<String>>,
}

/// The model that is everything the host can give.
pub(crate) fn everything(accel: Accel) -> &'static str {
    match accel {
        Accel::Kvm => "host",
        Accel::Tcg => "max",
    }
}

impl Cpus {
    /// From the answers to `query-cpu-definitions` and to `query-cpu-model-expansion` of [`everything`].
    pub(crate) fn of(definitions: &Value, expansion: &Value) -> Option<Self> {
        let models = definitions.as_array()?.iter().filter_map(|model| {
            let lacks = model["unavailable-features"].as_array()?;
            let name = model["name"].as_str()?;
            (lacks.is_empty() && !NOT_NAMED.contains(&name)).then(|| name.to_owned())
        });
        let properties = expansion["model"]["props"].as_object()?.iter();
        let features = properties.filter(|(_, value)| value.as_bool() == Some(true));
        Some(Self {
            models: Arc::new(models.collect()),
            features: Arc::new(features.map(|(name, _)| name.clone()).collect()),
        })
    }

    /// QEMU's `-cpu` for such a CPU. What the host cannot give ends the start instead of being left out, unless
    /// everything was asked for, whatever that is.
    pub(crate) fn argument(&self, cpu: &Cpu, accel: Accel) -> String {
        let model = match &cpu.model {
            CpuModel::Named(name) => name,
            CpuModel::HostModel => newest_cpu_model(&*self.models).unwrap_or(everything(accel)),
            CpuModel::Host | CpuModel::Baseline => everything(accel),
        };
        let mut words = model.to_owned();
        for (name, wanted) in &cpu.features {
            words += &format!(",{name}={}", if *wanted { "on" } else { "off" });
        }
        if cpu.hyperv {
            words += HYPERV;
        }
        if model != everything(accel) || !cpu.features.is_empty() {
            words += ",enforce=on";
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cpus() -> Cpus {
        let definitions = json!([
            {"name": "max", "unavailable-features": []},
            {"name": "Nehalem", "unavailable-features": []},
            {"name": "Haswell", "unavailable-features": ["pcid"]},
            {"name": "old-qemu-does-not-tell"},
        ]);
        let expansion =
            json!({"model": {"name": "max", "props": {"aes": true, "vmx": false, "family": 6}}});
        Cpus::of(&definitions, &expansion).unwrap()
    }

    #[test]
    fn only_what_the_host_can_give_is_told() {
        let cpus = cpus();
        assert_eq!(*cpus.models, BTreeSet::from(["Nehalem".to_owned()]));
        assert_eq!(*cpus.features, BTreeSet::from(["aes".to_owned()]));
        assert_eq!(Cpus::of(&json!({}), &json!([])), None);
    }

    #[test]
    fn a_cpu_is_an_argument() {
        let argument = |model, features: &[(&str, bool)]| {
            let features = features.iter().map(|(name, on)| ((*name).to_owned(), *on));
            let cpu = Cpu {
                model,
                features: features.collect(),
                ..Cpu::default()
            };
            cpus().argument(&cpu, Accel::Tcg)
        };
        assert_eq!(argument(CpuModel::Host, &[]), "max");
        assert_eq!(argument(CpuModel::HostModel, &[]), "Nehalem,enforce=on");
        let both = [("aes", true), ("vmx", false)];
        assert_eq!(
            argument(CpuModel::Host, &both),
            "max,aes=on,vmx=off,enforce=on"
        );
        let named = CpuModel::Named("Haswell".to_owned());
        assert_eq!(argument(named, &both[..1]), "Haswell,aes=on,enforce=on");
        let windows = Cpu {
            hyperv: true,
            ..Cpu::default()
        };
        let argument = cpus().argument(&windows, Accel::Kvm);
        assert!(argument.starts_with("host,hv-relaxed=on,"), "{argument}");
    }
}
