//! A network that is marked deleted goes when no port is on it. A port that was asked for at the same time as the mark
//! either is in the cache by now, or failed, for it depends on the network's record as it was before.

use super::cache::Cache;
use super::plan::{Draft, Plan};
use crate::error::Result;
use crate::model::{Network, NetworkId};
use crate::records;
use crate::store::Op;

pub(crate) fn reconcile(id: NetworkId, cache: &Cache) -> Result<Plan> {
    let Some(network) = cache.networks.get(&id) else {
        return Ok(Plan::nothing());
    };
    if network.meta.deleted_at.is_none() || cache.ports.values().any(|p| p.network == id) {
        return Ok(Plan::nothing());
    }
    let name = records::name_key(&network.meta.project, "network", &network.meta.name);
    Ok(Plan::commit(
        Draft::new()
            .unchanged::<Network>(&id, Some(network.version))
            .delete::<Network>(&id)
            .op(Op::Delete(name)),
    ))
}
