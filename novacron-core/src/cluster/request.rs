//! The one door: every change by a user goes through [`Inner::admit`].
//!
//! ```text
//!   authorize ─► recall ─► draft ───────────────────────► commit
//!                  │         reads, checks, decides;        the change, its operation, its audit record and the
//!                  │         every problem at once          remembered answer, all of it or nothing
//!                  └─ the same request under the same key: the first one's answer, and nothing changes
//! ```
//! A dry run goes the whole way up to the commit, asks the store whether its preconditions hold, and writes nothing.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Cluster, Inner, OperationHandle, upgrade};
use crate::control::commit::{commit_known, finish};
use crate::control::plan::Draft;
use crate::error::{Error, ErrorKind, Problem, Result};
use crate::model::{
    Audit, EventId, Name, ObjectRef, Operation, OperationId, OperationKind, OperationState,
};
use crate::records::{self, decode, encode};
use crate::store::{Commit, Key, Op, Precondition, Revision};

/// Who asks, and how a change is to be made; set with [`Cluster::with`](super::Cluster::with).
///
/// | | create | change, delete | into the guest (`exec`, `console`) | read |
/// |---|---|---|---|---|
/// | `principal`, `project` | ✓ | ✓ | ✓ | ✓ |
/// | `timeout` | ✓ | ✓ | its own `Call` | |
/// | `idempotency_key` | ✓ | ✓ | refused | nothing to repeat |
/// | `expected_version` | refused | ✓ | refused | the view carries its version |
/// | `dry_run` | ✓ | ✓ | refused | writes nothing anyway |
///
/// "Refused" is [`ErrorKind::Invalid`]: an option that cannot be honoured is never dropped in silence. A handle that a
/// `create` returns goes on without the idempotency key, which belonged to that one request.
///
/// ```
/// use novacron_core::{Cluster, Deadline, RequestOptions, Result};
/// use std::time::Duration;
///
/// # async fn example(cluster: &Cluster) -> Result<()> {
/// // A retry of this request, also by another process after a crash, starts the VM once.
/// let options = RequestOptions {
///     principal: "alice@example.org".to_owned(),
///     idempotency_key: Some("start-web-1:2024-05-01".to_owned()),
///     ..RequestOptions::default()
/// };
/// let vm = cluster.with(options).vms().by_name("web-1").await?;
/// vm.start().await?.wait(Deadline::after(Duration::from_secs(60))).await?;
///
/// // Changes nothing if somebody was faster.
/// let seen = vm.get().await?;
/// let unless_changed = RequestOptions { expected_version: Some(seen.vm.version), ..RequestOptions::default() };
/// cluster.with(unless_changed).vms().by_id(vm.id()).stop().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestOptions {
    /// Who asks: the authorizer's subject, and the audit's. 1 to 128 of `[a-zA-Z0-9._:@-]`; `host` by default.
    pub principal: String,
    /// The project that names and ids are looked up in and new objects belong to; `default` by default. An object of
    /// another project is [`ErrorKind::NotFound`].
    pub project: Name,
    /// How long the change may take; its operation fails then, and what is wanted stays wanted. More than zero; ten
    /// minutes by default.
    pub timeout: Duration,
    /// A second request with the same key (per principal) gets the first one's answer and changes nothing; another
    /// request under that key is [`ErrorKind::Invalid`]. Remembered for a day, unless
    /// [`Retention`](super::Retention) says otherwise. 1 to 128 of `[a-zA-Z0-9._:@-]`.
    pub idempotency_key: Option<String>,
    /// The version that the object must have; another one is a [`ErrorKind::Conflict`].
    pub expected_version: Option<Revision>,
    /// Check everything, write nothing. The operation that is returned does not exist.
    pub dry_run: bool,
}

impl Default for RequestOptions {
    fn default() -> Self {
        Self {
            principal: "host".to_owned(),
            project: default_project(),
            timeout: Duration::from_secs(600),
            idempotency_key: None,
            expected_version: None,
            dry_run: false,
        }
    }
}

#[expect(clippy::expect_used, reason = "a literal that is a name")]
fn default_project() -> Name {
    Name::new("default").expect("a name")
}

/// The verbs of every change that the door lets in: what an [`Authorizer`](crate::driver::Authorizer) is asked beside
/// those of reading (`vm.get`, `vm.list`, …) and of reaching into a guest, and what an
/// [`Audit`](crate::model::Audit) record says.
pub const CHANGES: [&str; 43] = [
    "image.create",
    "image.delete",
    "image.set-annotations",
    "image.set-labels",
    "network.create",
    "network.delete",
    "network.set-annotations",
    "network.set-labels",
    "node.evacuate",
    "node.remove",
    "node.set-schedulable",
    "operation.cancel",
    "snapshot.create",
    "snapshot.delete",
    "snapshot.set-annotations",
    "snapshot.set-labels",
    "vm.attach",
    "vm.attach-nic",
    "vm.confirm-stopped",
    "vm.create",
    "vm.delete",
    "vm.detach",
    "vm.detach-nic",
    "vm.kill",
    "vm.move",
    "vm.pause",
    "vm.rebuild",
    "vm.rescue",
    "vm.reset",
    "vm.restore",
    "vm.set-annotations",
    "vm.set-disk",
    "vm.set-labels",
    "vm.set-nic",
    "vm.start",
    "vm.stop",
    "vm.unrescue",
    "vm.update",
    "volume.create",
    "volume.delete",
    "volume.grow",
    "volume.set-annotations",
    "volume.set-labels",
];

/// What the first request under an idempotency key was, and what it got.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Remembered {
    verb: String,
    request: String,
    object: ObjectRef,
    operation: OperationId,
}

/// A change that has been checked, ready to be committed.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) object: ObjectRef,
    pub(super) kind: OperationKind,
    pub(super) draft: Draft,
}

/// Checks that hold for every request.
fn check_options(options: &RequestOptions) -> Result<()> {
    let mut problems = Vec::new();
    let plain = |text: &str| {
        (1..=128).contains(&text.len())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._:@-".contains(&b))
    };
    let rule = "1 to 128 characters of [a-zA-Z0-9._:@-]";
    if !plain(&options.principal) {
        problems.push(problem("options.principal", rule));
    }
    if options
        .idempotency_key
        .as_deref()
        .is_some_and(|k| !plain(k))
    {
        problems.push(problem("options.idempotency_key", rule));
    }
    if options.timeout.is_zero() {
        problems.push(problem("options.timeout", "must be more than zero"));
    }
    refuse("request", problems)
}

pub(super) fn problem(field: impl Into<String>, message: impl Into<String>) -> Problem {
    Problem {
        field: field.into(),
        message: message.into(),
    }
}

/// Every problem as one error, if there is any.
pub(super) fn refuse(verb: &'static str, problems: Vec<Problem>) -> Result<()> {
    if problems.is_empty() {
        Ok(())
    } else {
        Err(Error::invalid(verb, problems))
    }
}

/// For what acts on the guest at once, without a record: it can be neither repeated safely nor tried without effect.
pub(super) fn refuse_change_options(options: &RequestOptions, verb: &'static str) -> Result<()> {
    let set = [
        ("options.idempotency_key", options.idempotency_key.is_some()),
        (
            "options.expected_version",
            options.expected_version.is_some(),
        ),
        ("options.dry_run", options.dry_run),
    ];
    let problems = set
        .iter()
        .filter(|(_, set)| *set)
        .map(|(field, _)| problem(*field, "acts on the guest at once: this cannot apply"));
    refuse(verb, problems.collect())
}

/// Fails unless the object has the version that the caller expects.
pub(super) fn check_version(
    options: &RequestOptions,
    verb: &'static str,
    version: Revision,
) -> Result<()> {
    match options.expected_version {
        Some(expected) if expected != version => {
            let message = format!("it has version {version}, not the expected {expected}");
            Err(Error::new(ErrorKind::Conflict, verb, message).retryable(false))
        }
        _ => Ok(()),
    }
}

/// Tells texts apart, not liars: FNV-1a over 128 bits, the same in every build.
pub(super) fn fingerprint(parts: &[&str]) -> String {
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    for part in parts {
        // 0xff is no byte of UTF-8, so it separates.
        for byte in part.bytes().chain([0xff]) {
            hash = (hash ^ u128::from(byte)).wrapping_mul(0x0100_0000_0000_0000_0000_013b);
        }
    }
    format!("{hash:032x}")
}

/// Whether a precondition on a key that begins like this failed.
pub(super) fn conflicts_on(error: &Error, prefix: &str) -> bool {
    error.kind() == ErrorKind::Conflict
        && error
            .context()
            .any(|(name, key)| name == "key" && key.starts_with(prefix))
}

fn remembered_key(options: &RequestOptions) -> Option<Key> {
    let key = options.idempotency_key.as_ref()?;
    Some(Key::of_parts(&[&"idempotency", &options.principal, key]))
}

impl Inner {
    /// A handle for whoever asked: it goes on without what belonged to the one request.
    fn operation(self: &Arc<Self>, options: &RequestOptions, id: OperationId) -> OperationHandle {
        let cluster = Cluster {
            inner: Arc::clone(self),
            options: options.clone(),
        };
        OperationHandle::new(cluster.onward(), id)
    }

    pub(super) fn authorize(&self, options: &RequestOptions, verb: &'static str) -> Result<()> {
        check_options(options)?;
        self.authorizer
            .authorize(&options.principal, verb, &options.project)
    }

    /// Lets a change in: what it is about, and the operation that follows it. `request` tells it from another one
    /// under the same idempotency key; `draft` runs only if the change was not made before.
    pub(super) async fn admit(
        self: &Arc<Self>,
        options: &RequestOptions,
        verb: &'static str,
        request: &str,
        draft: impl Future<Output = Result<Change>>,
    ) -> Result<(ObjectRef, OperationHandle)> {
        debug_assert!(CHANGES.contains(&verb), "{verb} is missing in CHANGES");
        self.authorize(options, verb)?;
        self.is_open()?;
        let request = fingerprint(&[options.project.as_str(), request]);
        if let Some(before) = self.recall(options, verb, &request).await? {
            return Ok(before);
        }
        let change = draft.await?;
        match self.commit(options, verb, &request, change).await {
            // The same request came twice at once, and the other one was first.
            Err(error) if conflicts_on(&error, "idempotency/") => {
                self.recall(options, verb, &request).await?.ok_or(error)
            }
            result => result,
        }
    }

    /// What an earlier request under the same key got, if there was one.
    async fn recall(
        self: &Arc<Self>,
        options: &RequestOptions,
        verb: &'static str,
        request: &str,
    ) -> Result<Option<(ObjectRef, OperationHandle)>> {
        let Some(key) = remembered_key(options) else {
            return Ok(None);
        };
        let Some(record) = self.store.get(&key).await? else {
            return Ok(None);
        };
        let before: Remembered = decode(&key, &record.value)?;
        if before.verb != verb || before.request != request {
            let message = format!("the key was used for another request ({})", before.verb);
            let field = "options.idempotency_key";
            return Err(Error::invalid(verb, vec![problem(field, message)]));
        }
        let operation = self.operation(options, before.operation);
        Ok(Some((before.object, operation)))
    }

    /// Commits a change with its operation, its audit record and the remembered answer.
    async fn commit(
        self: &Arc<Self>,
        options: &RequestOptions,
        verb: &'static str,
        request: &str,
        change: Change,
    ) -> Result<(ObjectRef, OperationHandle)> {
        let now = self.clock.now();
        let id = OperationId::generate(now, &*self.ids);
        let Change {
            object,
            kind,
            mut draft,
        } = change;
        upgrade::allows(self.peek(|cache| cache.level), &draft, verb)?;
        if let Some(key) = remembered_key(options) {
            let remembered = Remembered {
                verb: verb.to_owned(),
                request: request.to_owned(),
                object: object.clone(),
                operation: id,
            };
            // First, so that of two at once the second learns that it is a repetition, not that its name is taken.
            draft.requires.insert(0, Precondition::Absent(key.clone()));
            draft.ops.push(Op::Put(key, encode(&remembered)?));
        }
        // Nobody has to follow what is true with its commit.
        let done = match (&kind, &object) {
            (OperationKind::Record, _) => true,
            (kind, ObjectRef::Network(_)) => *kind != OperationKind::Delete,
            _ => false,
        };
        let operation = Operation {
            id,
            target: object.clone(),
            project: options.project.clone(),
            principal: options.principal.clone(),
            kind,
            state: if done {
                OperationState::Done
            } else {
                OperationState::Running
            },
            progress: String::new(),
            created_at: now,
            deadline: now.plus(options.timeout),
            ended_at: done.then_some(now),
        };
        let audit = Audit {
            id: EventId::generate(now, &*self.ids),
            at: now,
            principal: options.principal.clone(),
            project: options.project.clone(),
            verb: verb.to_owned(),
            object: object.clone(),
        };
        let draft = draft.put(&id, &operation)?.put(&audit.id, &audit)?;
        let commit = finish(draft, now, &*self.ids)?;
        if options.dry_run {
            self.would_commit(&commit).await?;
        } else {
            commit_known(&*self.store, commit).await?;
        }
        Ok((object, self.operation(options, id)))
    }

    /// What the store would say to a commit now.
    async fn would_commit(&self, commit: &Commit) -> Result<()> {
        commit.check()?;
        for precondition in &commit.preconditions {
            let (key, wanted) = match precondition {
                Precondition::Absent(key) => (key, None),
                Precondition::Present(key) => (key, Some(None)),
                Precondition::At(key, version) => (key, Some(Some(*version))),
                // No change by a user depends on a lease.
                Precondition::Lease { .. } => continue,
            };
            let found = self.store.get(key).await?.map(|r| r.version);
            let holds = match wanted {
                None => found.is_none(),
                Some(version) => found.is_some() && version.is_none_or(|v| found == Some(v)),
            };
            if !holds {
                let message = "the record has changed meanwhile, or is taken";
                return Err(
                    Error::new(ErrorKind::Conflict, "request.dry-run", message).with("key", key)
                );
            }
        }
        Ok(())
    }

    /// The id that a name stands for, if it is taken.
    pub(super) async fn lookup<T: std::str::FromStr<Err = Error>>(
        &self,
        project: &Name,
        kind: &'static str,
        name: &Name,
    ) -> Result<Option<T>> {
        let key = records::name_key(project, kind, name);
        match self.store.get(&key).await? {
            Some(record) => decode::<String>(&key, &record.value)?.parse().map(Some),
            None => Ok(None),
        }
    }
}
