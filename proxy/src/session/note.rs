//! What a session attaches to a request, to be told when it is settled. Small and `Copy`, because it travels with the
//! server; whatever is larger stays in the session, in the order of asking.

/// What a settled request means for the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Note {
    /// It ends a unit: with it the oldest unit of the session is settled.
    pub(crate) unit: bool,
    /// What else hangs on it.
    pub(crate) about: About,
}

/// What hangs on a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum About {
    /// Nothing.
    Nothing,
    /// The client's Parse or Close of a name, with the statement that the server was given for it (if it was).
    Name(Option<u64>),
    /// The client's Parse of the unnamed statement.
    Unnamed,
    /// Our own Parse of a statement that the client prepared earlier.
    Ours(u64),
    /// Our own Parse of the unnamed statement, or our closing of somebody else's.
    OursUnnamed,
    /// A request whose error is to be told as "prepared statement already exists".
    Duplicate,
    /// A statement with effects on the session: the oldest of those that the session keeps.
    Effects,
    /// Our question for the transaction id.
    Xid,
    /// A request that stands for one that is refused: its error is told as that.
    Weak,
}

impl About {
    /// A note on a request that ends no unit.
    pub(crate) fn note(self) -> Note {
        Note { unit: false, about: self }
    }

    /// A note on a request that ends a unit.
    pub(crate) fn unit(self) -> Note {
        Note { unit: true, about: self }
    }
}
