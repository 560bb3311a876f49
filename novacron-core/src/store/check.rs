//! Preconditions, evaluated alike in every store: a store only says how to look up a version and a lease.

use super::{Key, MAX_BEAT_BYTES, Precondition, Revision};
use crate::error::{Error, ErrorKind, Result};

/// What preconditions are evaluated against: the store as it is right before the commit.
pub(crate) trait Facts {
    /// Why a look-up can fail.
    type Error;

    /// The revision that last wrote `key`, or none if there is no such record.
    fn version(&self, key: &Key) -> Result<Option<Revision>, Self::Error>;

    /// Whether the lease `name` is held under `token` and has not expired.
    fn holds(&self, name: &str, token: u64) -> Result<bool, Self::Error>;
}

/// Checks the limit of a beat's value.
pub(super) fn beat(key: &Key, value: Option<&[u8]>) -> Result<()> {
    let bytes = value.map_or(0, <[u8]>::len);
    if bytes <= MAX_BEAT_BYTES {
        return Ok(());
    }
    let message = format!("beat {key} has {bytes} bytes; at most {MAX_BEAT_BYTES}");
    Err(Error::new(ErrorKind::Invalid, "store.put_beat", message))
}

/// Looks every precondition up; the inner result is [`ErrorKind::Conflict`] at the first one that does not hold.
pub(crate) fn evaluate<F: Facts>(
    preconditions: &[Precondition],
    facts: &F,
) -> Result<Result<()>, F::Error> {
    for (index, precondition) in preconditions.iter().enumerate() {
        let (holds, found) = match precondition {
            Precondition::Absent(key) => {
                let found = facts.version(key)?;
                (found.is_none(), found)
            }
            Precondition::Present(key) => {
                let found = facts.version(key)?;
                (found.is_some(), found)
            }
            Precondition::At(key, expected) => {
                let found = facts.version(key)?;
                (found == Some(*expected), found)
            }
            Precondition::Lease { name, token } => (facts.holds(name, *token)?, None),
        };
        if !holds {
            return Ok(Err(conflict(index, precondition, found)));
        }
    }
    Ok(Ok(()))
}

/// The error of a commit whose precondition does not hold; `found` is the revision of its key's record, if there is one.
pub(super) fn conflict(
    index: usize,
    precondition: &Precondition,
    found: Option<Revision>,
) -> Error {
    let (key, message) = match (precondition, found) {
        (Precondition::Lease { name, token }, _) => (
            name.as_str(),
            format!("the lease {name} is not held under token {token} any more"),
        ),
        (Precondition::Absent(key) | Precondition::Present(key), Some(found)) => (
            key.as_str(),
            format!("{key} exists already, at revision {found}"),
        ),
        (Precondition::Absent(key) | Precondition::Present(key), None) => {
            (key.as_str(), format!("{key} does not exist"))
        }
        (Precondition::At(key, expected), Some(found)) => (
            key.as_str(),
            format!("{key} is at revision {found}, not {expected}"),
        ),
        (Precondition::At(key, expected), None) => (
            key.as_str(),
            format!("{key} does not exist; revision {expected} was expected"),
        ),
    };
    Error::new(ErrorKind::Conflict, "store.commit", message)
        .with("precondition", index)
        .with("key", key)
}

/// The error of a commit whose transaction [`Store::outcome`](super::Store::outcome) has answered `NotCommitted`.
pub(super) fn given_up(txn: super::TxnId) -> Error {
    Error::new(
        ErrorKind::Cancelled,
        "store.commit",
        "the transaction was declared not committed before it arrived",
    )
    .with("txn", txn.0)
}

/// The error of a list or watch from a revision below what is kept, or above what was ever committed (which is a
/// revision of another history, as after a restored backup: the caller's way out is the same).
pub(super) fn compacted(
    operation: &'static str,
    asked: Revision,
    floor: impl Into<Option<Revision>>,
    tip: Revision,
) -> Error {
    let message = if asked > tip {
        format!(
            "revision {asked} is ahead of the store's {tip}: it belongs to another history; list again"
        )
    } else if let Some(floor) = floor.into() {
        format!("revision {asked} is no longer kept (oldest: {floor}); list again")
    } else {
        format!("revision {asked} is no longer kept; list again")
    };
    Error::new(ErrorKind::Compacted, operation, message)
}
