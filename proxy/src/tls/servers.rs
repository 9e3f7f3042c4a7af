//! TLS towards servers, as libpq does it: which attempts an sslmode makes, the request, the handshake, the check.

use std::pin::Pin;
use std::sync::Arc;

use openssl::ssl::{Ssl, SslConnector, SslContext, SslContextBuilder, SslMethod, SslVerifyMode, SslVersion};
use openssl::x509::store::X509StoreBuilder;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_openssl::SslStream;
use topology::{Address, Encryption};

use super::{
    ALPN, Certificates, Current, Files, Spoken, TlsError, builder, end_point, handshake_error, identity, limit, names,
    stamp,
};
use crate::config::{self, SslMode};

/// SSLRequest: its length and its code (manual, "Message Formats").
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// TLS for the servers of a cluster or of one database entry. New handshakes use the files that were good last.
#[derive(Debug)]
pub struct ServerTls {
    section: String,
    options: Arc<config::ServerTls>,
    current: Current<SslContext>,
}

/// One way to reach a server; the next is tried, on a new connection, only if this one fails as its sslmode says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// Without TLS.
    Plain,
    /// With TLS if the server has it, else without, on the same connection.
    TlsIfAny,
    /// With TLS or not at all.
    Tls,
}

/// What a server said to SSLRequest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Handshake next.
    Tls,
    /// It has none; the startup packet may follow in the clear.
    Plain,
}

impl ServerTls {
    /// Reads the files. `section` is for messages: `cluster.main.tls`.
    ///
    /// # Errors
    /// A file that cannot be used.
    pub fn load(section: &str, options: Arc<config::ServerTls>) -> Result<Self, TlsError> {
        let seen = stamp(files(&options));
        let context = read(&options)?;
        Ok(Self { section: section.to_owned(), options, current: Current::new(context, seen) })
    }

    /// The ways to reach a server, in order (libpq, "SSL Mode Descriptions"). A Unix socket never has TLS.
    ///
    /// `allow` goes on to its second attempt when the server refuses the first in plain; `prefer` when the handshake
    /// failed or the server refuses the connection with TLS before it asks for a password.
    #[must_use]
    pub fn attempts(&self, address: &Address) -> &'static [Attempt] {
        match (address, self.options.sslmode) {
            (Address::Unix(..), _) | (_, SslMode::Disable) => &[Attempt::Plain],
            (_, SslMode::Allow) => &[Attempt::Plain, Attempt::Tls],
            (_, SslMode::Prefer) => &[Attempt::TlsIfAny, Attempt::Plain],
            (_, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => &[Attempt::Tls],
        }
    }
}

impl Certificates for ServerTls {
    fn refresh(&self, always: bool) -> Result<bool, TlsError> {
        if !self.current.is_stale(stamp(files(&self.options))) && !always {
            return Ok(false);
        }
        self.current.set(read(&self.options)?);
        Ok(true)
    }

    fn section(&self) -> &str {
        &self.section
    }
}

fn files(options: &config::ServerTls) -> Files<'_> {
    Files { certificate: options.certificate.as_deref(), key: options.key.as_deref(), ca: options.ca.as_deref() }
}

fn spoken(options: &config::ServerTls) -> Spoken<'_> {
    Spoken {
        protocols: options.protocols.as_deref(),
        ciphers: options.ciphers.as_deref(),
        tls13_ciphers: options.tls13_ciphers.as_deref(),
    }
}

fn read(options: &config::ServerTls) -> Result<SslContext, TlsError> {
    let mut builder = builder(SslMethod::tls_client())?;
    fill(&mut builder, options)?;
    builder.set_alpn_protos(ALPN)?;
    Ok(builder.build())
}

fn fill(builder: &mut SslContextBuilder, options: &config::ServerTls) -> Result<(), TlsError> {
    limit(builder, spoken(options))?;
    identity(builder, files(options))?;
    // libpq: a CA that is there is used, whatever the mode.
    let mut verify = SslVerifyMode::NONE;
    if let Some(ca) = &options.ca {
        let wrong = |e| TlsError::File { option: "ca", file: ca.clone(), said: super::reason(&e) };
        builder.set_ca_file(ca).map_err(wrong)?;
        verify = SslVerifyMode::PEER;
    }
    builder.set_verify(verify);
    Ok(())
}

/// The same for the monitor of a cluster, in its own form. `allow` is `prefer` there: it is one login that does not wait.
///
/// # Errors
/// A file that cannot be used.
pub fn encryption(options: &config::ServerTls) -> Result<Encryption, TlsError> {
    if options.sslmode == SslMode::Disable {
        return Ok(Encryption::Disable);
    }
    let mut builder = SslConnector::builder(SslMethod::tls_client())?;
    // Its own store holds the authorities of the system; only ours are meant.
    builder.set_cert_store(X509StoreBuilder::new()?.build());
    builder.set_min_proto_version(Some(SslVersion::TLS1_2))?;
    fill(&mut builder, options)?;
    let connector = builder.build();
    Ok(match options.sslmode {
        SslMode::Disable | SslMode::Allow | SslMode::Prefer => Encryption::Prefer(connector),
        SslMode::Require | SslMode::VerifyCa => Encryption::Require { connector, verify_host: false },
        SslMode::VerifyFull => Encryption::Require { connector, verify_host: true },
    })
}

/// Asks a server for TLS and reads its one byte; nothing behind it is read. The caller bounds the time.
///
/// # Errors
/// The connection broke, the answer is none, or `attempt` demands TLS and there is none.
pub async fn request<S>(stream: &mut S, attempt: Attempt) -> Result<Answer, TlsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if attempt == Attempt::Plain {
        return Ok(Answer::Plain);
    }
    stream.write_all(&SSL_REQUEST).await.map_err(TlsError::Io)?;
    stream.flush().await.map_err(TlsError::Io)?;
    match stream.read_u8().await.map_err(TlsError::Io)? {
        b'S' => Ok(Answer::Tls),
        b'N' if attempt == Attempt::TlsIfAny => Ok(Answer::Plain),
        b'N' => Err(TlsError::Refused),
        // An ErrorResponse here comes from nobody that was authenticated: its text is not read (CVE-2024-10977).
        byte => Err(TlsError::Answer(byte)),
    }
}

/// The handshake with a server that answered `S`, and the channel binding data that belongs to it. `host` is the name or
/// IP address of the configuration, without which verify-full fails. The caller bounds the time.
///
/// # Errors
/// The handshake failed, or the certificate is not good for this sslmode.
pub async fn connect<S>(stream: S, host: &str, tls: &ServerTls) -> Result<(SslStream<S>, Option<Arc<[u8]>>), TlsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut ssl = Ssl::new(&tls.current.get())?;
    // RFC 6066: server name indication is for names, not for addresses.
    if !host.is_empty() && host.parse::<std::net::IpAddr>().is_err() {
        ssl.set_hostname(host)?;
    }
    let mut stream = SslStream::new(ssl, stream)?;
    if let Err(error) = Pin::new(&mut stream).connect().await {
        return Err(handshake_error(&error, stream.ssl()));
    }
    let certificate = stream.ssl().peer_certificate().ok_or(TlsError::Handshake("no certificate".to_owned()))?;
    if tls.options.sslmode == SslMode::VerifyFull {
        names::check(&certificate, host)?;
    }
    Ok((stream, end_point(&certificate)))
}
