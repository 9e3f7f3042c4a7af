//! The faults, by their numbers in the fault matrix of docs/faults.md. Each is brought about here; how long it lasts is
//! said with it, and its end is [`Scene::heal`].

use std::ops::RangeInclusive;
use std::pin::Pin;
use std::time::Duration;

use harness::host::{Host, Way};
use harness::process;
use nix::sys::signal::Signal;
use rand::RngExt;
use rand::rngs::SmallRng;

use crate::cancels;
use crate::guests::{self, Crowd};
use crate::scene::Scene;

/// A kind of fault.
pub(crate) struct Fault {
    /// Its number in the fault matrix.
    pub(crate) id: &'static str,
    pub(crate) what: &'static str,
    /// Until it is healed.
    pub(crate) lasts: Duration,
    /// Primaries that are promoted because of it; where it is not alone it may be none.
    pub(crate) promotions: RangeInclusive<i32>,
    /// Whether packets have to be lost for it to be one.
    pub(crate) cuts: bool,
    /// Whether an instance loses its clients.
    pub(crate) drops: bool,
    /// Whether it brings clients of its own along.
    pub(crate) judges: bool,
    pub(crate) bring: Bring,
}

/// Brings a fault about.
pub(crate) type Bring = for<'a> fn(&'a mut Scene, &'a mut SmallRng) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Bytes after which no file grows. PostgreSQL ignores SIGXFSZ, so that this is to it what a full disk is. Little: WAL is
/// still written up to here in a segment that has just begun, and a slow machine needs seconds for a megabyte of it.
const FULL_DISK: u64 = 1 << 16;

/// After so long a disk that stands still goes on whatever becomes of the test.
const FROZEN: Duration = Duration::from_secs(15);

/// What must be so in the end is the same for all of them: see `checks.rs`.
#[rustfmt::skip]
pub(crate) const ALL: &[Fault] = &[
    fault("F01", "the primary's host is gone", 3, 1..=1, |scene, _| Box::pin(async { scene.kill(scene.primary) })),
    fault("F02", "a backend of the primary is killed", 4, 0..=1, |scene, _| Box::pin(kill_backend(scene))),
    fault("F03", "the primary's postmaster is killed alone", 3, 1..=1, |scene, _| Box::pin(async {
        if scene.cluster.nodes[scene.primary].is_running() { scene.cluster.nodes[scene.primary].kill_postmaster() }
    })),
    fault("F04", "the primary stands still, then goes on", 8, 1..=1, |scene, _| Box::pin(async {
        scene.node_hosts()[scene.primary].signal(Signal::SIGSTOP);
    })),
    fault("F05", "the primary's postmaster stands still", 5, 0..=1, |scene, _| Box::pin(async {
        let primary = &scene.cluster.nodes[scene.primary];
        if primary.is_running() { process::signal(primary.pid(), Signal::SIGSTOP) }
    })),
    fault("F06", "the primary is stopped by an operator", 3, 1..=1, |scene, _| Box::pin(async {
        let primary = &mut scene.cluster.nodes[scene.primary];
        if !primary.has_ended() && primary.is_running() { primary.stop() }
    })),
    fault("F06s", "a switchover", 1, 1..=1, |scene, _| Box::pin(switch_over(scene))),
    fault("F07", "the primary is cut from all", 6, 1..=1, |scene, _| Box::pin(async {
        let primary = &scene.node_hosts()[scene.primary];
        primary.cut(&scene.others(&[primary]), Way::Both);
    })).cutting(),
    fault("F08", "the primary is cut from the standbys", 6, 0..=1, |scene, _| Box::pin(async {
        cut_standbys(scene, Way::Both);
    })).cutting(),
    fault("F09", "the coordinator is cut from the primary", 6, 0..=1, |scene, _| Box::pin(async {
        let coordinator = scene.coordinator().await;
        scene.instance_hosts()[coordinator].cut(&[&scene.node_hosts()[scene.primary]], Way::Both);
    })).cutting(),
    fault("F10", "the primary is heard by no standby", 6, 0..=1, |scene, _| Box::pin(async {
        cut_standbys(scene, Way::Out);
    })).cutting(),
    fault("F11", "the coordinator is not heard by etcd", 6, 0..=0, |scene, _| Box::pin(async {
        let coordinator = scene.coordinator().await;
        let members: Vec<&Host> = scene.member_hosts().iter().collect();
        scene.instance_hosts()[coordinator].cut(&members, Way::Out);
    })).cutting(),
    fault("F12", "the primary and the coordinator are cut from all others", 8, 1..=1, |scene, _| Box::pin(async {
        let coordinator = scene.coordinator().await;
        let few = [&scene.node_hosts()[scene.primary], &scene.instance_hosts()[coordinator]];
        few.iter().for_each(|host| host.cut(&scene.others(&few), Way::Both));
    })).cutting(),
    fault("F13", "every segment between pgsteady and the primary is answered by a reset", 2, 0..=1, |scene, _| Box::pin(async {
        let instances: Vec<&Host> = scene.instance_hosts().iter().collect();
        scene.node_hosts()[scene.primary].reset(&instances);
    })).cutting(),
    fault("F14", "the primary's host loses 30 of 100 packets", 6, 0..=1, |scene, _| Box::pin(async {
        scene.node_hosts()[scene.primary].lose(30);
    })).cutting(),
    fault("F15", "the primary's host has a link of 2 Mbit/s", 6, 0..=1, |scene, _| Box::pin(async {
        scene.node_hosts()[scene.primary].slow("2mbit");
    })),
    fault("F16", "a standby's host is gone", 3, 0..=0, |scene, random| Box::pin(async {
        let standby = one_standby(scene, random);
        scene.kill(standby);
    })),
    fault("F17", "both standbys' hosts are gone", 4, 0..=0, |scene, _| Box::pin(async {
        scene.standbys().into_iter().for_each(|standby| scene.kill(standby));
    })),
    fault("F18", "a standby's host and the primary's are gone together", 4, 0..=1, |scene, random| Box::pin(async {
        let standby = one_standby(scene, random);
        scene.kill(standby);
        scene.kill(scene.primary);
    })),
    fault("F19", "the primary's host is gone while a standby lags", 4, 0..=1, |scene, random| Box::pin(async {
        let standby = one_standby(scene, random);
        freeze_receiver(scene, standby);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        scene.kill(scene.primary);
    })),
    fault("F20", "the primary's disk takes no more", 5, 1..=1, |scene, _| Box::pin(async {
        scene.node_hosts()[scene.primary].limit_files(Some(FULL_DISK));
    })),
    fault("F21", "the disk of the primary's WAL takes two writes a second", 10, 0..=0, |scene, _| Box::pin(async {
        scene.node_hosts()[scene.primary].slow_disk(2);
    })),
    fault("F22", "the primary's WAL does not reach its disk", 10, 1..=1, |scene, _| Box::pin(async {
        scene.node_hosts()[scene.primary].freeze_disk(FROZEN);
    })),
    fault("F23", "the clock of an instance jumps by two hours", 3, 0..=0, |scene, _| Box::pin(async {
        scene.set_clock("+2h").await;
    })),
    fault("F24", "an instance of pgsteady is killed", 2, 0..=0, |scene, random| Box::pin(async {
        let instance = random.random_range(0..scene.instances.len());
        scene.instances[instance].kill();
    })).dropping(),
    fault("F25", "the coordinator stands still for longer than its lease", 8, 0..=1, |scene, _| Box::pin(async {
        let coordinator = scene.coordinator().await;
        scene.instance_hosts()[coordinator].signal(Signal::SIGSTOP);
    })),
    fault("F26a", "a member of etcd is killed", 4, 0..=0, |scene, random| Box::pin(async {
        let member = random.random_range(0..scene.etcd.len());
        kill_members(scene, member..member + 1);
    })),
    fault("F26b", "all members of etcd are killed", 6, 0..=0, |scene, _| Box::pin(async {
        kill_members(scene, 0..scene.etcd.len());
    })),
    fault("F27", "all members of etcd are killed, and the primary's host is gone", 4, 1..=1, |scene, _| Box::pin(async {
        kill_members(scene, 0..scene.etcd.len());
        scene.kill(scene.primary);
    })),
    fault("F29", "statements are cancelled while they commit", 1, 0..=0, |scene, random| Box::pin(async {
        cancels::storm(&scene.endpoints(), random, Duration::from_secs(3)).await;
    })),
    fault("F30", "clients ask for commits that wait for no standby", 1, 0..=0, |scene, random| Box::pin(async {
        guests::careless(&scene.endpoints(), random, &mut scene.guests).await;
    })).judging(),
    fault("F31a", "the primary's host is gone, and a standby's while it may be promoted", 5, 0..=2, |scene, random| Box::pin(async {
        scene.kill(scene.primary);
        tokio::time::sleep(Duration::from_millis(random.random_range(20..500))).await;
        let standby = one_standby(scene, random);
        scene.kill(standby);
    })),
    fault("F31b", "the primary's host is gone, and the coordinator is killed while it acts", 8, 1..=1, |scene, random| Box::pin(async {
        let coordinator = scene.coordinator().await;
        scene.kill(scene.primary);
        tokio::time::sleep(Duration::from_millis(random.random_range(20..400))).await;
        scene.instances[coordinator].kill();
    })).dropping(),
    fault("F32", "the old primary comes back writable where it was", 4, 1..=1, |scene, _| Box::pin(come_back(scene))),
    fault("F33", "another database system answers where a standby was", 4, 0..=0, |scene, random| Box::pin(async {
        let standby = one_standby(scene, random);
        scene.replace_by_stranger(standby);
    })),
    fault("F34", "the primary's host is gone during transactions, copies and a LISTEN", 3, 1..=1, |scene, random| Box::pin(async {
        guests::busy(&scene.endpoints(), random, &mut scene.guests).await;
        scene.kill(scene.primary);
    })).judging(),
    fault("F35", "the primary's host is gone, and hundreds of clients wait", 3, 1..=1, |scene, random| Box::pin(async {
        let crowd = Crowd::new(&scene.endpoints(), random).await;
        scene.kill(scene.primary);
        crowd.write(&mut scene.guests);
    })).judging(),
];

const fn fault(
    id: &'static str,
    what: &'static str,
    seconds: u64,
    promotions: RangeInclusive<i32>,
    bring: Bring,
) -> Fault {
    Fault { id, what, lasts: Duration::from_secs(seconds), promotions, cuts: false, drops: false, judges: false, bring }
}

impl Fault {
    /// Packets have to be lost.
    const fn cutting(mut self) -> Self {
        self.cuts = true;
        self
    }

    /// Clients of its own are judged.
    const fn judging(mut self) -> Self {
        self.judges = true;
        self
    }

    /// An instance loses its clients.
    const fn dropping(mut self) -> Self {
        self.drops = true;
        self
    }
}

fn one_standby(scene: &Scene, random: &mut SmallRng) -> usize {
    let standbys = scene.standbys();
    standbys[random.random_range(0..standbys.len())]
}

fn cut_standbys(scene: &Scene, way: Way) {
    let standbys: Vec<&Host> = scene.standbys().iter().map(|node| &scene.node_hosts()[*node]).collect();
    scene.node_hosts()[scene.primary].cut(&standbys, way);
}

fn kill_members(scene: &mut Scene, members: std::ops::Range<usize>) {
    scene.etcd[members].iter_mut().filter(|member| member.is_running()).for_each(harness::etcd::Etcd::kill);
}

async fn kill_backend(scene: &Scene) {
    let Ok(client) = scene.cluster.nodes[scene.primary].try_client().await else { return };
    let backend = "SELECT pid FROM pg_stat_activity WHERE usename = 'app' ORDER BY xact_start LIMIT 1";
    if let Ok(Some(row)) = client.query_opt(backend, &[]).await {
        process::signal(row.get(0), Signal::SIGKILL);
    }
}

async fn switch_over(scene: &Scene) {
    let instance = scene.coordinator().await;
    // what it answers in the middle of another fault is its own affair
    let _ = scene.instances[instance].command(&["switchover", "--json"]).await;
}

/// Stops the process that receives a standby's WAL.
fn freeze_receiver(scene: &Scene, standby: usize) {
    for pid in scene.node_hosts()[standby].processes() {
        let name = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&name).contains("walreceiver") {
            process::signal(pid, Signal::SIGSTOP);
        }
    }
}

async fn come_back(scene: &mut Scene) {
    let old = scene.primary;
    scene.kill(old);
    tokio::time::sleep(Duration::from_secs(3)).await;
    scene.cluster.nodes[old].launch();
}
