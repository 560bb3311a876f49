//! What is kept for a while, and then forgotten.

use std::time::Duration;

use novacron_core::cluster::{ListRequest, Retention};
use novacron_core::model::Power;
use novacron_core::{ErrorKind, RequestOptions};

use crate::{Site, soon, spec};

/// Time is tokio's, and paused: this only lets it go on.
#[expect(clippy::disallowed_methods, reason = "the test is the clock")]
async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_kept_long_enough_is_forgotten() {
    let minute = Duration::from_secs(60);
    let mut site = Site::new(1);
    site.retention = Retention {
        operations: minute * 10,
        events: minute * 20,
        audit: minute * 30,
        idempotency: minute * 10,
        graves: minute * 40,
        history: minute * 5,
    };
    let cluster = site.start().await;
    let keyed = cluster.with(RequestOptions {
        idempotency_key: Some("once".to_owned()),
        ..RequestOptions::default()
    });
    let vm = keyed.vms().create(spec("web")).await.unwrap();
    vm.operation().unwrap().wait(soon()).await.unwrap();
    let before = cluster.operations(&ListRequest::new()).await.unwrap();
    vm.reset().await.unwrap().wait(soon()).await.unwrap();
    let count = async |prefix: &str| site.records(prefix).await.len();

    pass(minute * 4).await;
    drop(cluster.watch(Some(before.revision)).await.unwrap());
    assert_eq!(count("idempotency/").await, 1);
    assert_eq!(count("action/").await, 1);
    pass(minute * 8).await;
    let too_old = cluster.watch(Some(before.revision)).await.err().unwrap();
    assert_eq!(too_old.kind(), ErrorKind::Compacted);
    assert_eq!(count("operation/").await, 0);
    assert_eq!(count("idempotency/").await, 0);
    assert_eq!(count("action").await, 0, "and its status");
    assert!(count("event/").await > 0);
    vm.delete().await.unwrap().wait(soon()).await.unwrap();
    assert!(count("grave/").await > 0);

    pass(minute * 25).await;
    assert_eq!(count("event/").await, 0);
    pass(minute * 10).await;
    assert_eq!(count("audit/").await, 0);
    pass(minute * 10).await;
    assert_eq!(count("grave/").await, 0);

    // The key is free again, and the loop is alive.
    let other = spec("other").power(Power::Off);
    let vm = keyed.vms().create(other).await.unwrap();
    vm.operation().unwrap().wait(soon()).await.unwrap();
}
