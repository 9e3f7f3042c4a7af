//! What a new server of a managed cluster is asked before anybody gets it: whether its commits wait for a standby, whether its
//! database has rules, whose reign it belongs to, and whether its node was put into quarantine: another instance knows of a later
//! primary then, and this one only has not heard of it yet.

use std::time::Duration;

use bytes::BytesMut;
use pgwire::frontend::write_query;
use pgwire::report::Report;
use pgwire::sqlstate;
use topology::APPLICATION_NAME;

use super::{Failure, Opener, Server};
use crate::config::SynchronousCommit;
use crate::settings::is_below_on;

/// The system's own rules are not counted: those that add a result are on `pg_settings`.
/// A role or a database may be read only by its own settings; a node is by its configuration, and in quarantine then.
const QUESTION: &str = "SELECT pg_catalog.current_setting('synchronous_commit'), \
 EXISTS (SELECT FROM pg_catalog.pg_rewrite WHERE ev_type <> '1' AND oid >= 16384), \
 CASE WHEN pg_catalog.current_setting('default_transaction_read_only')::bool THEN EXISTS (SELECT FROM \
 pg_catalog.pg_settings WHERE name = 'default_transaction_read_only' AND source = 'configuration file') END, \
 EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE application_name = '";

/// Time for the answer.
const SURVEY_TIMEOUT: Duration = Duration::from_secs(15);

impl Opener {
    /// Asks; an error if nobody may have this server.
    pub(super) async fn survey(&self, server: &mut Server) -> Result<(), Failure> {
        let Some(policy) = self.survey else { return Ok(()) };
        let topology = self.watch.now();
        let reign = topology.reigns.last().filter(|reign| reign.node == self.node);
        let witness = reign.map_or(0, |reign| reign.witness);
        let mut out = BytesMut::new();
        let question = format!("{QUESTION}{APPLICATION_NAME}' AND pid = {witness})");
        write_query(&mut out, question.as_bytes()).expect("it is short");
        let asked = tokio::time::timeout(SURVEY_TIMEOUT, server.round_trip(&out, 1)).await;
        let unreachable = |why: &str| Failure::Unreachable(format!("{}: {why}", self.address));
        let answers = match asked {
            Ok(Ok(answers)) if answers.failed.is_none() => answers,
            Ok(Ok(_)) => return Err(unreachable("it does not say what synchronous_commit is")),
            Ok(Err(why)) => return Err(unreachable(&why)),
            Err(_) => return Err(unreachable("it did not answer in time")),
        };
        server.has_rules = answers.column(1).as_deref() != Some("f");
        if answers.column(2).as_deref() == Some("t") && topology.primary == Some(self.node) {
            return Err(unreachable(
                "default_transaction_read_only is on in its configuration, as it is for a primary of a bygone term; \
                 ALTER SYSTEM RESET default_transaction_read_only, and a reload, if it is none",
            ));
        }
        let seen = answers.column(3).as_deref() == Some("t");
        server.reign = reign.filter(|_| seen).map(|reign| (reign.node, reign.incarnation));
        let level = answers.column(0).unwrap_or_default();
        match policy {
            SynchronousCommit::Refuse if is_below_on(&level) => Err(Failure::Login(Box::new(self.too_weak(&level)))),
            SynchronousCommit::Report if is_below_on(&level) => {
                tracing::warn!(
                    user = %self.user, database = %self.database, level,
                    "synchronous_commit is below \"on\" from the login on: acknowledged commits can be lost in a failover"
                );
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn too_weak(&self, level: &str) -> Report {
        let text =
            format!("synchronous_commit is \"{level}\" for role \"{}\" in database \"{}\"", self.user, self.database);
        Report::error(sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE, text)
            .detail("No standby has to confirm such commits: they are acknowledged, and lost in a failover.")
            .hint(
                "ALTER ROLE … RESET synchronous_commit (or ALTER DATABASE, ALTER SYSTEM), or set synchronous_commit = \
                 \"report\" or \"allow\" for this database in pgsteady's configuration.",
            )
    }
}
