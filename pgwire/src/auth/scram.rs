//! SCRAM-SHA-256 (RFC 5802, 7677): keys and what both sides share. The exchanges are in `server` and `client`.

pub mod client;
pub mod server;

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use rand::Rng;
use sha2::{Digest, Sha256};

use super::{same, wipe};

/// The mechanism without channel binding.
pub const SCRAM_SHA_256: &str = "SCRAM-SHA-256";
/// The mechanism with channel binding.
pub const SCRAM_SHA_256_PLUS: &str = "SCRAM-SHA-256-PLUS";
/// PostgreSQL's default number of iterations (`scram_iterations`).
pub const DEFAULT_ITERATIONS: u32 = 4096;
/// Fewest iterations that a client of ours does for a server; fewer would give the password away cheaply.
pub const MIN_ITERATIONS: u32 = 4096;
/// Most iterations that a client of ours does for a server (0.1 s); the server chooses, so more would be its weapon.
pub const MAX_ITERATIONS: u32 = 1_000_000;
/// Longest nonce of the other side, in bytes.
pub const MAX_NONCE: usize = 1_024;
/// Longest salt, in bytes.
pub const MAX_SALT: usize = 1_024;
/// Length of the salts that we make, in bytes: PostgreSQL's `SCRAM_DEFAULT_SALT_LEN`.
pub const SALT: usize = 16;
/// Random bytes in a nonce: PostgreSQL's `SCRAM_RAW_NONCE_LEN`.
const RAW_NONCE: usize = 18;

/// 32 bytes that are, or open, a login: not printed, overwritten when dropped.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl Key {
    /// Takes them over.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Shows them to whoever needs them.
    #[must_use]
    pub const fn reveal(&self) -> &[u8; 32] {
        &self.0
    }

    fn from_base64(text: &str) -> Option<Self> {
        STANDARD.decode(text).ok()?.try_into().ok().map(Self)
    }

    fn xor(&self, other: &Self) -> Self {
        let mut mixed = self.clone();
        mixed.0.iter_mut().zip(other.0).for_each(|(a, b)| *a ^= b);
        mixed
    }

    fn matches(&self, other: &Self) -> bool {
        same(&self.0, &other.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(********)")
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

/// The password after salting: what the costly step makes. As good as the password, for this salt.
#[derive(Clone, Debug)]
pub struct SaltedPassword(Key);

/// The costly step: PBKDF2 over the password, prepared by SASLprep where it can be (as PostgreSQL and libpq do).
///
/// 4096 iterations take about 0.5 ms: run it where nobody waits for you, and keep what it makes.
#[must_use]
pub fn salted_password(password: &[u8], salt: &[u8], iterations: u32) -> SaltedPassword {
    let prepared = std::str::from_utf8(password).ok().and_then(|text| stringprep::saslprep(text).ok());
    let password = prepared.as_deref().map_or(password, str::as_bytes);
    let keyed = keyed(password);
    let mut round = mac(keyed.clone(), &[salt, &[0, 0, 0, 1]]);
    let mut salted = Key(round);
    for _ in 1..iterations {
        round = mac(keyed.clone(), &[&round]);
        salted.0.iter_mut().zip(round).for_each(|(a, b)| *a ^= b);
    }
    SaltedPassword(salted)
}

/// What a server keeps of a password (`SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey`): enough to check a login, and
/// not enough to log in.
#[derive(Clone, Debug)]
pub struct Keys {
    iterations: u32,
    salt: Vec<u8>,
    stored_key: Key,
    server_key: Key,
    /// False for a user who does not exist: no proof is right.
    real: bool,
}

impl Keys {
    /// From a salted password and what it was salted with; `None` for a salt or a count that cannot be.
    #[must_use]
    pub fn new(salted: &SaltedPassword, salt: &[u8], iterations: u32) -> Option<Self> {
        Self::of(OwnKeys::new(salted), salt, iterations)
    }

    /// From the keys of somebody who has logged in, likewise.
    #[must_use]
    pub fn of(own: OwnKeys, salt: &[u8], iterations: u32) -> Option<Self> {
        let OwnKeys { client_key, server_key } = own;
        let stored_key = stored_key(&client_key);
        let keys = Self { iterations, salt: salt.to_vec(), stored_key, server_key, real: true };
        keys.is_possible().then_some(keys)
    }

    /// Reads a SCRAM secret as PostgreSQL's `parse_scram_secret` does.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (head, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
        let (iterations, salt) = head.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        let keys = Self {
            iterations: iterations.parse().ok()?,
            salt: STANDARD.decode(salt).ok()?,
            stored_key: Key::from_base64(stored_key)?,
            server_key: Key::from_base64(server_key)?,
            real: true,
        };
        keys.is_possible().then_some(keys)
    }

    /// For a user who does not exist: always the same salt for the same name, and no proof that is right, so that nobody
    /// learns who exists. `secret` is drawn once by the process; `iterations` are those of the users who do exist.
    #[must_use]
    pub fn mock(secret: &[u8], user: &str, iterations: u32) -> Self {
        let salt = mac(keyed(secret), &[b"salt", user.as_bytes()]);
        let key = Key(mac(keyed(secret), &[b"keys", user.as_bytes()]));
        Self {
            iterations: iterations.max(1),
            salt: salt.into_iter().take(SALT).collect(),
            stored_key: key.clone(),
            server_key: key,
            real: false,
        }
    }

    /// The text that PostgreSQL stores. A secret.
    #[must_use]
    pub fn to_text(&self) -> String {
        let encode = |bytes: &[u8]| STANDARD.encode(bytes);
        let (stored, server) = (encode(self.stored_key.reveal()), encode(self.server_key.reveal()));
        format!("SCRAM-SHA-256${}:{}${stored}:{server}", self.iterations, encode(&self.salt))
    }

    /// Number of iterations.
    #[must_use]
    pub const fn iterations(&self) -> u32 {
        self.iterations
    }

    /// The salt.
    #[must_use]
    pub fn salt(&self) -> &[u8] {
        &self.salt
    }

    /// Whether they were made from this password, salted with their salt.
    #[must_use]
    pub fn is_of(&self, salted: &SaltedPassword) -> bool {
        self.real && OwnKeys::new(salted).server_key.matches(&self.server_key)
    }

    /// Whether a key recovered from a login, or kept from one, still opens these keys: after a change of password it does not.
    #[must_use]
    pub fn open_with(&self, client_key: &Key) -> bool {
        self.real && stored_key(client_key).matches(&self.stored_key)
    }

    /// With the key that a client's proof has shown ([`server::Accepted`]): enough to log in on a server that keeps the
    /// same secret. `None` if it does not belong to these keys.
    #[must_use]
    pub fn unlocked(&self, client_key: Key) -> Option<OwnKeys> {
        self.open_with(&client_key).then(|| OwnKeys { client_key, server_key: self.server_key.clone() })
    }

    fn is_possible(&self) -> bool {
        self.iterations > 0 && !self.salt.is_empty() && self.salt.len() <= MAX_SALT
    }
}

/// What a client needs to log in: from its salted password, or from [`Keys::unlocked`].
#[derive(Clone, Debug)]
pub struct OwnKeys {
    /// Proves the client.
    pub client_key: Key,
    /// Proves the server.
    pub server_key: Key,
}

impl OwnKeys {
    /// From the salted password.
    #[must_use]
    pub fn new(salted: &SaltedPassword) -> Self {
        let derived = |name: &[u8]| Key(mac(keyed(salted.0.reveal()), &[name]));
        Self { client_key: derived(b"Client Key"), server_key: derived(b"Server Key") }
    }
}

/// Our half of a nonce, in printable characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nonce(String);

impl Nonce {
    /// A fresh one.
    #[must_use]
    pub fn random() -> Self {
        let mut raw = [0; RAW_NONCE];
        rand::rng().fill_bytes(&mut raw);
        Self(STANDARD.encode(raw))
    }

    /// A given one, for tests that repeat an exchange; `None` unless it can be sent.
    #[must_use]
    pub fn given(text: &str) -> Option<Self> {
        is_nonce(text).then(|| Self(text.to_owned()))
    }
}

/// Why an exchange failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScramError {
    /// The other side's message is not one: what is wrong with it.
    Malformed(&'static str),
    /// The client chose a mechanism that was not offered.
    Mechanism,
    /// Something that neither PostgreSQL nor we have: authorization identities, mandatory extensions.
    Unsupported(&'static str),
    /// The other side's nonce does not continue ours.
    Nonce,
    /// The two sides do not see the same TLS channel, or one was talked out of channel binding.
    ChannelBinding(&'static str),
    /// The server asks for fewer or more iterations than we do.
    Iterations,
    /// The client's proof is wrong: wrong password, or no such user.
    Proof,
    /// The server's signature is wrong: it does not know the secret, and is not the server it seems to be.
    ServerSignature,
    /// The server says that it failed.
    Server,
}

impl fmt::Display for ScramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(what) => write!(f, "malformed SCRAM message ({what})"),
            Self::Mechanism => write!(f, "client selected an invalid SASL authentication mechanism"),
            Self::Unsupported(what) => write!(f, "SCRAM: {what} not supported"),
            Self::Nonce => write!(f, "invalid SCRAM nonce"),
            Self::ChannelBinding(what) => write!(f, "SCRAM channel binding check failed: {what}"),
            Self::Iterations => write!(f, "SCRAM iteration count is not between {MIN_ITERATIONS} and {MAX_ITERATIONS}"),
            Self::Proof => write!(f, "SCRAM proof does not match"),
            Self::ServerSignature => write!(f, "incorrect server signature"),
            Self::Server => write!(f, "the server reported an error in the SCRAM exchange"),
        }
    }
}

impl std::error::Error for ScramError {}

/// The attributes of a message in order; their values are what stands between commas.
struct Attributes<'a>(Option<&'a str>);

impl<'a> Attributes<'a> {
    fn new(message: &'a [u8]) -> Result<Self, ScramError> {
        std::str::from_utf8(message).map(|text| Self(Some(text))).map_err(|_| ScramError::Malformed("not UTF-8"))
    }

    /// The next one, whatever it is.
    fn any(&mut self) -> Result<&'a str, ScramError> {
        let text = self.0.take().ok_or(ScramError::Malformed("ends too early"))?;
        let (value, rest) = text.split_once(',').map_or((text, None), |(value, rest)| (value, Some(rest)));
        self.0 = rest;
        Ok(value)
    }

    /// The value of the next one, which must be `name`.
    fn expect(&mut self, name: char) -> Result<&'a str, ScramError> {
        let attribute = self.any()?;
        if attribute.starts_with("m=") {
            return Err(ScramError::Unsupported("mandatory extensions are"));
        }
        let value = attribute.strip_prefix(name).and_then(|rest| rest.strip_prefix('='));
        value.ok_or(ScramError::Malformed("an attribute is missing or out of order"))
    }
}

fn is_nonce(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_NONCE && text.bytes().all(|b| b.is_ascii_graphic() && b != b',')
}

fn stored_key(client_key: &Key) -> Key {
    Key(Sha256::digest(client_key.reveal()).into())
}

fn signature(key: &Key, auth_message: &str) -> Key {
    Key(mac(keyed(key.reveal()), &[auth_message.as_bytes()]))
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of every length")
}

fn mac(mut hmac: Hmac<Sha256>, parts: &[&[u8]]) -> [u8; 32] {
    parts.iter().for_each(|part| hmac.update(part));
    hmac.finalize().into_bytes().into()
}
