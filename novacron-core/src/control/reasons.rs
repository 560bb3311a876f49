//! Why an object does not get on, as far as no other record says so: what the scheduler answered, and what the last command
//! failed with.
//!
//! Both are known in the process that looks after the object, and change with every try. Where several processes share a
//! store, each tells the others a little later, in records that nothing is decided from: `reason/<object>/<member>`. What
//! a process says that is not alive counts for nothing, and the leader removes it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::cache::Cache;
use super::part::{self, Part};
use super::plan::{Draft, ObjectKey, Plan};
use crate::error::Result;
use crate::model::{Member, MemberId, VmId};
use crate::records::Reason;
use crate::store::Precondition;
use crate::time::Timestamp;

/// How long after a process learned something the others are told.
pub(crate) const DELAY: Duration = Duration::from_secs(2);
/// How often what was told is looked at again.
const AGAIN: Duration = Duration::from_secs(30);
/// Reasons in one commit: one begins where the one before ended.
const AT_ONCE: usize = 90;
/// The longest reason that is told, bytes.
const LONGEST: usize = 2000;

/// Tells what this process knows, takes back what is not true any more.
pub(crate) fn reconcile(me: MemberId, leads: bool, cache: &Cache, now: Timestamp) -> Result<Plan> {
    if !cache.members.get(&me).is_some_and(|m| m.is_alive()) {
        return Ok(Plan::nothing());
    }
    let mut mine: BTreeMap<String, String> = BTreeMap::new();
    for (key, why) in &cache.trouble {
        let kept = match part::part_of(key, cache) {
            None => false,
            Some(Part::Leader) => leads,
            Some(part) => part::owner(&part, cache) == Some(me),
        };
        if kept {
            mine.insert(key.to_string(), short(why));
        }
    }
    for (vm, rejected) in cache.no_place.iter().filter(|_| leads) {
        mine.insert(ObjectKey::Vm(*vm).to_string(), short(&rejected.to_string()));
    }
    let mut draft = Draft::new();
    for (id, told) in &cache.reasons {
        let (object, by) = id;
        let gone = if *by == me {
            !mine.contains_key(object)
        } else {
            leads && !cache.members.get(by).is_some_and(|m| m.is_alive())
        };
        if gone && draft.ops.len() < AT_ONCE {
            draft = draft
                .unchanged::<Reason>(id, Some(told.version))
                .delete::<Reason>(id);
        }
    }
    for (object, text) in mine {
        let id = (object, me);
        let told = cache.reasons.get(&id);
        if told.is_none_or(|t| t.text != text) && draft.ops.len() < AT_ONCE {
            let version = told.map(|t| t.version);
            draft = draft
                .unchanged::<Reason>(&id, version)
                .put(&id, &Reason { text })?;
        }
    }
    if draft.ops.is_empty() {
        // What is said for an object that is gone is taken back without anything telling so.
        let said = cache.reasons.keys().any(|(_, by)| *by == me || leads);
        return Ok(if said {
            Plan::wake_in(now, AGAIN)
        } else {
            Plan::nothing()
        });
    }
    draft.requires.push(Precondition::Present(
        <Member as crate::records::Stored>::key(&me),
    ));
    Ok(Plan {
        // There may be more, and it may be another one by then.
        wake: Some(now.plus(DELAY)),
        ..Plan::commit(draft)
    })
}

fn short(why: &str) -> String {
    let mut end = why.len().min(LONGEST);
    while !why.is_char_boundary(end) {
        end -= 1;
    }
    why[..end].to_owned()
}

impl Cache {
    /// What the object's last command failed with, here or in the process that looks after it.
    pub(crate) fn why(&self, object: &ObjectKey) -> Option<&str> {
        let here = self.trouble.get(object).map(String::as_str);
        here.or_else(|| self.told(object))
    }

    /// What the scheduler says to a VM that waits for a place, here or in the process that leads.
    pub(crate) fn why_no_place(&self, vm: VmId) -> Option<String> {
        let here = self.no_place.get(&vm).map(ToString::to_string);
        here.or_else(|| self.told(&ObjectKey::Vm(vm)).map(str::to_owned))
    }

    fn told(&self, object: &ObjectKey) -> Option<&str> {
        if self.reasons.is_empty() {
            return None;
        }
        let object = object.to_string();
        self.reasons
            .range((object.clone(), MemberId(0))..)
            .take_while(|((of, _), _)| *of == object)
            .find(|((_, by), _)| self.members.get(by).is_some_and(|m| m.is_alive()))
            .map(|(_, reason)| reason.value.text.as_str())
    }
}
