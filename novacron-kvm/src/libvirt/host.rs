//! What a host is, from libvirt's description of its capabilities.

use std::collections::BTreeSet;
use std::sync::Arc;

use novacron_core::model::{DiskBus, HostId};
use serde::Deserialize;

use super::describe::bus_name;
use super::sys::{Conn, LvError, LvResult};
use super::xml::{Cpu, CpuFeature, CpuModelXml};
use crate::accel::Accel;
use crate::cpu::Cpus;

/// The machine type of all guests.
pub(super) const MACHINE: &str = "q35";

/// What is asked once per connection.
#[derive(Clone, Debug)]
pub(super) struct HostFacts {
    /// As `QEMU`.
    pub(super) driver: String,
    /// The hypervisor's version and libvirt's.
    pub(super) versions: (u64, u64),
    pub(super) memory_kib: u64,
    pub(super) cpus: u32,
    pub(super) capabilities: Capabilities,
}

impl HostFacts {
    pub(super) fn of(conn: &Conn) -> LvResult<Self> {
        let node = conn.node_info()?;
        let capabilities = conn.capabilities()?;
        let unreadable = |e| LvError::ours(format!("libvirt's capabilities make no sense: {e}"));
        Ok(Self {
            driver: conn.kind()?,
            versions: conn.versions()?,
            memory_kib: node.memory_kib,
            cpus: node.cpus,
            capabilities: quick_xml::de::from_str(&capabilities).map_err(unreadable)?,
        })
    }
}

/// libvirt's number of a version in words.
pub(super) fn version(number: u64) -> String {
    let (major, minor, micro) = (number / 1_000_000, number / 1000 % 1000, number % 1000);
    format!("{major}.{minor}.{micro}")
}

/// `<capabilities>`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Capabilities {
    host: Host,
    guest: Vec<Guest>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Host {
    uuid: Option<String>,
    cpu: HostCpu,
    secmodel: Vec<SecurityModel>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct SecurityModel {
    model: String,
    baselabel: Vec<BaseLabel>,
}

/// `<baselabel type='kvm'>+64055:+994</baselabel>`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct BaseLabel {
    #[serde(rename = "$text")]
    label: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct HostCpu {
    arch: String,
    feature: Vec<Named>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Named {
    #[serde(rename = "@name")]
    name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Guest {
    arch: Vec<Arch>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Arch {
    #[serde(rename = "@name")]
    name: String,
    domain: Vec<Kind>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Kind {
    #[serde(rename = "@type")]
    kind: String,
}

impl Capabilities {
    /// The user and the group that QEMU runs as, where they are libvirtd's own to choose.
    ///
    /// # Errors
    /// What libvirt says instead of their numbers.
    pub(super) fn qemu_user(&self) -> Result<Option<(u32, u32)>, &str> {
        let mut models = self.host.secmodel.iter();
        let dac = models.find(|model| model.model == "dac");
        let Some(label) = dac.and_then(|dac| dac.baselabel.first()) else {
            return Ok(None);
        };
        let label = label.label.as_str();
        let number = |text: &str| text.trim_start_matches('+').parse().ok();
        let ids = label.split_once(':');
        let ids = ids.and_then(|(user, group)| Some((number(user)?, number(group)?)));
        ids.map(Some).ok_or(label)
    }

    /// The host's UUID.
    pub(super) fn host(&self) -> Option<HostId> {
        self.host.uuid.as_deref()?.trim().parse().ok()
    }

    /// The host's architecture.
    pub(super) fn arch(&self) -> &str {
        &self.host.cpu.arch
    }

    /// How guests run there: KVM only if libvirt offers it **and** its CPU shows `vmx` or `svm`, since some hosts open
    /// `/dev/kvm` and then hang the guest.
    pub(super) fn accel(&self) -> Accel {
        let arch = self.arch();
        let guests = self.guest.iter().flat_map(|guest| &guest.arch);
        let mut kinds = guests
            .filter(|guest| guest.name == arch)
            .flat_map(|guest| &guest.domain);
        let offered = kinds.any(|kind| kind.kind == "kvm");
        let is_x86 = matches!(arch, "x86_64" | "i686");
        let can = !is_x86
            || (self.host.cpu.feature.iter()).any(|f| matches!(f.name.as_str(), "vmx" | "svm"));
        if offered && can {
            Accel::Kvm
        } else {
            Accel::Tcg
        }
    }
}

/// What guests of one kind can be given, asked once per connection.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct GuestFacts {
    pub(super) domain: DomainCapabilities,
    pub(super) cpus: Cpus,
}

impl GuestFacts {
    /// `kind` as `kvm`.
    pub(super) fn of(conn: &Conn, arch: &str, kind: &str) -> LvResult<Self> {
        let text = conn.domain_capabilities(arch, MACHINE, kind)?;
        let unreadable =
            |e| LvError::ours(format!("libvirt's domain capabilities make no sense: {e}"));
        let domain: DomainCapabilities = quick_xml::de::from_str(&text).map_err(unreadable)?;
        let expanded = domain
            .host_model()
            .map(|cpu| conn.baseline_cpu(arch, MACHINE, kind, &cpu));
        // Drivers and daemons that have no baseline tell no features.
        let expanded = match expanded {
            Some(Ok(text)) => quick_xml::de::from_str(&text).map_err(unreadable)?,
            Some(Err(error)) => {
                tracing::debug!(%error, "libvirt does not tell the features of its guests' CPUs");
                Cpu::default()
            }
            None => Cpu::default(),
        };
        let there = expanded.features.into_iter();
        let there = there.filter(|feature| feature.policy.as_deref() != Some("disable"));
        let cpus = Cpus {
            models: Arc::new(domain.models()),
            features: Arc::new(there.map(|feature| feature.name).collect()),
        };
        Ok(Self { domain, cpus })
    }
}

/// `<domainCapabilities>`, as far as it is looked at.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct DomainCapabilities {
    vcpu: MaxVcpus,
    cpu: CpuCapabilities,
    devices: DeviceCapabilities,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct DeviceCapabilities {
    disk: Choices,
    tpm: Choices,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Choices {
    #[serde(rename = "enum")]
    enums: Vec<Choice>,
}

impl Choices {
    fn has(&self, name: &str, value: &str) -> bool {
        let choice = self.enums.iter().filter(|choice| choice.name == name);
        choice.flat_map(|choice| &choice.value).any(|v| v == value)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct CpuCapabilities {
    mode: Vec<CpuMode>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct CpuMode {
    #[serde(rename = "@name")]
    name: String,
    model: Vec<UsableModel>,
    feature: Vec<CpuFeature>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct UsableModel {
    #[serde(rename = "@usable")]
    usable: Option<String>,
    #[serde(rename = "$text")]
    name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct MaxVcpus {
    #[serde(rename = "@max")]
    max: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Choice {
    #[serde(rename = "@name")]
    name: String,
    value: Vec<String>,
}

impl DomainCapabilities {
    /// The models that guests can have.
    fn models(&self) -> BTreeSet<String> {
        let custom = self.mode("custom").into_iter();
        let models = custom.flat_map(|mode| &mode.model);
        let usable = models.filter(|model| model.usable.as_deref() == Some("yes"));
        usable.map(|model| model.name.clone()).collect()
    }

    /// The CPU that comes nearest to the host's, in libvirt's XML.
    fn host_model(&self) -> Option<String> {
        let mode = self.mode("host-model")?;
        let cpu = Cpu {
            matching: Some("exact".to_owned()),
            model: Some(CpuModelXml {
                fallback: None,
                name: mode.model.first()?.name.clone(),
            }),
            features: mode.feature.clone(),
            ..Cpu::default()
        };
        quick_xml::se::to_string_with_root("cpu", &cpu).ok()
    }

    fn mode(&self, name: &str) -> Option<&CpuMode> {
        self.cpu.mode.iter().find(|mode| mode.name == name)
    }

    /// The most vCPUs of a guest.
    pub(super) fn max_vcpus(&self) -> u32 {
        self.vcpu.max
    }

    /// Whether disks can be on this bus.
    pub(super) fn disk_bus(&self, bus: DiskBus) -> bool {
        self.devices.disk.has("bus", bus_name(bus))
    }

    /// Whether TPMs can be had from there.
    pub(super) fn tpm_backend(&self, backend: &str) -> bool {
        self.devices.tpm.has("backendModel", backend)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capabilities(feature: &str, kinds: &str) -> Capabilities {
        let text = format!(
            "<capabilities><host><uuid>1f3b5c2e-0000-4000-8000-00000000beef</uuid><cpu><arch>x86_64</arch>\
             <model>qemu64</model><feature name='sse'/>{feature}</cpu><power_management/></host>\
             <guest><os_type>hvm</os_type><arch name='i686'><domain type='qemu'/></arch></guest>\
             <guest><os_type>hvm</os_type><arch name='x86_64'><wordsize>64</wordsize>{kinds}</arch></guest></capabilities>"
        );
        quick_xml::de::from_str(&text).unwrap()
    }

    #[test]
    fn qemu_runs_as_the_user_of_its_label() {
        let text = "<capabilities><host><secmodel><model>apparmor</model><doi>0</doi>\
                    <baselabel type='kvm'>libvirt-1</baselabel></secmodel>\
                    <secmodel><model>dac</model><doi>0</doi><baselabel type='kvm'>+64055:+994</baselabel>\
                    <baselabel type='qemu'>+64055:+994</baselabel></secmodel></host></capabilities>";
        let told: Capabilities = quick_xml::de::from_str(text).unwrap();
        assert_eq!(told.qemu_user(), Ok(Some((64055, 994))));
        assert_eq!(capabilities("", "").qemu_user(), Ok(None));
        let named: Capabilities = quick_xml::de::from_str(&text.replace("+64055", "qemu")).unwrap();
        assert_eq!(named.qemu_user(), Err("qemu:+994"));
    }

    #[test]
    fn kvm_takes_the_offer_and_the_cpu() {
        let (qemu, both) = (
            "<domain type='qemu'/>",
            "<domain type='qemu'/><domain type='kvm'/>",
        );
        let vmx = "<feature name='vmx'/>";
        assert_eq!(capabilities(vmx, both).accel(), Accel::Kvm);
        assert_eq!(capabilities("", both).accel(), Accel::Tcg);
        assert_eq!(capabilities(vmx, qemu).accel(), Accel::Tcg);
        assert!(capabilities("", both).host().is_some());
    }

    #[test]
    fn versions_are_readable() {
        assert_eq!(version(7_002_022), "7.2.22");
    }
}
