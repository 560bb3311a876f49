//! What the kinds of objects that users make have in common: one way to find, to list, to create, to change and to
//! delete, and one shape of their handles.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use serde::Serialize;

use super::page::{ListRequest, Page};
use super::request::{Change, check_version, conflicts_on, problem, refuse};
use super::{Cluster, OperationHandle, RequestOptions, check};
use crate::control::cache::{Cache, Table};
use crate::control::plan::Draft;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Meta, Name, ObjectRef, OperationKind, Versioned};
use crate::records::Stored;
use crate::time::Timestamp;

/// A kind of object that users make, name and delete.
pub(super) trait Object:
    Stored<Id: Copy + Ord + Display + FromStr<Err = Error>> + Clone + PartialEq
{
    /// The kind's word, as in keys and verbs.
    const KIND: &'static str;
    /// What a caller is shown of it.
    type View;

    fn table(cache: &Cache) -> &Table<Self::Id, Self>;
    fn reference(id: Self::Id) -> ObjectRef;
    fn id_in(reference: &ObjectRef) -> Option<Self::Id>;
    fn meta(&self) -> &Meta;
    fn meta_mut(&mut self) -> &mut Meta;
    fn view(object: &Versioned<Self>, cache: &Cache, now: Timestamp) -> Self::View;

    /// Why it cannot be deleted now.
    fn in_use(&self, cache: &Cache) -> Option<String>;

    /// Asks for its deletion: by a mark that its controller follows.
    fn remove(&mut self, draft: Draft, now: Timestamp) -> Draft {
        self.meta_mut().deleted_at.get_or_insert(now);
        draft
    }
}

/// The object, if the request's project has it.
pub(super) fn find<'c, T: Object>(
    cache: &'c Cache,
    options: &RequestOptions,
    verb: &'static str,
    id: T::Id,
) -> Result<&'c Versioned<T>> {
    T::table(cache)
        .get(&id)
        .filter(|o| o.meta().project == options.project)
        .ok_or_else(|| not_found::<T>(&options.project, verb).with("id", id))
}

fn not_found<T: Object>(project: &Name, verb: &'static str) -> Error {
    let message = format!("project {project} has no such {}", T::KIND);
    Error::new(ErrorKind::NotFound, verb, message)
}

/// What may still be asked of an object that is being deleted.
fn allowed_while_deleting(verb: &str) -> bool {
    verb.ends_with(".delete") || verb == "vm.confirm-stopped"
}

/// A request as text, for its idempotency key. One that cannot be written (a path that is no text) is refused by the
/// checks of its draft.
fn as_text<T: Serialize>(request: &T) -> String {
    serde_json::to_string(request).unwrap_or_default()
}

impl Cluster {
    /// The same cluster without what belonged to one request.
    pub(super) fn onward(&self) -> Self {
        self.with(RequestOptions {
            idempotency_key: None,
            expected_version: None,
            ..self.options.clone()
        })
    }

    pub(super) async fn get<T: Object>(&self, verb: &'static str, id: T::Id) -> Result<T::View> {
        self.inner.authorize(&self.options, verb)?;
        let now = self.inner.clock.now();
        self.inner
            .read(|cache| {
                let object = find::<T>(cache, &self.options, verb, id)?;
                Ok(T::view(object, cache, now))
            })
            .await?
    }

    pub(super) async fn named<T: Object>(&self, verb: &'static str, name: &str) -> Result<T::Id> {
        self.inner.authorize(&self.options, verb)?;
        let project = &self.options.project;
        let id = self
            .inner
            .lookup(project, T::KIND, &Name::new(name)?)
            .await?;
        id.ok_or_else(|| not_found::<T>(project, verb).with("name", name))
    }

    pub(super) async fn list<T: Object>(
        &self,
        verb: &'static str,
        request: &ListRequest,
    ) -> Result<Page<T::View>> {
        self.inner.authorize(&self.options, verb)?;
        let (project, now) = (&self.options.project, self.inner.clock.now());
        let walk = request.walk(verb, project.as_str())?;
        let wanted = |object: &Versioned<T>| {
            let meta = object.meta();
            meta.project == *project && request.selects(&meta.labels)
        };
        self.inner
            .read(|cache| walk.page(cache, T::table(cache), wanted, |o| T::view(o, cache, now)))
            .await?
    }

    pub(super) async fn create<T: Object>(
        &self,
        verb: &'static str,
        request: &impl Serialize,
        draft: impl Future<Output = Result<(T::Id, Draft)>>,
    ) -> Result<(T::Id, OperationHandle)> {
        let text = as_text(request);
        let drafted = async {
            if self.options.expected_version.is_some() {
                let field = "options.expected_version";
                let message = "a new object has no version yet";
                return Err(Error::invalid(verb, vec![problem(field, message)]));
            }
            let (id, draft) = draft.await?;
            Ok(Change {
                object: T::reference(id),
                kind: OperationKind::Create,
                draft,
            })
        };
        let admitted = self.inner.admit(&self.options, verb, &text, drafted).await;
        let (object, operation) = admitted.map_err(|e| name_taken(verb, e))?;
        let id = T::id_in(&object).ok_or_else(|| {
            let message = "the remembered answer is about another kind of object";
            Error::new(ErrorKind::Corrupt, verb, message).with("object", &object)
        })?;
        Ok((id, operation))
    }

    /// Changes an object: `change` edits it, adds to the draft what else changes, or says what is wrong. `request` is
    /// what was asked for beside the verb and the id.
    pub(super) async fn change<T: Object>(
        &self,
        verb: &'static str,
        id: T::Id,
        request: &impl Serialize,
        change: impl FnOnce(&mut T, Draft, &Cache) -> Result<(Draft, OperationKind)>,
    ) -> Result<OperationHandle> {
        let text = format!("{id}:{}", as_text(request));
        let drafted = async {
            self.inner
                .read(|cache| {
                    let current = find::<T>(cache, &self.options, verb, id)?;
                    check_version(&self.options, verb, current.version)?;
                    if current.meta().deleted_at.is_some() && !allowed_while_deleting(verb) {
                        let message = format!("the {} is being deleted", T::KIND);
                        return Err(Error::new(ErrorKind::FailedPrecondition, verb, message));
                    }
                    let draft = Draft::new().unchanged::<T>(&id, Some(current.version));
                    let mut next = current.value.clone();
                    let (mut draft, kind) = change(&mut next, draft, cache)?;
                    if next != current.value {
                        draft = draft.put(&id, &next)?;
                    }
                    Ok(Change {
                        object: T::reference(id),
                        kind,
                        draft,
                    })
                })
                .await?
        };
        let admitted = self.inner.admit(&self.options, verb, &text, drafted).await;
        Ok(admitted?.1)
    }

    pub(super) async fn delete<T: Object>(
        &self,
        verb: &'static str,
        id: T::Id,
    ) -> Result<OperationHandle> {
        let now = self.inner.clock.now();
        self.change::<T>(verb, id, &(), |object, draft, cache| {
            if let Some(why) = object.in_use(cache) {
                return Err(Error::new(ErrorKind::FailedPrecondition, verb, why));
            }
            Ok((object.remove(draft, now), OperationKind::Delete))
        })
        .await
    }

    pub(super) async fn set_labels<T: Object>(
        &self,
        verb: &'static str,
        id: T::Id,
        labels: BTreeMap<String, String>,
    ) -> Result<OperationHandle> {
        let request = labels.clone();
        self.change::<T>(verb, id, &request, |object, draft, _| {
            refuse(verb, check::labels("labels", &labels))?;
            object.meta_mut().labels = labels;
            Ok((draft, OperationKind::Record))
        })
        .await
    }

    pub(super) async fn set_annotations<T: Object>(
        &self,
        verb: &'static str,
        id: T::Id,
        annotations: BTreeMap<String, String>,
    ) -> Result<OperationHandle> {
        let request = annotations.clone();
        self.change::<T>(verb, id, &request, |object, draft, _| {
            refuse(verb, check::labels("annotations", &annotations))?;
            object.meta_mut().annotations = annotations;
            Ok((draft, OperationKind::Record))
        })
        .await
    }
}

/// A failed precondition on a name is a taken name.
fn name_taken(verb: &'static str, error: Error) -> Error {
    if conflicts_on(&error, "name/") {
        let message = "the name is taken in this project";
        return Error::new(ErrorKind::AlreadyExists, verb, message).caused_by(error);
    }
    error
}

/// The collection and the handle of one kind, with what they have in common with their siblings. What is the kind's
/// own stands beside it.
macro_rules! siblings {
    ($kind:literal, $object:ty, $id:ty, $view:ty, $collection:ident, $handle:ident, $(#[$deletes:meta])*) => {
        #[doc = concat!("The project's ", $kind, "s.")]
        #[derive(Clone, Debug)]
        pub struct $collection(pub(in crate::cluster) crate::cluster::Cluster);

        #[doc = concat!("A handle on one ", $kind, ". Cheap to clone; dropping it changes nothing.")]
        #[derive(Clone, Debug)]
        pub struct $handle {
            cluster: crate::cluster::Cluster,
            id: $id,
            created: Option<crate::cluster::OperationHandle>,
        }

        impl $collection {
            /// The handle that a create returns.
            fn created(&self, (id, operation): ($id, crate::cluster::OperationHandle)) -> $handle {
                $handle {
                    cluster: self.0.onward(),
                    id,
                    created: Some(operation),
                }
            }

            /// A handle by id. Whether it exists is looked at when the handle is used.
            pub fn by_id(&self, id: $id) -> $handle {
                $handle {
                    cluster: self.0.clone(),
                    id,
                    created: None,
                }
            }

            /// A handle by name.
            ///
            /// # Errors
            /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) when the project has none of that name,
            /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) for what cannot be a name.
            pub async fn by_name(&self, name: &str) -> crate::Result<$handle> {
                let id = self.0.named::<$object>(concat!($kind, ".get"), name).await?;
                Ok(self.by_id(id))
            }

            /// One page of the list, oldest first.
            ///
            /// # Errors
            /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) for a limit or a token that cannot be; those of the
            /// store.
            pub async fn list(
                &self,
                request: &crate::cluster::ListRequest,
            ) -> crate::Result<crate::cluster::Page<$view>> {
                self.0.list::<$object>(concat!($kind, ".list"), request).await
            }
        }

        impl $handle {
            /// Its id.
            pub fn id(&self) -> $id {
                self.id
            }

            /// The operation that makes it, if this handle came from the request that created it.
            pub fn operation(&self) -> Option<&crate::cluster::OperationHandle> {
                self.created.as_ref()
            }

            /// As it is now.
            ///
            /// # Errors
            /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound).
            pub async fn get(&self) -> crate::Result<$view> {
                self.cluster.get::<$object>(concat!($kind, ".get"), self.id).await
            }

            /// Replaces its labels: up to 64, keys of 1 to 128 bytes, values of up to 1024, 16 KiB in all. True when it
            /// returns; the operation has ended.
            ///
            /// # Errors
            /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound), [`ErrorKind::Invalid`](crate::ErrorKind::Invalid).
            pub async fn set_labels(
                &self,
                labels: std::collections::BTreeMap<String, String>,
            ) -> crate::Result<crate::cluster::OperationHandle> {
                let verb = concat!($kind, ".set-labels");
                self.cluster.set_labels::<$object>(verb, self.id, labels).await
            }

            /// Replaces its annotations; they have the limits of labels.
            ///
            /// # Errors
            /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound), [`ErrorKind::Invalid`](crate::ErrorKind::Invalid).
            pub async fn set_annotations(
                &self,
                annotations: std::collections::BTreeMap<String, String>,
            ) -> crate::Result<crate::cluster::OperationHandle> {
                let verb = concat!($kind, ".set-annotations");
                self.cluster.set_annotations::<$object>(verb, self.id, annotations).await
            }

            $(#[$deletes])*
            pub async fn delete(&self) -> crate::Result<crate::cluster::OperationHandle> {
                self.cluster.delete::<$object>(concat!($kind, ".delete"), self.id).await
            }
        }
    };
}
pub(super) use siblings;

/// The parts of [`Object`] that are the same text for every kind.
macro_rules! object_parts {
    ($kind:literal, $variant:ident, $table:ident) => {
        const KIND: &'static str = $kind;

        fn table(cache: &Cache) -> &crate::control::cache::Table<Self::Id, Self> {
            &cache.$table
        }
        fn reference(id: Self::Id) -> crate::model::ObjectRef {
            crate::model::ObjectRef::$variant(id)
        }
        fn id_in(reference: &crate::model::ObjectRef) -> Option<Self::Id> {
            match reference {
                crate::model::ObjectRef::$variant(id) => Some(*id),
                _ => None,
            }
        }
        fn meta(&self) -> &crate::model::Meta {
            &self.meta
        }
        fn meta_mut(&mut self) -> &mut crate::model::Meta {
            &mut self.meta
        }
    };
}
pub(super) use object_parts;
