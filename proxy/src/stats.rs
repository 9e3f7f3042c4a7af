//! What passed through a database entry: counters that one worker writes and everybody reads, and their averages over the last
//! period. Counting costs a load and a store: no two workers write to one counter.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counters of one worker for one entry.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Counters([AtomicU64; COUNTED]);

/// How much is counted.
const COUNTED: usize = 11;

/// What is counted, in the order of the console's columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counted {
    /// Times that a server was given to a session.
    Assignments,
    /// Transactions begun.
    Transactions,
    /// Queries begun.
    Queries,
    /// Bytes from clients.
    Received,
    /// Bytes from servers.
    Sent,
    /// Microseconds in transactions.
    TransactionTime,
    /// Microseconds in queries.
    QueryTime,
    /// Microseconds of waiting for a server.
    WaitTime,
    /// Parse messages of clients.
    ClientParses,
    /// Parse messages to servers.
    ServerParses,
    /// Bind messages of clients.
    Binds,
}

impl Counters {
    /// Counts on. Only the worker whose counters they are may.
    #[inline]
    pub(crate) fn add(&self, what: Counted, n: u64) {
        let counter = &self.0[what as usize];
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Counts a time on, in microseconds.
    #[inline]
    pub(crate) fn add_time(&self, what: Counted, time: Duration) {
        self.add(what, u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }
}

/// The counters of all workers together, at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals(pub(crate) [u64; COUNTED]);

impl Totals {
    /// The sum of the counters of all workers.
    pub(crate) fn of(counters: &[Counters]) -> Self {
        let mut totals = Self::default();
        for worker in counters {
            for (total, counter) in totals.0.iter_mut().zip(&worker.0) {
                *total = total.wrapping_add(counter.load(Ordering::Relaxed));
            }
        }
        totals
    }

    /// One of them.
    pub(crate) fn get(&self, what: Counted) -> u64 {
        self.0[what as usize]
    }

    /// Adds another's.
    pub(crate) fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(total, more)| *total = total.wrapping_add(more));
    }

    /// What was counted since `earlier`.
    fn since(&self, earlier: &Self) -> Self {
        let mut gone = *self;
        gone.0.iter_mut().zip(earlier.0).for_each(|(total, before)| *total = total.wrapping_sub(before));
        gone
    }

    /// By the second for counts and the wait, by the transaction and the query for their times.
    fn averages(&self, period: Duration) -> Self {
        let micros = u64::try_from(period.as_micros()).unwrap_or(u64::MAX).max(1);
        let by_second = |n: u64| u64::try_from(u128::from(n) * 1_000_000 / u128::from(micros)).unwrap_or(u64::MAX);
        let mut averages = Self(self.0.map(by_second));
        let mean = |time: Counted, of: Counted| self.get(time).checked_div(self.get(of)).unwrap_or(0);
        averages.0[Counted::TransactionTime as usize] = mean(Counted::TransactionTime, Counted::Transactions);
        averages.0[Counted::QueryTime as usize] = mean(Counted::QueryTime, Counted::Queries);
        averages
    }
}

/// The averages of the last period.
#[derive(Debug, Default)]
pub(crate) struct Period {
    begun: Totals,
    averages: Totals,
}

impl Period {
    /// A period of this length is over.
    pub(crate) fn ends(&mut self, now: Totals, length: Duration) -> Totals {
        self.averages = now.since(&self.begun).averages(length);
        self.begun = now;
        self.averages
    }

    /// The averages of the last whole period.
    pub(crate) fn averages(&self) -> Totals {
        self.averages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_are_by_the_second_and_by_the_transaction() {
        let counters = [Counters::default(), Counters::default()];
        counters[0].add(Counted::Transactions, 30);
        counters[1].add(Counted::Transactions, 10);
        counters[0].add_time(Counted::TransactionTime, Duration::from_millis(8));
        counters[1].add(Counted::Sent, 1_000);
        let mut period = Period::default();
        let averages = period.ends(Totals::of(&counters), Duration::from_secs(2));
        assert_eq!(averages.get(Counted::Transactions), 20);
        assert_eq!(averages.get(Counted::TransactionTime), 200);
        assert_eq!(averages.get(Counted::QueryTime), 0, "no query");
        assert_eq!(averages.get(Counted::Sent), 500);
        counters[1].add(Counted::Sent, 20);
        period.ends(Totals::of(&counters), Duration::from_secs(2));
        assert_eq!(period.averages().get(Counted::Sent), 10);
        assert_eq!(period.averages().get(Counted::Transactions), 0);
    }
}
