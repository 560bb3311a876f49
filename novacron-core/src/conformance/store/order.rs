//! Many clients at the same time: what they see together can be explained by one order of all calls.

use std::sync::Arc;

use super::{Load, StoreFixture, Subject};

/// What clients see of reads, commits and outcomes is linearizable ([`History`](super::History)).
pub async fn calls_of_many_clients_are_linearizable(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let load = Load {
        clients: 6,
        calls: 40,
        seed: 7,
    };
    let history = load.run(&[Arc::clone(&s.store)]).await;
    history.settle(&*s.store).await.unwrap();
    let checked = history
        .check()
        .unwrap_or_else(|violation| panic!("{violation}"));
    assert!(checked.commits > 20 && checked.reads > 40, "{checked:?}");
}
