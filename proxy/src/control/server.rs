//! The listening side of the control socket. Only the account that pgsteady runs as, and root, are let in.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::geteuid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use topology::{Verdict, Watch, Wish};

use super::status::Status;
use super::{MAX_REQUEST_BYTES, MAX_WAIT, PASSING, Request, socket};
use crate::config::Cluster;

/// Commands at a time.
const MAX_COMMANDS: usize = 16;
/// How long a command waits for what passes by itself: a primary opened a moment ago, a change of its rule.
const SETTLING: Duration = Duration::from_secs(10);
/// Pause after a failed accept, and before something is asked again.
const AGAIN: Duration = Duration::from_millis(100);

/// The control socket of a cluster. Dropped, it is closed and its file removed.
pub(crate) struct Control {
    path: PathBuf,
    _task: JoinSet<()>,
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Control {
    /// Listens on the current runtime.
    ///
    /// # Errors
    /// The file and what is wrong with it.
    pub(crate) fn start(cluster: &Cluster, watch: &Watch) -> Result<Self, String> {
        let path = socket(&cluster.store, &cluster.name);
        let listener = bind(cluster, &path).map_err(|error| format!("control socket {}: {error}", path.display()))?;
        let mut task = JoinSet::new();
        task.spawn(serve(listener, cluster.name.clone(), watch.clone()));
        Ok(Self { path, _task: task })
    }
}

fn bind(cluster: &Cluster, path: &PathBuf) -> io::Result<UnixListener> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&cluster.store)?;
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another pgsteady listens there; give each instance a `store` folder of its own",
        ));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn serve(listener: UnixListener, cluster: Arc<str>, watch: Watch) {
    let places = Arc::new(Semaphore::new(MAX_COMMANDS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%cluster, %error, "a command could not be accepted");
                sleep(AGAIN).await;
                continue;
            }
        };
        let (cluster, watch) = (cluster.clone(), watch.clone());
        tokio::spawn(async move {
            if let Err(why) = answer(stream, &cluster, &watch).await {
                tracing::warn!(%cluster, why, "a command is not answered");
            }
            drop(place);
        });
    }
}

async fn answer(mut stream: UnixStream, cluster: &Arc<str>, watch: &Watch) -> Result<(), String> {
    let peer = stream.peer_cred().map_err(|error| error.to_string())?.uid();
    if peer != 0 && peer != geteuid().as_raw() {
        return Err(format!("it came from user {peer}, and only pgsteady's own user and root may command"));
    }
    let mut line = String::new();
    let mut reader = BufReader::new((&mut stream).take(MAX_REQUEST_BYTES));
    let read = timeout(PASSING, reader.read_line(&mut line)).await;
    read.map_err(|_| "no request came in time".to_owned())?.map_err(|error| error.to_string())?;
    let text = match serde_json::from_str(&line) {
        Ok(request) => carry_out(request, cluster, watch).await,
        Err(error) => json(&Verdict::refused(format!("the request is not understood: {error}"))),
    };
    let written = timeout(PASSING, stream.write_all(format!("{text}\n").as_bytes())).await;
    written.map_err(|_| "the answer was not taken in time".to_owned())?.map_err(|error| error.to_string())
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("plain data is JSON")
}

async fn carry_out(request: Request, cluster: &Arc<str>, watch: &Watch) -> String {
    match request {
        Request::Status {} => json(&Status::of(cluster, watch)),
        Request::Switchover { to, max_wait_ms, end_transactions } => {
            let max_wait = Duration::from_millis(max_wait_ms).min(MAX_WAIT);
            let verdict = switch_over(watch, to.as_deref(), max_wait, end_transactions).await;
            json(&verdict)
        }
        Request::Failover {} => json(&ask_settled(watch, Wish::Failover).await),
    }
}

/// Asks for another primary, the node of this name or whichever a failover would choose.
pub(crate) async fn switch_over(
    watch: &Watch,
    to: Option<&str>,
    max_wait: Duration,
    end_transactions: bool,
) -> Verdict {
    match place(watch, to) {
        Ok(to) => ask_settled(watch, Wish::Switchover { to, max_wait, end_transactions }).await,
        Err(why) => Verdict::refused(why),
    }
}

/// Asks again while what is in the way passes by itself, within bounds.
async fn ask_settled(watch: &Watch, wish: Wish) -> Verdict {
    let limit = Instant::now() + SETTLING;
    loop {
        match watch.ask(wish).await {
            Verdict::Refused { passes: true, .. } if Instant::now() < limit => sleep(AGAIN).await,
            verdict => return verdict,
        }
    }
}

fn place(watch: &Watch, name: Option<&str>) -> Result<Option<usize>, String> {
    let Some(name) = name else { return Ok(None) };
    let nodes = &watch.now().nodes;
    let place = nodes.iter().position(|node| &*node.name == name);
    let all = || nodes.iter().map(|node| &*node.name).collect::<Vec<_>>().join(", ");
    place.map(Some).ok_or_else(|| format!("there is no node {name:?}; the nodes are {}", all()))
}
