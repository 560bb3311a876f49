//! `stats`, `consoles` and `guest_agent`: what can be seen of a guest.

use std::time::Duration;

use tokio::io::AsyncReadExt;

use super::subject::pause;
use super::{Ability, HypervisorFixture, Subject};
use crate::conformance::refusal;
use crate::driver::{ConsoleStart, Consoles, DomainId};

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
    let (first, bytes) = console_bytes(&s, consoles, id, ConsoleStart::Last(1 << 16)).await;
    let (again, same) = console_bytes(&s, consoles, id, ConsoleStart::Last(1 << 16)).await;
    assert_eq!(first, again);
    let common = bytes.len().min(same.len());
    assert_eq!(bytes[..common], same[..common]);
}

/// A reader that lost its stream goes on where it was; one that asks for what is not there yet begins at the end.
pub async fn console_goes_on_at_an_offset(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let Some(consoles) = s.declared(Ability::Consoles, s.hypervisor.consoles()) else {
        return;
    };
    let id = s.booted().await.id;
    let (first, bytes) = console_bytes(&s, consoles, id, ConsoleStart::Last(1 << 16)).await;
    let middle = bytes.len() / 2;
    let start = ConsoleStart::Offset(first + middle as u64);
    let (offset, rest) = console_bytes(&s, consoles, id, start).await;
    assert_eq!(offset, first + middle as u64);
    let common = rest.len().min(bytes.len() - middle);
    assert_eq!(rest[..common], bytes[middle..][..common]);

    let beyond = consoles.open(s.call(), id, ConsoleStart::Offset(u64::MAX));
    let end = beyond.await.unwrap().offset;
    assert!(end >= first + bytes.len() as u64 && end < u64::MAX, "{end}");
}

/// The offset at which the console's stream begins, and its first bytes.
async fn console_bytes(
    s: &Subject<'_>,
    consoles: &dyn Consoles,
    id: DomainId,
    start: ConsoleStart,
) -> (u64, Vec<u8>) {
    let mut console = consoles.open(s.call(), id, start).await.unwrap();
    let mut bytes = vec![0; 256];
    let read = console.stream.read(&mut bytes);
    let count = s.soon("the console's bytes", read).await.unwrap();
    assert!(count > 0, "the console ended");
    bytes.truncate(count);
    (console.offset, bytes)
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
    assert_eq!(
        (output.exit_code, output.signal),
        (Some(3), None),
        "{output:?}"
    );
    assert_eq!(output.stdout, "said");
    assert!(!output.stdout_truncated, "{output:?}");
    agent.thaw(s.call(), id).await.unwrap();
    agent.addresses(s.call(), id).await.unwrap();
}
