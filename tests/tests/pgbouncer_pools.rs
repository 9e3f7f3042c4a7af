//! Pools, limits, timeouts and logins of the program called as `pgbouncer`, as its users know them.

use std::time::{Duration, Instant};

use harness::endpoint::{say, value};
use harness::pgbouncer::{PgBouncer, shown};
use harness::postgres::Node;
use harness::wire::{Raw, bind, execute, frame, sync};
use tokio::task::JoinSet;
use tokio_postgres::Client;

const USERS: &str = "\"admin\" \"admin-secret\"\n\"app\" \"app-secret\"\n\"other\" \"other-secret\"\n";
const SERVERS: &str = "SELECT count(*) FROM pg_stat_activity WHERE usename IN ('app', 'other')";

async fn started(databases: &str, settings: &str) -> (Node, PgBouncer) {
    let settings = format!("pool_mode = transaction\nauth_type = scram-sha-256\n{settings}");
    PgBouncer::with_node(databases, &settings, USERS).await
}

async fn client(bouncer: &PgBouncer, user: &str, database: &str) -> Client {
    bouncer.endpoint(user, &format!("{user}-secret"), database).client().await
}

async fn refused(bouncer: &PgBouncer, user: &str, database: &str) -> String {
    let coming = bouncer.endpoint(user, &format!("{user}-secret"), database).connect().await;
    say(&coming.expect_err("it must not be let in"))
}

/// So many clients that each sleep in a transaction of their own.
async fn sleepers(bouncer: &PgBouncer, who: &[(&str, &str)], seconds: f32) -> JoinSet<Result<(), String>> {
    let mut all = JoinSet::new();
    for (user, database) in who {
        let client = client(bouncer, user, database).await;
        let sleep = format!("SELECT pg_sleep({seconds})");
        all.spawn(async move { client.batch_execute(&sleep).await.map_err(|error| say(&error)) });
    }
    all
}

#[test]
fn a_pool_has_its_size_and_a_reserve_for_those_who_waited() {
    harness::run(60, async {
        let (node, bouncer) = started("app = $ pool_size=2 reserve_pool_size=1", "reserve_pool_timeout = 2\n").await;
        let mut all = sleepers(&bouncer, &[("app", "app"); 5], 4.0).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(node.sql(SERVERS).await, "2");
        bouncer.logged(0, "taking connection from reserve_pool").await;
        while let Some(done) = all.join_next().await {
            done.expect("no panic").expect("everybody has its turn");
        }
        assert!(node.sql(SERVERS).await.parse::<usize>().expect("a number") <= 3);
    });
}

#[test]
fn limits_that_pools_share_are_kept_and_idle_servers_give_way() {
    harness::run(60, async {
        let limits = "app = $ max_db_connections=2\nsecond = $\n[users]\nother = max_user_connections=1";
        let (node, bouncer) = started(limits, "").await;
        let mut all = sleepers(&bouncer, &[("app", "app"), ("app", "app"), ("other", "app")], 0.5).await;
        while let Some(done) = all.join_next().await {
            done.expect("no panic").expect("everybody has its turn");
            assert!(node.sql(SERVERS).await.parse::<usize>().expect("a number") <= 2);
        }
        assert!(bouncer.log().contains("closing because: evicted"), "the third needed a place");
        let mut all = sleepers(&bouncer, &[("other", "app"), ("other", "second"), ("other", "second")], 0.2).await;
        while let Some(done) = all.join_next().await {
            done.expect("no panic").expect("everybody has its turn");
            let of_other = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'other'";
            assert!(node.sql(of_other).await.parse::<usize>().expect("a number") <= 1);
        }
    });
}

#[test]
fn clients_beyond_a_limit_are_told_which() {
    harness::run(60, async {
        let databases =
            "app = $ max_db_client_connections=1\nsecond = $\n[users]\nother = max_user_client_connections=1";
        let (_node, bouncer) = started(databases, "max_client_conn = 3\n").await;
        let _one = client(&bouncer, "app", "app").await;
        assert!(
            refused(&bouncer, "app", "app").await.contains("client connections exceeded (max_db_client_connections)")
        );
        let _two = client(&bouncer, "other", "second").await;
        let told = refused(&bouncer, "other", "second").await;
        assert!(told.contains("client connections exceeded (max_user_client_connections)"), "{told}");
        let _three = client(&bouncer, "app", "second").await;
        let told = refused(&bouncer, "app", "second").await;
        assert!(told.contains("no more connections allowed (max_client_conn)"), "{told}");
        let console = bouncer.console().await;
        assert_eq!(shown(&console, "USERS", "name", "other", "current_client_connections").await, "1");
        drop(_three);
        tokio::time::sleep(Duration::from_millis(300)).await;
        client(&bouncer, "app", "second").await.batch_execute("SELECT 1").await.expect("there is room again");
    });
}

#[test]
fn each_time_limit_ends_what_it_is_for() {
    harness::run(90, async {
        let (node, bouncer) = started("app = $ pool_size=1", "query_wait_timeout = 1\nserver_lifetime = 60\n").await;
        let console = bouncer.console().await;
        let busy = client(&bouncer, "app", "app").await;
        busy.batch_execute("BEGIN").await.expect("a transaction");
        let waiting = client(&bouncer, "app", "app").await;
        let error = waiting.batch_execute("SELECT 1").await.expect_err("nothing is free");
        assert!(say(&error).contains("query_wait_timeout"), "{}", say(&error));
        console.simple_query("SET idle_transaction_timeout=1").await.expect("set");
        bouncer.logged(0, "closing because: idle transaction timeout").await;
        assert!(busy.batch_execute("COMMIT").await.is_err());
        console.simple_query("SET query_timeout=1").await.expect("set");
        let slow = client(&bouncer, "app", "app").await;
        let error = slow.batch_execute("SELECT pg_sleep(20)").await.expect_err("it takes too long");
        assert!(say(&error).contains("query timeout"), "{}", say(&error));
        console.simple_query("SET client_idle_timeout=1").await.expect("set");
        client(&bouncer, "app", "app").await.batch_execute("SELECT 1").await.expect("a query");
        let _idle = client(&bouncer, "app", "app").await;
        bouncer.logged(0, "closing because: client_idle_timeout").await;
        console.simple_query("SET server_lifetime=1").await.expect("set");
        bouncer.logged(0, "closing because: server lifetime over").await;
        let gone = || async { (node.sql(SERVERS).await == "0").then_some(()) };
        harness::wait_for("no server", Duration::from_secs(10), gone).await;
    });
}

#[test]
fn a_server_that_is_away_is_waited_for_and_one_that_refuses_says_why() {
    harness::run(60, async {
        let (mut node, bouncer) = started("app = $\nnowhere = $ dbname=no_such", "server_login_retry = 1\n").await;
        let told = refused(&bouncer, "app", "nowhere").await;
        assert!(told.contains("database \"no_such\" does not exist"), "{told}");
        assert!(bouncer.log().contains("server login failed: FATAL database \"no_such\" does not exist"));
        node.stop();
        let endpoint = bouncer.endpoint("app", "app-secret", "app");
        let coming = tokio::spawn(async move { endpoint.client().await });
        bouncer.logged(0, "closing because: connect failed").await;
        node.start().await;
        let begun = Instant::now();
        let client = coming.await.expect("it waits instead of failing");
        assert!(begun.elapsed() < Duration::from_secs(10));
        client.batch_execute("SELECT 1").await.expect("it works");
    });
}

#[test]
fn startup_parameters_connect_queries_and_statements_are_pgbouncers() {
    harness::run(60, async {
        let databases = "app = $ connect_query='SET enable_seqscan = off'\nsecond = $ pool_mode=statement";
        let (_node, bouncer) =
            started(databases, "auth_type = trust\nignore_startup_parameters = extra_float_digits\n").await;
        let client = client(&bouncer, "app", "app").await;
        assert_eq!(value(&client, "SHOW enable_seqscan").await, "off");
        for (options, told) in [
            ("-c geqo=off", "unsupported startup parameter in options: geqo"),
            ("-d", "unsupported options startup parameter"),
        ] {
            let conninfo = format!("{} options='{options}'", bouncer.endpoint("app", "x", "app").conninfo());
            let error = tokio_postgres::connect(&conninfo, tokio_postgres::NoTls).await.err().expect("refused");
            assert!(say(&error).contains(told), "{}", say(&error));
        }
        let mut raw =
            Raw::login_with(bouncer.port(), &[("user", "app"), ("database", "app"), ("extra_float_digits", "2")]).await;
        raw.send(&[bind("nobody", &[]), execute(), sync()].concat()).await;
        let left = raw.closed_within(Duration::from_secs(5)).await.expect("it is closed");
        assert!(String::from_utf8_lossy(&left).contains("prepared statement did not exist"));
        let mut raw = Raw::login(bouncer.port(), "app", "second").await;
        raw.send(&frame(b'Q', b"BEGIN\0")).await;
        let left = raw.closed_within(Duration::from_secs(5)).await.expect("it is closed");
        let told = "transaction blocks not allowed in statement pooling mode";
        assert!(String::from_utf8_lossy(&left).contains(told));
    });
}

#[test]
fn rules_of_an_hba_file_decide_and_replication_passes() {
    harness::run(60, async {
        let (node, bouncer) = started("app = $", "auth_type = hba\n").await;
        let hba =
            bouncer.folder().write("hba.conf", "host app other all reject\nhost all all 127.0.0.0/8 scram-sha-256\n");
        let console_rules = format!("auth_type = hba\nauth_hba_file = {}\npool_mode = transaction\n", hba.display());
        bouncer.write(&format!("app = host=127.0.0.1 port={}", node.port()), &console_rules);
        let from = bouncer.log().len();
        bouncer.signal(nix::sys::signal::Signal::SIGHUP);
        bouncer.logged(from, "re-reading config").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        client(&bouncer, "app", "app").await.batch_execute("SELECT 1").await.expect("a rule lets it in");
        assert!(refused(&bouncer, "other", "app").await.contains("login rejected"));
        let conninfo = bouncer.endpoint("app", "app-secret", "app").conninfo();
        let asked = std::process::Command::new("psql")
            .args([&format!("{conninfo} replication=database"), "-Atc", "IDENTIFY_SYSTEM"])
            .output()
            .expect("psql is there");
        let told = String::from_utf8_lossy(&asked.stderr).into_owned() + &String::from_utf8_lossy(&asked.stdout);
        assert!(told.contains("login failed") || asked.status.success(), "{told}");
    });
}
