//! Calls of etcd: members, tokens, deadlines, retries.
//!
//! ```text
//!   call ──► member `present` ──answer──────────────────────► caller
//!              │ none, or one that another member may better
//!              └──► next member, after a pause once all were asked, until the deadline
//! ```
//! Each member has a channel of its own, because a balancer hides which member fails and why. All calls go to one
//! member as long as it answers; the watch follows it (`moved`). The first attempt may take a sixth of the whole time
//! and each further one twice as long: soon enough when a leader or a member is lost, and time for a slow one. What is
//! sent may always be sent again; `failure` says what a failed attempt means, and a doubt is kept to the end.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Notify;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::failure::{self, Failure, Meaning, meaning};
use super::options::{EtcdOptions, EtcdTls, EtcdUser};
use super::wire::{
    AuthenticateRequest, Call, WATCH, WatchAsk, WatchCreateRequest, WatchRequest, WatchResponse,
};
use crate::error::{Error, ErrorKind, Result};
use crate::time::Deadline;

/// The pause after every member was asked in vain; it doubles up to the second one.
const PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// How often an idle watch asks whether its member lives. etcd takes offence at less than five seconds.
const PING: Duration = Duration::from_secs(10);

/// The members of an etcd.
pub(super) struct Client {
    members: Vec<Member>,
    /// Which one is asked first.
    present: AtomicUsize,
    user: Option<EtcdUser>,
    token: RwLock<Option<Token>>,
    timeout: Duration,
    /// Notified when `present` changes.
    pub(super) moved: Notify,
}

struct Member {
    uri: String,
    channel: Channel,
}

/// What etcd gave for a password. Sent as sensitive metadata, which is not shown.
type Token = AsciiMetadataValue;

/// An attempt's end that is no answer.
struct Attempt {
    meaning: Meaning,
    status: Status,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members: Vec<_> = self.members.iter().map(|m| &m.uri).collect();
        f.debug_struct("Client")
            .field("members", &members)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Prepares channels; nothing is sent yet.
    pub(super) fn new(options: &EtcdOptions) -> Result<Self> {
        let members = options
            .endpoints
            .iter()
            .map(|uri| member(uri, options))
            .collect::<Result<_>>()?;
        Ok(Self {
            members,
            present: AtomicUsize::new(0),
            user: options.user.clone(),
            token: RwLock::default(),
            timeout: options.timeout,
            moved: Notify::new(),
        })
    }

    /// When a call of the store that begins now must have ended.
    pub(super) fn deadline(&self) -> Deadline {
        Deadline::after(self.timeout)
    }

    /// How long etcd may leave a watch without the answer that is due.
    pub(super) fn patience(&self) -> Duration {
        self.timeout / 3
    }

    /// The member that calls go to.
    pub(super) fn present(&self) -> usize {
        self.present.load(Ordering::Relaxed)
    }

    /// A member that does not serve is asked last from now on.
    pub(super) fn leave(&self, member: usize) {
        let next = (member + 1) % self.members.len();
        let left = self
            .present
            .compare_exchange(member, next, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok();
        if left && next != member {
            self.moved.notify_waiters();
        }
    }

    /// Sends a request until it is answered, and whether an earlier attempt may have been carried out.
    pub(super) async fn call<C: Call>(
        &self,
        operation: &'static str,
        deadline: Deadline,
        request: &C,
    ) -> Result<(C::Answer, bool), Failure> {
        let first = first_attempt(self.timeout);
        let (mut doubt, mut pause, mut patience) = (false, PAUSE, first);
        let (mut asked, mut untrusted, mut renewed) = (0, 0, 0);
        loop {
            let present = self.present();
            let member = &self.members[present];
            let attempt = self
                .ask(member, request, deadline.min(Deadline::after(patience)))
                .await;
            let Attempt { meaning, status } = match attempt {
                Ok(answer) => return Ok((answer, doubt)),
                Err(attempt) => attempt,
            };
            // A shorter attempt would leave more doubt than hope.
            let last = deadline.remaining() < first + pause;
            let give_up = match meaning {
                Meaning::Refused => true,
                Meaning::Untrusted => {
                    untrusted += 1;
                    untrusted >= self.members.len()
                }
                Meaning::Token => {
                    renewed += 1;
                    self.forget_token();
                    renewed > 3
                }
                Meaning::Unsent => false,
                Meaning::Busy | Meaning::Doubt => {
                    doubt |= meaning == Meaning::Doubt;
                    patience *= 2;
                    false
                }
            };
            if give_up || last {
                let error = failure::of_status(operation, &member.uri, status);
                return Err(Failure { error, doubt });
            }
            tracing::debug!(endpoint = member.uri, error = %status, ?meaning, "etcd is asked again");
            if meaning == Meaning::Token {
                continue;
            }
            self.leave(present);
            asked += 1;
            if asked % self.members.len() == 0 {
                wait(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    /// As [`Client::call`], where a doubt does not matter: the request changes nothing, or nothing that is told.
    pub(super) async fn ask_any<C: Call>(
        &self,
        operation: &'static str,
        deadline: Deadline,
        request: &C,
    ) -> Result<C::Answer> {
        Ok(self.call(operation, deadline, request).await?.0)
    }

    async fn ask<C: Call>(
        &self,
        member: &Member,
        request: &C,
        end: Deadline,
    ) -> Result<C::Answer, Attempt> {
        // A token that cannot be had leaves the request unsent.
        let token = self.token(member, end).await?;
        let sent = async {
            let mut metadata = MetadataMap::new();
            token.map(|token| metadata.insert("token", token));
            send(member, request.clone(), metadata).await
        };
        match tokio::time::timeout_at(end.instant(), sent).await {
            Ok(result) => result.map_err(Attempt::of),
            Err(_) => Err(Attempt {
                meaning: Meaning::Doubt,
                status: Status::deadline_exceeded("no answer in time"),
            }),
        }
    }

    /// The token to send along, fetched if there is none yet.
    async fn token(&self, member: &Member, end: Deadline) -> Result<Option<Token>, Attempt> {
        let Some(user) = &self.user else {
            return Ok(None);
        };
        let known = self
            .token
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if known.is_some() {
            return Ok(known);
        }
        let request = AuthenticateRequest {
            name: user.name.clone(),
            password: user.password.expose_secret().to_owned(),
        };
        let answer =
            tokio::time::timeout_at(end.instant(), send(member, request, MetadataMap::new())).await;
        let answer = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(status)) => return Err(Attempt::before(status)),
            Err(_) => {
                return Err(Attempt {
                    meaning: Meaning::Busy,
                    status: Status::unavailable("no answer to the authentication in time"),
                });
            }
        };
        let secret = SecretString::from(answer.token);
        let Ok(mut token) = secret.expose_secret().parse::<Token>() else {
            return Err(Attempt::before(Status::internal("the token is no header")));
        };
        token.set_sensitive(true);
        *self.token.write().unwrap_or_else(PoisonError::into_inner) = Some(token.clone());
        Ok(Some(token))
    }

    fn forget_token(&self) {
        *self.token.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Opens a watch at a member. Its stream ends with an error when the member has no leader any more.
    pub(super) async fn watch(
        &self,
        operation: &'static str,
        member: usize,
        request: WatchCreateRequest,
    ) -> Result<Watch, Stop> {
        let (index, member) = (member, &self.members[member]);
        let end = Deadline::after(self.patience());
        let fail = |attempt: Attempt| {
            if attempt.meaning == Meaning::Token {
                self.forget_token();
            }
            failure::of_status(operation, &member.uri, attempt.status)
        };
        let token = self.token(member, end).await.map_err(fail)?;
        let (requests, queue) = tokio::sync::mpsc::channel(1);
        let create = WatchRequest {
            ask: Some(WatchAsk::Create(request)),
        };
        let _ = requests.try_send(create);
        let queue = futures::stream::unfold(queue, |mut queue| async {
            queue.recv().await.map(|request| (request, queue))
        });
        let mut request = Request::new(queue);
        token.map(|token| request.metadata_mut().insert("token", token));
        request
            .metadata_mut()
            .insert("hasleader", AsciiMetadataValue::from_static("true"));
        let opened = async {
            let mut grpc = ready(member).await?;
            let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
            let path = PathAndQuery::from_static(WATCH);
            let mut answers = grpc.streaming(request, path, codec).await?.into_inner();
            let created = answers.message().await?;
            Ok::<_, Status>((answers, created))
        };
        let (answers, created) = match tokio::time::timeout_at(end.instant(), opened).await {
            Ok(result) => result.map_err(|status| fail(Attempt::of(status)))?,
            Err(_) => {
                let status = Status::deadline_exceeded("no answer in time");
                return Err(failure::of_status(operation, &member.uri, status).into());
            }
        };
        let watch = Watch {
            operation,
            member: index,
            uri: member.uri.clone(),
            answers,
            _requests: requests,
        };
        match created {
            Some(response) if response.created && !response.canceled => Ok(watch),
            Some(response) => Err(watch.cancelled(&response)),
            None => Err(watch.ended()),
        }
    }
}

/// Why a watch of etcd is at an end.
pub(super) enum Stop {
    /// It asked for what is compacted.
    Compacted {
        /// The first revision that can be asked for.
        oldest: i64,
    },
    /// Anything else.
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// An open watch.
pub(super) struct Watch {
    operation: &'static str,
    /// The member that serves it.
    pub(super) member: usize,
    uri: String,
    answers: tonic::Streaming<WatchResponse>,
    /// The watch lives as long as this end.
    _requests: tokio::sync::mpsc::Sender<WatchRequest>,
}

impl Watch {
    /// The next events, or why there are no more.
    pub(super) async fn next(&mut self) -> Result<WatchResponse, Stop> {
        match self.answers.message().await {
            Ok(Some(response)) if response.canceled => Err(self.cancelled(&response)),
            Ok(Some(response)) => Ok(response),
            Ok(None) => Err(self.ended()),
            Err(status) => Err(self.failed(status)),
        }
    }

    fn cancelled(&self, response: &WatchResponse) -> Stop {
        if response.compact_revision > 0 {
            let oldest = response.compact_revision;
            return Stop::Compacted { oldest };
        }
        self.failed(if response.cancel_reason.contains("permission denied") {
            Status::permission_denied(&response.cancel_reason)
        } else {
            Status::unavailable(&response.cancel_reason)
        })
    }

    fn ended(&self) -> Stop {
        self.failed(Status::unavailable("the watch was ended"))
    }

    fn failed(&self, status: Status) -> Stop {
        failure::of_status(self.operation, &self.uri, status).into()
    }
}

impl Attempt {
    fn of(status: Status) -> Self {
        Self {
            meaning: meaning(&status),
            status,
        }
    }

    /// Of what comes before the request: whatever became of that, the request was not sent.
    fn before(status: Status) -> Self {
        let mut attempt = Self::of(status);
        if attempt.meaning == Meaning::Doubt {
            attempt.meaning = Meaning::Busy;
        }
        attempt
    }
}

fn member(uri: &str, options: &EtcdOptions) -> Result<Member> {
    let bad = |error: tonic::transport::Error| {
        Error::new(
            ErrorKind::Invalid,
            "store.open",
            "the endpoint cannot be used",
        )
        .with("endpoint", uri)
        .caused_by(error)
    };
    let mut endpoint = Endpoint::from_shared(uri.to_owned())
        .map_err(bad)?
        // Shorter than an attempt, so that a member out of reach is known not to have been asked.
        .connect_timeout(first_attempt(options.timeout) / 2)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(options.timeout / 3);
    if let Some(tls) = &options.tls {
        endpoint = endpoint.tls_config(tls_config(tls)).map_err(bad)?;
    }
    Ok(Member {
        uri: uri.to_owned(),
        channel: endpoint.connect_lazy(),
    })
}

fn tls_config(tls: &EtcdTls) -> ClientTlsConfig {
    let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&tls.ca));
    if let Some((certificate, key)) = &tls.identity {
        config = config.identity(Identity::from_pem(certificate, key.expose_secret()));
    }
    if let Some(name) = &tls.server_name {
        config = config.domain_name(name);
    }
    config
}

async fn ready(member: &Member) -> Result<Grpc<Channel>, Status> {
    let mut grpc = Grpc::new(member.channel.clone())
        // A watch that catches up, or a page of large records; both are limited where they are asked for.
        .max_decoding_message_size(usize::MAX);
    match grpc.ready().await {
        Ok(()) => Ok(grpc),
        Err(error) => Err(Status::from_error(Box::new(error))),
    }
}

async fn send<C: Call>(
    member: &Member,
    request: C,
    metadata: MetadataMap,
) -> Result<C::Answer, Status> {
    let mut grpc = ready(member).await?;
    let path = PathAndQuery::from_static(C::PATH);
    let codec = ProstCodec::<C, C::Answer>::default();
    if C::STREAMS {
        let one = futures::stream::iter([request]);
        let mut request = Request::new(one);
        *request.metadata_mut() = metadata;
        let mut answers = grpc.streaming(request, path, codec).await?.into_inner();
        let none = || Status::new(Code::Unavailable, "the stream ended without an answer");
        return answers.message().await?.ok_or_else(none);
    }
    let mut request = Request::new(request);
    *request.metadata_mut() = metadata;
    Ok(grpc.unary(request, path, codec).await?.into_inner())
}

fn first_attempt(timeout: Duration) -> Duration {
    timeout / 6
}

/// Waits between two rounds of attempts.
#[expect(
    clippy::disallowed_methods,
    reason = "the pause of a retry, which its deadline bounds"
)]
pub(super) async fn wait(pause: Duration) {
    tokio::time::sleep(pause).await;
}
