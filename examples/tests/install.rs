//! A machine that is installed from a medium, and boots from its disk then.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use novacron_examples::{guest_disk, leftovers};

/// How long it may say nothing.
const PATIENCE: Duration = Duration::from_secs(100);
/// What it prints when it boots from its disk.
const INSTALLED: &[u8] = b"INSTALLED\r\n\0";

/// A boot sector: prints a word on the first serial line, and powers the machine off by q35's ACPI registers.
fn boot_sector() -> Vec<u8> {
    let mut sector = vec![
        0x31, 0xc0, // xor ax, ax
        0x8e, 0xd8, // mov ds, ax
        0xbe, 0x1d, 0x7c, // mov si, the word
        0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xfc, // cld
        0xac, // next: lodsb
        0x84, 0xc0, // test al, al
        0x74, 0x03, // jz off
        0xee, // out dx, al
        0xeb, 0xf8, // jmp next
        0xba, 0x04, 0x06, // off: mov dx, 0x604
        0xb8, 0x00, 0x20, // mov ax, 0x2000
        0xef, // out dx, ax
        0xf4, // hlt
        0xeb, 0xfd, // jmp to hlt
    ];
    sector.extend(INSTALLED);
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector
}

/// What a shell has to be told to write these bytes to a disk.
fn written(bytes: &[u8], disk: &str) -> String {
    let escaped: String = bytes.iter().map(|byte| format!("\\{byte:03o}")).collect();
    format!("printf '{escaped}' >{disk}\n")
}

/// The program, and the folder of its machine; both are gone with it, also when the test fails.
struct Site {
    folder: tempfile::TempDir,
    program: Option<Child>,
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(program) = &mut self.program {
            let _ = program.kill();
            let _ = program.wait();
        }
        let _ = leftovers::end_guests(self.folder.path());
    }
}

#[test]
fn a_machine_is_installed_from_a_medium_and_boots_from_its_disk() {
    let folder = tempfile::Builder::new().prefix("nci").tempdir().unwrap();
    let mut site = Site {
        folder,
        program: None,
    };
    let folder = site.folder.path();
    let iso = folder.join("install.iso");
    let disk = guest_disk::path().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(guest_disk::build(&disk)).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/iso.sh");
    let made = Command::new(script)
        .args([&disk, &iso])
        .arg("booted_from=cd")
        .status();
    assert!(made.unwrap().success());
    let program = Command::new(env!("CARGO_BIN_EXE_install"))
        .arg(folder.join("vms"))
        .arg(iso)
        .arg("debian12")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let program = site.program.insert(program.unwrap());
    let mut keyboard = program.stdin.take().unwrap();
    let mut screen = program.stdout.take().unwrap();
    let (told, heard) = mpsc::channel();
    std::thread::spawn(move || {
        let mut some = [0; 4096];
        while let Ok(read @ 1..) = screen.read(&mut some) {
            if told.send(some[..read].to_vec()).is_err() {
                return;
            }
        }
    });
    let mut shown = Vec::new();
    let mut is_asked = false;
    loop {
        let some = match heard.recv_timeout(PATIENCE) {
            Ok(some) => some,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                panic!("nothing more: {}", String::from_utf8_lossy(&shown))
            }
        };
        shown.extend_from_slice(&some);
        let text = String::from_utf8_lossy(&shown);
        if !is_asked && text.contains("NOVACRON-GUEST-READY") && text.ends_with("# ") {
            is_asked = true;
            let write = written(&boot_sector(), "/dev/vda");
            keyboard.write_all(b"cat /proc/cmdline\n").unwrap();
            keyboard.write_all(write.as_bytes()).unwrap();
            keyboard.write_all(b"sync; poweroff -f\n").unwrap();
        }
    }
    let text = String::from_utf8_lossy(&shown);
    assert!(program.wait().unwrap().success(), "{text}");
    assert!(text.contains("booted_from=cd"), "{text}");
    assert!(text.ends_with("INSTALLED\r\n"), "{text}");
}
