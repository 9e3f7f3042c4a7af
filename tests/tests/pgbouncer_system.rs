//! What is asked of the system around it, under PgBouncer's name: the addresses of host names, and whether PAM takes a password. The
//! program sees files of the test's own in the place of the system's, in a mount namespace.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use harness::endpoint::value;
use harness::folder::{Folder, give};
use harness::pgbouncer::{PgBouncer, at, show, shown};
use harness::pgsteady::program;
use harness::port::Port;
use harness::postgres::{Node, Programs, run};
use harness::wire::{Raw, startup};
use harness::{process, wait_for};

const USERS: &str = "\"admin\" \"admin-secret\"\n\"app\" \"app-secret\"\n";
const SOON: Duration = Duration::from_secs(10);

/// A script that everybody may run.
fn script(folder: &Folder, name: &str, text: &str) -> PathBuf {
    let file = folder.write(name, &format!("#!/bin/sh\n{text}"));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("the file is ours");
    file
}

/// A program that runs pgsteady as `pgbouncer` after these commands, whose mounts it alone sees.
fn after(folder: &Folder, mounts: &str) -> PathBuf {
    let text = format!(
        "[ \"$(id -u)\" = 0 ] || user='--user --map-current-user --keep-caps'\n\
         exec unshare $user --mount --propagation private sh -ec '{mounts}\nexec {} pgbouncer \"$@\"' - \"$@\"\n",
        program().display()
    );
    script(folder, "pgbouncer", &text)
}

/// The same, for which `ours` is in the place of `systems`.
fn seeing(folder: &Folder, ours: &Path, systems: &str) -> PathBuf {
    after(folder, &format!("mount --bind {} {systems}", ours.display()))
}

async fn started(program: &Path, node: &Node, databases: &str, settings: &str) -> PgBouncer {
    let settings = format!("pool_mode = transaction\n{settings}");
    PgBouncer::start_program(Some(program), &at(node, databases), &settings, USERS).await
}

#[test]
fn the_addresses_of_a_host_are_remembered_for_their_time() {
    harness::run(60, async {
        let folder = Folder::new("hosts");
        let hosts = folder.write("hosts", "127.0.0.1 localhost db.test\n");
        let program = seeing(&folder, &hosts, "/etc/hosts");
        let node = Node::primary(&Programs::installed()).await;
        let databases = format!("app = host=db.test port={0}\nlost = host=no..where port={0}", node.port());
        let settings = "auth_type = trust\ndns_max_ttl = 3\ndns_nxdomain_ttl = 300\nserver_login_retry = 1\n";
        let bouncer = started(&program, &node, &databases, settings).await;
        let console = bouncer.console().await;

        let client = bouncer.endpoint("app", "app-secret", "app").client().await;
        let backend = value(&client, "SELECT pg_backend_pid()").await;
        assert_eq!(shown(&console, "DNS_HOSTS", "hostname", "db.test", "addrs").await, "127.0.0.1:0");
        let left = shown(&console, "DNS_HOSTS", "hostname", "db.test", "ttl").await;
        assert!(left.parse::<u64>().is_ok_and(|left| left <= 3), "{left}");
        assert_eq!(shown(&console, "LISTS", "list", "dns_names", "items").await, "1");

        // it moves: whoever connects before the time is over goes where it was
        fs::write(&hosts, "127.0.0.1 localhost\n127.0.0.2 db.test\n").expect("the file is ours");
        console.simple_query("RECONNECT app").await.expect("a reconnect");
        assert_ne!(value(&client, "SELECT pg_backend_pid()").await, backend);
        assert_eq!(shown(&console, "SERVERS", "database", "app", "addr").await, "127.0.0.1");
        let forgotten = || async { show(&console, "DNS_HOSTS").await.is_empty().then_some(()) };
        wait_for("the time to be over", SOON, forgotten).await;
        console.simple_query("RECONNECT app").await.expect("a reconnect");
        let moved = || async {
            // nothing listens there: the client waits
            let _ = tokio::time::timeout(Duration::from_millis(50), client.simple_query("SELECT 1")).await;
            let hosts = show(&console, "DNS_HOSTS").await;
            hosts.iter().flatten().any(|(_, value)| value == "127.0.0.2:0").then_some(())
        };
        wait_for("the new address", SOON, moved).await;

        // that there is none is remembered too
        let mut lost = Raw::connect(bouncer.port()).await;
        lost.send(&startup(&[("user", "app"), ("database", "lost")])).await;
        let known = || async {
            let hosts = show(&console, "DNS_HOSTS").await;
            hosts.iter().flatten().any(|(_, value)| value == "no..where").then_some(())
        };
        wait_for("the answer that there is none", SOON, known).await;
        let asked = shown(&console, "DNS_HOSTS", "hostname", "no..where", "ttl").await;
        assert!(asked.parse::<u64>().is_ok_and(|left| left > 3), "{asked}");
    });
}

#[test]
fn servers_of_a_host_that_moved_are_not_lent_again() {
    harness::run(60, async {
        let folder = Folder::new("hosts");
        let hosts = folder.write("hosts", "127.0.0.1 localhost db.test\n");
        let program = seeing(&folder, &hosts, "/etc/hosts");
        let node = Node::primary(&Programs::installed()).await;
        let databases = format!("app = host=db.test port={}", node.port());
        let bouncer = started(&program, &node, &databases, "auth_type = trust\ndns_max_ttl = 1\n").await;
        let [one, two] = [(); 2].map(|()| bouncer.endpoint("app", "app-secret", "app"));
        let (one, two) = (one.client().await, two.client().await);
        let backend = value(&one, "SELECT pg_backend_pid()").await;
        fs::write(&hosts, "127.0.0.1 localhost\n127.0.0.1 db.test\n127.0.0.2 db.test\n").expect("the file is ours");
        tokio::time::sleep(Duration::from_millis(1200)).await;
        assert_eq!(value(&one, "SELECT pg_backend_pid()").await, backend, "nobody has asked for the name since");
        // the second server is opened while the first is on loan, and the name asked for
        one.batch_execute("BEGIN").await.expect("a transaction");
        assert_eq!(value(&two, "SELECT 1").await, "1");
        one.batch_execute("COMMIT").await.expect("its end");
        let gone = || async { (value(&one, "SELECT pg_backend_pid()").await != backend).then_some(()) };
        wait_for("another server", SOON, gone).await;
    });
}

#[test]
fn pam_says_who_may_come_in() {
    harness::run(60, async {
        let folder = Folder::new("pam");
        let check = "read -r password\n[ \"$PAM_SERVICE/$PAM_RHOST/$PAM_USER/$password\" = pgbouncer/127.0.0.1/app/app-secret ]\n";
        let check = script(&folder, "check", check);
        let locked = folder.path().join("locked");
        let account = script(&folder, "account", &format!("[ ! -e {} ]\n", locked.display()));
        let rules = Folder::new_in(folder.path(), "pam.d");
        let text = format!(
            "auth required pam_exec.so quiet expose_authtok {}\naccount required pam_exec.so quiet {}\n",
            check.display(),
            account.display()
        );
        rules.write("pgbouncer", &text);
        let program = seeing(&folder, rules.path(), "/etc/pam.d");
        let node = Node::primary(&Programs::installed()).await;
        let databases = "app = $\nlooked = $ dbname=app auth_user=app";
        let bouncer = started(&program, &node, databases, "auth_type = pam\n").await;
        let app = |password: &str, database: &str| bouncer.endpoint("app", password, database);

        let client = app("app-secret", "app").client().await;
        assert_eq!(value(&client, "SELECT current_user").await, "app", "the password is the server's too");
        let refused = async |password, database| {
            let error = app(password, database).connect().await.expect_err("it is refused");
            error.as_db_error().map(|error| error.message().to_owned()).unwrap_or_default()
        };
        assert_eq!(refused("wrong", "app").await, "PAM authentication failed");
        assert_eq!(refused("app-secret", "looked").await, "bouncer config error");
        fs::write(&locked, "").expect("the folder is ours");
        assert_eq!(refused("app-secret", "app").await, "PAM authentication failed", "the account is locked");
        assert!(!bouncer.log().contains("app-secret"));
    });
}

#[test]
fn the_log_goes_to_syslog_too() {
    harness::run(60, async {
        let folder = Folder::new("syslog");
        let socket = folder.path().join("log");
        let heard = UnixDatagram::bind(&socket).expect("a socket of the test can be made");
        give(&socket);
        heard.set_read_timeout(Some(SOON)).expect("a time can be set");
        let devices = Folder::new_in(folder.path(), "dev");
        let mounts = format!(
            "mount -t tmpfs none {0}\nfor name in null zero random urandom; do touch {0}/$name; mount --bind /dev/$name {0}/$name; done\n\
             ln -s {1} {0}/log\nmount --rbind {0} /dev",
            devices.path().display(),
            socket.display()
        );
        let program = after(&folder, &mounts);
        let node = Node::primary(&Programs::installed()).await;
        let settings = "auth_type = trust\nsyslog = 1\nsyslog_facility = local3\nsyslog_ident = steady\n";
        let bouncer = started(&program, &node, "app = $", settings).await;
        let line = || {
            let mut line = [0; 4096];
            let length = heard.recv(&mut line).expect("a line in time");
            String::from_utf8_lossy(&line[..length]).into_owned()
        };
        // 19 for local3, and 6 for what is worth noting
        let (facility_and_severity, ident) = ("<158>", "steady[");
        let first = line();
        assert!(first.starts_with(&format!("{facility_and_severity}{ident}")), "{first}");
        let console = bouncer.console().await;
        console.simple_query("RELOAD").await.expect("a reload");
        while !line().contains("RELOAD command issued") {}
    });
}

#[test]
fn the_journal_gets_lines_with_their_levels() {
    harness::run(60, async {
        let folder = Folder::new("journal");
        let socket = folder.path().join("socket");
        let heard = UnixDatagram::bind(&socket).expect("a socket of the test can be made");
        give(&socket);
        heard.set_read_timeout(Some(SOON)).expect("a time can be set");
        // `-q`, the first argument, would have nothing written to standard error
        let mounts = format!(
            "shift\nmount -t tmpfs none /run\nmkdir -p /run/systemd/journal\nln -s {} /run/systemd/journal/socket\n\
             export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2)",
            socket.display()
        );
        let program = after(&folder, &mounts);
        let node = Node::primary(&Programs::installed()).await;
        let bouncer = started(&program, &node, "app = $", "auth_type = trust\n").await;
        let entry = || {
            let mut entry = [0; 4096];
            let length = heard.recv(&mut entry).expect("an entry in time");
            String::from_utf8_lossy(&entry[..length]).into_owned()
        };
        let first = entry();
        assert!(first.starts_with("PRIORITY=6\nSYSLOG_IDENTIFIER=pgbouncer\nMESSAGE\n"), "{first}");
        bouncer.endpoint("stranger", "x", "app").connect().await.expect_err("nobody knows it");
        let mut complaint = entry();
        while !complaint.contains("pooler error") {
            complaint = entry();
        }
        assert!(complaint.starts_with("PRIORITY=4\n") && complaint.ends_with("authentication failed\n"), "{complaint}");
    });
}

/// The name server of `zone.test`, in which `db` has these addresses.
struct NameServer(Child);

impl NameServer {
    async fn start(at: Ipv4Addr, serial: u32, addresses: &[&str]) -> Self {
        assert!(nix::unistd::Uid::effective().is_root(), "a name server's port needs root: run this test as root");
        let mut command = process::bound_to_us(Path::new("dnsmasq"));
        command.args([
            "--no-daemon",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--bind-interfaces",
            "--pid-file=",
        ]);
        command.args(["--user=root", "--auth-zone=zone.test", "--auth-ttl=1"]);
        command.arg(format!("--listen-address={at}")).arg(format!("--auth-server=ns.zone.test,{at}"));
        command.arg(format!("--auth-soa={serial}"));
        command.args(addresses.iter().map(|address| format!("--host-record=db.zone.test,{address}")));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut server = Self(command.spawn().expect("dnsmasq can be run"));
        process::listens(&mut server.0, (at, 53).into(), SOON, String::new).await;
        server
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn names_of_a_zone_that_changed_are_looked_up_before_their_time() {
    harness::run(60, async {
        let [_, _, low, lowest] = std::process::id().to_be_bytes();
        let at = Ipv4Addr::new(127, 53, low, lowest | 1);
        let folder = Folder::new("zones");
        let resolver = folder.write("resolv.conf", &format!("nameserver {at}\n"));
        let program = seeing(&folder, &resolver, "$(readlink -f /etc/resolv.conf)");
        let node = Node::primary(&Programs::installed()).await;
        let databases = format!("app = host=db.zone.test port={}", node.port());
        let first = NameServer::start(at, 41, &["127.0.0.1"]).await;
        let settings = "auth_type = trust\ndns_max_ttl = 300\ndns_zone_check_period = 1\n";
        let bouncer = started(&program, &node, &databases, settings).await;
        let console = bouncer.console().await;
        assert!(show(&console, "DNS_ZONES").await.is_empty(), "no name is known yet");
        let client = bouncer.endpoint("app", "app-secret", "app").client().await;
        let backend = value(&client, "SELECT pg_backend_pid()").await;
        let zone = |serial: &'static str| {
            let console = &console;
            move || async move {
                let zones = show(console, "DNS_ZONES").await;
                zones.iter().flatten().any(|(_, value)| value == serial).then_some(())
            }
        };
        wait_for("the first look at the zone", SOON, zone("41")).await;
        assert_eq!(shown(&console, "DNS_ZONES", "zonename", "zone.test", "count").await, "1");
        assert_eq!(shown(&console, "LISTS", "list", "dns_zones", "items").await, "1");
        assert_eq!(value(&client, "SELECT pg_backend_pid()").await, backend);

        drop(first);
        let _second = NameServer::start(at, 42, &["127.0.0.1", "127.0.0.2"]).await;
        wait_for("the new serial number", SOON, zone("42")).await;
        bouncer.logged(0, "zone 'zone.test' serial changed: old=41 new=42").await;
        let moved = || async {
            let hosts = show(&console, "DNS_HOSTS").await;
            hosts.iter().flatten().any(|(_, value)| value.contains("127.0.0.2:0")).then_some(())
        };
        wait_for("the new address", SOON, moved).await;
        let closed =
            || async { bouncer.log().contains("closing because: database configuration changed").then_some(()) };
        wait_for("the server of the old address to go", SOON, closed).await;
    });
}

/// slapd with one user.
struct Directory {
    process: Child,
    port: Port,
    _folder: Folder,
}

impl Directory {
    async fn start() -> Self {
        let (folder, port) = (Folder::new("ldap"), Port::new());
        let here = folder.path().display();
        fs::create_dir(folder.path().join("db")).expect("a folder of the test can be made");
        let settings = format!(
            "include /etc/ldap/schema/core.schema\nmodulepath /usr/lib/ldap\nmoduleload back_mdb\npidfile {here}/pid\n\
             database mdb\nmaxsize 10485760\nsuffix \"dc=test\"\nrootdn \"cn=root,dc=test\"\ndirectory {here}/db\n"
        );
        let settings = folder.write("slapd.conf", &settings);
        let entries = "dn: dc=test\nobjectClass: dcObject\nobjectClass: organization\no: test\ndc: test\n\n\
                       dn: cn=app,dc=test\nobjectClass: person\ncn: app\nsn: app\nuserPassword: directory-secret\n";
        let entries = folder.write("entries.ldif", entries);
        run(Command::new("/usr/sbin/slapadd").arg("-f").arg(&settings).arg("-l").arg(&entries));
        let mut command = process::bound_to_us(Path::new("/usr/sbin/slapd"));
        command.args(["-d", "0", "-h", &format!("ldap://127.0.0.1:{}", port.number()), "-f"]).arg(&settings);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = command.spawn().expect("slapd can be run");
        process::listens(&mut process, (Ipv4Addr::LOCALHOST, port.number()).into(), SOON, String::new).await;
        Self { process, port, _folder: folder }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_directory_says_whether_a_password_is_right() {
    harness::run(60, async {
        let directory = Directory::start().await;
        let node = Node::primary(&Programs::installed()).await;
        let options = format!(
            "ldapserver=127.0.0.1 ldapport={} ldapprefix=\"cn=\" ldapsuffix=\",dc=test\"",
            directory.port.number()
        );
        let settings = format!("pool_mode = transaction\nauth_type = ldap\nauth_ldap_options = {options}\n");
        let databases = at(&node, "app = $ user=app password=app-secret");
        let bouncer = PgBouncer::start(&databases, &settings, USERS).await;
        let login = |password| bouncer.endpoint("app", password, "app");
        assert_eq!(value(&login("directory-secret").client().await, "SELECT current_user").await, "app");
        login("app-secret").connect().await.expect_err("PostgreSQL's own password is not the directory's");
        drop(directory);
        login("directory-secret").connect().await.expect_err("nobody says that it is right");
    });
}
