//! What differs between two stores.

use std::cmp::Ordering;
use std::fmt;

use super::Pages;
use crate::error::Result;
use crate::store::{Key, Record, Store, value};

/// A record that two stores do not both have alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Only the first store has it.
    OnlyFirst(Key),
    /// Only the second store has it.
    OnlySecond(Key),
    /// Both have it, with values that are not equal as JSON.
    Value(Key),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnlyFirst(key) => write!(f, "- {key}"),
            Self::OnlySecond(key) => write!(f, "+ {key}"),
            Self::Value(key) => write!(f, "! {key}"),
        }
    }
}

/// What differs between the records of two stores, each as of one revision, in the order of the keys. Versions are not
/// compared: each store has its own.
///
/// # Errors
/// What the stores answer.
pub async fn diff(first: &dyn Store, second: &dyn Store) -> Result<Vec<Difference>> {
    let (mut left, mut right) = (Pages::of(first).await?, Pages::of(second).await?);
    let (mut a, mut b) = (left.next().await?, right.next().await?);
    let mut differences = Vec::new();
    loop {
        match order(a.as_ref(), b.as_ref()) {
            None => return Ok(differences),
            Some(Ordering::Less) => {
                differences.extend(a.take().map(|record| Difference::OnlyFirst(record.key)));
                a = left.next().await?;
            }
            Some(Ordering::Greater) => {
                differences.extend(b.take().map(|record| Difference::OnlySecond(record.key)));
                b = right.next().await?;
            }
            Some(Ordering::Equal) => {
                if let (Some(a), Some(b)) = (a.take(), b.take())
                    && !value::equal(&a.value, &b.value)
                {
                    differences.push(Difference::Value(a.key));
                }
                (a, b) = (left.next().await?, right.next().await?);
            }
        }
    }
}

/// Which of two records comes first; none when there is neither.
fn order(a: Option<&Record>, b: Option<&Record>) -> Option<Ordering> {
    match (a, b) {
        (None, None) => None,
        (Some(_), None) => Some(Ordering::Less),
        (None, Some(_)) => Some(Ordering::Greater),
        (Some(a), Some(b)) => Some(a.key.cmp(&b.key)),
    }
}
