//! What SET, RESET and plain calls of `set_config` do to the settings of a session. It does not track them.

use pg_query::protobuf::{FuncCall, SelectStmt, VariableSetKind, VariableSetStmt, a_const};
use pg_query::{Node, NodeEnum};

use super::reads::{boolean, builtin_name, string};
use super::{Change, Effect, Kind, SettingChange};
use crate::settings::is_below_on;

/// What a SET or RESET is, and what it leaves. `text` is the statement itself: it makes the setting again.
pub(super) fn set(statement: &VariableSetStmt, text: &str) -> (Kind, Vec<Effect>) {
    let name = statement.name.to_ascii_lowercase();
    // SET transaction_isolation = … and the like hold for one transaction, however they are written
    let local = statement.is_local || name.starts_with("transaction_");
    let kind = VariableSetKind::try_from(statement.kind).unwrap_or(VariableSetKind::Undefined);
    let one = |change| vec![setting(&name, change, local)];
    match kind {
        VariableSetKind::VarSetValue => (Kind::Set { local }, one(Change::Set(text.into()))),
        VariableSetKind::VarSetDefault if local => (Kind::Set { local }, one(Change::Reset)),
        VariableSetKind::VarSetDefault | VariableSetKind::VarReset => (Kind::Reset, one(Change::Reset)),
        VariableSetKind::VarResetAll => (Kind::Reset, vec![setting("", Change::ResetAll, false)]),
        VariableSetKind::VarSetMulti if name == "session characteristics" => {
            (Kind::Set { local: false }, characteristics(&statement.args))
        }
        VariableSetKind::VarSetMulti => (Kind::Set { local: true }, Vec::new()), // SET TRANSACTION
        VariableSetKind::VarSetCurrent | VariableSetKind::Undefined => (Kind::Unknown, Vec::new()), // refused here
    }
}

/// Whether a SET lets commits be acknowledged that no standby has flushed.
pub(super) fn weakens_commits(statement: &VariableSetStmt) -> bool {
    let [Node { node: Some(NodeEnum::AConst(value)) }] = statement.args.as_slice() else { return false };
    let value = match &value.val {
        Some(a_const::Val::Sval(word)) => word.sval.clone(),
        Some(a_const::Val::Ival(number)) => number.ival.to_string(),
        Some(a_const::Val::Boolval(value)) => value.boolval.to_string(),
        _ => return false,
    };
    is_weak_commit(&statement.name, &value)
}

/// Whether a setting is `synchronous_commit`, and the value is below `on`.
pub(super) fn is_weak_commit(name: &str, value: &str) -> bool {
    name.eq_ignore_ascii_case("synchronous_commit") && is_below_on(value)
}

fn setting(name: &str, change: Change, local: bool) -> Effect {
    Effect::Setting(SettingChange { name: name.into(), change, local })
}

/// SET SESSION CHARACTERISTICS AS TRANSACTION is SET of `default_transaction_…` (PostgreSQL manual, SET TRANSACTION).
fn characteristics(modes: &[Node]) -> Vec<Effect> {
    let mode = |node: &Node| {
        let Some(NodeEnum::DefElem(mode)) = &node.node else { return None };
        let name = format!("default_{}", mode.defname);
        let value = match mode.arg.as_deref()?.node.as_ref()? {
            NodeEnum::AConst(value) => match value.val.as_ref()? {
                a_const::Val::Sval(word) => literal(&word.sval),
                a_const::Val::Ival(number) => if number.ival == 0 { "off" } else { "on" }.to_owned(),
                _ => return None,
            },
            _ => return None,
        };
        let text = format!("SET {name} = {value}");
        Some(setting(&name, Change::Set(text.into()), false))
    };
    modes.iter().filter_map(mode).collect()
}

/// The settings that a plain `SELECT set_config(…), …` makes for the session, all of constants. It has no FROM or
/// WHERE, so that each call runs once.
pub(super) fn set_config(select: &SelectStmt) -> Vec<Effect> {
    let plain = select.from_clause.is_empty()
        && select.where_clause.is_none()
        && select.having_clause.is_none()
        && select.limit_count.is_none()
        && select.limit_offset.is_none()
        && select.with_clause.is_none()
        && select.larg.is_none();
    let targets = if plain { select.target_list.as_slice() } else { &[] };
    targets.iter().filter_map(target).filter_map(session_setting).collect()
}

fn target(node: &Node) -> Option<&FuncCall> {
    let Some(NodeEnum::ResTarget(target)) = &node.node else { return None };
    match target.val.as_deref()?.node.as_ref()? {
        NodeEnum::FuncCall(call) => Some(call),
        _ => None,
    }
}

fn session_setting(call: &FuncCall) -> Option<Effect> {
    let [name, value, _] = call.args.as_slice() else { return None };
    if builtin_name(call)? != "set_config" || boolean(call.args.get(2))? {
        return None;
    }
    let (name, value) = (string(Some(name))?, string(Some(value))?);
    let text = format!("SELECT pg_catalog.set_config({}, {}, false)", literal(name), literal(value));
    Some(setting(&name.to_ascii_lowercase(), Change::Set(text.into()), false))
}

/// A string constant that reads the same whatever `standard_conforming_strings` is.
fn literal(value: &str) -> String {
    let escape = if value.contains('\\') { " E" } else { "" };
    format!("{escape}'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_literal_ends_where_it_should() {
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"a\'b"), r" E'a\\''b'");
        assert_eq!(literal(""), "''");
    }
}
