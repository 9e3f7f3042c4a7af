//! The life of a node: decide what it is to be, start it, stay with it until it ends or is asked to stop.

use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use topology::node::{NodeError, Stop};

use super::decide::{Own, Question, Step, decide};
use super::peers::{Answer, ask};
use super::{Plan, say};

/// Between two rounds of questions while there is nothing to start.
const ROUND: Duration = Duration::from_secs(1);
/// How often the reason for waiting is said again.
const SAY_AGAIN: Duration = Duration::from_secs(30);
/// How long nobody must have answered before a cluster is made: peers that start take this long to answer.
const SETTLED: Duration = Duration::from_secs(5);
/// Between two looks at a running node.
const LOOK: Duration = Duration::from_secs(3);
/// How long a standby may be without its primary, although there is one, before it comes back another way.
const DETACHED: Duration = Duration::from_secs(30);

/// Runs until it is asked to stop, or cannot go on.
pub(super) async fn run(mut plan: Plan) -> Result<(), NodeError> {
    let mut asked = Asked::new()?;
    loop {
        let started = tokio::select! {
            started = Box::pin(start(&mut plan)) => started,
            how = asked.stop_word() => return stop(&mut plan, how).await,
        };
        if let Err(error) = started {
            say(&plan.own.name, &error.to_string());
            plan.node.kill().await?;
            tokio::select! {
                () = tokio::time::sleep(ROUND) => continue,
                _ = asked.stop_word() => return Ok(()),
            }
        }
        if let Some(how) = stay(&mut plan, &mut asked).await? {
            return stop(&mut plan, how).await;
        }
    }
}

/// Stays with a running node until it has to be started again, or is asked to stop.
async fn stay(plan: &mut Plan, asked: &mut Asked) -> Result<Option<Stop>, NodeError> {
    let mut look = Look::default();
    loop {
        tokio::select! {
            ended = plan.node.exited() => {
                say(&plan.own.name, &format!("PostgreSQL ended ({})", ended?));
                return Ok(None);
            }
            word = asked.next() => match word {
                Word::Stop(how) => return Ok(Some(how)),
                Word::Reload => plan.node.reload()?,
            },
            () = tokio::time::sleep(LOOK) => {
                if let Some(why) = look.at(plan).await {
                    say(&plan.own.name, &why);
                    // a primary that was replaced must not even end its statements
                    plan.node.kill().await?;
                    return Ok(None);
                }
            }
        }
    }
}

async fn stop(plan: &mut Plan, how: Stop) -> Result<(), NodeError> {
    say(&plan.own.name, "stopping");
    plan.node.stop(how).await
}

/// Asks around until there is something to start, and starts it.
async fn start(plan: &mut Plan) -> Result<(), NodeError> {
    let names: Vec<String> = plan.peers.others.iter().map(|peer| peer.name.clone()).collect();
    let began = Instant::now();
    let mut said: Option<(String, Instant)> = None;
    loop {
        let answers = plan.peers.ask().await;
        let (own, alone) = (own(plan), plan.alone);
        let question =
            Question { own, name: &plan.own.name, names: &names, answers: &answers, first: plan.peers.first, alone };
        let step = match decide(&question) {
            Step::Initialise if began.elapsed() < SETTLED && !names.is_empty() => {
                Step::Wait("seeing whether there is a cluster".into())
            }
            step => step,
        };
        if let Step::Wait(why) = step {
            let again = said.as_ref().is_none_or(|(text, at)| *text != why || at.elapsed() > SAY_AGAIN);
            if again {
                say(&plan.own.name, &format!("waiting: {why}"));
                said = Some((why, Instant::now()));
            }
            tokio::time::sleep(ROUND).await;
            continue;
        }
        return take(plan, step, &names).await;
    }
}

fn own(plan: &Plan) -> Own {
    if plan.node.exists() {
        return if plan.node.is_marked_standby() { Own::Standby } else { Own::Primary };
    }
    if plan.node.has_remains() { Own::Remains } else { Own::Empty }
}

async fn take(plan: &mut Plan, step: Step, names: &[String]) -> Result<(), NodeError> {
    let name = plan.own.name.clone();
    match step {
        Step::Initialise => {
            say(&name, "making a new cluster");
            plan.initialise().await?;
            say(&name, "is the primary of a new cluster");
        }
        Step::Clone(peer) | Step::Rejoin(peer) => {
            say(&name, &format!("becoming a standby of {}", names[peer]));
            let upstream = plan.upstream(&plan.peers.others[peer]);
            let how = plan.node.rejoin(&upstream).await?;
            say(&name, &format!("is a standby of {} ({how})", names[peer]));
        }
        Step::AsStandby => {
            plan.node.start_standby(None).await?;
            say(&name, "is a standby, as it was");
        }
        Step::AsPrimary => {
            plan.node.start_primary().await?;
            say(&name, "is the primary, as it was");
        }
        Step::Wait(_) => {}
    }
    Ok(())
}

/// What was seen of the running node before.
#[derive(Default)]
struct Look {
    detached: Option<Instant>,
}

impl Look {
    /// Why the node must be ended and come back another way, if it must.
    async fn at(&mut self, plan: &Plan) -> Option<String> {
        let own = ask(&plan.own_upstream()).await;
        let Answer::Is { in_recovery, term } = own else { return None };
        if in_recovery && !receiving(plan).await {
            let since = *self.detached.get_or_insert_with(Instant::now);
            if since.elapsed() < DETACHED {
                return None;
            }
        } else {
            self.detached = None;
            if in_recovery {
                return None;
            }
        }
        let answers = plan.peers.ask().await;
        let names: Vec<String> = plan.peers.others.iter().map(|peer| peer.name.clone()).collect();
        // a standby has the row of the primary it followed; that may be this very one
        let beyond = term.map_or(0, |(term, _)| if in_recovery { term } else { term + 1 });
        let primary = leader_since(&answers, &names, beyond)?;
        Some(if in_recovery {
            format!("does not get WAL of {primary}: it comes back another way")
        } else {
            format!("was replaced as the primary by {primary}")
        })
    }
}

/// Who leads this term or a later one: a peer that is read-write and whose own row names it.
fn leader_since<'a>(answers: &[Answer], names: &'a [String], least: i64) -> Option<&'a str> {
    let leading = answers.iter().zip(names).filter_map(|(answer, name)| match answer {
        Answer::Is { in_recovery: false, term: Some((term, leader)) } if leader == name => Some((*term, name.as_str())),
        _ => None,
    });
    leading.max().filter(|(term, _)| *term >= least).map(|(_, name)| name)
}

/// Does this standby get WAL, or was it fenced, so that the monitor has something in mind with it?
async fn receiving(plan: &Plan) -> bool {
    let Ok(client) = plan.node.connect().await else { return true };
    let asked = "select exists (select from pg_stat_wal_receiver where status = 'streaming') or current_setting('primary_conninfo') = ''";
    match client.query_one(asked, &[]).await {
        Ok(row) => row.get(0),
        Err(_) => true,
    }
}

/// What a signal asks for.
enum Word {
    Stop(Stop),
    Reload,
}

/// Signals to us.
struct Asked {
    fast: [Signal; 2],
    immediate: Signal,
    reload: Signal,
}

impl Asked {
    fn new() -> Result<Self, NodeError> {
        let set = || -> std::io::Result<Self> {
            let fast = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
            Ok(Self { fast, immediate: signal(SignalKind::quit())?, reload: signal(SignalKind::hangup())? })
        };
        set().map_err(|error| NodeError::Io { what: "wait for signals in", path: "/proc/self".into(), error })
    }

    /// What comes next.
    async fn next(&mut self) -> Word {
        let [terminate, interrupt] = &mut self.fast;
        tokio::select! {
            _ = terminate.recv() => Word::Stop(Stop::Fast),
            _ = interrupt.recv() => Word::Stop(Stop::Fast),
            _ = self.immediate.recv() => Word::Stop(Stop::Immediate),
            _ = self.reload.recv() => Word::Reload,
        }
    }

    async fn stop_word(&mut self) -> Stop {
        loop {
            if let Word::Stop(how) = self.next().await {
                return how;
            }
        }
    }
}
