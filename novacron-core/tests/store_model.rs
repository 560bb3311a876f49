//! The reference store as a model: whatever is asked of both, the stores on disk answer as MemoryStore does.
#![cfg(any(feature = "sqlite", feature = "postgres"))]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod support {
    pub(crate) mod model;
    #[cfg(feature = "postgres")]
    pub(crate) mod postgres;
    #[cfg(feature = "postgres")]
    pub(crate) mod process;
}

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use novacron_core::conformance::ManualClock;
use novacron_core::store::Store;
use proptest::collection::vec;
use proptest::prelude::*;
use support::model::{Pair, Step, Subject, step};

fn run(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(future);
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

#[cfg(feature = "sqlite")]
mod sqlite_store {
    use std::path::PathBuf;

    use novacron_core::store::{SqliteOptions, SqliteStore};

    use super::*;

    struct Sqlite {
        path: PathBuf,
        options: SqliteOptions,
        store: SqliteStore,
    }

    #[async_trait]
    impl Subject for Sqlite {
        fn store(&self) -> &dyn Store {
            &self.store
        }

        async fn reopen(&mut self) {
            self.store.close().await.unwrap();
            self.store = SqliteStore::open_with(&self.path, self.options.clone())
                .await
                .unwrap();
        }

        async fn pass(&self, _: Duration) {}
    }

    fn compare(steps: Vec<Step>, watch_bytes: usize) {
        let folder = tempfile::tempdir().unwrap();
        run(async {
            let clock = Arc::new(ManualClock::default());
            let path = folder.path().join("novacron.db");
            let options = SqliteOptions {
                clock: Arc::<ManualClock>::clone(&clock),
                watch_bytes,
                readers: 1,
                ..SqliteOptions::default()
            };
            let store = SqliteStore::open_with(&path, options.clone())
                .await
                .unwrap();
            let subject = Sqlite {
                path,
                options,
                store,
            };
            let subject = Pair::new(&clock, subject).compare(steps).await;
            subject.store.close().await.unwrap();
        });
    }

    /// A sequence that once differed: opening resumed the sweep, which forgot outcomes that no compaction had forgotten.
    #[test]
    fn forgets_outcomes_at_a_compaction_only() {
        let commit = |txn| Step::Commit {
            txn,
            preconditions: Vec::new(),
            ops: vec![(1, Some(1))],
        };
        for _ in 0..20 {
            let quiet = [
                Step::Pass(37),
                Step::Reopen,
                Step::Outcome(9),
                Step::Get(0),
                commit(1),
                Step::Outcome(2),
            ];
            let again = [Step::Compact(0), commit(1), Step::Outcome(1)];
            compare(
                [commit(1), commit(2), Step::Compact(0)]
                    .into_iter()
                    .chain(quiet)
                    .chain(again)
                    .collect(),
                0,
            );
        }
    }

    proptest! {
        #![proptest_config(config(48))]

        #[test]
        fn answers_as_the_model(steps in vec(step(), 1..150)) {
            compare(steps, 16 << 20);
        }

        /// With no memory for recent commits: every watch reads the file.
        #[test]
        fn answers_as_the_model_from_disk(steps in vec(step(), 1..150)) {
            compare(steps, 0);
        }
    }
}

#[cfg(feature = "postgres")]
mod postgres_store {
    use novacron_core::store::{PostgresOptions, PostgresStore};

    use super::support::postgres::{Server, schema};
    use super::*;

    struct Postgres {
        options: PostgresOptions,
        store: PostgresStore,
    }

    #[async_trait]
    impl Subject for Postgres {
        fn store(&self) -> &dyn Store {
            &self.store
        }

        async fn reopen(&mut self) {
            self.store.close().await.unwrap();
            self.store = PostgresStore::connect(self.options.clone()).await.unwrap();
        }

        async fn pass(&self, by: Duration) {
            Server::shared().pass(&self.options.schema, by).await;
        }
    }

    fn compare(steps: Vec<Step>, watch_bytes: usize) {
        let mut options = Server::shared().options(&schema());
        options.watch_bytes = watch_bytes;
        run(async {
            let store = PostgresStore::connect(options.clone()).await.unwrap();
            let subject = Postgres { options, store };
            let clock = Arc::new(ManualClock::default());
            let subject = Pair::new(&clock, subject).compare(steps).await;
            subject.store.close().await.unwrap();
        });
    }

    proptest! {
        #![proptest_config(config(24))]

        #[test]
        fn answers_as_the_model(steps in vec(step(), 1..150)) {
            compare(steps, 16 << 20);
        }

        /// With no memory for recent commits: every watch reads the database.
        #[test]
        fn answers_as_the_model_from_the_database(steps in vec(step(), 1..150)) {
            compare(steps, 0);
        }
    }
}
