//! How a NIC reaches its network, settled on this host before QEMU is asked.
//!
//! A tap device that a network driver has made is taken as it is. User-mode networks need nothing; their forwarded ports
//! are tried first, so that a taken one is named. A bridge needs a tap device: with `CAP_NET_ADMIN` QEMU makes it (it goes
//! with QEMU, so nothing is left behind) and `ip` puts it on the bridge; without, QEMU's own set-uid helper does if its
//! administrator allowed the bridge; else it is refused, with the reason. The device's MTU and limits are set by `ip` and
//! by `tc` ([`super::shaping`]), and go with it.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use novacron_core::driver::Call;
use novacron_core::model::{NicLimits, PortBinding, PortForward, PortId, Protocol};
use novacron_core::{Error, ErrorKind, Result};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::timeout;

use super::devices::{base32, link_id};
use super::spec::StoredNic;
use super::{error, shaping};
use crate::privilege;

const HELPERS: [&str; 3] = [
    "/usr/lib/qemu/qemu-bridge-helper",
    "/usr/libexec/qemu-bridge-helper",
    "/usr/lib/qemu-bridge-helper",
];
const HELPER_RULES: &str = "/etc/qemu/bridge.conf";
/// Of a tap device (`linux/if_tun.h`).
const IFF_MULTI_QUEUE: u32 = 0x0100;

/// A NIC's way to its network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// User mode, with these forwards.
    User(Vec<String>),
    /// A tap device with so many queues that QEMU makes and we put on the bridge, or that somebody else made and connected.
    Tap { device: String, queues: u16 },
    /// A tap device that QEMU's helper makes and puts on the bridge.
    Helper { helper: String, bridge: String },
}

impl Link {
    /// Settles it.
    pub(super) fn plan(nic: &StoredNic, operation: &'static str) -> Result<Self> {
        let queues = nic.options.queues;
        match &nic.binding {
            PortBinding::User => {
                let rules = nic.forwards.iter().map(|forward| rule(forward, operation));
                Ok(Self::User(rules.collect::<Result<_>>()?))
            }
            PortBinding::Bridge { .. } | PortBinding::Tap { .. } if !nic.forwards.is_empty() => {
                let message = "ports can be forwarded on user-mode networks only";
                Err(Error::new(ErrorKind::Unsupported, operation, message).with("port", nic.port))
            }
            PortBinding::Tap { device } => Self::ready_made(device, queues).map_err(|reason| {
                let message = format!("no tap device {device}: {reason}");
                Error::new(ErrorKind::FailedPrecondition, operation, message).with("port", nic.port)
            }),
            PortBinding::Bridge { bridge } => {
                Self::on_bridge(bridge, nic).map_err(|(kind, reason)| {
                    Error::new(
                        kind,
                        operation,
                        format!("no tap device on bridge {bridge}: {reason}"),
                    )
                    .with("port", nic.port)
                })
            }
        }
    }

    /// A device that is there: QEMU would silently make a new one under a name that is not.
    fn ready_made(device: &str, queues: u16) -> Result<Self, &'static str> {
        if !is_interface_name(device) {
            return Err("that is no interface's name");
        }
        let flags = Path::new("/sys/class/net").join(device).join("tun_flags");
        let Ok(flags) = std::fs::read_to_string(flags) else {
            return Err("this host has no such tap device");
        };
        let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap_or(0);
        if queues > 1 && flags & IFF_MULTI_QUEUE == 0 {
            return Err("it was made with one queue, and the NIC is to have several");
        }
        Ok(Self::Tap {
            device: device.to_owned(),
            queues,
        })
    }

    fn on_bridge(bridge: &str, nic: &StoredNic) -> Result<Self, (ErrorKind, String)> {
        if !is_interface_name(bridge)
            || !Path::new("/sys/class/net")
                .join(bridge)
                .join("bridge")
                .exists()
        {
            return Err((
                ErrorKind::FailedPrecondition,
                "this host has no such bridge".to_owned(),
            ));
        }
        let (way, wanted) = (may_make_taps(bridge)?, &nic.options);
        match way {
            Way::Ourselves => Ok(Self::Tap {
                device: tap_name(nic.port),
                queues: wanted.queues,
            }),
            Way::Helper(_) if !wanted.problems_without_device().is_empty() => Err((
                ErrorKind::PermissionDenied,
                "queues, an MTU and limits of a NIC take CAP_NET_ADMIN, which this process lacks"
                    .to_owned(),
            )),
            Way::Helper(helper) => Ok(Self::Helper {
                helper: helper.to_owned(),
                bridge: bridge.to_owned(),
            }),
        }
    }

    /// As the command line takes it.
    pub(super) fn key_value(&self, port: PortId) -> String {
        let id = link_id(port);
        match self {
            Self::User(rules) => {
                let rules: String = rules
                    .iter()
                    .map(|rule| format!(",hostfwd={rule}"))
                    .collect();
                format!("user,id={id}{rules}")
            }
            Self::Tap { device, queues } => {
                let tap = format!("tap,id={id},ifname={device},script=no,downscript=no");
                match queues {
                    1 => tap,
                    _ => format!("{tap},queues={queues}"),
                }
            }
            Self::Helper { helper, bridge } => {
                format!("bridge,id={id},br={bridge},helper={helper}")
            }
        }
    }

    /// As the monitor takes it.
    pub(super) fn arguments(&self, port: PortId) -> Value {
        let id = link_id(port);
        match self {
            Self::User(rules) => {
                let rules: Vec<Value> = rules.iter().map(|rule| json!({ "str": rule })).collect();
                json!({ "type": "user", "id": id, "hostfwd": rules })
            }
            Self::Tap { device, queues } => {
                let mut tap = json!({ "type": "tap", "id": id, "ifname": device, "script": "no", "downscript": "no" });
                if *queues > 1 {
                    tap["queues"] = (*queues).into();
                }
                tap
            }
            Self::Helper { helper, bridge } => {
                json!({ "type": "bridge", "id": id, "br": bridge, "helper": helper })
            }
        }
    }
}

/// Finishes a NIC's way, once QEMU has its device: it goes onto its bridge, with its MTU and its limits.
pub(super) async fn connect(nic: &StoredNic, call: Call, operation: &'static str) -> Result<()> {
    let Some(device) = device_of(nic) else {
        return Ok(());
    };
    let mut words = vec!["link", "set", "dev", &device];
    if let PortBinding::Bridge { bridge } = &nic.binding {
        words.extend(["master", bridge, "up"]);
    }
    let mtu = nic.options.mtu.map(|mtu| mtu.to_string());
    words.extend(mtu.iter().flat_map(|mtu| ["mtu", mtu]));
    if words.len() > 4 {
        run("ip", &words, call, operation).await?;
    }
    if nic.options.limits != NicLimits::default() {
        shaping::limit(&device, &nic.options.limits, call, operation).await?;
    }
    Ok(())
}

/// The tap device of a NIC on this host; none on a user-mode network, or where QEMU's helper made one.
pub(super) fn device_of(nic: &StoredNic) -> Option<String> {
    match &nic.binding {
        PortBinding::User => None,
        PortBinding::Tap { device } => Some(device.clone()),
        PortBinding::Bridge { .. } => {
            let device = tap_name(nic.port);
            Path::new("/sys/class/net")
                .join(&device)
                .exists()
                .then_some(device)
        }
    }
}

/// Runs a program of iproute2's, and returns what it printed.
pub(super) async fn run(
    program: &str,
    words: &[&str],
    call: Call,
    operation: &'static str,
) -> Result<Vec<u8>> {
    let failed = |kind, reason: &str| {
        let message = format!("`{program} {}` failed: {reason}", words.join(" "));
        Error::new(kind, operation, message)
    };
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(error::remaining(call, operation)?, command.output()).await;
    let output = match output {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => {
            let reason = format!("{error}; it is a program of iproute2");
            return Err(failed(ErrorKind::Unsupported, &reason));
        }
        Err(_) => {
            return Err(failed(
                ErrorKind::OutcomeUnknown,
                "it has not ended in time",
            ));
        }
    };
    if output.status.success() {
        return Ok(output.stdout);
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let kind = if words.contains("not permitted") {
        ErrorKind::PermissionDenied
    } else {
        ErrorKind::Unsupported
    };
    Err(failed(kind, words.trim()))
}

/// Whether the kernel, a path and QEMU's command line take it as an interface's name (`IFNAMSIZ`).
fn is_interface_name(name: &str) -> bool {
    (1..16).contains(&name.len()) && !name.contains(['/', ',', ' ']) && ![".", ".."].contains(&name)
}

/// The name of a port's tap device: at most 15 bytes, from the random end of the id.
pub(super) fn tap_name(port: PortId) -> String {
    format!("nc{}", &base32(port.uuid().as_u128())[13..])
}

enum Way {
    Ourselves,
    Helper(&'static str),
}

/// Whether taps can be put on some bridge of this host.
pub(super) fn bridges_work() -> bool {
    may_make_taps("").is_ok()
}

/// `bridge` may be empty: then any rule of the helper will do.
fn may_make_taps(bridge: &str) -> Result<Way, (ErrorKind, String)> {
    if !Path::new("/dev/net/tun").exists() {
        return Err((
            ErrorKind::Unsupported,
            "there is no /dev/net/tun".to_owned(),
        ));
    }
    let opened = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun");
    let no_tun = match (privilege::is_effective(privilege::NET_ADMIN), opened) {
        (true, Ok(_)) => return Ok(Way::Ourselves),
        (true, Err(error)) => format!("/dev/net/tun does not open ({error})"),
        (false, _) => "this process lacks CAP_NET_ADMIN".to_owned(),
    };
    let denied = |reason: String| {
        (
            ErrorKind::PermissionDenied,
            format!("{no_tun}, and {reason}"),
        )
    };
    let set_uid = |path: &&&str| {
        std::fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o4000 != 0)
    };
    let Some(helper) = HELPERS.iter().find(set_uid) else {
        return Err(denied(
            "QEMU's bridge helper is not installed set-uid root".to_owned(),
        ));
    };
    let rules = std::fs::read_to_string(HELPER_RULES).unwrap_or_default();
    let allowed = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("allow"))
        .map(str::trim);
    if allowed
        .into_iter()
        .any(|name| name == bridge || name == "all" || bridge.is_empty())
    {
        return Ok(Way::Helper(helper));
    }
    Err(denied(format!(
        "{HELPER_RULES} does not say `allow {bridge}`"
    )))
}

/// QEMU's rule for a forward, whose port on the host is free at the moment. QEMU says so too, but not which one.
fn rule(forward: &PortForward, operation: &'static str) -> Result<String> {
    let PortForward {
        protocol,
        host_addr,
        host_port,
        guest_port,
    } = forward;
    let IpAddr::V4(address) = host_addr else {
        let message = format!(
            "cannot forward {host_addr}: QEMU's user-mode network listens on IPv4 addresses only"
        );
        return Err(Error::new(ErrorKind::Unsupported, operation, message));
    };
    let socket = SocketAddr::new(*host_addr, *host_port);
    let (name, bound) = match protocol {
        Protocol::Tcp => ("tcp", TcpListener::bind(socket).map(drop)),
        Protocol::Udp => ("udp", UdpSocket::bind(socket).map(drop)),
    };
    bound.map_err(|error| {
        let kind = match error.kind() {
            std::io::ErrorKind::AddrInUse => ErrorKind::Exhausted,
            std::io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
            _ => ErrorKind::FailedPrecondition,
        };
        Error::new(
            kind,
            operation,
            format!("cannot forward the host's {name} port {socket}: {error}"),
        )
    })?;
    Ok(format!("{name}:{address}:{host_port}-:{guest_port}"))
}
