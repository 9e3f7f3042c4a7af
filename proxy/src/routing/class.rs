//! What is known of a statement from its text alone. Made by the classifier; kept with a prepared statement.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use super::Route;

/// What a statement is. Cheap to clone: two or three words, and a shared list only where there are effects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    /// Which statement it is.
    pub kind: Kind,
    /// *Proven* to change nothing and to need nothing that only a primary has: it may run on a standby. A BEGIN READ ONLY
    /// counts, unless it asks for SERIALIZABLE, which a standby refuses. `false` says nothing.
    pub reads_only: bool,
    /// What a comment `pgsteady.route=…` at its start or its end asks for.
    pub hint: Option<Route>,
    /// It sets `synchronous_commit` below `on`, for the session or the transaction.
    pub weakens_commits: bool,
    /// What it leaves behind in the server's session, in the order of execution.
    pub effects: Effects,
    /// The statements of a [`Kind::Several`], in order; else empty.
    pub parts: Parts,
}

/// Which statement it is, as far as a session or the routing has to tell them apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Nothing but white space, comments and semicolons.
    Empty,
    /// BEGIN or START TRANSACTION, with what it says on READ ONLY (`true`) or READ WRITE (`false`).
    Begin {
        /// The last access mode it names.
        read_only: Option<bool>,
    },
    /// COMMIT or END.
    Commit {
        /// AND CHAIN: a new transaction is open behind it.
        chain: bool,
    },
    /// ROLLBACK or ABORT.
    Rollback {
        /// AND CHAIN.
        chain: bool,
    },
    /// SAVEPOINT.
    Savepoint,
    /// RELEASE SAVEPOINT.
    Release,
    /// ROLLBACK TO SAVEPOINT.
    RollbackTo,
    /// PREPARE TRANSACTION.
    PrepareTransaction,
    /// COMMIT PREPARED.
    CommitPrepared,
    /// ROLLBACK PREPARED.
    RollbackPrepared,
    /// SELECT, VALUES, TABLE, SHOW, EXPLAIN, FETCH, MOVE, CLOSE, DECLARE.
    Query,
    /// INSERT, UPDATE, DELETE, MERGE, or a query with one of them in WITH.
    Write,
    /// COPY, in either direction.
    Copy,
    /// SET.
    Set {
        /// SET LOCAL or SET TRANSACTION: gone with the transaction.
        local: bool,
    },
    /// RESET, and SET … TO DEFAULT.
    Reset,
    /// DISCARD ALL.
    DiscardAll,
    /// DISCARD PLANS, SEQUENCES or TEMP.
    Discard,
    /// PREPARE of this name.
    Prepare(Arc<str>),
    /// EXECUTE of this name.
    Execute(Arc<str>),
    /// DEALLOCATE of this name.
    Deallocate(Arc<str>),
    /// DEALLOCATE ALL.
    DeallocateAll,
    /// LISTEN on this channel.
    Listen(Arc<str>),
    /// UNLISTEN of this channel, or of all (`None`).
    Unlisten(Option<Arc<str>>),
    /// What changes the catalog or the cluster: CREATE, ALTER, DROP, GRANT, TRUNCATE, VACUUM, …
    Ddl,
    /// More than one statement: [`Class::parts`].
    Several,
    /// Anything else (DO, CALL, LOCK, NOTIFY, …), and what could not be read.
    Unknown,
}

/// A list that is nearly always empty, and costs nothing then.
#[derive(Debug, PartialEq, Eq)]
pub struct Few<T>(Option<Arc<[T]>>);

/// What a statement leaves behind.
pub type Effects = Few<Effect>;
/// The statements of several.
pub type Parts = Few<Class>;

/// One thing that a statement leaves behind in the session of the server, and that the next client must not meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// A setting that can be made again on another server.
    Setting(SettingChange),
    /// Something that only this server has: the session has to keep it.
    Pin(PinReason),
}

/// A change of one setting, or of all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingChange {
    /// The parameter in lower case; empty for [`Change::ResetAll`].
    pub name: Box<str>,
    /// What happens to it.
    pub change: Change,
    /// Gone with the transaction (SET LOCAL).
    pub local: bool,
}

/// What happens to a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It is set; this statement sets it to the same again. It may hold a secret: not for logs.
    Set(Box<str>),
    /// Back to what the session began with.
    Reset,
    /// RESET ALL: all settings but `role` and `session_authorization`, which it leaves (PostgreSQL manual, RESET).
    ResetAll,
}

/// Why a session has to keep its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinReason {
    /// A temporary table, view, sequence or other object that outlives the transaction.
    Temporary,
    /// DECLARE … WITH HOLD.
    CursorWithHold,
    /// LISTEN.
    Listen,
    /// A session-level advisory lock.
    AdvisoryLock,
    /// PREPARE as an SQL statement.
    Prepare,
    /// LOAD of a library.
    Load,
    /// `set_config` whose outcome cannot be told from the text.
    SetConfig,
    /// Another function with state in the session: dblink, replication origins, temporary slots.
    SessionFunction,
    /// A text that could not be read (too long, too deep, not UTF-8, unknown syntax) and holds words of one of these.
    Unread,
}

impl Class {
    /// A statement of which nothing is known: for the primary.
    #[must_use]
    pub const fn unknown() -> Self {
        Self::of(Kind::Unknown)
    }

    /// Whether a transaction that begins with this statement may run on a standby.
    #[must_use]
    pub fn starts_read_only(&self) -> bool {
        self.reads_only
    }

    pub(super) const fn of(kind: Kind) -> Self {
        Self { kind, reads_only: false, hint: None, weakens_commits: false, effects: Few::none(), parts: Few::none() }
    }

    /// What the shared parts of it weigh in a cache, about; in bytes.
    pub(super) fn weight(&self) -> usize {
        let name = match &self.kind {
            Kind::Prepare(name) | Kind::Execute(name) | Kind::Deallocate(name) | Kind::Listen(name) => name.len(),
            Kind::Unlisten(name) => name.as_ref().map_or(0, |name| name.len()),
            _ => 0,
        };
        let effects: usize = self.effects.iter().map(Effect::weight).sum();
        let parts: usize = self.parts.iter().map(Class::weight).sum();
        size_of::<Self>() + name + effects + parts
    }
}

impl fmt::Display for PinReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Temporary => "temporary object",
            Self::CursorWithHold => "cursor WITH HOLD",
            Self::Listen => "LISTEN",
            Self::AdvisoryLock => "session-level advisory lock",
            Self::Prepare => "PREPARE",
            Self::Load => "LOAD",
            Self::SetConfig => "set_config",
            Self::SessionFunction => "function with session state",
            Self::Unread => "statement that could not be read",
        })
    }
}

impl Effect {
    fn weight(&self) -> usize {
        let text = match self {
            Effect::Setting(SettingChange { name, change: Change::Set(text), .. }) => name.len() + text.len(),
            Effect::Setting(SettingChange { name, .. }) => name.len(),
            Effect::Pin(_) => 0,
        };
        size_of::<Self>() + text
    }
}

impl<T> Few<T> {
    /// An empty one.
    #[must_use]
    pub const fn none() -> Self {
        Self(None)
    }
}

impl<T> Clone for Few<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self::none()
    }
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.0.as_deref().unwrap_or(&[])
    }
}

impl<T> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        let mut items = items.into_iter().peekable();
        if items.peek().is_none() { Self(None) } else { Self(Some(items.collect())) }
    }
}
