//! What PostgreSQL's own grammar says of a text: one class a statement. It is asked only for texts of bounded length and
//! depth, because it takes 10 to 40 µs and recurses.

use pg_query::protobuf::{
    DeclareCursorStmt, DiscardMode, ExplainStmt, OnCommitAction, RangeVar, RawStmt, SelectStmt, TransactionStmt,
    TransactionStmtKind, a_const,
};
use pg_query::{Node, NodeEnum};

use super::functions::Functions;
use super::reads::{self, Proof, boolean};
use super::settings;
use super::shape::{SessionWords, Shape};
use super::{Class, Effect, Kind, PinReason};

/// CURSOR_OPT_HOLD of PostgreSQL's `nodes/parsenodes.h`.
const CURSOR_OPT_HOLD: i32 = 0x0020;

/// The classes of the statements of a text; `None` if the grammar refuses it.
pub(super) fn classes(text: &str, functions: &Functions) -> Option<Vec<Class>> {
    let parsed = pg_query::parse(text, 0).ok()?;
    let raw = parsed.protobuf.stmts.iter();
    raw.map(|raw| Some(class(raw.stmt.as_deref()?.node.as_ref()?, own_text(raw, text)?, functions))).collect()
}

/// The part of the text that is this statement.
fn own_text<'t>(raw: &RawStmt, text: &'t str) -> Option<&'t str> {
    let rest = text.get(usize::try_from(raw.stmt_location).ok()?..)?;
    match usize::try_from(raw.stmt_len).ok()? {
        0 => Some(rest.trim()),
        length => Some(rest.get(..length)?.trim()),
    }
}

fn class(node: &NodeEnum, text: &str, functions: &Functions) -> Class {
    let words = Shape::of(text.as_bytes(), functions).session;
    let mut statement = Statement {
        functions,
        text,
        local_set_config: 0,
        effects: Vec::new(),
        reads_only: false,
        weakens_commits: false,
    };
    let kind = statement.kind(node);
    statement.pins(&kind, words);
    let mut class = Class::of(kind);
    class.reads_only = statement.reads_only;
    class.weakens_commits = statement.weakens_commits;
    class.effects = statement.effects.into_iter().collect();
    class
}

/// One statement, and what is found out about it.
struct Statement<'t> {
    functions: &'t Functions,
    text: &'t str,
    reads_only: bool,
    weakens_commits: bool,
    effects: Vec<Effect>,
    /// Calls of `set_config` that hold for the transaction only.
    local_set_config: usize,
}

impl Statement<'_> {
    fn kind(&mut self, node: &NodeEnum) -> Kind {
        match node {
            NodeEnum::SelectStmt(select) => self.select(select),
            NodeEnum::InsertStmt(_) | NodeEnum::UpdateStmt(_) | NodeEnum::DeleteStmt(_) | NodeEnum::MergeStmt(_) => {
                Kind::Write
            }
            NodeEnum::ExplainStmt(explain) => self.explain(explain),
            NodeEnum::VariableShowStmt(show) => {
                self.reads_only = reads::shows_the_same(&show.name);
                Kind::Query
            }
            NodeEnum::DeclareCursorStmt(cursor) => self.declare(cursor),
            NodeEnum::FetchStmt(_) | NodeEnum::ClosePortalStmt(_) => Kind::Query,
            NodeEnum::CopyStmt(_) => Kind::Copy,
            NodeEnum::TransactionStmt(transaction) => self.transaction(transaction),
            NodeEnum::VariableSetStmt(set) => {
                let (kind, effects) = settings::set(set, self.text);
                self.weakens_commits = settings::weakens_commits(set);
                self.effects = effects;
                kind
            }
            _ => self.session(node).unwrap_or_else(|| self.other(node)),
        }
    }

    fn select(&mut self, select: &SelectStmt) -> Kind {
        let mut proof = Proof::new(self.functions);
        self.reads_only = proof.select(select);
        self.local_set_config += proof.local_set_config;
        self.weakens_commits |= proof.weakens_commits;
        self.effects.extend(settings::set_config(select));
        match leftmost(select).into_clause.as_deref() {
            Some(into) => {
                self.temporary(into.rel.as_ref(), into.on_commit);
                Kind::Ddl
            }
            None if proof.writes => Kind::Write,
            None => Kind::Query,
        }
    }

    /// EXPLAIN plans; EXPLAIN ANALYZE runs.
    fn explain(&mut self, explain: &ExplainStmt) -> Kind {
        let Some(inner) = explain.query.as_deref().and_then(|query| query.node.as_ref()) else { return Kind::Unknown };
        let runs = explain.options.iter().any(is_analyze);
        let kind = self.kind(inner);
        self.reads_only &= !runs;
        if runs {
            return kind;
        }
        self.effects.clear();
        Kind::Query
    }

    fn declare(&mut self, cursor: &DeclareCursorStmt) -> Kind {
        if cursor.options & CURSOR_OPT_HOLD != 0 {
            self.effects.push(Effect::Pin(PinReason::CursorWithHold));
        }
        if let Some(NodeEnum::SelectStmt(select)) = cursor.query.as_deref().and_then(|query| query.node.as_ref()) {
            let mut proof = Proof::new(self.functions);
            proof.select(select);
            self.local_set_config += proof.local_set_config;
        }
        Kind::Query
    }

    fn transaction(&mut self, transaction: &TransactionStmt) -> Kind {
        use TransactionStmtKind as T;
        let chain = transaction.chain;
        match T::try_from(transaction.kind).unwrap_or(T::Undefined) {
            T::TransStmtBegin | T::TransStmtStart => self.begin(transaction),
            T::TransStmtCommit => Kind::Commit { chain },
            T::TransStmtRollback => Kind::Rollback { chain },
            T::TransStmtSavepoint => Kind::Savepoint,
            T::TransStmtRelease => Kind::Release,
            T::TransStmtRollbackTo => Kind::RollbackTo,
            T::TransStmtPrepare => Kind::PrepareTransaction,
            T::TransStmtCommitPrepared => Kind::CommitPrepared,
            T::TransStmtRollbackPrepared => Kind::RollbackPrepared,
            T::Undefined => Kind::Unknown,
        }
    }

    /// A standby has READ ONLY transactions, but no SERIALIZABLE ones (PostgreSQL manual, "Hot Standby").
    fn begin(&mut self, transaction: &TransactionStmt) -> Kind {
        let (mut read_only, mut serializable) = (None, false);
        for option in &transaction.options {
            let Some(NodeEnum::DefElem(option)) = &option.node else { continue };
            match (option.defname.as_str(), constant(option.arg.as_deref())) {
                ("transaction_read_only", Some(a_const::Val::Ival(on))) => read_only = Some(on.ival != 0),
                ("transaction_isolation", Some(a_const::Val::Sval(level))) => {
                    serializable = level.sval == "serializable";
                }
                _ => {}
            }
        }
        self.reads_only = read_only == Some(true) && !serializable;
        Kind::Begin { read_only }
    }

    /// Statements about the session itself.
    fn session(&mut self, node: &NodeEnum) -> Option<Kind> {
        let pin = |reason| Effect::Pin(reason);
        Some(match node {
            NodeEnum::PrepareStmt(prepare) => {
                self.effects.push(pin(PinReason::Prepare));
                Kind::Prepare(prepare.name.as_str().into())
            }
            NodeEnum::ExecuteStmt(execute) => Kind::Execute(execute.name.as_str().into()),
            NodeEnum::DeallocateStmt(deallocate) if deallocate.isall || deallocate.name.is_empty() => {
                Kind::DeallocateAll
            }
            NodeEnum::DeallocateStmt(deallocate) => Kind::Deallocate(deallocate.name.as_str().into()),
            NodeEnum::DiscardStmt(discard) if discard.target == DiscardMode::DiscardAll as i32 => Kind::DiscardAll,
            NodeEnum::DiscardStmt(_) => Kind::Discard,
            NodeEnum::ListenStmt(listen) => {
                self.effects.push(pin(PinReason::Listen));
                Kind::Listen(listen.conditionname.as_str().into())
            }
            NodeEnum::UnlistenStmt(unlisten) if unlisten.conditionname.is_empty() => Kind::Unlisten(None),
            NodeEnum::UnlistenStmt(unlisten) => Kind::Unlisten(Some(unlisten.conditionname.as_str().into())),
            NodeEnum::LoadStmt(_) => {
                self.effects.push(pin(PinReason::Load));
                Kind::Unknown
            }
            _ => return None,
        })
    }

    fn other(&mut self, node: &NodeEnum) -> Kind {
        match node {
            NodeEnum::CreateStmt(create) => self.temporary(create.relation.as_ref(), create.oncommit),
            NodeEnum::ViewStmt(view) => self.temporary(view.view.as_ref(), 0),
            NodeEnum::CreateSeqStmt(sequence) => self.temporary(sequence.sequence.as_ref(), 0),
            NodeEnum::CreateTableAsStmt(create) => {
                let into = create.into.as_deref();
                self.temporary(into.and_then(|into| into.rel.as_ref()), into.map_or(0, |into| into.on_commit));
            }
            NodeEnum::DoStmt(_)
            | NodeEnum::CallStmt(_)
            | NodeEnum::LockStmt(_)
            | NodeEnum::NotifyStmt(_)
            | NodeEnum::CheckPointStmt(_) => return Kind::Unknown,
            NodeEnum::ConstraintsSetStmt(_) => return Kind::Set { local: true },
            _ => {}
        }
        Kind::Ddl
    }

    /// A temporary relation stays until the session ends, unless it goes with the transaction.
    fn temporary(&mut self, relation: Option<&RangeVar>, on_commit: i32) {
        let temporary = relation.is_some_and(|relation| relation.relpersistence == "t");
        if temporary && on_commit != OnCommitAction::OncommitDrop as i32 {
            self.effects.push(Effect::Pin(PinReason::Temporary));
        }
    }

    /// What follows from the names in it, where the grammar did not explain each of them.
    fn pins(&mut self, kind: &Kind, words: SessionWords) {
        let explained = self.local_set_config + self.effects.iter().filter(|e| matches!(e, Effect::Setting(_))).count();
        if words.set_config > explained {
            self.effects.push(Effect::Pin(PinReason::SetConfig));
        }
        if *kind == Kind::Ddl && words.temporary && self.effects.is_empty() {
            self.effects.push(Effect::Pin(PinReason::Temporary));
        }
        self.effects.extend(words.pins().map(Effect::Pin));
    }
}

/// The arm of a UNION that says INTO, if any does.
fn leftmost(select: &SelectStmt) -> &SelectStmt {
    let mut select = select;
    while let Some(left) = &select.larg {
        select = left;
    }
    select
}

/// `ANALYZE`, `ANALYZE true`, …: anything but a plain no.
fn is_analyze(option: &Node) -> bool {
    let Some(NodeEnum::DefElem(option)) = &option.node else { return true };
    let off = match option.arg.as_deref().and_then(|arg| arg.node.as_ref()) {
        Some(NodeEnum::String(word)) => matches!(word.sval.to_ascii_lowercase().as_str(), "false" | "off"),
        Some(NodeEnum::Integer(number)) => number.ival == 0,
        Some(_) => boolean(option.arg.as_deref()) == Some(false),
        None => false,
    };
    option.defname == "analyze" && !off
}

fn constant(node: Option<&Node>) -> Option<&a_const::Val> {
    match node?.node.as_ref()? {
        NodeEnum::AConst(value) => value.val.as_ref(),
        _ => None,
    }
}
