//! Messages of a server: views of those that must be looked into, and writers of those that we send in its stead.
//!
//! Rows, descriptions and COPY data are never looked into (RUSTSEC-2026-0178): they are passed on as they are.

use bytes::BytesMut;

use crate::conversation::{Reply, TransactionStatus};
use crate::error::Malformed;
use crate::fields::{self, Reader};
use crate::greeting::{MAX_CANCEL_KEY, MIN_CANCEL_KEY, NEWEST_MINOR, PROTOCOL_3};

/// ParseComplete, whole.
pub const PARSE_COMPLETE: [u8; 5] = *b"1\0\0\0\x04";
/// CloseComplete, whole.
pub const CLOSE_COMPLETE: [u8; 5] = *b"3\0\0\0\x04";
/// EmptyQueryResponse, whole.
pub const EMPTY_QUERY: [u8; 5] = *b"I\0\0\0\x04";
/// Object identifier of the type `text`.
const TEXT: u32 = 25;

impl Reply {
    /// The message, whole.
    #[must_use]
    pub const fn bytes(self) -> &'static [u8; 5] {
        match self {
            Self::ParseComplete => &PARSE_COMPLETE,
            Self::CloseComplete => &CLOSE_COMPLETE,
        }
    }
}

/// Reads the body of a ReadyForQuery.
///
/// # Errors
/// Not exactly one of `I`, `T`, `E`.
pub fn ready_for_query(body: &[u8]) -> Result<TransactionStatus, Malformed> {
    let mut fields = Reader::new(body, "ReadyForQuery");
    let status = fields.u8()?;
    fields.finish()?;
    TransactionStatus::from_byte(status).ok_or(Malformed::Invalid("ReadyForQuery"))
}

/// ReadyForQuery, whole.
#[must_use]
pub const fn write_ready_for_query(status: TransactionStatus) -> [u8; 6] {
    [b'Z', 0, 0, 0, 5, status.byte()]
}

/// Reads the body of a ParameterStatus: the setting's name and its value.
///
/// # Errors
/// Not exactly two strings.
pub fn parameter_status(body: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let mut fields = Reader::new(body, "ParameterStatus");
    let (name, value) = (fields.cstr()?, fields.cstr()?);
    fields.finish()?;
    Ok((name, value))
}

/// Appends a ParameterStatus.
///
/// # Errors
/// A string contains a zero byte.
pub fn write_parameter_status(out: &mut BytesMut, name: &[u8], value: &[u8]) -> Result<(), Malformed> {
    fields::message(out, b'S', |body| {
        body.cstr(name)?;
        body.cstr(value)
    })
}

/// Reads the body of a BackendKeyData: the process number and the cancel key, which is a secret.
///
/// # Errors
/// The key is not of 4 to 256 bytes.
pub fn backend_key_data(body: &[u8]) -> Result<(u32, &[u8]), Malformed> {
    let mut fields = Reader::new(body, "BackendKeyData");
    let process = fields.u32()?;
    let key = fields.rest();
    if !(MIN_CANCEL_KEY..=MAX_CANCEL_KEY).contains(&key.len()) {
        return Err(Malformed::Invalid("BackendKeyData"));
    }
    Ok((process, key))
}

/// Appends a BackendKeyData.
///
/// # Errors
/// The key is not of 4 to 256 bytes.
pub fn write_backend_key_data(out: &mut BytesMut, process: u32, key: &[u8]) -> Result<(), Malformed> {
    if !(MIN_CANCEL_KEY..=MAX_CANCEL_KEY).contains(&key.len()) {
        return Err(Malformed::Invalid("BackendKeyData"));
    }
    fields::message(out, b'K', |body| {
        body.u32(process)?;
        body.bytes(key)
    })
}

/// Reads the body of a NegotiateProtocolVersion: the minor version that the server speaks. Extensions that it does not know
/// are an error, as we ask for none.
///
/// # Errors
/// The message is broken, or names a version that we do not speak.
pub fn negotiate_protocol_version(body: &[u8]) -> Result<u16, Malformed> {
    let what = "NegotiateProtocolVersion";
    let mut fields = Reader::new(body, what);
    // The manual says the minor version; PostgreSQL sends the whole.
    let version = fields.u32()?;
    let unknown = fields.u32()?;
    fields.finish()?;
    let minor = u16::try_from(version.checked_sub(PROTOCOL_3).unwrap_or(version));
    match minor {
        Ok(minor) if minor <= NEWEST_MINOR && unknown == 0 => Ok(minor),
        _ => Err(Malformed::Invalid(what)),
    }
}

/// Reads the body of a CommandComplete: its tag, such as `INSERT 0 1`.
///
/// # Errors
/// Not exactly one string.
pub fn command_complete(body: &[u8]) -> Result<&[u8], Malformed> {
    let mut fields = Reader::new(body, "CommandComplete");
    let tag = fields.cstr()?;
    fields.finish()?;
    Ok(tag)
}

/// Appends a CommandComplete.
///
/// # Errors
/// The tag contains a zero byte.
pub fn write_command_complete(out: &mut BytesMut, tag: &str) -> Result<(), Malformed> {
    fields::message(out, b'C', |body| body.cstr(tag.as_bytes()))
}

/// Appends a RowDescription of columns of type `text`.
///
/// # Errors
/// More than 65,535 columns, or a name contains a zero byte.
pub fn row_description(out: &mut BytesMut, columns: &[&str]) -> Result<(), Malformed> {
    fields::message(out, b'T', |body| {
        body.count(columns.len())?;
        for name in columns {
            body.cstr(name.as_bytes())?;
            // No table, no column number; the type, its length (variable), no modifier, format text.
            body.u32(0)?;
            body.i16(0)?;
            body.u32(TEXT)?;
            body.i16(-1)?;
            body.i32(-1)?;
            body.i16(0)?;
        }
        Ok(())
    })
}

/// Appends a DataRow of values in text form; `None` is null.
///
/// # Errors
/// More than 65,535 values, or the row is too long.
pub fn data_row<V: AsRef<[u8]>>(out: &mut BytesMut, values: &[Option<V>]) -> Result<(), Malformed> {
    fields::message(out, b'D', |body| {
        body.count(values.len())?;
        values.iter().try_for_each(|value| body.value(value.as_ref().map(AsRef::as_ref)))
    })
}

/// The values of a DataRow that answers a query of our own; `None` is null.
///
/// # Errors
/// The message is broken: a count or length that it does not hold.
pub fn row_values(body: &[u8]) -> Result<Vec<Option<&[u8]>>, Malformed> {
    let mut fields = Reader::new(body, "DataRow");
    let count = usize::from(fields.u16()?);
    // Each value takes four bytes at least: a count that lies cannot make us allocate.
    let mut values = Vec::with_capacity(count.min(fields.remaining() / 4));
    for _ in 0..count {
        values.push(fields.value()?);
    }
    fields.finish()?;
    Ok(values)
}
