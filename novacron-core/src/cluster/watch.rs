//! Watching the cluster: every change of an object, resumable.

use futures::StreamExt;
use futures::stream::BoxStream;

use super::Cluster;
use crate::error::Result;
use crate::store::{Key, Revision, WatchEvent};

/// A change of the cluster's records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectChange {
    /// These records changed in one commit. Read the objects that matter through their handles.
    Changed {
        /// Resume after this.
        token: Revision,
        /// The records' keys, as `vm/<id>` or `run/<node>/<vm>`.
        keys: Vec<Key>,
    },
    /// Nothing up to here is missing: resume after this.
    Bookmark(Revision),
}

impl Cluster {
    /// The changes of the whole cluster, of every project, after `resume`, or from now on. Each commit is told at least
    /// once, its records' keys together; the objects are read through their handles.
    ///
    /// ```
    /// use futures::StreamExt;
    /// use novacron_core::cluster::{ListRequest, ObjectChange};
    /// use novacron_core::{Cluster, ErrorKind, Result};
    ///
    /// /// Keeps a picture of the VMs. The token may be kept too: it is as good after a restart.
    /// async fn follow(cluster: &Cluster) -> Result<()> {
    ///     loop {
    ///         let page = cluster.vms().list(&ListRequest::new()).await?;
    ///         println!("{} VMs on the first page", page.items.len());
    ///         // Nothing that happens after the list was made is missed.
    ///         let mut token = page.revision;
    ///         let mut changes = cluster.watch(Some(token)).await?;
    ///         while let Some(change) = changes.next().await {
    ///             match change {
    ///                 Ok(ObjectChange::Changed { token: at, keys }) => {
    ///                     println!("{keys:?} changed");
    ///                     token = at;
    ///                 }
    ///                 Ok(ObjectChange::Bookmark(at)) => token = at,
    ///                 Err(error) if error.kind() == ErrorKind::Compacted => break,
    ///                 Err(error) => return Err(error),
    ///             }
    ///         }
    ///         println!("listing again after {token}");
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Compacted`](crate::ErrorKind::Compacted), also in the stream, when the token is too old: list again
    /// and watch from there. Those of the store.
    pub async fn watch(
        &self,
        resume: Option<Revision>,
    ) -> Result<BoxStream<'static, Result<ObjectChange>>> {
        /// What users see of the records; a word without a slash is a kind and its status.
        const KINDS: [&str; 13] = [
            "vm/",
            "run/",
            "claim/",
            "volume",
            "image",
            "snapshot",
            "network/",
            "port",
            "node",
            "pool",
            "action",
            "operation/",
            "event/",
        ];
        self.inner.authorize(self.options(), "cluster.watch")?;
        let after = match resume {
            Some(after) => after,
            None => self.inner.store.revision().await?,
        };
        let stream = self
            .inner
            .store
            .watch(KINDS.iter().map(|k| (*k).to_owned()).collect(), after)
            .await?;
        Ok(stream
            .map(|event| {
                event.map(|event| match event {
                    WatchEvent::Bookmark(token) => ObjectChange::Bookmark(token),
                    WatchEvent::Commit { revision, changes } => ObjectChange::Changed {
                        token: revision,
                        keys: changes.iter().map(|c| c.key.clone()).collect(),
                    },
                })
            })
            .boxed())
    }
}
