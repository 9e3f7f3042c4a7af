//! From the text of a file to a checked `Config`: reads each section, then holds one option against another.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::problem::{Problem, Problems};
use super::section::Table;
use super::{Auth, AuthMethod, Config, ConfigErrors, Dialect, Limits, Listen, ListenTls, Log, Secret, SslMode, User};
use toml::de::DeTable;

/// Longest password file that is read.
const MAX_PASSWORD_FILE_BYTES: u64 = 64 << 10;
/// PostgreSQL's identifiers are cut at 63 bytes (NAMEDATALEN - 1); a longer name never matches.
const MAX_NAME_BYTES: usize = 63;
/// Workers that one process may have.
const MAX_WORKERS: usize = 256;

pub(super) fn build(text: &str, file: &Path) -> Result<Config, ConfigErrors> {
    let (document, syntax) = DeTable::parse_recoverable(text);
    let mut problems = Problems::new(text);
    for error in syntax {
        problems.error(&error.span().unwrap_or(0..0), "", error.message(), "");
    }
    if !problems.errors.is_empty() {
        return Err(failed(file, problems));
    }
    let root = Table::new(String::new(), 0..0, document.get_ref());
    let config = Reader { problems: &mut problems, folder: file.parent().unwrap_or(Path::new("")) }.config(root);
    match config {
        Some(mut config) if problems.errors.is_empty() => {
            file.clone_into(&mut config.file);
            config.warnings = problems.warnings;
            config.warnings.extend(open_secrets(&config));
            Ok(config)
        }
        _ => Err(failed(file, problems)),
    }
}

fn failed(file: &Path, problems: Problems<'_>) -> ConfigErrors {
    let mut errors = problems.errors;
    errors.sort_by_key(|e| e.place);
    ConfigErrors { file: file.to_owned(), errors }
}

/// A warning if the file holds a secret that others on this machine can read.
fn open_secrets(config: &Config) -> Option<Problem> {
    use std::os::unix::fs::PermissionsExt;

    let own = config.auth.query_password.is_some() || config.users.values().any(|u| u.password.is_some());
    let forced = config.databases.values().chain(&config.any_database).filter_map(|d| d.forced.as_ref());
    let clusters = config.clusters.values().flat_map(|c| [&c.login, &c.replication]);
    if !own && !forced.chain(clusters).any(|login| login.password.is_some()) {
        return None;
    }
    let mode = std::fs::metadata(&config.file).ok()?.permissions().mode();
    let remedy = format!("chmod 600 {}", config.file.display());
    (mode & 0o077 != 0).then(|| Problem {
        place: None,
        key: String::new(),
        what: format!("holds passwords and can be read by others (mode {:04o})", mode & 0o777),
        remedy,
    })
}

/// Reads sections and notes their problems.
pub(super) struct Reader<'p, 'i> {
    pub(super) problems: &'p mut Problems<'i>,
    /// Relative paths begin here.
    folder: &'p Path,
}

impl Reader<'_, '_> {
    fn config(&mut self, mut root: Table<'_, '_>) -> Option<Config> {
        let auth_place = root.place("auth");
        let listen = self.listen(&mut root);
        let limits = self.plain(&mut root, "limits", Limits::read);
        let auth = self.auth(&mut root);
        let log = self.log(&mut root);
        let users = self.users(&mut root);
        let clusters = self.clusters(&mut root);
        let max_wait = limits.as_ref().map_or(Duration::ZERO, |limits| limits.query_wait_timeout);
        let mut databases = self.databases(&mut root, &clusters, max_wait);
        root.finish(self.problems);
        let (listen, listen_tls) = listen?;
        let (auth, auth_query_password) = auth?;
        self.open_doors(&auth_place, &listen, &listen_tls, auth.method);
        let any_database = databases.remove("*");
        let clusters = clusters.into_iter().filter_map(|(name, cluster)| Some((name, cluster?))).collect();
        Some(Config {
            file: PathBuf::new(),
            listen,
            listen_tls,
            limits: limits?,
            auth,
            auth_query_password,
            users,
            log: log?,
            clusters,
            databases,
            any_database,
            warnings: Vec::new(),
            dialect: Dialect::Native,
        })
    }

    fn log(&mut self, root: &mut Table<'_, '_>) -> Option<Log> {
        let mut table = self.section(root, "log");
        let log = Log::read(&mut table, self.problems);
        if let Some(Err(said)) = log.as_ref().map(|log| crate::log::filter(&log.level)) {
            self.error(
                &table,
                "level",
                &said,
                "allowed: error, warn, info, debug, trace, or by module: info,proxy=debug",
            );
        }
        table.finish(self.problems);
        log
    }

    /// A section that stands for itself; one that is absent is made of defaults.
    fn plain<T>(
        &mut self,
        root: &mut Table<'_, '_>,
        key: &'static str,
        read: fn(&mut Table<'_, '_>, &mut Problems<'_>) -> Option<T>,
    ) -> Option<T> {
        let mut table = self.section(root, key);
        let section = read(&mut table, self.problems);
        table.finish(self.problems);
        section
    }

    pub(super) fn section<'t, 'i>(&mut self, root: &mut Table<'t, 'i>, key: &'static str) -> Table<'t, 'i> {
        let absent = Table::empty(root.full(key), root.span.clone());
        root.table(key, self.problems).unwrap_or(absent)
    }

    fn listen(&mut self, root: &mut Table<'_, '_>) -> Option<(Listen, ListenTls)> {
        let mut table = self.section(root, "listen");
        let mut tls_table = self.section(&mut table, "tls");
        let tls = ListenTls::read(&mut tls_table, self.problems).map(|tls| self.listen_tls(&tls_table, tls));
        tls_table.finish(self.problems);
        let listen = Listen::read(&mut table, self.problems);
        if let Some(listen) = &listen {
            if listen.address.is_empty() && listen.unix_socket_directory.is_none() {
                self.error(&table, "address", "is empty and there is no Unix socket", "give one of the two");
            }
            if listen.workers == 0 || listen.workers > MAX_WORKERS {
                self.error(&table, "workers", "is out of range", &format!("allowed: 1 to {MAX_WORKERS}"));
            }
            if listen.workers > 1 && !listen.share_ports {
                self.error(
                    &table,
                    "share_ports",
                    "is off with several workers",
                    "each worker listens on the same ports",
                );
            }
        }
        table.finish(self.problems);
        Some((listen?, tls?))
    }

    fn listen_tls(&mut self, table: &Table<'_, '_>, mut tls: ListenTls) -> ListenTls {
        for path in [&mut tls.certificate, &mut tls.key, &mut tls.ca] {
            self.absolute(path);
        }
        if tls.sslmode != SslMode::Disable {
            for (key, value) in [("certificate", &tls.certificate), ("key", &tls.key)] {
                if value.is_none() {
                    self.error(table, key, "is missing", "TLS towards clients needs certificate and key");
                }
            }
        }
        if matches!(tls.sslmode, SslMode::VerifyCa | SslMode::VerifyFull) && tls.ca.is_none() {
            self.error(table, "ca", "is missing", "checking client certificates needs ca");
        }
        self.files_exist(table, &[("certificate", &tls.certificate), ("key", &tls.key), ("ca", &tls.ca)]);
        tls
    }

    fn auth(&mut self, root: &mut Table<'_, '_>) -> Option<(Auth, Option<Secret>)> {
        let mut table = self.section(root, "auth");
        let auth = Auth::read(&mut table, self.problems).map(|mut auth| {
            self.absolute(&mut auth.users_file);
            self.absolute(&mut auth.query_password_file);
            self.files_exist(&table, &[("users_file", &auth.users_file)]);
            for (key, is_set) in [
                ("query", auth.query.is_some()),
                ("query_password", auth.query_password.is_some()),
                ("query_password_file", auth.query_password_file.is_some()),
                ("query_database", auth.query_database.is_some()),
            ] {
                if is_set && auth.query_user.is_none() {
                    self.error(&table, key, "has no effect without query_user", "name the user who runs the lookup");
                }
            }
            auth
        });
        let password = auth.as_ref().and_then(|auth| {
            let given = (auth.query_password.clone(), auth.query_password_file.as_deref());
            self.password(&table, ["query_password", "query_password_file"], given)
        });
        table.finish(self.problems);
        Some((auth?, password))
    }

    /// Warns of ways in that need no password, or show it to the network.
    fn open_doors(&mut self, auth: &Range<usize>, listen: &Listen, tls: &ListenTls, method: AuthMethod) {
        let local = |host: &str| host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        let Some(address) = listen.address.iter().find(|address| !local(&address.host)) else { return };
        let encrypted = matches!(tls.sslmode, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull);
        let what = match method {
            AuthMethod::Trust => format!("lets everybody in who reaches {address}"),
            AuthMethod::Password if !encrypted => format!("sends passwords to {address} in the clear"),
            _ => return,
        };
        let remedy = "use method = \"scram-sha-256\", or listen.tls.sslmode = \"require\" for password";
        self.problems.warn(auth, "auth.method", what, remedy);
    }

    fn users(&mut self, root: &mut Table<'_, '_>) -> BTreeMap<Arc<str>, Arc<User>> {
        let mut users = BTreeMap::new();
        for mut table in root.tables("user", self.problems) {
            let user = User::read(&mut table, self.problems);
            if let Some(user) = user {
                self.name(&table, "name", &user.name);
                let name: Arc<str> = user.name.as_str().into();
                if users.insert(name, Arc::new(user)).is_some() {
                    self.error(&table, "name", "is given twice", "keep one [[user]] for each name");
                }
            }
            table.finish(self.problems);
        }
        users
    }

    pub(super) fn name(&mut self, table: &Table<'_, '_>, key: &str, name: &str) {
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            self.error(table, key, "has a wrong length", &format!("allowed: 1 to {MAX_NAME_BYTES} bytes"));
        }
    }

    /// A password given as itself or in a file; both is an error.
    pub(super) fn password(
        &mut self,
        table: &Table<'_, '_>,
        keys: [&str; 2],
        given: (Option<Secret>, Option<&Path>),
    ) -> Option<Secret> {
        let (password, file) = given;
        let Some(file) = file else { return password };
        if password.is_some() {
            self.error(table, keys[1], &format!("is given beside {}", keys[0]), "keep one of the two");
            return None;
        }
        match read_password(file) {
            Ok(secret) => Some(secret),
            Err(what) => {
                self.error(table, keys[1], &format!("{}: {what}", file.display()), "its first line is the password");
                None
            }
        }
    }

    pub(super) fn absolute(&self, path: &mut Option<PathBuf>) {
        if let Some(path) = path {
            *path = self.folder.join(&*path);
        }
    }

    pub(super) fn files_exist(&mut self, table: &Table<'_, '_>, files: &[(&str, &Option<PathBuf>)]) {
        for (key, path) in files {
            let Some(path) = path else { continue };
            if let Err(e) = std::fs::File::open(path) {
                self.error(table, key, &format!("{}: {e}", path.display()), "give a file that this user can read");
            }
        }
    }

    pub(super) fn error(&mut self, table: &Table<'_, '_>, key: &str, what: &str, remedy: &str) {
        let place: Range<usize> = table.place(key);
        self.problems.error(&place, &table.full(key), what, remedy);
    }
}

/// The first line of a file.
fn read_password(file: &Path) -> Result<Secret, String> {
    let size = std::fs::metadata(file).map_err(|e| e.to_string())?.len();
    if size > MAX_PASSWORD_FILE_BYTES {
        return Err(format!("is longer than {MAX_PASSWORD_FILE_BYTES} bytes"));
    }
    let text = std::fs::read_to_string(file).map_err(|e| e.to_string())?;
    match text.lines().next().unwrap_or("") {
        "" => Err("its first line is empty".to_owned()),
        line if line.contains('\0') => Err("contains a zero byte".to_owned()),
        line => Ok(Secret::new(line)),
    }
}
