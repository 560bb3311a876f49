//! A connection.

use std::ffi::{CStr, c_char, c_uint};
use std::ptr::{self, NonNull};

use uuid::Uuid;
use virt_sys as sys;

use super::{Dom, LvError, LvResult, aside, counted, done, taken, text};

/// A connection to a libvirt, for one thread at a time. Dropping the last handle of it closes it, on a thread of its own:
/// the daemon is told, which may hang.
#[derive(Debug)]
pub(in super::super) struct Conn(Pointer);

#[derive(Clone, Copy, Debug)]
struct Pointer(NonNull<sys::_virConnect>);

// SAFETY: libvirt's connections are bound to no thread (see the module's header).
unsafe impl Send for Pointer {}

impl Drop for Conn {
    fn drop(&mut self) {
        aside(Closing(self.0));
    }
}

/// Closes a connection by its own end.
struct Closing(Pointer);

impl Drop for Closing {
    fn drop(&mut self) {
        // SAFETY: gives back the one reference that the handle owned. An error (the daemon is gone) changes nothing.
        unsafe { sys::virConnectClose(self.0.0.as_ptr()) };
    }
}

/// What a node says of itself.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct NodeInfo {
    pub(in super::super) memory_kib: u64,
    pub(in super::super) cpus: u32,
}

impl Conn {
    /// Opens a connection. Credentials are taken from libvirt's `auth.conf` and the URI; nobody is asked for any.
    pub(in super::super) fn open(uri: &str) -> LvResult<Self> {
        let uri = text(uri)?;
        // SAFETY: the string outlives the call; no callback for credentials is given.
        let conn = unsafe { sys::virConnectOpenAuth(uri.as_ptr(), ptr::null_mut(), 0) };
        let conn = NonNull::new(conn).ok_or_else(LvError::last)?;
        Ok(Self(Pointer(conn)))
    }

    pub(super) fn pointer(&self) -> sys::virConnectPtr {
        self.0.0.as_ptr()
    }

    /// One more handle of it.
    pub(super) fn another(&self) -> LvResult<Self> {
        // SAFETY: a valid connection; the reference that is counted here is the new handle's.
        done(unsafe { sys::virConnectRef(self.pointer()) })?;
        Ok(Self(self.0))
    }

    /// Whether it is open still; the daemon is not asked, and one that hangs is alive.
    pub(in super::super) fn is_alive(&self) -> bool {
        // SAFETY: a valid connection.
        unsafe { sys::virConnectIsAlive(self.pointer()) == 1 }
    }

    /// Asks the daemon to answer every so many seconds; a connection without so many answers is ended. Needs the event
    /// loop. `false` where there is no daemon, or one that is too old.
    pub(in super::super) fn keep_alive(&self, seconds: i32, count: u32) -> bool {
        // SAFETY: a valid connection.
        unsafe { sys::virConnectSetKeepAlive(self.pointer(), seconds, count) == 0 }
    }

    /// The driver's name, as `QEMU`.
    pub(in super::super) fn kind(&self) -> LvResult<String> {
        // SAFETY: a valid connection; the answer is null or a static string, which is copied.
        let kind = unsafe { sys::virConnectGetType(self.pointer()) };
        if kind.is_null() {
            return Err(LvError::last());
        }
        // SAFETY: as above.
        Ok(unsafe { CStr::from_ptr(kind) }
            .to_string_lossy()
            .into_owned())
    }

    /// The hypervisor's version and libvirt's, as numbers.
    pub(in super::super) fn versions(&self) -> LvResult<(u64, u64)> {
        let (mut hypervisor, mut library) = (0, 0);
        // SAFETY: a valid connection; the numbers are ours.
        counted(unsafe { sys::virConnectGetVersion(self.pointer(), &raw mut hypervisor) })?;
        // SAFETY: as above.
        counted(unsafe { sys::virConnectGetLibVersion(self.pointer(), &raw mut library) })?;
        Ok((hypervisor, library))
    }

    pub(in super::super) fn node_info(&self) -> LvResult<NodeInfo> {
        // SAFETY: a plain C struct of numbers, for which zero is valid; libvirt fills it.
        let mut info: sys::virNodeInfo = unsafe { std::mem::zeroed() };
        // SAFETY: a valid connection; the struct is ours.
        counted(unsafe { sys::virNodeGetInfo(self.pointer(), &raw mut info) })?;
        Ok(NodeInfo {
            memory_kib: info.memory,
            cpus: info.cpus,
        })
    }

    /// The host's capabilities, XML.
    pub(in super::super) fn capabilities(&self) -> LvResult<String> {
        // SAFETY: a valid connection; the answer is ours to free.
        taken(unsafe { sys::virConnectGetCapabilities(self.pointer()) })
    }

    /// What guests of this kind can be given, XML.
    pub(in super::super) fn domain_capabilities(
        &self,
        arch: &str,
        machine: &str,
        kind: &str,
    ) -> LvResult<String> {
        let (arch, machine, kind) = (text(arch)?, text(machine)?, text(kind)?);
        // SAFETY: a valid connection; the strings outlive the call; the answer is ours to free.
        taken(unsafe {
            sys::virConnectGetDomainCapabilities(
                self.pointer(),
                ptr::null(),
                arch.as_ptr(),
                machine.as_ptr(),
                kind.as_ptr(),
                0,
            )
        })
    }

    /// This CPU (`<cpu>`), as far as guests of this kind can be given it, with all of its features, XML.
    pub(in super::super) fn baseline_cpu(
        &self,
        arch: &str,
        machine: &str,
        kind: &str,
        cpu: &str,
    ) -> LvResult<String> {
        let (arch, machine, kind) = (text(arch)?, text(machine)?, text(kind)?);
        let cpu = text(cpu)?;
        let mut cpus = [cpu.as_ptr()];
        // SAFETY: a valid connection; the strings and the array of one of them outlive the call; the answer is ours to
        // free.
        taken(unsafe {
            sys::virConnectBaselineHypervisorCPU(
                self.pointer(),
                ptr::null(),
                arch.as_ptr(),
                machine.as_ptr(),
                kind.as_ptr(),
                cpus.as_mut_ptr(),
                1,
                sys::VIR_CONNECT_BASELINE_CPU_EXPAND_FEATURES,
            )
        })
    }

    /// Every domain, running or not.
    pub(in super::super) fn domains(&self) -> LvResult<Vec<Dom>> {
        self.list(0)
    }

    /// Every domain that is in memory, also if it is paused.
    pub(in super::super) fn running_domains(&self) -> LvResult<Vec<Dom>> {
        self.list(sys::VIR_CONNECT_LIST_DOMAINS_ACTIVE)
    }

    fn list(&self, flags: c_uint) -> LvResult<Vec<Dom>> {
        let mut list: *mut sys::virDomainPtr = ptr::null_mut();
        // SAFETY: a valid connection; libvirt makes the array.
        let count = unsafe { sys::virConnectListAllDomains(self.pointer(), &raw mut list, flags) };
        let count = usize::try_from(counted(count)?).unwrap_or(0);
        // SAFETY: an array of that many domains, each with a reference of its own that goes over to its handle; then
        // the array itself is freed.
        unsafe {
            let domains = (0..count).filter_map(|i| Dom::from_pointer(*list.add(i)));
            let domains = domains.collect();
            super::libc_free(list.cast());
            Ok(domains)
        }
    }

    /// The domain with this UUID, if there is one.
    pub(in super::super) fn lookup(&self, uuid: Uuid) -> LvResult<Option<Dom>> {
        // SAFETY: a valid connection; libvirt reads the 16 bytes.
        let domain =
            unsafe { sys::virDomainLookupByUUID(self.pointer(), uuid.as_bytes().as_ptr()) };
        // SAFETY: null, or a domain with a reference for us.
        match unsafe { Dom::from_pointer(domain) } {
            Some(domain) => Ok(Some(domain)),
            None => match LvError::last() {
                error if error.is(sys::VIR_ERR_NO_DOMAIN) => Ok(None),
                error => Err(error),
            },
        }
    }

    /// Defines a domain, or redefines the one with its UUID.
    pub(in super::super) fn define(&self, xml: &str) -> LvResult<Dom> {
        let xml = text(xml)?;
        let pointer: *const c_char = xml.as_ptr();
        // SAFETY: a valid connection; the string outlives the call.
        let domain = unsafe { sys::virDomainDefineXMLFlags(self.pointer(), pointer, 0) };
        // SAFETY: null, or a domain with a reference for us.
        unsafe { Dom::from_pointer(domain) }.ok_or_else(LvError::last)
    }
}
