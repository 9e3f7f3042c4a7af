//! How old a standby's data is. `now() - pg_last_xact_replay_timestamp()` alone would grow while nobody writes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::Lsn;

/// Positions that are remembered: with four readings a second, four minutes. A standby further back has no known lag.
const MAX_POSITIONS: usize = 1024;

/// Where the primary was last seen at which position.
#[derive(Debug, Default)]
pub(crate) struct Lag {
    /// Rising positions, each with the latest moment at which the primary was seen there.
    passed: VecDeque<(Lsn, Instant)>,
}

impl Lag {
    /// The primary was at `position` at a moment not before `at`.
    pub(crate) fn primary_at(&mut self, position: Lsn, at: Instant) {
        match self.passed.back_mut() {
            Some(last) if last.0 == position => {
                last.1 = at;
                return;
            }
            // another primary, on a shorter history
            Some(last) if last.0 > position => self.passed.clear(),
            _ => {}
        }
        if self.passed.len() == MAX_POSITIONS {
            self.passed.pop_front();
        }
        self.passed.push_back((position, at));
    }

    /// How old the data of a standby is at most that had replayed `replayed` at `at`: none if that is all that the
    /// primary is known to have written, else the time since the primary was last seen at a position it has.
    pub(crate) fn of(&self, replayed: Lsn, at: Instant) -> Option<Duration> {
        let behind = self.passed.partition_point(|(position, _)| *position <= replayed);
        if behind == self.passed.len() {
            return (!self.passed.is_empty()).then_some(Duration::ZERO);
        }
        let (_, had_all) = self.passed.get(behind.checked_sub(1)?)?;
        Some(at.saturating_duration_since(*had_all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_idle_primary_makes_no_lag_and_a_busy_one_does() {
        let start = Instant::now();
        let mut lag = Lag::default();
        assert_eq!(lag.of(Lsn(5), start), None, "nothing is known of the primary");
        lag.primary_at(Lsn(10), start);
        lag.primary_at(Lsn(10), start + 60 * SECOND);
        assert_eq!(lag.of(Lsn(10), start + 61 * SECOND), Some(Duration::ZERO));
        assert_eq!(lag.of(Lsn(9), start + 61 * SECOND), None, "further back than is remembered");
        lag.primary_at(Lsn(20), start + 62 * SECOND);
        assert_eq!(lag.of(Lsn(19), start + 65 * SECOND), Some(5 * SECOND), "it had all at 60 s");
        assert_eq!(lag.of(Lsn(21), start + 65 * SECOND), Some(Duration::ZERO));
        lag.primary_at(Lsn(15), start + 70 * SECOND);
        assert_eq!(lag.of(Lsn(15), start + 71 * SECOND), Some(Duration::ZERO), "a new primary on a shorter history");
    }

    #[test]
    fn memory_is_bounded() {
        let start = Instant::now();
        let mut lag = Lag::default();
        (0..5_000).for_each(|n| lag.primary_at(Lsn(n), start + SECOND));
        assert_eq!(lag.passed.len(), MAX_POSITIONS);
    }
}
