//! Sessions that ask for commits which no standby has to confirm: `synchronous_commit` below `on`. What is refused here is what
//! the text shows; what a function does inside shows when the commit's transaction id is asked for.

use pgwire::conversation::Request;
use pgwire::frontend::Target;
use pgwire::report::Report;
use pgwire::sqlstate;

use super::Session;
use super::note::About;
use super::requests::{Frame, Passing, SHORT};
use super::turn::Turn;
use crate::config::SynchronousCommit;
use crate::entry::Entry;
use crate::settings::{Setting, Settings, is_below_on};

impl Session {
    /// Whether a statement that asks for them is refused; if not, it may have to be reported.
    #[cold]
    pub(super) fn refuses_weak_commits(&mut self) -> bool {
        match self.entry.synchronous_commit {
            SynchronousCommit::Refuse => true,
            SynchronousCommit::Report => {
                if !std::mem::replace(&mut self.weak_reported, true) {
                    tracing::warn!(
                        session = %self.name(),
                        "the session sets synchronous_commit below \"on\": its acknowledged commits can be lost in a failover"
                    );
                }
                false
            }
            SynchronousCommit::Allow => false,
        }
    }

    /// Sends a request that fails in place of this one; the error is told in our words.
    pub(super) fn refuse(&mut self, passing: &mut Passing<'_>, frame: &Frame<'_>) -> Result<(), Turn> {
        let server = self.loan();
        passing.cut(frame.at, frame.end, server.wire.out());
        Target::Statement(b"pgsteady: refused").describe(server.wire.out()).expect(SHORT);
        self.ask(Request::Describe { statement: true }, Some(About::Weak.note()))
    }
}

/// Why a client with these startup parameters is not let in, if it is for this.
pub(super) fn refusal_at_login(entry: &Entry, user: &str, settings: &Settings) -> Option<Report> {
    let Some(Setting::Value(value)) = settings.get("synchronous_commit") else { return None };
    if !is_below_on(value) {
        return None;
    }
    if entry.synchronous_commit == SynchronousCommit::Report {
        tracing::warn!(
            user, database = %entry.name,
            "a client asks for synchronous_commit below \"on\": its acknowledged commits can be lost in a failover"
        );
    }
    (entry.synchronous_commit == SynchronousCommit::Refuse).then(weak_commit)
}

/// What is said to them.
pub(super) fn weak_commit() -> Report {
    let text =
        "synchronous_commit below \"on\" is not allowed: a commit that is acknowledged could be lost in a failover";
    Report::error(sqlstate::INVALID_PARAMETER_VALUE, text).hint(
        "Set synchronous_commit = \"report\" or \"allow\" for this database in pgsteady's configuration to have it.",
    )
}
