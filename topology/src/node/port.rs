//! A TCP port that stays ours between the moment it is chosen and the moment PostgreSQL listens on it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use tokio::net::TcpSocket;

use super::NodeError;

/// A free port of 127.0.0.1, reserved as long as this value lives. It is below the range from which the kernel takes
/// ports for outgoing connections, so that no connection takes it while its node is down.
#[derive(Debug)]
pub struct Port {
    number: u16,
    /// Bound, but not listening, with `SO_REUSEADDR`: PostgreSQL, which sets that too, can listen here; a search for a
    /// free port, which does not, finds it taken.
    _reservation: TcpSocket,
}

/// Ports that are tried.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

impl Port {
    /// Takes any free one.
    ///
    /// # Errors
    /// If all are taken.
    pub fn reserve() -> Result<Self, NodeError> {
        let span = u32::from(RANGE.end - RANGE.start);
        // two programs that start at once look at different places first
        let seed =
            std::process::id().wrapping_mul(7919) ^ std::time::UNIX_EPOCH.elapsed().map_or(0, |t| t.subsec_nanos());
        for step in 0..span {
            let offset = u16::try_from((seed.wrapping_add(step)) % span).expect("span is below 65536");
            if let Ok(port) = Self::take(RANGE.start + offset) {
                return Ok(port);
            }
        }
        let error = io::Error::from(io::ErrorKind::AddrInUse);
        Err(NodeError::io("find a free port of", Path::new("127.0.0.1"), error))
    }

    fn take(number: u16) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, number)))?;
        socket.set_reuseaddr(true)?;
        Ok(Self { number, _reservation: socket })
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_reserved_port_is_taken_for_others_and_free_for_its_node() {
        let first = Port::reserve().unwrap();
        assert!(Port::take(first.number()).is_err(), "taken twice");
        let node = TcpSocket::new_v4().unwrap();
        node.set_reuseaddr(true).unwrap();
        node.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, first.number()))).unwrap();
        let listener = node.listen(1).unwrap();
        assert_eq!(listener.local_addr().unwrap().port(), first.number());
        assert!(Port::take(first.number()).is_err(), "taken twice");
    }
}
