//! The server is gone in the middle of a transaction: what the client is told, so that it can stay.
//!
//! 40001 where what was asked cannot have lasted: it is safe to ask again. 08007 where it may have: a commit, or a change in
//! autocommit, was sent and its answer got lost. A client whose transaction was lost stays in a failed transaction
//! until it ends it, as PostgreSQL has it; that failed transaction is a real one on the next server.

use bytes::BytesMut;
use pgwire::backend;
use pgwire::conversation::TransactionStatus;
use pgwire::frontend::write_query;
use pgwire::report::Report;
use pgwire::sqlstate;

use super::doubt::Owed;
use super::requests::{Frame, SHORT};
use super::resolve::Ended;
use super::turn::{End, Turn};
use super::units::Danger;
use super::{Asked, Mode, Session, Skip, say};
use crate::routing::Kind;

/// What became of a transaction whose server was lost.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Lost {
    /// No transaction was lost, or the client has ended it since.
    #[default]
    No,
    /// The client asked nothing when it happened, and does not know yet.
    Untold {
        /// A transaction was open; else only the state of the session is lost.
        in_transaction: bool,
        /// Why.
        why: Box<str>,
    },
    /// The client was told, and has not ended its failed transaction yet.
    Told,
}

impl Session {
    /// The server on loan is lost.
    pub(super) async fn lose_server(&mut self, why: &str) -> Result<(), End> {
        let Some(server) = self.server.take() else { return Ok(()) };
        let status = server.conversation.status();
        self.units.copied(server.conversation.swallowed(), server.conversation.reads_copy());
        let (server, pool) = server.into_server();
        drop(server);
        if self.entry.managed {
            // It may be the first of many, whose node is in quarantine: only new ones are asked whether that is so.
            pool.close_idle("another server of the node was lost");
        }
        self.unlink();
        self.card.idle();
        self.entry.suspect(self.node);
        tracing::info!(session = %self.name(), node = self.node, why, "a server was lost");
        if std::mem::take(&mut self.server_passes) > 0 {
            return Err(End::ClientGone); // it has half of a message, and cannot be told anything any more
        }
        let mut kept_state = self.mode == Mode::Session || self.pinned.take().is_some();
        let mut in_transaction = status != TransactionStatus::Idle;
        self.names.forget_pending();
        self.forget_settings_of_transaction();
        self.login.forget();
        self.portals.clear();
        (self.not_replicated, self.apart, self.held_goes) = (false, false, false);
        let (mut units, mut open) = self.units.take();
        let resolved = self.resolve().await?;
        self.cancel.shield(false);
        self.lost = Lost::No;
        if let Some(end) = resolved {
            in_transaction = self.tell_end(&end, !units.is_empty(), why);
            kept_state &= end.is_good();
            if units.pop_front().is_none() {
                open = None;
            }
        }
        if units.is_empty() && open.is_none() {
            if in_transaction || kept_state {
                self.lost = Lost::Untold { in_transaction, why: why.into() };
            }
            return Ok(());
        }
        self.tell_lost(units.into(), open, in_transaction, why);
        Ok(())
    }

    /// Tells what became of the commit that stood first; whether a transaction is open behind it, which is lost.
    fn tell_end(&mut self, end: &Ended, with_sync: bool, why: &str) -> bool {
        let held = std::mem::take(&mut self.held);
        let out = self.client.out();
        let mut chain = false;
        match end {
            Ended::Told { chain: behind } => chain = *behind,
            Ended::Committed(Owed::Held) => out.extend_from_slice(&held),
            Ended::Committed(Owed::Nothing) => {}
            Ended::Committed(Owed::Commit { chain: behind }) => {
                backend::write_command_complete(out, "COMMIT").expect(SHORT);
                chain = *behind;
            }
            Ended::RolledBack => say(out, &rolled_back(why)),
            Ended::Unknown(because) => say(out, &unknown(&format!("{why}; {because}"))),
        }
        if with_sync {
            out.extend_from_slice(&backend::write_ready_for_query(status(chain)));
        } else if !end.is_good() {
            self.skip = Skip::ToSync;
        }
        chain
    }

    fn tell_lost(&mut self, units: Vec<Danger>, open: Option<Danger>, mut in_transaction: bool, why: &str) {
        let commits = units.iter().chain(&open).any(|danger| *danger == Danger::Commit);
        // A client may not look at the answer to what executes nothing: drivers close statements and forget about it.
        let told = units.iter().chain(&open).any(|danger| *danger > Danger::Harmless);
        let out = self.client.out();
        for danger in units {
            say(out, &report(danger, in_transaction, commits, why));
            in_transaction &= danger < Danger::Rollback;
            out.extend_from_slice(&backend::write_ready_for_query(status(in_transaction)));
        }
        if let Some(danger) = open {
            say(out, &report(danger, in_transaction, commits, why));
            in_transaction &= danger < Danger::Rollback;
            self.skip = Skip::ToSync;
        }
        self.lost = match (in_transaction, told) {
            (false, _) => Lost::No,
            (true, true) => Lost::Told,
            (true, false) => Lost::Untold { in_transaction, why: why.into() },
        };
    }

    /// The client's next message after a loss; `true` if it needs a server all the same.
    ///
    /// A COMMIT of the lost transaction is an error in any case. PostgreSQL answers it with ROLLBACK and no error where the
    /// client has seen the transaction fail; ours may have sent its COMMIT before it looked.
    pub(super) fn meet_loss(&mut self, frame: &Frame<'_>) -> bool {
        let (in_transaction, told, why) = match &self.lost {
            Lost::No => return true,
            Lost::Told => (true, true, "it was lost before"),
            Lost::Untold { in_transaction, why } => (*in_transaction, false, &**why),
        };
        let kind = Asked::of(self, frame.tag, frame.body, frame.whole, &[]).class.kind;
        let commits = matches!(kind, Kind::Commit { .. } | Kind::PrepareTransaction);
        let rolls_back = matches!(kind, Kind::Rollback { .. });
        if in_transaction && !commits && (told || rolls_back) {
            self.lost = Lost::Told;
            return true;
        }
        let words = if in_transaction { report(Danger::Read, true, false, why) } else { state_lost(why) };
        let stays = in_transaction && !commits;
        self.lost = if stays { Lost::Told } else { Lost::No };
        let out = self.client.out();
        say(out, &words);
        if frame.tag == b'Q' {
            out.extend_from_slice(&backend::write_ready_for_query(status(stays)));
        } else {
            self.skip = Skip::ToSync;
        }
        false
    }

    /// A message that was answered with an error before it was looked at.
    pub(super) fn skipped(&mut self, frame: &Frame<'_>) -> Result<(), Turn> {
        let ends = match self.skip {
            Skip::One => true,
            _ => frame.tag == b'S',
        };
        if ends {
            self.skip = Skip::Nothing;
            let in_transaction = matches!(self.lost, Lost::Told | Lost::Untold { in_transaction: true, .. });
            self.client.out().extend_from_slice(&backend::write_ready_for_query(status(in_transaction)));
        }
        if frame.tag == b'X' { Err(Turn::End(End::ClientGone)) } else { Ok(()) }
    }

    /// Brings a new server into the failed transaction that the client believes to be in.
    pub(super) fn failed_transaction(out: &mut BytesMut) -> usize {
        write_query(out, b"BEGIN").expect(SHORT);
        write_query(out, b"ROLLBACK TO SAVEPOINT \"pgsteady: the transaction was lost in a failover\"").expect(SHORT);
        2
    }
}

fn status(in_transaction: bool) -> TransactionStatus {
    if in_transaction { TransactionStatus::Failed } else { TransactionStatus::Idle }
}

fn report(danger: Danger, in_transaction: bool, commits: bool, why: &str) -> Report {
    if commits || (danger == Danger::Write && !in_transaction) { unknown(why) } else { rolled_back(why) }
}

fn unknown(why: &str) -> Report {
    let text = "the server was lost while it committed; it is not known whether the transaction was committed";
    Report::error(sqlstate::TRANSACTION_RESOLUTION_UNKNOWN, text).detail(why)
}

fn rolled_back(why: &str) -> Report {
    let text = "the server was lost, and the transaction was rolled back with it";
    Report::error(sqlstate::SERIALIZATION_FAILURE, text).detail(why).hint("It is safe to run the transaction again.")
}

/// What is said in place of an acknowledgement that is worth nothing.
pub(super) fn not_replicated() -> Report {
    let text = "the commit was cancelled while it waited for a standby; it is not known whether it will last";
    Report::error(sqlstate::TRANSACTION_RESOLUTION_UNKNOWN, text)
}

fn state_lost(why: &str) -> Report {
    let text =
        "the server was lost, and with it the state of this session: temporary tables, locks, listening, cursors";
    Report::error(sqlstate::CONNECTION_FAILURE, text).detail(why).hint("The session can go on without that state.")
}
