//! What a client is told under PgBouncer's name when it may not come in, or its server can not be had: PgBouncer's words, all of them
//! with SQLSTATE 08P01 and fatal.

use std::process::Command;

use harness::certificates::Certificate;
use harness::endpoint::value;
use harness::folder::Folder;
use harness::pgbouncer::{PgBouncer, at, client_tls};
use harness::port::Port;
use harness::postgres::{Node, Programs};
use harness::wire::{Raw, startup};
use tokio_postgres::Client;

const USERS: &str =
    "\"admin\" \"admin-secret\"\n\"app\" \"app-secret\"\n\"other\" \"md5d1e2b02a2ee4eb3f5f2b2b0e0d0e8a3f\"\n";

/// What a login over TCP is refused with.
async fn refusal(bouncer: &PgBouncer, user: &str, database: &str) -> String {
    let error = bouncer.endpoint(user, "app-secret", database).connect().await.expect_err("it is refused");
    let error = error.as_db_error().unwrap_or_else(|| panic!("no words: {error}"));
    assert_eq!((error.severity(), error.code().code()), ("FATAL", "08P01"), "{}", error.message());
    error.message().to_owned()
}

/// What psql complains of.
fn complaint(parameters: &str) -> String {
    let mut command = Command::new("psql");
    let output = command.args(["-X", "-d", parameters, "-c", "SELECT 1"]).output().expect("psql can be run");
    assert!(!output.status.success(), "{parameters}: it was let in");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What is answered to these bytes.
async fn answer(bouncer: &PgBouncer, bytes: &[u8]) -> String {
    let mut raw = Raw::connect(bouncer.port()).await;
    raw.send(bytes).await;
    let refused = raw.message().await.expect("words before it is closed");
    assert_eq!(refused.tag, b'E');
    refused.field(b'M').expect("a text")
}

#[test]
fn a_rule_says_why_a_client_is_not_let_in() {
    harness::run(60, async {
        let node = Node::primary(&Programs::installed()).await;
        let folder = Folder::new("hba");
        let pair = Certificate::authority("ours").sign("localhost").write(&folder, "server");
        let rules = "host rejected all 127.0.0.1/32 reject\nhost certified all 127.0.0.1/32 cert\nlocal all all peer\n\
                     host app app 127.0.0.1/32 scram-sha-256\nhost ldapped all 127.0.0.1/32 ldap ldapserver=127.0.0.1 ldapport=1 ldapprefix=x\n";
        let rules = folder.write("hba", rules);
        let settings = format!("auth_type = hba\nauth_hba_file = {}\n{}", rules.display(), client_tls("allow", &pair));
        let bouncer = PgBouncer::start(&at(&node, "app = $\n* = $"), &settings, USERS).await;
        assert_eq!(value(&bouncer.endpoint("app", "app-secret", "app").client().await, "SELECT 1").await, "1");
        assert_eq!(refusal(&bouncer, "app", "rejected").await, "login rejected");
        assert_eq!(refusal(&bouncer, "app", "nowhere").await, "no authentication method is found");
        assert_eq!(refusal(&bouncer, "app", "certified").await, "certificate authentication failed");
        assert_eq!(refusal(&bouncer, "app", "ldapped").await, "LDAP authentication failed");
        let socket = format!("host={} port={} user=app dbname=app", bouncer.folder().path().display(), bouncer.port());
        assert!(complaint(&socket).contains("unix socket login rejected"), "{}", complaint(&socket));
    });
}

#[test]
fn a_client_that_begins_in_a_wrong_way_is_told_so() {
    harness::run(60, async {
        let node = Node::primary(&Programs::installed()).await;
        let folder = Folder::new("tls");
        let pair = Certificate::authority("ours").sign("localhost").write(&folder, "server");
        let tls = client_tls("require", &pair) + "auth_type = trust\n";
        let bouncer = PgBouncer::start(&at(&node, "app = $"), &tls, USERS).await;
        let app = startup(&[("user", "app"), ("database", "app")]);
        assert_eq!(answer(&bouncer, &app).await, "SSL required");

        let bouncer = PgBouncer::start(&at(&node, "app = $"), "auth_type = trust\n", USERS).await;
        assert_eq!(answer(&bouncer, &startup(&[("database", "app")])).await, "no username supplied");
        let unknown = startup(&[("user", "app"), ("database", "app"), ("nonsense", "1")]);
        assert_eq!(answer(&bouncer, &unknown).await, "unsupported startup parameter: nonsense");
        let options = startup(&[("user", "app"), ("database", "app"), ("options", "-c nonsense=1")]);
        assert_eq!(answer(&bouncer, &options).await, "unsupported startup parameter in options: nonsense");
        let old = [0, 0, 0, 8, 0, 2, 0, 0];
        assert_eq!(answer(&bouncer, &old).await, "old V2 protocol not supported");
        assert_eq!(refusal(&bouncer, "app", "nowhere").await, "no such database: nowhere");
    });
}

#[test]
fn a_server_that_cannot_be_had_is_named() {
    harness::run(90, async {
        let node = Node::primary(&Programs::installed()).await;
        let nobody = Port::new();
        let databases = format!(
            "hashed = $ dbname=app user=app password=md5d1e2b02a2ee4eb3f5f2b2b0e0d0e8a3f\n\
             missing = $ dbname=nowhere user=app password=app-secret\n\
             gone = host=127.0.0.1 port={} user=app\napp = $",
            nobody.number()
        );
        let settings =
            "pool_mode = transaction\nauth_type = trust\nclient_login_timeout = 3\nserver_login_retry = 60\n";
        let bouncer = PgBouncer::start(&at(&node, &databases), settings, USERS).await;
        assert_eq!(refusal(&bouncer, "app", "hashed").await, "server login failed: wrong password type");
        let missing = bouncer.endpoint("app", "app-secret", "missing");
        let error = missing.connect().await.expect_err("there is no such database");
        let error = error.as_db_error().expect("PostgreSQL's own words");
        assert_eq!((error.code().code(), error.message()), ("3D000", "database \"nowhere\" does not exist"));
        assert_eq!(refusal(&bouncer, "app", "gone").await, "client_login_timeout (server down)");

        // clients who were let in before
        let app = bouncer.endpoint("app", "app-secret", "app");
        let (one, two) = (app.client().await, app.client().await);
        assert_eq!(value(&one, "SELECT 1").await, "1");
        node.sql("ALTER ROLE app NOLOGIN").await;
        bouncer.console().await.simple_query("RECONNECT app").await.expect("a reconnect");
        let told = async |client: &Client| {
            let error = client.simple_query("SELECT 1").await.expect_err("there is no server");
            error.as_db_error().map(|error| error.message().to_owned()).unwrap_or_default()
        };
        let why = "role \"app\" is not permitted to log in";
        assert_eq!(told(&one).await, why);
        let cached = format!("server login has been failing, cached error: {why} (server_login_retry)");
        assert_eq!(told(&two).await, cached);
    });
}

#[test]
fn anybody_may_come_in_where_nobody_is_asked() {
    harness::run(60, async {
        let databases = "forced = $ dbname=app user=app password=app-secret\napp = $";
        let (_node, bouncer) = PgBouncer::with_node(databases, "auth_type = any\n", USERS).await;
        let whoever = bouncer.endpoint("whoever", "x", "forced").client().await;
        assert_eq!(value(&whoever, "SELECT current_user").await, "app");
        let console = bouncer.endpoint("whoever", "x", "pgbouncer").client().await;
        console.simple_query("PAUSE app").await.expect("everybody is an admin then");
        let error = console.simple_query("SUSPEND").await.expect_err("app is paused");
        let error = error.as_db_error().expect("the console says why");
        assert_eq!(error.message(), "cannot suspend with paused databases");
    });
}

#[test]
fn its_own_account_is_an_admin_by_the_unix_socket() {
    harness::run(60, async {
        let (_node, bouncer) = PgBouncer::with_node("app = $", "auth_type = md5\n", USERS).await;
        let conninfo = format!(
            "host={} port={} user=pgbouncer dbname=pgbouncer",
            bouncer.folder().path().display(),
            bouncer.port()
        );
        let mut command = Programs::installed().command("psql");
        command.args(["-X", "-w", "-d", &conninfo, "-c", "PAUSE", "-c", "RESUME"]);
        harness::postgres::run(&mut command);
        bouncer.logged(0, "pgbouncer access from unix socket").await;
    });
}

#[test]
fn a_login_that_takes_too_long_is_told_so() {
    harness::run(60, async {
        let settings = "auth_type = md5\nclient_login_timeout = 1\n";
        let (_node, bouncer) = PgBouncer::with_node("app = $", settings, USERS).await;
        let app = startup(&[("user", "app"), ("database", "app")]);
        assert_eq!(answer(&bouncer, &app[..6]).await, "client_login_timeout");
        let mut raw = Raw::connect(bouncer.port()).await;
        raw.send(&app).await;
        assert_eq!(raw.message().await.expect("a question").tag, b'R');
        let told = raw.message().await.expect("words before it is closed");
        assert_eq!(told.field(b'M').as_deref(), Some("client_login_timeout"));
        bouncer.logged(0, "closing because: client_login_timeout (age=1s)").await;
    });
}
