//! Callbacks: what libvirt pushes, as one enum, to one closure per connection.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::transmute;

use uuid::Uuid;
use virt_sys as sys;

use super::registry::{Place, Registry};
use super::{Conn, LvError, LvResult};

static EVENTS: Registry<Event> = Registry::new();

/// What libvirt pushes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Event {
    /// A domain's life went on; libvirt's numbers for what and why.
    Lifecycle {
        domain: Uuid,
        event: u32,
        detail: u32,
    },
    /// The guest was reset, or restarted itself.
    Reboot { domain: Uuid },
    /// The guest no longer fed its watchdog.
    Watchdog { domain: Uuid },
    /// The guest has let go of a device.
    DeviceRemoved { domain: Uuid, alias: String },
    /// The guest agent came or went.
    Agent { domain: Uuid, connected: bool },
    /// The connection has ended by itself.
    Closed,
}

/// A connection's callbacks, until dropped. Dropping it may block: the daemon is told.
pub(in super::super) struct Subscription {
    conn: Conn,
    place: Place<Event>,
    ids: Vec<c_int>,
    closing: bool,
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription").finish_non_exhaustive()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        // A callback holds a reference of its connection, which would otherwise never close.
        for id in self.ids.drain(..) {
            // SAFETY: a valid connection, and an id that it gave out.
            unsafe { sys::virConnectDomainEventDeregisterAny(self.conn.pointer(), id) };
        }
        if self.closing {
            // SAFETY: a valid connection, and the function that was registered.
            unsafe { sys::virConnectUnregisterCloseCallback(self.conn.pointer(), CLOSED) };
        }
    }
}

impl Subscription {
    /// Has libvirt call `sink`, on the event loop's thread: it must not block, nor call libvirt.
    ///
    /// A driver that does not know one of the events goes without it; one that does not know of domains' lives fails.
    pub(in super::super) fn new(
        conn: &Conn,
        sink: impl Fn(Event) + Send + Sync + 'static,
    ) -> LvResult<Self> {
        let mut subscription = Self {
            conn: conn.another()?,
            place: EVENTS.add(sink),
            ids: Vec::new(),
            closing: false,
        };
        // SAFETY: libvirt calls each function with the arguments of the event that it is registered for, whatever its
        // type here; that is how its interface is meant.
        let (lifecycle, reboot, watchdog, removed, agent) = unsafe {
            (
                transmute::<*const (), Generic>(lifecycle as *const ()),
                transmute::<*const (), Generic>(reboot as *const ()),
                transmute::<*const (), Generic>(watchdog as *const ()),
                transmute::<*const (), Generic>(removed as *const ()),
                transmute::<*const (), Generic>(agent as *const ()),
            )
        };
        subscription.add(sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle)?;
        for (event, function) in [
            (sys::VIR_DOMAIN_EVENT_ID_REBOOT, reboot),
            (sys::VIR_DOMAIN_EVENT_ID_WATCHDOG, watchdog),
            (sys::VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, removed),
            (sys::VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE, agent),
        ] {
            if let Err(error) = subscription.add(event, function) {
                tracing::debug!(%error, event, "this libvirt does not push an event");
            }
        }
        // SAFETY: a valid connection; the data is a number. Drivers in the process know no end of a connection.
        let registered = unsafe {
            let data = subscription.place.data();
            sys::virConnectRegisterCloseCallback(conn.pointer(), CLOSED, data, None)
        };
        subscription.closing = registered == 0;
        Ok(subscription)
    }

    fn add(&mut self, event: sys::virDomainEventID, function: Generic) -> LvResult<()> {
        // SAFETY: a valid connection; no domain means all of them; the data is a number.
        let id = unsafe {
            sys::virConnectDomainEventRegisterAny(
                self.conn.pointer(),
                std::ptr::null_mut(),
                event as c_int,
                Some(function),
                self.place.data(),
                None,
            )
        };
        if id < 0 {
            return Err(LvError::last());
        }
        self.ids.push(id);
        Ok(())
    }
}

/// The function that is told of a connection's end: libvirt takes a callback back by its address, and one function may
/// have several.
static CLOSED: sys::virConnectCloseFunc = Some(closed);

type Generic = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void);

/// The UUID of a domain that libvirt lends to a callback.
///
/// # Safety
/// A valid domain.
unsafe fn uuid_of(domain: sys::virDomainPtr) -> Uuid {
    let mut bytes = [0; 16];
    // SAFETY: promised by the caller; libvirt writes 16 bytes. It fails for an invalid domain only.
    unsafe { sys::virDomainGetUUID(domain, bytes.as_mut_ptr()) };
    Uuid::from_bytes(bytes)
}

unsafe extern "C" fn lifecycle(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    event: c_int,
    detail: c_int,
    data: *mut c_void,
) -> c_int {
    // SAFETY: libvirt lends a valid domain.
    unsafe {
        let event = Event::Lifecycle {
            domain: uuid_of(domain),
            event: event.unsigned_abs(),
            detail: detail.unsigned_abs(),
        };
        EVENTS.call(data, event);
    }
    0
}

unsafe extern "C" fn reboot(_: sys::virConnectPtr, domain: sys::virDomainPtr, data: *mut c_void) {
    // SAFETY: as for `lifecycle`.
    unsafe {
        let domain = uuid_of(domain);
        EVENTS.call(data, Event::Reboot { domain });
    }
}

unsafe extern "C" fn watchdog(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _action: c_int,
    data: *mut c_void,
) {
    // SAFETY: as for `lifecycle`.
    unsafe {
        let domain = uuid_of(domain);
        EVENTS.call(data, Event::Watchdog { domain });
    }
}

unsafe extern "C" fn removed(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    alias: *const c_char,
    data: *mut c_void,
) {
    // SAFETY: as for `lifecycle`; the alias is a NUL-terminated string that is copied.
    unsafe {
        let event = Event::DeviceRemoved {
            domain: uuid_of(domain),
            alias: CStr::from_ptr(alias).to_string_lossy().into_owned(),
        };
        EVENTS.call(data, event);
    }
}

unsafe extern "C" fn agent(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    state: c_int,
    _reason: c_int,
    data: *mut c_void,
) {
    // SAFETY: as for `lifecycle`.
    unsafe {
        let event = Event::Agent {
            domain: uuid_of(domain),
            connected: state.unsigned_abs()
                == sys::VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED,
        };
        EVENTS.call(data, event);
    }
}

unsafe extern "C" fn closed(_: sys::virConnectPtr, _reason: c_int, data: *mut c_void) {
    EVENTS.call(data, Event::Closed);
}
