//! Logins with a real PostgreSQL: pgsteady's own by every method, with and without TLS, and the lookup of users.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use proxy::auth::{
    Came, Claim, Greeted, Hashing, Identity, Link, LoginError, Place, Refusal, ServerLogin, Store, authenticate, login,
};
use proxy::config::{self, Config, SslMode};
use proxy::tls::{self, Answer, Attempt, ServerTls};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::TcpStream;
use topology::node::{Account, Init, LocalNode, Log, Port, Programs, Settings, Site, Throwaway};
use topology::{Address, Topology, Watch};

mod certificates;
use certificates::{Wanted, authority, make};

const HBA: &str = "\
local all all trust
hostssl all onlytls 127.0.0.1/32 scram-sha-256
host all onlytls 127.0.0.1/32 reject
host all md5user 127.0.0.1/32 md5
host all pwuser 127.0.0.1/32 password
host all trusted 127.0.0.1/32 trust
host all all 127.0.0.1/32 scram-sha-256
";
const ROLES: &str = "\
CREATE ROLE joe LOGIN PASSWORD 'secret';
CREATE ROLE onlytls LOGIN PASSWORD 'secret';
CREATE ROLE pwuser LOGIN PASSWORD 'secret';
CREATE ROLE trusted LOGIN;
SET password_encryption = 'md5';
CREATE ROLE md5user LOGIN PASSWORD 'secret';
RESET password_encryption;
CREATE ROLE lookup LOGIN PASSWORD 'lookup';
GRANT SELECT ON pg_authid TO lookup;
";

/// The node goes before the folder does.
struct Server {
    node: LocalNode,
    _port: Port,
    folder: Throwaway,
}

fn tls_options(sslmode: SslMode, ca: Option<std::path::PathBuf>) -> config::ServerTls {
    config::ServerTls { sslmode, ca, certificate: None, key: None, protocols: None, ciphers: None, tls13_ciphers: None }
}

impl Server {
    async fn start() -> Self {
        let account = Account::choose().expect("an account");
        let folder = Throwaway::new("pgsteady-auth", &account).expect("a folder");
        let port = Port::reserve().expect("a port");
        let site = Site {
            name: "n1".into(),
            data: folder.path().join("n1"),
            sockets: folder.path().to_owned(),
            listen: "127.0.0.1".into(),
            port: port.number(),
            superuser: "postgres".into(),
            passfile: None,
            log: Log::File(folder.path().join("n1.log")),
        };
        let mut node = LocalNode::new(Programs::find(None).expect("PostgreSQL is installed"), account, site);
        let ca = authority("test authority");
        ca.write(folder.path(), "ca");
        let (certificate, key) =
            make(&Wanted { ip: &["127.0.0.1"], ..Wanted::default() }, Some(&ca)).write(folder.path(), "n1");
        let mut settings = Settings::throwaway();
        let quoted = |path: &Path| path.display().to_string();
        settings.more.push(("ssl".into(), "on".into()));
        settings.more.push(("ssl_cert_file".into(), quoted(&certificate)));
        settings.more.push(("ssl_key_file".into(), quoted(&key)));
        let init = Init { settings, hba: Some(HBA.into()), password_file: None, sync: false };
        node.init(&init).await.expect("initdb");
        let owner = std::fs::metadata(&node.site().data).expect("a data directory");
        chown(&key, Some(owner.uid()), Some(owner.gid())).expect("chown");
        chown(&certificate, Some(owner.uid()), Some(owner.gid())).expect("chown");
        node.start_primary().await.expect("a start");
        let server = Self { node, _port: port, folder };
        server.sql(ROLES).await;
        server
    }

    async fn sql(&self, statements: &str) {
        let client = self.node.connect().await.expect("a connection");
        client.batch_execute(statements).await.unwrap_or_else(|error| panic!("{statements}: {error:?}"));
    }

    async fn secret_of(&self, user: &str) -> String {
        let client = self.node.connect().await.expect("a connection");
        let row = client.query_one("SELECT rolpassword FROM pg_authid WHERE rolname = $1", &[&user]).await;
        row.expect("a role").get(0)
    }

    fn tls(&self, sslmode: SslMode) -> ServerTls {
        let ca = (sslmode != SslMode::Disable).then(|| self.folder.path().join("ca.crt"));
        let options = tls_options(sslmode, ca);
        ServerTls::load("test.tls", Arc::new(options)).expect("a CA")
    }

    /// Logs in over TCP; with TLS where `attempt` says so, and channel binding data as `bound` makes it.
    async fn login(
        &self,
        user: &str,
        with: &ServerLogin,
        attempt: Attempt,
        bound: impl Fn(&[u8]) -> Vec<u8>,
    ) -> Result<Greeted, LoginError> {
        let tls = self.tls(if attempt == Attempt::Plain { SslMode::Disable } else { SslMode::VerifyFull });
        let startup = [("user", user), ("database", "postgres"), ("application_name", "it")];
        let hashing = Hashing::default();
        let mut stream = TcpStream::connect(("127.0.0.1", self.node.site().port)).await.expect("TCP");
        match tls::request(&mut stream, attempt).await.expect("an answer") {
            Answer::Plain => {
                let link = Link { end_point: None, is_private: true };
                login(&mut stream, &startup, with, link, &hashing).await
            }
            Answer::Tls => {
                let (mut stream, end_point) = tls::connect(stream, "127.0.0.1", &tls).await.expect("TLS");
                let end_point = bound(&end_point.expect("a certificate with a hash"));
                let link = Link { end_point: Some(&end_point), is_private: true };
                login(&mut stream, &startup, with, link, &hashing).await
            }
        }
    }

    async fn plain(&self, user: &str, with: &ServerLogin) -> Result<Greeted, LoginError> {
        self.login(user, with, Attempt::Plain, <[u8]>::to_vec).await
    }

    fn place(&self) -> Place {
        let address = Address::Tcp("127.0.0.1".into(), self.node.site().port);
        Place {
            entry: "app".into(),
            dbname: "postgres".into(),
            watch: Watch::fixed(Topology::single("n1", address)),
            tls: Some(Arc::new(self.tls(SslMode::VerifyFull))),
            address: None,
            lookup: config::Lookup::default(),
            broken: None,
        }
    }
}

fn store(auth: &str) -> Store {
    let text = format!("[auth]\n{auth}\n[database.a]\nhost = \"h\"\n");
    Store::load(&Config::parse(&text, Path::new("f")).expect("a good configuration")).expect("users")
}

/// A client comes to a store with a password.
async fn come(store: &Store, user: &str, password: &str, place: Option<&Place>) -> Result<Identity, Refusal> {
    let (mut ours, mut theirs) = duplex(1 << 16);
    let server = async {
        let length = theirs.read_u32().await.expect("a startup packet") as usize;
        theirs.read_exact(&mut vec![0; length - 4]).await.expect("a startup packet");
        let (mut rest, mut out) = (BytesMut::new(), BytesMut::new());
        let claim = Claim { user, end_point: None, place, came: Came::default() };
        let identity = authenticate(&mut theirs, &mut rest, &mut out, claim, store).await;
        let _ = theirs.write_all(&out).await;
        drop(theirs);
        identity
    };
    let hashing = Hashing::default();
    let client = async {
        let link = Link { end_point: None, is_private: true };
        let with = ServerLogin::password(password.as_bytes());
        let _ = login(&mut ours, &[("user", user)], &with, link, &hashing).await;
        drop(ours);
    };
    tokio::join!(server, client).0
}

fn sqlstate(result: Result<Greeted, LoginError>) -> String {
    match result {
        Err(LoginError::Refused { sqlstate: Some(state), .. }) => state.to_string(),
        other => format!("{other:?}"),
    }
}

#[tokio::test]
async fn a_real_server_lets_us_in_by_every_method() {
    let server = Server::start().await;
    let right = ServerLogin::password(b"secret");
    let wrong = ServerLogin::password(b"wrong");
    for user in ["joe", "md5user", "pwuser"] {
        let greeted = server.plain(user, &right).await.unwrap_or_else(|error| panic!("{user}: {error}"));
        let reported = |name: &str| greeted.parameters.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
        assert_eq!(reported("application_name").as_deref(), Some("it"));
        assert!(reported("server_version").is_some());
        assert!(greeted.process_id > 0 && greeted.key.len() == 4 && greeted.rest.is_empty());
        assert_eq!(sqlstate(server.plain(user, &wrong).await), "28P01", "{user}");
        let nothing = server.plain(user, &ServerLogin::Nothing).await;
        assert!(matches!(nothing, Err(LoginError::Missing(_))), "{user}: {nothing:?}");
    }
    server.plain("trusted", &ServerLogin::Nothing).await.expect("trust");
    // The second time costs no hashing: the keys of the first are kept.
    let started = Instant::now();
    server.plain("joe", &right).await.expect("again");
    assert!(started.elapsed() < Duration::from_secs(5));

    let tls = |with: &'static str, bound: fn(&[u8]) -> Vec<u8>| {
        let (server, with) = (&server, ServerLogin::password(with.as_bytes()));
        async move { server.login("onlytls", &with, Attempt::Tls, bound).await }
    };
    tls("secret", <[u8]>::to_vec).await.expect("SCRAM-SHA-256-PLUS");
    assert_eq!(sqlstate(tls("wrong", <[u8]>::to_vec).await), "28P01");
    let other_channel = tls("secret", |end_point| end_point.iter().map(|b| b ^ 1).collect()).await;
    assert_eq!(sqlstate(other_channel), "28000", "the server checks the channel, so it was bound");
    let refused = server.plain("onlytls", &right).await;
    assert!(matches!(refused, Err(LoginError::Refused { unasked: true, .. })), "sslmode allow goes on: {refused:?}");
}

#[tokio::test]
async fn clients_proofs_are_passed_through_to_a_real_server() {
    let server = Server::start().await;
    for (user, method) in [("joe", "scram-sha-256"), ("md5user", "md5"), ("joe", "password"), ("joe", "md5")] {
        let secret = server.secret_of(user).await;
        let store = store(&format!("method = \"{method}\"\n[[user]]\nname = {user:?}\npassword = {secret:?}"));
        assert!(come(&store, user, "wrong", None).await.is_err(), "{user} {method}");
        let identity = come(&store, user, "secret", None).await.unwrap_or_else(|error| panic!("{user}: {error}"));
        server.plain(user, &identity.server_login).await.unwrap_or_else(|error| panic!("{user} {method}: {error}"));
        if method == "scram-sha-256" {
            let bound = server.login(user, &identity.server_login, Attempt::Tls, <[u8]>::to_vec).await;
            bound.expect("each leg is bound to its own channel");
        }
    }
    let secret = server.secret_of("joe").await;
    let store = store(&format!("[[user]]\nname = \"joe\"\npassword = {secret:?}"));
    let identity = come(&store, "joe", "secret", None).await.expect("the right password");
    server.sql("ALTER ROLE joe PASSWORD 'changed'").await;
    let stale = server.plain("joe", &identity.server_login).await;
    assert!(matches!(stale, Err(LoginError::OtherSecret)), "{stale:?}");
}

#[tokio::test]
async fn users_are_looked_up_and_roles_that_may_not_log_in_do_not() {
    let server = Server::start().await;
    server
        .sql(
            "CREATE ROLE expired LOGIN PASSWORD 'secret' VALID UNTIL '2001-01-01';
             CREATE ROLE nologin PASSWORD 'secret';
             CREATE ROLE empty LOGIN;
             CREATE ROLE later LOGIN PASSWORD 'secret' VALID UNTIL '2999-01-01';
             CREATE ROLE dropped LOGIN PASSWORD 'secret';
             CREATE ROLE locked LOGIN PASSWORD 'secret';",
        )
        .await;
    let place = server.place();
    let store = store("query_user = \"lookup\"\nquery_password = \"lookup\"");
    let is_in = async |user: &str, password: &str| come(&store, user, password, Some(&place)).await;
    for user in ["joe", "later", "dropped", "locked"] {
        let identity = is_in(user, "secret").await.unwrap_or_else(|error| panic!("{user}: {error}"));
        assert_eq!(&*identity.user, user);
        assert!(matches!(is_in(user, "wrong").await, Err(Refusal::Failed { .. })));
        is_in(user, "secret").await.unwrap_or_else(|error| panic!("{user}: {error}"));
    }
    for user in ["expired", "nologin", "empty", "md5user", "nobody", "x' OR '1'='1", "$1", "", &"x".repeat(64)] {
        for password in ["secret", "", "lookup"] {
            let refused = is_in(user, password).await.map(|identity| identity.user);
            assert!(matches!(refused, Err(Refusal::Failed { .. } | Refusal::EmptyPassword(_))), "{user}: {refused:?}");
        }
    }
    // What was found is forgotten after five seconds at the latest.
    server.sql("ALTER ROLE later VALID UNTIL '2001-01-01'; DROP ROLE dropped; ALTER ROLE locked NOLOGIN").await;
    tokio::time::sleep(Duration::from_millis(5100)).await;
    for user in ["later", "dropped", "locked"] {
        assert!(is_in(user, "secret").await.is_err(), "{user}");
    }
    // A lost connection is no reason to turn a client away.
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'lookup'").await;
    server.sql("CREATE ROLE latest LOGIN PASSWORD 'secret'").await;
    is_in("latest", "secret").await.expect("a new connection");
    // A new password is known at the second try at the latest.
    server.sql("ALTER ROLE joe PASSWORD 'changed'").await;
    let _ = is_in("joe", "changed").await;
    is_in("joe", "changed").await.expect("asked anew after a failure");
}

#[tokio::test]
async fn cve_2025_12819_nobody_can_change_what_a_lookup_finds() {
    let server = Server::start().await;
    server
        .sql(
            "CREATE ROLE expired LOGIN PASSWORD 'secret' VALID UNTIL '2001-01-01';
             CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO PUBLIC;
             CREATE FUNCTION evil.never(timestamptz, timestamptz) RETURNS bool LANGUAGE sql AS 'SELECT false';
             CREATE OPERATOR evil.< (LEFTARG = timestamptz, RIGHTARG = timestamptz, FUNCTION = evil.never);
             CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE sql AS $$SELECT '-infinity'::timestamptz$$;
             CREATE TABLE evil.pg_shadow AS SELECT 'joe'::name AS usename, 'attack'::text AS passwd;
             CREATE TABLE evil.pg_authid AS SELECT 'joe'::name AS rolname, 'attack'::text AS rolpassword,
                 NULL::timestamptz AS rolvaliduntil, true AS rolcanlogin;
             GRANT SELECT ON ALL TABLES IN SCHEMA evil TO PUBLIC;
             GRANT SELECT ON pg_shadow TO lookup;
             ALTER DATABASE postgres SET search_path = evil, pg_catalog;
             ALTER ROLE lookup SET search_path = evil, pg_catalog;",
        )
        .await;
    let place = server.place();
    let who = "query_user = \"lookup\"\nquery_password = \"lookup\"";
    // The second asks by names that are not qualified, as people write them.
    for query in ["", "\nquery = \"SELECT usename, passwd FROM pg_shadow WHERE usename = $1\""] {
        let store = store(&format!("{who}{query}"));
        come(&store, "joe", "secret", Some(&place)).await.unwrap_or_else(|error| panic!("{query}: {error}"));
        assert!(come(&store, "joe", "attack", Some(&place)).await.is_err(), "{query}");
        if query.is_empty() {
            assert!(come(&store, "expired", "secret", Some(&place)).await.is_err());
        }
    }
}

#[tokio::test]
async fn lookups_that_fail_say_so_and_many_at_once_are_one() {
    let server = Server::start().await;
    let place = server.place();
    let who = "query_user = \"lookup\"\nquery_password = \"lookup\"";
    for (query, why) in [
        ("SELECT 1", "parameters"),
        ("SELECT $1::text, 'x'::text, 1", "2 columns from auth_query, not 3"),
        ("SELECT 'lookup'::text, 'lookup'::text WHERE $1::text <> ''", "another user"),
        ("SELECT nothing FROM nowhere WHERE $1 = 1", "42P01"),
    ] {
        let store = store(&format!("{who}\nquery = \"{query}\""));
        let refused = come(&store, "joe", "lookup", Some(&place)).await.expect_err(query);
        assert!(matches!(refused, Refusal::Lookup(_)) && refused.to_string().contains(why), "{query}: {refused}");
        let told = proxy::error::refusal(&refused, false).expect("words");
        assert_eq!(told.message(), "users cannot be looked up at the moment");
    }
    let wrong = store("query_user = \"lookup\"\nquery_password = \"wrong\"");
    let refused = come(&wrong, "joe", "secret", Some(&place)).await.expect_err("the lookup's own password is wrong");
    assert!(refused.to_string().contains("28P01"), "{refused}");

    let slow = "SELECT rolname, rolpassword FROM pg_authid, pg_sleep(0.3) WHERE rolname = $1";
    let store = Arc::new(store(&format!("{who}\nquery = \"{slow}\"")));
    let started = Instant::now();
    let logins: Vec<_> = (0..30)
        .map(|_| {
            let (store, place) = (store.clone(), place.clone());
            tokio::spawn(async move { come(&store, "joe", "secret", Some(&place)).await.map(|_| ()) })
        })
        .collect();
    for login in logins {
        login.await.expect("no panic").expect("the right password");
    }
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "30 lookups of 0.3 s on two connections: {:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn the_monitor_has_the_sslmode_of_its_cluster() {
    let server = Server::start().await;
    authority("another authority").write(server.folder.path(), "other");
    let is_in = async |user: &str, sslmode, ca: Option<&str>, host: &str| {
        let ca = ca.map(|name| server.folder.path().join(name));
        let options = tls_options(sslmode, ca);
        let login = topology::Login {
            user: user.into(),
            password: Some(topology::Secret::new("secret")),
            dbname: "postgres".into(),
            encryption: tls::encryption(&options).expect("good files"),
            connect_timeout: Duration::from_secs(10),
        };
        let address = Arc::new(Address::Tcp(host.into(), server.node.site().port));
        topology::Connector { node: "n1".into(), address, login: Arc::new(login) }.connect().await.is_ok()
    };
    for (sslmode, ca, host, user, expected) in [
        (SslMode::Disable, None, "127.0.0.1", "joe", true),
        (SslMode::Disable, None, "127.0.0.1", "onlytls", false),
        (SslMode::Prefer, None, "127.0.0.1", "onlytls", true),
        (SslMode::Require, None, "127.0.0.1", "onlytls", true),
        (SslMode::Require, Some("other.crt"), "127.0.0.1", "onlytls", false),
        (SslMode::VerifyCa, Some("ca.crt"), "localhost", "onlytls", true),
        (SslMode::VerifyCa, Some("other.crt"), "127.0.0.1", "onlytls", false),
        (SslMode::VerifyFull, Some("ca.crt"), "127.0.0.1", "onlytls", true),
        (SslMode::VerifyFull, Some("ca.crt"), "localhost", "onlytls", false),
    ] {
        assert_eq!(is_in(user, sslmode, ca, host).await, expected, "{sslmode} {ca:?} {host} {user}");
    }
}
