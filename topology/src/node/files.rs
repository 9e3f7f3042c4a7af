//! Files of a data directory that are written or read while its PostgreSQL does not run.

use std::path::Path;
use std::process::Stdio;

use super::NodeError;
use super::settings::quoted;
use crate::act::marked_by;

/// `postgresql.auto.conf` with this `primary_conninfo` and no other, and no slot of another primary.
pub(super) fn following(text: &str, conninfo: &str) -> String {
    let other =
        |line: &&str| !["primary_conninfo", "primary_slot_name"].iter().any(|name| line.trim_start().starts_with(name));
    let mut kept: String = text.lines().filter(other).map(|line| format!("{line}\n")).collect();
    kept.push_str(&format!("primary_conninfo = {}\n", quoted(conninfo)));
    kept
}

/// Removes the System V segment that a killed PostgreSQL has left; line 7 of `postmaster.pid` names it by key and id. Only
/// the next start in the same directory would do that. It holds 56 bytes: that it stays is no error.
pub(super) fn release_segment(data: &Path) {
    let Ok(text) = std::fs::read_to_string(data.join("postmaster.pid")) else { return };
    if let Some(id) = text.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)) {
        let _ = std::process::Command::new("ipcrm").args(["-m", id]).stderr(Stdio::null()).status();
    }
}

pub(super) fn remove(folder: &Path) -> Result<(), NodeError> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(NodeError::io("remove", folder, error)),
        _ => Ok(()),
    }
}

/// The term of the fence that a node is under (`crate::act::fence`); 0 if it is cut off without a mark. `None`: it is free to
/// follow anybody.
pub(super) fn fence_in(automatic: &str) -> Option<u64> {
    let value = |name: &str| {
        let mut lines =
            automatic.lines().filter_map(|line| line.trim_start().strip_prefix(name)?.trim_start().strip_prefix('='));
        lines.next_back().map(|value| value.trim().trim_matches('\''))
    };
    match value("primary_slot_name").and_then(marked_by) {
        Some(term) => Some(term),
        None => value("primary_conninfo").filter(|conninfo| conninfo.is_empty()).map(|_| 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_follows_one_node_and_no_slot() {
        let text = "# kept\nprimary_conninfo = 'host=a'\n primary_slot_name = 'x'\nfsync = 'off'\n";
        assert_eq!(following(text, "host='b'"), "# kept\nfsync = 'off'\nprimary_conninfo = 'host=''b'''\n");
    }

    #[test]
    fn a_fence_is_seen_in_the_file() {
        assert_eq!(fence_in("primary_slot_name = 'fence_7'\nprimary_conninfo = ''\n"), Some(7));
        assert_eq!(fence_in("primary_conninfo = 'host=a'\n"), None);
        assert_eq!(fence_in("primary_conninfo = ''\n"), Some(0));
        assert_eq!(fence_in("primary_conninfo = ''\nprimary_slot_name = ''\nprimary_conninfo = 'host=b'\n"), None);
        assert_eq!(fence_in(""), None);
    }
}
