//! The check of a history: pure.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fmt;

use bytes::Bytes;

use super::{Recorded, Saw};
use crate::store::{Commit, Key, Op, Precondition, Record, Revision, TxnId, TxnOutcome, value};

/// What a history had in it that could be explained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Commits that were applied.
    pub commits: usize,
    /// Of these and the others, those whose answer was lost at first.
    pub unknown: usize,
    /// Commits that were refused by a precondition.
    pub conflicts: usize,
    /// Reads.
    pub reads: usize,
}

/// What cannot have been.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Violation {}

/// A commit that was applied: between which moments, and when it was first known.
#[derive(Clone, Copy, Debug)]
struct Applied {
    revision: Revision,
    begin: u64,
    known: u64,
}

/// Each version of each key, by revision; none is a delete. Before the first one, a key is absent.
type Versions<'a> = BTreeMap<&'a Key, Vec<(Revision, Option<&'a Bytes>)>>;

/// What takes its place in the order.
#[derive(Clone, Copy)]
struct Step<'a> {
    begin: u64,
    end: u64,
    what: What<'a>,
}

#[derive(Clone, Copy)]
enum What<'a> {
    Commit(TxnId, Revision),
    Read(&'a Saw),
}

pub(super) fn check(recorded: &Recorded) -> Result<Checked, Violation> {
    let applied = applied(recorded)?;
    let versions = replay(recorded, &applied)?;
    let mut checked = Checked {
        commits: applied.len(),
        ..Checked::default()
    };

    let mut steps: Vec<Step<'_>> = applied
        .iter()
        .map(|(txn, it)| Step {
            begin: it.begin,
            end: it.known,
            what: What::Commit(*txn, it.revision),
        })
        .collect();
    for call in &recorded.calls {
        match &call.saw {
            Saw::Unknown(_) => checked.unknown += 1,
            Saw::Conflict(..) => checked.conflicts += 1,
            Saw::Record(..) | Saw::List(..) | Saw::Revision(_) => checked.reads += 1,
            Saw::Committed(..) | Saw::Failed(_) | Saw::Outcome(..) => {}
        }
        if let Saw::Conflict(..) | Saw::Record(..) | Saw::List(..) | Saw::Revision(_) = &call.saw {
            steps.push(Step {
                begin: call.begin,
                end: call.end,
                what: What::Read(&call.saw),
            });
        }
    }
    steps.sort_by_key(|step| step.begin);

    // What began after a call ended comes after it: the smallest revision among those, from each beginning on.
    let mut later: Vec<(u64, Revision)> =
        applied.values().map(|it| (it.begin, it.revision)).collect();
    later.sort_unstable();
    for i in (1..later.len()).rev() {
        later[i - 1].1 = later[i - 1].1.min(later[i].1);
    }

    // In the order of the beginnings; what has ended before one began is a floor for it.
    let (mut floor, mut under_way) = (Revision(0), BinaryHeap::new());
    for step in steps {
        while let Some(Reverse((end, revision))) = under_way.peek() {
            if *end > step.begin {
                break;
            }
            floor = floor.max(*revision);
            under_way.pop();
        }
        let place = match step.what {
            What::Commit(txn, revision) if revision <= floor => {
                return fail(format!(
                    "commit {} was applied at revision {revision}, but revision {floor} had been seen before it began",
                    txn.0
                ));
            }
            What::Commit(_, revision) => revision,
            What::Read(saw) => {
                let next = later.partition_point(|(begin, _)| *begin < step.end);
                let ceiling = later
                    .get(next)
                    .map_or(u64::MAX, |(_, revision)| revision.0 - 1);
                place(recorded, &versions, saw, floor, Revision(ceiling))?
            }
        };
        under_way.push(Reverse((step.end, place)));
    }
    Ok(checked)
}

/// Every commit that was applied, by what its callers and those who asked for its outcome were told.
fn applied(recorded: &Recorded) -> Result<BTreeMap<TxnId, Applied>, Violation> {
    let mut applied: BTreeMap<TxnId, Applied> = BTreeMap::new();
    let mut sent: BTreeMap<TxnId, u64> = BTreeMap::new();
    let (mut possible, mut gone) = (BTreeSet::new(), BTreeSet::new());
    for call in &recorded.calls {
        match &call.saw {
            Saw::Committed(txn, revision) | Saw::Outcome(txn, TxnOutcome::Committed(revision)) => {
                let told = applied.entry(*txn).or_insert(Applied {
                    revision: *revision,
                    begin: call.begin,
                    known: call.end,
                });
                if told.revision != *revision {
                    return fail(format!(
                        "commit {} was applied at revision {} and at {revision}",
                        txn.0, told.revision
                    ));
                }
                told.known = told.known.min(call.end);
            }
            Saw::Outcome(txn, TxnOutcome::NotCommitted) => drop(gone.insert(*txn)),
            Saw::Unknown(_) | Saw::Conflict(..) | Saw::Failed(_) => {}
            Saw::Record(..) | Saw::List(..) | Saw::Revision(_) => {}
        }
        if let Saw::Committed(txn, _) | Saw::Unknown(txn) = &call.saw {
            possible.insert(*txn);
        }
        if let Saw::Committed(txn, _)
        | Saw::Conflict(txn, _)
        | Saw::Failed(txn)
        | Saw::Unknown(txn) = &call.saw
        {
            let first = sent.entry(*txn).or_insert(call.begin);
            *first = call.begin.min(*first);
        }
    }
    let mut taken = BTreeMap::new();
    for (txn, it) in &mut applied {
        it.begin = sent.get(txn).copied().unwrap_or(it.begin);
        if gone.contains(txn) {
            return fail(format!(
                "commit {} was applied at revision {}, and told not to be committed",
                txn.0, it.revision
            ));
        }
        if !possible.contains(txn) {
            return fail(format!(
                "commit {} was applied at revision {}, though its caller was told that nothing happened",
                txn.0, it.revision
            ));
        }
        if let Some(other) = taken.insert(it.revision, *txn) {
            return fail(format!(
                "commits {} and {} were both applied at revision {}",
                other.0, txn.0, it.revision
            ));
        }
    }
    let open = |txn: &&TxnId| !applied.contains_key(*txn) && !gone.contains(*txn);
    match possible.iter().find(open) {
        Some(txn) => fail(format!(
            "nobody asked what became of commit {}: settle first",
            txn.0
        )),
        None => Ok(applied),
    }
}

/// The versions of every key, after each applied commit was found to be allowed by its preconditions.
fn replay<'a>(
    recorded: &'a Recorded,
    applied: &BTreeMap<TxnId, Applied>,
) -> Result<Versions<'a>, Violation> {
    let mut order: Vec<(Revision, &TxnId)> =
        applied.iter().map(|(txn, it)| (it.revision, txn)).collect();
    order.sort_unstable();
    let mut versions = Versions::new();
    for (revision, txn) in order {
        let Some(commit) = recorded.commits.get(txn) else {
            return fail(format!("commit {} was never sent", txn.0));
        };
        let before = Revision(revision.0.saturating_sub(1));
        for precondition in &commit.preconditions {
            if !holds(&versions, precondition, before) {
                return fail(format!(
                    "commit {} was applied at revision {revision} though {precondition:?} did not hold",
                    txn.0
                ));
            }
        }
        for op in &commit.ops {
            let (key, value) = match op {
                Op::Put(key, value) => (key, Some(value)),
                Op::Delete(key) if at(&versions, key, before).is_none() => continue,
                Op::Delete(key) => (key, None),
            };
            versions.entry(key).or_default().push((revision, value));
        }
    }
    Ok(versions)
}

/// The smallest revision from `floor` to `ceiling` that explains what was seen.
fn place(
    recorded: &Recorded,
    versions: &Versions<'_>,
    saw: &Saw,
    floor: Revision,
    ceiling: Revision,
) -> Result<Revision, Violation> {
    let explained = match saw {
        Saw::Record(key, seen) => candidates(versions, key, floor)
            .find(|revision| same(at(versions, key, *revision), seen.as_ref())),
        Saw::Conflict(txn, index) => {
            let refused = recorded.commits.get(txn).and_then(|it| refusal(it, *index));
            match refused {
                Some((_, None)) => Some(floor),
                Some((precondition, Some(key))) => candidates(versions, key, floor)
                    .find(|revision| !holds(versions, precondition, *revision)),
                None => None,
            }
        }
        Saw::Revision(revision) => Some(*revision),
        Saw::List(prefix, records, revision) => {
            shows(versions, prefix, records, *revision).then_some(*revision)
        }
        Saw::Committed(..) | Saw::Failed(_) | Saw::Unknown(_) | Saw::Outcome(..) => Some(floor),
    };
    match explained {
        Some(revision) if (floor..=ceiling).contains(&revision) => Ok(revision),
        _ => fail(format!(
            "no state from revision {floor} to {ceiling} explains this: {saw:?}"
        )),
    }
}

/// The precondition of a refused commit and its key; no key for a lease.
fn refusal(commit: &Commit, index: usize) -> Option<(&Precondition, Option<&Key>)> {
    let precondition = commit.preconditions.get(index)?;
    let key = match precondition {
        Precondition::Absent(key) | Precondition::Present(key) | Precondition::At(key, _) => {
            Some(key)
        }
        Precondition::Lease { .. } => None,
    };
    Some((precondition, key))
}

/// `floor`, and every later revision at which the key changed.
fn candidates<'a>(
    versions: &'a Versions<'_>,
    key: &Key,
    floor: Revision,
) -> impl Iterator<Item = Revision> + use<'a> {
    let changes = versions.get(key).into_iter().flatten();
    let later = changes
        .map(|(revision, _)| *revision)
        .filter(move |it| *it > floor);
    std::iter::once(floor).chain(later)
}

/// What was at a key at a revision.
fn at<'a>(versions: &Versions<'a>, key: &Key, revision: Revision) -> Option<(Revision, &'a Bytes)> {
    let versions = versions.get(key)?;
    let later = versions.partition_point(|(version, _)| *version <= revision);
    let (version, value) = versions.get(later.checked_sub(1)?)?;
    Some((*version, (*value)?))
}

fn holds(versions: &Versions<'_>, precondition: &Precondition, revision: Revision) -> bool {
    let version = |key| at(versions, key, revision).map(|(version, _)| version);
    match precondition {
        Precondition::Absent(key) => version(key).is_none(),
        Precondition::Present(key) => version(key).is_some(),
        Precondition::At(key, expected) => version(key) == Some(*expected),
        Precondition::Lease { .. } => true,
    }
}

/// Whether a record is what was written: at that revision, and equal as JSON.
fn same(written: Option<(Revision, &Bytes)>, seen: Option<&Record>) -> bool {
    match (written, seen) {
        (None, None) => true,
        (Some((version, value)), Some(seen)) => {
            version == seen.version && value::equal(value, &seen.value)
        }
        _ => false,
    }
}

/// Whether the records are exactly those under `prefix` at a revision, in order.
fn shows(versions: &Versions<'_>, prefix: &str, records: &[Record], revision: Revision) -> bool {
    let mut seen = records.iter();
    let under = versions
        .keys()
        .filter(|key| key.as_str().starts_with(prefix));
    for key in under {
        if let Some(written) = at(versions, key, revision) {
            let next = seen.next();
            if next.is_none_or(|it| it.key != **key) || !same(Some(written), next) {
                return false;
            }
        }
    }
    seen.next().is_none()
}

fn fail<T>(message: String) -> Result<T, Violation> {
    Err(Violation(message))
}
