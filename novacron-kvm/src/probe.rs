//! What the QEMU binary is and can do, asked once of the binary itself.
//!
//! The oldest QEMU taken is 6.2 (Ubuntu 22.04; Debian 12 has 7.2): `-action`, on which telling a poweroff from a crash
//! rests, came with 6.0, and 6.2 is the oldest that a supported distribution still ships.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use crate::accel::Accel;
use crate::cpu::{Cpus, everything};

/// The oldest QEMU that is taken.
pub(crate) const OLDEST: Version = Version {
    major: 6,
    minor: 2,
    micro: 0,
};

const PROBE_DEADLINE: Duration = Duration::from_secs(20);

/// A QEMU version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    /// Major.
    pub(crate) major: u32,
    /// Minor.
    pub(crate) minor: u32,
    /// Micro.
    pub(crate) micro: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// Why a QEMU binary is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    /// There is no such binary.
    #[error("{} is not installed; on Debian and Ubuntu: apt-get install qemu-system-x86", path.display())]
    Missing {
        /// What was looked for.
        path: PathBuf,
    },
    /// It is too old.
    #[error("{} is QEMU {found}; at least {OLDEST} is needed", path.display())]
    TooOld {
        /// The binary.
        path: PathBuf,
        /// Its version.
        found: Version,
    },
    /// It does not behave like QEMU.
    #[error("{} {argument} failed: {reason}", path.display())]
    Broken {
        /// The binary.
        path: PathBuf,
        /// With which argument it was run.
        argument: &'static str,
        /// What it said.
        reason: String,
    },
}

/// A usable QEMU binary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct QemuBinary {
    /// The binary.
    pub(crate) path: PathBuf,
    /// Its version.
    pub(crate) version: Version,
    /// The newest versioned q35 machine, such as `pc-q35-7.2`: what `q35` means to this binary. A guest keeps the one
    /// that it was first started with, so that an upgrade or a migration does not change its hardware.
    pub(crate) q35: Option<String>,
    /// Whether user-mode networking is built in.
    pub(crate) user_network: bool,
}

impl QemuBinary {
    /// Asks the binary.
    pub(crate) async fn probe(path: &Path) -> Result<Self, ProbeError> {
        let banner = ask(path, &["-version"]).await?;
        let version = parse_version(&banner).ok_or_else(|| ProbeError::Broken {
            path: path.to_owned(),
            argument: "-version",
            reason: format!(
                "no version in `{}`",
                banner.lines().next().unwrap_or_default()
            ),
        })?;
        if version < OLDEST {
            return Err(ProbeError::TooOld {
                path: path.to_owned(),
                found: version,
            });
        }
        let machines = ask(path, &["-machine", "help"]).await?;
        let networks = ask(path, &["-netdev", "help"]).await?;
        Ok(Self {
            path: path.to_owned(),
            version,
            q35: parse_alias(&machines, "q35"),
            user_network: networks.lines().any(|line| line.trim() == "user"),
        })
    }
}

/// What guests can be given.
#[derive(Debug)]
pub(crate) struct Offer {
    pub(crate) cpus: Cpus,
    /// The types of devices, as `virtio-blk-pci`.
    pub(crate) devices: BTreeSet<String>,
    /// Whether it, and the kernel, do io_uring.
    pub(crate) io_uring: bool,
}

/// The name of a disk by io_uring, which is made to see whether it can be.
const RING: &str = "ring";

/// What it offers to guests that are run so.
pub(crate) async fn offer(path: &Path, accel: Accel) -> Result<Offer, ProbeError> {
    let everything = everything(accel);
    let command = |name: &str, arguments: Value| json!({"execute": name, "arguments": arguments});
    let full = json!({"type": "full", "model": {"name": everything}});
    let commands = [
        command("qmp_capabilities", json!({})),
        command("query-cpu-definitions", json!({})),
        command("query-cpu-model-expansion", full),
        command("qom-list-types", json!({"implements": "device"})),
        json!({ "execute": "blockdev-add", "id": RING, "arguments": {
            "driver": "file", "node-name": RING, "filename": path, "read-only": true, "aio": "io_uring",
        }}),
        command("quit", json!({})),
    ];
    let accel = match accel {
        Accel::Kvm => "none,accel=kvm",
        Accel::Tcg => "none,accel=tcg",
    };
    let arguments = [
        "-machine",
        accel,
        "-nodefaults",
        "-no-user-config",
        "-S",
        "-display",
        "none",
        "-qmp",
        "stdio",
    ];
    let input = commands.map(|command| format!("{command}\n")).concat();
    let told = told(path, &arguments, &input).await?;
    let lines = told.lines();
    let mut answers: Vec<Value> = lines
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let is_ring = |answer: &Value| answer["id"] == RING && answer.get("return").is_some();
    let io_uring = answers.iter().any(is_ring);
    let returned = answers.iter_mut();
    let answers: Vec<Value> = returned
        .filter_map(|answer| answer.get_mut("return").map(Value::take))
        .collect();
    let found = match &answers[..] {
        [_, definitions, expansion, devices, ..] => {
            let cpus = Cpus::of(definitions, expansion);
            let devices = devices.as_array().into_iter().flatten();
            let name = |device: &Value| device.get("name")?.as_str().map(str::to_owned);
            let devices = devices.filter_map(name).collect();
            cpus.map(|cpus| Offer {
                cpus,
                devices,
                io_uring,
            })
        }
        _ => None,
    };
    found.ok_or_else(|| ProbeError::Broken {
        path: path.to_owned(),
        argument: "query-cpu-definitions",
        reason: format!(
            "no CPU models in `{}`",
            told.chars().take(200).collect::<String>()
        ),
    })
}

async fn ask(path: &Path, arguments: &[&'static str]) -> Result<String, ProbeError> {
    told(path, arguments, "").await
}

/// What it prints when it is run with these arguments, and told this.
async fn told(path: &Path, arguments: &[&'static str], input: &str) -> Result<String, ProbeError> {
    let broken = |reason: String| ProbeError::Broken {
        path: path.to_owned(),
        argument: arguments[0],
        reason,
    };
    let mut command = Command::new(path);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let run = async {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that has ended already says why.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = timeout(PROBE_DEADLINE, run)
        .await
        .map_err(|_| broken(format!("no answer within {PROBE_DEADLINE:?}")))?
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => ProbeError::Missing {
                path: path.to_owned(),
            },
            _ => broken(error.to_string()),
        })?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(broken(format!("{}: {}", output.status, words.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// From `QEMU emulator version 7.2.22 (Debian …)`.
fn parse_version(banner: &str) -> Option<Version> {
    let (_, rest) = banner.split_once("version ")?;
    let digits = rest
        .split(|c: char| !c.is_ascii_digit() && c != '.')
        .next()?;
    let mut parts = digits.split('.').map(str::parse);
    let major = parts.next()?.ok()?;
    let minor = parts.next()?.ok()?;
    Some(Version {
        major,
        minor,
        micro: parts.next().and_then(Result::ok).unwrap_or(0),
    })
}

/// From `q35    Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-7.2)`.
fn parse_alias(machines: &str, alias: &str) -> Option<String> {
    let line = machines
        .lines()
        .find(|line| line.split_ascii_whitespace().next() == Some(alias))?;
    let (_, target) = line.split_once("(alias of ")?;
    Some(target.trim_end().trim_end_matches(')').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_versions_and_aliases() {
        let version = |text| parse_version(text).map(|version| version.to_string());
        assert_eq!(
            version("QEMU emulator version 7.2.22 (Debian 1:7.2)"),
            Some("7.2.22".into())
        );
        assert_eq!(
            version("QEMU emulator version 10.0\n"),
            Some("10.0.0".into())
        );
        assert_eq!(version("usage: ls"), None);
        let machines =
            "pc-q35-7.2  Standard PC\nq35   Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-7.2)\n";
        assert_eq!(parse_alias(machines, "q35"), Some("pc-q35-7.2".into()));
    }

    #[tokio::test]
    async fn missing_old_and_strange_binaries_are_told_apart() {
        let error = QemuBinary::probe(Path::new("/no/such/qemu"))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("apt-get install"), "{error}");
        let error = QemuBinary::probe(Path::new("/bin/false"))
            .await
            .unwrap_err();
        assert!(matches!(error, ProbeError::Broken { .. }), "{error}");

        let dir = tempfile::tempdir().unwrap();
        let old = dir.path().join("qemu-old");
        std::fs::write(&old, "#!/bin/sh\necho QEMU emulator version 4.2.1\n").unwrap();
        std::fs::set_permissions(&old, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        let error = QemuBinary::probe(&old).await.unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("is QEMU 4.2.1; at least 6.2.0 is needed"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn this_hosts_qemu_is_usable() {
        let qemu = QemuBinary::probe(Path::new("qemu-system-x86_64"))
            .await
            .unwrap();
        assert!(
            qemu.q35
                .is_some_and(|machine| machine.starts_with("pc-q35-"))
        );
        assert!(qemu.user_network);
        let Offer {
            cpus,
            devices,
            io_uring: _,
        } = offer(&qemu.path, Accel::Tcg).await.unwrap();
        assert!(devices.contains("virtio-blk-pci"), "{devices:?}");
        assert!(cpus.models.contains("Nehalem"), "{cpus:?}");
        assert!(cpus.features.contains("sse4.2"), "{cpus:?}");
    }
}
