//! Which process is meant: a pid alone is reused, so it goes together with its start time and the host's boot id.

use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

/// The host's boot id, as the kernel tells it.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// A process, told from every other one that ever had its pid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// The pid.
    pub(crate) pid: u32,
    /// Clock ticks after boot at which it started (`/proc/<pid>/stat`, field 22).
    pub(crate) start_time: u64,
    /// The boot during which it ran.
    pub(crate) boot_id: String,
}

impl Identity {
    /// The identity of the process that has this pid now; `None` when there is none.
    pub(crate) fn of(pid: u32) -> io::Result<Option<Self>> {
        let boot_id = boot_id()?;
        Ok(ProcessStat::read(pid)?.map(|stat| Self {
            pid,
            start_time: stat.start_time,
            boot_id,
        }))
    }

    /// This process.
    pub(crate) fn own() -> io::Result<Self> {
        Self::of(std::process::id())?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Whether there is still such a process, be it a zombie.
    pub(crate) fn is_alive(&self) -> bool {
        Self::of(self.pid).is_ok_and(|now| now.as_ref() == Some(self))
    }
}

/// The field of `/proc/<pid>/stat` that matters here.
#[derive(Debug, PartialEq, Eq)]
struct ProcessStat {
    start_time: u64,
}

impl ProcessStat {
    fn read(pid: u32) -> io::Result<Option<Self>> {
        match fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(text) => Self::parse(&text)
                .map(Some)
                .ok_or_else(|| io::Error::other("/proc/<pid>/stat is malformed")),
            // ESRCH: it ended between open and read.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(3) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The command's name may hold blanks and parentheses, so the fields are counted from the last `)`.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace();
        fields.next()?;
        // The state is field 3, so field 22 is the 19th after it.
        let start_time = fields.nth(18)?.parse().ok()?;
        Some(Self { start_time })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_command_name_does_not_shift_the_fields() {
        let text = "7 (a) Z 1) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 99";
        assert_eq!(
            ProcessStat::parse(text),
            Some(ProcessStat { start_time: 4711 })
        );
    }
}
