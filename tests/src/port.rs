//! Ports that nobody else uses: not this process, not another test run, and not the kernel for outgoing connections.

use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

/// Below the kernel's range for outgoing connections (`ip_local_port_range`), above what services use.
const RANGE: std::ops::Range<u16> = 15_000..32_000;

/// A port, ours until it is dropped.
#[derive(Debug)]
pub struct Port {
    number: u16,
    /// A name in the abstract namespace: the kernel lets one process have it, and frees it however that process ends.
    _claim: UnixListener,
}

impl Port {
    /// A free one.
    #[must_use]
    pub fn new() -> Self {
        loop {
            let number = rand::random_range(RANGE);
            let name = SocketAddr::from_abstract_name(format!("pgsteady-test-port-{number}")).expect("a short name");
            let Ok(claim) = UnixListener::bind_addr(&name) else { continue };
            if TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok() {
                return Self { number, _claim: claim };
            }
        }
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }
}

impl Default for Port {
    fn default() -> Self {
        Self::new()
    }
}
