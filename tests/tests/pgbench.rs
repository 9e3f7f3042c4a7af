//! pgbench through transaction pooling, on two major versions of PostgreSQL: sixteen clients on four servers, no error.

use harness::pgsteady::{Config, Pgsteady};
use harness::postgres::{Node, Programs, run};

/// Transactions a client; with `-C` each is a connection.
const TRANSACTIONS: [(&str, &[&str]); 2] = [("100", &[]), ("10", &["-C"])];

fn pgbench(pgsteady: &Pgsteady, programs: &Programs, arguments: &[&str]) -> String {
    let endpoint = pgsteady.endpoint();
    let mut command = programs.command("pgbench");
    command.env("PGPASSWORD", &endpoint.password).args(["-h", &endpoint.host, "-p", &endpoint.port.to_string()]);
    command.args(["-U", &endpoint.user]).args(arguments).arg(&endpoint.database);
    run(&mut command)
}

async fn without_errors(programs: Programs) {
    let node = Node::primary(&programs).await;
    let config = Config::single(&node).set("database.app.pool_size", 4);
    let mut pgsteady = Pgsteady::start(&config).await;
    pgbench(&pgsteady, &programs, &["-i", "-q", "-s", "1"]);
    let mut expected = 0;
    for mode in ["simple", "extended", "prepared"] {
        for (transactions, more) in TRANSACTIONS {
            // Every second transaction writes. A thread a client: pgbench waits for a prepare with its whole thread, and
            // the server it waits for may be in a transaction that the same thread has to go on with.
            let weights = ["-n", "-b", "simple-update", "-b", "select-only", "-c", "16", "-j", "16"];
            let arguments = [&weights[..], &["-M", mode, "-t", transactions], more].concat();
            let report = pgbench(&pgsteady, &programs, &arguments);
            let total = 16 * transactions.parse::<u32>().expect("a number");
            let processed = format!("number of transactions actually processed: {total}/{total}");
            assert!(report.contains(&processed), "{mode} {more:?}:\n{report}");
            assert!(!report.contains("aborted"), "{mode} {more:?}:\n{report}");
            expected += total;
        }
    }
    pgsteady.lives();
    // Each of the writing ones has left one row, and the balances agree with them.
    let written: u32 = node.sql("SELECT count(*) FROM pgbench_history").await.parse().expect("a number");
    assert!((expected / 4..expected).contains(&written), "{written} of {expected} wrote");
    let sums = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)";
    assert_eq!(node.sql(sums).await, "t");
}

#[test]
fn on_the_installed_version() {
    harness::run(180, without_errors(Programs::installed()));
}

#[test]
fn on_a_newer_version() {
    harness::run(180, without_errors(Programs::newer()));
}
