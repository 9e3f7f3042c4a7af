//! Whole messages off a stream, while somebody logs in. Each length is checked before its bytes are waited for.

use std::io;

use bytes::{Buf, BytesMut};
use pgwire::{Malformed, frame};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes that a read asks for when it is not known yet how many will come.
const READ_BYTES: usize = 1024;

/// Why there is no message.
#[derive(Debug)]
pub(super) enum ReadError {
    /// The other side left.
    Closed,
    /// The connection broke.
    Io(io::Error),
    /// A length that cannot be.
    Malformed(Malformed),
    /// A message that may not come now, by its tag.
    Unexpected(u8),
}

/// The next message: its tag and its body. `allowed` gives the least and greatest length to declare for a tag, `None` for
/// one that may not come now. What is behind the message stays in `rest`.
pub(super) async fn message<S>(
    stream: &mut S,
    rest: &mut BytesMut,
    allowed: impl Fn(u8) -> Option<(u32, u32)>,
) -> Result<(u8, BytesMut), ReadError>
where
    S: AsyncRead + Unpin,
{
    loop {
        let missing = match rest.first() {
            Some(&tag) => missing(tag, rest, &allowed)?,
            None => Err(READ_BYTES),
        };
        let reserve = match missing {
            Ok(length) => {
                let mut message = rest.split_to(length);
                let tag = message[0];
                message.advance(frame::HEADER);
                return Ok((tag, message));
            }
            Err(missing) => missing.max(READ_BYTES),
        };
        rest.reserve(reserve);
        match stream.read_buf(rest).await {
            Ok(0) => return Err(ReadError::Closed),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(ReadError::Closed),
            Err(error) => return Err(ReadError::Io(error)),
        }
    }
}

/// `Ok` with the length of the message that is there, or `Err` with how many of its bytes are missing.
fn missing(
    tag: u8,
    rest: &[u8],
    allowed: &impl Fn(u8) -> Option<(u32, u32)>,
) -> Result<Result<usize, usize>, ReadError> {
    // By its tag alone: a length sent behind a wrong tag is not even waited for.
    let limits = allowed(tag).ok_or(ReadError::Unexpected(tag))?;
    let Some(header) = frame::header(rest).map_err(ReadError::Malformed)? else { return Ok(Err(frame::HEADER)) };
    frame::within(header, limits).map_err(ReadError::Malformed)?;
    Ok(if rest.len() >= header.length { Ok(header.length) } else { Err(header.length - rest.len()) })
}
