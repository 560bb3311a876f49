//! The bytes of a console or a screen, between its domain and who asked for it.
//!
//! The output alone decides the end: a guest that has stopped takes no input any more, while its last words are still on
//! their way. Who asked tells by closing the connection that it has gone; the end of its input is not told (`Far`).

use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy, split};
use tokio::time::timeout;

use super::{OPERATION, SILENCE, wire};
use crate::driver::ByteStream;
use crate::error::{Error, ErrorKind, Result};

const PIECE: usize = 8 << 10;

/// Until the output ends, fails, or who asked has gone. An output that fails leaves the connection without TLS's word of an
/// orderly end, so that the reader is told.
pub(super) async fn relay<S: AsyncRead + AsyncWrite + Unpin>(
    domain: Pin<Box<dyn ByteStream>>,
    asker: &mut S,
) -> Result<()> {
    let (mut output, input) = split(domain);
    let (mut typed, mut shown) = split(&mut *asker);
    let ended = tokio::select! {
        ended = copy(&mut output, &mut shown) => ended,
        () = typing(&mut typed, Some(input)) => return Ok(()),
    };
    drop((typed, shown));
    ended.map_err(|e| {
        let message = "what the domain shows was cut";
        Error::new(ErrorKind::Unavailable, OPERATION, message).caused_by(e)
    })?;
    wire::end(asker).await;
    // To close on what was still typed would cut the last bytes of the output (TCP resets such a connection).
    let _ = timeout(SILENCE, typing(asker, None::<tokio::io::Empty>)).await;
    Ok(())
}

/// Hands what is typed to the domain, as long as that takes it, until who types has gone.
async fn typing(from: &mut (impl AsyncRead + Unpin), mut to: Option<impl AsyncWrite + Unpin>) {
    let mut piece = [0; PIECE];
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        if let Some(input) = &mut to
            && input.write_all(&piece[..length]).await.is_err()
        {
            to = None;
        }
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
        drop(near);
        relayed.await.unwrap().unwrap();
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
