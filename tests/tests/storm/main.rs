//! The fault matrix: every fault once, in `make test`; faults at random, one or two at a time, in `make storm`. Real hosts
//! (network namespaces) whose links are cut, whose processes are killed or stand still, under clients whose records are
//! checked afterwards. A seed repeats the same faults: `STORM_SEED=7 STORM_FAULTS=100 make storm`. `STORM_ONLY=F01,F34+F33` takes
//! these of the matrix alone, and those with a plus together.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use harness::disk::Mounts;
use harness::writers::{Record, Writers};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use checks::Counted;
use faults::Fault;
use scene::Scene;
use workload::{FIRST_BALANCE, Workload};

mod bites;
mod cancels;
mod checks;
mod faults;
mod guests;
mod scene;
mod workload;

/// Writers at each instance, half of them in explicit transactions.
const WRITERS: i32 = 4;
/// Rounds between two checks of everything.
const SEGMENT: usize = 6;
/// Before each fault, and after it has healed.
const CALM: Duration = Duration::from_millis(500);
/// Rows that have to be acknowledged after each.
const GOES_ON: usize = 50;
/// Patience with those.
const SOON: Duration = Duration::from_secs(30);
/// Time for every fault once; on an idle machine it takes nine minutes.
const MATRIX_S: u64 = 1500;

/// The faults of one round, brought about one after the other and healed together.
type Round = Vec<&'static Fault>;

/// What a storm adds up to.
#[derive(Default)]
struct Totals {
    faults: usize,
    promotions: i32,
    counted: Counted,
    /// The longest times without an acknowledgement, by faults.
    gaps: BTreeMap<String, Vec<Duration>>,
}

impl Totals {
    fn add(&mut self, segment: &Counted) {
        let Counted { acknowledged, in_doubt, transactions, transfers, answers, dropped } = &mut self.counted;
        *acknowledged += segment.acknowledged;
        *in_doubt += segment.in_doubt;
        *transactions += segment.transactions;
        *transfers += segment.transfers;
        *answers += segment.answers;
        *dropped += segment.dropped;
    }

    fn say(&self, seed: u64) {
        for (faults, gaps) in &self.gaps {
            let worst = gaps.iter().max().copied().unwrap_or_default();
            eprintln!("{faults:<10} {:>3} times, longest without an acknowledgement {worst:>8.1?}", gaps.len());
        }
        let Self { faults, promotions, counted, .. } = self;
        let Counted { acknowledged, in_doubt, transactions, transfers, answers, dropped } = counted;
        eprintln!(
            "storm: seed {seed}: {faults} faults, {promotions} promotions; {acknowledged} rows, {transactions} list \
             transactions and {transfers} transfers acknowledged, {answers} answers observed; 0 lost, 0 twice, 0 wrong, \
             {in_doubt} in doubt, {dropped} clients dropped"
        );
    }
}

/// Runs rounds of faults, with a check of everything after each few.
async fn storm(mounts: &Mounts, seed: u64, rounds: &[Round]) {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut scene = Scene::new(mounts).await;
    let (mut totals, began) = (Totals::default(), Instant::now());
    for (number, rounds) in rounds.chunks(SEGMENT).enumerate() {
        segment(&mut scene, &mut random, rounds, &mut totals).await;
        eprintln!("segment {} holds, {} faults so far, {:.0?}", number + 1, totals.faults, began.elapsed());
    }
    totals.say(seed);
}

async fn segment(scene: &mut Scene, random: &mut SmallRng, rounds: &[Round], totals: &mut Totals) {
    let empty = format!("TRUNCATE written, lists, ledger; UPDATE accounts SET balance = {FIRST_BALANCE}");
    scene.cluster.nodes[scene.primary].client().await.batch_execute(&empty).await.expect("the tables can be emptied");
    let endpoints = scene.endpoints();
    let workload = Workload::start(&endpoints, random.random());
    let numbered = (0..).step_by(WRITERS as usize).map(|first| first..first + WRITERS);
    let writers: Vec<Writers> =
        endpoints.iter().zip(numbered).map(|(endpoint, workers)| Writers::numbered(endpoint, workers)).collect();
    go_on(&writers).await;
    let before = checks::resources(scene);
    let (mut windows, mut restarted) = (Vec::new(), BTreeSet::new());
    for round in rounds {
        tokio::time::sleep(CALM).await;
        let from = Instant::now();
        let timeline = checks::timeline(scene).await;
        self::round(scene, random, round, &mut restarted).await;
        go_on(&writers).await;
        totals.promotions += promotions(round, checks::timeline(scene).await - timeline);
        totals.faults += round.len();
        let names = names(round);
        eprintln!("{names:<10} whole after {:>8.1?}: {}", from.elapsed(), what(round));
        windows.push((names, from, Instant::now()));
    }
    checks::holds_no_more(scene, &before, &restarted);
    let shared = workload.stop().await;
    let mut written = Vec::new();
    for writers in writers {
        written.push(writers.stop().await);
    }
    for (names, from, to) in windows {
        totals.gaps.entry(names).or_default().push(gap(&written, from, to));
    }
    totals.add(&checks::all(scene, written, &shared, &restarted).await);
}

/// Brings these faults about, lets them last, and heals them.
async fn round(scene: &mut Scene, random: &mut SmallRng, round: &Round, restarted: &mut BTreeSet<usize>) {
    let mut lasts = Duration::ZERO;
    for fault in round {
        (fault.bring)(scene, random).await;
        lasts = lasts.max(fault.lasts);
        if round.len() > 1 {
            tokio::time::sleep(Duration::from_millis(random.random_range(0..1000))).await;
        }
    }
    tokio::time::sleep(lasts).await;
    let killed: Vec<usize> = (0..scene.instances.len()).filter(|index| !scene.instances[*index].is_running()).collect();
    let may_drop = round.iter().any(|fault| fault.drops);
    assert!(may_drop != killed.is_empty(), "{}: instances that do not run: {killed:?}", names(round));
    let missing = scene.guests.is_empty() && round.len() == 1 && round[0].judges;
    assert!(!missing, "{}: no client of its own came in", names(round));
    let met = scene.heal().await;
    guests::leave(&mut scene.guests, &names(round), &killed).await;
    restarted.extend(killed);
    let cuts = round.iter().any(|fault| fault.cuts);
    assert!(!cuts || met > 0, "{}: no packet was ever lost", names(round));
}

/// K7: as many primaries were promoted as these faults account for.
fn promotions(round: &Round, promoted: i32) -> i32 {
    let (least, most) = match &round[..] {
        [alone] => (*alone.promotions.start(), *alone.promotions.end()),
        // what was a standby at first may be the primary when its fault comes
        several => (0, several.iter().map(|fault| 1.max(*fault.promotions.end())).sum()),
    };
    assert!((least..=most).contains(&promoted), "K7: {}: {promoted} promotions, not {least}..={most}", names(round));
    promoted
}

async fn go_on(writers: &[Writers]) {
    for writers in writers {
        writers.acknowledged(GOES_ON, SOON).await;
    }
}

fn names(round: &Round) -> String {
    round.iter().map(|fault| fault.id).collect::<Vec<_>>().join("+")
}

fn what(round: &Round) -> String {
    round.iter().map(|fault| fault.what).collect::<Vec<_>>().join("; ")
}

/// The longest time without an acknowledgement between these.
fn gap(written: &[Record], from: Instant, to: Instant) -> Duration {
    let acknowledged = written.iter().flat_map(|record| &record.acknowledged).map(|(_, at)| *at);
    let mut times: Vec<Instant> = acknowledged.filter(|at| (from..=to).contains(at)).chain([from, to]).collect();
    times.sort();
    times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

/// A number from the environment.
fn asked(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

#[test]
fn every_fault_of_the_matrix() {
    let named = |id: &str| faults::ALL.iter().find(|fault| fault.id == id).unwrap_or_else(|| panic!("no fault {id}"));
    let rounds: Vec<Round> = match std::env::var("STORM_ONLY") {
        Ok(only) => only.split(',').map(|round| round.split('+').map(named).collect()).collect(),
        Err(_) => faults::ALL.iter().map(|fault| vec![fault]).collect(),
    };
    let mounts = Mounts::new();
    harness::run(MATRIX_S, storm(&mounts, asked("STORM_SEED").unwrap_or(1), &rounds));
}

#[test]
#[ignore = "half an hour: make storm"]
fn faults_at_random() {
    let seed = asked("STORM_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let count = usize::try_from(asked("STORM_FAULTS").unwrap_or(100)).expect("a number of faults");
    eprintln!("storm: seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let (mut rounds, mut chosen) = (Vec::new(), 0);
    while chosen < count {
        let mut one = || &faults::ALL[random.random_range(0..faults::ALL.len())];
        let (first, second) = (one(), one());
        let together = random.random_bool(0.4) && first.id != second.id && ![first.id, second.id].contains(&"F29");
        let round = if together { vec![first, second] } else { vec![first] };
        chosen += round.len();
        rounds.push(round);
    }
    let mounts = Mounts::new();
    harness::run(60 * count as u64, storm(&mounts, seed, &rounds));
}
