//! Failover for real: three hosts over one store, with real guests, and what becomes of them when a host dies, is cut
//! off or stands still, when the leader goes, and when the store's server does.
//!
//! ```text
//!   ha ── the director: in the hub's namespace            [net]      namespaces, cut and mended
//!    ├─ etcd ×3, one on each host, or PostgreSQL          [servers]
//!    ├─ ha host a │ b │ c, each in its namespace          [host]     what a program of your own would be
//!    │     └─ QEMU guests, on volumes of one folder       [guests]   watched from outside: nothing runs twice
//!    └─ stories, each with its time line and its checks   [stories], [reach], [upgrade], [checks], [ground], [line], [records]
//! ```
//! The hosts share this machine's kernel, so that a host can be fenced by ending its process and its guests
//! ([`ProcessFence`](novacron_kvm::fence::ProcessFence)); all else is as on three machines.

mod checks;
mod ground;
mod guests;
mod host;
mod line;
mod net;
mod reach;
mod records;
mod servers;
mod stories;
mod upgrade;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;

use novacron_examples::{Result, guest_disk};

use ground::Ground;
use net::Net;
use servers::Place;
use stories::{STORIES, Story};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments[..] {
        ["host", store, host, dir] => run_host(store, host, Path::new(dir)),
        _ => match Wanted::parse(&arguments) {
            Ok(wanted) => direct(&wanted),
            Err(error) => {
                say(&format!("{error}\n\n{}", usage()));
                return ExitCode::from(2);
            }
        },
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&chain(&*error));
            ExitCode::FAILURE
        }
    }
}

/// What to show.
struct Wanted {
    place: Place,
    stories: Vec<Story>,
}

impl Wanted {
    fn parse(arguments: &[&str]) -> Result<Self> {
        let (mut place, mut names) = (Place::Etcd, "all");
        let mut rest = arguments;
        while let [option, value, more @ ..] = rest {
            match *option {
                "--store" => place = Place::parse(value).ok_or("there is no such store")?,
                "--story" => names = value,
                _ => return Err(format!("{option}: there is no such option").into()),
            }
            rest = more;
        }
        if let [odd] = rest {
            return Err(format!("{odd}: what about it?").into());
        }
        let mut stories = Vec::new();
        for name in names.split(',') {
            let found = STORIES.iter().filter(|(n, story)| match name {
                "all" => story.is_of(&place),
                name => *n == name,
            });
            let before = stories.len();
            stories.extend(found.map(|(_, story)| *story));
            if stories.len() == before {
                return Err(format!("{name}: there is no such story").into());
            }
        }
        match stories.iter().find(|story| !story.is_of(&place)) {
            Some(story) => Err(format!("{story:?} is no story of {}", place.name()).into()),
            None => Ok(Self { place, stories }),
        }
    }
}

fn usage() -> String {
    let names: Vec<_> = STORIES.iter().map(|(name, _)| *name).collect();
    format!(
        "ha [--store etcd|postgres] [--story all|<story>,…]\n  stories: {}\nIt needs root, for network namespaces.",
        names.join(" ")
    )
}

fn run_host(store: &str, host: &str, dir: &Path) -> Result<()> {
    let level = std::env::var("HA_LOG")
        .ok()
        .and_then(|level| level.parse().ok());
    tracing_subscriber::fmt()
        .with_max_level(level.unwrap_or(tracing_subscriber::filter::LevelFilter::INFO))
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    let place = Place::parse(store).ok_or("there is no such store")?;
    runtime()?.block_on(host::run(&place, dir, host))
}

fn direct(wanted: &Wanted) -> Result<()> {
    // Its packages cannot be fetched from the hub's namespace.
    let disk = guest_disk::path()?;
    let alone = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    say(&alone.block_on(guest_disk::build(&disk))?);
    drop(alone);
    // Before there is another thread, which would not be in the hub's namespace.
    let net = Net::make()?;
    let dir = tempfile::Builder::new().prefix("nch").tempdir_in("/tmp")?;
    // PostgreSQL, which runs as a user of its own, goes through it.
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711))?;
    let told = runtime()?.block_on(async {
        let told = async {
            std::fs::create_dir(dir.path().join("logs"))?;
            let make = Ground::make(wanted.place.clone(), net, dir.path(), disk);
            let mut ground = Box::pin(make).await?;
            for story in &wanted.stories {
                Box::pin(story.tell(&mut ground)).await?;
            }
            if wanted.stories.last() == Some(&Story::Upgrade) {
                return Ok(());
            }
            Box::pin(ground.end()).await
        };
        tokio::select! {
            told = told => told,
            _ = novacron_examples::interrupted() => Err("interrupted".into()),
        }
    });
    if told.is_err() {
        tell_logs(&dir.path().join("logs"));
    }
    dir.close()?;
    told
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    Ok(builder.worker_threads(2).enable_all().build()?)
}

/// Shows the end of every process's log, after something went wrong.
fn tell_logs(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(40)..].join("\n");
        say(&format!(
            "-- {}\n{last}",
            entry.file_name().to_string_lossy()
        ));
    }
}

/// An error with what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

#[expect(clippy::print_stderr, reason = "the output of a program for people")]
fn say(text: &str) {
    eprintln!("ha: {text}");
}
