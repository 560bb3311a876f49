//! Removing a volume or an image.

use novacron_core::driver::{ArtefactId, Call};
use novacron_core::model::{ClusterId, ImageId};
use novacron_core::{Error, ErrorKind, Result};

use super::layout::{Layout, cluster_of, remove_tree, unname};
use super::lock::Want;
use super::record::Record;
use super::{Pool, writer};
use crate::failure::of_io;
use crate::task::blocking;

const OP: &str = "storage.delete";

impl Pool {
    pub(super) async fn delete(&self, call: Call, id: ArtefactId) -> Result<()> {
        let dir = self.layout.dir(id);
        let change = self
            .locks
            .acquire(OP, &dir, Want::Change, call.deadline)
            .await?;
        let remove = self
            .locks
            .acquire(OP, &dir, Want::Remove, call.deadline)
            .await?;
        let layout = self.layout.clone();
        blocking(OP, move || {
            let held = change.zip(remove);
            if held.is_some() {
                if let ArtefactId::Image(image) = id {
                    refuse_cloned(&layout, image)?;
                }
                refuse_used(&dir)?;
                let cluster = cluster_of(&dir).unwrap_or(ClusterId::from_uuid(uuid::Uuid::nil()));
                unname(OP, &layout, id, cluster)?;
            }
            drop(held);
            for part in layout.parts(OP, id)? {
                remove_tree(OP, &part)?;
            }
            Ok(())
        })
        .await
    }
}

/// An error while a volume is a clone of the image. Whoever makes one holds the image's data lock meanwhile.
fn refuse_cloned(layout: &Layout, image: ImageId) -> Result<()> {
    for (clone, dir) in layout.volumes(OP)? {
        let parent = Record::read(OP, &dir)?.and_then(|record| record.parent);
        if parent == Some(image) {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                OP,
                format!("image/{image} is in use: {clone} is a clone of it; delete that first"),
            )
            .with("clone", clone));
        }
    }
    Ok(())
}

/// An error while a guest writes to one of the layers.
fn refuse_used(dir: &std::path::Path) -> Result<()> {
    let fail = |e| of_io(OP, "cannot look into the folder", dir, e);
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let is_layer = path.extension().is_some_and(|e| e == "qcow2" || e == "raw");
        if is_layer {
            writer::refuse_written(OP, &path)?;
        }
    }
    Ok(())
}
