//! Views and writers of messages: what is written is what is read, and a message cut anywhere is refused.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use bytes::BytesMut;
use pgwire::backend;
use pgwire::frontend::{self, Bind, Execute, Parse, Target};
use pgwire::{Malformed, TransactionStatus, frame};

/// The body of the one message that `write` appends.
fn body(tag: u8, write: impl FnOnce(&mut BytesMut) -> Result<(), Malformed>) -> Vec<u8> {
    let mut out = BytesMut::new();
    write(&mut out).unwrap();
    let message = frame::split(&out).unwrap().expect("a whole message");
    assert_eq!((message.tag, message.rest.len()), (tag, 0));
    message.body.to_vec()
}

/// Every shorter body is refused, and one with a byte more.
fn refused_unless_whole<T: std::fmt::Debug>(body: &[u8], read: impl Fn(&[u8]) -> Result<T, Malformed>) {
    assert!(read(body).is_ok(), "{body:?}");
    for cut in 0..body.len() {
        assert!(read(&body[..cut]).is_err(), "{body:?} cut at {cut}");
    }
    assert!(read(&[body, b"x"].concat()).is_err(), "{body:?} and more");
}

#[test]
fn every_view_refuses_a_message_cut_anywhere() {
    let parse = body(b'P', |out| frontend::parse(out, b"s1", b"select $1", &[23, 25]));
    refused_unless_whole(&parse, |bytes| Parse::read(bytes).map(drop));
    let bind = body(b'B', |out| frontend::bind(out, b"p", b"s1", &[Some(b"1"), None, Some(b"")]));
    refused_unless_whole(&bind, |bytes| Bind::read(bytes)?.check());
    refused_unless_whole(&body(b'D', |out| Target::Statement(b"s1").describe(out)), |b| Target::read(b).map(drop));
    refused_unless_whole(&body(b'C', |out| Target::Portal(b"").close(out)), |b| Target::read(b).map(drop));
    let execute = body(b'E', |out| Execute { portal: b"p", rows: 5 }.write(out));
    refused_unless_whole(&execute, |bytes| Execute::read(bytes).map(drop));
    refused_unless_whole(&body(b'Q', |out| frontend::write_query(out, b"select 1")), |b| frontend::query(b).map(drop));
    let setting = body(b'S', |out| backend::write_parameter_status(out, b"TimeZone", b"UTC"));
    refused_unless_whole(&setting, |bytes| backend::parameter_status(bytes).map(drop));
    let done = body(b'C', |out| backend::write_command_complete(out, "SELECT 1"));
    refused_unless_whole(&done, |bytes| backend::command_complete(bytes).map(drop));
    let row = body(b'D', |out| backend::data_row(out, &[Some("a"), None, Some("")]));
    refused_unless_whole(&row, |bytes| backend::row_values(bytes).map(drop));
    refused_unless_whole(b"\0\x03\0\0\0\0\0\0", backend::negotiate_protocol_version);
    refused_unless_whole(b"T", backend::ready_for_query);
}

#[test]
fn parse_and_bind_are_sent_under_another_name_and_else_unchanged() {
    let parse = body(b'P', |out| frontend::parse(out, b"mine", b"select $1, $2", &[23, 0]));
    let read = Parse::read(&parse).unwrap();
    assert_eq!(read.type_ids().collect::<Vec<_>>(), [23, 0]);
    let renamed = body(b'P', |out| Parse { name: b"pgsteady_1", ..read }.write(out));
    assert_eq!(renamed, body(b'P', |out| frontend::parse(out, b"pgsteady_1", b"select $1, $2", &[23, 0])));

    let bind = body(b'B', |out| frontend::bind(out, b"p", b"mine", &[Some(b"1\0\xff"), None]));
    let read = Bind::read(&bind).unwrap();
    let expected = body(b'B', |out| frontend::bind(out, b"p", b"pgsteady_1", &[Some(b"1\0\xff"), None]));
    assert_eq!(body(b'B', |out| Bind { statement: b"pgsteady_1", ..read }.write(out)), expected);

    // The names alone, and the rest as it comes.
    let mut out = BytesMut::from(&b"before"[..]);
    Bind::write_start(&mut out, read.portal, b"pgsteady_1", read.rest.len()).unwrap();
    out.extend_from_slice(read.rest);
    let message = frame::split(&out[6..]).unwrap().unwrap();
    assert_eq!((message.body, message.rest), (&expected[..], &b""[..]));
}

#[test]
fn cve_2024_27304_length_wraps() {
    // Eight values that declare 2^29 bytes each: the sum wraps 2^32.
    let mut rest = b"\0\0\0\x08".to_vec();
    for _ in 0..8 {
        rest.extend(0x2000_0000_u32.to_be_bytes());
        rest.extend(b"x");
    }
    let bind = [b"\0\0", &rest[..], b"\0\0"].concat();
    assert_eq!(Bind::read(&bind).unwrap().check(), Err(Malformed::Truncated("Bind")));
    let mut out = BytesMut::new();
    for rest in [0x3fff_ffff, u32::MAX as usize, u32::MAX as usize + 9, usize::MAX] {
        assert_eq!(Bind::write_start(&mut out, b"", b"s", rest), Err(Malformed::TooLarge));
    }
    assert!(out.is_empty());
}

#[test]
fn rustsec_2026_0178_a_row_that_lies_is_refused() {
    for row in [
        &b""[..],
        b"\0",
        b"\0\x01",
        b"\xff\xff",
        b"\0\x01\0\0\0\x05abc",
        b"\0\x01\xff\xff\xff\xfe",
        b"\0\x01\x80\0\0\0",
        b"\0\x02\0\0\0\x01a",
        b"\0\0x",
    ] {
        assert!(backend::row_values(row).is_err(), "{row:?}");
    }
    assert_eq!(backend::row_values(b"\0\x02\xff\xff\xff\xff\0\0\0\x01a"), Ok(vec![None, Some(&b"a"[..])]));
}

#[test]
fn a_statement_or_a_portal_and_nothing_else_is_described() {
    assert_eq!(Target::read(b"Sx\0"), Ok(Target::Statement(b"x")));
    assert_eq!(Target::read(b"P\0"), Ok(Target::Portal(b"")));
    assert_eq!(Target::read(b"Xx\0"), Err(Malformed::Invalid("Describe or Close")));
}

#[test]
fn the_fixed_messages_are_whole_frames() {
    let ready = [TransactionStatus::Idle, TransactionStatus::InTransaction, TransactionStatus::Failed]
        .map(|status| (b'Z', backend::write_ready_for_query(status).to_vec()));
    let empty = [
        (b'S', frontend::SYNC),
        (b'H', frontend::FLUSH),
        (b'X', frontend::TERMINATE),
        (b'c', frontend::COPY_DONE),
        (b'1', backend::PARSE_COMPLETE),
        (b'3', backend::CLOSE_COMPLETE),
        (b'I', backend::EMPTY_QUERY),
    ]
    .map(|(tag, bytes)| (tag, bytes.to_vec()));
    for (tag, bytes) in ready.into_iter().chain(empty) {
        let message = frame::split(&bytes).unwrap().unwrap();
        assert_eq!((message.tag, message.rest.len()), (tag, 0));
    }
}

#[test]
fn keys_of_a_server_have_4_to_256_bytes() {
    for length in [4, 32, 256] {
        let key = vec![9; length];
        let keys = body(b'K', |out| backend::write_backend_key_data(out, 7, &key));
        assert_eq!(backend::backend_key_data(&keys), Ok((7, &key[..])));
    }
    for length in [0, 3, 257] {
        assert!(backend::backend_key_data(&[&[0, 0, 0, 7][..], &vec![9; length]].concat()).is_err());
        assert!(backend::write_backend_key_data(&mut BytesMut::new(), 7, &vec![9; length]).is_err());
    }
}

#[test]
fn a_server_cannot_negotiate_what_we_do_not_speak() {
    let negotiated = |version: u32, unknown: u32| {
        backend::negotiate_protocol_version(&[version.to_be_bytes(), unknown.to_be_bytes()].concat())
    };
    assert_eq!(negotiated(3 << 16, 0), Ok(0));
    assert_eq!(negotiated((3 << 16) | 2, 0), Ok(2));
    assert_eq!(negotiated(0, 0), Ok(0));
    for (version, unknown) in
        [((3 << 16) | 3, 0), (2 << 16, 0), (4 << 16, 0), (3 << 16, 1), (u32::MAX, 0), (0, u32::MAX)]
    {
        assert!(negotiated(version, unknown).is_err(), "{version:#x} {unknown}");
    }
}

#[test]
fn our_own_results_are_as_postgresql_sends_them() {
    let mut out = BytesMut::new();
    backend::row_description(&mut out, &["a"]).unwrap();
    assert_eq!(out, &b"T\0\0\0\x1a\0\x01a\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0"[..]);
    out.clear();
    backend::data_row(&mut out, &[Some("x"), None]).unwrap();
    assert_eq!(out, &b"D\0\0\0\x0f\0\x02\0\0\0\x01x\xff\xff\xff\xff"[..]);
}
