//! What is said on a connection: frames of JSON, each after its length in bytes (32 bits, big-endian). One ticket goes
//! there, one reply comes back; the bytes of a console follow it bare.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::OPERATION;
use crate::error::{Error, ErrorKind, Problem, Result};

/// The longest ticket: it comes from someone who has not proved yet who it is.
pub(super) const MAX_TICKET: u32 = 256 << 10;
/// The longest reply: the agent keeps 16 MiB of a program's output at most, and a byte is up to four characters.
pub(super) const MAX_REPLY: u32 = 160 << 20;

/// What comes back.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reply<T> {
    Answer(T),
    Refused {
        kind: ErrorKind,
        retryable: bool,
        message: String,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        problems: Vec<Problem>,
    },
}

impl<T> From<Result<T>> for Reply<T> {
    fn from(result: Result<T>) -> Self {
        match result {
            Ok(answer) => Self::Answer(answer),
            Err(error) => Self::Refused {
                kind: error.kind(),
                retryable: error.is_retryable(),
                message: error.report(),
                problems: error.problems().to_vec(),
            },
        }
    }
}

fn broken(error: std::io::Error) -> Error {
    let message = "the connection broke";
    Error::new(ErrorKind::Unavailable, OPERATION, message).caused_by(error)
}

fn damaged(why: impl Into<String>) -> Error {
    let message = format!(
        "what came over the connection makes no sense: {}",
        why.into()
    );
    Error::new(ErrorKind::Corrupt, OPERATION, message)
}

/// What is sent for it.
pub(super) fn frame<T: Serialize>(what: &T) -> Result<Vec<u8>> {
    let written = |e: serde_json::Error| {
        let message = "what is to be sent cannot be written down";
        Error::new(ErrorKind::Internal, OPERATION, message).caused_by(e)
    };
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, what).map_err(written)?;
    let length = u32::try_from(frame.len() - 4)
        .map_err(|_| damaged(format!("{} bytes to be sent", frame.len())))?;
    frame[..4].copy_from_slice(&length.to_be_bytes());
    Ok(frame)
}

pub(super) async fn send(to: &mut (impl AsyncWrite + Unpin), frame: &[u8]) -> Result<()> {
    to.write_all(frame).await.map_err(broken)?;
    to.flush().await.map_err(broken)
}

/// Nothing more comes from this side. The other one may have gone already.
pub(super) async fn end(to: &mut (impl AsyncWrite + Unpin)) {
    if let Err(error) = to.shutdown().await {
        tracing::trace!(%error, "the other side did not wait for the end");
    }
}

pub(super) async fn read<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
    max: u32,
) -> Result<T> {
    let length = from.read_u32().await.map_err(broken)?;
    if length > max {
        return Err(damaged(format!("{length} bytes, and {max} is the most")));
    }
    // Grows with what really comes.
    let mut body = Vec::new();
    let mut rest = from.take(length.into());
    let came = rest.read_to_end(&mut body).await.map_err(broken)?;
    if came < length as usize {
        return Err(broken(std::io::ErrorKind::UnexpectedEof.into()));
    }
    serde_json::from_slice(&body).map_err(|e| damaged(e.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::ticket::Sealed;
    use super::*;

    fn block<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(work)
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_frame_or_a_clear_error(bytes in prop::collection::vec(any::<u8>(), 0..64), framed: bool) {
            let mut sent = Vec::new();
            if framed {
                sent.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
            }
            sent.extend(&bytes);
            let read = block(read::<Sealed>(&mut sent.as_slice(), MAX_TICKET));
            let kind = read.unwrap_err().kind();
            prop_assert!(matches!(kind, ErrorKind::Corrupt | ErrorKind::Unavailable));
        }

        #[test]
        fn what_is_written_is_read(text in ".*", cut in any::<prop::sample::Index>()) {
            let mut sent = Vec::new();
            block(send(&mut sent, &frame(&text).unwrap())).unwrap();
            let read_back: String = block(read(&mut sent.as_slice(), MAX_TICKET)).unwrap();
            prop_assert_eq!(&read_back, &text);
            let short = &sent[..cut.index(sent.len())];
            let broken = block(read::<String>(&mut &*short, MAX_TICKET)).unwrap_err();
            prop_assert_eq!(broken.kind(), ErrorKind::Unavailable);
        }
    }
}
