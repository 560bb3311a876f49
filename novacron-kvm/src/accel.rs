//! Which acceleration a guest gets: the CPU's own (KVM), or translation in software (TCG).
//!
//! `/dev/kvm` alone proves nothing: some hosts offer it, let a machine be created, and then hang the guest. So `auto`
//! takes KVM only when the CPU shows `vmx` or `svm` (on x86) **and** the device opens for reading and writing;
//! otherwise TCG. The environment variable `NOVACRON_ACCEL` (`kvm`, `tcg` or `auto`) overrides what the host
//! application asked for; a forced `kvm` that cannot work is an error that says what is missing.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::path::Path;
use std::str::FromStr;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AccelChoice {
    /// KVM where it works, else TCG.
    #[default]
    Auto,
    /// KVM, or an error.
    Kvm,
    /// TCG, always.
    Tcg,
}

/// What is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// The CPU's own virtualisation.
    Kvm,
    /// Translation in software: works everywhere, many times slower.
    Tcg,
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// Why there is no acceleration to be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccelError {
    /// The value of `NOVACRON_ACCEL` is unknown.
    #[error("NOVACRON_ACCEL is `{0}`; it takes `auto`, `kvm` or `tcg`")]
    UnknownChoice(String),
    /// KVM was forced and cannot work.
    #[error("KVM was asked for, but {0}")]
    NoKvm(String),
}

impl FromStr for AccelChoice {
    type Err = AccelError;

    fn from_str(text: &str) -> Result<Self, AccelError> {
        match text {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            other => Err(AccelError::UnknownChoice(other.to_owned())),
        }
    }
}

impl AccelChoice {
    /// Settles the choice on this host; `NOVACRON_ACCEL` goes before `self`.
    pub fn resolve(self) -> Result<Accel, AccelError> {
        let choice = self.or(&std::env::var("NOVACRON_ACCEL").unwrap_or_default())?;
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        choice.settle(&cpuinfo, || open_device(Path::new("/dev/kvm")))
    }

    /// The variable's choice, unless it is empty.
    fn or(self, variable: &str) -> Result<Self, AccelError> {
        match variable {
            "" => Ok(self),
            text => text.parse(),
        }
    }

    fn settle(
        self,
        cpuinfo: &str,
        open: impl FnOnce() -> Result<(), String>,
    ) -> Result<Accel, AccelError> {
        if self == Self::Tcg {
            return Ok(Accel::Tcg);
        }
        let usable = if cpu_can(cpuinfo) {
            open()
        } else {
            Err("the CPU shows neither vmx nor svm in /proc/cpuinfo".to_owned())
        };
        match (self, usable) {
            (_, Ok(())) => Ok(Accel::Kvm),
            (Self::Kvm, Err(reason)) => Err(AccelError::NoKvm(reason)),
            (_, Err(reason)) => {
                tracing::debug!(reason, "no KVM; guests run under TCG");
                Ok(Accel::Tcg)
            }
        }
    }
}

fn cpu_can(cpuinfo: &str) -> bool {
    if cfg!(not(any(target_arch = "x86_64", target_arch = "x86"))) {
        return true;
    }
    let mut flags = cpuinfo.lines().filter(|line| line.starts_with("flags"));
    flags.next().is_some_and(|line| {
        line.split_ascii_whitespace()
            .any(|flag| flag == "vmx" || flag == "svm")
    })
}

fn open_device(path: &Path) -> Result<(), String> {
    let opened: std::io::Result<File> = OpenOptions::new().read(true).write(true).open(path);
    opened
        .map(drop)
        .map_err(|error| format!("{} does not open: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITH: &str = "processor : 0\nflags\t\t: fpu vme svm sse\n";
    const WITHOUT: &str = "processor : 0\nflags\t\t: fpu vme svmx sse hypervisor\n";

    #[test]
    fn a_device_without_the_cpu_flag_is_not_trusted() {
        assert_eq!(AccelChoice::Auto.settle(WITHOUT, || Ok(())), Ok(Accel::Tcg));
        let error = AccelChoice::Kvm.settle(WITHOUT, || Ok(())).unwrap_err();
        assert!(error.to_string().contains("neither vmx nor svm"), "{error}");
    }

    #[test]
    fn the_flag_without_the_device_is_tcg_or_an_error_with_the_reason() {
        let closed = || Err("/dev/kvm does not open: Permission denied".to_owned());
        assert_eq!(AccelChoice::Auto.settle(WITH, closed), Ok(Accel::Tcg));
        let error = AccelChoice::Kvm.settle(WITH, closed).unwrap_err();
        assert!(error.to_string().contains("Permission denied"), "{error}");
    }

    #[test]
    fn both_are_kvm_unless_tcg_is_asked_for() {
        assert_eq!(AccelChoice::Auto.settle(WITH, || Ok(())), Ok(Accel::Kvm));
        assert_eq!(AccelChoice::Tcg.settle(WITH, || Ok(())), Ok(Accel::Tcg));
    }

    #[test]
    fn the_variable_goes_before_the_host_application() {
        assert_eq!(AccelChoice::Kvm.or(""), Ok(AccelChoice::Kvm));
        assert_eq!(AccelChoice::Kvm.or("tcg"), Ok(AccelChoice::Tcg));
        let error = AccelChoice::Tcg.or("hvf").unwrap_err();
        assert!(error.to_string().contains("takes `auto`, `kvm`"), "{error}");
    }
}
