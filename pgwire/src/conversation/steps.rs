//! What may answer which request: the table of the frontend/backend protocol, one step at a time. Not the queue of requests.

/// A message that was sent to the server, as far as its answers are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Simple query.
    Query,
    /// Parse.
    Parse,
    /// Bind.
    Bind,
    /// Describe.
    Describe {
        /// Of a statement; otherwise of a portal.
        statement: bool,
    },
    /// Execute.
    Execute,
    /// Close.
    Close,
    /// Sync.
    Sync,
    /// Flush: never answered itself.
    Flush,
    /// FunctionCall.
    FunctionCall,
    /// CopyData: never answered itself.
    CopyData,
    /// CopyDone.
    CopyDone,
    /// CopyFail.
    CopyFail,
    /// Terminate.
    Terminate,
}

impl Request {
    /// From a frontend message's tag and body; `None` for a tag that is not sent after login. A Describe of neither a
    /// statement nor a portal counts as one of a portal: PostgreSQL answers it with an error.
    #[inline]
    #[must_use]
    pub fn from_tag(tag: u8, body: &[u8]) -> Option<Self> {
        Some(match tag {
            b'Q' => Self::Query,
            b'P' => Self::Parse,
            b'B' => Self::Bind,
            b'D' => Self::Describe { statement: body.first() == Some(&b'S') },
            b'E' => Self::Execute,
            b'C' => Self::Close,
            b'S' => Self::Sync,
            b'H' => Self::Flush,
            b'F' => Self::FunctionCall,
            b'd' => Self::CopyData,
            b'c' => Self::CopyDone,
            b'f' => Self::CopyFail,
            b'X' => Self::Terminate,
            _ => return None,
        })
    }

    /// Whether an error in it makes the server skip everything up to the next Sync.
    pub(super) const fn is_extended(self) -> bool {
        matches!(self, Self::Parse | Self::Bind | Self::Describe { .. } | Self::Execute | Self::Close)
    }

    /// Whether the server never answers it by itself.
    pub(super) const fn is_unanswered(self) -> bool {
        matches!(self, Self::Flush | Self::CopyData | Self::CopyDone | Self::CopyFail | Self::Terminate)
    }

    /// The message that comes in masses at this stage of its answer and changes nothing.
    pub(super) const fn streams(self, stage: Stage) -> Option<u8> {
        match (self, stage) {
            (Self::Execute, Stage::Start) | (Self::Query, Stage::Rows) => Some(b'D'),
            (_, Stage::CopyOut | Stage::CopyBoth) => Some(b'd'),
            _ => None,
        }
    }

    /// What answers it, in words.
    pub(super) const fn expects(self, stage: Stage) -> &'static str {
        match (self, stage) {
            (Self::Query | Self::FunctionCall | Self::Sync, Stage::Failed) => "ReadyForQuery after the error",
            (_, Stage::CopyIn) => "CommandComplete or an error after CopyDone",
            (_, Stage::CopyOut) => "CopyData or CopyDone",
            (_, Stage::CopyOutDone) => "CommandComplete after CopyDone",
            (Self::Query, Stage::Rows) => "DataRow or CommandComplete",
            (Self::Query, Stage::Between) => "the next result or ReadyForQuery",
            (Self::Query, _) => "a result of Query",
            (Self::Parse, _) => "ParseComplete",
            (Self::Bind, _) => "BindComplete",
            (Self::Close, _) => "CloseComplete",
            (Self::Describe { statement: true }, Stage::Start) => "ParameterDescription",
            (Self::Describe { .. }, _) => "RowDescription or NoData",
            (Self::Execute, _) => "a result of Execute",
            (Self::FunctionCall, Stage::Start) => "FunctionCallResponse",
            (Self::FunctionCall | Self::Sync, _) => "ReadyForQuery",
            (Self::Flush | Self::CopyData | Self::CopyDone | Self::CopyFail | Self::Terminate, _) => "nothing",
        }
    }
}

/// How far the answer to the request in front has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing has come.
    Start,
    /// Query: a result is complete; another or ReadyForQuery follows.
    Between,
    /// Query: RowDescription has come.
    Rows,
    /// The server reads CopyData.
    CopyIn,
    /// The server sends CopyData.
    CopyOut,
    /// The server has sent CopyDone.
    CopyOutDone,
    /// Replication: both sides send CopyData.
    CopyBoth,
    /// Describe of a statement: ParameterDescription has come.
    Described,
    /// FunctionCall: FunctionCallResponse has come.
    Returned,
    /// ErrorResponse has come, ReadyForQuery has not.
    Failed,
}

impl Stage {
    /// Whether ReadyForQuery may end `request` now.
    pub(super) const fn may_end(self, request: Request) -> bool {
        match request {
            Request::Query => matches!(self, Self::Between | Self::Failed),
            Request::FunctionCall => matches!(self, Self::Returned | Self::Failed),
            Request::Sync => matches!(self, Self::Start | Self::Failed),
            _ => false,
        }
    }
}

/// What a message does to the request in front.
pub(super) enum Step {
    To(Stage),
    Done,
    /// The server has read CopyDone: ends the COPY, and with it an Execute.
    CopyInDone,
}

/// One step of an answer; `None` if the message cannot come here. ErrorResponse, ReadyForQuery and what is asynchronous are
/// dealt with before.
pub(super) const fn step(request: Request, stage: Stage, tag: u8) -> Option<Step> {
    match request {
        Request::Parse => only(stage, tag, b'1'),
        Request::Bind => only(stage, tag, b'2'),
        Request::Close => only(stage, tag, b'3'),
        Request::Describe { statement } => match (stage, tag) {
            (Stage::Start, b't') if statement => Some(Step::To(Stage::Described)),
            (Stage::Start, b'T' | b'n') if !statement => Some(Step::Done),
            (Stage::Described, b'T' | b'n') => Some(Step::Done),
            _ => None,
        },
        Request::FunctionCall => match (stage, tag) {
            (Stage::Start, b'V') => Some(Step::To(Stage::Returned)),
            _ => None,
        },
        Request::Execute => match (stage, tag) {
            (Stage::Start, b'D') => Some(Step::To(Stage::Start)),
            (Stage::Start, b'C' | b'I' | b's') | (Stage::CopyOutDone, b'C') => Some(Step::Done),
            (Stage::CopyIn, b'C') => Some(Step::CopyInDone),
            _ => copy(stage, tag),
        },
        Request::Query => query(stage, tag),
        _ => None,
    }
}

const fn only(stage: Stage, tag: u8, expected: u8) -> Option<Step> {
    if matches!(stage, Stage::Start) && tag == expected { Some(Step::Done) } else { None }
}

const fn query(stage: Stage, tag: u8) -> Option<Step> {
    match (stage, tag) {
        // BASE_BACKUP describes its end position right after CopyDone; so does the end of streaming replication.
        (Stage::Start | Stage::Between | Stage::CopyOutDone | Stage::CopyBoth, b'T') | (Stage::Rows, b'D') => {
            Some(Step::To(Stage::Rows))
        }
        (Stage::CopyIn, b'C') => Some(Step::CopyInDone),
        (Stage::Start | Stage::Between | Stage::Rows | Stage::CopyOutDone | Stage::CopyBoth, b'C')
        | (Stage::Start, b'I') => Some(Step::To(Stage::Between)),
        _ => copy(stage, tag),
    }
}

const fn copy(stage: Stage, tag: u8) -> Option<Step> {
    match (stage, tag) {
        (Stage::Start | Stage::Between, b'G') => Some(Step::To(Stage::CopyIn)),
        (Stage::Start | Stage::Between, b'H') => Some(Step::To(Stage::CopyOut)),
        (Stage::Start | Stage::Between, b'W') => Some(Step::To(Stage::CopyBoth)),
        (Stage::CopyOut, b'd') => Some(Step::To(Stage::CopyOut)),
        (Stage::CopyOut, b'c') => Some(Step::To(Stage::CopyOutDone)),
        (Stage::CopyBoth, b'd' | b'c') => Some(Step::To(Stage::CopyBoth)),
        _ => None,
    }
}

/// The name of a backend message, for what is said of one that does not fit.
pub(super) const fn name(tag: u8) -> &'static str {
    match tag {
        b'1' => "ParseComplete",
        b'2' => "BindComplete",
        b'3' => "CloseComplete",
        b'A' => "NotificationResponse",
        b'C' => "CommandComplete",
        b'D' => "DataRow",
        b'E' => "ErrorResponse",
        b'G' => "CopyInResponse",
        b'H' => "CopyOutResponse",
        b'I' => "EmptyQueryResponse",
        b'K' => "BackendKeyData",
        b'N' => "NoticeResponse",
        b'R' => "an authentication request",
        b'S' => "ParameterStatus",
        b'T' => "RowDescription",
        b'V' => "FunctionCallResponse",
        b'W' => "CopyBothResponse",
        b'Z' => "ReadyForQuery",
        b'c' => "CopyDone",
        b'd' => "CopyData",
        b'n' => "NoData",
        b's' => "PortalSuspended",
        b't' => "ParameterDescription",
        b'v' => "NegotiateProtocolVersion",
        _ => "an unknown message",
    }
}
