//! Asks the process that looks after a node.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use uuid::Uuid;

use super::ticket::Ticket;
use super::wire::{self, MAX_REPLY, MAX_TICKET, Reply};
use super::{Asker, tend, tls};
use crate::driver::{ByteStream, Call, DomainId};
use crate::error::{Error, ErrorKind, Problem, Result};
use crate::model::{MemberId, NodeId, PeerKey};
use crate::question::{Open, Question};
use crate::time::Timestamp;

/// How much longer than the call the answer is waited for: the driver's own word on the deadline is on its way.
const GRACE: Duration = Duration::from_millis(500);

/// The process that looks after a node.
pub(crate) struct Peer {
    pub(super) asker: Arc<Asker>,
    pub(super) to: MemberId,
    pub(super) node: NodeId,
    pub(super) address: String,
    pub(super) key: PeerKey,
}

impl Peer {
    pub(crate) async fn ask<Q: Question>(
        &self,
        call: Call,
        id: DomainId,
        question: &Q,
    ) -> Result<Q::Answer> {
        let asked = self.exchange(Q::VERB, Q::EFFECT, call, id, question).await;
        asked.map(|(answer, _)| answer)
    }

    pub(crate) async fn open<O: Open>(
        &self,
        call: Call,
        id: DomainId,
        question: &O,
    ) -> Result<(O::Head, Pin<Box<dyn ByteStream>>)> {
        let asked = self.exchange(O::VERB, false, call, id, question).await;
        asked.map(|(head, stream)| {
            let stream: Pin<Box<dyn ByteStream>> = if O::ENDS_WITH_INPUT {
                Box::pin(stream)
            } else {
                Box::pin(KeptOpen(stream))
            };
            (head, stream)
        })
    }

    /// One ticket, one reply; `effect`: whether something may have happened when no reply comes.
    async fn exchange<A: DeserializeOwned>(
        &self,
        verb: &'static str,
        effect: bool,
        call: Call,
        id: DomainId,
        question: &impl Serialize,
    ) -> Result<(A, TlsStream<TcpStream>)> {
        let mut asked = false;
        let work = async {
            let mut stream = self.connect(verb).await?;
            let question = serde_json::to_string(question).map_err(|e| {
                let message = "what is asked cannot be written down";
                Error::new(ErrorKind::Internal, verb, message).caused_by(e)
            })?;
            let timeout = call.deadline.remaining().as_millis();
            let ticket = Ticket {
                by: self.asker.me,
                to: self.to,
                node: self.node.clone(),
                domain: id,
                verb: verb.to_owned(),
                question,
                timeout_ms: u64::try_from(timeout).unwrap_or(u64::MAX),
                until: Timestamp::from_millis(0),
                nonce: Uuid::from_u128(self.asker.ids.bits()),
            };
            let sealed = ticket.seal(&self.asker.identity, self.asker.clock.now())?;
            let frame = wire::frame(&sealed)?;
            if frame.len() > MAX_TICKET as usize {
                let problem = Problem {
                    field: "question".into(),
                    message: format!(
                        "what is asked another process may have {MAX_TICKET} bytes, and this has {}",
                        frame.len()
                    ),
                };
                return Err(Error::invalid(verb, vec![problem]));
            }
            asked = true;
            wire::send(&mut stream, &frame).await?;
            let reply = wire::read::<Reply<A>>(&mut stream, MAX_REPLY).await?;
            Ok::<_, Error>((reply, stream))
        };
        let patience = call.deadline.remaining().saturating_add(GRACE);
        let result = timeout(patience, work).await;
        // Only what was sent can have happened.
        let kind = |without| {
            if asked && effect {
                ErrorKind::OutcomeUnknown
            } else {
                without
            }
        };
        let error = match result {
            Ok(Ok((Reply::Answer(answer), stream))) => return Ok((answer, stream)),
            Ok(Ok((
                Reply::Refused {
                    kind,
                    retryable,
                    message,
                    problems,
                },
                _,
            ))) => {
                let error = if problems.is_empty() {
                    Error::new(kind, verb, message)
                } else {
                    Error::invalid(verb, problems)
                };
                error.retryable(retryable)
            }
            Ok(Err(error)) if !asked => error,
            Ok(Err(error)) => Error::new(kind(error.kind()), verb, error.report()),
            Err(_) => {
                let message = "the process that looks after the node did not answer in time";
                Error::new(kind(ErrorKind::DeadlineExceeded), verb, message)
            }
        };
        let error = error.with("node", &self.node);
        Err(error.with("address", &self.address))
    }

    async fn connect(&self, verb: &'static str) -> Result<TlsStream<TcpStream>> {
        let failed = |e: io::Error| {
            let message = "the process that looks after the node cannot be reached";
            Error::new(ErrorKind::Unavailable, verb, message).caused_by(e)
        };
        let connector = TlsConnector::from(tls::client(self.key)?);
        let stream = TcpStream::connect(&self.address).await.map_err(failed)?;
        tend(&stream).map_err(failed)?;
        // The key says who it is.
        let nobody = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
        connector.connect(nobody, stream).await.map_err(failed)
    }
}

/// The end of the input stays here: the output goes on, and a connection that is closed means that its reader has gone.
struct KeptOpen(TlsStream<TcpStream>);

impl AsyncRead for KeptOpen {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for KeptOpen {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}
