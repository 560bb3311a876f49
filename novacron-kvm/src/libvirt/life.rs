//! Define, start, stop, undefine: each one piece of work on a thread that may block, with the right to the domain's life.
//!
//! **No two epochs of a VM on one host.** libvirt has no lock that a QEMU inherits, so a start looks twice:
//!
//! ```text
//!   others run? ──► note `started` ──► create, vCPUs held ──► others run? asked to end meanwhile? ──► paused
//!        └ yes: refused, still Defined                              └ yes: destroyed, noted, refused
//! ```
//! Of two starts at once, by whomever, each is in memory before it looks the second time: at least one sees the other,
//! perhaps both, and neither vCPU has run. QEMU's locks of the images stay on and refuse most of it before that.
//!
//! **An epoch is started once.** `started` is written before the create, so whatever becomes of that (a lost connection, a
//! daemon that dies), the epoch is never [`Seen::Defined`] again. A create that a dead caller left in a hanging daemon may
//! still come true after the end was noted: its vCPUs are held, and whoever sees it ends it.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use novacron_core::driver::{DomainId, DomainSpec, DomainState, Seed, StopReport};
use novacron_core::model::Exit;
use novacron_core::{Error, ErrorKind, Result};
use secrecy::ExposeSecret;

use super::describe::{Place, SEED, VARIABLES, describe, named};
use super::error;
use super::hypervisor::{capabilities, guests};
use super::look::{Found, Seen, Task};
use super::notes::{Asked, Ended, How, Started};
use super::sys::{LvResult, Undefine, code};
use crate::accel::{Accel, AccelChoice};
use crate::firmware::{Ovmf, state_path};
use crate::tpm::{self, Kept, Swtpm};

/// Where a domain's TPM keeps its state, in the domain's folder.
const TPM: &str = "tpm.json";

/// QEMU, perhaps as another user, has to get through to its files; nobody has to list them.
const FOLDER_MODE: u32 = 0o711;

/// How guests run there.
pub(super) fn accel(task: &Task) -> Result<Accel> {
    let config = &task.state.config;
    let offered = task.live.facts.capabilities.accel();
    let failed = |e| crate::qemu::error::accel(task.operation, e);
    if super::uri::is_local(&config.uri) {
        let here = config.accel.resolve().map_err(failed)?;
        // Our look at this host's CPU, and libvirt's at what its QEMU can do.
        return Ok(match (here, config.accel) {
            (Accel::Kvm, AccelChoice::Auto) => offered,
            (here, _) => here,
        });
    }
    Ok(match config.accel {
        AccelChoice::Auto => offered,
        AccelChoice::Kvm => Accel::Kvm,
        AccelChoice::Tcg => Accel::Tcg,
    })
}

pub(super) fn define(task: &Task, spec: &DomainSpec) -> Result<()> {
    let id = spec.id;
    spec.check(task.operation, &capabilities(task, guests(task)?)?)?;
    let folder = task.state.folder(id);
    let flash = match Ovmf::of(spec.hardware.firmware, task.operation)? {
        Some(ovmf) => Some((ovmf, variables(task, spec, folder.as_deref())?)),
        None => None,
    };
    let place = Place {
        accel: accel(task)?,
        folder,
        flash,
    };
    let described = describe(spec, &place, task.operation)?;
    if let Some((_, seen)) = task.look(id)?
        && !matches!(seen, Seen::Defined)
    {
        return Ok(());
    }
    let xml = described.to_text().map_err(|error| {
        let message = "the domain cannot be described in XML";
        Error::new(ErrorKind::Internal, task.operation, message).caused_by(error)
    })?;
    task.in_time()?;
    if let Some(folder) = &place.folder {
        let own = place.flash.as_ref().filter(|_| spec.nvram.is_none());
        write_files(folder, spec.seed.as_ref(), own.map(|(ovmf, _)| ovmf))
            .map_err(|error| files(task, "make", folder, error))?;
    }
    if let Some(folder) = &place.folder {
        let kept = Kept::of(spec, task.operation)?;
        write_tpm(folder, kept.as_ref(), tpm::passphrase(spec))
            .map_err(|error| files(task, "make", folder, error))?;
    }
    if let (Some((ovmf, variables)), Some(_)) = (&place.flash, &spec.nvram) {
        let length = ovmf.prepare(variables, task.operation)?;
        let failed = |error| files(task, "read", variables, error);
        let has = fs::File::open(variables).and_then(|mut file| file.seek(SeekFrom::End(0)));
        let has = has.map_err(failed)?;
        if has != length {
            let message = format!(
                "libvirt gives the firmware the whole volume, of {has} bytes, and this host's takes {length}"
            );
            return Err(error::precondition(task.operation, id, message));
        }
    }
    task.ok(task.conn.define(&xml)).map(drop)
}

/// Where the firmware's variables are: in the volume, or the start's own.
fn variables(task: &Task, spec: &DomainSpec, folder: Option<&Path>) -> Result<PathBuf> {
    if let Some(nvram) = &spec.nvram {
        return state_path(nvram, task.operation).map(Path::to_owned);
    }
    folder.map(|folder| folder.join(VARIABLES)).ok_or_else(|| {
        let message = "there is no folder of this host for the firmware's variables";
        Error::new(ErrorKind::Unsupported, task.operation, message).with("domain", spec.id)
    })
}

fn write_files(folder: &Path, seed: Option<&Seed>, ovmf: Option<&Ovmf>) -> std::io::Result<()> {
    let mut make = fs::DirBuilder::new();
    make.recursive(true).mode(FOLDER_MODE).create(folder)?;
    if let Some(ovmf) = ovmf {
        fs::copy(&ovmf.variables, folder.join(VARIABLES))?;
    }
    let file = folder.join(SEED);
    let Some(seed) = seed else {
        return absent(fs::remove_file(file));
    };
    let mut image = crate::seed::Seed::new(seed.meta_data.clone(), seed.user_data.expose_secret());
    if let Some(text) = &seed.network_config {
        image = image.network_config(text);
    }
    write_own(&file, &image.to_iso())
}

/// What `start` needs for a domain's TPM.
fn write_tpm(folder: &Path, kept: Option<&Kept>, passphrase: Option<&[u8]>) -> std::io::Result<()> {
    let kept = kept.map(serde_json::to_vec).transpose()?;
    for (name, bytes) in [(tpm::PASSPHRASE, passphrase), (TPM, kept.as_deref())] {
        let file = folder.join(name);
        match bytes {
            Some(bytes) => write_own(&file, bytes)?,
            None => absent(fs::remove_file(file))?,
        }
    }
    Ok(())
}

/// Replaces a file of which only the owner reads.
fn write_own(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let fresh = file.with_extension("new");
    absent(fs::remove_file(&fresh))?;
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut written = options.open(&fresh)?;
    written.write_all(bytes)?;
    written.sync_all()?;
    fs::rename(fresh, file)
}

/// Starts what emulates a domain's TPM, if it has one.
fn start_tpm(task: &Task, id: DomainId) -> Result<()> {
    let Some(folder) = task.state.folder(id) else {
        return Ok(());
    };
    let kept = match fs::read(folder.join(TPM)) {
        Ok(kept) => kept,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(files(task, "read", &folder, error)),
    };
    let failed = |why: String| error::precondition(task.operation, id, why);
    let kept: Kept = serde_json::from_slice(&kept).map_err(|e| failed(e.to_string()))?;
    let program = task.state.swtpm.find(task.operation)?;
    let user = task.live.facts.capabilities.qemu_user().map_err(|label| {
        failed(format!("libvirt says of its QEMU's user `{label}`, which are no numbers: a TPM's socket cannot be given to it"))
    })?;
    let swtpm = Swtpm {
        program: &program,
        folder: &folder,
        kept: &kept,
        log: "swtpm.log",
        user,
    };
    swtpm.start().map_err(|error| match error {
        tpm::Failed::Refused(words) => failed(words),
        tpm::Failed::Io(error) => files(task, "start swtpm in", &folder, error),
    })
}

/// What is not there is gone.
fn absent(removed: std::io::Result<()>) -> std::io::Result<()> {
    match removed {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn files(task: &Task, action: &'static str, path: &Path, error: std::io::Error) -> Error {
    crate::qemu::error::process(
        task.operation,
        crate::process::ProcessError::io(action, path)(error),
    )
}

pub(super) fn start(task: &Task, id: DomainId) -> Result<()> {
    let refused = |message: String| error::precondition(task.operation, id, message);
    let found = match task.look(id)? {
        None => return Err(error::not_found(task.operation, id)),
        Some((_, Seen::Live(_))) => return Ok(()),
        Some((found, Seen::Defined)) => found,
        Some((_, Seen::Ended(exit))) => {
            return Err(refused(format!(
                "this start has been and has ended: {exit}"
            )));
        }
        Some((_, Seen::Unknown(reason))) => {
            return Err(
                Error::new(ErrorKind::Unavailable, task.operation, reason).with("domain", id)
            );
        }
    };
    if let Some(other) = another_runs(task, id)? {
        return Err(refused(format!("start {} of the VM runs", other.epoch)));
    }
    let _starting = task.state.begin_start(id);
    task.ok(found.dom.never_autostart())?;
    start_tpm(task, id)?;
    task.in_time()?;
    task.note(&found.dom, &Started {})?;
    if let Err(error) = found.dom.create_paused() {
        if task.is_lost() {
            return Err(task.error(&error));
        }
        let detail = error.message.clone();
        task.note(&found.dom, &Ended::of(&Exit::StartFailed { detail }))?;
        return Err(error::start_failed(task.operation, id, &error));
    }
    let refusal = match another_runs(task, id)? {
        Some(other) => Some(format!("start {} of the VM runs", other.epoch)),
        None => asked(task, id)?.then(|| "it was asked to end before it had begun".to_owned()),
    };
    let Some(detail) = refusal else {
        return Ok(());
    };
    task.ok(found.dom.destroy())?;
    let exit = Exit::StartFailed {
        detail: detail.clone(),
    };
    task.note(&found.dom, &Ended::of(&exit))?;
    Err(refused(detail))
}

/// Whether somebody has asked it to end, or has seen its end, by now.
fn asked(task: &Task, id: DomainId) -> Result<bool> {
    let found = task.find(id)?;
    Ok(found.is_none_or(|found| {
        let notes = &found.defined.metadata;
        notes.asked.is_some() || notes.ended.is_some()
    }))
}

/// Another start of the same VM that is in memory. Whoever bears another VM's name is not asked: a host has hundreds.
fn another_runs(task: &Task, id: DomainId) -> Result<Option<DomainId>> {
    for dom in task.ok(task.conn.running_domains())? {
        if named(&task.ok(dom.name())?).is_some_and(|vm| vm != id.vm) {
            continue;
        }
        let other = task.found(dom)?.map(|found| found.id);
        if let Some(other) = other.filter(|other| other.vm == id.vm && *other != id) {
            return Ok(Some(other));
        }
    }
    Ok(None)
}

pub(super) fn resume(task: &Task, id: DomainId) -> Result<()> {
    let (found, state) = task.started(id)?;
    if state == DomainState::Running {
        return Ok(());
    }
    task.in_time()?;
    unless_so(task, id, found.dom.resume(), &DomainState::Running)
}

pub(super) fn pause(task: &Task, id: DomainId) -> Result<()> {
    let (found, state) = task.started(id)?;
    if state == DomainState::Paused {
        return Ok(());
    }
    task.in_time()?;
    unless_so(task, id, found.dom.suspend(), &DomainState::Paused)
}

/// What a change came to. A daemon that has just started shows states of before, and refuses what is so already.
fn unless_so(task: &Task, id: DomainId, done: LvResult<()>, wanted: &DomainState) -> Result<()> {
    let Some(error) = done.err() else {
        return Ok(());
    };
    let is_so = error.is(code::VIR_ERR_OPERATION_INVALID) && task.started(id)?.1 == *wanted;
    if is_so {
        Ok(())
    } else {
        Err(task.error(&error))
    }
}

pub(super) fn reset(task: &Task, id: DomainId) -> Result<()> {
    let (found, _) = task.started(id)?;
    task.in_time()?;
    task.ok(found.dom.reset())
}

/// Presses the power button; what was only defined ends by that.
pub(super) fn shut_down(task: &Task, id: DomainId) -> Result<StopReport> {
    match task.look(id)? {
        Some((found, Seen::Live(_))) => {
            task.in_time()?;
            let how = How::Shutdown;
            task.note(&found.dom, &Asked { how })?;
            match found.dom.press_power() {
                // It has just ended by itself.
                Err(error) if error.is(code::VIR_ERR_OPERATION_INVALID) => task.look_at_anew(id),
                pressed => task.ok(pressed).map(|()| StopReport::Asked),
            }
        }
        Some((_, Seen::Unknown(reason))) => {
            Err(Error::new(ErrorKind::Unavailable, task.operation, reason).with("domain", id))
        }
        looked => end(task, looked),
    }
}

/// Ends it now.
pub(super) fn kill(task: &Task, id: DomainId) -> Result<StopReport> {
    let looked = task.look(id)?;
    end(task, looked)
}

fn end(task: &Task, looked: Option<(Found, Seen)>) -> Result<StopReport> {
    let Some((found, seen)) = looked else {
        return Ok(StopReport::Ended);
    };
    match seen {
        Seen::Ended(_) => return Ok(StopReport::Ended),
        Seen::Defined => {
            task.in_time()?;
        }
        Seen::Live(_) | Seen::Unknown(_) => {
            task.in_time()?;
            task.note(&found.dom, &Asked { how: How::Kill })?;
            match found.dom.destroy() {
                // It was faster.
                Err(error) if error.is(code::VIR_ERR_OPERATION_INVALID) => {}
                destroyed => task.ok(destroyed)?,
            }
            let state = task.ok(found.dom.state())?;
            if state.state != code::VIR_DOMAIN_SHUTOFF {
                let message = "libvirt has ended it, and shows it running";
                return Err(Error::new(ErrorKind::Unavailable, task.operation, message)
                    .with("domain", found.id));
            }
        }
    }
    // What the end was first noted as stays.
    if let Some(anew) = task.find(found.id)?
        && anew.defined.metadata.ended.is_none()
    {
        task.note(&anew.dom, &Ended::of(&Exit::Requested))?;
    }
    task.state.console_ended(found.id);
    Ok(StopReport::Ended)
}

pub(super) fn undefine(task: &Task, id: DomainId) -> Result<()> {
    match task.look(id)? {
        None => {}
        Some((_, Seen::Live(_))) => {
            return Err(error::precondition(task.operation, id, "the domain runs"));
        }
        Some((_, Seen::Unknown(reason))) => {
            let message = format!("it may run: {reason}");
            return Err(error::precondition(task.operation, id, message));
        }
        Some((found, Seen::Defined | Seen::Ended(_))) => {
            task.in_time()?;
            let mut undefined = found.dom.undefine(Undefine::Everything);
            if let Err(error) = &undefined
                && [
                    code::VIR_ERR_INVALID_ARG,
                    code::VIR_ERR_ARGUMENT_UNSUPPORTED,
                ]
                .contains(&error.code)
            {
                undefined = found.dom.undefine(Undefine::Plain);
            }
            match undefined {
                Err(error) if error.is(code::VIR_ERR_NO_DOMAIN) => {}
                undefined => task.ok(undefined)?,
            }
        }
    }
    if let Some(folder) = task.state.folder(id) {
        if folder.join(TPM).exists() {
            tpm::end(&folder).map_err(|error| files(task, "end the swtpm of", &folder, error))?;
        }
        absent(fs::remove_dir_all(&folder))
            .map_err(|error| files(task, "remove", &folder, error))?;
        // The VM's folder goes with its last start's.
        if let Some(vm) = folder.parent() {
            let _ = fs::remove_dir(vm);
        }
    }
    task.state.forget(id);
    Ok(())
}

impl Task {
    fn look_at_anew(&self, id: DomainId) -> Result<StopReport> {
        Ok(match self.look(id)? {
            Some((_, Seen::Live(_) | Seen::Unknown(_))) => StopReport::Asked,
            _ => StopReport::Ended,
        })
    }
}
