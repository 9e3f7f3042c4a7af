//! Every parser for some seconds on noise and on valid messages gone wrong. The seed is printed when a check fails.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod inputs;

use std::panic::catch_unwind;

use bytes::BytesMut;
use pgwire::frontend::{self, Execute, Target};
use pgwire::{Report, TransactionStatus, backend, sqlstate};
use proptest::prelude::*;

/// Rounds for each seed of valid bytes. A few seconds in all.
const ROUNDS: u64 = 100_000;

/// xorshift64*: the same noise everywhere for a seed.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next()).unwrap() % bound.max(1)
    }

    fn byte(&mut self) -> u8 {
        // The bytes that lengths and counts go wrong by come often.
        [0, 1, 4, 0x7f, 0x80, 0xff, b',', b'=', b'\n']
            .get(self.below(20))
            .copied()
            .unwrap_or(self.next().to_be_bytes()[7])
    }

    fn spoil(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len() + 1);
            match self.below(6) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, self.byte()),
                2 if at < bytes.len() => drop(bytes.remove(at)),
                3 => {
                    let copied = bytes[at..].to_vec();
                    bytes.extend(copied);
                }
                4 if bytes.len() >= at + 4 => {
                    let length = [0, 3, 4, 0x3fff_fffe, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff_u32][self.below(7)];
                    bytes[at..at + 4].copy_from_slice(&length.to_be_bytes());
                }
                _ if at < bytes.len() => bytes[at] = self.byte(),
                _ => {}
            }
            bytes.truncate(4_096);
        }
    }
}

fn run(check: fn(&[u8]), seeds: &[Vec<u8>]) {
    for round in 1..=ROUNDS {
        let mut noise = Noise(round.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut input = match noise.below(4) {
            0 => (0..noise.below(64)).map(|_| noise.byte()).collect(),
            _ => seeds[noise.below(seeds.len())].clone(),
        };
        noise.spoil(&mut input);
        let failed = catch_unwind(|| check(&input)).is_err();
        assert!(!failed, "round {round}, input {input:?}");
    }
    seeds.iter().for_each(|seed| check(seed));
}

fn written(write: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
    let mut out = BytesMut::new();
    write(&mut out);
    out.to_vec()
}

#[test]
fn a_greeting_survives_everything() {
    let startup =
        |minor, parameters: &[(&[u8], &[u8])]| written(|out| frontend::startup(out, minor, parameters).unwrap());
    run(
        inputs::startup,
        &[
            startup(0, &[(b"user", b"joe"), (b"database", b"shop"), (b"options", b"-c a=b --c=d\\ e")]),
            startup(2, &[(b"user", b"joe"), (b"_pq_.x", b"1"), (b"user", b"jim")]),
            written(|out| frontend::ssl_request(out).unwrap()),
            written(|out| frontend::cancel_request(out, 1, &[7; 32]).unwrap()),
            b"\x16\x03\x01\x02\0\x01\0".to_vec(),
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        ],
    );
    run(inputs::options, &[b"-c a=b -cc=d --e=f g\\ h".to_vec()]);
}

#[test]
fn messages_of_a_client_survive_everything() {
    run(
        inputs::frontend,
        &[
            written(|out| {
                frontend::parse(out, b"s1", b"select $1", &[23, 25]).unwrap();
                frontend::bind(out, b"p1", b"s1", &[Some(b"value"), None, Some(b"")]).unwrap();
                Target::Statement(b"s1").describe(out).unwrap();
                Execute { portal: b"p1", rows: 0 }.write(out).unwrap();
                Target::Portal(b"p1").close(out).unwrap();
                out.extend_from_slice(&frontend::SYNC);
            }),
            written(|out| frontend::write_query(out, b"select 1").unwrap()),
            written(|out| pgwire::auth::write_password(out, b"secret").unwrap()),
            written(|out| {
                pgwire::auth::SaslInitial { mechanism: b"SCRAM-SHA-256", response: Some(b"n,,n=,r=x") }
                    .write(out)
                    .unwrap();
            }),
        ],
    );
}

#[test]
fn messages_of_a_server_survive_everything() {
    run(
        inputs::backend,
        &[
            written(|out| {
                backend::row_description(out, &["a", "b"]).unwrap();
                backend::data_row(out, &[Some("x"), None]).unwrap();
                backend::write_command_complete(out, "SELECT 1").unwrap();
                out.extend_from_slice(&backend::write_ready_for_query(TransactionStatus::Idle));
            }),
            written(|out| {
                backend::write_parameter_status(out, b"TimeZone", b"UTC").unwrap();
                backend::write_backend_key_data(out, 1, &[7; 32]).unwrap();
                Report::error(sqlstate::PROTOCOL_VIOLATION, "a\nb").detail("d").hint("h").fatal().write(out).unwrap();
            }),
            written(|out| pgwire::auth::Authentication::Sasl(vec![b"SCRAM-SHA-256"]).write(out).unwrap()),
        ],
    );
    run(inputs::report, &[b"SERROR\0VERROR\0C28P01\0Mx\ny\0Fsyncrep.c\0RSyncRepWaitForLSN\0\0".to_vec()]);
}

#[test]
fn a_conversation_survives_everything() {
    let script = |steps: &[(u8, u8)]| steps.iter().flat_map(|(kind, what)| [*kind, *what]).collect::<Vec<u8>>();
    run(
        inputs::conversation,
        &[
            script(&[(0, b'Q'), (2, b'T'), (2, b'D'), (2, b'C'), (2, b'Z')]),
            script(&[(0, b'P'), (0, b'B'), (1, 0), (0, b'E'), (0, b'S'), (2, b'1'), (2, b'E'), (2, b'Z')]),
            script(&[
                (0, b'E'),
                (0, b'S'),
                (2, b'G'),
                (0, b'd'),
                (0, b'c'),
                (0, b'S'),
                (2, b'E'),
                (2, b'Z'),
                (4, b'Q'),
                (2, b'I'),
                (2, b'Z'),
            ]),
            script(&[
                (0, b'Q'),
                (2, b'G'),
                (0, b'd'),
                (0, b'S'),
                (0, b'c'),
                (2, b'C'),
                (2, b'H'),
                (2, b'd'),
                (2, b'c'),
                (2, b'C'),
                (2, b'Z'),
            ]),
            script(&[
                (4, b'P'),
                (0, b'B'),
                (4, b'S'),
                (2, b'E'),
                (2, b'Z'),
                (0, b'F'),
                (2, b'V'),
                (10, b'Z'),
                (0, b'X'),
            ]),
        ],
    );
}

#[test]
fn scram_survives_everything() {
    let proof = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    run(inputs::scram_server, &[
        format!("n,,n=,r=client\nc=biws,r=clientserver,p={proof}").into_bytes(),
        format!("p=tls-server-end-point,,n=,r=client\nc=cD10bHMtc2VydmVyLWVuZC1wb2ludCwsaGFzaA==,r=clientserver,p={proof}").into_bytes(),
        format!("SCRAM-SHA-256$4096:c2FsdA==${proof}:{proof}").into_bytes(),
    ]);
    run(
        inputs::scram_client,
        &[
            format!("r=clientserver,s=c2FsdA==,i=4096\nv={proof}").into_bytes(),
            b"r=clientserver,s=c2FsdA==,i=4096\ne=other-error".to_vec(),
        ],
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_parser_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        for check in [inputs::startup, inputs::options, inputs::frontend, inputs::backend, inputs::conversation, inputs::scram_server, inputs::scram_client] {
            check(&bytes);
        }
    }

    #[test]
    fn cve_2015_0244_after_a_broken_message_the_next_is_found(body in proptest::collection::vec(any::<u8>(), 0..64), tag in any::<u8>()) {
        let mut bytes = BytesMut::new();
        pgwire::fields::message(&mut bytes, tag, |out| out.bytes(&body)).unwrap();
        frontend::write_query(&mut bytes, b"select 1").unwrap();
        let first = pgwire::frame::split(&bytes).unwrap().unwrap();
        prop_assert_eq!((first.tag, first.body), (tag, &body[..]));
        let next = pgwire::frame::split(first.rest).unwrap().unwrap();
        prop_assert_eq!((next.tag, next.body, next.rest.len()), (b'Q', &b"select 1\0"[..], 0));
    }
}
