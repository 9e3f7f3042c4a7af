//! The command line: which command, which file, which exit status. What a command does is elsewhere.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{self, Config, DEFAULT_PATHS};
use crate::control;
use crate::pgbouncer;

/// Exit status after a failure at work.
const FAILED: u8 = 1;
/// Exit status when the command line or the configuration is wrong (clap's own status for usage).
const MISUSED: u8 = 2;

/// One connection string for PostgreSQL that stays up: pooler, router and failover in one program.
#[derive(Debug, Parser)]
#[command(name = "pgsteady", version, arg_required_else_help = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  pgsteady check pgsteady.toml          say what is wrong in a configuration, and what to write instead
  pgsteady run -c pgsteady.toml         serve clients
  pgsteady status                       show the running pgsteady's clusters, and the latest failovers
  pgsteady switchover --to n2           make n2 the primary
  pgsteady failover                     what to do when a failover is short of standbys
  pgsteady drill postgres://me@localhost:6432/app
                                        switch over under load, and report what it cost
  pgsteady dev                          a primary and two standbys to play with; nothing is left afterwards
  pgsteady dev --drill 3                kill -9 its primary three times under load, and report
  psql 'host=localhost port=6432 dbname=app user=me'
  kill -HUP $(pidof pgsteady)           read the configuration and the certificates again
  kill -TERM $(pidof pgsteady)          stop when the clients' transactions have ended
  pgsteady import pgbouncer.ini         say the same in pgsteady.toml
  pgsteady docs config > config.md      every option with its default

Exit status: 0 done; 1 failed at work; 2 the command line or the configuration is wrong.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve clients until SIGTERM; SIGHUP reads the configuration again.
    Run(RunArgs),
    /// Check a configuration and the files it names; exit status 1 if something is wrong.
    Check(CheckArgs),
    /// Run a throwaway cluster on this machine with the proxy over it; with --drill, kill its primary and report.
    Dev(crate::dev::DevArgs),
    /// Run PostgreSQL as a node of a cluster: make or copy its data, bring an old primary back as a standby.
    Node(crate::node::NodeArgs),
    /// Do as PgBouncer: `pgsteady pgbouncer [OPTION]... CONFIG_FILE`, or by a link of that name to this program.
    #[command(disable_help_flag = true, disable_version_flag = true)]
    Pgbouncer(PgbouncerArgs),
    /// Print what a pgbouncer.ini says as pgsteady.toml, with a line for each thing that will be different.
    Import(ImportArgs),
    /// Show how the clusters of a running pgsteady are; exit status 1 if there is no primary.
    Status(control::StatusArgs),
    /// Make another node primary, in peace: new transactions wait, open ones end, and nothing is lost.
    Switchover(control::SwitchoverArgs),
    /// Go on after a loss from which no standby is proven to have everything: the one command that may lose commits.
    Failover(control::FailoverArgs),
    /// Change or lose the primary of your own cluster under load, and report the write pause and what was lost.
    Drill(control::DrillArgs),
    /// Print a reference page as Markdown.
    Docs(DocsArgs),
}

#[derive(Debug, Args)]
struct PgbouncerArgs {
    /// PgBouncer's own arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    arguments: Vec<OsString>,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// The configuration; default: ./pgsteady.toml, then /etc/pgsteady/pgsteady.toml.
    #[arg(short, long, value_name = "FILE", env = "PGSTEADY_CONFIG")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// The configuration; default: ./pgsteady.toml, then /etc/pgsteady/pgsteady.toml.
    #[arg(value_name = "FILE", env = "PGSTEADY_CONFIG")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ImportArgs {
    /// PgBouncer's configuration.
    #[arg(value_name = "PGBOUNCER_INI")]
    file: PathBuf,
}

#[derive(Debug, Args)]
struct DocsArgs {
    /// Which page.
    page: Page,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Page {
    /// The options of pgsteady.toml.
    Config,
}

/// Does what the command line says.
#[must_use]
pub fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let name = arguments.next();
    if pgbouncer::is_called(name.as_deref()) {
        return pgbouncer::main(&name.unwrap_or_default().to_string_lossy(), arguments);
    }
    match Cli::parse().command {
        Command::Pgbouncer(PgbouncerArgs { arguments }) => pgbouncer::main("pgbouncer", arguments.into_iter()),
        Command::Run(args) => run(args.config),
        Command::Check(args) => check(args.config),
        Command::Dev(args) => crate::dev::run(&args),
        Command::Node(args) => crate::node::run(args),
        Command::Status(args) => asked(control::status(&args, load)),
        Command::Switchover(args) => asked(control::switchover(&args, load)),
        Command::Failover(args) => asked(control::failover(&args, load)),
        Command::Drill(args) => asked(control::drill(&args, load)),
        Command::Import(ImportArgs { file }) => match pgbouncer::import(&file) {
            Ok(text) => {
                print!("{text}");
                ExitCode::SUCCESS
            }
            Err(said) => fail(FAILED, &said),
        },
        Command::Docs(DocsArgs { page: Page::Config }) => {
            print!("{}", config::reference());
            ExitCode::SUCCESS
        }
    }
}

fn run(file: Option<PathBuf>) -> ExitCode {
    let config = match load(file) {
        Ok(config) => Arc::new(config),
        Err(said) => return fail(MISUSED, &said),
    };
    let log = match crate::log::start(&config.log) {
        Ok(log) => log,
        Err(said) => return fail(MISUSED, &format!("log.level: {said}")),
    };
    for warning in &config.warnings {
        tracing::warn!("{}", warning.text(&config.file));
    }
    match crate::run::run(&config, &log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(said) => fail(FAILED, &said),
    }
}

/// What became of a command to a running pgsteady.
fn asked(outcome: Result<bool, String>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILED),
        Err(said) => fail(FAILED, &said),
    }
}

fn check(file: Option<PathBuf>) -> ExitCode {
    let config = match load(file) {
        Ok(config) => config,
        Err(said) => return fail(FAILED, &said),
    };
    let found = crate::check::files(&config);
    for warning in &config.warnings {
        eprintln!("warning: {}", warning.text(&config.file));
    }
    if found.is_empty() {
        println!("{}: right: {config}", config.file.display());
        return ExitCode::SUCCESS;
    }
    fail(FAILED, &found.join("\n"))
}

fn load(file: Option<PathBuf>) -> Result<Config, String> {
    let file = match file {
        Some(file) => file,
        None => found().ok_or_else(|| format!("no configuration: there is no {}", DEFAULT_PATHS.join(" and no ")))?,
    };
    Config::load(&file).map_err(|errors| errors.to_string())
}

/// The first of the default files that exists.
fn found() -> Option<PathBuf> {
    DEFAULT_PATHS.into_iter().map(Path::new).find(|path| path.exists()).map(Path::to_owned)
}

fn fail(status: u8, said: &str) -> ExitCode {
    for line in said.lines() {
        // A remedy stands below its error, indented.
        if line.starts_with(' ') { eprintln!("{line}") } else { eprintln!("pgsteady: {line}") }
    }
    ExitCode::from(status)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_says_how_to_begin_and_the_exit_status() {
        let help = Cli::command().render_long_help().to_string();
        for said in ["pgsteady run -c pgsteady.toml", "Exit status: 0 done", "check", "docs"] {
            assert!(help.contains(said), "{said} is not in:\n{help}");
        }
    }
}
