//! The hub against a stand-in for QEMU that writes the log and the socket as QEMU does.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use novacron_core::driver::ConsoleStart;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::hub::KEEP;
use super::*;

const SOON: Duration = Duration::from_secs(10);

struct Qemu {
    dir: tempfile::TempDir,
    listener: UnixListener,
}

impl Qemu {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("console.sock")).unwrap();
        Self { dir, listener }
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("console.log")
    }

    fn append(&self, text: &[u8]) {
        let mut log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.log())
            .unwrap();
        log.write_all(text).unwrap();
    }

    async fn hub(&self) -> (ConsoleHub, UnixStream) {
        let socket = self.dir.path().join("console.sock");
        let (hub, accepted) = tokio::join!(
            ConsoleHub::connect(&socket, self.log()),
            self.listener.accept()
        );
        (hub.unwrap(), accepted.unwrap().0)
    }
}

async fn text_of(reader: &mut ConsoleReader, length: usize) -> String {
    let mut seen = Vec::new();
    while seen.len() < length {
        seen.extend(
            timeout(SOON, reader.read())
                .await
                .unwrap()
                .unwrap()
                .expect("ended early"),
        );
    }
    String::from_utf8(seen).unwrap()
}

#[tokio::test]
async fn history_and_live_bytes_reach_every_reader_and_input_the_guest() {
    let qemu = Qemu::new();
    qemu.append(b"before ");
    let (hub, mut socket) = qemu.hub().await;
    let (mut first, mut second) = (hub.reader(0), hub.reader(3));
    // The socket may be ahead of the log.
    socket.write_all(b"after").await.unwrap();
    let late = async {
        tokio::task::yield_now().await;
        qemu.append(b"after");
    };
    let (text, ()) = tokio::join!(text_of(&mut first, 12), late);
    assert_eq!(text, "before after");
    assert_eq!(text_of(&mut second, 9).await, "ore after");

    hub.input().send(Bytes::from_static(b"ls\n")).await.unwrap();
    let mut typed = [0; 3];
    socket.read_exact(&mut typed).await.unwrap();
    assert_eq!(&typed, b"ls\n");

    // The host application goes and comes back; its readers go on where they were.
    let offset = first.offset();
    drop((hub, socket));
    qemu.append(b" meanwhile");
    let (hub, socket) = qemu.hub().await;
    let mut resumed = hub.reader(offset);
    assert_eq!(text_of(&mut resumed, 10).await, " meanwhile");
    qemu.append(b" bye");
    drop(socket);
    assert_eq!(text_of(&mut resumed, 4).await, " bye");
    assert_eq!(timeout(SOON, resumed.read()).await.unwrap().unwrap(), None);
}

#[tokio::test]
async fn a_long_log_loses_its_head_and_keeps_its_offsets() {
    let qemu = Qemu::new();
    qemu.append(&vec![b'x'; KEEP as usize + (1 << 20)]);
    qemu.append(b"end");
    let length = KEEP + (1 << 20) + 3;
    hub::punch(&qemu.log());
    let (hub, _socket) = qemu.hub().await;
    let place = |start| place(&qemu.log(), start).unwrap();
    let oldest = place(ConsoleStart::Offset(0));
    assert!(oldest > 0, "the head is gone");
    assert_eq!(place(ConsoleStart::Last(u64::MAX)), oldest);
    let mut reader = hub.reader(oldest);
    let first = timeout(SOON, reader.read()).await.unwrap().unwrap();
    assert_eq!(first.unwrap()[0], b'x', "no zeros of a hole");
    let mut reader = hub.reader(place(ConsoleStart::Last(3)));
    assert_eq!(text_of(&mut reader, 3).await, "end");
    assert_eq!(place(ConsoleStart::Offset(u64::MAX)), length);
    let error = hub.reader(0).read().await.unwrap_err();
    assert!(error.to_string().contains("not kept any more"), "{error}");
}
