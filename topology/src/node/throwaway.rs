//! A temporary folder that leaves nothing behind: no process, no file, no shared memory, whatever becomes of us.
//!
//! `PR_SET_PDEATHSIG` would need `unsafe` between fork and exec, tells one process only, and is tied to a thread. Instead
//! a watchman, a small shell, waits for the end of a pipe whose other end only we hold. The kernel closes it when we
//! drop it, return, panic, are interrupted or are killed with -9; the watchman then ends every process that works inside
//! the folder (all that we start there do, PostgreSQL's own children too), and removes the folder. There is no second way
//! of cleaning up that only runs on good days.

use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::{Account, NodeError};

/// A temporary folder with its watchman; removed with everything that runs in it when this value goes.
#[derive(Debug)]
pub struct Throwaway {
    path: PathBuf,
    watchman: Child,
    kept: bool,
}

/// `$1` is the folder. Line 7 of `postmaster.pid` names the System V segment that a PostgreSQL killed with -9 leaves.
const WATCHMAN: &str = r#"
trap '' HUP INT QUIT TERM
folder=$1
read -r word
[ "$word" = keep ] && read -r _
round=0
while [ $round -lt 200 ]; do
    pids=$(find /proc -maxdepth 2 -path '/proc/[0-9]*/cwd' \( -lname "$folder" -o -lname "$folder/*" -o -lname "$folder (deleted)" \) 2>/dev/null | cut -d/ -f3)
    [ -n "$pids" ] || break
    kill -9 $pids 2>/dev/null
    round=$((round + 1))
    sleep 0.02
done
for file in "$folder"/*/*/postmaster.pid "$folder"/*/postmaster.pid; do
    [ -f "$file" ] || continue
    set -- $(sed -n 7p "$file")
    [ -n "$2" ] && ipcrm -m "$2" 2>/dev/null
done
[ "$word" = keep ] || rm -rf "$folder"
exit 0
"#;
/// The longest folder name with which a Unix socket in it still fits into `sockaddr_un` (108 bytes).
const PATH_BYTES: usize = 70;
/// How long the end of the watchman is waited for.
const CLEAN_UP: Duration = Duration::from_secs(10);

impl Throwaway {
    /// Makes a folder `PREFIX-…` in the folder for temporary files (`TMPDIR`), owned by `account`.
    ///
    /// # Errors
    /// If that cannot be written to, or its name is too long or has characters that a shell's pattern would take amiss.
    pub fn new(prefix: &str, account: &Account) -> Result<Self, NodeError> {
        let parent = std::env::temp_dir();
        let parent = parent.canonicalize().map_err(|error| NodeError::io("find", &parent, error))?;
        let path = Self::create(&parent, prefix)?;
        let started = account.own(&path).and_then(|()| Self::watch(&path, account));
        match started {
            Ok(watchman) => Ok(Self { path, watchman, kept: false }),
            Err(error) => {
                let _ = std::fs::remove_dir(&path);
                Err(error)
            }
        }
    }

    fn create(parent: &Path, prefix: &str) -> Result<PathBuf, NodeError> {
        let nanos = std::time::UNIX_EPOCH.elapsed().map_or(0, |t| t.subsec_nanos());
        for attempt in 0..100_u32 {
            let path = parent.join(format!("{prefix}-{}-{:x}", std::process::id(), nanos.wrapping_add(attempt)));
            let text = path.to_string_lossy();
            let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte));
            if text.len() > PATH_BYTES || !plain {
                let why = format!(
                    "a temporary folder must have at most {PATH_BYTES} letters of A-Z a-z 0-9 / . _ -; set TMPDIR"
                );
                return Err(NodeError::io("make", &path, std::io::Error::other(why)));
            }
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(path),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(NodeError::io("make", &path, error)),
            }
        }
        Err(NodeError::io("make a folder in", parent, std::io::ErrorKind::AlreadyExists.into()))
    }

    fn watch(path: &Path, account: &Account) -> Result<Child, NodeError> {
        let shell = Path::new("/bin/sh");
        // in `/`, or it would count itself among those that work inside the folder
        let mut command = account.command(shell, Path::new("/"));
        command.args(["-c", WATCHMAN, "pgsteady-watchman"]).arg(path);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().map_err(|error| NodeError::io("run", shell, error))
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a folder in it that the account owns. What others put there goes with it only if it is no folder itself: the
    /// watchman has the account's rights.
    ///
    /// # Errors
    /// If it exists.
    pub fn folder(&self, name: &str, account: &Account) -> Result<PathBuf, NodeError> {
        let path = self.path.join(name);
        let make = std::fs::DirBuilder::new().mode(0o700).create(&path);
        make.map_err(|error| NodeError::io("make", &path, error))?;
        account.own(&path).map(|()| path)
    }

    /// Leaves the files where they are; processes are still ended when this value goes.
    pub fn keep(&mut self) {
        self.kept = true;
        if let Some(pipe) = &mut self.watchman.stdin {
            // if the watchman is gone there is nobody to remove the files either
            let _ = pipe.write_all(b"keep\n");
        }
    }
}

impl Drop for Throwaway {
    fn drop(&mut self) {
        drop(self.watchman.stdin.take());
        let started = Instant::now();
        while started.elapsed() < CLEAN_UP {
            match self.watchman.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(2)),
                Ok(Some(_)) => break,
                Err(error) => {
                    tracing::warn!(folder = %self.path.display(), %error, "the watchman cannot be waited for");
                    return;
                }
            }
        }
        // in a folder for temporary files that is not everybody's, the watchman may empty ours but not remove it
        if !self.kept
            && let Err(error) = std::fs::remove_dir_all(&self.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(folder = %self.path.display(), %error, "not cleaned up");
        }
    }
}
