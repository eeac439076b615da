//! Resolves host names of mailbox servers to addresses, with a short memory.
//!
//! The system's resolver blocks a thread, so the hot path must not ask it for each connection. The last good answer
//! stays in use while the resolver does not answer.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use route_cache::HostPort;
use std::collections::HashMap;
use tokio::time::Instant;

/// How long an answer is used without asking again: short enough that a server which moved is found soon.
const FRESH: Duration = Duration::from_secs(30);
/// How long an address that took no connection is tried only after the others of its host.
const LAST: Duration = Duration::from_secs(60);
/// How long the resolver may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// Which addresses to use, in which order (`zimbraIPMode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IpMode {
    /// Only IPv4.
    V4,
    /// Only IPv6.
    V6,
    /// IPv4 first.
    Both,
}

#[derive(Clone)]
struct CachedAddresses {
    addresses: Arc<[IpAddr]>,
    queried: Instant,
}

/// The memory. Its keys are names of servers in the directory, so the directory bounds their number.
#[derive(Default)]
pub(crate) struct DnsCache {
    answers: ArcSwap<HashMap<String, CachedAddresses>>,
    /// Addresses that took no connection, and when. They are addresses of servers, so their number is bounded too.
    dead: ArcSwap<HashMap<SocketAddr, Instant>>,
    /// Listeners of this node.
    own: ArcSwap<Vec<SocketAddr>>,
}

impl DnsCache {
    /// The addresses of a host (a name or an address), with this port, in the order to try them.
    ///
    /// # Errors
    /// The name is unknown, or the resolver does not answer and never did for this name. Or it leads to one of our own
    /// listeners: a connection there would come back to us, and again, until nothing is left.
    pub(crate) async fn resolve(&self, host: &str, port: u16, mode: IpMode) -> io::Result<Vec<SocketAddr>> {
        let mut addresses = self.addresses(host, port, mode).await?;
        let own = self.own.load();
        if let Some(looped) = addresses.iter().copied().find(|address| leads_to(*address, &own)) {
            addresses.retain(|address| !leads_to(*address, &own));
            let name = HostPort::new(host, port);
            let message = format!("{name} leads to {looped}, a listener of this node: a loop");
            log::error!("{message}");
            if addresses.is_empty() {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
            }
        }
        let dead = self.dead.load();
        addresses.sort_by_key(|address| dead.get(address).is_some_and(|since| since.elapsed() < LAST));
        Ok(addresses)
    }

    /// Notes that an address has taken no connection: it is tried last for a while.
    pub(crate) fn note_dead(&self, address: SocketAddr) {
        self.dead.rcu(|dead| {
            let mut dead = HashMap::clone(dead);
            dead.retain(|_, since| since.elapsed() < LAST);
            dead.insert(address, Instant::now());
            dead
        });
    }

    /// Notes that an address has taken a connection.
    pub(crate) fn note_alive(&self, address: SocketAddr) {
        if self.dead.load().contains_key(&address) {
            self.dead.rcu(|dead| {
                let mut dead = HashMap::clone(dead);
                dead.remove(&address);
                dead
            });
        }
    }

    /// Takes these as the addresses of a host.
    #[cfg(test)]
    pub(crate) fn pretend(&self, host: &str, addresses: &[IpAddr]) {
        self.keep(host, addresses.into());
    }

    /// Takes these as listeners of this node, to which no connection is made.
    pub(crate) fn never(&self, own: Vec<SocketAddr>) {
        self.own.store(Arc::new(own));
    }

    async fn addresses(&self, host: &str, port: u16, mode: IpMode) -> io::Result<Vec<SocketAddr>> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let addresses = self.lookup(host).await?;
        let mut wanted: Vec<_> = addresses.iter().copied().filter(|ip| mode.admits(*ip)).collect();
        wanted.sort_by_key(|ip| ip.is_ipv6());
        if wanted.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("{host} has no address of a wanted family"),
            ));
        }
        Ok(wanted.into_iter().map(|ip| SocketAddr::new(ip, port)).collect())
    }

    async fn lookup(&self, host: &str) -> io::Result<Arc<[IpAddr]>> {
        let known = self.answers.load().get(host).cloned();
        if let Some(answer) = &known
            && answer.queried.elapsed() < FRESH
        {
            return Ok(answer.addresses.clone());
        }
        match query(host).await {
            Ok(addresses) => {
                self.keep(host, addresses.clone());
                Ok(addresses)
            }
            Err(error) => {
                let addresses = known.map(|answer| answer.addresses).ok_or(error)?;
                // The resolver is down: the next connections must not wait for it too.
                self.keep(host, addresses.clone());
                Ok(addresses)
            }
        }
    }

    fn keep(&self, host: &str, addresses: Arc<[IpAddr]>) {
        self.answers.rcu(|answers| {
            let mut answers = HashMap::clone(answers);
            answers.insert(
                host.to_owned(),
                CachedAddresses {
                    addresses: addresses.clone(),
                    queried: Instant::now(),
                },
            );
            answers
        });
    }
}

impl IpMode {
    fn admits(self, ip: IpAddr) -> bool {
        match self {
            Self::V4 => ip.is_ipv4(),
            Self::V6 => ip.is_ipv6(),
            Self::Both => true,
        }
    }
}

/// Whether a connection to this address would be accepted by one of these listeners.
fn leads_to(address: SocketAddr, own: &[SocketAddr]) -> bool {
    let ip = address.ip().to_canonical();
    own.iter().filter(|own| own.port() == address.port()).any(|own| {
        let listened = own.ip().to_canonical();
        listened == ip || (listened.is_unspecified() && is_local(ip))
    })
}

/// Whether an address is this machine's: a route to it starts at the same address. No packet is sent. It is asked only
/// for ports that we listen on at all addresses.
fn is_local(ip: IpAddr) -> bool {
    if ip.is_loopback() || ip.is_unspecified() {
        return true;
    }
    let any = match ip {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    // Any port will do.
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((ip, 9))?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip() == ip)
}

async fn query(host: &str) -> io::Result<Arc<[IpAddr]>> {
    let answer = tokio::time::timeout(PATIENCE, tokio::net::lookup_host((host, 0)))
        .await
        .map_err(|_| {
            io::Error::new(
                io::ErrorKind::TimedOut,
                format!("the resolver does not answer for {host}"),
            )
        })??;
    let mut addresses: Vec<IpAddr> = answer.map(|address| address.ip()).collect();
    addresses.dedup();
    Ok(addresses.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_are_seen() {
        let own: Vec<SocketAddr> = ["0.0.0.0:143", "[::]:443", "127.0.0.1:993"]
            .map(|address| address.parse().unwrap())
            .into();
        for (address, looped) in [
            ("127.0.0.1:143", true),
            ("127.9.9.9:143", true),
            ("[::1]:443", true),
            ("127.0.0.1:993", true),
            ("[::ffff:127.0.0.1]:993", true),
            ("0.0.0.0:143", true),
            ("127.0.0.2:993", false),
            ("127.0.0.1:7143", false),
            // Reserved for documentation: in use by no host.
            ("192.0.2.1:143", false),
        ] {
            assert_eq!(leads_to(address.parse().unwrap(), &own), looped, "{address}");
        }
    }

    #[tokio::test]
    async fn nobody_is_sent_in_a_circle() {
        let dns = DnsCache::default();
        assert!(dns.resolve("127.0.0.1", 143, IpMode::V4).await.is_ok());
        dns.never(vec!["0.0.0.0:143".parse().unwrap()]);
        let error = dns.resolve("127.0.0.1", 143, IpMode::V4).await.unwrap_err();
        assert!(error.to_string().contains("a loop"), "{error}");
        assert!(dns.resolve("127.0.0.1", 7143, IpMode::V4).await.is_ok());
    }
}
