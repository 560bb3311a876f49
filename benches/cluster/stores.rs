//! Commits a second, and how long one takes, at 1, 16 and 64 clients: each store against the same transaction by the
//! server's own means, on the same server, in rounds that take turns. A ratio is the median of the rounds' ratios.
//!
//! | store | against | its clients |
//! |---|---|---|
//! | SQLite | the same statements by `rusqlite`, a transaction for each commit | one connection, in turn |
//! | PostgreSQL | `pgbench`, calling the same function | a connection each |
//! | etcd | the same request by a bare gRPC client | one connection, at once |
//!
//! Each side has its own file, schema or prefix, so that a store that follows its changes does not follow the other's. The
//! servers sync: their data would survive a loss of power.

use std::sync::Arc;
use std::time::Duration;

use novacron_core::store::{PostgresOptions, PostgresStore, SqliteStore, Store};
use secrecy::SecretString;

use crate::Result;
use crate::commits::{KEYS, OfStore, Round, drive, fill, value};
use crate::figure::{Samples, promised, remark, reported};
use crate::site::{folder, load, probe_sync};
use crate::support::etcd::Etcd;
use crate::support::postgres::{PASSWORD, Server};
use crate::{pgbench, raw_etcd, raw_sqlite};

const CLIENTS: [usize; 3] = [1, 16, 64];
const ROUNDS: usize = 5;
/// Whole seconds: pgbench knows no others.
const ROUND: Duration = Duration::from_secs(2);

/// What the template of the tests' servers has otherwise.
pub(crate) const DURABLE: [&str; 5] = [
    "fsync=on",
    "shared_buffers=128MB",
    "max_wal_size=1GB",
    "min_wal_size=256MB",
    "autovacuum_naptime=20s",
];

pub(crate) async fn run() -> Result<()> {
    probe_sync(folder()?.path())?;
    reported("load", load()?, "");
    sqlite().await?;
    postgres().await?;
    etcd().await?;
    reported("load-at-the-end", load()?, "");
    Ok(())
}

async fn sqlite() -> Result<()> {
    let folder = folder()?;
    let plain = folder.path().join("plain.db");
    let closed = SqliteStore::open(&plain).await?;
    fill(&closed, KEYS, &value()).await?;
    closed.close().await?;
    let raw = raw_sqlite::Raw::open(&plain)?;
    let sqlite = SqliteStore::open(folder.path().join("novacron.db")).await?;
    fill(&sqlite, KEYS, &value()).await?;
    let store: Arc<dyn Store> = Arc::new(sqlite.clone());
    compare(
        "sqlite",
        "rusqlite",
        async |clients| drive(clients, ROUND, |_| OfStore::new(&store)).await,
        async |clients| drive(clients, ROUND, |_| raw.client()).await,
    )
    .await?;
    sqlite.close().await?;
    Ok(())
}

/// A store in a schema of its own, over the loopback, as pgbench comes.
pub(crate) async fn postgres_store(server: &Server, schema: &str) -> Result<PostgresStore> {
    let place = server.tcp_string("127.0.0.1", "postgres");
    let mut options = PostgresOptions::new(&place)?.with_password(&SecretString::from(PASSWORD));
    schema.clone_into(&mut options.schema);
    Ok(PostgresStore::connect(options).await?)
}

async fn postgres() -> Result<()> {
    let server = Server::start(true, &DURABLE);
    let closed = postgres_store(&server, "plain").await?;
    fill(&closed, KEYS, &value()).await?;
    closed.close().await?;
    let postgres = postgres_store(&server, "novacron").await?;
    fill(&postgres, KEYS, &value()).await?;
    let store: Arc<dyn Store> = Arc::new(postgres.clone());
    compare(
        "postgres",
        "pgbench",
        async |clients| drive(clients, ROUND, |_| OfStore::new(&store)).await,
        async |clients| pgbench::drive(&server, "plain", clients, ROUND).await,
    )
    .await?;
    postgres.close().await?;
    Ok(())
}

async fn etcd() -> Result<()> {
    let etcd = Etcd::start();
    let raw = raw_etcd::Raw::connect(&etcd.endpoint(0)).await?;
    for n in 0..KEYS {
        raw.put(&format!("vm/{n}")).await?;
    }
    let store: Arc<dyn Store> = Arc::new(etcd.connect().await);
    fill(&*store, KEYS, &value()).await?;
    compare(
        "etcd",
        "grpc",
        async |clients| drive(clients, ROUND, |_| OfStore::new(&store)).await,
        async |clients| drive(clients, ROUND, |_| raw.client()).await,
    )
    .await
}

/// Lets both take turns, after a round each that is not counted (files grow to their size), and prints what they reached.
async fn compare(
    name: &str,
    other: &str,
    store: impl AsyncFn(usize) -> Result<Round>,
    own: impl AsyncFn(usize) -> Result<Round>,
) -> Result<()> {
    store(16).await?;
    own(16).await?;
    for clients in CLIENTS {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            // Neither is always the first.
            if round % 2 == 0 {
                ours.push(store(clients).await?);
                theirs.push(own(clients).await?);
            } else {
                theirs.push(own(clients).await?);
                ours.push(store(clients).await?);
            }
        }
        tell(name, clients, &ours);
        tell(other, clients, &theirs);
        let ratios = ours.iter().zip(&theirs).map(|(a, b)| a.rate / b.rate);
        let ratios = Samples::new(ratios.collect());
        remark(&format!("ratios of the rounds: {}", ratios.spread()));
        let figure = format!("{name}-to-{other}-{clients}");
        promised(&figure, ratios.median(), "ratio", ">= 0.8");
    }
    Ok(())
}

fn tell(name: &str, clients: usize, rounds: &[Round]) {
    let median = |what: fn(&Round) -> f64| Samples::new(rounds.iter().map(what).collect()).median();
    let (rate, p99) = (median(|round| round.rate), median(|round| round.p99));
    reported(&format!("{name}-commits-{clients}"), rate, "commits/s");
    reported(&format!("{name}-p99-{clients}"), p99, "ms");
}
