//! `pgsteady node` with real PostgreSQL: a cluster makes itself, and an old primary comes back as a standby. The monitor's
//! part, promotion and the term row, is played by plain SQL.

#![allow(clippy::unwrap_used)] // a test may panic

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use topology::Address;
use topology::node::{Account, Port, Throwaway, Upstream};

/// Bound on anything that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
const PASSWORD: &str = "it's: a \\ secret";

struct Nodes {
    running: Vec<Option<Child>>,
    ports: Vec<Port>,
    folder: Throwaway,
}

impl Nodes {
    fn new(count: usize) -> Self {
        let folder = Throwaway::new("pgsteady-test", &Account::choose().unwrap()).unwrap();
        let ports = (0..count).map(|_| Port::reserve().unwrap()).collect();
        let mut nodes = Self { running: Vec::new(), ports, folder };
        nodes.running.resize_with(count, || None);
        nodes
    }

    fn start(&mut self, node: usize) {
        let peers: Vec<String> =
            self.ports.iter().enumerate().map(|(i, port)| format!("n{}=127.0.0.1:{}", i + 1, port.number())).collect();
        let log = self.folder.path().join(format!("n{}.log", node + 1));
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgsteady"));
        command.arg("node").env("PGSTEADY_NODE_NAME", format!("n{}", node + 1)).env("PGSTEADY_PEERS", peers.join(","));
        command.env("PGDATA", self.home(node).join("data")).env("POSTGRES_PASSWORD", PASSWORD);
        // what works in the folder ends with it
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.running[node] = Some(command.spawn().unwrap());
    }

    fn home(&self, node: usize) -> std::path::PathBuf {
        self.folder.path().join(format!("home{}", node + 1))
    }

    fn log(&self, node: usize) -> String {
        std::fs::read_to_string(self.folder.path().join(format!("n{}.log", node + 1))).unwrap()
    }

    /// Waits until its agent has said this.
    async fn until_said(&self, node: usize, words: &str) {
        let started = Instant::now();
        while !self.log(node).contains(words) {
            assert!(started.elapsed() < PATIENCE, "n{} does not say {words:?}:\n{}", node + 1, self.log(node));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// As a container is killed: the agent and all of PostgreSQL.
    fn kill(&mut self, node: usize) {
        let data = self.home(node).join("data");
        let mut agent = self.running[node].take().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
        let started = Instant::now();
        while let Some(pid) = works_in(&data) {
            assert!(started.elapsed() < PATIENCE, "{pid} does not end");
            assert!(Command::new("kill").args(["-9", &pid]).stderr(Stdio::null()).status().is_ok());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn login(&self, node: usize) -> Upstream {
        let address = Address::Tcp("127.0.0.1".into(), self.ports[node].number());
        Upstream { address, user: "postgres".into(), password: Some(PASSWORD.into()) }
    }

    async fn sql(&self, node: usize, statements: &str) {
        let client = self.login(node).connect().await.unwrap();
        client.batch_execute(statements).await.unwrap_or_else(|error| panic!("{statements}: {error:?}"));
    }

    async fn promote(&self, node: usize, rule: &str) {
        self.sql(node, &format!("alter system set synchronous_standby_names = '{rule}'")).await;
        self.sql(node, "select pg_reload_conf()").await;
        self.sql(node, "select pg_promote()").await;
    }

    /// Waits until this is true there.
    async fn until(&self, node: usize, condition: &str) {
        let started = Instant::now();
        loop {
            if self.holds(node, condition).await == Some(true) {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "n{}: not {condition}\n{}", node + 1, self.log(node));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn holds(&self, node: usize, condition: &str) -> Option<bool> {
        let client = self.login(node).connect().await.ok()?;
        client.query_one(&format!("select {condition}"), &[]).await.ok().map(|row| row.get(0))
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for agent in self.running.iter_mut().flatten() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

fn works_in(folder: &Path) -> Option<String> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let found = entries.filter(|entry| std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == folder));
    found.map(|entry| entry.file_name().into_string().unwrap()).next()
}

const STREAMING: &str =
    "(select count(*) from pg_stat_replication where state = 'streaming' and sync_state = 'quorum')";
const TERM: &str = "create table pgsteady.term (one boolean primary key default true check (one), term bigint not null,
    leader text not null, cohort text[] not null, k integer not null, written_at timestamptz not null default now())";

#[tokio::test]
async fn a_cluster_makes_itself_and_an_old_primary_comes_back_as_a_standby() {
    let mut nodes = Nodes::new(3);
    (0..3).for_each(|node| nodes.start(node));
    nodes.until(0, &format!("{STREAMING} = 2")).await;
    nodes.sql(0, &format!("{TERM}; insert into pgsteady.term values (true, 1, 'n1', '{{n2,n3}}', 1)")).await;
    nodes.sql(0, "create table t (a int); insert into t select generate_series(1, 10)").await;
    nodes.until(1, "(select count(*) from t) = 10").await;
    nodes.until(2, "(select count(*) from t) = 10").await;
    // somebody has to prove who he is
    let stranger = Upstream { password: Some("wrong".into()), ..nodes.login(0) };
    assert!(stranger.connect().await.is_err());

    nodes.kill(0);
    nodes.promote(1, "ANY 1 (n1, n3)").await;
    nodes.until(1, "not pg_is_in_recovery()").await;
    nodes.sql(1, "set synchronous_commit = local; update pgsteady.term set term = 2, leader = 'n2'").await;
    nodes.start(0);
    nodes
        .until(0, "pg_is_in_recovery() and exists (select from pg_stat_wal_receiver where status = 'streaming')")
        .await;
    nodes.until(1, "exists (select from pg_stat_replication where application_name = 'n1')").await;
    nodes.until_said(0, "is a standby of n2").await;
    nodes.sql(1, "insert into t values (11)").await;
    nodes.until(0, "(select count(*) from t) = 11").await;
    assert!(!nodes.log(0).contains(PASSWORD) && !nodes.log(1).contains(PASSWORD), "a password is in the log");
}

#[tokio::test]
async fn a_lone_old_primary_waits_and_is_stopped_by_sigterm() {
    let mut nodes = Nodes::new(2);
    (0..2).for_each(|node| nodes.start(node));
    nodes.until(0, &format!("{STREAMING} = 1")).await;
    nodes.kill(1);
    nodes.kill(0);
    nodes.start(0);
    nodes.until_said(0, "one of the others may have been promoted").await;
    assert!(nodes.login(0).connect().await.is_err(), "it was started all the same");
    // its standby still knows it as the primary
    nodes.start(1);
    nodes.until(0, "not pg_is_in_recovery()").await;
    nodes.until(0, &format!("{STREAMING} = 1")).await;
    let mut agent = nodes.running[0].take().unwrap();
    assert!(Command::new("kill").args(["-TERM", &agent.id().to_string()]).status().unwrap().success());
    assert!(agent.wait().unwrap().success());
    assert!(nodes.log(0).contains("database system is shut down"), "{}", nodes.log(0));
}

#[tokio::test]
async fn a_primary_that_was_replaced_while_it_ran_comes_back_as_a_standby() {
    let mut nodes = Nodes::new(2);
    (0..2).for_each(|node| nodes.start(node));
    nodes.until(0, &format!("{STREAMING} = 1")).await;
    nodes.sql(0, &format!("{TERM}; insert into pgsteady.term values (true, 1, 'n1', '{{n2}}', 1)")).await;
    nodes.sql(0, "create table t (a int)").await;
    nodes.until(1, "to_regclass('t') is not null").await;
    nodes.promote(1, "").await;
    nodes.sql(1, "update pgsteady.term set term = 2, leader = 'n2'").await;
    // what it writes alone must not survive
    nodes.sql(0, "set synchronous_commit = local; insert into t values (666)").await;
    nodes
        .until(0, "pg_is_in_recovery() and exists (select from pg_stat_wal_receiver where status = 'streaming')")
        .await;
    nodes.until(0, "(select count(*) from t) = 0").await;
    nodes.until_said(0, "was replaced as the primary by n2").await;
}
