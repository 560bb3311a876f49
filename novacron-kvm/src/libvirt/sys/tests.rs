//! On libvirt's own test driver, which lies in the library: no daemon, and nothing runs.

use std::io::Write;
use std::sync::mpsc;
use std::time::Duration;

use uuid::Uuid;

use super::super::event_loop::EventLoop;
use super::*;

fn open() -> Conn {
    EventLoop::Own.ensure().unwrap();
    // A host of this connection's own: that of `test:///default` is the process's.
    let mut host = tempfile::NamedTempFile::new().unwrap();
    host.write_all(b"<node/>").unwrap();
    let uri = format!("test://{}", host.path().display());
    Conn::open(&uri).unwrap()
}

/// The test driver cannot start with vCPUs held.
fn start(dom: &Dom) {
    // SAFETY: a valid domain.
    done(unsafe { virt_sys::virDomainCreate(dom.pointer()) }).unwrap();
}

fn xml(n: u128) -> String {
    let uuid = Uuid::from_u128(n);
    format!(
        "<domain type='test'><name>d{n}</name><uuid>{uuid}</uuid><memory unit='MiB'>64</memory>\
         <os><type>hvm</type></os></domain>"
    )
}

#[test]
fn a_domain_is_defined_started_noted_and_undefined() {
    let conn = open();
    let dom = conn.define(&xml(1)).unwrap();
    assert_eq!(dom.state().unwrap().state, code::VIR_DOMAIN_SHUTOFF);
    dom.note("<x a='1'/>", "k", "urn:k").unwrap();
    assert!(dom.xml(true).unwrap().contains("xmlns:k=\"urn:k\""));
    assert!(
        dom.create_paused()
            .unwrap_err()
            .is(code::VIR_ERR_INVALID_ARG)
    );
    start(&dom);
    dom.suspend().unwrap();
    assert_eq!(dom.state().unwrap().state, code::VIR_DOMAIN_PAUSED);
    dom.resume().unwrap();
    assert_eq!(conn.domains().unwrap().len(), 1);
    let stats = Stats::of(&conn.domains().unwrap()).unwrap();
    assert_eq!(stats[0].0, Uuid::from_u128(1));
    assert_eq!(stats[0].1.state().unwrap().state, code::VIR_DOMAIN_RUNNING);
    dom.destroy().unwrap();
    dom.undefine(Undefine::Plain).unwrap();
    assert!(conn.lookup(Uuid::from_u128(1)).unwrap().is_none());
}

#[test]
fn errors_come_with_their_number_and_words() {
    let conn = open();
    let error = conn.define("<nonsense/>").unwrap_err();
    assert!(error.is(code::VIR_ERR_XML_ERROR), "{error:?}");
    assert!(!error.message.is_empty());
    let error = conn.define("<a>\0</a>").unwrap_err();
    assert!(error.message.contains("NUL"), "{error:?}");
    let error = Conn::open("nonsense:///").unwrap_err();
    assert_ne!(error.code, 0, "{error:?}");
}

#[test]
fn events_come_until_the_subscription_goes() {
    let conn = open();
    let (sender, events) = mpsc::channel();
    let sink = move |event| sender.send(event).unwrap();
    let subscription = Subscription::new(&conn, sink).unwrap();
    let dom = conn.define(&xml(2)).unwrap();
    start(&dom);
    let soon = Duration::from_secs(30);
    let domain = Uuid::from_u128(2);
    loop {
        match events.recv_timeout(soon).unwrap() {
            Event::Lifecycle {
                domain: of, event, ..
            } if of == domain && event == virt_sys::VIR_DOMAIN_EVENT_STARTED => break,
            _ => {}
        }
    }
    drop(subscription);
    // The closure was freed: its end of the channel is gone.
    while events.recv_timeout(soon).is_ok() {}
    assert_eq!(
        events.recv_timeout(soon),
        Err(mpsc::RecvTimeoutError::Disconnected)
    );
}

#[test]
fn a_panic_in_a_callback_does_not_cross_into_c() {
    let conn = open();
    let (sender, events) = mpsc::channel();
    let _subscription = Subscription::new(&conn, move |_| {
        sender.send(()).unwrap();
        panic!("meant");
    })
    .unwrap();
    let dom = conn.define(&xml(3)).unwrap();
    start(&dom);
    for _ in 0..2 {
        events.recv_timeout(Duration::from_secs(30)).unwrap();
    }
}

/// Bytes that are allocated and not freed, in all of the C library's arenas: Rust's and libvirt's.
fn allocated() -> usize {
    /// glibc's `struct mallinfo2`.
    #[derive(Default)]
    #[repr(C)]
    struct MallInfo {
        before: [usize; 7],
        uordblks: usize,
        after: [usize; 2],
    }
    unsafe extern "C" {
        safe fn mallinfo2() -> MallInfo;
    }
    mallinfo2().uordblks
}

#[test]
fn ten_thousand_rounds_leak_nothing() {
    let conn = open();
    let rounds = |count: u128| {
        for n in 0..count {
            let subscription = Subscription::new(&conn, |_| {}).unwrap();
            let dom = conn.define(&xml(1000 + n)).unwrap();
            dom.note("<x/>", "k", "urn:k").unwrap();
            start(&dom);
            let again = conn.lookup(Uuid::from_u128(1000 + n)).unwrap().unwrap();
            again.xml(false).unwrap();
            Stats::of(&conn.domains().unwrap()).unwrap();
            conn.lookup(Uuid::from_u128(7)).unwrap();
            again.destroy().unwrap();
            dom.undefine(Undefine::Plain).unwrap();
            drop(subscription);
        }
    };
    rounds(500);
    let before = allocated();
    rounds(10_000);
    let grown = allocated().saturating_sub(before);
    // malloc's smallest chunk, lost once per round, is 320,000 bytes. What threads keep for their next calls is less.
    assert!(grown < 160_000, "{grown} bytes more after 10,000 rounds");
}
