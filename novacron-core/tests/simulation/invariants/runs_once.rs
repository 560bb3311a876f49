//! A VM never runs twice: looked at by the world, at every moment.

use novacron_core::sim::{SimWorld, ViolationKind};

pub(crate) fn check(world: &SimWorld) -> Result<(), String> {
    match world
        .violations()
        .iter()
        .find(|v| matches!(v.kind, ViolationKind::RunsTwice { .. }))
    {
        Some(violation) => Err(format!("a VM ran twice: {violation}")),
        None => Ok(()),
    }
}
