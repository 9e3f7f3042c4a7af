//! Who may log in, on both sides: clients here, and pgsteady on PostgreSQL. The methods themselves are in `pgwire::auth`.

use std::sync::{Arc, Mutex, PoisonError};

use pgwire::auth::scram::{Keys, OwnKeys, SaltedPassword, salted_password};
use pgwire::auth::{Secret, Stored, md5};
use tokio::sync::Semaphore;

pub mod carried;
mod client;
mod hba;
mod ident;
mod ldap;
mod lookup;
mod pam;
mod read;
pub mod server;
mod store;
mod userlist;

pub use client::{Came, Claim, Refusal, authenticate};
pub use lookup::{LookupError, Place};
pub use server::{Greeted, Link, LoginError, login};
pub use store::Store;

/// Password hashings at a time, for each [`Hashing`]; each takes 0.5 ms at 4096 iterations.
const MAX_HASHINGS: usize = 2;

/// A client that has proved who it is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The user.
    pub user: Arc<str>,
    /// With what it can be logged in on a server that knows the same secret.
    pub server_login: ServerLogin,
}

/// With what pgsteady logs in on a server. Cheap to clone; no `Debug` shows a secret.
#[derive(Debug, Clone)]
pub enum ServerLogin {
    /// With nothing: the server must ask for nothing.
    Nothing,
    /// With the password: any method.
    Password(Arc<Password>),
    /// With an md5 hash: method md5 alone.
    Md5(Secret),
    /// With the keys of the client's own login: SCRAM alone, on servers that keep the same verifier.
    Scram(Arc<ScramLogin>),
}

impl ServerLogin {
    /// With a password.
    #[must_use]
    pub fn password(password: &[u8]) -> Self {
        Self::Password(Arc::new(Password { text: Secret::new(password), last: Mutex::new(None) }))
    }

    /// With what is stored of a password, without the client's help; `Nothing` for a SCRAM verifier.
    #[must_use]
    pub fn stored(stored: &Stored) -> Self {
        match stored {
            Stored::Plain(password) => Self::password(password.reveal()),
            Stored::Md5(hash) => Self::Md5(hash.clone()),
            Stored::Scram(_) => Self::Nothing,
        }
    }

    /// Whether both log in with the same secret: if not, servers of the older one are not to be used for the newer.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Nothing, Self::Nothing) => true,
            (Self::Password(a), Self::Password(b)) => a.text.matches(b.text.reveal()),
            (Self::Md5(a), Self::Md5(b)) => a.matches(b.reveal()),
            (Self::Scram(a), Self::Scram(b)) => {
                let server_key = Secret::new(a.keys.server_key.reveal().as_slice());
                a.is_salted(&b.salt, b.iterations) && server_key.matches(b.keys.server_key.reveal())
            }
            _ => false,
        }
    }
}

/// A password, with the keys that were made of it last: servers of a cluster all salt it the same way.
#[derive(Debug)]
pub struct Password {
    text: Secret,
    last: Mutex<Option<Arc<ScramLogin>>>,
}

impl Password {
    /// The keys for this salt and count: those of the last time, or new ones at the cost of a hashing.
    async fn keys(&self, salt: &[u8], iterations: u32, hashing: &Hashing) -> Option<OwnKeys> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(last) = last.filter(|last| last.is_salted(salt, iterations)) {
            return Some(last.keys.clone());
        }
        let keys = OwnKeys::new(&hashing.salted(&self.text, salt, iterations).await?);
        let login = ScramLogin { keys: keys.clone(), salt: salt.to_vec(), iterations };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(login));
        Some(keys)
    }

    fn md5(&self, user: &str) -> Secret {
        md5::hash(self.text.reveal(), user)
    }
}

/// SCRAM keys, and how the password was salted that they come from.
#[derive(Debug)]
pub struct ScramLogin {
    keys: OwnKeys,
    salt: Vec<u8>,
    iterations: u32,
}

impl ScramLogin {
    fn is_salted(&self, salt: &[u8], iterations: u32) -> bool {
        self.salt == salt && self.iterations == iterations
    }
}

/// Where the costly step of SCRAM is done: away from the worker, and few at a time, so that a flood of logins (or a
/// server that asks for a million iterations) takes no more than that. One for clients and one for servers.
#[derive(Debug)]
pub struct Hashing {
    permits: Arc<Semaphore>,
}

impl Default for Hashing {
    fn default() -> Self {
        Self { permits: Arc::new(Semaphore::new(MAX_HASHINGS)) }
    }
}

impl Hashing {
    /// `None` while the process stops.
    async fn salted(&self, password: &Secret, salt: &[u8], iterations: u32) -> Option<SaltedPassword> {
        let permit = self.permits.clone().acquire_owned().await.ok()?;
        let (password, salt) = (password.clone(), salt.to_vec());
        let work = move || {
            // A waiter that gives up does not stop the work: its permit is kept until the end.
            let _permit = permit;
            salted_password(password.reveal(), &salt, iterations)
        };
        tokio::task::spawn_blocking(work).await.ok()
    }

    /// Keys for a password of which only the text is stored.
    async fn keys_of(&self, password: &Secret, salt: &[u8], iterations: u32) -> Option<Keys> {
        Keys::new(&self.salted(password, salt, iterations).await?, salt, iterations)
    }
}
