//! The bytes of a console or a screen, between its domain and who asked for it.
//!
//! The output alone decides the end: a guest that has stopped takes no input any more, while its last words are still on
//! their way. Who asked has gone when nothing more can come from it; whether it still reads is not known then.

use std::future::pending;
use std::pin::Pin;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy, sink, split};
use tokio::time::timeout;

use super::{OPERATION, SILENCE, wire};
use crate::driver::ByteStream;
use crate::error::{Error, ErrorKind, Result};

const PIECE: usize = 8 << 10;
/// How much is kept of what was typed and the domain does not take. More ends the connection: not to read on would hide that
/// who types has gone.
const MAX_HELD: usize = 256 << 10;
/// How long the domain has for what was typed last.
const LAST: Duration = Duration::from_secs(1);

/// Until the output ends, fails, or who asked has gone. An output that fails leaves the connection without TLS's word of an
/// orderly end, so that the reader is told.
pub(super) async fn relay<S: AsyncRead + AsyncWrite + Unpin>(
    domain: Pin<Box<dyn ByteStream>>,
    asker: &mut S,
) -> Result<()> {
    let (mut output, input) = split(domain);
    let (mut typed, mut shown) = split(&mut *asker);
    let ended = tokio::select! {
        // What is typed first: a guest that talks much must not hide it.
        biased;
        typed = typing(&mut typed, input) => {
            typed?;
            let _ = timeout(LAST, wire::end(&mut shown)).await;
            return Ok(());
        }
        ended = copy(&mut output, &mut shown) => ended,
    };
    ended.map_err(|e| cut("what the domain shows was cut").caused_by(e))?;
    let end = async {
        wire::end(&mut shown).await;
        let _ = timeout(SILENCE, pending::<()>()).await;
    };
    // To close on what was still typed would cut the last bytes of the output (TCP resets such a connection).
    let mut nowhere = sink();
    tokio::select! {
        () = end => {}
        _ = copy(&mut typed, &mut nowhere) => {}
    }
    Ok(())
}

fn cut(message: &'static str) -> Error {
    Error::new(ErrorKind::Unavailable, OPERATION, message)
}

/// Hands what is typed to the domain, as long as that takes it, until who types has gone.
async fn typing(
    from: &mut (impl AsyncRead + Unpin),
    mut to: impl AsyncWrite + Unpin,
) -> Result<()> {
    let mut piece = [0; PIECE];
    let mut held = BytesMut::new();
    let (mut takes, mut flushed) = (true, true);
    loop {
        let to_do = takes && !(held.is_empty() && flushed);
        tokio::select! {
            read = from.read(&mut piece) => match read {
                Ok(length @ 1..) => {
                    if takes {
                        held.extend_from_slice(&piece[..length]);
                    }
                    if held.len() > MAX_HELD {
                        return Err(cut("the guest does not take what is typed"));
                    }
                }
                _ => break,
            },
            moved = push(&mut to, &held), if to_do => match moved {
                Ok(0) if held.is_empty() => flushed = true,
                Ok(length @ 1..) => {
                    held.advance(length);
                    flushed = false;
                }
                _ => {
                    takes = false;
                    held.clear();
                }
            },
        }
    }
    let last = async {
        to.write_all(&held).await?;
        to.flush().await
    };
    if takes && let Ok(Err(error)) = timeout(LAST, last).await {
        tracing::debug!(%error, "what was typed last was not taken");
    }
    Ok(())
}

/// One step, which may be given up in the middle.
async fn push(to: &mut (impl AsyncWrite + Unpin), held: &[u8]) -> std::io::Result<usize> {
    if held.is_empty() {
        to.flush().await.map(|()| 0)
    } else {
        to.write(held).await
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::task::{Context, Poll};

    use tokio::io::{DuplexStream, ReadBuf, duplex};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// What a domain shows, of which none takes input any more.
    struct Ended<R>(R);

    impl<R: AsyncRead + Unpin> AsyncRead for Ended<R> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    impl<R: Unpin> AsyncWrite for Ended<R> {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    async fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap());
        let (near, far) = tokio::join!(near, listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    #[tokio::test]
    async fn the_last_words_arrive_although_more_is_typed() {
        const WORDS: u64 = 4 << 20;
        let (near, mut far) = connection().await;
        let console = Box::pin(Ended(tokio::io::repeat(b'x').take(WORDS)));
        let relayed = tokio::spawn(async move { relay(console, &mut far).await });
        let (mut output, mut input) = near.into_split();
        let typist =
            tokio::spawn(async move { while input.write_all(b"typed\n").await.is_ok() {} });
        let mut seen = Vec::new();
        let mut piece = vec![0; 1000];
        loop {
            let length = output.read(&mut piece).await.unwrap();
            if length == 0 {
                break;
            }
            seen.extend_from_slice(&piece[..length]);
        }
        assert_eq!(seen.len() as u64, WORDS);
        typist.abort();
        assert!(typist.await.is_err());
        relayed.await.unwrap().unwrap();
    }

    fn silent() -> (Pin<Box<dyn ByteStream>>, DuplexStream) {
        let (console, guest) = duplex(64);
        (Box::pin(console), guest)
    }

    #[tokio::test]
    async fn what_is_typed_arrives_and_who_has_gone_holds_nothing() {
        let (console, mut guest) = silent();
        let (mut near, mut far) = duplex(64);
        let relayed = tokio::spawn(async move { relay(console, &mut far).await });
        near.write_all(b"ls\n").await.unwrap();
        let mut typed = [0; 3];
        guest.read_exact(&mut typed).await.unwrap();
        assert_eq!(&typed, b"ls\n");
        guest.write_all(b"bin\n").await.unwrap();
        let mut shown = [0; 4];
        near.read_exact(&mut shown).await.unwrap();
        assert_eq!(&shown, b"bin\n");
        near.write_all(b"exit\n").await.unwrap();
        drop(near);
        relayed.await.unwrap().unwrap();
        let mut last = Vec::new();
        guest.read_to_end(&mut last).await.unwrap();
        assert_eq!(last, b"exit\n");
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_takes_nothing_hides_nobody() {
        for (typed, gone) in [(1000, true), (MAX_HELD + 1000, false)] {
            let (console, _guest) = silent();
            let (mut near, mut far) = duplex(64);
            let relayed = tokio::spawn(async move { relay(console, &mut far).await });
            let sent = near.write_all(&vec![b'x'; typed]).await;
            if gone {
                sent.unwrap();
                drop(near);
                relayed.await.unwrap().unwrap();
            } else {
                let kind = relayed.await.unwrap().unwrap_err().kind();
                assert_eq!(kind, ErrorKind::Unavailable);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_ended_console_is_not_held_for_ever() {
        let (console, guest) = silent();
        let (_near, mut far) = duplex(64);
        drop(guest);
        let begun = tokio::time::Instant::now();
        relay(console, &mut far).await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), SILENCE.as_secs());
    }

    #[tokio::test]
    async fn an_output_that_fails_is_told() {
        struct Broken;
        impl AsyncRead for Broken {
            fn poll_read(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
                _: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                Poll::Ready(Err(io::ErrorKind::InvalidData.into()))
            }
        }
        let (_near, mut far) = duplex(64);
        let ended = relay(Box::pin(Ended(Broken)), &mut far).await;
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::Unavailable);
        // No word of an orderly end was sent: one can still write.
        far.write_all(b"x").await.unwrap();
    }
}
