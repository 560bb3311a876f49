//! A writable volume never has two writers, and nothing changes it behind a writer's back.

use novacron_core::sim::{SimWorld, ViolationKind};

pub(crate) fn check(world: &SimWorld) -> Result<(), String> {
    match world
        .violations()
        .iter()
        .find(|v| !matches!(v.kind, ViolationKind::RunsTwice { .. }))
    {
        Some(violation) => Err(format!("a volume was not its writer's alone: {violation}")),
        None => Ok(()),
    }
}
