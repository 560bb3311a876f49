//! `define` and `start`: from a spec to a QEMU whose vCPUs are held.

use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use novacron_core::driver::{Call, DomainId, DomainSpec, GuestEvent};
use novacron_core::model::{DiskLimits, LinkState};
use novacron_core::{Error, ErrorKind, Result};
use secrecy::ExposeSecret;
use serde_json::json;

use super::args::{BALLOON, BALLOON_STATS_SECS, Flash, Machine};
use super::error;
use super::hot_plug::{set_limits, set_link};
use super::live::Live;
use super::net::{Link, connect};
use super::spec::StoredSpec;
use super::state::{Seen, State};
use crate::accel::Accel;
use crate::firmware::Ovmf;
use crate::process::{
    EndCause, LOG, Launch, Listener, Process, ProcessError, RunDir, launch, remove_file,
};
use crate::qmp::Qmp;
use crate::seed::Seed;
use crate::tpm::{self, Swtpm};

/// How long QEMU may take from its start to its monitor's greeting.
const GREETING: Duration = Duration::from_secs(20);

/// Writes the domain down.
pub(super) async fn define(state: &State, call: Call, spec: &DomainSpec) -> Result<()> {
    const OPERATION: &str = "qemu.define";
    let id = spec.id;
    spec.check(OPERATION, &state.capabilities(OPERATION).await?)?;
    let stored = StoredSpec::of(spec, OPERATION)?;
    let seed = spec.seed.as_ref().map(|seed| {
        let files = Seed::new(&seed.meta_data, seed.user_data.expose_secret());
        match &seed.network_config {
            Some(text) => files.network_config(text).to_iso(),
            None => files.to_iso(),
        }
    });
    state.fits(OPERATION)?;
    let dir = state.dir(id, OPERATION)?;
    let slot = state.slot(id);
    let _turn = slot.turn(call, OPERATION).await?;
    let present = StoredSpec::read(&dir).map_err(|e| error::process(OPERATION, e))?;
    if let Some(other) = present.as_ref().filter(|present| present.id != id) {
        let message = format!(
            "this start of the VM belongs to cluster {}",
            other.id.cluster
        );
        return Err(Error::new(ErrorKind::AlreadyExists, OPERATION, message).with("domain", id));
    }
    let passphrase = tpm::passphrase(spec).map(<[u8]>::to_owned);
    let same_passphrase = || std::fs::read(dir.file(tpm::PASSPHRASE)).ok() == passphrase;
    let same_seed = || std::fs::read(dir.file("seed.iso")).ok() == seed;
    let is_same = present.as_ref() == Some(&stored) && same_seed();
    if is_same && same_passphrase() {
        return Ok(());
    }
    if present.is_some() && !matches!(state.observe(call, id, OPERATION).await?, Seen::Defined(_)) {
        // Its passphrase went with the start.
        if is_same {
            return Ok(());
        }
        let message = "it has been started, so its spec stays as it is";
        return Err(error::precondition(OPERATION, id, message));
    }
    let write = move || -> Result<(), ProcessError> {
        dir.create()?;
        if let Some(iso) = seed {
            dir.write_bytes("seed.iso", &iso)?;
        }
        match passphrase {
            Some(passphrase) => dir.write_bytes(tpm::PASSPHRASE, &passphrase)?,
            None => remove_file(&dir.file(tpm::PASSPHRASE))?,
        }
        stored.write(&dir)
    };
    blocking(OPERATION, write).await
}

/// Starts QEMU. The caller's deadline counts until there is a process; then QEMU's own time to come up does.
pub(super) async fn start(state: Arc<State>, call: Call, id: DomainId) -> Result<()> {
    const OPERATION: &str = "qemu.start";
    let slot = state.slot(id);
    let _turn = slot.turn(call, OPERATION).await?;
    let spec = match state.observe(call, id, OPERATION).await? {
        Seen::Live(..) => return Ok(()),
        Seen::Defined(spec) => *spec,
        Seen::Absent => return Err(error::not_found(OPERATION, id)),
        Seen::Ended(end) => {
            let message = format!("this start has ended, and a start is made once: {end}");
            return Err(error::precondition(OPERATION, id, message));
        }
        Seen::Unknown(reason) => {
            return Err(Error::new(ErrorKind::Unavailable, OPERATION, reason).with("domain", id));
        }
    };
    let _connecting = slot.connecting.lock().await;
    let binary = state.binary(OPERATION).await?.path.clone();
    let accel = state.accel(OPERATION)?;
    let cpus = &state.offer(OPERATION).await?.cpus;
    let cpu = cpus.argument(&spec.hardware.cpu, accel);
    let firmware = Ovmf::of(spec.hardware.firmware, OPERATION)?;
    let links = spec
        .nics
        .iter()
        .map(|nic| Link::plan(nic, OPERATION))
        .collect::<Result<Vec<_>>>()?;
    let swtpm = match &spec.tpm {
        Some(_) => Some(state.swtpm(OPERATION).await?),
        None => None,
    };
    error::remaining(call, OPERATION)?;

    let dir = state.dir(id, OPERATION)?;
    let flash = match firmware {
        Some(ovmf) => {
            let (dir, volume) = (dir.clone(), spec.nvram.clone());
            Some(aside(OPERATION, move || flash(&dir, ovmf, volume)).await?)
        }
        None => None,
    };
    let plan = Plan {
        dir: dir.clone(),
        spec,
        binary,
        accel,
        cpu,
        flash,
        links,
        swtpm,
    };
    let process = blocking(OPERATION, move || plan.launch()).await?;

    let path = dir.file("qmp");
    let greeted = tokio::select! {
        greeted = Qmp::connect(&path, GREETING) => greeted,
        // Who reaps it has its status: `give_up`.
        _ = process.gone() => Err(crate::qmp::QmpError::Disconnected { command: "greeting".to_owned() }),
    };
    let qmp = match greeted {
        Ok(qmp) => qmp,
        Err(reason) => return Err(give_up(id, &dir, process, &reason.to_string()).await),
    };
    let live = state.take_up(id, &dir, process, qmp).await;
    let prepared = prepare(&live, call, OPERATION).await;
    let open = [
        ErrorKind::DeadlineExceeded,
        ErrorKind::OutcomeUnknown,
        ErrorKind::Unavailable,
    ];
    // What only came too late is made up for before it runs.
    if let Err(refused) = prepared
        && !open.contains(&refused.kind())
    {
        note(&dir, EndCause::StartFailed);
        super::live::quit(&live.qmp, &live.process).await;
        live.over().await;
        return Err(refused);
    }
    state.push(id, GuestEvent::StateChanged);
    Ok(())
}

/// Notes that a domain was prepared.
const PREPARED: &str = "prepared.json";

/// Sets what no argument of QEMU's says, once, while nothing has run yet: after its start, or before it runs for the first
/// time if the host application ended in between.
pub(super) async fn prepare(live: &Live, call: Call, operation: &'static str) -> Result<()> {
    let failed = |e| error::process(operation, e);
    if live.dir.read::<bool>(PREPARED).map_err(failed)?.is_some() {
        return Ok(());
    }
    let monitor = live.monitor(call, operation);
    let spec = StoredSpec::read(&live.dir).map_err(failed)?;
    for nic in spec.iter().flat_map(|spec| &spec.nics) {
        connect(nic, call, operation).await?;
        if nic.options.link == LinkState::Down {
            match set_link(monitor, nic.port, LinkState::Down).await {
                // It was taken back since.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                set => set?,
            }
        }
    }
    let limited = (spec.iter().flat_map(|spec| &spec.disks))
        .filter(|disk| disk.options.limits != DiskLimits::default());
    for disk in limited {
        match set_limits(monitor, disk.volume, &disk.options.limits).await {
            // It was taken back since.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            set => set?,
        }
    }
    let polling = json!({
        "path": BALLOON, "property": "guest-stats-polling-interval", "value": BALLOON_STATS_SECS,
    });
    monitor.tell("qom-set", polling).await?;
    live.dir.write(PREPARED, &true).map_err(failed)
}

struct Plan {
    dir: RunDir,
    spec: StoredSpec,
    binary: PathBuf,
    accel: Accel,
    cpu: String,
    flash: Option<Flash>,
    links: Vec<Link>,
    swtpm: Option<PathBuf>,
}

impl Plan {
    fn launch(self) -> Result<Process, ProcessError> {
        let Self {
            dir,
            spec,
            binary,
            accel,
            cpu,
            flash,
            links,
            swtpm,
        } = self;
        let lock = dir.lock()?;
        let listeners = ["qmp", "con", "ga"].map(|name| Listener::bind(&dir, name));
        let [qmp, console, agent] = listeners;
        let listeners = vec![qmp?, console?, agent?];
        let sockets = [
            listeners[0].number(),
            listeners[1].number(),
            listeners[2].number(),
        ];
        if let (Some(program), Some(kept)) = (&swtpm, &spec.tpm) {
            let swtpm = Swtpm {
                program,
                folder: dir.path(),
                kept,
                log: LOG,
                user: None,
            };
            swtpm.start().map_err(|failed| match failed {
                tpm::Failed::Refused(words) => ProcessError::Swtpm(words),
                tpm::Failed::Io(error) => ProcessError::io("start swtpm in", dir.path())(error),
            })?;
        }
        let machine = Machine {
            spec: &spec,
            accel,
            cpu: &cpu,
            flash: flash.as_ref(),
            links: &links,
            sockets,
        };
        let arguments = machine.arguments();
        launch(
            &dir,
            lock,
            Launch {
                binary: &binary,
                arguments: &arguments,
                listeners,
            },
        )
    }
}

/// The firmware with its variables: those in the volume, or the start's own.
fn flash(dir: &RunDir, ovmf: Ovmf, volume: Option<PathBuf>) -> Result<Flash> {
    const OPERATION: &str = "qemu.start";
    if let Some(variables) = volume {
        let length = ovmf.prepare(&variables, OPERATION)?;
        let kind = std::fs::metadata(&variables).map(|file| file.file_type());
        return Ok(Flash {
            ovmf,
            is_device: kind.is_ok_and(|kind| kind.is_block_device()),
            variables,
            length,
        });
    }
    let failed = |e| error::process(OPERATION, e);
    let template = std::fs::read(&ovmf.variables)
        .map_err(|e| failed(ProcessError::io("read", &ovmf.variables)(e)))?;
    dir.write_bytes("variables.fd", &template).map_err(failed)?;
    Ok(Flash {
        ovmf,
        length: template.len() as u64,
        variables: "variables.fd".into(),
        is_device: false,
    })
}

/// Ends a QEMU that did not come up, and says why.
async fn give_up(id: DomainId, dir: &RunDir, process: Process, reason: &str) -> Error {
    const OPERATION: &str = "qemu.start";
    // A QEMU that closes its monitor is about to exit, and its status says more than a kill's.
    let by_itself = tokio::time::timeout(Duration::from_secs(2), process.ended()).await;
    let hung = by_itself.is_err();
    let status = match by_itself {
        Ok(status) => status,
        Err(_) => {
            if let Err(error) = process.kill() {
                tracing::error!(%error, pid = process.pid(), "a QEMU that hangs cannot be killed");
            }
            process.ended().await
        }
    };
    note(dir, EndCause::StartFailed);
    let last_words = dir.last_words();
    let how = match status {
        Ok(Some(EndCause::Exited(code))) => format!("QEMU exited with status {code} at its start"),
        _ if hung => format!("QEMU did not come up ({reason}) and was killed"),
        Ok(Some(EndCause::Killed(signal))) => {
            format!("QEMU was killed by signal {signal} at its start")
        }
        _ => format!("QEMU ended at its start ({reason})"),
    };
    let words = if last_words.is_empty() {
        String::new()
    } else {
        format!("; its last words: {last_words}")
    };
    error::start_failed(OPERATION, id, &format!("{how}{words}"))
}

fn note(dir: &RunDir, cause: EndCause) {
    if let Err(error) = dir.note_end(cause) {
        tracing::error!(%error, dir = %dir.path().display(), "a failed start cannot be noted");
    }
}

/// Runs file work off the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    operation: &'static str,
    work: impl FnOnce() -> Result<T, ProcessError> + Send + 'static,
) -> Result<T> {
    aside(operation, move || {
        work().map_err(|e| error::process(operation, e))
    })
    .await
}

async fn aside<T: Send + 'static>(
    operation: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => {
            Err(Error::new(ErrorKind::Internal, operation, "a worker ended early").caused_by(error))
        }
    }
}
