//! A client that says exactly what a test wants, right or wrong, byte for byte.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long a test waits for the next byte.
const READ_LIMIT: Duration = Duration::from_secs(15);
/// A server's message beyond this is not one that a test expects.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;

/// `SSLRequest`.
pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 0xD2, 0x16, 0x2F];
/// `GSSENCRequest`.
pub const GSS_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 0xD2, 0x16, 0x30];

/// A message from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its type byte.
    pub tag: u8,
    /// What follows the length.
    pub body: Vec<u8>,
}

impl Message {
    /// A field of an `ErrorResponse` or `NoticeResponse`, such as `b'C'` for the SQLSTATE.
    #[must_use]
    pub fn field(&self, code: u8) -> Option<String> {
        let found = self.body.split(|&byte| byte == 0).find(|field| field.first() == Some(&code))?;
        Some(String::from_utf8_lossy(&found[1..]).into_owned())
    }

    /// The columns of a `DataRow` as text.
    #[must_use]
    pub fn columns(&self) -> Vec<String> {
        let mut rest = &self.body[2..];
        let mut columns = Vec::new();
        while let Some((length, after)) = rest.split_first_chunk::<4>() {
            let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
            columns.push(String::from_utf8_lossy(&after[..length]).into_owned());
            rest = &after[length..];
        }
        columns
    }
}

/// A frame: type byte, length, body.
#[must_use]
pub fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("a test's message is short");
    [&[tag], &length.to_be_bytes()[..], body].concat()
}

/// A simple `Query`.
#[must_use]
pub fn query(sql: &str) -> Vec<u8> {
    frame(b'Q', format!("{sql}\0").as_bytes())
}

/// `Parse` without parameter types.
#[must_use]
pub fn parse(name: &str, sql: &str) -> Vec<u8> {
    frame(b'P', format!("{name}\0{sql}\0\0\0").as_bytes())
}

/// `Bind` to the unnamed portal, with text parameters and text results.
#[must_use]
pub fn bind(statement: &str, parameters: &[&str]) -> Vec<u8> {
    let mut body = format!("\0{statement}\0\0\0").into_bytes();
    body.extend(u16::try_from(parameters.len()).expect("few parameters").to_be_bytes());
    for parameter in parameters {
        body.extend(u32::try_from(parameter.len()).expect("a short parameter").to_be_bytes());
        body.extend(parameter.as_bytes());
    }
    body.extend([0, 0]);
    frame(b'B', &body)
}

/// `Execute` of the unnamed portal, all rows.
#[must_use]
pub fn execute() -> Vec<u8> {
    frame(b'E', &[0, 0, 0, 0, 0])
}

/// `Sync`.
#[must_use]
pub fn sync() -> Vec<u8> {
    frame(b'S', &[])
}

/// A `StartupMessage` of protocol 3.0.
#[must_use]
pub fn startup(parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = vec![0, 3, 0, 0];
    for (name, value) in parameters {
        body.extend(format!("{name}\0{value}\0").as_bytes());
    }
    body.push(0);
    let length = u32::try_from(body.len() + 4).expect("a test's startup packet is short");
    [&length.to_be_bytes()[..], &body].concat()
}

/// A `CancelRequest`.
#[must_use]
pub fn cancel_request(pid: i32, key: &[u8]) -> Vec<u8> {
    let length = u32::try_from(key.len() + 12).expect("a key is short");
    [&length.to_be_bytes()[..], &[4, 0xD2, 0x16, 0x2E], &pid.to_be_bytes(), key].concat()
}

/// A raw connection.
#[derive(Debug)]
pub struct Raw {
    /// The socket.
    pub stream: TcpStream,
    /// Process number and cancel key, after a login.
    pub key: (i32, Vec<u8>),
}

impl Raw {
    /// Connects to a port of this machine and says nothing.
    ///
    /// # Panics
    /// When nobody listens.
    pub async fn connect(port: u16) -> Self {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
        let stream = stream.unwrap_or_else(|error| panic!("port {port}: {error}"));
        stream.set_nodelay(true).expect("TCP_NODELAY can be set");
        Self { stream, key: (0, Vec::new()) }
    }

    /// Connects and logs in with a cleartext password or none; for configurations that ask for no more.
    ///
    /// # Panics
    /// When the login fails.
    pub async fn login(port: u16, user: &str, database: &str) -> Self {
        Self::login_with(port, &[("user", user), ("database", database)]).await
    }

    /// As [`Raw::login`], with these startup parameters.
    ///
    /// # Panics
    /// When the login fails.
    pub async fn login_with(port: u16, parameters: &[(&str, &str)]) -> Self {
        let mut raw = Self::connect(port).await;
        raw.send(&startup(parameters)).await;
        let answer = raw.until(b'Z').await;
        assert!(answer.last().is_some_and(|message| message.tag == b'Z'), "login ended with {answer:?}");
        for message in answer {
            match message.tag {
                b'K' => {
                    let (pid, key) = message.body.split_first_chunk::<4>().expect("BackendKeyData has a number");
                    raw.key = (i32::from_be_bytes(*pid), key.to_vec());
                }
                b'E' => panic!("login refused: {:?}", message.field(b'M')),
                _ => {}
            }
        }
        raw
    }

    /// Sends bytes. That the other side has closed is not noticed here.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    /// The next message; `None` if the other side closed.
    ///
    /// # Panics
    /// When nothing comes for 15 s, or what comes is not a message.
    pub async fn message(&mut self) -> Option<Message> {
        let mut head = [0; 5];
        let read = tokio::time::timeout(READ_LIMIT, self.stream.read_exact(&mut head)).await;
        read.expect("nothing came from the server for 15 s").ok()?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        assert!((4..MAX_MESSAGE).contains(&length), "not a message: {head:?}");
        let mut body = vec![0; length - 4];
        let read = tokio::time::timeout(READ_LIMIT, self.stream.read_exact(&mut body)).await;
        read.expect("half a message came from the server").ok()?;
        Some(Message { tag: head[0], body })
    }

    /// A byte that is no message: the answer to an `SSLRequest`; `None` if the other side closed.
    ///
    /// # Panics
    /// When nothing comes for 15 s.
    pub async fn byte(&mut self) -> Option<u8> {
        let read = tokio::time::timeout(READ_LIMIT, self.stream.read_u8()).await;
        read.expect("nothing came from the server for 15 s").ok()
    }

    /// Messages up to and including one of this type, or until the other side closes.
    pub async fn until(&mut self, tag: u8) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(message) = self.message().await {
            let last = message.tag == tag;
            messages.push(message);
            if last {
                break;
            }
        }
        messages
    }

    /// Sends a simple query and reads its whole answer.
    pub async fn query(&mut self, sql: &str) -> Vec<Message> {
        self.send(&query(sql)).await;
        self.until(b'Z').await
    }

    /// Everything until the other side closes; `None` if it has not closed within `limit`.
    pub async fn closed_within(&mut self, limit: Duration) -> Option<Vec<u8>> {
        let mut all = Vec::new();
        match tokio::time::timeout(limit, self.stream.read_to_end(&mut all)).await {
            Ok(_) => Some(all), // an RST is a close too
            Err(_) => None,
        }
    }

    /// Sends a `CancelRequest` on a connection of its own and waits until the other side has closed it.
    pub async fn cancel(port: u16, pid: i32, key: &[u8]) {
        let mut raw = Self::connect(port).await;
        raw.send(&cancel_request(pid, key)).await;
        let closed = raw.closed_within(READ_LIMIT).await;
        assert!(closed.is_some(), "a cancel request was neither answered nor closed");
    }
}
