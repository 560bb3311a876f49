//! Validation at the door: every problem of a spec, each with its field's path.

use std::collections::BTreeSet;

use super::request::problem;
use crate::error::Problem;
use crate::model::{Bytes, CloudInit, DiskSource, NicSpec, VmSpec, name_problem};

const MAX_VCPUS: u32 = 1024;
const MIN_MEMORY_MIB: u64 = 16;
const MAX_MEMORY_MIB: u64 = 16 << 20;
const MAX_DISKS: usize = 24;
const MAX_NICS: usize = 8;
const MAX_VOLUME: Bytes = Bytes(64 << 40);
const MIN_VOLUME: Bytes = Bytes(1 << 20);
const MAX_SEED: usize = 64 * 1024;

pub(super) fn vm(spec: &VmSpec) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut check = |bad: bool, field: String, message: String| {
        if bad {
            problems.push(problem(field, message));
        }
    };
    if let Some(message) = name_problem(&spec.name) {
        check(true, "name".to_owned(), message);
    }
    check(
        !(1..=MAX_VCPUS).contains(&spec.vcpus),
        "vcpus".to_owned(),
        format!("{} vCPUs; must be 1 to {MAX_VCPUS}", spec.vcpus),
    );
    check(
        !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&spec.memory.0),
        "memory".to_owned(),
        format!(
            "{}; must be {MIN_MEMORY_MIB} MiB to {MAX_MEMORY_MIB} MiB",
            spec.memory
        ),
    );
    check(
        spec.disks.len() > MAX_DISKS,
        "disks".to_owned(),
        format!("{} disks; at most {MAX_DISKS}", spec.disks.len()),
    );
    check(
        spec.nics.len() > MAX_NICS,
        "nics".to_owned(),
        format!("{} NICs; at most {MAX_NICS}", spec.nics.len()),
    );
    check(
        spec.disks.is_empty() && spec.kernel.is_none(),
        "disks".to_owned(),
        "a VM boots from its first disk or from `kernel`; it has neither".to_owned(),
    );
    let mut names = BTreeSet::new();
    let mut volumes = BTreeSet::new();
    for (i, disk) in spec.disks.iter().enumerate() {
        if let Some(message) = disk_name(&disk.name) {
            check(true, format!("disks[{i}].name"), message);
        }
        check(
            !names.insert(&disk.name),
            format!("disks[{i}].name"),
            format!("{:?} is the name of two disks", disk.name),
        );
        match &disk.source {
            DiskSource::Volume { volume } => check(
                !volumes.insert(*volume),
                format!("disks[{i}].source.volume"),
                format!("volume {volume} stands in the spec twice"),
            ),
            DiskSource::Blank { size, .. } => {
                if let Some(message) = size_problem(*size) {
                    check(true, format!("disks[{i}].source.size"), message);
                }
            }
            DiskSource::Image { image, size, .. } => {
                if let Some(message) = name_problem(image) {
                    check(true, format!("disks[{i}].source.image"), message);
                }
                if let Some(message) = size.and_then(size_problem) {
                    check(true, format!("disks[{i}].source.size"), message);
                }
            }
        }
    }
    problems.extend(labels("labels", &spec.labels));
    problems.extend(labels("annotations", &spec.annotations));
    problems.extend(nics(&spec.nics));
    problems.extend(spec.cloud_init.iter().flat_map(seed));
    problems
}

/// A disk's name becomes its serial number in the guest, which takes 20 bytes.
pub(super) fn disk_name(name: &str) -> Option<String> {
    if name.len() > 20 {
        return Some(format!(
            "{} characters; at most 20, for it is the disk's serial number",
            name.len()
        ));
    }
    name_problem(name)
}

pub(super) fn size_problem(size: Bytes) -> Option<String> {
    if !(MIN_VOLUME..=MAX_VOLUME).contains(&size) {
        return Some(format!("{size}; must be {MIN_VOLUME} to {MAX_VOLUME}"));
    }
    (!size.0.is_multiple_of(512)).then(|| format!("{size}; must be a multiple of 512 bytes"))
}

pub(super) fn labels(
    field: &str,
    labels: &std::collections::BTreeMap<String, String>,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    if labels.len() > 64 {
        problems.push(problem(
            field,
            format!("{} entries; at most 64", labels.len()),
        ));
    }
    for (key, value) in labels {
        if key.is_empty() || key.len() > 128 || value.len() > 1024 {
            let shown: String = key.chars().take(32).collect();
            problems.push(problem(
                format!("{field}[{shown:?}]"),
                "a key of 1 to 128 and a value of up to 1024 bytes",
            ));
        }
    }
    problems
}

fn nics(nics: &[NicSpec]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut taken = BTreeSet::new();
    let mut macs = BTreeSet::new();
    for (i, nic) in nics.iter().enumerate() {
        if let Some(mac) = nic.mac
            && !macs.insert(mac)
        {
            problems.push(problem(
                format!("nics[{i}].mac"),
                format!("{mac} is the address of two NICs"),
            ));
        }
        for (j, forward) in nic.forwards.iter().enumerate() {
            let field = format!("nics[{i}].forwards[{j}]");
            if forward.host_port == 0 || forward.guest_port == 0 {
                problems.push(problem(field.clone(), "a port of 1 to 65535, not 0"));
            }
            if !taken.insert((forward.protocol as u8, forward.host_addr, forward.host_port)) {
                problems.push(problem(
                    field,
                    format!("host port {} is forwarded twice", forward.host_port),
                ));
            }
        }
    }
    problems
}

fn seed(seed: &CloudInit) -> Vec<Problem> {
    let mut problems = Vec::new();
    if let Some(message) = seed.hostname.as_deref().and_then(name_problem) {
        problems.push(problem("cloud_init.hostname", message));
    }
    if !seed.user_data.is_empty() && !seed.user_data.starts_with("#") {
        problems.push(problem(
            "cloud_init.user_data",
            "must begin with '#cloud-config' or another of cloud-init's headers",
        ));
    }
    let size = seed.user_data.len() + seed.network_config.as_ref().map_or(0, String::len);
    if size > MAX_SEED {
        problems.push(problem(
            "cloud_init",
            format!("{size} bytes; at most {MAX_SEED}"),
        ));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MiB;

    #[test]
    fn every_problem_is_named_with_its_path() {
        let spec = VmSpec::new("../x")
            .vcpus(0)
            .memory(MiB(1))
            .disk(
                "a",
                DiskSource::Blank {
                    size: Bytes(0),
                    pool: None,
                },
            )
            .disk(
                "a",
                DiskSource::Blank {
                    size: Bytes(u64::MAX),
                    pool: None,
                },
            );
        let fields: Vec<String> = vm(&spec).into_iter().map(|p| p.field).collect();
        for wanted in [
            "name",
            "vcpus",
            "memory",
            "disks[0].source.size",
            "disks[1].name",
            "disks[1].source.size",
        ] {
            assert!(fields.iter().any(|f| f == wanted), "{wanted} in {fields:?}");
        }
    }

    #[test]
    fn unknown_fields_are_refused() {
        let error =
            serde_json::from_str::<VmSpec>(r#"{"name":"a","memory":512,"vcpu":2}"#).unwrap_err();
        assert!(
            error.to_string().contains("unknown field `vcpu`"),
            "{error}"
        );
    }
}
