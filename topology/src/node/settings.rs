//! The settings that a node needs for failover to work, as lines of `postgresql.conf`. Names and ports are not here.

use std::fmt::Write as _;
use std::time::Duration;

/// What is put into `postgresql.conf`; the same on all nodes of a cluster.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `fsync`: off only where a crash of the machine may cost the data.
    pub fsync: bool,
    /// `max_connections`
    pub max_connections: u32,
    /// `shared_buffers`, in MiB.
    pub shared_buffers_mib: u32,
    /// `wal_keep_size`, in MiB: how far a standby, or a node that `pg_rewind` brings back, may be behind.
    pub wal_keep_mib: u32,
    /// `wal_receiver_timeout` and `wal_sender_timeout`: after this long without a word a link is given up.
    pub link_timeout: Duration,
    /// `max_standby_streaming_delay`: a query on a standby never holds up replay, and so promotion, for longer.
    pub replay_delay: Duration,
    /// `synchronous_standby_names`; empty for none.
    pub synchronous_standby_names: String,
    /// More lines, which win over these: name and value, not yet quoted.
    pub more: Vec<(String, String)>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            fsync: true,
            max_connections: 100,
            shared_buffers_mib: 128,
            wal_keep_mib: 256,
            link_timeout: Duration::from_secs(5),
            replay_delay: Duration::from_secs(5),
            synchronous_standby_names: String::new(),
            more: Vec::new(),
        }
    }
}

impl Settings {
    /// For a node that is thrown away: no fsync, little memory, nothing outside its folder.
    #[must_use]
    pub fn throwaway() -> Self {
        let more = [
            // segments in /dev/shm would outlive a kill -9; these are files in the data directory
            ("dynamic_shared_memory_type", "mmap"),
            ("min_wal_size", "80MB"),
            ("max_wal_size", "1GB"),
        ];
        let more = more.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        Self { fsync: false, shared_buffers_mib: 32, more, ..Self::default() }
    }

    /// The lines.
    #[must_use]
    pub fn text(&self) -> String {
        let on_off = |on: bool| if on { "on" } else { "off" };
        let ours = [
            ("wal_level", "replica".to_owned()),
            ("hot_standby", "on".to_owned()),
            ("max_wal_senders", "16".to_owned()),
            ("wal_keep_size", format!("{}MB", self.wal_keep_mib)),
            // with the default of 5 s a promotion may sleep that long
            ("wal_retrieve_retry_interval", "100ms".to_owned()),
            ("wal_receiver_timeout", format!("{}ms", self.link_timeout.as_millis())),
            ("wal_sender_timeout", format!("{}ms", self.link_timeout.as_millis())),
            ("wal_receiver_status_interval", "1s".to_owned()),
            ("hot_standby_feedback", "on".to_owned()),
            ("max_standby_streaming_delay", format!("{}ms", self.replay_delay.as_millis())),
            // pg_rewind needs one of checksums and hints, and full pages
            ("wal_log_hints", "on".to_owned()),
            ("full_page_writes", "on".to_owned()),
            ("fsync", on_off(self.fsync).to_owned()),
            ("max_connections", self.max_connections.to_string()),
            ("shared_buffers", format!("{}MB", self.shared_buffers_mib)),
            ("synchronous_standby_names", self.synchronous_standby_names.clone()),
            ("log_line_prefix", "%m [%p] ".to_owned()),
        ];
        let ours = ours.iter().map(|(name, value)| (*name, value.as_str()));
        let more = self.more.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let mut text = String::from("\n# pgsteady: what failover needs\n");
        for (name, value) in ours.chain(more) {
            let _ = writeln!(text, "{name} = {}", quoted(value));
        }
        text
    }
}

/// A value as it stands in a configuration file (PostgreSQL 20.1.2: quotes are doubled; the reader also knows backslashes).
#[must_use]
pub fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_for_the_configuration_file() {
        assert_eq!(quoted(r"it's a \ "), r"'it''s a \\ '");
    }

    #[test]
    fn more_comes_last_so_that_it_wins() {
        let settings = Settings { more: vec![("fsync".into(), "off".into())], ..Settings::default() };
        let text = settings.text();
        assert!(text.find("fsync = 'on'").unwrap() < text.find("fsync = 'off'").unwrap(), "{text}");
    }
}
