//! SCRAM as a server: a struct for each message that is waited for. PostgreSQL's rules are in `auth-scram.c`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{
    Attributes, Key, Keys, Nonce, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramError, is_nonce, signature, stored_key,
};

/// Waits for the client's first message.
pub struct Server {
    keys: Keys,
    nonce: Nonce,
    end_point: Option<Vec<u8>>,
}

impl Server {
    /// For a client who says to be the user of `keys`. `end_point` is the `tls-server-end-point` data of the connection, the
    /// hash of our certificate; with it channel binding is offered.
    #[must_use]
    pub const fn new(keys: Keys, nonce: Nonce, end_point: Option<Vec<u8>>) -> Self {
        Self { keys, nonce, end_point }
    }

    /// The mechanisms to offer in [`crate::auth::Authentication::Sasl`], best first.
    #[must_use]
    pub fn mechanisms(&self) -> Vec<&'static [u8]> {
        let plus = self.end_point.is_some().then_some(SCRAM_SHA_256_PLUS.as_bytes());
        plus.into_iter().chain([SCRAM_SHA_256.as_bytes()]).collect()
    }

    /// Takes the client's choice and first message; gives the message for [`crate::auth::Authentication::SaslContinue`].
    ///
    /// # Errors
    /// The message is broken, or does not fit what was offered.
    pub fn first(self, mechanism: &[u8], message: &[u8]) -> Result<(String, Challenged), ScramError> {
        let binding = match (mechanism, self.end_point) {
            (b"SCRAM-SHA-256-PLUS", Some(end_point)) => Binding::Required(end_point),
            (b"SCRAM-SHA-256", Some(_)) => Binding::Offered,
            (b"SCRAM-SHA-256", None) => Binding::Impossible,
            _ => return Err(ScramError::Mechanism),
        };
        let mut attributes = Attributes::new(message)?;
        let flag = attributes.any()?;
        binding.check(flag)?;
        if !attributes.any()?.is_empty() {
            return Err(ScramError::Unsupported("authorization identities are"));
        }
        let bare = attributes.0.ok_or(ScramError::Malformed("ends too early"))?;
        // The name is the startup packet's; what stands here is not looked at, as in PostgreSQL.
        attributes.expect('n')?;
        let theirs = attributes.expect('r')?;
        if !is_nonce(theirs) {
            return Err(ScramError::Malformed("nonce"));
        }
        let nonce = format!("{theirs}{}", self.nonce.0);
        let answer = format!("r={nonce},s={},i={}", STANDARD.encode(self.keys.salt()), self.keys.iterations());
        let mut bound = format!("{flag},,").into_bytes();
        if let Binding::Required(end_point) = binding {
            bound.extend(end_point);
        }
        let auth_message = format!("{bare},{answer}");
        Ok((answer, Challenged { keys: self.keys, nonce, bound: STANDARD.encode(bound), auth_message }))
    }
}

/// Channel binding, as the client's choice of mechanism leaves it.
enum Binding {
    /// The client chose it.
    Required(Vec<u8>),
    /// We offered it and the client did not choose it.
    Offered,
    /// We did not offer it.
    Impossible,
}

impl Binding {
    fn check(&self, flag: &str) -> Result<(), ScramError> {
        match (self, flag) {
            (Self::Required(_), "p=tls-server-end-point") | (Self::Impossible, "y") => Ok(()),
            (Self::Offered | Self::Impossible, "n") => Ok(()),
            (Self::Required(_), "n" | "y") => {
                Err(ScramError::ChannelBinding("the client chose it and has not done it"))
            }
            (Self::Offered, "y") => Err(ScramError::ChannelBinding("the client believes that it was not offered")),
            (Self::Required(_), _) if flag.starts_with("p=") => {
                Err(ScramError::Unsupported("this channel binding type is"))
            }
            (_, _) if flag.starts_with("p=") => {
                Err(ScramError::ChannelBinding("the client did it and has not chosen it"))
            }
            _ => Err(ScramError::Malformed("channel binding flag")),
        }
    }
}

/// Waits for the client's last message.
pub struct Challenged {
    keys: Keys,
    nonce: String,
    /// The client's channel binding, as it must come back.
    bound: String,
    auth_message: String,
}

/// The client has proved to know the password.
#[derive(Debug)]
pub struct Accepted {
    /// The message for [`crate::auth::Authentication::SaslFinal`].
    pub message: String,
    /// The client's key, recovered from its proof: with [`Keys::unlocked`] it logs in on servers with the same secret.
    pub client_key: Key,
}

impl Challenged {
    /// Takes the client's last message.
    ///
    /// # Errors
    /// [`ScramError::Proof`] for a wrong password, others for a broken message.
    pub fn last(self, message: &[u8]) -> Result<Accepted, ScramError> {
        let text = std::str::from_utf8(message).map_err(|_| ScramError::Malformed("not UTF-8"))?;
        let (without_proof, proof) = text.rsplit_once(",p=").ok_or(ScramError::Malformed("no proof"))?;
        let mut attributes = Attributes::new(without_proof.as_bytes())?;
        if attributes.expect('c')? != self.bound {
            return Err(ScramError::ChannelBinding("the client is bound to another channel"));
        }
        if attributes.expect('r')? != self.nonce {
            return Err(ScramError::Nonce);
        }
        let proof = Key::from_base64(proof).ok_or(ScramError::Malformed("proof"))?;
        let auth_message = format!("{},{without_proof}", self.auth_message);
        let client_key = proof.xor(&signature(&self.keys.stored_key, &auth_message));
        // Computed for everybody, so that a user who does not exist takes as long.
        let proved = stored_key(&client_key).matches(&self.keys.stored_key);
        let message = format!("v={}", STANDARD.encode(signature(&self.keys.server_key, &auth_message).reveal()));
        if !(proved & self.keys.real) {
            return Err(ScramError::Proof);
        }
        Ok(Accepted { message, client_key })
    }
}
