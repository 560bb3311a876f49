//! Switching a host off, whichever way its power is switched: by a management controller (BMC), a power strip, a cloud.
//!
//! ```text
//!   state? ── off ───────────────────────────────────────────────► proof ── power on again, if wanted
//!     └─ on ──► off! ── done, or nobody knows ──► state? until off ──►┘
//!                  └─ refused ──► state? once ── on ──► the refusal
//! ```
//! **Only a state that was read proves anything**: the answer to the order to switch off does not, and a lost answer does
//! no harm. Reads are tried again until the deadline; the order is sent once, and the controllers repeat the call. After a
//! refusal, of credentials as of anything else, nothing is tried again: a BMC may lock its user out.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use super::Call;
use crate::error::{Error, ErrorKind, Result};

/// The first pause between two reads; each next one is twice as long.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A host's power, as its switch tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Power {
    /// Nothing runs on the host, and nothing will before it boots anew.
    Off,
    /// On, or on its way up or down, in the switch's word.
    On(String),
}

/// What switches a host's power: the smaller half of a [`Fence`](super::Fence), made whole by [`ensure_off`].
///
/// Every method answers before the call's deadline. An error that is retryable says that the switch did not answer.
#[async_trait]
pub trait PowerSwitch: fmt::Debug + Send + Sync {
    /// Whether the host is on. A read.
    async fn power(&self, call: Call) -> Result<Power>;

    /// Orders the power to be cut at once. *A second identical call* changes nothing.
    async fn switch_off(&self, call: Call) -> Result<()>;

    /// Orders the host to boot.
    async fn switch_on(&self, call: Call) -> Result<()>;
}

/// Switches the host off, and if wanted on again; what was done, for people.
///
/// *Holds on return:* the host was read to be off after the call began. *A second identical call* does the same. *Left
/// behind on failure:* perhaps a host that is off, or soon will be.
///
/// # Errors
/// [`ErrorKind::DeadlineExceeded`] when nothing was sent, [`ErrorKind::OutcomeUnknown`] when the order was, and the
/// switch's own when it refused.
pub async fn ensure_off(
    switch: &dyn PowerSwitch,
    call: Call,
    on_again: bool,
    operation: &'static str,
) -> Result<String> {
    let deadline = |message| Error::new(ErrorKind::DeadlineExceeded, operation, message);
    if call.deadline.remaining().is_zero() {
        return Err(deadline("the deadline has passed"));
    }
    let found = read(switch, call, |_| true).await.map_err(|last| {
        if last.is_retryable() {
            let message = "the host's power state is not told in time, and nothing was sent";
            deadline(message).caused_by(last)
        } else {
            last
        }
    })?;
    let mut detail = match found {
        Power::Off => "the host was off already".to_owned(),
        Power::On(word) => {
            order_off(switch, call, operation).await?;
            format!("the host was told to switch off ({word} before) and is off")
        }
    };
    if on_again {
        // Whatever comes of it, the host was off: what ran there does not run any more.
        match switch.switch_on(call).await {
            Ok(()) => detail.push_str("; it was told to switch on again"),
            Err(error) => detail.push_str(&format!("; it was not switched on again: {error}")),
        }
    }
    Ok(detail)
}

async fn order_off(switch: &dyn PowerSwitch, call: Call, operation: &'static str) -> Result<()> {
    let refusal = match switch.switch_off(call).await {
        Err(error) if !may_have_worked(&error) => Some(error),
        sent => {
            if let Err(error) = sent {
                tracing::warn!(%error, "whether the order was taken is not known: the host is looked at");
            }
            None
        }
    };
    // A refusal may be one because the host is off; otherwise it takes some time to be.
    let enough = |power: &Power| refusal.is_some() || *power == Power::Off;
    match (read(switch, call, enough).await, refusal) {
        (Ok(Power::Off), _) => Ok(()),
        (_, Some(refusal)) => Err(refusal),
        (Ok(Power::On(word)), None) => {
            let message = format!("the host was told to switch off and is still {word}");
            Err(Error::new(ErrorKind::OutcomeUnknown, operation, message))
        }
        (Err(last), None) => {
            let message = "the host was told to switch off, and it is not told whether it is";
            Err(Error::new(ErrorKind::OutcomeUnknown, operation, message).caused_by(last))
        }
    }
}

fn may_have_worked(error: &Error) -> bool {
    error.is_retryable()
        || matches!(
            error.kind(),
            ErrorKind::OutcomeUnknown | ErrorKind::DeadlineExceeded
        )
}

/// Reads the state until it is `enough`, the switch refuses, or the deadline passes: then the last state, or the last error.
async fn read(
    switch: &dyn PowerSwitch,
    call: Call,
    enough: impl Fn(&Power) -> bool,
) -> Result<Power> {
    let mut pause = PAUSE;
    loop {
        let last = switch.power(call).await;
        let over = match &last {
            Ok(power) => enough(power),
            Err(error) => !error.is_retryable(),
        };
        if over || call.deadline.remaining() <= pause {
            return last;
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "a switch tells nobody when its host is off"
        )]
        tokio::time::sleep(pause).await;
        pause = LONGEST_PAUSE.min(pause * 2);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use super::*;

    /// Answers as it was told to; the last answer stands.
    #[derive(Debug)]
    struct Scripted {
        powers: Mutex<VecDeque<Result<Power, ErrorKind>>>,
        off: Result<(), ErrorKind>,
        orders: Mutex<Vec<&'static str>>,
    }

    impl Scripted {
        fn new(
            powers: impl IntoIterator<Item = Result<Power, ErrorKind>>,
            off: Result<(), ErrorKind>,
        ) -> Self {
            Self {
                powers: Mutex::new(powers.into_iter().collect()),
                off,
                orders: Mutex::default(),
            }
        }

        async fn ensure_off(&self) -> Result<String> {
            ensure_off(self, Call::within(Duration::from_secs(60)), true, "test").await
        }

        fn orders(&self) -> Vec<&'static str> {
            self.orders.lock().unwrap().clone()
        }
    }

    fn answer<T: Clone>(scripted: &Result<T, ErrorKind>) -> Result<T> {
        scripted
            .clone()
            .map_err(|kind| Error::new(kind, "test", "scripted"))
    }

    #[async_trait]
    impl PowerSwitch for Scripted {
        async fn power(&self, _: Call) -> Result<Power> {
            let mut powers = self.powers.lock().unwrap();
            let next = powers.pop_front().unwrap();
            if powers.is_empty() {
                powers.push_back(next.clone());
            }
            answer(&next)
        }

        async fn switch_off(&self, _: Call) -> Result<()> {
            self.orders.lock().unwrap().push("off");
            answer(&self.off)
        }

        async fn switch_on(&self, _: Call) -> Result<()> {
            self.orders.lock().unwrap().push("on");
            Err(Error::new(ErrorKind::Unavailable, "test", "scripted"))
        }
    }

    fn on() -> Result<Power, ErrorKind> {
        Ok(Power::On("On".to_owned()))
    }

    #[tokio::test(start_paused = true)]
    async fn reads_are_repeated_and_the_order_is_not() {
        let away = Err(ErrorKind::Unavailable);
        for off in [
            Ok(()),
            Err(ErrorKind::Unavailable),
            Err(ErrorKind::OutcomeUnknown),
        ] {
            let script = [away.clone(), on(), away.clone(), on(), Ok(Power::Off)];
            let bmc = Scripted::new(script, off);
            let detail = bmc.ensure_off().await.unwrap();
            assert_eq!(bmc.orders(), ["off", "on"]);
            assert!(detail.contains("not switched on again"), "{detail}");
        }
        let bmc = Scripted::new([Ok(Power::Off)], Ok(()));
        assert!(bmc.ensure_off().await.unwrap().contains("off already"));
        assert_eq!(bmc.orders(), ["on"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_read_is_not_proved() {
        for (script, kind) in [
            (vec![on()], ErrorKind::OutcomeUnknown),
            (
                vec![on(), Err(ErrorKind::Unavailable)],
                ErrorKind::OutcomeUnknown,
            ),
            (
                vec![on(), Err(ErrorKind::PermissionDenied)],
                ErrorKind::OutcomeUnknown,
            ),
        ] {
            let bmc = Scripted::new(script, Ok(()));
            assert_eq!(bmc.ensure_off().await.unwrap_err().kind(), kind);
            assert_eq!(bmc.orders(), ["off"]);
        }
        for (answer, kind) in [
            (ErrorKind::Unavailable, ErrorKind::DeadlineExceeded),
            (ErrorKind::PermissionDenied, ErrorKind::PermissionDenied),
        ] {
            let bmc = Scripted::new([Err(answer)], Ok(()));
            assert_eq!(bmc.ensure_off().await.unwrap_err().kind(), kind);
            assert_eq!(bmc.orders(), [""; 0]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_counts_unless_the_host_is_off() {
        let refused = Err(ErrorKind::FailedPrecondition);
        let bmc = Scripted::new([on()], refused);
        let error = bmc.ensure_off().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        let bmc = Scripted::new([on(), Ok(Power::Off)], refused);
        bmc.ensure_off().await.unwrap();
    }
}
