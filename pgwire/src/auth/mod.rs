//! Logging in, both sides: the messages, the secrets, and a module for each method. Not who may log in by which method.

pub mod cleartext;
pub mod md5;
pub mod scram;

use std::fmt;

use bytes::BytesMut;

use crate::error::Malformed;
use crate::fields::{self, Reader};

/// Most SASL mechanisms that are looked at in a server's list.
const MAX_MECHANISMS: usize = 32;

/// Bytes that nobody may see: passwords, keys. Not printed by `Debug`, overwritten when dropped.
#[derive(Clone)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Takes the bytes over.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// Shows them to whoever needs them.
    #[must_use]
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }

    /// Whether both are the same, in time that depends on the lengths alone.
    #[must_use]
    pub fn matches(&self, other: &[u8]) -> bool {
        same(&self.0, other)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(********)")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

/// Overwrites a secret. Without `unsafe` the compiler can only be asked, through `black_box`, not to leave it out.
fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    std::hint::black_box(bytes);
}

/// Compares in time that depends on the lengths alone.
fn same(a: &[u8], b: &[u8]) -> bool {
    subtle::ConstantTimeEq::ct_eq(a, b).into()
}

/// What is kept of a password, in any form that `pg_authid.rolpassword` or a user list has.
#[derive(Clone, Debug)]
pub enum Stored {
    /// The password itself.
    Plain(Secret),
    /// `md5` and 32 hexadecimal digits: the hash of password and user name.
    Md5(Secret),
    /// `SCRAM-SHA-256$…`.
    Scram(scram::Keys),
}

impl Stored {
    /// Recognises the form as PostgreSQL's `get_password_type` does: what is neither an md5 nor a SCRAM secret is a password.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        if let Some(hash) = text.strip_prefix(b"md5")
            && hash.len() == 32
            && hash.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        {
            return Self::Md5(Secret::new(text));
        }
        match std::str::from_utf8(text).ok().and_then(scram::Keys::parse) {
            Some(keys) => Self::Scram(keys),
            None => Self::Plain(Secret::new(text)),
        }
    }
}

/// The server's side of a login: the messages of tag `R`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authentication<'a> {
    /// AuthenticationOk.
    Ok,
    /// AuthenticationCleartextPassword.
    Cleartext,
    /// AuthenticationMD5Password, with its salt.
    Md5([u8; 4]),
    /// AuthenticationSASL, with the names of mechanisms.
    Sasl(Vec<&'a [u8]>),
    /// AuthenticationSASLContinue.
    SaslContinue(&'a [u8]),
    /// AuthenticationSASLFinal.
    SaslFinal(&'a [u8]),
    /// A method that we do not have (Kerberos, GSSAPI, SSPI), by its number.
    Unsupported(u32),
}

impl<'a> Authentication<'a> {
    /// Reads the body of a message of tag `R`.
    ///
    /// # Errors
    /// The message is broken.
    pub fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Reader::new(body, "authentication request");
        let method = fields.u32()?;
        let read = match method {
            0 => Self::Ok,
            3 => Self::Cleartext,
            5 => {
                let salt = fields.bytes(4)?;
                Self::Md5(salt.try_into().map_err(|_| Malformed::Truncated("authentication request"))?)
            }
            10 => Self::Sasl(mechanisms(&mut fields)?),
            11 => return Ok(Self::SaslContinue(fields.rest())),
            12 => return Ok(Self::SaslFinal(fields.rest())),
            other => return Ok(Self::Unsupported(other)),
        };
        fields.finish()?;
        Ok(read)
    }

    /// Appends the message.
    ///
    /// # Errors
    /// It is too long, or a mechanism's name contains a zero byte.
    pub fn write(&self, out: &mut BytesMut) -> Result<(), Malformed> {
        fields::message(out, b'R', |body| match self {
            Self::Ok => body.u32(0),
            Self::Cleartext => body.u32(3),
            Self::Md5(salt) => body.u32(5).and_then(|()| body.bytes(salt)),
            Self::Sasl(mechanisms) => {
                body.u32(10)?;
                mechanisms.iter().try_for_each(|name| body.cstr(name))?;
                body.u8(0)
            }
            Self::SaslContinue(data) => body.u32(11).and_then(|()| body.bytes(data)),
            Self::SaslFinal(data) => body.u32(12).and_then(|()| body.bytes(data)),
            Self::Unsupported(method) => body.u32(*method),
        })
    }
}

fn mechanisms<'a>(fields: &mut Reader<'a>) -> Result<Vec<&'a [u8]>, Malformed> {
    let mut names = Vec::new();
    loop {
        match fields.cstr()? {
            [] => return Ok(names),
            _ if names.len() >= MAX_MECHANISMS => return Err(Malformed::Invalid("list of SASL mechanisms")),
            name => names.push(name),
        }
    }
}

/// Reads a PasswordMessage: the cleartext password, or the answer to an md5 salt. Exactly one string; an empty one is
/// returned as such and never matches.
///
/// # Errors
/// The message is broken.
pub fn read_password(body: &[u8]) -> Result<Secret, Malformed> {
    let mut fields = Reader::new(body, "password message");
    let password = fields.cstr()?;
    fields.finish()?;
    Ok(Secret::new(password))
}

/// Appends a PasswordMessage.
///
/// # Errors
/// The password contains a zero byte, or is too long.
pub fn write_password(out: &mut BytesMut, password: &[u8]) -> Result<(), Malformed> {
    fields::message(out, b'p', |body| body.cstr(password))
}

/// SASLInitialResponse.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SaslInitial<'a> {
    /// The mechanism that the client has chosen.
    pub mechanism: &'a [u8],
    /// Its first message, if it has sent one along.
    pub response: Option<&'a [u8]>,
}

impl<'a> SaslInitial<'a> {
    /// Reads the body of a message of tag `p` that answers [`Authentication::Sasl`].
    ///
    /// # Errors
    /// The message is broken.
    pub fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Reader::new(body, "SASL initial response");
        let mechanism = fields.cstr()?;
        let response = fields.value()?;
        fields.finish()?;
        Ok(Self { mechanism, response })
    }

    /// Appends the message.
    ///
    /// # Errors
    /// It is too long, or the mechanism's name contains a zero byte.
    pub fn write(&self, out: &mut BytesMut) -> Result<(), Malformed> {
        fields::message(out, b'p', |body| body.cstr(self.mechanism).and_then(|()| body.value(self.response)))
    }
}

/// Appends a SASLResponse.
///
/// # Errors
/// It is too long.
pub fn write_sasl_response(out: &mut BytesMut, data: &[u8]) -> Result<(), Malformed> {
    fields::message(out, b'p', |body| body.bytes(data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_printed() {
        let stored = [Stored::parse(b"hunter2"), Stored::parse(b"md50123456789abcdef0123456789abcdef")];
        let printed = format!("{stored:?}");
        assert!(!printed.contains("hunter2") && !printed.contains("0123456789"), "{printed}");
    }

    #[test]
    fn a_stored_secret_is_known_by_its_form() {
        assert!(matches!(Stored::parse(b"md50123456789abcdef0123456789abcdef"), Stored::Md5(_)));
        for plain in [&b"md5"[..], b"md50123456789abcdef0123456789abcdeg", b"SCRAM-SHA-256$", b"", b"\xff", b"x"] {
            assert!(matches!(Stored::parse(plain), Stored::Plain(_)), "{plain:?}");
        }
    }

    #[test]
    fn authentication_requests_are_read_as_written() {
        let all = [
            Authentication::Ok,
            Authentication::Cleartext,
            Authentication::Md5(*b"\0\x01\xff ,"[..4].first_chunk().unwrap()),
            Authentication::Sasl(vec![b"SCRAM-SHA-256-PLUS", b"SCRAM-SHA-256"]),
            Authentication::Sasl(vec![]),
            Authentication::SaslContinue(b"r=x"),
            Authentication::SaslFinal(b"v=x"),
            Authentication::Unsupported(7),
        ];
        for request in all {
            let mut out = BytesMut::new();
            request.write(&mut out).unwrap();
            assert_eq!(Authentication::read(&out[5..]), Ok(request));
        }
        for broken in [
            &b""[..],
            b"\0\0\0",
            b"\0\0\0\0x",
            b"\0\0\0\x05abc",
            b"\0\0\0\x05abcde",
            b"\0\0\0\x0aSCRAM",
            b"\0\0\0\x0aS\0",
        ] {
            assert!(Authentication::read(broken).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn cve_2026_6664_sasl_length_negative() {
        let message = |length: u32, rest: &[u8]| [b"SCRAM-SHA-256\0", &length.to_be_bytes()[..], rest].concat();
        for (length, rest) in [
            (0x7fff_ffff, &b"n,,n=,r=x"[..]),
            (0xffff_fffb, b"n,,n=,r=x"),
            (0x8000_0000, b"n,,n=,r=x"),
            (0, b"n,,n=,r=x"),
            (10, b"n,,n=,r=x"),
            (0xffff_ffff, b"n,,n=,r=x"),
        ] {
            assert!(SaslInitial::read(&message(length, rest)).is_err(), "{length:#x}");
        }
        assert_eq!(SaslInitial::read(&message(9, b"n,,n=,r=x")).unwrap().response, Some(&b"n,,n=,r=x"[..]));
        assert_eq!(SaslInitial::read(&message(0xffff_ffff, b"")).unwrap().response, None);
    }

    #[test]
    fn cve_2017_7546_an_empty_password_is_read_and_matches_nothing() {
        assert!(read_password(b"").is_err());
        assert!(read_password(b"a").is_err());
        assert!(read_password(b"a\0b\0").is_err());
        let empty = read_password(b"\0").unwrap();
        for stored in [&b""[..], b"x", b"md50123456789abcdef0123456789abcdef"] {
            assert!(!cleartext::check(&Stored::parse(stored), "u", empty.reveal()));
        }
    }
}
