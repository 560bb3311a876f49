//! A machine that is installed from a medium: an empty disk, an ISO file in its CD-ROM drive, a NIC, and a profile of the
//! operating system. Its serial console is this program's input and output, so the medium has to use that. When the guest has
//! powered itself off, the medium is taken out, and the machine is started from its disk; when it powers itself off again, that
//! is the end.
//!
//! All of it stays in its folder, the medium's volume and image, too: the program goes on with what is there when it is run
//! again.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use novacron_core::cluster::VmHandle;
use novacron_core::driver::{Call, ConsoleStart};
use novacron_core::model::{DiskSource, NetworkKind, NicSpec, OsProfile, RestartPolicy};
use novacron_core::store::SqliteStore;
use novacron_core::{Bytes, Cluster, Deadline, ErrorKind, Phase, VmSpec};
use novacron_examples::{Result, interrupted};
use novacron_kvm::QemuHypervisor;
use novacron_storage::LocalStorage;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy, split, stdin, stdout};
use tokio::sync::mpsc;

const MEDIUM: &str = "install";

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [folder, iso, os] = arguments.as_slice() else {
        return fail(
            "usage: install FOLDER FILE.iso OS, with OS a short id of libosinfo, as debian12 or win11",
        );
    };
    let Some(os) = OsProfile::of(os) else {
        let known: Vec<_> = OsProfile::all().map(OsProfile::id).collect();
        return fail(&format!(
            "no profile of {os:?}; there are: {}",
            known.join(", ")
        ));
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("no runtime: {error}")),
    };
    let installed = runtime.block_on(async {
        tokio::select! {
            installed = install(folder.into(), iso.into(), os) => installed,
            () = interrupted() => Ok(()),
        }
    });
    // Not waited for: a thread of the runtime's may sit in a read of standard input.
    runtime.shutdown_background();
    match installed {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string()),
    }
}

#[expect(clippy::print_stderr, reason = "the output of a program for people")]
fn fail(why: &str) -> ExitCode {
    eprintln!("{why}");
    ExitCode::FAILURE
}

async fn install(folder: PathBuf, iso: PathBuf, os: OsProfile) -> Result<()> {
    tokio::fs::create_dir_all(&folder).await?;
    let cluster = Cluster::builder("install")
        .store(SqliteStore::open(folder.join("novacron.db")).await?)
        .node("here", QemuHypervisor::new(folder.join("node")))
        .storage("pool", LocalStorage::open(folder.join("pool")).await?)
        .build()
        .await?;
    cluster.nodes().wait_available(soon()).await?;
    let vm = match found(cluster.vms().by_name("guest").await)? {
        Some(vm) => vm,
        None => create(&cluster, iso, os).await?,
    };
    let is_installing = async || -> Result<bool> {
        let disks = &vm.get().await?.vm.machine.disks;
        Ok(disks.iter().any(|disk| disk.name == MEDIUM))
    };
    let mut keyboard = keyboard();
    if is_installing().await? {
        on_console(&vm, &mut keyboard).await?;
        vm.detach(MEDIUM).await?.wait(soon()).await?;
    }
    on_console(&vm, &mut keyboard).await?;
    cluster.shutdown(soon()).await?;
    Ok(())
}

/// What has this name, if anything has.
fn found<T>(named: novacron_core::Result<T>) -> novacron_core::Result<Option<T>> {
    match named {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        named => named.map(Some),
    }
}

async fn create(cluster: &Cluster, iso: PathBuf, os: OsProfile) -> Result<VmHandle> {
    if found(cluster.images().by_name(MEDIUM).await)?.is_none() {
        cluster.images().import_file(MEDIUM, iso).await?;
    }
    let network = match found(cluster.networks().by_name("nat").await)? {
        Some(network) => network,
        None => cluster.networks().create("nat", NetworkKind::User).await?,
    };
    let root = DiskSource::Blank {
        size: Bytes::gib(64),
        pool: None,
    };
    let spec = VmSpec::new("guest")
        .disk("root", root)
        .cdrom(MEDIUM, MEDIUM)
        .nic(NicSpec::new(network.id()));
    let mut spec = os.furnish(spec);
    // Its own poweroff is what is waited for.
    spec.restart = RestartPolicy::Never;
    Ok(cluster.vms().create(spec).await?)
}

/// What is typed. It is read once for both consoles, so that nothing is lost between them.
fn keyboard() -> mpsc::Receiver<Vec<u8>> {
    let (typed, keyboard) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut some = vec![0; 4096];
        while let Ok(read @ 1..) = stdin().read(&mut some).await {
            if typed.send(some[..read].to_vec()).await.is_err() {
                return;
            }
        }
    });
    keyboard
}

/// Starts the machine, unless it runs, and is its terminal until it has powered itself off.
async fn on_console(vm: &VmHandle, keyboard: &mut mpsc::Receiver<Vec<u8>>) -> Result<()> {
    // The import of a large medium takes its time.
    let ready = Deadline::after(Duration::from_secs(600));
    vm.start().await?.wait(ready).await?;
    let call = Call::within(Duration::from_secs(10));
    let console = vm.console(call, ConsoleStart::Offset(0)).await?;
    let (mut from, mut to) = split(console.stream);
    let typing = async {
        while let Some(typed) = keyboard.recv().await {
            to.write_all(&typed).await?;
        }
        std::future::pending::<std::io::Result<()>>().await
    };
    let mut screen = stdout();
    tokio::select! {
        // It ends with the guest.
        shown = copy(&mut from, &mut screen) => drop(shown?),
        failed = typing => failed?,
    }
    vm.wait_for(Phase::Stopped, soon()).await?;
    Ok(())
}
