//! Where things are, and what is there.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use novacron_core::driver::{Artefact, ArtefactId};
use novacron_core::model::{self, ClusterId, ImageId, VolumeId};
use novacron_core::{Error, ErrorKind, IdSource as _, Result, SeededIds};

use crate::failure::of_io;

/// The pool's own id.
const IDENTITY: &str = "pool";
/// The record of what is in an artefact's directory.
pub(super) const RECORD: &str = "volume.json";
/// Whose an artefact is.
pub(super) const CLUSTER: &str = "cluster";
/// Held by whoever changes the artefact.
pub(super) const LOCK: &str = "lock";
/// Held by whoever reads the layers or removes one.
pub(super) const DATA_LOCK: &str = "data.lock";
/// The copy of a source from outside.
pub(super) const SOURCE: &str = "source";

/// The folders of a pool.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    root: PathBuf,
    names: Arc<SeededIds>,
}

impl Layout {
    /// Makes what is missing.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        const OP: &str = "storage.open";
        let fail = |what: &'static str| move |e| of_io(OP, what, dir, e);
        for kind in ["volumes", "images", "parts/volumes", "parts/images"] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o711)
                .create(dir.join(kind))
                .map_err(fail("cannot make the pool's folders"))?;
        }
        let root = dir
            .canonicalize()
            .map_err(fail("cannot find the pool's folder"))?;
        let names = Arc::new(SeededIds::from_os());
        let layout = Self { root, names };
        layout.identify(OP)?;
        sync_dir(OP, &layout.root)?;
        Ok(layout)
    }

    /// The pool's own id, as its folder says it; made if it says none.
    fn identify(&self, op: &'static str) -> Result<()> {
        let file = self.root.join(IDENTITY);
        if file.exists() {
            return self.identity(op).map(drop);
        }
        let id = uuid::Uuid::from_u128(self.names.bits());
        let part = self.root.join("parts").join(format!("{id}.pool"));
        let fail = |what: &'static str| of_io_at(op, what, &file);
        new_file(op, &part)?
            .write_all(format!("{id}\n").as_bytes())
            .map_err(fail("cannot write the pool's id"))?;
        sync_file(op, &part)?;
        // Of several that open a new pool at once, one gives it its id.
        match fs::hard_link(&part, &file) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(fail("cannot name the pool's id")(e)),
        }
        fs::remove_file(&part).map_err(fail("cannot remove the pool's id"))?;
        self.identity(op).map(drop)
    }

    /// The pool's own id.
    pub(super) fn identity(&self, op: &'static str) -> Result<uuid::Uuid> {
        let file = self.root.join(IDENTITY);
        let text = fs::read_to_string(&file).map_err(of_io_at(
            op,
            "cannot read the pool's id: is its file system mounted?",
            &file,
        ))?;
        text.trim().parse().map_err(|_| {
            Error::new(ErrorKind::Corrupt, op, "the pool's id is none").with("path", file.display())
        })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of the whole ones.
    fn kind(&self, id: ArtefactId) -> PathBuf {
        self.root.join(kind_of(id))
    }

    /// The folder of those that are being made or removed.
    fn parts_of_kind(&self, id: ArtefactId) -> PathBuf {
        self.root.join("parts").join(kind_of(id))
    }

    /// An artefact's directory.
    pub(super) fn dir(&self, id: ArtefactId) -> PathBuf {
        self.kind(id).join(uuid_of(id))
    }

    /// A name for the directory while it is being made or removed: another for each call, so that calls at the same
    /// moment, of other hosts too, never write into one directory.
    fn part(&self, id: ArtefactId, cluster: ClusterId) -> PathBuf {
        let call = self.names.bits();
        self.parts_of_kind(id)
            .join(format!("{}.{cluster}.{call:032x}", uuid_of(id)))
    }

    /// Every directory of an artefact that is being made or removed.
    pub(super) fn parts(&self, op: &'static str, id: ArtefactId) -> Result<Vec<PathBuf>> {
        let parts = entries(op, &self.parts_of_kind(id), |name| part_name(name, id))?;
        let of_it = parts.into_iter().filter(|((of, _), _)| *of == id);
        Ok(of_it.map(|(_, path)| path).collect())
    }

    /// Every whole directory of a volume.
    pub(super) fn volumes(&self, op: &'static str) -> Result<Vec<(ArtefactId, PathBuf)>> {
        entries(op, &self.kind(VOLUME), |name| whole_name(name, VOLUME))
    }

    /// Everything in the pool, also what is half made.
    pub(super) fn list(&self) -> Result<Vec<Artefact>> {
        const OP: &str = "storage.list";
        let mut found: BTreeMap<(ArtefactId, ClusterId), u64> = BTreeMap::new();
        for like in [VOLUME, IMAGE] {
            let parts = || entries(OP, &self.parts_of_kind(like), |name| part_name(name, like));
            // Before and after the whole ones, so that what changes over meanwhile is not missed.
            let mut dirs: BTreeMap<PathBuf, _> = BTreeMap::new();
            for ((id, of), path) in parts()? {
                dirs.insert(path, (id, Some(of)));
            }
            for (id, path) in entries(OP, &self.kind(like), |name| whole_name(name, like))? {
                dirs.insert(path, (id, None));
            }
            for ((id, of), path) in parts()? {
                dirs.insert(path, (id, Some(of)));
            }
            for (path, (id, part_of)) in dirs {
                let stored = match stored(&path) {
                    Ok(stored) => stored,
                    Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                    Err(e) => return Err(of_io(OP, "cannot look into", &path, e)),
                };
                let cluster = part_of.or_else(|| cluster_of(&path));
                let cluster = cluster.unwrap_or_else(|| {
                    tracing::warn!(artefact = %id, "nothing says whose this artefact is");
                    ClusterId::from_uuid(uuid::Uuid::nil())
                });
                *found.entry((id, cluster)).or_default() += stored;
            }
        }
        let artefact = |((id, cluster), stored)| Artefact {
            cluster,
            id,
            stored: model::Bytes(stored),
        };
        Ok(found.into_iter().map(artefact).collect())
    }
}

/// Any volume: for what depends on the kind alone.
const VOLUME: ArtefactId = ArtefactId::Volume(VolumeId::from_uuid(uuid::Uuid::nil()));
/// Any image.
const IMAGE: ArtefactId = ArtefactId::Image(ImageId::from_uuid(uuid::Uuid::nil()));

fn of_io_at<'a>(
    op: &'static str,
    what: &'static str,
    path: &'a Path,
) -> impl Fn(io::Error) -> Error + 'a {
    move |e| of_io(op, what, path, e)
}

fn kind_of(id: ArtefactId) -> &'static str {
    match id {
        ArtefactId::Volume(_) => "volumes",
        ArtefactId::Image(_) => "images",
    }
}

/// What is in a folder, as far as its names say that it is ours.
fn entries<T>(
    op: &'static str,
    dir: &Path,
    parse: impl Fn(&OsStr) -> Option<T>,
) -> Result<Vec<(T, PathBuf)>> {
    let fail = |e| of_io(op, "cannot list the pool", dir, e);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if let Some(parsed) = parse(&entry.file_name()) {
            found.push((parsed, entry.path()));
        }
    }
    Ok(found)
}

fn uuid_of(id: ArtefactId) -> String {
    match id {
        ArtefactId::Volume(id) => id.to_string(),
        ArtefactId::Image(id) => id.to_string(),
    }
}

/// `<uuid>`; anything else is not ours.
fn whole_name(name: &OsStr, like: ArtefactId) -> Option<ArtefactId> {
    let name = name.to_str()?;
    let id = match like {
        ArtefactId::Volume(_) => ArtefactId::Volume(name.parse().ok()?),
        ArtefactId::Image(_) => ArtefactId::Image(name.parse().ok()?),
    };
    (uuid_of(id) == name).then_some(id)
}

/// `<uuid>.<cluster>.<call>`; anything else is not ours.
fn part_name(name: &OsStr, like: ArtefactId) -> Option<(ArtefactId, ClusterId)> {
    let (uuid, rest) = name.to_str()?.split_once('.')?;
    let (cluster, call) = rest.split_once('.')?;
    u128::from_str_radix(call, 16).ok()?;
    Some((whole_name(OsStr::new(uuid), like)?, cluster.parse().ok()?))
}

/// Whose the artefact in `dir` is.
pub(super) fn cluster_of(dir: &Path) -> Option<ClusterId> {
    let mut text = String::new();
    let file = File::open(dir.join(CLUSTER)).ok()?;
    file.take(64).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// The bytes that the files in `dir` take up.
pub(super) fn stored(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        match entry?.metadata() {
            Ok(meta) => bytes += meta.blocks() * 512,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(bytes)
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(op: &'static str, dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(|e| of_io(op, "cannot sync the folder", dir, e))
}

/// Makes a file's bytes durable.
pub(super) fn sync_file(op: &'static str, file: &Path) -> Result<()> {
    File::open(file)
        .and_then(|f| f.sync_all())
        .map_err(|e| of_io(op, "cannot sync the file", file, e))
}

/// An empty file that only its owner may read, for `qemu-img` to fill.
pub(super) fn new_file(op: &'static str, path: &Path) -> Result<File> {
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| of_io(op, "cannot make the file", path, e))
}

/// Makes an artefact's directory, so that it has its name only once it says whose it is.
pub(super) fn begin(
    op: &'static str,
    layout: &Layout,
    id: ArtefactId,
    cluster: ClusterId,
) -> Result<PathBuf> {
    let dir = layout.dir(id);
    // More than one round only when another process makes or removes the same one.
    for _ in 0..16 {
        if dir.is_dir() {
            return Ok(dir);
        }
        let part = layout.part(id, cluster);
        let fail = |what: &'static str| {
            let part = part.clone();
            move |e| of_io(op, what, &part, e)
        };
        fs::DirBuilder::new()
            .mode(0o711)
            .create(&part)
            .map_err(fail("cannot make the folder"))?;
        crate::crash::point("create.part-made");
        let filled = new_file(op, &part.join(CLUSTER)).and_then(|mut file| {
            writeln!(file, "{cluster}")
                .and_then(|()| file.sync_all())
                .map_err(fail("cannot write the cluster's id"))?;
            new_file(op, &part.join(LOCK))?;
            new_file(op, &part.join(DATA_LOCK))?;
            sync_dir(op, &part)
        });
        match filled {
            Ok(()) => {}
            // Another call has made the artefact, or removes it, and took this for a leftover.
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(e) => {
                let _ = remove_tree(op, &part);
                return Err(e);
            }
        }
        match fs::rename(&part, &dir) {
            Ok(()) => {
                sync_dir(op, &layout.kind(id))?;
                crate::crash::point("create.stamped");
                return Ok(dir);
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(_) if dir.is_dir() => remove_tree(op, &part)?,
            Err(e) => return Err(fail("cannot name the folder")(e)),
        }
    }
    Err(Error::new(
        ErrorKind::Conflict,
        op,
        format!("another process makes and removes {id} at the same time"),
    ))
}

/// Takes an artefact's name away: whoever waits for its lock finds nothing. What it had is removed by
/// [`remove_tree`] of the path returned, after the locks are given back, since NFS keeps a name for an open file.
pub(super) fn unname(
    op: &'static str,
    layout: &Layout,
    id: ArtefactId,
    cluster: ClusterId,
) -> Result<PathBuf> {
    let dir = layout.dir(id);
    let part = layout.part(id, cluster);
    match fs::rename(&dir, &part) {
        Ok(()) => sync_dir(op, &layout.kind(id))?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(of_io(op, "cannot remove the folder", &dir, e)),
    }
    crate::crash::point("delete.renamed");
    Ok(part)
}

/// Removes a directory and what is in it, durably; one that is not there is no error.
pub(super) fn remove_tree(op: &'static str, dir: &Path) -> Result<()> {
    // A call that is filling the directory puts three files there at most.
    let mut rounds = 0..4;
    loop {
        match fs::remove_dir_all(dir) {
            Ok(()) => return dir.parent().map_or(Ok(()), |above| sync_dir(op, above)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty && rounds.next().is_some() => {}
            Err(e) => return Err(of_io(op, "cannot remove the folder", dir, e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_are_taken() {
        let uuid = "018b0000-0000-7000-8000-000000000001";
        assert!(whole_name(OsStr::new(uuid), VOLUME).is_some());
        let part = format!("{uuid}.{uuid}.00000000000000000000000000000007");
        assert!(part_name(OsStr::new(&part), VOLUME).is_some());
        for foreign in [
            "lost+found",
            "018B0000-0000-7000-8000-000000000001",
            "018b0000000070008000000000000001",
            "018b0000-0000-7000-8000-000000000001.part",
            "018b0000-0000-7000-8000-000000000001.018b0000-0000-7000-8000-000000000001",
            "..",
        ] {
            assert!(
                whole_name(OsStr::new(foreign), VOLUME).is_none(),
                "{foreign}"
            );
            assert!(
                part_name(OsStr::new(foreign), VOLUME).is_none(),
                "{foreign}"
            );
        }
    }
}
