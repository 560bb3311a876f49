//! Guests that another process looks after: their consoles, screens, statistics and agents.
//!
//! ```text
//!   the process that asks                                      the one that looks after the guest's node
//!   member/<me>: key                                           member/<owner>: key, address
//!      │                                                          │
//!      ├── TLS 1.3: it has the announced key ───────────────────►│
//!      ├── a ticket: whom it is for, which domain, what is ─────►│ the asker's announced key signed it; the asker is alive;
//!      │   asked, until when; signed                             │ it is for this process, in time, and new
//!      │◄── the answer, or a stream's bytes both ways ───────────┤ the driver's answer
//! ```
//! The store is the only root of trust: a key lives as long as its process and is announced in its member record, as a raw
//! public key (RFC 7250), so there are no certificates to make or renew. Nothing of an operation goes through the store, and
//! whoever may ask was decided by the asker's authorizer. A ticket is good for one operation, once, for a
//! minute, and for one more since two clocks may differ.
//!
//! [`tls`] and [`ticket`] are the two halves of the proof, [`wire`] is what is said, [`client`] asks, [`server`] answers,
//! [`relay`] carries a console or a screen.

mod client;
mod relay;
mod server;
mod ticket;
mod tls;
mod wire;

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub(crate) use client::Peer;

use crate::control::cache::Cache;
use crate::control::executor::Drivers;
use crate::error::{Error, ErrorKind, Problem, Result};
use crate::model::{ClusterId, Endpoint, MemberId, NodeId};
use crate::time::{Clock, IdSource};
use server::Server;
use tls::Identity;

const OPERATION: &str = "cluster.peers";

/// After how long without a word of the kernel on the other side a connection ends: a console may be silent for days, and a
/// host that lost its power says nothing.
const SILENCE: Duration = Duration::from_secs(30);

fn tend(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, SILENCE / 2)?;
    sockopt::set_tcp_keepintvl(stream, SILENCE / 6)?;
    // No limit on unread bytes: whoever reads slowly is alive. While bytes are on their way the kernel's own patience with
    // them holds, a quarter of an hour.
    Ok(sockopt::set_tcp_keepcnt(stream, 3)?)
}

/// How a process reaches the guests that others look after, and they those on its nodes.
///
/// Every process of the cluster is given one. Who may connect is decided by a key and a ticket, not by the network; a
/// firewall that lets only the cluster's hosts through is still good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peers {
    listen: Option<SocketAddr>,
    announced: Option<String>,
}

impl Peers {
    /// Others reach this process at this address; port 0 takes a free one.
    pub fn listening(on: SocketAddr) -> Self {
        Self {
            listen: Some(on),
            announced: None,
        }
    }

    /// It looks after no node, and is never asked.
    pub fn asking_only() -> Self {
        Self {
            listen: None,
            announced: None,
        }
    }

    /// The `host:port` that others connect to, where it is not the address that this process listens on.
    #[must_use]
    pub fn announced_as(mut self, address: impl Into<String>) -> Self {
        self.announced = Some(address.into());
        self
    }

    fn check(&self) -> Result<()> {
        let refuse = |field: &str, message: String| {
            let field = format!("peers.{field}");
            Err(Error::invalid(OPERATION, vec![Problem { field, message }]))
        };
        match (&self.announced, self.listen) {
            (Some(address), None) => {
                let message = format!("{address:?}: who only asks announces no address");
                refuse("announced_as", message)
            }
            (Some(address), Some(_)) if !can_be_connected_to(address) => {
                let message = format!(
                    "{address:?}; must be host:port, as \"10.0.0.7:7000\", \"[fd00::7]:7000\" or \"alpha.example:7000\""
                );
                refuse("announced_as", message)
            }
            (None, Some(on)) if on.ip().is_unspecified() => {
                let message = format!(
                    "nobody can connect to {on}: listen on one address, or say how others reach it (announced_as)"
                );
                refuse("listening", message)
            }
            _ => Ok(()),
        }
    }

    /// Takes the address, and makes the key.
    pub(crate) async fn open(self) -> Result<Open> {
        self.check()?;
        let identity = Identity::generate()?;
        let mut endpoint = Endpoint {
            key: identity.key(),
            address: None,
        };
        let mut listener = None;
        if let Some(on) = self.listen {
            let refused = |e: std::io::Error| {
                let message = format!("cannot listen on {on}: {e}");
                Error::new(ErrorKind::FailedPrecondition, OPERATION, message)
            };
            let bound = TcpListener::bind(on).await.map_err(refused)?;
            let at = bound.local_addr().map_err(refused)?;
            endpoint.address = Some(self.announced.unwrap_or_else(|| at.to_string()));
            listener = Some(bound);
        }
        Ok(Open {
            identity: Arc::new(identity),
            endpoint,
            listener,
        })
    }
}

/// Whether this is a `host:port` that one can connect to.
fn can_be_connected_to(address: &str) -> bool {
    if let Ok(at) = address.parse::<SocketAddr>() {
        return at.port() != 0 && !at.ip().is_unspecified();
    }
    let Some((host, port)) = address.rsplit_once(':') else {
        return false;
    };
    let named = host.starts_with(|c: char| c.is_ascii_alphanumeric())
        && host
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'));
    named && port.parse::<u16>().is_ok_and(|port| port != 0)
}

/// A process's key, and where it listens.
pub(crate) struct Open {
    identity: Arc<Identity>,
    pub(crate) endpoint: Endpoint,
    listener: Option<TcpListener>,
}

/// This process's way to the others, if it was given one.
pub(crate) struct Way(Option<Arc<Asker>>);

struct Asker {
    me: MemberId,
    identity: Arc<Identity>,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
}

/// The way to the others, and the task that lets them in here until it is stopped.
pub(crate) fn start(
    open: Option<Open>,
    cluster: ClusterId,
    me: MemberId,
    drivers: &Arc<Drivers>,
    cache: &Arc<RwLock<Cache>>,
    stop: watch::Receiver<bool>,
) -> Result<(Way, Option<JoinHandle<()>>)> {
    let Some(open) = open else {
        return Ok((Way(None), None));
    };
    let mut task = None;
    if let Some(listener) = open.listener {
        let server = Server::new(
            cluster,
            me,
            Arc::clone(drivers),
            Arc::clone(cache),
            &open.identity,
        )?;
        task = Some(tokio::spawn(server.serve(listener, stop)));
    }
    let asker = Asker {
        me,
        identity: open.identity,
        clock: Arc::clone(&drivers.clock),
        ids: Arc::clone(&drivers.ids),
    };
    Ok((Way(Some(Arc::new(asker))), task))
}

impl Way {
    /// The process that looks after a node.
    pub(crate) fn of_node(
        &self,
        verb: &'static str,
        node: &NodeId,
        cache: &RwLock<Cache>,
    ) -> Result<Peer> {
        let refuse =
            |kind, message: String| Err(Error::new(kind, verb, message).with("node", node));
        let Some(asker) = &self.0 else {
            let message = "another process looks after the node: to reach it, see Builder::peers";
            return refuse(ErrorKind::Unsupported, message.to_owned());
        };
        let cache = cache.read().unwrap_or_else(PoisonError::into_inner);
        let owner = cache.node_owners.get(node).map(|owner| owner.member);
        let owner = owner.and_then(|id| cache.members.get(&id));
        let Some(owner) = owner.filter(|m| m.is_alive()) else {
            let message = "nobody looks after the node at this moment";
            return refuse(ErrorKind::Unavailable, message.to_owned());
        };
        let at = owner.endpoint.as_ref();
        let Some((key, address)) = at.and_then(|e| Some((e.key, e.address.clone()?))) else {
            let message = format!(
                "{}, which looks after the node, does not let itself be asked: see Builder::peers",
                owner.name
            );
            return refuse(ErrorKind::Unsupported, message);
        };
        Ok(Peer {
            asker: Arc::clone(asker),
            to: owner.id,
            node: node.clone(),
            address,
            key,
        })
    }
}
