//! The addresses of servers' host names, remembered for as long as PgBouncer's `dns_max_ttl` and `dns_nxdomain_ttl` say. For
//! `pgsteady.toml` nothing is remembered: servers are seldom opened, and a resolver has a cache where one is wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::lookup_host;
use tokio::time::sleep;

use crate::pgbouncer::Settings;
use crate::pgbouncer::log::{Level, say};
use crate::shared::Shared;
use crate::zones;

/// Names that are remembered; the one that is asked for again soonest makes room for another.
const MAX_HOSTS: usize = 10_000;

/// Between two looks whether zones are to be watched.
const NOT_ASKED: Duration = Duration::from_secs(1);

/// How long an answer is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ttl {
    /// One with addresses.
    pub(crate) found: Duration,
    /// That there are none.
    pub(crate) not_found: Duration,
}

impl Ttl {
    /// As PgBouncer's settings have it.
    pub(crate) fn of(settings: &Settings) -> Self {
        Self { found: settings.dns_max_ttl.duration(), not_found: settings.dns_nxdomain_ttl.duration() }
    }
}

/// What is known of host names. Shared by all pools.
#[derive(Debug, Default)]
pub(crate) struct Hosts {
    known: Mutex<BTreeMap<Box<str>, Known>>,
    /// Those whose addresses are not the same as before, until housekeeping has looked.
    changed: Mutex<Vec<Box<str>>>,
    /// The serial numbers of the zones that are watched, as far as a name server says one.
    zones: Mutex<BTreeMap<Box<str>, Option<u32>>>,
}

#[derive(Debug, Clone)]
struct Known {
    /// The addresses, that whose turn it is first; or why there are none.
    answer: Result<Vec<IpAddr>, String>,
    until: Instant,
}

/// A remembered name, for SHOW DNS_HOSTS.
pub(crate) struct Remembered {
    pub(crate) host: Box<str>,
    /// For how long yet.
    pub(crate) left: Duration,
    pub(crate) addresses: Vec<IpAddr>,
}

impl Hosts {
    /// The addresses of a host, in the order in which they are to be tried: each time another one is first.
    ///
    /// # Errors
    /// As the system's resolver says, or said a while ago.
    pub(crate) async fn addresses(&self, host: &str, ttl: Option<Ttl>) -> io::Result<Vec<IpAddr>> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        if let Some(answer) = self.remembered(host, Instant::now()) {
            return answer.map_err(io::Error::other);
        }
        self.look_up(host, ttl).await
    }

    /// Asks the system's resolver, whatever is remembered.
    async fn look_up(&self, host: &str, ttl: Option<Ttl>) -> io::Result<Vec<IpAddr>> {
        let found = lookup_host((host, 0)).await.map(|found| found.map(|address| address.ip()).collect::<Vec<_>>());
        if let Some(ttl) = ttl {
            let answer = found.as_ref().map(Vec::clone).map_err(ToString::to_string);
            self.remember(host, answer, ttl, Instant::now());
        }
        found
    }

    fn remembered(&self, host: &str, now: Instant) -> Option<Result<Vec<IpAddr>, String>> {
        let mut known = lock(&self.known);
        let known = known.get_mut(host).filter(|known| known.until > now)?;
        let answer = known.answer.clone();
        if let Ok(addresses) = &mut known.answer {
            turn(addresses);
        }
        Some(answer)
    }

    fn remember(&self, host: &str, answer: Result<Vec<IpAddr>, String>, ttl: Ttl, now: Instant) {
        let mut known = lock(&self.known);
        let before = known.remove(host).and_then(|known| known.answer.ok());
        if known.len() >= MAX_HOSTS {
            let soonest = known.iter().min_by_key(|(_, known)| known.until).map(|(host, _)| host.clone());
            soonest.and_then(|host| known.remove(&host));
        }
        let is_new = |addresses: &Vec<IpAddr>| before.is_some_and(|before| !is_same_set(&before, addresses));
        if answer.as_ref().is_ok_and(is_new) {
            lock(&self.changed).push(host.into());
        }
        let mut answer = answer;
        let mut good_for = ttl.not_found;
        if let Ok(addresses) = &mut answer {
            turn(addresses); // the asker takes the first
            good_for = ttl.found;
        }
        known.insert(host.into(), Known { answer, until: now + good_for });
    }

    /// Asks for the serial number of each zone that has names, and looks the names of those up again that have changed.
    pub(crate) async fn check_zones(&self, ttl: Ttl) {
        let names: Vec<Box<str>> = lock(&self.known).keys().cloned().collect();
        let found: BTreeSet<&str> = names.iter().filter_map(|host| zones::of(host)).collect();
        lock(&self.zones).retain(|zone, _| found.contains(&**zone));
        for zone in found {
            let serial = zones::serial(zone).await;
            if let Err(why) = &serial {
                tracing::debug!(zone, why, "the serial number of a zone is not to be had");
            }
            let before = lock(&self.zones).insert(zone.into(), serial.clone().ok()).flatten();
            if let (Some(before), Ok(now)) = (before, serial)
                && before != now
            {
                say(Level::Log, format_args!("zone '{zone}' serial changed: old={before} new={now}"));
                for host in names.iter().filter(|host| zones::of(host) == Some(zone)) {
                    let _ = self.look_up(host, Some(ttl)).await;
                }
            }
        }
    }

    /// The zones that are watched: their names, serial numbers and how many names are known of each.
    pub(crate) fn zones(&self) -> Vec<(Box<str>, u32, usize)> {
        let known = lock(&self.known);
        let count = |zone: &str| known.keys().filter(|host| zones::of(host) == Some(zone)).count();
        lock(&self.zones).iter().map(|(zone, serial)| (zone.clone(), serial.unwrap_or(0), count(zone))).collect()
    }

    /// Hosts that have moved since this was asked last: their servers are not to be lent again.
    pub(crate) fn take_changed(&self) -> Vec<Box<str>> {
        std::mem::take(&mut *lock(&self.changed))
    }

    /// Every name that is remembered and still good.
    pub(crate) fn all(&self) -> Vec<Remembered> {
        let now = Instant::now();
        let known = lock(&self.known);
        let good = known.iter().filter(|(_, known)| known.until > now);
        let remembered = good.map(|(host, known)| Remembered {
            host: host.clone(),
            left: known.until.duration_since(now),
            addresses: known.answer.clone().unwrap_or_default(),
        });
        remembered.collect()
    }
}

/// Watches the zones of servers' names, as often as PgBouncer's setting says; never ends there.
pub(crate) async fn watch_zones(shared: Arc<Shared>) {
    loop {
        let config = shared.config();
        let Some(settings) = config.dialect.pgbouncer().map(|loaded| &loaded.settings) else { return };
        let period = settings.dns_zone_check_period.duration();
        if period.is_zero() {
            sleep(NOT_ASKED).await;
        } else {
            sleep(period).await;
            shared.hosts.check_zones(Ttl::of(settings)).await;
        }
    }
}

/// The first has had its turn.
fn turn(addresses: &mut [IpAddr]) {
    if !addresses.is_empty() {
        addresses.rotate_left(1);
    }
}

fn is_same_set(a: &[IpAddr], b: &[IpAddr]) -> bool {
    a.iter().all(|address| b.contains(address)) && b.iter().all(|address| a.contains(address))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Ttl = Ttl { found: Duration::from_secs(15), not_found: Duration::from_secs(5) };

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn each_address_has_its_turn() {
        let hosts = Hosts::default();
        let now = Instant::now();
        hosts.remember("db", Ok(vec![address(1), address(2)]), TTL, now);
        let first = || hosts.remembered("db", now).and_then(Result::ok).map(|addresses| addresses[0]);
        assert_eq!([first(), first(), first()], [2, 1, 2].map(|last| Some(address(last))));
    }

    #[test]
    fn an_answer_is_good_for_its_time() {
        let hosts = Hosts::default();
        let now = Instant::now();
        hosts.remember("db", Ok(vec![address(1)]), TTL, now);
        hosts.remember("no", Err("unknown".to_owned()), TTL, now);
        assert!(hosts.remembered("db", now + TTL.found / 2).is_some());
        assert!(hosts.remembered("db", now + TTL.found).is_none());
        assert_eq!(hosts.remembered("no", now), Some(Err("unknown".to_owned())));
        assert!(hosts.remembered("no", now + TTL.not_found).is_none());
    }

    #[test]
    fn a_host_that_moved_is_told_of_once() {
        let hosts = Hosts::default();
        let now = Instant::now();
        hosts.remember("db", Ok(vec![address(1), address(2)]), TTL, now);
        hosts.remember("db", Ok(vec![address(2), address(1)]), TTL, now);
        assert!(hosts.take_changed().is_empty(), "another order is no change");
        hosts.remember("db", Ok(vec![address(3)]), TTL, now);
        assert_eq!(hosts.take_changed(), ["db".into()]);
        assert!(hosts.take_changed().is_empty());
    }

    #[test]
    fn names_are_not_kept_without_limit() {
        let hosts = Hosts::default();
        let now = Instant::now();
        for number in 0..=MAX_HOSTS {
            hosts.remember(
                &format!("db{number}"),
                Ok(vec![address(1)]),
                TTL,
                now + Duration::from_millis(number as u64),
            );
        }
        assert_eq!(lock(&hosts.known).len(), MAX_HOSTS);
        assert!(hosts.remembered("db0", now).is_none());
    }
}
