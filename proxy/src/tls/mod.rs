//! TLS by OpenSSL, towards clients and towards servers, with libpq's sslmodes. Not who is let in: that is `auth`.
//!
//! OpenSSL, because PostgreSQL's users have certificates (common name only, X.509 v1, self-signed) that stricter
//! libraries refuse, and because sslmode is defined by what libpq does with it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::SystemTime;

use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::ssl::{
    SslContext, SslContextBuilder, SslFiletype, SslMethod, SslMode as Flags, SslOptions, SslRef, SslVersion,
};
use openssl::x509::X509Ref;

mod clients;
mod names;
mod servers;
mod state;

pub use clients::{ClientCertificate, ClientTls, accept};
pub use servers::{Answer, Attempt, ServerTls, connect, encryption, request};
pub use state::TlsState;

/// ALPN protocol of PostgreSQL (manual, "Message Flow / SSL Session Encryption"), with its length in front.
const ALPN: &[u8] = b"\x0apostgresql";

/// Why TLS could not be set up or a handshake failed. Texts of OpenSSL are in it, no bytes of the other side.
#[derive(Debug)]
pub enum TlsError {
    /// A file cannot be used.
    File {
        /// The option that names it.
        option: &'static str,
        /// The file.
        file: PathBuf,
        /// What is wrong.
        said: String,
    },
    /// OpenSSL could not be set up.
    Setup(String),
    /// The handshake failed.
    Handshake(String),
    /// A direct TLS connection without ALPN `postgresql`: it may have been meant for another protocol.
    NoAlpn,
    /// The server does not speak TLS and sslmode demands it.
    Refused,
    /// The server answered SSLRequest with something else than `S` or `N`.
    Answer(u8),
    /// The certificate is for somebody else.
    WrongName {
        /// The host that was meant.
        host: String,
        /// The names in the certificate.
        names: String,
    },
    /// The connection broke.
    Io(std::io::Error),
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { option, file, said } => write!(f, "{option} {}: {said}", file.display()),
            Self::Setup(said) => write!(f, "TLS cannot be set up: {said}"),
            Self::Handshake(said) => write!(f, "TLS handshake failed: {said}"),
            Self::NoAlpn => {
                f.write_str("received direct SSL connection request without ALPN protocol negotiation extension")
            }
            Self::Refused => f.write_str("server does not support SSL, but SSL was required"),
            Self::Answer(byte) => write!(f, "received invalid response to SSL negotiation: byte 0x{byte:02x}"),
            Self::WrongName { host, names } => {
                write!(f, "server certificate for {names} does not match host name {host:?}")
            }
            Self::Io(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for TlsError {}

impl From<openssl::error::ErrorStack> for TlsError {
    fn from(stack: openssl::error::ErrorStack) -> Self {
        Self::Setup(reason(&stack))
    }
}

/// The files named by a section.
#[derive(Debug, Clone, Copy)]
struct Files<'a> {
    certificate: Option<&'a Path>,
    key: Option<&'a Path>,
    ca: Option<&'a Path>,
}

/// What both sides have in common: protocol versions as PostgreSQL's defaults, no compression, no renegotiation, and
/// buffers that are given back while a connection is idle. What has come is read at once, instead of a header, then its
/// record, and then nothing.
fn builder(method: SslMethod) -> Result<SslContextBuilder, TlsError> {
    let mut builder = SslContext::builder(method)?;
    builder.set_min_proto_version(Some(SslVersion::TLS1_2))?;
    builder.set_options(SslOptions::NO_COMPRESSION | SslOptions::NO_RENEGOTIATION | SslOptions::NO_TICKET);
    builder.set_mode(
        Flags::AUTO_RETRY | Flags::ACCEPT_MOVING_WRITE_BUFFER | Flags::ENABLE_PARTIAL_WRITE | Flags::RELEASE_BUFFERS,
    );
    builder.set_read_ahead(true);
    Ok(builder)
}

/// Which protocols and ciphers are spoken.
#[derive(Debug, Clone, Copy)]
struct Spoken<'a> {
    protocols: Option<&'a str>,
    ciphers: Option<&'a str>,
    tls13_ciphers: Option<&'a str>,
}

/// Limits a context to protocols and ciphers.
fn limit(builder: &mut SslContextBuilder, spoken: Spoken<'_>) -> Result<(), TlsError> {
    if let Some(list) = spoken.protocols.filter(|list| !list.is_empty()) {
        let versions = protocols(list).ok_or_else(|| TlsError::Setup(format!("invalid protocols \"{list}\"")))?;
        builder.set_min_proto_version(versions.first().copied())?;
        builder.set_max_proto_version(versions.last().copied())?;
        for (version, option) in
            [(SslVersion::TLS1_1, SslOptions::NO_TLSV1_1), (SslVersion::TLS1_2, SslOptions::NO_TLSV1_2)]
        {
            if !versions.contains(&version) {
                builder.set_options(option);
            }
        }
    }
    if let Some(list) = spoken.ciphers {
        builder
            .set_cipher_list(list)
            .map_err(|error| TlsError::Setup(format!("failed to set ciphers: {}", reason(&error))))?;
    }
    if let Some(suites) = spoken.tls13_ciphers {
        builder
            .set_ciphersuites(suites)
            .map_err(|error| TlsError::Setup(format!("failed to set the TLSv1.3 cipher suites: {}", reason(&error))))?;
    }
    Ok(())
}

/// The versions that a list names, the oldest first, as libtls reads it: `all`, `secure` (1.2 and 1.3), `legacy`, single ones.
fn protocols(list: &str) -> Option<Vec<SslVersion>> {
    const KNOWN: [(&str, SslVersion); 4] = [
        ("tlsv1.0", SslVersion::TLS1),
        ("tlsv1.1", SslVersion::TLS1_1),
        ("tlsv1.2", SslVersion::TLS1_2),
        ("tlsv1.3", SslVersion::TLS1_3),
    ];
    let mut spoken = [false; 4];
    for word in list.split([',', ':']).map(|word| word.trim().to_ascii_lowercase()) {
        let (word, on) = match word.strip_prefix('!') {
            Some(word) => (word, false),
            None => (word.as_str(), true),
        };
        let range = match word {
            "all" | "legacy" | "tlsv1" => 0..4,
            "secure" | "default" => 2..4,
            word => {
                let at = KNOWN.iter().position(|(name, _)| *name == word)?;
                at..at + 1
            }
        };
        spoken[range].fill(on);
    }
    let versions: Vec<_> = KNOWN.iter().zip(spoken).filter(|(_, on)| *on).map(|((_, version), _)| *version).collect();
    (!versions.is_empty()).then_some(versions)
}

/// Puts certificate and key into a context and checks that they belong together.
fn identity(builder: &mut SslContextBuilder, files: Files<'_>) -> Result<(), TlsError> {
    let (Some(certificate), Some(key)) = (files.certificate, files.key) else { return Ok(()) };
    let wrong = |option, file: &Path, stack: openssl::error::ErrorStack| TlsError::File {
        option,
        file: file.to_owned(),
        said: reason(&stack),
    };
    builder.set_certificate_chain_file(certificate).map_err(|e| wrong("certificate", certificate, e))?;
    builder.set_private_key_file(key, SslFiletype::PEM).map_err(|e| wrong("key", key, e))?;
    builder.check_private_key().map_err(|e| wrong("key", key, e))
}

/// Why OpenSSL failed: the first reason, which is the deepest.
fn reason(stack: &openssl::error::ErrorStack) -> String {
    stack.errors().first().and_then(|e| e.reason()).map_or_else(|| "unknown error".to_owned(), str::to_owned)
}

/// Why a handshake failed, with the verdict on the certificate if that was it.
fn handshake_error(error: &openssl::ssl::Error, ssl: &SslRef) -> TlsError {
    let verdict = ssl.verify_result();
    if verdict != openssl::x509::X509VerifyResult::OK {
        return TlsError::Handshake(format!("certificate verify failed: {}", verdict.error_string()));
    }
    let said = match (error.ssl_error(), error.io_error()) {
        (Some(stack), _) => reason(stack),
        (None, Some(io)) => io.to_string(),
        (None, None) => "the connection was closed".to_owned(),
    };
    TlsError::Handshake(said)
}

/// The channel binding data *tls-server-end-point* (RFC 5929): the certificate's hash by the hash of its signature,
/// SHA-256 for MD5 and SHA-1. `None` where the signature has no hash of its own (Ed25519, PSS).
fn end_point(certificate: &X509Ref) -> Option<Arc<[u8]>> {
    let signature = certificate.signature_algorithm().object().nid();
    let digest = match signature.signature_algorithms()?.digest {
        Nid::MD5 | Nid::SHA1 => MessageDigest::sha256(),
        digest => MessageDigest::from_nid(digest)?,
    };
    Some(Arc::from(&*certificate.digest(digest).ok()?))
}

/// When the files of a context were changed last, as far as this can be seen.
type Stamp = Vec<Option<(SystemTime, u64)>>;

fn stamp(files: Files<'_>) -> Stamp {
    let of = |path: &Path| std::fs::metadata(path).and_then(|m| Ok((m.modified()?, m.len()))).ok();
    [files.certificate, files.key, files.ca].into_iter().flatten().map(of).collect()
}

/// Something made of files that is made anew when they change. What is in use stays until the new one is good.
#[derive(Debug)]
struct Current<T> {
    value: RwLock<Arc<T>>,
    /// The files as they were when they were read last, well or not.
    seen: Mutex<Stamp>,
}

impl<T> Current<T> {
    fn new(value: T, seen: Stamp) -> Self {
        Self { value: RwLock::new(Arc::new(value)), seen: Mutex::new(seen) }
    }

    fn get(&self) -> Arc<T> {
        self.value.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the files differ from what was seen last; notes them as seen.
    fn is_stale(&self, now: Stamp) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let stale = *seen != now;
        *seen = now;
        stale
    }

    fn set(&self, value: T) {
        *self.value.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
    }
}

/// Certificates that are read again without a restart.
pub trait Certificates {
    /// Reads the files again if they have changed, or if `always`. `Ok(true)`: new handshakes use what was read.
    ///
    /// # Errors
    /// The new files are not good; the old ones stay in force.
    fn refresh(&self, always: bool) -> Result<bool, TlsError>;
    /// The section, for messages.
    fn section(&self) -> &str;
}

/// Version and cipher for a log: `TLSv1.3/TLS_AES_256_GCM_SHA384`.
#[must_use]
pub fn describe(ssl: &SslRef) -> String {
    format!("{}/{}", ssl.version_str(), ssl.current_cipher().map_or("-", |cipher| cipher.name()))
}
