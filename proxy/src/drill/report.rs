//! What a drill found, for people and for programs.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use topology::FailoverRecord;

use super::load::Record;

/// One loss or change of the primary.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Drill {
    /// From the kill until the monitor had decided that the primary is lost. `None`: it has no record of this failover.
    detect_ms: Option<u64>,
    /// From there until enough standbys were fenced and the best of them was chosen.
    fence_ms: Option<u64>,
    /// From there until that one was promoted, its term acknowledged by a standby, and clients let in.
    promote_ms: Option<u64>,
    /// Longest time that any client was without an acknowledged write.
    hold_ms: u64,
}

/// All of it.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    drills: Vec<Drill>,
    /// Commits acknowledged.
    acknowledged: u64,
    /// Of these, not there afterwards.
    lost: u64,
    /// Commits whose outcome the client was not told.
    in_doubt: u64,
    /// Client connections lost.
    dropped: u64,
    /// Acknowledged rows that are there more than once.
    #[serde(skip)]
    repeated: u64,
    /// Errors that clients saw, with their number.
    #[serde(skip)]
    errors: Vec<(String, u64)>,
}

/// Moments of one drill.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moments {
    /// The primary was killed, or another one was asked for.
    pub(crate) killed: Instant,
    /// The cluster was whole again.
    pub(crate) whole: Instant,
    /// As the monitor recorded it.
    pub(crate) failover: Option<Failover>,
}

/// The steps of a failover, one after the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Failover {
    detect: Duration,
    fence: Duration,
    promote: Duration,
}

impl Failover {
    /// Its steps, counted from the kill rather than from the first sign that the monitor had.
    pub(crate) fn of(record: &FailoverRecord, killed: SystemTime) -> Self {
        let detect = record.detected_at.duration_since(killed).unwrap_or_default();
        Self { detect, fence: record.fence, promote: record.promote + record.open }
    }
}

impl Report {
    /// Compares what was acknowledged with what is there: how often each row (client, number) was found.
    pub(crate) fn new(moments: &[Moments], records: &[Record], found: &HashMap<(i32, i64), i64>) -> Self {
        let drill = |moments: &Moments| Drill {
            detect_ms: moments.failover.map(|failover| millis(failover.detect)),
            fence_ms: moments.failover.map(|failover| millis(failover.fence)),
            promote_ms: moments.failover.map(|failover| millis(failover.promote)),
            hold_ms: millis(hold(records, moments)),
        };
        let acknowledged = || {
            let each = |record: &Record| -> HashSet<(i32, i64)> {
                record.acknowledged.iter().map(|(number, _)| (record.client, *number)).collect()
            };
            records.iter().flat_map(each).collect::<Vec<_>>()
        };
        let acknowledged = acknowledged();
        let times = |row: &(i32, i64)| found.get(row).copied().unwrap_or(0);
        let mut errors: HashMap<&String, u64> = HashMap::new();
        for (text, count) in records.iter().flat_map(|record| &record.errors) {
            *errors.entry(text).or_default() += count;
        }
        let mut errors: Vec<_> = errors.into_iter().map(|(text, count)| (text.clone(), count)).collect();
        errors.sort();
        Self {
            drills: moments.iter().map(drill).collect(),
            acknowledged: acknowledged.len() as u64,
            lost: acknowledged.iter().filter(|row| times(row) == 0).count() as u64,
            repeated: acknowledged.iter().filter(|row| times(row) > 1).count() as u64,
            in_doubt: records.iter().map(|record| record.in_doubt.len() as u64).sum(),
            dropped: records.iter().map(|record| record.dropped).sum(),
            errors,
        }
    }

    /// Nothing acknowledged was lost or done twice, and no client was dropped.
    pub(crate) fn is_clean(&self) -> bool {
        self.lost == 0 && self.repeated == 0 && self.dropped == 0 && self.acknowledged > 0
    }

    /// One JSON object.
    pub(crate) fn json(&self) -> String {
        serde_json::to_string(self).expect("numbers and lists can be written as JSON")
    }

    /// For people.
    pub(crate) fn table(&self) -> String {
        let cell = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |ms| ms.to_string());
        let mut text =
            format!("{:>5} {:>10} {:>10} {:>10} {:>10}\n", "drill", "detect ms", "fence ms", "promote ms", "hold ms");
        for (index, drill) in self.drills.iter().enumerate() {
            let (detect, fence, promote) = (cell(drill.detect_ms), cell(drill.fence_ms), cell(drill.promote_ms));
            let _ = writeln!(text, "{:>5} {detect:>10} {fence:>10} {promote:>10} {:>10}", index + 1, drill.hold_ms);
        }
        let counts = [
            ("commits acknowledged", self.acknowledged),
            ("acknowledged and lost", self.lost),
            ("acknowledged and there twice", self.repeated),
            ("commits in doubt", self.in_doubt),
            ("client connections dropped", self.dropped),
        ];
        for (name, count) in counts {
            let _ = writeln!(text, "{name:<30} {count:>10}");
        }
        text
    }

    /// Errors that clients saw, one a line; they are no part of the result.
    pub(crate) fn errors(&self) -> Vec<String> {
        self.errors.iter().map(|(error, count)| format!("clients saw {count} times: {error}")).collect()
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The longest time any client was without an acknowledged write, between the kill and the cluster being whole again.
fn hold(records: &[Record], moments: &Moments) -> Duration {
    let of_client = |record: &Record| {
        let times = record.acknowledged.iter().map(|(_, at)| *at);
        let ends = times.clone().skip(1).chain(record.stopped);
        let gaps = times.zip(ends).filter(|(from, to)| *to > moments.killed && *from <= moments.whole);
        gaps.map(|(from, to)| to.saturating_duration_since(from)).max().unwrap_or_default()
    };
    records.iter().map(of_client).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(client: i32, start: Instant, acks: &[(i64, u64)], stopped: u64) -> Record {
        let at = |ms| start + Duration::from_millis(ms);
        Record {
            client,
            acknowledged: acks.iter().map(|(number, ms)| (*number, at(*ms))).collect(),
            stopped: Some(at(stopped)),
            ..Record::default()
        }
    }

    fn moments(start: Instant, killed: u64, whole: u64) -> Moments {
        let at = |ms| start + Duration::from_millis(ms);
        let [detect, fence, promote] = [5, 60, 90].map(Duration::from_millis);
        Moments { killed: at(killed), whole: at(whole), failover: Some(Failover { detect, fence, promote }) }
    }

    #[test]
    fn hold_is_what_the_worst_client_saw_around_the_kill() {
        let start = Instant::now();
        let first = record(0, start, &[(1, 0), (2, 500), (3, 1000), (4, 1150), (5, 1160), (6, 1400)], 2000);
        let second = record(1, start, &[(1, 990), (2, 1001), (3, 1301), (4, 1310), (5, 1900)], 2000);
        // the gaps of 500 ms before and 590 ms after are not the kill's
        assert_eq!(hold(&[first, second], &moments(start, 1000, 1305)), Duration::from_millis(300));
    }

    #[test]
    fn a_client_that_never_came_back_counts_to_the_end() {
        let start = Instant::now();
        let gone = record(0, start, &[(1, 900)], 5000);
        assert_eq!(hold(&[gone], &moments(start, 1000, 2000)), Duration::from_millis(4100));
    }

    #[test]
    fn what_is_lost_or_repeated_is_counted_and_fails() {
        let start = Instant::now();
        let records = [record(0, start, &[(1, 1), (2, 2), (3, 3)], 10)];
        let found = |rows: &[(i64, i64)]| rows.iter().map(|(number, times)| ((0, *number), *times)).collect();
        let report = |rows| Report::new(&[moments(start, 1, 2)], &records, &found(rows));
        assert!(report(&[(1, 1), (2, 1), (3, 1), (9, 1)]).is_clean());
        let lost = report(&[(1, 1), (3, 1)]);
        assert!(lost.lost == 1 && !lost.is_clean());
        let repeated = report(&[(1, 1), (2, 2), (3, 1)]);
        assert!(repeated.lost == 0 && repeated.repeated == 1 && !repeated.is_clean());
        let json = r#"{"drills":[{"detect_ms":5,"fence_ms":60,"promote_ms":90,"hold_ms":1}],"acknowledged":3,"lost":1,"in_doubt":0,"dropped":0}"#;
        assert_eq!(lost.json(), json);
    }

    #[test]
    fn nothing_acknowledged_is_no_success() {
        assert!(!Report::new(&[], &[], &HashMap::new()).is_clean());
    }
}
