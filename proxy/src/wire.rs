//! A byte stream to a client or a server, with what could not be written yet and what is not whole yet. No protocol here.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BytesMut};
use rustix::cmsg_space;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::coop::has_budget_remaining;
use tokio_openssl::SslStream;

use crate::gulp::Gulps;
use crate::plain::Plain;

/// Bytes of the buffer that a worker lends for one read; a frame up to this size is handled without being copied.
pub(crate) const SCRATCH_BYTES: usize = 256 * 1024;

/// Reads of 4 KiB that are thrown away after our last words.
const MAX_GOODBYE_READS: usize = 256;

/// What carries the bytes.
#[derive(Debug)]
pub(crate) enum Stream {
    /// TCP without TLS.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
    /// TCP with TLS.
    Tls(Box<SslStream<TcpStream>>),
}

impl Stream {
    /// The TCP socket below, if it is one.
    #[inline]
    fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Stream::Tcp(stream) => Some(stream),
            Stream::Tls(stream) => Some(stream.get_ref()),
            Stream::Unix(_) => None,
        }
    }

    /// Whether nothing has come, as far as is known without asking the kernel; below TLS nothing is known.
    #[inline]
    fn is_silent(&self) -> bool {
        match self {
            Stream::Tcp(stream) => stream.is_silent(),
            Stream::Unix(stream) => stream.is_silent(),
            Stream::Tls(_) => false,
        }
    }

    /// The runtime of this thread watches the socket from now on, under another number (descriptor): tokio leaves no
    /// other way that also serves TLS.
    fn watch_here(&mut self) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => *stream = tcp_here(stream)?,
            Stream::Tls(stream) => *stream.get_mut() = tcp_here(stream.get_ref())?,
            Stream::Unix(stream) => {
                *stream = UnixStream::from_std(stream.as_fd().try_clone_to_owned()?.into())?;
            }
        }
        Ok(())
    }
}

fn tcp_here(stream: &TcpStream) -> io::Result<TcpStream> {
    TcpStream::from_std(stream.as_fd().try_clone_to_owned()?.into())
}

impl AsyncRead for Stream {
    #[inline(always)]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Plain::poll_read(stream, cx, buf),
            Stream::Unix(stream) => Plain::poll_read(stream, cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    #[inline(always)]
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Plain::poll_write(stream, cx, buf),
            Stream::Unix(stream) => Plain::poll_write(stream, cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A stream with its two leftovers. Both are empty, and hold no memory, while the connection is idle.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: Stream,
    /// To be written as soon as the peer takes it.
    out: BytesMut,
    /// Received, but not yet a whole frame (or not yet wanted).
    rest: BytesMut,
    /// Memory of `out` that is kept when all is written: nothing for a client, of which there are many.
    kept: usize,
    /// Bytes of `out` that are written while others still wait.
    gone: usize,
    /// How a long stream from the peer is taken.
    gulps: Gulps,
    /// The last read found nothing, and who read is woken when something comes.
    listens: bool,
}

/// Memory that a connection to a server keeps for its next request.
const KEPT_BYTES: usize = 8 * 1024;

/// What a read brought.
pub(crate) enum Filled {
    /// So many bytes stand in the scratch buffer, older leftovers first.
    Scratch(usize),
    /// A frame larger than the scratch buffer is being put together here.
    Large(BytesMut),
    /// The peer will send no more.
    End,
}

impl Wire {
    /// Nothing is left over yet.
    #[must_use]
    pub(crate) fn new(stream: Stream) -> Self {
        let (out, rest) = (BytesMut::new(), BytesMut::new());
        Self { stream, out, rest, kept: 0, gone: 0, gulps: Gulps::default(), listens: false }
    }

    /// The same for a server, to which every request is written in the same memory.
    #[must_use]
    pub(crate) fn to_server(stream: Stream) -> Self {
        Self { kept: KEPT_BYTES, ..Self::new(stream) }
    }

    /// The stream itself: while nothing but the handshake uses it.
    pub(crate) fn stream_mut(&mut self) -> &mut Stream {
        &mut self.stream
    }

    /// The runtime of this thread watches the socket from now on.
    ///
    /// # Errors
    /// As the operating system says; then the one that watched it before goes on.
    #[cold]
    pub(crate) fn watch_here(&mut self) -> io::Result<()> {
        self.listens = false;
        self.stream.watch_here()
    }

    /// The socket, where whoever has it could go on: not below TLS.
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        match &self.stream {
            Stream::Tcp(stream) => Some(stream.as_fd()),
            Stream::Unix(stream) => Some(stream.as_fd()),
            Stream::Tls(_) => None,
        }
    }

    /// Whether it is encrypted.
    pub(crate) fn is_encrypted(&self) -> bool {
        matches!(self.stream, Stream::Tls(_))
    }

    /// The names in the certificate that the client showed: its common name, and its DNS names; none: it showed none.
    pub(crate) fn certified_names(&self) -> Option<Vec<String>> {
        let Stream::Tls(stream) = &self.stream else { return None };
        let certificate = stream.ssl().peer_certificate()?;
        let of_subject = certificate.subject_name().entries_by_nid(openssl::nid::Nid::COMMONNAME);
        let text = |data: &openssl::asn1::Asn1StringRef| data.to_string().ok();
        let mut names: Vec<String> = of_subject.filter_map(|entry| text(entry.data())).collect();
        if let Some(others) = certificate.subject_alt_names() {
            names.extend(others.iter().filter_map(|name| name.dnsname().map(str::to_owned)));
        }
        Some(names)
    }

    /// Bytes that wait to be written.
    #[inline]
    pub(crate) fn backlog(&self) -> usize {
        self.out.len()
    }

    /// The place for what is to be written after all that waits already; `poll_flush` sends it.
    #[inline]
    pub(crate) fn out(&mut self) -> &mut BytesMut {
        &mut self.out
    }

    /// Writes `bytes` behind what waits: as much as the peer takes now, the rest is kept.
    ///
    /// # Errors
    /// As the operating system says; the connection is then of no use.
    #[inline]
    pub(crate) fn send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> io::Result<()> {
        self.gulps.end(self.stream.tcp());
        let mut sent = 0;
        if self.out.is_empty() {
            while sent < bytes.len() {
                match Pin::new(&mut self.stream).poll_write(cx, &bytes[sent..]) {
                    Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(Ok(n)) => sent += n,
                    Poll::Ready(Err(error)) => return Err(error),
                    Poll::Pending => break,
                }
            }
        }
        self.out.extend_from_slice(&bytes[sent..]);
        Ok(())
    }

    /// Writes what waits; ready when nothing is left, and the memory is given back then.
    ///
    /// # Errors
    /// As the operating system says.
    #[inline]
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            self.gulps.end(self.stream.tcp());
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.out))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(written);
            self.gone += written;
            if self.out.is_empty() && self.out.capacity() + std::mem::take(&mut self.gone) > self.kept {
                self.out = BytesMut::new();
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The peer owes nothing any more: whatever it says now is worth waking up for.
    #[inline]
    pub(crate) fn settle(&mut self) {
        self.gulps.end(self.stream.tcp());
    }

    /// Writes `bytes` with a socket, which the process at the other end of a Unix socket then has too.
    ///
    /// # Errors
    /// As the operating system says; this is no Unix socket.
    pub(crate) async fn send_with(&mut self, bytes: &[u8], socket: &OwnedFd) -> io::Result<()> {
        let Stream::Unix(stream) = &mut self.stream else { return Err(io::ErrorKind::Unsupported.into()) };
        let sockets = [socket.as_fd()];
        let sent = stream
            .async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                control.push(SendAncillaryMessage::ScmRights(&sockets));
                Ok(sendmsg(&*stream, &[io::IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
            })
            .await?;
        stream.write_all(&bytes[sent..]).await
    }

    /// `poll_flush` to wait for.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Reads once. Leftovers come first in `scratch`; a leftover that fills half of it goes on growing on its own.
    ///
    /// # Errors
    /// As the operating system says; a TLS peer that leaves without a word counts as an end.
    #[inline]
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<io::Result<Filled>> {
        if self.rest.len() >= scratch.len() / 2 {
            return self.poll_fill_large(cx, scratch);
        }
        let kept = self.rest.len();
        let mut buf = ReadBuf::new(&mut scratch[kept..]);
        match ready!(self.poll_read(cx, &mut buf)) {
            Ok(()) if buf.filled().is_empty() => Poll::Ready(Ok(Filled::End)),
            Ok(()) => {
                let total = kept + buf.filled().len();
                if kept > 0 {
                    scratch[..kept].copy_from_slice(&self.rest);
                    self.rest = BytesMut::new();
                }
                Poll::Ready(Ok(Filled::Scratch(total)))
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(Filled::End)),
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// [`Wire::poll_fill`] for a peer that only one task reads from: nothing is done if the last read found nothing, and
    /// nothing has come since.
    ///
    /// # Errors
    /// As [`Wire::poll_fill`].
    #[inline]
    pub(crate) fn poll_fill_again(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<io::Result<Filled>> {
        if self.listens && !self.gulps.is_timed() && self.stream.is_silent() {
            return Poll::Pending;
        }
        self.poll_fill(cx, scratch)
    }

    // All of a read in one function, down to the system call: a twentieth of the instructions of a small query.
    #[inline(always)]
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        match &read {
            Poll::Ready(_) => {
                self.listens = false;
                self.gulps.took(self.stream.tcp(), buf.filled().len());
            }
            Poll::Pending => {
                // Without a budget tokio has not even looked, and has noted nobody.
                self.listens = has_budget_remaining();
                self.gulps.wait(cx, self.stream.tcp());
            }
        }
        read
    }

    fn poll_fill_large(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<io::Result<Filled>> {
        let mut buf = ReadBuf::new(scratch);
        match ready!(self.poll_read(cx, &mut buf)) {
            Ok(()) if buf.filled().is_empty() => Poll::Ready(Ok(Filled::End)),
            Ok(()) => {
                self.rest.extend_from_slice(buf.filled());
                Poll::Ready(Ok(Filled::Large(std::mem::take(&mut self.rest))))
            }
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// Whether there is a leftover.
    #[inline]
    pub(crate) fn has_rest(&self) -> bool {
        !self.rest.is_empty()
    }

    /// Bytes of the leftover.
    pub(crate) fn rest_len(&self) -> usize {
        self.rest.len()
    }

    /// Takes the leftover to work on it again.
    pub(crate) fn take_rest(&mut self) -> BytesMut {
        std::mem::take(&mut self.rest)
    }

    /// Keeps what could not be used yet.
    #[inline]
    pub(crate) fn keep(&mut self, rest: &[u8]) {
        debug_assert!(self.rest.is_empty(), "a leftover is taken before another one is kept");
        if !rest.is_empty() {
            self.rest.extend_from_slice(rest);
        }
    }

    /// Keeps a large leftover without copying it.
    pub(crate) fn keep_large(&mut self, rest: BytesMut) {
        debug_assert!(self.rest.is_empty(), "a leftover is taken before another one is kept");
        self.rest = rest;
    }

    /// Ready when the peer said something, or left; nothing is taken.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        let ready = match &self.stream {
            Stream::Tcp(stream) => stream.poll_read_ready(cx),
            Stream::Unix(stream) => stream.poll_read_ready(cx),
            Stream::Tls(stream) => stream.get_ref().poll_read_ready(cx),
        };
        ready.map(drop)
    }

    /// Waits until the peer is gone, taking in what it sends meanwhile up to `limit` bytes (then nothing more is read).
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>, scratch: &mut [u8], limit: usize) -> Poll<()> {
        self.listens = false;
        while self.rest.len() < limit {
            let room = scratch.len().min(limit - self.rest.len());
            let mut buf = ReadBuf::new(&mut scratch[..room]);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => self.rest.extend_from_slice(buf.filled()),
                Ok(()) | Err(_) => return Poll::Ready(()),
            }
        }
        Poll::Pending
    }

    /// Writes what waits, says that nothing more comes, and takes in what the peer still sends, so that it is not
    /// told of a reset before it has read our last words.
    pub(crate) async fn say_goodbye(&mut self) {
        if self.flush().await.is_err() || self.stream.shutdown().await.is_err() {
            return;
        }
        let mut sink = [0; 4096];
        for _ in 0..MAX_GOODBYE_READS {
            if !matches!(self.stream.read(&mut sink).await, Ok(1..)) {
                return;
            }
        }
    }

    /// Closes in the manner of TLS, where there is one; the socket itself is closed by dropping.
    pub(crate) async fn close(&mut self) {
        let _ = self.flush().await;
        if let Stream::Tls(stream) = &mut self.stream {
            let _ = stream.shutdown().await;
        }
    }

    /// Whether bytes (or an end) have arrived that nobody asked for. Costs no system call when there are none.
    #[inline]
    pub(crate) fn poll_unasked(&mut self, scratch: &mut [u8]) -> Poll<io::Result<Filled>> {
        if self.stream.is_silent() {
            return Poll::Pending;
        }
        let filled = self.poll_fill(&mut Context::from_waker(Waker::noop()), scratch);
        self.listens = false;
        filled
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::time::Duration;

    use tokio::task::coop::consume_budget;
    use tokio::task::{spawn, yield_now};
    use tokio::time::timeout;

    use super::*;

    /// A task that has used up tokio's budget is told `Pending` by its sockets, and none of them wakes it up for that.
    #[tokio::test]
    async fn a_read_that_the_budget_forbade_counts_for_nothing() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut wire = Wire::new(Stream::Unix(ours));
        let reader = spawn(async move {
            let mut scratch = [0; 64];
            poll_fn(|cx| {
                while pin!(consume_budget()).poll(cx).is_ready() {}
                assert!(wire.poll_fill_again(cx, &mut scratch).is_pending());
                Poll::Ready(())
            })
            .await;
            yield_now().await;
            poll_fn(|cx| wire.poll_fill_again(cx, &mut scratch)).await.unwrap()
        });
        for _ in 0..10 {
            yield_now().await; // until it waits for the peer
        }
        theirs.write_all(b"x").await.unwrap();
        let filled = timeout(Duration::from_secs(10), reader).await.expect("it is woken up").unwrap();
        assert!(matches!(filled, Filled::Scratch(1)));
    }
}
