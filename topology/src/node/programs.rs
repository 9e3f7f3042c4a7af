//! Where PostgreSQL's programs are, and running those that end by themselves.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::{Account, NodeError};

/// The oldest major version that will do: it is the first that lets somebody who is not a superuser change single
/// parameters (`GRANT ALTER SYSTEM ON PARAMETER`).
pub const OLDEST_MAJOR: u32 = 15;

/// PostgreSQL's programs, all of one version.
#[derive(Debug, Clone)]
pub struct Programs {
    directory: PathBuf,
    major: u32,
}

/// What must be in a folder for it to count.
pub(super) const NEEDED: [&str; 6] =
    ["postgres", "initdb", "pg_basebackup", "pg_rewind", "pg_controldata", "pg_waldump"];
/// Debian's folders are `VERSION/bin` in here.
const DEBIAN: &str = "/usr/lib/postgresql";
/// Output of a program that is kept for an error.
const KEPT_OUTPUT_BYTES: usize = 2000;

impl Programs {
    /// Finds them: in `explicit` (the folder, or the one above its `bin`) and nowhere else if it is given; otherwise in
    /// `PATH`, then in Debian's folders, newest first.
    ///
    /// # Errors
    /// [`NodeError::NoPrograms`] says where was looked and what to install.
    pub fn find(explicit: Option<&Path>) -> Result<Self, NodeError> {
        let folders = match explicit {
            Some(folder) => vec![folder.to_owned(), folder.join("bin")],
            None => path_folders().into_iter().chain(debian_folders(Path::new(DEBIAN))).collect(),
        };
        let mut found = Vec::new();
        for folder in folders.iter().filter(|folder| NEEDED.iter().all(|program| folder.join(program).is_file())) {
            match version(folder) {
                Some((major, _)) if major >= OLDEST_MAJOR => return Ok(Self { directory: folder.clone(), major }),
                Some((_, text)) => found.push(format!("{text} in {}", folder.display())),
                None => found.push(format!("a program without a version in {}", folder.display())),
            }
        }
        let mut looked = folders;
        if explicit.is_none() {
            looked.push(Path::new(DEBIAN).join("*/bin"));
        }
        looked.dedup();
        Err(NodeError::NoPrograms { looked, found: found.join(", ") })
    }

    /// The folder they are in.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Their major version: 15, 16, …
    #[must_use]
    pub fn major(&self) -> u32 {
        self.major
    }

    pub(crate) fn path(&self, program: &str) -> PathBuf {
        self.directory.join(program)
    }

    /// Runs one that ends by itself, in `folder`, and returns what it wrote on its standard output. It is killed if we are
    /// dropped or it takes longer than `bound`.
    pub(crate) async fn run(&self, account: &Account, run: Run<'_>) -> Result<String, NodeError> {
        let mut command = account.command(&self.path(run.program), run.folder);
        command.args(&run.arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(passfile) = run.passfile {
            command.env("PGPASSFILE", passfile);
        }
        let mut command = Command::from(command);
        let child = command.kill_on_drop(true).spawn().map_err(|e| NodeError::io("run", &self.path(run.program), e))?;
        let named = || format!("{} of node {}", run.program, run.node);
        let Ok(ended) = tokio::time::timeout(run.bound, child.wait_with_output()).await else {
            return Err(NodeError::TimedOut { what: named(), bound: run.bound });
        };
        let output = ended.map_err(|error| NodeError::io("wait for", &self.path(run.program), error))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let wrote = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
        let kept = &wrote[wrote.len().saturating_sub(KEPT_OUTPUT_BYTES)..];
        let output_text = String::from_utf8_lossy(kept).trim().to_owned();
        Err(NodeError::Program { program: named(), status: output.status.to_string(), output: output_text })
    }
}

/// One run of a program.
pub(crate) struct Run<'a> {
    pub(crate) program: &'static str,
    pub(crate) node: &'a str,
    pub(crate) folder: &'a Path,
    pub(crate) arguments: Vec<std::ffi::OsString>,
    pub(crate) passfile: Option<&'a Path>,
    pub(crate) bound: Duration,
}

fn path_folders() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).filter(|folder| folder.is_absolute()).collect()
}

fn debian_folders(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let mut versions: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    versions.sort_by(|left, right| right.cmp(left));
    versions.into_iter().map(|(_, folder)| folder).collect()
}

fn version(folder: &Path) -> Option<(u32, String)> {
    let output = std::process::Command::new(folder.join("postgres")).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Some((major(&text)?, text))
}

/// `postgres (PostgreSQL) 15.20 (Debian 15.20-1)` is 15, `postgres (PostgreSQL) 18beta1` is 18.
fn major(text: &str) -> Option<u32> {
    let number = text.split_once("(PostgreSQL) ")?.1;
    let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read() {
        assert_eq!(major("postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)"), Some(15));
        assert_eq!(major("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(major("postgres (Something) 18"), None);
        assert_eq!(major("postgres (PostgreSQL) x"), None);
    }

    #[test]
    fn newer_folders_come_first_by_number() {
        let root = tempfile::tempdir().unwrap();
        for name in ["9", "15", "100", "x"] {
            std::fs::create_dir_all(root.path().join(name).join("bin")).unwrap();
        }
        let found = debian_folders(root.path());
        let names: Vec<_> = found.iter().map(|folder| folder.strip_prefix(root.path()).unwrap()).collect();
        assert_eq!(names, [Path::new("100/bin"), Path::new("15/bin"), Path::new("9/bin")]);
    }

    #[test]
    fn an_empty_folder_is_named_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let error = Programs::find(Some(folder.path())).unwrap_err().to_string();
        assert!(error.contains(folder.path().to_str().unwrap()), "{error}");
        assert!(error.contains("apt-get install postgresql"), "{error}");
    }

    #[test]
    fn an_old_version_is_refused_by_name() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        for program in NEEDED {
            let path = folder.path().join(program);
            std::fs::write(&path, "#!/bin/sh\necho 'postgres (PostgreSQL) 14.9'\n").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let error = Programs::find(Some(folder.path())).unwrap_err().to_string();
        assert!(error.contains("14.9"), "{error}");
    }
}
