//! The golden conversations and the logins, against a real PostgreSQL: what the files say is what it does.
//!
//! Needs PostgreSQL's programs (15 or later) in the PATH or where Debian puts them, and fails without.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod script;

use std::io::{Read, Write};
use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use pgwire::auth::scram::client::{Binding, Client, Proved};
use pgwire::auth::scram::{Keys, Nonce, OwnKeys, salted_password};
use pgwire::auth::{self, Authentication, SaslInitial, md5};
use pgwire::{backend, frame, frontend, report};
use script::{Script, Server};

const PATIENCE: Duration = Duration::from_secs(5);

/// A throwaway PostgreSQL on a Unix socket; gone when dropped.
struct Postgres {
    folder: PathBuf,
    child: Child,
}

impl Postgres {
    fn start(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("pgwire-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let user = unprivileged();
        if let Some(user) = user {
            chown(&folder, Some(user), Some(user)).unwrap();
        }
        let data = folder.join("data");
        let made = program("initdb", user)
            .args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-locale", "--no-sync", "-D"])
            .arg(&data)
            .output()
            .unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let rules = "local all clear password\nlocal all old md5\nlocal all new scram-sha-256\nlocal all all trust\n";
        std::fs::write(data.join("pg_hba.conf"), rules).unwrap();
        let child = program("postgres", user)
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(&folder)
            .args(["-c", "listen_addresses=", "-c", "fsync=off", "-c", "port=5432", "-c", "logging_collector=off"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let started = Self { folder, child };
        let since = Instant::now();
        while started.try_connect().is_none() {
            assert!(since.elapsed() < PATIENCE, "PostgreSQL does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        started
    }

    fn socket(&self) -> PathBuf {
        self.folder.join(".s.PGSQL.5432")
    }

    fn try_connect(&self) -> Option<Connection> {
        let stream = UnixStream::connect(self.socket()).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Connection { stream }.log_in("postgres", &mut |_, _| panic!("trusted")).ok()
    }

    fn connect(&self) -> Connection {
        self.try_connect().expect("logs in")
    }

    fn log_in(&self, user: &str, answer: Answer<'_>) -> Result<Connection, String> {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Connection { stream }.log_in(user, answer)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // SIGINT is PostgreSQL's fast shutdown; the programs of the system send it without a library.
        let _ = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// PostgreSQL does not run as root: the account to run it as, if we are root.
fn unprivileged() -> Option<u32> {
    let uid = |path: &str| std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(path).unwrap());
    if uid("/proc/self") != 0 {
        return None;
    }
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap();
    let postgres = accounts.lines().find_map(|line| line.strip_prefix("postgres:")?.split(':').nth(1)?.parse().ok());
    Some(postgres.unwrap_or(65_534))
}

fn program(name: &str, user: Option<u32>) -> Command {
    let versions = (15..=20).rev().map(|version| PathBuf::from(format!("/usr/lib/postgresql/{version}/bin")));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folder = std::env::split_paths(&path).chain(versions).find(|folder| folder.join("initdb").exists());
    let folder = folder.expect("PostgreSQL's programs are needed for this test, e.g. Debian's package postgresql-15");
    let mut command = Command::new(folder.join(name));
    command.current_dir(Path::new("/")).env_clear();
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    command
}

type Answer<'a> = &'a mut dyn FnMut(Authentication<'_>, &mut BytesMut);

struct Connection {
    stream: UnixStream,
}

impl Connection {
    fn log_in(mut self, user: &str, answer: Answer<'_>) -> Result<Self, String> {
        let mut out = BytesMut::new();
        frontend::startup(&mut out, 0, &[(b"user", user.as_bytes()), (b"database", b"postgres")]).unwrap();
        self.stream.write_all(&out).map_err(|e| e.to_string())?;
        loop {
            let (tag, body) = self.try_receive().map_err(|e| e.to_string())?;
            match tag {
                b'R' => match Authentication::read(&body).unwrap() {
                    Authentication::Ok => {}
                    question => {
                        out.clear();
                        answer(question, &mut out);
                        self.stream.write_all(&out).map_err(|e| e.to_string())?;
                    }
                },
                b'K' => assert_eq!(backend::backend_key_data(&body).unwrap().1.len(), 4),
                b'S' => assert!(backend::parameter_status(&body).is_ok()),
                b'Z' => return Ok(self),
                _ => return Err(report::View::new(&body).sqlstate().unwrap().to_string()),
            }
        }
    }

    fn try_receive(&mut self) -> std::io::Result<(u8, Vec<u8>)> {
        let mut header = [0; frame::HEADER];
        self.stream.read_exact(&mut header)?;
        let header = frame::header(&header).unwrap().unwrap();
        frame::within(header, frame::backend_limit(header.tag).unwrap()).unwrap();
        let mut body = vec![0; header.body()];
        self.stream.read_exact(&mut body)?;
        Ok((header.tag, body))
    }

    /// Runs a query of one row and one column.
    fn value(&mut self, query: &str) -> Option<String> {
        let mut out = BytesMut::new();
        frontend::write_query(&mut out, query.as_bytes()).unwrap();
        self.send(&out);
        let mut value = None;
        loop {
            match self.receive(query) {
                (b'Z', _) => return value,
                (b'E', body) => panic!("{query}: {}", report::View::new(&body).message()),
                (b'D', body) => {
                    value = backend::row_values(&body).unwrap()[0].map(|v| String::from_utf8(v.to_vec()).unwrap());
                }
                _ => {}
            }
        }
    }
}

impl Server for Connection {
    fn send(&mut self, message: &[u8]) {
        self.stream.write_all(message).unwrap();
    }

    fn receive(&mut self, at: &str) -> (u8, Vec<u8>) {
        self.try_receive().unwrap_or_else(|error| panic!("{at}: no answer: {error}"))
    }
}

#[test]
fn postgresql_follows_every_conversation() {
    let postgres = Postgres::start("golden");
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/conversations");
    let mut played = 0;
    for file in std::fs::read_dir(folder).expect(folder) {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        // What a sound server never does can only be played to the model.
        if name.starts_with("model_") {
            continue;
        }
        for script in Script::read(&std::fs::read_to_string(&path).unwrap()) {
            assert!(!script.title().is_empty(), "{name}: a conversation without a title");
            script.play(&name, Some(&mut postgres.connect()));
            played += 1;
        }
    }
    assert!(played > 25, "only {played} conversations were found");
}

static SECRET: LazyLock<String> = LazyLock::new(|| postgres_protocol::password::scram_sha_256(b"pencil"));

#[test]
fn every_method_logs_in() {
    let postgres = Postgres::start("logins");
    let mut admin = postgres.connect();
    admin.value(&format!("create role new login password '{}'", *SECRET));
    admin.value("create role clear login password 'pencil'");
    admin.value("set password_encryption = 'md5'; create role old login password 'pencil'");

    let clear = |password: &'static [u8]| {
        postgres.log_in("clear", &mut |question, out| {
            assert_eq!(question, Authentication::Cleartext);
            auth::write_password(out, password).unwrap();
        })
    };
    assert!(clear(b"pencil").is_ok());
    assert_eq!(clear(b"wrong").err().as_deref(), Some("28P01"));

    let stored = admin.value("select rolpassword from pg_authid where rolname = 'old'").unwrap();
    for hash in [md5::hash(b"pencil", "old"), auth::Secret::new(stored)] {
        let logged_in = postgres.log_in("old", &mut |question, out| {
            let Authentication::Md5(salt) = question else { panic!("{question:?}") };
            auth::write_password(out, md5::answer(&hash, salt).reveal()).unwrap();
        });
        assert!(logged_in.is_ok());
    }

    let by_password = |password: &'static [u8]| {
        move |salt: &[u8], iterations| OwnKeys::new(&salted_password(password, salt, iterations))
    };
    assert_eq!(scram(&postgres, &by_password(b"wrong")).err().as_deref(), Some("28P01"));
    assert!(scram(&postgres, &by_password(b"pencil")).is_ok());
    // With what a client's login leaves behind, as a server that knows nothing but the stored secret sees it.
    let keys = Keys::parse(&SECRET).unwrap();
    let client_key = OwnKeys::new(&salted_password(b"pencil", keys.salt(), keys.iterations())).client_key;
    let own = keys.unlocked(client_key).unwrap();
    let mut passed_through = scram(&postgres, &|_, _| own.clone()).unwrap();
    assert_eq!(passed_through.value("select current_user").as_deref(), Some("new"));
}

enum Step {
    First(Client),
    Last(Proved),
    Verified,
}

fn scram(postgres: &Postgres, keys: &dyn Fn(&[u8], u32) -> OwnKeys) -> Result<Connection, String> {
    let mut step = None;
    let connection = postgres.log_in("new", &mut |question, out| {
        step = Some(match (question, step.take()) {
            (Authentication::Sasl(mechanisms), None) => {
                let binding = Binding::choose(&mechanisms, None, false).unwrap();
                let mechanism = binding.mechanism().as_bytes();
                let client = Client::new(Nonce::random(), binding);
                SaslInitial { mechanism, response: Some(client.message().as_bytes()) }.write(out).unwrap();
                Step::First(client)
            }
            (Authentication::SaslContinue(message), Some(Step::First(client))) => {
                let client = client.challenged(message).unwrap();
                let keys = keys(client.salt(), client.iterations());
                let (message, proved) = client.answer(&keys);
                auth::write_sasl_response(out, message.as_bytes()).unwrap();
                Step::Last(proved)
            }
            (Authentication::SaslFinal(message), Some(Step::Last(proved))) => {
                proved.verify(message).unwrap();
                Step::Verified
            }
            (question, _) => panic!("{question:?}"),
        });
    })?;
    assert!(matches!(step, Some(Step::Verified)), "logged in without a proof of the server");
    Ok(connection)
}
