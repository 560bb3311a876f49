//! Pools: the storage, as it was given to the builder. They belong to no project.

use super::Cluster;
use super::page::{ListRequest, Page};
use crate::control::cache::Cache;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Pool, PoolId, PoolStatus, Versioned};

/// The cluster's pools.
#[derive(Clone, Debug)]
pub struct Pools(pub(super) Cluster);

/// A pool as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolView {
    /// What should be.
    pub pool: Versioned<Pool>,
    /// What is; none before it was first looked at.
    pub status: Option<PoolStatus>,
}

fn view(pool: &Versioned<Pool>, cache: &Cache) -> PoolView {
    let status = cache.pool_status.get(&pool.id);
    PoolView {
        pool: pool.clone(),
        status: status.map(|s| s.value.clone()),
    }
}

impl Pools {
    /// One page of the pools, by name.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a limit or a token that cannot be; those of the store.
    pub async fn list(&self, request: &ListRequest) -> Result<Page<PoolView>> {
        const VERB: &str = "pool.list";
        let inner = &self.0.inner;
        inner.authorize(self.0.options(), VERB)?;
        let walk = request.walk_unlabelled(VERB, "")?;
        inner
            .read(|cache| walk.page(cache, &cache.pools, |_| true, |pool| view(pool, cache)))
            .await?
    }

    /// A pool as it is now.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub async fn get(&self, id: &PoolId) -> Result<PoolView> {
        const VERB: &str = "pool.get";
        let inner = &self.0.inner;
        inner.authorize(self.0.options(), VERB)?;
        let found = inner
            .read(|cache| cache.pools.get(id).map(|pool| view(pool, cache)))
            .await?;
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, VERB, format!("there is no pool {id}")))
    }
}
