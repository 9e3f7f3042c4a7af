//! Both sides of a login against each other and against liars: every method, every form of a secret, and what a hostile
//! client or server may send.

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::BytesMut;
use proxy::auth::{Came, Claim, Hashing, Identity, Link, LoginError, Refusal, ServerLogin, Store, authenticate, login};
use proxy::config::Config;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

/// The greeting of a server that has nothing to say, and ReadyForQuery.
const GREETING: &[u8] = b"S\0\0\0\x18server_version\x0015.0\0K\0\0\0\x0c\0\0\0\x2a\0\0\0\x07Z\0\0\0\x05Ibehind";
/// Time in which whatever is sent must have come to an end.
const PATIENCE: Duration = Duration::from_secs(10);
/// `secret` of `joe`, as md5 and as SCRAM keep it.
const MD5: &str = "md5c59ec932d911ffdf487595b5a2adf973";
const SCRAM: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:\
                     wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
/// The password that belongs to `SCRAM` (RFC 7677's example).
const PENCIL: &str = "pencil";

fn store(method: &str, users: &[(&str, &str)]) -> Store {
    let mut text = format!("[auth]\nmethod = \"{method}\"\n[database.a]\nhost = \"h\"\n");
    for (user, secret) in users {
        text.push_str(&format!("[[user]]\nname = {user:?}\npassword = {secret:?}\n"));
    }
    Store::load(&Config::parse(&text, Path::new("f")).expect("a good configuration")).expect("users")
}

fn claim<'a>(user: &'a str, end_point: Option<&'a [u8]>) -> Claim<'a> {
    Claim { user, end_point, place: None, came: Came::default() }
}

/// A client with `password` comes to a `Store`; both what we think of it and what it thinks of us.
async fn meet(
    store: &Store,
    user: &str,
    password: &ServerLogin,
    bindings: (Option<&[u8]>, Option<&[u8]>),
) -> (Result<Identity, Refusal>, Result<Vec<(String, String)>, LoginError>) {
    let (mut ours, mut theirs) = duplex(1 << 16);
    let server = async {
        let mut rest = BytesMut::new();
        let length = theirs.read_u32().await.expect("a startup packet") as usize;
        theirs.read_exact(&mut vec![0; length - 4]).await.expect("a startup packet");
        let mut out = BytesMut::new();
        let identity = authenticate(&mut theirs, &mut rest, &mut out, claim(user, bindings.0), store).await;
        match &identity {
            Ok(_) => out.extend_from_slice(GREETING),
            Err(refusal) => {
                out.clear();
                let report = proxy::error::refusal(refusal, false);
                report.map(|report| report.write(&mut out).expect("a report")).unwrap_or_default();
            }
        }
        let _ = theirs.write_all(&out).await;
        drop(theirs);
        identity
    };
    let hashing = Hashing::default();
    let client = async {
        let link = Link { end_point: bindings.1, is_private: true };
        let startup = [("user", user), ("database", "a")];
        let greeted = login(&mut ours, &startup, password, link, &hashing).await;
        drop(ours);
        let greeted = greeted?;
        assert_eq!((greeted.process_id, &greeted.key[..], &greeted.rest[..]), (42, &b"\0\0\0\x07"[..], &b"behind"[..]));
        Ok(greeted.parameters)
    };
    tokio::time::timeout(PATIENCE, async { tokio::join!(server, client) }).await.expect("an end")
}

#[tokio::test]
async fn every_method_takes_the_right_password_and_no_other() {
    // Method, stored secret, whether that method can check that secret at all.
    let cases = [
        ("password", "secret", "secret", true),
        ("password", MD5, "secret", true),
        ("password", SCRAM, PENCIL, true),
        ("md5", "secret", "secret", true),
        ("md5", MD5, "secret", true),
        ("md5", SCRAM, PENCIL, true),
        ("scram-sha-256", "secret", "secret", true),
        ("scram-sha-256", SCRAM, PENCIL, true),
        ("scram-sha-256", MD5, "secret", false),
    ];
    for (method, stored, password, possible) in cases {
        let store = store(method, &[("joe", stored)]);
        let right = ServerLogin::password(password.as_bytes());
        for binding in [None, Some(&b"the same channel"[..])] {
            let (identity, greeted) = meet(&store, "joe", &right, (binding, binding)).await;
            assert_eq!(
                (identity.is_ok(), greeted.is_ok()),
                (possible, possible),
                "{method} {stored}: {identity:?} {greeted:?}"
            );
        }
        for wrong in ["", "Secret", "secret ", stored] {
            if wrong == password {
                continue;
            }
            let (identity, greeted) = meet(&store, "joe", &ServerLogin::password(wrong.as_bytes()), (None, None)).await;
            assert!(identity.is_err() && greeted.is_err(), "{method} {stored} {wrong:?}");
        }
    }
}

#[tokio::test]
async fn what_a_client_proved_logs_it_in_on_a_server_with_the_same_secret() {
    let cases = [
        ("scram-sha-256", SCRAM, PENCIL),
        ("scram-sha-256", "secret", "secret"),
        ("md5", MD5, "secret"),
        ("password", SCRAM, PENCIL),
    ];
    for (method, stored, password) in cases {
        let store = store(method, &[("joe", stored)]);
        let (identity, _) = meet(&store, "joe", &ServerLogin::password(password.as_bytes()), (None, None)).await;
        let passed_on = identity.expect("the right password").server_login;
        // The same store plays the server behind us.
        let (identity, greeted) = meet(&store, "joe", &passed_on, (None, None)).await;
        assert!(greeted.is_ok(), "{method} {stored}: {greeted:?}");
        assert!(identity.expect("the right password").server_login.is_same(&passed_on), "{method} {stored}");
        // No secret is printed on the way.
        let printed = format!("{passed_on:?} {store:?}");
        for secret in [password, stored, "WG5d8oPm3Otc"] {
            assert!(!printed.contains(secret), "{printed}");
        }
    }
    let (verified, right) = (store("scram-sha-256", &[("joe", SCRAM)]), ServerLogin::password(PENCIL.as_bytes()));
    let keys = meet(&verified, "joe", &right, (None, None));
    let keys = keys.await.0.expect("the right password").server_login;
    let (_, greeted) = meet(&store("scram-sha-256", &[("joe", "pencil")]), "joe", &keys, (None, None)).await;
    assert!(matches!(greeted, Err(LoginError::OtherSecret)), "salted otherwise: {greeted:?}");
    let (_, greeted) = meet(&store("password", &[("joe", "pencil")]), "joe", &keys, (None, None)).await;
    assert!(matches!(greeted, Err(LoginError::Missing(_))), "{greeted:?}");
}

#[tokio::test]
async fn channel_binding_notices_another_channel() {
    let store = store("scram-sha-256", &[("joe", "secret")]);
    let right = ServerLogin::password(b"secret");
    let (identity, greeted) = meet(&store, "joe", &right, (Some(b"ours"), Some(b"of a man in the middle"))).await;
    assert!(identity.is_err() && greeted.is_err());
    // The client has TLS, the offer of channel binding was taken out: the client says so, and an honest server refuses.
    let (identity, _) = meet(&store, "joe", &right, (None, Some(b"a channel"))).await;
    assert!(identity.is_ok(), "the server has no TLS of its own: {identity:?}");
}

#[tokio::test]
async fn trust_asks_nothing_but_knows_its_users() {
    let none = ServerLogin::Nothing;
    let listed = store("trust", &[("joe", "secret")]);
    assert!(meet(&listed, "joe", &none, (None, None)).await.1.is_ok());
    assert!(meet(&listed, "jim", &none, (None, None)).await.1.is_err());
    assert!(meet(&store("trust", &[]), "jim", &none, (None, None)).await.1.is_ok());
}

/// All that a client sees when it sends `answers`, one for each message that comes.
async fn seen(store: &Store, user: &str, answers: &[&[u8]]) -> (Vec<Vec<u8>>, Result<Identity, Refusal>) {
    let (mut ours, mut theirs) = duplex(1 << 20);
    let client = async {
        let mut messages = Vec::new();
        for answer in answers {
            let mut header = [0; 5];
            if ours.read_exact(&mut header).await.is_err() {
                break;
            }
            let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
            let mut body = vec![0; length - 4];
            ours.read_exact(&mut body).await.expect("a body");
            messages.push([&header[..], &body].concat());
            let _ = ours.write_all(answer).await;
        }
        ours.shutdown().await.expect("closed");
        messages
    };
    let server = async {
        let (mut rest, mut out) = (BytesMut::new(), BytesMut::new());
        let identity = authenticate(&mut theirs, &mut rest, &mut out, claim(user, None), store).await;
        drop(theirs);
        identity
    };
    tokio::time::timeout(PATIENCE, async { tokio::join!(client, server) }).await.expect("an end")
}

fn message(body: &[u8]) -> Vec<u8> {
    [b"p", &u32::try_from(body.len() + 4).expect("short").to_be_bytes()[..], body].concat()
}

/// The client's first SCRAM message, always with the same nonce.
fn first_scram_message() -> Vec<u8> {
    let first = b"n,,n=,r=fyko+d2lbbFgONRv9qkxdawL";
    message(&[b"SCRAM-SHA-256\0", &u32::try_from(first.len()).expect("short").to_be_bytes()[..], first].concat())
}

#[tokio::test]
async fn an_unknown_user_cannot_be_told_from_a_wrong_password() {
    let first = first_scram_message();
    for stored in ["secret", SCRAM] {
        let store = store("scram-sha-256", &[("joe", stored), ("jane", stored)]);
        let mut salts = Vec::new();
        for user in ["joe", "nobody", "nobody", "jane", "joe", "nobody else"] {
            let (messages, refused) = seen(&store, user, &[&first, &message(b"c=biws,r=x,p=AAAA")]).await;
            assert!(refused.is_err());
            assert_eq!(messages.len(), 2);
            let challenge = String::from_utf8_lossy(&messages[1][9..]).into_owned();
            let fields: Vec<_> = challenge.split(',').collect();
            assert_eq!((fields.len(), fields[2]), (3, "i=4096"), "{challenge}");
            assert_eq!(fields[1].len(), "s=W22ZaJ0SNY7soEsUEjb6gQ==".len(), "{challenge}");
            salts.push(fields[1].to_owned());
        }
        assert_eq!((&salts[1], &salts[0]), (&salts[2], &salts[4]), "the same user has the same salt each time");
        assert_ne!(salts[1], salts[5]);
    }
    for method in ["password", "md5", "scram-sha-256"] {
        let store = store(method, &[("joe", "secret")]);
        let wrong = ServerLogin::password(b"wrong");
        let mut told = Vec::new();
        for user in ["joe", "nobody"] {
            let (_, greeted) = meet(&store, user, &wrong, (None, None)).await;
            let Err(LoginError::Refused { message, sqlstate, .. }) = greeted else { panic!("{greeted:?}") };
            told.push((message.replace(user, "USER"), sqlstate.map(|s| s.to_string())));
        }
        assert_eq!(told[0], told[1]);
        assert_eq!(told[0].1.as_deref(), Some("28P01"));
    }
}

#[tokio::test]
async fn hostile_clients_are_refused_and_nothing_more() {
    let huge = |length: u32, rest: &[u8]| [b"p", &length.to_be_bytes()[..], rest].concat();
    let sasl = |length: u32, rest: &[u8]| message(&[b"SCRAM-SHA-256\0", &length.to_be_bytes()[..], rest].concat());
    let mut hostile = vec![
        huge(0, b""),
        huge(3, b""),
        huge(u32::MAX, b"x"),
        huge(0x7fff_ffff, b"x"),
        huge(0xffff_fffb, b"x"),
        huge(65_536, b"x"),
        huge(100, b"cut off"),
        message(b""),
        message(b"\0"),
        message(b"no end"),
        message(b"a\0b\0"),
        message(b"SCRAM-SHA-256\0"),
        message(b"SCRAM-SHA-256-PLUS\0\0\0\0\0"),
        message(b"PLAIN\0\0\0\0\x01x"),
        sasl(0x7fff_ffff, b"n,,n=,r=x"),
        sasl(0xffff_fffb, b"n,,n=,r=x"),
        sasl(0xffff_ffff, b""),
        sasl(0, b"n,,n=,r=x"),
        sasl(9, b"n,,n=,r="),
        sasl(9, b"y,,m=,r=x"),
        sasl(1, b"\xff"),
        message(&[b'x'; 60_000]),
        b"Q\0\0\0\x0dselect 1\0".to_vec(),
        b"X\0\0\0\x04".to_vec(),
        b"\x16\x03\x01\x02\0".to_vec(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0; 100],
    ];
    let whole = first_scram_message();
    hostile.extend((0..whole.len()).map(|cut| whole[..cut].to_vec()));
    for method in ["password", "md5", "scram-sha-256"] {
        let store = store(method, &[("joe", "secret")]);
        for user in ["joe", "nobody", "x' OR '1'='1", "$1", "\u{202e}\n\x1b[2J"] {
            for bytes in &hostile {
                let (_, identity) = seen(&store, user, &[bytes]).await;
                assert!(identity.is_err(), "{method} {user:?} {bytes:?}");
            }
        }
    }
    // The second message of a SCRAM exchange.
    let store = store("scram-sha-256", &[("joe", "secret")]);
    for last in
        [&b""[..], b"c=biws", b"c=biws,r=x,p=", b"c=biws,r=x,p=!", b",p=", b"m=x,p=AAAA", &[0xff; 100], &[b','; 5000]]
    {
        let (_, identity) = seen(&store, "joe", &[&whole, &message(last)]).await;
        assert!(identity.is_err(), "{last:?}");
    }
}

/// What comes of a login on a server that sends these messages, one for each of ours, and then is silent or gone.
async fn served(answers: &[&[u8]], password: &ServerLogin, is_private: bool) -> LoginError {
    let (mut ours, mut theirs) = duplex(1 << 22);
    let answers: Vec<Vec<u8>> = answers.iter().map(|answer| answer.to_vec()).collect();
    let server = tokio::spawn(async move {
        let mut nonce = Vec::new();
        for answer in answers {
            let mut buffer = [0; 4096];
            let n = theirs.read(&mut buffer).await.unwrap_or(0);
            if let Some(at) = buffer[..n].windows(2).position(|w| w == b"r=") {
                nonce = buffer[at + 2..n].to_vec();
            }
            // NONCE stands for the client's own.
            let text = answer.windows(5).position(|w| w == b"NONCE");
            let answer = match text {
                Some(at) => sized(&[&answer[..at], &nonce, &answer[at + 5..]].concat()),
                None => answer,
            };
            if theirs.write_all(&answer).await.is_err() {
                return;
            }
        }
        let _ = theirs.shutdown().await;
        let _ = theirs.read_to_end(&mut Vec::new()).await;
    });
    let hashing = Hashing::default();
    let link = Link { end_point: None, is_private };
    let startup = [("user", "joe")];
    let result = tokio::time::timeout(PATIENCE, login(&mut ours, &startup, password, link, &hashing)).await;
    drop(ours);
    server.await.expect("the server ends");
    result.expect("an end").expect_err("a hostile server logs nobody in")
}

/// With the length put right.
fn sized(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len() - 1).expect("short").to_be_bytes();
    [&message[..1], &length, &message[5..]].concat()
}

fn r(kind: u8, body: &[u8]) -> Vec<u8> {
    sized(&[b"R\0\0\0\0\0\0\0", &[kind][..], body].concat())
}

const OK: &[u8] = b"R\0\0\0\x08\0\0\0\0";

#[tokio::test]
async fn hostile_servers_fail_and_do_nothing_else() {
    let secret = ServerLogin::password(b"secret");
    let sasl = r(10, b"SCRAM-SHA-256\0\0");
    let challenge = |text: &str| r(11, text.as_bytes());
    let long_nonce = format!("r=NONCE{},s=c2FsdA==,i=4096", "x".repeat(60_000));
    let scram: Vec<(Vec<u8>, &str)> = vec![
        (challenge("r=NONCEx,s=c2FsdA==,i=2147483647"), "iteration count"),
        (challenge("r=NONCEx,s=c2FsdA==,i=1000001"), "iteration count"),
        (challenge("r=NONCEx,s=c2FsdA==,i=1"), "iteration count"),
        (challenge("r=NONCEx,s=c2FsdA==,i=0"), "iteration count"),
        (challenge("r=NONCEx,s=c2FsdA==,i=-5"), "iteration count"),
        (challenge("r=NONCE,s=c2FsdA==,i=4096"), "nonce"),
        (challenge("r=another,s=c2FsdA==,i=4096"), "nonce"),
        (challenge(&long_nonce), "nonce"),
        (challenge("r=NONCEx,s=,i=4096"), "salt"),
        (challenge("r=NONCEx,s=!,i=4096"), "salt"),
        (challenge("m=x,r=NONCEx,s=c2FsdA==,i=4096"), "not supported"),
        (challenge(""), ""),
        (OK.to_vec(), "out of turn"),
        (r(12, b"v=AAAA"), "out of turn"),
        (r(10, b"SCRAM-SHA-256\0\0"), "out of turn"),
    ];
    for (answer, expected) in &scram {
        let error = served(&[&sasl, answer], &secret, true).await.to_string();
        assert!(error.contains(expected), "{}: {error}", String::from_utf8_lossy(answer));
    }
    let good = challenge("r=NONCEx,s=c2FsdA==,i=4096");
    for last in [r(12, b"v=AAAA"), r(12, b""), r(12, b"e=other-error"), OK.to_vec(), b"Z\0\0\0\x05I".to_vec()] {
        let error = served(&[&sasl, &good, &[&last[..], OK, GREETING].concat()], &secret, true).await;
        assert!(matches!(error, LoginError::Scram(_) | LoginError::Protocol(_)), "{error}");
    }
    let wrong_proof = r(12, b"v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    let error = served(&[&sasl, &good, &[&wrong_proof[..], OK, GREETING].concat()], &secret, true).await;
    assert!(error.to_string().contains("incorrect server signature"), "{error}");
}

#[tokio::test]
async fn broken_greetings_are_errors_at_once() {
    let nothing = ServerLogin::Nothing;
    let notices = b"N\0\0\0\x08SX\0\0".repeat(1000);
    let parameters = b"S\0\0\0\x08a\0b\0".repeat(1000);
    let long = [b"S\0\0\x75\x30", &vec![b'a'; 30_000][..]].concat().repeat(40);
    let cases: [&[u8]; 22] = [
        b"",
        b"R",
        b"R\0\0\0\x04",
        b"R\0\0\0\x07abc",
        b"R\xff\xff\xff\xff",
        b"R\x7f\xff\xff\xff",
        b"R\0\0\0\x08\0\0\0\x07",
        b"R\0\0\0\x0c\0\0\0\x05salt",
        b"Z\0\0\0\x05I",
        b"D\0\0\0\x04",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"E\0\0\0\x04",
        b"E\0\0\0\x0fSFATAL\0Mx\0\0",
        b"E\0\0\0\x08zzzz",
        b"E\0\x02\0\0x",
        b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05T",
        b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x06II",
        b"R\0\0\0\x08\0\0\0\0K\0\0\0\x08\0\0\0\0",
        b"R\0\0\0\x08\0\0\0\0S\0\0\0\x06ab",
        b"R\0\0\0\x08\0\0\0\0R\0\0\0\x08\0\0\0\0",
        b"R\0\0\0\x08\0\0\0\0D\0\0\0\x06\0\0",
        b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-512\0\0",
    ];
    for answer in cases {
        served(&[answer], &nothing, true).await;
    }
    for flood in [&notices, &parameters, &long] {
        let error = served(&[&[OK, flood].concat()], &nothing, true).await;
        assert!(matches!(error, LoginError::Protocol(_)), "{error}");
    }
    let error = served(&[&sized(b"E\0\0\0\0SFATAL\0C28000\0Ma\nb\x1b[2J\0\0")], &nothing, true).await;
    let LoginError::Refused { message, sqlstate, unasked, body } = error else { panic!("{error}") };
    assert_eq!(
        (&*message, sqlstate.map(|s| s.to_string()).as_deref(), unasked),
        ("a\\u{a}b\\u{1b}[2J", Some("28000"), true)
    );
    assert_eq!(&body[..], b"SFATAL\0C28000\0Ma\nb\x1b[2J\0\0");
}

#[tokio::test]
async fn a_password_is_sent_in_the_clear_only_where_nobody_listens() {
    let secret = ServerLogin::password(b"secret");
    assert!(matches!(served(&[&r(3, b"")], &secret, false).await, LoginError::InTheClear));
    let keys = ServerLogin::Nothing;
    assert!(matches!(served(&[&r(3, b"")], &keys, true).await, LoginError::Missing(_)));
    let refused = b"E\0\0\0\0SFATAL\0C28P01\0Mno\0\0";
    let asked = served(&[&r(3, b""), &sized(refused)], &secret, true).await;
    assert!(matches!(asked, LoginError::Refused { unasked: false, .. }), "{asked}");
}

#[tokio::test]
async fn a_reload_changes_the_users_and_a_bad_list_changes_nothing() -> io::Result<()> {
    let folder = tempfile::tempdir()?;
    let list = folder.path().join("users.txt");
    let text = "[auth]\nusers_file = \"users.txt\"\n[database.a]\nhost = \"h\"\n";
    let config = |text: &str| Config::parse(text, &folder.path().join("f")).expect("a good configuration");
    std::fs::write(&list, "\"joe\" \"secret\"\n")?;
    let store = Store::load(&config(text)).expect("users");
    let (old, new) = (ServerLogin::password(b"secret"), ServerLogin::password(b"changed"));
    assert!(meet(&store, "joe", &old, (None, None)).await.0.is_ok());

    std::fs::write(&list, "\"joe\" \"changed\"\n")?;
    store.replace(&config(text)).expect("a good list");
    assert!(meet(&store, "joe", &old, (None, None)).await.0.is_err());
    assert!(meet(&store, "joe", &new, (None, None)).await.0.is_ok());

    std::fs::write(&list, "\"joe\" \"third\"\njim secret\n")?;
    let said = store.replace(&config(text)).expect_err("a bad list");
    assert!(said.ends_with("users.txt: line 2: the user is not in double quotes"), "{said}");
    assert!(meet(&store, "joe", &new, (None, None)).await.0.is_ok());
    assert!(store.server_login("joe").is_same(&new) && store.server_login("jim").is_same(&ServerLogin::Nothing));
    Ok(())
}
