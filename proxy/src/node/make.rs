//! A new cluster: its data directory, its access rules, and the role with which standbys follow.

use topology::node::{Init, NodeError, Settings};

use super::Plan;

/// What pg_rewind asks of a source that is not a superuser (its manual page), and what we ask: a checkpoint, and the
/// history of the timelines.
const REPLICATION_GRANTS: [&str; 6] = [
    "pg_checkpoint",
    "execute on function pg_catalog.pg_ls_dir(text, boolean, boolean)",
    "execute on function pg_catalog.pg_stat_file(text, boolean)",
    "execute on function pg_catalog.pg_read_binary_file(text)",
    "execute on function pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean)",
    "execute on function pg_catalog.pg_read_file(text)",
];

impl Plan {
    /// Makes the cluster and starts it, read-write.
    pub(super) async fn initialise(&mut self) -> Result<(), NodeError> {
        let site = self.node.site().clone();
        let home = site.data.parent().unwrap_or(&site.data);
        let file = home.join("superuser-password");
        self.node.account().write(&file, &format!("{}\n", self.password))?;
        let settings = Settings { synchronous_standby_names: self.rule(), ..Settings::default() };
        let init = Init { settings, hba: Some(self.access()), password_file: Some(file.clone()), sync: true };
        let made = self.node.init(&init).await;
        std::fs::remove_file(&file).map_err(|error| NodeError::Io { what: "remove", path: file, error })?;
        made?;
        self.node.start_primary().await?;
        self.make_replication_role().await
    }

    /// All others: whoever of them has a commit, it is acknowledged.
    fn rule(&self) -> String {
        let names: Vec<&str> = self.peers.others.iter().map(|peer| peer.name.as_str()).collect();
        match usize::from(self.synchronous).min(names.len()) {
            0 => String::new(),
            count => format!("ANY {count} ({})", names.join(", ")),
        }
    }

    /// The Unix socket is in a folder that only the account may enter; everybody else proves who he is.
    fn access(&self) -> String {
        let lines = ["local all all trust", "local replication all trust", "host all all all scram-sha-256"];
        let replication = format!("host replication {} all scram-sha-256", identifier(&self.replication_user));
        format!("# made by pgsteady node\n{}\n{replication}\n", lines.join("\n"))
    }

    async fn make_replication_role(&self) -> Result<(), NodeError> {
        let sql = |error| NodeError::Sql { what: "make the replication role".into(), error };
        let client = self.node.connect().await?;
        // no standby is there yet to wait for
        client.batch_execute("set synchronous_commit = local").await.map_err(sql)?;
        let name = identifier(&self.replication_user);
        let password = self.replication_password.replace('\'', "''");
        // neither the log nor pg_stat_statements gets to see it
        client.batch_execute("set log_statement = 'none'; set log_min_error_statement = 'panic'").await.map_err(sql)?;
        let role =
            format!("set standard_conforming_strings = on; create role {name} login replication password '{password}'");
        client.batch_execute(&role).await.map_err(sql)?;
        for grant in REPLICATION_GRANTS {
            client.batch_execute(&format!("grant {grant} to {name}")).await.map_err(sql)?;
        }
        // the monitor makes the term table later; who comes back under a fence reads it
        let term = format!(
            "create schema pgsteady; grant usage on schema pgsteady to {name}; \
             alter default privileges in schema pgsteady grant select on tables to {name}"
        );
        client.batch_execute(&term).await.map_err(sql)
    }
}

fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
