//! The first packets of a connection: encryption requests, a cancel request, the startup packet. Not the login that follows.
//!
//! A machine whose states are consumed: a request for encryption turns a [`Greeting`] into an [`Encryption`], and only its
//! answer gives a greeting back, so that nothing can be answered twice or read past. Rules: `ProcessStartupPacket` in
//! PostgreSQL's `backend_startup.c`; manual, section "Message Flow / Start-up".

use std::fmt;

use bytes::BytesMut;

use crate::error::Malformed;
use crate::fields::{self, Reader};
use crate::sqlstate::{self, SqlState};

/// Greatest length of a startup packet in bytes, without its length: PostgreSQL's `MAX_STARTUP_PACKET_LENGTH`.
pub const MAX_STARTUP: usize = 10_000;
/// Greatest length of a cancel key in bytes (protocol 3.2).
pub const MAX_CANCEL_KEY: usize = 256;
/// Least length of a cancel key in bytes: that of protocol 3.0.
pub const MIN_CANCEL_KEY: usize = 4;
/// The newest minor version of protocol 3 that we speak.
pub const NEWEST_MINOR: u16 = 2;
/// First byte of a TLS handshake record: direct TLS, without SSLRequest.
pub const TLS_HANDSHAKE: u8 = 0x16;

pub(crate) const PROTOCOL_3: u32 = 3 << 16;
/// What stands in a CancelRequest where others have a version of the protocol.
pub const CANCEL_CODE: u32 = (1234 << 16) | 5678;
pub(crate) const SSL_CODE: u32 = (1234 << 16) | 5679;
pub(crate) const GSSENC_CODE: u32 = (1234 << 16) | 5680;

/// A connection of which no startup packet has been read.
#[derive(Debug, PartialEq, Eq)]
pub struct Greeting {
    may_ask_tls: bool,
    may_ask_gss: bool,
    encrypted: bool,
}

/// What the bytes so far are.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Not enough yet: read on and come back with all of it.
    More(Greeting),
    /// A TLS handshake without SSLRequest. Nothing has been consumed. ALPN must turn out to be `postgresql`.
    DirectTls(Encryption),
    /// SSLRequest, to be answered with one byte. All bytes have been consumed.
    Ssl(Encryption),
    /// GSSENCRequest, to be answered with one byte. All bytes have been consumed.
    Gss(Encryption),
    /// Cancel a query; nothing is answered. `usize` bytes have been consumed.
    Cancel(CancelRequest, usize),
    /// The startup packet. `usize` bytes have been consumed.
    Startup(Startup, usize),
}

/// Encryption was asked for; say how it was answered to go on.
#[derive(Debug, PartialEq, Eq)]
pub struct Encryption {
    greeting: Greeting,
}

impl Encryption {
    /// Encryption is in force (`S` or `G` was sent, the handshake is over): what is read now was encrypted.
    #[must_use]
    pub const fn established(self) -> Greeting {
        Greeting { may_ask_tls: false, may_ask_gss: false, encrypted: true }
    }

    /// `N` was sent: the client may go on without encryption, or ask for the other kind.
    #[must_use]
    pub const fn refused(self) -> Greeting {
        self.greeting
    }
}

impl Default for Greeting {
    fn default() -> Self {
        Self::new()
    }
}

impl Greeting {
    /// A connection that has just been accepted.
    #[must_use]
    pub const fn new() -> Self {
        Self { may_ask_tls: true, may_ask_gss: true, encrypted: false }
    }

    /// Reads what has come so far; `bytes` are all those not consumed yet.
    ///
    /// # Errors
    /// [`Refusal`]: tell the client (where it says so) and close.
    pub fn read(self, bytes: &[u8]) -> Result<Step, Refusal> {
        if bytes.first() == Some(&TLS_HANDSHAKE) && self.may_ask_tls && self.may_ask_gss && !self.encrypted {
            return Ok(Step::DirectTls(Encryption { greeting: self }));
        }
        let Some(&length) = bytes.first_chunk::<4>() else { return Ok(Step::More(self)) };
        let length = usize::try_from(u32::from_be_bytes(length)).map_err(|_| Refusal::Length)?;
        let content = length.checked_sub(4).filter(|l| (4..=MAX_STARTUP).contains(l)).ok_or(Refusal::Length)?;
        let Some((packet, behind)) = bytes.split_at_checked(length) else { return Ok(Step::More(self)) };
        let mut fields = Reader::new(packet, "startup packet");
        fields.bytes(4)?;
        match fields.u32()? {
            SSL_CODE if self.may_ask_tls => self.ask(content, behind, false),
            GSSENC_CODE if self.may_ask_gss => self.ask(content, behind, true),
            CANCEL_CODE => Ok(Step::Cancel(CancelRequest::read(fields)?, length)),
            version if version & 0xffff_0000 == PROTOCOL_3 => {
                Ok(Step::Startup(Startup::read(version, fields)?, length))
            }
            version => Err(Refusal::Version(version)),
        }
    }

    fn ask(self, content: usize, behind: &[u8], gss: bool) -> Result<Step, Refusal> {
        if content != 4 {
            return Err(Refusal::Length);
        }
        // CVE-2021-3935 and CVE-2021-23214: what came in the clear must never be taken for what came encrypted.
        if !behind.is_empty() {
            return Err(if gss { Refusal::BehindGssRequest } else { Refusal::BehindSslRequest });
        }
        let greeting = Self {
            may_ask_tls: self.may_ask_tls && gss,
            may_ask_gss: self.may_ask_gss && !gss,
            encrypted: self.encrypted,
        };
        let asked = Encryption { greeting };
        Ok(if gss { Step::Gss(asked) } else { Step::Ssl(asked) })
    }

    /// Whether what is read now was encrypted.
    #[must_use]
    pub const fn is_encrypted(&self) -> bool {
        self.encrypted
    }
}

/// Whom to cancel. The key is a secret of the client's connection: no `Debug` shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct CancelRequest {
    /// Process number as it was given out in BackendKeyData.
    pub process: u32,
    /// The key, 4 to 256 bytes. Compare in constant time.
    pub key: Vec<u8>,
}

impl CancelRequest {
    fn read(mut fields: Reader<'_>) -> Result<Self, Refusal> {
        let process = fields.u32()?;
        let key = fields.rest();
        if !(MIN_CANCEL_KEY..=MAX_CANCEL_KEY).contains(&key.len()) {
            return Err(Refusal::Length);
        }
        Ok(Self { process, key: key.to_vec() })
    }
}

impl fmt::Debug for CancelRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelRequest").field("process", &self.process).finish_non_exhaustive()
    }
}

/// What a client says of itself. Names and values are bytes: PostgreSQL does not ask that they be UTF-8.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Startup {
    minor: u16,
    parameters: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Startup {
    fn read(version: u32, mut fields: Reader<'_>) -> Result<Self, Refusal> {
        let [_, _, high, low] = version.to_be_bytes();
        let mut parameters = Vec::new();
        loop {
            let name = fields.cstr().map_err(|_| Refusal::Terminator)?;
            if name.is_empty() {
                break;
            }
            let value = fields.cstr().map_err(|_| Refusal::Terminator)?;
            parameters.push((name.to_vec(), value.to_vec()));
        }
        fields.finish().map_err(|_| Refusal::Terminator)?;
        Ok(Self { minor: u16::from_be_bytes([high, low]), parameters })
    }

    /// Minor version of protocol 3 that the client asked for.
    #[must_use]
    pub const fn minor(&self) -> u16 {
        self.minor
    }

    /// Minor version that is spoken: what was asked for, or our newest.
    #[must_use]
    pub const fn agreed_minor(&self) -> u16 {
        if self.minor < NEWEST_MINOR { self.minor } else { NEWEST_MINOR }
    }

    /// All parameters as they came, in order, duplicates included.
    pub fn parameters(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.parameters.iter().map(|(name, value)| (name.as_slice(), value.as_slice()))
    }

    /// A parameter by its exact name; of several the last counts, as in PostgreSQL.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.parameters.iter().rev().find(|(n, _)| n == name.as_bytes()).map(|(_, value)| value.as_slice())
    }

    /// As [`Startup::get`], as text.
    ///
    /// # Errors
    /// The value is not UTF-8.
    pub fn text(&self, name: &'static str) -> Result<Option<&str>, Refusal> {
        self.get(name).map(|value| std::str::from_utf8(value).map_err(|_| Refusal::NotText(name))).transpose()
    }

    /// The user to log in as; `None` if missing or empty, which PostgreSQL refuses with 28000.
    ///
    /// # Errors
    /// The name is not UTF-8.
    pub fn user(&self) -> Result<Option<&str>, Refusal> {
        Ok(self.text("user")?.filter(|user| !user.is_empty()))
    }

    /// The database asked for: by default the user's name.
    ///
    /// # Errors
    /// The name is not UTF-8.
    pub fn database(&self) -> Result<Option<&str>, Refusal> {
        match self.text("database")?.filter(|database| !database.is_empty()) {
            Some(database) => Ok(Some(database)),
            None => self.user(),
        }
    }

    /// Whether the client must be told what of its wishes we do not know: see [`Startup::negotiate`].
    #[must_use]
    pub fn needs_negotiation(&self) -> bool {
        self.minor > NEWEST_MINOR || self.extensions().next().is_some()
    }

    /// Appends NegotiateProtocolVersion: the minor version that we speak and the protocol extensions that we do not know.
    ///
    /// # Errors
    /// The message would be too long; it cannot be, as a startup packet is short.
    pub fn negotiate(&self, out: &mut BytesMut) -> Result<(), Malformed> {
        fields::message(out, b'v', |body| {
            body.u32(PROTOCOL_3 | u32::from(self.agreed_minor()))?;
            body.u32(fields::declared(self.extensions().count())?)?;
            self.extensions().try_for_each(|name| body.cstr(name))
        })
    }

    /// Names of requested protocol extensions (`_pq_.…`). We know none.
    fn extensions(&self) -> impl Iterator<Item = &[u8]> {
        self.parameters().map(|(name, _)| name).filter(|name| name.starts_with(b"_pq_."))
    }
}

/// Why a connection is closed before it has logged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A packet of impossible length. PostgreSQL closes without a word: it may not be a PostgreSQL client at all.
    Length,
    /// A protocol that we do not speak, or a second request for encryption.
    Version(u32),
    /// The list of parameters does not end with the packet.
    Terminator,
    /// Bytes in the clear behind SSLRequest: CVE-2021-3935.
    BehindSslRequest,
    /// Bytes in the clear behind GSSENCRequest.
    BehindGssRequest,
    /// A parameter that must be text is not UTF-8.
    NotText(&'static str),
}

impl Refusal {
    /// The SQLSTATE to report it under; `None` where PostgreSQL closes without an answer.
    #[must_use]
    pub const fn sqlstate(&self) -> Option<SqlState> {
        match self {
            Self::Length => None,
            Self::Version(_) => Some(sqlstate::FEATURE_NOT_SUPPORTED),
            Self::Terminator | Self::BehindSslRequest | Self::BehindGssRequest => Some(sqlstate::PROTOCOL_VIOLATION),
            Self::NotText(_) => Some(sqlstate::CHARACTER_NOT_IN_REPERTOIRE),
        }
    }
}

impl From<Malformed> for Refusal {
    fn from(_: Malformed) -> Self {
        Self::Length
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length => write!(f, "invalid length of startup packet"),
            Self::Version(version) => write!(
                f,
                "unsupported frontend protocol {}.{}: server supports 3.0 to 3.{NEWEST_MINOR}",
                version >> 16,
                version & 0xffff
            ),
            Self::Terminator => write!(f, "invalid startup packet layout: expected terminator as last byte"),
            Self::BehindSslRequest => write!(f, "received unencrypted data after SSL request"),
            Self::BehindGssRequest => write!(f, "received unencrypted data after GSSAPI encryption request"),
            Self::NotText(name) => write!(f, "startup parameter \"{name}\" is not valid UTF-8"),
        }
    }
}

impl std::error::Error for Refusal {}
