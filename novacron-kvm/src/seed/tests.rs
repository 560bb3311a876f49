//! The image as `isoinfo` reads it; the guest's own kernel reads it in the end-to-end tests.

use std::process::Command;

use super::Seed;

fn isoinfo(image: &std::path::Path, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("isoinfo")
        .arg("-i")
        .arg(image)
        .args(arguments)
        .output();
    let output = output.expect("isoinfo is missing: apt-get install genisoimage");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

#[test]
fn another_reader_sees_the_files_by_both_kinds_of_names() {
    let long = "x: 1\n".repeat(2000);
    let seed = Seed::new("instance-id: a\n", &long)
        .network_config("version: 2\n")
        .vendor_data("");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), seed.to_iso()).unwrap();

    let header = String::from_utf8(isoinfo(file.path(), &["-d"])).unwrap();
    assert!(header.contains("Volume id: cidata"), "{header}");
    assert!(header.contains("Joliet with UCS level 3 found"), "{header}");
    assert!(
        header.contains("Rock Ridge signatures version 1 found"),
        "{header}"
    );
    for option in ["-R", "-J"] {
        let list = String::from_utf8(isoinfo(file.path(), &[option, "-f"])).unwrap();
        let mut names: Vec<&str> = list.split_whitespace().collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "/meta-data",
                "/network-config",
                "/user-data",
                "/vendor-data"
            ],
            "{option}"
        );
        assert_eq!(
            isoinfo(file.path(), &[option, "-x", "/user-data"]),
            long.as_bytes(),
            "{option}"
        );
        assert_eq!(
            isoinfo(file.path(), &[option, "-x", "/meta-data"]),
            b"instance-id: a\n",
            "{option}"
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_debug_shows_no_secret() {
    let seed = Seed::new("a", "password: hunter2");
    assert_eq!(seed.to_iso(), seed.clone().to_iso());
    assert!(!format!("{seed:?}").contains("hunter2"));
}
