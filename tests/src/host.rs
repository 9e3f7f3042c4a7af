//! Hosts whose links can really be cut: each a network namespace with an address of its own, all on one bridge that
//! this process reaches too. Needs root. Everything is gone with the last process that uses it.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::Signal;

use crate::disk::Disk;
use crate::folder::Folder;
use crate::process;
use crate::programs::{as_account, run};

/// The network of all [`Network`]s: 10.77.NUMBER.HOST. Servers of the tests let it in with a password.
pub const RANGE: &str = "10.77.0.0/16";
/// This process on each of the networks.
const OURS: u8 = 254;
/// Rules of a host without any fault.
const NO_FAULT: &str = "\
table inet faults
delete table inet faults
table inet faults {
    chain in { type filter hook input priority 0; }
    chain out { type filter hook output priority 0; }
}
";

/// A bridge and the hosts on it.
#[derive(Debug)]
pub struct Network {
    number: u8,
    bridge: Arc<File>,
    hosts: u8,
    /// A name in the abstract namespace, as with a port: the number is ours until it is dropped.
    _claim: UnixListener,
}

/// Where a server runs.
#[derive(Debug, Clone)]
pub struct Host {
    address: Ipv4Addr,
    /// `None`: where this process is.
    namespace: Option<Arc<File>>,
    /// That of the bridge, and the name of our port there.
    port: Option<(Arc<File>, String)>,
    /// Of its servers' WAL; `None`: the disk of everything else.
    disk: Option<Arc<Disk>>,
}

/// Which packets between a host and another are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// All.
    Both,
    /// Those that it sends.
    Out,
}

impl Network {
    /// An empty one.
    ///
    /// # Panics
    /// When this process may not make network namespaces.
    #[must_use]
    pub fn new() -> Self {
        assert!(nix::unistd::Uid::effective().is_root(), "network namespaces need root: run this test as root");
        let (number, claim) = claim();
        let bridge = namespace();
        inside(&bridge, || ip("link set lo up\nlink add br0 type bridge\nlink set br0 up"));
        let network = Self { number, bridge: Arc::new(bridge), hosts: 0, _claim: claim };
        let ours = format!("pgsteady{number}");
        ip(&format!(
            "link add {ours} type veth peer name up0 netns {}\naddr add {}/24 dev {ours}\nlink set {ours} up",
            path(&network.bridge),
            network.address(OURS)
        ));
        inside(&network.bridge, || ip("link set up0 master br0 up"));
        network
    }

    fn address(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.number, host)
    }

    /// Another host on it.
    pub fn host(&mut self) -> Host {
        self.hosts += 1;
        let (address, port, namespace) = (self.address(self.hosts), format!("host{}", self.hosts), namespace());
        inside(&self.bridge, || {
            let peer = path(&namespace);
            ip(&format!("link add {port} type veth peer name eth0 netns {peer}\nlink set {port} master br0 up"));
        });
        inside(&namespace, || ip(&format!("addr add {address}/24 dev eth0\nlink set eth0 up\nlink set lo up")));
        let port = Some((Arc::clone(&self.bridge), port));
        let host = Host { address, namespace: Some(Arc::new(namespace)), port, disk: None };
        host.heal();
        host
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}

impl Host {
    /// This machine, as this process sees it: its links are not cut.
    #[must_use]
    pub fn here() -> Self {
        Self { address: Ipv4Addr::LOCALHOST, namespace: None, port: None, disk: None }
    }

    /// The same with a disk for the WAL of the nodes that are made for it from now on.
    #[must_use]
    pub fn with_disk(self, disk: Disk) -> Self {
        Self { disk: Some(Arc::new(disk)), ..self }
    }

    /// A new folder on its disk, if it has one.
    #[must_use]
    pub fn folder_on_disk(&self, name: &str) -> Option<Folder> {
        self.disk.as_ref().map(|disk| Folder::new_in(disk.path(), name))
    }

    fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("this host has a disk of its own")
    }

    /// What runs on it writes to its disk no more than so often a second.
    pub fn slow_disk(&self, writes: u32) {
        self.disk().slow(writes, &self.processes());
    }

    /// Its disk stands still until it is healed, and no longer than this.
    pub fn freeze_disk(&self, at_most: Duration) {
        self.disk().freeze(at_most);
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Does something as if on it: what is started there stays there. Not to be awaited in.
    pub fn inside<T>(&self, work: impl FnOnce() -> T) -> T {
        match &self.namespace {
            None => work(),
            Some(namespace) => inside(namespace, work),
        }
    }

    /// The processes on it; none if it is where this process is.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        let Some(namespace) = &self.namespace else { return Vec::new() };
        let ours = namespace.metadata().expect("an open file has metadata").ino();
        let numbers = fs::read_dir("/proc").expect("/proc is there").filter_map(|entry| entry.ok());
        let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let is_on_it = |pid: &i32| fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|of| of.ino() == ours);
        numbers.filter(is_on_it).collect()
    }

    /// Sends a signal to every process on it; one that is gone already is no error.
    pub fn signal(&self, signal: Signal) {
        self.processes().into_iter().for_each(|pid| process::signal(pid, signal));
    }

    /// What runs on it now under the account of PostgreSQL writes no file beyond so many bytes: each write fails (`EFBIG`),
    /// as on a full disk. `None`: as long as it likes.
    pub fn limit_files(&self, bytes: Option<u64>) {
        let bytes = bytes.map_or("unlimited".to_owned(), |bytes| bytes.to_string());
        let limit = |pid: &i32| {
            let mut limit = as_account(Command::new("prlimit"));
            // the soft limit alone, so that it can be taken back
            limit.args(["--pid", &pid.to_string(), &format!("--fsize={bytes}:")]);
            limit.output().expect("prlimit can be run: package util-linux").status.success()
        };
        let processes = self.processes();
        // some have ended meanwhile
        let limited = processes.iter().filter(|pid| limit(pid)).count();
        assert!(limited > 0 || processes.is_empty(), "none of {processes:?} could be limited to {bytes}");
    }

    /// Drops all packets between it and these, from now on.
    pub fn cut(&self, others: &[&Self], way: Way) {
        let mut rules = String::new();
        for other in others {
            let _ = writeln!(rules, "add rule inet faults out ip daddr {} counter drop", other.address);
            if way == Way::Both {
                let _ = writeln!(rules, "add rule inet faults in ip saddr {} counter drop", other.address);
            }
        }
        self.rules(&rules);
    }

    /// Answers every TCP segment from these with a reset, and what it sends them too.
    pub fn reset(&self, others: &[&Self]) {
        let mut rules = String::new();
        for Self { address, .. } in others {
            let reject = "counter reject with tcp reset";
            let _ = writeln!(rules, "add rule inet faults in ip saddr {address} ip protocol tcp {reject}");
            let _ = writeln!(rules, "add rule inet faults out ip daddr {address} ip protocol tcp {reject}");
        }
        self.rules(&rules);
    }

    /// Loses so many of a hundred packets, in each direction.
    pub fn lose(&self, percent: u8) {
        let lost = |chain| format!("add rule inet faults {chain} numgen random mod 100 < {percent} counter drop\n");
        self.rules(&(lost("in") + &lost("out")));
    }

    /// Sends and receives no more than so many bits a second (`tc tbf`).
    pub fn slow(&self, rate: &str) {
        let limit = |device: &str| format!("qdisc replace dev {device} root tbf rate {rate} burst 3kb latency 500ms");
        self.inside(|| program("tc", &limit("eth0")));
        if let Some((bridge, port)) = &self.port {
            inside(bridge, || program("tc", &limit(port)));
        }
    }

    /// Ends every fault of it. Returns how many packets the rules have met.
    pub fn heal(&self) -> u64 {
        let met = self.met();
        self.rules(NO_FAULT);
        self.disk.iter().for_each(|disk| disk.heal());
        let end = |device: &str| {
            let ended = Command::new("tc").args(["qdisc", "del", "dev", device, "root"]).stderr(Stdio::null()).status();
            ended.expect("tc can be run: package iproute2");
        };
        self.inside(|| end("eth0"));
        if let Some((bridge, port)) = &self.port {
            inside(bridge, || end(port));
        }
        met
    }

    /// How many packets the rules have met.
    fn met(&self) -> u64 {
        let listed = self.inside(|| Command::new("nft").args(["list", "ruleset"]).output());
        let listed = listed.expect("nft can be run: package nftables");
        let text = String::from_utf8_lossy(&listed.stdout).into_owned();
        let count = |after: &str| after.split_whitespace().next()?.parse::<u64>().ok();
        text.split("counter packets ").skip(1).filter_map(count).sum()
    }

    fn rules(&self, rules: &str) {
        self.inside(|| {
            let mut nft = Command::new("nft");
            nft.args(["-f", "-"]).stdin(input(rules));
            run(&mut nft);
        });
    }
}

/// These hosts without those.
#[must_use]
pub fn others<'a>(hosts: &'a [Host], but: &[&Host]) -> Vec<&'a Host> {
    hosts.iter().filter(|host| but.iter().all(|not| not.address != host.address)).collect()
}

/// A pipe that holds this much; it has to be less than what a pipe takes (64 KiB).
fn input(text: &str) -> Stdio {
    use std::io::Write as _;
    let (reader, mut writer) = std::io::pipe().expect("a pipe can be made");
    writer.write_all(text.as_bytes()).expect("a pipe takes this much");
    reader.into()
}

/// Commands of ip(8), one a line.
fn ip(commands: &str) {
    commands.lines().for_each(|command| program("ip", command));
}

fn program(name: &str, arguments: &str) {
    run(Command::new(name).args(arguments.split_whitespace()));
}

fn claim() -> (u8, UnixListener) {
    loop {
        let number = rand::random();
        let name = SocketAddr::from_abstract_name(format!("pgsteady-test-network-{number}")).expect("a short name");
        if let Ok(claim) = UnixListener::bind_addr(&name)
            && !std::path::Path::new(&format!("/sys/class/net/pgsteady{number}")).exists()
        {
            return (number, claim);
        }
    }
}

/// As ip(8) takes it.
fn path(namespace: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd())
}

fn current() -> File {
    File::open("/proc/thread-self/ns/net").expect("a thread has a network namespace")
}

fn namespace() -> File {
    let before = current();
    unshare(CloneFlags::CLONE_NEWNET).expect("root can make a network namespace");
    let made = current();
    setns(&before, CloneFlags::CLONE_NEWNET).expect("a thread can go back where it was");
    made
}

fn inside<T>(namespace: &File, work: impl FnOnce() -> T) -> T {
    let before = current();
    setns(namespace, CloneFlags::CLONE_NEWNET).expect("root can enter a network namespace");
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    setns(&before, CloneFlags::CLONE_NEWNET).expect("a thread can go back where it was");
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
