//! The rules of leases, alike in every store: pure, with the time as an argument.
//!
//! ```text
//!            acquire                       acquire by the holder, renew
//!   free ───────────────► held(token+1) ◄──────────────────────────────┐
//!    ▲                        │  └──────────────────────────────────────┘
//!    └── release, or expiry ──┘
//! ```
//! Every grant that is not a renewal gets a larger token, also one to the same holder: what the holder started before
//! its lease ran out stays fenced off. A row is never removed, so its token never falls.

use std::time::Duration;

use super::{Lease, LeaseAnswer};
use crate::error::{Error, ErrorKind, Result};
use crate::time::Timestamp;

/// What a store keeps of a lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LeaseRow {
    /// Who holds it; nobody after a release.
    pub(super) holder: Option<String>,
    /// The token of the latest grant; zero before the first.
    pub(super) token: u64,
    /// When it runs out. At this very time it has.
    pub(super) expires: Timestamp,
}

impl LeaseRow {
    fn holder_at(&self, now: Timestamp) -> Option<&str> {
        self.holder.as_deref().filter(|_| now < self.expires)
    }

    /// Whether it is held under `token` at `now`.
    pub(super) fn holds(&self, token: u64, now: Timestamp) -> bool {
        self.token == token && self.holder_at(now).is_some()
    }

    /// Grants it to `holder`, or says who has it.
    pub(super) fn acquire(
        &mut self,
        name: &str,
        holder: &str,
        ttl: Duration,
        now: Timestamp,
    ) -> LeaseAnswer {
        match self.holder_at(now) {
            Some(present) if present != holder => {
                return LeaseAnswer::HeldBy {
                    holder: present.to_owned(),
                    remaining: self.expires.since(now),
                };
            }
            Some(_) => {}
            None => {
                self.token += 1;
                self.holder = Some(holder.to_owned());
            }
        }
        self.expires = now.plus(ttl);
        LeaseAnswer::Granted(Lease {
            name: name.to_owned(),
            holder: holder.to_owned(),
            token: self.token,
            ttl,
        })
    }

    /// Extends it from `now`.
    pub(super) fn renew(&mut self, lease: &Lease, now: Timestamp) -> Result<()> {
        match self.holder_at(now) {
            Some(present) if present == lease.holder && self.token == lease.token => {
                self.expires = now.plus(lease.ttl);
                Ok(())
            }
            present => Err(lost(lease, present.map(|holder| (holder, self.token)))),
        }
    }

    /// Frees it, if `lease` is what is held.
    pub(super) fn release(&mut self, lease: &Lease) {
        if self.token == lease.token && self.holder.as_deref() == Some(&lease.holder) {
            self.holder = None;
        }
    }
}

/// The error of a renewal that comes too late; `present` is who holds the lease, and under which token.
pub(super) fn lost(lease: &Lease, present: Option<(&str, u64)>) -> Error {
    let why = match present {
        Some((holder, token)) if token != lease.token => format!("{holder} holds it"),
        _ => "it expired or was released".to_owned(),
    };
    // Not retryable: the holder has to stop and ask for a new lease.
    Error::new(ErrorKind::Conflict, "store.lease_renew", why)
        .with("lease", &lease.name)
        .with("token", lease.token)
        .retryable(false)
}
