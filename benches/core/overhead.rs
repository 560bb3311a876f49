//! What NovaCron adds to a boot: create-to-guest-ready through the whole of it, against the same QEMU by hand.
//!
//! ```text
//!   NovaCron:  create ─ records ─ qemu-img ─► QEMU held ─ claim read again ─► cont ─ guest boots ─► ready line
//!   by hand:            the same qemu-img  ─► QEMU, running at once ───────────────── guest boots ─► ready line
//! ```
//! By hand means: NovaCron's own arguments of a first guest (read from `/proc`), without `-S`, sockets by path instead
//! of by descriptor, on a fresh clone of the same image. Both are seen ready by the same look at their console's log.
//! Pairs are interleaved, and which one goes first alternates. Where others use the machine too, a boot in software takes
//! now this long, now twice as long: then the ratio of the lower quartiles says more than that of the medians.
//!
//! NovaCron's own time of a run is `create → the resume returned`, less what this QEMU needs from its start to its
//! monitor's greeting (measured by hand in the same pair), plus what phase running came later than the ready line.

use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::stream::BoxStream;
use novacron_core::cluster::{Cluster, ImageSpec};
use novacron_core::driver::{
    BlockExport, Call, Consoles, Diagnostics, DiskPivot, Domain, DomainId, DomainSpec, DomainStats,
    GuestAgent, HotPlug, Hypervisor, HypervisorEvent, MemorySnapshots, MigrationEndpoint, Screens,
    StopMode, StopReport,
};
use novacron_core::model::{CloudInit, HostInfo, ImageSource, NetworkId, NetworkKind, NicSpec};
use novacron_core::{MiB, Phase, VmSpec};
use novacron_kvm::QemuHypervisor;
use novacron_storage::LocalStorage;
use serde_json::Value;

use crate::Result;
use crate::figure::{Samples, millis, promised, remark, reported};
use crate::qemu::{Guest, Monitor, wait_for};
use crate::site::{folder, probe_sync, root, store};
use novacron_benches::sim::within;

const PAIRS: usize = 17;
const READY: &str = "NOVACRON-GUEST-READY";

/// What a hypervisor call took, and when it ended.
#[derive(Clone, Copy, Debug)]
struct Span {
    call: &'static str,
    from: Instant,
    to: Instant,
}

/// The hypervisor, with a note of its calls.
#[derive(Clone, Debug)]
struct Noted {
    driver: Arc<QemuHypervisor>,
    spans: Arc<Mutex<Vec<Span>>>,
}

impl Noted {
    async fn note<T>(&self, call: &'static str, work: impl Future<Output = T>) -> T {
        let from = Instant::now();
        let result = work.await;
        let span = Span {
            call,
            from,
            to: Instant::now(),
        };
        self.spans
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(span);
        result
    }

    fn take(&self) -> Vec<Span> {
        std::mem::take(&mut *self.spans.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Hypervisor for Noted {
    async fn probe(&self, call: Call) -> novacron_core::Result<HostInfo> {
        self.driver.probe(call).await
    }
    async fn list(&self, call: Call) -> novacron_core::Result<Vec<Domain>> {
        self.driver.list(call).await
    }
    async fn inspect(&self, call: Call, id: DomainId) -> novacron_core::Result<Option<Domain>> {
        self.note("inspect", self.driver.inspect(call, id)).await
    }
    async fn define(&self, call: Call, spec: &DomainSpec) -> novacron_core::Result<()> {
        self.note("define", self.driver.define(call, spec)).await
    }
    async fn start(&self, call: Call, id: DomainId) -> novacron_core::Result<()> {
        self.note("start", self.driver.start(call, id)).await
    }
    async fn resume(&self, call: Call, id: DomainId) -> novacron_core::Result<()> {
        self.note("resume", self.driver.resume(call, id)).await
    }
    async fn pause(&self, call: Call, id: DomainId) -> novacron_core::Result<()> {
        self.driver.pause(call, id).await
    }
    async fn stop(
        &self,
        call: Call,
        id: DomainId,
        mode: StopMode,
    ) -> novacron_core::Result<StopReport> {
        self.driver.stop(call, id, mode).await
    }
    async fn reset(&self, call: Call, id: DomainId) -> novacron_core::Result<()> {
        self.driver.reset(call, id).await
    }
    async fn undefine(&self, call: Call, id: DomainId) -> novacron_core::Result<()> {
        self.driver.undefine(call, id).await
    }
    async fn stats(&self, call: Call, id: DomainId) -> novacron_core::Result<DomainStats> {
        self.driver.stats(call, id).await
    }
    fn events(&self) -> BoxStream<'static, HypervisorEvent> {
        self.driver.events()
    }
    fn hot_plug(&self) -> Option<&dyn HotPlug> {
        self.driver.hot_plug()
    }
    fn consoles(&self) -> Option<&dyn Consoles> {
        self.driver.consoles()
    }
    fn screens(&self) -> Option<&dyn Screens> {
        self.driver.screens()
    }
    fn diagnostics(&self) -> Option<&dyn Diagnostics> {
        self.driver.diagnostics()
    }
    fn guest_agent(&self) -> Option<&dyn GuestAgent> {
        self.driver.guest_agent()
    }
    fn disk_pivot(&self) -> Option<&dyn DiskPivot> {
        self.driver.disk_pivot()
    }

    fn memory_snapshots(&self) -> Option<&dyn MemorySnapshots> {
        self.driver.memory_snapshots()
    }

    fn migration(&self) -> Option<&dyn MigrationEndpoint> {
        self.driver.migration()
    }

    fn block_export(&self) -> Option<&dyn BlockExport> {
        self.driver.block_export()
    }
}

/// One boot through NovaCron.
#[derive(Debug)]
struct Through {
    ready: Duration,
    /// Until the resume had returned.
    resumed: Duration,
    /// Within that: until QEMU's start was asked for, and that start (QEMU's own time to its greeting is in it).
    asked: Duration,
    start: Duration,
    /// How much later than the ready line the phase was running.
    lag: Duration,
}

/// What a boot by hand needs.
#[derive(Debug)]
struct Recipe {
    arguments: Vec<String>,
    volume: String,
    backing: String,
    size: String,
    seed: Vec<u8>,
}

/// One boot by hand: until ready, and from QEMU's start to its greeting.
#[derive(Debug)]
struct ByHand {
    ready: Duration,
    greeting: Duration,
}

struct Bench {
    state: PathBuf,
    hypervisor: Noted,
    cluster: Cluster,
    network: NetworkId,
}

pub(crate) async fn run() -> Result<()> {
    let disk = disk()?;
    let folder = folder()?;
    probe_sync(folder.path())?;
    let state = folder.path().join("q");
    let _ends = EndsGuests(state.clone());
    let hypervisor = Noted {
        driver: Arc::new(QemuHypervisor::new(&state)),
        spans: Arc::default(),
    };
    let cluster = Cluster::builder("bench")
        .store(store(folder.path()).await?)
        .storage(
            "local",
            LocalStorage::open(folder.path().join("pool")).await?,
        )
        .node("here", hypervisor.clone())
        .build()
        .await?;
    cluster.nodes().wait_available(within(30)).await?;
    let spec = ImageSpec::new("guest", ImageSource::File(disk));
    let image = cluster.images().create(spec).await?;
    image
        .operation()
        .ok_or("the import has no operation")?
        .wait(within(60))
        .await?;
    let network = cluster
        .networks()
        .create("nat", NetworkKind::User)
        .await?
        .id();
    let bench = Bench {
        state,
        hypervisor,
        cluster,
        network,
    };

    let mut recipe = None;
    bench.through(0, &mut recipe).await?;
    let recipe = recipe.ok_or("no recipe")?;
    let hand = folder.path().join("hand");
    recipe.boot(&hand).await?;
    let (mut pairs, mut aside) = (Vec::new(), None);
    for i in 1..=PAIRS {
        let (through, by_hand) = if i % 2 == 0 {
            let through = bench.through(i, &mut aside).await?;
            (through, recipe.boot(&hand).await?)
        } else {
            let by_hand = recipe.boot(&hand).await?;
            (bench.through(i, &mut aside).await?, by_hand)
        };
        pairs.push((through, by_hand));
    }
    bench.cluster.shutdown(within(30)).await?;

    let of = |f: &dyn Fn(&Through, &ByHand) -> f64| {
        Samples::new(pairs.iter().map(|(t, h)| f(t, h)).collect())
    };
    let ratio = of(&|t, h| t.ready.as_secs_f64() / h.ready.as_secs_f64());
    let own = of(&|t, h| millis(t.resumed.saturating_sub(h.greeting) + t.lag));
    let through = of(&|t, _| millis(t.ready));
    let by_hand = of(&|_, h| millis(h.ready));
    let medians = through.median() / by_hand.median();
    promised("overhead-ratio", ratio.median(), "x", "<= 1.05");
    promised("overhead-own-time", own.median(), "ms", "< 150");
    reported("overhead-ratio-of-medians", medians, "x");
    let quick = through.percentile(25) / by_hand.percentile(25);
    reported("overhead-ratio-of-lower-quartiles", quick, "x");
    reported("overhead-through-novacron", through.median(), "ms");
    reported("overhead-by-hand", by_hand.median(), "ms");
    reported(
        "overhead-until-qemu-is-asked-for",
        of(&|t, _| millis(t.asked)).median(),
        "ms",
    );
    reported(
        "overhead-qemu-start-call",
        of(&|t, _| millis(t.start)).median(),
        "ms",
    );
    reported(
        "overhead-qemu-to-greeting-by-hand",
        of(&|_, h| millis(h.greeting)).median(),
        "ms",
    );
    reported(
        "overhead-phase-after-ready",
        of(&|t, _| millis(t.lag)).median(),
        "ms",
    );
    remark(&format!("ratio of the pairs: {}", ratio.spread()));
    remark(&format!("own time, ms: {}", own.spread()));
    remark(&format!("through NovaCron, ms: {}", through.spread()));
    remark(&format!("by hand, ms: {}", by_hand.spread()));
    Ok(())
}

/// The guest's disk, built once.
fn disk() -> Result<PathBuf> {
    let disk = root().join("target/guest/disk.qcow2");
    if !disk.exists() {
        std::fs::create_dir_all(disk.parent().unwrap_or(Path::new(".")))?;
        remark("building the guest's disk");
        let status = Command::new(root().join("examples/guest/build.sh"))
            .arg(&disk)
            .status()?;
        if !status.success() {
            return Err("examples/guest/build.sh failed".into());
        }
    }
    Ok(disk)
}

impl Bench {
    async fn through(&self, number: usize, recipe: &mut Option<Recipe>) -> Result<Through> {
        let spec = VmSpec::new(format!("vm-{number}"))
            .memory(MiB(192))
            .image("guest")
            .nic(NicSpec::new(self.network))
            .cloud_init(CloudInit {
                hostname: Some("bench".to_owned()),
                ..CloudInit::default()
            });
        self.hypervisor.take();
        let start = Instant::now();
        let vm = self.cluster.vms().create(spec).await?;
        let run = self.state.join(vm.id().to_string()).join("1");
        let log = run.join("console.log");
        let running = async {
            vm.wait_for(Phase::Running, within(120)).await?;
            Ok::<_, novacron_core::Error>(Instant::now())
        };
        let ready = async {
            wait_for(&log, READY).await?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Instant::now())
        };
        let (running, ready) = tokio::join!(running, ready);
        let (running, ready) = (running?, ready?);
        let spans = self.hypervisor.take();
        let span = |call| {
            let found = spans.iter().find(|s| s.call == call);
            found
                .copied()
                .ok_or_else(|| format!("{call} was not called"))
        };
        let (started, resumed) = (span("start")?, span("resume")?);
        if recipe.is_none() {
            *recipe = Some(Recipe::of(&run)?);
        }
        vm.delete().await?.wait(within(60)).await?;
        Ok(Through {
            ready: ready - start,
            resumed: resumed.to - start,
            asked: started.from - start,
            start: started.to - started.from,
            lag: running.saturating_duration_since(ready),
        })
    }
}

impl Recipe {
    /// What NovaCron started in this run directory.
    fn of(run: &Path) -> Result<Self> {
        let pid = pid_of(run.parent().unwrap_or(run)).ok_or("no pid in run.lock")?;
        let line = std::fs::read(format!("/proc/{pid}/cmdline"))?;
        let arguments = line.split(|b| *b == 0).filter(|a| !a.is_empty());
        let mut arguments: Vec<String> = arguments
            .map(|a| std::ffi::OsString::from_vec(a.to_vec()).into_string())
            .collect::<std::result::Result<_, _>>()
            .map_err(|a| format!("an argument is not text: {a:?}"))?;
        arguments.retain(|a| a != "-S");
        for argument in &mut arguments {
            *argument = by_path(argument);
        }
        let volume = arguments
            .iter()
            .filter_map(|a| serde_json::from_str(a).ok())
            .find_map(|json: Value| file_of(&json).filter(|f| f.contains("/pool/")))
            .ok_or("no argument names the volume's file")?;
        let info = Command::new("qemu-img")
            .args(["info", "-U", "--output=json", &volume])
            .output()?;
        let info: Value = serde_json::from_slice(&info.stdout)?;
        let backing = info["backing-filename"]
            .as_str()
            .ok_or("the volume is no clone")?;
        // Relative to the volume, which is gone by the time of the next clone.
        let backing = std::fs::canonicalize(Path::new(&volume).with_file_name(backing))?;
        Ok(Self {
            arguments,
            backing: backing.to_string_lossy().into_owned(),
            size: info["virtual-size"].to_string(),
            seed: std::fs::read(run.join("seed.iso"))?,
            volume,
        })
    }

    /// Clones the image, starts QEMU and waits for the guest. `dir` is a folder of its own, made and removed here.
    async fn boot(&self, dir: &Path) -> Result<ByHand> {
        if dir.exists() {
            std::fs::remove_dir_all(dir)?;
        }
        std::fs::create_dir_all(dir)?;
        std::fs::write(dir.join("seed.iso"), &self.seed)?;
        let clone = dir.join("clone.qcow2");
        let clone = clone.to_str().ok_or("the folder's name is not text")?;
        let start = Instant::now();
        let made = tokio::process::Command::new("qemu-img")
            .args([
                "create",
                "-q",
                "-f",
                "qcow2",
                "-b",
                &self.backing,
                "-F",
                "qcow2",
            ])
            .args([clone, &self.size])
            .status()
            .await?;
        if !made.success() {
            return Err("qemu-img create failed".into());
        }
        let arguments = self
            .arguments
            .iter()
            .map(|a| a.replace(&self.volume, clone));
        let arguments: Vec<String> = arguments.collect();
        let (program, rest) = arguments.split_first().ok_or("no arguments")?;
        let spawned = Instant::now();
        let guest = Guest::spawn(Command::new(program).args(rest).current_dir(dir))?;
        let socket = dir.join("qmp");
        let greeting = async {
            Monitor::connect(&socket).await?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(spawned.elapsed())
        };
        let log = dir.join("console.log");
        let (greeting, ready) = tokio::join!(greeting, wait_for(&log, READY));
        ready?;
        let ready = start.elapsed();
        drop(guest);
        Ok(ByHand {
            ready,
            greeting: greeting?,
        })
    }
}

/// A socket that was inherited, as one that QEMU binds itself: `socket,id=qmp,fd=5,…` to `socket,id=qmp,path=qmp,…`.
fn by_path(argument: &str) -> String {
    let Some(rest) = argument.strip_prefix("socket,id=") else {
        return argument.to_owned();
    };
    let name = rest.split(',').next().unwrap_or(rest);
    let parts = argument
        .split(',')
        .map(|part| match part.strip_prefix("fd=") {
            Some(_) => format!("path={name}"),
            None => part.to_owned(),
        });
    parts.collect::<Vec<_>>().join(",")
}

/// The file of a block device.
fn file_of(json: &Value) -> Option<String> {
    match json.get("filename") {
        Some(Value::String(name)) => Some(name.clone()),
        _ => json.as_object()?.values().find_map(file_of),
    }
}

/// The pid in a VM's run lock.
fn pid_of(vm: &Path) -> Option<i32> {
    let text = std::fs::read_to_string(vm.join("run.lock")).ok()?;
    text.split(' ').nth(1)?.trim().parse().ok()
}

/// Ends the guests that a failed run leaves: those whose lock lies in the folder and that work in it.
struct EndsGuests(PathBuf);

impl Drop for EndsGuests {
    fn drop(&mut self) {
        for vm in std::fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let Some(pid) = pid_of(&vm.path()) else {
                continue;
            };
            let here = std::fs::read_link(format!("/proc/{pid}/cwd"));
            if here.is_ok_and(|cwd| cwd.starts_with(&self.0))
                && let Some(pid) = rustix::process::Pid::from_raw(pid)
            {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}
