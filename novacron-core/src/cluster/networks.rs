//! Networks.

use super::Cluster;
use super::request::{Change, problem};
use super::vms::name_taken;
use crate::control::plan::Draft;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{
    Meta, Name, Network, NetworkId, NetworkKind, ObjectRef, OperationKind, name_problem,
};
use crate::records;
use crate::store::Op;

/// The cluster's networks.
#[derive(Clone, Debug)]
pub struct Networks(pub(super) Cluster);

impl Networks {
    /// Creates a network.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`], [`ErrorKind::AlreadyExists`].
    pub async fn create(&self, name: &str, kind: NetworkKind) -> Result<NetworkId> {
        let (inner, options) = (&self.0.inner, self.0.options());
        inner.authorize(options, "network.create")?;
        let mut problems: Vec<_> = name_problem(name)
            .map(|m| problem("name", m))
            .into_iter()
            .collect();
        if let NetworkKind::Bridge { bridge } = &kind {
            // Linux: IFNAMSIZ is 16 with the final zero.
            let ok = (1..=15).contains(&bridge.len())
                && bridge
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
            if !ok {
                problems.push(problem(
                    "kind.bridge",
                    "an interface's name: 1 to 15 of [a-zA-Z0-9._-]",
                ));
            }
        }
        if !problems.is_empty() {
            return Err(Error::invalid("network.create", problems));
        }
        let now = inner.clock.now();
        let id = NetworkId::generate(now, &*inner.ids);
        let name = Name::new(name)?;
        let meta = Meta::new(name, options.project.clone(), now);
        let draft = Draft::new()
            .name(&meta, "network", id)?
            .put(&id, &Network { id, meta, kind })?;
        let object = ObjectRef::Network(id);
        inner
            .admit(
                options,
                Change {
                    verb: "network.create",
                    object,
                    kind: OperationKind::Create,
                    draft,
                    request: String::new(),
                },
            )
            .await
            .map_err(name_taken)?;
        Ok(id)
    }

    /// Deletes a network.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] while a port is on it, naming its VM.
    pub async fn delete(&self, id: NetworkId) -> Result<()> {
        let (inner, options) = (&self.0.inner, self.0.options());
        inner.authorize(options, "network.delete")?;
        let draft = inner
            .read(|cache| {
                let Some(network) = cache.networks.get(&id) else {
                    return Err(Error::new(
                        ErrorKind::NotFound,
                        "network.delete",
                        "there is no such network",
                    ));
                };
                if let Some(port) = cache.ports.values().find(|p| p.network == id) {
                    let message = format!("VM {} has a port on it", port.vm);
                    return Err(Error::new(
                        ErrorKind::FailedPrecondition,
                        "network.delete",
                        message,
                    ));
                }
                let name = records::name_key(&network.meta.project, "network", &network.meta.name);
                Ok(Draft::new()
                    .unchanged::<Network>(&id, Some(network.version))
                    .delete::<Network>(&id)
                    .op(Op::Delete(name)))
            })
            .await??;
        let object = ObjectRef::Network(id);
        let change = Change {
            verb: "network.delete",
            object,
            kind: OperationKind::Delete,
            draft,
            request: id.to_string(),
        };
        inner.admit(options, change).await.map(drop)
    }
}
