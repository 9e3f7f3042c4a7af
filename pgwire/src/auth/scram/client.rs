//! SCRAM as a client: a struct for each message that is waited for. The password comes in only once the server has said how
//! it is salted, so the costly step can be done elsewhere, or left out with keys of one's own.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{
    Attributes, Key, MAX_ITERATIONS, MAX_NONCE, MAX_SALT, MIN_ITERATIONS, Nonce, OwnKeys, SCRAM_SHA_256,
    SCRAM_SHA_256_PLUS, ScramError, is_nonce, signature, stored_key,
};

/// Channel binding as this client has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binding {
    /// No TLS, or none wanted.
    Unsupported,
    /// We could, but the server has not offered SCRAM-SHA-256-PLUS. If it has, it will notice that somebody took it out.
    NotOffered,
    /// The `tls-server-end-point` data of the connection: the hash of the server's certificate.
    EndPoint(Vec<u8>),
}

impl Binding {
    fn header(&self) -> &'static str {
        match self {
            Self::Unsupported => "n,,",
            Self::NotOffered => "y,,",
            Self::EndPoint(_) => "p=tls-server-end-point,,",
        }
    }

    /// The mechanism to choose.
    #[must_use]
    pub const fn mechanism(&self) -> &'static str {
        match self {
            Self::EndPoint(_) => SCRAM_SHA_256_PLUS,
            Self::Unsupported | Self::NotOffered => SCRAM_SHA_256,
        }
    }

    /// What to do with a server that offers `mechanisms`, on a connection whose channel binding data is `end_point` (`None`
    /// without TLS).
    ///
    /// # Errors
    /// No mechanism of ours is offered, or only -PLUS where there is no TLS; or channel binding is `required` and cannot be had
    /// (CVE-2025-49146).
    pub fn choose(mechanisms: &[&[u8]], end_point: Option<Vec<u8>>, required: bool) -> Result<Self, ScramError> {
        let offers = |name: &str| mechanisms.contains(&name.as_bytes());
        match (end_point, offers(SCRAM_SHA_256_PLUS), offers(SCRAM_SHA_256)) {
            (Some(end_point), true, _) => Ok(Self::EndPoint(end_point)),
            _ if required => Err(ScramError::ChannelBinding("it is required and the server does not offer it")),
            (Some(_), false, true) => Ok(Self::NotOffered),
            (None, _, true) => Ok(Self::Unsupported),
            _ => Err(ScramError::Mechanism),
        }
    }
}

/// Waits for the server's first message.
pub struct Client {
    binding: Binding,
    nonce: Nonce,
    bare: String,
}

impl Client {
    /// A new exchange.
    #[must_use]
    pub fn new(nonce: Nonce, binding: Binding) -> Self {
        let bare = format!("n=,r={}", nonce.0);
        Self { binding, nonce, bare }
    }

    /// The first message, for [`crate::auth::SaslInitial`].
    #[must_use]
    pub fn message(&self) -> String {
        format!("{}{}", self.binding.header(), self.bare)
    }

    /// Takes the server's first message.
    ///
    /// # Errors
    /// It is broken, does not continue our nonce (CVE-2026-6665: nor a longer one than [`MAX_NONCE`]), or asks for more work
    /// than is right (CVE-2026-42198).
    pub fn challenged(self, message: &[u8]) -> Result<Challenged, ScramError> {
        let mut attributes = Attributes::new(message)?;
        let nonce = attributes.expect('r')?;
        if nonce.len() > MAX_NONCE || !is_nonce(nonce) || nonce == self.nonce.0 || !nonce.starts_with(&self.nonce.0) {
            return Err(ScramError::Nonce);
        }
        let salt = STANDARD.decode(attributes.expect('s')?).map_err(|_| ScramError::Malformed("salt"))?;
        if salt.is_empty() || salt.len() > MAX_SALT {
            return Err(ScramError::Malformed("salt"));
        }
        let iterations = attributes.expect('i')?.parse().map_err(|_| ScramError::Iterations)?;
        if !(MIN_ITERATIONS..=MAX_ITERATIONS).contains(&iterations) {
            return Err(ScramError::Iterations);
        }
        let mut bound = self.binding.header().as_bytes().to_vec();
        if let Binding::EndPoint(end_point) = &self.binding {
            bound.extend(end_point);
        }
        let answer = format!("c={},r={nonce}", STANDARD.encode(bound));
        let server_first = std::str::from_utf8(message).map_err(|_| ScramError::Malformed("not UTF-8"))?;
        let auth_message = format!("{},{server_first},{answer}", self.bare);
        Ok(Challenged { salt, iterations, answer, auth_message })
    }
}

/// Waits for the keys: [`OwnKeys::new`] of [`super::salted_password`] with this salt and count, or [`super::Keys::unlocked`].
pub struct Challenged {
    salt: Vec<u8>,
    iterations: u32,
    answer: String,
    auth_message: String,
}

impl Challenged {
    /// The salt that the server keeps.
    #[must_use]
    pub fn salt(&self) -> &[u8] {
        &self.salt
    }

    /// The number of iterations that the server keeps.
    #[must_use]
    pub const fn iterations(&self) -> u32 {
        self.iterations
    }

    /// The last message, for [`crate::auth::write_sasl_response`].
    #[must_use]
    pub fn answer(self, keys: &OwnKeys) -> (String, Proved) {
        let proof = keys.client_key.xor(&signature(&stored_key(&keys.client_key), &self.auth_message));
        let message = format!("{},p={}", self.answer, STANDARD.encode(proof.reveal()));
        (message, Proved { signature: signature(&keys.server_key, &self.auth_message) })
    }
}

/// Waits for the server's proof. Until it is verified nobody is logged in, whatever the server says.
pub struct Proved {
    signature: Key,
}

impl Proved {
    /// Takes the server's last message.
    ///
    /// # Errors
    /// The server does not know the secret, or the message is broken.
    pub fn verify(self, message: &[u8]) -> Result<(), ScramError> {
        if message.starts_with(b"e=") {
            return Err(ScramError::Server);
        }
        let theirs =
            Key::from_base64(Attributes::new(message)?.expect('v')?).ok_or(ScramError::Malformed("signature"))?;
        if theirs.matches(&self.signature) { Ok(()) } else { Err(ScramError::ServerSignature) }
    }
}
