//! The password itself, as it came over the wire: whether it is the right one. The client's side is `write_password`.

use super::{Stored, md5, same, scram};

/// Whether `password` is that of `user`. An empty password never is (CVE-2017-7546).
///
/// Against a SCRAM secret this costs its iterations (0.5 ms at 4096): see [`scram::salted_password`].
#[must_use]
pub fn check(stored: &Stored, user: &str, password: &[u8]) -> bool {
    if password.is_empty() {
        return false;
    }
    match stored {
        Stored::Plain(secret) => secret.matches(password),
        Stored::Md5(secret) => same(secret.reveal(), md5::hash(password, user).reveal()),
        Stored::Scram(keys) => keys.is_of(&scram::salted_password(password, keys.salt(), keys.iterations())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_right_password_and_no_other() {
        let salted = scram::salted_password(b"secret", b"0123456789abcdef", 4096);
        let scram = scram::Keys::new(&salted, b"0123456789abcdef", 4096).unwrap().to_text();
        // select 'md5' || md5('secret' || 'joe')
        for stored in ["secret", "md51784a9a5f43407ba4f2ccbd14b47eb6a", &scram] {
            let stored = if stored.starts_with("md5") {
                Stored::Md5(md5::hash(b"secret", "joe"))
            } else {
                Stored::parse(stored.as_bytes())
            };
            assert!(check(&stored, "joe", b"secret"));
            for wrong in [&b""[..], b"Secret", b"secret ", b"secre", b"\xff"] {
                assert!(!check(&stored, "joe", wrong));
            }
        }
    }
}
