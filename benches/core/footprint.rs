//! What it costs to build and to carry: `cargo build -p novacron-core` from cold, its crates, the quickstart's size.
//!
//! The build has a target folder of its own and is offline, so that no download is in its time: the sources must be there,
//! as they are after the build of this program.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::Result;
use crate::figure::{promised, remark, reported};
use crate::site::{folder, root};

fn cargo(target: &Path, arguments: &[&str]) -> Result<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(arguments)
        .args(["--locked", "--offline"])
        .env("CARGO_TARGET_DIR", target)
        .env_remove("RUSTC_WRAPPER")
        .current_dir(root())
        .output()?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("cargo {arguments:?}: {words}").into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// CPU time of the children that have ended.
fn children() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, rest) = stat.rsplit_once(") ").ok_or("no name in /proc/self/stat")?;
    let mut ticks = 0;
    for field in rest.split(' ').skip(13).take(2) {
        ticks += field.parse::<u64>()?;
    }
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

pub(crate) fn run() -> Result<()> {
    let folder = folder()?;
    let (start, cpu) = (Instant::now(), children()?);
    cargo(folder.path(), &["build", "-p", "novacron-core"])?;
    promised(
        "core-build-cold",
        start.elapsed().as_secs_f64(),
        "s",
        "< 90",
    );
    reported("core-build-cold-cpu", children()? - cpu, "s");

    let tree = [
        "tree",
        "-p",
        "novacron-core",
        "-e",
        "normal,build",
        "--prefix",
        "none",
    ];
    let tree = cargo(folder.path(), &tree)?;
    let crates: std::collections::BTreeSet<&str> = tree
        .lines()
        .map(|l| l.trim_end_matches(" (*)"))
        .filter(|l| !l.is_empty())
        .collect();
    promised("core-crates", crates.len() as f64, "crates", "< 150");

    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into);
    remark("building the quickstart for release, if it is not there");
    cargo(
        &target,
        &[
            "build",
            "--release",
            "-p",
            "novacron-examples",
            "--bin",
            "quickstart",
        ],
    )?;
    let stripped = folder.path().join("quickstart");
    let status = Command::new("strip")
        .arg("-o")
        .arg(&stripped)
        .arg(target.join("release/quickstart"))
        .status()
        .map_err(|e| format!("strip (apt install binutils): {e}"))?;
    if !status.success() {
        return Err("strip failed".into());
    }
    let bytes = std::fs::metadata(&stripped)?.len();
    promised("quickstart-stripped", bytes as f64 / 1e6, "MB", "< 15");
    Ok(())
}
