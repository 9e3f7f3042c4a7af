//! `-R`: the process that serves now is asked, on its console, to let nobody in any more and to end with its last client; this one
//! takes its place. Clients are not carried over as PgBouncer does it: they go on where they are until they leave.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use pgwire::{frame, frontend};

use crate::config::Config;
use crate::shared::CONSOLE;

/// Time for the other process to answer, and to close its listeners.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks whether it has.
const POLL: Duration = Duration::from_millis(20);
/// Longest answer of the console.
const MAX_ANSWER: usize = 64 * 1024;

/// Asks the process behind a Unix socket to end with its last client, and waits until it listens no more.
///
/// # Errors
/// Nobody answers, or not as PgBouncer's console does.
pub(super) fn ask(socket: &Path, config: &Config) -> Result<(), String> {
    let said = |error: std::io::Error| error.to_string();
    let mut stream = UnixStream::connect(socket).map_err(said)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(said)?;
    let mut out = BytesMut::new();
    let parameters = [(&b"user"[..], CONSOLE.as_bytes()), (&b"database"[..], CONSOLE.as_bytes())];
    frontend::startup(&mut out, 0, &parameters).map_err(|error| error.to_string())?;
    stream.write_all(&out).map_err(said)?;
    until_ready(&mut stream)?;
    out.clear();
    frontend::write_query(&mut out, b"SHUTDOWN WAIT_FOR_CLIENTS").map_err(|error| error.to_string())?;
    stream.write_all(&out).map_err(said)?;
    until_ready(&mut stream)?;
    std::fs::remove_file(socket).map_err(said)?;
    until_free(config)
}

/// Reads up to ReadyForQuery.
fn until_ready(stream: &mut UnixStream) -> Result<(), String> {
    let mut input = Vec::new();
    let mut part = [0; 4096];
    loop {
        let mut rest = &input[..];
        while let Ok(Some(message)) = frame::split(rest) {
            match message.tag {
                b'Z' => return Ok(()),
                b'E' => return Err(pgwire::report::View::new(message.body).message().into_owned()),
                _ => rest = message.rest,
            }
        }
        if input.len() > MAX_ANSWER {
            return Err("the answer is too long".to_owned());
        }
        match stream.read(&mut part).map_err(|error| error.to_string())? {
            0 => return Err("the other process closed the connection".to_owned()),
            length => input.extend_from_slice(&part[..length]),
        }
    }
}

/// Waits until nobody listens where we are going to.
fn until_free(config: &Config) -> Result<(), String> {
    let limit = Instant::now() + PATIENCE;
    for address in &config.listen.address {
        let resolved: Vec<_> = address.resolve().map_err(|error| error.to_string())?.into_iter().collect();
        while resolved.iter().any(|address| TcpStream::connect_timeout(address, POLL).is_ok()) {
            if Instant::now() > limit {
                return Err(format!("the other process listens on {address} still"));
            }
            sleep(POLL);
        }
    }
    Ok(())
}
