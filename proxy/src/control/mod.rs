//! The way from a command line to the running pgsteady: a Unix socket a cluster in its store's folder, one request a connection,
//! one line of JSON each way. What is asked is decided by the monitor; here it is only carried.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

mod command;
mod drill;
mod failover;
mod server;
mod status;
mod text;

pub use command::{StatusArgs, SwitchoverArgs, status, switchover};
pub use drill::{DrillArgs, drill};
pub use failover::{FailoverArgs, failover};
pub(crate) use server::{Control, switch_over};

/// Longest request; a name has 63 bytes at most.
const MAX_REQUEST_BYTES: u64 = 4096;
/// Longest answer: some nodes and some failovers.
const MAX_ANSWER_BYTES: u64 = 1 << 20;
/// Time for a request to arrive, and for an answer to be taken.
const PASSING: Duration = Duration::from_secs(5);
/// Time that transactions may be given to end.
const MAX_WAIT: Duration = Duration::from_secs(600);

/// What a command asks of the running program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case", deny_unknown_fields)]
enum Request {
    /// How the cluster is. (With braces: serde takes unknown keys of a unit variant.)
    Status {},
    /// Another primary.
    Switchover {
        /// Its name; absent: whom a failover would choose.
        to: Option<String>,
        /// Milliseconds that open transactions may take to end.
        max_wait_ms: u64,
        /// Whether those that are still open then are ended.
        end_transactions: bool,
    },
    /// A failover that may lose commits.
    Failover {},
}

/// Where the socket of a cluster is.
fn socket(store: &Path, cluster: &str) -> PathBuf {
    store.join(format!("{cluster}.sock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_strictly() {
        let text = r#"{"ask":"switchover","to":"n2","max_wait_ms":2000,"end_transactions":false}"#;
        let plan = Request::Switchover { to: Some("n2".into()), max_wait_ms: 2000, end_transactions: false };
        assert_eq!(serde_json::from_str::<Request>(text).unwrap(), plan);
        assert_eq!(serde_json::from_str::<Request>(&serde_json::to_string(&plan).unwrap()).unwrap(), plan);
        assert_eq!(serde_json::from_str::<Request>(r#"{"ask":"status"}"#).unwrap(), Request::Status {});
        for wrong in ["", "{}", r#"{"ask":"promote"}"#, r#"{"ask":"switchover"}"#, r#"{"ask":"status","x":1}"#] {
            assert!(serde_json::from_str::<Request>(wrong).is_err(), "{wrong}");
        }
    }
}
