//! What of a VM can be changed after it was created, and when a change takes effect.
//!
//! Nothing is powered off or replaced for a change: what a running guest cannot be given waits for its next start, and
//! what no start can give it is refused.

use serde::{Deserialize, Serialize};

use super::hardware::Hardware;
use super::ids::NodeId;
use super::vm::{CloudInit, RestartPolicy, Vm, VmSpec};

/// What of a VM can be changed. Read it from the VM ([`VmSettings::of`]), change it, give it back
/// ([`VmHandle::update`](crate::cluster::VmHandle::update)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSettings {
    /// vCPUs, memory, and what else the machine has of its own.
    pub hardware: Hardware,
    /// The NoCloud seed.
    #[serde(default)]
    pub cloud_init: Option<CloudInit>,
    /// Seconds that a guest has to power off.
    pub stop_grace_secs: u32,
    /// What to do when the guest ends by itself.
    pub restart: RestartPolicy,
    /// The only node it may be on.
    #[serde(default)]
    pub node: Option<NodeId>,
    /// Of VMs whose host was lost, those of a higher priority are started first.
    #[serde(default)]
    pub priority: i32,
    /// VMs of one group of a project are never on the same node.
    #[serde(default)]
    pub anti_affinity: Option<String>,
    /// Whether it is kept from being deleted.
    #[serde(default)]
    pub delete_protection: bool,
}

impl VmSettings {
    /// Those of a VM.
    pub fn of(vm: &Vm) -> Self {
        Self {
            hardware: vm.machine.hardware.clone(),
            cloud_init: vm.machine.cloud_init.clone(),
            stop_grace_secs: vm.machine.stop_grace_secs,
            restart: vm.restart,
            node: vm.node.clone(),
            priority: vm.priority,
            anti_affinity: vm.anti_affinity.as_ref().map(ToString::to_string),
            delete_protection: vm.delete_protection,
        }
    }

    /// Those of a VM that is to be made.
    pub fn of_spec(spec: &VmSpec) -> Self {
        Self {
            hardware: spec.hardware.clone(),
            cloud_init: spec.cloud_init.clone(),
            stop_grace_secs: spec.stop_grace_secs,
            restart: spec.restart,
            node: spec.node.clone(),
            priority: spec.priority,
            anti_affinity: spec.anti_affinity.clone(),
            delete_protection: spec.delete_protection,
        }
    }

    /// What differs in `new`, by field, and when that takes effect for a guest that runs. For one that does not, all but
    /// [`Effect::Replacement`] is in effect at once.
    ///
    /// ```
    /// use novacron_core::model::{Effect, VmSettings};
    /// use novacron_core::{MiB, VmSpec};
    /// let old = VmSettings::of_spec(&VmSpec::new("web-1").memory(MiB(512)));
    /// let mut new = old.clone();
    /// new.hardware.memory = MiB(1024);
    /// new.delete_protection = true;
    /// let changes = old.changes(&new).into_iter().map(|change| (change.field, change.effect));
    /// let wanted = [("hardware.memory", Effect::Restart), ("delete_protection", Effect::Live)];
    /// assert!(changes.eq(wanted.map(|(field, effect)| (field.to_owned(), effect))));
    /// ```
    pub fn changes(&self, new: &Self) -> Vec<FieldChange> {
        let Self {
            hardware,
            cloud_init,
            stop_grace_secs,
            restart,
            node,
            priority,
            anti_affinity,
            delete_protection,
        } = self;
        let mut changes = FieldChange::under("hardware", hardware.changes(&new.hardware));
        let others = [
            ("cloud_init", *cloud_init != new.cloud_init, Effect::Restart),
            (
                "stop_grace_secs",
                *stop_grace_secs != new.stop_grace_secs,
                Effect::Live,
            ),
            ("restart", *restart != new.restart, Effect::Live),
            ("node", *node != new.node, Effect::Restart),
            ("priority", *priority != new.priority, Effect::Live),
            (
                "anti_affinity",
                *anti_affinity != new.anti_affinity,
                Effect::Restart,
            ),
            (
                "delete_protection",
                *delete_protection != new.delete_protection,
                Effect::Live,
            ),
        ];
        changes.extend(FieldChange::of(others));
        changes
    }
}

/// A field that is to change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FieldChange {
    /// Its path, as `hardware.memory`.
    pub field: String,
    /// When the change takes effect for a guest that runs.
    pub effect: Effect,
}

impl FieldChange {
    /// Those of a part, under its path.
    pub(super) fn under(path: &str, changes: Vec<Self>) -> Vec<Self> {
        let whole = |change: Self| Self {
            field: format!("{path}.{}", change.field),
            ..change
        };
        changes.into_iter().map(whole).collect()
    }

    /// Those of these fields that differ.
    pub(super) fn of<const N: usize>(
        fields: [(&str, bool, Effect); N],
    ) -> impl Iterator<Item = Self> {
        let differ = fields.into_iter().filter(|(_, differs, _)| *differs);
        differ.map(|(field, _, effect)| Self {
            field: field.to_owned(),
            effect,
        })
    }
}

/// When a change takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// While the guest runs.
    Live,
    /// With the VM's next start. (A reboot from within the guest is none.)
    Restart,
    /// Never for this VM: its disks hold what was made for what it has. Another VM has to be created.
    Replacement,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MiB;
    use crate::model::{CpuModel, Firmware};

    #[test]
    fn each_field_says_when_it_takes_effect() {
        let old = VmSettings::of_spec(&VmSpec::new("web-1"));
        assert_eq!(old.changes(&old), []);
        let mut new = VmSettings {
            cloud_init: Some(CloudInit::default()),
            stop_grace_secs: 1,
            restart: RestartPolicy::Never,
            node: Some(NodeId::new("alpha").unwrap()),
            priority: 7,
            anti_affinity: Some("web".to_owned()),
            delete_protection: true,
            ..old.clone()
        };
        new.hardware = Hardware::new(2, MiB(1024));
        new.hardware.cpu.model = CpuModel::HostModel;
        new.hardware.firmware = Firmware::Uefi;
        let changes = old.changes(&new);
        let with = |effect| {
            let fields = changes.iter().filter(move |change| change.effect == effect);
            fields
                .map(|change| change.field.as_str())
                .collect::<Vec<_>>()
        };
        let live = [
            "stop_grace_secs",
            "restart",
            "priority",
            "delete_protection",
        ];
        assert_eq!(with(Effect::Live), live);
        let restart = [
            "hardware.vcpus",
            "hardware.memory",
            "hardware.cpu",
            "cloud_init",
            "node",
            "anti_affinity",
        ];
        assert_eq!(with(Effect::Restart), restart);
        assert_eq!(with(Effect::Replacement), ["hardware.firmware"]);
    }
}
