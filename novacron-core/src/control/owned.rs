//! What this process may do by now, and what it looks after: taken in before the objects concerned are looked at.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};

use tokio::time::Instant;

use super::cache::Cache;
use super::part::{self, Part};
use super::plan::ObjectKey;
use super::runtime::Runtime;
use crate::model::{MemberState, NodeId, PoolId};

#[derive(Clone, Debug, Default)]
pub(crate) struct Owned {
    pub(super) nodes: BTreeSet<NodeId>,
    pub(super) pools: BTreeSet<PoolId>,
}

impl Runtime {
    /// What this process may do has changed: what it may do from now on is looked at.
    pub(super) fn stand(&mut self) {
        let standing = self.parts.standing.borrow_and_update();
        let now = (standing.leads().is_some(), standing.is_alive());
        drop(standing);
        let before = std::mem::replace(&mut self.stood, now);
        if before == now {
            return;
        }
        let cache = Arc::clone(&self.parts.cache);
        let mut cache = cache.write().unwrap_or_else(PoisonError::into_inner);
        let mut wake = Vec::new();
        if now.0 && !before.0 {
            tracing::info!(member = %self.parts.member, "this process leads");
            self.placing.all_changed(&cache);
            self.placing.reconsider();
            cache.wake_leader(&mut wake);
            wake.push(ObjectKey::Reasons);
        }
        if before.0 && !now.0 {
            // Whoever leads now may find a place.
            cache.no_place.clear();
        }
        if now.1 && !before.1 {
            wake.push(ObjectKey::Member(self.parts.member));
            for node in self.parts.drivers.nodes.keys() {
                cache.wake_node(node, &mut wake);
            }
            for pool in self.parts.drivers.pools.keys() {
                cache.wake_pool(pool, &mut wake);
            }
        }
        for key in wake {
            self.queue.push(key);
        }
    }

    /// Takes in who looks after a node or a pool by now. A new owner knows nothing yet.
    pub(super) fn own(&mut self, key: &ObjectKey, cache: &Cache) {
        let me = Some(self.parts.member);
        match key {
            ObjectKey::Node(node) if self.parts.drivers.nodes.contains_key(node) => {
                let mine = part::owner(&Part::Node(node.clone()), cache) == me;
                if mine && self.owned.nodes.insert(node.clone()) {
                    self.forget(node);
                    self.world.nodes.entry(node.clone()).or_default().stale = true;
                    self.listen(node.clone());
                } else if !mine && self.owned.nodes.remove(node) {
                    self.forget(node);
                }
            }
            ObjectKey::Pool(pool) if self.parts.drivers.pools.contains_key(pool) => {
                let mine = part::owner(&Part::Pool(pool.clone()), cache) == me;
                if mine && self.owned.pools.insert(pool.clone()) {
                    self.world.pools.remove(pool);
                } else if !mine {
                    self.owned.pools.remove(pool);
                }
            }
            // Who leads may be leaving.
            ObjectKey::Member(id) => {
                let member = cache.members.get(id);
                if *id == self.parts.member {
                    let off = member.and_then(|m| m.clock_off_secs);
                    self.parts.clock.is_off_by(off);
                }
                let state = member.map(|m| m.state);
                if matches!(state, Some(MemberState::Lost { .. })) {
                    self.lost.entry(*id).or_insert_with(Instant::now);
                } else {
                    self.lost.remove(id);
                }
                self.parts.nudge.notify_one();
                self.tell_soon();
            }
            _ => {}
        }
    }

    /// Forgets what was seen on the node.
    fn forget(&mut self, node: &NodeId) {
        self.world.nodes.remove(node);
        self.world.runs.retain(|(n, _), _| n != node);
    }
}
