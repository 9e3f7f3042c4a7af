//! Messages of a client: views of those that must be looked into, and writers of those that we send or change.
//!
//! A view borrows from the message and reads no further than is needed: parameter values of a Bind are passed on unread.

use bytes::BytesMut;

use crate::error::Malformed;
use crate::fields::{self, Reader};
use crate::greeting::{CANCEL_CODE, MAX_CANCEL_KEY, MIN_CANCEL_KEY, NEWEST_MINOR, PROTOCOL_3, SSL_CODE};

/// Reads the body of a Query: its text, in the client's encoding.
///
/// # Errors
/// Not exactly one string.
pub fn query(body: &[u8]) -> Result<&[u8], Malformed> {
    let mut fields = Reader::new(body, "Query");
    let text = fields.cstr()?;
    fields.finish()?;
    Ok(text)
}

/// Parse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parse<'a> {
    /// Name of the statement; empty for the unnamed one.
    pub name: &'a [u8],
    /// Its text.
    pub text: &'a [u8],
    /// Types of its parameters as the wire has them: their count in two bytes, and four bytes each.
    pub types: &'a [u8],
}

impl<'a> Parse<'a> {
    /// Reads the body of a Parse.
    ///
    /// # Errors
    /// The message is broken.
    pub fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Reader::new(body, "Parse");
        let (name, text) = (fields.cstr()?, fields.cstr()?);
        let types = fields.rest();
        let count = usize::from(fields.u16()?);
        fields.bytes(count.saturating_mul(4))?;
        fields.finish()?;
        Ok(Self { name, text, types })
    }

    /// Object identifiers of the parameters' types; 0 where the client leaves it open.
    pub fn type_ids(&self) -> impl ExactSizeIterator<Item = u32> + use<'a> {
        let (types, _) = self.types.get(2..).unwrap_or_default().as_chunks::<4>();
        types.iter().map(|id| u32::from_be_bytes(*id))
    }

    /// Appends it; to send it under another name, change `name`.
    ///
    /// # Errors
    /// It is too long, or a string contains a zero byte.
    pub fn write(&self, out: &mut BytesMut) -> Result<(), Malformed> {
        fields::message(out, b'P', |body| {
            body.cstr(self.name)?;
            body.cstr(self.text)?;
            body.bytes(self.types)
        })
    }
}

/// Appends a Parse of our own.
///
/// # Errors
/// It is too long, or a string contains a zero byte.
pub fn parse(out: &mut BytesMut, name: &[u8], text: &[u8], types: &[u32]) -> Result<(), Malformed> {
    fields::message(out, b'P', |body| {
        body.cstr(name)?;
        body.cstr(text)?;
        body.count(types.len())?;
        types.iter().try_for_each(|id| body.u32(*id))
    })
}

/// Bind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind<'a> {
    /// Name of the portal; empty for the unnamed one.
    pub portal: &'a [u8],
    /// Name of the statement; empty for the unnamed one.
    pub statement: &'a [u8],
    /// Formats, values and result formats, unread.
    pub rest: &'a [u8],
}

impl<'a> Bind<'a> {
    /// Reads the names in the body of a Bind. The rest is unread: it need not even be there yet.
    ///
    /// # Errors
    /// A name is not terminated within `body`.
    pub fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Reader::new(body, "Bind");
        let (portal, statement) = (fields.cstr()?, fields.cstr()?);
        Ok(Self { portal, statement, rest: fields.rest() })
    }

    /// Reads the rest as PostgreSQL will: counts and lengths must add up to exactly the message.
    ///
    /// # Errors
    /// They do not: lengths that wrap around are how one message is made to hold others (CVE-2024-27304).
    pub fn check(&self) -> Result<(), Malformed> {
        let mut fields = Reader::new(self.rest, "Bind");
        let formats = fields.u16()?;
        fields.bytes(usize::from(formats).saturating_mul(2))?;
        for _ in 0..fields.u16()? {
            fields.value()?;
        }
        let results = fields.u16()?;
        fields.bytes(usize::from(results).saturating_mul(2))?;
        fields.finish()
    }

    /// Appends it; to bind another statement, change `statement`.
    ///
    /// # Errors
    /// It is too long, or a name contains a zero byte.
    pub fn write(&self, out: &mut BytesMut) -> Result<(), Malformed> {
        fields::message(out, b'B', |body| {
            body.cstr(self.portal)?;
            body.cstr(self.statement)?;
            body.bytes(self.rest)
        })
    }

    /// Appends the header and the names of a Bind to `statement` whose `rest` has `rest` bytes, which the caller sends behind
    /// it as they come: a long Bind need not be held to be changed.
    ///
    /// # Errors
    /// The whole would be too long, or a name contains a zero byte.
    pub fn write_start(out: &mut BytesMut, portal: &[u8], statement: &[u8], rest: usize) -> Result<(), Malformed> {
        let names = portal.len().saturating_add(statement.len()).saturating_add(2);
        let declared = fields::declared(names.saturating_add(rest).saturating_add(4))?;
        let start = out.len();
        fields::message(out, b'B', |body| {
            body.cstr(portal)?;
            body.cstr(statement)
        })?;
        let length_at = start.saturating_add(1);
        if let Some(length) = out.get_mut(length_at..).and_then(|rest| rest.first_chunk_mut::<4>()) {
            *length = declared.to_be_bytes();
        }
        Ok(())
    }
}

/// Appends a Bind of our own: parameters as text, results as text.
///
/// # Errors
/// It is too long, or a name contains a zero byte.
pub fn bind(out: &mut BytesMut, portal: &[u8], statement: &[u8], values: &[Option<&[u8]>]) -> Result<(), Malformed> {
    fields::message(out, b'B', |body| {
        body.cstr(portal)?;
        body.cstr(statement)?;
        body.count(0)?;
        body.count(values.len())?;
        values.iter().try_for_each(|value| body.value(*value))?;
        body.count(0)
    })
}

/// What a Describe or a Close is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// A prepared statement, by name.
    Statement(&'a [u8]),
    /// A portal, by name.
    Portal(&'a [u8]),
}

impl<'a> Target<'a> {
    /// Reads the body of a Describe or a Close.
    ///
    /// # Errors
    /// The message is broken, or about neither.
    pub fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Reader::new(body, "Describe or Close");
        let kind = fields.u8()?;
        let name = fields.cstr()?;
        fields.finish()?;
        match kind {
            b'S' => Ok(Self::Statement(name)),
            b'P' => Ok(Self::Portal(name)),
            _ => Err(Malformed::Invalid("Describe or Close")),
        }
    }

    /// Appends a Describe of it.
    ///
    /// # Errors
    /// The name is too long or contains a zero byte.
    pub fn describe(self, out: &mut BytesMut) -> Result<(), Malformed> {
        self.write(out, b'D')
    }

    /// Appends a Close of it.
    ///
    /// # Errors
    /// The name is too long or contains a zero byte.
    pub fn close(self, out: &mut BytesMut) -> Result<(), Malformed> {
        self.write(out, b'C')
    }

    fn write(self, out: &mut BytesMut, tag: u8) -> Result<(), Malformed> {
        let (kind, name) = match self {
            Self::Statement(name) => (b'S', name),
            Self::Portal(name) => (b'P', name),
        };
        fields::message(out, tag, |body| {
            body.u8(kind)?;
            body.cstr(name)
        })
    }
}

/// Execute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Execute<'a> {
    /// Name of the portal; empty for the unnamed one.
    pub portal: &'a [u8],
    /// Most rows to return; 0 for all.
    pub rows: i32,
}

impl<'a> Execute<'a> {
    /// Reads the body of an Execute.
    ///
    /// # Errors
    /// The message is broken.
    pub fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Reader::new(body, "Execute");
        let (portal, rows) = (fields.cstr()?, fields.i32()?);
        fields.finish()?;
        Ok(Self { portal, rows })
    }

    /// Appends it.
    ///
    /// # Errors
    /// The name is too long or contains a zero byte.
    pub fn write(&self, out: &mut BytesMut) -> Result<(), Malformed> {
        fields::message(out, b'E', |body| {
            body.cstr(self.portal)?;
            body.i32(self.rows)
        })
    }
}

/// Appends a Query.
///
/// # Errors
/// It is too long, or contains a zero byte.
pub fn write_query(out: &mut BytesMut, text: &[u8]) -> Result<(), Malformed> {
    fields::message(out, b'Q', |body| body.cstr(text))
}

/// Sync, whole.
pub const SYNC: [u8; 5] = *b"S\0\0\0\x04";
/// Flush, whole.
pub const FLUSH: [u8; 5] = *b"H\0\0\0\x04";
/// Terminate, whole.
pub const TERMINATE: [u8; 5] = *b"X\0\0\0\x04";
/// CopyDone, whole; of either side.
pub const COPY_DONE: [u8; 5] = *b"c\0\0\0\x04";

/// Appends a CopyFail with its reason.
///
/// # Errors
/// It is too long, or contains a zero byte.
pub fn copy_fail(out: &mut BytesMut, reason: &[u8]) -> Result<(), Malformed> {
    fields::message(out, b'f', |body| body.cstr(reason))
}

/// Appends a startup packet for protocol 3.`minor` with these parameters.
///
/// # Errors
/// A name or value contains a zero byte, or a name is empty, which would end the list; or `minor` is one we do not speak.
pub fn startup(out: &mut BytesMut, minor: u16, parameters: &[(&[u8], &[u8])]) -> Result<(), Malformed> {
    if minor > NEWEST_MINOR {
        return Err(Malformed::Invalid("minor version of the protocol"));
    }
    fields::untagged(out, |body| {
        body.u32(PROTOCOL_3 | u32::from(minor))?;
        for (name, value) in parameters {
            if name.is_empty() {
                return Err(Malformed::Invalid("name of a startup parameter"));
            }
            body.cstr(name)?;
            body.cstr(value)?;
        }
        body.u8(0)
    })
}

/// Appends an SSLRequest.
///
/// # Errors
/// None that can happen.
pub fn ssl_request(out: &mut BytesMut) -> Result<(), Malformed> {
    fields::untagged(out, |body| body.u32(SSL_CODE))
}

/// Appends a CancelRequest.
///
/// # Errors
/// The key is not of 4 to 256 bytes.
pub fn cancel_request(out: &mut BytesMut, process: u32, key: &[u8]) -> Result<(), Malformed> {
    if !(MIN_CANCEL_KEY..=MAX_CANCEL_KEY).contains(&key.len()) {
        return Err(Malformed::Invalid("cancel key"));
    }
    fields::untagged(out, |body| {
        body.u32(CANCEL_CODE)?;
        body.u32(process)?;
        body.bytes(key)
    })
}
