//! pgsteady side by side with PgBouncer on this machine. The two take turns (A B A B …), so that whatever else the machine
//! does hits both, and only ratios mean anything: of the CPU time of the pooler first of all, because clients, pooler
//! and PostgreSQL share the cores.

use std::path::PathBuf;

use clap::Parser;
use harness::folder::Folder;
use harness::postgres::{Cluster, Node, Programs};

use crate::load::{Ground, Sample, Work};
use crate::pooler::{Identity, Pooler, Setup};
use crate::report::{Line, Report};

mod idle;
mod load;
mod pooler;
mod report;

/// Seconds of the round that opens servers and fills caches; it is not counted.
const WARM_UP_S: u32 = 1;
/// Clients that are there and do nothing, where their memory is measured, and where others are busy beside them.
const IDLE: usize = 5000;
const MOSTLY_IDLE: usize = 2000;
/// The busy ones then.
const FEW: u32 = 8;

/// What to measure.
#[derive(Debug, Parser)]
struct Options {
    /// Seconds of one measurement.
    #[arg(long, default_value_t = 2)]
    seconds: u32,
    /// Measurements of each pooler in each case.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Only the cases with this in their names.
    #[arg(long, default_value = "")]
    only: String,
    /// The folder for results.json, results.md and results.svg; with `--only` nothing is written.
    #[arg(long, default_value = "bench")]
    output: PathBuf,
}

/// One case: the same work on both.
#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    work: Work,
    clients: u32,
    setup: Setup,
}

/// What is compared; what a case needs is opened for it alone.
fn cases() -> Vec<Case> {
    let plain = Setup::PLAIN;
    let case = |name, work, clients, setup| Case { name, work, clients, setup };
    let mut cases = Vec::new();
    for clients in [1, 16, 64, 256] {
        // PgBouncer has prepared statements in transaction mode from 1.21 on
        let session = pooler::pgbouncer_version() < (1, 21);
        let prepared = if session { "prepared (PgBouncer: session mode)" } else { "prepared" };
        cases.push(case("simple", Work::Select("simple"), clients, plain));
        cases.push(case("extended", Work::Select("extended"), clients, plain));
        // there each client needs a server of its own
        if !session || i64::from(clients) <= pooler::POOL_SIZE {
            cases.push(case(prepared, Work::Select("prepared"), clients, Setup { session, ..plain }));
        }
    }
    for clients in [16, 64, 256] {
        cases.push(case(
            "simple, both by one pgbouncer.ini",
            Work::Select("simple"),
            clients,
            Setup { drop_in: true, ..plain },
        ));
    }
    cases.extend([
        case("TPC-B", Work::TpcB, 16, plain),
        case("simple, Unix socket to PostgreSQL", Work::Select("simple"), 16, Setup { socket: true, ..plain }),
        case("simple, TLS", Work::Select("simple"), 16, Setup { tls: true, ..plain }),
        case("simple, two workers", Work::Select("simple"), 64, Setup { workers: 2, ..plain }),
        case("connect, query, close", Work::Connect, 16, plain),
        case("results of 20 MB", Work::Result, 1, plain),
        case("COPY out", Work::CopyOut, 1, plain),
        case("COPY in", Work::CopyIn, 1, plain),
    ]);
    cases
}

/// All that runs while it is measured.
struct Bench {
    options: Options,
    ground: Ground,
    identity: Identity,
    node: Node,
    report: Report,
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    let programs = Programs::installed();
    let node = Node::primary(&programs).await;
    let ground = Ground::new(programs);
    ground.prepare(&node).await;
    let mut bench = Bench { options, ground, identity: Identity::new(), node, report: Report::default() };
    for case in cases() {
        bench.case(case).await;
    }
    bench.few_among_many().await;
    bench.memory().await;
    bench.clusters().await;
    let Bench { options, report, .. } = bench;
    print!("{}", report.markdown());
    if options.only.is_empty() {
        report.write(&options.output);
    }
}

impl Bench {
    fn is_wanted(&self, name: &str) -> bool {
        name.contains(&self.options.only)
    }

    async fn case(&mut self, case: Case) {
        if !self.is_wanted(case.name) {
            return;
        }
        let theirs = Pooler::pgbouncer(&self.node, case.setup, &self.identity).await;
        let ours = Setup { session: false, ..case.setup };
        let ours = Pooler::pgsteady(&self.node, ours, &self.identity).await;
        self.turns(case, &theirs, &ours).await;
    }

    /// Measures two of them in turn.
    async fn turns(&mut self, case: Case, theirs: &Pooler, ours: &Pooler) {
        let Case { name, work, clients, setup } = case;
        let one = |pooler, seconds| self.ground.measure(pooler, work, clients, setup.tls, seconds);
        let (mut a, mut b): (Vec<Sample>, Vec<Sample>) = (Vec::new(), Vec::new());
        one(theirs, WARM_UP_S).await;
        one(ours, WARM_UP_S).await;
        for _ in 0..self.options.rounds {
            a.push(one(theirs, self.options.seconds).await);
            b.push(one(ours, self.options.seconds).await);
        }
        let line = Line::new(name, clients, &a, &b);
        eprintln!("{}", line.progress());
        self.report.lines.push(line);
    }

    /// A busy few beside many who only have a connection.
    async fn few_among_many(&mut self) {
        let name = "simple, beside 2,000 idle clients";
        if !self.is_wanted(name) {
            return;
        }
        let theirs = Pooler::pgbouncer(&self.node, Setup::PLAIN, &self.identity).await;
        let ours = Pooler::pgsteady(&self.node, Setup::PLAIN, &self.identity).await;
        let _idle = [idle::connect(&theirs, MOSTLY_IDLE).await, idle::connect(&ours, MOSTLY_IDLE).await];
        let case = Case { name, work: Work::Select("simple"), clients: FEW, setup: Setup::PLAIN };
        self.turns(case, &theirs, &ours).await;
    }

    async fn memory(&mut self) {
        if !self.is_wanted("memory") {
            return;
        }
        // prepared statements need PgBouncer's session mode, and there as many servers as clients: it has none to keep
        let theirs = Pooler::pgbouncer(&self.node, Setup::PLAIN, &self.identity).await;
        let ours = Pooler::pgsteady(&self.node, Setup::PLAIN, &self.identity).await;
        let both = (idle::per_client(&theirs, IDLE).await, idle::per_client(&ours, IDLE).await);
        self.report.memory = Some(both);
    }

    /// A managed cluster beside PgBouncer in front of its primary; and what the look-up of commits in doubt costs where it is on:
    /// a cluster with it beside one without, for a second instance on the same nodes would not act.
    async fn clusters(&mut self) {
        let beside_pgbouncer = "simple, a managed cluster of three";
        let resolving = "TPC-B, commits resolved (beside: not)";
        if !self.is_wanted(beside_pgbouncer) && !self.is_wanted(resolving) {
            return;
        }
        let with = self.managed(true).await;
        let setup = Setup::PLAIN;
        if self.is_wanted(beside_pgbouncer) {
            let theirs = Pooler::pgbouncer(&with.cluster.nodes[0], setup, &self.identity).await;
            for clients in [16, 64] {
                let case = Case { name: beside_pgbouncer, work: Work::Select("simple"), clients, setup };
                self.turns(case, &theirs, &with.pooler).await;
            }
        }
        if self.is_wanted(resolving) {
            let without = self.managed(false).await;
            let case = Case { name: resolving, work: Work::TpcB, clients: 16, setup };
            self.turns(case, &without.pooler, &with.pooler).await;
        }
    }

    async fn managed(&self, resolve_commits: bool) -> Managed {
        let mut cluster = Cluster::prepare(&Programs::installed(), 3);
        let primary = cluster.nodes[0].port();
        cluster.launch(primary).await;
        self.ground.prepare(&cluster.nodes[0]).await;
        let store = Folder::new("store");
        let pooler = Pooler::managing(&cluster, &store, resolve_commits).await;
        Managed { pooler, cluster, _store: store }
    }
}

/// A cluster and the pgsteady that manages it, which ends first.
struct Managed {
    pooler: Pooler,
    cluster: Cluster,
    _store: Folder,
}
