//! What can go wrong, and how long things take: plain data, drawn from by the world.

use std::ops::RangeInclusive;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

/// How long things take. Zero by default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latency {
    /// A driver's call.
    pub call: RangeInclusive<Duration>,
    /// A guest's way down after its power button was pressed.
    pub shutdown: RangeInclusive<Duration>,
}

impl Default for Latency {
    fn default() -> Self {
        Self {
            call: Duration::ZERO..=Duration::ZERO,
            shutdown: Duration::ZERO..=Duration::ZERO,
        }
    }
}

/// What goes wrong, as probabilities from 0 to 1. Nothing by default.
///
/// At most one of [`fail`](Self::fail), [`fail_after_effect`](Self::fail_after_effect), [`hang`](Self::hang) and
/// [`lie_late`](Self::lie_late) befalls a call.
#[derive(Clone, Debug, PartialEq)]
pub struct FaultPlan {
    /// The calls that something befalls, as `sim.attach_disk`; every call if none is named.
    pub only: &'static [&'static str],
    /// A call fails without effect: `Unavailable` or `Internal`.
    pub fail: f64,
    /// A call fails though it was done: `Unavailable`, `Internal` or `OutcomeUnknown`.
    pub fail_after_effect: f64,
    /// A call does not answer until [`SimWorld::heal`](super::SimWorld::heal), whatever its deadline: a driver that is
    /// stuck.
    pub hang: f64,
    /// Share of the hanging calls that take effect, [`late_by`](Self::late_by) after they began; the others never do.
    pub hang_effect: f64,
    /// A call answers `OutcomeUnknown` at its deadline and takes effect [`late_by`](Self::late_by) after that.
    pub lie_late: f64,
    /// How late.
    pub late_by: RangeInclusive<Duration>,
    /// Whether late effects may come after a `list` of the host, or an `undefine` of the domain, that does not know
    /// them. That breaks the [`Hypervisor`](crate::driver::Hypervisor)'s contract; without it, a list first waits for
    /// what calls that have answered may still do, and an undefine puts an end to it.
    pub late_past_list: bool,
    /// A `create` of a volume whose caller is gone by the time it ends is left half made.
    pub half_made: f64,
    /// A guest does not notice its power button, drawn at each press.
    pub ignore_acpi: f64,
    /// An event is lost, and with it every event stream of its host ends.
    pub lose_events: f64,
    /// How often the following are drawn.
    pub tick: Duration,
    /// A running guest powers itself off, at each tick.
    pub guest_poweroff: f64,
    /// A running guest panics, at each tick.
    pub guest_panic: f64,
    /// A running guest's hypervisor process crashes, at each tick.
    pub guest_crash: f64,
    /// A host boots anew, at each tick: its domains are gone, calls under way on it come to nothing.
    pub host_reboot: f64,
    /// A host's driver, or a pool's, does not answer for a while, at each tick; its guests go on.
    pub unreachable: f64,
    /// For how long.
    pub unreachable_for: RangeInclusive<Duration>,
}

impl Default for FaultPlan {
    fn default() -> Self {
        Self {
            only: &[],
            fail: 0.0,
            fail_after_effect: 0.0,
            hang: 0.0,
            hang_effect: 0.5,
            lie_late: 0.0,
            late_by: Duration::from_millis(1)..=Duration::from_secs(60),
            late_past_list: false,
            half_made: 0.0,
            ignore_acpi: 0.0,
            lose_events: 0.0,
            tick: Duration::from_secs(1),
            guest_poweroff: 0.0,
            guest_panic: 0.0,
            guest_crash: 0.0,
            host_reboot: 0.0,
            unreachable: 0.0,
            unreachable_for: Duration::from_secs(1)..=Duration::from_secs(60),
        }
    }
}

impl FaultPlan {
    /// Some of everything that the drivers' contracts allow for.
    pub fn everything() -> Self {
        Self {
            fail: 0.05,
            fail_after_effect: 0.03,
            hang: 0.01,
            lie_late: 0.03,
            half_made: 0.5,
            ignore_acpi: 0.3,
            lose_events: 0.02,
            guest_poweroff: 0.002,
            guest_panic: 0.002,
            guest_crash: 0.002,
            host_reboot: 0.001,
            unreachable: 0.003,
            ..Self::default()
        }
    }

    /// Whether anything happens that no call brings about.
    pub(super) fn has_ticks(&self) -> bool {
        self.guest_poweroff
            + self.guest_panic
            + self.guest_crash
            + self.host_reboot
            + self.unreachable
            > 0.0
    }

    /// Draws what befalls a call. Draws nothing when calls do not fail.
    pub(super) fn fate(&self, op: &'static str, rng: &mut StdRng) -> Fate {
        if !self.only.is_empty() && !self.only.contains(&op) {
            return Fate::Plain;
        }
        if self.fail + self.fail_after_effect + self.hang + self.lie_late <= 0.0 {
            return Fate::Plain;
        }
        let mut x: f64 = rng.random();
        let mut falls_to = |probability: f64| {
            let hit = x < probability;
            x -= probability;
            hit
        };
        if falls_to(self.fail) {
            Fate::Fail
        } else if falls_to(self.fail_after_effect) {
            Fate::FailAfterEffect
        } else if falls_to(self.hang) {
            let effect = chance(rng, self.hang_effect).then(|| duration(rng, &self.late_by));
            Fate::Hang(effect)
        } else if falls_to(self.lie_late) {
            Fate::LieLate(duration(rng, &self.late_by))
        } else {
            Fate::Plain
        }
    }
}

/// What befalls a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Plain,
    Fail,
    FailAfterEffect,
    /// With the effect after this time, or never.
    Hang(Option<Duration>),
    /// With the effect this long after the deadline.
    LieLate(Duration),
}

/// Whether something of this probability happens. Draws nothing when it is zero.
pub(super) fn chance(rng: &mut StdRng, probability: f64) -> bool {
    probability > 0.0 && rng.random::<f64>() < probability
}

/// A duration from a range, to the microsecond. Draws nothing when there is no choice.
pub(super) fn duration(rng: &mut StdRng, range: &RangeInclusive<Duration>) -> Duration {
    let micros = |d: &Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    let (from, to) = (micros(range.start()), micros(range.end()));
    if from >= to {
        *range.start()
    } else {
        Duration::from_micros(rng.random_range(from..=to))
    }
}
