//! The parser against headers written by hand, random bytes and mutations.

use proptest::prelude::*;

use super::*;

const MAX: u64 = 1 << 40;
const LENGTH: u64 = 4 * 65_536;

/// A header as `qemu-img create` writes it: 1 GiB, 64 KiB clusters.
fn valid() -> Vec<u8> {
    let mut head = vec![0u8; 4096];
    put(&mut head, 0, &MAGIC);
    put32(&mut head, 4, 3);
    put32(&mut head, 20, 16);
    put64(&mut head, 24, 1 << 30);
    put32(&mut head, 36, 2);
    put64(&mut head, 40, 3 * 65_536);
    put64(&mut head, 48, 65_536);
    put32(&mut head, 56, 1);
    put32(&mut head, 96, 4);
    put32(&mut head, 100, 112);
    put32(&mut head, 112, 0x6803_f857);
    put32(&mut head, 116, 144);
    head
}

fn put(head: &mut [u8], at: usize, bytes: &[u8]) {
    head[at..at + bytes.len()].copy_from_slice(bytes);
}

fn put32(head: &mut [u8], at: usize, value: u32) {
    put(head, at, &value.to_be_bytes());
}

fn put64(head: &mut [u8], at: usize, value: u64) {
    put(head, at, &value.to_be_bytes());
}

#[test]
fn a_plain_header_is_read() {
    assert_eq!(parse(&valid(), LENGTH, MAX).unwrap().size, 1 << 30);
}

#[test]
fn every_lie_is_refused_with_its_reason() {
    type Lie = (&'static str, fn(&mut Vec<u8>));
    let lies: [Lie; 26] = [
        ("version 1", |h| put32(h, 4, 1)),
        ("version 9", |h| put32(h, 4, 9)),
        ("backing file", |h| {
            put64(h, 8, 512);
            put32(h, 16, 11);
        }),
        ("backing file whose name", |h| put64(h, 8, 1 << 40)),
        ("backing file whose name", |h| put32(h, 16, 5)),
        ("cluster size", |h| put32(h, 20, 8)),
        ("cluster size", |h| put32(h, 20, 22)),
        ("cluster size", |h| put32(h, 20, u32::MAX)),
        ("no size", |h| put64(h, 24, 0)),
        ("room for less", |h| put64(h, 24, u64::MAX)),
        ("room for less", |h| put64(h, 24, 2 << 30)),
        ("encrypted", |h| put32(h, 32, 1)),
        ("L1 table is larger", |h| put32(h, 36, u32::MAX)),
        ("L1 table lies outside", |h| put64(h, 40, LENGTH)),
        ("L1 table is not at", |h| put64(h, 40, 8)),
        ("refcount table lies outside", |h| put64(h, 48, 1 << 62)),
        ("refcount table's size", |h| put32(h, 56, 0)),
        ("refcount table's size", |h| put32(h, 56, u32::MAX)),
        ("more internal snapshots", |h| put32(h, 60, u32::MAX)),
        ("snapshot table", |h| {
            put32(h, 60, 1);
            put64(h, 64, LENGTH);
        }),
        ("not closed properly", |h| put64(h, 72, INCOMPATIBLE_DIRTY)),
        ("corrupt", |h| put64(h, 72, INCOMPATIBLE_CORRUPT)),
        ("external file", |h| put64(h, 72, INCOMPATIBLE_DATA_FILE)),
        ("not known: 0x80", |h| put64(h, 72, 0x80)),
        ("external data file", |h| {
            put32(h, 112, EXTENSION_DATA_FILE);
            put32(h, 116, 11);
        }),
        ("runs out of the header", |h| put32(h, 116, u32::MAX)),
    ];
    for (reason, lie) in lies {
        let mut head = valid();
        lie(&mut head);
        let refused = parse(&head, LENGTH, MAX).unwrap_err();
        assert!(
            refused.0.contains(reason),
            "wanted {reason:?}, got {refused}"
        );
    }
}

#[test]
fn a_size_over_the_limit_is_refused() {
    let mut head = valid();
    put32(&mut head, 36, 1 << 20);
    put64(&mut head, 24, 1 << 45);
    let refused = parse(&head, 16 << 20, MAX).unwrap_err();
    assert!(refused.0.contains("at most"), "{refused}");
}

#[test]
fn a_header_cut_off_anywhere_is_refused() {
    let head = valid();
    for length in 0..112 {
        assert!(parse(&head[..length], LENGTH, MAX).is_err(), "{length}");
    }
}

#[test]
fn a_layer_names_its_backing_file() {
    let mut head = valid();
    put64(&mut head, 8, 512);
    put32(&mut head, 16, 10);
    put(&mut head, 512, b"base.qcow2");
    let (size, backing) = layer(&head, LENGTH).unwrap();
    assert_eq!((size, backing.as_deref()), (1 << 30, Some("base.qcow2")));
}

/// What holds of every header that is let in, whatever the bytes were.
fn holds(head: &[u8], length: u64) {
    let Ok(header) = parse(head, length, MAX) else {
        return;
    };
    assert!(header.size > 0 && header.size <= MAX);
    assert_eq!(head[8..20], [0; 12], "a backing file");
    assert_eq!(head[32..36], [0; 4], "encrypted");
    let l1_end = u64_at(head, 40).unwrap() + u64::from(u32_at(head, 36).unwrap()) * 8;
    assert!(l1_end <= length);
    assert!(u64_at(head, 48).unwrap() < length);
    if head[7] == 3 {
        assert_eq!(head[72..79], [0; 7]);
        assert_eq!(head[79] & 0b1110_0111, 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn random_bytes_do_no_harm(tail in proptest::collection::vec(any::<u8>(), 0..600), length: u64) {
        let mut head = MAGIC.to_vec();
        head.extend(tail);
        holds(&head, length);
    }

    #[test]
    fn mutated_headers_do_no_harm(
        edits in proptest::collection::vec((0usize..300, any::<u8>()), 1..8),
        length in 0u64..(1 << 24),
        cut in 0usize..4096,
    ) {
        let mut head = valid();
        for (at, byte) in edits {
            head[at] = byte;
        }
        holds(&head, length);
        holds(&head[..cut], length);
        let _ = layer(&head, length);
    }
}
