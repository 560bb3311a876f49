//! A relay on the loopback that loses connections where a test wants it to.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// What it does with the connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mode {
    Pass = 0,
    /// What the client says arrives; at the server's first word everything of it is cut.
    LoseAnswers = 1,
    /// No connection is made, and those that are there are cut at the next word of either side.
    Refuse = 2,
    /// About one word in forty is the last of its connection, of the client's as of the server's.
    CutAtRandom = 3,
}

/// A relay to a port of the loopback.
pub(crate) struct Proxy {
    port: u16,
    mode: Arc<AtomicU8>,
}

impl Proxy {
    pub(crate) async fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mode = Arc::new(AtomicU8::new(0));
        let shared = Arc::clone(&mode);
        let count = Arc::new(AtomicU64::new(1));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (mode, count) = (Arc::clone(&shared), Arc::clone(&count));
                tokio::spawn(async move {
                    if mode.load(Ordering::SeqCst) == Mode::Refuse as u8 {
                        return;
                    }
                    if let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await {
                        relay(client, server, &mode, &count).await;
                    }
                });
            }
        });
        Self { port, mode }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::SeqCst);
    }
}

/// Moves bytes until one side ends, or both are cut: on return both are closed.
async fn relay(mut client: TcpStream, mut server: TcpStream, mode: &AtomicU8, count: &AtomicU64) {
    let (mut asked, mut told) = (vec![0; 16384], vec![0; 16384]);
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let Ok(length @ 1..) = read else { return };
                if cut(mode, count, false) || server.write_all(&asked[..length]).await.is_err() {
                    return;
                }
            }
            read = server.read(&mut told) => {
                let Ok(length @ 1..) = read else { return };
                if cut(mode, count, true) || client.write_all(&told[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn cut(mode: &AtomicU8, count: &AtomicU64, of_server: bool) -> bool {
    match mode.load(Ordering::SeqCst) {
        1 => of_server,
        2 => true,
        3 => {
            // A walk through the numbers that looks like chance, and is the same in each run.
            let n = count
                .fetch_add(1, Ordering::Relaxed)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (n >> 32).is_multiple_of(40)
        }
        _ => false,
    }
}
