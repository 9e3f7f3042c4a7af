//! `pgsteady node`: the entry point of a database container, or the agent beside a PostgreSQL. It makes or copies the data,
//! starts PostgreSQL, and brings an old primary back as a standby. It promotes nobody: that is the monitor's work.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use topology::node::{Account, LocalNode, Log, NodeError, Programs, Site, Upstream};

use crate::config::Secret;

mod decide;
mod make;
mod peers;
mod supervise;

use peers::{Peer, Peers};

/// What `pgsteady node` is told.
#[derive(Debug, Clone, Args)]
pub struct NodeArgs {
    /// Name of this node; one of --peers.
    #[arg(long, env = "PGSTEADY_NODE_NAME", value_name = "NAME")]
    name: String,
    /// All nodes, this one too, as NAME=HOST:PORT,…; the first makes the cluster if there is none yet.
    #[arg(long, env = "PGSTEADY_PEERS", value_name = "LIST")]
    peers: String,
    /// The data directory. The folder above it is written to as well.
    #[arg(long, env = "PGDATA", value_name = "FOLDER")]
    data: PathBuf,
    /// Folder of PostgreSQL's programs (15 or later); default: PATH, then Debian's folders, newest first.
    #[arg(long, env = "PGSTEADY_BIN_DIR", value_name = "FOLDER")]
    bin_dir: Option<PathBuf>,
    /// Addresses on which PostgreSQL listens (`listen_addresses`).
    #[arg(long, env = "PGSTEADY_LISTEN", value_name = "ADDRESSES", default_value = "*")]
    listen: String,
    /// The superuser.
    #[arg(long, env = "POSTGRES_USER", value_name = "NAME", default_value = "postgres")]
    superuser: String,
    /// The superuser's password.
    #[arg(long, env = "POSTGRES_PASSWORD", value_name = "PASSWORD", hide_env_values = true, value_parser = secret)]
    password: Option<Secret>,
    /// File whose first line is the superuser's password.
    #[arg(long, env = "POSTGRES_PASSWORD_FILE", value_name = "FILE", conflicts_with = "password")]
    password_file: Option<PathBuf>,
    /// The role with which standbys follow and are rewound; made with the cluster.
    #[arg(long, env = "PGSTEADY_REPLICATION_USER", value_name = "NAME", default_value = "replicator")]
    replication_user: String,
    /// That role's password; default: the superuser's.
    #[arg(
        long,
        env = "PGSTEADY_REPLICATION_PASSWORD",
        value_name = "PASSWORD",
        hide_env_values = true,
        value_parser = secret
    )]
    replication_password: Option<Secret>,
    /// Standbys that must have a commit before it is acknowledged, in a cluster that is made here (the k of `ANY k`).
    #[arg(long, env = "PGSTEADY_SYNCHRONOUS", value_name = "COUNT", default_value_t = 1)]
    synchronous: u16,
    /// Start read-write although most peers do not answer. For a person who knows that none of them was promoted.
    #[arg(long)]
    alone: bool,
}

/// Exit status if PostgreSQL could not be run.
const FAILED: u8 = 1;
/// Exit status if the command line is wrong.
const MISUSED: u8 = 2;
/// Longest file with a password that is read.
const MAX_PASSWORD_BYTES: usize = 4096;

/// All that is known before anything is started.
struct Plan {
    node: LocalNode,
    peers: Peers,
    own: Peer,
    password: String,
    replication_user: String,
    replication_password: String,
    synchronous: u16,
    alone: bool,
}

#[expect(clippy::unnecessary_wraps, reason = "clap's form of a parser")]
fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(text))
}

/// Runs until PostgreSQL is asked to stop. As root it first gives up root's rights, for itself and for all it starts.
#[must_use]
pub fn run(args: NodeArgs) -> ExitCode {
    let plan = match plan(args) {
        Ok(plan) => plan,
        Err(said) => return fail(MISUSED, &said),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(FAILED, &format!("no runtime: {error}")),
    };
    match runtime.block_on(Box::pin(supervise::run(plan))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(FAILED, &error.to_string()),
    }
}

fn plan(args: NodeArgs) -> Result<Plan, String> {
    let mut peers = peers::parse(&args.peers)?;
    let place = peers.iter().position(|peer| peer.name == args.name);
    let place = place.ok_or_else(|| format!("--peers does not name this node, {}", args.name))?;
    let first = place == 0;
    let own = peers.remove(place);
    let password = match (args.password, args.password_file) {
        (Some(password), _) => password.reveal().to_owned(),
        (None, Some(file)) => first_line(&file)?,
        (None, None) => {
            return Err("the superuser has no password: set POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE".into());
        }
    };
    let replication_password =
        args.replication_password.map_or_else(|| password.clone(), |secret| secret.reveal().to_owned());
    let programs = Programs::find(args.bin_dir.as_deref()).map_err(|error| error.to_string())?;
    let home = args.data.parent().filter(|home| home.is_absolute() && home.file_name().is_some());
    let home = home
        .ok_or_else(|| format!("PGDATA {} is not an absolute path below a folder of its own", args.data.display()))?;
    let sockets = home.join("run");
    settle(home, &sockets).map_err(|error| error.to_string())?;
    let account = Account::choose().map_err(|error| error.to_string())?;
    let passfile = home.join("pgpass");
    let entry = passfile_entry(&args.replication_user, &replication_password)?;
    account.write(&passfile, &entry).map_err(|error| error.to_string())?;
    let site = Site {
        name: args.name,
        data: args.data.clone(),
        sockets,
        listen: args.listen,
        port: own.port,
        superuser: args.superuser.clone(),
        passfile: Some(passfile),
        log: Log::Inherit,
    };
    let node = LocalNode::new(programs, account, site);
    let peers = Peers { others: peers, first, superuser: args.superuser, password: password.clone() };
    let (replication_user, synchronous, alone) = (args.replication_user, args.synchronous, args.alone);
    Ok(Plan { node, peers, own, password, replication_user, replication_password, synchronous, alone })
}

impl Plan {
    /// A peer, as a standby follows it.
    fn upstream(&self, peer: &Peer) -> Upstream {
        let password = Some(self.replication_password.clone());
        Upstream { address: peer.address(), user: self.replication_user.clone(), password }
    }

    /// This node, as we ask it ourselves.
    fn own_upstream(&self) -> Upstream {
        Upstream { address: self.node.socket(), user: self.node.site().superuser.clone(), password: None }
    }
}

/// Makes the folders and, if we are root, becomes whom PostgreSQL runs as: from then on nothing here has more rights than
/// the database.
fn settle(home: &Path, sockets: &Path) -> Result<(), NodeError> {
    use std::os::unix::fs::DirBuilderExt;
    let account = Account::choose()?;
    let make = |path: &Path| {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|error| NodeError::Io { what: "make", path: path.to_owned(), error })?;
        account.own(path)
    };
    make(home)?;
    make(sockets)?;
    let Some((uid, gid)) = account.ids() else { return Ok(()) };
    let become_it = || -> nix::Result<()> {
        let gid = Gid::from_raw(gid);
        setgroups(&[gid])?;
        setgid(gid)?;
        setuid(Uid::from_raw(uid))
    };
    become_it().map_err(|error| NodeError::Io {
        what: "give up root's rights for",
        path: home.to_owned(),
        error: error.into(),
    })
}

fn first_line(file: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("read {}: {error}", file.display()))?;
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() || line.len() > MAX_PASSWORD_BYTES {
        return Err(format!("{}: its first line is not a password", file.display()));
    }
    Ok(line.to_owned())
}

/// A line of a password file (PostgreSQL 34.16): colons and backslashes are escaped, a line break cannot be.
fn passfile_entry(user: &str, password: &str) -> Result<String, String> {
    if [user, password].iter().any(|text| text.contains(['\n', '\r', '\0'])) {
        return Err("a name or password with a line break in it cannot be used".into());
    }
    let escaped = |text: &str| text.replace('\\', "\\\\").replace(':', "\\:");
    Ok(format!("*:*:*:{}:{}\n", escaped(user), escaped(password)))
}

fn say(node: &str, line: &str) {
    // a node goes on although nobody reads what it says
    let _ = writeln!(std::io::stderr(), "pgsteady node {node}: {line}");
}

fn fail(status: u8, said: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "pgsteady node: {said}");
    ExitCode::from(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_file_is_escaped() {
        assert_eq!(passfile_entry("r", r"a:b\c"), Ok("*:*:*:r:a\\:b\\\\c\n".into()));
        assert!(passfile_entry("r", "a\nb").is_err());
    }
}
