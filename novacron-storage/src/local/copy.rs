//! A private copy of a file from outside, holes kept: by reflink where the file system has it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use novacron_core::{Error, ErrorKind, Result};
use rustix::fs::{OFlags, SeekFrom, ioctl_ficlone, seek};
use rustix::io::Errno;

use super::create::invalid;
use super::layout::new_file;
use super::writer;
use crate::failure::of_io;
use crate::task::Stop;

const STEP: usize = 1 << 20;

/// Copies `source` to `target`.
pub(super) fn stage(
    op: &'static str,
    source: &Path,
    target: &Path,
    max: u64,
    stop: &Stop,
) -> Result<()> {
    let fail = |e| of_io(op, "cannot read the source", source, e);
    // A FIFO or a device is not waited for, and then refused.
    let from = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(source)
        .map_err(fail)?;
    let meta = from.metadata().map_err(fail)?;
    if !meta.is_file() {
        return Err(invalid("source", "it is not a regular file"));
    }
    if meta.len() > max {
        return Err(invalid(
            "source",
            &format!(
                "the file is {} bytes long; at most {max} are taken",
                meta.len()
            ),
        ));
    }
    writer::refuse_written(op, source)?;
    let to = new_file(op, target)?;
    if ioctl_ficlone(&to, &from).is_ok() {
        return Ok(());
    }
    copy_data(op, &from, &to, meta.len(), stop).map_err(|failed| match failed {
        Failed::Stopped(e) => e,
        Failed::Read(e) => fail(e),
        Failed::Write(e) => of_io(op, "cannot write the copy", target, e),
    })
}

enum Failed {
    Stopped(Error),
    Read(io::Error),
    Write(io::Error),
}

fn copy_data(
    op: &'static str,
    from: &File,
    to: &File,
    length: u64,
    stop: &Stop,
) -> Result<(), Failed> {
    to.set_len(length).map_err(Failed::Write)?;
    let mut buffer = vec![0; STEP];
    let mut at = 0;
    while at < length {
        at = match seek(from, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            // A file system that does not tell its holes.
            Err(Errno::INVAL) => at,
            Err(e) => return Err(Failed::Read(e.into())),
        };
        let end = seek(from, SeekFrom::Hole(at)).map_or(length, |hole| hole.min(length));
        while at < end {
            stop.check().map_err(Failed::Stopped)?;
            let want = usize::try_from(end - at).map_or(STEP, |left| left.min(STEP));
            let got = from
                .read_at(&mut buffer[..want], at)
                .map_err(Failed::Read)?;
            if got == 0 {
                return Err(Failed::Stopped(Error::new(
                    ErrorKind::FailedPrecondition,
                    op,
                    "the source became shorter while it was read",
                )));
            }
            to.write_all_at(&buffer[..got], at).map_err(Failed::Write)?;
            at += got as u64;
        }
    }
    Ok(())
}
