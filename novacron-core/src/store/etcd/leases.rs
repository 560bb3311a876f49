//! Leases on etcd's own.
//!
//! `l/<name>` is attached to an etcd lease of the asked time to live, so it is gone when that expires. Its create
//! revision is the token: it grows with every grant and stays with a renewal. A renewal keeps the etcd lease alive; only
//! a holder that asks for another time to live gets a new one, under the same key. An etcd lease that nothing is attached
//! to, because an answer was lost, expires by itself.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::client::{Client, wait};
use super::failure::{is_lease_gone, status_of};
use super::keys::Keys;
use super::reads::{int, revision};
use super::wire::{
    Compare, KeyValue, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest,
    LeaseTimeToLiveRequest, RangeRequest, TxnRequest, delete, put,
};
use crate::error::{Error, ErrorKind, Result};
use crate::store::lease::lost;
use crate::store::{Lease, LeaseAnswer, Revision};
use crate::time::Deadline;

const ACQUIRE: &str = "store.lease_acquire";
const RENEW: &str = "store.lease_renew";
const RELEASE: &str = "store.lease_release";

/// How soon whoever waits for a lease may ask again in its last second: etcd does not tell how much of that is left.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// What stands at `l/<name>`.
#[derive(Serialize, Deserialize)]
struct Held {
    holder: String,
    ttl_millis: u64,
}

/// A lease as it was found.
struct Present {
    held: Held,
    token: u64,
    etcd: i64,
}

impl Present {
    fn ttl(&self) -> Duration {
        Duration::from_millis(self.held.ttl_millis)
    }
}

/// Takes or keeps a lease.
pub(super) async fn acquire(
    client: &Client,
    keys: &Keys,
    name: &str,
    holder: &str,
    ttl: Duration,
) -> Result<LeaseAnswer> {
    let deadline = client.deadline();
    let mut pause = Duration::from_millis(10);
    loop {
        let answer = match look(client, keys, ACQUIRE, name, deadline).await? {
            None => grant(client, keys, name, holder, ttl, deadline).await?,
            Some(present) if present.held.holder == holder => {
                let kept = extend(client, keys, ACQUIRE, name, &present, ttl, deadline).await?;
                kept.then_some(present.token)
            }
            Some(present) => match remaining(client, &present, deadline).await? {
                Some(remaining) => {
                    return Ok(LeaseAnswer::HeldBy {
                        holder: present.held.holder,
                        remaining,
                    });
                }
                None => None,
            },
        };
        if let Some(token) = answer {
            return Ok(LeaseAnswer::Granted(Lease {
                name: name.to_owned(),
                holder: holder.to_owned(),
                token,
                ttl,
            }));
        }
        // It changed hands, or was about to expire.
        if deadline.remaining().is_zero() {
            let message = "the lease changed hands at every attempt";
            return Err(Error::new(ErrorKind::Unavailable, ACQUIRE, message).with("lease", name));
        }
        wait(pause.min(deadline.remaining())).await;
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}

/// Extends a lease by its time to live.
pub(super) async fn renew(client: &Client, keys: &Keys, lease: &Lease) -> Result<()> {
    let deadline = client.deadline();
    let found = look(client, keys, RENEW, &lease.name, deadline).await?;
    let Some(present) = found else {
        return Err(lost(lease, None));
    };
    let mine = present.token == lease.token && present.held.holder == lease.holder;
    let name = &lease.name;
    if mine && extend(client, keys, RENEW, name, &present, lease.ttl, deadline).await? {
        return Ok(());
    }
    Err(lost(lease, Some((&present.held.holder, present.token))))
}

/// Gives a lease back, if it is what is held.
pub(super) async fn release(client: &Client, keys: &Keys, lease: &Lease) -> Result<()> {
    let deadline = client.deadline();
    let Some(present) = look(client, keys, RELEASE, &lease.name, deadline).await? else {
        return Ok(());
    };
    if present.token != lease.token || present.held.holder != lease.holder {
        return Ok(());
    }
    let key = keys.lease(&lease.name);
    let free = TxnRequest {
        compare: vec![Compare::created(key.clone(), int(Revision(lease.token)))],
        success: vec![delete(key)],
        failure: Vec::new(),
    };
    client.ask_any(RELEASE, deadline, &free).await?;
    revoke(client, present.etcd, deadline).await;
    Ok(())
}

async fn look(
    client: &Client,
    keys: &Keys,
    operation: &'static str,
    name: &str,
    deadline: Deadline,
) -> Result<Option<Present>> {
    let request = RangeRequest {
        key: keys.lease(name),
        ..RangeRequest::default()
    };
    let found = client.ask_any(operation, deadline, &request).await?;
    found
        .kvs
        .into_iter()
        .next()
        .map(|kv| present(operation, name, &kv))
        .transpose()
}

fn present(operation: &'static str, name: &str, kv: &KeyValue) -> Result<Present> {
    let held = serde_json::from_slice(&kv.value).map_err(|error| {
        let message = "what stands in etcd for a lease is not this store's; delete the key";
        Error::new(ErrorKind::Corrupt, operation, message)
            .with("lease", name)
            .with("key", String::from_utf8_lossy(&kv.key))
            .caused_by(error)
    })?;
    Ok(Present {
        held,
        token: revision(kv.create_revision).0,
        etcd: kv.lease,
    })
}

/// Takes a lease that is free, and returns its token; none if somebody was faster.
async fn grant(
    client: &Client,
    keys: &Keys,
    name: &str,
    holder: &str,
    ttl: Duration,
    deadline: Deadline,
) -> Result<Option<u64>> {
    let etcd = new_lease(client, ACQUIRE, ttl, deadline).await?;
    let key = keys.lease(name);
    let take = TxnRequest {
        compare: vec![Compare::created(key.clone(), 0)],
        success: vec![put(key, value(holder, ttl), etcd)],
        failure: Vec::new(),
    };
    let taken = client.ask_any(ACQUIRE, deadline, &take).await;
    match taken {
        Ok(answer) if answer.succeeded => {
            let revision = answer.header.map(|header| revision(header.revision).0);
            Ok(revision)
        }
        Ok(_) => {
            revoke(client, etcd, deadline).await;
            Ok(None)
        }
        // Expired before it was attached: a time to live below the time that an answer takes.
        Err(error) if status_of(&error).is_some_and(is_lease_gone) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Keeps a lease for `ttl` from now; false if it is not held any more.
async fn extend(
    client: &Client,
    keys: &Keys,
    operation: &'static str,
    name: &str,
    present: &Present,
    ttl: Duration,
    deadline: Deadline,
) -> Result<bool> {
    if present.ttl() == ttl {
        let keep = LeaseKeepAliveRequest { id: present.etcd };
        return match client.ask_any(operation, deadline, &keep).await {
            Ok(answer) => Ok(answer.ttl > 0),
            Err(error) if status_of(&error).is_some_and(is_lease_gone) => Ok(false),
            Err(error) => Err(error),
        };
    }
    let etcd = new_lease(client, operation, ttl, deadline).await?;
    let key = keys.lease(name);
    let change = TxnRequest {
        compare: vec![Compare::created(key.clone(), int(Revision(present.token)))],
        success: vec![put(key, value(&present.held.holder, ttl), etcd)],
        failure: Vec::new(),
    };
    let changed = client
        .ask_any(operation, deadline, &change)
        .await?
        .succeeded;
    // The one that nothing is attached to now.
    let idle = if changed { present.etcd } else { etcd };
    revoke(client, idle, deadline).await;
    Ok(changed)
}

/// How long a lease lasts if it is not renewed; none if it is over.
async fn remaining(
    client: &Client,
    present: &Present,
    deadline: Deadline,
) -> Result<Option<Duration>> {
    let request = LeaseTimeToLiveRequest { id: present.etcd };
    let answer = match client.ask_any(ACQUIRE, deadline, &request).await {
        Ok(answer) => answer,
        Err(error) if status_of(&error).is_some_and(is_lease_gone) => return Ok(None),
        Err(error) => return Err(error),
    };
    // etcd tells whole seconds, rounded down, and -1 for a lease that does not exist.
    let seconds = u64::try_from(answer.ttl).ok();
    Ok(seconds.map(|seconds| Duration::from_secs(seconds).max(ASK_AGAIN)))
}

async fn new_lease(
    client: &Client,
    operation: &'static str,
    ttl: Duration,
    deadline: Deadline,
) -> Result<i64> {
    let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
    let request = LeaseGrantRequest {
        ttl: i64::try_from(seconds.max(1)).unwrap_or(i64::MAX),
    };
    Ok(client.ask_any(operation, deadline, &request).await?.id)
}

/// Lets go of an etcd lease that nothing hangs on. It would expire by itself.
async fn revoke(client: &Client, etcd: i64, deadline: Deadline) {
    let request = LeaseRevokeRequest { id: etcd };
    if let Err(error) = client.ask_any(RELEASE, deadline, &request).await {
        tracing::debug!(error = %error.report(), "an etcd lease is left to expire");
    }
}

fn value(holder: &str, ttl: Duration) -> Bytes {
    let ttl_millis = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    let text = serde_json::json!({ "holder": holder, "ttl_millis": ttl_millis });
    text.to_string().into()
}
