//! Processes as the kernel shows them: trees, signals, memory and CPU time. Only of what a test started.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::TcpStream;

/// A command that runs `program` and is killed when the thread that starts it ends: a test that is killed itself, by Ctrl-C
/// or by its limit, leaves nothing behind. To be started from the test's own thread, not from one of a pool.
#[must_use]
pub fn bound_to_us(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Sends a signal; a process that is gone already is no error.
pub fn signal(pid: i32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid), signal);
}

/// A process and all that descend from it, parents first.
#[must_use]
pub fn tree(root: i32) -> Vec<i32> {
    let parents: Vec<(i32, i32)> = fs::read_dir("/proc")
        .expect("/proc is there")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, field(pid, 4)?)))
        .collect();
    let mut tree = vec![root];
    let mut at = 0;
    while at < tree.len() {
        let parent = tree[at];
        tree.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    tree
}

/// A numeric field of `/proc/PID/stat`, counted from 1 as in proc(5).
fn field<T: std::str::FromStr>(pid: i32, number: usize) -> Option<T> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses, and may contain anything.
    let after_name = &stat[stat.rfind(')')? + 2..];
    after_name.split(' ').nth(number - 3)?.parse().ok()
}

/// Memory of its own that the process holds (`RssAnon`), in bytes.
#[must_use]
pub fn memory(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Files and sockets that the process has open.
#[must_use]
pub fn open_files(pid: i32) -> Option<usize> {
    Some(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count())
}

/// CPU time that the threads of the process have used, user and system together, to the nanosecond: what `utime` and `stime`
/// are made of (proc(5)), which count in hundredths of a second. Threads that have ended are not in it. `None` also where the
/// kernel does not tell (`CONFIG_SCHED_INFO`).
#[must_use]
pub fn cpu(pid: i32) -> Option<Duration> {
    let of_thread = |task: fs::DirEntry| {
        let times = fs::read_to_string(task.path().join("schedstat")).ok()?;
        times.split(' ').next()?.parse::<u64>().ok()
    };
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    tasks.flatten().filter_map(of_thread).reduce(|all, one| all + one).map(Duration::from_nanos)
}

/// Waits until a program that was started listens at an address.
///
/// # Panics
/// When it ends instead, or does not listen within `limit`; its log is shown.
pub async fn listens(process: &mut Child, address: SocketAddr, limit: Duration, log: impl Fn() -> String) {
    let deadline = tokio::time::Instant::now() + limit;
    while TcpStream::connect(address).await.is_err() {
        let ended = process.try_wait().expect("a child can be waited for");
        assert!(ended.is_none(), "it ended ({}):\n{}", ended.unwrap_or_default(), log());
        assert!(tokio::time::Instant::now() < deadline, "it does not listen:\n{}", log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
