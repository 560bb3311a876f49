//! The whole state as a file, into another store, and compared.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::io::Cursor;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use novacron_core::model::{DiskSource, PoolId};
use novacron_core::sim::{SimHypervisor, SimStorage, SimWorld};
use novacron_core::store::{
    Commit, Difference, Key, Lease, LeaseAnswer, ListOptions, MemoryStore, Op, Page, Record,
    Revision, SqliteStore, Store, TxnId, TxnOutcome, WatchStream, diff, dump, load,
};
use novacron_core::{
    Cluster, Deadline, Error, ErrorKind, IdSource, MiB, Phase, Result, SeededIds, SystemClock,
    VmSpec,
};
use uuid::Uuid;

fn memory() -> MemoryStore {
    MemoryStore::new(Arc::new(SystemClock))
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn ids() -> SeededIds {
    SeededIds::from_os()
}

async fn put(store: &dyn Store, text: &str, value: impl Into<Bytes>) {
    let mut commit = Commit::new(TxnId(Uuid::from_u128(SeededIds::from_os().bits())));
    commit.push(Op::Put(key(text), value.into()));
    store.commit(commit).await.unwrap();
}

/// A store with records of every shape: many, large, with escapes, no text, and one that was deleted.
async fn filled() -> MemoryStore {
    let store = memory();
    for i in 0..450 {
        put(
            &store,
            &format!("vm/{i:03}"),
            format!("{{\"v\":1,\"body\":{i}}}"),
        )
        .await;
    }
    for i in 0..6 {
        put(&store, &format!("large/{i}"), "x".repeat(256 * 1024)).await;
    }
    put(&store, "vm", "quotes \" and \\ and\nlines and ä").await;
    put(&store, "by/hand", &[0xff_u8, 0, b'\n'][..]).await;
    put(&store, "empty", "").await;
    let mut commit = Commit::new(TxnId(Uuid::from_u128(1)));
    commit.push(Op::Delete(key("vm/007")));
    store.commit(commit).await.unwrap();
    store
}

async fn dumped(store: &dyn Store) -> Vec<u8> {
    let mut file = Vec::new();
    dump(store, &mut file).await.unwrap();
    file
}

async fn loaded(store: &dyn Store, file: &[u8]) -> Result<u64> {
    let summary = load(store, &mut Cursor::new(file.to_vec()), &ids()).await?;
    Ok(summary.records)
}

async fn count(store: &dyn Store) -> usize {
    let options = ListOptions {
        limit: usize::MAX,
        ..ListOptions::default()
    };
    store.list("", options).await.unwrap().records.len()
}

#[tokio::test]
async fn what_is_dumped_is_loaded_and_equal() {
    let store = filled().await;
    let file = dumped(&store).await;
    let folder = tempfile::tempdir().unwrap();
    let sqlite = SqliteStore::open(folder.path().join("novacron.db"))
        .await
        .unwrap();
    assert_eq!(loaded(&sqlite, &file).await.unwrap(), 458);
    assert!(diff(&store, &sqlite).await.unwrap().is_empty());
    // Only the first line tells the stores apart.
    let lines = |file: &[u8]| {
        let text = String::from_utf8(file.to_vec()).unwrap();
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines[1..lines.len() - 1].to_vec()
    };
    assert_eq!(lines(&dumped(&sqlite).await), lines(&file));
    sqlite.close().await.unwrap();

    let empty = memory();
    let other = memory();
    assert_eq!(loaded(&other, &dumped(&empty).await).await.unwrap(), 0);
    assert_eq!(count(&other).await, 0);
}

#[tokio::test]
async fn a_diff_names_what_differs() {
    let (first, second) = (filled().await, filled().await);
    put(&first, "a", "1").await;
    put(&second, "vm/100", "other").await;
    put(&second, "z", "1").await;
    let expected = [
        Difference::OnlyFirst(key("a")),
        Difference::Value(key("vm/100")),
        Difference::OnlySecond(key("z")),
    ];
    assert_eq!(diff(&first, &second).await.unwrap(), expected);
}

#[tokio::test]
async fn a_dump_shows_one_revision_while_others_write() {
    let store = filled().await;
    let before = memory();
    loaded(&before, &dumped(&store).await).await.unwrap();
    let (mut reader, mut writer) = tokio::io::duplex(64);
    let busy = store.clone();
    let dumping = tokio::spawn(async move { dump(&busy, &mut writer).await.unwrap() });
    for i in 0..300 {
        put(&store, &format!("vm/{i:03}"), "changed").await;
    }
    let mut file = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut file)
        .await
        .unwrap();
    dumping.await.unwrap();
    let after = memory();
    loaded(&after, &file).await.unwrap();
    // The dump began before or after some write, and shows none that came later: the rest is as it was.
    let told = diff(&before, &after).await.unwrap().len();
    assert!(told < 300, "{told} changes");
}

#[tokio::test]
async fn only_an_empty_store_is_loaded_into() {
    let file = dumped(&filled().await).await;
    let used = memory();
    put(&used, "vm/mine", "1").await;
    let error = loaded(&used, &file).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
    assert!(error.to_string().contains("vm/mine"), "{error}");
    assert_eq!(count(&used).await, 1);
}

/// Every way to break a dump is found before anything is written, and named with its line.
#[tokio::test]
async fn a_broken_dump_is_refused_before_anything_is_written() {
    let store = memory();
    for name in ["vm/a", "vm/b", "vm/c"] {
        put(&store, name, "1").await;
    }
    let good = String::from_utf8(dumped(&store).await).unwrap();
    let lines: Vec<&str> = good.lines().collect();
    let join = |lines: &[&str]| lines.join("\n") + "\n";
    let newer = good.replace("\"novacron-dump\":1", "\"novacron-dump\":2");
    let twice = join(&[lines[0], lines[1], lines[1], lines[2], lines[3], lines[4]]);
    let order = join(&[lines[0], lines[2], lines[1], lines[3], lines[4]]);
    let one_less = join(&[lines[0], lines[1], lines[3], lines[4]]);
    for (broken, why, line) in [
        (String::new(), "empty", 1),
        ("hello\n".to_owned(), "no dump", 1),
        ("{}\n".to_owned(), "no dump", 1),
        (newer, "version 2", 1),
        (join(&lines[..3]), "cut off", 4),
        (good[..good.len() - 1].to_owned(), "cut off", 5),
        (good[..good.len() / 2].to_owned(), "cut off", 3),
        (twice, "twice", 3),
        (order, "order", 3),
        (one_less, "checksum", 4),
        (good.replace("\"1\"", "\"2\""), "checksum", 5),
        (good.replace("\"records\":3", "\"records\":4"), "says 4", 5),
        (good.replace("vm/b", "vm//b"), "key is none", 3),
        (good.clone() + lines[1] + "\n", "goes on", 6),
    ] {
        let target = memory();
        let error = loaded(&target, broken.as_bytes()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{why}: {error}");
        let text = error.to_string();
        assert!(
            text.contains(why) && text.contains(&format!("line={line}")),
            "{why}: {text}"
        );
        assert_eq!(target.revision().await.unwrap(), Revision(0), "{why}");
    }
    // Whatever byte is changed, it is found.
    for i in (0..good.len()).step_by(3) {
        let mut bytes = good.clone().into_bytes();
        bytes[i] ^= 1;
        let target = memory();
        let error = loaded(&target, &bytes).await.expect_err("a changed byte");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "byte {i}: {error}");
    }
}

/// Fails every commit after the first few. The first of these comes late: after the next one that does not fail.
#[derive(Debug)]
struct Failing {
    store: MemoryStore,
    left: std::sync::atomic::AtomicU32,
    late: Mutex<Option<Commit>>,
}

#[async_trait]
impl Store for Failing {
    fn exclusive(&self) -> bool {
        self.store.exclusive()
    }

    async fn commit(&self, commit: Commit) -> Result<Revision> {
        use std::sync::atomic::Ordering::Relaxed;
        if self
            .left
            .fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1))
            .is_err()
        {
            self.late.lock().unwrap().get_or_insert(commit);
            return Err(Error::new(
                ErrorKind::Unavailable,
                "store.commit",
                "cut off",
            ));
        }
        let done = self.store.commit(commit).await;
        let late = self.late.lock().unwrap().take();
        if let Some(late) = late {
            let late = self.store.commit(late).await.unwrap_err();
            assert_eq!(late.kind(), ErrorKind::Conflict, "{late}");
        }
        done
    }
    async fn revision(&self) -> Result<Revision> {
        self.store.revision().await
    }
    async fn get(&self, key: &Key) -> Result<Option<Record>> {
        self.store.get(key).await
    }
    async fn list(&self, prefix: &str, options: ListOptions) -> Result<Page> {
        self.store.list(prefix, options).await
    }
    async fn outcome(&self, txn: TxnId) -> Result<TxnOutcome> {
        self.store.outcome(txn).await
    }
    async fn watch(&self, prefixes: Vec<String>, after: Revision) -> Result<WatchStream> {
        self.store.watch(prefixes, after).await
    }
    async fn compact(&self, before: Revision) -> Result<()> {
        self.store.compact(before).await
    }
    async fn lease_acquire(&self, name: &str, holder: &str, ttl: Duration) -> Result<LeaseAnswer> {
        self.store.lease_acquire(name, holder, ttl).await
    }
    async fn lease_renew(&self, lease: &Lease) -> Result<()> {
        self.store.lease_renew(lease).await
    }
    async fn lease_release(&self, lease: &Lease) -> Result<()> {
        self.store.lease_release(lease).await
    }
    async fn put_beat(&self, key: &Key, value: Option<Bytes>) -> Result<()> {
        self.store.put_beat(key, value).await
    }
    async fn beats(&self, prefix: &str) -> Result<Vec<(Key, Bytes)>> {
        self.store.beats(prefix).await
    }
}

/// A load that is cut off after any commit leaves a store that is refused, and that a load of any dump begins anew.
#[tokio::test]
async fn a_load_that_was_cut_off_is_begun_again() {
    let source = filled().await;
    let file = dumped(&source).await;
    let other = memory();
    put(&other, "vm/other", "1").await;
    let other_file = dumped(&other).await;
    for commits in 1.. {
        let left = std::sync::atomic::AtomicU32::new(commits);
        let target = memory();
        let failing = Failing {
            store: target.clone(),
            left,
            late: Mutex::default(),
        };
        let Err(error) = loaded(&failing, &file).await else {
            assert!(commits > 6, "{commits} commits were enough");
            assert!(diff(&source, &target).await.unwrap().is_empty());
            return;
        };
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let refused = dump(&target, &mut Vec::new()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
        let refused = Cluster::builder("prod").store(target.clone()).build().await;
        let refused = refused.map(|_| ()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::FailedPrecondition, "{refused}");
        assert!(refused.to_string().contains("not finished"), "{refused}");
        let again = Failing {
            left: u32::MAX.into(),
            ..failing
        };
        if commits % 2 == 0 {
            loaded(&again, &file).await.unwrap();
            assert!(diff(&source, &target).await.unwrap().is_empty());
        } else {
            loaded(&again, &other_file).await.unwrap();
            assert!(diff(&other, &target).await.unwrap().is_empty());
        }
    }
}

/// A cluster goes on where it was, over another store, with the guests that ran all the time.
#[tokio::test]
async fn a_cluster_moves_to_another_store() {
    let soon = || Deadline::after(Duration::from_secs(60));
    let world = SimWorld::new(1);
    world.add_pool(
        PoolId::new("shared").unwrap(),
        novacron_core::Bytes::gib(100),
    );
    let host = world.add_host(8, MiB(16_384));
    let build = async |store: MemoryStore| {
        let pool = SimStorage::new(&world, PoolId::new("shared").unwrap());
        let builder = Cluster::builder("prod").store(store);
        let builder = builder
            .node("alpha", SimHypervisor::new(&world, host))
            .storage("shared", pool);
        builder.build().await.unwrap()
    };
    let first = memory();
    let cluster = build(first.clone()).await;
    cluster.nodes().wait_available(soon()).await.unwrap();
    let root = DiskSource::Blank {
        size: novacron_core::Bytes::gib(1),
        pool: None,
    };
    let spec = VmSpec::new("web-1")
        .vcpus(1)
        .memory(MiB(512))
        .disk("root", root);
    let vm = cluster.vms().create(spec).await.unwrap();
    let before = vm.wait_for(Phase::Running, soon()).await.unwrap();
    let id = vm.id();
    cluster.shutdown(soon()).await.unwrap();

    let second = memory();
    loaded(&second, &dumped(&first).await).await.unwrap();
    let cluster = build(second).await;
    let vm = cluster.vms().by_id(id);
    let view = vm.wait_for(Phase::Running, soon()).await.unwrap();
    assert_eq!(view.claim, before.claim, "it was not started again");
    vm.delete().await.unwrap().wait(soon()).await.unwrap();
    cluster.shutdown(soon()).await.unwrap();
}
