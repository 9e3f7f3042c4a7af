//! The login of a client that one process passes to the next: what goes with it, and what comes of it there. Nothing of this is ever
//! logged; it leaves the process over a Unix socket alone, to a process of the same system user.

use std::sync::Arc;

use pgwire::auth::scram::{Keys, OwnKeys};
use pgwire::auth::{Secret, Stored};

use super::store::Known;
use super::{ScramLogin, ServerLogin, Store};

impl ServerLogin {
    /// The keys of the client's own login, if it logs in with those.
    pub(crate) fn keys(&self) -> Option<OwnKeys> {
        match self {
            Self::Scram(login) => Some(login.keys.clone()),
            Self::Nothing | Self::Password(_) | Self::Md5(_) => None,
        }
    }

    /// What would be stored of the password, for a user who stands in no list.
    pub(crate) fn stored_text(&self) -> Option<Secret> {
        match self {
            Self::Nothing => None,
            Self::Password(password) => Some(password.text.clone()),
            Self::Md5(hash) => Some(hash.clone()),
            Self::Scram(login) => {
                let keys = Keys::of(login.keys.clone(), &login.salt, login.iterations)?;
                Some(Secret::new(keys.to_text()))
            }
        }
    }
}

impl Store {
    /// Whether the user stands in the list of users, so that the next process knows the password too.
    pub(crate) fn is_listed(&self, user: &str) -> bool {
        self.users().listed.contains_key(user)
    }

    /// With what a client that another process has let in logs in on servers: by the keys of its own login if they still open
    /// what is stored, else by what is stored, here or with the client.
    pub(crate) fn carried_login(&self, user: &str, password: Option<&Secret>, keys: Option<OwnKeys>) -> ServerLogin {
        let users = self.users();
        let came = || Arc::new(Known::new(password.and_then(|secret| std::str::from_utf8(secret.reveal()).ok())));
        let known = users.listed.get(user).cloned().unwrap_or_else(came);
        match (&known.stored, keys) {
            (Some(Stored::Scram(stored)), Some(keys)) => {
                let (salt, iterations) = (stored.salt().to_vec(), stored.iterations());
                let own = stored.unlocked(keys.client_key);
                own.map_or(ServerLogin::Nothing, |keys| {
                    ServerLogin::Scram(Arc::new(ScramLogin { keys, salt, iterations }))
                })
            }
            _ => known.login.clone(),
        }
    }
}
