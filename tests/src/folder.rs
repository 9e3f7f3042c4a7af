//! Folders of a test, and the golden data directories that tests copy. A folder goes when its owner does.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User, chown};

/// The account that PostgreSQL runs under: it refuses to run as root.
#[must_use]
pub fn account() -> Option<User> {
    let root = Uid::effective().is_root();
    root.then(|| User::from_name("postgres").ok().flatten().expect("as root there must be a user postgres"))
}

/// Where everything of the tests lies: `PGSTEADY_TEST_DIR`, else a folder of this user's in `/tmp`.
#[must_use]
pub fn base() -> PathBuf {
    let base = std::env::var_os("PGSTEADY_TEST_DIR")
        .map_or_else(|| std::env::temp_dir().join(format!("pgsteady-test-{}", Uid::effective())), PathBuf::from);
    fs::create_dir_all(&base).expect("the folder of the tests can be made");
    open_to_read(&base);
    base
}

pub(crate) fn open_to_read(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o711)).expect("our own folder's mode can be set");
}

/// Gives a file or folder to the account of PostgreSQL.
pub fn give(path: &Path) {
    if let Some(account) = account() {
        chown(path, Some(account.uid), Some(account.gid)).expect("root may give a file away");
    }
}

/// A folder that is removed with everything in it, unless `PGSTEADY_TEST_KEEP` is set.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// A new one, for the test or thing of this name, owned by the account of PostgreSQL.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self::new_in(&base(), name)
    }

    /// The same in another folder.
    #[must_use]
    pub fn new_in(parent: &Path, name: &str) -> Self {
        // Short: the path of a Unix socket ends after 107 bytes.
        let folder = tempfile::Builder::new().prefix(name).rand_bytes(6).tempdir_in(parent);
        let path = folder.expect("a temporary folder can be made").keep();
        open_to_read(&path);
        give(&path);
        Self { path }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file into it.
    pub fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path.join(name);
        fs::write(&path, content).expect("a file of the test can be written");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::env::var_os("PGSTEADY_TEST_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}
