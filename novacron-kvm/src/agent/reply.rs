//! Decoding what a guest says.

use novacron_core::driver::GuestAddress;
use serde_json::Value;

/// Most NICs, and most addresses of one, that are taken from a guest's list.
const MOST: usize = 256;
/// The longest error text taken from a guest.
const LONGEST_TEXT: usize = 500;

/// One NIC as the guest sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    /// Its name in the guest.
    pub(crate) name: String,
    /// Its MAC address, if it has one.
    pub(crate) mac: Option<String>,
    /// Its IP addresses, each with the length of its network's prefix.
    pub(crate) addresses: Vec<(std::net::IpAddr, u8)>,
}

/// An answer, or `None` for a line that is not one.
pub(crate) fn decode(line: &[u8]) -> Option<Result<Value, String>> {
    // The agent marks the answer to `guest-sync-delimited` with a byte that no JSON text holds; half a line that an
    // earlier session left may stand before it.
    let start = line
        .iter()
        .rposition(|&byte| byte == 0xff)
        .map_or(0, |at| at + 1);
    let Ok(Value::Object(mut object)) = serde_json::from_slice(&line[start..]) else {
        return None;
    };
    if let Some(value) = object.remove("return") {
        return Some(Ok(value));
    }
    let error = object.remove("error")?;
    let text = error
        .get("desc")
        .and_then(Value::as_str)
        .unwrap_or("no reason given");
    Some(Err(text
        .chars()
        .filter(|c| !c.is_control())
        .take(LONGEST_TEXT)
        .collect()))
}

/// The addresses of these NICs, each by itself.
pub(crate) fn addresses(interfaces: Vec<Interface>) -> Vec<GuestAddress> {
    let flat = interfaces.into_iter().flat_map(|nic| {
        let mac = nic.mac.and_then(|mac| mac.parse().ok());
        nic.addresses
            .into_iter()
            .map(move |(address, prefix)| GuestAddress {
                interface: nic.name.clone(),
                mac,
                address,
                prefix,
            })
    });
    flat.collect()
}

/// The list of `guest-network-get-interfaces`; entries that make no sense are left out.
pub(crate) fn interfaces(reply: &Value) -> Option<Vec<Interface>> {
    let list = reply.as_array()?;
    Some(list.iter().take(MOST).filter_map(interface).collect())
}

fn interface(entry: &Value) -> Option<Interface> {
    let text = |key: &str| entry.get(key).and_then(Value::as_str);
    let addresses = entry
        .get("ip-addresses")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    let address = |entry: &Value| {
        let address: std::net::IpAddr = entry.get("ip-address")?.as_str()?.parse().ok()?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = entry
            .get("prefix")
            .and_then(Value::as_u64)
            .and_then(|prefix| u8::try_from(prefix).ok());
        Some((address, prefix.unwrap_or(longest).min(longest)))
    };
    Some(Interface {
        name: text("name")?.chars().take(64).collect(),
        mac: text("hardware-address").map(|mac| mac.chars().take(64).collect()),
        addresses: addresses.iter().take(MOST).filter_map(address).collect(),
    })
}
