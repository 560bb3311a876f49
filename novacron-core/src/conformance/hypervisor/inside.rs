//! `stats`, `consoles`, `screens`, `diagnostics` and `guest_agent`: what can be seen of a guest.

use std::pin::Pin;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::subject::pause;
use super::{Ability, HypervisorFixture, Subject};
use crate::conformance::refusal;
use crate::driver::{ByteStream, ConsoleStart, Consoles, DomainId, DomainState, Screens};
use crate::error::ErrorKind;

/// A started domain has numbers for each vCPU and each disk, and for each NIC or none.
pub async fn stats_cover_the_domain(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let spec = s.running().await;
    let stats = s.hypervisor.stats(s.call(), spec.id).await.unwrap();
    assert_eq!(
        stats.vcpu_ns.len(),
        spec.hardware.vcpus as usize,
        "{stats:?}"
    );
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

/// A screen has a size, to each of its viewers; and a connection to it ends with the domain.
pub async fn screen_is_shown(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let Some(screens) = s.screens() else {
        return;
    };
    let id = s.running().await.id;
    let first = viewer(&s, screens, id).await;
    let (size, mut stream) = viewer(&s, screens, id).await;
    assert_eq!(first.0, size, "two looks at one screen");
    assert!(size.0 >= 320 && size.1 >= 200, "{size:?}");
    s.kill(id).await;
    let mut rest = Vec::new();
    let ended = stream.read_to_end(&mut rest);
    // A server that is killed may not have said that it ends.
    let _ = s.soon("the end of the screen", ended).await;
}

/// A domain that is not started has no screen.
pub async fn screen_needs_a_started_domain(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let Some(screens) = s.screens() else {
        return;
    };
    let ended = s.running().await.id;
    s.kill(ended).await;
    for id in [s.defined().await.id, ended, s.fresh()] {
        refusal("vnc", screens.vnc(s.call(), id).await.map(drop));
    }
}

/// Joins the other viewers of a screen (RFC 6143, 7.1 to 7.3): its width and height, and the connection.
async fn viewer(
    s: &Subject<'_>,
    screens: &dyn Screens,
    id: DomainId,
) -> ((u16, u16), Pin<Box<dyn ByteStream>>) {
    const NO_PASSWORD: u8 = 1;
    let mut stream = screens.vnc(s.call(), id).await.unwrap();
    let greeted = async {
        let mut version = [0; 12];
        stream.read_exact(&mut version).await?;
        assert!(version.starts_with(b"RFB 003."), "{version:?}");
        stream.write_all(b"RFB 003.008\n").await?;
        let mut kinds = vec![0; stream.read_u8().await?.into()];
        stream.read_exact(&mut kinds).await?;
        assert!(
            kinds.contains(&NO_PASSWORD),
            "a password is asked for: {kinds:?}"
        );
        stream.write_u8(NO_PASSWORD).await?;
        assert_eq!(stream.read_u32().await?, 0, "the server lets nobody in");
        let shared = 1;
        stream.write_u8(shared).await?;
        Ok::<_, std::io::Error>((stream.read_u16().await?, stream.read_u16().await?))
    };
    let size = s.soon("the screen's size", greeted).await.unwrap();
    (size, stream)
}

/// A dump has the guest's memory as an ELF core, leaves a running guest running and a held one held, and overwrites nothing.
pub async fn memory_is_dumped_into_a_new_file(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let Some(diagnostics) = s.diagnostics() else {
        return;
    };
    let spec = s.running().await;
    let dump = async |name| {
        let file = fixture.file(name);
        let dumped = diagnostics.dump_memory(s.call(), spec.id, &file).await;
        (file, dumped)
    };
    for (name, state) in [
        ("running", DomainState::Running),
        ("held", DomainState::Paused),
    ] {
        if state == DomainState::Paused {
            s.hypervisor.pause(s.call(), spec.id).await.unwrap();
        }
        let (file, dumped) = dump(name).await;
        dumped.unwrap();
        let core = std::fs::File::open(&file).unwrap();
        let mut magic = [0; 4];
        std::io::Read::read_exact(&mut &core, &mut magic).unwrap();
        assert_eq!(&magic, b"\x7fELF");
        assert!(
            core.metadata().unwrap().len() >= spec.hardware.memory.0 << 20,
            "the whole memory"
        );
        assert_eq!(s.state(spec.id).await, state);
    }
    let (file, again) = dump("held").await;
    assert_eq!(again.unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert!(file.exists());
}

/// A domain that is not started has no memory, and takes no interrupt.
pub async fn diagnostics_need_a_started_domain(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let Some(diagnostics) = s.diagnostics() else {
        return;
    };
    let ended = s.running().await.id;
    diagnostics.inject_nmi(s.call(), ended).await.unwrap();
    s.kill(ended).await;
    let file = fixture.file("none");
    for id in [s.defined().await.id, ended, s.fresh()] {
        refusal("nmi", diagnostics.inject_nmi(s.call(), id).await);
        refusal("dump", diagnostics.dump_memory(s.call(), id, &file).await);
        assert!(!file.exists());
    }
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
