//! pgsteady's own login on a PostgreSQL server, from the startup packet to the first ReadyForQuery, over a stream that is
//! connected (and has TLS) already. The server is not trusted: all that it sends is bounded and checked.

use std::fmt;
use std::io;

use bytes::{Bytes, BytesMut};
use pgwire::auth::scram::client::{Binding, Client};
use pgwire::auth::scram::{Nonce, OwnKeys, ScramError};
use pgwire::auth::{Authentication, SaslInitial, md5, write_password, write_sasl_response};
use pgwire::fields::{self, Reader};
use pgwire::report::View;
use pgwire::sqlstate::SqlState;
use pgwire::{Malformed, frame};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::read::{self, ReadError};
use super::{Hashing, ServerLogin};

/// Messages of one login; PostgreSQL sends about 25.
const MAX_MESSAGES: usize = 500;
/// Bytes of one login.
const MAX_BYTES: usize = 1 << 20;
/// Greatest declared length of an error or a notice during a login, in bytes.
const MAX_REPORT: u32 = 65_535;
/// Protocol 3.0: its four bytes of a cancel key are known to every server.
const PROTOCOL: u32 = 3 << 16;

/// What the stream is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Link<'a> {
    /// The channel binding data of its TLS connection (from `tls::connect`).
    pub end_point: Option<&'a [u8]>,
    /// Nobody between can listen: TLS, a Unix socket, or this machine. Only then a password is sent in the clear.
    pub is_private: bool,
}

/// A server that has logged us in and is ready for a query.
#[derive(Debug)]
pub struct Greeted {
    /// The parameters that it reported, in order.
    pub parameters: Vec<(String, String)>,
    /// Its process id, for a cancel request.
    pub process_id: u32,
    /// The secret of a cancel request, 4 to 256 bytes.
    pub key: Bytes,
    /// What was read behind ReadyForQuery.
    pub rest: BytesMut,
}

/// Why a server did not log us in.
#[derive(Debug)]
pub enum LoginError {
    /// The server closed the connection.
    Closed,
    /// The connection broke.
    Io(io::Error),
    /// The server refused us.
    Refused {
        /// The body of its ErrorResponse, as it came.
        body: Bytes,
        /// Its SQLSTATE, if there is a proper one.
        sqlstate: Option<SqlState>,
        /// Its message, cleaned for a log.
        message: String,
        /// Before it asked for a password: another attempt of sslmode `allow` or `prefer` may fare better.
        unasked: bool,
    },
    /// The server does not speak as PostgreSQL does.
    Protocol(String),
    /// The server asks for something that there is not; what.
    Missing(&'static str),
    /// The server keeps another secret for this user than the one the client was checked against.
    OtherSecret,
    /// The server asks for the password in the clear where others can listen.
    InTheClear,
    /// The SCRAM exchange failed, or the server did not prove itself in it.
    Scram(ScramError),
    /// pgsteady stops.
    Stopping,
}

impl fmt::Display for LoginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the server closed the connection"),
            Self::Io(error) => write!(f, "{error}"),
            Self::Refused { message, sqlstate: Some(state), .. } => write!(f, "{message} (SQLSTATE {state})"),
            Self::Refused { message, .. } => f.write_str(message),
            Self::Protocol(what) => write!(f, "the server broke the protocol: {what}"),
            Self::Missing(what) => write!(f, "the server asks for {what}, and pgsteady has none for this user"),
            Self::OtherSecret => {
                f.write_str("the server has another password for this user than the list or the lookup")
            }
            Self::InTheClear => {
                f.write_str("the server asks for the password in the clear over an unencrypted connection")
            }
            Self::Scram(error) => write!(f, "server login failed: {error}"),
            Self::Stopping => f.write_str("pgsteady stops"),
        }
    }
}

impl std::error::Error for LoginError {}

impl From<ReadError> for LoginError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Closed => Self::Closed,
            ReadError::Io(error) => Self::Io(error),
            ReadError::Malformed(what) => what.into(),
            ReadError::Unexpected(tag) => Self::Protocol(format!("message 0x{tag:02x} during login")),
        }
    }
}

impl From<Malformed> for LoginError {
    fn from(what: Malformed) -> Self {
        Self::Protocol(what.to_string())
    }
}

impl From<ScramError> for LoginError {
    fn from(error: ScramError) -> Self {
        Self::Scram(error)
    }
}

/// Logs in. `startup` are the parameters of the startup packet, `user` among them. The caller bounds the time; `hashing`
/// is not the one of clients.
///
/// # Errors
/// [`LoginError`]; the stream is then of no use.
pub async fn login<S>(
    stream: &mut S,
    startup: &[(&str, &str)],
    login: &ServerLogin,
    link: Link<'_>,
    hashing: &Hashing,
) -> Result<Greeted, LoginError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let user = startup.iter().rev().find(|(name, _)| *name == "user").map_or("", |(_, user)| *user);
    let dialogue = Dialogue { stream, rest: BytesMut::new(), messages: 0, bytes: 0, was_asked: false };
    let mut attempt = Attempt { dialogue, user, login, link, hashing };
    attempt.dialogue.send(|out| write_startup(out, startup)).await?;
    attempt.authenticate().await?;
    attempt.dialogue.greeting().await
}

fn write_startup(out: &mut BytesMut, startup: &[(&str, &str)]) -> Result<(), Malformed> {
    fields::untagged(out, |body| {
        body.u32(PROTOCOL)?;
        for (name, value) in startup {
            body.cstr(name.as_bytes())?;
            body.cstr(value.as_bytes())?;
        }
        body.u8(0)
    })
}

struct Attempt<'a, S> {
    dialogue: Dialogue<'a, S>,
    user: &'a str,
    login: &'a ServerLogin,
    link: Link<'a>,
    hashing: &'a Hashing,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Attempt<'_, S> {
    /// One question at most, and then AuthenticationOk.
    async fn authenticate(&mut self) -> Result<(), LoginError> {
        let body = self.dialogue.request().await?;
        match Authentication::read(&body)? {
            Authentication::Ok => return Ok(()),
            Authentication::Cleartext => self.cleartext().await?,
            Authentication::Md5(salt) => self.md5(salt).await?,
            Authentication::Sasl(mechanisms) => self.scram(&mechanisms).await?,
            Authentication::Unsupported(method) => {
                let what = format!("authentication method {method} is not supported");
                return Err(LoginError::Protocol(what));
            }
            Authentication::SaslContinue(_) | Authentication::SaslFinal(_) => return Err(out_of_turn()),
        }
        let body = self.dialogue.request().await?;
        if Authentication::read(&body)? == Authentication::Ok { Ok(()) } else { Err(out_of_turn()) }
    }

    async fn cleartext(&mut self) -> Result<(), LoginError> {
        let ServerLogin::Password(password) = self.login else { return Err(LoginError::Missing("the password")) };
        if !self.link.is_private {
            return Err(LoginError::InTheClear);
        }
        self.dialogue.send(|out| write_password(out, password.text.reveal())).await
    }

    async fn md5(&mut self, salt: [u8; 4]) -> Result<(), LoginError> {
        let hash = match self.login {
            ServerLogin::Password(password) => password.md5(self.user),
            ServerLogin::Md5(hash) => hash.clone(),
            ServerLogin::Scram(_) | ServerLogin::Nothing => return Err(LoginError::Missing("an md5 password")),
        };
        self.dialogue.send(|out| write_password(out, md5::answer(&hash, salt).reveal())).await
    }

    async fn scram(&mut self, mechanisms: &[&[u8]]) -> Result<(), LoginError> {
        if matches!(self.login, ServerLogin::Nothing | ServerLogin::Md5(_)) {
            return Err(LoginError::Missing("a SCRAM login"));
        }
        let binding = Binding::choose(mechanisms, self.link.end_point.map(<[u8]>::to_vec), false)?;
        let mechanism = binding.mechanism();
        let client = Client::new(Nonce::random(), binding);
        let first = client.message();
        let initial = SaslInitial { mechanism: mechanism.as_bytes(), response: Some(first.as_bytes()) };
        self.dialogue.send(|out| initial.write(out)).await?;

        let body = self.dialogue.request().await?;
        let Authentication::SaslContinue(challenge) = Authentication::read(&body)? else { return Err(out_of_turn()) };
        let challenged = client.challenged(challenge)?;
        let keys = self.keys(challenged.salt(), challenged.iterations()).await?;
        let (answer, proved) = challenged.answer(&keys);
        self.dialogue.send(|out| write_sasl_response(out, answer.as_bytes())).await?;

        let body = self.dialogue.request().await?;
        let Authentication::SaslFinal(proof) = Authentication::read(&body)? else { return Err(out_of_turn()) };
        Ok(proved.verify(proof)?)
    }

    async fn keys(&self, salt: &[u8], iterations: u32) -> Result<OwnKeys, LoginError> {
        match self.login {
            ServerLogin::Password(password) => {
                password.keys(salt, iterations, self.hashing).await.ok_or(LoginError::Stopping)
            }
            ServerLogin::Scram(own) if own.is_salted(salt, iterations) => Ok(own.keys.clone()),
            ServerLogin::Scram(_) => Err(LoginError::OtherSecret),
            ServerLogin::Nothing | ServerLogin::Md5(_) => Err(LoginError::Missing("a SCRAM login")),
        }
    }
}

fn out_of_turn() -> LoginError {
    LoginError::Protocol("an authentication request out of turn".to_owned())
}

struct Dialogue<'a, S> {
    stream: &'a mut S,
    rest: BytesMut,
    messages: usize,
    bytes: usize,
    was_asked: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Dialogue<'_, S> {
    async fn send(&mut self, write: impl FnOnce(&mut BytesMut) -> Result<(), Malformed>) -> Result<(), LoginError> {
        let mut out = BytesMut::new();
        write(&mut out)?;
        let sent = self.stream.write_all(&out).await;
        out.fill(0);
        sent.map_err(LoginError::Io)?;
        self.stream.flush().await.map_err(LoginError::Io)
    }

    /// The next message that is not a notice.
    async fn next(&mut self) -> Result<(u8, BytesMut), LoginError> {
        loop {
            let (tag, body) = read::message(self.stream, &mut self.rest, limit).await?;
            self.messages += 1;
            self.bytes += body.len();
            if self.messages > MAX_MESSAGES || self.bytes > MAX_BYTES {
                return Err(LoginError::Protocol("a login without end".to_owned()));
            }
            match tag {
                b'N' => {}
                b'E' => return Err(self.refused(body.freeze())),
                _ => return Ok((tag, body)),
            }
        }
    }

    fn refused(&self, body: Bytes) -> LoginError {
        let report = View::new(&body);
        let message = match report.message() {
            text if text.is_empty() => "the server refused the login without a message".to_owned(),
            text => text.into_owned(),
        };
        LoginError::Refused { sqlstate: report.sqlstate(), message, unasked: !self.was_asked, body }
    }

    /// The next authentication request.
    async fn request(&mut self) -> Result<BytesMut, LoginError> {
        let (tag, body) = self.next().await?;
        if tag != b'R' {
            return Err(LoginError::Protocol(format!("message 0x{tag:02x} before the login is over")));
        }
        self.was_asked = true;
        Ok(body)
    }

    /// From AuthenticationOk to ReadyForQuery.
    async fn greeting(mut self) -> Result<Greeted, LoginError> {
        let mut parameters = Vec::new();
        let mut cancel = None;
        loop {
            let (tag, body) = self.next().await?;
            match tag {
                b'S' => parameters.push(parameter(&body)?),
                b'K' => {
                    let mut fields = Reader::new(&body, "BackendKeyData");
                    cancel = Some((fields.u32()?, Bytes::copy_from_slice(fields.rest())));
                }
                b'Z' if &body[..] == b"I" => break,
                tag => return Err(LoginError::Protocol(format!("message 0x{tag:02x} in the greeting"))),
            }
        }
        // Without BackendKeyData a server cannot be cancelled; poolers in front of PostgreSQL may leave it out.
        let (process_id, key) = cancel.unwrap_or_default();
        Ok(Greeted { parameters, process_id, key, rest: self.rest })
    }
}

fn parameter(body: &[u8]) -> Result<(String, String), LoginError> {
    let mut fields = Reader::new(body, "ParameterStatus");
    let (name, value) = (fields.cstr()?, fields.cstr()?);
    fields.finish()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((text(name), text(value)))
}

/// Least and greatest length to declare for what may come during a login.
fn limit(tag: u8) -> Option<(u32, u32)> {
    match tag {
        b'E' | b'N' => Some((frame::MIN_DECLARED, MAX_REPORT)),
        b'R' | b'S' | b'K' | b'Z' => frame::backend_limit(tag),
        _ => None,
    }
}
