//! Ranges: `get`, `list`, beats; and compaction.
//!
//! Between two commits etcd's own revision goes on (beats, leases, other users) while the store's stays. So a list at
//! the present revision of the store is a range at the present revision of etcd, which is always kept; only a list at an
//! older one needs etcd's history.

use bytes::Bytes;

use super::client::Client;
use super::failure::{self, status_of};
use super::keys::{Keys, behind, next};
use super::wire::{
    CompactionRequest, DeleteRangeRequest, KeyValue, PutRequest, RangeRequest, RangeResponse,
    TxnRequest, get as get_op, range,
};
use crate::error::{Error, ErrorKind, Result};
use crate::store::paging::{FIRST_PAGE, next_page};
use crate::store::{Key, ListOptions, Page, Record, Revision, check};
use crate::time::Deadline;

/// A revision as etcd's integer.
pub(super) fn int(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

/// etcd's integer as a revision.
pub(super) fn revision(int: i64) -> Revision {
    Revision(u64::try_from(int).unwrap_or_default())
}

/// The error for an answer that etcd cannot give.
pub(super) fn broken(operation: &'static str) -> Error {
    Error::new(
        ErrorKind::Internal,
        operation,
        "etcd gave an answer without what was asked",
    )
}

/// The store's revision, and etcd's.
pub(super) async fn tip(
    client: &Client,
    keys: &Keys,
    operation: &'static str,
    deadline: Deadline,
) -> Result<(Revision, i64)> {
    let request = RangeRequest {
        key: keys.revision(),
        ..RangeRequest::default()
    };
    let answer = client.ask_any(operation, deadline, &request).await?;
    let etcd = answer.header.as_ref().map_or(0, |h| h.revision);
    Ok((tip_in(&answer), etcd))
}

/// The store's revision in an answer for the key that keeps it.
pub(super) fn tip_in(answer: &RangeResponse) -> Revision {
    revision(answer.kvs.first().map_or(0, |kv| kv.mod_revision))
}

/// The record at `key`.
pub(super) async fn get(client: &Client, keys: &Keys, key: &Key) -> Result<Option<Record>> {
    let request = RangeRequest {
        key: keys.record(key.as_str()),
        ..RangeRequest::default()
    };
    let answer = client
        .ask_any("store.get", client.deadline(), &request)
        .await?;
    Ok(answer
        .kvs
        .into_iter()
        .next()
        .map(|kv| record(key.clone(), kv)))
}

fn record(key: Key, kv: KeyValue) -> Record {
    Record {
        key,
        version: revision(kv.mod_revision),
        value: kv.value,
    }
}

/// A page of the records under `prefix`.
pub(super) async fn list(
    client: &Client,
    keys: &Keys,
    prefix: &str,
    options: &ListOptions,
) -> Result<Page> {
    const OPERATION: &str = "store.list";
    let deadline = client.deadline();
    let start = keys.record(prefix);
    let after = options.after.as_ref();
    let from = after.map_or(start.clone(), |after| {
        next(&keys.record(after.as_str())).max(start.clone())
    });
    // One more than asked for tells whether more follow.
    let wanted = options.limit.saturating_add(1);
    let mut bytes = 0;
    let mut page = RangeRequest {
        key: from,
        range_end: behind(&start),
        limit: wanted.min(FIRST_PAGE) as i64,
        revision: 0,
    };
    let FirstPage { mut found, tip, at } =
        first_page(client, keys, deadline, &page, options.at).await?;
    page.revision = at;
    let mut records = Vec::new();
    loop {
        let last = found.kvs.last().map(|kv| next(&kv.key));
        for kv in found.kvs {
            bytes += kv.key.len() + kv.value.len();
            match keys.record_of(&kv.key) {
                Some(key) => records.push(record(key, kv)),
                None => passed_over(&kv.key),
            }
        }
        match last {
            Some(last) if found.more && records.len() < wanted => page.key = last,
            _ => break,
        }
        let missing = wanted - records.len();
        page.limit = missing.min(next_page(records.len(), bytes)) as i64;
        let answer = client.ask_any(OPERATION, deadline, &page).await;
        found = answer.map_err(|error| compacted(error, revision(at), tip))?;
    }
    let more = records.len() > options.limit;
    records.truncate(options.limit);
    Ok(Page {
        records,
        revision: options.at.unwrap_or(tip),
        more,
    })
}

struct FirstPage {
    found: RangeResponse,
    tip: Revision,
    /// The revision of etcd that the next page must be at.
    at: i64,
}

/// The first page of a list, with what tells whether its revision is one of the store's.
async fn first_page(
    client: &Client,
    keys: &Keys,
    deadline: Deadline,
    page: &RangeRequest,
    asked: Option<Revision>,
) -> Result<FirstPage> {
    let ask = async |revision: i64| {
        let page = RangeRequest {
            revision,
            ..page.clone()
        };
        let both = TxnRequest {
            success: vec![get_op(keys.revision()), range(page)],
            ..TxnRequest::default()
        };
        let answer = client.ask_any("store.list", deadline, &both).await?;
        let etcd = answer.header.as_ref().map_or(0, |h| h.revision);
        let mut ranges = answer.ranges();
        let (Some(tip), Some(found)) = (ranges.next(), ranges.next()) else {
            return Err(broken("store.list"));
        };
        Ok((tip_in(&tip), found, etcd))
    };
    let Some(asked) = asked else {
        let (tip, found, at) = ask(0).await?;
        return Ok(FirstPage { found, tip, at });
    };
    // Zero means the present to etcd; nothing is there before its revision two.
    let at = int(asked).max(1);
    match ask(at).await {
        Ok((tip, found, _)) if asked <= tip => Ok(FirstPage { found, tip, at }),
        Ok((tip, ..)) => Err(check::compacted("store.list", asked, None, tip)),
        Err(error) => {
            let Some(status) = status_of(&error) else {
                return Err(error);
            };
            if !failure::is_compacted(status) && !failure::is_future(status) {
                return Err(error);
            }
            // It may be the present revision of the store all the same.
            let (tip, found, at) = ask(0).await?;
            if asked == tip {
                Ok(FirstPage { found, tip, at })
            } else {
                Err(check::compacted("store.list", asked, None, tip))
            }
        }
    }
}

fn compacted(error: Error, asked: Revision, tip: Revision) -> Error {
    if status_of(&error).is_some_and(failure::is_compacted) {
        check::compacted("store.list", asked, None, tip)
    } else {
        error
    }
}

/// Somebody's key that no record can have hurts nobody else.
pub(super) fn passed_over(key: &Bytes) {
    let key = String::from_utf8_lossy(key);
    tracing::warn!(%key, "a key in etcd is no record's, and is passed over");
}

/// Compacts etcd to `before`, or to the present revision if that is lower; none if there is nothing to forget.
pub(super) async fn compact(
    client: &Client,
    keys: &Keys,
    before: Revision,
) -> Result<Option<Revision>> {
    const OPERATION: &str = "store.compact";
    let deadline = client.deadline();
    let floor = before.min(tip(client, keys, OPERATION, deadline).await?.0);
    if floor == Revision(0) {
        return Ok(None);
    }
    let request = CompactionRequest {
        revision: int(floor),
    };
    match client.ask_any(OPERATION, deadline, &request).await {
        Ok(_) => Ok(Some(floor)),
        // It has been compacted further.
        Err(error) if status_of(&error).is_some_and(failure::is_compacted) => Ok(Some(floor)),
        Err(error) => Err(error),
    }
}

/// Overwrites or removes a beat.
pub(super) async fn put_beat(
    client: &Client,
    keys: &Keys,
    key: &Key,
    value: Option<Bytes>,
) -> Result<()> {
    const OPERATION: &str = "store.put_beat";
    let (key, deadline) = (keys.beat(key.as_str()), client.deadline());
    match value {
        Some(value) => {
            let request = PutRequest {
                key,
                value,
                lease: 0,
            };
            client.ask_any(OPERATION, deadline, &request).await?;
        }
        None => {
            let request = DeleteRangeRequest { key };
            client.ask_any(OPERATION, deadline, &request).await?;
        }
    }
    Ok(())
}

/// The beats under `prefix`.
pub(super) async fn beats(client: &Client, keys: &Keys, prefix: &str) -> Result<Vec<(Key, Bytes)>> {
    let deadline = client.deadline();
    let mut from = keys.beat(prefix);
    let range_end = behind(&from);
    let mut beats = Vec::new();
    loop {
        let page = RangeRequest {
            key: from,
            range_end: range_end.clone(),
            limit: FIRST_PAGE as i64,
            // A beat has no history: the present one is always right.
            revision: 0,
        };
        let found = client.ask_any("store.beats", deadline, &page).await?;
        let last = found.kvs.last().map(|kv| next(&kv.key));
        for kv in found.kvs {
            match keys.beat_of(&kv.key) {
                Some(key) => beats.push((key, kv.value)),
                None => passed_over(&kv.key),
            }
        }
        match last {
            Some(last) if found.more => from = last,
            _ => return Ok(beats),
        }
    }
}
