//! The quickstart whose second node is driven by libvirt, in the program itself: what `make demo-libvirt` shows. As root.

use std::process::Command;

/// libvirt looks its own user up, even where it is told another one; this machine may not have it.
const WITH_ITS_USER: &str = r#"
set -e
for file in passwd group; do cp /etc/$file "$0/$file"; done
grep -q ^libvirt-qemu: "$0/passwd" || echo 'libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin' >> "$0/passwd"
grep -q ^libvirt-qemu: "$0/group" || echo 'libvirt-qemu:x:64055:' >> "$0/group"
for file in passwd group; do mount --bind "$0/$file" /etc/$file; done
exec "$@"
"#;

#[test]
fn a_vm_moves_from_qemu_to_a_libvirt_in_the_program() -> std::io::Result<()> {
    let folder = tempfile::tempdir()?;
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", WITH_ITS_USER])
        .arg(folder.path())
        .args([env!("CARGO_BIN_EXE_quickstart"), "libvirt"])
        .output()?;
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert!(stdout.contains("(libvirt "), "{stdout}");
    assert!(stdout.contains("move the stopped VM to beta"), "{stdout}");
    Ok(())
}
