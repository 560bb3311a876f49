//! The network: a namespace for each host, and a hub between them. Nothing of it is seen by the machine.
//!
//! ```text
//!   novacron-ha-<pid>-hub     bridge br0, 10.77.0.254     the director, PostgreSQL
//!      ├─ port-a ─── eth0, 10.77.0.1   novacron-ha-<pid>-a     host a, its etcd member
//!      ├─ port-b ─── eth0, 10.77.0.2   novacron-ha-<pid>-b     …
//!      └─ port-c ─── eth0, 10.77.0.3   novacron-ha-<pid>-c
//! ```
//! A host is cut off by taking its port down. The namespaces go with their [`Net`]; those of a director that was killed
//! are removed by the next one: their names say whose they were.

use std::process::{Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::Result;

/// The hosts, in the order of their addresses.
pub(crate) const HOSTS: [&str; 3] = ["a", "b", "c"];
/// The hub's address.
pub(crate) const HUB: &str = "10.77.0.254";
const PREFIX: &str = "novacron-ha-";
const RIGHTS: &str = "network namespaces need root: sudo make ha; in a container also the capabilities SYS_ADMIN and \
                      NET_ADMIN (docker run --cap-add SYS_ADMIN --cap-add NET_ADMIN)";

/// The address of a host.
pub(crate) fn address(host: &str) -> String {
    let n = HOSTS.iter().position(|h| *h == host).unwrap_or_default() + 1;
    format!("10.77.0.{n}")
}

/// The hub's end of the cable to a host.
fn port(host: &str) -> String {
    format!("port-{host}")
}

/// The namespaces of this process.
#[derive(Debug)]
pub(crate) struct Net(u32);

impl Net {
    /// Makes them, and moves this thread into the hub: call it before there is another.
    pub(crate) fn make() -> Result<Self> {
        let version = Command::new("ip").arg("-V").output();
        version.map_err(|e| format!("ip: {e}; apt-get install iproute2"))?;
        remove_leftovers()?;
        let net = Self(std::process::id());
        let hub = net.namespace("hub");
        ip(&["netns", "add", &hub]).map_err(|e| format!("{e}; {RIGHTS}"))?;
        ip(&["-n", &hub, "link", "set", "lo", "up"])?;
        ip(&["-n", &hub, "link", "add", "br0", "type", "bridge"])?;
        ip(&[
            "-n",
            &hub,
            "addr",
            "add",
            &format!("{HUB}/24"),
            "dev",
            "br0",
        ])?;
        ip(&["-n", &hub, "link", "set", "br0", "up"])?;
        for host in HOSTS {
            let (there, address, port) = (net.namespace(host), address(host), port(host));
            ip(&["netns", "add", &there])?;
            ip(&["-n", &there, "link", "set", "lo", "up"])?;
            let pair = [
                "-n", &hub, "link", "add", &port, "type", "veth", "peer", "name", "eth0",
            ];
            ip(&[&pair[..], &["netns", &there]].concat())?;
            ip(&["-n", &hub, "link", "set", &port, "master", "br0", "up"])?;
            ip(&[
                "-n",
                &there,
                "addr",
                "add",
                &format!("{address}/24"),
                "dev",
                "eth0",
            ])?;
            ip(&["-n", &there, "link", "set", "eth0", "up"])?;
        }
        let hub = std::fs::File::open(format!("/run/netns/{hub}"))?;
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&hub), kind)
            .map_err(|e| format!("cannot enter the hub's namespace: {e}; {RIGHTS}"))?;
        Ok(net)
    }

    /// The name of a host's namespace.
    pub(crate) fn namespace(&self, host: &str) -> String {
        format!("{PREFIX}{}-{host}", self.0)
    }

    /// Cuts a host off.
    pub(crate) fn cut(&self, host: &str) -> Result<()> {
        self.set_link(host, "down")
    }

    /// Lets it back.
    pub(crate) fn mend(&self, host: &str) -> Result<()> {
        self.set_link(host, "up")
    }

    fn set_link(&self, host: &str, state: &str) -> Result<()> {
        let (hub, port) = (self.namespace("hub"), port(host));
        ip(&["-n", &hub, "link", "set", &port, state])
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for host in HOSTS.iter().chain(&["hub"]) {
            // Those that were not made are not there.
            let _ = ip(&["netns", "del", &self.namespace(host)]);
        }
    }
}

/// Removes the namespaces of directors that are no more.
fn remove_leftovers() -> Result<()> {
    let Ok(entries) = std::fs::read_dir("/run/netns") else {
        return Ok(());
    };
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let pid = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !std::path::Path::new("/proc").join(pid).exists()) {
            ip(&["netns", "del", &name])?;
        }
    }
    Ok(())
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("ip {}: {}", arguments.join(" "), said.trim()).into())
}
