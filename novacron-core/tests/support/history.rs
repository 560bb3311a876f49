//! Clients on a store while it is disturbed: what they saw is checked as one history, and what a watch told meanwhile
//! against what there is.
#![allow(clippy::disallowed_methods, reason = "faults come at some time")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use novacron_core::conformance::store::{Checked, Load};
use novacron_core::store::{Change, Revision, Store, WatchEvent};
use tokio::time::{sleep, timeout};

const LONG: Duration = Duration::from_secs(60);

type Told = BTreeMap<Revision, Vec<Change>>;

/// What a watch of everything tells until it has passed `until`; it begins again where it was when the store has to.
async fn told(store: &dyn Store, until: impl Future<Output = Revision>) -> Told {
    let (mut told, mut after) = (Told::new(), Revision(0));
    let mut until = std::pin::pin!(until);
    let mut end = None;
    loop {
        let Ok(mut watch) = store.watch(vec![String::new()], after).await else {
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        loop {
            if end.is_some_and(|end| after >= end) {
                return told;
            }
            let event = tokio::select! {
                event = watch.next() => event,
                revision = &mut until, if end.is_none() => {
                    end = Some(revision);
                    continue;
                }
            };
            match event {
                Some(Ok(WatchEvent::Commit { revision, changes })) => {
                    assert!(
                        revision > after || told.contains_key(&revision),
                        "out of order: {revision}"
                    );
                    told.insert(revision, changes.to_vec());
                    after = after.max(revision);
                }
                Some(Ok(WatchEvent::Bookmark(revision))) => after = after.max(revision),
                Some(Err(_)) | None => break,
            }
        }
    }
}

/// Runs clients on two stores of one state (as of two processes) while `fault` does its work again and again.
pub(crate) async fn under<F: Future<Output = ()>>(
    stores: [Arc<dyn Store>; 2],
    calls: usize,
    fault: impl Fn() -> F,
) -> Checked {
    let (tell, last) = tokio::sync::oneshot::channel();
    let watcher = Arc::clone(&stores[1]);
    let watching =
        tokio::spawn(async move { told(&*watcher, async { last.await.unwrap() }).await });
    let (over, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    let load = async {
        let load = Load {
            clients: 8,
            calls,
            seed: 11,
        };
        let history = load.run(&stores).await;
        over.store(true, Ordering::SeqCst);
        history
    };
    let faults = async {
        while !over.load(Ordering::SeqCst) {
            fault().await;
            count.fetch_add(1, Ordering::SeqCst);
        }
    };
    let (history, ()) = timeout(4 * LONG, futures::future::join(load, faults))
        .await
        .unwrap();

    let settled = async {
        while history.settle(&*stores[0]).await.is_err() {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(LONG, settled).await.unwrap();
    let checked = history
        .check()
        .unwrap_or_else(|violation| panic!("{violation}"));

    // What was told live, by a watch that went through all this, is what there is.
    let revision = stores[0].revision().await.unwrap();
    tell.send(revision).unwrap();
    let live = timeout(LONG, watching).await.unwrap().unwrap();
    let afterwards = told(&*stores[0], async { revision }).await;
    assert_eq!(live, afterwards);
    let count = count.into_inner();
    println!("{count} faults, {checked:?}");
    assert!(
        count >= 3 && checked.commits > 100,
        "{count} faults, {checked:?}"
    );
    checked
}
