//! The CPU that a guest sees.
//!
//! A guest that may move while it runs has to see a CPU that every host can give it. [`CpuModel::Host`] is the fastest
//! and ties the guest to hosts of one kind; [`CpuModel::Baseline`] takes the newest model that all nodes have when the VM
//! is created, and keeps it. Models and features bear QEMU's and libvirt's names.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// A guest's CPU: a model, changes of it, and how the vCPUs are put together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cpu {
    /// The model.
    pub model: CpuModel,
    /// Features that the guest has for certain (`true`) or has not (`false`), whatever the model says: `{"vmx": false}`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub features: BTreeMap<String, bool>,
    /// Whether it has Microsoft's Hyper-V enlightenments, by which Windows keeps time and waits for less. Only guests that
    /// are not emulated have them.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub hyperv: bool,
    /// Sockets, cores and threads; one socket in which each vCPU is a core, if none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topology: Option<CpuTopology>,
}

/// Which CPU the guest sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CpuModel {
    /// Everything that the host can give: libvirt's `host-passthrough`, or `maximum` where guests are emulated.
    #[default]
    Host,
    /// The named model that comes nearest to the host's CPU, chosen at each start: libvirt's `host-model`; QEMU without
    /// libvirt takes the newest model that the host has.
    HostModel,
    /// The newest model that all nodes have, or the one node that was asked for. It is chosen when the VM is created,
    /// and its record then has the name.
    Baseline,
    /// A model by its name, as `Skylake-Server`.
    Named(String),
}

/// How vCPUs are put together. Their product is the number of vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuTopology {
    /// Sockets.
    pub sockets: u32,
    /// Cores of a socket.
    pub cores: u32,
    /// Threads of a core.
    pub threads: u32,
}

impl CpuTopology {
    /// One socket in which each vCPU is a core. Guests that are licensed or limited by sockets (Windows) use all of it.
    pub fn of(vcpus: u32) -> Self {
        Self {
            sockets: 1,
            cores: vcpus,
            threads: 1,
        }
    }

    /// How many vCPUs that makes; none if that is no number.
    pub fn vcpus(self) -> Option<u32> {
        self.sockets
            .checked_mul(self.cores)?
            .checked_mul(self.threads)
    }
}

impl Cpu {
    /// The topology of a guest of so many vCPUs.
    pub fn topology_of(&self, vcpus: u32) -> CpuTopology {
        self.topology.unwrap_or_else(|| CpuTopology::of(vcpus))
    }

    /// The model that a host has to have by name.
    pub fn named(&self) -> Option<&str> {
        match &self.model {
            CpuModel::Named(name) => Some(name),
            CpuModel::Host | CpuModel::HostModel | CpuModel::Baseline => None,
        }
    }

    /// The features that a host has to have.
    pub fn required(&self) -> impl Iterator<Item = &str> {
        let wanted = self.features.iter().filter(|(_, wanted)| **wanted);
        wanted.map(|(name, _)| name.as_str())
    }
}

/// QEMU's x86 models from the oldest to the newest, as its `target/i386/cpu.c` and its manual's "Preferred CPU models"
/// order them. Intel's and AMD's stand in one order, by their years, which matters only on hosts that have both (an
/// emulator).
const BY_AGE: &[&str] = &[
    "qemu64",
    "kvm64",
    "Conroe",
    "Opteron_G1",
    "Opteron_G2",
    "Penryn",
    "Nehalem",
    "Opteron_G3",
    "Westmere",
    "SandyBridge",
    "Opteron_G4",
    "IvyBridge",
    "Opteron_G5",
    "Haswell",
    "Broadwell",
    "Skylake-Client",
    "EPYC",
    "Skylake-Server",
    "Dhyana",
    "Cascadelake-Server",
    "EPYC-Rome",
    "Cooperlake",
    "Icelake-Server",
    "EPYC-Milan",
    "SapphireRapids",
    "EPYC-Genoa",
    "GraniteRapids",
    "SierraForest",
    "EPYC-Turin",
];

/// The newest of these models that the order of ages knows. A model without the features that microcode took back
/// (`-noTSX`) or with those that it brought (`-IBRS`, `-IBPB`) is as old as its model; the plainest name is taken.
pub fn newest_cpu_model<'a>(models: impl IntoIterator<Item = &'a String>) -> Option<&'a str> {
    let age = |name: &str| {
        let plain = ["-noTSX-IBRS", "-noTSX", "-IBRS", "-IBPB"];
        let family = plain.iter().find_map(|end| name.strip_suffix(end));
        let family = family.unwrap_or(name);
        BY_AGE.iter().position(|known| *known == family)
    };
    let known = models
        .into_iter()
        .filter_map(|name| Some((age(name)?, name)));
    let newest = known.max_by_key(|(age, name)| (*age, std::cmp::Reverse(name.len())));
    newest.map(|(_, name)| name.as_str())
}

/// What all of some nodes' CPUs have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuBaseline {
    /// The newest model, if they have one of known age in common.
    pub model: Option<String>,
    /// All models.
    pub models: BTreeSet<String>,
    /// All features.
    pub features: BTreeSet<String>,
}

impl CpuBaseline {
    /// Of nodes with these models and features.
    pub fn of<'a>(
        nodes: impl IntoIterator<Item = (&'a BTreeSet<String>, &'a BTreeSet<String>)>,
    ) -> Self {
        let both =
            |a: &BTreeSet<String>, b: &BTreeSet<String>| a.intersection(b).cloned().collect();
        let mut common: Option<(BTreeSet<String>, BTreeSet<String>)> = None;
        for (models, features) in nodes {
            common = Some(match common {
                None => (models.clone(), features.clone()),
                Some((m, f)) => (both(&m, models), both(&f, features)),
            });
        }
        let (models, features) = common.unwrap_or_default();
        Self {
            model: newest_cpu_model(&models).map(str::to_owned),
            models,
            features,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_newest_of_all_is_the_baseline() {
        let old = (
            set(&["Nehalem", "Westmere", "qemu64"]),
            set(&["aes", "sse4.2"]),
        );
        let new = (
            set(&["Haswell", "Haswell-noTSX", "Nehalem", "Westmere", "qemu64"]),
            set(&["aes", "avx2", "sse4.2"]),
        );
        let of = |nodes: &[&(BTreeSet<String>, BTreeSet<String>)]| {
            CpuBaseline::of(nodes.iter().map(|(models, features)| (models, features)))
        };
        assert_eq!(of(&[&new]).model.as_deref(), Some("Haswell"));
        let both = of(&[&new, &old]);
        assert_eq!(both.model.as_deref(), Some("Westmere"));
        assert_eq!(both.features, set(&["aes", "sse4.2"]));
        assert_eq!(of(&[]), CpuBaseline::default());
        let other = (set(&["POWER9"]), set(&[]));
        assert_eq!(of(&[&new, &other]).model, None);
    }

    #[test]
    fn a_model_is_as_old_as_its_family() {
        let newest = |names: &[&str]| newest_cpu_model(&set(names)).map(str::to_owned);
        let noted = newest(&["Cascadelake-Server-noTSX", "EPYC-IBPB", "Nehalem-IBRS"]);
        assert_eq!(noted.as_deref(), Some("Cascadelake-Server-noTSX"));
        assert_eq!(newest(&["EPYC-IBPB", "EPYC"]).as_deref(), Some("EPYC"));
        assert_eq!(newest(&["486", "max"]), None);
    }

    #[test]
    fn a_topology_multiplies_to_its_vcpus() {
        let topology = CpuTopology {
            sockets: 2,
            cores: 3,
            threads: 2,
        };
        assert_eq!(topology.vcpus(), Some(12));
        let huge = CpuTopology {
            sockets: u32::MAX,
            ..topology
        };
        assert_eq!(huge.vcpus(), None);
        assert_eq!(CpuTopology::of(5).vcpus(), Some(5));
    }
}
