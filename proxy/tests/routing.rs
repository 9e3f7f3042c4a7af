//! The classifier from outside: the table of statements, and PostgreSQL's grammar as the oracle of the lexer.

use std::fmt::Write as _;

use proptest::prelude::*;
use proxy::routing::{
    Change, Class, Classifier, ClassifierLimits, Effect, Functions, Kind, MAX_GRAMMAR_BYTES, MAX_NESTING,
};

const STATEMENTS: &str = include_str!("routing/statements.txt");
const LIMITS: ClassifierLimits = ClassifierLimits { entries: 1_000, bytes: 1_000_000, statement_bytes: 100_000 };

fn classify(text: &str) -> Class {
    Classifier::new(LIMITS).classify(text.as_bytes())
}

/// The lines of the table: class and what it leaves, and text.
fn table() -> Vec<(String, String)> {
    let lines = STATEMENTS.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (head, rest) = line.split_once(" =").expect("class = text");
            let rest = rest.strip_prefix(' ').unwrap_or(rest);
            let marks = [" ; pin:", " ; set:", " ; local ", " ; reset", " ["];
            let end = marks.iter().filter_map(|mark| rest.find(mark)).min();
            let end = end.filter(|_| rest.starts_with(|first: char| first != '[')).unwrap_or(rest.len());
            let (text, tail) = rest.split_at(end);
            (format!("{head}{tail}"), text.replace("\\n", "\n"))
        })
        .collect()
}

fn shown(class: &Class) -> String {
    let mut text = kind(&class.kind);
    if class.reads_only {
        text += " reads";
    }
    if let Some(hint) = class.hint {
        let _ = write!(text, " @{hint}");
    }
    for part in class.parts.iter() {
        let _ = write!(text, " [{}]", shown(part));
    }
    let effects: Vec<String> = class.effects.iter().map(effect).collect();
    if effects.is_empty() { text } else { format!("{text} ; {}", effects.join(" ")) }
}

fn kind(kind: &Kind) -> String {
    match kind {
        Kind::Begin { read_only: None } => "Begin".into(),
        Kind::Begin { read_only: Some(true) } => "Begin(read only)".into(),
        Kind::Begin { read_only: Some(false) } => "Begin(read write)".into(),
        Kind::Commit { chain } => if *chain { "Commit(chain)" } else { "Commit" }.into(),
        Kind::Rollback { chain } => if *chain { "Rollback(chain)" } else { "Rollback" }.into(),
        Kind::Set { local } => if *local { "Set(local)" } else { "Set" }.into(),
        Kind::Prepare(name) => format!("Prepare({name})"),
        Kind::Execute(name) => format!("Execute({name})"),
        Kind::Deallocate(name) => format!("Deallocate({name})"),
        Kind::Listen(name) => format!("Listen({name})"),
        Kind::Unlisten(name) => format!("Unlisten({})", name.as_deref().unwrap_or("*")),
        plain => format!("{plain:?}"),
    }
}

fn effect(effect: &Effect) -> String {
    match effect {
        Effect::Pin(reason) => format!("pin:{reason:?}"),
        Effect::Setting(setting) => {
            let local = if setting.local { "local " } else { "" };
            match &setting.change {
                Change::Set(text) => format!("{local}set:{}<{text}>", setting.name),
                Change::Reset => format!("{local}reset:{}", setting.name),
                Change::ResetAll => format!("{local}reset all"),
            }
        }
    }
}

#[test]
fn each_statement_of_the_table_is_what_the_table_says() {
    let table = table();
    assert!(table.len() > 200, "{} statements", table.len());
    let mut wrong = String::new();
    for (expected, text) in &table {
        let found = shown(&classify(text));
        if found != *expected {
            let _ = writeln!(wrong, "{text}\n    expected {expected}\n    found    {found}");
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn a_class_from_the_cache_is_the_class_that_was_read() {
    let mut classifier = Classifier::new(LIMITS);
    for (_, text) in table() {
        let first = classifier.classify(text.as_bytes());
        assert_eq!(classifier.classify(text.as_bytes()), first, "{text}");
    }
    assert!(classifier.size().0 > 200);
}

#[test]
fn what_is_too_long_is_not_kept_goes_to_the_primary_and_is_told_by_its_first_word() {
    let mut classifier = Classifier::new(ClassifierLimits { statement_bytes: 60, ..LIMITS });
    let long = |text: &str| format!("{text} /* {} */", "x".repeat(60));
    let class = classifier.classify(long("SELECT f(1)").as_bytes());
    assert_eq!((class.reads_only, &class.kind), (false, &Kind::Query));
    assert_eq!(classifier.classify(long("COMMIT AND CHAIN").as_bytes()).kind, Kind::Commit { chain: true });
    assert_eq!(shown(&classifier.classify(long("SET a.b = 1").as_bytes())), "Unknown ; pin:Unread");
    assert_eq!(
        shown(&classifier.classify(long("SELECT set_config('a', 'b', false)").as_bytes())),
        "Query ; pin:Unread"
    );
    assert_eq!(shown(&classifier.classify(long("UPDATE t SET a = 1").as_bytes())), "Write");
    assert_eq!(classifier.size(), (0, 0));
    let mut classifier = Classifier::new(LIMITS);
    let column = "a, ".repeat(MAX_GRAMMAR_BYTES / 3);
    assert!(classifier.classify(format!("SELECT {column} a FROM t").as_bytes()).reads_only, "the lexer has no limit");
    let class = classifier.classify(format!("SELECT {column} lower(a) FROM t x (a)").as_bytes());
    assert_eq!(shown(&class), "Query", "too long for the grammar");
}

#[test]
fn bytes_that_are_no_utf_8_go_to_the_primary_and_keep_the_server_where_they_may_leave_something() {
    let mut classifier = Classifier::new(LIMITS);
    let latin1 = classifier.classify(b"SELECT f('h\xe9')");
    assert_eq!((latin1.reads_only, shown(&latin1)), (false, "Query".to_owned()));
    assert_eq!(shown(&classifier.classify(b"SET a.b = 'h\xe9'")), "Unknown ; pin:Unread");
    assert_eq!(shown(&classifier.classify(b"INSERT INTO temp VALUES ('h\xe9')")), "Write");
    assert_eq!(shown(&classifier.classify(b"SELECT 1\0; SET a.b = 1")), "Several ; pin:Unread");
}

/// Deep texts, on the stack of a thread as Rust makes it (2 MiB): no overflow, no proof.
#[test]
fn deep_nesting_is_refused_before_the_grammar_and_never_overflows_the_stack() {
    let nested = |open: &str, inner: &str, close: &str, depth: usize| {
        format!("SELECT {}{inner}{}", open.repeat(depth), close.repeat(depth))
    };
    let texts = move || {
        [1, 50, 99, 100, 101, 400, 1_500, 10_000].into_iter().flat_map(move |depth| {
            [
                nested("(", "1", ")", depth),
                nested("f(", "1", ")", depth),
                nested("(SELECT ", "f(1)", ")", depth),
                nested("ARRAY[", "f(1)", "]", depth),
                nested("NOT ", "f(1)", "", depth),
                nested("- ", "f(1)", "", depth),
                nested("CASE WHEN ", "f(1)", " THEN 1 END", depth),
                nested("", "f(1)", " + 1", depth),
                nested("", "f(1)", " UNION SELECT 1", depth),
                nested("", "* FROM f(1)", " CROSS JOIN t", depth),
                nested("", "f(1)", "::text", depth),
                nested("", "f(1)", " COLLATE \"C\"", depth),
            ]
        })
    };
    let thread = std::thread::spawn(move || {
        let mut classifier = Classifier::new(ClassifierLimits { statement_bytes: 1_000_000, ..LIMITS });
        for text in texts() {
            let class = classifier.classify(text.as_bytes());
            assert!(!class.reads_only || !text.contains("f("), "{}", &text[..80.min(text.len())]);
        }
        let deep = |depth| format!("SELECT {}1{}", "(".repeat(depth), ")".repeat(depth));
        assert!(classifier.classify(deep(MAX_NESTING).as_bytes()).reads_only);
        assert!(!classifier.classify(deep(MAX_NESTING + 1).as_bytes()).reads_only);
    });
    thread.join().expect("no panic");
}

#[test]
fn a_function_that_is_allowed_may_be_called() {
    let mut functions = Functions::builtin();
    functions.allow("F");
    let mut classifier = Classifier::with_functions(LIMITS, functions);
    assert!(classifier.classify(b"SELECT f(1)").reads_only);
    assert!(classifier.classify(b"SELECT f(1) FROM t AS x (a)").reads_only);
    assert!(!classifier.classify(b"SELECT g(1)").reads_only);
}

/// Statements in which the lexer and the grammar are compared: those of the table, and pairs of them.
#[test]
fn the_lexer_finds_as_many_statements_as_the_grammar() {
    let table = table();
    let mut compared = 0;
    for (index, (_, one)) in table.iter().enumerate() {
        let (_, two) = &table[(index * 7 + 3) % table.len()];
        for text in [one.clone(), format!("{one}\n;{two}"), format!("{two}\n;;{one}\n;{two}")] {
            let Ok(parsed) = pg_query::parse(&text, 0) else { continue };
            let words = ["BEGIN ATOMIC", "CREATE RULE"]; // semicolons within a statement: the grammar's business
            if words.iter().any(|word| text.contains(word)) {
                continue;
            }
            let class = classify(&text);
            let found =
                if class.kind == Kind::Several { class.parts.len() } else { usize::from(class.kind != Kind::Empty) };
            assert_eq!(found, parsed.protobuf.stmts.len(), "{text}");
            compared += 1;
        }
    }
    assert!(compared > 500, "{compared} compared");
}

const PIECES: [&str; 40] = [
    "SELECT ",
    "1",
    " FROM t ",
    "(",
    ")",
    ", ",
    "'a;b'",
    "E'\\';'",
    "$$;$$",
    "$a$ ' $a$",
    "/* ; */",
    "/* /* */ */",
    "-- ;\n",
    ";",
    " lower(a) ",
    " nextval('s') ",
    " f (1) ",
    "\"f\"(1)",
    " my.f(1) ",
    " FOR UPDATE ",
    " INTO u ",
    "INSERT INTO t VALUES (1)",
    "DELETE FROM t ",
    "WITH x AS (",
    ") SELECT 1 ",
    " RETURNING 1 ",
    "VALUES (1) ",
    "TABLE t ",
    " UNION ",
    " AS x (a) ",
    " WHERE a = ",
    " ARRAY[1] ",
    " count(*) ",
    " OVER (ORDER BY a) ",
    "EXPLAIN ",
    "ANALYZE ",
    "U&\"\\0066\"(1) ",
    "B'1'",
    " IN (1, 2) ",
    " pg_stat_activity ",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    /// Whatever is proven to read only is, by the grammar, made of queries alone, without INTO, locks, or calls of what is not
    /// known; and a text of several statements is never taken for one.
    #[test]
    fn the_grammar_never_contradicts_the_lexer(pieces in proptest::collection::vec(prop::sample::select(&PIECES[..]), 1..12)) {
        let text = pieces.concat();
        let class = classify(&text);
        if let Ok(parsed) = pg_query::parse(&text, 0) {
            let count = parsed.protobuf.stmts.len();
            prop_assert_eq!(count > 1, class.kind == Kind::Several, "{}", text);
            prop_assert_eq!(count == 0, class.kind == Kind::Empty, "{}", text);
            if class.reads_only {
                prop_assert!(only_reads(&parsed), "{}", text);
            }
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let class = Classifier::new(LIMITS).classify(&bytes);
        prop_assert!(class.parts.is_empty() || class.kind == Kind::Several);
    }
}

/// The oracle: by names in the debug form of the tree, independent of how the classifier walks it.
fn only_reads(parsed: &pg_query::ParseResult) -> bool {
    let tree = format!("{:?}", parsed.protobuf);
    let forbidden = [
        "InsertStmt",
        "UpdateStmt",
        "DeleteStmt",
        "MergeStmt",
        "LockingClause",
        "into_clause: Some",
        "relname: \"pg_stat_activity\"",
    ];
    let calls = ["\"nextval\"", "\"f\"", "\"my\""];
    let is_call = |name: &str| {
        tree.match_indices("funcname: [").any(|(at, _)| {
            let rest = &tree[at..];
            rest[..rest.find(']').unwrap_or(rest.len())].contains(name)
        })
    };
    !forbidden.iter().any(|word| tree.contains(word)) && !calls.iter().any(|name| is_call(name))
}
