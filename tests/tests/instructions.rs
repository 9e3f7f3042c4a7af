//! What pgsteady itself does for a query, counted under valgrind: instructions, which must not grow beyond what `tests/instructions.txt`
//! says, and allocations, of which there are none. What the kernel does is not counted, and the clock has no part in it.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::folder::Folder;
use harness::host::Host;
use harness::pgsteady::{Config, Pgsteady};
use harness::postgres::{Node, Programs, repository, run};
use harness::wire::{Raw, bind, execute, frame, parse, query, sync};

/// Time for the test: everything takes fifty times as long under valgrind.
const TEST_S: u64 = 180;
/// Queries before those that are counted: they open the server and fill caches.
const WARM_UP: u32 = 100;
/// Queries that are counted.
const COUNTED: u32 = 1000;
/// A count that grows by more is red; one that shrinks by more is told, so that the gain can be kept.
const TOLERATED: f64 = 0.05;
/// Allocations for each query that are none: housekeeping goes on meanwhile, by the clock and so more of it on a slow machine;
/// what belongs to a query is at least one for each.
const NO_ALLOCATION: f64 = 0.2;
/// Parts of the path that are counted alone (`proxy/examples/parts.rs`).
const PARTS: [&str; 6] = ["framing", "conversation", "extended-conversation", "classification", "lookup", "reading"];
/// What asks the C library for memory.
const ALLOCATORS: [&str; 5] = ["malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc"];

/// pgsteady under callgrind, which counts nothing yet.
struct Scene {
    pgsteady: Pgsteady,
    client: Raw,
    counts: Folder,
    _node: Node,
}

/// For one query.
#[derive(Debug, Clone, Copy)]
struct Count {
    instructions: f64,
    allocations: f64,
}

impl Scene {
    async fn new() -> Self {
        let node = Node::primary(&Programs::installed()).await;
        let counts = Folder::new("callgrind");
        let config = Config::single(&node)
            .set("auth.method", "trust")
            .set("log.level", "info")
            .set("database.app.pool_mode", "transaction");
        let out = format!("--callgrind-out-file={}", counts.path().join("out").display());
        let valgrind = ["valgrind", "-q", "--tool=callgrind", "--instr-atstart=no", &out];
        let mut pgsteady = Pgsteady::prepare(&Host::here(), &config);
        pgsteady.run_under(&valgrind);
        pgsteady.launch().await;
        let client = Raw::login(pgsteady.port(), "app", "app").await;
        Self { pgsteady, client, counts, _node: node }
    }

    fn control(&self, what: &[&str]) {
        run(Command::new("callgrind_control").args(what).arg(self.pgsteady.pid().to_string()));
    }

    /// Counts what is done for one of these requests.
    async fn count(&mut self, request: &[u8]) -> Count {
        self.ask(request, WARM_UP).await;
        self.control(&["-i", "on"]);
        // what was compiled before is compiled again with counters
        self.ask(request, WARM_UP).await;
        self.control(&["-z"]);
        self.ask(request, COUNTED).await;
        let before = self.dumps();
        self.control(&["-d"]);
        self.control(&["-i", "off"]);
        let dump = self.dumps().into_iter().find(|dump| !before.contains(dump)).expect("callgrind has written a file");
        read(&fs::read_to_string(dump).expect("it can be read"))
    }

    async fn ask(&mut self, request: &[u8], times: u32) {
        for _ in 0..times {
            self.client.send(request).await;
            let answer = self.client.until(b'Z').await;
            assert!(answer.iter().any(|message| message.tag == b'D'), "no row: {answer:?}");
        }
    }

    fn dumps(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.counts.path()).expect("the folder is ours");
        files.map(|file| file.expect("it can be listed").path()).collect()
    }
}

/// A file of callgrind (its manual, "Callgrind Format Specification"): names are given in full once, `(number)` after that.
fn read(dump: &str) -> Count {
    let (mut names, mut called, mut instructions, mut allocations) = (HashMap::new(), String::new(), 0.0, 0.0);
    let number = |text: &str| text.split_whitespace().next().and_then(|word| word.parse::<f64>().ok()).unwrap_or(0.0);
    for line in dump.lines() {
        if let Some((key, name)) = line.split_once('=').filter(|(key, _)| *key == "fn" || *key == "cfn") {
            let (id, full) = name.split_once(' ').unwrap_or((name, ""));
            if !full.is_empty() {
                names.insert(id.to_owned(), full.to_owned());
            }
            if key == "cfn" {
                called = names.get(id).cloned().unwrap_or_default();
            }
        } else if let Some(calls) = line.strip_prefix("calls=") {
            let is_allocator = ALLOCATORS.contains(&called.split(['@', '\'']).next().unwrap_or_default());
            allocations += if is_allocator { number(calls) } else { 0.0 };
        } else if let Some(sum) = line.strip_prefix("totals: ").or_else(|| line.strip_prefix("summary: ")) {
            instructions = number(sum);
        }
    }
    let each = f64::from(COUNTED);
    Count { instructions: instructions / each, allocations: allocations / each }
}

/// Counts what is done for one of a part: the difference between [`COUNTED`] and twice as many.
fn part(name: &str) -> f64 {
    let counts = Folder::new("parts");
    let here = std::env::current_exe().expect("the test has a file");
    let program = here.parent().and_then(Path::parent).expect("it is in deps").join("examples/parts");
    assert!(program.exists(), "{} is not there: cargo build --workspace --all-targets", program.display());
    let [one, two] = [COUNTED, 2 * COUNTED].map(|times| {
        let out = counts.path().join(times.to_string());
        let mut command = Command::new("valgrind");
        command.args(["-q", "--tool=callgrind", &format!("--callgrind-out-file={}", out.display())]);
        run(command.arg(&program).arg(name).arg(times.to_string()));
        read(&fs::read_to_string(&out).expect("callgrind has written a file")).instructions
    });
    two - one
}

/// Whose code is counted.
fn compiler() -> String {
    run(Command::new("rustc").arg("--version")).trim().to_owned()
}

fn baseline() -> PathBuf {
    repository().join("tests/instructions.txt")
}

#[test]
fn a_query_costs_what_it_did_and_allocates_nothing() {
    harness::run(TEST_S, async {
        let mut scene = Scene::new().await;
        let prepared = [parse("one", "SELECT 1"), sync()].concat();
        scene.client.send(&prepared).await;
        scene.client.until(b'Z').await;
        let describe = frame(b'D', b"P\0");
        let requests = [
            ("simple", query("SELECT 1")),
            ("extended", [parse("", "SELECT 1"), bind("", &[]), describe.clone(), execute(), sync()].concat()),
            ("prepared", [bind("one", &[]), describe, execute(), sync()].concat()),
        ];
        let (mut text, mut allocating) = (compiler() + "\n", Vec::new());
        for (name, request) in &requests {
            let count = scene.count(request).await;
            let _ = writeln!(text, "{name} {:.0}", count.instructions);
            eprintln!("{name}: {:.0} instructions, {:.3} allocations", count.instructions, count.allocations);
            if count.allocations > NO_ALLOCATION {
                allocating.push((name, count.allocations));
            }
        }
        for name in PARTS {
            let _ = writeln!(text, "{name} {:.0}", part(name));
        }
        assert!(allocating.is_empty(), "allocations for each query: {allocating:?}");
        compare(&text);
    });
}

/// Compares with the baseline, or makes it with `UPDATE=1`.
fn compare(text: &str) {
    if std::env::var_os("UPDATE").is_some() {
        fs::write(baseline(), text).expect("the baseline can be written");
    }
    let expected = fs::read_to_string(baseline()).expect("there is a baseline: UPDATE=1 makes one");
    let change = |(now, before): &(&str, &str)| {
        let number = |line: &str| line.split(' ').nth(1).and_then(|word| word.parse::<f64>().ok()).unwrap_or(0.0);
        number(now) / number(before) - 1.0
    };
    assert_eq!(text.lines().count(), expected.lines().count(), "cases: {text}in the baseline: {expected}");
    if !expected.starts_with(&compiler()) {
        return eprintln!("the baseline was made with another compiler, so only allocations are looked at: {expected}");
    }
    let cases: Vec<_> = text.lines().zip(expected.lines()).skip(1).collect();
    // an incremental build cuts the crates into more pieces, and inlines a little less
    for (now, before) in cases.iter().filter(|case| change(case) < -TOLERATED) {
        eprintln!("fewer than the baseline's {before}: {now} (UPDATE=1 keeps that)");
    }
    let grown: Vec<_> = cases.iter().filter(|case| change(case) > TOLERATED).collect();
    assert!(grown.is_empty(), "now, and in the baseline (UPDATE=1 makes a new one): {grown:?}");
}
