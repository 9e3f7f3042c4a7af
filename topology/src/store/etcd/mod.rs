//! The record in etcd (version 3), for several instances: each write is a transaction that compares the key's revision, and a
//! lease says which instance acts. Spoken is etcd's JSON gateway (etcd's manual, "gRPC gateway"): keys and values are in base64,
//! 64-bit numbers are strings, and fields that are zero are left out.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use decision::{Cluster, Record, Term};
use hyper::body::Incoming;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{StoreError, Swap, claim, follows, format};
use crate::Secret;

mod http;
mod keeper;

pub use http::{Endpoint, TlsFiles};
use http::{Http, Trouble};
pub(crate) use keeper::{Keeper, Stop};

/// Where etcd is, and who we are there.
#[derive(Debug, Clone)]
pub struct EtcdConfig {
    /// Its members, at least one.
    pub endpoints: Vec<Endpoint>,
    /// What our keys begin with; the cluster's name follows.
    pub prefix: String,
    /// User and password; `None`: etcd has no authentication.
    pub login: Option<(String, Secret)>,
    /// Files for TLS.
    pub tls: TlsFiles,
    /// How long an instance that is not heard of keeps the right to act; whole seconds, at least 2 (etcd allows no less by
    /// default).
    pub lease: Duration,
}

/// The etcd store. A request takes at most a third of the lease.
#[derive(Debug)]
pub struct EtcdStore {
    http: Http,
    login: Option<(String, Secret)>,
    token: Mutex<Option<String>>,
    prefix: String,
    lease: Duration,
    name: String,
    cluster: Cluster,
}

/// A record as it is stored.
struct Stored {
    record: Record,
    /// The key's revision; 0 if there is no key.
    revision: i64,
    is_there: bool,
}

/// A key's value with its revision.
#[derive(Debug, Deserialize)]
struct KeyValue {
    #[serde(default)]
    value: String,
    #[serde(default)]
    mod_revision: String,
    #[serde(default)]
    lease: String,
}

#[derive(Debug, Deserialize)]
struct Range {
    #[serde(default)]
    kvs: Vec<KeyValue>,
}

#[derive(Debug, Deserialize)]
struct Transaction {
    #[serde(default)]
    succeeded: bool,
    #[serde(default)]
    responses: Vec<TransactionAnswer>,
}

#[derive(Debug, Deserialize)]
struct TransactionAnswer {
    response_range: Option<Range>,
}

#[derive(Debug, Deserialize)]
struct Token {
    token: String,
}

#[derive(Debug, Deserialize)]
struct Granted {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "TTL")]
    ttl: String,
}

#[derive(Debug, Deserialize)]
struct KeptAlive {
    result: Kept,
}

#[derive(Debug, Deserialize)]
struct Kept {
    #[serde(default, rename = "TTL")]
    ttl: String,
}

impl EtcdStore {
    /// Asks nobody yet.
    #[must_use]
    pub fn new(config: &EtcdConfig, name: &str, cluster: &Cluster) -> Self {
        let lease = config.lease.max(Duration::from_secs(2));
        Self {
            http: Http::new(config.endpoints.clone(), config.tls.clone(), lease / 3),
            login: config.login.clone(),
            token: Mutex::new(None),
            prefix: format!("{}/{name}/", config.prefix.trim_end_matches('/')),
            lease,
            name: name.to_owned(),
            cluster: cluster.clone(),
        }
    }

    /// What the keys of this cluster begin with.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The record; `None` if there is none yet. What is read is at least as new as any write that was answered before.
    ///
    /// # Errors
    /// If etcd cannot be asked, or holds no record of this cluster.
    pub async fn read(&self) -> Result<Option<Record>, StoreError> {
        let stored = self.stored().await?;
        Ok(stored.is_there.then_some(stored.record))
    }

    /// Sets the claimed term to `to` if it is `from`; `handover`: for a switchover.
    ///
    /// # Errors
    /// If etcd cannot be asked; then it is open whether the claim is stored.
    pub async fn claim(&self, from: Term, to: Term, handover: bool) -> Result<Swap, StoreError> {
        let stored = self.stored().await?;
        match claim(&stored.record, from, to, handover) {
            None => Ok(Swap::Refused(stored.record)),
            Some(claimed) => self.replace(&stored, claimed).await,
        }
    }

    /// Stores the record if what is stored is its predecessor.
    ///
    /// # Errors
    /// If etcd cannot be asked; then it is open whether the record is stored.
    pub async fn publish(&self, record: &Record) -> Result<Swap, StoreError> {
        let stored = self.stored().await?;
        if !follows(&stored.record, record) {
            return Ok(Swap::Refused(stored.record));
        }
        self.replace(&stored, record.clone()).await
    }

    async fn stored(&self) -> Result<Stored, StoreError> {
        let key = self.key("record");
        let range: Range = self.ask("/v3/kv/range", &json!({ "key": key })).await?;
        self.of(range)
    }

    fn of(&self, range: Range) -> Result<Stored, StoreError> {
        let Some(key_value) = range.kvs.into_iter().next() else {
            return Ok(Stored { record: Record::empty(), revision: 0, is_there: false });
        };
        let text = BASE64.decode(&key_value.value).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let text = text.ok_or_else(|| self.unreadable("it is not UTF-8".into()))?;
        let record = format::read(&self.name, &self.cluster, &text).map_err(|why| self.unreadable(why))?;
        let revision =
            key_value.mod_revision.parse().map_err(|_| self.unreadable("its revision is no number".into()))?;
        Ok(Stored { record, revision, is_there: true })
    }

    async fn replace(&self, stored: &Stored, record: Record) -> Result<Swap, StoreError> {
        let key = self.key("record");
        let value = BASE64.encode(format::write(&self.name, &self.cluster, &record));
        let revision = stored.revision.to_string();
        let body = json!({
            "compare": [{ "key": key, "target": "MOD", "result": "EQUAL", "mod_revision": revision }],
            "success": [{ "request_put": { "key": key, "value": value } }],
            "failure": [{ "request_range": { "key": key } }],
        });
        let answer: Transaction = self.ask("/v3/kv/txn", &body).await?;
        if answer.succeeded {
            return Ok(Swap::Done(record));
        }
        let range = answer.responses.into_iter().find_map(|answer| answer.response_range);
        let there = self.of(range.unwrap_or(Range { kvs: Vec::new() }))?;
        Ok(Swap::Refused(there.record))
    }

    /// A new lease: its id, and how long it lasts from the question on.
    async fn grant(&self) -> Result<(String, Duration), StoreError> {
        let seconds = self.lease.as_secs().to_string();
        let granted: Granted = self.ask("/v3/lease/grant", &json!({ "TTL": seconds, "ID": "0" })).await?;
        let ttl = granted.ttl.parse().map_err(|_| self.odd("a lease without a time"))?;
        Ok((granted.id, Duration::from_secs(ttl)))
    }

    /// How long the lease lasts from the question on; `None`: it has ended.
    async fn keep_alive(&self, lease: &str) -> Result<Option<Duration>, StoreError> {
        let kept: KeptAlive = self.ask("/v3/lease/keepalive", &json!({ "ID": lease })).await?;
        let seconds = kept.result.ttl.parse::<u64>().unwrap_or(0);
        Ok((seconds > 0).then(|| Duration::from_secs(seconds)))
    }

    /// Ends a lease before its time, and with it what stands under it.
    async fn revoke(&self, lease: &str) -> Result<(), StoreError> {
        self.ask::<Value>("/v3/lease/revoke", &json!({ "ID": lease })).await.map(drop)
    }

    /// Becomes the coordinator under this lease, if nobody is. Whether it is ours now.
    async fn take_office(&self, lease: &str, who: &str) -> Result<bool, StoreError> {
        let key = self.key("coordinator");
        let body = json!({
            "compare": [{ "key": key, "target": "CREATE", "result": "EQUAL", "create_revision": "0" }],
            "success": [{ "request_put": { "key": key, "value": BASE64.encode(who), "lease": lease } }],
            "failure": [{ "request_range": { "key": key } }],
        });
        let answer: Transaction = self.ask("/v3/kv/txn", &body).await?;
        let range = answer.responses.into_iter().find_map(|answer| answer.response_range);
        let is_ours = |range: Range| range.kvs.iter().any(|holder| holder.lease == lease);
        Ok(answer.succeeded || range.is_some_and(is_ours))
    }

    /// Whatever happens to our keys from now on, as lines of JSON.
    async fn watch(&self) -> Result<Incoming, StoreError> {
        let mut end = self.prefix.clone().into_bytes();
        if let Some(last) = end.last_mut() {
            *last += 1; // the slash: the range is all that begins with the prefix
        }
        let (key, end) = (BASE64.encode(&self.prefix), BASE64.encode(end));
        let body = json!({ "create_request": { "key": key, "range_end": end } }).to_string();
        let token = self.token().await?;
        let stream = self.http.stream("/v3/watch", token.as_deref(), body).await;
        stream.map_err(|trouble| self.failed(&trouble))
    }

    fn key(&self, name: &str) -> String {
        BASE64.encode(format!("{}{name}", self.prefix))
    }

    /// One question. An outdated token is renewed once.
    async fn ask<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, StoreError> {
        let body = body.to_string();
        let token = self.token().await?;
        let mut outcome = self.http.post(path, token.as_deref(), body.clone()).await;
        if let Err(Trouble::Refused { status: 401, .. }) = outcome {
            self.forget_token();
            let token = self.token().await?;
            outcome = self.http.post(path, token.as_deref(), body).await;
        }
        let bytes = outcome.map_err(|trouble| self.failed(&trouble))?;
        serde_json::from_slice(&bytes).map_err(|error| self.odd(&error.to_string()))
    }

    fn forget_token(&self) {
        self.token.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    async fn token(&self) -> Result<Option<String>, StoreError> {
        let Some((user, password)) = &self.login else { return Ok(None) };
        let kept = self.token.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if kept.is_some() {
            return Ok(kept);
        }
        let body = json!({ "name": user, "password": password.expose() }).to_string();
        let bytes =
            self.http.post("/v3/auth/authenticate", None, body).await.map_err(|trouble| self.failed(&trouble))?;
        let Token { token } = serde_json::from_slice(&bytes).map_err(|error| self.odd(&error.to_string()))?;
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token.clone());
        Ok(Some(token))
    }

    fn unreadable(&self, why: String) -> StoreError {
        StoreError::Unreadable { place: format!("{}record in etcd", self.prefix), why }
    }

    fn odd(&self, why: &str) -> StoreError {
        self.failed(&Trouble::Odd(why.to_owned()))
    }

    fn failed(&self, trouble: &Trouble) -> StoreError {
        StoreError::Etcd(trouble.to_string())
    }
}

impl fmt::Display for EtcdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoints: Vec<String> = self.http.endpoints.iter().map(Endpoint::to_string).collect();
        write!(f, "etcd {} {}", endpoints.join(","), self.prefix)
    }
}
