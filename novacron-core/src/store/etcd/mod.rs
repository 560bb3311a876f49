//! The store for several processes that have an etcd already.
//!
//! ```text
//!   commit, leases, outcome ──► one etcd transaction each ──► etcd
//!   get, list, beats        ──► linearizable ranges ─────────► (a majority)
//!   watch ◄── recent commits in memory ◄── feed ◄── one watch ──┘
//!                    └─ too far back: a watch of one's own
//! ```
//! | file | holds |
//! |---|---|
//! | `options`, `keys`, `wire` | where etcd is; the keys that are used; etcd's messages |
//! | `client`, `failure` | calls with deadline, retry and token; what a failed one means |
//! | `commit`, `reads`, `leases` | each method as requests of etcd |
//! | `feed` | from the events of etcd to whole commits |
//!
//! **Revisions** are etcd's own: the one of the commit, as the key `rev` keeps it. They have gaps, because leases, beats
//! and other users of the etcd count too. **A commit is one transaction**: its preconditions and "this transaction id is
//! new" are compared, so it may be sent again whenever its answer is lost, and is applied once. If no answer can be had
//! in time it is [`ErrorKind::OutcomeUnknown`]; and a conflict, after an answer was lost, is told only when the lost
//! attempt was ruled out. **Leases** are etcd's, which counts whole seconds (rounded up) and has a smallest time to
//! live, about two seconds. Its clock starts anew when its leader changes, so a lease may last longer than asked for,
//! never shorter. **Compaction** is for the whole etcd, every user of it; whoever else compacts it, as etcd itself
//! does when told to, does no harm: readers that fell behind get [`ErrorKind::Compacted`].

mod client;
mod commit;
mod failure;
mod feed;
mod keys;
mod leases;
mod options;
mod reads;
mod wire;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use self::client::Client;
use self::commit::Outcomes;
use self::feed::Feed;
use self::keys::Keys;
pub use self::options::{EtcdOptions, EtcdTls, EtcdUser};
use super::watch;
use super::{
    Commit, Key, Lease, LeaseAnswer, ListOptions, Page, Record, Revision, Store, TxnId, TxnOutcome,
    WatchStream, check,
};
use crate::error::{ErrorKind, Result};

/// The store on etcd, version 3.4 or newer. Clones share it.
///
/// Dropping the last clone ends its watches; nothing has to be closed.
///
/// ```no_run
/// use novacron_core::Result;
/// use novacron_core::store::{EtcdOptions, EtcdStore, EtcdUser};
///
/// # async fn open(password: secrecy::SecretString) -> Result<EtcdStore> {
/// let mut options = EtcdOptions::new(["http://10.0.0.1:2379", "http://10.0.0.2:2379"]);
/// options.user = Some(EtcdUser { name: "panel".to_owned(), password });
/// EtcdStore::connect(options).await
/// # }
/// ```
#[derive(Clone)]
pub struct EtcdStore(Arc<Inner>);

struct Inner {
    client: Arc<Client>,
    keys: Keys,
    outcomes: Outcomes,
    feed: Feed,
}

impl fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EtcdStore").field(&self.0.client).finish()
    }
}

impl EtcdStore {
    /// Connects, and reads the present revision: so endpoints, certificates, user and role are known to do.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for options that cannot work, [`ErrorKind::PermissionDenied`] for a user, role or
    /// certificate that is refused, [`ErrorKind::Unavailable`] when no member answers in time.
    pub async fn connect(options: EtcdOptions) -> Result<Self> {
        options.check()?;
        let client = Arc::new(Client::new(&options)?);
        let keys = Keys::new(&options.prefix);
        let feed = Feed::start(Arc::clone(&client), keys.clone(), options.watch_bytes);
        let anonymous = options
            .tls
            .as_ref()
            .is_some_and(|tls| tls.identity.is_none());
        let feed = feed.await.map_err(|error| {
            // etcd cuts the connection then, and says no word.
            if anonymous && error.kind() == ErrorKind::Unavailable {
                error.with(
                    "perhaps",
                    "etcd asks for a client certificate (`tls.identity`)",
                )
            } else {
                error
            }
        })?;
        Ok(Self(Arc::new(Inner {
            client,
            keys,
            outcomes: Outcomes::default(),
            feed,
        })))
    }
}

#[async_trait]
impl Store for EtcdStore {
    fn exclusive(&self) -> bool {
        false
    }

    async fn revision(&self) -> Result<Revision> {
        let inner = &self.0;
        let tip = reads::tip(
            &inner.client,
            &inner.keys,
            "store.revision",
            inner.client.deadline(),
        );
        Ok(tip.await?.0)
    }

    async fn get(&self, key: &Key) -> Result<Option<Record>> {
        reads::get(&self.0.client, &self.0.keys, key).await
    }

    async fn list(&self, prefix: &str, options: ListOptions) -> Result<Page> {
        reads::list(&self.0.client, &self.0.keys, prefix, &options).await
    }

    async fn commit(&self, commit: Commit) -> Result<Revision> {
        commit.check()?;
        let inner = &self.0;
        commit::commit(&inner.client, &inner.keys, &inner.outcomes, &commit).await
    }

    async fn outcome(&self, txn: TxnId) -> Result<TxnOutcome> {
        let inner = &self.0;
        let deadline = inner.client.deadline();
        commit::outcome(&inner.client, &inner.keys, &inner.outcomes, txn, deadline).await
    }

    async fn watch(&self, prefixes: Vec<String>, after: Revision) -> Result<WatchStream> {
        let inner = &self.0;
        let tip = reads::tip(
            &inner.client,
            &inner.keys,
            "store.watch",
            inner.client.deadline(),
        );
        let tip = tip.await?.0;
        if after > tip {
            return Err(check::compacted("store.watch", after, None, tip));
        }
        let backlog = inner.feed.backlog();
        Ok(watch::stream(
            inner.feed.log(),
            Some(backlog),
            prefixes,
            after,
        ))
    }

    async fn compact(&self, before: Revision) -> Result<()> {
        let inner = &self.0;
        if let Some(floor) = reads::compact(&inner.client, &inner.keys, before).await? {
            inner.feed.log().trim(floor);
        }
        Ok(())
    }

    async fn lease_acquire(&self, name: &str, holder: &str, ttl: Duration) -> Result<LeaseAnswer> {
        leases::acquire(&self.0.client, &self.0.keys, name, holder, ttl).await
    }

    async fn lease_renew(&self, lease: &Lease) -> Result<()> {
        leases::renew(&self.0.client, &self.0.keys, lease).await
    }

    async fn lease_release(&self, lease: &Lease) -> Result<()> {
        leases::release(&self.0.client, &self.0.keys, lease).await
    }

    async fn put_beat(&self, key: &Key, value: Option<Bytes>) -> Result<()> {
        check::beat(key, value.as_deref())?;
        reads::put_beat(&self.0.client, &self.0.keys, key, value).await
    }

    async fn beats(&self, prefix: &str) -> Result<Vec<(Key, Bytes)>> {
        reads::beats(&self.0.client, &self.0.keys, prefix).await
    }
}
