//! A server that another process opened, and that comes to a pool with its client.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use pgwire::frame;
use pgwire::frontend::write_query;
use topology::Address;

use super::open::Opened;
use super::{Borrowed, CancelTarget, Origin, Pool, Server, Slot};
use crate::handover::{Passed, of_cancel_number};
use crate::settings::Reported;
use crate::wire::{Filled, Stream, Wire};

/// Bytes of answers that are kept for the client while it is found out what the server still says.
const MAX_ANSWERS: usize = 16 << 20;

impl Pool {
    /// Takes in a server with its socket, on loan to its client. It counts as all others, even beyond the limits. What it holds of
    /// earlier clients is not known: it is reset before the next one has it.
    pub(crate) fn adopt(self: &Arc<Self>, passed: &Passed, stream: Stream, worker: usize) -> Borrowed {
        let (process_id, key) = of_cancel_number(passed.cancel);
        let local = match &stream {
            Stream::Tcp(stream) => stream.local_addr().ok().map(|local| (local.ip().to_string(), local.port())),
            Stream::Unix(_) | Stream::Tls(_) => None,
        };
        let opener = &self.opener;
        let origin = Origin {
            id: opener.ids.fetch_add(1, Ordering::Relaxed) + 1,
            database: self.database.clone(),
            user: self.user.clone(),
            host: passed.host.clone(),
            port: passed.port,
            local: local.unwrap_or_else(|| ("unix".to_owned(), passed.port)),
            connected: SystemTime::now(),
            tls: None,
            process_id,
        };
        let address = match &stream {
            Stream::Unix(_) => opener.address.clone(),
            Stream::Tcp(_) | Stream::Tls(_) => Address::Tcp(passed.host.clone(), passed.port),
        };
        let cancel = CancelTarget { address, process_id, key: Bytes::copy_from_slice(&key) };
        let mut state = self.lock();
        let opened = Opened {
            wire: Wire::to_server(stream),
            reported: Reported::of(&passed.parameters),
            cancel,
            origin,
            epoch: state.epoch,
            born: opener.watch.samples_begun(),
        };
        let server = Server { dirty: true, was_lent: true, ..Server::new(opened, &opener.clock) };
        state.taken += 1;
        self.budgets.iter().for_each(|budget| budget.take_always());
        state.controls.push(Arc::downgrade(&server.control));
        let slot = Slot { pool: Arc::downgrade(self), control: Some(server.control.clone()) };
        let server = server.placed(slot);
        Borrowed::new(Box::new(server), self.clone(), worker)
    }
}

impl Server {
    /// Finds out whether a transaction is open on a server that another process has used: the answer to an empty query says so. What
    /// comes before it is the answer to what the other process sent last: it goes to the client.
    ///
    /// # Errors
    /// The server is gone, or has more to say than is kept.
    pub(crate) async fn find_status(&mut self, to_client: &mut BytesMut) -> Result<(), String> {
        write_query(self.wire.out(), b"").map_err(|error| error.to_string())?;
        let lost = |error: std::io::Error| format!("the connection to PostgreSQL broke: {error}");
        self.wire.flush().await.map_err(lost)?;
        let mut scratch = vec![0; 8192];
        let mut is_ours = false;
        loop {
            let filled = std::future::poll_fn(|cx| self.wire.poll_fill(cx, &mut scratch)).await.map_err(lost)?;
            let input = match filled {
                Filled::Scratch(length) => BytesMut::from(&scratch[..length]),
                Filled::Large(input) => input,
                Filled::End => return Err("PostgreSQL closed the connection".to_owned()),
            };
            let mut rest = &input[..];
            while let Some(frame::Frame { tag, body, rest: behind }) =
                frame::split(rest).map_err(|error| error.to_string())?
            {
                let whole = &rest[..rest.len() - behind.len()];
                rest = behind;
                match tag {
                    b'I' => is_ours = true,
                    b'Z' if is_ours => {
                        self.note_status(body)?;
                        self.wire.keep(rest);
                        return Ok(());
                    }
                    b'S' => {
                        self.note_parameter(body)?;
                        to_client.extend_from_slice(whole);
                    }
                    _ => to_client.extend_from_slice(whole),
                }
            }
            if to_client.len() > MAX_ANSWERS {
                return Err("its answer is too long".to_owned());
            }
            self.wire.keep(rest);
        }
    }
}
