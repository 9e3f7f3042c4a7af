//! What was measured, as a table, as JSON and as a picture.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::idle::PerClient;
use crate::load::Sample;
use crate::pooler::pgbouncer_version;

/// If one pooler's own measurements differ by more than this share of their median, the machine was too noisy for that line.
const NOISE: f64 = 0.3;
/// The picture: pixels, and the ratio at its right edge.
const ROW: usize = 22;
const LABELS: usize = 290;
const BARS: u16 = 420;
const WIDEST: f64 = 1.6;

/// All lines.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) lines: Vec<Line>,
    /// PgBouncer's and pgsteady's.
    pub(crate) memory: Option<(PerClient, PerClient)>,
}

/// One case: ratios of pgsteady's figures to PgBouncer's, round by round.
pub(crate) struct Line {
    name: &'static str,
    clients: u32,
    /// Lowest, median, highest.
    cpu: [f64; 3],
    rate: f64,
    p50: Option<f64>,
    p99: Option<f64>,
    /// Medians of the cost itself: theirs, ours.
    cost: (f64, f64),
    is_noisy: bool,
}

/// Lowest, median and highest.
fn spread(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    [values[0], values[values.len() / 2], values[values.len() - 1]]
}

impl Line {
    pub(crate) fn new(name: &'static str, clients: u32, a: &[Sample], b: &[Sample]) -> Self {
        let ratio = |of: fn(&Sample) -> f64| spread(a.iter().zip(b).map(|(a, b)| of(b) / of(a)));
        let latency = |of: fn(&Sample) -> Option<f64>| {
            let both = a.iter().zip(b).filter_map(|(a, b)| Some(of(b)? / of(a)?)).collect::<Vec<f64>>();
            (!both.is_empty()).then(|| spread(both.into_iter())[1])
        };
        let [low, middle, high] = spread(a.iter().map(|sample| sample.cost));
        Self {
            name,
            clients,
            cpu: ratio(|sample| sample.cost),
            rate: ratio(|sample| sample.rate)[1],
            p50: latency(|sample| sample.p50),
            p99: latency(|sample| sample.p99),
            cost: (middle, spread(b.iter().map(|sample| sample.cost))[1]),
            is_noisy: (high - low) / middle > NOISE,
        }
    }

    /// While it is measured.
    pub(crate) fn progress(&self) -> String {
        let noisy = if self.is_noisy { "; too noisy" } else { "" };
        format!("{}, {} clients: {:.2} of the CPU time{noisy}", self.name, self.clients, self.cpu[1])
    }
}

impl Report {
    /// A table for people.
    pub(crate) fn markdown(&self) -> String {
        let (major, minor) = pgbouncer_version();
        let mut text = format!(
            "# pgsteady beside PgBouncer {major}.{minor}\n\nMade by `make bench`: ratios of pgsteady's figures, as `make optimized` builds it, to those of \
             Debian's PgBouncer, medians of rounds in which the two took turns. CPU is the pooler's own time (user and system) for each transaction, or for each GB of \
             large results; below 1 is less than PgBouncer.\n\n\
             | case | clients | CPU | (min–max) | transactions/s | p50 | p99 | CPU itself, PgBouncer / pgsteady |\n\
             |---|---|---|---|---|---|---|---|\n"
        );
        let cell = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.2}"));
        for line in &self.lines {
            let Line { name, clients, cpu: [low, middle, high], rate, p50, p99, cost, is_noisy } = line;
            let noisy = if *is_noisy { " (noisy)" } else { "" };
            let _ = writeln!(
                text,
                "| {name} | {clients} | **{middle:.2}**{noisy} | {low:.2}–{high:.2} | {rate:.2} | {} | {} | {:.1} / {:.1} |",
                cell(*p50),
                cell(*p99),
                cost.0,
                cost.1
            );
        }
        text += "\nCPU itself: µs for each transaction, ms for each GB.\n";
        if let Some((theirs, ours)) = self.memory {
            text += "\n| KiB for each of 5,000 clients | PgBouncer | pgsteady |\n|---|---|---|\n";
            for (stage, of) in STAGES {
                let _ = writeln!(text, "| {stage} | {:.2} | {:.2} |", of(&theirs), of(&ours));
            }
        }
        if self.lines.iter().any(|line| line.is_noisy) {
            text += "\nNoisy: PgBouncer's own figures differ too much from round to round to believe the line.\n";
        }
        text
    }

    fn json(&self) -> Value {
        let line = |line: &Line| {
            let [low, middle, high] = line.cpu.map(rounded);
            json!({
                "case": line.name, "clients": line.clients, "cpu_ratio": middle, "cpu_ratio_min": low, "cpu_ratio_max": high,
                "tps_ratio": rounded(line.rate), "p50_ratio": line.p50.map(rounded), "p99_ratio": line.p99.map(rounded),
                "noisy": line.is_noisy,
            })
        };
        let mut all: Vec<Value> = self.lines.iter().map(line).collect();
        for (stage, of) in self.memory.iter().flat_map(|_| STAGES) {
            let (theirs, ours) = self.memory.as_ref().map_or((0.0, 0.0), |(a, b)| (of(a), of(b)));
            let kib = json!({"pgbouncer": rounded(theirs), "pgsteady": rounded(ours)});
            all.push(json!({"case": format!("memory, {stage}"), "clients": 5000, "kib_per_client": kib}));
        }
        Value::Array(all)
    }

    /// Bars of the CPU ratios, with a line where PgBouncer is.
    fn svg(&self) -> String {
        let height = ROW * (self.lines.len() + 2);
        let width = LABELS + usize::from(BARS) + 60;
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             <text x=\"8\" y=\"16\">CPU time per transaction, PgBouncer = 1 (less is better)</text>\n"
        );
        for (index, line) in self.lines.iter().enumerate() {
            let (y, length) = (ROW * (index + 1) + 8, line.cpu[1].min(WIDEST) / WIDEST * f64::from(BARS));
            let fill = if line.cpu[1] <= 1.0 { "#3a7d44" } else { "#b5651d" };
            let (middle, end) = (y + 11, LABELS as f64 + length + 6.0);
            let _ = writeln!(
                text,
                "<text x=\"8\" y=\"{middle}\">{}, {}</text><rect x=\"{LABELS}\" y=\"{y}\" width=\"{length:.0}\" height=\"14\" \
                 fill=\"{fill}\"/><text x=\"{end:.0}\" y=\"{middle}\">{:.2}</text>",
                line.name, line.clients, line.cpu[1]
            );
        }
        let one = LABELS as f64 + f64::from(BARS) / WIDEST;
        let _ = writeln!(
            text,
            "<line x1=\"{one:.0}\" y1=\"{ROW}\" x2=\"{one:.0}\" y2=\"{height}\" stroke=\"black\" stroke-dasharray=\"4 3\"/>\n</svg>"
        );
        text
    }

    /// Writes the three files.
    pub(crate) fn write(&self, folder: &Path) {
        let files = [
            ("results.json", format!("{:#}\n", self.json())),
            ("results.md", self.markdown()),
            ("results.svg", self.svg()),
        ];
        for (name, text) in files {
            let path = folder.join(name);
            fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
}

type Stage = (&'static str, fn(&PerClient) -> f64);

/// What a client has done before its memory is measured.
const STAGES: [Stage; 3] = [
    ("connected", |memory| memory.connected),
    ("after a query", |memory| memory.queried),
    ("after a prepared statement", |memory| memory.prepared),
];

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
