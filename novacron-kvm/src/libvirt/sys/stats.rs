//! Numbers of domains, many by one call, and freed.

use std::ffi::{CStr, c_uint};
use std::ptr;

use uuid::Uuid;
use virt_sys as sys;

use super::{Dom, LvResult, State, counted};

/// One number or word.
#[derive(Clone, Debug, PartialEq)]
pub(in super::super) enum Param {
    /// A whole number; a negative one counts as zero.
    Number(u64),
    /// A word.
    Word(String),
}

/// What libvirt counts of a domain.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in super::super) struct Stats(Vec<(String, Param)>);

impl Stats {
    /// Of these domains, of one connection: their states, and all their numbers. What a driver does not count is left out.
    pub(in super::super) fn of<'a>(
        domains: impl IntoIterator<Item = &'a Dom>,
    ) -> LvResult<Vec<(Uuid, Self)>> {
        let numbers = sys::VIR_DOMAIN_STATS_CPU_TOTAL
            | sys::VIR_DOMAIN_STATS_BALLOON
            | sys::VIR_DOMAIN_STATS_VCPU
            | sys::VIR_DOMAIN_STATS_INTERFACE
            | sys::VIR_DOMAIN_STATS_BLOCK;
        Self::read(domains, sys::VIR_DOMAIN_STATS_STATE | numbers)
    }

    /// The states alone, for which no guest's QEMU is asked. Domains that have gone are left out.
    pub(in super::super) fn states<'a>(
        domains: impl IntoIterator<Item = &'a Dom>,
    ) -> LvResult<Vec<(Uuid, State)>> {
        let stats = Self::read(domains, sys::VIR_DOMAIN_STATS_STATE)?;
        let states = stats.into_iter();
        Ok(states
            .filter_map(|(uuid, stats)| Some((uuid, stats.state()?)))
            .collect())
    }

    fn read<'a>(
        domains: impl IntoIterator<Item = &'a Dom>,
        wanted: c_uint,
    ) -> LvResult<Vec<(Uuid, Self)>> {
        let mut pointers: Vec<_> = domains.into_iter().map(Dom::pointer).collect();
        if pointers.is_empty() {
            return Ok(Vec::new());
        }
        pointers.push(ptr::null_mut());
        let mut records: *mut sys::virDomainStatsRecordPtr = ptr::null_mut();
        // SAFETY: an array of valid domains with a null at its end; libvirt makes the records.
        let count = counted(unsafe {
            sys::virDomainListGetStats(pointers.as_mut_ptr(), wanted, &raw mut records, 0)
        })?;
        let list = List(records);
        let count = usize::try_from(count).unwrap_or(0);
        // SAFETY: that many records, valid until the list is freed at the end of this function.
        let all = (0..count).map(|i| unsafe { list.record(i) });
        Ok(all.collect())
    }

    /// The domain's state.
    pub(in super::super) fn state(&self) -> Option<State> {
        let number = |name| u32::try_from(self.number(name)?).ok();
        Some(State {
            state: number("state.state")?,
            reason: number("state.reason")?,
        })
    }

    /// A number.
    pub(in super::super) fn number(&self, name: &str) -> Option<u64> {
        match self.get(name)? {
            Param::Number(number) => Some(*number),
            Param::Word(_) => None,
        }
    }

    /// A word.
    pub(in super::super) fn word(&self, name: &str) -> Option<&str> {
        match self.get(name)? {
            Param::Number(_) => None,
            Param::Word(word) => Some(word),
        }
    }

    fn get(&self, name: &str) -> Option<&Param> {
        let found = self.0.iter().find(|(field, _)| field == name);
        found.map(|(_, param)| param)
    }
}

/// The records, freed when dropped.
struct List(*mut sys::virDomainStatsRecordPtr);

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: libvirt made it for us, with a null at its end; it is freed once.
        unsafe { sys::virDomainStatsRecordListFree(self.0) };
    }
}

impl List {
    /// # Safety
    /// There are more than `i` records.
    unsafe fn record(&self, i: usize) -> (Uuid, Stats) {
        // SAFETY: promised by the caller. A record has a valid domain and `nparams` parameters; their names are
        // NUL-terminated within their 80 bytes, and a string is null or NUL-terminated.
        unsafe {
            let record = &**self.0.add(i);
            let mut bytes = [0; 16];
            sys::virDomainGetUUID(record.dom, bytes.as_mut_ptr());
            let count = usize::try_from(record.nparams).unwrap_or(0);
            let params = (0..count).filter_map(|n| {
                let param = &*record.params.add(n);
                let name = CStr::from_ptr(param.field.as_ptr());
                Some((name.to_string_lossy().into_owned(), value(param)?))
            });
            (Uuid::from_bytes(bytes), Stats(params.collect()))
        }
    }
}

/// # Safety
/// A parameter that libvirt filled: its type says which member of the union is valid.
unsafe fn value(param: &sys::virTypedParameter) -> Option<Param> {
    // SAFETY: promised by the caller.
    unsafe {
        Some(match param.type_.unsigned_abs() {
            sys::VIR_TYPED_PARAM_INT => Param::Number(u64::try_from(param.value.i).unwrap_or(0)),
            sys::VIR_TYPED_PARAM_UINT => Param::Number(param.value.ui.into()),
            sys::VIR_TYPED_PARAM_LLONG => Param::Number(u64::try_from(param.value.l).unwrap_or(0)),
            sys::VIR_TYPED_PARAM_ULLONG => Param::Number(param.value.ul),
            sys::VIR_TYPED_PARAM_STRING if !param.value.s.is_null() => {
                let word = CStr::from_ptr(param.value.s);
                Param::Word(word.to_string_lossy().into_owned())
            }
            _ => return None,
        })
    }
}
