//! PostgreSQL's processes on this machine, with real ones: made, streamed, killed, brought back, and nothing left.

#![allow(clippy::unwrap_used)] // a test may panic

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio_postgres::Client;
use topology::node::{
    Account, Init, LocalNode, Log, Port, Programs, Rejoined, Settings, Site, Stop, Throwaway, Upstream,
};

/// Bound on anything that is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Nodes in a throwaway folder. The nodes go before the folder does.
struct Machine {
    nodes: Vec<LocalNode>,
    _ports: Vec<Port>,
    folder: Throwaway,
}

impl Machine {
    /// A primary, `nodes[0]`, and standbys that stream from it.
    async fn with_standbys(standbys: usize, settings: Settings) -> Self {
        let programs = Programs::find(None).expect("PostgreSQL is installed");
        let account = Account::choose().unwrap();
        let folder = Throwaway::new("pgsteady-test", &account).unwrap();
        let mut machine = Self { nodes: Vec::new(), _ports: Vec::new(), folder };
        for number in 1..=standbys + 1 {
            let port = Port::reserve().unwrap();
            let name = format!("n{number}");
            let site = Site {
                data: machine.folder.path().join(&name),
                sockets: machine.folder.path().to_owned(),
                listen: "127.0.0.1".into(),
                port: port.number(),
                superuser: "postgres".into(),
                passfile: None,
                log: Log::File(machine.folder.path().join(format!("{name}.log"))),
                name,
            };
            machine.nodes.push(LocalNode::new(programs.clone(), account.clone(), site));
            machine._ports.push(port);
        }
        let init = Init { settings, hba: None, password_file: None, sync: false };
        machine.nodes[0].init(&init).await.unwrap();
        machine.nodes[0].start_primary().await.unwrap();
        let primary = machine.upstream(0);
        for node in &mut machine.nodes[1..] {
            node.clone_from(&primary).await.unwrap();
            node.start_standby(None).await.unwrap();
        }
        machine
    }

    fn upstream(&self, node: usize) -> Upstream {
        Upstream::trusting(self.nodes[node].address(), "postgres")
    }

    async fn sql(&self, node: usize, statements: &str) -> Client {
        let client = self.nodes[node].connect().await.unwrap();
        client.batch_execute(statements).await.unwrap_or_else(|error| panic!("{statements}: {error:?}"));
        client
    }

    async fn number(&self, node: usize, query: &str) -> i64 {
        let client = self.nodes[node].connect().await.unwrap();
        client.query_one(query, &[]).await.unwrap_or_else(|error| panic!("{query}: {error:?}")).get(0)
    }

    async fn until(&self, node: usize, query: &str, expected: i64) {
        let started = Instant::now();
        loop {
            let found = self.number(node, query).await;
            if found == expected {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "node {node}: {query}: {found}, not {expected}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn promote(&self, node: usize) {
        self.sql(node, "select pg_promote()").await;
    }
}

fn throwaway() -> Settings {
    Settings::throwaway()
}

/// Processes that work in a folder or below it, without us.
fn processes_in(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let cwds = entries.filter_map(|entry| std::fs::read_link(entry.path().join("cwd")).ok());
    cwds.filter(|cwd| cwd.starts_with(folder)).collect()
}

#[tokio::test]
async fn a_standby_streams_under_its_own_name_and_nothing_is_left() {
    let segments = || std::fs::read_to_string("/proc/sysvipc/shm").unwrap();
    let mut machine = Machine::with_standbys(1, throwaway()).await;
    let folder = machine.folder.path().to_owned();
    machine.sql(0, "create table t (a int); insert into t values (1), (2)").await;
    machine.until(1, "select count(*) from pg_class where relname = 't'", 1).await;
    machine.until(1, "select count(*) from t", 2).await;
    machine
        .until(0, "select count(*) from pg_stat_replication where application_name = 'n2' and state = 'streaming'", 1)
        .await;
    machine.until(1, "select count(*) from pg_settings where name = 'data_checksums' and setting = 'on'", 1).await;
    assert!(machine.nodes[1].start_standby(None).await.is_err(), "started twice");
    assert!(!processes_in(&folder).is_empty());
    // one is killed and would leave its shared memory
    let pid = std::fs::read_to_string(folder.join("n1/postmaster.pid")).unwrap();
    let segment = pid.lines().nth(6).unwrap().split_whitespace().nth(1).unwrap().to_owned();
    assert!(segments().contains(&format!(" {segment} ")), "{segment} in {}", segments());
    machine.nodes[0].kill().await.unwrap();
    drop(machine);
    assert_eq!(processes_in(&folder), Vec::<PathBuf>::new());
    assert!(!folder.exists());
    assert!(!segments().contains(&format!(" {segment} ")), "{segment} in {}", segments());
}

#[tokio::test]
async fn a_standby_is_never_started_as_a_primary() {
    let mut machine = Machine::with_standbys(1, throwaway()).await;
    machine.nodes[1].stop(Stop::Fast).await.unwrap();
    let error = machine.nodes[1].start_primary().await.unwrap_err();
    assert!(error.to_string().contains("n2: it is a standby"), "{error}");
    machine.nodes[0].kill().await.unwrap();
    machine.nodes[0].start_standby(None).await.unwrap();
    assert_eq!(machine.number(0, "select pg_is_in_recovery()::int::bigint").await, 1);
}

#[tokio::test]
async fn a_node_that_does_not_start_shows_its_log() {
    let mut machine = Machine::with_standbys(0, throwaway()).await;
    machine.nodes[0].stop(Stop::Fast).await.unwrap();
    let configuration = machine.nodes[0].site().data.join("postgresql.conf");
    let text = std::fs::read_to_string(&configuration).unwrap();
    std::fs::write(&configuration, text + "\nno_such_setting = 1\n").unwrap();
    let error = machine.nodes[0].start_primary().await.unwrap_err().to_string();
    assert!(error.contains("n1") && error.contains("no_such_setting"), "{error}");
}

#[tokio::test]
async fn killed_whole_it_refuses_at_once_and_frozen_it_says_nothing() {
    let mut machine = Machine::with_standbys(0, throwaway()).await;
    let client = machine.nodes[0].connect().await.unwrap();
    machine.nodes[0].freeze().unwrap();
    let asked = tokio::time::timeout(Duration::from_millis(300), client.simple_query("select 1")).await;
    assert!(asked.is_err(), "a frozen node answered");
    machine.nodes[0].thaw().unwrap();
    client.simple_query("select 1").await.unwrap();
    // a busy backend would outlive its postmaster
    let busy = machine.nodes[0].connect().await.unwrap();
    let work = tokio::spawn(async move { busy.simple_query("select pg_sleep(60)").await.map(drop) });
    tokio::time::sleep(Duration::from_millis(100)).await;
    machine.nodes[0].kill().await.unwrap();
    assert!(work.await.unwrap().is_err());
    assert!(machine.nodes[0].connect().await.is_err());
    assert_eq!(processes_in(&machine.nodes[0].site().data), Vec::<PathBuf>::new());
    machine.nodes[0].start_primary().await.unwrap();
    machine.nodes[0].kill_postmaster().await.unwrap();
    machine.nodes[0].start_primary().await.unwrap();
    assert_eq!(machine.number(0, "select 1::bigint").await, 1);
}

#[tokio::test]
async fn the_old_primary_is_rewound_with_divergent_rows_undone() {
    let mut machine = Machine::with_standbys(2, throwaway()).await;
    machine.sql(0, "create table t (a int); insert into t select generate_series(1, 10)").await;
    for standby in [1, 2] {
        machine.until(standby, "select count(*) from pg_class where relname = 't'", 1).await;
        machine.until(standby, "select count(*) from t", 10).await;
    }
    machine.promote(1).await;
    machine.sql(0, "insert into t select generate_series(1001, 5000)").await;
    machine.sql(1, "insert into t values (11)").await;
    machine.until(2, "select count(*) from t", 4010).await;
    machine.nodes[0].kill().await.unwrap();
    let primary = machine.upstream(1);
    assert_eq!(machine.nodes[0].rejoin(&primary).await.unwrap(), Rejoined::Rewound);
    machine.until(0, "select count(*) from t", 11).await;
    assert_eq!(machine.number(0, "select pg_is_in_recovery()::int::bigint").await, 1);
    let own = format!(
        "select count(*) from pg_settings where name = 'port' and setting = '{}'",
        machine.nodes[0].site().port
    );
    assert_eq!(machine.number(0, &own).await, 1);
    machine.until(1, "select count(*) from pg_stat_replication where application_name = 'n1'", 1).await;
    // the other standby had followed the old primary past the fork
    assert_eq!(machine.number(2, "select count(*) from t").await, 4010);
    // it learns of the new timeline and stays where it is; started again, PostgreSQL would mix both
    let history = machine.nodes[2].site().data.join("pg_wal/00000002.history");
    let conninfo = primary.conninfo("n3", None).replace('\'', "''");
    machine.sql(2, &format!("alter system set primary_conninfo = '{conninfo}'")).await;
    machine.sql(2, "select pg_reload_conf()").await;
    let started = Instant::now();
    while !history.exists() {
        assert!(started.elapsed() < PATIENCE, "{} does not come", history.display());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    machine.nodes[2].kill().await.unwrap();
    let error = machine.nodes[2].start_standby(None).await.unwrap_err();
    assert!(error.to_string().contains("forked off"), "{error}");
    assert_eq!(machine.nodes[2].rejoin(&primary).await.unwrap(), Rejoined::Rewound);
    machine.until(2, "select count(*) from t", 11).await;
}

#[tokio::test]
async fn a_standby_that_is_a_part_of_the_new_history_comes_back_as_it_is() {
    let mut machine = Machine::with_standbys(2, throwaway()).await;
    machine.sql(0, "create table t (a int); insert into t values (1)").await;
    machine.until(2, "select count(*) from pg_class where relname = 't'", 1).await;
    machine.nodes[2].kill().await.unwrap();
    machine.nodes[0].kill().await.unwrap();
    machine.promote(1).await;
    machine.sql(1, "insert into t values (2)").await;
    let primary = machine.upstream(1);
    assert_eq!(machine.nodes[2].rejoin(&primary).await.unwrap(), Rejoined::AsItWas);
    machine.until(2, "select count(*) from t", 2).await;
}

#[tokio::test]
async fn without_the_wal_that_a_rewind_needs_it_is_copied_anew() {
    let small = vec![("max_wal_size".to_owned(), "32MB".to_owned()), ("min_wal_size".to_owned(), "32MB".to_owned())];
    let mut machine = Machine::with_standbys(1, Settings { wal_keep_mib: 0, more: small, ..throwaway() }).await;
    machine.sql(0, "create table t (a int, b text); insert into t values (1)").await;
    machine.until(1, "select count(*) from pg_class where relname = 't'", 1).await;
    machine.until(1, "select count(*) from t", 1).await;
    machine.promote(1).await;
    // checkpoints recycle the WAL before the fork
    for _ in 0..4 {
        machine.sql(0, "insert into t select g, repeat(md5(g::text), 30) from generate_series(1, 20000) g").await;
        machine.sql(0, "select pg_switch_wal(); checkpoint").await;
    }
    machine.nodes[0].kill().await.unwrap();
    let primary = machine.upstream(1);
    assert_eq!(machine.nodes[0].rejoin(&primary).await.unwrap(), Rejoined::BaseBackup);
    machine.until(0, "select count(*) from t", 1).await;
    machine.until(1, "select count(*) from pg_stat_replication where application_name = 'n1'", 1).await;
    let left: Vec<_> = std::fs::read_dir(machine.folder.path()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert!(
        !left.iter().any(|name| name.to_string_lossy().ends_with(".new") || name.to_string_lossy().ends_with(".old"))
    );
}

#[tokio::test]
async fn a_primary_of_the_same_timeline_is_not_rewound() {
    let mut machine = Machine::with_standbys(1, throwaway()).await;
    machine.sql(0, "create table t (a int)").await;
    machine.until(1, "select count(*) from pg_class where relname = 't'", 1).await;
    // both are promoted, to a second timeline each: for pg_rewind these are one and the same
    machine.promote(1).await;
    machine.nodes[0].kill().await.unwrap();
    machine.nodes[0].start_standby(None).await.unwrap();
    machine.promote(0).await;
    machine.sql(0, "insert into t select generate_series(1, 100); checkpoint").await;
    machine.sql(1, "insert into t select generate_series(1, 7)").await;
    machine.nodes[0].kill().await.unwrap();
    let primary = machine.upstream(1);
    assert_eq!(machine.nodes[0].rejoin(&primary).await.unwrap(), Rejoined::BaseBackup);
    machine.until(0, "select count(*) from t", 7).await;
}

#[tokio::test]
async fn a_standby_is_no_primary_to_come_back_to() {
    let mut machine = Machine::with_standbys(1, throwaway()).await;
    machine.nodes[0].kill().await.unwrap();
    let standby = machine.upstream(1);
    assert!(machine.nodes[0].rejoin(&standby).await.is_err());
    assert!(machine.nodes[0].exists(), "its data is still there");
}

#[tokio::test]
async fn a_fence_holds_over_a_restart_until_there_is_a_primary_of_its_term() {
    let mut machine = Machine::with_standbys(1, throwaway()).await;
    machine.sql(1, "alter system set primary_slot_name = 'fence_2'").await;
    machine.sql(1, "alter system set primary_conninfo = ''").await;
    machine.nodes[1].kill().await.unwrap();
    let primary = machine.upstream(0);
    assert!(machine.nodes[1].rejoin(&primary).await.is_err(), "a primary without a term");
    machine
        .sql(
            0,
            "create schema pgsteady; create table pgsteady.term (term bigint); insert into pgsteady.term values (1)",
        )
        .await;
    let error = machine.nodes[1].rejoin(&primary).await.unwrap_err();
    assert!(error.to_string().contains("fenced for term 2"), "{error}");
    machine.nodes[1].start_standby(None).await.unwrap();
    assert_eq!(machine.number(1, "select count(*) from pg_stat_wal_receiver").await, 0);
    machine.nodes[1].kill().await.unwrap();
    machine.sql(0, "update pgsteady.term set term = 2").await;
    assert_eq!(machine.nodes[1].rejoin(&primary).await.unwrap(), Rejoined::AsItWas);
}

#[test]
fn the_watchman_cleans_up_after_a_program_that_is_killed() {
    // this test runs itself as that program
    let own = std::env::current_exe().unwrap();
    let mut child = std::process::Command::new(own)
        .args(["--exact", "dies_with_a_running_node", "--ignored", "--nocapture"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let output = std::io::BufReader::new(child.stdout.take().unwrap());
    let named = std::io::BufRead::lines(output)
        .map_while(Result::ok)
        .find_map(|line| line.split_once("folder=").map(|(_, f)| PathBuf::from(f)));
    let folder = named.expect("the program says where it works");
    assert!(!processes_in(&folder).is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    let started = Instant::now();
    while folder.exists() || !processes_in(&folder).is_empty() {
        assert!(started.elapsed() < PATIENCE, "{} is left with {:?}", folder.display(), processes_in(&folder));
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[tokio::test]
#[ignore = "the other half of the test before it"]
async fn dies_with_a_running_node() {
    let machine = Machine::with_standbys(0, throwaway()).await;
    println!("folder={}", machine.folder.path().display());
    tokio::time::sleep(PATIENCE).await;
    drop(machine);
}
