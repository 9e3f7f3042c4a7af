//! `synchronous_standby_names`, and since when commits wait for those that it names.
//!
//! A commit waits at all only if a flag in PostgreSQL's shared memory says so. The checkpointer sets it when it reads the setting,
//! which it does not do in the midst of a checkpoint: until then every session shows the names, and commits are
//! acknowledged at once (measured with PostgreSQL 15). The flag is off only while the setting is empty. So a node that named nobody
//! is given the rule in lower case first, `any 1 ("n2")`, which PostgreSQL takes for the same; when the checkpointer has
//! read that, it becomes `ANY 1 ("n2")`. Whoever finds capitals knows that the flag is on: the node itself says so.

use std::time::Duration;

use super::{ActError, Ground, identifier, literal};

/// Between two looks that both have to find the checkpointer where a reload wakes it: by then it has read the setting.
const AWAKE: Duration = Duration::from_millis(20);
/// What it waits for where it reads its settings as soon as they change: between checkpoints, and between the writes of a
/// spread one.
const READS: [&str; 2] = ["CheckpointerMain", "CheckpointWriteDelay"];

const ANY: &str = "ANY ";
const UNREAD: &str = "any ";

/// `ANY k ("a", "b")`; empty without a cohort: nothing is waited for.
#[must_use]
pub fn rule_text(k: u32, cohort: &[impl AsRef<str>]) -> String {
    if cohort.is_empty() || k == 0 {
        return String::new();
    }
    let names: Vec<String> = cohort.iter().map(|name| identifier(name.as_ref())).collect();
    format!("{ANY}{k} ({})", names.join(", "))
}

/// Whether commits may be acknowledged in spite of these names, because the checkpointer has perhaps not read any yet.
pub(crate) fn is_unread(names: &str) -> bool {
    names.trim().is_empty() || names.starts_with(UNREAD)
}

/// Sets the names to `rule`. Returns when sessions show it, and commits wait for somebody if it names anybody.
pub(super) async fn establish(ground: &Ground, rule: &str) -> Result<(), ActError> {
    let names = shown(ground).await?;
    if names == rule {
        return Ok(());
    }
    if let Some(rest) = rule.strip_prefix(ANY).filter(|_| is_unread(&names)) {
        let unread = format!("{UNREAD}{rest}");
        if names != unread {
            set(ground, &unread).await?;
        }
        read_by_the_checkpointer(ground).await?;
    }
    set(ground, rule).await
}

async fn shown(ground: &Ground) -> Result<String, ActError> {
    ground.get(&ground.row("SELECT current_setting('synchronous_standby_names') AS names", &[]).await?, "names")
}

async fn set(ground: &Ground, rule: &str) -> Result<(), ActError> {
    let setting = format!("ALTER SYSTEM SET synchronous_standby_names = {}", literal(rule));
    let (set, reloaded) = tokio::join!(ground.execute(&setting), ground.execute("SELECT pg_reload_conf()"));
    set.and(reloaded)?;
    while shown(ground).await? != rule {
        ground.wait(|| "synchronous_standby_names is not in force".into()).await?;
    }
    Ok(())
}

/// The postmaster tells sessions of a reload before the checkpointer; when a session sees the next reload, it has told both of
/// this one.
async fn read_by_the_checkpointer(ground: &Ground) -> Result<(), ActError> {
    const LOADED: &str = "SELECT pg_conf_load_time()::text AS loaded";
    const WAIT: &str =
        "SELECT coalesce((SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'checkpointer'), '') AS wait";
    let loaded = async || ground.get::<String>(&ground.row(LOADED, &[]).await?, "loaded");
    let before = loaded().await?;
    ground.execute("SELECT pg_reload_conf()").await?;
    while loaded().await? == before {
        ground.wait(|| "the reload has not come into force".into()).await?;
    }
    let mut reads = 0;
    loop {
        let wait: String = ground.get(&ground.row(WAIT, &[]).await?, "wait")?;
        reads = if READS.contains(&wait.as_str()) { reads + 1 } else { 0 };
        if reads == 2 {
            return Ok(());
        }
        let seen = || format!("the checkpointer is busy ({wait:?}) and has not read synchronous_standby_names");
        ground.wait_for(AWAKE, seen).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_nobody_or_is_in_lower_case_may_be_unread() {
        assert_eq!(rule_text(1, &["n2", "n\"3"]), r#"ANY 1 ("n2", "n""3")"#);
        assert_eq!((rule_text(0, &["n2"]), rule_text(1, &[] as &[&str])), (String::new(), String::new()));
        for names in ["", " ", "any 1 (\"n2\")"] {
            assert!(is_unread(names), "{names}");
        }
        for names in ["ANY 1 (\"n2\")", "*", "FIRST 1 (n2)", "n2"] {
            assert!(!is_unread(names), "{names}");
        }
    }
}
