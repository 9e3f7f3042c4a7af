//! The record in a file of this machine: for one instance alone, which a lock makes sure of.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use decision::{Cluster, Record, Term};

use super::{StoreError, Swap, claim, follows, format};

/// A record is some hundred bytes; what is longer is something else.
const MAX_RECORD_BYTES: u64 = 64 * 1024;

/// The file store. Its calls block on the disk for some milliseconds. While it lives, no other instance can open it.
#[derive(Debug)]
pub struct FileStore {
    path: PathBuf,
    name: String,
    cluster: Cluster,
    _lock: File,
}

impl FileStore {
    /// Opens the store of the cluster `name` at `path` (the record's file; its folder has to exist) and locks it by
    /// `PATH.lock`. The lock is the system's: it ends with the process, however that ends.
    ///
    /// # Errors
    /// `Locked` if another instance has it.
    pub fn open(path: &Path, name: &str, cluster: &Cluster) -> Result<Self, StoreError> {
        let lock_path = with_ending(path, ".lock");
        let lock = File::options().create(true).truncate(false).write(true).mode(0o600).open(&lock_path);
        let lock = lock.map_err(|e| failed("open", &lock_path, &e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::Locked(path.to_owned())),
            Err(TryLockError::Error(e)) => return Err(failed("lock", &lock_path, &e)),
        }
        Ok(Self { path: path.to_owned(), name: name.to_owned(), cluster: cluster.clone(), _lock: lock })
    }

    /// The record's file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The record; `None` if there is none yet.
    ///
    /// # Errors
    /// If what is there is torn or of another cluster. It is never overwritten.
    pub fn read(&self) -> Result<Option<Record>, StoreError> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed("read", &self.path, &e)),
        };
        let unreadable = |why: String| StoreError::Unreadable { place: self.path.display().to_string(), why };
        let mut bytes = Vec::new();
        file.take(MAX_RECORD_BYTES + 1).read_to_end(&mut bytes).map_err(|e| failed("read", &self.path, &e))?;
        if bytes.len() as u64 > MAX_RECORD_BYTES {
            return Err(unreadable(format!("it is longer than {MAX_RECORD_BYTES} bytes")));
        }
        let text = String::from_utf8(bytes).map_err(|_| unreadable("it is not UTF-8".into()))?;
        format::read(&self.name, &self.cluster, &text).map(Some).map_err(unreadable)
    }

    /// Sets the claimed term to `to` if it is `from`; `handover`: for a switchover. The record that comes back is read after the write.
    ///
    /// # Errors
    /// If the store cannot be read or written; then it is open whether the claim is stored.
    pub fn claim(&self, from: Term, to: Term, handover: bool) -> Result<Swap, StoreError> {
        let stored = self.read()?.unwrap_or_else(Record::empty);
        match claim(&stored, from, to, handover) {
            None => Ok(Swap::Refused(stored)),
            Some(claimed) => self.replace(&claimed),
        }
    }

    /// Stores the record if what is stored is its predecessor.
    ///
    /// # Errors
    /// If the store cannot be read or written; then it is open whether the record is stored.
    pub fn publish(&self, record: &Record) -> Result<Swap, StoreError> {
        let stored = self.read()?.unwrap_or_else(Record::empty);
        if !follows(&stored, record) {
            return Ok(Swap::Refused(stored));
        }
        self.replace(record)
    }

    /// Durable before it returns: the new file, then its name. A crash leaves the old record or the new one, whole.
    fn replace(&self, record: &Record) -> Result<Swap, StoreError> {
        let temporary = with_ending(&self.path, ".new");
        let text = format::write(&self.name, &self.cluster, record);
        let written = File::options().create(true).truncate(true).write(true).mode(0o600).open(&temporary);
        let mut file = written.map_err(|e| failed("create", &temporary, &e))?;
        file.write_all(text.as_bytes()).map_err(|e| failed("write", &temporary, &e))?;
        file.sync_all().map_err(|e| failed("flush", &temporary, &e))?;
        fs::rename(&temporary, &self.path).map_err(|e| failed("replace", &self.path, &e))?;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flushed = File::open(folder).and_then(|folder| folder.sync_all());
        flushed.map_err(|e| failed("flush", folder, &e))?;
        match self.read()? {
            Some(stored) if stored == *record => Ok(Swap::Done(stored)),
            Some(stored) => Ok(Swap::Refused(stored)),
            None => Ok(Swap::Refused(Record::empty())),
        }
    }
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

fn failed(what: &'static str, path: &Path, error: &io::Error) -> StoreError {
    StoreError::Io { what, path: path.to_owned(), why: error.to_string() }
}

#[cfg(test)]
mod tests {
    use decision::{Intent, Lsn, Member, NodeId, Origin, Rule, Timeline};

    use super::*;

    fn cluster(names: &[&str]) -> Cluster {
        let member = |name: &&str| Member { name: (*name).into(), zone: String::new(), priority: 0 };
        Cluster::new(names.iter().map(member).collect()).unwrap()
    }

    fn full() -> Record {
        let origin = Origin { term: Term(3), timeline: Timeline(2), lsn: Lsn(0x0400_0307), next_xid: Some(1 << 40) };
        let cohort = [NodeId(1), NodeId(2)].into_iter().collect();
        Record {
            revision: 1,
            system_identifier: Some(u64::MAX - 5),
            claimed: Term(5),
            rule: Some(Rule { term: Term(4), leader: NodeId(0), cohort, k: 1 }),
            intent: Some(Intent { node: NodeId(1), term: Term(5), cohort, k: 1, origin }),
            origin: Some(origin),
            handover: true,
        }
    }

    #[test]
    fn a_record_survives_the_store_and_the_order_of_the_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("main.json");
        let store = FileStore::open(&path, "main", &cluster(&["a", "b", "c"])).unwrap();
        assert_eq!(store.read(), Ok(None));
        assert_eq!(store.publish(&full()), Ok(Swap::Done(full())));
        drop(store);
        let turned = FileStore::open(&path, "main", &cluster(&["c", "b", "a"])).unwrap();
        let rule = turned.read().unwrap().unwrap().rule.unwrap();
        assert_eq!(rule.leader, NodeId(2));
        assert_eq!(rule.cohort, [NodeId(0), NodeId(1)].into_iter().collect());
    }

    #[test]
    fn writes_are_compare_and_set() {
        let folder = tempfile::tempdir().unwrap();
        let store = FileStore::open(&folder.path().join("r"), "main", &cluster(&["a", "b", "c"])).unwrap();
        let Ok(Swap::Done(first)) = store.claim(Term(0), Term(1), false) else { panic!("an empty store is term 0") };
        assert_eq!((first.claimed, first.revision), (Term(1), 1));
        assert_eq!(store.claim(Term(0), Term(1), false), Ok(Swap::Refused(first.clone())));
        assert_eq!(store.claim(Term(1), Term(1), false), Ok(Swap::Refused(first.clone())));
        assert_eq!(store.publish(&full()), Ok(Swap::Refused(first)), "revision 1 is taken");
        let next = Record { revision: 2, ..full() };
        assert_eq!(store.publish(&next), Ok(Swap::Done(next.clone())));
        assert_eq!(store.read(), Ok(Some(next)));
    }

    #[test]
    fn a_second_instance_does_not_get_in() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r");
        let first = FileStore::open(&path, "main", &cluster(&["a"])).unwrap();
        let error = FileStore::open(&path, "main", &cluster(&["a"])).unwrap_err();
        assert!(error.to_string().contains("held by another instance"), "{error}");
        drop(first);
        FileStore::open(&path, "main", &cluster(&["a"])).unwrap();
    }

    #[test]
    fn a_torn_or_foreign_file_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r");
        let store = FileStore::open(&path, "main", &cluster(&["a", "b", "c"])).unwrap();
        let whole = format::write("main", &cluster(&["a", "b", "c"]), &full());
        for end in 0..whole.trim_end().len() {
            fs::write(&path, &whole[..end]).unwrap();
            assert!(matches!(store.read(), Err(StoreError::Unreadable { .. })), "torn after {end} bytes");
        }
        let foreign = [
            (whole.replace("\"main\"", "\"other\""), "it is of cluster \"other\""),
            (whole.replace("\"format\": 1", "\"format\": 2"), "its format is 2"),
            (whole.replace("\"a\"", "\"z\""), "the node \"z\""),
            (whole.replace("\"claimed\"", "\"x\""), "unknown field"),
            ("x".repeat(70_000), "longer than"),
        ];
        for (text, why) in foreign {
            fs::write(&path, &text).unwrap();
            let error = store.claim(Term(5), Term(6), false).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("move it away"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        fs::write(&path, b"\xff\xfe").unwrap();
        assert!(store.read().unwrap_err().to_string().contains("not UTF-8"));
    }
}
