//! Several pgsteady over one cluster and one etcd: one of them acts, all of them give the same answer, and no loss of an
//! instance or of etcd loses a commit or makes a second primary.

use std::path::Path;
use std::time::Duration;

use harness::endpoint::value;
use harness::etcd::{Etcd, PASSWORD};
use harness::folder::Folder;
use harness::pgsteady::{Config, Pgsteady};
use harness::postgres::{Cluster, Programs};
use harness::process;
use harness::writers::{self, Record, Writers};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Time for one test, of which the cluster's start is about a second.
const TEST_S: u64 = 120;
/// Patience with a failover, which may wait for a lease to end.
const SOON: Duration = Duration::from_secs(30);
/// Writers at each instance.
const WRITERS: i32 = 4;

struct Scene {
    cluster: Cluster,
    etcd: Etcd,
    instances: Vec<Pgsteady>,
    _stores: Vec<Folder>,
    writers: Vec<Writers>,
}

impl Scene {
    async fn new(instances: i32) -> Self {
        Self::with(Etcd::start().await, instances, "3s").await
    }

    async fn with(etcd: Etcd, count: i32, lease: &str) -> Self {
        let mut cluster = Cluster::prepare(&Programs::installed(), 3);
        prepare(&mut cluster).await;
        let (mut instances, mut stores, mut writers) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..count {
            let store = Folder::new("store");
            let mut config = plain(&cluster, store.path())
                .set("cluster.main.etcd.lease", lease)
                .set("cluster.main.etcd.endpoints", vec![toml(&etcd.endpoint())]);
            if let Some(ca) = etcd.ca() {
                config = config
                    .set("cluster.main.etcd.ca", ca.display().to_string())
                    .set("cluster.main.etcd.user", "steady")
                    .set("cluster.main.etcd.password", PASSWORD);
            }
            let pgsteady = Pgsteady::start(&config).await;
            writers.push(Writers::numbered(&pgsteady.endpoint(), number * WRITERS..(number + 1) * WRITERS));
            instances.push(pgsteady);
            stores.push(store);
        }
        let scene = Self { cluster, etcd, instances, _stores: stores, writers };
        scene.acknowledged(100).await;
        for instance in 0..scene.instances.len() {
            scene.whole(instance).await;
        }
        scene
    }

    /// All writers, of every instance, go on.
    async fn acknowledged(&self, more: usize) {
        for writers in &self.writers {
            writers.acknowledged(more, SOON).await;
        }
    }

    async fn status(&self, instance: usize) -> Value {
        self.instances[instance].status().await
    }

    /// Waits until this instance shows a primary with two standbys in its rule, and nothing amiss.
    async fn whole(&self, instance: usize) {
        let counted = || async {
            let status = self.status(instance).await;
            let standbys = status["rule"]["standbys"].as_array().map_or(0, Vec::len);
            (standbys == 2 && status["primary"].is_string() && status["store_lost"].is_null()).then_some(())
        };
        harness::wait_for("both standbys in the rule", SOON, counted).await;
    }

    /// Who acts: exactly one, after a while.
    async fn coordinator(&self, among: &[usize]) -> usize {
        let one = || async {
            let mut acting = Vec::new();
            for instance in among {
                if self.status(*instance).await["coordinator"] == true {
                    acting.push(*instance);
                }
            }
            (acting.len() == 1).then(|| acting[0])
        };
        harness::wait_for("one coordinator", SOON, one).await
    }

    /// Stops the writers and compares what they saw, together, with the primary, which is not the node `lost`.
    async fn check(mut self, lost: &[usize]) -> Record {
        let mut record = Record::default();
        for writers in self.writers.drain(..) {
            record.add(writers.stop().await);
        }
        let primary = self.cluster.primary(lost).await.expect("there is a primary");
        record.check(&self.cluster.nodes[primary].client().await).await;
        assert_eq!(record.dropped, Vec::<String>::new(), "errors: {:?}", record.errors);
        for instance in 0..self.instances.len() {
            let port = self.instances[instance].endpoint().connect().await.expect("it serves");
            let answer = value(&port, "SELECT current_setting('port')").await;
            assert_eq!(answer, self.cluster.nodes[primary].port().to_string(), "instance {instance}");
        }
        record
    }
}

/// Three nodes with the writers' table.
async fn prepare(cluster: &mut Cluster) {
    let port = cluster.nodes[0].port();
    cluster.launch(port).await;
    cluster.nodes[0].sql(writers::TABLE).await;
    cluster.nodes[0].sql("GRANT ALL ON written TO app").await;
}

/// With a store of its own.
fn plain(cluster: &Cluster, store: &Path) -> Config {
    let ports = cluster.ports();
    Config::cluster(cluster, &ports, store).set("limits.hold_timeout", "60s")
}

fn toml(text: &str) -> toml::Value {
    toml::Value::String(text.to_owned())
}

#[test]
fn both_follow_one_failover() {
    harness::run(TEST_S, async {
        let mut scene = Scene::new(2).await;
        scene.coordinator(&[0, 1]).await;
        scene.cluster.nodes[0].kill_tree();
        scene.acknowledged(100).await;
        let (first, second) = (scene.status(0).await, scene.status(1).await);
        assert_eq!((&first["primary"], &first["term"]), (&second["primary"], &second["term"]));
        let stored: Value = serde_json::from_str(&scene.etcd.get("/pgsteady/main/record")).expect("JSON");
        assert_eq!(stored["rule"]["leader"], first["primary"]);
        let record = scene.check(&[0]).await;
        assert!(record.longest_gap() < Duration::from_secs(10), "held for {:?}", record.longest_gap());
    });
}

#[test]
fn a_coordinator_that_slept_through_a_failover_does_no_harm() {
    harness::run(TEST_S, async {
        let mut scene = Scene::new(2).await;
        let asleep = scene.coordinator(&[0, 1]).await;
        let awake = 1 - asleep;
        process::signal(scene.instances[asleep].pid(), Signal::SIGSTOP);
        scene.cluster.nodes[0].kill_tree();
        scene.writers[awake].acknowledged(100, SOON).await;
        let after = scene.status(awake).await;
        process::signal(scene.instances[asleep].pid(), Signal::SIGCONT);
        scene.acknowledged(200).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        for instance in [asleep, awake] {
            let now = scene.status(instance).await;
            assert_eq!((&now["primary"], &now["term"]), (&after["primary"], &after["term"]), "instance {instance}");
        }
        scene.check(&[0]).await;
    });
}

#[test]
fn a_coordinator_that_ends_in_order_is_followed_at_once() {
    harness::run(TEST_S, async {
        let mut scene = Scene::with(Etcd::start().await, 2, "60s").await;
        let first = scene.coordinator(&[0, 1]).await;
        scene.writers.remove(first).stop().await;
        scene.instances[first].terminate();
        assert!(scene.instances[first].ended(SOON).await.success());
        let ended = std::time::Instant::now();
        scene.coordinator(&[1 - first]).await;
        assert!(ended.elapsed() < Duration::from_secs(20), "it waited for the lease: {:?}", ended.elapsed());
        scene.instances.remove(first);
        scene.cluster.nodes[0].kill_tree();
        scene.writers[0].acknowledged(100, SOON).await;
    });
}

#[test]
fn without_etcd_traffic_goes_on_and_nobody_is_promoted() {
    harness::run(TEST_S, async {
        let mut scene = Scene::new(2).await;
        let before = scene.status(0).await;
        scene.etcd.kill();
        scene.acknowledged(500).await;
        for instance in 0..2 {
            let lost = || async {
                let status = scene.status(instance).await;
                (status["store_lost"].is_string() && status["coordinator"] == false).then_some(status)
            };
            let status = harness::wait_for("the loss is told", SOON, lost).await;
            assert_eq!(status["primary"], before["primary"], "{status}");
        }
        scene.acknowledged(500).await;
        scene.etcd.restart().await;
        for instance in 0..2 {
            scene.whole(instance).await;
        }
        scene.coordinator(&[0, 1]).await;
        scene.acknowledged(500).await;
        let after = scene.status(0).await;
        assert_eq!(
            (&after["primary"], &after["term"], &after["epoch"]),
            (&before["primary"], &before["term"], &before["epoch"])
        );

        // and now the primary as well: whoever knows no store holds its clients, until there is one
        scene.etcd.kill();
        scene.cluster.nodes[0].kill_tree();
        tokio::time::sleep(Duration::from_secs(6)).await;
        for node in 1..3 {
            assert!(!scene.cluster.nodes[node].is_primary().await, "promoted without a store");
        }
        scene.etcd.restart().await;
        scene.acknowledged(100).await;
        scene.check(&[0]).await;
    });
}

#[test]
fn a_silent_etcd_is_a_lost_one() {
    harness::run(TEST_S, async {
        let scene = Scene::new(2).await;
        let before = scene.status(0).await;
        scene.etcd.signal(Signal::SIGSTOP);
        for instance in 0..2 {
            let lost = || async { (scene.status(instance).await["coordinator"] == false).then_some(()) };
            harness::wait_for("the lease has ended", SOON, lost).await;
        }
        scene.acknowledged(500).await;
        scene.etcd.signal(Signal::SIGCONT);
        scene.coordinator(&[0, 1]).await;
        for instance in 0..2 {
            scene.whole(instance).await;
        }
        let after = scene.status(0).await;
        assert_eq!((&after["term"], &after["epoch"]), (&before["term"], &before["epoch"]));
        scene.check(&[]).await;
    });
}

#[test]
fn etcd_with_tls_and_password() {
    harness::run(TEST_S, async {
        let mut scene = Scene::with(Etcd::guarded().await, 1, "3s").await;
        scene.cluster.nodes[0].kill_tree();
        scene.acknowledged(100).await;
        // its tokens are gone with it: a new login is needed
        scene.etcd.kill();
        scene.etcd.restart().await;
        let answered = || async { scene.status(0).await["store_lost"].is_null().then_some(()) };
        harness::wait_for("etcd is used again", SOON, answered).await;
        let log = scene.instances[0].log();
        assert!(!log.contains(PASSWORD), "a password in the log");
        scene.check(&[0]).await;
    });
}

/// Each has a store of its own: a mistake, which the one that came second notices.
#[test]
fn a_second_instance_that_shares_no_store_does_not_act() {
    harness::run(TEST_S, async {
        let mut cluster = Cluster::prepare(&Programs::installed(), 3);
        prepare(&mut cluster).await;
        let stores = [Folder::new("store"), Folder::new("store")];
        let first = Pgsteady::start(&plain(&cluster, stores[0].path())).await;
        let writers = Writers::start(&first.endpoint(), WRITERS);
        writers.acknowledged(200, SOON).await;
        let second = Pgsteady::start(&plain(&cluster, stores[1].path())).await;
        let noticed = || async { (second.status().await["rivals"] == "n1, n2, n3").then_some(()) };
        harness::wait_for("the second notices the first", SOON, noticed).await;
        cluster.nodes[0].kill_tree();
        writers.acknowledged(200, SOON).await;
        let (one, two) = (first.status().await, second.status().await);
        assert_eq!((&one["coordinator"], &one["rivals"]), (&Value::Bool(true), &Value::Null), "{one}");
        assert_eq!((&two["coordinator"], &two["primary"]), (&Value::Bool(false), &Value::Null), "{two}");
        assert!(!stores[1].path().join("store").join("main.json").exists(), "it has written a record");

        // when the first one has gone, there is one again
        let term = one["term"].as_u64().expect("a number");
        drop(first);
        let serves = || async { (second.status().await["coordinator"] == true).then_some(()) };
        harness::wait_for("the second is alone", SOON, serves).await;
        let adopted = || async { second.status().await["term"].as_u64().filter(|now| *now > term) };
        harness::wait_for("it has adopted the primary", SOON, adopted).await;
        let record = writers.stop().await;
        let primary = cluster.primary(&[0]).await.expect("there is a primary");
        record.check(&cluster.nodes[primary].client().await).await;
    });
}
