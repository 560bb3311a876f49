//! How much a guest may send and receive over a tap device: the kernel's traffic control, by `tc` (iproute2).
//!
//! ```text
//!   to the guest:    egress of the device  ──► token bucket (tbf): what is too fast waits, then is dropped
//!   from the guest:  ingress of the device ──► policer: what is too fast is dropped
//! ```
//! They are the device's, and go with it. Both are as libvirt and Proxmox do it, for a device's ingress has no queue.

use novacron_core::Result;
use novacron_core::driver::Call;
use novacron_core::model::NicLimits;
use serde_json::Value;

use super::net::run;

/// A packet that the guest left the splitting of to the host may be so large.
const LARGEST: u64 = 64 * 1024;

/// Sets the limits of a device, in place of what was set before.
pub(super) async fn limit(
    device: &str,
    limits: &NicLimits,
    call: Call,
    operation: &'static str,
) -> Result<()> {
    if *limits == NicLimits::default() && !is_there() {
        return Ok(());
    }
    let shown = run(
        "tc",
        &["-j", "qdisc", "show", "dev", device],
        call,
        operation,
    )
    .await?;
    for words in commands(device, limits, &Present::of(&shown)) {
        let words: Vec<_> = words.split(' ').collect();
        run("tc", &words, call, operation).await?;
    }
    Ok(())
}

/// Whether this host has the program.
pub(super) fn is_there() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join("tc").exists())
}

/// What of ours a device has.
#[derive(Debug, Default, PartialEq, Eq)]
struct Present {
    bucket: bool,
    policer: bool,
}

impl Present {
    /// From `tc -j qdisc show`.
    fn of(shown: &[u8]) -> Self {
        let list: Vec<Value> = serde_json::from_slice(shown).unwrap_or_default();
        let has = |kind: &str| list.iter().any(|qdisc| qdisc["kind"] == kind);
        Self {
            bucket: has("tbf"),
            policer: has("ingress"),
        }
    }
}

/// What `tc` is told, one after another.
fn commands(device: &str, limits: &NicLimits, present: &Present) -> Vec<String> {
    let mut commands = Vec::new();
    // What may come at once is a tenth of a second's, for the kernel looks a few hundred times a second.
    let burst = |rate: u64| (rate / 10).max(LARGEST);
    match limits.inbound_bytes_sec {
        Some(rate) => commands.push(format!(
            "qdisc replace dev {device} root tbf rate {rate}bps burst {} latency 100ms",
            burst(rate)
        )),
        None if present.bucket => commands.push(format!("qdisc del dev {device} root")),
        None => {}
    }
    if present.policer {
        commands.push(format!("qdisc del dev {device} ingress"));
    }
    if let Some(rate) = limits.outbound_bytes_sec {
        commands.push(format!("qdisc add dev {device} ingress"));
        commands.push(format!(
            "filter add dev {device} parent ffff: protocol all prio 1 u32 match u32 0 0 \
             police rate {rate}bps burst {} mtu {LARGEST} drop flowid :1",
            burst(rate)
        ));
    }
    commands
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_set_changed_and_lifted() {
        let limits = NicLimits {
            inbound_bytes_sec: Some(10_000_000),
            outbound_bytes_sec: Some(1024),
        };
        let nothing = Present::default();
        let set = [
            "qdisc replace dev t0 root tbf rate 10000000bps burst 1000000 latency 100ms",
            "qdisc add dev t0 ingress",
            "filter add dev t0 parent ffff: protocol all prio 1 u32 match u32 0 0 \
             police rate 1024bps burst 65536 mtu 65536 drop flowid :1",
        ];
        assert_eq!(commands("t0", &limits, &nothing), set);
        let shown = r#"[{"kind":"tbf","root":true},{"kind":"ingress","parent":"ffff:fff1"}]"#;
        let both = Present::of(shown.as_bytes());
        let lifted = ["qdisc del dev t0 root", "qdisc del dev t0 ingress"];
        assert_eq!(commands("t0", &NicLimits::default(), &both), lifted);
        assert_eq!(commands("t0", &NicLimits::default(), &nothing), [""; 0]);
        assert_eq!(Present::of(b"[]"), nothing);
    }
}
