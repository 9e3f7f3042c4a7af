//! Commits whose answer is lost, in every form a client can send them: what became of each is found out, and the client is told
//! the truth and stays.

use std::time::Duration;

use harness::folder::Folder;
use harness::pgsteady::{Config, Pgsteady};
use harness::postgres::{Cluster, Node, Programs};
use harness::process;
use harness::wire::{Message, Raw, bind, execute, parse, query, sync};
use nix::sys::signal::Signal;
use tokio::task::JoinSet;

const TEST_S: u64 = 90;
/// A server has to be known for as long as the monitor takes to look at its node again.
const KNOWN: Duration = Duration::from_millis(700);

/// A way to commit one row.
#[derive(Clone, Copy)]
struct Form {
    name: &'static str,
    /// Simple queries that come before.
    before: &'static [&'static str],
    /// What is sent at last, and lost.
    last: fn(&str) -> Vec<u8>,
    /// The tags of its answer if it was committed.
    answer: &'static str,
    /// The command that its last CommandComplete names.
    done: &'static str,
}

fn prepared(sql: &str) -> Vec<u8> {
    [parse("", sql), bind("", &[]), execute()].concat()
}

const FORMS: [Form; 6] = [
    Form {
        name: "a block by simple queries",
        before: &["BEGIN", "INSERT"],
        last: |_| query("COMMIT"),
        answer: "CZ",
        done: "COMMIT",
    },
    Form {
        name: "a block ended by extended requests",
        before: &["BEGIN", "INSERT"],
        last: |_| [prepared("COMMIT"), sync()].concat(),
        answer: "12CZ",
        done: "COMMIT",
    },
    Form { name: "autocommit by a simple query", before: &[], last: query, answer: "CZ", done: "INSERT 0 1" },
    Form {
        name: "autocommit with RETURNING",
        before: &[],
        last: |insert| query(&format!("{insert} RETURNING n, 'x'")),
        answer: "TDCZ",
        done: "INSERT 0 1",
    },
    Form {
        name: "autocommit by extended requests",
        before: &[],
        last: |insert| [prepared(insert), sync()].concat(),
        answer: "12CZ",
        done: "INSERT 0 1",
    },
    Form {
        name: "a block in one batch",
        before: &[],
        last: |insert| [prepared("BEGIN"), prepared(insert), prepared("COMMIT"), sync()].concat(),
        answer: "12C12C12CZ",
        done: "COMMIT",
    },
];

struct Scene {
    cluster: Cluster,
    pgsteady: Pgsteady,
    _store: Folder,
    clients: Vec<(Form, Raw)>,
    round: i64,
}

impl Scene {
    async fn new(settings: &[(&str, &str)]) -> Self {
        let cluster = Cluster::start(&Programs::installed(), 3).await;
        cluster.nodes[0].sql("CREATE TABLE doubtful (n bigint, form text); GRANT ALL ON doubtful TO PUBLIC").await;
        let ports = cluster.ports();
        let store = Folder::new("store");
        let mut config = Config::cluster(&cluster, &ports, store.path()).set("auth.method", "trust");
        for (key, value) in [("cluster.main.durability", "strict")].iter().chain(settings) {
            config = config.set(key, *value);
        }
        let pgsteady = Pgsteady::start(&config).await;
        let mut clients = Vec::new();
        for form in FORMS {
            clients.push((form, Raw::login(pgsteady.port(), "trusting", "app").await));
        }
        Self { cluster, pgsteady, _store: store, clients, round: 0 }
    }

    /// Every client sends its commit, and all of them wait for a standby. What each gets in the end is read elsewhere.
    async fn commits_wait(&mut self, primary: usize) -> JoinSet<(Form, Raw, Vec<Message>)> {
        self.round += 1;
        let round = self.round;
        // as many servers as clients, and known for a while
        for (_, client) in &mut self.clients {
            client.send(&query("BEGIN; SELECT pg_backend_pid()")).await;
        }
        tokio::time::sleep(KNOWN).await;
        for (_, client) in &mut self.clients {
            client.until(b'Z').await;
            client.query("ROLLBACK").await;
        }
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'trusting' AND wait_event = 'SyncRep'";
        let mut answers = JoinSet::new();
        for (form, mut client) in std::mem::take(&mut self.clients) {
            let insert = format!("INSERT INTO doubtful VALUES ({round}, '{}')", form.name);
            for sql in form.before {
                let sql = if *sql == "INSERT" { &insert } else { *sql };
                assert_eq!(tags(&client.query(sql).await), "CZ", "{}: {sql}", form.name);
            }
            client.send(&(form.last)(&insert)).await;
            answers.spawn(async move {
                let answer = client.until(b'Z').await;
                (form, client, answer)
            });
        }
        let node = &self.cluster.nodes[primary];
        let all = || async { (node.sql(waiting).await == FORMS.len().to_string()).then_some(()) };
        harness::wait_for("commits that wait for a standby", Duration::from_secs(10), all).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        answers
    }

    /// Reads what the clients got, shows that they go on, and holds it against the table.
    async fn told(&mut self, mut answers: JoinSet<(Form, Raw, Vec<Message>)>, told: &str) {
        while let Some(done) = answers.join_next().await {
            let (form, mut client, answer) = done.expect("a reader does not panic");
            assert_eq!(outcome(&form, &answer), told, "{}: {}, {answer:?}", form.name, tags(&answer));
            assert_eq!(answered(&client.query("SELECT 1").await), "TDCZ", "{}: the client cannot go on", form.name);
            self.clients.push((form, client));
        }
        self.pgsteady.lives();
        let primary = self.cluster.primary(&[]).await.expect("a primary");
        let found = format!("SELECT count(*) FROM doubtful WHERE n = {}", self.round);
        let there = if told == "committed" { FORMS.len() } else { 0 };
        assert_eq!(
            self.cluster.nodes[primary].sql(&found).await,
            there.to_string(),
            "what the clients were told is not so"
        );
    }

    fn standbys(&self, act: impl Fn(&Node)) {
        self.cluster.nodes[1..].iter().for_each(act);
    }
}

fn tags(messages: &[Message]) -> String {
    messages.iter().map(|message| char::from(message.tag)).collect()
}

/// The tags without what is only reported: a read may go to a replica and the next statement to the primary, and the client is
/// told of another `in_hot_standby` each time.
fn answered(messages: &[Message]) -> String {
    tags(messages).replace('S', "")
}

/// `committed` if the answer is the one of a commit, to the letter; else the SQLSTATE.
fn outcome(form: &Form, answer: &[Message]) -> String {
    let error = answer.iter().find(|message| message.tag == b'E');
    if let Some(error) = error {
        return error.field(b'C').unwrap_or_default();
    }
    let last = answer.iter().rfind(|message| message.tag == b'C').map_or(&b""[..], |message| &message.body);
    let ready = answer.last().is_some_and(|message| message.body == b"I");
    // a dying server may have said so
    let tags = tags(answer).replace('N', "");
    let right = tags == form.answer && last == format!("{}\0", form.done).as_bytes() && ready;
    if right { "committed" } else { "something else" }.to_owned()
}

/// The walsenders are stopped: nothing of the commits ever leaves the primary, which is killed.
#[test]
fn commits_that_never_left_the_primary_are_rolled_back() {
    harness::run(TEST_S, async {
        let mut scene = Scene::new(&[]).await;
        let senders = scene.cluster.nodes[0].client().await;
        let senders = senders.query("SELECT pid FROM pg_stat_replication", &[]).await.expect("the walsenders");
        assert_eq!(senders.len(), 2);
        for sender in &senders {
            process::signal(sender.get(0), Signal::SIGSTOP);
        }
        let answers = scene.commits_wait(0).await;
        scene.cluster.nodes[0].kill_tree();
        scene.told(answers, "40001").await;
        assert!(scene.cluster.primary(&[0]).await.is_some(), "nobody was promoted");
        // The ids of those transactions are in use again by now, and say nothing of them.
        for (_, client) in &mut scene.clients {
            assert_eq!(answered(&client.query("INSERT INTO doubtful VALUES (-1)").await), "CZ");
        }
    });
}

/// The same, but the primary restarts itself before it is gone: it knows of the commits, and the one that follows does not.
#[test]
fn commits_that_only_outlived_a_crash_are_rolled_back() {
    harness::run(TEST_S, async {
        let mut scene = Scene::new(&[("cluster.main.crash_restart_grace", "30s")]).await;
        let operator = scene.cluster.nodes[0].client().await;
        let senders = operator.query("SELECT pid FROM pg_stat_replication", &[]).await.expect("the walsenders");
        assert_eq!(senders.len(), 2);
        senders.iter().for_each(|sender| process::signal(sender.get(0), Signal::SIGSTOP));
        let answers = scene.commits_wait(0).await;
        scene.standbys(Node::freeze);
        let pid = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' LIMIT 1";
        let pid = harness::endpoint::value(&operator, pid).await.parse().expect("a process number");
        process::signal(pid, Signal::SIGKILL);
        let known = format!("SELECT count(*) FROM doubtful WHERE n = {}", scene.round);
        let known = || async {
            let client = scene.cluster.nodes[0].try_client().await.ok()?;
            let count: i64 = client.query_one(&known, &[]).await.ok()?.get(0);
            (usize::try_from(count) == Ok(FORMS.len())).then_some(())
        };
        harness::wait_for("the primary to restart with the commits", Duration::from_secs(30), known).await;
        tokio::time::sleep(KNOWN).await;
        // they use the ids again as soon as there is another primary
        let mut others = JoinSet::new();
        for _ in 0..2 * FORMS.len() {
            let mut other = Raw::login(scene.pgsteady.port(), "trusting", "app").await;
            others.spawn(async move { tags(&other.query("INSERT INTO doubtful VALUES (-1)").await) });
        }
        tokio::time::sleep(KNOWN).await;
        scene.cluster.nodes[0].kill_tree();
        scene.standbys(Node::thaw);
        scene.told(answers, "40001").await;
        while let Some(other) = others.join_next().await {
            assert_eq!(other.expect("a client does not panic"), "CZ");
        }
        assert!(scene.cluster.primary(&[0]).await.is_some(), "nobody was promoted");
    });
}

/// The standbys are stopped: the commits are in their sockets, and the primary is killed before they can confirm them.
#[test]
fn commits_that_reached_a_standby_are_committed() {
    harness::run(TEST_S, async {
        let mut scene = Scene::new(&[]).await;
        scene.standbys(Node::freeze);
        let answers = scene.commits_wait(0).await;
        scene.cluster.nodes[0].kill_tree();
        scene.standbys(Node::thaw);
        scene.told(answers, "committed").await;
        assert!(scene.cluster.primary(&[0]).await.is_some(), "nobody was promoted");
    });
}

/// The same primary goes on: first only the connections are lost, then all of its processes are.
#[test]
fn commits_whose_primary_stays_are_looked_up_there() {
    harness::run(TEST_S, async {
        let mut scene = Scene::new(&[("cluster.main.crash_restart_grace", "20s")]).await;
        let operator = scene.cluster.nodes[0].client().await;
        scene.standbys(Node::freeze);
        let answers = scene.commits_wait(0).await;
        let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        assert_eq!(harness::endpoint::value(&operator, ended).await, FORMS.len().to_string());
        tokio::time::sleep(Duration::from_millis(500)).await;
        scene.standbys(Node::thaw);
        scene.told(answers, "committed").await;

        scene.standbys(Node::freeze);
        let answers = scene.commits_wait(0).await;
        let victim = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' LIMIT 1";
        let victim = harness::endpoint::value(&operator, victim).await.parse().expect("a process number");
        process::signal(victim, Signal::SIGKILL);
        tokio::time::sleep(Duration::from_millis(500)).await;
        scene.standbys(Node::thaw);
        scene.told(answers, "committed").await;
        assert_eq!(scene.cluster.primary(&[]).await, Some(0), "it failed over: this shows nothing");
        assert!(scene.cluster.nodes[0].log().contains("database system was not properly shut down"));
    });
}

/// PostgreSQL acknowledges a commit whose wait was cancelled. No client may see that as a success.
#[test]
fn a_cancelled_wait_is_never_a_success() {
    harness::run(TEST_S, async {
        let mut scene = Scene::new(&[]).await;
        let operator = scene.cluster.nodes[0].client().await;
        scene.standbys(Node::freeze);
        let mut answers = scene.commits_wait(0).await;
        let cancelled = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        assert_eq!(harness::endpoint::value(&operator, cancelled).await, FORMS.len().to_string());
        while let Some(done) = answers.join_next().await {
            let (form, mut client, answer) = done.expect("a reader does not panic");
            assert_eq!(outcome(&form, &answer), "08007", "{}: {answer:?}", form.name);
            assert_eq!(answer.last().map(|message| &message.body[..]), Some(&b"I"[..]));
            assert_eq!(answered(&client.query("SELECT 1").await), "TDCZ", "{}: the client cannot go on", form.name);
        }
        scene.standbys(Node::thaw);
    });
}

/// A simple query in autocommit goes as extended requests. What comes back is what PostgreSQL answers to a simple query.
#[test]
fn what_a_client_sees_is_the_same_with_and_without_the_look_up() {
    harness::run(TEST_S, async {
        let scene = Scene::new(&[]).await;
        let node = &scene.cluster.nodes[0];
        node.sql(
            "CREATE TABLE target (n int PRIMARY KEY, t text, CHECK (n < 100)); GRANT ALL ON target TO PUBLIC;
             CREATE TABLE late (n int UNIQUE DEFERRABLE INITIALLY DEFERRED); GRANT ALL ON late TO PUBLIC;
             CREATE FUNCTION say() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'row %', NEW.n; RETURN NEW; END $$;
             CREATE TRIGGER said BEFORE INSERT ON target FOR EACH ROW EXECUTE FUNCTION say()",
        )
        .await;
        let statements = [
            "INSERT INTO target VALUES (1, 'one')",
            "INSERT INTO target VALUES (2, 'two') RETURNING n, t, now() IS NULL AS never;",
            "INSERT INTO target VALUES (3, 'x'), (4, 'y') RETURNING *",
            "UPDATE target SET t = t || '!' WHERE n > 90 RETURNING t",
            "/* a comment */ UPDATE target SET t = 'z' WHERE n = 1 -- and another",
            "INSERT INTO target VALUES (1, 'twice') RETURNING n",
            "INSERT INTO target VALUES (200)",
            "INSERT INTO target VALUES (5), (6), (1/0) RETURNING n",
            "INSERT INTO late VALUES (1), (1)",
            "INSERT INTO late VALUES (2), (2) RETURNING n",
            "INSERT INTO nowhere VALUES (1)",
            "INSERT INTO target VALUES (1,",
            "INSERT INTO target VALUES ($1)",
            "WITH gone AS (DELETE FROM target WHERE n = 3 RETURNING n) SELECT n FROM gone",
            "WITH gone AS (DELETE FROM target WHERE n = 99) SELECT 'none'",
            "DELETE FROM target",
            "MERGE INTO target USING (VALUES (7)) AS v (n) ON target.n = v.n WHEN NOT MATCHED THEN INSERT VALUES (v.n)",
            "DELETE FROM target; DELETE FROM late",
        ];
        let mut through = Raw::login(scene.pgsteady.port(), "trusting", "app").await;
        let mut seen = Vec::new();
        for sql in statements {
            seen.push(through.query(sql).await);
            // no unnamed statement is left behind
            through.send(&[bind("", &[]), execute(), sync()].concat()).await;
            let answer = through.until(b'Z').await;
            assert_eq!(answer[0].field(b'C').as_deref(), Some("26000"), "{sql}: {answer:?}");
        }
        // One that stays through it all is not touched by the question.
        through.send(&[parse("", "SELECT 'unnamed'"), sync()].concat()).await;
        assert_eq!(tags(&through.until(b'Z').await), "1Z");
        through
            .send(&[parse("mine", "INSERT INTO late VALUES (9)"), bind("mine", &[]), execute(), sync()].concat())
            .await;
        let answer = through.until(b'Z').await;
        assert_eq!(tags(&answer), "12CZ", "{answer:?}");
        through.send(&[bind("", &[]), execute(), sync()].concat()).await;
        assert_eq!(tags(&through.until(b'Z').await), "2DCZ");
        node.sql("TRUNCATE target, late").await;
        let mut direct = Raw::login(node.port(), "trusting", "app").await;
        for (sql, through) in statements.iter().zip(seen) {
            assert_eq!(through, direct.query(sql).await, "{sql}");
        }
    });
}

/// `synchronous_commit` below `on`, in every way to ask for it.
#[test]
fn commits_that_wait_for_nobody_are_refused() {
    harness::run(TEST_S, async {
        let scene = Scene::new(&[]).await;
        let port = scene.pgsteady.port();
        let refused = [
            "SET synchronous_commit = off",
            "SET LOCAL synchronous_commit TO 'local'",
            "SET SESSION SYNCHRONOUS_COMMIT = Remote_Write",
            "SET synchronous_commit = 0",
            "SET synchronous_commit TO false",
            "SELECT set_config('synchronous_commit', 'off', false)",
            "SELECT pg_catalog.set_config('synchronous_commit', 'off', true)",
            "SELECT 1; SET synchronous_commit = off",
        ];
        let mut client = Raw::login(port, "trusting", "app").await;
        for sql in refused {
            let answer = client.query(sql).await;
            assert_eq!((tags(&answer).as_str(), code(&answer).as_str()), ("EZ", "22023"), "{sql}: {answer:?}");
            client.send(&[prepared(sql), sync()].concat()).await;
            let answer = client.until(b'Z').await;
            assert_eq!(tags(&answer), "EZ", "{sql}: {answer:?}");
        }
        for sql in ["SET synchronous_commit = on", "SET synchronous_commit = remote_apply", "RESET synchronous_commit"]
        {
            assert_eq!(tags(&client.query(sql).await), "CZ", "{sql}");
        }
        // In a transaction it is an error like any other.
        client.query("BEGIN").await;
        assert_eq!(code(&client.query("SET synchronous_commit = off").await), "22023");
        assert_eq!(code(&client.query("SELECT 1").await), "25P02");
        assert_eq!(tags(&client.query("ROLLBACK").await), "CZ");
        hidden(&mut client).await;
        for parameters in [("synchronous_commit", "off"), ("options", "-c synchronous_commit=local")] {
            let mut late = Raw::connect(port).await;
            late.send(&harness::wire::startup(&[("user", "trusting"), ("database", "app"), parameters])).await;
            assert_eq!(code(&late.until(b'Z').await), "22023", "{parameters:?}");
        }
        scene.cluster.nodes[0].sql("ALTER ROLE other SET synchronous_commit = off").await;
        let other = scene.pgsteady.endpoint().with_user("other", "other-secret");
        let told = harness::endpoint::say(&other.connect().await.expect_err("its commits wait for nobody"));
        assert!(told.contains("synchronous_commit is \"off\" for role \"other\""), "{told}");
        scene.cluster.nodes[0].sql("ALTER ROLE other RESET synchronous_commit").await;
        other.client().await;
    });
}

/// What no text shows is seen when the commit is asked for.
async fn hidden(client: &mut Raw) {
    let hidden = "DO $$ BEGIN PERFORM set_config('synchronous_commit', 'off', true); END $$";
    for commit in [query("COMMIT"), [prepared("COMMIT"), sync()].concat()] {
        client.query("BEGIN").await;
        assert_eq!(tags(&client.query("INSERT INTO doubtful VALUES (-5)").await), "CZ");
        assert_eq!(tags(&client.query(hidden).await), "CZ");
        client.send(&commit).await;
        let answer = client.until(b'Z').await;
        assert_eq!(code(&answer), "22023", "{answer:?}");
        client.query("ROLLBACK").await;
    }
    let count = client.query("SELECT count(*) FROM doubtful WHERE n = -5").await;
    assert_eq!(count[1].columns(), ["0"]);
}

#[test]
fn commits_that_wait_for_nobody_can_be_reported_or_allowed() {
    harness::run(TEST_S, async {
        let scene = Scene::new(&[("database.app.synchronous_commit", "report")]).await;
        let mut client = Raw::login(scene.pgsteady.port(), "trusting", "app").await;
        let before = scene.pgsteady.log().len();
        assert_eq!(tags(&client.query("SET synchronous_commit = off").await), "CZ");
        assert_eq!(tags(&client.query("INSERT INTO doubtful VALUES (1)").await), "CZ");
        scene.pgsteady.logged(before, &["the session sets synchronous_commit below"]).await;
        let before = scene.pgsteady.log().len();
        let mut late = Raw::connect(scene.pgsteady.port()).await;
        let parameters = [("user", "trusting"), ("database", "app"), ("synchronous_commit", "off")];
        late.send(&harness::wire::startup(&parameters)).await;
        assert_eq!(code(&late.until(b'Z').await), "");
        scene.pgsteady.logged(before, &["a client asks for synchronous_commit below"]).await;
        scene.cluster.nodes[0].sql("ALTER ROLE other SET synchronous_commit = off").await;
        scene.pgsteady.endpoint().with_user("other", "other-secret").client().await;
        scene.pgsteady.logged(before, &["from the login on"]).await;
    });
}

fn code(messages: &[Message]) -> String {
    messages.iter().find(|message| message.tag == b'E').and_then(|message| message.field(b'C')).unwrap_or_default()
}
