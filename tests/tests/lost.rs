//! A client whose server goes away in the middle of a transaction: it stays, and no commit is taken for done.

use std::time::Duration;

use harness::endpoint::{sqlstate, value};
use harness::pgsteady::{Config, Pgsteady};
use harness::postgres::{Node, Programs};
use tokio_postgres::Client;

const LOST: &str = "40001";

struct Scene {
    node: Node,
    pgsteady: Pgsteady,
}

impl Scene {
    async fn new() -> Self {
        let node = Node::primary(&Programs::installed()).await;
        let pgsteady = Pgsteady::start(&Config::single(&node)).await;
        Self { node, pgsteady }
    }

    /// A client in a transaction that has written, and whose server is gone.
    async fn bereft(&self) -> Client {
        let client = self.pgsteady.endpoint().client().await;
        client.batch_execute("BEGIN; CREATE TABLE written (n int)").await.expect("a transaction");
        self.kill_servers().await;
        client
    }

    async fn kill_servers(&self) {
        self.node.sql("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'app'").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn state_of(client: &Client, sql: &str) -> String {
    match client.batch_execute(sql).await {
        Ok(()) => "done".to_owned(),
        Err(error) => sqlstate(&error).to_owned(),
    }
}

#[test]
fn a_commit_of_a_lost_transaction_is_an_error_and_the_client_goes_on() {
    harness::run(60, async {
        let scene = Scene::new().await;
        let client = scene.bereft().await;
        assert_eq!(state_of(&client, "COMMIT").await, LOST);
        assert_eq!(value(&client, "SELECT to_regclass('written') IS NULL").await, "t");
    });
}

#[test]
fn a_commit_is_an_error_though_the_client_was_told_before() {
    harness::run(60, async {
        let scene = Scene::new().await;
        let client = scene.bereft().await;
        assert_eq!(state_of(&client, "SELECT 1").await, LOST);
        assert_eq!(state_of(&client, "COMMIT").await, LOST);
        assert_eq!(value(&client, "SELECT 2").await, "2");
    });
}

#[test]
fn a_lost_transaction_is_a_failed_one_until_it_is_rolled_back() {
    harness::run(60, async {
        let scene = Scene::new().await;
        let client = scene.bereft().await;
        assert_eq!(state_of(&client, "SELECT 1").await, LOST);
        assert_eq!(state_of(&client, "SELECT 1").await, "25P02");
        assert_eq!(state_of(&client, "ROLLBACK").await, "done");
        assert_eq!(state_of(&client, "SELECT 1").await, "done");
        let client = scene.bereft().await;
        assert_eq!(state_of(&client, "ROLLBACK").await, "done");
        assert_eq!(state_of(&client, "SELECT 1").await, "done");
    });
}

/// Drivers close a statement and do not look at the answer: an error told there is told to nobody.
#[test]
fn an_error_that_nobody_looks_at_does_not_make_a_commit_succeed() {
    harness::run(60, async {
        let scene = Scene::new().await;
        for _ in 0..20 {
            let client = scene.pgsteady.endpoint().client().await;
            client.batch_execute("BEGIN; CREATE TEMP TABLE t (n int)").await.expect("a transaction");
            let statement = client.prepare("SELECT 1").await.expect("a statement");
            scene.kill_servers().await;
            drop(statement); // sends Close and Sync
            assert_eq!(state_of(&client, "COMMIT").await, LOST);
            assert_eq!(value(&client, "SELECT 2").await, "2");
        }
    });
}
