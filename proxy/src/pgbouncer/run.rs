//! The life of the program under PgBouncer's name: start, signals, reload, end.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::sleep;

use super::cli::{Arguments, parts};
use super::load::{Grave, Loaded, Said};
use super::log::{Level, Log, say};
use super::process::{self, Pidfile};
use super::{SETTINGS, Settings, VERSION};
use crate::config::Config;
use crate::serve::Proxy;
use crate::tls::TlsState;

/// Between two looks at whether the last client has gone.
const END_POLL: Duration = Duration::from_millis(20);

/// Runs until a signal or the console ends it.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let log = match Log::start(arguments.verbose, arguments.quiet || process::is_in_background()) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    match start(arguments, &log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            say(Level::Fatal, format_args!("{why}"));
            ExitCode::FAILURE
        }
    }
}

/// The way to the first client, in PgBouncer's order: whoever reads the log meets its first trouble first.
fn start(arguments: &Arguments, log: &Log) -> Result<(), String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let (good, loaded, said) = Loaded::new(&arguments.file, arguments.verbose).read();
    tell(&said);
    if !good {
        return Err("cannot load config file".to_owned());
    }
    let config = Arc::new(loaded.config().map_err(|error| error.to_string())?);
    log.reopen(&loaded.settings);
    if let Err((_, error)) = TlsState::load(&config) {
        say(Level::Error, format_args!("{error}"));
        return Err("TLS setup failed".to_owned());
    }
    let settings = &loaded.settings;
    process::take_rights(arguments.user.as_deref().or(settings.user.as_deref()))?;
    if arguments.reboot {
        say(Level::Warning, format_args!("Online restart is deprecated, use so_reuseport instead"));
    }
    if unix_socket(settings).is_some_and(|socket| process::is_in_use(&socket)) {
        return Err("unix socket is in use, cannot continue".to_owned());
    }
    if arguments.reboot {
        say(Level::Log, format_args!("old process not found, try to continue normally"));
    }
    process::check_pidfile(&settings.pidfile)?;
    if arguments.daemon && !process::is_in_background() {
        if settings.pidfile.is_empty() {
            return Err("daemon needs pidfile configured".to_owned());
        }
        return process::to_background(&program);
    }
    if process::is_in_background() {
        process::own_session()?;
    }
    warn_of_inert(&loaded);
    limits(&loaded);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(serve(config, log))
}

fn tell(said: &[Said]) {
    for (grave, text) in said {
        let level = if *grave == Grave::Error { Level::Error } else { Level::Warning };
        say(level, format_args!("{text}"));
    }
}

/// Settings of libraries that are not used here are accepted, but not in silence.
fn warn_of_inert(loaded: &Loaded) {
    for setting in SETTINGS {
        let Some(why) = setting.inert else { continue };
        let shown = setting.shown(&loaded.settings);
        if shown.as_deref() != setting.default {
            say(Level::Warning, format_args!("{} has no effect: {why}", setting.name));
        }
    }
}

/// The file of the Unix socket, if there is to be one.
fn unix_socket(settings: &Settings) -> Option<PathBuf> {
    let directory = settings.unix_socket_dir.as_str();
    let has_file = !directory.is_empty() && !directory.starts_with('@');
    has_file.then(|| Path::new(directory).join(format!(".s.PGSQL.{}", settings.listen_port)))
}

/// Says how many descriptors there are, and how many may be needed.
fn limits(loaded: &Loaded) {
    let (soft, hard) = process::descriptors();
    let settings = &loaded.settings;
    let users = i64::try_from(loaded.users.len()).unwrap_or(i64::MAX).max(1);
    let of_databases = loaded.databases.values().map(|line| {
        let size = i64::from(line.pool_size.filter(|size| *size >= 0).unwrap_or(settings.default_pool_size));
        if line.user.is_some() { size } else { size.saturating_mul(users) }
    });
    // Ten to be sure, and two for the console's own pool.
    let needed = of_databases.fold(i64::from(settings.max_client_conn) + 12, i64::saturating_add);
    let text = format_args!(
        "kernel file descriptor limit: {soft} (hard: {hard}); max_client_conn: {}, max expected fd use: {needed}",
        settings.max_client_conn
    );
    say(Level::Log, text);
}

async fn serve(config: Arc<Config>, log: &Log) -> Result<(), String> {
    let mut signals = Signals::new().map_err(|error| error.to_string())?;
    let proxy = Proxy::start(&config, &HashMap::new())?;
    let pidfile = config.dialect.pgbouncer().map_or("", |loaded| &loaded.settings.pidfile);
    let _pidfile = Pidfile::write(pidfile)?;
    say(Level::Log, format_args!("process up: {VERSION}, {}", parts().join(", ")));
    let mut current = config;
    let mut ending = false;
    loop {
        tokio::select! {
            name = signals.next() => match name {
                "SIGHUP" => current = reload(&proxy, current, log),
                "SIGQUIT" => {
                    say(Level::Log, format_args!("got SIGQUIT, fast exit"));
                    return Ok(());
                }
                name if ending => {
                    say(Level::Log, format_args!("got {name} while shutting down, fast exit"));
                    return Ok(());
                }
                name => {
                    let waits = if name == "SIGTERM" {
                        "waiting for all clients disconnect"
                    } else {
                        "waiting for all servers connections to be released"
                    };
                    say(Level::Log, format_args!("got {name}, shutting down, {waits}"));
                    proxy.drain();
                    ending = true;
                }
            },
            () = sleep(END_POLL), if ending => {
                if proxy.is_drained() {
                    return Ok(());
                }
            }
        }
    }
}

/// Reads the configuration again; what can be used of it is.
fn reload(proxy: &Proxy, current: Arc<Config>, log: &Log) -> Arc<Config> {
    say(Level::Log, format_args!("got SIGHUP, re-reading config"));
    let Some(loaded) = current.dialect.pgbouncer() else { return current };
    let (good, loaded, said) = loaded.read();
    tell(&said);
    if !good {
        say(Level::Warning, format_args!("config file loading failed"));
    }
    log.reopen(&loaded.settings);
    let taken = loaded.config().map_err(|error| error.to_string()).map(Arc::new);
    match taken.and_then(|new| proxy.reload(new.clone()).map(|_| new)) {
        Ok(new) => new,
        Err(why) => {
            say(Level::Error, format_args!("{why}"));
            current
        }
    }
}

/// The signals that mean something.
struct Signals {
    all: Vec<(&'static str, Signal)>,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        let known = [
            ("SIGHUP", SignalKind::hangup()),
            ("SIGTERM", SignalKind::terminate()),
            ("SIGINT", SignalKind::interrupt()),
            ("SIGQUIT", SignalKind::quit()),
        ];
        let all = known.into_iter().map(|(name, kind)| Ok((name, signal(kind)?))).collect::<std::io::Result<_>>()?;
        Ok(Self { all })
    }

    /// The next of them.
    async fn next(&mut self) -> &'static str {
        std::future::poll_fn(|cx| {
            for (name, signal) in &mut self.all {
                if signal.poll_recv(cx).is_ready() {
                    return std::task::Poll::Ready(*name);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}
