//! Asks the process that looks after a node.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::time::timeout_at;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use uuid::Uuid;

use super::ticket::Ticket;
use super::wire::{self, MAX_REPLY, Reply};
use super::{Asker, tend, tls};
use crate::driver::{Call, ConsoleStream, DomainId};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{MemberId, NodeId, PeerKey};
use crate::question::{OpenConsole, Question};
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

    pub(crate) async fn console(
        &self,
        call: Call,
        id: DomainId,
        open: &OpenConsole,
    ) -> Result<ConsoleStream> {
        let asked = self.exchange(OpenConsole::VERB, false, call, id, open);
        let (offset, stream) = asked.await?;
        Ok(ConsoleStream {
            offset,
            stream: Box::pin(stream),
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
            asked = true;
            wire::write(&mut stream, &sealed).await?;
            let reply = wire::read::<Reply<A>>(&mut stream, MAX_REPLY).await?;
            Ok::<_, Error>((reply, stream))
        };
        let end = call.deadline.instant() + GRACE;
        let result = timeout_at(end, work).await;
        let lost = |message: &str, without: ErrorKind| {
            let kind = if asked && effect {
                ErrorKind::OutcomeUnknown
            } else {
                without
            };
            Error::new(kind, verb, format!("{message} ({})", self.address))
        };
        let error = match result {
            Ok(Ok((Reply::Answer(answer), stream))) => return Ok((answer, stream)),
            Ok(Ok((
                Reply::Refused {
                    kind,
                    retryable,
                    message,
                },
                _,
            ))) => Error::new(kind, verb, message).retryable(retryable),
            Ok(Err(error)) => lost(&error.report(), error.kind()),
            Err(_) => lost(
                "the process that looks after the node did not answer in time",
                ErrorKind::DeadlineExceeded,
            ),
        };
        Err(error.with("node", &self.node))
    }

    async fn connect(&self, verb: &'static str) -> Result<TlsStream<TcpStream>> {
        let failed = |e: std::io::Error| {
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
