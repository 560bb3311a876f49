//! What a demonstration may leave behind: QEMU processes and files. Only its own are looked at, and only its own are
//! ever ended: their command line names its temporary folder, which has a name that nothing else has.

use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::Result;

/// The QEMU processes that use the folder `dir`.
pub fn guests(dir: &Path) -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.parse().ok())
            .and_then(Pid::from_raw);
        if let Some(pid) = pid.filter(|pid| is_guest(*pid, dir)) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Whether the process is a QEMU whose command line, or working folder, lies in `dir`.
fn is_guest(pid: Pid, dir: &Path) -> bool {
    let proc = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
    let command = std::fs::read(proc.join("cmdline")).unwrap_or_default();
    let program = command.split(|byte| *byte == 0).next().unwrap_or_default();
    let dir_bytes = dir.as_os_str().as_encoded_bytes();
    let names_dir = command
        .windows(dir_bytes.len())
        .any(|window| window == dir_bytes)
        || std::fs::read_link(proc.join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
    String::from_utf8_lossy(program).contains("qemu-system") && names_dir
}

/// Ends the guests that use `dir`, after something went wrong. Returns how many there were.
pub fn end_guests(dir: &Path) -> Result<usize> {
    let guests = guests(dir)?;
    for pid in &guests {
        // The descriptor holds on to this very process; look again, now that the number cannot change its owner.
        if let Ok(process) = pidfd_open(*pid, PidfdFlags::empty())
            && is_guest(*pid, dir)
        {
            let _ = pidfd_send_signal(&process, Signal::KILL);
        }
    }
    Ok(guests.len())
}

/// Every file, socket and link under `dir`. Empty folders and lock files, which are reused, do not count.
pub fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?);
        } else if !entry.file_name().as_encoded_bytes().ends_with(b"lock") {
            found.push(entry.path());
        }
    }
    Ok(found)
}
