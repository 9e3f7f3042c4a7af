//! The exporter of PgBouncer's metrics for Prometheus, as it comes from PyPI, against the console.

use std::process::Stdio;
use std::time::Duration;

use harness::folder::Folder;
use harness::pgbouncer::PgBouncer;
use harness::port::Port;
use harness::postgres::repository;
use harness::{process, wait_for};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const USERS: &str = "\"admin\" \"admin-secret\"\n\"metrics\" \"metrics-secret\"\n\"app\" \"app-secret\"\n";
const SOON: Duration = Duration::from_secs(20);

async fn metrics(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

#[test]
fn an_exporter_finds_its_metrics() {
    harness::run(60, async {
        let settings = "pool_mode = transaction\nstats_users = metrics\nauth_type = md5\nmax_client_conn = 77\n";
        let (_node, bouncer) = PgBouncer::with_node("app = $ pool_size=7", settings, USERS).await;
        let client = bouncer.endpoint("app", "app-secret", "app").client().await;
        client.batch_execute("BEGIN; SELECT 1").await.expect("a transaction");
        let (folder, port) = (Folder::new("exporter"), Port::new());
        let config = format!(
            "exporter_host: 127.0.0.1\nexporter_port: {}\npgbouncers:\n  - dsn: \
             postgresql://metrics:metrics-secret@127.0.0.1:{}/pgbouncer\n    connect_timeout: 5\n",
            port.number(),
            bouncer.port()
        );
        let config = folder.write("exporter.yml", &config);
        let mut command = process::bound_to_us(&repository().join(".cache/venv/bin/pgbouncer-exporter"));
        command.arg("--config").arg(config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut exporter = command.spawn().expect("the exporter can be run");
        let up = || async { metrics(port.number()).await.filter(|answer| answer.contains("pgbouncer_up 1.0")) };
        let told = wait_for("the exporter to see the console", SOON, up).await;
        for line in [
            "pgbouncer_stats_queries_total{database=\"app\"} 1.0",
            "pgbouncer_pools_client_active_connections{database=\"app\",user=\"app\"} 1.0",
            "pgbouncer_pools_server_active_connections{database=\"app\",user=\"app\"} 1.0",
            "pgbouncer_databases_database_pool_size{backend_database=\"app\",database=\"app\"} 7.0",
            "pgbouncer_databases_database_current_connections{backend_database=\"app\",database=\"app\"} 1.0",
            "pgbouncer_config_max_client_conn 77.0",
        ] {
            assert!(told.contains(line), "{line} is not in: {told}");
        }
        let _ = exporter.kill();
        let _ = exporter.wait();
    });
}
