//! `stats`, `consoles` and `guest_agent`: what can be seen of a guest.

use std::time::Duration;

use tokio::io::AsyncReadExt;

use super::subject::pause;
use super::{Ability, HypervisorFixture, Subject};
use crate::conformance::refusal;
use crate::driver::DomainId;

/// A started domain has numbers for each vCPU and each disk, and for each NIC or none.
pub async fn stats_cover_the_domain(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let spec = s.running().await;
    let stats = s.hypervisor.stats(s.call(), spec.id).await.unwrap();
    assert_eq!(stats.vcpu_ns.len(), spec.vcpus as usize, "{stats:?}");
    for disk in &spec.disks {
        let counted = stats.disks.iter().any(|d| d.volume == disk.volume);
        assert!(counted, "{}: {stats:?}", disk.name);
    }
    for nic in &spec.nics {
        let counted = stats.nics.iter().any(|n| n.port == nic.port);
        assert!(stats.nics.is_empty() || counted, "{stats:?}");
    }
}

/// CPU time grows while the guest runs.
pub async fn stats_grow_while_it_runs(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let id = s.running().await.id;
    let used = async |id: DomainId| -> u64 {
        let stats = s.hypervisor.stats(s.call(), id).await.unwrap();
        stats.vcpu_ns.iter().sum()
    };
    let before = used(id).await;
    let grows = async {
        while used(id).await <= before {
            pause(Duration::from_millis(20)).await;
        }
    };
    s.soon("CPU time to grow", grows).await;
}

/// A domain that is not started has no numbers.
pub async fn stats_need_a_started_domain(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let ended = s.running().await.id;
    s.kill(ended).await;
    for id in [s.defined().await.id, ended, s.fresh()] {
        refusal("stats", s.hypervisor.stats(s.call(), id).await);
    }
}

/// A console gives what the guest writes, from the history on, to each of its readers.
pub async fn console_gives_what_the_guest_writes(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let Some(consoles) = s.declared(Ability::Consoles, s.hypervisor.consoles()) else {
        return;
    };
    let id = s.booted().await.id;
    let mut heard = Vec::new();
    for _ in 0..2 {
        let mut console = consoles.open(s.call(), id, 1 << 16).await.unwrap();
        let mut bytes = vec![0; 256];
        let read = console.read(&mut bytes);
        let count = s.soon("the console's bytes", read).await.unwrap();
        assert!(count > 0, "the console ended");
        bytes.truncate(count);
        heard.push(bytes);
    }
    let common = heard[0].len().min(heard[1].len());
    assert_eq!(heard[0][..common], heard[1][..common]);
}

/// The agent answers, runs a program to its end, and thaws what is not frozen.
pub async fn guest_agent_answers(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let Some(agent) = s.guest_agent() else { return };
    let id = s.booted().await.id;
    let ping = async {
        while agent.ping(s.call(), id).await.is_err() {
            pause(Duration::from_millis(100)).await;
        }
    };
    s.soon("the guest agent", ping).await;
    let argv = ["/bin/sh", "-c", "cat; exit 3"].map(str::to_owned);
    let stdin = Some(bytes::Bytes::from_static(b"said"));
    let output = agent.exec(s.call(), id, &argv, stdin).await.unwrap();
    assert_eq!(output.exit_code, Some(3), "{output:?}");
    assert_eq!(output.stdout, "said");
    agent.thaw(s.call(), id).await.unwrap();
    agent.addresses(s.call(), id).await.unwrap();
}
