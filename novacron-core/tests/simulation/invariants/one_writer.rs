//! A writable volume never has two writers, and nothing changes it, or cuts a port, behind a running guest's back.

use novacron_core::sim::{SimWorld, ViolationKind};

pub(crate) fn check(world: &SimWorld) -> Result<(), String> {
    match world
        .violations()
        .iter()
        .find(|v| !matches!(v.kind, ViolationKind::RunsTwice { .. }))
    {
        Some(violation) => Err(format!(
            "a guest's volume or port was not its alone: {violation}"
        )),
        None => Ok(()),
    }
}
