//! Validation at the door: every problem of a spec, each with its field's path. What a spec refers to is looked up
//! where it is drafted.

use std::collections::{BTreeMap, BTreeSet};

use super::request::problem;
use super::{ImageSpec, VolumeSpec};
use crate::error::Problem;
use crate::model::{
    BootDevice, Bytes, CloudInit, DiskOptions, DiskRole, DiskSource, ImageSource, NetworkKind,
    NicSpec, SecretRef, VmSettings, VmSpec, VolumeSource, is_path, name_problem, path_rule,
};

pub(super) const MAX_DISKS: usize = 24;
const MAX_NICS: usize = 8;
const MAX_FORWARDS: usize = 64;
const MAX_VOLUME: Bytes = Bytes(64 << 40);
const MIN_VOLUME: Bytes = Bytes(1 << 20);
const MAX_SEED: usize = 64 * 1024;
const MAX_SECRETS: usize = 64;
const MAX_GRACE_SECS: u32 = 24 * 3600;
const MAX_LABELS: usize = 64;
const MAX_LABEL_BYTES: usize = 16 * 1024;

/// Problems under their fields.
#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn check(&mut self, good: bool, field: impl Into<String>, message: impl FnOnce() -> String) {
        if !good {
            self.0.push(problem(field, message()));
        }
    }

    fn found(&mut self, field: impl Into<String>, message: Option<String>) {
        self.0.extend(message.map(|m| problem(field, m)));
    }
}

pub(super) fn vm(spec: &VmSpec) -> Vec<Problem> {
    let mut found = Problems::default();
    found.found("name", name_problem(&spec.name));
    let options = spec.disks.iter().map(|disk| &disk.options);
    found.0.extend(settings(
        &VmSettings::of_spec(spec),
        options,
        !spec.nics.is_empty(),
    ));
    found.0.extend(labels("labels", &spec.labels));
    found.0.extend(labels("annotations", &spec.annotations));
    disks(&mut found, spec);
    look_at_nics(&mut found, &spec.nics);
    found.0
}

/// What is wrong with a VM's settings, and with these disks, and a NIC or none, for its hardware.
pub(super) fn settings<'a>(
    settings: &VmSettings,
    mut disks: impl Iterator<Item = &'a DiskOptions> + Clone,
    has_nic: bool,
) -> Vec<Problem> {
    let mut found = Problems::default();
    let hardware = &settings.hardware;
    let problems = hardware.problems().into_iter();
    found.0.extend(problems.map(|p| p.under("hardware")));
    found.found("disks", hardware.too_many(disks.clone()));
    let grace = settings.stop_grace_secs;
    found.check(grace <= MAX_GRACE_SECS, "stop_grace_secs", || {
        format!("{grace} s; at most {MAX_GRACE_SECS}")
    });
    found.check(
        disks.next().is_some()
            || hardware.kernel.is_some()
            || (has_nic && hardware.boot_order.contains(&BootDevice::Network)),
        "disks",
        || "a VM boots from a disk, from `hardware.kernel`, or from the network of a NIC if its `hardware.boot_order` has that; it has none of these".to_owned(),
    );
    if let Some(group) = &settings.anti_affinity {
        found.found("anti_affinity", name_problem(group));
    }
    if let Some(init) = &settings.cloud_init {
        seed(&mut found, init);
    }
    found.0
}

pub(super) fn volume(spec: &VolumeSpec) -> Vec<Problem> {
    let mut found = Problems::default();
    found.found("name", name_problem(&spec.name));
    // One that begins as something else can be as large as that.
    if spec.source == VolumeSource::Blank || spec.size.0 != 0 {
        found.found("size", size(spec.size));
    }
    found.0.extend(labels("labels", &spec.labels));
    found.0.extend(labels("annotations", &spec.annotations));
    found.0
}

pub(super) fn image(spec: &ImageSpec) -> Vec<Problem> {
    let mut found = Problems::default();
    found.found("name", name_problem(&spec.name));
    let sum = spec.sha256.as_deref();
    let hex = |s: &str| s.len() == 64 && s.bytes().all(|b| b.is_ascii_hexdigit());
    found.check(sum.is_none_or(hex), "sha256", || "64 hex digits".to_owned());
    match &spec.source {
        ImageSource::File(file) => found.check(is_path(file), "source.file", path_rule),
        ImageSource::Url(url) => {
            let rest = ["http://", "https://"]
                .iter()
                .find_map(|scheme| url.strip_prefix(scheme));
            let good = rest.is_some_and(|r| !r.is_empty() && !r.starts_with('/'))
                && url.len() <= 2048
                && url.bytes().all(|b| b.is_ascii_graphic());
            found.check(good, "source.url", || {
                "an http or https URL of up to 2048 printable ASCII characters".to_owned()
            });
        }
    }
    found.0.extend(labels("labels", &spec.labels));
    found.0.extend(labels("annotations", &spec.annotations));
    found.0
}

pub(super) fn network(text: &str, kind: &NetworkKind) -> Vec<Problem> {
    let mut found = Problems(name(text));
    if let NetworkKind::Bridge { bridge } = kind {
        // Linux: IFNAMSIZ is 16 with the final zero; `.` and `..` would be folders in /sys/class/net.
        let good = (1..=15).contains(&bridge.len())
            && !matches!(bridge.as_str(), "." | "..")
            && bridge
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        found.check(good, "kind.bridge", || {
            "an interface's name: 1 to 15 of [a-zA-Z0-9._-]".to_owned()
        });
    }
    found.0
}

pub(super) fn name(text: &str) -> Vec<Problem> {
    let problems = name_problem(text).map(|m| problem("name", m));
    problems.into_iter().collect()
}

/// A disk's name becomes its serial number in the guest, which takes 20 bytes.
pub(super) fn disk_name(name: &str) -> Option<String> {
    if name.len() > 20 {
        return Some(format!(
            "{} bytes; at most 20, for it is the disk's serial number",
            name.len()
        ));
    }
    let own = [DiskRole::Nvram, DiskRole::Tpm, DiskRole::Rescue];
    if own.into_iter().any(|role| role.name() == Some(name)) {
        return Some("the name of a disk of NovaCron's own; choose another".to_owned());
    }
    name_problem(name)
}

/// What is wrong with a volume's size.
pub(super) fn size(size: Bytes) -> Option<String> {
    if !(MIN_VOLUME..=MAX_VOLUME).contains(&size) {
        return Some(format!("{size}; must be {MIN_VOLUME} to {MAX_VOLUME}"));
    }
    (!size.0.is_multiple_of(512)).then(|| format!("{size}; must be a multiple of 512 bytes"))
}

/// What is wrong with labels or annotations. Their sum is limited as it is stored, so that a record always fits.
pub(super) fn labels(field: &str, labels: &BTreeMap<String, String>) -> Vec<Problem> {
    let mut found = Problems::default();
    found.check(labels.len() <= MAX_LABELS, field, || {
        format!("{} entries; at most {MAX_LABELS}", labels.len())
    });
    let sum: usize = labels.iter().map(|(k, v)| stored(k) + stored(v)).sum();
    found.check(sum <= MAX_LABEL_BYTES, field, || {
        format!("{sum} bytes in all; at most {MAX_LABEL_BYTES}")
    });
    for (key, value) in labels {
        let good = (1..=128).contains(&key.len()) && value.len() <= 1024;
        let shown: String = key.chars().take(32).collect();
        found.check(good, format!("{field}[{shown:?}]"), || {
            "a key of 1 to 128 and a value of up to 1024 bytes".to_owned()
        });
    }
    found.0
}

/// The bytes that a text takes in a record, where a control character takes six.
fn stored(text: &str) -> usize {
    serde_json::to_string(text).map_or(usize::MAX / 1024, |json| json.len())
}

fn disks(found: &mut Problems, spec: &VmSpec) {
    let count = spec.disks.len();
    found.check(count <= MAX_DISKS, "disks", || {
        format!("{count} disks; at most {MAX_DISKS}")
    });
    let mut names = BTreeSet::new();
    let mut volumes = BTreeSet::new();
    for (i, disk) in spec.disks.iter().enumerate() {
        let wrong = disk_name(&disk.name);
        let twice = wrong.is_none() && !names.insert(&disk.name);
        found.found(format!("disks[{i}].name"), wrong);
        found.check(!twice, format!("disks[{i}].name"), || {
            format!("{:?} is the name of two disks", disk.name)
        });
        let options = format!("disks[{i}].options");
        let problems = disk.options.problems().into_iter();
        found.0.extend(problems.map(|p| p.under(&options)));
        match &disk.source {
            DiskSource::Volume { volume } => found.check(
                volumes.insert(*volume),
                format!("disks[{i}].source.volume"),
                || format!("volume {volume} stands in the spec twice"),
            ),
            DiskSource::Blank { size: bytes, .. } => {
                found.found(format!("disks[{i}].source.size"), size(*bytes));
            }
            DiskSource::Image {
                image, size: bytes, ..
            } => {
                found.found(format!("disks[{i}].source.image"), name_problem(image));
                found.found(format!("disks[{i}].source.size"), bytes.and_then(size));
            }
        }
    }
}

/// What is wrong with a VM's NICs.
pub(super) fn nics(nics: &[NicSpec]) -> Vec<Problem> {
    let mut found = Problems::default();
    look_at_nics(&mut found, nics);
    found.0
}

fn look_at_nics(found: &mut Problems, nics: &[NicSpec]) {
    found.check(nics.len() <= MAX_NICS, "nics", || {
        format!("{} NICs; at most {MAX_NICS}", nics.len())
    });
    let mut taken = BTreeSet::new();
    let mut macs = BTreeSet::new();
    for (i, nic) in nics.iter().enumerate() {
        if let Some(mac) = nic.mac {
            found.check(macs.insert(mac), format!("nics[{i}].mac"), || {
                format!("{mac} is the address of two NICs")
            });
        }
        let count = nic.forwards.len();
        found.check(count <= MAX_FORWARDS, format!("nics[{i}].forwards"), || {
            format!("{count} forwards; at most {MAX_FORWARDS}")
        });
        for (j, forward) in nic.forwards.iter().enumerate() {
            let field = format!("nics[{i}].forwards[{j}]");
            let zero = forward.host_port == 0 || forward.guest_port == 0;
            found.check(!zero, field.clone(), || {
                "a port of 1 to 65535, not 0".to_owned()
            });
            let port = (forward.protocol as u8, forward.host_addr, forward.host_port);
            found.check(taken.insert(port), field, || {
                format!("host port {} is forwarded twice", forward.host_port)
            });
        }
    }
}

fn seed(found: &mut Problems, seed: &CloudInit) {
    let host = seed.hostname.as_deref();
    found.found("cloud_init.hostname", host.and_then(name_problem));
    let data = &seed.user_data;
    found.check(
        data.is_empty() || data.starts_with('#'),
        "cloud_init.user_data",
        || "must begin with '#cloud-config' or another of cloud-init's headers".to_owned(),
    );
    let network = seed.network_config.as_deref().unwrap_or_default();
    let size = stored(data) + stored(network);
    found.check(size <= MAX_SEED, "cloud_init", || {
        format!("{size} bytes; at most {MAX_SEED}")
    });
    let count = seed.secrets.len();
    found.check(count <= MAX_SECRETS, "cloud_init.secrets", || {
        format!("{count} secrets; at most {MAX_SECRETS}")
    });
    for (variable, secret) in &seed.secrets {
        let shown: String = variable.chars().take(32).collect();
        found.check(
            (1..=128).contains(&variable.len()) && secret.is_named(),
            format!("cloud_init.secrets[{shown:?}]"),
            || format!("a variable of 1 to 128 bytes, and {}", SecretRef::RULE),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::spec_from_json;
    use super::*;
    use crate::MiB;
    use crate::model::KernelBoot;

    #[test]
    fn every_problem_is_named_with_its_path() {
        let blank = |size| DiskSource::Blank {
            size: Bytes(size),
            pool: None,
        };
        let mut spec = VmSpec::new("../x")
            .vcpus(0)
            .memory(MiB(1))
            .disk("a", blank(0))
            .disk("a", blank(u64::MAX))
            .kernel(KernelBoot {
                kernel: "vmlinuz".into(),
                initrd: Some("/\n".into()),
                cmdline: "a\0b".to_owned(),
            })
            .cloud_init(CloudInit {
                hostname: Some("a/b".to_owned()),
                user_data: "no header".to_owned(),
                ..CloudInit::default()
            });
        spec.labels.insert(String::new(), "x".repeat(20_000));
        spec.stop_grace_secs = u32::MAX;
        let fields: Vec<String> = vm(&spec).into_iter().map(|p| p.field).collect();
        let wanted = [
            "name",
            "hardware.vcpus",
            "hardware.memory",
            "hardware.kernel.kernel",
            "hardware.kernel.initrd",
            "hardware.kernel.cmdline",
            "stop_grace_secs",
            "cloud_init.hostname",
            "cloud_init.user_data",
            "labels",
            "labels[\"\"]",
            "disks[0].source.size",
            "disks[1].name",
            "disks[1].source.size",
        ];
        assert_eq!(fields, wanted);
    }

    #[test]
    fn json_that_is_no_spec_is_refused_where_it_is_none() {
        let nic = br#"{"name": "a", "hardware": {"memory": 512}, "nics": [{"network": "x", "mtu": 9000}]}"#;
        let cut = [b"{\"name\": \"".as_slice(), &[b'x'; 10_000]].concat();
        for (json, field, message) in [
            (
                &br#"{"name": "a", "hardware": {"memory": 512, "vcpu": 2}}"#[..],
                "hardware.vcpu",
                "unknown field `vcpu`",
            ),
            (nic, "nics[0].network", "UUID"),
            (br#"{"name": "a"}"#, "spec", "missing field `hardware`"),
            (br#"7"#, "spec", "invalid type"),
            (
                br#"{"name": "a", "hardware": {"memory": 512}} {}"#,
                "spec",
                "trailing",
            ),
            (&cut, "name", "EOF"),
        ] {
            let error = spec_from_json::<VmSpec>(json).unwrap_err();
            let [problem] = error.problems() else {
                panic!("{error}")
            };
            assert_eq!(problem.field, field, "{error}");
            assert!(problem.message.contains(message), "{error}");
            assert!(problem.message.len() < 1_000, "{error}");
        }
    }
}
