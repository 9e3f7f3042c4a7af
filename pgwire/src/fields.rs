//! The fields of a message: a reader that believes nothing, and a writer that cannot write a wrong length.

use bytes::{BufMut, BytesMut};

use crate::error::Malformed;
use crate::frame::{HEADER, MAX_DECLARED};

/// Reads the fields of one message in order. Borrowed views point into the message; nothing is copied.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    /// A reader of `body`; `what` names the message in errors.
    #[must_use]
    pub const fn new(body: &'a [u8], what: &'static str) -> Self {
        Self { bytes: body, what }
    }

    /// Bytes up to the next zero byte, which is taken too.
    ///
    /// # Errors
    /// No zero byte follows.
    pub fn cstr(&mut self) -> Result<&'a [u8], Malformed> {
        let end = memchr::memchr(0, self.bytes).ok_or(Malformed::Unterminated(self.what))?;
        let string = self.bytes(end)?;
        self.bytes(1)?;
        Ok(string)
    }

    /// One byte.
    ///
    /// # Errors
    /// The message has ended; so for the others below.
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[b]| b)
    }

    /// Two bytes, signed.
    ///
    /// # Errors
    /// The message ends before.
    pub fn i16(&mut self) -> Result<i16, Malformed> {
        self.array().map(i16::from_be_bytes)
    }

    /// Two bytes, unsigned: what the protocol's counts of parameters and columns are.
    ///
    /// # Errors
    /// The message ends before.
    pub fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    /// Four bytes, signed.
    ///
    /// # Errors
    /// The message ends before.
    pub fn i32(&mut self) -> Result<i32, Malformed> {
        self.array().map(i32::from_be_bytes)
    }

    /// Four bytes, unsigned.
    ///
    /// # Errors
    /// The message ends before.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// The message ends before.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or(Malformed::Truncated(self.what))?;
        self.bytes = rest;
        Ok(taken)
    }

    /// A length of four bytes and as many bytes; `None` for length -1, SQL's null.
    ///
    /// # Errors
    /// Any other negative length, or one that the message does not hold.
    pub fn value(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        match self.i32()? {
            -1 => Ok(None),
            length => {
                let length = usize::try_from(length).map_err(|_| Malformed::Invalid(self.what))?;
                self.bytes(length).map(Some)
            }
        }
    }

    /// Bytes not read yet.
    #[must_use]
    pub const fn remaining(&self) -> usize {
        self.bytes.len()
    }

    /// All that is left.
    #[must_use]
    pub const fn rest(self) -> &'a [u8] {
        self.bytes
    }

    /// Ends reading.
    ///
    /// # Errors
    /// The message goes on.
    pub const fn finish(self) -> Result<(), Malformed> {
        if self.bytes.is_empty() { Ok(()) } else { Err(Malformed::Trailing(self.what)) }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.bytes.split_first_chunk::<N>().ok_or(Malformed::Truncated(self.what))?;
        self.bytes = rest;
        Ok(*taken)
    }
}

/// Writes the fields of one message; made by [`message`] and [`untagged`].
pub struct Body<'a> {
    out: &'a mut BytesMut,
    /// Bytes of the body still allowed.
    room: usize,
}

impl Body<'_> {
    /// A string and its terminating zero byte.
    ///
    /// # Errors
    /// A zero byte inside, or no room.
    pub fn cstr(&mut self, string: &[u8]) -> Result<(), Malformed> {
        if string.contains(&0) {
            return Err(Malformed::ZeroByte("a string to be sent"));
        }
        self.bytes(string)?;
        self.u8(0)
    }

    /// Bytes as they are.
    ///
    /// # Errors
    /// No room: the message would be longer than PostgreSQL takes.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        self.room = self.room.checked_sub(bytes.len()).ok_or(Malformed::TooLarge)?;
        self.out.put_slice(bytes);
        Ok(())
    }

    /// One byte.
    ///
    /// # Errors
    /// No room; so for the others below.
    pub fn u8(&mut self, value: u8) -> Result<(), Malformed> {
        self.bytes(&[value])
    }

    /// Two bytes, signed.
    ///
    /// # Errors
    /// No room.
    pub fn i16(&mut self, value: i16) -> Result<(), Malformed> {
        self.bytes(&value.to_be_bytes())
    }

    /// A count in two bytes.
    ///
    /// # Errors
    /// More than 65,535, or no room.
    pub fn count(&mut self, count: usize) -> Result<(), Malformed> {
        let count = u16::try_from(count).map_err(|_| Malformed::TooLarge)?;
        self.bytes(&count.to_be_bytes())
    }

    /// Four bytes, signed.
    ///
    /// # Errors
    /// No room.
    pub fn i32(&mut self, value: i32) -> Result<(), Malformed> {
        self.bytes(&value.to_be_bytes())
    }

    /// Four bytes, unsigned.
    ///
    /// # Errors
    /// No room.
    pub fn u32(&mut self, value: u32) -> Result<(), Malformed> {
        self.bytes(&value.to_be_bytes())
    }

    /// A length of four bytes and as many bytes, or length -1 for `None`.
    ///
    /// # Errors
    /// No room.
    pub fn value(&mut self, value: Option<&[u8]>) -> Result<(), Malformed> {
        let Some(value) = value else { return self.i32(-1) };
        self.u32(declared(value.len())?)?;
        self.bytes(value)
    }
}

/// Appends a message of `tag` to `out`: the body is what `write` puts, the length is fitted afterwards.
///
/// # Errors
/// Those of `write`, or a message that is too long; `out` is then as it was.
pub fn message(
    out: &mut BytesMut,
    tag: u8,
    write: impl FnOnce(&mut Body<'_>) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    framed(out, Some(tag), write)
}

/// Appends a message without a tag (startup, SSLRequest, CancelRequest) to `out`.
///
/// # Errors
/// As [`message`].
pub fn untagged(
    out: &mut BytesMut,
    write: impl FnOnce(&mut Body<'_>) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    framed(out, None, write)
}

fn framed(
    out: &mut BytesMut,
    tag: Option<u8>,
    write: impl FnOnce(&mut Body<'_>) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    let start = out.len();
    if let Some(tag) = tag {
        out.put_u8(tag);
    }
    let length_at = out.len();
    out.put_u32(0);
    let room = (MAX_DECLARED as usize).saturating_sub(HEADER);
    let written = write(&mut Body { out, room }).and_then(|()| declared(out.len().saturating_sub(length_at)));
    match (written, out.get_mut(length_at..).and_then(|rest| rest.first_chunk_mut::<4>())) {
        (Ok(length), Some(place)) => {
            *place = length.to_be_bytes();
            Ok(())
        }
        (failed, _) => {
            out.truncate(start);
            Err(failed.err().unwrap_or(Malformed::TooLarge))
        }
    }
}

/// A length as the wire has it.
///
/// # Errors
/// Longer than [`MAX_DECLARED`]: a length that wraps makes the tail of a value into messages of its own.
pub fn declared(length: usize) -> Result<u32, Malformed> {
    u32::try_from(length).ok().filter(|&length| length <= MAX_DECLARED).ok_or(Malformed::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_stops_at_the_end() {
        let mut fields = Reader::new(b"ab\0\x01\x00\x02\x00\x00\x00\x03xy", "Test");
        assert_eq!(fields.cstr(), Ok(&b"ab"[..]));
        assert_eq!(fields.u8(), Ok(1));
        assert_eq!(fields.i16(), Ok(2));
        assert_eq!(fields.i32(), Ok(3));
        assert_eq!(fields.finish(), Err(Malformed::Trailing("Test")));
        assert_eq!(fields.cstr(), Err(Malformed::Unterminated("Test")));
        assert_eq!(fields.bytes(3), Err(Malformed::Truncated("Test")));
        assert_eq!(fields.bytes(usize::MAX), Err(Malformed::Truncated("Test")));
        assert_eq!(fields.remaining(), 2);
        assert_eq!(fields.bytes(2), Ok(&b"xy"[..]));
        assert_eq!(fields.finish(), Ok(()));
        assert_eq!(fields.u8(), Err(Malformed::Truncated("Test")));
    }

    #[test]
    fn a_value_is_null_only_at_minus_one() {
        let read = |bytes: &'static [u8]| Reader::new(bytes, "Test").value();
        assert_eq!(read(b"\xff\xff\xff\xff"), Ok(None));
        assert_eq!(read(b"\xff\xff\xff\xfe"), Err(Malformed::Invalid("Test")));
        assert_eq!(read(b"\x80\0\0\0"), Err(Malformed::Invalid("Test")));
        assert_eq!(read(b"\x7f\xff\xff\xffabc"), Err(Malformed::Truncated("Test")));
        assert_eq!(read(b"\0\0\0\x03abc"), Ok(Some(&b"abc"[..])));
    }

    #[test]
    fn a_failed_message_leaves_nothing_behind() {
        let mut out = BytesMut::from(&b"before"[..]);
        let refused = message(&mut out, b'Q', |body| body.cstr(b"select 1").and_then(|()| body.cstr(b"a\0b")));
        assert_eq!(refused, Err(Malformed::ZeroByte("a string to be sent")));
        assert_eq!(out, &b"before"[..]);
        message(&mut out, b'Q', |body| body.cstr(b"x")).unwrap();
        assert_eq!(out, &b"beforeQ\0\0\0\x06x\0"[..]);
    }

    #[test]
    fn cve_2024_27304_a_length_that_would_wrap_is_refused() {
        assert_eq!(declared(MAX_DECLARED as usize), Ok(MAX_DECLARED));
        for length in [MAX_DECLARED as usize + 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 32) + 9, usize::MAX] {
            assert_eq!(declared(length), Err(Malformed::TooLarge), "{length}");
        }
        let mut out = BytesMut::new();
        let mut body = Body { out: &mut out, room: 10 };
        assert_eq!(body.bytes(&[0; 11]), Err(Malformed::TooLarge));
        assert_eq!(body.value(Some(&[0; 7])), Err(Malformed::TooLarge));
        assert_eq!(body.count(65_536), Err(Malformed::TooLarge));
    }
}
