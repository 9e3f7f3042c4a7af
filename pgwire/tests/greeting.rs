//! The first packets of a connection, good and bad, whole and in pieces.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use bytes::BytesMut;
use pgwire::fields;
use pgwire::frontend;
use pgwire::greeting::{Greeting, MAX_STARTUP, Refusal, Startup, Step};

const SSL: [u8; 8] = *b"\0\0\0\x08\x04\xd2\x16\x2f";
const GSS: [u8; 8] = *b"\0\0\0\x08\x04\xd2\x16\x30";

/// A packet with this code and content.
fn packet(code: u32, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len() + 8).unwrap();
    [&length.to_be_bytes()[..], &code.to_be_bytes(), content].concat()
}

fn startup(minor: u32, content: &[u8]) -> Vec<u8> {
    packet((3 << 16) | minor, content)
}

fn started(bytes: &[u8]) -> Startup {
    match Greeting::new().read(bytes) {
        Ok(Step::Startup(startup, taken)) if taken == bytes.len() => startup,
        other => panic!("{other:?}"),
    }
}

fn refused(bytes: &[u8]) -> Refusal {
    Greeting::new().read(bytes).expect_err("it is refused")
}

#[test]
fn a_startup_packet_is_read_only_when_complete() {
    let whole = startup(0, b"user\0joe\0database\0shop\0\0");
    for cut in 0..whole.len() {
        assert_eq!(Greeting::new().read(&whole[..cut]), Ok(Step::More(Greeting::new())), "{cut}");
    }
    let startup = started(&whole);
    assert_eq!((startup.user(), startup.database()), (Ok(Some("joe")), Ok(Some("shop"))));
    let behind = [&whole[..], b"p\0\0"].concat();
    assert!(matches!(Greeting::new().read(&behind), Ok(Step::Startup(_, taken)) if taken == whole.len()));
}

#[test]
fn what_is_written_is_what_is_read() {
    for minor in 0..=2 {
        let mut out = BytesMut::new();
        frontend::startup(&mut out, minor, &[(b"user", b"joe"), (b"options", b"-c a=\xff")]).unwrap();
        let startup = started(&out);
        assert_eq!((startup.minor(), startup.agreed_minor(), startup.needs_negotiation()), (minor, minor, false));
        assert_eq!(startup.get("options"), Some(&b"-c a=\xff"[..]));
        assert!(matches!(startup.text("options"), Err(Refusal::NotText("options"))));
    }
    let mut out = BytesMut::new();
    assert!(frontend::startup(&mut out, 0, &[(b"", b"x")]).is_err());
    assert!(frontend::startup(&mut out, 0, &[(b"user", b"a\0b")]).is_err());
    assert!(out.is_empty());
}

#[test]
fn of_several_parameters_of_a_name_the_last_counts() {
    let startup = started(&startup(0, b"user\0one\0user\0two\0\0"));
    assert_eq!(startup.user(), Ok(Some("two")));
    assert_eq!(startup.parameters().count(), 2);
}

#[test]
fn the_database_is_by_default_that_of_the_user() {
    assert_eq!(started(&startup(0, b"user\0joe\0\0")).database(), Ok(Some("joe")));
    assert_eq!(started(&startup(0, b"user\0joe\0database\0\0\0")).database(), Ok(Some("joe")));
    assert_eq!(started(&startup(0, b"\0")).user(), Ok(None));
    assert_eq!(started(&startup(0, b"user\0\0\0")).user(), Ok(None));
}

#[test]
fn a_list_that_does_not_end_with_the_packet_is_refused() {
    for content in
        [&b""[..], b"user", b"user\0", b"user\0joe", b"user\0joe\0", b"user\0joe\0\0x", b"\0\0", b"user\0joe\0\0\0"]
    {
        assert_eq!(refused(&startup(0, content)), Refusal::Terminator, "{content:?}");
    }
}

#[test]
fn impossible_lengths_are_refused_at_once() {
    for length in [0_u32, 1, 4, 7, 10_005, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff] {
        assert_eq!(refused(&length.to_be_bytes()), Refusal::Length, "{length}");
    }
    for noise in [&b"GET / HTTP/1.1\r\n"[..], b"p\0\0\0\x06x\0", b"Q\0\0\0\x05\0", b"X\0\0\0\x04", b"SSH-2.0-x\r\n"] {
        assert_eq!(refused(noise), Refusal::Length);
    }
    let longest = startup(0, &[&b"user\0"[..], &vec![b'x'; MAX_STARTUP - 11], b"\0\0"].concat());
    assert_eq!(longest.len(), MAX_STARTUP + 4);
    assert_eq!(started(&longest).user().unwrap().unwrap().len(), MAX_STARTUP - 11);
}

#[test]
fn cve_2015_4054_no_first_byte_does_harm() {
    for first in 0..=255_u8 {
        for rest in [&b""[..], b"\0\0\0", b"\0\0\0\x08", b"\0\0\x08\x04\xd2\x16\x2f", b"\xff\xff\xff\xff\xff\xff\xff"] {
            let _ = Greeting::new().read(&[&[first], rest].concat());
        }
    }
}

#[test]
fn other_protocols_are_refused() {
    for (version, said) in
        [(2 << 16, "2.0"), (1 << 16, "1.0"), (4 << 16, "4.0"), (0, "0.0"), ((1234 << 16) | 5681, "1234.5681")]
    {
        let refusal = refused(&packet(version, b"user\0joe\0\0"));
        assert_eq!(refusal.to_string(), format!("unsupported frontend protocol {said}: server supports 3.0 to 3.2"));
        assert_eq!(refusal.sqlstate().unwrap().as_str(), "0A000");
    }
}

#[test]
fn newer_minor_versions_and_extensions_are_negotiated() {
    let negotiated = |minor, content: &[u8]| {
        let startup = started(&startup(minor, content));
        assert!(startup.needs_negotiation());
        let mut out = BytesMut::new();
        startup.negotiate(&mut out).unwrap();
        out.to_vec()
    };
    assert_eq!(negotiated(3, b"user\0joe\0\0"), b"v\0\0\0\x0c\0\x03\0\x02\0\0\0\0");
    assert_eq!(negotiated(9999, b"user\0joe\0\0"), b"v\0\0\0\x0c\0\x03\0\x02\0\0\0\0");
    assert_eq!(
        negotiated(0, b"_pq_.a\x001\0user\0joe\0_pq_.b\0\0\0"),
        b"v\0\0\0\x1a\0\x03\0\0\0\0\0\x02_pq_.a\0_pq_.b\0"
    );
}

#[test]
fn encryption_is_asked_for_and_answered_once_of_each_kind() {
    let Ok(Step::Ssl(asked)) = Greeting::new().read(&SSL) else { panic!() };
    let Ok(Step::Gss(asked)) = asked.refused().read(&GSS) else { panic!() };
    let greeting = asked.refused();
    assert!(!greeting.is_encrypted());
    let whole = startup(0, b"user\0joe\0\0");
    assert!(matches!(greeting.read(&whole), Ok(Step::Startup(..))));

    let Ok(Step::Gss(asked)) = Greeting::new().read(&GSS) else { panic!() };
    let Ok(Step::Ssl(asked)) = asked.refused().read(&SSL) else { panic!() };
    let greeting = asked.established();
    assert!(greeting.is_encrypted());
    assert!(matches!(greeting.read(&whole), Ok(Step::Startup(..))));
}

#[test]
fn cve_2026_6479_requests_for_encryption_do_not_go_on_for_ever() {
    let mut greeting = Greeting::new();
    for round in 0..2_000 {
        match greeting.read(if round % 2 == 0 { &SSL } else { &GSS }) {
            Ok(Step::Ssl(asked) | Step::Gss(asked)) => greeting = asked.refused(),
            Err(Refusal::Version(_)) => return assert_eq!(round, 2),
            other => panic!("{other:?}"),
        }
    }
    panic!("never refused");
}

#[test]
fn inside_encryption_none_is_asked_for() {
    for again in [SSL, GSS] {
        let Ok(Step::Ssl(asked)) = Greeting::new().read(&SSL) else { panic!() };
        assert!(matches!(asked.established().read(&again), Err(Refusal::Version(_))));
    }
    let Ok(Step::Ssl(asked)) = Greeting::new().read(&SSL) else { panic!() };
    assert_eq!(asked.established().read(b"\x16\x03\x01\x02\0\x01"), Err(Refusal::Length));
}

#[test]
fn cve_2021_3935_plaintext_behind_ssl_request() {
    let behind = [&startup(0, b"user\0joe\0\0")[..], b"Q\0\0\0\x0dselect 1\0", b"\0", &SSL];
    for behind in behind {
        let refusal = refused(&[&SSL[..], behind].concat());
        assert_eq!(refusal.to_string(), "received unencrypted data after SSL request");
        assert_eq!(refusal.sqlstate().unwrap().as_str(), "08P01");
        assert_eq!(refused(&[&GSS[..], behind].concat()), Refusal::BehindGssRequest);
    }
}

#[test]
fn a_request_for_encryption_has_no_content() {
    assert_eq!(refused(&packet((1234 << 16) | 5679, b"x")), Refusal::Length);
    assert_eq!(refused(&packet((1234 << 16) | 5680, b"xxxx")), Refusal::Length);
}

#[test]
fn direct_tls_is_known_by_its_first_byte() {
    let hello = b"\x16\x03\x01";
    let Ok(Step::DirectTls(asked)) = Greeting::new().read(&hello[..1]) else { panic!() };
    assert!(asked.established().is_encrypted());
    let Ok(Step::Ssl(asked)) = Greeting::new().read(&SSL) else { panic!() };
    assert!(!matches!(asked.refused().read(hello), Ok(Step::DirectTls(_))), "after SSLRequest was refused");
}

#[test]
fn cancel_keys_have_4_to_256_bytes() {
    for length in [4, 8, 32, 256] {
        let key = vec![7; length];
        let mut out = BytesMut::new();
        frontend::cancel_request(&mut out, 0x8000_0001, &key).unwrap();
        let Ok(Step::Cancel(cancel, taken)) = Greeting::new().read(&out) else { panic!("{length}") };
        assert_eq!((cancel.process, &cancel.key, taken), (0x8000_0001, &key, out.len()));
        assert_eq!(format!("{cancel:?}"), "CancelRequest { process: 2147483649, .. }");
    }
    for length in [0, 3, 257, 5_000] {
        let content = [&[0, 0, 0, 1][..], &vec![7; length]].concat();
        assert_eq!(refused(&packet((1234 << 16) | 5678, &content)), Refusal::Length, "{length}");
        assert!(frontend::cancel_request(&mut BytesMut::new(), 1, &vec![7; length]).is_err());
    }
    assert_eq!(refused(&packet((1234 << 16) | 5678, b"xx")), Refusal::Length);
}

#[test]
fn ssl_request_is_as_postgresql_has_it() {
    let mut out = BytesMut::new();
    frontend::ssl_request(&mut out).unwrap();
    assert_eq!(out, &SSL[..]);
    assert_eq!(fields::declared(out.len()), Ok(8));
}
