//! The runtime's intake of the store: everything as of one revision, then every change after it.
//!
//! A watch that ends, or fell too far behind, is no error: everything is read again. Whatever a change touches is looked
//! at ([`Cache::apply`] says what that is).

use std::sync::Arc;
use std::time::Duration;

use super::cache::{Cache, PREFIXES};
use super::index::Index;
use super::plan::ObjectKey;
use super::runtime::{Runtime, wait};
use crate::error::Result;
use crate::store::paging::{FIRST_PAGE, next_page};
use crate::store::{Change, ListOptions, Revision, WatchEvent};

impl Runtime {
    /// Reads everything as of one revision and watches from there.
    pub(super) async fn refill(&mut self) -> Result<()> {
        let store = &self.parts.store;
        let mut cache = Cache::default();
        cache.index = Index::new(self.parts.limits);
        let mut wake = Vec::new();
        // Who was lost may have been back, and be lost again.
        self.lost.clear();
        let mut at = None;
        for prefix in PREFIXES {
            let (mut after, mut limit) = (None, FIRST_PAGE);
            loop {
                let page = store.list(prefix, ListOptions { after, limit, at }).await?;
                at = Some(page.revision);
                let bytes = page.records.iter().map(|r| r.value.len()).sum();
                limit = next_page(page.records.len(), bytes);
                for record in &page.records {
                    let change = Change {
                        key: record.key.clone(),
                        value: Some(record.value.clone()),
                    };
                    if let Err(error) = cache.apply(&change, record.version, &mut wake) {
                        tracing::error!(%error, "a record is left out");
                    }
                }
                after = page.records.last().map(|r| r.key.clone());
                if !page.more {
                    break;
                }
            }
        }
        let revision = at.unwrap_or_default();
        cache.revision = revision;
        self.changes = Some(
            store
                .watch(PREFIXES.iter().map(|p| (*p).to_owned()).collect(), revision)
                .await?,
        );
        self.placing.all_changed(&cache);
        for key in &wake {
            self.own(key, &cache);
        }
        *self
            .parts
            .cache
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = cache;
        for key in wake {
            self.queue.push(key);
        }
        self.placing.reconsider();
        self.parts.progress.send_replace(revision);
        self.parts.waiters.wake_all();
        self.settle(revision);
        Ok(())
    }

    pub(super) async fn take_change(&mut self, change: Option<Result<WatchEvent>>) {
        match change {
            Some(Ok(WatchEvent::Commit { revision, changes })) => self.apply(revision, &changes),
            Some(Ok(WatchEvent::Bookmark(revision))) => {
                // Also over commits that touch nothing cached, so that the cache's revision is never one that the store
                // has forgotten.
                let cache = &self.parts.cache;
                let mut cache = cache
                    .write()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                cache.revision = cache.revision.max(revision);
                drop(cache);
                self.parts
                    .progress
                    .send_if_modified(|r| std::mem::replace(r, revision.max(*r)) < revision);
                self.settle(revision);
            }
            ended => {
                if let Some(Err(error)) = ended {
                    tracing::warn!(%error, "the watch ended; the records are read again");
                }
                self.changes = None;
                let mut wait_for = Duration::from_millis(100);
                while let Err(error) = self.refill().await {
                    tracing::warn!(%error, "the records cannot be read");
                    wait(Some(wait_for)).await;
                    wait_for = (wait_for * 2).min(Duration::from_secs(10));
                }
            }
        }
    }

    pub(super) fn apply(&mut self, revision: Revision, changes: &[Change]) {
        let mut wake = Vec::new();
        {
            let mut cache = self
                .parts
                .cache
                .write()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            for change in changes {
                if let Err(error) = cache.apply(change, revision, &mut wake) {
                    tracing::error!(%error, "a record is left out");
                }
            }
            cache.revision = cache.revision.max(revision);
        }
        self.parts.waiters.wake(&wake);
        {
            let cache = Arc::clone(&self.parts.cache);
            let cache = cache
                .read()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            for key in &wake {
                self.own(key, &cache);
            }
        }
        for key in wake {
            match &key {
                ObjectKey::Node(node) => self.placing.changed([node.clone()]),
                ObjectKey::Run(node, _) => {
                    self.placing.changed([node.clone()]);
                    if let Some(seen) = self.world.nodes.get_mut(node) {
                        seen.active = true;
                    }
                }
                // Another scope, other nodes that reach it.
                ObjectKey::Pool(_) => self.placing.reconsider(),
                _ => {}
            }
            self.queue.push(key);
        }
        self.parts.progress.send_replace(revision);
        self.settle(revision);
    }

    /// Frees the objects whose commits the cache has.
    pub(super) fn settle(&mut self, revision: Revision) {
        while self.settling.first().is_some_and(|(at, _)| *at <= revision) {
            if let Some((_, key)) = self.settling.pop_first() {
                if let ObjectKey::Vm(vm) = key {
                    self.placing.give_back(vm);
                }
                self.queue.release(&key);
            }
        }
    }
}
