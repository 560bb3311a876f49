//! Merging layers that no snapshot needs any more, so that a volume that is snapshotted every day keeps a short chain.
//!
//! Layer L, which is nobody's snapshot and carries exactly one other layer C, is merged by `qemu-img rebase` of C onto
//! what is below L: what L has and C has not is copied up, and only then does C's header name the layer below. Killed
//! at any point, C shows the same data. It is done only
//! - for a volume that is not attached and that nobody has open: QEMU's image locks refuse the rebase otherwise,
//! - for an L of at most [`MAX_MERGED`] bytes: a larger one stays, since the copy would take too long within a call.
//!
//! Failing to merge is no error: the layer stays, and the next snapshot that is deleted tries again.

use std::os::unix::fs::MetadataExt as _;

use novacron_core::{Deadline, ErrorKind, Result};

use super::Pool;
use super::layout::sync_file;
use super::record::Record;
use super::volume::{Owned, Why};
use crate::failure::of_io;
use crate::qemu_img::{file_arg, format_name};
use crate::task::blocking;

/// The largest layer that is merged.
const MAX_MERGED: u64 = 1 << 30;

impl Pool {
    pub(super) async fn merge(
        &self,
        op: &'static str,
        owned: &mut Owned,
        deadline: Deadline,
    ) -> Result<()> {
        let mut left = Vec::new();
        while let Some((lower, upper)) = candidate(&owned.record, &left) {
            let path = owned.dir.join(&lower);
            let bytes = blocking(op, move || {
                let meta = std::fs::metadata(&path);
                meta.map(|m| m.blocks() * 512)
                    .map_err(|e| of_io(op, "cannot look at the layer", &path, e))
            })
            .await?;
            let merged = if bytes > MAX_MERGED {
                false
            } else {
                self.rebase(op, owned, &lower, &upper, deadline).await
            };
            if !merged {
                left.push(lower);
                continue;
            }
            crate::crash::point("merge.rebased");
            let on = owned.record.layer(op, &lower)?.on.clone();
            if let Some(layer) = owned.record.layers.iter_mut().find(|l| l.file == upper) {
                layer.on = on;
            }
            owned.record.drop_unreachable();
            owned.commit(op).await?;
            owned.sweep(op, Why::Replaced).await?;
        }
        Ok(())
    }

    /// Puts `upper` onto what is below `lower`; whether that was done.
    async fn rebase(
        &self,
        op: &'static str,
        owned: &Owned,
        lower: &str,
        upper: &str,
        deadline: Deadline,
    ) -> bool {
        let path = owned.dir.join(upper);
        let done = async {
            let record = &owned.record;
            let onto = match &record.layer(op, lower)?.on {
                Some(file) => Some((file.clone(), record.layer(op, file)?.format)),
                None => match record.parent {
                    Some(image) => {
                        let (parent, file) = self
                            .layer_of(op, novacron_core::driver::ArtefactId::Image(image), None)
                            .await?;
                        Some((format!("../../images/{image}/{file}"), parent.format))
                    }
                    None => None,
                },
            };
            let mut args = vec!["rebase".into(), "-q".into(), "-f".into(), "qcow2".into()];
            match onto {
                Some((file, format)) => {
                    args.extend([
                        "-F".into(),
                        format_name(format).into(),
                        "-b".into(),
                        file.into(),
                    ]);
                }
                None => args.extend(["-b".into(), std::ffi::OsString::new()]),
            }
            args.push(file_arg(&path).into());
            self.qemu
                .run(op, args, deadline, Some(&owned.held))
                .await?
                .success(op, ErrorKind::Internal)?;
            let path = path.clone();
            blocking(op, move || sync_file(op, &path)).await
        }
        .await;
        match done {
            Ok(()) => true,
            Err(error) => {
                tracing::info!(layer = lower, error = %error.report(), "the layer is not merged now");
                false
            }
        }
    }
}

/// A layer that only another layer needs, and that one.
fn candidate(record: &Record, left: &[String]) -> Option<(String, String)> {
    if record.prepared.is_some() || !record.attached.is_empty() {
        return None;
    }
    record.layers.iter().find_map(|lower| {
        let frozen = record.snapshots.iter().any(|s| s.layer == lower.file);
        if frozen || lower.file == record.active || left.contains(&lower.file) {
            return None;
        }
        let mut above = record
            .layers
            .iter()
            .filter(|l| l.on.as_ref() == Some(&lower.file));
        match (above.next(), above.next()) {
            (Some(upper), None) => Some((lower.file.clone(), upper.file.clone())),
            _ => None,
        }
    })
}
