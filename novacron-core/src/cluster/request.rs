//! The one door: every change by a user comes through [`Door::admit`], which authorizes it, checks it, and commits it
//! with its operation and its audit record in one go.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Inner;
use crate::control::commit::{commit_known, finish};
use crate::control::plan::Draft;
use crate::error::{Error, ErrorKind, Problem, Result};
use crate::model::{
    Audit, EventId, Name, ObjectRef, Operation, OperationId, OperationKind, OperationState,
};
use crate::records::{self, decode, encode};
use crate::store::{Key, Op, Precondition, Revision};

/// What goes with a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestOptions {
    /// Who asks: the authorizer's subject, and the audit's.
    pub principal: String,
    /// The project that names are looked up in and new objects belong to.
    pub project: Name,
    /// How long the change may take; its operation fails then.
    pub timeout: Duration,
    /// A second request with the same key (per principal) gets the first one's answer and changes nothing.
    pub idempotency_key: Option<String>,
    /// The version that the object must have; another one is a [`ErrorKind::Conflict`].
    pub expected_version: Option<Revision>,
    /// Check everything, change nothing.
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

/// The answer to a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Admitted {
    pub(crate) operation: OperationId,
}

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
pub(crate) struct Change {
    pub(crate) verb: &'static str,
    pub(crate) object: ObjectRef,
    pub(crate) kind: OperationKind,
    pub(crate) draft: Draft,
    /// The request as text, to tell a repetition from another request under the same key.
    pub(crate) request: String,
}

/// Checks that hold for every request.
pub(crate) fn check_options(options: &RequestOptions) -> Result<()> {
    let mut problems = Vec::new();
    let plain = |text: &str| {
        (1..=128).contains(&text.len())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._:@-".contains(&b))
    };
    if !plain(&options.principal) {
        problems.push(problem(
            "options.principal",
            "1 to 128 characters of [a-zA-Z0-9._:@-]",
        ));
    }
    if options
        .idempotency_key
        .as_deref()
        .is_some_and(|k| !plain(k))
    {
        problems.push(problem(
            "options.idempotency_key",
            "1 to 128 characters of [a-zA-Z0-9._:@-]",
        ));
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(Error::invalid("request", problems))
    }
}

pub(crate) fn problem(field: impl Into<String>, message: impl Into<String>) -> Problem {
    Problem {
        field: field.into(),
        message: message.into(),
    }
}

impl Inner {
    pub(crate) fn authorize(&self, options: &RequestOptions, verb: &'static str) -> Result<()> {
        check_options(options)?;
        self.authorizer
            .authorize(&options.principal, verb, &options.project)
    }

    fn remembered_key(options: &RequestOptions) -> Option<Key> {
        let key = options.idempotency_key.as_ref()?;
        Some(Key::of_parts(&[&"idempotency", &options.principal, key]))
    }

    /// What an earlier request under the same key got, if there was one.
    pub(crate) async fn recall(
        &self,
        options: &RequestOptions,
        verb: &str,
        request: &str,
    ) -> Result<Option<(ObjectRef, Admitted)>> {
        let Some(key) = Self::remembered_key(options) else {
            return Ok(None);
        };
        let Some(record) = self.store.get(&key).await? else {
            return Ok(None);
        };
        let before: Remembered = decode(&key, &record.value)?;
        if before.verb != verb || before.request != request {
            let message = format!(
                "the idempotency key was used for another request ({})",
                before.verb
            );
            return Err(Error::new(ErrorKind::Invalid, "request", message).with("key", key));
        }
        Ok(Some((
            before.object,
            Admitted {
                operation: before.operation,
            },
        )))
    }

    /// Commits a change with its operation and audit record.
    pub(crate) async fn admit(&self, options: &RequestOptions, change: Change) -> Result<Admitted> {
        let now = self.clock.now();
        let id = OperationId::generate(now, &*self.ids);
        if options.dry_run {
            return Ok(Admitted { operation: id });
        }
        let operation = Operation {
            id,
            target: change.object.clone(),
            project: options.project.clone(),
            principal: options.principal.clone(),
            kind: change.kind,
            state: OperationState::Running,
            progress: String::new(),
            created_at: now,
            deadline: now.plus(options.timeout),
            ended_at: None,
        };
        let audit_id = EventId::generate(now, &*self.ids);
        let audit = Audit {
            at: now,
            principal: options.principal.clone(),
            verb: change.verb.to_owned(),
            object: change.object.clone(),
        };
        let mut draft = change.draft.put(&id, &operation)?.put(&audit_id, &audit)?;
        if let Some(key) = Self::remembered_key(options) {
            let remembered = Remembered {
                verb: change.verb.to_owned(),
                request: change.request,
                object: change.object,
                operation: id,
            };
            draft.requires.push(Precondition::Absent(key.clone()));
            draft.ops.push(Op::Put(key, encode(&remembered)?));
        }
        commit_known(&*self.store, finish(draft, now, &*self.ids)?).await?;
        Ok(Admitted { operation: id })
    }

    /// The id that a name stands for.
    pub(crate) async fn resolve<T: std::str::FromStr<Err = Error>>(
        &self,
        project: &Name,
        kind: &'static str,
        name: &str,
    ) -> Result<T> {
        let key = records::name_key(project, kind, &Name::new(name)?);
        match self.store.get(&key).await? {
            Some(record) => decode::<String>(&key, &record.value)?.parse(),
            None => Err(Error::new(
                ErrorKind::NotFound,
                "name",
                format!("project {project} has no {kind} named {name:?}"),
            )),
        }
    }
}
