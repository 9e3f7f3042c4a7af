//! TLS towards clients: the context that a listener accepts with, and what a client's certificate says.

use std::pin::Pin;
use std::sync::Arc;

use openssl::nid::Nid;
use openssl::ssl::{
    AlpnError, Ssl, SslContext, SslMethod, SslOptions, SslRef, SslSessionCacheMode, SslVerifyMode, select_next_proto,
};
use openssl::x509::X509Ref;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_openssl::SslStream;

use super::{
    ALPN, Certificates, Current, Files, Spoken, TlsError, builder, end_point, handshake_error, identity, limit, stamp,
};
use crate::config::{ListenTls, SslMode};

/// Names of one certificate that are looked at.
const MAX_NAMES: usize = 100;

/// TLS for a listener. New handshakes use the files that were good last.
#[derive(Debug)]
pub struct ClientTls {
    options: ListenTls,
    current: Current<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    context: SslContext,
    end_point: Option<Arc<[u8]>>,
}

/// What a client's certificate says of it; the certificate was signed by our CA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Common name of the subject.
    pub common_name: Option<String>,
    /// Alternative names of type DNS.
    pub dns_names: Vec<String>,
}

impl ClientTls {
    /// Reads the files; `None` if sslmode is `disable`.
    ///
    /// # Errors
    /// A file that cannot be used.
    pub fn load(options: &ListenTls) -> Result<Option<Self>, TlsError> {
        if options.sslmode == SslMode::Disable {
            return Ok(None);
        }
        let seen = stamp(files(options));
        let loaded = Loaded::read(options)?;
        Ok(Some(Self { options: options.clone(), current: Current::new(loaded, seen) }))
    }

    /// Whether a client may go on without TLS. (A Unix socket needs none in any mode.)
    #[must_use]
    pub fn is_required(&self) -> bool {
        matches!(self.options.sslmode, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull)
    }

    /// The channel binding data of a handshake made with the present certificate. Taken together with [`accept`].
    #[must_use]
    pub fn end_point(&self) -> Option<Arc<[u8]>> {
        self.current.get().end_point.clone()
    }
}

impl Certificates for ClientTls {
    fn refresh(&self, always: bool) -> Result<bool, TlsError> {
        if !self.current.is_stale(stamp(files(&self.options))) && !always {
            return Ok(false);
        }
        self.current.set(Loaded::read(&self.options)?);
        Ok(true)
    }

    fn section(&self) -> &str {
        "listen.tls"
    }
}

fn files(options: &ListenTls) -> Files<'_> {
    Files { certificate: options.certificate.as_deref(), key: options.key.as_deref(), ca: options.ca.as_deref() }
}

fn spoken(options: &ListenTls) -> Spoken<'_> {
    Spoken {
        protocols: options.protocols.as_deref(),
        ciphers: options.ciphers.as_deref(),
        tls13_ciphers: options.tls13_ciphers.as_deref(),
    }
}

impl Loaded {
    fn read(options: &ListenTls) -> Result<Self, TlsError> {
        let mut builder = builder(SslMethod::tls_server())?;
        builder.set_options(SslOptions::CIPHER_SERVER_PREFERENCE);
        builder.set_session_cache_mode(SslSessionCacheMode::OFF);
        builder.set_num_tickets(0)?;
        limit(&mut builder, spoken(options))?;
        identity(&mut builder, files(options))?;
        if let Some(ca) = &options.ca {
            let wrong = |said| TlsError::File { option: "ca", file: ca.clone(), said };
            builder.set_ca_file(ca).map_err(|e| wrong(super::reason(&e)))?;
            let names = openssl::x509::X509Name::load_client_ca_file(ca).map_err(|e| wrong(super::reason(&e)))?;
            builder.set_client_ca_list(names);
            // As PostgreSQL: with a CA a client is asked for a certificate, and one that it shows must be good.
            let mut mode = SslVerifyMode::PEER;
            if matches!(options.sslmode, SslMode::VerifyCa | SslMode::VerifyFull) {
                mode |= SslVerifyMode::FAIL_IF_NO_PEER_CERT;
            }
            builder.set_verify(mode);
        }
        builder.set_alpn_select_callback(|_, offered| select_next_proto(ALPN, offered).ok_or(AlpnError::ALERT_FATAL));
        let context = builder.build();
        let end_point = context.certificate().and_then(end_point);
        Ok(Self { context, end_point })
    }
}

/// The handshake with a client, and the channel binding data that belongs to it. `direct`: the client began with TLS
/// instead of SSLRequest, so that ALPN must say that it means PostgreSQL. The caller bounds the time.
///
/// # Errors
/// The handshake failed; nothing can be told to the client.
pub async fn accept<S>(stream: S, tls: &ClientTls, direct: bool) -> Result<(SslStream<S>, Option<Arc<[u8]>>), TlsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let loaded = tls.current.get();
    let mut stream = SslStream::new(Ssl::new(&loaded.context)?, stream)?;
    if let Err(error) = Pin::new(&mut stream).accept().await {
        return Err(handshake_error(&error, stream.ssl()));
    }
    if direct && stream.ssl().selected_alpn_protocol() != Some(&ALPN[1..]) {
        return Err(TlsError::NoAlpn);
    }
    Ok((stream, loaded.end_point.clone()))
}

impl ClientCertificate {
    /// The certificate that a client showed in its handshake, if it did.
    #[must_use]
    pub fn of(ssl: &SslRef) -> Option<Self> {
        ssl.peer_certificate().map(|certificate| Self::read(&certificate))
    }

    fn read(certificate: &X509Ref) -> Self {
        let dns_names = certificate.subject_alt_names().into_iter().flatten();
        let dns_names = dns_names.filter_map(|name| name.dnsname().map(str::to_owned));
        Self { common_name: common_name(certificate), dns_names: dns_names.take(MAX_NAMES).collect() }
    }

    /// Whether it is for this user: by common name, or by a DNS name.
    #[must_use]
    pub fn is_for(&self, user: &str) -> bool {
        self.common_name.as_deref() == Some(user) || self.dns_names.iter().any(|name| name == user)
    }
}

/// The last common name of the subject, as PostgreSQL takes it; one with a zero byte is none (CVE-2009-4034).
pub(super) fn common_name(certificate: &X509Ref) -> Option<String> {
    let entry = certificate.subject_name().entries_by_nid(Nid::COMMONNAME).take(MAX_NAMES).last()?;
    let name = entry.data().to_string().ok()?;
    (!name.is_empty() && !name.contains('\0')).then_some(name)
}
