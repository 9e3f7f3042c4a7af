//! What the end-to-end tests stand on: real PostgreSQL, a real pgsteady, links that can be cut. One file a subject;
//! nothing here knows how pgsteady works inside.

use std::future::Future;
use std::sync::mpsc;
use std::time::Duration;

pub mod certificates;
pub mod disk;
pub mod endpoint;
pub mod etcd;
pub mod folder;
pub mod host;
pub mod patroni;
pub mod pgbouncer;
pub mod pgsteady;
pub mod port;
pub mod postgres;
pub mod process;
mod programs;
pub mod relay;
pub mod source;
pub mod wire;
pub mod writers;

/// How long after its limit a test that does not even notice it (it waits for a program) is ended with its process.
const GRACE: Duration = Duration::from_secs(10);

/// Runs a test with a limit on its time. Everything it started is taken down when it returns, panics or is too late.
///
/// # Panics
/// When the test does, or when `limit_s` seconds have passed.
pub fn run<F: Future<Output = ()>>(limit_s: u64, test: F) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime can be made");
    let limit = Duration::from_secs(limit_s);
    let _watchdog = Watchdog::new(limit + GRACE);
    let ended = runtime.block_on(async { tokio::time::timeout(limit, test).await });
    runtime.shutdown_timeout(Duration::from_secs(1));
    assert!(ended.is_ok(), "the test did not end within {limit_s} s");
}

/// Ends the process at the limit unless it is dropped before.
struct Watchdog {
    _alive: mpsc::Sender<()>,
}

impl Watchdog {
    fn new(limit: Duration) -> Self {
        let (alive, dropped) = mpsc::channel::<()>();
        let name = std::thread::current().name().unwrap_or("a test").to_owned();
        std::thread::spawn(move || {
            if dropped.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("{name} hangs: it was given {limit:?}");
                std::process::exit(102);
            }
        });
        Self { _alive: alive }
    }
}

/// Asks every 20 ms until there is an answer.
///
/// # Panics
/// When there is none after `limit`.
pub async fn wait_for<T, F: Future<Output = Option<T>>>(what: &str, limit: Duration, mut ask: impl FnMut() -> F) -> T {
    let waiting = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    match tokio::time::timeout(limit, waiting).await {
        Ok(answer) => answer,
        Err(_) => panic!("waited {limit:?} for {what}"),
    }
}
