//! The process that you start: it builds the guest's disk, runs the host application twice, kills its first life in the
//! middle, shows the progress, and removes what is left if something goes wrong.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use novacron_examples::{guest_disk, leftovers};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use tokio::time::Instant;

use crate::Result;
use crate::report::{Line, Table, chain, within};
use crate::site::{Driver, Life, Site};

/// The longest that a life of the host application may take; its steps have tighter limits.
const LIFE_LIMIT: Duration = Duration::from_secs(1200);
/// How long the guest is alone between the two.
const ALONE: Duration = Duration::from_secs(2);

/// Runs the demonstration. Whether every check passed.
pub(crate) async fn run(beta: Driver) -> bool {
    let mut table = Table::new();
    let outcome = match tempfile::Builder::new().prefix("novacron-").tempdir() {
        Ok(dir) => {
            let outcome = tokio::select! {
                outcome = demonstrate(&mut table, dir.path(), beta) => outcome,
                _ = novacron_examples::interrupted() => Err("interrupted".into()),
            };
            clean_up(&mut table, dir, outcome.is_ok())
                .await
                .and(outcome)
        }
        Err(error) => Err(error.into()),
    };
    if let Err(error) = &outcome
        && table.is_amid_step()
    {
        table.take(Line::Fail(chain(error)));
    }
    table.show() && outcome.is_ok()
}

async fn demonstrate(table: &mut Table, dir: &Path, beta: Driver) -> Result<()> {
    let disk = guest_disk::path()?;
    table
        .step(
            "build the guest's disk",
            Duration::from_secs(300),
            guest_disk::build(&disk),
        )
        .await?;
    let site = Site {
        dir: dir.canonicalize()?,
        disk,
        beta,
    };

    let mut first = Host::start(&site, Life::First)?;
    first.follow(table, true).await?;
    table
        .step(
            "kill the host process, -9",
            Duration::from_secs(30),
            first.kill(&site.dir),
        )
        .await?;

    let mut second = Host::start(&site, Life::Second)?;
    second.follow(table, false).await
}

/// Proves that no process is left, and removes the temporary folder. After a failure, ends what is left.
async fn clean_up(table: &mut Table, dir: tempfile::TempDir, passed: bool) -> Result<()> {
    let path = dir.path().canonicalize()?;
    if !passed {
        if table.is_amid_step() {
            table.take(Line::Fail("it ended before the step did".to_owned()));
        }
        // The host process has just been killed; what it was starting may appear a moment later.
        let mut ended = 0;
        let mut rounds = tokio::time::interval(Duration::from_millis(200));
        for _ in 0..5 {
            rounds.tick().await;
            ended += leftovers::end_guests(&path)?;
        }
        table.take(Line::Note(format!(
            "ended {ended} guests, removed {}",
            path.display()
        )));
        return Ok(dir.close()?);
    }
    let work = async {
        let guests = leftovers::guests(&path)?;
        if !guests.is_empty() {
            leftovers::end_guests(&path)?;
            return Err(format!("QEMU still ran, as {guests:?}").into());
        }
        dir.close()?;
        if path.exists() {
            return Err(format!("{} is still there", path.display()).into());
        }
        Ok(format!("no QEMU of ours runs, {} is gone", path.display()))
    };
    table
        .step("leave nothing behind", Duration::from_secs(30), work)
        .await
}

/// The host application as a child process.
struct Host {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Host {
    fn start(site: &Site, life: Life) -> Result<Self> {
        let mut command = site.child(life)?;
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = process
            .stdout
            .take()
            .ok_or("the host process has no output")?;
        Ok(Self {
            process,
            lines: BufReader::new(stdout).lines(),
        })
    }

    /// Shows what the host application does, until it asks to be killed (if it shall) or has ended well.
    async fn follow(&mut self, table: &mut Table, to_be_killed: bool) -> Result<()> {
        within(LIFE_LIMIT, async {
            let mut failed = false;
            while let Some(text) = self.lines.next_line().await? {
                match Line::parse(&text) {
                    Some(Line::Kill) => return Ok(()),
                    Some(line) => {
                        failed |= matches!(line, Line::Fail(_));
                        table.take(line);
                    }
                    None => return Err(format!("the host process said {text:?}").into()),
                }
            }
            let status: ExitStatus = self.process.wait().await?;
            if failed || to_be_killed || !status.success() {
                return Err(format!("the host process ended with {status}").into());
            }
            Ok(())
        })
        .await
    }

    /// Kills it with SIGKILL while its guest runs, and leaves the guest alone for a while.
    async fn kill(mut self, dir: &Path) -> Result<String> {
        let before = leftovers::guests(dir)?;
        let pid = self.process.id().ok_or("the host process is gone")?;
        self.process.kill().await?;
        tokio::time::sleep_until(Instant::now() + ALONE).await;
        let after = leftovers::guests(dir)?;
        match (before.as_slice(), after.as_slice()) {
            ([guest], [same]) if guest == same => Ok(format!(
                "process {pid} is dead, its guest is not: QEMU {} ran on alone for {} s",
                guest.as_raw_nonzero(),
                ALONE.as_secs()
            )),
            _ => Err(format!("QEMU processes before: {before:?}, after: {after:?}").into()),
        }
    }
}
