//! A postmaster that we started and the processes below it: waited for, signalled, killed, frozen.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use super::NodeError;

/// A running postmaster. Dropping it kills it and everything below it.
#[derive(Debug)]
pub(super) struct Postmaster {
    child: Child,
    data: PathBuf,
}

/// How long processes are waited for that were sent SIGKILL.
const GONE: Duration = Duration::from_secs(10);

impl Postmaster {
    pub(super) fn spawn(command: std::process::Command, data: &Path) -> Result<Self, NodeError> {
        let program = PathBuf::from(command.get_program());
        let child = Command::from(command).spawn().map_err(|error| NodeError::io("run", &program, error))?;
        Ok(Self { child, data: data.to_owned() })
    }

    /// Its process id, until its end has been seen: only so long is the number sure to be its own.
    pub(super) fn pid(&self) -> Option<Pid> {
        self.child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw)
    }

    /// Waits for its end. May be dropped and called again.
    pub(super) async fn exited(&mut self) -> Result<ExitStatus, NodeError> {
        self.child.wait().await.map_err(|error| NodeError::io("wait for the postmaster of", &self.data, error))
    }

    pub(super) fn has_exited(&mut self) -> Result<Option<ExitStatus>, NodeError> {
        self.child.try_wait().map_err(|error| NodeError::io("wait for the postmaster of", &self.data, error))
    }

    /// Sends a signal to the postmaster alone. That it has ended already is not an error.
    pub(super) fn signal(&self, signal: Signal) -> Result<(), NodeError> {
        let Some(pid) = self.pid() else { return Ok(()) };
        send(pid, signal, &self.data)
    }

    /// Sends a signal to all. The postmaster is stopped first, so that it forks nobody who would miss it.
    pub(super) fn signal_tree(&self, signal: Signal) -> Result<(), NodeError> {
        let Some(postmaster) = self.pid() else {
            return kill_all(&workers(&self.data, None), signal, &self.data);
        };
        if signal != Signal::SIGCONT {
            send(postmaster, Signal::SIGSTOP, &self.data)?;
        }
        let below = workers(&self.data, Some(postmaster));
        send(postmaster, signal, &self.data)?;
        kill_all(&below, signal, &self.data)
    }
}

impl Drop for Postmaster {
    fn drop(&mut self) {
        if self.pid().is_some()
            && let Err(error) = self.signal_tree(Signal::SIGKILL)
        {
            tracing::warn!(%error, "a postmaster could not be killed");
        }
    }
}

/// Ends what a postmaster that is gone has left behind, and waits until it is gone: a backend in the middle of a
/// statement outlives it, and must not write into a data directory that is started, rewound or removed.
pub(super) async fn end_orphans(data: &Path) -> Result<(), NodeError> {
    let started = Instant::now();
    loop {
        let left = workers(data, None);
        if left.is_empty() {
            return Ok(());
        }
        if started.elapsed() > GONE {
            let what = format!("end {} processes of {}", left.len(), data.display());
            return Err(NodeError::TimedOut { what, bound: GONE });
        }
        kill_all(&left, Signal::SIGKILL, data)?;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn kill_all(pids: &[Pid], signal: Signal, data: &Path) -> Result<(), NodeError> {
    pids.iter().try_for_each(|pid| send(*pid, signal, data))
}

fn send(pid: Pid, signal: Signal, data: &Path) -> Result<(), NodeError> {
    match kill(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(NodeError::io("signal the processes of", data, error.into())),
    }
}

/// Processes that work in this data directory, or have this parent; the parent itself is not one of them. Each
/// process of PostgreSQL changes into its data directory, so that they are found after the postmaster's death too.
fn workers(data: &Path, parent: Option<Pid>) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw));
    pids.filter(|pid| Some(*pid) != parent && (works_in(*pid, data) || parent.is_some_and(|p| child_of(*pid, p))))
        .collect()
}

fn works_in(pid: Pid, data: &Path) -> bool {
    std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|folder| folder == data)
}

fn child_of(pid: Pid, parent: Pid) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // `PID (NAME) STATE PPID …`; the name may hold spaces and brackets
    let Some((_, after_name)) = stat.rsplit_once(')') else { return false };
    after_name.split_whitespace().nth(1).and_then(|ppid| ppid.parse().ok()) == Some(parent.as_raw())
}
