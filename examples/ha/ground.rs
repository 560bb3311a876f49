//! The ground of the stories: the network, the store, three hosts, three VMs, and the means to hurt them.
//!
//! The director is a process of the cluster, too: it looks after nothing and never leads, it asks and looks. Everything
//! lies in one temporary folder: `hosts/<host>` (each hypervisor's), `pool`, `store`, `logs`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use novacron_core::cluster::{Cluster, ImageSpec, ListRequest, Peers, VmHandle, VolumeSpec};
use novacron_core::model::{
    CloudInit, DiskSource, ImageSource, NodeId, NodeState, Role, VolumeFormat,
};
use novacron_core::store::{LeaseAnswer, Store};
use novacron_core::{Bytes, Deadline, MiB, Phase, VmSpec};
use novacron_examples::{Result, leftovers};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::guests::Witness;
use crate::host::{self, Said, TTL};
use crate::line::{Line, What};
use crate::net::{HOSTS, Net};
use crate::records;
use crate::servers::{Place, Servers};

/// What the guests run.
const BEAT: &str = include_str!("beat.sh");
/// Between two looks at something that comes about.
const LOOK: Duration = Duration::from_millis(50);

/// Between two starts of a process that ends at once.
const AGAIN: Duration = Duration::from_millis(500);

/// Time enough for a guest to boot on a busy machine.
pub(crate) fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(90))
}

/// A host's process.
struct Host {
    /// Holds on to this very process, whatever becomes of its number.
    process: rustix::fd::OwnedFd,
    /// Reads what it says, and notices its end. Dropping it kills the process.
    reader: JoinHandle<()>,
    /// Under which number it joined.
    member: u64,
}

/// A VM of the stories.
pub(crate) struct Guest {
    pub(crate) vm: VmHandle,
    pub(crate) name: String,
    /// The file of the volume that it writes to.
    disk: PathBuf,
}

pub(crate) struct Ground {
    pub(crate) place: Place,
    pub(crate) servers: Servers,
    pub(crate) line: Line,
    pub(crate) cluster: Cluster,
    pub(crate) witness: Witness,
    pub(crate) guests: Vec<Guest>,
    store: Arc<dyn Store>,
    hosts: BTreeMap<&'static str, Host>,
    /// The program of a host's process, where it is another one than this.
    programs: BTreeMap<&'static str, PathBuf>,
    watch: JoinHandle<()>,
    dir: PathBuf,
    // The last to go.
    pub(crate) net: Net,
}

impl Ground {
    /// Starts everything, with a guest running on each host from the image in `disk`.
    pub(crate) async fn make(place: Place, net: Net, dir: &Path, disk: PathBuf) -> Result<Self> {
        let line = Line::new();
        let begin = line.begin(&format!("three hosts over {}", place.name()));
        let servers = Servers::start(&place, &dir.join("store"), &net)?;
        let (store, builder) = within(soon(), "the store answers", || host::begin(&place)).await?;
        let cluster = builder
            .role(Role::Owner)
            .process("director")
            .peers(Peers::asking_only())
            .build()
            .await?;
        let watch = tokio::spawn(records::follow(
            Arc::clone(&store),
            line.clone(),
            store.revision().await?,
        ));
        let hosts = dir.join("hosts");
        std::fs::create_dir_all(&hosts)?;
        let mut ground = Self {
            place,
            net,
            servers,
            cluster,
            witness: Witness::begin(hosts, line.clone()),
            guests: Vec::new(),
            store,
            hosts: BTreeMap::new(),
            programs: BTreeMap::new(),
            watch,
            dir: dir.to_owned(),
            line,
        };
        for host in HOSTS {
            ground.start(host).await?;
        }
        for host in HOSTS {
            ground.available(host).await?;
        }
        let spec = ImageSpec::new("guest", ImageSource::File(disk));
        let image = ground.cluster.images().create(spec).await?;
        image
            .operation()
            .ok_or("the import has no operation")?
            .wait(soon())
            .await?;
        for (name, host) in ["web", "db", "mail"].into_iter().zip(HOSTS) {
            ground.create(name, host).await?;
        }
        ground.settle(begin).await?;
        Ok(ground)
    }

    async fn create(&mut self, name: &str, host: &str) -> Result<()> {
        let mut spec = VolumeSpec::new(format!("{name}-data"), Bytes(2 << 20));
        spec.format = VolumeFormat::Raw;
        let volume = self.cluster.volumes().create(spec).await?.id();
        let script: String = BEAT.lines().map(|line| format!("      {line}\n")).collect();
        let user_data = format!(
            "#cloud-config\nwrite_files:\n  - path: /etc/rc.local\n    permissions: '0755'\n    content: |\n{script}"
        );
        let seed = CloudInit {
            user_data,
            ..CloudInit::default()
        };
        let spec = VmSpec::new(name)
            .memory(MiB(128))
            .image("guest")
            .disk("data", DiskSource::Volume { volume })
            .cloud_init(seed);
        self.only(Some(host)).await?;
        let vm = self.cluster.vms().create(spec).await?;
        self.line.name(vm.id(), name);
        vm.wait_for(Phase::Running, soon()).await?;
        self.only(None).await?;
        self.guests.push(Guest {
            vm,
            name: name.to_owned(),
            disk: host::pool(&self.dir).join(format!("volumes/{volume}/base.raw")),
        });
        Ok(())
    }

    /// New starts go to this host only, or to any.
    async fn only(&self, host: Option<&str>) -> Result<()> {
        for node in HOSTS {
            let takes = host.is_none_or(|host| host == node);
            self.cluster
                .nodes()
                .set_schedulable(&NodeId::new(node)?, takes)
                .await?;
        }
        Ok(())
    }

    // ---- hosts

    /// Starts a host's process, and waits until it has joined; again if it ends before, as systemd would: right after a
    /// cut the store may be out of reach.
    pub(crate) async fn start(&mut self, host: &'static str) -> Result<()> {
        let deadline = soon();
        let mut again = tokio::time::interval(AGAIN);
        loop {
            again.tick().await;
            match self.try_start(host).await {
                Err(_) if !deadline.remaining().is_zero() => {}
                started => return started,
            }
        }
    }

    /// The host's next process is of this program.
    pub(crate) fn program(&mut self, host: &'static str, program: PathBuf) {
        self.programs.insert(host, program);
    }

    /// What the host's processes have logged.
    pub(crate) fn log(&self, host: &str) -> Result<String> {
        let log = self.dir.join(format!("logs/host-{host}.log"));
        Ok(std::fs::read_to_string(log)?)
    }

    pub(crate) async fn try_start(&mut self, host: &'static str) -> Result<()> {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.join(format!("logs/host-{host}.log")))?;
        let from = self.line.since(0).len();
        let program = match self.programs.get(host) {
            Some(program) => program.clone(),
            None => std::env::current_exe()?,
        };
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.net.namespace(host)])
            .arg(program)
            .args(["host", self.place.name(), host])
            .arg(&self.dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let process = pidfd_open(pid.ok_or("the process is gone")?, PidfdFlags::empty())?;
        let said = child.stdout.take().ok_or("the process has no output")?;
        let line = self.line.clone();
        let reader = tokio::spawn(async move {
            let mut lines = BufReader::new(said).lines();
            while let Ok(Some(text)) = lines.next_line().await {
                if let Some(said) = Said::parse(&text) {
                    line.saw(&format!("host {host}"), What::Said(said));
                }
            }
            let _ = child.wait().await;
            line.saw(&format!("host {host}"), What::Ended);
        });
        let mut host_process = Host {
            process,
            reader,
            member: 0,
        };
        let who = format!("host {host}");
        let joined = self
            .line
            .wait(from, soon(), "the host joins", |seen| match &seen.what {
                What::Said(Said::Joined(member)) if seen.who == who => Some(Some(*member)),
                What::Ended if seen.who == who => Some(None),
                _ => None,
            });
        host_process.member = joined.await?.ok_or("the host's process ended by itself")?;
        self.hosts.insert(host, host_process);
        Ok(())
    }

    /// Signals a host's process.
    pub(crate) fn signal(&self, host: &str, signal: Signal) -> Result<()> {
        let process = &self
            .hosts
            .get(host)
            .ok_or("the host's process does not run")?
            .process;
        Ok(pidfd_send_signal(process, signal)?)
    }

    /// Waits for the end of a host's process.
    pub(crate) async fn ended(&mut self, host: &str) -> Result<()> {
        let process = self
            .hosts
            .remove(host)
            .ok_or("the host's process does not run")?;
        Ok(tokio::time::timeout_at(soon().instant(), process.reader).await??)
    }

    /// Kills every guest of a host.
    pub(crate) fn kill_guests(&self, host: &str) -> Result<()> {
        for pid in leftovers::guests(&host::state(&self.dir, host))? {
            let process = pidfd_open(pid, PidfdFlags::empty())?;
            pidfd_send_signal(&process, Signal::KILL)?;
        }
        Ok(())
    }

    /// As which member the host's process has joined.
    pub(crate) fn member(&self, host: &str) -> u64 {
        self.hosts.get(host).map_or(0, |host| host.member)
    }

    /// The host that leads.
    pub(crate) fn leader(&self) -> Result<&'static str> {
        let mut leader = None;
        for seen in self.line.since(0) {
            let host = HOSTS
                .into_iter()
                .find(|host| seen.who == format!("host {host}"));
            match seen.what {
                What::Said(Said::Leads(true)) => leader = host,
                What::Said(Said::Leads(false)) | What::Ended if host == leader => leader = None,
                _ => {}
            }
        }
        Ok(leader.ok_or("no host leads")?)
    }

    /// A host that does not lead.
    pub(crate) fn follower(&self) -> Result<&'static str> {
        let leader = self.leader()?;
        Ok(HOSTS
            .into_iter()
            .rfind(|host| *host != leader)
            .ok_or("there is one host")?)
    }

    /// When the store lets the lease of a host's process go that cannot renew it any more.
    pub(crate) async fn lease_ends(
        &self,
        host: &'static str,
    ) -> Result<JoinHandle<Result<Instant>>> {
        let member = self.member(host);
        if self.place == Place::Etcd {
            return Ok(tokio::spawn(Servers::etcd_lets_go(host, member)));
        }
        // Asking changes nothing: it is held.
        let lease = format!("member/{member}");
        let asked = Instant::now();
        match self.store.lease_acquire(&lease, "director", TTL).await? {
            LeaseAnswer::HeldBy { remaining, .. } => {
                Ok(tokio::spawn(async move { Ok(asked + remaining) }))
            }
            LeaseAnswer::Granted(_) => Err(format!("nobody held {lease}").into()),
        }
    }

    // ---- what must be true

    /// Waits until a host answers to the process that runs there now.
    pub(crate) async fn available(&self, host: &str) -> Result<()> {
        let node = NodeId::new(host)?;
        let member = self.member(host);
        within(soon(), &format!("host {host} is available"), async || {
            let view = self.cluster.nodes().get(&node).await?;
            let status = view.status.ok_or("it was not looked at yet")?;
            if view.owner.map(|m| m.0) != Some(member) || status.member.0 != member {
                return Err(format!("member {:?} looks after it", view.owner).into());
            }
            if status.state != NodeState::Available || !status.unknown_domains.is_empty() {
                return Err(format!("{:?}: {}", status.state, status.message).into());
            }
            Ok(())
        })
        .await
    }

    /// Waits until everything is as it should be again, and checks that nothing was wrong since `from`.
    pub(crate) async fn settle(&mut self, from: usize) -> Result<()> {
        for host in HOSTS {
            if !self.hosts.contains_key(host) {
                self.start(host).await?;
            }
            self.available(host).await?;
        }
        for guest in &self.guests {
            let view = guest.vm.wait_for(Phase::Running, soon()).await?;
            let claim = view.claim.ok_or("a running VM has no claim")?;
            let node = claim.place.node().ok_or("a VM is nowhere")?.to_string();
            let here = |(_, start): &(u32, crate::guests::Start)| start.vm == guest.vm.id();
            let runs: Vec<_> = self.witness.running().into_iter().filter(here).collect();
            match &runs[..] {
                [(_, start)] if start.host == node && start.epoch == claim.epoch.0 => {}
                _ => return Err(format!("{} should run on {node}: {runs:?}", guest.name).into()),
            }
            self.beats(guest).await?;
        }
        for guest in &self.guests {
            let found = self.witness.check(guest.vm.id(), &guest.disk)?;
            self.line.note(format!(
                "{} ran once: {found}, each on the disk",
                guest.name
            ));
        }
        self.line.note(format!(
            "{} things seen, and all is as it should be",
            self.line.since(from).len()
        ));
        Ok(())
    }

    /// Waits for three more heartbeats.
    pub(crate) async fn beats(&self, guest: &Guest) -> Result<()> {
        let before = self.witness.last_beat(guest.vm.id()).map_or(0, |(_, n)| n);
        within(
            soon(),
            &format!("{}'s heart beats", guest.name),
            async || match self.witness.last_beat(guest.vm.id()) {
                Some((_, n)) if n >= before + 3 => Ok(()),
                last => Err(format!("the last was {last:?}").into()),
            },
        )
        .await
    }

    /// The VMs on a host, as their claims say.
    pub(crate) async fn guests_of(&self, host: &str) -> Result<Vec<&Guest>> {
        let mut found = Vec::new();
        for guest in &self.guests {
            let place = guest.vm.get().await?.place;
            if place
                .as_ref()
                .and_then(|p| p.node())
                .is_some_and(|n| n.as_str() == host)
            {
                found.push(guest);
            }
        }
        Ok(found)
    }

    /// Moves a VM: off, and on where it is to be.
    pub(crate) async fn put(&self, guest: &Guest, host: &str) -> Result<()> {
        let view = guest.vm.get().await?;
        if view
            .place
            .as_ref()
            .and_then(|p| p.node())
            .is_some_and(|n| n.as_str() == host)
        {
            return Ok(());
        }
        guest.vm.stop().await?.wait(soon()).await?;
        self.only(Some(host)).await?;
        guest.vm.start().await?.wait(soon()).await?;
        self.only(None).await?;
        self.beats(guest).await
    }

    /// Each VM on a host of its own.
    pub(crate) async fn spread(&self) -> Result<()> {
        for (guest, host) in self.guests.iter().zip(HOSTS) {
            self.put(guest, host).await?;
        }
        Ok(())
    }

    /// Deletes everything, ends the hosts, and proves that nothing is left.
    pub(crate) async fn end(mut self) -> Result<()> {
        self.line.begin("the end");
        for guest in &self.guests {
            guest.vm.delete().await?.wait(soon()).await?;
        }
        for volume in self
            .cluster
            .volumes()
            .list(&ListRequest::new())
            .await?
            .items
        {
            let volume = self.cluster.volumes().by_id(volume.volume.id);
            volume.delete().await?.wait(soon()).await?;
        }
        for host in HOSTS {
            self.signal(host, Signal::TERM)?;
            self.ended(host).await?;
        }
        self.cluster.shutdown(soon()).await?;
        let guests = leftovers::guests(&self.dir)?;
        let mut files = leftovers::files(&self.dir.join("hosts"))?;
        files.extend(leftovers::files(&host::pool(&self.dir).join("volumes"))?);
        if !guests.is_empty() || !files.is_empty() {
            return Err(format!("left behind: {guests:?}, {files:?}").into());
        }
        self.line.note("no guest and no file of one is left");
        Ok(())
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        self.watch.abort();
        for (_, host) in std::mem::take(&mut self.hosts) {
            let _ = pidfd_send_signal(&host.process, Signal::KILL);
            host.reader.abort();
        }
        // What a host was starting when it was killed may appear a moment later.
        let mut clear = 0;
        while clear < 3 {
            clear = match leftovers::end_guests(&self.dir) {
                Ok(0) | Err(_) => clear + 1,
                Ok(_) => 0,
            };
            nap(LOOK);
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a process that was killed tells nobody"
)]
fn nap(time: Duration) {
    std::thread::sleep(time);
}

/// Looks until it is so, or for as long as there is time; then says what was found last.
pub(crate) async fn within<T>(
    deadline: Deadline,
    what: &str,
    mut look: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let mut looks = tokio::time::interval(LOOK);
    loop {
        looks.tick().await;
        match tokio::time::timeout_at(deadline.instant(), look()).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(_)) if !deadline.remaining().is_zero() => {}
            Ok(Err(error)) => return Err(format!("not in time: {what}; {error}").into()),
            Err(_) => return Err(format!("not in time: {what}").into()),
        }
    }
}
