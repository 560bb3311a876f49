//! Nothing is left that no record names: after everything is deleted, the world is empty.

use novacron_core::sim::SimWorld;

pub(crate) fn check(world: &SimWorld) -> Result<(), String> {
    let left = world.artefacts();
    if left.domains.is_empty() && left.volumes.is_empty() && left.ports.is_empty() {
        return Ok(());
    }
    Err(format!("left behind: {left:?}"))
}
