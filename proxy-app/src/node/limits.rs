//! How many connections may be open without a login: in all, from one address, and in the middle of a handshake.
//!
//! Only connections without a login are counted, because a password tells a user from a flood; web and stream
//! connections, whose logins are not known, are counted while they are open. So an address needs fewer places for mail
//! than for the rest, and may have fewer. For one too many, another one is ended (`eviction`); where none can be, the
//! new one is closed before a byte of it is read, except for the PROXY header that names its client.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use mail_proxy::{NewSession, SessionLimits};
use parking_lot::Mutex;
use tokio::time::Instant;

use eviction::{Candidates, EvictionQueue};
pub(crate) use eviction::{HeldUntilLogin, PendingClient, QueuePlace};
use lease::Leases;
pub(crate) use lease::{Lease, LeaseKind};
use requests::RequestCounts;
pub(crate) use requests::{RequestKind, RequestPlace, RequestsConfig};
use sessions::SessionCounts;
pub(crate) use sessions::{SessionKeys, SessionLimit, SessionWatch, SessionsConfig};
pub(crate) use unread::AnswerCounter;
use unread::Unread;

mod eviction;
mod lease;
mod requests;
mod sessions;
mod unread;

/// Locks that share the addresses among them.
const SHARDS: usize = 16;
/// How often refusals are logged: a flood must not become a flood of log lines.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// `limits`; 0 is no limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LimitsConfig {
    /// Connections in all.
    pub connections: usize,
    /// Connections from one IPv4 address, or from one IPv6 network of 64 bits.
    pub connections_per_address: usize,
    /// Of these, mail connections. Each account that is known to log in from there adds one.
    pub mail_connections_per_address: usize,
    /// TLS handshakes at once.
    pub handshakes: usize,
    /// Answers that wait for clients that do not read.
    pub unread_answers: usize,
    /// The same for one address.
    pub unread_answers_per_address: usize,
    /// Web requests of one address.
    pub requests: RequestsConfig,
    /// Mail sessions.
    pub sessions: SessionsConfig,
    /// Networks without a limit for one address.
    pub exempt: Vec<IpNet>,
}

/// Enough for a city that comes back after a power cut, and for an office behind one address. A handshake that waits
/// for its client holds about 30 KiB. A client on this machine is a balancer or a tunnel, and speaks for many.
///
/// A mail connection is counted for less than a second, so 200 of them are an office whose 2,000 programs connect within
/// ten seconds. Dovecot has 100 login processes for all clients together.
impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            connections: 50_000,
            connections_per_address: 1_000,
            mail_connections_per_address: 200,
            handshakes: 10_000,
            unread_answers: 500,
            unread_answers_per_address: 100,
            requests: RequestsConfig::default(),
            sessions: SessionsConfig::default(),
            exempt: vec![
                Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8).into(),
                Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128).into(),
            ],
        }
    }
}

/// Which limit refused a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    /// `connections`
    Connections,
    /// `connections_per_address`
    PerAddress,
    /// `mail_connections_per_address`
    MailPerAddress,
    /// `handshakes`
    Handshakes,
}

/// What a connection counts as for its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectionKind {
    /// IMAP or POP3, from an address from which so many accounts are known to log in.
    Mail {
        /// They need room to come back at once.
        known_accounts: usize,
    },
    /// Anything else.
    Other,
}

impl ConnectionKind {
    fn is_mail(self) -> bool {
        self != Self::Other
    }
}

/// The connections of an address.
#[derive(Debug, Clone, Copy, Default)]
struct AddressCounts {
    all: usize,
    mail: usize,
}

impl AddressCounts {
    fn add(&mut self, kind: ConnectionKind) {
        self.all += 1;
        self.mail += usize::from(kind.is_mail());
    }

    fn remove(&mut self, kind: ConnectionKind) {
        self.all -= 1;
        self.mail -= usize::from(kind.is_mail());
    }

    /// The limit that has no room for one more, and those that could make room for it.
    fn full(self, kind: ConnectionKind, origin: Origin, settings: &LimitsConfig) -> Option<(Limit, Candidates)> {
        let is_full = |count: usize, limit: usize, more: usize| limit != 0 && count >= limit.saturating_add(more);
        match kind {
            ConnectionKind::Mail { known_accounts }
                if is_full(self.mail, settings.mail_connections_per_address, known_accounts) =>
            {
                Some((Limit::MailPerAddress, Candidates::MailOf(origin)))
            }
            _ if is_full(self.all, settings.connections_per_address, 0) => {
                Some((Limit::PerAddress, Candidates::Of(origin)))
            }
            _ => None,
        }
    }
}

/// The counts of this node.
pub(crate) struct NodeLimits {
    settings: ArcSwap<LimitsConfig>,
    open: AtomicUsize,
    handshakes: AtomicUsize,
    eviction: EvictionQueue,
    /// Clients in a handshake.
    handshaking: EvictionQueue,
    /// Only addresses that have connections now.
    by_address: [Mutex<HashMap<Origin, AddressCounts>>; SHARDS],
    refused: [AtomicU64; 4],
    logged: Mutex<Option<Instant>>,
    unread: Unread,
    requests: RequestCounts,
    sessions: Arc<SessionCounts>,
    leases: Leases,
    logged_unread: Mutex<Option<Instant>>,
}

/// What is counted as one client: an IPv6 user has a network of 64 bits and as many addresses as that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Origin {
    /// An IPv4 address.
    V4(u32),
    /// The first half of an IPv6 address.
    V6(u64),
}

impl Origin {
    /// Whose address this is.
    pub(crate) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            IpAddr::V6(address) => Self::V6((address.to_bits() >> 64) as u64),
        }
    }

    fn shard(self) -> usize {
        // The last bits of an address are those that differ.
        let bits = match self {
            Self::V4(bits) => u64::from(bits),
            Self::V6(bits) => bits,
        };
        (bits % SHARDS as u64) as usize
    }
}

impl NodeLimits {
    /// Nothing counted yet.
    pub(crate) fn new(settings: LimitsConfig) -> Arc<Self> {
        Arc::new(Self {
            settings: ArcSwap::from_pointee(settings),
            open: AtomicUsize::new(0),
            handshakes: AtomicUsize::new(0),
            eviction: EvictionQueue::default(),
            handshaking: EvictionQueue::default(),
            by_address: Default::default(),
            refused: Default::default(),
            logged: Mutex::new(None),
            unread: Unread::default(),
            requests: RequestCounts::default(),
            sessions: Arc::default(),
            leases: Leases::default(),
            logged_unread: Mutex::new(None),
        })
    }

    /// Has this one be told of every mail session that is counted; only the first is.
    pub(crate) fn watch(&self, watch: Arc<dyn SessionWatch>) {
        self.sessions.watch(watch);
    }

    /// What a session of another node counts for.
    pub(crate) fn keys_elsewhere(&self, session: &NewSession<'_>) -> SessionKeys {
        self.sessions.keys_elsewhere(session)
    }

    /// One more (or one less) session of another node.
    pub(crate) fn count_elsewhere(&self, keys: SessionKeys, begun: bool) {
        self.sessions.count_elsewhere(keys, begun);
    }

    /// Applies other limits from now on; open connections stay.
    pub(crate) fn change(&self, settings: LimitsConfig) {
        self.settings.store(Arc::new(settings));
    }

    /// A permit for one more connection, if need be in the place of another one; `None` if there is no room.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Permit> {
        if !taken(&self.open, self.settings.load().connections) {
            self.refuse(Limit::Connections);
            let (origin, kind) = self.eviction.make_room(Candidates::All)?;
            self.release_address(origin, kind);
        }
        Some(Permit {
            limits: self.clone(),
            counted: None,
            pending: Arc::default(),
        })
    }

    /// Counts one connection less for this origin.
    fn release_address(&self, origin: Origin, kind: ConnectionKind) {
        let mut counts = self.by_address[origin.shard()].lock();
        if let Some(count) = counts.get_mut(&origin) {
            count.remove(kind);
            if count.all == 0 {
                counts.remove(&origin);
            }
        }
    }

    /// How long a client may take for something that may take `full` when there is room. Above half of a limit the time
    /// is shorter; at the limit it is a sixth.
    pub(crate) fn patience(&self, full: Duration) -> Duration {
        let settings = self.settings.load();
        let filled = |now: &AtomicUsize, limit: usize| match limit {
            0 => 0.0,
            _ => now.load(Ordering::Relaxed) as f64 / limit as f64,
        };
        let most = filled(&self.open, settings.connections).max(filled(&self.handshakes, settings.handshakes));
        full.mul_f64(1.0 - (2.0 * most - 1.0).clamp(0.0, 1.0) * 5.0 / 6.0)
    }

    /// A permit for one more handshake of a client at this address. Where there is no room, the one of the busiest
    /// address that has taken longest gives up its own; `None` if there is none.
    pub(crate) fn handshake(self: &Arc<Self>, address: IpAddr) -> Option<HandshakePermit> {
        if !taken(&self.handshakes, self.settings.load().handshakes) {
            self.refuse(Limit::Handshakes);
            self.handshaking.make_room(Candidates::All)?;
            // The evicted one counts until it has ended, at once.
            self.handshakes.fetch_add(1, Ordering::Relaxed);
        }
        let pending = Arc::new(PendingClient::default());
        self.handshaking
            .enter(Origin::of(address), ConnectionKind::Other, &pending);
        Some(HandshakePermit {
            limits: self.clone(),
            pending,
        })
    }

    /// How many connections a limit has refused since the start.
    pub(crate) fn refused(&self, limit: Limit) -> u64 {
        self.refused[limit as usize].load(Ordering::Relaxed)
    }

    fn refuse(&self, limit: Limit) {
        self.refused[limit as usize].fetch_add(1, Ordering::Relaxed);
        if !is_due(&self.logged) {
            return;
        }
        log::warn!(
            "connections were refused; since the start, limits.connections has refused {}, \
             limits.connections_per_address {}, limits.mail_connections_per_address {}, limits.handshakes {}",
            self.refused(Limit::Connections),
            self.refused(Limit::PerAddress),
            self.refused(Limit::MailPerAddress),
            self.refused(Limit::Handshakes)
        );
    }

    fn log_unread(&self, ended: u64) {
        if is_due(&self.logged_unread) {
            log::warn!("web connections were ended whose clients do not read their answers; since the start {ended}");
        }
    }
}

impl SessionLimits for NodeLimits {
    fn enter(&self, session: &NewSession<'_>) -> Result<Box<dyn Send>, &'static str> {
        let settings = self.settings.load();
        let mut config = settings.sessions;
        if settings.exempt.iter().any(|network| network.contains(&session.client)) {
            config.per_address = SessionLimit::default();
        }
        match sessions::is_unlimited(session, config) {
            true => Ok(Box::new(())),
            false => Ok(Box::new(self.sessions.enter(session, config)?)),
        }
    }
}

/// Whether it is time to log again.
fn is_due(logged: &Mutex<Option<Instant>>) -> bool {
    let mut logged = logged.lock();
    let due = logged.is_none_or(|logged| logged.elapsed() >= LOG_INTERVAL);
    if due {
        *logged = Some(Instant::now());
    }
    due
}

/// Adds one, unless there are as many as there may be.
fn taken(count: &AtomicUsize, limit: usize) -> bool {
    let more = |now: usize| (limit == 0 || now < limit).then_some(now + 1);
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
}

/// A connection that is counted until this is dropped.
pub(crate) struct Permit {
    limits: Arc<NodeLimits>,
    /// As what it counts for which address.
    counted: Option<(Origin, ConnectionKind)>,
    pending: Arc<PendingClient>,
}

impl Permit {
    /// The client of this connection.
    pub(crate) fn pending(&self) -> Arc<PendingClient> {
        self.pending.clone()
    }

    /// A place in the queue of clients that can be evicted, to be given up after a login. `None` for exempt networks.
    pub(crate) fn queue(&self) -> Option<QueuePlace> {
        let (origin, kind) = self.counted?;
        Some(QueuePlace::new(&self.limits, origin, kind, self.pending.clone()))
    }

    /// Counts it for its client's address too, if need be in the place of another one from there.
    ///
    /// # Errors
    /// The limit that has no room for it.
    pub(crate) fn admit_address(&mut self, address: IpAddr, kind: ConnectionKind) -> Result<(), Limit> {
        let settings = self.limits.settings.load();
        if settings.exempt.iter().any(|network| network.contains(&address)) {
            return Ok(());
        }
        let origin = Origin::of(address);
        let mut counts = self.limits.by_address[origin.shard()].lock();
        let count = counts.entry(origin).or_default();
        if let Some((limit, candidates)) = count.full(kind, origin, &settings) {
            drop(counts);
            self.limits.refuse(limit);
            return self.take_place(candidates, kind).ok_or(limit);
        }
        count.add(kind);
        self.counted = Some((origin, kind));
        Ok(())
    }

    /// Counts it in the place of another one of its address; `None` if none can be ended.
    fn take_place(&mut self, candidates: Candidates, kind: ConnectionKind) -> Option<()> {
        let (origin, evicted) = self.limits.eviction.make_room(candidates)?;
        if let Some(count) = self.limits.by_address[origin.shard()].lock().get_mut(&origin) {
            count.remove(evicted);
            count.add(kind);
        }
        self.limits.open.fetch_sub(1, Ordering::Relaxed);
        self.counted = Some((origin, kind));
        Some(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.limits.eviction.forget(&self.pending);
        if self.pending.is_replaced() {
            return;
        }
        self.limits.open.fetch_sub(1, Ordering::Relaxed);
        if let Some((origin, kind)) = self.counted {
            self.limits.release_address(origin, kind);
        }
    }
}

/// A handshake that is counted until this is dropped.
pub(crate) struct HandshakePermit {
    limits: Arc<NodeLimits>,
    pending: Arc<PendingClient>,
}

impl HandshakePermit {
    /// Resolves when another handshake needs the place.
    pub(crate) async fn evicted(&self) {
        self.pending.evicted().await;
    }
}

impl Drop for HandshakePermit {
    fn drop(&mut self) {
        self.limits.handshaking.forget(&self.pending);
        self.limits.handshakes.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use mail_proxy::LoginSlot as _;
    use mail_proxy::{CloseReason, ConnectionHandle};

    use super::*;

    fn limits(connections: usize, per_address: usize, handshakes: usize) -> Arc<NodeLimits> {
        NodeLimits::new(LimitsConfig {
            connections,
            connections_per_address: per_address,
            mail_connections_per_address: 0,
            handshakes,
            unread_answers: 0,
            unread_answers_per_address: 0,
            requests: RequestsConfig::default(),
            sessions: SessionsConfig::default(),
            exempt: vec!["10.0.0.0/8".parse().unwrap()],
        })
    }

    fn from(limits: &Arc<NodeLimits>, address: &str) -> Option<Permit> {
        enter(limits, address, ConnectionKind::Other)
    }

    fn enter(limits: &Arc<NodeLimits>, address: &str, kind: ConnectionKind) -> Option<Permit> {
        let mut permit = limits.enter()?;
        permit.admit_address(address.parse().unwrap(), kind).ok()?;
        Some(permit)
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

    /// The story: a full set of silent connections kept all other clients out for a minute.
    #[tokio::test]
    async fn the_oldest_of_the_busiest_address_goes() {
        let limits = limits(5, 0, 0);
        let enter = |address: &str| from(&limits, address).map(|permit| (permit.queue(), permit));
        let first = enter("192.0.2.9").unwrap();
        let mut flood: Vec<_> = (0..4).map(|_| enter("192.0.2.1").unwrap()).collect();
        let gone = |one: &(Option<QueuePlace>, Permit)| one.1.pending().evicted().now_or_never().is_some();
        let second = enter("192.0.2.8").unwrap();
        assert!(gone(&flood[0]) && !gone(&flood[1]) && !gone(&first));
        // A client that floods on pushes out its own connections.
        flood.push(enter("192.0.2.1").unwrap());
        assert!(gone(&flood[1]) && !gone(&first) && !gone(&second));
        // Evicted connections are not counted, however long they take to end.
        assert_eq!(limits.open.load(Ordering::Relaxed), 5);
        flood.drain(..2);
        assert_eq!(limits.open.load(Ordering::Relaxed), 5);
        // A connection that has ended cannot be replaced, even if its place is still held.
        let (_held, ended) = flood.pop().unwrap();
        drop(ended);
        assert_eq!(limits.open.load(Ordering::Relaxed), 4);
        flood.push(enter("192.0.2.1").unwrap());
        // A connection with a login has no place that could be taken; nor have exempt networks.
        for (place, _) in &mut flood {
            place.take();
        }
        drop((first, second));
        let exempt: Vec<_> = (0..2).map(|_| enter("10.0.0.1").unwrap()).collect();
        assert!(exempt.iter().all(|(place, _)| place.is_none()));
        assert!(enter("192.0.2.7").is_none(), "nobody is there to go");
        drop((flood, exempt));
        assert!(limits.eviction.is_empty());
        assert_eq!(limits.open.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn within_an_address_the_oldest_goes_too() {
        let limits = limits(0, 2, 0);
        let enter = || from(&limits, "192.0.2.1").map(|permit| (permit.queue(), permit));
        let (one, two, three) = (enter().unwrap(), enter().unwrap(), enter().unwrap());
        let gone = |one: &(Option<QueuePlace>, Permit)| one.1.pending().evicted().now_or_never().is_some();
        assert!(gone(&one) && !gone(&two) && !gone(&three));
        drop(one);
        drop(enter().unwrap());
        assert!(gone(&two));
        drop((two, three));
        assert!(limits.by_address.iter().all(|shard| shard.lock().is_empty()));
    }

    fn mail(known_accounts: usize) -> ConnectionKind {
        ConnectionKind::Mail { known_accounts }
    }

    #[test]
    fn mail_has_fewer_places_and_accounts_that_are_known_bring_more() {
        let limits = limits(0, 6, 0);
        limits.change(LimitsConfig {
            mail_connections_per_address: 2,
            ..LimitsConfig::clone(&limits.settings.load())
        });
        let enter = |kind| enter(&limits, "192.0.2.1", kind).map(|permit| (permit.queue(), permit));
        let gone = |one: &(Option<QueuePlace>, Permit)| one.1.pending.is_replaced();
        // The web has places of its own, and is not evicted for mail.
        let web = [enter(ConnectionKind::Other), enter(ConnectionKind::Other)].map(Option::unwrap);
        let strangers = [enter(mail(0)), enter(mail(0)), enter(mail(0))].map(Option::unwrap);
        assert_eq!([0, 1, 2].map(|at| gone(&strangers[at])), [true, false, false]);
        let office = [enter(mail(2)), enter(mail(2)), enter(mail(9))].map(Option::unwrap);
        // The last one was one too many for all, of which the first has been silent for longest.
        assert_eq!(web.each_ref().map(gone), [true, false]);
        assert!(!strangers[1..].iter().chain(&office).any(gone));
        assert_eq!(
            [limits.refused(Limit::MailPerAddress), limits.refused(Limit::PerAddress)],
            [1, 1]
        );
        // Those that wait for us do not go, so one more is refused.
        let all = [&web[..], &strangers, &office];
        all.iter()
            .for_each(|kind| kind.iter().for_each(|one| one.0.iter().for_each(QueuePlace::leave)));
        assert!(enter(mail(0)).is_none() && enter(ConnectionKind::Other).is_none());
        drop((web, strangers, office));
        assert!(limits.by_address.iter().all(|shard| shard.lock().is_empty()));
        assert_eq!(limits.open.load(Ordering::Relaxed), 0);
    }

    /// What a botnet holds that connects as often as it can and says nothing, with the defaults and with the limit on
    /// all connections alone: printed for docs/throttle.md. Whatever it holds, an honest client gets a place, which is
    /// taken from the botnet.
    #[test]
    fn a_botnet_has_a_share_and_keeps_nobody_out() {
        println!("{:>9} {:>9} {:>8}", "addresses", "for each", "held");
        let for_each = LimitsConfig::default().mail_connections_per_address;
        for (addresses, for_each, most) in [
            (50, 0, 49_900),
            (50, for_each, 10_000),
            (100, for_each, 20_000),
            (250, for_each, 49_900),
        ] {
            let limits = NodeLimits::new(LimitsConfig {
                mail_connections_per_address: for_each,
                ..LimitsConfig::default()
            });
            let enter = |address: IpAddr| {
                let mut permit = limits.enter()?;
                permit.admit_address(address, mail(0)).ok()?;
                Some((permit.queue(), permit))
            };
            let hundred = |network: [u8; 3]| -> Vec<_> {
                let [a, b, c] = network;
                (1..=100).filter_map(|d| enter(IpAddr::from([a, b, c, d]))).collect()
            };
            let is_there = |one: &(Option<QueuePlace>, Permit)| !one.1.pending.is_replaced();
            let honest = hundred([192, 0, 2]);
            let of = |n: u32| IpAddr::from((0x0b00_0000 + n % addresses).to_be_bytes());
            let flood: Vec<_> = (0..60_000).filter_map(|n| enter(of(n))).collect();
            let held = flood.iter().filter(|one| is_there(one)).count();
            println!("{addresses:>9} {for_each:>9} {held:>8}");
            assert_eq!(held, most, "{addresses}, {for_each}");
            let newcomers = hundred([198, 51, 100]);
            for clients in [honest, newcomers] {
                assert!(
                    clients.len() == 100 && clients.iter().all(is_there),
                    "{addresses}, {for_each}"
                );
            }
        }
    }

    /// Clients that pause for a second between commands go after those that never send anything; and a client that
    /// waits for us does not go at all.
    #[test]
    fn clients_that_send_or_wait_for_us_stay() {
        let limits = limits(4, 0, 0);
        let enter = || {
            let permit = from(&limits, "192.0.2.1").unwrap();
            let (pending, live) = (permit.pending(), Arc::new(ConnectionHandle::new()));
            pending.ends_by(&live);
            live.hold_until_login(Box::new(HeldUntilLogin {
                queued: permit.queue(),
                _permit: Some(permit),
            }));
            live
        };
        let gone = |one: &Arc<ConnectionHandle>| one.close_reason() == Some(CloseReason::Evict);
        let (slow, busy, quick) = (enter(), enter(), enter());
        let request = (busy.waits_for_us(), busy.waits_for_us());
        slow.heard();
        quick.heard();
        let flood: Vec<_> = (0..40).map(|_| enter()).collect();
        assert_eq!(flood.iter().filter(|one| gone(one)).count(), 39);
        assert!(!gone(&slow) && !gone(&quick) && !gone(&busy));
        // Among clients that have sent something it is the one that did so longest ago.
        flood[39].heard();
        drop(request.0);
        let first = enter();
        first.heard();
        assert!(gone(&slow) && !gone(&quick));
        drop(request.1);
        let second = (enter(), enter());
        assert!(gone(&quick) && !gone(&busy) && gone(&second.0));
        // An evicted client does not come back into the queue.
        slow.heard();
        drop(slow.waits_for_us());
        drop((slow, busy, quick, flood, first, second));
        assert!(limits.eviction.is_empty());
        assert_eq!(
            limits.open.load(Ordering::Relaxed),
            0,
            "a client that has gone is not counted"
        );
        assert!(limits.by_address.iter().all(|shard| shard.lock().is_empty()));
    }

    /// A connection that is evicted for one limit is counted by no other, however long its task takes to end.
    #[test]
    fn a_newcomer_takes_the_place_of_the_silent_one_in_every_count() {
        let limits = limits(1, 1, 0);
        let enter = |address: &str| from(&limits, address).map(|permit| (permit.queue(), permit));
        let held = ["192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.1"].map(|address| enter(address).unwrap());
        assert_eq!(limits.open.load(Ordering::Relaxed), 1);
        drop(held);
        assert_eq!(limits.open.load(Ordering::Relaxed), 0);
        assert!(limits.by_address.iter().all(|shard| shard.lock().is_empty()));
    }

    /// Clients that have said something and wait must not keep a place from those that come one after the other.
    #[test]
    fn newcomers_do_not_push_each_other_out() {
        let limits = limits(4, 0, 0);
        let enter = |last: u8| {
            let permit = from(&limits, &format!("192.0.2.{last}")).unwrap();
            let pending = permit.pending.clone();
            (
                HeldUntilLogin {
                    queued: permit.queue(),
                    _permit: Some(permit),
                },
                pending,
            )
        };
        let gone = |one: &(HeldUntilLogin, Arc<PendingClient>)| one.1.is_replaced();
        let talkers: Vec<_> = (1..=4).map(enter).collect();
        talkers.iter().for_each(|one| one.0.heard());
        let newcomers: Vec<_> = (11..=14).map(enter).collect();
        assert!(talkers.iter().all(gone), "the oldest of them goes first");
        assert!(!newcomers.iter().any(gone));
    }

    #[test]
    fn time_runs_faster_above_half() {
        let limits = limits(12, 0, 0);
        let full = Duration::from_secs(60);
        let mut held = Vec::new();
        for (open, seconds) in [(0, 60), (6, 60), (9, 35), (12, 10)] {
            held.resize_with(open, || limits.enter().unwrap());
            assert_eq!(limits.patience(full).as_secs(), seconds, "{open}");
        }
    }

    #[test]
    fn nothing_is_kept_of_clients_that_have_gone() {
        let limits = limits(3, 2, 0);
        for number in 0..1000_u32 {
            let address = IpAddr::from((number + 0x0b00_0000).to_be_bytes());
            let mut permit = limits.enter().unwrap();
            assert!(permit.admit_address(address, ConnectionKind::Other).is_ok());
        }
        assert!(limits.by_address.iter().all(|shard| shard.lock().is_empty()));
        assert_eq!(limits.open.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn all_together_are_limited_and_handshakes_too() {
        let limits = limits(1, 0, 1);
        let first = from(&limits, "192.0.2.1");
        assert!(first.is_some() && from(&limits, "192.0.2.2").is_none());
        let handshake = |last| limits.handshake(IpAddr::from([192, 0, 2, last]));
        let silent = handshake(1).unwrap();
        assert!(silent.evicted().now_or_never().is_none());
        let next = handshake(2).unwrap();
        assert!(silent.evicted().now_or_never().is_some() && next.evicted().now_or_never().is_none());
        drop((first, silent, next));
        assert_eq!(limits.handshakes.load(Ordering::Relaxed), 0);
        assert!(from(&limits, "192.0.2.2").is_some() && limits.handshaking.is_empty());
        assert_eq!(
            (limits.refused(Limit::Connections), limits.refused(Limit::Handshakes)),
            (1, 1)
        );
        limits.change(LimitsConfig::default());
        let many: Vec<_> = (0..100).map(|_| limits.enter()).collect();
        assert!(many.iter().all(Option::is_some));
    }
}
