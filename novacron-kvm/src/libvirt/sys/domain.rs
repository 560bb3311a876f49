//! A domain.

use std::ffi::c_int;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr::NonNull;

use novacron_core::model::{DiskLimits, NicLimits};
use virt_sys as sys;

use super::super::describe::kib;
use super::{LvError, LvResult, done, taken, text};

/// A domain, by a reference that keeps its connection open. It stays on the thread that has the connection.
#[derive(Debug)]
pub(in super::super) struct Dom(NonNull<sys::_virDomain>);

impl Drop for Dom {
    fn drop(&mut self) {
        // SAFETY: gives back the one reference that this handle owns.
        unsafe { sys::virDomainFree(self.pointer()) };
    }
}

/// A state and its reason, by libvirt's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct State {
    pub(in super::super) state: u32,
    pub(in super::super) reason: u32,
}

/// A parameter of this name, whose type and value are to be set.
fn named(name: &std::ffi::CStr) -> sys::virTypedParameter {
    // SAFETY: a plain C struct of numbers, for which zero is valid.
    let mut parameter: sys::virTypedParameter = unsafe { std::mem::zeroed() };
    let bytes = name.to_bytes_with_nul();
    for (to, from) in parameter.field.iter_mut().zip(bytes) {
        *to = *from as _;
    }
    parameter
}

/// How much goes with a domain that is undefined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Undefine {
    /// Saved memory, what libvirt keeps of its snapshots and checkpoints; not its firmware's variables, whose file is ours.
    Everything,
    /// Its definition: all that some drivers know.
    Plain,
}

impl Dom {
    /// # Safety
    /// Null, or a valid domain with a reference that goes over to the handle.
    pub(super) unsafe fn from_pointer(domain: sys::virDomainPtr) -> Option<Self> {
        NonNull::new(domain).map(Self)
    }

    pub(super) fn pointer(&self) -> sys::virDomainPtr {
        self.0.as_ptr()
    }

    pub(in super::super) fn name(&self) -> LvResult<String> {
        // SAFETY: a valid domain; the answer is null or a string that lives as long as the domain, and is copied.
        unsafe {
            let name = sys::virDomainGetName(self.pointer());
            if name.is_null() {
                return Err(LvError::last());
            }
            Ok(std::ffi::CStr::from_ptr(name)
                .to_string_lossy()
                .into_owned())
        }
    }

    pub(in super::super) fn state(&self) -> LvResult<State> {
        let (mut state, mut reason): (c_int, c_int) = (0, 0);
        // SAFETY: a valid domain; the numbers are ours.
        done(unsafe {
            sys::virDomainGetState(self.pointer(), &raw mut state, &raw mut reason, 0)
        })?;
        Ok(State {
            state: state.unsigned_abs(),
            reason: reason.unsigned_abs(),
        })
    }

    /// Its description: as it runs, or as it is defined.
    pub(in super::super) fn xml(&self, defined: bool) -> LvResult<String> {
        let flags = if defined {
            sys::VIR_DOMAIN_XML_INACTIVE
        } else {
            0
        };
        // SAFETY: a valid domain; the answer is ours to free.
        taken(unsafe { sys::virDomainGetXMLDesc(self.pointer(), flags) })
    }

    /// Sets the element of a namespace in the definition's metadata.
    pub(in super::super) fn note(&self, element: &str, key: &str, uri: &str) -> LvResult<()> {
        let (element, key, uri) = (text(element)?, text(key)?, text(uri)?);
        // SAFETY: a valid domain; the strings outlive the call.
        done(unsafe {
            sys::virDomainSetMetadata(
                self.pointer(),
                sys::VIR_DOMAIN_METADATA_ELEMENT as c_int,
                element.as_ptr(),
                key.as_ptr(),
                uri.as_ptr(),
                sys::VIR_DOMAIN_AFFECT_CONFIG,
            )
        })
    }

    /// Starts it with its vCPUs held.
    pub(in super::super) fn create_paused(&self) -> LvResult<()> {
        // SAFETY: a valid domain.
        done(unsafe { sys::virDomainCreateWithFlags(self.pointer(), sys::VIR_DOMAIN_START_PAUSED) })
    }

    /// Keeps libvirt from starting it by itself.
    pub(in super::super) fn never_autostart(&self) -> LvResult<()> {
        // SAFETY: a valid domain.
        done(unsafe { sys::virDomainSetAutostart(self.pointer(), 0) })
    }

    pub(in super::super) fn resume(&self) -> LvResult<()> {
        // SAFETY: a valid domain.
        done(unsafe { sys::virDomainResume(self.pointer()) })
    }

    pub(in super::super) fn suspend(&self) -> LvResult<()> {
        // SAFETY: a valid domain.
        done(unsafe { sys::virDomainSuspend(self.pointer()) })
    }

    pub(in super::super) fn reset(&self) -> LvResult<()> {
        // SAFETY: a valid domain.
        done(unsafe { sys::virDomainReset(self.pointer(), 0) })
    }

    /// Presses the power button; where a driver knows no such choice, asks it to shut down.
    pub(in super::super) fn press_power(&self) -> LvResult<()> {
        let flags = sys::VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN;
        // SAFETY: a valid domain.
        let pressed = done(unsafe { sys::virDomainShutdownFlags(self.pointer(), flags) });
        match pressed {
            Err(error)
                if error.is(sys::VIR_ERR_INVALID_ARG)
                    || error.is(sys::VIR_ERR_ARGUMENT_UNSUPPORTED) =>
            {
                // SAFETY: a valid domain.
                done(unsafe { sys::virDomainShutdown(self.pointer()) })
            }
            pressed => pressed,
        }
    }

    /// Ends it now; returns when its process is gone.
    pub(in super::super) fn destroy(&self) -> LvResult<()> {
        // SAFETY: a valid domain.
        done(unsafe { sys::virDomainDestroyFlags(self.pointer(), 0) })
    }

    pub(in super::super) fn undefine(&self, what: Undefine) -> LvResult<()> {
        let flags = match what {
            Undefine::Everything => {
                sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
                    | sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                    | sys::VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
                    | sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
            }
            Undefine::Plain => 0,
        };
        // SAFETY: a valid domain.
        done(unsafe { sys::virDomainUndefineFlags(self.pointer(), flags) })
    }

    /// Gives it a device while it runs.
    pub(in super::super) fn attach(&self, device: &str) -> LvResult<()> {
        let device = text(device)?;
        let flags = sys::VIR_DOMAIN_AFFECT_LIVE;
        // SAFETY: a valid domain; the string outlives the call.
        done(unsafe { sys::virDomainAttachDeviceFlags(self.pointer(), device.as_ptr(), flags) })
    }

    /// Asks the guest to let go of a device; an event tells when it has.
    pub(in super::super) fn detach(&self, alias: &str) -> LvResult<()> {
        let alias = text(alias)?;
        let flags = sys::VIR_DOMAIN_AFFECT_LIVE;
        // SAFETY: a valid domain; the string outlives the call.
        done(unsafe { sys::virDomainDetachDeviceAlias(self.pointer(), alias.as_ptr(), flags) })
    }

    /// The size that the guest sees of a disk, bytes.
    pub(in super::super) fn disk_size(&self, target: &str) -> LvResult<u64> {
        let target = text(target)?;
        let mut info = sys::virDomainBlockInfo {
            capacity: 0,
            allocation: 0,
            physical: 0,
        };
        // SAFETY: a valid domain; the string outlives the call; the struct is ours.
        done(unsafe {
            sys::virDomainGetBlockInfo(self.pointer(), target.as_ptr(), &raw mut info, 0)
        })?;
        Ok(info.capacity)
    }

    pub(in super::super) fn resize_disk(&self, target: &str, bytes: u64) -> LvResult<()> {
        let target = text(target)?;
        let flags = sys::VIR_DOMAIN_BLOCK_RESIZE_BYTES;
        // SAFETY: a valid domain; the string outlives the call.
        done(unsafe { sys::virDomainBlockResize(self.pointer(), target.as_ptr(), bytes, flags) })
    }

    /// Sets how much may be read and written of a disk of the running domain, all of it.
    pub(in super::super) fn set_disk_limits(
        &self,
        target: &str,
        limits: &DiskLimits,
    ) -> LvResult<()> {
        let target = text(target)?;
        let all = [
            (
                sys::VIR_DOMAIN_BLOCK_IOTUNE_TOTAL_BYTES_SEC,
                limits.bytes_sec,
            ),
            (
                sys::VIR_DOMAIN_BLOCK_IOTUNE_READ_BYTES_SEC,
                limits.read_bytes_sec,
            ),
            (
                sys::VIR_DOMAIN_BLOCK_IOTUNE_WRITE_BYTES_SEC,
                limits.write_bytes_sec,
            ),
            (sys::VIR_DOMAIN_BLOCK_IOTUNE_TOTAL_IOPS_SEC, limits.iops),
            (sys::VIR_DOMAIN_BLOCK_IOTUNE_READ_IOPS_SEC, limits.read_iops),
            (
                sys::VIR_DOMAIN_BLOCK_IOTUNE_WRITE_IOPS_SEC,
                limits.write_iops,
            ),
        ];
        let mut parameters = all.map(|(name, limit)| {
            let mut parameter = named(name);
            parameter.type_ = sys::VIR_TYPED_PARAM_ULLONG as _;
            parameter.value.ul = limit.unwrap_or(0);
            parameter
        });
        let count = c_int::try_from(parameters.len()).unwrap_or(c_int::MAX);
        // SAFETY: a valid domain; the string and the array of that many parameters outlive the call.
        done(unsafe {
            sys::virDomainSetBlockIoTune(
                self.pointer(),
                target.as_ptr(),
                parameters.as_mut_ptr(),
                count,
                sys::VIR_DOMAIN_AFFECT_LIVE,
            )
        })
    }

    /// Sets how much a running guest may send and receive over the NIC of this device, whole KiB per second; no limit where
    /// there is none.
    pub(in super::super) fn set_nic_limits(
        &self,
        device: &str,
        limits: &NicLimits,
    ) -> LvResult<()> {
        let device = text(device)?;
        let all = [
            (
                sys::VIR_DOMAIN_BANDWIDTH_IN_AVERAGE,
                limits.inbound_bytes_sec,
            ),
            (
                sys::VIR_DOMAIN_BANDWIDTH_OUT_AVERAGE,
                limits.outbound_bytes_sec,
            ),
        ];
        let mut parameters = all.map(|(name, limit)| {
            let mut parameter = named(name);
            parameter.type_ = sys::VIR_TYPED_PARAM_UINT as _;
            parameter.value.ui = kib(limit.unwrap_or(0)).try_into().unwrap_or(u32::MAX);
            parameter
        });
        let count = c_int::try_from(parameters.len()).unwrap_or(c_int::MAX);
        // SAFETY: a valid domain; the string and the array of that many parameters outlive the call.
        done(unsafe {
            sys::virDomainSetInterfaceParameters(
                self.pointer(),
                device.as_ptr(),
                parameters.as_mut_ptr(),
                count,
                sys::VIR_DOMAIN_AFFECT_LIVE,
            )
        })
    }

    /// Changes a device of a running guest to what this XML says of it.
    pub(in super::super) fn update(&self, xml: &str) -> LvResult<()> {
        let xml = text(xml)?;
        // SAFETY: a valid domain; the string outlives the call.
        done(unsafe {
            sys::virDomainUpdateDeviceFlags(
                self.pointer(),
                xml.as_ptr(),
                sys::VIR_DOMAIN_AFFECT_LIVE,
            )
        })
    }

    /// Puts layers that are there on top of disks, all or none, and keeps no record of it.
    pub(in super::super) fn pivot(&self, snapshot: &str) -> LvResult<()> {
        let snapshot = text(snapshot)?;
        let flags = sys::VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
            | sys::VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
            | sys::VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
            | sys::VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC;
        // SAFETY: a valid domain; the string outlives the call; the snapshot's reference is given back at once.
        unsafe {
            let made = sys::virDomainSnapshotCreateXML(self.pointer(), snapshot.as_ptr(), flags);
            if made.is_null() {
                return Err(LvError::last());
            }
            sys::virDomainSnapshotFree(made);
        }
        Ok(())
    }

    pub(in super::super) fn inject_nmi(&self) -> LvResult<()> {
        // SAFETY: a valid domain.
        done(unsafe { sys::virDomainInjectNMI(self.pointer(), 0) })
    }

    /// Writes its memory, and nothing else of it, into a file of its host.
    pub(in super::super) fn dump_memory(&self, file: &str) -> LvResult<()> {
        let file = text(file)?;
        let format = sys::VIR_DOMAIN_CORE_DUMP_FORMAT_RAW;
        let flags = sys::VIR_DUMP_MEMORY_ONLY;
        // SAFETY: a valid domain; the string outlives the call.
        done(unsafe {
            sys::virDomainCoreDumpWithFormat(self.pointer(), file.as_ptr(), format, flags)
        })
    }

    /// A connection to its first graphics, past any password.
    pub(in super::super) fn graphics(&self) -> LvResult<OwnedFd> {
        let flags = sys::VIR_DOMAIN_OPEN_GRAPHICS_SKIPAUTH;
        // SAFETY: a valid domain.
        let fd = unsafe { sys::virDomainOpenGraphicsFD(self.pointer(), 0, flags) };
        done(fd)?;
        // SAFETY: not negative: a descriptor that is ours to close.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// A command to the guest agent, and its answer, both JSON; it may take that many seconds.
    pub(in super::super) fn agent(&self, command: &str, seconds: i32) -> LvResult<String> {
        let command = text(command)?;
        // SAFETY: a valid domain; the string outlives the call; the answer is ours to free.
        taken(unsafe {
            sys::virDomainQemuAgentCommand(self.pointer(), command.as_ptr(), seconds, 0)
        })
    }

    /// The CPU time of the domain's process, ns.
    pub(in super::super) fn cpu_ns(&self) -> LvResult<u64> {
        // SAFETY: a plain C struct of numbers, for which zero is valid; libvirt fills it.
        let mut info: sys::virDomainInfo = unsafe { std::mem::zeroed() };
        // SAFETY: a valid domain; the struct is ours.
        done(unsafe { sys::virDomainGetInfo(self.pointer(), &raw mut info) })?;
        Ok(info.cpuTime)
    }
}
