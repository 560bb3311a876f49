//! The numbers of the stores, each as one line. `make bench-cluster` runs all parts, `make bench-cluster ONLY=watch` one.
//! How the lines are read stands at the head of [`novacron_benches`]. The servers are this program's own, on the loopback,
//! with their data under `/tmp`.

mod commits;
mod members;
mod pgbench;
mod raw_etcd;
mod raw_sqlite;
mod stores;
mod watch;

#[path = "../../novacron-core/tests/support"]
#[allow(clippy::unwrap_used, reason = "a bench without its server says why")]
mod support {
    pub(crate) mod etcd;
    pub(crate) mod postgres;
    pub(crate) mod process;
}

use std::process::ExitCode;

use novacron_benches::parts::{self, or_interrupted};
use novacron_benches::{Result, figure, site};

const PARTS: [&str; 3] = ["stores", "watch", "members"];

fn main() -> ExitCode {
    parts::main(&PARTS, run)
}

fn run(part: &str) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    match part {
        "stores" => runtime.block_on(or_interrupted(stores::run())),
        "watch" => parts::all(&watch::STORES),
        store if watch::STORES.contains(&store) => {
            runtime.block_on(or_interrupted(watch::run(store)))
        }
        "members" => parts::all(&members::PARTS),
        part if members::PARTS.contains(&part) => {
            runtime.block_on(or_interrupted(members::run(part)))
        }
        _ => parts::unknown(part, &PARTS),
    }
}
