//! Bad input: whoever sends it gets a clear error or is closed, everybody else goes on, and memory stays bounded.

use std::time::{Duration, Instant};

use harness::endpoint::value;
use harness::pgsteady::{Config, Pgsteady};
use harness::postgres::{Node, Programs};
use harness::process::{memory, open_files};
use harness::wire::{GSS_REQUEST, Raw, SSL_REQUEST, bind, execute, frame, parse, query, startup, sync};
use tokio::io::AsyncReadExt;
use tokio_postgres::Client;

/// Time within which a bad message must have ended its connection.
const CLOSED: Duration = Duration::from_secs(5);
/// Memory that hostile clients may cost for good: allocators keep some.
const MEMORY: u64 = 16 * 1024 * 1024;

/// pgsteady with a short login time, and a witness who must not notice anything.
struct Scene {
    _node: Node,
    pgsteady: Pgsteady,
    witness: Client,
    memory: u64,
}

impl Scene {
    async fn new() -> Self {
        let node = Node::primary(&Programs::installed()).await;
        let config = Config::single(&node)
            .set("database.app.pool_size", 2)
            .set("auth.method", "trust")
            .set("limits.login_timeout", "2s");
        let pgsteady = Pgsteady::start(&config).await;
        let witness = pgsteady.endpoint().client().await;
        assert_eq!(value(&witness, "SELECT 1").await, "1");
        let memory = memory(pgsteady.pid()).expect("pgsteady runs");
        Self { _node: node, pgsteady, witness, memory }
    }

    /// The witness asks; the answer must come at once and be its own.
    async fn others_go_on(&mut self, what: &str) {
        let began = Instant::now();
        assert_eq!(value(&self.witness, "SELECT 'witness'").await, "witness", "{what}");
        assert!(began.elapsed() < Duration::from_secs(1), "{what}: the witness waited {:?}", began.elapsed());
        self.pgsteady.lives();
        let grown = memory(self.pgsteady.pid()).expect("pgsteady runs").saturating_sub(self.memory);
        assert!(grown < MEMORY, "{what}: {grown} bytes more");
    }

    async fn login(&self) -> Raw {
        Raw::login(self.pgsteady.port(), "trusting", "app").await
    }

    /// Sends bytes on a new connection, logged in or not, and expects it to be closed soon; returns what came.
    async fn closes(&mut self, what: &str, logged_in: bool, bytes: &[u8]) -> Vec<u8> {
        let mut raw = if logged_in { self.login().await } else { Raw::connect(self.pgsteady.port()).await };
        raw.send(bytes).await;
        let answer = raw.closed_within(CLOSED).await;
        let answer = answer.unwrap_or_else(|| panic!("{what}: neither closed nor answered within {CLOSED:?}"));
        self.others_go_on(what).await;
        answer
    }
}

/// A header that declares `length` bytes, and no body.
fn head(tag: u8, length: u32) -> Vec<u8> {
    [&[tag][..], &length.to_be_bytes()].concat()
}

#[test]
fn what_is_no_startup_packet_is_closed() {
    harness::run(120, async {
        let mut scene = Scene::new().await;
        let valid = startup(&[("user", "trusting"), ("database", "app")]);
        let no_end = &valid[..valid.len() - 1];
        let odd = [&9_u32.to_be_bytes()[..], &[0, 3, 0, 0], b"x"].concat();
        let cases: Vec<(&str, Vec<u8>)> = vec![
            ("an HTTP request", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
            ("random bytes", (0..2000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect()),
            ("zeros", vec![0; 64]),
            ("a length of 0", vec![0, 0, 0, 0, 0, 3, 0, 0]),
            ("a length of 7", vec![0, 0, 0, 7, 0, 3, 0, 0]),
            ("a negative length", vec![255, 255, 255, 255, 0, 3, 0, 0]),
            ("a length of 2 GiB", vec![127, 255, 255, 255, 0, 3, 0, 0]),
            ("protocol 2", vec![0, 0, 0, 8, 0, 2, 0, 0]),
            ("protocol 9", [&9_u32.to_be_bytes()[..], &[0, 9, 0, 0, 0]].concat()),
            ("a parameter without an end", odd),
            ("a packet without its last zero", no_end.to_vec()),
            ("no user", startup(&[("database", "app")])),
            ("an empty user", startup(&[("user", ""), ("database", "app")])),
            ("a database of 9000 letters", startup(&[("user", "trusting"), ("database", &"d".repeat(9000))])),
            ("16 KiB of parameters", startup(&[("user", "trusting"), ("a", &"x".repeat(16 * 1024))])),
            ("a query first", query("SELECT 1")),
            ("a password first", frame(b'p', b"x\0")),
            ("a cancel request of 8 bytes", vec![0, 0, 0, 8, 4, 0xD2, 0x16, 0x2E]),
            (
                "a cancel request of 1000 bytes",
                [&1000_u32.to_be_bytes()[..], &[4, 0xD2, 0x16, 0x2E], &[0; 992]].concat(),
            ),
        ];
        for (what, bytes) in cases {
            let answer = scene.closes(what, false, &bytes).await;
            assert!(answer.is_empty() || answer[0] == b'E', "{what}: answered {answer:?}");
        }
    });
}

#[test]
fn encryption_requests_do_not_go_on_for_ever() {
    harness::run(60, async {
        let mut scene = Scene::new().await;
        let both = [GSS_REQUEST, SSL_REQUEST].concat();
        let answer = scene.closes("alternating requests", false, &both.repeat(1000)).await;
        let refusals = answer.iter().take_while(|&&byte| byte == b'N').count();
        assert!(refusals <= 4, "{refusals} answers to encryption requests");
        let stuffed = [&SSL_REQUEST[..], &startup(&[("user", "trusting"), ("database", "app")])].concat();
        let mut raw = Raw::connect(scene.pgsteady.port()).await;
        raw.send(&stuffed).await;
        // TLS is off here: a refusal and then a login in the clear, an error, or a close are all right.
        let answer = raw.stream.read_u8().await.ok();
        assert!([None, Some(b'N'), Some(b'E')].contains(&answer), "{answer:?}");
        scene.others_go_on("a startup packet behind an SSLRequest").await;
    });
}

#[test]
fn messages_that_lie_end_their_connection() {
    harness::run(120, async {
        let mut scene = Scene::new().await;
        let sum_wraps: Vec<u8> = {
            let lengths = [0x20, 0, 0, 0].repeat(8);
            frame(b'B', &[&b"\0\0\0\0\0\x08"[..], &lengths, &[0, 0]].concat())
        };
        let cases: Vec<(&str, Vec<u8>)> = vec![
            ("a length of 3", head(b'Q', 3)),
            ("a length of 0", head(b'Q', 0)),
            ("a negative length", head(b'Q', 0xFFFF_FFFB)),
            ("a length of 2 GiB", head(b'Q', 0x7FFF_FFFF)),
            ("an unknown type", frame(b'@', b"x")),
            ("type zero", frame(0, b"")),
            ("a server's message", frame(b'Z', b"I")),
            ("a query without its zero", frame(b'Q', b"SELECT 1")),
            ("a query with two zeros", frame(b'Q', b"SELECT 1\0SELECT 2\0")),
            ("a parse without a statement", frame(b'P', b"name\0")),
            ("a parse with too many types", frame(b'P', b"n\0SELECT 1\0\x7f\xff")),
            ("a bind whose lengths wrap", sum_wraps),
            ("a bind with a short parameter", frame(b'B', b"\0\0\0\0\0\x01\0\0\x01\0ab\0\0")),
            ("a describe of nothing", frame(b'D', b"X\0")),
            ("an execute without a count", frame(b'E', b"\0")),
            ("a sync with a body", frame(b'S', b"xxxx")),
        ];
        for (what, bytes) in cases {
            // What PostgreSQL itself forgives may be answered with an error; then the sender's end closes it.
            let bytes = [bytes, sync(), frame(b'X', b"")].concat();
            let answer = scene.closes(what, true, &bytes).await;
            let text = String::from_utf8_lossy(&answer);
            assert!(answer.is_empty() || text.contains("08P01"), "{what}: {text}");
        }
    });
}

#[test]
fn a_message_inside_another_is_never_run() {
    harness::run(60, async {
        let mut scene = Scene::new().await;
        scene
            .witness
            .batch_execute("CREATE TABLE smuggled (n int); GRANT ALL ON smuggled TO PUBLIC")
            .await
            .expect("a table");
        let inner = query("INSERT INTO smuggled VALUES (1)");
        let as_parameter = {
            let mut body = b"\0\0\0\0\0\x01".to_vec();
            body.extend(5_u32.to_be_bytes());
            body.extend(&inner);
            body.extend([0, 0]);
            frame(b'B', &body)
        };
        for bytes in [as_parameter, frame(b'Q', &[&b"SELECT 1\0"[..], &inner].concat())] {
            let mut raw = scene.login().await;
            raw.send(&parse("", "SELECT $1::text")).await;
            raw.send(&[bytes, sync(), frame(b'X', b"")].concat()).await;
            raw.closed_within(CLOSED).await;
        }
        assert_eq!(value(&scene.witness, "SELECT count(*) FROM smuggled").await, "0");
        scene.others_go_on("messages inside messages").await;
    });
}

#[test]
fn a_login_that_never_ends_is_ended() {
    harness::run(60, async {
        let mut scene = Scene::new().await;
        let port = scene.pgsteady.port();
        let mut silent = Vec::new();
        for _ in 0..100 {
            silent.push(Raw::connect(port).await);
        }
        let mut half = Raw::connect(port).await;
        half.send(&startup(&[("user", "trusting"), ("database", "app")])[..20]).await;
        let mut trickle = Raw::connect(port).await;
        let began = Instant::now();
        let bytes = startup(&[("user", "trusting"), ("application_name", &"x".repeat(500))]);
        for byte in bytes.iter().take(20) {
            trickle.send(&[*byte]).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        scene.others_go_on("a hundred silent logins").await;
        for raw in silent.iter_mut().chain([&mut half, &mut trickle]) {
            assert!(raw.closed_within(CLOSED).await.is_some(), "a login without an end was not closed");
        }
        assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
        let few = || async { (open_files(scene.pgsteady.pid())? < 60).then_some(()) };
        harness::wait_for("the sockets to be closed", CLOSED, few).await;
        scene.others_go_on("afterwards").await;
    });
}

#[test]
fn a_message_that_never_comes_whole_holds_no_server_and_no_memory() {
    harness::run(60, async {
        let mut scene = Scene::new().await;
        let mut trickling = Vec::new();
        for _ in 0..8 {
            let mut raw = scene.login().await;
            raw.send(&[head(b'Q', 0x3FFF_FFF0), b"SELECT '".to_vec(), vec![b'x'; 90]].concat()).await;
            trickling.push(raw);
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        // The pool has two servers: eight half messages must not have taken them.
        for _ in 0..10 {
            scene.others_go_on("half messages of 1 GiB").await;
        }
    });
}

#[test]
fn a_large_message_and_a_large_row_pass_without_being_held() {
    harness::run(120, async {
        let mut scene = Scene::new().await;
        let mut raw = scene.login().await;
        let text = "x".repeat(24 * 1024 * 1024);
        let answer = raw.query(&format!("SELECT length('{text}')")).await;
        let row = answer.iter().find(|message| message.tag == b'D').expect("a row");
        assert_eq!(row.columns(), [text.len().to_string()]);
        scene.others_go_on("a query of 24 MiB").await;
        let answer = raw.query("SELECT repeat('y', 24 * 1024 * 1024)").await;
        let row = answer.iter().find(|message| message.tag == b'D').expect("a row");
        assert_eq!(row.body.len(), 24 * 1024 * 1024 + 6);
        scene.others_go_on("a row of 24 MiB").await;
    });
}

#[test]
fn a_client_that_does_not_read_costs_no_memory() {
    harness::run(60, async {
        let mut scene = Scene::new().await;
        let mut raw = scene.login().await;
        raw.send(&query("SELECT repeat('z', 1000) FROM generate_series(1, 300000)")).await;
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            scene.others_go_on("300 MB that nobody reads").await;
        }
        drop(raw);
        scene.others_go_on("its reader gone").await;
    });
}

/// The client writes and does not read, the server does the same: only who does both at once gets through.
#[test]
fn a_pipeline_larger_than_all_buffers_does_not_lock_up() {
    harness::run(90, async {
        let scene = Scene::new().await;
        let raw = scene.login().await;
        let (mut from, mut to) = raw.stream.into_split();
        let statement = format!("SELECT repeat('a', 4000), '{}'", "b".repeat(4000));
        let one = [parse("", &statement), bind("", &[]), execute()].concat();
        let writing = tokio::spawn(async move {
            for _ in 0..2000 {
                tokio::io::AsyncWriteExt::write_all(&mut to, &one).await.expect("it reads what we write");
            }
            tokio::io::AsyncWriteExt::write_all(&mut to, &sync()).await.expect("it reads what we write");
            to
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut total = 0;
        let mut buffer = vec![0; 256 * 1024];
        let rows = 2000 * 8000;
        while total < rows {
            let read = tokio::time::timeout(Duration::from_secs(20), from.read(&mut buffer)).await;
            total += read.expect("it locked up").expect("the connection lives");
        }
        writing.await.expect("everything was written");
    });
}

#[test]
fn a_failed_copy_does_not_swallow_the_next_answer() {
    harness::run(60, async {
        let mut scene = Scene::new().await;
        let mut raw = scene.login().await;
        let copy = "COPY pg_temp.nowhere FROM STDIN";
        let data = [frame(b'd', b"1\n"), frame(b'c', b"")].concat();
        raw.send(&[query(copy), data, query("SELECT 'after'")].concat()).await;
        assert!(raw.until(b'Z').await.iter().any(|message| message.tag == b'E'));
        let after = raw.until(b'Z').await;
        assert!(after.iter().any(|message| message.tag == b'D' && message.columns() == ["after"]), "{after:?}");

        raw.query("CREATE TEMP TABLE numbers (n int)").await;
        raw.send(&query("COPY numbers FROM STDIN")).await;
        raw.until(b'G').await;
        raw.send(&[frame(b'd', b"no number\n"), frame(b'c', b""), query("SELECT 'again'")].concat()).await;
        assert!(raw.until(b'Z').await.iter().any(|message| message.tag == b'E'));
        let again = raw.until(b'Z').await;
        assert!(again.iter().any(|message| message.tag == b'D' && message.columns() == ["again"]), "{again:?}");
        scene.others_go_on("failed copies").await;
    });
}
