//! Debian's PgBouncer, started for a measurement.

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use harness::folder::{Folder, account, give};
use harness::port::Port;

const PROGRAM: &str = "/usr/sbin/pgbouncer";
/// How long it may take to listen.
const START_LIMIT: Duration = Duration::from_secs(10);

/// A running PgBouncer; killed when dropped.
pub(crate) struct PgBouncer {
    process: Child,
    port: Port,
    _folder: Folder,
}

impl PgBouncer {
    /// Its version.
    pub(crate) fn version() -> (u32, u32) {
        let output =
            Command::new(PROGRAM).arg("--version").output().expect("PgBouncer is installed (tools/install.sh)");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.split_whitespace().nth(1).expect("it says its version");
        let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    }

    /// Starts it in front of the database `app` on this port, and waits until it listens.
    pub(crate) async fn start(server: u16, pool_mode: &str, pool_size: i64) -> Self {
        let (folder, port) = (Folder::new("bouncer"), Port::new());
        let users = folder.write("users.txt", "\"app\" \"app-secret\"\n");
        let ini = format!(
            "[databases]\napp = host=127.0.0.1 port={server}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {}\nunix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = {pool_mode}\n\
             default_pool_size = {pool_size}\nmax_client_conn = 2000\nlog_connections = 0\nlog_disconnections = 0\n",
            port.number(),
            users.display()
        );
        let file = folder.write("pgbouncer.ini", &ini);
        give(&file);
        give(&users);
        let mut command = Command::new(PROGRAM);
        if let Some(account) = account() {
            command.args(["-u", &account.name]);
        }
        command.arg("-q").arg(file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().expect("PgBouncer can be run");
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port.number())).is_err() {
            assert!(began.elapsed() < START_LIMIT, "PgBouncer does not listen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Self { process, port, _folder: folder }
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port.number()
    }

    /// Its process number.
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.process.id()).expect("process numbers are small")
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
