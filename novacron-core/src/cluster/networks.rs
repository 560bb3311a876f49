//! Networks. They are made on a node when a VM's port needs them, so their record is all there is of them here.

use super::check;
use super::object::{Object, object_parts, siblings};
use super::request::refuse;
use crate::control::cache::Cache;
use crate::control::plan::Draft;
use crate::error::Result;
use crate::model::{Meta, Name, Network, NetworkId, NetworkKind, Versioned};
use crate::time::Timestamp;

siblings! {
    "network", Network, NetworkId, Versioned<Network>, Networks, NetworkHandle,
    /// Deletes it.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound);
    /// [`ErrorKind::FailedPrecondition`](crate::ErrorKind::FailedPrecondition) while a port is on it, naming its VM.
}

impl Object for Network {
    type View = Versioned<Self>;
    object_parts!("network", Network, networks);

    fn view(network: &Versioned<Self>, _: &Cache, _: Timestamp) -> Versioned<Self> {
        network.clone()
    }

    fn in_use(&self, cache: &Cache) -> Option<String> {
        let port = cache.ports.values().find(|p| p.network == self.id)?;
        Some(format!("VM {} has a port on it", port.vm))
    }
}

impl Networks {
    /// Creates a network. There when it returns; the operation has ended.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) with every problem;
    /// [`ErrorKind::AlreadyExists`](crate::ErrorKind::AlreadyExists) when the name is taken.
    pub async fn create(&self, name: &str, kind: NetworkKind) -> Result<NetworkHandle> {
        const VERB: &str = "network.create";
        let (inner, options) = (&self.0.inner, self.0.options());
        let request = (name, kind.clone());
        let draft = async {
            refuse(VERB, check::network(name, &kind))?;
            let now = inner.clock.now();
            let id = NetworkId::generate(now, &*inner.ids);
            let meta = Meta::new(Name::new(name)?, options.project.clone(), now);
            let draft = Draft::new().name(&meta, "network", id)?;
            Ok((id, draft.put(&id, &Network { id, meta, kind })?))
        };
        let made = self.0.create::<Network>(VERB, &request, draft);
        Ok(self.created(made.await?))
    }
}
