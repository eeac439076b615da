//! How many connections may wait at the doors: in all, from one address, and in the middle of a handshake.
//!
//! Only what has not logged in is counted, because a password is what tells a user from a flood; web and stream
//! connections, where nobody knows of logins, are counted while they are open. One that is too many is closed before
//! a byte of it is read, but for the PROXY header that says whose it is.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use parking_lot::Mutex;
use tokio::time::Instant;

mod unread;

pub use unread::Reader;
use unread::Unread;

/// Locks that share the addresses among them.
const SHARDS: usize = 16;
/// How often refusals are told of: a flood must not become a flood of log lines.
const TELL: Duration = Duration::from_secs(10);

/// `limits`; 0 is no limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitsConfig {
    /// Connections in all.
    pub connections: usize,
    /// Connections from one IPv4 address, or from one IPv6 network of 64 bits.
    pub connections_per_address: usize,
    /// TLS handshakes at once.
    pub handshakes: usize,
    /// Answers that wait for clients that do not read.
    pub unread_answers: usize,
    /// The same for one address.
    pub unread_answers_per_address: usize,
    /// Networks that may have as many as they like.
    pub exempt: Vec<IpNet>,
}

/// Enough for a city that comes back after a power cut, and for an office behind one address. A handshake that waits
/// for its client holds about 30 KiB. Who connects from this machine is a balancer or a tunnel, and speaks for many.
impl Default for LimitsConfig {
    fn default() -> LimitsConfig {
        LimitsConfig {
            connections: 50_000,
            connections_per_address: 1_000,
            handshakes: 10_000,
            unread_answers: 500,
            unread_answers_per_address: 100,
            exempt: vec![
                Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8).into(),
                Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128).into(),
            ],
        }
    }
}

/// Which limit refused a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// `connections`
    Connections,
    /// `connections_per_address`
    PerAddress,
    /// `handshakes`
    Handshakes,
}

/// The counts of this node.
pub struct Limits {
    settings: ArcSwap<LimitsConfig>,
    open: AtomicUsize,
    handshakes: AtomicUsize,
    /// Only addresses that have connections now.
    by_address: [Mutex<HashMap<Origin, usize>>; SHARDS],
    refused: [AtomicU64; 3],
    told: Mutex<Option<Instant>>,
    unread: Unread,
    told_of_unread: Mutex<Option<Instant>>,
}

/// Who is counted as one: an IPv6 user has a network of 64 bits and as many addresses as that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Origin {
    /// An IPv4 address.
    V4(u32),
    /// The first half of an IPv6 address.
    V6(u64),
}

impl Origin {
    /// Whose address this is.
    pub(crate) fn of(address: IpAddr) -> Origin {
        match address.to_canonical() {
            IpAddr::V4(address) => Origin::V4(address.to_bits()),
            IpAddr::V6(address) => Origin::V6((address.to_bits() >> 64) as u64),
        }
    }

    fn shard(self) -> usize {
        // The last bits of an address are those that differ.
        let bits = match self {
            Origin::V4(bits) => u64::from(bits),
            Origin::V6(bits) => bits,
        };
        (bits % SHARDS as u64) as usize
    }
}

impl Limits {
    /// Nothing counted yet.
    pub fn new(settings: LimitsConfig) -> Arc<Limits> {
        Arc::new(Limits {
            settings: ArcSwap::from_pointee(settings),
            open: AtomicUsize::new(0),
            handshakes: AtomicUsize::new(0),
            by_address: Default::default(),
            refused: Default::default(),
            told: Mutex::new(None),
            unread: Unread::default(),
            told_of_unread: Mutex::new(None),
        })
    }

    /// Counts by other limits from now on; who is in, is in.
    pub fn change(&self, settings: LimitsConfig) {
        self.settings.store(Arc::new(settings));
    }

    /// Room for one more connection, whoever it is; `None` if there is none.
    pub fn enter(self: &Arc<Self>) -> Option<Ticket> {
        if !taken(&self.open, self.settings.load().connections) {
            self.refuse(Limit::Connections);
            return None;
        }
        Some(Ticket {
            limits: self.clone(),
            origin: None,
        })
    }

    /// Room for one more handshake; `None` if there is none.
    pub fn handshake(self: &Arc<Self>) -> Option<Handshake> {
        if !taken(&self.handshakes, self.settings.load().handshakes) {
            self.refuse(Limit::Handshakes);
            return None;
        }
        Some(Handshake(self.clone()))
    }

    /// How many connections a limit has refused since the start.
    pub fn refused(&self, limit: Limit) -> u64 {
        self.refused[limit as usize].load(Ordering::Relaxed)
    }

    fn refuse(&self, limit: Limit) {
        self.refused[limit as usize].fetch_add(1, Ordering::Relaxed);
        if !is_due(&self.told) {
            return;
        }
        log::warn!(
            "connections were refused; since the start, limits.connections has refused {}, \
             limits.connections_per_address {}, limits.handshakes {}",
            self.refused(Limit::Connections),
            self.refused(Limit::PerAddress),
            self.refused(Limit::Handshakes)
        );
    }

    fn tell_of_unread(&self, ended: u64) {
        if is_due(&self.told_of_unread) {
            log::warn!("web connections were ended whose clients do not read their answers; since the start {ended}");
        }
    }
}

/// Whether it is time to tell again.
fn is_due(told: &Mutex<Option<Instant>>) -> bool {
    let mut told = told.lock();
    let due = told.is_none_or(|told| told.elapsed() >= TELL);
    if due {
        *told = Some(Instant::now());
    }
    due
}

/// Adds one, unless there are as many as there may be.
fn taken(count: &AtomicUsize, limit: usize) -> bool {
    let more = |now: usize| (limit == 0 || now < limit).then_some(now + 1);
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
}

/// A connection that is counted until this is dropped.
pub struct Ticket {
    limits: Arc<Limits>,
    origin: Option<Origin>,
}

impl Ticket {
    /// Counts it for its client's address too. False: there are too many from there.
    #[must_use]
    pub fn is_from(&mut self, address: IpAddr) -> bool {
        let settings = self.limits.settings.load();
        if settings.exempt.iter().any(|network| network.contains(&address)) {
            return true;
        }
        let origin = Origin::of(address);
        let mut counts = self.limits.by_address[origin.shard()].lock();
        let count = counts.entry(origin).or_default();
        if settings.connections_per_address != 0 && *count >= settings.connections_per_address {
            drop(counts);
            self.limits.refuse(Limit::PerAddress);
            return false;
        }
        *count += 1;
        self.origin = Some(origin);
        true
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.limits.open.fetch_sub(1, Ordering::Relaxed);
        let Some(origin) = self.origin else { return };
        let mut counts = self.limits.by_address[origin.shard()].lock();
        if let Some(count) = counts.get_mut(&origin) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&origin);
            }
        }
    }
}

/// A handshake that is counted until this is dropped.
pub struct Handshake(Arc<Limits>);

impl Drop for Handshake {
    fn drop(&mut self) {
        self.0.handshakes.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(connections: usize, per_address: usize, handshakes: usize) -> Arc<Limits> {
        Limits::new(LimitsConfig {
            connections,
            connections_per_address: per_address,
            handshakes,
            unread_answers: 0,
            unread_answers_per_address: 0,
            exempt: vec!["10.0.0.0/8".parse().unwrap()],
        })
    }

    fn from(limits: &Arc<Limits>, address: &str) -> Option<Ticket> {
        let mut ticket = limits.enter()?;
        ticket.is_from(address.parse().unwrap()).then_some(ticket)
    }

    #[test]
    fn each_address_has_its_share() {
        let limits = limits(0, 2, 0);
        let one = from(&limits, "192.0.2.1");
        let two = from(&limits, "::ffff:192.0.2.1");
        assert!(one.is_some() && two.is_some() && from(&limits, "192.0.2.1").is_none());
        assert!(from(&limits, "192.0.2.2").is_some());
        drop(one);
        assert!(from(&limits, "192.0.2.1").is_some());
        assert_eq!(limits.refused(Limit::PerAddress), 1);

        let network = [from(&limits, "2001:db8:0:1::1"), from(&limits, "2001:db8:0:1:ffff::2")];
        assert!(network.iter().all(Option::is_some) && from(&limits, "2001:db8:0:1::3").is_none());
        assert!(from(&limits, "2001:db8:0:2::1").is_some());

        let many: Vec<_> = (0..9).map(|_| from(&limits, "10.1.2.3")).collect();
        assert!(many.iter().all(Option::is_some));
    }

    #[test]
    fn nothing_is_kept_of_those_who_have_gone() {
        let limits = limits(3, 2, 0);
        for number in 0..1000_u32 {
            let address = IpAddr::from((number + 0x0b00_0000).to_be_bytes());
            let mut ticket = limits.enter().unwrap();
            assert!(ticket.is_from(address));
        }
        assert!(limits.by_address.iter().all(|shard| shard.lock().is_empty()));
        assert_eq!(limits.open.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn all_together_are_limited_and_handshakes_too() {
        let limits = limits(1, 0, 1);
        let first = from(&limits, "192.0.2.1");
        assert!(first.is_some() && from(&limits, "192.0.2.2").is_none());
        let handshake = limits.handshake();
        assert!(handshake.is_some() && limits.handshake().is_none());
        drop((first, handshake));
        assert!(from(&limits, "192.0.2.2").is_some() && limits.handshake().is_some());
        assert_eq!(
            (limits.refused(Limit::Connections), limits.refused(Limit::Handshakes)),
            (1, 1)
        );
        limits.change(LimitsConfig::default());
        let many: Vec<_> = (0..100).map(|_| limits.enter()).collect();
        assert!(many.iter().all(Option::is_some));
    }
}
