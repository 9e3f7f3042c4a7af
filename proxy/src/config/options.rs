//! Every option of `pgsteady.toml`, said once: name, type, default, text. No check of one option against another.

use std::path::PathBuf;
use std::time::Duration;

use topology::Endpoint;

use super::Secret;
use super::section::{SectionDoc, section};
use super::value::{FileMode, ListenAddress, Size, words};

/// The sections in the order of the reference page.
pub const SECTIONS: &[SectionDoc] = &[
    Listen::DOC,
    ListenTls::DOC,
    Limits::DOC,
    Auth::DOC,
    User::DOC,
    Log::DOC,
    ClusterOptions::DOC,
    EtcdOptions::DOC,
    NodeOptions::DOC,
    ServerTls::DOC,
    DatabaseOptions::DOC,
];

words! {
    /// Whether TLS is used and what is checked (libpq's words, with libpq's meaning on both sides).
    SslMode {
        /// Never.
        "disable" => Disable,
        /// To a server: only if it refuses a plain connection. From a client: as it asks.
        "allow" => Allow,
        /// If the other side can; falls back to plain.
        "prefer" => Prefer,
        /// Always; the certificate is not checked (to a server: it is if `ca` is given, as libpq does).
        "require" => Require,
        /// Always, and the certificate is of the given CA.
        "verify-ca" => VerifyCa,
        /// As verify-ca; to a server: and is for this host.
        "verify-full" => VerifyFull,
    }
}

words! {
    /// How clients prove who they are.
    AuthMethod {
        /// They do not, and whoever they say to be is not asked for: the database entry has a user.
        "any" => Any,
        /// They do not; the user must be known, if users are named anywhere.
        "trust" => Trust,
        /// Password in the clear.
        "password" => Password,
        /// MD5 challenge; SCRAM where the stored secret is a SCRAM verifier.
        "md5" => Md5,
        /// SCRAM-SHA-256, with channel binding (SCRAM-SHA-256-PLUS) over TLS.
        "scram-sha-256" => ScramSha256,
        /// Certificate of the client, with the user as its common name or one of its DNS names; wants
        /// `listen.tls.sslmode = "verify-full"`.
        "cert" => Cert,
        /// Password in the clear, checked by an LDAP server (`ldap_options`).
        "ldap" => Ldap,
        /// Password in the clear, checked by the system's PAM modules (`pam_service`).
        "pam" => Pam,
        /// By line of `hba_file`.
        "hba" => Hba,
    }
}

words! {
    /// How long a client keeps a server.
    PoolMode {
        /// Until the client leaves.
        "session" => Session,
        /// For a transaction.
        "transaction" => Transaction,
        /// For a statement; transaction blocks are refused.
        "statement" => Statement,
    }
}

words! {
    /// Where transactions go.
    Route {
        /// Provably read-only ones may go to a replica, all others go to the primary.
        "auto" => Auto,
        /// To the primary.
        "primary" => Primary,
        /// To a replica.
        "replica" => Replica,
    }
}

words! {
    /// Who promotes.
    Managed {
        /// pgsteady itself.
        "pgsteady" => Pgsteady,
        /// Something else (Patroni, a cloud provider); pgsteady follows and holds clients meanwhile.
        "external" => External,
        /// Nobody: roles are watched, clients are not held.
        "none" => None,
    }
}

words! {
    /// What happens to the rule of acknowledgement when no standby is left.
    Durability {
        /// It is relaxed, loudly, after the store says that the absent standbys may not be promoted.
        "available" => Available,
        /// Commits wait for a standby.
        "strict" => Strict,
    }
}

words! {
    /// What happens to a session that asks for commits that no standby has to confirm (`synchronous_commit` below `on`):
    /// they are acknowledged, and lost in a failover.
    SynchronousCommit {
        /// It is refused, in SET, `set_config` and startup options; a role or database with such a default gets no server.
        "refuse" => Refuse,
        /// It is logged.
        "report" => Report,
        /// Nothing.
        "allow" => Allow,
    }
}

words! {
    /// Form of the log.
    LogFormat {
        /// A line of text for each event.
        "text" => Text,
        /// A JSON object on a line for each event.
        "json" => Json,
    }
}

section! {
    /// Where clients connect.
    Listen "[listen]" {
        /// Addresses for TCP, each "HOST:PORT"; `*` is every interface. An empty list: Unix socket only.
        address: Vec<ListenAddress> = "[\"127.0.0.1:6432\"]" [restart],
        /// Directory of a Unix socket; its name is `.s.PGSQL.PORT` with the first address's port (6432 without any).
        unix_socket_directory: Option<PathBuf> [restart],
        /// Port in the name of the Unix socket; default: the first address's, or 6432 without any.
        unix_socket_port: Option<u16> [restart],
        /// Permission bits of the Unix socket.
        unix_socket_mode: FileMode = "\"0660\"" [restart],
        /// Group of the Unix socket; default: that of the process.
        unix_socket_group: Option<String> [restart],
        /// Whether other processes may listen on the same ports (SO_REUSEPORT); several workers need it.
        share_ports: bool = "true" [restart],
        /// Threads that serve clients; each has its own listener and its own servers.
        workers: usize = "1" [restart],
        /// Connections the kernel keeps for us before we accept them.
        backlog: u16 = "1024" [restart],
    }
}

section! {
    /// TLS towards clients. Files are read again on reload and when they change.
    ListenTls "[listen.tls]" {
        /// Whether clients may or must use TLS; verify-ca and verify-full demand a certificate of the client.
        sslmode: SslMode = "\"disable\"",
        /// Certificate chain (PEM) shown to clients.
        certificate: Option<PathBuf>,
        /// Private key (PEM) of that certificate.
        key: Option<PathBuf>,
        /// Certificates (PEM) of the authorities that sign client certificates.
        ca: Option<PathBuf>,
        /// Protocol versions, with commas between them: `tlsv1.2`, `tlsv1.3`, or `secure` (both), or `all`.
        protocols: Option<String>,
        /// Ciphers up to TLS 1.2, as OpenSSL writes them.
        ciphers: Option<String>,
        /// Cipher suites of TLS 1.3, with colons between them.
        tls13_ciphers: Option<String>,
    }
}

section! {
    /// What is bounded: clients, waits, memory.
    Limits "[limits]" {
        /// Clients at a time; one more is refused with SQLSTATE 53300.
        max_clients: usize = "1000",
        /// Time from accept to the end of authentication.
        login_timeout: Duration = "\"15s\"",
        /// Time a client waits for a server when all of its pool are in use.
        query_wait_timeout: Duration = "\"120s\"",
        /// Time a client is held while its cluster has no primary.
        hold_timeout: Duration = "\"30s\"",
        /// Clients held at a time while there is no primary; one more is told so at once.
        hold_clients: usize = "10000",
        /// Bytes kept of held clients together.
        hold_bytes: Size = "\"64MiB\"",
        /// Time a client may stay idle inside a transaction before it is closed.
        idle_transaction_timeout: Option<Duration> = "\"0s\"",
        /// Time a client may stay idle outside a transaction before it is closed.
        client_idle_timeout: Option<Duration> = "\"0s\"",
        /// Time a query may take before its client and server are closed.
        query_timeout: Option<Duration> = "\"0s\"",
        /// Time a transaction may take before its client and server are closed.
        transaction_timeout: Option<Duration> = "\"0s\"",
        /// Time an unused server is kept above `min_pool_size`.
        server_idle_timeout: Option<Duration> = "\"600s\"",
        /// Age at which a server is closed when it is given back.
        server_lifetime: Option<Duration> = "\"3600s\"",
        /// Time to connect and log in to a server.
        server_connect_timeout: Duration = "\"15s\"",
        /// Time clients get to end their transactions when pgsteady is asked to stop.
        shutdown_timeout: Duration = "\"30s\"",
        /// Prepared statements kept on each server; the least recently used one is closed for a new one.
        max_prepared_statements: usize = "200",
        /// Statement texts kept by each worker for routing and preparing.
        statement_cache_entries: usize = "10000",
        /// Bytes of those texts.
        statement_cache_bytes: Size = "\"32MiB\"",
        /// Longest statement that is read as a whole to decide its route; a longer one goes to the primary.
        max_query_bytes: Size = "\"1MiB\"",
    }
}

section! {
    /// How clients prove who they are.
    Auth "[auth]" {
        /// Method asked of clients.
        method: AuthMethod = "\"scram-sha-256\"",
        /// File with a line `"user" "secret"` for each user (PgBouncer's userlist.txt).
        users_file: Option<PathBuf>,
        /// Statement that looks a user up: one parameter, the name; two columns, name and secret. Set `query_user` to use
        /// it; the default also honours VALID UNTIL and NOLOGIN.
        query: Option<String>,
        /// User who runs the lookup.
        query_user: Option<String>,
        /// Password of that user.
        query_password: Option<Secret>,
        /// File whose first line is that password.
        query_password_file: Option<PathBuf>,
        /// Database in which the lookup runs; default: the one the client asks for.
        query_database: Option<String>,
        /// Rules for method `hba`, in the form of `pg_hba.conf`.
        hba_file: Option<PathBuf>,
        /// Maps of names for rules with `map=`, in the form of `pg_ident.conf`.
        ident_file: Option<PathBuf>,
        /// The LDAP server for method `ldap`, in the words of `pg_hba.conf`: `ldapserver=… ldapprefix=…`, or `ldapurl=…`.
        ldap_options: Option<String>,
        /// The rules for method `pam`: a file in `/etc/pam.d`.
        pam_service: String = "\"pgsteady\"",
        /// Users who may log in to the console (database `pgbouncer`) and do everything there, with commas between them.
        console_admins: Option<String>,
        /// Users who may look there, and no more.
        console_watchers: Option<String>,
    }
}

section! {
    /// A user, besides those of `users_file` and the lookup.
    User "[[user]]" {
        /// Name.
        name: String,
        /// Password, `md5…` hash or SCRAM verifier (`SCRAM-SHA-256$…`); absent: the secret comes from `users_file` or the
        /// lookup.
        password: Option<Secret>,
        /// Pooling mode for this user; default: the database's.
        pool_mode: Option<PoolMode>,
        /// Servers of each of this user's pools; default: the database's.
        pool_size: Option<usize>,
        /// Clients of this user at a time.
        max_clients: Option<usize>,
        /// Servers of this user at a time, in all its pools together.
        max_servers: Option<usize>,
        /// Servers of each of this user's pools for those who waited long, on top of `pool_size`; default: the database's.
        reserve_pool_size: Option<usize>,
        /// As `limits.query_timeout`, for this user.
        query_timeout: Option<Duration>,
        /// As `limits.transaction_timeout`, for this user.
        transaction_timeout: Option<Duration>,
        /// As `limits.idle_transaction_timeout`, for this user.
        idle_transaction_timeout: Option<Duration>,
        /// As `limits.client_idle_timeout`, for this user.
        client_idle_timeout: Option<Duration>,
    }
}

section! {
    /// What is written to standard error.
    Log "[log]" {
        /// Text or JSON.
        format: LogFormat = "\"text\"" [restart],
        /// Least level, and by module if wanted: `info`, or `info,proxy::pool=debug`.
        level: String = "\"info\"",
    }
}

section! {
    /// A cluster: the nodes that replicate one primary, and how it is watched.
    ClusterOptions "[cluster.NAME]" {
        /// Who promotes a standby when the primary is lost.
        managed: Managed = "\"pgsteady\"",
        /// Role with which pgsteady watches and acts.
        user: String = "\"pgsteady\"",
        /// Its password.
        password: Option<Secret>,
        /// File whose first line is its password.
        password_file: Option<PathBuf>,
        /// Database to which it connects.
        dbname: String = "\"postgres\"",
        /// Role with which standbys replicate; default: `user`.
        replication_user: Option<String>,
        /// Its password.
        replication_password: Option<Secret>,
        /// File whose first line is its password.
        replication_password_file: Option<PathBuf>,
        /// Folder in which the term and the rule are kept, unless `etcd` is given, and what happened; default: /var/lib/pgsteady/NAME.
        store: Option<PathBuf>,
        /// How many standbys must have flushed a commit before it is acknowledged (the k of `ANY k`).
        synchronous: u32 = "1",
        /// What happens when no standby is left.
        durability: Durability = "\"available\"",
        /// Time between probes of a node.
        probe_interval: Duration = "\"250ms\"",
        /// Time after which a probe is taken for lost.
        probe_timeout: Duration = "\"750ms\"",
        /// Time to wait while standbys still hear from a primary that this instance cannot reach.
        partition_grace: Duration = "\"5s\"",
        /// Time the WAL of the primary may stand still on its disk while transactions wait for it, before a standby is promoted.
        stall_grace: Duration = "\"4s\"",
        /// Time a crashed primary gets to recover by itself before a standby is promoted.
        crash_restart_grace: Duration = "\"3s\"",
    }
}

section! {
    /// etcd as the store of a cluster: for several instances of pgsteady, of which one acts at a time.
    EtcdOptions "[cluster.NAME.etcd]" {
        /// Its members, each "http://HOST:PORT" or "https://HOST:PORT".
        endpoints: Vec<Endpoint>,
        /// What the keys begin with; the cluster's name follows.
        prefix: String = "\"/pgsteady\"",
        /// User; none: etcd has no authentication.
        user: Option<String>,
        /// Its password.
        password: Option<Secret>,
        /// File whose first line is its password.
        password_file: Option<PathBuf>,
        /// Certificates (PEM) of the authorities that are trusted; default: the system's.
        ca: Option<PathBuf>,
        /// Certificate chain (PEM) shown to etcd.
        certificate: Option<PathBuf>,
        /// Private key (PEM) of that certificate.
        key: Option<PathBuf>,
        /// Time after which another instance acts in place of one that is not heard of; whole seconds, at least 2.
        lease: Duration = "\"3s\"",
    }
}

section! {
    /// A node of a cluster.
    NodeOptions "[[cluster.NAME.node]]" {
        /// Name; also its `application_name` as a standby.
        name: String,
        /// Host name, IP address, or directory of a Unix socket (begins with `/`).
        host: String,
        /// Port.
        port: u16 = "5432",
        /// Between standbys equally far on, the higher priority is promoted.
        priority: u16 = "100",
        /// Where it is; reads prefer the own zone.
        zone: Option<String>,
    }
}

section! {
    /// TLS towards servers: `[cluster.NAME.tls]` for a cluster, `[database.NAME.tls]` for an entry with a host.
    ServerTls "[cluster.NAME.tls], [database.NAME.tls]" {
        /// Whether TLS is used and what is checked, with libpq's meaning.
        sslmode: SslMode = "\"prefer\"",
        /// Certificates (PEM) of the authorities that sign the servers' certificates.
        ca: Option<PathBuf>,
        /// Certificate (PEM) shown to servers.
        certificate: Option<PathBuf>,
        /// Private key (PEM) of that certificate.
        key: Option<PathBuf>,
        /// Protocol versions, with commas between them: `tlsv1.2`, `tlsv1.3`, or `secure` (both), or `all`.
        protocols: Option<String>,
        /// Ciphers up to TLS 1.2, as OpenSSL writes them.
        ciphers: Option<String>,
        /// Cipher suites of TLS 1.3, with colons between them.
        tls13_ciphers: Option<String>,
    }
}

section! {
    /// A database that clients may ask for. `[database."*"]` is the entry for every name without one of its own.
    DatabaseOptions "[database.NAME]" {
        /// The cluster it is on; or `host` and `port`.
        cluster: Option<String>,
        /// Host name, IP address or directory of a Unix socket of a single server that nobody watches.
        host: Option<String>,
        /// Port of that server.
        port: Option<u16>,
        /// Name of the database on the server; default: the name the client asks for.
        dbname: Option<String>,
        /// Log in to servers as this user, whoever the client is.
        user: Option<String>,
        /// Password of that user.
        password: Option<Secret>,
        /// File whose first line is that password.
        password_file: Option<PathBuf>,
        /// How long a client keeps a server.
        pool_mode: PoolMode = "\"transaction\"",
        /// Servers of a pool (one pool for each database entry, user and node).
        pool_size: usize = "20",
        /// Servers kept even when unused.
        min_pool_size: usize = "0",
        /// Time a client waits for a server; default: `limits.query_wait_timeout`.
        max_wait: Option<Duration>,
        /// Where transactions go.
        route: Route = "\"auto\"",
        /// A replica further behind than this is not used.
        max_lag: Duration = "\"10s\"",
        /// In a cluster that pgsteady manages: each commit's transaction id is asked for along with it, so that a commit whose
        /// answer is lost in a failover can be looked up on the new primary, and the client is told what became of it.
        resolve_commits: bool = "true",
        /// In a cluster that pgsteady manages: what happens to a session that sets `synchronous_commit` below `on`.
        synchronous_commit: SynchronousCommit = "\"refuse\"",
    }
}

impl ServerTls {
    /// What holds when the file has no section for it.
    pub(super) fn none_given() -> Self {
        Self {
            sslmode: SslMode::Prefer,
            ca: None,
            certificate: None,
            key: None,
            protocols: None,
            ciphers: None,
            tls13_ciphers: None,
        }
    }
}
