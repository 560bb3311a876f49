//! What guests boot beside the usual kernel and initramfs.
#![allow(dead_code, reason = "no test file uses all of it")]

use std::path::{Path, PathBuf};

use novacron_core::model::KernelBoot;

/// Debian's kernel that has the drivers of the watchdog and of SATA; `make test` takes its package apart.
pub(crate) fn generic_kernel() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let dir = root.join("target/generic-kernel");
    let there = dir.join("vmlinuz").exists();
    assert!(
        there,
        "there is no {0}: make deps, and examples/guest/generic-kernel.sh {0}",
        dir.display()
    );
    dir
}

/// Boots that kernel instead, with these of its modules beside what is in the usual initramfs, which `dir` gets a copy of. What
/// the guest runs to load them.
pub(crate) fn with_modules(boot: &mut KernelBoot, modules: &[&str], dir: &Path) -> String {
    let from = generic_kernel();
    let mut archive = Archive::default();
    for module in modules {
        let file = format!("{module}.ko");
        archive.add(&file, &std::fs::read(from.join(&file)).unwrap());
    }
    let mut both = std::fs::read(boot.initrd.take().unwrap()).unwrap();
    both.resize(both.len().next_multiple_of(4), 0);
    both.extend(archive.end());
    let initrd = dir.join("initrd.img");
    std::fs::write(&initrd, both).unwrap();
    boot.initrd = Some(initrd);
    boot.kernel = from.join("vmlinuz");
    let load = modules.iter().map(|module| format!("insmod /{module}.ko"));
    load.collect::<Vec<_>>().join("; ")
}

/// A cpio archive in the format of Linux' initramfs.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    folders: std::collections::BTreeSet<PathBuf>,
}

impl Archive {
    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        let fields = [
            1,
            mode,
            0,
            0,
            1,
            0,
            content.len() as u32,
            0,
            0,
            device.0,
            device.1,
            name.len() as u32 + 1,
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(content);
        self.align();
    }

    fn align(&mut self) {
        let padded = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(padded, 0);
    }

    fn parents(&mut self, name: &str) {
        let mut parents: Vec<_> = Path::new(name).ancestors().skip(1).collect();
        parents.reverse();
        for parent in parents.into_iter().skip(1) {
            if self.folders.insert(parent.to_owned()) {
                self.entry(parent.to_str().unwrap(), 0o040_755, (0, 0), &[]);
            }
        }
    }

    pub(crate) fn add(&mut self, name: &str, content: &[u8]) {
        self.parents(name);
        self.entry(name, 0o100_755, (0, 0), content);
    }

    pub(crate) fn device(&mut self, name: &str, major: u32, minor: u32) {
        self.parents(name);
        self.entry(name, 0o020_600, (major, minor), &[]);
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }
}
