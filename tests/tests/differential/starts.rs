//! Starts with files that are wrong: what is logged, and how the program ends if it does. A case is a paragraph of `tests/starts.txt`; what
//! PgBouncer says to each is on record in `tests/starts.heard`.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use harness::folder::{Folder, account};
use harness::pgsteady::program;
use harness::port::Port;
use harness::process;
use nix::sys::signal::Signal;

/// Time for the program to be up, or to end.
const LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(10);

/// One start.
pub(crate) struct Case {
    name: String,
    /// Why what we say is something else.
    differs: Option<String>,
    /// The lines of `[pgbouncer]`, and of what stands in front of it.
    settings: Vec<String>,
    databases: Vec<String>,
    /// Other files, by their names.
    files: Vec<(String, Vec<String>)>,
}

/// What is not the same in two runs, or in two programs, in any line.
const PASSED_OVER: [&str; 5] =
    ["kernel file descriptor limit", "process up", "LOG listening on", "got SIGQUIT", "event_del"];

fn place(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// All cases.
pub(crate) fn cases() -> Vec<Case> {
    let text = fs::read_to_string(place("starts.txt")).expect("the cases");
    text.split("\n\n").filter(|paragraph| paragraph.contains("case: ")).map(Case::read).collect()
}

impl Case {
    fn read(paragraph: &str) -> Self {
        let (settings, databases) = (Vec::new(), Vec::new());
        let mut case = Self { name: String::new(), differs: None, settings, databases, files: Vec::new() };
        for line in paragraph.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let (key, value) = line.split_once(':').unwrap_or_else(|| panic!("no key: {line}"));
            let value = value.strip_prefix(' ').unwrap_or(value).replace("{long}", &"x".repeat(3000));
            match key {
                "case" => case.name = value,
                "differs" => case.differs = Some(value),
                "set" => case.settings.push(value),
                "front" => case.databases.push(value),
                file => match case.files.iter_mut().find(|(name, _)| name == file) {
                    Some((_, lines)) => lines.push(value),
                    None => case.files.push((file.to_owned(), vec![value])),
                },
            }
        }
        case
    }

    /// Starts PgBouncer, if its program is given, or ours; what it says.
    fn start(&self, theirs: Option<&Path>) -> Vec<String> {
        let (folder, port) = (Folder::new("s"), Port::new());
        let here = folder.path().display().to_string();
        for (name, lines) in &self.files {
            folder.write(name, &(lines.join("\n").replace('$', &here) + "\n"));
        }
        let mut ini = "[databases]\n".to_owned() + &self.databases.join("\n");
        let _ = write!(
            ini,
            "\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\nunix_socket_dir = {here}\n{}\n",
            port.number(),
            self.settings.join("\n").replace('$', &here)
        );
        let file = folder.write("pgbouncer.ini", &ini);
        let heard = folder.path().join("heard");
        let mut command = process::bound_to_us(theirs.unwrap_or(&program()));
        if theirs.is_none() {
            command.arg("pgbouncer");
        }
        if let Some(account) = account() {
            command.arg("-u").arg(account.name);
        }
        command.arg(file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&heard).expect("a file"));
        let end = end(&mut command, &heard);
        let text = fs::read_to_string(&heard).expect("what it said").replace(&here, "$");
        let text = text.replace(&port.number().to_string(), "PORT");
        let lines = text.lines().map(|line| match (line.split_once("] "), line.split_once(" FATAL ")) {
            (_, Some((_, said))) => format!("FATAL {said}"),
            (Some((_, said)), None) => said.to_owned(),
            (None, None) => line.to_owned(),
        });
        let told = lines.filter(|line| !PASSED_OVER.iter().any(|passed| line.contains(passed)));
        told.chain([end]).collect()
    }
}

/// Waits until the program is up, and ends it then, or until it has ended by itself.
fn end(command: &mut Command, heard: &Path) -> String {
    let mut child: Child = command.spawn().expect("it can be run");
    let begun = Instant::now();
    let mut is_up = false;
    loop {
        if let Some(status) = child.try_wait().expect("a child can be asked") {
            return if is_up { "up".to_owned() } else { format!("exit {}", status.code().unwrap_or(-1)) };
        }
        if !is_up && fs::read_to_string(heard).is_ok_and(|text| text.contains("process up")) {
            is_up = true;
            process::signal(i32::try_from(child.id()).expect("process numbers are small"), Signal::SIGQUIT);
        }
        if begun.elapsed() > LIMIT {
            let _ = child.kill();
            let _ = child.wait();
            return "neither up nor ended".to_owned();
        }
        std::thread::sleep(POLL);
    }
}

/// All cases with what is said to them, as the record has them.
fn all(theirs: Option<&Path>) -> Vec<String> {
    let said = |case: &Case| format!("{}\n    {}", case.name, case.start(theirs).join("\n    "));
    cases().iter().map(said).collect()
}

#[test]
fn wrong_files_are_told_in_pgbouncers_words() {
    let record = fs::read_to_string(place("starts.heard")).expect("a record: UPDATE=1 make differential");
    let record: Vec<&str> = record.trim_end().split("\n\n").collect();
    let ours = all(None);
    assert_eq!(record.len(), ours.len(), "the record is of other cases: UPDATE=1 make differential");
    let mut wrong = Vec::new();
    for ((case, theirs), ours) in cases().iter().zip(record).zip(&ours) {
        match (&case.differs, theirs == ours) {
            (None, false) => wrong.push(format!("PgBouncer: {theirs}\npgsteady: {ours}\n")),
            (Some(why), true) => wrong.push(format!("{ours}\ndoes not differ, although: {why}")),
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{} differences\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
#[ignore = "needs PgBouncer 1.25: make differential"]
fn pgbouncer_starts_as_is_on_record() {
    let program = PathBuf::from(std::env::var_os("PGBOUNCER").expect("PGBOUNCER names the program: make differential"));
    let heard = all(Some(&program)).join("\n\n") + "\n";
    if std::env::var_os("UPDATE").is_some() {
        fs::write(place("starts.heard"), &heard).expect("a record can be written");
    }
    assert_eq!(fs::read_to_string(place("starts.heard")).ok().as_ref(), Some(&heard));
}
