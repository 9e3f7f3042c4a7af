//! SCRAM: both sides against each other, against an independent client, against the RFC's example, and against bad peers.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use pgwire::auth::Stored;
use pgwire::auth::scram::client::{Binding, Client};
use pgwire::auth::scram::server::{Accepted, Server};
use pgwire::auth::scram::{
    DEFAULT_ITERATIONS, Keys, MAX_ITERATIONS, MAX_NONCE, Nonce, OwnKeys, ScramError, salted_password,
};
use postgres_protocol::authentication::sasl;

const PLAIN: &[u8] = b"SCRAM-SHA-256";
const PLUS: &[u8] = b"SCRAM-SHA-256-PLUS";

fn keys(password: &[u8]) -> Keys {
    let salt = b"0123456789abcdef";
    Keys::new(&salted_password(password, salt, DEFAULT_ITERATIONS), salt, DEFAULT_ITERATIONS).unwrap()
}

/// A whole login; what the server makes of it, after the client has verified the server.
fn log_in(keys: Keys, password: &[u8], offered: Option<&[u8]>, binding: Binding) -> Result<Accepted, ScramError> {
    let server = Server::new(keys, Nonce::random(), offered.map(<[u8]>::to_vec));
    let mechanism = binding.mechanism();
    let client = Client::new(Nonce::random(), binding);
    let (question, server) = server.first(mechanism.as_bytes(), client.message().as_bytes())?;
    let client = client.challenged(question.as_bytes())?;
    let own = OwnKeys::new(&salted_password(password, client.salt(), client.iterations()));
    let (answer, client) = client.answer(&own);
    let accepted = server.last(answer.as_bytes())?;
    client.verify(accepted.message.as_bytes()).expect("a server that knows the secret proves it");
    Ok(accepted)
}

#[test]
fn the_example_of_rfc_7677() {
    let client = Client::new(Nonce::given("rOprNGfwEbeRWgbNEkqO").unwrap(), Binding::Unsupported);
    // The RFC's client names its user, PostgreSQL's do not; so only the server's side can be compared byte by byte.
    assert_eq!(client.message(), "n,,n=,r=rOprNGfwEbeRWgbNEkqO");
    let salt = [0x5b, 0x6d, 0x99, 0x68, 0x9d, 0x12, 0x35, 0x8e, 0xec, 0xa0, 0x4b, 0x14, 0x12, 0x36, 0xfa, 0x81];
    let keys = Keys::new(&salted_password(b"pencil", &salt, 4096), &salt, 4096).unwrap();
    let nonce = Nonce::given("%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0").unwrap();
    let (question, server) = Server::new(keys, nonce, None).first(PLAIN, b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO").unwrap();
    assert_eq!(question, "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096");
    let accepted = server
        .last(b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
        .unwrap();
    assert_eq!(accepted.message, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
}

#[test]
fn the_right_password_logs_in_and_no_other() {
    for (server, client) in [("pencil", "pencil"), ("IX", "I\u{ad}X"), ("a\u{a0}b", "a b"), ("\u{7}", "\u{7}")] {
        assert!(log_in(keys(server.as_bytes()), client.as_bytes(), None, Binding::Unsupported).is_ok(), "{server:?}");
    }
    assert!(log_in(keys(b"\xff\xfe"), b"\xff\xfe", None, Binding::Unsupported).is_ok());
    for wrong in [&b""[..], b"Pencil", b"pencil ", b"\xff"] {
        let refused = log_in(keys(b"pencil"), wrong, None, Binding::Unsupported).unwrap_err();
        assert_eq!(refused, ScramError::Proof);
    }
}

#[test]
fn an_independent_client_logs_in() {
    for (plus, password) in [(false, &b"pencil"[..]), (true, b"pencil")] {
        let (binding, mechanism) = if plus {
            (sasl::ChannelBinding::tls_server_end_point(b"hash".to_vec()), PLUS)
        } else {
            (sasl::ChannelBinding::unsupported(), PLAIN)
        };
        let secret = postgres_protocol::password::scram_sha_256(b"pencil");
        let Stored::Scram(keys) = Stored::parse(secret.as_bytes()) else { panic!("not recognised: {secret}") };
        assert_eq!(keys.to_text(), secret);
        let mut client = sasl::ScramSha256::new(password, binding);
        let server = Server::new(keys, Nonce::random(), plus.then(|| b"hash".to_vec()));
        let (question, server) = server.first(mechanism, client.message()).unwrap();
        client.update(question.as_bytes()).unwrap();
        let accepted = server.last(client.message()).unwrap();
        client.finish(accepted.message.as_bytes()).unwrap();
    }
}

#[test]
fn the_key_recovered_from_a_login_logs_in_elsewhere() {
    let keys = keys(b"pencil");
    let accepted = log_in(keys.clone(), b"pencil", None, Binding::Unsupported).unwrap();
    assert!(keys.open_with(&accepted.client_key));
    let own = keys.unlocked(accepted.client_key.clone()).unwrap();

    let client = Client::new(Nonce::random(), Binding::Unsupported);
    let (question, server) =
        Server::new(keys, Nonce::random(), None).first(PLAIN, client.message().as_bytes()).unwrap();
    let (answer, client) = client.challenged(question.as_bytes()).unwrap().answer(&own);
    client.verify(server.last(answer.as_bytes()).unwrap().message.as_bytes()).unwrap();

    let changed = self::keys(b"changed");
    assert!(!changed.open_with(&accepted.client_key));
    assert!(changed.unlocked(accepted.client_key).is_none());
}

#[test]
fn channel_binding_binds() {
    let end_point = |hash: &[u8]| Binding::EndPoint(hash.to_vec());
    let ours = Some(&b"hash"[..]);
    assert!(log_in(keys(b"x"), b"x", ours, end_point(b"hash")).is_ok());
    assert!(log_in(keys(b"x"), b"x", ours, Binding::Unsupported).is_ok());
    assert!(log_in(keys(b"x"), b"x", None, Binding::NotOffered).is_ok());
    let other = log_in(keys(b"x"), b"x", ours, end_point(b"man in the middle")).unwrap_err();
    assert!(matches!(other, ScramError::ChannelBinding(_)), "{other}");
    let talked_out = log_in(keys(b"x"), b"x", ours, Binding::NotOffered).unwrap_err();
    assert!(matches!(talked_out, ScramError::ChannelBinding(_)), "{talked_out}");
    assert_eq!(log_in(keys(b"x"), b"x", None, end_point(b"hash")).unwrap_err(), ScramError::Mechanism);
}

#[test]
fn cve_2025_49146_required_channel_binding_is_required() {
    let choose = |mechanisms: &[&[u8]], tls: bool, required| {
        Binding::choose(mechanisms, tls.then(|| b"hash".to_vec()), required)
    };
    assert_eq!(choose(&[PLUS, PLAIN], true, true), Ok(Binding::EndPoint(b"hash".to_vec())));
    assert_eq!(choose(&[PLUS, PLAIN], true, false), Ok(Binding::EndPoint(b"hash".to_vec())));
    assert_eq!(choose(&[PLAIN], true, false), Ok(Binding::NotOffered));
    assert_eq!(choose(&[PLUS, PLAIN], false, false), Ok(Binding::Unsupported));
    for (mechanisms, tls) in [(&[PLAIN][..], true), (&[PLUS, PLAIN], false), (&[], true)] {
        assert!(matches!(choose(mechanisms, tls, true), Err(ScramError::ChannelBinding(_))));
    }
    assert_eq!(choose(&[PLUS], false, false), Err(ScramError::Mechanism));
    assert_eq!(choose(&[b"OAUTHBEARER"], true, false), Err(ScramError::Mechanism));
}

#[test]
fn a_user_who_does_not_exist_looks_like_one_who_does() {
    let mock = |user| Keys::mock(b"drawn once", user, DEFAULT_ITERATIONS);
    assert_eq!(mock("nobody").salt(), mock("nobody").salt());
    assert_ne!(mock("nobody").salt(), mock("somebody").salt());
    assert_ne!(mock("nobody").salt(), Keys::mock("another".as_bytes(), "nobody", DEFAULT_ITERATIONS).salt());
    let real = keys(b"pencil");
    assert_eq!((mock("nobody").salt().len(), mock("nobody").iterations()), (real.salt().len(), real.iterations()));
    assert_eq!(log_in(mock("nobody"), b"pencil", None, Binding::Unsupported).unwrap_err(), ScramError::Proof);
    // Not even the key that the secret gives away opens it.
    assert!(Keys::parse(&mock("nobody").to_text()).is_some());
    assert!(!mock("nobody").is_of(&salted_password(b"", mock("nobody").salt(), DEFAULT_ITERATIONS)));
}

fn challenge(message: &str) -> Result<u32, ScramError> {
    let client = Client::new(Nonce::given("ours").unwrap(), Binding::Unsupported);
    client.challenged(message.as_bytes()).map(|challenged| challenged.iterations())
}

#[test]
fn cve_2026_42198_the_server_does_not_choose_how_long_we_work() {
    assert_eq!(challenge("r=oursX,s=c2FsdA==,i=4096"), Ok(4096));
    assert_eq!(challenge(&format!("r=oursX,s=c2FsdA==,i={MAX_ITERATIONS}")), Ok(MAX_ITERATIONS));
    for count in ["2147483647", "1000001", "0", "1", "4095", "-1", "99999999999999999999", "", "4096x"] {
        assert_eq!(challenge(&format!("r=oursX,s=c2FsdA==,i={count}")), Err(ScramError::Iterations), "{count}");
    }
}

#[test]
fn cve_2026_6665_a_nonce_is_bounded_and_continues_ours() {
    let long = "x".repeat(60_000);
    for nonce in ["ours", "other", "", "oursX\u{e9}", "ours X", &format!("ours{long}")] {
        assert!(challenge(&format!("r={nonce},s=c2FsdA==,i=4096")).is_err(), "{}", nonce.len());
    }
    let longest = "x".repeat(MAX_NONCE - 4);
    assert_eq!(challenge(&format!("r=ours{longest},s=c2FsdA==,i=4096")), Ok(4096));
}

#[test]
fn broken_first_messages_of_a_server_are_refused() {
    let salt = "A".repeat(4_000);
    for broken in [
        "",
        "r=oursX",
        "r=oursX,s=c2FsdA==",
        "s=c2FsdA==,r=oursX,i=4096",
        "r=oursX,s=,i=4096",
        "r=oursX,s=!!!!,i=4096",
        "m=x,r=oursX,s=c2FsdA==,i=4096",
        &format!("r=oursX,s={salt},i=4096"),
    ] {
        assert!(challenge(broken).is_err(), "{broken}");
    }
}

#[test]
fn broken_first_messages_of_a_client_are_refused() {
    let first = |mechanism: &[u8], message: &str| {
        Server::new(keys(b"x"), Nonce::random(), None).first(mechanism, message.as_bytes()).map(|(answer, _)| answer)
    };
    assert!(first(PLAIN, "n,,n=,r=abc").is_ok());
    for broken in [
        "",
        "n",
        "n,",
        "n,,",
        "n,,n=",
        "n,,n=,r=",
        "x,,n=,r=a",
        "n,a=joe,n=,r=a",
        "n,,m=x,n=,r=a",
        "p=,,n=,r=a",
        "p=tls-server-end-point,,n=,r=a",
        "n,,r=a,n=",
        "n,,n=,r=a\u{1}",
        "n,,n=,r=a b",
    ] {
        assert!(first(PLAIN, broken).is_err(), "{broken}");
    }
    assert!(first(PLAIN, &format!("n,,n=,r={}", "x".repeat(60_000))).is_err());
    for mechanism in [&b""[..], PLUS, b"SCRAM-SHA-1", b"scram-sha-256", b"PLAIN", b"\xff"] {
        assert_eq!(first(mechanism, "n,,n=,r=abc"), Err(ScramError::Mechanism));
    }
}

#[test]
fn broken_last_messages_of_a_client_are_refused() {
    let last = |message: &dyn Fn(&str) -> String| {
        let server = Server::new(keys(b"x"), Nonce::given("S").unwrap(), None);
        let (_, server) = server.first(PLAIN, b"n,,n=,r=C").unwrap();
        let proof = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        server.last(message(proof).as_bytes()).unwrap_err()
    };
    assert_eq!(last(&|proof| format!("c=biws,r=CS,p={proof}")), ScramError::Proof);
    assert_eq!(last(&|proof| format!("c=biws,r=CSx,p={proof}")), ScramError::Nonce);
    assert_eq!(last(&|proof| format!("c=biws,r=C,p={proof}")), ScramError::Nonce);
    assert!(matches!(last(&|proof| format!("c=eSws,r=CS,p={proof}")), ScramError::ChannelBinding(_)));
    assert!(matches!(last(&|_| "c=biws,r=CS".to_owned()), ScramError::Malformed(_)));
    assert!(matches!(last(&|_| "c=biws,r=CS,p=AAAA".to_owned()), ScramError::Malformed(_)));
    assert!(matches!(last(&|proof| format!("c=biws,r=CS,p={proof},p=x")), ScramError::Malformed(_)));
    assert!(matches!(last(&|_| String::new()), ScramError::Malformed(_)));
}

#[test]
fn a_server_that_does_not_know_the_secret_is_not_believed() {
    let proved = || {
        let client = Client::new(Nonce::given("C").unwrap(), Binding::Unsupported);
        let client = client.challenged(b"r=CS,s=c2FsdA==,i=4096").unwrap();
        let own = OwnKeys::new(&salted_password(b"x", client.salt(), client.iterations()));
        client.answer(&own).1
    };
    let wrong = "v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    assert_eq!(proved().verify(wrong.as_bytes()), Err(ScramError::ServerSignature));
    assert_eq!(proved().verify(b"e=invalid-proof"), Err(ScramError::Server));
    for broken in [&b""[..], b"v=", b"v=AAAA", b"x=AAAA", b"\xff"] {
        assert!(matches!(proved().verify(broken), Err(ScramError::Malformed(_))), "{broken:?}");
    }
}

#[test]
fn impossible_secrets_are_passwords() {
    let good = keys(b"x").to_text();
    assert!(Keys::parse(&good).is_some());
    let broken = [
        good.replace(":", ""),
        good.replace("$4096", "$0"),
        good.replace("$4096", "$-1"),
        good.replace("$4096", "$99999999999"),
        good.replace("SCRAM-SHA-256", "SCRAM-SHA-1"),
        good[..good.len() - 4].to_owned(),
        format!("{good}AAAA"),
    ];
    for secret in broken {
        assert!(Keys::parse(&secret).is_none(), "{secret}");
    }
}
