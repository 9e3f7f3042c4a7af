//! The configuration from outside: what a file says, what a bad one is told, what a reload changes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use proxy::config::{AuthMethod, Config, PoolMode, Route, Secret, Size, SslMode, Target};
use topology::Address;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config")
}

fn good() -> Config {
    Config::load(&folder().join("good.toml")).expect("good.toml is good")
}

/// The errors of a text, without the file's name.
fn errors(text: &str) -> String {
    let errors = Config::parse(text, Path::new("f")).expect_err("the text is bad").to_string();
    errors.replace("f:", "")
}

#[test]
fn a_good_file_is_read_as_it_is_written() {
    let config = good();
    assert_eq!(config.listen.address[1].to_string(), "[::1]:6432");
    assert_eq!(config.listen.workers, 2);
    assert_eq!(config.limits.max_clients, 200);
    assert_eq!(config.limits.client_idle_timeout, Some(Duration::from_secs(600)));
    assert_eq!(config.limits.idle_transaction_timeout, None);
    assert_eq!(config.limits.hold_bytes, Size(1 << 20));
    assert_eq!(config.auth.method, AuthMethod::Md5);
    assert_eq!(config.users["app"].pool_size, Some(3));

    let main = &config.clusters["main"];
    assert_eq!(main.probe_interval, Duration::from_millis(100));
    assert_eq!(main.nodes[0].address, Address::Tcp("db1.example".to_owned(), 5432));
    assert_eq!(main.nodes[1].address, Address::Unix("/var/run/postgresql".into(), 5433));
    assert_eq!((main.nodes[0].priority, main.nodes[1].priority), (200, 100));
    assert_eq!(main.tls.sslmode, SslMode::Require);
    assert_eq!(&*main.replication.user, "pgsteady");

    let app = config.database("app").unwrap();
    assert_eq!(app.target, Target::Cluster("main".into()));
    assert_eq!((app.pool_mode, app.max_wait), (PoolMode::Session, Duration::from_secs(3)));
    assert_eq!(app.tls.sslmode, SslMode::Require, "an entry on a cluster has the cluster's TLS");
    let reports = config.database("reports").unwrap();
    assert_eq!(reports.target, Target::Server(Address::Tcp("10.0.0.9".to_owned(), 5432)));
    assert_eq!(reports.forced.as_ref().map(|login| &*login.user), Some("reader"));
    let other = config.database("whatever").unwrap();
    assert_eq!((&*other.name, other.max_wait), ("*", Duration::from_secs(120)));
    assert_eq!((other.route, other.dbname.clone()), (Route::Auto, None));
}

/// `UPDATE=1 cargo test -p pgsteady --test config` writes the expected text anew.
#[test]
fn a_bad_file_is_told_everything_at_once_with_places_and_remedies() {
    let file = folder().join("bad.toml");
    let told = Config::load(&file).unwrap_err().to_string().replace(&format!("{}/", folder().display()), "");
    let golden = folder().join("bad.txt");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&golden, format!("{told}\n")).unwrap();
    }
    assert_eq!(format!("{told}\n"), std::fs::read_to_string(golden).unwrap());
}

#[test]
fn syntax_errors_have_a_place() {
    let told = errors("[limits\nmax_clients = 1\n");
    assert!(told.starts_with("1:8: "), "{told}");
    let told = errors("[limits]\nmax_clients = 1\nmax_clients = 2\n[database.a]\nhost='h'");
    assert!(told.starts_with("3:1: ") && told.contains("duplicate key"), "{told}");
}

#[test]
fn an_empty_file_is_told_what_it_lacks() {
    assert_eq!(
        errors(""),
        "1:1: database: no database is configured\n  write [database.NAME] with cluster = \"...\" or host = \"...\"; \
         [database.\"*\"] is for any name"
    );
}

#[test]
fn a_missing_file_is_an_error_of_the_file() {
    let told = Config::load(Path::new("/no/such/file.toml")).unwrap_err().to_string();
    assert!(told.starts_with("/no/such/file.toml: cannot be read: No such file"), "{told}");
}

#[test]
fn passwords_come_from_files_and_open_files_are_warned_of() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("secret"), "hunter2\nsecond line\n").unwrap();
    let file = folder.path().join("pgsteady.toml");
    std::fs::write(&file, "[database.a]\nhost = \"h\"\nuser = \"u\"\npassword_file = \"secret\"\n").unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
    let config = Config::load(&file).unwrap();
    let login = config.database("a").unwrap().forced.clone().unwrap();
    assert_eq!(login.password, Some(Secret::new("hunter2")));
    assert!(!format!("{config:?}").contains("hunter2"), "a configuration can be printed");
    let told: Vec<_> = config.warnings.iter().map(|w| w.text(Path::new("f"))).collect();
    assert_eq!(told.len(), 1);
    assert!(told[0].starts_with("f: holds passwords and can be read by others (mode 0644)\n  chmod 600 "), "{told:?}");

    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(Config::load(&file).unwrap().warnings, []);
}

#[test]
fn ways_in_without_a_password_are_warned_of() {
    let warnings = |method: &str, address: &str| {
        let text = format!("[listen]\naddress=['{address}']\n[auth]\nmethod='{method}'\n[database.a]\nhost='h'");
        let config = Config::parse(&text, Path::new("f")).unwrap();
        config.warnings.iter().map(|w| w.text(Path::new("f"))).collect::<Vec<_>>()
    };
    assert!(warnings("trust", "*:6432")[0].starts_with("f:3:2: auth.method: lets everybody in who reaches *:6432\n"));
    assert!(warnings("password", "10.0.0.1:1")[0].contains("sends passwords to 10.0.0.1:1 in the clear"));
    assert_eq!(warnings("trust", "[::1]:6432").len() + warnings("scram-sha-256", "*:6432").len(), 0);
}

#[test]
fn a_reload_says_what_changes_and_what_waits_for_a_restart() {
    let old = good();
    assert_eq!(old.diff(&old), []);
    let text = std::fs::read_to_string(folder().join("good.toml")).unwrap();
    let text = text
        .replace("workers = 2", "workers = 3")
        .replace("max_clients = 200", "max_clients = 300")
        .replace("probe_interval = \"100ms\"", "probe_interval = \"200ms\"")
        .replace("max_wait = \"3s\"", "max_wait = \"4s\"")
        .replace("[database.reports]", "[database.reporting]");
    let new = Config::parse(&text, &folder().join("good.toml")).unwrap();
    let changes: Vec<_> = old.diff(&new).iter().map(ToString::to_string).collect();
    assert_eq!(
        changes,
        [
            "listen.workers (needs a restart)",
            "limits.max_clients",
            "cluster.main (needs a restart)",
            "database.reporting",
            "database.app",
            "database.reports"
        ]
    );
}
