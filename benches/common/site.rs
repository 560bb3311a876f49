//! Where a part works, and what it reads of its own process.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use novacron_core::store::SqliteStore;
use tempfile::TempDir;

use crate::Result;
use crate::figure::{Samples, millis, reported};

/// The clone.
#[must_use]
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// A folder on the clone's disk that is gone with its value.
pub fn folder() -> Result<TempDir> {
    let parent = root().join("target/bench");
    std::fs::create_dir_all(&parent)?;
    Ok(tempfile::Builder::new().prefix("").tempdir_in(parent)?)
}

/// A store in this folder, as a host application has it.
pub async fn store(folder: &Path) -> Result<SqliteStore> {
    Ok(SqliteStore::open(folder.join("novacron.db")).await?)
}

/// Reports how long the folder's disk takes to make a write of 4 KiB durable.
pub fn probe_sync(folder: &Path) -> Result<()> {
    use std::io::Write;
    let mut file = std::fs::File::create(folder.join("probe"))?;
    let mut samples = Vec::new();
    for _ in 0..100 {
        let start = Instant::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        samples.push(millis(start.elapsed()));
    }
    reported("disk-sync-median", Samples::new(samples).median(), "ms");
    Ok(())
}

/// How busy the machine has been during the last minute.
pub fn load() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    let first = text.split(' ').next();
    Ok(first.ok_or("no load in /proc/loadavg")?.parse()?)
}

/// Memory of this process that is in RAM, in MiB.
pub fn resident() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib = line.and_then(|l| l.split_whitespace().next());
    Ok(kib.ok_or("no VmRSS in /proc/self/status")?.parse::<f64>()? / 1024.0)
}

/// CPU time of every thread of this process so far.
pub fn cpu_time() -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, rest) = stat.rsplit_once(") ").ok_or("no name in /proc/self/stat")?;
    // After the name: state is the first field, user and system time are the 12th and 13th.
    let mut ticks = 0;
    for field in rest.split(' ').skip(11).take(2) {
        ticks += field.parse::<u64>()?;
    }
    Ok(Duration::from_millis(
        ticks * 1000 / rustix::param::clock_ticks_per_second(),
    ))
}

/// Lets time pass while something else is measured.
pub async fn pass(time: Duration) {
    let mut interval = tokio::time::interval(time);
    interval.tick().await;
    interval.tick().await;
}
