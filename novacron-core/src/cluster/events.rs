//! What happened, and who asked for what: read from the store, oldest first, as long as it is kept
//! ([`Retention`](super::Retention)).

use super::Cluster;
use super::page::{ListRequest, Page, Walk};
use crate::error::Result;
use crate::model::{Audit, Event, EventId, ObjectRef};
use crate::records::{self, Stored};
use crate::store::{Key, ListOptions};

/// Records read for one page at most: a page of a rare object's events is short rather than slow.
const SCAN: usize = 10_000;
/// Records read from the store at a time.
const CHUNK: usize = 1000;

impl Cluster {
    /// One page of the events of the project's objects, and of nodes and pools, which serve every project.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) for a limit or a token that cannot be; those of the store.
    pub async fn events(&self, request: &ListRequest) -> Result<Page<Event>> {
        self.inner.authorize(self.options(), "event.list")?;
        let project = &self.options().project;
        let walk = request.walk_unlabelled("event.list", project.as_str())?;
        let ours = |event: &Event| event.project.as_ref().is_none_or(|p| p == project);
        self.scan(&walk, ours).await
    }

    /// One page of the events of one object, also after it is gone.
    ///
    /// # Errors
    /// As [`Cluster::events`].
    pub async fn events_of(
        &self,
        object: &ObjectRef,
        request: &ListRequest,
    ) -> Result<Page<Event>> {
        self.inner.authorize(self.options(), "event.list")?;
        let project = &self.options().project;
        let walk = request.walk_unlabelled("event.list", &format!("{project} {object}"))?;
        let ours = |event: &Event| {
            event.object == *object && event.project.as_ref().is_none_or(|p| p == project)
        };
        self.scan(&walk, ours).await
    }

    /// One page of the audit: the changes that were let in for the project. What was refused or only tried (a dry run)
    /// left no trace.
    ///
    /// # Errors
    /// As [`Cluster::events`].
    pub async fn audit(&self, request: &ListRequest) -> Result<Page<Audit>> {
        self.inner.authorize(self.options(), "audit.list")?;
        let project = &self.options().project;
        let walk = request.walk_unlabelled("audit.list", project.as_str())?;
        self.scan(&walk, |audit: &Audit| audit.project == *project)
            .await
    }

    async fn scan<T: Stored<Id = EventId>>(
        &self,
        walk: &Walk,
        wanted: impl Fn(&T) -> bool,
    ) -> Result<Page<T>> {
        let kind = T::key(&EventId::from_uuid(uuid::Uuid::nil()));
        let prefix = format!("{}/", kind.kind());
        let mut after = match &walk.after {
            Some(id) => Some(T::key(&id.parse()?)),
            None => None,
        };
        let (mut items, mut seen, mut first) = (Vec::new(), 0, None);
        let more = 'pages: loop {
            let options = ListOptions {
                after: after.clone(),
                limit: CHUNK,
                at: None,
            };
            let page = self.inner.store.list(&prefix, options).await?;
            first.get_or_insert(page.revision);
            seen += page.records.len();
            for record in page.records {
                if items.len() == walk.limit {
                    break 'pages true;
                }
                // One that is damaged hurts no other.
                match records::from_record::<T>(&record) {
                    Ok(item) if wanted(&item) => items.push(item),
                    Ok(_) => {}
                    Err(error) => tracing::error!(%error, "a record is left out"),
                }
                after = Some(record.key);
            }
            if !page.more {
                break false;
            }
            if seen >= SCAN || items.len() == walk.limit {
                break true;
            }
        };
        let last = after.as_ref().filter(|_| more);
        let last = last.and_then(|key: &Key| key.path().last());
        Ok(Page {
            items,
            next: last.map(|id| walk.token(id)),
            revision: first.unwrap_or_default(),
        })
    }
}
