//! Whether a DNS zone has changed: its serial number, asked of the name servers that the system's resolver asks too. PgBouncer's
//! `dns_zone_check_period`: a zone that has changed has all its names looked up again, before their time.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, Question, RCODE, TYPE};
use tokio::net::UdpSocket;
use tokio::time::timeout;

/// Where the system's resolver finds its name servers (`resolv.conf(5)`).
const SERVERS: &str = "/etc/resolv.conf";
const PORT: u16 = 53;
/// Longest answer that is read: one record, and perhaps those of its name servers.
const MAX_ANSWER: usize = 4096;
/// Packets of others that are passed over while an answer is waited for.
const MAX_STRANGERS: usize = 16;
/// Attempts and seconds for each, whatever the file says: `resolv.conf(5)` has the same limits.
const MAX_ATTEMPTS: u32 = 5;
const MAX_TIMEOUT: u32 = 30;

/// The zone of a host name: what follows the first dot, as PgBouncer has it.
pub(crate) fn of(host: &str) -> Option<&str> {
    host.split_once('.').map(|(_, zone)| zone).filter(|zone| !zone.is_empty())
}

/// The serial number of a zone (RFC 1035, section 3.3.13).
///
/// # Errors
/// No name server says so.
pub(crate) async fn serial(zone: &str) -> Result<u32, String> {
    let text = tokio::fs::read(SERVERS).await.map_err(|error| format!("{SERVERS}: {error}"))?;
    let (config, _) = resolv_conf::Config::parse_with_errors(&text);
    let limit = Duration::from_secs(config.timeout.clamp(1, MAX_TIMEOUT).into());
    let mut why = format!("{SERVERS} names no server");
    for _ in 0..config.attempts.clamp(1, MAX_ATTEMPTS) {
        for server in &config.nameservers {
            let server = IpAddr::from(server);
            match timeout(limit, ask(server, zone)).await {
                Ok(Ok(Some(serial))) => return Ok(serial),
                Ok(Ok(None)) => why = format!("{server} knows no such zone"),
                Ok(Err(error)) => why = format!("{server}: {error}"),
                Err(_) => why = format!("{server} does not answer"),
            }
        }
    }
    Err(why)
}

async fn ask(server: IpAddr, zone: &str) -> io::Result<Option<u32>> {
    let invalid = |error: simple_dns::SimpleDnsError| io::Error::new(io::ErrorKind::InvalidData, error);
    let id = rand::random();
    let mut query = Packet::new_query(id);
    query.set_flags(PacketFlag::RECURSION_DESIRED);
    let name = Name::new(zone).map_err(invalid)?;
    query.questions.push(Question::new(name, TYPE::SOA.into(), CLASS::IN.into(), false));
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect((server, PORT)).await?;
    socket.send(&query.build_bytes_vec().map_err(invalid)?).await?;
    let mut input = vec![0; MAX_ANSWER];
    for _ in 0..MAX_STRANGERS {
        let length = socket.recv(&mut input).await?;
        if let Some(answer) = read(&input[..length], id, zone) {
            return Ok(answer);
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// The serial number in an answer, if there is one; nothing if this is the answer to something else.
fn read(packet: &[u8], id: u16, zone: &str) -> Option<Option<u32>> {
    let packet = Packet::parse(packet).ok()?;
    if packet.id() != id || !packet.has_flags(PacketFlag::RESPONSE) {
        return None;
    }
    if packet.rcode() != RCODE::NoError {
        return Some(None);
    }
    let serial = packet.answers.iter().find_map(|record| match &record.rdata {
        RData::SOA(soa) if record.name.to_string().eq_ignore_ascii_case(zone) => Some(soa.serial),
        _ => None,
    });
    Some(serial)
}

#[cfg(test)]
mod tests {
    use simple_dns::ResourceRecord;
    use simple_dns::rdata::SOA;

    use super::*;

    fn answer(id: u16, name: &str) -> Vec<u8> {
        let name = || Name::new(name).expect("a name").into_owned();
        let soa =
            SOA { mname: name(), rname: name(), serial: 4_000_000_000, refresh: 1, retry: 1, expire: 1, minimum: 1 };
        let mut packet = Packet::new_reply(id);
        packet.answers.push(ResourceRecord::new(name(), CLASS::IN, 60, RData::SOA(soa)));
        packet.build_bytes_vec().expect("it can be written")
    }

    #[test]
    fn an_answer_has_the_serial_number_of_the_zone_that_was_asked_for() {
        assert_eq!(read(&answer(7, "Zone.test"), 7, "zone.test"), Some(Some(4_000_000_000)));
        assert_eq!(read(&answer(7, "other.test"), 7, "zone.test"), Some(None));
        assert_eq!(read(&answer(8, "zone.test"), 7, "zone.test"), None, "an answer to somebody else");
        assert_eq!(read(b"no packet", 7, "zone.test"), None);
        assert_eq!((of("db.zone.test"), of("db"), of("db.")), (Some("zone.test"), None, None));
    }
}
