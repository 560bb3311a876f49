//! How a guest ended, from what was asked, what libvirt keeps, and what it pushed. What nobody knows is not made up.

use novacron_core::model::Exit;

use super::notes::How;
use super::sys::code;

/// Of a domain that is shut off, without a note of its end.
///
/// libvirt keeps the reason of a shutdown in its memory: when it was restarted since, none is left.
pub(super) fn exit(asked: Option<How>, reason: u32, terminated: bool) -> Exit {
    let detail = |words: &str| words.to_owned();
    let elsewhere = |words: &str| Exit::Terminated {
        detail: format!("somebody else on the host {words}"),
    };
    match reason {
        // A libvirt that dies over the kill finds no process when it is back, and takes that for a crash.
        code::VIR_DOMAIN_SHUTOFF_CRASHED | code::VIR_DOMAIN_SHUTOFF_DAEMON
            if matches!(asked, Some(How::Kill)) =>
        {
            Exit::Requested
        }
        code::VIR_DOMAIN_SHUTOFF_SHUTDOWN if asked.is_some() => Exit::Requested,
        code::VIR_DOMAIN_SHUTOFF_SHUTDOWN if terminated => {
            elsewhere("ended its process in an orderly way")
        }
        code::VIR_DOMAIN_SHUTOFF_SHUTDOWN => Exit::GuestShutdown,
        code::VIR_DOMAIN_SHUTOFF_DESTROYED if asked.is_some() => Exit::Requested,
        code::VIR_DOMAIN_SHUTOFF_DESTROYED => elsewhere("ended it through libvirt"),
        code::VIR_DOMAIN_SHUTOFF_CRASHED => Exit::Crashed {
            detail: detail("its process ended by itself, or was killed"),
        },
        code::VIR_DOMAIN_SHUTOFF_FAILED if asked.is_some() => Exit::Requested,
        code::VIR_DOMAIN_SHUTOFF_FAILED => Exit::StartFailed {
            detail: detail("libvirt could not start it, and its words are lost"),
        },
        code::VIR_DOMAIN_SHUTOFF_SAVED => elsewhere("saved it into a file"),
        code::VIR_DOMAIN_SHUTOFF_MIGRATED => elsewhere("moved it to another host"),
        code::VIR_DOMAIN_SHUTOFF_FROM_SNAPSHOT => elsewhere("put it back to a snapshot"),
        code::VIR_DOMAIN_SHUTOFF_DAEMON => Exit::Crashed {
            detail: detail(
                "libvirt was restarted, could not find its way back to it, and ended it",
            ),
        },
        // It was asked to end, and it is not there.
        _ if asked.is_some() => Exit::Requested,
        _ => Exit::Crashed {
            detail: detail("it ended while nobody was told, and libvirt does not know how"),
        },
    }
}

/// Of a domain whose guest crashed and whose process is kept.
pub(super) fn crash(reason: u32) -> Exit {
    match reason {
        code::VIR_DOMAIN_CRASHED_PANICKED => Exit::Panicked,
        _ => Exit::Crashed {
            detail: "libvirt says that the guest crashed".to_owned(),
        },
    }
}

/// Whether a lifecycle event tells of a domain's running, and not of its definition.
pub(super) fn is_of_life(event: u32) -> bool {
    !matches!(
        event,
        code::VIR_DOMAIN_EVENT_DEFINED | code::VIR_DOMAIN_EVENT_UNDEFINED
    )
}

/// Whether a domain has ended with it.
pub(super) fn is_end(event: u32) -> bool {
    matches!(
        event,
        code::VIR_DOMAIN_EVENT_STOPPED | code::VIR_DOMAIN_EVENT_CRASHED
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_told_from_the_guests_own_doing() {
        let shutdown = code::VIR_DOMAIN_SHUTOFF_SHUTDOWN;
        assert_eq!(exit(None, shutdown, false), Exit::GuestShutdown);
        assert_eq!(exit(Some(How::Shutdown), shutdown, false), Exit::Requested);
        let destroyed = code::VIR_DOMAIN_SHUTOFF_DESTROYED;
        assert_eq!(exit(Some(How::Kill), destroyed, false), Exit::Requested);
        let crashed = code::VIR_DOMAIN_SHUTOFF_CRASHED;
        assert_eq!(exit(Some(How::Kill), crashed, false), Exit::Requested);
        let exit_of_a_crash = exit(Some(How::Shutdown), crashed, false);
        assert!(matches!(exit_of_a_crash, Exit::Crashed { .. }));
        for (reason, terminated) in [(shutdown, true), (destroyed, false)] {
            let exit = exit(None, reason, terminated);
            assert!(matches!(exit, Exit::Terminated { .. }), "{exit:?}");
        }
    }

    #[test]
    fn what_nobody_knows_is_not_made_up() {
        let Exit::Crashed { detail } = exit(None, 0, false) else {
            panic!("an end without a reason counts as a failure");
        };
        assert!(detail.contains("does not know how"), "{detail}");
    }
}
