//! One task a node that keeps a connection open and reads the node at each tick, on a suspicion, and notices the end of
//! the connection at once. What a reading means is not decided here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::login::{Connector, Failure, Server};
use crate::presence::{Identity, Mark};
use crate::reading::{Question, Reading};

/// Shortest time between two attempts, however many suspicions come in.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);

/// What a probe found.
#[derive(Debug)]
pub struct Report {
    /// Index of the node in the configuration.
    pub node: usize,
    /// Right before the attempt began.
    pub begun: Instant,
    /// The sample's number ([`crate::PrimarySample::number`]).
    pub number: u64,
    /// The reading, or why there is none.
    pub outcome: Result<Reading, Failure>,
}

/// How often and how long to ask.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Between two readings.
    pub interval: Duration,
    /// Limit for one reading; after it the connection is dropped, since the next question would queue behind this one.
    pub timeout: Duration,
}

/// The probe of one node.
#[derive(Debug)]
pub struct Probe {
    /// Index of the node in the configuration.
    pub node: usize,
    /// The way to it.
    pub connector: Connector,
    /// How often and how long to ask.
    pub pace: Pace,
    /// Where reports go.
    pub reports: mpsc::Sender<Report>,
    /// Somebody wants a reading now.
    pub nudge: Arc<Notify>,
    /// Counts the readings that have begun, on all nodes.
    pub samples_begun: Arc<AtomicU64>,
    /// Who we are to other instances.
    /// Whose mark it leaves there.
    pub identity: Identity,
}

impl Probe {
    /// Reads the node until the reports' receiver is gone.
    pub async fn run(self) {
        while !self.reports.is_closed() {
            let begun = Instant::now();
            let (failure, had_reading) = match self.connector.connect().await {
                Ok(server) => self.converse(server).await,
                Err(failure) => (failure, false),
            };
            let begun = if had_reading { Instant::now() } else { begun };
            self.report(begun, 0, Err(failure)).await;
            // a connection that was good and ended: whether the node refuses is worth knowing at once
            if !had_reading {
                self.pause().await;
            }
        }
    }

    async fn report(&self, begun: Instant, number: u64, outcome: Result<Reading, Failure>) {
        // a closed channel ends the loop in `run`
        let _ = self.reports.send(Report { node: self.node, begun, number, outcome }).await;
    }

    async fn pause(&self) {
        sleep(SHORTEST_PAUSE.min(self.pace.interval)).await;
        tokio::select! {
            () = self.nudge.notified() => {}
            () = sleep(self.pace.interval.saturating_sub(SHORTEST_PAUSE)) => {}
            () = self.reports.closed() => {}
        }
    }

    /// Asks until the connection ends or falls silent. Was there any reading?
    async fn converse(&self, mut server: Server) -> (Failure, bool) {
        let mut question = match timeout(self.pace.timeout, Question::prepare(server.client(), self.identity)).await {
            Ok(Ok(question)) => question,
            Ok(Err(failure)) => return (failure, false),
            Err(_) => return (Failure::Silent(self.pace.timeout), false),
        };
        let mut mark = Mark::new(self.identity);
        let mut ticks = interval(self.pace.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut had_reading = false;
        loop {
            tokio::select! {
                biased;
                failure = server.lost() => return (failure, had_reading),
                () = self.reports.closed() => return (Failure::Lost("the monitor ends".into()), had_reading),
                () = self.nudge.notified() => sleep(SHORTEST_PAUSE / 10).await,
                _ = ticks.tick() => {}
            }
            let begun = Instant::now();
            // counted before the question leaves: a session that sees this number knows its commit to be older
            let number = self.samples_begun.fetch_add(1, Ordering::AcqRel) + 1;
            match timeout(self.pace.timeout, question.ask(server.client())).await {
                Ok(Ok(reading)) => {
                    had_reading = true;
                    let rival = reading.rival;
                    self.report(begun, number, Ok(reading)).await;
                    match timeout(self.pace.timeout, mark.follow(server.client(), rival)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(failure)) => tracing::debug!(%failure, "no mark on the node"),
                        Err(_) => return (Failure::Silent(self.pace.timeout), false),
                    }
                }
                Ok(Err(failure @ Failure::Answered(_))) => self.report(begun, number, Err(failure)).await,
                Ok(Err(Failure::Lost(_))) if had_reading => return (server.lost().await, true),
                Ok(Err(failure)) => return (failure, had_reading),
                Err(_) => return (Failure::Silent(self.pace.timeout), false),
            }
        }
    }
}
