//! A TCP proxy in front of a server, which holds bytes back and cuts connections when a test says so.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Clone, Copy)]
struct Mode {
    /// Whether requests pass; held back otherwise.
    requests: bool,
    /// Whether answers pass; held back otherwise.
    answers: bool,
    /// Whether new connections are taken.
    open: bool,
    /// Connections of an earlier one are cut.
    generation: u64,
}

pub(crate) struct Proxy {
    port: u16,
    mode: Arc<watch::Sender<Mode>>,
}

impl Proxy {
    pub(crate) async fn start(to: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mode = Arc::new(watch::Sender::new(Mode {
            requests: true,
            answers: true,
            open: true,
            generation: 0,
        }));
        tokio::spawn(accept(listener, to, mode.subscribe()));
        Self { port, mode }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn change(&self, change: impl FnOnce(&mut Mode)) {
        self.mode.send_modify(change);
    }

    /// Requests do not arrive from now on.
    pub(crate) fn hold_requests(&self) {
        self.change(|mode| mode.requests = false);
    }

    /// Requests arrive, but answers do not from now on.
    pub(crate) fn hold_answers(&self) {
        self.change(|mode| mode.answers = false);
    }

    /// What is held back passes, and all that follows.
    pub(crate) fn release(&self) {
        self.change(|mode| (mode.requests, mode.answers, mode.open) = (true, true, true));
    }

    /// Cuts every connection, with what is held back; new ones are refused.
    pub(crate) fn cut(&self) {
        self.change(|mode| {
            mode.generation += 1;
            mode.open = false;
        });
    }

    /// Cuts every connection, with what is held back; new ones are as if nothing had been.
    pub(crate) fn cut_once(&self) {
        self.change(|mode| {
            mode.generation += 1;
            (mode.requests, mode.answers, mode.open) = (true, true, true);
        });
    }
}

async fn accept(listener: TcpListener, to: u16, mode: watch::Receiver<Mode>) {
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let present = *mode.borrow();
        if !present.open {
            continue;
        }
        let Ok(server) = TcpStream::connect(("127.0.0.1", to)).await else {
            continue;
        };
        let ((from_client, to_client), (from_server, to_server)) =
            (client.into_split(), server.into_split());
        let generation = present.generation;
        let requests = pipe(from_client, to_server, mode.clone(), generation, |m| {
            m.requests
        });
        let answers = pipe(from_server, to_client, mode.clone(), generation, |m| {
            m.answers
        });
        tokio::spawn(requests);
        tokio::spawn(answers);
    }
}

async fn pipe(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
    generation: u64,
    passes: fn(&Mode) -> bool,
) {
    let mut cut = mode.clone();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            _ = cut.wait_for(|mode| mode.generation != generation) => return,
        };
        let Ok(bytes @ 1..) = read else { return };
        let Ok(state) = mode
            .wait_for(|mode| mode.generation != generation || passes(mode))
            .await
            .map(|m| *m)
        else {
            return;
        };
        if state.generation != generation || to.write_all(&buffer[..bytes]).await.is_err() {
            return;
        }
    }
}
