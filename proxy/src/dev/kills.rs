//! `pgsteady dev --drill`: kill the primary under load, wait until the cluster is whole again, and in the end compare.

use std::time::{Duration, Instant, SystemTime};

use topology::{Role, Topology, Watch};

use super::cluster::Cluster;
use super::front::Front;
use super::say;
use crate::drill::{Failover, KILL_FOLLOWS, Load, Moments, Report, rows};

/// Bound on the cluster being whole: a primary, and all others streaming from it.
const WHOLE: Duration = Duration::from_secs(180);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// Kills the primary so many times.
pub(super) async fn run(kills: u16, load: Load, cluster: &Cluster, front: &Front) -> Result<Report, String> {
    let mut moments = Vec::new();
    for number in 1..=kills {
        let topology = front.watch.now();
        let primary = topology.primary.ok_or_else(|| format!("there is no primary to kill: {}", topology.why))?;
        let name = topology.nodes[primary].name.clone();
        say(&format!("kill {number} of {kills}: kill -9 of the primary {name}"));
        let at = SystemTime::now();
        let killed = cluster.kill(primary).await?;
        until_replaced(&front.watch, topology.epoch).await?;
        let failover = front.failover_after(at).await;
        until_whole(&front.watch, cluster).await?;
        let whole = Instant::now();
        say(&format!("whole again after {:.1} s", whole.duration_since(killed).as_secs_f64()));
        moments.push(Moments { killed, whole, failover: failover.map(|record| Failover::of(&record, at)) });
        tokio::time::sleep(KILL_FOLLOWS).await;
    }
    let records = load.stop().await;
    // past the proxy
    let primary = front.watch.now().primary.ok_or("there is no primary in the end")?;
    let found = rows(&cluster.direct(primary)).await?;
    Ok(Report::new(&moments, &records, &found))
}

/// Waits until there is a primary of a later epoch.
async fn until_replaced(watch: &Watch, epoch: u64) -> Result<(), String> {
    let mut snapshots = watch.subscribe();
    let replaced = snapshots.wait_for(|topology| topology.primary.is_some() && topology.epoch > epoch);
    match tokio::time::timeout(WHOLE, replaced).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) => Err("the monitor has ended".into()),
        Err(_) => Err(format!("no new primary within {} s: {}", WHOLE.as_secs(), watch.now().why)),
    }
}

/// Waits until there is a primary and every other node streams from it, as a standby that its rule counts.
pub(super) async fn until_whole(watch: &Watch, cluster: &Cluster) -> Result<(), String> {
    let started = Instant::now();
    while started.elapsed() < WHOLE {
        let topology = watch.now();
        if is_whole(&topology) && streaming(cluster, &topology).await == Some(cluster.size() - 1) {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
    let topology = watch.now();
    let nodes = topology.nodes.iter().map(|node| format!("{} {:?} {}", node.name, node.role, node.why));
    let nodes: Vec<String> = nodes.collect();
    Err(format!("not whole within {} s: {}; {}", WHOLE.as_secs(), topology.why, nodes.join(", ")))
}

fn is_whole(topology: &Topology) -> bool {
    let standbys = topology.nodes.iter().filter(|node| node.role == Role::Standby).count();
    topology.primary.is_some() && standbys + 1 == topology.nodes.len()
}

async fn streaming(cluster: &Cluster, topology: &Topology) -> Option<usize> {
    let client = cluster.upstream(topology.primary?).connect().await.ok()?;
    let asked =
        "select count(*) from pg_stat_replication where state = 'streaming' and sync_state in ('sync', 'quorum')";
    let count: i64 = client.query_one(asked, &[]).await.ok()?.get(0);
    usize::try_from(count).ok()
}
