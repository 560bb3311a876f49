//! Commits and their outcomes: one etcd transaction each.
//!
//! ```text
//!   if    t/<txn> is absent, and every precondition holds
//!   then  the operations · put t/<txn> "committed" · put rev
//!   else  get t/<txn> · get what was compared
//! ```
//! The `else` part is of the same revision of etcd as the comparisons, so the first precondition that failed is found
//! by the rules of every store (`check`). `outcome` puts "not committed" at `t/<txn>` if it is absent, and with that
//! rules the commit out for ever, wherever its request may still be on its way.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::client::Client;
use super::failure::{self, Failure, status_of};
use super::keys::Keys;
use super::reads::{broken, int, revision};
use super::wire::{
    Compare, KeyValue, LeaseGrantRequest, TxnRequest, TxnResponse, delete, get, put,
};
use crate::error::{Error, ErrorKind, Result};
use crate::store::check::{self, Facts};
use crate::store::{Commit, Key, OUTCOMES_KEPT, Op, Precondition, Revision, TxnId, TxnOutcome};
use crate::time::Deadline;

const COMMITTED: &[u8] = b"committed";
const NOT_COMMITTED: &[u8] = b"not committed";

/// How long the present etcd lease of outcomes takes new ones. Short, because etcd deletes all that hangs on a lease in
/// one go when it expires.
const BUCKET: Duration = Duration::from_secs(300);
/// More than what is promised, for clocks that differ a little.
const MARGIN: Duration = Duration::from_secs(300);

/// The etcd lease that new outcomes are put under: a new one every five minutes, which lasts for seventy.
#[derive(Debug, Default)]
pub(super) struct Outcomes(Mutex<Option<Bucket>>);

#[derive(Clone, Copy, Debug)]
struct Bucket {
    lease: i64,
    since: Instant,
}

impl Outcomes {
    async fn lease(&self, client: &Client, operation: &'static str, end: Deadline) -> Result<i64> {
        let mut bucket = self.0.lock().await;
        if let Some(present) = *bucket
            && present.since.elapsed() < BUCKET
        {
            return Ok(present.lease);
        }
        let since = Instant::now();
        let ttl = OUTCOMES_KEPT + BUCKET + MARGIN;
        let request = LeaseGrantRequest {
            ttl: ttl.as_secs() as i64,
        };
        let lease = client.ask_any(operation, end, &request).await?.id;
        *bucket = Some(Bucket { lease, since });
        Ok(lease)
    }

    /// Somebody revoked it, or etcd was restored from a backup.
    async fn forget(&self, gone: i64) {
        let mut bucket = self.0.lock().await;
        if bucket.is_some_and(|present| present.lease == gone) {
            *bucket = None;
        }
    }
}

/// Sends a transaction that puts an outcome.
async fn send(
    client: &Client,
    outcomes: &Outcomes,
    operation: &'static str,
    deadline: Deadline,
    txn: impl Fn(i64) -> TxnRequest,
) -> Result<(TxnResponse, bool), Failure> {
    let mut doubt = false;
    for last in [false, true] {
        let lease = outcomes.lease(client, operation, deadline).await;
        let lease = lease.map_err(|error| Failure { error, doubt })?;
        match client.call(operation, deadline, &txn(lease)).await {
            Err(failure)
                if !last && status_of(&failure.error).is_some_and(failure::is_lease_gone) =>
            {
                doubt |= failure.doubt;
                outcomes.forget(lease).await;
            }
            Err(failure) => {
                return Err(Failure {
                    doubt: doubt || failure.doubt,
                    ..failure
                });
            }
            Ok((answer, more)) => return Ok((answer, doubt || more)),
        }
    }
    Err(Failure {
        error: broken(operation),
        doubt,
    })
}

/// Applies a commit.
pub(super) async fn commit(
    client: &Client,
    keys: &Keys,
    outcomes: &Outcomes,
    commit: &Commit,
) -> Result<Revision> {
    const OPERATION: &str = "store.commit";
    let deadline = client.deadline();
    let build = |lease| transaction(keys, commit, lease);
    let (answer, doubt) = match send(client, outcomes, OPERATION, deadline, build).await {
        Ok(answer) => answer,
        Err(Failure { error, doubt: true }) => return Err(unknown(commit.txn, error)),
        Err(Failure { error, .. }) => return Err(error),
    };
    if answer.succeeded {
        let header = answer
            .header
            .ok_or_else(|| unknown(commit.txn, broken(OPERATION)))?;
        return Ok(revision(header.revision));
    }
    let found = Found::of(keys, answer);
    if let Some(done) = found.at.get(&keys.txn(commit.txn)) {
        return match what(done)? {
            TxnOutcome::Committed(revision) => Ok(revision),
            TxnOutcome::NotCommitted => Err(check::given_up(commit.txn)),
        };
    }
    let Ok(verdict) = check::evaluate(&commit.preconditions, &found);
    let conflict = verdict.err().unwrap_or_else(|| broken(OPERATION));
    if !doubt {
        return Err(conflict);
    }
    // An attempt whose answer was lost may still be on its way, and its preconditions may hold when it arrives.
    match outcome(client, keys, outcomes, commit.txn, deadline).await {
        Ok(TxnOutcome::Committed(revision)) => Ok(revision),
        Ok(TxnOutcome::NotCommitted) => Err(conflict),
        Err(error) => Err(unknown(commit.txn, error)),
    }
}

/// What became of a commit; one that has not arrived is ruled out from here on.
pub(super) async fn outcome(
    client: &Client,
    keys: &Keys,
    outcomes: &Outcomes,
    txn: TxnId,
    deadline: Deadline,
) -> Result<TxnOutcome> {
    const OPERATION: &str = "store.outcome";
    let key = keys.txn(txn);
    let build = |lease| TxnRequest {
        compare: vec![Compare::created(key.clone(), 0)],
        success: vec![put(key.clone(), Bytes::from_static(NOT_COMMITTED), lease)],
        failure: vec![get(key.clone())],
    };
    let (answer, _) = send(client, outcomes, OPERATION, deadline, build).await?;
    if answer.succeeded {
        return Ok(TxnOutcome::NotCommitted);
    }
    let found = Found::of(keys, answer);
    what(found.at.get(&key).ok_or_else(|| broken(OPERATION))?)
}

fn what(kv: &KeyValue) -> Result<TxnOutcome> {
    match &kv.value[..] {
        COMMITTED => Ok(TxnOutcome::Committed(revision(kv.mod_revision))),
        NOT_COMMITTED => Ok(TxnOutcome::NotCommitted),
        _ => {
            let message = "the outcome of a transaction in etcd is not one of this store's";
            let key = String::from_utf8_lossy(&kv.key);
            Err(Error::new(ErrorKind::Corrupt, "store.outcome", message).with("key", key))
        }
    }
}

fn unknown(txn: TxnId, error: Error) -> Error {
    let message = "no answer in time: the commit may have been made; ask for its outcome";
    Error::new(ErrorKind::OutcomeUnknown, "store.commit", message)
        .with("txn", txn.0)
        .caused_by(error)
}

fn transaction(keys: &Keys, commit: &Commit, lease: i64) -> TxnRequest {
    let txn = keys.txn(commit.txn);
    let mut compare = vec![Compare::created(txn.clone(), 0)];
    let mut failure = vec![get(txn.clone())];
    for precondition in &commit.preconditions {
        let key = compared(keys, precondition);
        failure.push(get(key.clone()));
        compare.push(match precondition {
            Precondition::Absent(_) => Compare::created(key, 0),
            Precondition::Present(_) => Compare::present(key),
            Precondition::At(_, revision) => Compare::written(key, never_zero(int(*revision))),
            Precondition::Lease { token, .. } => {
                Compare::created(key, never_zero(int(Revision(*token))))
            }
        });
    }
    let mut success: Vec<_> = commit
        .ops
        .iter()
        .map(|op| match op {
            Op::Put(key, value) => put(keys.record(key.as_str()), value.clone(), 0),
            Op::Delete(key) => delete(keys.record(key.as_str())),
        })
        .collect();
    success.push(put(txn, Bytes::from_static(COMMITTED), lease));
    // The last one: its event ends the commit for a watch.
    success.push(put(keys.revision(), Bytes::new(), 0));
    TxnRequest {
        compare,
        success,
        failure,
    }
}

/// To etcd a key that is absent was written by revision zero.
fn never_zero(revision: i64) -> i64 {
    if revision == 0 { i64::MAX } else { revision }
}

fn compared(keys: &Keys, precondition: &Precondition) -> Bytes {
    match precondition {
        Precondition::Absent(key) | Precondition::Present(key) | Precondition::At(key, _) => {
            keys.record(key.as_str())
        }
        Precondition::Lease { name, .. } => keys.lease(name),
    }
}

/// What a transaction found instead of what it required.
struct Found<'a> {
    keys: &'a Keys,
    at: BTreeMap<Bytes, KeyValue>,
}

impl<'a> Found<'a> {
    fn of(keys: &'a Keys, answer: TxnResponse) -> Self {
        let kvs = answer.ranges().flat_map(|range| range.kvs);
        Self {
            keys,
            at: kvs.map(|kv| (kv.key.clone(), kv)).collect(),
        }
    }
}

impl Facts for Found<'_> {
    type Error = Infallible;

    fn version(&self, key: &Key) -> Result<Option<Revision>, Infallible> {
        let found = self.at.get(&self.keys.record(key.as_str()));
        Ok(found.map(|kv| revision(kv.mod_revision)))
    }

    fn holds(&self, name: &str, token: u64) -> Result<bool, Infallible> {
        let found = self.at.get(&self.keys.lease(name));
        Ok(found.is_some_and(|kv| revision(kv.create_revision).0 == token))
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use uuid::Uuid;

    use super::*;
    use crate::store::{MAX_COMMIT_BYTES, MAX_OPS};

    /// The largest commit with the longest keys and prefix fits into what etcd takes by default.
    #[test]
    fn the_largest_commit_fits() {
        let keys = Keys::new(&"p".repeat(128));
        let mut commit = Commit::new(TxnId(Uuid::nil()));
        for i in 0..MAX_OPS {
            let key = Key::new(format!("{i:0512}")).unwrap();
            let value = vec![b'x'; MAX_COMMIT_BYTES / MAX_OPS - 512];
            commit.require(Precondition::At(key.clone(), Revision(u64::MAX)));
            commit.push(Op::Put(key, value.into()));
        }
        commit.check().unwrap();
        let request = transaction(&keys, &commit, i64::MAX);
        assert!(
            request.encoded_len() < 1_572_864,
            "{}",
            request.encoded_len()
        );
        let most = request
            .compare
            .len()
            .max(request.success.len())
            .max(request.failure.len());
        assert!(most <= 128, "{most}");
    }
}
