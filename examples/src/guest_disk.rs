//! The guest's disk: built once by `examples/guest/build.sh`, then kept in the user's cache.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::SystemTime;

use tokio::process::Command;

use crate::Result;

/// Where the guest's sources are.
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/guest");

/// Where the disk is kept.
pub fn path() -> Result<PathBuf> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let cache =
        absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    let cache =
        cache.ok_or("neither XDG_CACHE_HOME nor HOME names a folder for the guest's disk")?;
    Ok(cache.join("novacron/guest.qcow2"))
}

/// Builds the disk unless there is one that is newer than its sources. Returns what was done.
pub async fn build(disk: &Path) -> Result<String> {
    let built = std::fs::metadata(disk).and_then(|m| m.modified()).ok();
    if built.is_some_and(|built| newest(Path::new(SOURCES)).is_ok_and(|source| source < built)) {
        return Ok(format!("{} is newer than its sources", disk.display()));
    }
    let cache = disk.parent().ok_or("the disk has no folder")?;
    std::fs::create_dir_all(cache)?;
    let output = Command::new("sh")
        .arg(Path::new(SOURCES).join("build.sh"))
        .arg(disk)
        .arg(cache.join("guest"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?;
    if !output.status.success() {
        return Err(format!(
            "build.sh: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        )
        .into());
    }
    Ok(format!(
        "built {}, {} MB",
        disk.display(),
        std::fs::metadata(disk)?.len() / 1_000_000
    ))
}

/// When something under `path` was changed last.
fn newest(path: &Path) -> std::io::Result<SystemTime> {
    let mut newest = std::fs::symlink_metadata(path)?.modified()?;
    if path.is_dir() {
        for entry in std::fs::read_dir(path)? {
            newest = newest.max(self::newest(&entry?.path())?);
        }
    }
    Ok(newest)
}
