//! A group of commits as the arguments of `commit_group`, and its answers.

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::reads::{int, revision};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Commit, Key, Op, Precondition, Revision, check};

/// The arguments: the parts of all commits in common arrays.
#[derive(Default)]
pub(super) struct Group<'a> {
    txns: Vec<Uuid>,
    need_to: Vec<i32>,
    need_what: Vec<i16>,
    need_key: Vec<&'a str>,
    need_number: Vec<i64>,
    op_to: Vec<i32>,
    op_key: Vec<&'a str>,
    op_value: Vec<Option<&'a str>>,
}

impl<'a> Group<'a> {
    /// Adds a commit that was [checked](check_values).
    pub(super) fn push(&mut self, commit: &'a Commit) {
        self.txns.push(commit.txn.0);
        for precondition in &commit.preconditions {
            let (what, key, number) = match precondition {
                Precondition::Absent(key) => (0, key.as_str(), 0),
                Precondition::Present(key) => (1, key.as_str(), 0),
                Precondition::At(key, at) => (2, key.as_str(), int(*at)),
                Precondition::Lease { name, token } => {
                    (3, name.as_str(), i64::try_from(*token).unwrap_or(i64::MAX))
                }
            };
            self.need_what.push(what);
            self.need_key.push(key);
            self.need_number.push(number);
        }
        for op in &commit.ops {
            self.op_key.push(op.key().as_str());
            self.op_value.push(match op {
                Op::Put(_, value) => std::str::from_utf8(value).ok(),
                Op::Delete(_) => None,
            });
        }
        self.need_to.push(length(&self.need_what));
        self.op_to.push(length(&self.op_key));
    }

    pub(super) fn arguments(&self) -> [&(dyn ToSql + Sync); 8] {
        [
            &self.txns,
            &self.need_to,
            &self.need_what,
            &self.need_key,
            &self.need_number,
            &self.op_to,
            &self.op_key,
            &self.op_value,
        ]
    }
}

fn length<T>(array: &[T]) -> i32 {
    i32::try_from(array.len()).unwrap_or(i32::MAX)
}

/// What the server says of one commit.
pub(super) fn answer(commit: &Commit, row: &Row) -> Result<Revision> {
    let (status, at): (i16, Option<i64>) = (row.get(0), row.get(1));
    let (failed, found): (Option<i32>, Option<i64>) = (row.get(2), row.get(3));
    let index = failed.and_then(|index| usize::try_from(index).ok());
    let precondition = index.and_then(|index| Some((index, commit.preconditions.get(index)?)));
    match (status, at, precondition) {
        (0, Some(at), _) => Ok(revision(at)),
        (1, ..) => Err(check::given_up(commit.txn)),
        (2, _, Some((index, precondition))) => {
            Err(check::conflict(index, precondition, found.map(revision)))
        }
        _ => {
            let message =
                "the database's function commit_group answers what this build does not know";
            Err(
                Error::new(ErrorKind::OutcomeUnknown, "store.commit", message)
                    .with("status", status),
            )
        }
    }
}

/// Fails unless PostgreSQL can hold every value of the commit: one that it cannot would fail the whole group.
pub(super) fn check_values(commit: &Commit) -> Result<()> {
    for op in &commit.ops {
        if let Op::Put(key, value) = op {
            check_value("store.commit", key, value)?;
        }
    }
    for precondition in &commit.preconditions {
        if let Precondition::Lease { name, .. } = precondition {
            check_text("store.commit", name)?;
        }
    }
    Ok(())
}

/// The value as text; fails unless it is JSON.
pub(super) fn check_value<'a>(
    operation: &'static str,
    key: &Key,
    value: &'a [u8],
) -> Result<&'a str> {
    // Not `IgnoredAny`: that lets by what JSONB refuses, as a lone surrogate or a number without bounds.
    let text = std::str::from_utf8(value).unwrap_or_default();
    match serde_json::from_str::<serde_json::Value>(text) {
        Ok(_) => Ok(text),
        Err(e) => {
            let message = "the value is no JSON, and a PostgreSQL store holds nothing else";
            Err(Error::new(ErrorKind::Invalid, operation, message)
                .with("key", key)
                .caused_by(e))
        }
    }
}

/// Fails when PostgreSQL cannot hold the text.
pub(super) fn check_text(operation: &'static str, text: &str) -> Result<()> {
    if text.contains('\0') {
        let message = format!("{text:?} has a NUL character, which PostgreSQL cannot hold");
        return Err(Error::new(ErrorKind::Invalid, operation, message));
    }
    Ok(())
}
