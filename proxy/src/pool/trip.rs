//! A round trip with a server at rest, on our own account. Not what is asked.

use std::future::poll_fn;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use pgwire::conversation::{Asker, Request};
use pgwire::report::View;
use pgwire::{backend, frame};

use super::Server;
use crate::wire::Filled;

/// What is kept of the answers.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// The body of the first ErrorResponse, if there was one.
    pub(crate) failed: Option<Bytes>,
    /// The body of the last DataRow.
    row: Option<Bytes>,
    /// A commit among them was not confirmed by a standby.
    pub(crate) not_replicated: bool,
}

impl Answers {
    /// A column of the last row as text; `None` for NULL, or if there is no such.
    pub(crate) fn column(&self, index: usize) -> Option<String> {
        let columns = backend::row_values(self.row.as_ref()?).ok()?;
        columns.get(index).copied().flatten().map(|value| String::from_utf8_lossy(value).into_owned())
    }
}

impl Server {
    /// Sends requests of our own and reads until as many ReadyForQuery came.
    pub(crate) async fn round_trip(&mut self, out: &[u8], asked: usize) -> Result<Answers, String> {
        self.wire.out().extend_from_slice(out);
        let lost = |error: std::io::Error| format!("the connection to PostgreSQL broke: {error}");
        let mut left = asked;
        let mut answers = Answers::default();
        let mut scratch = vec![0; 8192];
        while left > 0 {
            let filled = poll_fn(|cx| {
                if let Poll::Ready(Err(error)) = self.wire.poll_flush(cx) {
                    return Poll::Ready(Err(error));
                }
                self.wire.poll_fill(cx, &mut scratch)
            });
            let input = match filled.await.map_err(lost)? {
                Filled::Scratch(length) => BytesMut::from(&scratch[..length]),
                Filled::Large(input) => input,
                Filled::End => return Err("PostgreSQL closed the connection".into()),
            };
            let mut rest = &input[..];
            while let Some(frame::Frame { tag, body, rest: behind }) =
                frame::split(rest).map_err(|error| error.to_string())?
            {
                rest = behind;
                match tag {
                    b'Z' => {
                        left = left.saturating_sub(1);
                        self.note_status(body)?;
                    }
                    b'S' => self.note_parameter(body)?,
                    b'D' => answers.row = Some(Bytes::copy_from_slice(body)),
                    b'N' => answers.not_replicated |= View::new(body).is_commit_not_replicated(),
                    b'E' if answers.failed.is_none() => answers.failed = Some(Bytes::copy_from_slice(body)),
                    _ => {}
                }
            }
            self.wire.keep(rest);
        }
        Ok(answers)
    }

    pub(super) fn note_status(&mut self, body: &[u8]) -> Result<(), String> {
        // The conversation did not see these requests; its status has to follow all the same.
        let _ = self.conversation.sent(Request::Sync, Asker::Ours, None);
        self.conversation.received(b'Z', body, &mut |_, _| {}).map(drop).map_err(|error| error.to_string())
    }

    pub(super) fn note_parameter(&mut self, body: &[u8]) -> Result<(), String> {
        let (name, value) = backend::parameter_status(body).map_err(|error| error.to_string())?;
        self.reported.set(&String::from_utf8_lossy(name), &String::from_utf8_lossy(value));
        Ok(())
    }
}
