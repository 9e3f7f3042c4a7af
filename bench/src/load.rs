//! One measurement: a load on a pooler, and the CPU time that the pooler used meanwhile.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Instant;

use harness::folder::{Folder, give};
use harness::postgres::{Node, Programs, run};
use harness::process::cpu;

use crate::pooler::Pooler;

/// Rows of pgbench's accounts, in units of 100,000.
const SCALE: &str = "5";
/// Of so many transactions one has its latency kept.
const SAMPLED: &str = "0.2";
/// Rows of a kilobyte: the large result.
const RESULT_ROWS: u64 = 20_000;
/// Large results or copies in one measurement.
const REPEATED: u64 = 8;
/// How the rows of a large result are made.
const ROWS: &str = "SELECT repeat('x', 1000) FROM generate_series(1, 20000)";

/// What clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// `pgbench -S` with this protocol.
    Select(&'static str),
    /// `pgbench` as it is: five statements a transaction.
    TpcB,
    /// A connection for every `SELECT`.
    Connect,
    /// Results of 20 MB.
    Result,
    /// The same by COPY.
    CopyOut,
    /// COPY in the other direction.
    CopyIn,
}

/// What one measurement gave.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// CPU time of the pooler, user and system, for each transaction, in µs; of large results for each GB, in ms.
    pub(crate) cost: f64,
    /// Transactions, or GB, a second.
    pub(crate) rate: f64,
    /// The latency that 99 of 100 transactions stay below, in µs; of those that have one.
    pub(crate) p99: Option<f64>,
    /// The same for half of them.
    pub(crate) p50: Option<f64>,
}

/// Where the loads run.
pub(crate) struct Ground {
    programs: Programs,
    folder: Folder,
}

impl Ground {
    pub(crate) fn new(programs: Programs) -> Self {
        let folder = Folder::new("load");
        give(&folder.write("result.sql", &format!("{ROWS};\n")));
        let line = "x".repeat(1000) + "\n";
        let lines = usize::try_from(RESULT_ROWS).expect("few rows");
        give(&folder.write("rows", &line.repeat(lines)));
        Self { programs, folder }
    }

    /// Fills the tables, past every pooler.
    pub(crate) async fn prepare(&self, node: &Node) {
        run(self.client("pgbench", node.port(), false).args(["-i", "-q", "-s", SCALE, "app"]));
        node.sql("CREATE UNLOGGED TABLE copied (line text)").await;
        node.sql("GRANT ALL ON copied TO app").await;
    }

    fn client(&self, program: &str, port: u16, tls: bool) -> Command {
        let mut command = self.programs.command(program);
        command.env("PGPASSWORD", "app-secret").env("PGSSLMODE", if tls { "require" } else { "disable" });
        command.args(["-h", "127.0.0.1", "-U", "app", "-p", &port.to_string()]);
        command
    }

    /// Runs it through the pooler for about so long.
    pub(crate) async fn measure(&self, pooler: &Pooler, work: Work, clients: u32, tls: bool, seconds: u32) -> Sample {
        let (before, began) = (cpu(pooler.pid).expect("the pooler runs"), Instant::now());
        let used = || cpu(pooler.pid).expect("the pooler runs").saturating_sub(before).as_secs_f64();
        match work {
            Work::Result | Work::CopyOut | Work::CopyIn => {
                self.large(work, pooler.port).await;
                let gigabytes = (REPEATED * RESULT_ROWS * 1000) as f64 / 1e9;
                let rate = gigabytes / began.elapsed().as_secs_f64();
                Sample { cost: used() * 1e3 / gigabytes, rate, p99: None, p50: None }
            }
            Work::Select(_) | Work::TpcB | Work::Connect => {
                let (report, latencies) = self.pgbench(work, pooler.port, clients, tls, seconds).await;
                let transactions = number(&report, "number of transactions actually processed: ");
                let failed = number(&report, "number of failed transactions: ");
                assert!(failed == 0.0 && transactions > 0.0, "transactions failed:\n{report}");
                let at = |percent: usize| latencies.get(latencies.len() * percent / 100).copied();
                let rate = number(&report, "tps = ");
                Sample { cost: used() * 1e6 / transactions, rate, p99: at(99), p50: at(50) }
            }
        }
    }

    /// Its report, and the latencies that were kept, in order.
    async fn pgbench(&self, work: Work, port: u16, clients: u32, tls: bool, seconds: u32) -> (String, Vec<f64>) {
        let logs = Folder::new("latency");
        let mut command = self.client("pgbench", port, tls);
        command.args(["-n", "-c", &clients.to_string(), "-T", &seconds.to_string(), "-l", "--sampling-rate", SAMPLED]);
        command.arg("--log-prefix").arg(logs.path().join("log"));
        match work {
            Work::Select(protocol) => command.args(["-S", "-M", protocol]),
            Work::Connect => command.args(["-S", "-C"]),
            _ => &mut command,
        };
        command.arg("app");
        let report = tokio::task::spawn_blocking(move || run(&mut command)).await.expect("pgbench runs");
        let mut latencies = Vec::new();
        for file in fs::read_dir(logs.path()).expect("the folder is ours") {
            let text = fs::read_to_string(file.expect("it can be listed").path()).expect("pgbench wrote it");
            latencies.extend(text.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<f64>().ok()));
        }
        latencies.sort_by(f64::total_cmp);
        (report, latencies)
    }

    /// Moves large results, one after the other.
    async fn large(&self, work: Work, port: u16) {
        let mut commands = Vec::new();
        if work == Work::Result {
            let mut command = self.client("pgbench", port, false);
            command.args(["-n", "-c", "1", "-t", &REPEATED.to_string(), "-f"]);
            command.arg(self.folder.path().join("result.sql")).arg("app");
            commands.push(command);
        } else {
            for _ in 0..REPEATED {
                let mut command = self.client("psql", port, false);
                command.args(["-q", "-X", "-d", "app"]);
                if work == Work::CopyOut {
                    command.args(["-o", "/dev/null", "-c", &format!("COPY ({ROWS}) TO STDOUT")]);
                } else {
                    let rows = fs::File::open(self.folder.path().join("rows")).expect("it was just written");
                    command.args(["-c", "TRUNCATE copied", "-c", "COPY copied FROM STDIN"]).stdin(Stdio::from(rows));
                }
                commands.push(command);
            }
        }
        let all = move || commands.iter_mut().for_each(|command| drop(run(command)));
        tokio::task::spawn_blocking(all).await.expect("a client runs");
    }
}

/// A number of pgbench's report; 0 if it has no such line.
fn number(report: &str, label: &str) -> f64 {
    let line = report.lines().find_map(|line| line.strip_prefix(label)).unwrap_or("0");
    let digits = line.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or("0");
    digits.parse().unwrap_or(0.0)
}
