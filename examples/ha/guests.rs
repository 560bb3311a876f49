//! The witness: what runs and what is written, seen from outside of the cluster.
//!
//! It samples the machine's processes, follows every guest's console, and reads the volumes' files. From these, and from
//! no record, it tells whether a VM ran twice or a volume had two writers (`beat.sh` is what the guests do):
//!
//! | seen | wrong if |
//! |---|---|
//! | the QEMU processes, every 20 ms | a VM has two |
//! | heartbeats on the consoles | the volume does not hold one: what was acknowledged is lost, or another wrote over it |
//! | the volume's slots | one is missing, or a boot writes again after another has: two wrote at once |

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use novacron_core::model::VmId;
use novacron_examples::Result;

use crate::line::{Line, What};

/// Between two looks.
const SAMPLE: Duration = Duration::from_millis(20);
/// Characters of a boot's id.
const BOOT_ID: usize = 36;
/// Bytes of a heartbeat on the disk.
const SLOT: usize = 512;

/// A start of a VM on a host, by its folder there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Start {
    pub(crate) vm: VmId,
    pub(crate) host: String,
    pub(crate) epoch: u64,
}

/// A heartbeat that a console told.
#[derive(Clone, Debug)]
struct Beat {
    vm: VmId,
    n: usize,
    boot: String,
}

#[derive(Debug, Default)]
struct Evidence {
    running: BTreeMap<u32, Start>,
    beats: Vec<Beat>,
    problems: BTreeSet<String>,
}

/// The witness: it looks until it is dropped.
#[derive(Debug)]
pub(crate) struct Witness {
    evidence: Arc<Mutex<Evidence>>,
    /// Ends the thread when it is dropped.
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Witness {
    /// Begins to look at the guests of the hosts in `hosts`.
    pub(crate) fn begin(hosts: PathBuf, line: Line) -> Self {
        let evidence = Arc::new(Mutex::new(Evidence::default()));
        let (stop, stopped) = mpsc::channel();
        let shared = Arc::clone(&evidence);
        let thread = std::thread::spawn(move || {
            let mut consoles = BTreeMap::new();
            while stopped.recv_timeout(SAMPLE) == Err(RecvTimeoutError::Timeout) {
                look(&hosts, &shared, &line);
                listen(&hosts, &shared, &mut consoles, &line);
            }
        });
        Self {
            evidence,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn evidence(&self) -> MutexGuard<'_, Evidence> {
        lock(&self.evidence)
    }

    /// The QEMU processes at the last look.
    pub(crate) fn running(&self) -> Vec<(u32, Start)> {
        let evidence = self.evidence();
        evidence
            .running
            .iter()
            .map(|(pid, start)| (*pid, start.clone()))
            .collect()
    }

    /// The boot and the number of the VM's last heartbeat.
    pub(crate) fn last_beat(&self, vm: VmId) -> Option<(String, usize)> {
        let evidence = self.evidence();
        let last = evidence.beats.iter().rev().find(|beat| beat.vm == vm)?;
        Some((last.boot.clone(), last.n))
    }

    /// Fails if anything was wrong up to now. Says what was looked at.
    pub(crate) fn check(&self, vm: VmId, volume: &Path) -> Result<String> {
        // First the consoles, then the disk: it has them all.
        let (beats, problems) = {
            let evidence = self.evidence();
            let of_vm = evidence.beats.iter().filter(|beat| beat.vm == vm);
            (
                of_vm.cloned().collect::<Vec<_>>(),
                evidence.problems.clone(),
            )
        };
        if !problems.is_empty() {
            return Err(problems.into_iter().collect::<Vec<_>>().join("; ").into());
        }
        let slots = slots(volume)?;
        let (mut boots, mut ended) = (0, BTreeSet::new());
        for (i, boot) in slots.iter().enumerate() {
            let before = i.checked_sub(1).map(|i| &slots[i]);
            if before == Some(boot) {
                continue;
            }
            boots += 1;
            ended.extend(before);
            if ended.contains(boot) {
                let n = i + 1;
                return Err(format!(
                    "two wrote at once: boot {boot} writes slot {n} after another boot had begun"
                )
                .into());
            }
        }
        for beat in &beats {
            if slots.get(beat.n - 1) != Some(&beat.boot) {
                let (n, boot) = (beat.n, &beat.boot);
                return Err(format!(
                    "heartbeat {n} of boot {boot} was acknowledged, and is not on the disk"
                )
                .into());
            }
        }
        Ok(format!("{} heartbeats of {boots} boots", slots.len()))
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(evidence: &Mutex<Evidence>) -> MutexGuard<'_, Evidence> {
    evidence.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which boot wrote each slot, from the first on.
fn slots(volume: &Path) -> Result<Vec<String>> {
    let disk = std::fs::read(volume).map_err(|e| format!("{}: {e}", volume.display()))?;
    let mut slots = Vec::new();
    for (n, slot) in disk.chunks(SLOT).enumerate().skip(1) {
        if slot[0] == 0 {
            break;
        }
        let text = String::from_utf8_lossy(slot);
        match text.trim_end().split_once(' ') {
            Some((number, boot)) if number.parse() == Ok(n) => slots.push(boot.to_owned()),
            _ => return Err(format!("slot {n} holds {:?}", text.trim_end()).into()),
        }
    }
    Ok(slots)
}

/// Looks at the processes.
fn look(hosts: &Path, evidence: &Mutex<Evidence>, line: &Line) {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return;
    };
    let mut running = BTreeMap::new();
    for entry in entries.flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        if let Some((pid, start)) = pid.zip(start_of(&entry.path(), hosts)) {
            running.insert(pid, start);
        }
    }
    let mut evidence = lock(evidence);
    let before = std::mem::replace(&mut evidence.running, running.clone());
    let mut seen = BTreeMap::<VmId, &Start>::new();
    for start in running.values() {
        if let Some(other) = seen.insert(start.vm, start) {
            let problem = format!("VM {} ran twice at once: {other:?} and {start:?}", start.vm);
            evidence.problems.insert(problem);
        }
    }
    drop(evidence);
    let changes = running
        .iter()
        .filter(|(pid, _)| !before.contains_key(pid))
        .map(|s| (s.1, true));
    let gone = before
        .iter()
        .filter(|(pid, _)| !running.contains_key(pid))
        .map(|s| (s.1, false));
    for (start, there) in gone.chain(changes) {
        line.saw(
            "machine",
            What::Qemu(start.vm, start.host.clone(), start.epoch, there),
        );
    }
}

/// Which start it is, if it is a QEMU of one of the hosts: it works in its start's folder.
fn start_of(process: &Path, hosts: &Path) -> Option<Start> {
    let folder = std::fs::read_link(process.join("cwd")).ok()?;
    let start = parse(folder.strip_prefix(hosts).ok()?)?;
    let command = std::fs::read(process.join("cmdline")).ok()?;
    let program = command.split(|byte| *byte == 0).next()?;
    String::from_utf8_lossy(program)
        .contains("qemu-system")
        .then_some(start)
}

/// `<host>/<vm>/<epoch>`.
fn parse(folder: &Path) -> Option<Start> {
    let mut parts = folder.iter().map(|part| part.to_str());
    Some(Start {
        host: parts.next()??.to_owned(),
        vm: parts.next()??.parse().ok()?,
        epoch: parts.next()??.parse().ok()?,
    })
}

/// A console's log, read up to here.
struct Console {
    file: File,
    rest: String,
    heard: bool,
    /// The heartbeat that could not be written just now.
    failed: Option<String>,
}

/// Reads what the guests said. A log stays open when its folder is removed, so nothing is missed.
fn listen(
    hosts: &Path,
    evidence: &Mutex<Evidence>,
    consoles: &mut BTreeMap<Start, Console>,
    line: &Line,
) {
    let running: Vec<Start> = lock(evidence).running.values().cloned().collect();
    for start in running {
        let folder = hosts.join(&start.host).join(start.vm.to_string());
        let log = folder.join(start.epoch.to_string()).join("console.log");
        if !consoles.contains_key(&start)
            && let Ok(file) = File::open(log)
        {
            let console = Console {
                file,
                rest: String::new(),
                heard: false,
                failed: None,
            };
            consoles.insert(start, console);
        }
    }
    for (start, console) in consoles {
        let mut bytes = Vec::new();
        if console.file.read_to_end(&mut bytes).is_err() || bytes.is_empty() {
            continue;
        }
        console.rest.push_str(&String::from_utf8_lossy(&bytes));
        let rest = console.rest.rfind('\n').map_or(0, |at| at + 1);
        let said: String = console.rest.drain(..rest).collect();
        for words in said
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
        {
            match words[..] {
                // A line that was cut or garbled as its QEMU was killed acknowledges nothing.
                ["BEAT", n, boot] if boot.len() == BOOT_ID => {
                    let Ok(n) = n.parse() else { continue };
                    let boot = boot.to_owned();
                    let mut evidence = lock(evidence);
                    if let Some(failed) = console.failed.take() {
                        let problem =
                            format!("{start:?} could not write heartbeat {failed}, and went on");
                        evidence.problems.insert(problem);
                    }
                    evidence.beats.push(Beat {
                        vm: start.vm,
                        n,
                        boot,
                    });
                    drop(evidence);
                    if !std::mem::replace(&mut console.heard, true) {
                        let first = What::FirstBeat(start.vm, start.host.clone(), start.epoch);
                        line.saw("guest", first);
                    }
                }
                // A guest that powers off takes the disk away before it ends.
                ["NO-BEAT", n, _] => console.failed = Some(n.to_owned()),
                _ => {}
            }
        }
    }
}
