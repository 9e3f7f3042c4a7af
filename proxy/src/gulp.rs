//! A long stream is taken in gulps: PostgreSQL and libpq write 8 KiB at a time, and to wake up for each costs more than
//! to move it. Once much came in a row, the kernel is told not to wake us before there is a whole gulp
//! (`SO_RCVLOWAT`, socket(7)); a timer sees to it that the end of the stream, and a slow one, do not wait for the rest.

use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use crate::socket::set_receive_low_water;

/// Bytes that are worth waking up for in the middle of a long stream. Half of what one read takes: the peer fills the
/// other half meanwhile.
const GULP_BYTES: usize = 128 * 1024;

/// The longest wait for a gulp: what a long stream may come later by, once.
const MAX_WAIT: Duration = Duration::from_millis(1);

/// A read of so many bytes is much.
const MUCH_BYTES: usize = 4 * 1024;

/// Reads in a row that brought much, after which the stream is a long one.
const LONG_AFTER_READS: u8 = 16;

/// How what arrives on one connection is taken.
#[derive(Debug, Default)]
pub(crate) struct Gulps {
    /// Reads in a row that brought much.
    much: u8,
    /// Whether the timer runs for the gulp that is waited for.
    timed: bool,
    /// The timer of a long stream; none: every byte is taken as it comes.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Gulps {
    /// A read brought so many bytes.
    #[inline]
    pub(crate) fn took(&mut self, socket: Option<&TcpStream>, bytes: usize) {
        self.timed = false;
        if bytes < MUCH_BYTES {
            self.much = 0;
        } else if self.timer.is_none() {
            self.much += 1;
            if self.much == LONG_AFTER_READS {
                self.begin(socket);
            }
        }
    }

    #[cold]
    fn begin(&mut self, socket: Option<&TcpStream>) {
        self.much = 0;
        if socket.is_some_and(|socket| set_receive_low_water(socket, GULP_BYTES).is_ok()) {
            self.timer = Some(Box::pin(sleep(MAX_WAIT)));
        }
    }

    /// Whether a gulp is waited for, for which the timer has to be asked.
    #[inline]
    pub(crate) fn is_timed(&self) -> bool {
        self.timer.is_some()
    }

    /// Nothing is there to be read: after [`MAX_WAIT`] whatever is there then is taken (the kernel tells of it at once,
    /// when the mark is taken away).
    #[inline]
    pub(crate) fn wait(&mut self, cx: &mut Context<'_>, socket: Option<&TcpStream>) {
        let Some(timer) = &mut self.timer else { return };
        if !self.timed {
            self.timed = true;
            timer.as_mut().reset(Instant::now() + MAX_WAIT);
        }
        if timer.as_mut().poll(cx).is_ready() {
            self.end(socket);
        }
    }

    /// Every byte is taken as it comes again: the peer is asked for something, and its answer may be short.
    #[inline]
    pub(crate) fn end(&mut self, socket: Option<&TcpStream>) {
        if self.timer.take().is_some() {
            self.forget(socket);
        }
    }

    #[cold]
    fn forget(&mut self, socket: Option<&TcpStream>) {
        self.much = 0;
        if let Some(socket) = socket {
            // It was set on this socket, so it can be taken away; were it not, the next long stream would be slow.
            let _ = set_receive_low_water(socket, 1);
        }
    }
}
