//! Requests to etcd's JSON gateway: HTTP/1.1 with or without TLS, to whichever of its members answers. Every wait and every
//! answer has a bound.

use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use openssl::ssl::{SslConnector, SslFiletype, SslMethod};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_openssl::SslStream;

/// An answer is some kilobytes; what is longer is something else.
pub(super) const MAX_ANSWER_BYTES: usize = 1024 * 1024;

/// Where a member of etcd answers its clients: `http://HOST:PORT` or `https://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Whether it speaks TLS.
    pub tls: bool,
    /// Host name or IP address.
    pub host: String,
    /// Port; 2379 if none is given.
    pub port: u16,
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri: hyper::Uri = text.parse().map_err(|_| "is not http://HOST:PORT or https://HOST:PORT".to_owned())?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err("does not begin with http:// or https://".into()),
        };
        if uri.path_and_query().is_some_and(|rest| rest.as_str() != "/") {
            return Err("has more in it than host and port".into());
        }
        let host = uri.host().filter(|host| !host.is_empty()).ok_or("names no host")?;
        let whole = uri.port().map_or(host.to_owned(), |port| format!("{host}:{port}"));
        if uri.authority().map(hyper::http::uri::Authority::as_str) != Some(&*whole) {
            return Err("has something else than host and port before its end".into());
        }
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { tls, host, port: uri.port_u16().unwrap_or(2379) })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        match self.host.contains(':') {
            true => write!(f, "{scheme}://[{}]:{}", self.host, self.port),
            false => write!(f, "{scheme}://{}:{}", self.host, self.port),
        }
    }
}

/// Files for TLS towards etcd, read for each new connection, so that they can be replaced at any time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates (PEM) of the authorities that are trusted; `None`: the system's.
    pub ca: Option<PathBuf>,
    /// Our own certificate chain (PEM).
    pub certificate: Option<PathBuf>,
    /// Its private key (PEM).
    pub key: Option<PathBuf>,
}

impl TlsFiles {
    fn connector(&self) -> Result<SslConnector, String> {
        let file = |path: &PathBuf, error: openssl::error::ErrorStack| format!("{}: {error}", path.display());
        let mut builder = SslConnector::builder(SslMethod::tls_client()).map_err(|error| error.to_string())?;
        if let Some(ca) = &self.ca {
            builder.set_ca_file(ca).map_err(|error| file(ca, error))?;
        }
        if let Some(certificate) = &self.certificate {
            builder.set_certificate_chain_file(certificate).map_err(|error| file(certificate, error))?;
        }
        if let Some(key) = &self.key {
            builder.set_private_key_file(key, SslFiletype::PEM).map_err(|error| file(key, error))?;
        }
        Ok(builder.build())
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Nobody could be asked, or the answer was lost on the way.
    Unreachable(String),
    /// etcd's own refusal.
    Refused { status: u16, said: String },
    /// What came is not what etcd answers.
    Odd(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) => f.write_str(why),
            Self::Refused { status, said } => write!(f, "etcd refuses ({status}): {said}"),
            Self::Odd(why) => write!(f, "an answer that is not etcd's: {why}"),
        }
    }
}

type Sender = SendRequest<Full<Bytes>>;

/// The members, and one connection that is kept between requests.
pub(super) struct Http {
    pub(super) endpoints: Vec<Endpoint>,
    tls: TlsFiles,
    deadline: Duration,
    /// Index of the member that is asked first.
    preferred: AtomicUsize,
    idle: Mutex<Option<(usize, Sender)>>,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

impl Http {
    /// `deadline` is for one request, with all that it takes to reach a member.
    pub(super) fn new(endpoints: Vec<Endpoint>, tls: TlsFiles, deadline: Duration) -> Self {
        Self { endpoints, tls, deadline, preferred: AtomicUsize::new(0), idle: Mutex::new(None) }
    }

    /// The whole answer to one request.
    pub(super) async fn post(&self, path: &str, token: Option<&str>, body: String) -> Result<Bytes, Trouble> {
        let until = Instant::now() + self.deadline;
        let (member, mut sender) = match self.idle() {
            Some(kept) => kept,
            None => self.reach(until).await?,
        };
        let answered = timeout_at(until, async {
            let response = self.send(member, &mut sender, path, token, body).await?;
            let status = response.status();
            let collected = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
            let bytes = collected.map_err(|error| self.broken(member, &error.to_string()))?.to_bytes();
            if status == StatusCode::OK { Ok(bytes) } else { Err(refusal(status, &bytes)) }
        });
        let outcome = answered.await.unwrap_or_else(|_| Err(self.broken(member, "no answer in time")));
        if matches!(outcome, Ok(_) | Err(Trouble::Refused { .. })) {
            *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = Some((member, sender));
        }
        // a member that lost its leader says so: the next request goes to another one
        if matches!(outcome, Err(Trouble::Refused { status: 500.., .. })) {
            self.avoid(member);
        }
        outcome
    }

    /// An answer without an end, on a connection of its own: what a watch is.
    pub(super) async fn stream(&self, path: &str, token: Option<&str>, body: String) -> Result<Incoming, Trouble> {
        let until = Instant::now() + self.deadline;
        let (member, mut sender) = self.reach(until).await?;
        let sent = timeout_at(until, self.send(member, &mut sender, path, token, body)).await;
        let response = sent.unwrap_or_else(|_| Err(self.broken(member, "no answer in time")))?;
        if response.status() == StatusCode::OK {
            return Ok(response.into_body());
        }
        let status = response.status();
        let collected = timeout_at(until, Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect()).await;
        let bytes = collected.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes).unwrap_or_default();
        Err(refusal(status, &bytes))
    }

    fn idle(&self) -> Option<(usize, Sender)> {
        let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).take();
        kept.filter(|(_, sender)| sender.is_ready())
    }

    fn avoid(&self, member: usize) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.preferred.store((member + 1) % self.endpoints.len().max(1), Ordering::Relaxed);
    }

    fn broken(&self, member: usize, why: &str) -> Trouble {
        self.avoid(member);
        Trouble::Unreachable(self.endpoints.get(member).map_or_else(|| why.to_owned(), |at| format!("{at}: {why}")))
    }

    /// A new connection to the first member that takes one, each with its share of the time.
    async fn reach(&self, until: Instant) -> Result<(usize, Sender), Trouble> {
        let share = self.deadline / u32::try_from(self.endpoints.len()).unwrap_or(u32::MAX).max(1);
        let first = self.preferred.load(Ordering::Relaxed);
        let mut said = Vec::new();
        for place in 0..self.endpoints.len() {
            let member = (first + place) % self.endpoints.len();
            let endpoint = &self.endpoints[member];
            match timeout_at(until.min(Instant::now() + share), self.connect(endpoint)).await {
                Ok(Ok(sender)) => {
                    self.preferred.store(member, Ordering::Relaxed);
                    return Ok((member, sender));
                }
                Ok(Err(why)) => said.push(format!("{endpoint}: {why}")),
                Err(_) => said.push(format!("{endpoint}: no connection in time")),
            }
        }
        Err(Trouble::Unreachable(said.join("; ")))
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Sender, String> {
        let tcp = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await.map_err(|e| e.to_string())?;
        tcp.set_nodelay(true).map_err(|e| e.to_string())?;
        if !endpoint.tls {
            return shake(tcp).await;
        }
        let configured = self.tls.connector()?.configure().and_then(|configured| configured.into_ssl(&endpoint.host));
        let mut stream = configured.and_then(|ssl| SslStream::new(ssl, tcp)).map_err(|error| error.to_string())?;
        Pin::new(&mut stream).connect().await.map_err(|error| format!("TLS: {error}"))?;
        shake(stream).await
    }

    async fn send(
        &self,
        member: usize,
        sender: &mut Sender,
        path: &str,
        token: Option<&str>,
        body: String,
    ) -> Result<Response<Incoming>, Trouble> {
        let host = self.endpoints.get(member).map(|at| at.to_string()).unwrap_or_default();
        let host = host.split_once("://").map_or("", |(_, host)| host).to_owned();
        let mut request = Request::post(path).header(HOST, host).header(CONTENT_TYPE, "application/json");
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, token);
        }
        let request = request.body(Full::new(Bytes::from(body))).map_err(|e| Trouble::Odd(e.to_string()))?;
        sender.send_request(request).await.map_err(|error| self.broken(member, &error.to_string()))
    }
}

/// The connection is carried on by a task that ends with it, or with its sender.
async fn shake(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Result<Sender, String> {
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    Ok(sender)
}

/// What etcd says of a refusal, for people; bounded.
fn refusal(status: StatusCode, bytes: &[u8]) -> Trouble {
    let said = serde_json::from_slice::<serde_json::Value>(bytes).ok();
    let said = said.and_then(|said| said.get("error").or_else(|| said.get("message"))?.as_str().map(str::to_owned));
    let said = said.unwrap_or_else(|| String::from_utf8_lossy(bytes).into_owned());
    Trouble::Refused { status: status.as_u16(), said: said.chars().take(200).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_scheme_host_and_port() {
        let endpoint = |text: &str| text.parse::<Endpoint>();
        let plain = Endpoint { tls: false, host: "10.0.0.1".into(), port: 2379 };
        assert_eq!(endpoint("http://10.0.0.1"), Ok(plain.clone()));
        assert_eq!(endpoint("http://10.0.0.1:2379/"), Ok(plain));
        let six = endpoint("https://[::1]:12379").unwrap();
        assert_eq!((six.tls, six.host.as_str(), six.to_string().as_str()), (true, "::1", "https://[::1]:12379"));
        for wrong in
            ["10.0.0.1:2379", "ftp://a", "http://", "http://a/v3", "http://a:b", "http://u@a", "http://a:99999", ""]
        {
            assert!(endpoint(wrong).is_err(), "{wrong}");
        }
    }
}
