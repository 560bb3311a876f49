//! Answers other processes about the guests of this one's nodes.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use serde::Serialize;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::relay::relay;
use super::ticket::{Sealed, Ticket, Used};
use super::tls::Identity;
use super::wire::{self, MAX_TICKET, Reply};
use super::{OPERATION, tend};
use crate::control::cache::Cache;
use crate::control::executor::Drivers;
use crate::driver::{Call, Hypervisor};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{ClusterId, Member, MemberId, PeerKey};
use crate::question::{Addresses, Console, Exec, Freeze, Open, Ping, Question, Stats, Thaw, Vnc};
use crate::records::{Stored, from_record};

/// How many may be showing their tickets at a time; the next one waits.
const MAX_STRANGERS: usize = 64;
/// How many questions are answered at a time, and how many consoles and screens are open. One more is refused.
const MAX_QUESTIONS: usize = 256;
const MAX_STREAMS: usize = 256;
/// How long a connection may take until its ticket is admitted; and a reply, after its call's deadline, to be taken.
const GREETING: Duration = Duration::from_secs(10);
/// After an `accept` that failed, as it does when there are no file descriptors left.
const BREATH: Duration = Duration::from_millis(100);

/// Lets other processes in.
pub(crate) struct Server {
    cluster: ClusterId,
    me: MemberId,
    drivers: Arc<Drivers>,
    cache: Arc<RwLock<Cache>>,
    acceptor: TlsAcceptor,
    used: Used,
    questions: Semaphore,
    streams: Semaphore,
}

type Stream = TlsStream<TcpStream>;

impl Server {
    pub(crate) fn new(
        cluster: ClusterId,
        me: MemberId,
        drivers: Arc<Drivers>,
        cache: Arc<RwLock<Cache>>,
        identity: &Identity,
    ) -> Result<Self> {
        Ok(Self {
            cluster,
            me,
            drivers,
            cache,
            acceptor: TlsAcceptor::from(identity.server()?),
            used: Used::default(),
            questions: Semaphore::new(MAX_QUESTIONS),
            streams: Semaphore::new(MAX_STREAMS),
        })
    }

    /// Attends to whoever connects, until it is stopped; then nobody is attended to any more.
    pub(crate) async fn serve(self, listener: TcpListener, mut stop: watch::Receiver<bool>) {
        let mut connections = JoinSet::new();
        tokio::select! {
            () = Arc::new(self).accept(&listener, &mut connections) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
        connections.shutdown().await;
    }

    async fn accept(self: Arc<Self>, listener: &TcpListener, connections: &mut JoinSet<()>) {
        let strangers = Arc::new(Semaphore::new(MAX_STRANGERS));
        while let Ok(turn) = Arc::clone(&strangers).acquire_owned().await {
            let accepted = listener.accept().await;
            while connections.try_join_next().is_some() {}
            match accepted {
                Ok((stream, _)) => {
                    let this = Arc::clone(&self);
                    connections.spawn(async move { this.attend(stream, turn).await });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection of another process was not accepted");
                    crate::control::runtime::wait(Some(BREATH)).await;
                }
            }
        }
    }

    /// One connection: one ticket, one reply.
    async fn attend(&self, stream: TcpStream, turn: OwnedSemaphorePermit) {
        let greeting = async {
            tend(&stream).ok()?;
            let mut stream = self.acceptor.accept(stream).await.ok()?;
            let admitted = match wire::read::<Sealed>(&mut stream, MAX_TICKET).await {
                Ok(sealed) => self.admit(&sealed).await,
                Err(error) => Err(error),
            };
            Some((stream, admitted))
        };
        let Ok(Some((mut stream, admitted))) = timeout(GREETING, greeting).await else {
            tracing::debug!("somebody connected who showed no ticket");
            return;
        };
        let sent = match admitted {
            Ok(ticket) => {
                drop(turn);
                self.answer(&ticket, &mut stream).await
            }
            Err(error) => {
                tracing::debug!(error = %error.report(), "a question about a guest was refused");
                reply::<()>(&mut stream, Duration::ZERO, Err(error)).await
            }
        };
        if let Err(error) = sent {
            tracing::debug!(error = %error.report(), "who asked about a guest has gone");
        }
    }

    /// The ticket, if a living process of this cluster made it. Whoever has not proved that costs no look at the store.
    async fn admit(&self, sealed: &Sealed) -> Result<Ticket> {
        let ticket = sealed.open(|member| {
            let cache = self.cache.read().unwrap_or_else(PoisonError::into_inner);
            key_of(cache.members.get(&member)?)
        })?;
        self.used
            .admit(&ticket, self.me, self.drivers.clock.now())?;
        let refused = |message: &'static str| {
            let error = Error::new(ErrorKind::PermissionDenied, OPERATION, message);
            Err(error.with("asked by", ticket.by))
        };
        if ticket.domain.cluster != self.cluster {
            return refused("it is about a guest of another cluster");
        }
        // Linearizable: one that was lost asks nothing more.
        let record = self.drivers.store.get(&Member::key(&ticket.by)).await?;
        let member = record.as_ref().map(from_record::<Member>).transpose()?;
        if member.as_ref().and_then(key_of).is_none() {
            return refused("the process that asks was taken for lost");
        }
        Ok(ticket)
    }

    async fn answer(&self, ticket: &Ticket, stream: &mut Stream) -> Result<()> {
        let call = Call::within(Duration::from_millis(ticket.timeout_ms));
        let hypervisor = match self.drivers.node(&ticket.node) {
            Ok(hypervisor) => &**hypervisor,
            Err(error) => return reply::<()>(stream, Duration::ZERO, Err(error)).await,
        };
        let turns = match ticket.verb.as_str() {
            Console::VERB | Vnc::VERB => &self.streams,
            _ => &self.questions,
        };
        let _turn = match turn(turns) {
            Ok(turn) => turn,
            Err(error) => return reply::<()>(stream, Duration::ZERO, Err(error)).await,
        };
        match ticket.verb.as_str() {
            Stats::VERB => ask::<Stats>(hypervisor, call, ticket, stream).await,
            Exec::VERB => ask::<Exec>(hypervisor, call, ticket, stream).await,
            Ping::VERB => ask::<Ping>(hypervisor, call, ticket, stream).await,
            Freeze::VERB => ask::<Freeze>(hypervisor, call, ticket, stream).await,
            Thaw::VERB => ask::<Thaw>(hypervisor, call, ticket, stream).await,
            Addresses::VERB => ask::<Addresses>(hypervisor, call, ticket, stream).await,
            Console::VERB => open::<Console>(hypervisor, call, ticket, stream).await,
            Vnc::VERB => open::<Vnc>(hypervisor, call, ticket, stream).await,
            other => {
                let message = format!("this version of NovaCron cannot be asked {other:?}");
                let error = Error::new(ErrorKind::Unsupported, OPERATION, message);
                reply::<()>(stream, Duration::ZERO, Err(error)).await
            }
        }
    }
}

/// Of a living member that announced one.
fn key_of(member: &Member) -> Option<PeerKey> {
    let endpoint = member.endpoint.as_ref().filter(|_| member.is_alive())?;
    Some(endpoint.key)
}

fn turn(turns: &Semaphore) -> Result<SemaphorePermit<'_>> {
    turns.try_acquire().map_err(|_| {
        let message = "the process that looks after the node answers as many as it can already";
        Error::new(ErrorKind::Exhausted, OPERATION, message).retryable(true)
    })
}

/// `left`: how long who asks waits.
async fn reply<T: Serialize>(stream: &mut Stream, left: Duration, result: Result<T>) -> Result<()> {
    let frame = wire::frame(&Reply::from(result))?;
    let sent = async {
        wire::send(stream, &frame).await?;
        wire::end(stream).await;
        Ok(())
    };
    let sent = timeout(left.saturating_add(GREETING), sent).await;
    sent.unwrap_or_else(|_| {
        let message = "the reply was not taken in time";
        Err(Error::new(ErrorKind::DeadlineExceeded, OPERATION, message))
    })
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
        Ok(question) => tokio::select! {
            answer = question.ask(hypervisor, call, ticket.domain) => answer,
            // Nothing more is said on this connection: who asked has gone, and the question with it, as one that is
            // dropped in this process.
            _ = stream.read_u8() => return Ok(()),
        },
        Err(error) => Err(error),
    };
    reply(stream, call.deadline.remaining(), answer).await
}

async fn open<O: Open>(
    hypervisor: &dyn Hypervisor,
    call: Call,
    ticket: &Ticket,
    stream: &mut Stream,
) -> Result<()> {
    let opened = match question::<O>(ticket) {
        Ok(question) => question.open(hypervisor, call, ticket.domain).await,
        Err(error) => Err(error),
    };
    let (head, bytes) = match opened {
        Ok(opened) => opened,
        Err(error) => return reply::<()>(stream, call.deadline.remaining(), Err(error)).await,
    };
    wire::send(stream, &wire::frame(&Reply::Answer(head))?).await?;
    relay(bytes, stream).await
}
