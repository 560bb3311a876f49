//! A relay on the loopback in front of a server, which holds words back and cuts connections where a test wants it to.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What becomes of the words of one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Words {
    Pass,
    /// They wait until they may pass, or until their connection is cut.
    Wait,
    /// They are lost, and their connection is cut.
    Cut,
    /// About one in forty is the last of its connection.
    CutAtRandom,
}

#[derive(Clone, Copy, Debug)]
struct Mode {
    requests: Words,
    answers: Words,
    /// Whether new connections are taken.
    open: bool,
    /// Connections of an earlier one are cut.
    generation: u64,
}

const QUIET: Mode = Mode {
    requests: Words::Pass,
    answers: Words::Pass,
    open: true,
    generation: 0,
};

/// A relay to a port of the loopback.
pub(crate) struct Proxy {
    port: u16,
    mode: watch::Sender<Mode>,
}

impl Proxy {
    pub(crate) async fn to(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mode = watch::Sender::new(QUIET);
        tokio::spawn(accept(listener, server, mode.subscribe()));
        Self { port, mode }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Requests do not arrive from now on.
    pub(crate) fn hold_requests(&self) {
        self.mode.send_modify(|mode| mode.requests = Words::Wait);
    }

    /// Requests arrive, but answers do not from now on.
    pub(crate) fn hold_answers(&self) {
        self.mode.send_modify(|mode| mode.answers = Words::Wait);
    }

    /// Requests arrive; at the first word of the answer their connection is cut.
    pub(crate) fn lose_answers(&self) {
        self.mode.send_modify(|mode| mode.answers = Words::Cut);
    }

    /// About one word in forty is the last of its connection, of the client's as of the server's.
    pub(crate) fn cut_at_random(&self) {
        self.mode.send_modify(|mode| {
            (mode.requests, mode.answers) = (Words::CutAtRandom, Words::CutAtRandom);
        });
    }

    /// What is held back passes, and all that follows.
    pub(crate) fn release(&self) {
        self.mode.send_modify(|mode| {
            let generation = mode.generation;
            *mode = Mode {
                generation,
                ..QUIET
            };
        });
    }

    /// Cuts every connection, with what is held back; new ones are refused.
    pub(crate) fn cut(&self) {
        self.mode.send_modify(|mode| {
            mode.generation += 1;
            mode.open = false;
        });
    }

    /// Cuts every connection, with what is held back; new ones are as if nothing had been.
    pub(crate) fn cut_once(&self) {
        self.mode.send_modify(|mode| {
            let generation = mode.generation + 1;
            *mode = Mode {
                generation,
                ..QUIET
            };
        });
    }
}

async fn accept(listener: TcpListener, server: u16, mode: watch::Receiver<Mode>) {
    let count = Arc::new(AtomicU64::new(1));
    while let Ok((client, _)) = listener.accept().await {
        let present = *mode.borrow();
        if present.open {
            let (mode, count) = (mode.clone(), Arc::clone(&count));
            tokio::spawn(async move {
                if let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await {
                    relay(client, server, mode, present.generation, &count).await;
                }
            });
        }
    }
}

/// Moves words until one side ends, or both are cut: on return both are closed.
async fn relay(
    client: TcpStream,
    server: TcpStream,
    mut mode: watch::Receiver<Mode>,
    generation: u64,
    count: &AtomicU64,
) {
    let ((asked, tell), (told, ask)) = (client.into_split(), server.into_split());
    let (requests, answers) = (mode.clone(), mode.clone());
    tokio::select! {
        // First, so that what is held back does not pass when its connection is cut.
        biased;
        _ = mode.wait_for(|mode| mode.generation != generation) => {}
        () = pipe(asked, ask, requests, |mode| mode.requests, count) => {}
        () = pipe(told, tell, answers, |mode| mode.answers, count) => {}
    }
}

/// Moves words one way until their end.
async fn pipe(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
    words: fn(&Mode) -> Words,
    count: &AtomicU64,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let Ok(length @ 1..) = from.read(&mut buffer).await else {
            return;
        };
        let Ok(fate) = mode
            .wait_for(|mode| words(mode) != Words::Wait)
            .await
            .map(|mode| words(&mode))
        else {
            return;
        };
        let cut = fate == Words::Cut || (fate == Words::CutAtRandom && unlucky(count));
        if cut || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

/// A walk through the numbers that looks like chance, and is the same in each run.
fn unlucky(count: &AtomicU64) -> bool {
    let n = count.fetch_add(1, Ordering::Relaxed);
    (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32).is_multiple_of(40)
}
