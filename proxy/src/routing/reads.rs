//! Whether a query that PostgreSQL's grammar has read is proven to read only. It does not look at statements that are no query.
//!
//! A walk over the kinds of nodes that are known to be harmless; any other kind ends the proof. So what a later
//! grammar adds is for the primary until it is added here.
//!
//! Accepted without proof: operators, casts and the input functions of types, columns written `row.function`, views, row
//! security and default expressions. Each could call a volatile function of a user, hardly any does, and what one
//! writes a standby refuses (25006).

use pg_query::protobuf::{CommonTableExpr, FuncCall, RangeVar, SelectStmt, WindowDef, a_const};
use pg_query::{Node, NodeEnum};

use super::functions::Functions;

/// Settings that a standby answers as the primary does: SHOW and `current_setting`. Others (`transaction_read_only`,
/// `in_hot_standby`, `wal_level`, …) are asked to learn about a server: they are for the primary.
const SAME_EVERYWHERE: [&str; 17] = [
    "application_name",
    "bytea_output",
    "client_encoding",
    "client_min_messages",
    "datestyle",
    "extra_float_digits",
    "idle_in_transaction_session_timeout",
    "intervalstyle",
    "lock_timeout",
    "role",
    "search_path",
    "server_encoding",
    "server_version",
    "server_version_num",
    "standard_conforming_strings",
    "statement_timeout",
    "timezone",
];

/// Whether SHOW of this setting says the same everywhere; the settings of extensions and applications have a dot.
pub(super) fn shows_the_same(name: &str) -> bool {
    name.contains('.') || SAME_EVERYWHERE.iter().any(|same| name.eq_ignore_ascii_case(same))
}

/// Walks a query.
pub(super) struct Proof<'f> {
    functions: &'f Functions,
    /// It writes: a part of WITH is INSERT, UPDATE, DELETE or MERGE.
    pub(super) writes: bool,
    /// Calls of `set_config` that surely hold for the transaction only.
    pub(super) local_set_config: usize,
    /// One sets `synchronous_commit` below `on`.
    pub(super) weakens_commits: bool,
}

impl<'f> Proof<'f> {
    pub(super) fn new(functions: &'f Functions) -> Self {
        Self { functions, writes: false, local_set_config: 0, weakens_commits: false }
    }

    /// Whether this query only reads. It is walked to its end in any case, for what else it is asked.
    pub(super) fn select(&mut self, select: &SelectStmt) -> bool {
        let mut holds = select.into_clause.is_none() && select.locking_clause.is_empty();
        let lists = [
            &select.distinct_clause,
            &select.target_list,
            &select.from_clause,
            &select.group_clause,
            &select.window_clause,
            &select.values_lists,
            &select.sort_clause,
        ];
        for list in lists {
            holds &= self.all(list);
        }
        let single = [&select.where_clause, &select.having_clause, &select.limit_offset, &select.limit_count];
        for node in single {
            holds &= self.maybe(node.as_deref());
        }
        for side in [&select.larg, &select.rarg].into_iter().flatten() {
            holds &= self.select(side);
        }
        if let Some(with) = &select.with_clause {
            holds &= self.all(&with.ctes);
        }
        holds
    }

    fn all(&mut self, nodes: &[Node]) -> bool {
        nodes.iter().filter(|node| !self.node(node)).count() == 0 // not `all`: each has to be walked
    }

    fn maybe(&mut self, node: Option<&Node>) -> bool {
        node.is_none_or(|node| self.node(node))
    }

    fn both(&mut self, one: Option<&Node>, two: Option<&Node>) -> bool {
        let one = self.maybe(one);
        self.maybe(two) && one
    }

    fn node(&mut self, node: &Node) -> bool {
        let Some(node) = &node.node else { return true };
        match node {
            NodeEnum::SelectStmt(select) => self.select(select),
            NodeEnum::CommonTableExpr(cte) => self.cte(cte),
            NodeEnum::InsertStmt(_) | NodeEnum::UpdateStmt(_) | NodeEnum::DeleteStmt(_) | NodeEnum::MergeStmt(_) => {
                self.writes = true;
                false
            }
            NodeEnum::FuncCall(call) => self.call(call),
            NodeEnum::RangeVar(relation) => is_same_everywhere(relation),
            _ => self.source(node).or_else(|| self.expression(node)).unwrap_or_else(|| is_leaf(node)),
        }
    }

    /// What stands in FROM, ORDER BY, GROUP BY and the like.
    fn source(&mut self, node: &NodeEnum) -> Option<bool> {
        Some(match node {
            NodeEnum::ResTarget(target) => self.all(&target.indirection) & self.maybe(target.val.as_deref()),
            NodeEnum::JoinExpr(join) => {
                let sides = self.both(join.larg.as_deref(), join.rarg.as_deref());
                self.maybe(join.quals.as_deref()) && sides
            }
            NodeEnum::RangeSubselect(range) => self.maybe(range.subquery.as_deref()),
            NodeEnum::RangeFunction(range) => self.all(&range.functions),
            NodeEnum::List(list) => self.all(&list.items),
            NodeEnum::SortBy(sort) => self.maybe(sort.node.as_deref()),
            NodeEnum::WindowDef(window) => self.window(window),
            NodeEnum::GroupingSet(set) => self.all(&set.content),
            _ => return None,
        })
    }

    fn expression(&mut self, node: &NodeEnum) -> Option<bool> {
        Some(match node {
            NodeEnum::AExpr(e) => self.both(e.lexpr.as_deref(), e.rexpr.as_deref()),
            NodeEnum::BoolExpr(e) => self.all(&e.args),
            NodeEnum::SubLink(e) => self.both(e.testexpr.as_deref(), e.subselect.as_deref()),
            NodeEnum::CaseExpr(e) => {
                let ends = self.both(e.arg.as_deref(), e.defresult.as_deref());
                self.all(&e.args) && ends
            }
            NodeEnum::CaseWhen(e) => self.both(e.expr.as_deref(), e.result.as_deref()),
            NodeEnum::NullTest(e) => self.maybe(e.arg.as_deref()),
            NodeEnum::BooleanTest(e) => self.maybe(e.arg.as_deref()),
            NodeEnum::TypeCast(e) => self.maybe(e.arg.as_deref()),
            NodeEnum::CollateClause(e) => self.maybe(e.arg.as_deref()),
            NodeEnum::NamedArgExpr(e) => self.maybe(e.arg.as_deref()),
            NodeEnum::RowExpr(e) => self.all(&e.args),
            NodeEnum::CoalesceExpr(e) => self.all(&e.args),
            NodeEnum::MinMaxExpr(e) => self.all(&e.args),
            NodeEnum::GroupingFunc(e) => self.all(&e.args),
            NodeEnum::AArrayExpr(e) => self.all(&e.elements),
            NodeEnum::AIndirection(e) => self.all(&e.indirection) & self.maybe(e.arg.as_deref()),
            NodeEnum::AIndices(e) => self.both(e.lidx.as_deref(), e.uidx.as_deref()),
            _ => return None,
        })
    }

    fn cte(&mut self, cte: &CommonTableExpr) -> bool {
        let query = self.maybe(cte.ctequery.as_deref());
        let Some(cycle) = &cte.cycle_clause else { return query };
        self.both(cycle.cycle_mark_value.as_deref(), cycle.cycle_mark_default.as_deref()) && query
    }

    fn window(&mut self, window: &WindowDef) -> bool {
        let lists = self.all(&window.partition_clause) & self.all(&window.order_clause);
        self.both(window.start_offset.as_deref(), window.end_offset.as_deref()) && lists
    }

    fn call(&mut self, call: &FuncCall) -> bool {
        let arguments = self.all(&call.args) & self.all(&call.agg_order) & self.maybe(call.agg_filter.as_deref());
        let window = call.over.as_ref().is_none_or(|window| self.window(window));
        let Some(name) = builtin_name(call) else { return false };
        if name == "set_config" && is_true(call.args.get(2)) {
            self.local_set_config += 1;
        }
        if let ("set_config", Some(setting), Some(value)) = (name, string(call.args.first()), string(call.args.get(1)))
        {
            self.weakens_commits |= super::settings::is_weak_commit(setting, value);
        }
        let shows = name == "current_setting" && string(call.args.first()).is_some_and(shows_the_same);
        (shows || self.functions.knows(name)) && arguments && window
    }
}

/// The name of a function without a schema, or of one in `pg_catalog`.
pub(super) fn builtin_name(call: &FuncCall) -> Option<&str> {
    match call.funcname.as_slice() {
        [name] => string_node(name),
        [schema, name] if string_node(schema) == Some("pg_catalog") => string_node(name),
        _ => None,
    }
}

/// A constant string.
pub(super) fn string(node: Option<&Node>) -> Option<&str> {
    match constant(node?)? {
        a_const::Val::Sval(value) => Some(&value.sval),
        _ => None,
    }
}

/// A constant boolean, in the ways it is written: `true`, `'t'::boolean`, `'on'`.
pub(super) fn boolean(node: Option<&Node>) -> Option<bool> {
    match constant(node?)? {
        a_const::Val::Boolval(value) => Some(value.boolval),
        a_const::Val::Sval(value) => match value.sval.to_ascii_lowercase().as_str() {
            "t" | "true" | "on" | "yes" | "1" => Some(true),
            "f" | "false" | "off" | "no" | "0" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

fn is_true(node: Option<&Node>) -> bool {
    boolean(node) == Some(true)
}

/// A constant, also with a cast that keeps it as it is.
fn constant(node: &Node) -> Option<&a_const::Val> {
    match node.node.as_ref()? {
        NodeEnum::AConst(value) => value.val.as_ref(),
        NodeEnum::TypeCast(cast) => {
            let name = cast.type_name.as_ref()?;
            let keeps = matches!(string_node(name.names.last()?)?, "text" | "bool") && name.array_bounds.is_empty();
            match cast.arg.as_deref()?.node.as_ref()? {
                NodeEnum::AConst(value) if keeps => value.val.as_ref(),
                _ => None,
            }
        }
        _ => None,
    }
}

fn string_node(node: &Node) -> Option<&str> {
    match node.node.as_ref()? {
        NodeEnum::String(name) => Some(&name.sval),
        _ => None,
    }
}

/// Tables of the catalog and views of the server's state are for the primary: who asks means it; and temporary tables
/// are on the one server that has them.
fn is_same_everywhere(relation: &RangeVar) -> bool {
    !relation.schemaname.starts_with("pg_") && !relation.relname.starts_with("pg_")
}

fn is_leaf(node: &NodeEnum) -> bool {
    matches!(
        node,
        NodeEnum::AConst(_)
            | NodeEnum::ColumnRef(_)
            | NodeEnum::ParamRef(_)
            | NodeEnum::AStar(_)
            | NodeEnum::String(_)
            | NodeEnum::Integer(_)
            | NodeEnum::SqlvalueFunction(_)
            | NodeEnum::SetToDefault(_)
    )
}
