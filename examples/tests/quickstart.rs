//! The main job from end to end, on a real guest: what `make demo` shows.

use std::process::Command;

#[test]
fn one_vm_from_spec_to_a_booted_guest_and_back() {
    let output = Command::new(env!("CARGO_BIN_EXE_quickstart"))
        .output()
        .unwrap();
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert!(stdout.contains("steps passed"), "{stdout}");
}
