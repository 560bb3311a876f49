//! The right to one operation, once.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::OPERATION;
use super::tls::{Identity, is_signed};
use crate::driver::DomainId;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{MemberId, NodeId, PeerKey};
use crate::time::Timestamp;

/// How long a ticket is good; and by how much the clocks of two processes may differ.
const GOOD_FOR: Duration = Duration::from_secs(60);

/// How many used tickets are remembered. One more is refused until some have run out.
const MAX_USED: usize = 100_000;

/// What one process may ask another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ticket {
    /// Who asks.
    pub(super) by: MemberId,
    /// Who is asked.
    pub(super) to: MemberId,
    pub(super) node: NodeId,
    pub(super) domain: DomainId,
    /// What is asked, by its verb.
    pub(super) verb: String,
    /// The same, as the verb's own JSON.
    pub(super) question: String,
    /// How long the answer may take, ms.
    pub(super) timeout_ms: u64,
    pub(super) until: Timestamp,
    /// Tells it from every other one; it need not be a secret.
    pub(super) nonce: Uuid,
}

/// A ticket as it is handed over.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sealed {
    pub(super) ticket: String,
    pub(super) signature: Vec<u8>,
}

impl Ticket {
    /// Signs it, good from `now` on.
    pub(super) fn seal(mut self, identity: &Identity, now: Timestamp) -> Result<Sealed> {
        self.until = now.plus(GOOD_FOR);
        let ticket = serde_json::to_string(&self).map_err(|e| {
            let message = "what is asked cannot be written down";
            Error::new(ErrorKind::Internal, OPERATION, message).caused_by(e)
        })?;
        Ok(Sealed {
            signature: identity.sign(&ticket),
            ticket,
        })
    }
}

fn refused(why: impl Into<String>) -> Error {
    let message = format!("the ticket was refused: {}", why.into());
    Error::new(ErrorKind::PermissionDenied, OPERATION, message)
}

impl Sealed {
    /// The ticket, if the process that it names signed it, by the key that is known of that one. Whoever has not proved
    /// that is told one sentence, whatever was wrong.
    pub(super) fn open(&self, key_of: impl FnOnce(MemberId) -> Option<PeerKey>) -> Result<Ticket> {
        let proved = || {
            let ticket: Ticket = serde_json::from_str(&self.ticket).ok()?;
            let key = key_of(ticket.by)?;
            is_signed(key, &self.ticket, &self.signature).then_some(ticket)
        };
        // Who has joined a moment ago may not be known here yet.
        proved().ok_or_else(|| refused("it is of no living process known here").retryable(true))
    }
}

/// The tickets that were used, until they would have run out.
#[derive(Debug, Default)]
pub(super) struct Used(Mutex<BTreeMap<Uuid, Timestamp>>);

impl Used {
    /// Takes a ticket, if it was made for `me`, lately, and not taken before.
    pub(super) fn admit(&self, ticket: &Ticket, me: MemberId, now: Timestamp) -> Result<()> {
        if ticket.to != me {
            return Err(refused(format!("it is for member {}", ticket.to)));
        }
        let last = ticket.until.plus(GOOD_FOR);
        if now > last || ticket.until > now.plus(GOOD_FOR * 2) {
            let off = now.since(ticket.until).max(ticket.until.since(now));
            let off = off.as_secs();
            let message = format!("its end is {off} s away from now: do the two clocks agree?");
            return Err(refused(message));
        }
        let mut used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if used.len() >= MAX_USED {
            used.retain(|_, last| now <= *last);
        }
        if used.len() >= MAX_USED {
            let message = "more was asked in the last two minutes than can be told apart";
            let error = Error::new(ErrorKind::Exhausted, OPERATION, message);
            return Err(error.retryable(true));
        }
        if used.insert(ticket.nonce, last).is_some() {
            return Err(refused("it was used before"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{ClusterId, Epoch, VmId};

    const ME: MemberId = MemberId(2);
    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    fn ticket() -> Ticket {
        Ticket {
            by: MemberId(1),
            to: ME,
            node: NodeId::new("alpha").unwrap(),
            domain: DomainId {
                cluster: ClusterId::from_uuid(Uuid::from_u128(1)),
                vm: VmId::from_uuid(Uuid::from_u128(2)),
                epoch: Epoch(3),
            },
            verb: "vm.exec".to_owned(),
            question: "{\"argv\":[\"true\"]}".to_owned(),
            timeout_ms: 1000,
            until: Timestamp::from_millis(0),
            nonce: Uuid::nil(),
        }
    }

    fn sealed() -> (PeerKey, Sealed) {
        let identity = Identity::generate().unwrap();
        (identity.key(), ticket().seal(&identity, NOW).unwrap())
    }

    fn refusal<T: std::fmt::Debug>(result: Result<T>) -> String {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        error.message().to_owned()
    }

    #[test]
    fn a_ticket_is_good_once_for_one_and_for_a_while() {
        let ((key, sealed), used) = (sealed(), Used::default());
        let other = Identity::generate().unwrap().key();
        for known in [None, Some(other)] {
            assert!(refusal(sealed.open(|_| known)).contains("no living process"));
        }
        let taken = sealed
            .open(|by| (by == MemberId(1)).then_some(key))
            .unwrap();
        assert_eq!(taken.question, ticket().question);
        let wrong = used.admit(&taken, MemberId(7), NOW);
        assert!(refusal(wrong).contains("it is for member 2"));
        for off in [NOW.plus(GOOD_FOR * 3), Timestamp::from_millis(1)] {
            assert!(refusal(used.admit(&taken, ME, off)).contains("clocks"));
        }
        used.admit(&taken, ME, NOW).unwrap();
        let again = used.admit(&taken, ME, NOW.plus(GOOD_FOR));
        assert!(refusal(again).contains("used before"));
    }

    #[test]
    fn more_tickets_than_can_be_told_apart_are_for_later() {
        let used = Used::default();
        let now = |count: u128| {
            NOW.plus(if count == 0 {
                GOOD_FOR * 3
            } else {
                Duration::ZERO
            })
        };
        let many = MAX_USED as u128;
        for nonce in (1..=many + 1).chain([0]) {
            let ticket = Ticket {
                until: now(nonce),
                nonce: Uuid::from_u128(nonce),
                ..ticket()
            };
            let taken = used.admit(&ticket, ME, now(nonce));
            let kind = taken.map_err(|e| (e.kind(), e.is_retryable()));
            let full = (nonce == many + 1).then_some((ErrorKind::Exhausted, true));
            assert_eq!(kind.err(), full, "{nonce}");
        }
    }

    proptest! {
        #[test]
        fn a_changed_ticket_is_refused(at in any::<prop::sample::Index>(), with in any::<u8>(), signature: bool) {
            let (key, mut sealed) = sealed();
            let mut ticket = sealed.ticket.clone().into_bytes();
            let bytes = if signature { &mut sealed.signature } else { &mut ticket };
            let at = at.index(bytes.len());
            prop_assume!(bytes[at] != with);
            bytes[at] = with;
            prop_assume!(String::from_utf8(ticket.clone()).is_ok());
            sealed.ticket = String::from_utf8(ticket).unwrap();
            prop_assert!(sealed.open(|_| Some(key)).is_err());
        }
    }
}
