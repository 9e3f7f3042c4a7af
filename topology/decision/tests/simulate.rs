//! Seeded simulation: the real coordinator over a model cluster under faults. A failing seed is printed; run it again with
//! `SEED=<seed> SHAPE=<shape> cargo test -p decision --test simulate replay -- --nocapture`.

mod model;

use decision::Durability;
use model::Lie;
use model::simulation::{Outcome, Plan, Simulation};

/// Shapes of clusters: (nodes, k, processes, whether these share a lease, durability).
const SHAPES: [(u8, u32, usize, bool, Durability); 8] = [
    (3, 1, 1, false, Durability::Available),
    (3, 1, 2, false, Durability::Strict),
    (3, 1, 2, false, Durability::Available),
    (5, 2, 2, false, Durability::Available),
    (4, 2, 1, false, Durability::Strict),
    (2, 1, 1, false, Durability::Strict),
    (3, 1, 3, true, Durability::Available),
    (5, 2, 2, true, Durability::Strict),
];

fn plan(shape: usize, lie: Option<Lie>) -> Plan {
    let (nodes, k, processes, shared, durability) = SHAPES[shape];
    Plan { nodes, k, processes, durability, lie, shared, faults_until: 15_000, end: 27_000 }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn assert_held(shape: usize, seed: u64, outcome: &Outcome) {
    assert!(outcome.violations.is_empty(), "SHAPE={shape} SEED={seed}: {:?}", outcome.violations);
    assert!(
        outcome.open && outcome.acknowledged_in_peace > 0,
        "SHAPE={shape} SEED={seed}: no primary although everything is whole again: {}",
        outcome.last_reason
    );
}

/// `SEEDS` of each shape (default 200): nothing acknowledged is lost, and peace brings service back.
fn seeds_of(shape: usize) {
    let seeds = number("SEEDS").unwrap_or(200);
    let (mut promotions, mut acknowledged, mut switched, mut asked) = (0, 0, 0, 0);
    for seed in 0..seeds {
        let outcome = Simulation::run(seed, plan(shape, None), false);
        assert_held(shape, seed, &outcome);
        promotions += u64::from(outcome.promotions);
        acknowledged += outcome.acknowledged as u64;
        switched += outcome.switched.0 as u64;
        asked += outcome.switched.1 as u64;
    }
    println!(
        "shape {shape}: {seeds} seeds, {promotions} promotions, {switched} of {asked} switchovers done, {acknowledged} \
         acknowledged commits, none lost"
    );
    assert!(switched >= seeds / 20 || SHAPES[shape].0 == 2, "{switched} switchovers in {seeds} seeds");
    assert!(promotions >= seeds / 4, "{promotions} promotions in {seeds} seeds: the faults do not bite");
    assert!(acknowledged >= seeds * 50, "{acknowledged} commits in {seeds} seeds: the clients hardly write");
}

#[test]
fn three_nodes_one_process() {
    seeds_of(0);
}

#[test]
fn three_nodes_two_processes_strict() {
    seeds_of(1);
}

#[test]
fn three_nodes_two_processes_available() {
    seeds_of(2);
}

#[test]
fn five_nodes_two_copies() {
    seeds_of(3);
}

#[test]
fn four_nodes_two_copies_strict() {
    seeds_of(4);
}

#[test]
fn two_nodes() {
    seeds_of(5);
}

#[test]
fn three_nodes_three_processes_with_a_lease() {
    seeds_of(6);
}

#[test]
fn five_nodes_two_processes_with_a_lease() {
    seeds_of(7);
}

/// Runs one seed and prints what happened; does nothing without `SEED`.
#[test]
fn replay() {
    let Some(seed) = number("SEED") else { return };
    let shape = usize::try_from(number("SHAPE").unwrap_or(0)).unwrap();
    let outcome = Simulation::run(seed, plan(shape, None), true);
    for line in &outcome.trace {
        println!("{line}");
    }
    println!("{:?} promotions, {} acknowledged", outcome.promotions, outcome.acknowledged);
    assert_held(shape, seed, &outcome);
}

#[test]
fn the_same_seed_is_the_same_run() {
    let run = || Simulation::run(7, plan(2, None), true).trace;
    assert_eq!(run(), run());
}

/// The simulation has to notice each mistake; the seed that did is printed.
fn notices(lie: Lie, shapes: &[usize], most: u64) {
    for seed in 0..most {
        for shape in shapes {
            let outcome = Simulation::run(seed, plan(*shape, Some(lie)), false);
            if let Some(violation) = outcome.violations.first() {
                println!("{lie:?}: SHAPE={shape} SEED={seed}: {violation}");
                return;
            }
        }
    }
    panic!("{lie:?} went unnoticed in {most} seeds of shapes {shapes:?}");
}

#[test]
fn notices_unreachable_counted_as_fenced() {
    notices(Lie::UnreachableIsFenced, &[0, 1, 3], 300);
}

#[test]
fn notices_alter_system_counted_as_fence() {
    notices(Lie::AlterSystemIsEnough, &[0, 1, 2, 3], 300);
}

#[test]
fn notices_a_term_row_and_barrier_without_acknowledgement() {
    notices(Lie::NoWait, &[0, 1, 3], 300);
}

#[test]
fn notices_a_wrong_choice() {
    notices(Lie::SamePosition, &[0, 1, 3], 300);
}

#[test]
fn notices_a_primary_without_synchronous_standbys() {
    notices(Lie::NoSyncNames, &[0, 1, 3], 300);
}

#[test]
fn notices_a_store_without_compare_and_set() {
    notices(Lie::NoCompareAndSet, &[1, 2, 3], 300);
}
