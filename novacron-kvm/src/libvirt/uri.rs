//! Whether a connection's URI leads to this host.

/// Whether libvirt's files are this process's files: no transport but a unix socket, and no host.
pub(super) fn is_local(uri: &str) -> bool {
    let Some((scheme, rest)) = uri.split_once("://") else {
        return false;
    };
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let transport = scheme.split_once('+').map(|(_, transport)| transport);
    let driver = scheme.split('+').next().unwrap_or_default();
    authority.is_empty()
        && matches!(transport, None | Some("unix"))
        && matches!(
            driver,
            "qemu" | "test" | "lxc" | "xen" | "vbox" | "ch" | "bhyve"
        )
}

#[cfg(test)]
mod tests {
    use super::is_local;

    #[test]
    fn unix_sockets_and_drivers_in_the_process_are_local() {
        for uri in [
            "qemu:///system",
            "qemu:///session",
            "qemu:///embed?root=/srv/x",
            "qemu+unix:///session?socket=/run/x",
            "test:///default",
        ] {
            assert!(is_local(uri), "{uri}");
        }
        for uri in [
            "qemu+tls://beta/system",
            "qemu+ssh://root@beta/system",
            "qemu://beta/system",
            "qemu+tcp://127.0.0.1/system",
            "qemu+ssh:///system",
            "esx://esx1/",
            "nonsense",
        ] {
            assert!(!is_local(uri), "{uri}");
        }
    }
}
