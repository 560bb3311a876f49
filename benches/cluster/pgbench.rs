//! PostgreSQL's own tool: `pgbench` calls the function that the store calls, with the same commit.

use std::path::Path;
use std::time::Duration;

use tokio::process::Command;

use crate::Result;
use crate::commits::{KEYS, Round, value};
use crate::figure::Samples;
use crate::support::postgres::{PASSWORD, Server, bin};
use crate::support::process::dying;

/// Lets clients commit into `schema` for a while. The values are parameters, and statements are prepared, as the store's
/// are; each client has its own connection.
pub(crate) async fn drive(
    server: &Server,
    schema: &str,
    clients: usize,
    time: Duration,
) -> Result<Round> {
    let folder = tempfile::tempdir()?;
    let script = format!(
        "\\set n random(0, {})\n\
         SELECT * FROM {schema}.commit_group(ARRAY[gen_random_uuid()], \
         ARRAY[1], ARRAY[1]::smallint[], ARRAY['vm/' || :n], ARRAY[0]::bigint[], \
         ARRAY[1], ARRAY['vm/' || :n], ARRAY[:value]);\n",
        KEYS - 1
    );
    std::fs::write(folder.path().join("script"), script)?;
    let threads = clients.min(std::thread::available_parallelism()?.get());
    let mut command = Command::from(dying(bin("pgbench")));
    command
        .args([
            "-n",
            "-M",
            "prepared",
            "-f",
            "script",
            "-l",
            "--log-prefix=log",
        ])
        .args(["-c", &clients.to_string(), "-j", &threads.to_string()])
        .args(["-T", &time.as_secs().to_string()])
        .args(["-D", &format!("value={}", value())])
        .args([
            "-h",
            "127.0.0.1",
            "-p",
            &server.port().to_string(),
            "-U",
            "postgres",
            "postgres",
        ])
        .env("PGPASSWORD", PASSWORD)
        .env("LC_ALL", "C")
        .current_dir(folder.path())
        .kill_on_drop(true);
    let output = command.output().await?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let rate = said
        .lines()
        .find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    let Some(rate) = rate.filter(|_| output.status.success()) else {
        let wrong = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("pgbench: {said}{wrong}").into());
    };
    Ok(Round {
        rate,
        p99: took(folder.path())?.percentile(99),
    })
}

/// How long each transaction took, in milliseconds: the third word of each line of its logs.
fn took(folder: &Path) -> Result<Samples> {
    let mut took = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("log.") {
            for line in std::fs::read_to_string(entry.path())?.lines() {
                let micros = line.split(' ').nth(2).ok_or("a line of pgbench's log")?;
                took.push(micros.parse::<f64>()? / 1e3);
            }
        }
    }
    Ok(Samples::new(took))
}
