//! What the store's watch tells, for the time line. It reads the records themselves, as no process of the cluster would:
//! so it believes nobody's view of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use novacron_core::model::{
    Claim, Member, MemberState, NodeState, NodeStatus, Ownership, Run, StopProof,
};
use novacron_core::store::{Change, Revision, Store, WatchEvent};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::line::{Line, What};

/// How records stand in the store.
#[derive(Deserialize)]
struct Envelope<T> {
    body: T,
}

fn body<T: DeserializeOwned>(change: &Change) -> Option<T> {
    let envelope: Envelope<T> = serde_json::from_slice(change.value.as_ref()?).ok()?;
    Some(envelope.body)
}

/// Tells the line of every change, until it is dropped.
pub(crate) async fn follow(store: Arc<dyn Store>, line: Line, mut after: Revision) {
    let prefixes = [
        "member/",
        "owner/node/",
        "node-status/",
        "claim/vm/",
        "run/",
    ];
    let mut told = Told::default();
    let mut again = tokio::time::interval(Duration::from_millis(100));
    loop {
        let prefixes = prefixes.map(str::to_owned).to_vec();
        if let Ok(mut changes) = store.watch(prefixes, after).await {
            while let Some(Ok(event)) = changes.next().await {
                match event {
                    WatchEvent::Bookmark(at) => after = at,
                    WatchEvent::Commit { revision, changes } => {
                        after = revision;
                        for what in changes.iter().filter_map(|change| told.look(change)) {
                            line.saw("store", what);
                        }
                    }
                }
            }
        }
        // The server is not there at this moment.
        again.tick().await;
    }
}

/// What each record was told to be last: many a change is none for the line.
#[derive(Default)]
struct Told(BTreeMap<String, String>);

impl Told {
    fn look(&mut self, change: &Change) -> Option<What> {
        let key = change.key.as_str();
        let what = seen(key, change)?;
        let told = format!("{what:?}");
        let before = self.0.insert(key.to_owned(), told.clone());
        (before.as_ref() != Some(&told)).then_some(what)
    }
}

fn seen(key: &str, change: &Change) -> Option<What> {
    let (kind, rest) = key.split_once('/')?;
    Some(match kind {
        "member" => {
            let member: Member = body(change)?;
            let state = match member.state {
                MemberState::Alive => "alive",
                MemberState::Left { .. } => "shut down",
                MemberState::Lost { .. } => "lost",
            };
            What::Member(member.id.0, state)
        }
        "owner" => {
            let owner: Ownership = body(change)?;
            let node = rest.strip_prefix("node/")?.to_owned();
            match owner.fenced {
                Some(receipt) => What::Receipt(node, receipt),
                None => What::Owner(node, owner.member.0),
            }
        }
        "node-status" => {
            let status: NodeStatus = body(change)?;
            let state = match status.state {
                NodeState::Available => "available",
                NodeState::Unreachable => "unreachable",
            };
            What::Node(rest.to_owned(), state)
        }
        "claim" => {
            let vm = rest.strip_prefix("vm/")?.parse().ok()?;
            let claim: Claim = body(change)?;
            match &claim.released {
                Some(proof) => What::Released(vm, claim.epoch.0, named(proof)),
                None => What::Granted(vm, claim.place.node()?.to_string(), claim.epoch.0),
            }
        }
        "run" => {
            let run: Run = body(change)?;
            What::Run(run.vm, run.node.to_string(), run.epoch.0, run.phase)
        }
        _ => return None,
    })
}

fn named(proof: &StopProof) -> String {
    match proof {
        StopProof::DriverConfirmed { .. } => "its host confirmed the end".to_owned(),
        StopProof::HostRebooted { .. } => "its host booted anew".to_owned(),
        StopProof::NeverStarted => "it was never started".to_owned(),
        StopProof::Fenced { receipt, .. } => format!("its host was fenced by {}", receipt.method),
        StopProof::Operator { principal, .. } => format!("the word of {principal}"),
    }
}
