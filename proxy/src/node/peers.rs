//! The other nodes, and what they say of themselves. What follows from it is decided in `decide`.

use std::time::Duration;

use tokio::task::JoinSet;
use topology::Address;
use topology::node::{NodeError, Upstream};

/// One node of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) name: String,
    pub(super) host: String,
    pub(super) port: u16,
}

/// The others, in the order of the list.
pub(super) struct Peers {
    pub(super) others: Vec<Peer>,
    /// Are we the first of the list?
    pub(super) first: bool,
    pub(super) superuser: String,
    pub(super) password: String,
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// Nobody is there.
    Silent,
    /// Somebody is there, but says nothing yet (it starts, or does not let us in).
    Unclear(String),
    /// It answers.
    Is {
        in_recovery: bool,
        /// The row of `pgsteady.term`, if there is one: the number and the leader.
        term: Option<(i64, String)>,
    },
}

/// Bound on one node's answer.
const ANSWER: Duration = Duration::from_secs(3);
/// Most nodes of a list.
const MAX_PEERS: usize = 64;

impl Peer {
    pub(super) fn address(&self) -> Address {
        Address::Tcp(self.host.clone(), self.port)
    }
}

impl Peers {
    /// Asks all at once. The answers are in the order of the list.
    pub(super) async fn ask(&self) -> Vec<Answer> {
        let mut questions = JoinSet::new();
        for (index, peer) in self.others.iter().enumerate() {
            let (user, password) = (self.superuser.clone(), Some(self.password.clone()));
            let upstream = Upstream { address: peer.address(), user, password };
            questions.spawn(async move { (index, ask(&upstream).await) });
        }
        let mut answers = questions.join_all().await;
        answers.sort_by_key(|(index, _)| *index);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }
}

/// Asks one node.
pub(super) async fn ask(upstream: &Upstream) -> Answer {
    match tokio::time::timeout(ANSWER, question(upstream)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(NodeError::Sql { error, what })) if error.as_db_error().is_some() => {
            Answer::Unclear(NodeError::Sql { what, error }.to_string())
        }
        Ok(Err(_)) | Err(_) => Answer::Silent,
    }
}

async fn question(upstream: &Upstream) -> Result<Answer, NodeError> {
    let client = upstream.connect().await?;
    let sql = |error| NodeError::Sql { what: format!("ask {}", upstream.address), error };
    let in_recovery: bool = client.query_one("select pg_is_in_recovery()", &[]).await.map_err(sql)?.get(0);
    // asked first, so that a cluster without a monitor does not log an error each time
    let there = client.query_one("select to_regclass('pgsteady.term') is not null", &[]).await.map_err(sql)?;
    if !there.get::<_, bool>(0) {
        return Ok(Answer::Is { in_recovery, term: None });
    }
    let row = client.query_opt("select term, leader from pgsteady.term", &[]).await.map_err(sql)?;
    Ok(Answer::Is { in_recovery, term: row.map(|row| (row.get(0), row.get(1))) })
}

/// `n1=db1:5432,n2=db2:5432`
pub(super) fn parse(list: &str) -> Result<Vec<Peer>, String> {
    let mut peers: Vec<Peer> = Vec::new();
    for item in list.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let wrong = || format!("--peers: {item:?} is not NAME=HOST:PORT");
        let (name, address) = item.split_once('=').ok_or_else(wrong)?;
        let (host, port) = address.rsplit_once(':').unwrap_or((address, "5432"));
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if host.is_empty() || name.is_empty() || !name.bytes().all(plain) {
            return Err(format!("{}; a name has letters a-z, digits and _", wrong()));
        }
        if peers.iter().any(|peer| peer.name == name) {
            return Err(format!("--peers: {name} is there twice"));
        }
        peers.push(Peer { name: name.to_owned(), host: host.to_owned(), port });
    }
    if peers.is_empty() || peers.len() > MAX_PEERS {
        return Err(format!("--peers: {} nodes; 1 to {MAX_PEERS} are allowed", peers.len()));
    }
    Ok(peers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read() {
        let peers = parse("n1=db1:5433, n2=db2,n3=[::1]:5").unwrap();
        let as_text: Vec<String> = peers.iter().map(|p| format!("{} {} {}", p.name, p.host, p.port)).collect();
        assert_eq!(as_text, ["n1 db1 5433", "n2 db2 5432", "n3 ::1 5"]);
        for wrong in ["", "n1", "n1=", "n1=h:0", "n1=h:x", "n1=a,n1=b", "n'1=h"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
