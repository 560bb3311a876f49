//! Lists, page by page.
//!
//! A token says after which object the next page begins, and of which list: kind, project and labels. It holds no
//! state of the process, so it survives a restart.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Display;
use std::ops::Bound;
use std::str::FromStr;

use super::request::{fingerprint, problem, refuse};
use crate::control::cache::Cache;
use crate::error::{Error, Result};
use crate::store::Revision;

/// Objects in a page, if the request does not say.
pub const DEFAULT_PAGE: usize = 100;
/// The most objects in a page.
pub const MAX_PAGE: usize = 1000;

/// Which page of which list.
///
/// ```
/// use novacron_core::cluster::ListRequest;
/// use novacron_core::{Cluster, Result};
///
/// # async fn example(cluster: &Cluster) -> Result<()> {
/// let mut request = ListRequest::new().limit(500).label("tier", "web");
/// loop {
///     let page = cluster.vms().list(&request).await?;
///     for view in &page.items {
///         println!("{} is {}", view.vm.meta.name, view.phase);
///     }
///     match page.next {
///         Some(token) => request = request.after(token),
///         None => break,
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListRequest {
    /// Where the page before ended; the first page if none.
    pub token: Option<PageToken>,
    /// At most this many, 1 to [`MAX_PAGE`].
    pub limit: usize,
    /// Only objects that have all of these labels. Refused by lists of what has none (nodes, pools, operations, events, audit).
    pub labels: BTreeMap<String, String>,
}

impl Default for ListRequest {
    fn default() -> Self {
        Self::new()
    }
}

impl ListRequest {
    /// The first page, of [`DEFAULT_PAGE`] objects.
    pub const fn new() -> Self {
        Self {
            token: None,
            limit: DEFAULT_PAGE,
            labels: BTreeMap::new(),
        }
    }

    /// The page after the one that gave this token.
    #[must_use]
    pub fn after(mut self, token: PageToken) -> Self {
        self.token = Some(token);
        self
    }

    /// At most this many objects a page.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// Only objects with this label.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    pub(super) fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.labels.iter().all(|(k, v)| labels.get(k) == Some(v))
    }

    /// The checked request. `scope` is what, beside verb and labels, makes this list another one.
    pub(super) fn walk(&self, verb: &'static str, scope: &str) -> Result<Walk> {
        let mut problems = Vec::new();
        if !(1..=MAX_PAGE).contains(&self.limit) {
            let message = format!("{}; must be 1 to {MAX_PAGE}", self.limit);
            problems.push(problem("limit", message));
        }
        let labels = format!("{:?}", self.labels);
        let list = fingerprint(&[verb, scope, &labels]);
        let after = self.token.as_ref().map(|token| token.open(&list));
        if let Some(None) = after {
            let message =
                "damaged, or of another list (its kind, project and labels must be the same)";
            problems.push(problem("token", message));
        }
        refuse(verb, problems)?;
        Ok(Walk {
            list,
            after: after.flatten(),
            limit: self.limit,
        })
    }

    /// As [`ListRequest::walk`], for a list whose objects have no labels.
    pub(super) fn walk_unlabelled(&self, verb: &'static str, scope: &str) -> Result<Walk> {
        if !self.labels.is_empty() {
            let message = "what is listed here has no labels";
            return Err(Error::invalid(verb, vec![problem("labels", message)]));
        }
        self.walk(verb, scope)
    }
}

/// Where a page ended. Opaque; as text it can be kept and sent, and it survives a restart of the process.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct PageToken(String);

impl PageToken {
    /// `<the last object, in hex>.<checksum over list and object>`: against damage and mix-ups, not against forgery,
    /// since a forged one shows nothing that the list does not.
    fn seal(list: &str, last: &str) -> Self {
        use fmt::Write as _;
        let mut text = String::with_capacity(2 * last.len() + 33);
        for byte in last.bytes() {
            let _ = write!(text, "{byte:02x}");
        }
        let _ = write!(text, ".{}", fingerprint(&[list, last]));
        Self(text)
    }

    fn open(&self, list: &str) -> Option<String> {
        let (hex, sum) = self.0.split_once('.')?;
        let digits = hex.as_bytes();
        if digits.is_empty() || digits.len() > 1024 || !digits.is_ascii() {
            return None;
        }
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let bytes: Option<Vec<u8>> = digits.chunks(2).map(byte).collect();
        let last = String::from_utf8(bytes?).ok()?;
        (fingerprint(&[list, &last]) == sum).then_some(last)
    }
}

impl Display for PageToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<String> for PageToken {
    /// A token from its text. Whether it is one is looked at when it is used.
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// One page of a list.
///
/// **What a caller may rely on.** Within a page, everything is as of one moment, not before the call. A walk over all
/// pages sees every object that existed during the whole walk exactly once; one that was created or deleted meanwhile
/// may be seen or not; none is seen twice. Two pages need not be of the same moment: [`Page::revision`] says which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// The objects, in the order of the list. There can be fewer than the limit, even none, before the end.
    pub items: Vec<T>,
    /// Where the next page begins; none at the end.
    pub next: Option<PageToken>,
    /// Every commit up to this one is accounted for: watch after it to see what changes.
    pub revision: Revision,
}

/// A checked request for a page.
#[derive(Debug)]
pub(super) struct Walk {
    list: String,
    pub(super) after: Option<String>,
    pub(super) limit: usize,
}

impl Walk {
    /// The token of a page that ended with `last`.
    pub(super) fn token(&self, last: &str) -> PageToken {
        PageToken::seal(&self.list, last)
    }

    /// One page of a table of the cache.
    pub(super) fn page<K, V, T>(
        &self,
        cache: &Cache,
        table: &BTreeMap<K, V>,
        wanted: impl Fn(&V) -> bool,
        view: impl Fn(&V) -> T,
    ) -> Result<Page<T>>
    where
        K: Ord + Display + FromStr<Err = Error>,
    {
        let after = self.after.as_deref().map(K::from_str).transpose()?;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut found = table
            .range((from, Bound::Unbounded))
            .filter(|(_, v)| wanted(v));
        let mut last = None;
        let items = found
            .by_ref()
            .take(self.limit)
            .map(|(id, value)| {
                last = Some(id);
                view(value)
            })
            .collect();
        let next = match found.next() {
            Some(_) => last.map(|id| self.token(&id.to_string())),
            None => None,
        };
        Ok(Page {
            items,
            next,
            revision: cache.revision,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_token_is_refused_whatever_the_damage() {
        let list = fingerprint(&["vm.list", "default", "{}"]);
        let token = PageToken::seal(&list, "018f-é");
        assert_eq!(token.open(&list).as_deref(), Some("018f-é"));
        assert_eq!(token.open("another list"), None);
        let text = token.to_string();
        for at in 0..text.len() {
            for with in ["", "0", "g", ".", "é", "+"] {
                let damaged = format!("{}{with}{}", &text[..at], &text[at + 1..]);
                if damaged != text {
                    assert_eq!(PageToken(damaged.clone()).open(&list), None, "{damaged}");
                }
            }
        }
        for text in ["", ".", "ff.", &"a".repeat(10_240)] {
            assert_eq!(PageToken(text.to_owned()).open(&list), None);
        }
    }
}
