//! The files that a layer's data comes from.
//!
//! Read from the files' own headers, since these are what QEMU follows; every step must stay within the pool.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use novacron_core::model::VolumeFormat;
use novacron_core::{Error, ErrorKind, Result};

use super::layout::Layout;
use super::record::Record;
use crate::failure::of_io;
use crate::image::{HEAD, qcow2};

const MAX_DEPTH: usize = 512;

/// A layer's size, and the file that it stands on.
pub(super) fn header(
    op: &'static str,
    path: &Path,
    format: VolumeFormat,
) -> Result<(u64, Option<String>)> {
    let fail = |e| of_io(op, "cannot read the layer", path, e);
    let mut file = File::open(path).map_err(fail)?;
    let length = file.metadata().map_err(fail)?.len();
    match format {
        VolumeFormat::Raw => Ok((length, None)),
        VolumeFormat::Qcow2 => {
            let mut head = Vec::new();
            (&mut file)
                .take(HEAD as u64)
                .read_to_end(&mut head)
                .map_err(fail)?;
            qcow2::layer(&head, length).map_err(|refused| {
                Error::new(ErrorKind::Corrupt, op, refused.0).with("path", path.display())
            })
        }
    }
}

/// Whether anything was ever written to a layer of qcow2.
pub(super) fn has_data(op: &'static str, path: &Path) -> Result<bool> {
    let fail = |e| of_io(op, "cannot read the layer", path, e);
    let mut file = File::open(path).map_err(fail)?;
    let length = file.metadata().map_err(fail)?.len();
    let mut head = Vec::new();
    (&mut file)
        .take(HEAD as u64)
        .read_to_end(&mut head)
        .map_err(fail)?;
    let (offset, bytes) = qcow2::l1_table(&head, length).map_err(|refused| {
        Error::new(ErrorKind::Corrupt, op, refused.0).with("path", path.display())
    })?;
    let mut table = Vec::new();
    file.seek(SeekFrom::Start(offset)).map_err(fail)?;
    file.take(bytes).read_to_end(&mut table).map_err(fail)?;
    Ok(table.iter().any(|b| *b != 0))
}

/// The files under a layer, the layer itself first, as `qemu-img map` counts its depths.
pub(super) fn files(
    op: &'static str,
    layout: &Layout,
    dir: &Path,
    record: &Record,
    file: &str,
) -> Result<Vec<PathBuf>> {
    let mut path = dir.join(file);
    let mut format = record.layer(op, file)?.format;
    let mut chain = Vec::new();
    loop {
        let (_, on) = header(op, &path, format)?;
        chain.push(path.clone());
        let Some(on) = on else { return Ok(chain) };
        let below = path.parent().unwrap_or(dir).join(&on);
        let below = below
            .canonicalize()
            .map_err(|e| of_io(op, "cannot find what the layer stands on", &below, e))?;
        if !below.starts_with(layout.root()) || chain.len() >= MAX_DEPTH {
            return Err(
                Error::new(ErrorKind::Corrupt, op, "the layers lead out of the pool")
                    .with("path", path.display())
                    .with("on", on),
            );
        }
        format = if on.ends_with(".raw") {
            VolumeFormat::Raw
        } else {
            VolumeFormat::Qcow2
        };
        path = below;
    }
}
