//! Keeps an instance in touch with etcd: its lease, the office of the coordinator, and the record as others write it. What it
//! finds it tells the decision; what a lost lease means is decided there.

use std::sync::Arc;
use std::time::Duration;

use decision::Event;
use http_body_util::BodyExt;
use serde::Deserialize;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::http::MAX_ANSWER_BYTES;
use super::{EtcdStore, StoreError};

/// Pause before a broken watch is begun again.
const WATCH_AGAIN: Duration = Duration::from_millis(500);

/// The word to stop, and where to say that it is done.
pub(crate) type Stop = oneshot::Sender<oneshot::Sender<()>>;

/// The task that does it.
pub(crate) struct Keeper {
    store: Arc<EtcdStore>,
    /// Who we are, for people.
    who: String,
    outcomes: mpsc::Sender<Event>,
    /// Something in our keys has changed.
    changed: Arc<Notify>,
    lease: Option<Lease>,
    /// Whether the office is ours, as the decision was told.
    held: bool,
    /// What was wrong in the latest round, as the log says it.
    trouble: Option<String>,
}

struct Lease {
    id: String,
    /// By our own clock, on the safe side: counted from before the question, and a tenth less.
    until: Instant,
}

impl Keeper {
    pub(crate) fn new(store: Arc<EtcdStore>, outcomes: mpsc::Sender<Event>) -> Self {
        let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
        let who = format!("{host}:{}", std::process::id());
        let changed = Arc::new(Notify::new());
        Self { store, who, outcomes, changed, lease: None, held: false, trouble: None }
    }

    /// Until `stop` says so, or is dropped without it; in the first case the office is given up, so that another
    /// instance has it at once.
    pub(crate) async fn run(mut self, stop: oneshot::Receiver<oneshot::Sender<()>>) {
        let watching = watch(self.store.clone(), self.changed.clone());
        let stopped = tokio::select! {
            () = self.rounds() => return,
            () = watching => return,
            stopped = stop => stopped,
        };
        let Ok(done) = stopped else { return };
        if let Some(lease) = self.lease.take() {
            let _ = self.store.revoke(&lease.id).await;
        }
        let _ = done.send(());
    }

    async fn rounds(&mut self) {
        let pause = self.store.lease / 3;
        let changed = self.changed.clone();
        loop {
            let begun = Instant::now();
            let expiry = self.lease.as_ref().filter(|_| self.held).map(|lease| lease.until);
            let outcome = tokio::select! {
                outcome = self.round(begun) => Some(outcome),
                () = until(expiry) => None,
            };
            match outcome {
                None => {
                    tracing::warn!("etcd was not heard of for as long as the lease lasts: this instance does not act");
                    self.lease = None;
                    self.office(false).await;
                }
                Some(Ok(())) => {
                    if self.trouble.take().is_some() {
                        tracing::info!("etcd answers again");
                    }
                }
                Some(Err(error)) => self.lost(&error).await,
            }
            let expiry = self.lease.as_ref().filter(|_| self.held).map(|lease| lease.until);
            tokio::select! {
                () = sleep_until(begun + pause) => {}
                () = changed.notified() => {}
                () = until(expiry) => {}
            }
        }
    }

    async fn round(&mut self, begun: Instant) -> Result<(), StoreError> {
        let record = self.store.read().await?;
        self.tell(Event::StoreRead { record }).await;
        let kept = match self.lease.as_ref().map(|lease| lease.id.clone()) {
            Some(id) => self.store.keep_alive(&id).await?.map(|ttl| (id, ttl)),
            None => None,
        };
        let (id, ttl) = match kept {
            Some(kept) => kept,
            None => {
                self.lease = None;
                self.office(false).await;
                self.store.grant().await?
            }
        };
        self.lease = Some(Lease { id: id.clone(), until: begun + ttl - ttl / 10 });
        let ours = self.store.take_office(&id, &self.who).await?;
        self.office(ours).await;
        Ok(())
    }

    /// Says whose the office is, if that has changed.
    async fn office(&mut self, held: bool) {
        if self.held != held {
            self.held = held;
            tracing::info!(held, "the lease of the coordinator");
            self.tell(Event::Lease { held }).await;
        }
    }

    async fn lost(&mut self, error: &StoreError) {
        let why = error.to_string();
        if self.trouble.as_ref() != Some(&why) {
            tracing::warn!(%why, "the store cannot be used");
            self.trouble = Some(why.clone());
        }
        self.tell(Event::StoreLost { why }).await;
    }

    async fn tell(&self, event: Event) {
        let _ = self.outcomes.send(event).await;
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// What etcd sends on a watch; of the events only that there are some is of interest.
#[derive(Deserialize)]
struct Line {
    result: Option<Told>,
}

#[derive(Deserialize)]
struct Told {
    #[serde(default)]
    events: Vec<serde::de::IgnoredAny>,
    #[serde(default)]
    created: bool,
    #[serde(default)]
    canceled: bool,
}

/// Calls out `changed` whenever etcd tells of a change; begins again whenever the stream breaks. A stream that is dead
/// without a word costs nothing but time: the rounds look by themselves.
async fn watch(store: Arc<EtcdStore>, changed: Arc<Notify>) {
    loop {
        match store.watch().await {
            Ok(mut stream) => {
                let mut line = Vec::new();
                while let Ok(Some(Ok(frame))) = timeout(store.lease * 20, stream.frame()).await {
                    let Ok(bytes) = frame.into_data() else { continue };
                    line.extend_from_slice(&bytes);
                    if line.len() > MAX_ANSWER_BYTES || take_lines(&mut line, &changed).is_none() {
                        break;
                    }
                }
            }
            Err(error) => {
                store.forget_token();
                tracing::debug!(%error, "no watch");
            }
        }
        sleep(WATCH_AGAIN).await;
    }
}

/// Takes the whole lines off; `None` if the watch has ended.
fn take_lines(bytes: &mut Vec<u8>, changed: &Notify) -> Option<()> {
    while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
        let line: Line = serde_json::from_slice(&bytes[..end]).ok()?;
        let told = line.result?;
        if told.canceled {
            return None;
        }
        if told.created || !told.events.is_empty() {
            changed.notify_one();
        }
        bytes.drain(..=end);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_lines_are_read() {
        let changed = Notify::new();
        let mut bytes = b"{\"result\":{\"created\":true}}\n{\"result\":{\"eve".to_vec();
        assert_eq!(take_lines(&mut bytes, &changed), Some(()));
        assert_eq!(bytes, b"{\"result\":{\"eve");
        for (ending, outcome) in [
            (&b"nts\":[{\"kv\":{}}]}}\n"[..], Some(())),
            (b"nts\":[],\"canceled\":true}}\n", None),
            (b"nts\":7}}\n", None),
        ] {
            let mut bytes = [&b"{\"result\":{\"eve"[..], ending].concat();
            assert_eq!(take_lines(&mut bytes, &changed), outcome);
        }
        let mut bytes = b"{\"error\":{\"message\":\"x\"}}\n".to_vec();
        assert_eq!(take_lines(&mut bytes, &changed), None);
    }
}
