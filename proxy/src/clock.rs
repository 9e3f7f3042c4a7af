//! The time since the start: for things that need no better than a third of a second one load instead of a clock read, and to the
//! microsecond for how long queries take.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// Milliseconds since the start of the program, moved on by housekeeping.
#[derive(Debug)]
pub(crate) struct Clock {
    started: Instant,
    /// The time of day at the start.
    epoch: SystemTime,
    millis: AtomicU64,
}

/// How often the clock moves, and housekeeping with it.
pub(crate) const TICK: Duration = Duration::from_millis(333);

/// A moment on a [`Clock`], to the tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(u64);

impl Default for Clock {
    fn default() -> Self {
        Self { started: Instant::now(), epoch: SystemTime::now(), millis: AtomicU64::new(0) }
    }
}

impl Clock {
    /// The moment of the last tick.
    #[inline]
    #[must_use]
    pub(crate) fn now(&self) -> Moment {
        Moment(self.millis.load(Ordering::Relaxed))
    }

    /// Microseconds since the start, by a clock read; never 0.
    #[inline]
    #[must_use]
    pub(crate) fn micros(&self) -> NonZeroU64 {
        let elapsed = self.started.elapsed();
        NonZeroU64::MIN.saturating_add(elapsed.as_secs() * 1_000_000 + u64::from(elapsed.subsec_micros()))
    }

    /// Moves on to the real time.
    pub(crate) fn tick(&self) {
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.millis.store(millis, Ordering::Relaxed);
    }

    /// The time of day of a moment.
    pub(crate) fn time_of(&self, moment: Moment) -> SystemTime {
        self.epoch + Duration::from_millis(moment.0)
    }
}

impl Moment {
    /// The moment so many milliseconds after the start.
    pub(crate) fn at(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the start.
    pub(crate) fn millis(self) -> u64 {
        self.0
    }

    /// How long it is from `earlier` to this moment; zero if it is not later.
    #[must_use]
    pub(crate) fn since(self, earlier: Moment) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}
