//! Disks of the tests' own, which can be slow or stand still: each an ext4 in a file behind a loop device. Needs root.
//! Only the thread that made [`Mounts`] and what it starts see them; they are gone with the last process that does.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::folder::{Folder, give, open_to_read};
use crate::programs::run;

/// Bytes of a disk. Its file takes no more than what is written.
const SIZE: u64 = 2 << 30;
/// To unmount it, a tenth of a second apart.
const TRIES: u32 = 50;
/// Where limits on input and output are set: cgroup v1, else v2.
const GROUPS_V1: &str = "/sys/fs/cgroup/blkio";
const GROUPS_V2: &str = "/sys/fs/cgroup";

/// Mounts that no other process sees. To be made on a thread before anything that is to see them is started on it.
#[derive(Debug)]
pub struct Mounts {
    _private: (),
}

/// A disk with an ext4.
#[derive(Debug)]
pub struct Disk {
    /// Its mount point.
    path: PathBuf,
    /// That of the processes that it is slow for.
    group: PathBuf,
    /// Lets it go on if this process does not.
    dead_man: Mutex<Option<Child>>,
    _folder: Folder,
}

impl Mounts {
    /// Separates the mounts of this thread from those of all others.
    ///
    /// # Panics
    /// When this process may not.
    #[must_use]
    pub fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNS).expect("mount namespaces need root: run this test as root");
        let private = mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>);
        private.expect("mounts can be made private");
        Self { _private: () }
    }

    /// Another disk, empty.
    ///
    /// # Panics
    /// When there is no loop device, or no `mkfs.ext4`.
    #[must_use]
    pub fn disk(&self) -> Disk {
        let folder = Folder::new("disk");
        let (image, path) = (folder.path().join("image"), folder.path().join("d"));
        let file = fs::File::create(&image).expect("a file of the test can be made");
        file.set_len(SIZE).expect("a file can have holes");
        fs::create_dir(&path).expect("a folder of the test can be made");
        run(Command::new("mkfs.ext4").arg("-q").arg("-F").arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&path));
        give(&path);
        open_to_read(&path);
        let name = folder.path().file_name().expect("a folder has a name");
        let groups = if Path::new(GROUPS_V1).exists() { GROUPS_V1 } else { GROUPS_V2 };
        Disk { path, group: Path::new(groups).join(name), dead_man: Mutex::new(None), _folder: folder }
    }
}

impl Default for Mounts {
    fn default() -> Self {
        Self::new()
    }
}

impl Disk {
    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// These processes, and those that they start from now on, write no more than so often a second.
    pub fn slow(&self, writes: u32, processes: &[i32]) {
        if !self.group.exists() {
            fs::create_dir(&self.group).expect("root can make a cgroup");
        }
        self.limit(Some(writes));
        for pid in processes {
            // it may have ended meanwhile
            let _ = fs::write(self.group.join("cgroup.procs"), pid.to_string());
        }
    }

    /// `blkio.throttle.write_iops_device` and `io.max` of the kernel's documentation of cgroup v1 and v2.
    fn limit(&self, writes: Option<u32>) {
        let device = fs::metadata(&self.path).expect("the disk is mounted").dev();
        let device = format!("{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device));
        let (file, limit) = if self.group.starts_with(GROUPS_V1) {
            ("blkio.throttle.write_iops_device", format!("{device} {}", writes.unwrap_or(0)))
        } else {
            fs::write(Path::new(GROUPS_V2).join("cgroup.subtree_control"), "+io").expect("root can control cgroups");
            ("io.max", format!("{device} wiops={}", writes.map_or("max".to_owned(), |writes| writes.to_string())))
        };
        fs::write(self.group.join(file), limit).expect("a cgroup can limit writes");
    }

    /// Whoever writes stands still, even to SIGKILL, until it is healed; for no longer than this, whatever becomes of the test.
    pub fn freeze(&self, at_most: Duration) {
        let mut dead_man = Command::new("sh");
        dead_man.args(["-c", "sleep $0; fsfreeze -u $1", &at_most.as_secs().to_string()]).arg(&self.path);
        let dead_man = dead_man.stderr(Stdio::null()).process_group(0).spawn().expect("sh can be started");
        *self.dead_man.lock().unwrap_or_else(PoisonError::into_inner) = Some(dead_man);
        run(Command::new("fsfreeze").arg("-f").arg(&self.path));
    }

    fn unmount(&self, options: &[&str]) -> bool {
        let ended = Command::new("umount").args(options).arg(&self.path).stderr(Stdio::null()).status();
        ended.is_ok_and(|status| status.success())
    }

    /// Ends every fault of it.
    pub fn heal(&self) {
        if let Some(mut dead_man) = self.dead_man.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // it may have thawed the disk already
            let _ = Command::new("fsfreeze").arg("-u").arg(&self.path).stderr(Stdio::null()).status();
            let group = Pid::from_raw(i32::try_from(dead_man.id()).expect("process numbers are small"));
            let _ = killpg(group, Signal::SIGKILL);
            let _ = dead_man.wait();
        }
        if self.group.exists() {
            self.limit(None);
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.heal();
        // what was killed on it may still be ending
        let mut tries = 1;
        while !self.unmount(&[]) {
            if tries == TRIES {
                eprintln!("{}: still in use, unmounted when that ends", self.path.display());
                self.unmount(&["-l"]);
                break;
            }
            tries += 1;
            std::thread::sleep(Duration::from_millis(100));
        }
        let _ = fs::remove_dir(&self.group);
    }
}
