//! Where a message begins and ends, and how long one of its kind may be. Not what is in it, nor who may send it when.

use crate::error::Malformed;

/// Bytes before the body: the tag and the declared length.
pub const HEADER: usize = 5;
/// Greatest length that a message may declare, in bytes: PostgreSQL's `PQ_LARGE_MESSAGE_LIMIT` (`MaxAllocSize - 1`).
pub const MAX_DECLARED: u32 = 0x3fff_fffe;
/// Least length that a message may declare, in bytes: that of the length itself.
pub const MIN_DECLARED: u32 = 4;
/// Greatest declared length of a frontend message without long content: PostgreSQL's `PQ_SMALL_MESSAGE_LIMIT`.
pub const SMALL_DECLARED: u32 = 10_000;
/// Greatest declared length of a password or SASL message: PostgreSQL's `PG_MAX_AUTH_TOKEN_LENGTH`.
pub const MAX_AUTH_DECLARED: u32 = 65_535;
/// Greatest declared length of a backend message without long content: libpq's limit.
pub const MAX_SHORT_BACKEND: u32 = 30_000;
/// Greatest declared length of ParameterDescription: a type for each of 65,535 parameters.
const MAX_PARAMETER_DESCRIPTION: u32 = 4 + 2 + 4 * 65_535;

/// The start of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// First byte: which message it is.
    pub tag: u8,
    /// Length of the whole message in bytes: tag, length and body.
    pub length: usize,
}

impl Header {
    /// Bytes of the body.
    #[inline]
    #[must_use]
    pub const fn body(&self) -> usize {
        self.length.saturating_sub(HEADER)
    }

    /// Length as declared on the wire.
    fn declared(self) -> u32 {
        u32::try_from(self.length.saturating_sub(1)).unwrap_or(u32::MAX)
    }
}

/// Reads the header of the message that begins `bytes`; `None` until its five bytes are there.
///
/// # Errors
/// A declared length below 4 or above [`MAX_DECLARED`]. Whether the tag is known is the caller's matter.
#[inline]
pub fn header(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    let Some(&[tag, a, b, c, d]) = bytes.first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let declared = u32::from_be_bytes([a, b, c, d]);
    if !(MIN_DECLARED..=MAX_DECLARED).contains(&declared) {
        return Err(Malformed::Length { tag, declared, allowed: (MIN_DECLARED, MAX_DECLARED) });
    }
    Ok(Some(Header { tag, length: (declared as usize).saturating_add(1) }))
}

/// A complete message at the beginning of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// First byte: which message it is.
    pub tag: u8,
    /// What follows the header.
    pub body: &'a [u8],
    /// What follows the message.
    pub rest: &'a [u8],
}

/// Splits the first complete message off `bytes`; `None` until all of it is there.
///
/// # Errors
/// As [`header`].
#[inline]
pub fn split(bytes: &[u8]) -> Result<Option<Frame<'_>>, Malformed> {
    let Some(Header { tag, length }) = header(bytes)? else { return Ok(None) };
    let Some((message, rest)) = bytes.split_at_checked(length) else { return Ok(None) };
    let Some((_, body)) = message.split_at_checked(HEADER) else { return Ok(None) };
    Ok(Some(Frame { tag, body, rest }))
}

/// Bytes of the complete messages of one kind that `bytes` begins with, up to the first that is longer than `longest`
/// bytes, tag and all.
#[inline]
#[must_use]
pub fn run(bytes: &[u8], tag: u8, longest: usize) -> usize {
    let mut rest = bytes;
    while let Ok(Some(header)) = header(rest) {
        let Some((_, behind)) = rest.split_at_checked(header.length) else { break };
        if header.tag != tag || header.length > longest {
            break;
        }
        rest = behind;
    }
    bytes.len().saturating_sub(rest.len())
}

/// Least and greatest declared length of a frontend message after login; `None` for a tag that PostgreSQL does not know then.
///
/// As `SocketBackend` in `postgres.c` has it, and Sync, Flush, CopyDone and Terminate must be empty.
#[inline]
#[must_use]
pub const fn frontend_limit(tag: u8) -> Option<(u32, u32)> {
    match tag {
        b'Q' | b'P' | b'B' | b'F' | b'd' => Some((MIN_DECLARED, MAX_DECLARED)),
        b'D' | b'C' | b'E' | b'f' => Some((MIN_DECLARED, SMALL_DECLARED)),
        b'S' | b'H' | b'X' | b'c' => Some((MIN_DECLARED, MIN_DECLARED)),
        _ => None,
    }
}

/// Least and greatest declared length of a backend message; `None` for an unknown tag. Long where libpq allows long.
#[inline]
#[must_use]
pub const fn backend_limit(tag: u8) -> Option<(u32, u32)> {
    match tag {
        b'D' | b'd' | b'T' | b'E' | b'N' | b'A' | b'V' => Some((MIN_DECLARED, MAX_DECLARED)),
        b'Z' => Some((5, 5)),
        b'1' | b'2' | b'3' | b'n' | b's' | b'I' | b'c' => Some((MIN_DECLARED, MIN_DECLARED)),
        b'K' => Some((12, 8 + 256)),
        b't' => Some((6, MAX_PARAMETER_DESCRIPTION)),
        b'R' => Some((8, MAX_AUTH_DECLARED)),
        // A COPY of 1,600 columns has 2 bytes for each; a setting may be as long as libpq reads.
        b'S' | b'C' | b'G' | b'H' | b'W' | b'v' => Some((MIN_DECLARED, MAX_SHORT_BACKEND)),
        _ => None,
    }
}

/// Whether a header's length lies within `allowed`, as the two functions above give it.
///
/// # Errors
/// [`Malformed::Length`] with what is allowed.
#[inline]
pub fn within(header: Header, allowed: (u32, u32)) -> Result<(), Malformed> {
    let declared = header.declared();
    if declared < allowed.0 || declared > allowed.1 {
        return Err(Malformed::Length { tag: header.tag, declared, allowed });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared(tag: u8, length: u32) -> [u8; 5] {
        let [a, b, c, d] = length.to_be_bytes();
        [tag, a, b, c, d]
    }

    #[test]
    fn a_header_needs_five_bytes() {
        let message = declared(b'S', 4);
        for cut in 0..5 {
            assert_eq!(header(&message[..cut]), Ok(None));
        }
        assert_eq!(header(&message), Ok(Some(Header { tag: b'S', length: 5 })));
    }

    #[test]
    fn a_run_ends_at_another_kind_at_a_part_at_a_long_one_and_at_a_wrong_length() {
        let row = [&declared(b'D', 6)[..], b"xy"].concat();
        let rows = row.repeat(3);
        let after = |end: &[u8]| run(&[&rows, end].concat(), b'D', 100);
        assert_eq!(after(b""), 21);
        assert_eq!(after(&declared(b'C', 4)), 21);
        for cut in 0..row.len() {
            assert_eq!(after(&row[..cut]), 21, "{cut}");
        }
        for length in [0, 3, MAX_DECLARED + 1, u32::MAX] {
            assert_eq!(after(&[&declared(b'D', length)[..], &[0; 9]].concat()), 21, "{length:#x}");
        }
        assert_eq!(run(&rows, b'D', 7), 21);
        assert_eq!(run(&rows, b'D', 6), 0);
        assert_eq!(run(&[], b'D', 100), 0);
    }

    #[test]
    fn cve_2026_6664_lengths_that_wrap_or_are_negative_are_refused() {
        for length in [0, 1, 2, 3, 0x3fff_ffff, 0x7fff_ffff, 0x8000_0000, 0xffff_fffb, 0xffff_ffff] {
            assert!(header(&declared(b'Q', length)).is_err(), "{length:#x}");
        }
        assert_eq!(header(&declared(b'Q', MAX_DECLARED)).unwrap().unwrap().length, 0x3fff_ffff);
    }

    #[test]
    fn a_message_is_split_off_only_when_complete() {
        let two = [&declared(b'Q', 6)[..], b"a\0", &declared(b'S', 4)[..]].concat();
        for cut in 0..7 {
            assert_eq!(split(&two[..cut]), Ok(None));
        }
        assert_eq!(split(&two), Ok(Some(Frame { tag: b'Q', body: b"a\0", rest: &two[7..] })));
    }

    #[test]
    fn limits_follow_the_tag() {
        let check =
            |tag, length| within(header(&declared(tag, length)).unwrap().unwrap(), frontend_limit(tag).unwrap());
        assert!(check(b'S', 4).is_ok() && check(b'S', 5).is_err());
        assert!(check(b'E', 10_000).is_ok() && check(b'E', 10_001).is_err());
        assert!(check(b'Q', MAX_DECLARED).is_ok());
        assert_eq!(frontend_limit(b'p'), None);
        assert_eq!(backend_limit(b'Z'), Some((5, 5)));
        for tag in 0..=255_u8 {
            for (least, most) in [frontend_limit(tag), backend_limit(tag)].into_iter().flatten() {
                assert!(MIN_DECLARED <= least && least <= most && most <= MAX_DECLARED);
            }
        }
    }
}
