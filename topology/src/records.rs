//! The records of failovers in a file beside the store: read at the start, replaced as a whole with each failover. A record is
//! for people; that one cannot be kept keeps nobody from failing over.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::history::{FailoverRecord, MAX_FAILOVERS};

/// A record is some hundred bytes.
const MAX_BYTES: u64 = 256 * 1024;

/// The file.
#[derive(Debug)]
pub(crate) struct Records {
    path: Arc<Path>,
}

impl Records {
    /// Of this cluster, in the store's folder.
    pub(crate) fn of(folder: &Path, cluster: &str) -> Self {
        Self { path: folder.join(format!("{cluster}.failovers.json")).into() }
    }

    /// What is there, the latest last; nothing if there is none or it cannot be read, which is said.
    pub(crate) fn read(&self) -> Vec<FailoverRecord> {
        match read(&self.path) {
            Ok(records) => records,
            Err(why) => {
                tracing::warn!(file = %self.path.display(), why, "the records of earlier failovers cannot be read");
                Vec::new()
            }
        }
    }

    /// Replaces the file, on a thread that may wait for the disk.
    pub(crate) fn write(&self, records: &[FailoverRecord]) {
        let path = self.path.clone();
        let text = serde_json::to_vec_pretty(records).expect("plain data is JSON");
        tokio::task::spawn_blocking(move || {
            if let Err(error) = replace(&path, &text) {
                tracing::warn!(file = %path.display(), %error, "the record of a failover cannot be kept");
            }
        });
    }
}

fn read(path: &Path) -> Result<Vec<FailoverRecord>, String> {
    let size = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.to_string()),
    };
    if size > MAX_BYTES {
        return Err(format!("it is longer than {MAX_BYTES} bytes"));
    }
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    let mut records: Vec<FailoverRecord> = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    records.drain(..records.len().saturating_sub(MAX_FAILOVERS));
    Ok(records)
}

fn replace(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let mut temporary: PathBuf = path.to_owned();
    temporary.set_extension("json.new");
    let mut file = fs::File::options().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_torn_is_said_and_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::of(folder.path(), "main");
        assert_eq!(records.read(), []);
        fs::write(&records.path, "[{").unwrap();
        assert!(read(&records.path).unwrap_err().contains("EOF"));
        assert_eq!(records.read(), []);
        fs::write(&records.path, vec![b' '; 300_000]).unwrap();
        assert!(read(&records.path).unwrap_err().contains("longer"));
    }
}
