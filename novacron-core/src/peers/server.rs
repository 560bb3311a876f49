//! Answers other processes about the guests of this one's nodes.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use serde::Serialize;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, SemaphorePermit, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, timeout, timeout_at};
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
use crate::question::{
    Addresses, Console, DumpMemory, Exec, Freeze, Nmi, Open, Ping, Question, Stats, Thaw, Vnc,
};
use crate::records::{Stored, from_record};

/// How many may be showing their tickets at a time. The next one waits, until the first of them has been at it for a turn.
const MAX_STRANGERS: usize = 64;
/// How many questions are answered at a time, and how many consoles and screens are open. One more is refused.
const MAX_QUESTIONS: usize = 256;
const MAX_STREAMS: usize = 256;
/// How long a connection may take until its ticket is there; and a reply, after its call's deadline, to be taken.
const GREETING: Duration = Duration::from_secs(10);
/// How long a stranger is left alone when others wait.
const TURN: Duration = Duration::from_secs(1);
/// How long a stranger's refusal may take; and the wait after an `accept` that failed, as it does when there are no file
/// descriptors left.
const BREATH: Duration = Duration::from_millis(100);

/// Lets other processes in.
pub(crate) struct Server {
    cluster: ClusterId,
    me: MemberId,
    drivers: Arc<Drivers>,
    cache: Arc<RwLock<Cache>>,
    acceptor: TlsAcceptor,
    used: Used,
    /// A stranger has shown a ticket, or gone.
    moved: Notify,
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
            moved: Notify::new(),
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
        let mut strangers: VecDeque<(AbortHandle, Arc<Stranger>)> = VecDeque::new();
        loop {
            let accepted = listener.accept().await;
            while connections.try_join_next().is_some() {}
            let (stream, _) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection of another process was not accepted");
                    crate::control::runtime::wait(Some(BREATH)).await;
                    continue;
                }
            };
            self.make_room(&mut strangers).await;
            let (this, who) = (Arc::clone(&self), Arc::new(Stranger::new()));
            let task = connections.spawn({
                let who = Arc::clone(&who);
                async move { this.attend(stream, &who).await }
            });
            strangers.push_back((task, who));
        }
    }

    /// Waits for a turn, and puts out who has had one for too long.
    async fn make_room(&self, strangers: &mut VecDeque<(AbortHandle, Arc<Stranger>)>) {
        loop {
            strangers.retain(|(task, who)| !task.is_finished() && who.is_one());
            let Some((task, oldest)) = strangers.front() else {
                return;
            };
            if strangers.len() < MAX_STRANGERS {
                return;
            }
            let left = TURN.saturating_sub(oldest.came.elapsed());
            if left.is_zero() {
                if oldest.decide() {
                    task.abort();
                }
                strangers.pop_front();
                return;
            }
            let _ = timeout(left, self.moved.notified()).await;
        }
    }

    /// One connection: one ticket, one reply.
    async fn attend(&self, stream: TcpStream, who: &Stranger) {
        let greeting = async {
            tend(&stream).ok()?;
            let mut stream = self.acceptor.accept(stream).await.ok()?;
            let shown = match wire::read::<Sealed>(&mut stream, MAX_TICKET).await {
                Ok(sealed) => self.admit(&sealed),
                Err(error) => Err(error),
            };
            Some((stream, shown))
        };
        let greeted = timeout(GREETING, greeting).await;
        let is_let_in = matches!(&greeted, Ok(Some((_, Ok(_))))) && who.decide();
        self.moved.notify_one();
        let Ok(Some((mut stream, shown))) = greeted else {
            tracing::debug!("somebody connected who showed no ticket");
            return;
        };
        let sent = match shown {
            Ok((ticket, call)) if is_let_in => self.answer(&ticket, call, &mut stream).await,
            Ok(_) => return,
            Err(error) => {
                tracing::debug!(error = %error.report(), "a question about a guest was refused");
                reply::<()>(&mut stream, BREATH, Err(error)).await
            }
        };
        if let Err(error) = sent {
            tracing::debug!(error = %error.report(), "who asked about a guest has gone");
        }
    }

    /// The ticket, if a process of this cluster made it that was alive when it was last heard of, and its call. Whoever has
    /// not proved that costs no look at the store.
    fn admit(&self, sealed: &Sealed) -> Result<(Ticket, Call)> {
        let ticket = sealed.open(|member| {
            let cache = self.cache.read().unwrap_or_else(PoisonError::into_inner);
            key_of(cache.members.get(&member)?)
        })?;
        self.used
            .admit(&ticket, self.me, self.drivers.clock.now())?;
        if ticket.domain.cluster != self.cluster {
            return Err(refused(&ticket, "it is about a guest of another cluster"));
        }
        let call = Call::within(Duration::from_millis(ticket.timeout_ms));
        Ok((ticket, call))
    }

    /// Linearizable: one that was lost asks nothing more.
    async fn is_alive(&self, ticket: &Ticket, call: Call) -> Result<()> {
        let key = Member::key(&ticket.by);
        let look = timeout_at(call.deadline.instant(), self.drivers.store.get(&key)).await;
        let record = look.map_err(|_| {
            let message = "the store did not answer the process that looks after the node in time";
            Error::new(ErrorKind::DeadlineExceeded, OPERATION, message)
        })??;
        let member = record.as_ref().map(from_record::<Member>).transpose()?;
        match member.as_ref().and_then(key_of) {
            Some(_) => Ok(()),
            None => Err(refused(ticket, "the process that asks was taken for lost")),
        }
    }

    async fn answer(&self, ticket: &Ticket, call: Call, stream: &mut Stream) -> Result<()> {
        let turns = match ticket.verb.as_str() {
            Console::VERB | Vnc::VERB => &self.streams,
            _ => &self.questions,
        };
        let right = async {
            let turn = turn(turns)?;
            self.is_alive(ticket, call).await?;
            Ok((turn, self.drivers.node(&ticket.node)?))
        };
        let (_turn, hypervisor) = match right.await {
            Ok((turn, hypervisor)) => (turn, &**hypervisor),
            Err(error) => return reply::<()>(stream, GREETING, Err(error)).await,
        };
        match ticket.verb.as_str() {
            Stats::VERB => ask::<Stats>(hypervisor, call, ticket, stream).await,
            Nmi::VERB => ask::<Nmi>(hypervisor, call, ticket, stream).await,
            DumpMemory::VERB => ask::<DumpMemory>(hypervisor, call, ticket, stream).await,
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
                reply::<()>(stream, GREETING, Err(error)).await
            }
        }
    }
}

/// Whether a connection is still a stranger's, which the next one may put out.
struct Stranger {
    came: Instant,
    decided: AtomicBool,
}

impl Stranger {
    fn new() -> Self {
        Self {
            came: Instant::now(),
            decided: AtomicBool::new(false),
        }
    }

    fn is_one(&self) -> bool {
        !self.decided.load(Ordering::Acquire)
    }

    /// Lets it in, or puts it out: whoever comes first.
    fn decide(&self) -> bool {
        !self.decided.swap(true, Ordering::AcqRel)
    }
}

fn refused(ticket: &Ticket, message: &'static str) -> Error {
    let error = Error::new(ErrorKind::PermissionDenied, OPERATION, message);
    error.with("asked by", ticket.by)
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

/// A reply that is not taken in this time is dropped.
async fn reply<T: Serialize>(
    stream: &mut Stream,
    patience: Duration,
    result: Result<T>,
) -> Result<()> {
    let frame = wire::frame(&Reply::from(result))?;
    let sent = async {
        wire::send(stream, &frame).await?;
        wire::end(stream).await;
        Ok(())
    };
    let sent = timeout(patience, sent).await;
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

/// How long who asks waits for a reply, and some more.
fn patience(call: Call) -> Duration {
    call.deadline.remaining().saturating_add(GREETING)
}

/// The answer; none when who asked has gone, and its question with it, as one that is dropped in the same process.
async fn unless_gone<T>(stream: &mut Stream, answer: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        // Nothing is said on this side before the reply.
        _ = stream.read_u8() => None,
        answer = answer => Some(answer),
    }
}

async fn ask<Q: Question>(
    hypervisor: &dyn Hypervisor,
    call: Call,
    ticket: &Ticket,
    stream: &mut Stream,
) -> Result<()> {
    let answer = async {
        let question = question::<Q>(ticket)?;
        question.ask(hypervisor, call, ticket.domain).await
    };
    match unless_gone(stream, answer).await {
        Some(answer) => reply(stream, patience(call), answer).await,
        None => Ok(()),
    }
}

async fn open<O: Open>(
    hypervisor: &dyn Hypervisor,
    call: Call,
    ticket: &Ticket,
    stream: &mut Stream,
) -> Result<()> {
    let opened = async {
        let question = question::<O>(ticket)?;
        question.open(hypervisor, call, ticket.domain).await
    };
    match unless_gone(stream, opened).await {
        Some(Ok((head, bytes))) => {
            wire::send(stream, &wire::frame(&Reply::Answer(head))?).await?;
            relay(bytes, stream).await
        }
        Some(Err(error)) => reply::<()>(stream, patience(call), Err(error)).await,
        None => Ok(()),
    }
}
