//! md5: `md5(md5(password || user) || salt)`, both sides. Kept for old clients and servers; not to be offered by default.

use md5::{Digest, Md5};
use rand::Rng;

use super::{Secret, Stored, same};

/// A server's question: answer it once.
pub struct Question {
    salt: [u8; 4],
}

impl Question {
    /// With a fresh salt.
    #[must_use]
    pub fn new() -> Self {
        let mut salt = [0; 4];
        rand::rng().fill_bytes(&mut salt);
        Self { salt }
    }

    /// The salt to send in [`super::Authentication::Md5`].
    #[must_use]
    pub const fn salt(&self) -> [u8; 4] {
        self.salt
    }

    /// Whether `answer` shows knowledge of the password of `user`. A SCRAM secret cannot be asked for this way: false.
    #[must_use]
    pub fn check(self, stored: &Stored, user: &str, answer: &[u8]) -> bool {
        let hash = match stored {
            Stored::Plain(password) if !password.reveal().is_empty() => hash(password.reveal(), user),
            Stored::Md5(hash) => hash.clone(),
            Stored::Plain(_) | Stored::Scram(_) => return false,
        };
        same(self::answer(&hash, self.salt).reveal(), answer)
    }
}

impl Default for Question {
    fn default() -> Self {
        Self::new()
    }
}

/// `md5` and the hash of password and user, as PostgreSQL stores it.
#[must_use]
pub fn hash(password: &[u8], user: &str) -> Secret {
    digest(&[password, user.as_bytes()])
}

/// A client's answer to `salt`, from what [`hash`] makes or a user list holds.
#[must_use]
pub fn answer(hash: &Secret, salt: [u8; 4]) -> Secret {
    let digits = hash.reveal().strip_prefix(b"md5").unwrap_or(hash.reveal());
    digest(&[digits, &salt])
}

fn digest(parts: &[&[u8]]) -> Secret {
    let mut md5 = Md5::new();
    parts.iter().for_each(|part| md5.update(part));
    let digits = |half: u8| char::from_digit(u32::from(half), 16).unwrap_or('0');
    let hex = md5.finalize().into_iter().flat_map(|byte| [digits(byte >> 4), digits(byte & 15)]);
    Secret::new("md5".chars().chain(hex).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_that_of_postgres_protocol() {
        let salt = *b"*<\xa1\x00";
        let expected = postgres_protocol::authentication::md5_hash(b"postgres", b"password", salt);
        assert_eq!(answer(&hash(b"password", "postgres"), salt).reveal(), expected.as_bytes());
        assert_eq!(
            hash(b"password", "postgres").reveal(),
            postgres_protocol::password::md5(b"password", "postgres").as_bytes()
        );
    }

    #[test]
    fn a_question_takes_the_right_answer_and_no_other() {
        for stored in [Stored::parse(b"secret"), Stored::Md5(hash(b"secret", "joe"))] {
            let ask = |answer: &dyn Fn([u8; 4]) -> Vec<u8>| {
                let question = Question::new();
                let answer = answer(question.salt());
                question.check(&stored, "joe", &answer)
            };
            assert!(ask(&|salt| answer(&hash(b"secret", "joe"), salt).reveal().to_vec()));
            assert!(!ask(&|salt| answer(&hash(b"secret", "jim"), salt).reveal().to_vec()));
            assert!(!ask(&|salt| answer(&hash(b"wrong", "joe"), salt).reveal().to_vec()));
            assert!(!ask(&|_| hash(b"secret", "joe").reveal().to_vec()));
            assert!(!ask(&|_| Vec::new()));
        }
        let question = Question::new();
        let empty = answer(&hash(b"", "joe"), question.salt());
        assert!(!question.check(&Stored::parse(b""), "joe", empty.reveal()));
    }
}
