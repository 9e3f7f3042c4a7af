//! TLS of both sides against each other, with certificates made here: sslmodes, names, client certificates, reload.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode};
use proxy::config::{self, ListenTls, SslMode};
use proxy::tls::{
    Answer, Attempt, Certificates, ClientCertificate, ClientTls, ServerTls, TlsError, accept, connect, request,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_openssl::SslStream;
use topology::Address;

mod certificates;
use certificates::{Pair, Wanted, authority, make};

struct Folder {
    folder: tempfile::TempDir,
    ca: Pair,
}

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let ca = authority("test authority");
        ca.write(folder.path(), "ca");
        authority("another authority").write(folder.path(), "other");
        Self { folder, ca }
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        Some(self.folder.path().join(name))
    }

    /// A listener that shows a certificate as wanted.
    fn listener(&self, sslmode: SslMode, wanted: &Wanted<'_>) -> ClientTls {
        make(wanted, Some(&self.ca)).write(self.folder.path(), "listener");
        self.listener_as_is(sslmode)
    }

    fn listener_as_is(&self, sslmode: SslMode) -> ClientTls {
        let options = self.listen(sslmode, self.path("ca.crt").filter(|_| sslmode == SslMode::VerifyFull));
        ClientTls::load(&options).expect("good files").expect("not disabled")
    }

    fn listen(&self, sslmode: SslMode, ca: Option<PathBuf>) -> ListenTls {
        ListenTls {
            sslmode,
            certificate: self.path("listener.crt"),
            key: self.path("listener.key"),
            ca,
            protocols: None,
            ciphers: None,
            tls13_ciphers: None,
        }
    }

    fn server(&self, sslmode: SslMode, ca: &str, identity: Option<&str>) -> ServerTls {
        let options = config::ServerTls {
            sslmode,
            ca: self.path(ca).filter(|_| !ca.is_empty()),
            certificate: identity.and_then(|name| self.path(&format!("{name}.crt"))),
            key: identity.and_then(|name| self.path(&format!("{name}.key"))),
            protocols: None,
            ciphers: None,
            tls13_ciphers: None,
        };
        ServerTls::load("test.tls", Arc::new(options)).expect("good files")
    }
}

type Both = (SslStream<DuplexStream>, SslStream<DuplexStream>);

/// A handshake; both ends must see the same channel binding data.
async fn handshake(listener: &ClientTls, server: &ServerTls, host: &str) -> Result<Both, TlsError> {
    let (ours, theirs) = duplex(1 << 16);
    let (accepted, connected) = tokio::join!(accept(theirs, listener, true), connect(ours, host, server));
    let (mut connected, binding) = connected?;
    let (mut accepted, accepted_binding) = accepted?;
    assert!(binding.is_some());
    assert_eq!(binding, accepted_binding);
    connected.write_all(b"ping").await.map_err(TlsError::Io)?;
    let mut ping = [0; 4];
    accepted.read_exact(&mut ping).await.map_err(TlsError::Io)?;
    assert_eq!(&ping, b"ping");
    Ok((accepted, connected))
}

#[tokio::test]
async fn each_sslmode_checks_what_libpq_checks() {
    let folder = Folder::new();
    let listener = folder.listener(SslMode::Require, &Wanted { dns: &["db.example"], ..Wanted::default() });
    let good = |mode, ca| (mode, ca, "db.example", true);
    let cases = [
        good(SslMode::Prefer, ""),
        good(SslMode::Require, ""),
        (SslMode::Require, "", "elsewhere", true),
        (SslMode::Require, "other.crt", "db.example", false),
        (SslMode::Prefer, "other.crt", "db.example", false),
        good(SslMode::VerifyCa, "ca.crt"),
        (SslMode::VerifyCa, "ca.crt", "elsewhere", true),
        (SslMode::VerifyCa, "other.crt", "db.example", false),
        good(SslMode::VerifyFull, "ca.crt"),
        (SslMode::VerifyFull, "ca.crt", "elsewhere", false),
        (SslMode::VerifyFull, "ca.crt", "", false),
        (SslMode::VerifyFull, "other.crt", "db.example", false),
    ];
    for (mode, ca, host, expected) in cases {
        let result = handshake(&listener, &folder.server(mode, ca, None), host).await;
        assert_eq!(result.is_ok(), expected, "{mode} {ca} {host}: {:?}", result.err().map(|e| e.to_string()));
    }
}

#[tokio::test]
async fn certificates_that_stricter_libraries_refuse_are_taken() {
    let folder = Folder::new();
    let kinds = [
        ("common name only", Wanted { common_name: "db.example", ..Wanted::default() }),
        ("X.509 v1", Wanted { common_name: "db.example", version: 0, ..Wanted::default() }),
        ("an authority as leaf", Wanted { common_name: "db.example", is_authority: true, ..Wanted::default() }),
        ("star", Wanted { dns: &["*.example"], ..Wanted::default() }),
        ("other kind of name", Wanted { common_name: "db.example", ip: &["10.0.0.1"], ..Wanted::default() }),
    ];
    for (kind, wanted) in kinds {
        let listener = folder.listener(SslMode::Require, &wanted);
        let result = handshake(&listener, &folder.server(SslMode::VerifyFull, "ca.crt", None), "db.example").await;
        assert!(result.is_ok(), "{kind}: {:?}", result.err());
    }
    // Self-signed and itself the authority, as the PostgreSQL manual makes it.
    let own = make(&Wanted { common_name: "db.example", is_authority: true, ..Wanted::default() }, None);
    own.write(folder.folder.path(), "listener");
    let listener = folder.listener_as_is(SslMode::Require);
    let server = folder.server(SslMode::VerifyFull, "listener.crt", None);
    handshake(&listener, &server, "db.example").await.expect("self-signed");
}

#[tokio::test]
async fn an_address_needs_an_address_in_the_certificate_or_only_a_common_name() {
    let folder = Folder::new();
    let server = folder.server(SslMode::VerifyFull, "ca.crt", None);
    let listener = folder.listener(SslMode::Require, &Wanted { ip: &["10.0.0.1", "::1"], ..Wanted::default() });
    handshake(&listener, &server, "10.0.0.1").await.expect("v4");
    handshake(&listener, &server, "0:0:0:0:0:0:0:1").await.expect("v6");
    let error = handshake(&listener, &server, "10.0.0.2").await.expect_err("another address");
    assert_eq!(error.to_string(), "server certificate for \"10.0.0.1\", \"::1\" does not match host name \"10.0.0.2\"");
    let named = Wanted { common_name: "cn.example", dns: &["db.example"], ..Wanted::default() };
    let listener = folder.listener(SslMode::Require, &named);
    handshake(&listener, &server, "cn.example").await.expect_err("names of type DNS hide the common name");
}

#[tokio::test]
async fn client_certificates_are_demanded_checked_and_read() {
    let folder = Folder::new();
    let alice = Wanted { common_name: "alice", dns: &["al.example"], ..Wanted::default() };
    make(&alice, Some(&folder.ca)).write(folder.folder.path(), "alice");
    make(&alice, None).write(folder.folder.path(), "forged");
    let listener = folder.listener(SslMode::VerifyFull, &Wanted { dns: &["db.example"], ..Wanted::default() });

    let (accepted, _) =
        handshake(&listener, &folder.server(SslMode::Require, "", Some("alice")), "").await.expect("her own");
    let certificate = ClientCertificate::of(accepted.ssl()).expect("shown");
    assert_eq!(certificate.common_name.as_deref(), Some("alice"));
    assert!(certificate.is_for("alice") && certificate.is_for("al.example") && !certificate.is_for("bob"));

    for identity in [Some("forged"), None] {
        let result = handshake(&listener, &folder.server(SslMode::Require, "", identity), "").await;
        assert!(result.is_err(), "{identity:?}");
    }
}

#[tokio::test]
async fn new_files_are_taken_and_bad_ones_leave_the_old_in_force() {
    let folder = Folder::new();
    let first = Wanted { dns: &["first.example"], ..Wanted::default() };
    let second = Wanted { dns: &["second.example"], ..Wanted::default() };
    let listener = folder.listener(SslMode::Require, &first);
    let server = folder.server(SslMode::VerifyFull, "ca.crt", None);
    assert!(!listener.refresh(false).expect("nothing changed"));
    let (mut open, mut open_too) = handshake(&listener, &server, "first.example").await.expect("first");

    make(&second, Some(&folder.ca)).write(folder.folder.path(), "listener");
    assert!(listener.refresh(false).expect("good files"));
    handshake(&listener, &server, "second.example").await.expect("second");
    handshake(&listener, &server, "first.example").await.expect_err("first is gone");

    std::fs::write(folder.path("listener.crt").expect("a path"), "garbage").expect("a file");
    let error = listener.refresh(false).expect_err("garbage");
    assert!(error.to_string().starts_with("certificate "), "{error}");
    assert!(!listener.refresh(false).expect("said once"));
    handshake(&listener, &server, "second.example").await.expect("second still");

    let (other, _) = make(&second, Some(&folder.ca)).write(folder.folder.path(), "stranger");
    std::fs::copy(other, folder.path("listener.crt").expect("a path")).expect("a file");
    assert!(listener.refresh(true).expect_err("not its key").to_string().starts_with("key "));
    handshake(&listener, &server, "second.example").await.expect("second still");

    open.write_all(b"still").await.expect("connections made before go on");
    open_too.read_exact(&mut [0; 5]).await.expect("connections made before go on");
}

#[tokio::test]
async fn direct_tls_must_say_that_it_means_postgresql() {
    let folder = Folder::new();
    let listener = folder.listener(SslMode::Require, &Wanted { dns: &["db.example"], ..Wanted::default() });
    for (protocol, direct, expected) in
        [(None, true, false), (None, false, true), (Some(&b"\x08http/1.1"[..]), false, false)]
    {
        let mut builder = SslConnector::builder(SslMethod::tls_client()).expect("a builder");
        builder.set_verify(SslVerifyMode::NONE);
        if let Some(protocol) = protocol {
            builder.set_alpn_protos(protocol).expect("ALPN");
        }
        let ssl = builder.build().configure().expect("ssl").into_ssl("db.example").expect("ssl");
        let (ours, theirs) = duplex(1 << 16);
        let mut stream = SslStream::new(ssl, ours).expect("a stream");
        let connecting = std::pin::Pin::new(&mut stream).connect();
        let (accepted, _) = tokio::join!(accept(theirs, &listener, direct), connecting);
        assert_eq!(accepted.is_ok(), expected, "{protocol:?} {direct}: {:?}", accepted.err().map(|e| e.to_string()));
    }
}

#[tokio::test]
async fn garbage_instead_of_a_handshake_is_an_error() {
    let folder = Folder::new();
    let listener = folder.listener(SslMode::Require, &Wanted { dns: &["db.example"], ..Wanted::default() });
    for garbage in [&b""[..], b"\x16", b"\x16\x03\x01\xff\xff", b"GET / HTTP/1.1\r\n\r\n", &[0; 4096]] {
        let (mut ours, theirs) = duplex(1 << 16);
        ours.write_all(garbage).await.expect("written");
        drop(ours);
        assert!(accept(theirs, &listener, false).await.is_err(), "{garbage:?}");
    }
}

/// What comes of asking a server that gives this answer.
async fn asked(answer: &[u8], attempt: Attempt) -> Result<Answer, TlsError> {
    let (mut ours, mut theirs) = duplex(64);
    theirs.write_all(answer).await.expect("written");
    let result = request(&mut ours, attempt).await;
    drop(ours);
    let mut sent = Vec::new();
    theirs.read_to_end(&mut sent).await.expect("read");
    assert_eq!(sent.is_empty(), attempt == Attempt::Plain);
    result
}

#[tokio::test]
async fn sslmodes_make_libpqs_attempts() {
    let folder = Folder::new();
    let attempts = |mode| folder.server(mode, "ca.crt", None).attempts(&Address::Tcp("h".to_owned(), 1));
    assert_eq!(attempts(SslMode::Disable), [Attempt::Plain]);
    assert_eq!(attempts(SslMode::Allow), [Attempt::Plain, Attempt::Tls]);
    assert_eq!(attempts(SslMode::Prefer), [Attempt::TlsIfAny, Attempt::Plain]);
    assert_eq!(attempts(SslMode::Require), [Attempt::Tls]);
    assert_eq!(attempts(SslMode::VerifyFull), [Attempt::Tls]);
    let socket = Address::Unix(Path::new("/tmp").to_owned(), 1);
    assert_eq!(folder.server(SslMode::VerifyFull, "ca.crt", None).attempts(&socket), [Attempt::Plain]);

    assert_eq!(asked(b"", Attempt::Plain).await.expect("nothing is asked"), Answer::Plain);
    assert_eq!(asked(b"S", Attempt::Tls).await.expect("yes"), Answer::Tls);
    assert_eq!(asked(b"N", Attempt::TlsIfAny).await.expect("no"), Answer::Plain);
    assert!(matches!(asked(b"N", Attempt::Tls).await, Err(TlsError::Refused)), "a stripped S is no way around");
    assert!(matches!(asked(b"E\0\0\0\x05x", Attempt::TlsIfAny).await, Err(TlsError::Answer(b'E'))));
}

#[tokio::test]
async fn plain_bytes_behind_the_servers_yes_are_never_taken_for_its_words() {
    let folder = Folder::new();
    let server = folder.server(SslMode::Require, "", None);
    let (mut ours, mut theirs) = duplex(1 << 16);
    theirs.write_all(b"SR\0\0\0\x08\0\0\0\0Z\0\0\0\x05I").await.expect("written");
    assert_eq!(request(&mut ours, Attempt::Tls).await.expect("yes"), Answer::Tls);
    assert!(connect(ours, "h", &server).await.is_err());
}
