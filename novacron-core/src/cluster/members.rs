//! Members: the processes of the cluster. They belong to no project.

use super::Cluster;
use super::page::{ListRequest, Page};
use crate::error::Result;
use crate::model::{Member, MemberId, Versioned};

/// The cluster's processes, those that left or were lost a while ago not among them any more.
#[derive(Clone, Debug)]
pub struct Members(pub(super) Cluster);

impl Members {
    /// One page of the processes, oldest first.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) for a limit or a token that cannot be; those of the store.
    pub async fn list(&self, request: &ListRequest) -> Result<Page<Versioned<Member>>> {
        const VERB: &str = "member.list";
        let inner = &self.0.inner;
        inner.authorize(self.0.options(), VERB)?;
        let walk = request.walk_unlabelled(VERB, "")?;
        inner
            .read(|cache| walk.page(cache, &cache.members, |_| true, Clone::clone))
            .await?
    }

    /// Whether this process leads at this moment.
    pub fn leads(&self) -> bool {
        self.0.inner.standing.borrow().leads().is_some()
    }

    /// This process.
    pub fn me(&self) -> MemberId {
        self.0.inner.member
    }
}
