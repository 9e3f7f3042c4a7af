//! What is known of each user: from `[[user]]`, from the list of users, and from the lookup. Not the exchange with a client.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use pgwire::auth::scram::{self, Keys};
use pgwire::auth::{Secret, Stored};
use tokio::sync::OnceCell;

use super::lookup::{Lookup, LookupError, Place};
use super::{Hashing, ServerLogin, userlist};
use crate::config::{AuthMethod, Config};

/// Everybody who may log in. Shared; a reload replaces what it holds.
#[derive(Debug)]
pub struct Store {
    users: RwLock<Arc<Users>>,
    /// Drawn once: what an unknown user is told must not change while the process lives, nor be foreseen.
    mock: Secret,
    pub(super) hashing: Hashing,
}

/// The users of one configuration.
#[derive(Debug)]
pub(super) struct Users {
    pub(super) method: AuthMethod,
    listed: HashMap<Arc<str>, Arc<Known>>,
    lookup: Option<Lookup>,
    /// Unknown users are asked by SCRAM where known ones would be.
    mock_is_scram: bool,
}

/// What is known of a user.
#[derive(Debug)]
pub(super) struct Known {
    /// What is stored of the password; none: no password is right.
    pub(super) stored: Option<Stored>,
    /// With what it logs in on a server if the client adds nothing.
    pub(super) login: ServerLogin,
    /// The SCRAM keys of a plain password, made at the first login.
    made: OnceCell<Option<Keys>>,
}

impl Known {
    pub(super) fn new(secret: Option<&str>) -> Self {
        let stored = secret.filter(|text| !text.is_empty()).map(|text| Stored::parse(text.as_bytes()));
        let login = stored.as_ref().map_or(ServerLogin::Nothing, ServerLogin::stored);
        Self { stored, login, made: OnceCell::new() }
    }
}

impl Store {
    /// Reads the files that a configuration names.
    ///
    /// # Errors
    /// The list of users cannot be read: where and why.
    pub fn load(config: &Config) -> Result<Self, String> {
        let users = RwLock::new(Arc::new(Users::load(config)?));
        Ok(Self { users, mock: Secret::new(rand::random::<[u8; 32]>()), hashing: Hashing::default() })
    }

    /// Takes a new configuration, and its list of users anew.
    ///
    /// # Errors
    /// As [`Store::load`]; the users in force stay.
    pub fn replace(&self, config: &Config) -> Result<(), String> {
        let users = Arc::new(Users::load(config)?);
        *self.users.write().unwrap_or_else(PoisonError::into_inner) = users;
        Ok(())
    }

    /// With what a user logs in on servers without a client's help: for entries with a forced user and no password.
    /// `Nothing` if the list of users has none that is good for it.
    #[must_use]
    pub fn server_login(&self, user: &str) -> ServerLogin {
        self.users().listed.get(user).map_or(ServerLogin::Nothing, |known| known.login.clone())
    }

    pub(super) fn users(&self) -> Arc<Users> {
        self.users.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The SCRAM keys by which a user is checked: for a user who is not known, or has no password for SCRAM, keys that no
    /// password opens. A plain password is salted as a mock would be, so that nobody can tell the two apart.
    pub(super) async fn scram_keys(&self, user: &str, known: Option<&Known>) -> Option<Keys> {
        let mock = Keys::mock(self.mock.reveal(), user, scram::DEFAULT_ITERATIONS);
        let Some(known) = known else { return Some(mock) };
        match &known.stored {
            Some(Stored::Scram(keys)) => Some(keys.clone()),
            Some(Stored::Plain(password)) => {
                let make = || self.hashing.keys_of(password, mock.salt(), mock.iterations());
                known.made.get_or_init(make).await.clone()
            }
            Some(Stored::Md5(_)) | None => Some(mock),
        }
    }
}

impl Users {
    fn load(config: &Config) -> Result<Self, String> {
        let mut listed = HashMap::new();
        if let Some(file) = &config.auth.users_file {
            let users = read_list(file).map_err(|said| format!("auth.users_file {}: {said}", file.display()))?;
            listed.extend(users.into_iter().map(|(user, known)| (user.into(), Arc::new(known))));
        }
        for (name, user) in &config.users {
            let secret = user.password.as_ref().map(|secret| secret.reveal());
            if secret.is_some() || !listed.contains_key(name) {
                listed.insert(name.clone(), Arc::new(Known::new(secret)));
            }
        }
        let lookup = Lookup::new(config);
        let is_scram = |known: &Arc<Known>| matches!(known.stored, Some(Stored::Scram(_)));
        let mock_is_scram = lookup.is_some() || (!listed.is_empty() && listed.values().all(is_scram));
        Ok(Self { method: config.auth.method, listed, lookup, mock_is_scram })
    }

    /// What is known of a user; `None` if nothing.
    pub(super) async fn find(&self, user: &str, place: Option<&Place>) -> Result<Option<Arc<Known>>, LookupError> {
        let listed = self.listed.get(user);
        match (listed, &self.lookup, place) {
            (Some(known), Some(lookup), Some(place)) if known.stored.is_none() => {
                Ok(lookup.find(user, place).await?.or_else(|| Some(known.clone())))
            }
            (Some(known), _, _) => Ok(Some(known.clone())),
            (None, Some(lookup), Some(place)) => lookup.find(user, place).await,
            (None, _, _) => Ok(None),
        }
    }

    /// After a failed login: what the lookup found may have changed since.
    pub(super) fn forget(&self, user: &str, place: Option<&Place>) {
        if let (Some(lookup), Some(place)) = (&self.lookup, place) {
            lookup.forget(user, place);
        }
    }

    /// Whether there is any word of who may log in; without one, `trust` trusts everybody.
    pub(super) fn is_open(&self) -> bool {
        self.listed.is_empty() && self.lookup.is_none()
    }

    /// Whether a user is asked by SCRAM.
    pub(super) fn asks_scram(&self, known: Option<&Known>) -> bool {
        match (self.method, known.and_then(|known| known.stored.as_ref())) {
            (AuthMethod::ScramSha256, _) | (AuthMethod::Md5, Some(Stored::Scram(_))) => true,
            (AuthMethod::Md5, None) => self.mock_is_scram,
            _ => false,
        }
    }
}

fn read_list(file: &Path) -> Result<Vec<(String, Known)>, String> {
    let size = std::fs::metadata(file).map_err(|e| e.to_string())?.len();
    if size > userlist::MAX_FILE_BYTES {
        return Err(format!("is longer than {} bytes", userlist::MAX_FILE_BYTES));
    }
    let text = std::fs::read_to_string(file).map_err(|e| e.to_string())?;
    let users = userlist::parse(&text)?;
    Ok(users.into_iter().map(|(user, secret)| (user, Known::new(Some(secret.reveal())))).collect())
}
