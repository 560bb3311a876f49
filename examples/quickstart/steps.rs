//! The host application: what a program of your own would do with NovaCron, step by step.
//!
//! Each step is a method that returns what it checked. [`App::first_life`] and [`App::second_life`] say in which order;
//! between the two the supervisor kills the process.

mod rescue;

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use novacron_core::cluster::{
    Cluster, ImageSpec, ListRequest, OperationHandle, VmHandle, VmView, VolumeHandle, VolumeSpec,
};
use novacron_core::driver::{Call, ConsoleStart, StorageBackend};
use novacron_core::model::{
    CloudInit, DiskLimits, DiskOptions, ImageSource, NetworkId, NetworkKind, NicSpec, NodeId,
    NodeState, SnapshotId, VmSettings,
};
use novacron_core::{Bytes, Deadline, ErrorKind, MiB, Phase, VmSpec};
use novacron_examples::leftovers;
use tokio::io::AsyncReadExt;

use crate::Result;
use crate::console::{Console, Ready};
use crate::report::{Line, chain, step};
use crate::site::{Life, NODES, Site};

const VM: &str = "quickstart";
const HOSTNAME: &str = "hello-novacron";
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEXAMPLEEXAMPLEEXAMPLEEXAMPLEEXAMPLEEXAM demo@example";
const GREETING: &str = "written by the seed";
/// The hot-attached volume: its name, and the serial number of the disk in the guest.
const DATA: &str = "data";

/// The memory that the guest is given later.
const MORE: MiB = MiB(256);

/// Runs one life of the host application. Whether all its steps passed.
pub(crate) async fn run(life: Life, site: Site) -> bool {
    end_with_supervisor(site.dir.clone());
    let mut app = App {
        site,
        cluster: None,
        network: None,
        vm: None,
        console: None,
    };
    let outcome = match life {
        Life::First => app.first_life().await,
        Life::Second => app.second_life().await,
    };
    if let Err(error) = &outcome {
        Line::Fail(chain(error)).say();
        app.tell_what_is_known().await;
    }
    outcome.is_ok()
}

/// The supervisor holds the other end of our input: when that is closed it is gone, and nobody else would clean up.
/// A thread of its own, since the runtime's end would wait for tokio's reading of the input.
fn end_with_supervisor(dir: PathBuf) {
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        let _ = leftovers::end_guests(&dir);
        let _ = std::fs::remove_dir_all(&dir);
        std::process::exit(1);
    });
}

struct App {
    site: Site,
    cluster: Option<Cluster>,
    network: Option<NetworkId>,
    vm: Option<VmHandle>,
    console: Option<Console>,
}

impl App {
    async fn first_life(&mut self) -> Result<()> {
        step("open a cluster of two nodes", secs(30), self.open()).await?;
        step("import the image", secs(60), self.import()).await?;
        step("create a network and a VM", secs(60), self.create()).await?;
        step("wait for the guest's ready line", secs(120), self.boot()).await?;
        step(
            "run a command on the serial console, see the screen",
            secs(30),
            self.look_around(),
        )
        .await?;
        step("attach a volume while it runs", secs(120), self.attach()).await?;
        let mut snapshot = None;
        step(
            "take a snapshot while it runs",
            secs(60),
            self.snapshot(&mut snapshot),
        )
        .await?;
        step("damage the data", secs(60), self.damage()).await?;
        let change = self.change_settings();
        step("limit the disk, and ask for more memory", secs(60), change).await?;
        let snapshot = snapshot.ok_or("there is no snapshot")?;
        step("restore the snapshot", secs(240), self.restore(snapshot)).await?;
        let again = self.rescue_and_rebuild("guest");
        step("rescue it, and rebuild it", secs(240), again).await?;
        self.write_notes().await?;
        Line::Kill.say();
        // The supervisor kills this process here, with the control loop and the guest running.
        std::future::pending().await
    }

    async fn second_life(&mut self) -> Result<()> {
        step("adopt the running guest", secs(60), self.adopt()).await?;
        step(
            "move the stopped VM to beta",
            secs(240),
            self.move_to_beta(),
        )
        .await?;
        step("delete everything", secs(120), self.delete()).await?;
        step("look for what is left", secs(60), self.prove_empty()).await
    }

    // ---- the first life

    async fn open(&mut self) -> Result<String> {
        let cluster = self.site.cluster().await?;
        self.cluster = Some(cluster.clone());
        cluster.nodes().wait_available(soon(20)).await?;
        let nodes = cluster.nodes().list(&ListRequest::new()).await?.items;
        let mut seen = Vec::new();
        for node in &nodes {
            let status = node
                .status
                .as_ref()
                .filter(|s| s.state == NodeState::Available);
            let host = status
                .and_then(|s| s.host.as_ref())
                .ok_or_else(|| format!("{} does not answer", node.node.id))?;
            seen.push(format!(
                "{} ({}, {})",
                node.node.id, host.capabilities.hypervisor, host.capabilities.acceleration
            ));
        }
        ensure(seen.len() == NODES.len(), || format!("nodes: {seen:?}"))?;
        Ok(format!("{} answer", seen.join(" and ")))
    }

    async fn import(&mut self) -> Result<String> {
        let source = ImageSource::File(self.site.disk.clone());
        let spec = ImageSpec::new("guest", source);
        let image = self.cluster()?.images().create(spec).await?;
        let operation = image.operation().ok_or("the import has no operation")?;
        operation.wait(soon(50)).await?;
        Ok(format!("image {} is available", image.id()))
    }

    async fn create(&mut self) -> Result<String> {
        let cluster = self.cluster()?;
        let network = cluster
            .networks()
            .create("nat", NetworkKind::User)
            .await?
            .id();
        let user_data = format!(
            "#cloud-config\n\
             ssh_authorized_keys:\n  - {KEY}\n\
             write_files:\n  - path: /root/greeting\n    permissions: '0600'\n    content: |\n      {GREETING}\n"
        );
        let spec = VmSpec::new(VM)
            .memory(MiB(192))
            .vcpus(1)
            .image("guest")
            .nic(NicSpec::new(network))
            .cloud_init(CloudInit {
                hostname: Some(HOSTNAME.to_owned()),
                user_data,
                ..CloudInit::default()
            })
            .node(NodeId::new("alpha")?);
        let vm = cluster.vms().create(spec).await?;
        self.network = Some(network);
        self.vm = Some(vm.clone());
        let view = vm.wait_for(Phase::Running, soon(50)).await?;
        expect_place(&view, "alpha")
    }

    async fn boot(&mut self) -> Result<String> {
        let ready = self.ready().await?;
        Ok(format!(
            "its host name is {}, from the seed",
            ready.hostname
        ))
    }

    async fn look_around(&mut self) -> Result<String> {
        let console = self.console()?;
        let kernel = console.run("uname -sr").await?;
        let greeting = console.run("cat /root/greeting").await?;
        ensure(greeting == GREETING, || {
            format!("/root/greeting says {greeting:?}")
        })?;
        let keys = console.run("cat /root/.ssh/authorized_keys").await?;
        ensure(keys == KEY, || format!("authorized_keys says {keys:?}"))?;
        let mut screen = self.vm()?.vnc(Call::within(secs(10))).await?;
        let mut speaks = [0; 12];
        screen.read_exact(&mut speaks).await?;
        let speaks = String::from_utf8_lossy(&speaks);
        ensure(speaks.starts_with("RFB "), || {
            format!("the screen says {speaks:?}")
        })?;
        Ok(format!(
            "the seed's file and key are there, under {kernel}; its screen speaks {}",
            speaks.trim_end()
        ))
    }

    async fn attach(&mut self) -> Result<String> {
        let volume = self
            .cluster()?
            .volumes()
            .create(VolumeSpec::new(DATA, Bytes::mib(64)))
            .await?;
        volume
            .operation()
            .ok_or("the volume has no operation")?
            .wait(soon(30))
            .await?;
        done(
            self.vm()?
                .attach(DATA, volume.id(), DiskOptions::default())
                .await?,
            30,
        )
        .await?;
        let disk = self.find_disk().await?;
        let console = self.console()?;
        console.run(&format!("mkfs.ext4 -q {disk}")).await?;
        console.run(&format!("mount -t ext4 {disk} /mnt")).await?;
        console
            .run("dd if=/dev/urandom of=/mnt/data bs=64k count=64 2>/dev/null")
            .await?;
        let sum = console
            .run("cd /mnt && sha256sum data | tee data.sha256; sync; cd")
            .await?;
        Ok(format!(
            "{disk}: ext4, 4 MiB written, SHA-256 {}…",
            sum.get(..12).unwrap_or(&sum)
        ))
    }

    async fn snapshot(&mut self, taken: &mut Option<SnapshotId>) -> Result<String> {
        let (boot_id, before) = self.clock().await?;
        self.console()?.run("sync").await?;
        let volume = self.volume().await?;
        let snapshot = self
            .cluster()?
            .snapshots()
            .create("before-damage", volume.id())
            .await?;
        snapshot
            .operation()
            .ok_or("the snapshot has no operation")?
            .wait(soon(50))
            .await?;
        *taken = Some(snapshot.id());
        let (same, after) = self.clock().await?;
        ensure(same == boot_id && after >= before, || {
            "the guest has started anew".to_owned()
        })?;
        Ok("taken, and the guest ran on".to_owned())
    }

    async fn damage(&mut self) -> Result<String> {
        let console = self.console()?;
        console
            .run("dd if=/dev/zero of=/mnt/data bs=64k count=8 conv=notrunc 2>/dev/null && sync")
            .await?;
        let answer = console
            .try_run("cd /mnt && sha256sum -c data.sha256; code=$?; cd; (exit $code)")
            .await?;
        ensure(answer.code != 0, || {
            format!("the checksum does not notice: {}", answer.text)
        })?;
        Ok("the checksum is wrong now".to_owned())
    }

    async fn change_settings(&mut self) -> Result<String> {
        let vm = self.vm()?;
        let limits = DiskLimits {
            bytes_sec: Some(32 << 20),
            ..DiskLimits::default()
        };
        let options = DiskOptions {
            limits,
            ..DiskOptions::default()
        };
        done(vm.set_disk(DATA, options).await?, 30).await?;
        let mut settings = VmSettings::of(&vm.get().await?.vm);
        settings.hardware.memory = MORE;
        done(vm.update(settings).await?, 30).await?;
        let pending = vm.get().await?.pending();
        let fields: Vec<_> = pending.iter().map(|change| change.field.as_str()).collect();
        ensure(fields == ["hardware.memory"], || {
            format!("these wait for the next start: {fields:?}")
        })?;
        Ok("the limit holds now, the memory comes with the next start".to_owned())
    }

    /// The guest's memory, as its kernel counts it, in MiB.
    async fn memory(&mut self) -> Result<u64> {
        let console = self.console()?;
        let line = console.run("grep MemTotal: /proc/meminfo").await?;
        let kib = line.split_whitespace().nth(1).unwrap_or_default();
        Ok(kib.parse::<u64>()? / 1024)
    }

    async fn restore(&mut self, snapshot: SnapshotId) -> Result<String> {
        let (before, _) = self.clock().await?;
        let had = self.memory().await?;
        let volume = self.volume().await?;
        self.stop().await?;
        let vm = self.vm()?;
        done(vm.restore(volume.id(), snapshot).await?, 30).await?;
        done(vm.start().await?, 60).await?;
        let ready = self.ready().await?;
        ensure(ready.boot_id != before, || {
            "the guest was not started anew".to_owned()
        })?;
        self.mount_and_check().await?;
        let has = self.memory().await?;
        ensure(has > had, || format!("it had {had} MiB, and has {has}"))?;
        Ok(format!(
            "stopped, restored, started: the checksum is right again, and of {had} MiB it has {has}"
        ))
    }

    /// What the second life cannot ask the cluster: the guest's boot, how long it had been up, and the network's id.
    async fn write_notes(&mut self) -> Result<()> {
        let (boot_id, uptime) = self.clock().await?;
        let network = self.network.ok_or("there is no network")?;
        Ok(std::fs::write(
            self.site.notes(),
            format!("{boot_id} {uptime} {network}"),
        )?)
    }

    // ---- the second life

    async fn adopt(&mut self) -> Result<String> {
        let notes = std::fs::read_to_string(self.site.notes())?;
        let (boot_id, before) = parse_clock(&notes)?;
        self.network = notes
            .split_whitespace()
            .nth(2)
            .map(str::parse)
            .transpose()?;
        let cluster = self.site.cluster().await?;
        self.cluster = Some(cluster.clone());
        cluster.nodes().wait_available(soon(20)).await?;
        let vm = cluster.vms().by_name(VM).await?;
        self.vm = Some(vm.clone());
        let view = vm.wait_for(Phase::Running, soon(30)).await?;
        expect_place(&view, "alpha")?;
        self.console = Some(Console::open(&vm, ConsoleStart::Last(0)).await?);
        let (same, after) = self.clock().await?;
        ensure(same == boot_id, || {
            format!("it was boot {boot_id}, it is {same}")
        })?;
        ensure(after >= before + 1.0, || {
            format!("its uptime was {before} s, it is {after} s")
        })?;
        self.check_data().await?;
        Ok(format!(
            "the same boot id, uptime went on from {before:.1} s to {after:.1} s, the checksum is right"
        ))
    }

    async fn move_to_beta(&mut self) -> Result<String> {
        self.stop().await?;
        let vm = self.vm()?;
        done(vm.move_to(NodeId::new("beta")?).await?, 30).await?;
        done(vm.start().await?, 60).await?;
        let place = expect_place(&vm.get().await?, "beta")?;
        self.ready().await?;
        self.mount_and_check().await?;
        Ok(format!("{place}, the checksum is right there too"))
    }

    async fn delete(&mut self) -> Result<String> {
        let cluster = self.cluster()?;
        let (vm, volume) = (self.vm()?, self.volume().await?);
        self.console = None;
        done(vm.delete().await?, 60).await?;
        self.vm = None;
        done(volume.delete().await?, 30).await?;
        done(cluster.images().by_name("guest").await?.delete().await?, 30).await?;
        let network = self.network.ok_or("there is no network")?;
        done(cluster.networks().by_id(network).delete().await?, 30).await?;

        let first = ListRequest::new();
        ensure(cluster.vms().list(&first).await?.items.is_empty(), || {
            "there is still a VM".to_owned()
        })?;
        ensure(
            cluster.volumes().list(&first).await?.items.is_empty(),
            || "there is still a volume".to_owned(),
        )?;
        let image = cluster.images().by_name("guest").await;
        ensure(
            image.is_err_and(|e| e.kind() == ErrorKind::NotFound),
            || "there is still the image".to_owned(),
        )?;
        Ok("VM, volume with its snapshot, image and network are gone from the records".to_owned())
    }

    /// Looks at the world itself, not at the records: domains, artefacts, files, processes.
    async fn prove_empty(&mut self) -> Result<String> {
        if let Some(cluster) = self.cluster.take() {
            cluster.shutdown(soon(20)).await?;
        }
        let mut files = leftovers::files(&self.site.pool_dir())?;
        // The pool's own id.
        files.retain(|file| *file != self.site.pool_dir().join("pool"));
        for (name, host) in NODES {
            let domains = self.site.domains(name, host, call()).await?;
            ensure(domains.is_empty(), || {
                format!("{name} still has {domains:?}")
            })?;
            files.extend(leftovers::files(&self.site.node_dir(name))?);
        }
        let artefacts = self.site.storage().await?.list(call()).await?;
        ensure(artefacts.is_empty(), || {
            format!("the pool still has {artefacts:?}")
        })?;
        ensure(files.is_empty(), || format!("files are left: {files:?}"))?;
        let guests = leftovers::guests(&self.site.dir)?;
        ensure(guests.is_empty(), || format!("QEMU still runs: {guests:?}"))?;
        Ok(
            "no domain, no artefact, no file in the nodes' and the pool's folders, no QEMU process"
                .to_owned(),
        )
    }

    // ---- what several steps need

    /// Opens the console of a guest that was just started, and waits for its ready line.
    async fn ready(&mut self) -> Result<Ready> {
        let vm = self.vm()?;
        let console = self
            .console
            .insert(Console::open(&vm, ConsoleStart::Last(1 << 20)).await?);
        let ready = console.ready().await?;
        ensure(ready.hostname == HOSTNAME, || {
            format!("the guest calls itself {:?}", ready.hostname)
        })?;
        Ok(ready)
    }

    async fn stop(&mut self) -> Result<()> {
        self.console()?.run("umount /mnt").await?;
        let vm = self.vm()?;
        done(vm.stop().await?, 90).await?;
        self.console = None;
        let phase = vm.get().await?.phase;
        ensure(phase == Phase::Stopped, || format!("it is {phase}"))
    }

    /// The guest's boot id, and how long it has been up.
    async fn clock(&mut self) -> Result<(String, f64)> {
        parse_clock(
            &self
                .console()?
                .run("cat /proc/sys/kernel/random/boot_id /proc/uptime")
                .await?,
        )
    }

    /// The device of the attached volume, by the disk's serial number.
    async fn find_disk(&mut self) -> Result<String> {
        let look = format!(
            "cd /sys/block; for t in $(seq 60); do for d in *; do [ \"$(cat $d/serial 2>/dev/null)\" = {DATA} ] && echo /dev/$d && break 2; done; sleep 0.5; done; cd"
        );
        let disk = self.console()?.run(&look).await?;
        ensure(disk.starts_with("/dev/"), || {
            format!("the guest sees no disk with the serial {DATA:?}")
        })?;
        Ok(disk)
    }

    async fn mount_and_check(&mut self) -> Result<()> {
        let disk = self.find_disk().await?;
        self.console()?
            .run(&format!("mount -t ext4 {disk} /mnt"))
            .await?;
        self.check_data().await
    }

    /// The data's checksum, read from the disk and not from the guest's memory.
    async fn check_data(&mut self) -> Result<()> {
        let line = "echo 3 >/proc/sys/vm/drop_caches; cd /mnt && sha256sum -c data.sha256 && cd";
        let answer = self.console()?.run(line).await?;
        ensure(answer.contains("data: OK"), || {
            format!("sha256sum says {answer:?}")
        })
    }

    async fn volume(&self) -> Result<VolumeHandle> {
        let cluster = self.cluster()?;
        Ok(cluster.volumes().by_name(DATA).await?)
    }

    fn cluster(&self) -> Result<Cluster> {
        Ok(self.cluster.clone().ok_or("the cluster is not open")?)
    }

    fn vm(&self) -> Result<VmHandle> {
        Ok(self.vm.clone().ok_or("there is no VM")?)
    }

    fn console(&mut self) -> Result<&mut Console> {
        Ok(self.console.as_mut().ok_or("the console is not open")?)
    }

    /// After a failure: the VM's phase and reason, and the end of its console.
    async fn tell_what_is_known(&mut self) {
        if let Some(vm) = &self.vm {
            let text = match tokio::time::timeout(secs(10), vm.get()).await {
                Ok(Ok(view)) => format!("the VM is {}: {}", view.phase, view.reason),
                Ok(Err(error)) => format!("the VM: {error}"),
                Err(_) => "the VM's record could not be read in time".to_owned(),
            };
            Line::Note(text).say();
        }
        if let Some(console) = &self.console {
            Line::Note("its console ends with:".to_owned()).say();
            let tail = console.tail();
            let lines: Vec<_> = tail.lines().collect();
            for line in &lines[lines.len().saturating_sub(20)..] {
                Line::Note((*line).to_owned()).say();
            }
        }
    }
}

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<()> {
    if holds {
        Ok(())
    } else {
        Err(otherwise().into())
    }
}

/// That the VM is where it should be.
fn expect_place(view: &VmView, node: &str) -> Result<String> {
    let place = view.place.as_ref().map(ToString::to_string);
    ensure(
        view.phase == Phase::Running && place.as_deref() == Some(node),
        || {
            format!(
                "it is {} at {place:?}, not running on {node}: {}",
                view.phase, view.reason
            )
        },
    )?;
    let epoch = view.run.as_ref().map_or(0, |run| run.epoch.0);
    Ok(format!("running on {node}, start {epoch}"))
}

/// `<boot id> <uptime> …`
fn parse_clock(text: &str) -> Result<(String, f64)> {
    let mut words = text.split_whitespace();
    match (words.next(), words.next().map(str::parse)) {
        (Some(boot_id), Some(Ok(uptime))) => Ok((boot_id.to_owned(), uptime)),
        _ => Err(format!("no boot id and uptime in {text:?}").into()),
    }
}

async fn done(operation: OperationHandle, limit: u64) -> Result<()> {
    operation.wait(soon(limit)).await?;
    Ok(())
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn soon(n: u64) -> Deadline {
    Deadline::after(secs(n))
}

fn call() -> Call {
    Call::within(secs(20))
}
