//! The connections, and the thread that keeps the first, which the others follow.
//!
//! ```text
//!   New ── first call ──► Connecting ──► Up ── lost: closed, keepalive, an error ──► Connecting ──► …
//!                             └── refused ──► Down(why) ── backoff ──► Connecting
//! ```
//! Nothing is touched before the first call. From then on one thread per hypervisor connects, waits for the loss, and
//! connects anew, with a backoff that grows to [`SLOWEST`]. A call that finds no connection waits for one that is being
//! made, until its deadline; one that finds [`Status::Down`] is told why at once. A call that was under way when the
//! connection was lost is ended by libvirt with an error.
//!
//! A daemon that hangs ends the connection by keepalive, after [`ALIVE_EVERY`] × [`ALIVE_MISSED`] seconds, except while
//! it is being opened: then the thread waits in it, and callers go at their deadlines.
//!
//! That one carries events and nothing else. A second thread hands them on, so that the event loop, which is the process's,
//! never waits for us. Events may be lost with a connection: every stream of events ends then, and its reader lists.
//!
//! Calls have connections of their own, one per thread that makes some ([`Lane`]): libvirtd answers five at a time on one,
//! and libvirt's client is not safe on a shared one that is lost (`sys`). A call on one that is lost ends with an error of
//! libvirt's, and the thread opens another one for the next.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::thread::Thread;
use std::time::Duration;

use super::host::{GuestFacts, HostFacts};
use super::state::{State, lock};
use super::sys::{Conn, Event, LvError, LvResult, Subscription, aside};

const ALIVE_EVERY: i32 = 5;
const ALIVE_MISSED: u32 = 3;
const FIRST: Duration = Duration::from_millis(100);
const SLOWEST: Duration = Duration::from_secs(5);
/// How often a connection is looked at whose loss nobody tells.
const LOOK: Duration = Duration::from_secs(1);
/// Events that may wait to be handed on.
const BACKLOG: usize = 4096;

/// Where the connection stands.
#[derive(Clone, Debug, Default)]
pub(super) enum Status {
    /// Nobody needed one yet.
    #[default]
    New,
    /// One is being made.
    Connecting,
    /// It is there.
    Up(Arc<Live>),
    /// It could not be made.
    Down(LvError),
}

/// A connection that was made.
#[derive(Debug)]
pub(super) struct Live {
    uri: String,
    /// What events come by, until it is dropped.
    events: Mutex<Option<(Subscription, Conn)>>,
    pub(super) facts: HostFacts,
    /// Asked for when a guest is defined or the host is probed.
    pub(super) guests: OnceLock<GuestFacts>,
    lost: Arc<Loss>,
}

/// A thread's connection for calls, kept from one call to the next while the hypervisor's is the same.
#[derive(Debug, Default)]
pub(super) struct Lane(Option<(Weak<Live>, Conn)>);

impl Lane {
    /// Takes the connection out, or opens one.
    pub(super) fn take(&mut self, live: &Arc<Live>) -> LvResult<Conn> {
        match self.0.take() {
            Some((of, conn)) if of.as_ptr() == Arc::as_ptr(live) && conn.is_alive() => Ok(conn),
            _ => live.open(),
        }
    }

    pub(super) fn put(&mut self, live: &Arc<Live>, conn: Conn) {
        self.0 = Some((Arc::downgrade(live), conn));
    }
}

#[derive(Debug)]
struct Loss {
    lost: AtomicBool,
    supervisor: Thread,
}

impl Loss {
    fn set(&self) {
        self.lost.store(true, Ordering::SeqCst);
        self.supervisor.unpark();
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // The daemon is told, which may hang.
        aside(lock(&self.events).take());
    }
}

impl Live {
    /// A connection for calls.
    pub(super) fn open(&self) -> LvResult<Conn> {
        open(&self.uri)
    }

    /// Gives it up: events have been lost.
    pub(super) fn lose(&self) {
        self.lost.set();
    }

    /// Whether it is over, looked at after an error.
    pub(super) fn is_lost(&self) -> bool {
        let is_alive = || matches!(&*lock(&self.events), Some((_, conn)) if conn.is_alive());
        if !self.lost.lost.load(Ordering::SeqCst) && !is_alive() {
            self.lost.set();
        }
        self.lost.lost.load(Ordering::SeqCst)
    }
}

/// Starts the thread that keeps the connection.
pub(super) fn supervise(state: &Arc<State>) -> std::io::Result<Thread> {
    let weak = Arc::downgrade(state);
    let thread = std::thread::Builder::new().name("libvirt-link".to_owned());
    let started = thread.spawn(move || keep(&weak))?;
    Ok(started.thread().clone())
}

fn keep(state: &Weak<State>) {
    let mut backoff = FIRST;
    loop {
        let Some(strong) = state.upgrade() else {
            return;
        };
        strong.status.send_replace(Status::Connecting);
        match connect(&strong) {
            Ok(live) => {
                backoff = FIRST;
                let uri = strong.config.uri.clone();
                tracing::info!(uri, "connected to libvirt");
                let watched = Arc::downgrade(&live);
                strong.up(&live);
                drop((strong, live));
                while watched.upgrade().is_some_and(|live| !live.is_lost()) {
                    if state.strong_count() == 0 {
                        return;
                    }
                    std::thread::park_timeout(LOOK);
                }
                if let Some(strong) = state.upgrade() {
                    tracing::warn!(uri, "the connection to libvirt was lost");
                    strong.status.send_replace(Status::Connecting);
                    strong.end_streams();
                }
            }
            Err(error) => {
                tracing::debug!(uri = strong.config.uri, %error, "no connection to libvirt");
                strong.status.send_replace(Status::Down(error));
                drop(strong);
                std::thread::park_timeout(backoff);
                backoff = (backoff * 2).min(SLOWEST);
            }
        }
    }
}

fn connect(state: &Arc<State>) -> LvResult<Arc<Live>> {
    state.config.event_loop.ensure()?;
    let conn = open(&state.config.uri)?;
    let lost = Arc::new(Loss {
        lost: AtomicBool::new(false),
        supervisor: std::thread::current(),
    });
    let (events, pushed) = sync_channel(BACKLOG);
    let subscription = Subscription::new(&conn, sink(events, Arc::clone(&lost)))?;
    let live = Arc::new(Live {
        uri: state.config.uri.clone(),
        facts: HostFacts::of(&conn)?,
        guests: OnceLock::new(),
        events: Mutex::new(Some((subscription, conn))),
        lost,
    });
    let (state, watched) = (Arc::downgrade(state), Arc::downgrade(&live));
    let hand_on = std::thread::Builder::new().name("libvirt-pushed".to_owned());
    let started = hand_on.spawn(move || hand_on_events(&state, &watched, &pushed));
    match started {
        Ok(_) => Ok(live),
        Err(error) => Err(LvError::ours(format!(
            "no thread for libvirt's events: {error}"
        ))),
    }
}

fn open(uri: &str) -> LvResult<Conn> {
    let conn = Conn::open(uri)?;
    // Drivers in the process have nobody to keep alive.
    conn.keep_alive(ALIVE_EVERY, ALIVE_MISSED);
    Ok(conn)
}

/// What libvirt calls, on the event loop's thread.
fn sink(events: SyncSender<Event>, lost: Arc<Loss>) -> impl Fn(Event) + Send + Sync {
    move |event| match event {
        Event::Closed => lost.set(),
        event => {
            // Events that cannot be kept are as good as a lost connection: whoever listens must list.
            if events.try_send(event).is_err() {
                lost.set();
            }
        }
    }
}

fn hand_on_events(state: &Weak<State>, live: &Weak<Live>, pushed: &Receiver<Event>) {
    let mut lane = Lane::default();
    while let Ok(event) = pushed.recv() {
        let (Some(state), Some(live)) = (state.upgrade(), live.upgrade()) else {
            return;
        };
        if let Err(error) = state.happened(&live, &mut lane, event) {
            tracing::debug!(%error, "an event that cannot be looked into");
            live.lose();
        }
    }
}
