//! Answers other processes about the guests of this one's nodes.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::ticket::{Sealed, Ticket, Used};
use super::tls::Identity;
use super::wire::{self, MAX_TICKET, Reply};
use super::{GREETING, tend};
use crate::control::executor::Drivers;
use crate::driver::{Call, ConsoleStream, Hypervisor};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{ClusterId, Member, MemberId, PeerKey};
use crate::question::{Addresses, Exec, Freeze, OpenConsole, Ping, Question, Stats, Thaw};
use crate::records::{Stored, from_record};

const OPERATION: &str = "cluster.peers";

/// How many connections are attended to at a time; the next one waits.
const MAX_CONNECTIONS: usize = 256;
/// The longest time that one answer may take.
const MAX_TIMEOUT: Duration = Duration::from_secs(3600);
/// After an `accept` that failed, as it does when there are no file descriptors left.
const BREATH: Duration = Duration::from_millis(100);

/// Lets other processes in.
pub(crate) struct Server {
    pub(crate) cluster: ClusterId,
    pub(crate) me: MemberId,
    pub(crate) drivers: Arc<Drivers>,
    pub(crate) acceptor: TlsAcceptor,
    used: Used,
}

type Stream = TlsStream<TcpStream>;

impl Server {
    pub(crate) fn new(
        cluster: ClusterId,
        me: MemberId,
        drivers: Arc<Drivers>,
        identity: &Identity,
    ) -> Result<Self> {
        Ok(Self {
            cluster,
            me,
            drivers,
            acceptor: TlsAcceptor::from(identity.server()?),
            used: Used::default(),
        })
    }

    /// Attends to whoever connects, until it is dropped.
    pub(crate) async fn serve(self, listener: TcpListener) {
        let this = Arc::new(self);
        let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let Ok(turn) = Arc::clone(&free).acquire_owned().await else {
                return;
            };
            let accepted = listener.accept().await;
            while connections.try_join_next().is_some() {}
            match accepted {
                Ok((stream, _)) => {
                    let this = Arc::clone(&this);
                    connections.spawn(async move {
                        this.attend(stream).await;
                        drop(turn);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection of another process was not accepted");
                    crate::control::runtime::wait(Some(BREATH)).await;
                }
            }
        }
    }

    /// One connection: one ticket, one reply.
    async fn attend(&self, stream: TcpStream) {
        let greeting = async {
            tend(&stream).ok()?;
            let mut stream = self.acceptor.accept(stream).await.ok()?;
            let sealed = wire::read::<Sealed>(&mut stream, MAX_TICKET).await;
            Some((stream, sealed))
        };
        // Whoever does not get that far is no process of this cluster.
        let Ok(Some((mut stream, sealed))) = timeout(GREETING, greeting).await else {
            return;
        };
        let admitted = match sealed {
            Ok(sealed) => self.admit(&sealed).await,
            Err(error) => Err(error),
        };
        let sent = match admitted {
            Ok(ticket) => self.answer(&ticket, &mut stream).await,
            Err(error) => {
                tracing::warn!(error = %error.report(), "a question about a guest was refused");
                reply::<()>(&mut stream, Err(error)).await
            }
        };
        if let Err(error) = sent {
            tracing::debug!(error = %error.report(), "who asked about a guest has gone");
        }
    }

    /// The ticket, if the process that it names made it.
    async fn admit(&self, sealed: &Sealed) -> Result<Ticket> {
        let by = sealed.open()?.by;
        let key = self.key_of(by).await?;
        let now = self.drivers.clock.now();
        let ticket = self.used.admit(sealed, key, self.me, now)?;
        if ticket.domain.cluster != self.cluster {
            let message = "it is about a guest of another cluster";
            return Err(Error::new(ErrorKind::PermissionDenied, OPERATION, message));
        }
        Ok(ticket)
    }

    /// The key that a living process announced. Linearizable: one that was lost asks nothing more.
    async fn key_of(&self, member: MemberId) -> Result<PeerKey> {
        let record = self.drivers.store.get(&Member::key(&member)).await?;
        let known = record.as_ref().map(from_record::<Member>).transpose()?;
        let alive = known.filter(Member::is_alive).and_then(|m| m.endpoint);
        alive.map(|endpoint| endpoint.key).ok_or_else(|| {
            let message = format!("member {member} is not alive, or announced no key");
            Error::new(ErrorKind::PermissionDenied, OPERATION, message)
        })
    }

    async fn answer(&self, ticket: &Ticket, stream: &mut Stream) -> Result<()> {
        let call = Call::within(Duration::from_millis(ticket.timeout_ms).min(MAX_TIMEOUT));
        let hypervisor = match self.drivers.node(&ticket.node) {
            Ok(hypervisor) => &**hypervisor,
            Err(error) => return reply::<()>(stream, Err(error)).await,
        };
        match ticket.verb.as_str() {
            Stats::VERB => ask::<Stats>(hypervisor, call, ticket, stream).await,
            Exec::VERB => ask::<Exec>(hypervisor, call, ticket, stream).await,
            Ping::VERB => ask::<Ping>(hypervisor, call, ticket, stream).await,
            Freeze::VERB => ask::<Freeze>(hypervisor, call, ticket, stream).await,
            Thaw::VERB => ask::<Thaw>(hypervisor, call, ticket, stream).await,
            Addresses::VERB => ask::<Addresses>(hypervisor, call, ticket, stream).await,
            OpenConsole::VERB => console(hypervisor, call, ticket, stream).await,
            other => {
                let message = format!("this version of NovaCron cannot be asked {other:?}");
                let error = Error::new(ErrorKind::Unsupported, OPERATION, message);
                reply::<()>(stream, Err(error)).await
            }
        }
    }
}

async fn reply<T: Serialize>(stream: &mut Stream, result: Result<T>) -> Result<()> {
    wire::write(stream, &Reply::from(result)).await?;
    // Whoever asked may have gone with the answer.
    let _ = stream.shutdown().await;
    Ok(())
}

fn question<Q: serde::de::DeserializeOwned>(ticket: &Ticket) -> Result<Q> {
    serde_json::from_str(&ticket.question).map_err(|e| {
        let message = format!("{} is asked in an unknown way: {e}", ticket.verb);
        Error::new(ErrorKind::Invalid, OPERATION, message)
    })
}

async fn ask<Q: Question>(
    hypervisor: &dyn Hypervisor,
    call: Call,
    ticket: &Ticket,
    stream: &mut Stream,
) -> Result<()> {
    let answer = match question::<Q>(ticket) {
        Ok(question) => question.ask(hypervisor, call, ticket.domain).await,
        Err(error) => Err(error),
    };
    reply(stream, answer).await
}

/// The console's bytes, both ways, until one side ends it. One that fails is cut, so that the reader is told.
async fn console(
    hypervisor: &dyn Hypervisor,
    call: Call,
    ticket: &Ticket,
    stream: &mut Stream,
) -> Result<()> {
    let opened = match question::<OpenConsole>(ticket) {
        Ok(open) => open.open(hypervisor, call, ticket.domain).await,
        Err(error) => Err(error),
    };
    let ConsoleStream {
        offset,
        stream: mut bytes,
    } = match opened {
        Ok(opened) => opened,
        Err(error) => return reply::<()>(stream, Err(error)).await,
    };
    wire::write(stream, &Reply::Answer(offset)).await?;
    let copied = copy_bidirectional(&mut bytes, stream).await;
    copied.map(drop).map_err(|e| {
        Error::new(
            ErrorKind::Unavailable,
            OPERATION,
            "the console's stream ended",
        )
        .caused_by(e)
    })
}
