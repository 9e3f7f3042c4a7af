//! What a change of primary costs, measured: clients that write all the time and note what was acknowledged to them
//! (`load.rs`), and the comparison with what is there afterwards (`report.rs`).

use std::collections::HashMap;

use tokio_postgres::Config;

mod load;
mod report;

pub(crate) use load::{KILL_FOLLOWS, Load};
pub(crate) use report::{Failover, Moments, Report};

use load::{TABLE, connect, text};

/// How often each row (client, number) of the load is there, as the primary says.
pub(crate) async fn rows(place: &Config) -> Result<HashMap<(i32, i64), i64>, String> {
    let asked = format!("select client, number, count(*) from {TABLE} group by client, number");
    let counted = async {
        let client = connect(place).await?;
        // the lock keeps this from being sent to a standby
        client.batch_execute(&format!("begin; lock table {TABLE} in share mode")).await?;
        client.query(&asked, &[]).await
    };
    let rows = counted.await.map_err(|error| format!("count the rows: {}", text(&error)))?;
    Ok(rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect())
}

/// Removes the table of the load.
pub(crate) async fn remove(place: &Config) -> Result<(), String> {
    let removed = async { connect(place).await?.batch_execute(&format!("drop table {TABLE}")).await };
    removed.await.map_err(|error| format!("the table {TABLE} is not removed: {}", text(&error)))
}
