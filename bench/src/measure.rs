//! One measurement: pgbench against a pooler, and the CPU time that the pooler used meanwhile.

use std::fmt;
use std::time::Duration;

use harness::endpoint::Endpoint;
use harness::postgres::{Programs, run};
use harness::process::cpu;

/// What pgbench is to do.
pub(crate) struct Load<'a> {
    pub(crate) programs: &'a Programs,
    pub(crate) clients: u32,
    pub(crate) seconds: u32,
}

/// What one run gave.
#[derive(Clone, Copy)]
pub(crate) struct Sample {
    /// CPU time of the pooler, user and system.
    pub(crate) cpu: Duration,
    /// Transactions that pgbench counted.
    pub(crate) transactions: u32,
    /// Transactions per second.
    pub(crate) rate: f64,
}

impl Sample {
    /// CPU time per transaction.
    pub(crate) fn microseconds(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / f64::from(self.transactions)
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} µs, {:.0}/s", self.microseconds(), self.rate)
    }
}

impl Load<'_> {
    /// Fills the tables, past every pooler.
    pub(crate) fn prepare(&self, server: &Endpoint, scale: &str) {
        run(self.pgbench(server.port).args(["-i", "-q", "-s", scale, "app"]));
    }

    fn pgbench(&self, port: u16) -> std::process::Command {
        let mut command = self.programs.command("pgbench");
        command.env("PGPASSWORD", "app-secret").args(["-h", "127.0.0.1", "-U", "app", "-p", &port.to_string()]);
        command
    }

    /// Runs `pgbench -S` through the pooler with this process number.
    pub(crate) async fn run(&self, mode: &str, port: u16, pid: i32) -> Sample {
        let (clients, seconds) = (self.clients.to_string(), self.seconds.to_string());
        let mut command = self.pgbench(port);
        command.args(["-n", "-S", "-M", mode, "-c", &clients, "-T", &seconds, "app"]);
        let before = cpu(pid).expect("the pooler runs");
        let report = tokio::task::spawn_blocking(move || run(&mut command)).await.expect("pgbench runs");
        let cpu = cpu(pid).expect("the pooler runs").saturating_sub(before);
        let number = |label: &str| {
            let line = report.lines().find_map(|line| line.strip_prefix(label));
            let word = line.and_then(|line| line.split_whitespace().next()).map(|word| word.trim_end_matches('/'));
            word.and_then(|word| word.split('/').next()).and_then(|word| word.parse::<f64>().ok())
        };
        let count = report
            .lines()
            .find_map(|line| line.strip_prefix("number of transactions actually processed: "))
            .and_then(|count| count.split('/').next()?.parse().ok());
        let failed = number("number of failed transactions: ").unwrap_or(0.0);
        assert!(failed == 0.0, "transactions failed:\n{report}");
        Sample {
            cpu,
            transactions: count.unwrap_or_else(|| panic!("no count in:\n{report}")),
            rate: number("tps = ").unwrap_or_else(|| panic!("no rate in:\n{report}")),
        }
    }
}
