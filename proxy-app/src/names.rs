//! Host names of mailbox servers to addresses, with a short memory.
//!
//! The system's resolver blocks a thread, so the hot path must not ask it for each connection. An answer that
//! worked goes on serving while the resolver does not answer.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use std::collections::HashMap;
use tokio::time::Instant;

/// How long an answer is used without asking again: short enough that a server which moved is found soon.
const FRESH: Duration = Duration::from_secs(30);
/// How long the resolver may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// Which addresses to use, in which order (`zimbraIPMode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpMode {
    /// Only IPv4.
    V4,
    /// Only IPv6.
    V6,
    /// IPv4 first.
    Both,
}

#[derive(Clone)]
struct Answer {
    addresses: Arc<[IpAddr]>,
    asked: Instant,
}

/// The memory. Its keys are names of servers in the directory, so their number is bounded by it.
#[derive(Default)]
pub struct Names {
    answers: ArcSwap<HashMap<String, Answer>>,
}

impl Names {
    /// The addresses of a host (a name or an address), with this port, in the order to try them.
    ///
    /// # Errors
    /// The name is unknown, or the resolver does not answer and never did for this name.
    pub async fn resolve(&self, host: &str, port: u16, mode: IpMode) -> io::Result<Vec<SocketAddr>> {
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
            && answer.asked.elapsed() < FRESH
        {
            return Ok(answer.addresses.clone());
        }
        match ask(host).await {
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
                Answer {
                    addresses: addresses.clone(),
                    asked: Instant::now(),
                },
            );
            answers
        });
    }
}

impl IpMode {
    fn admits(self, ip: IpAddr) -> bool {
        match self {
            IpMode::V4 => ip.is_ipv4(),
            IpMode::V6 => ip.is_ipv6(),
            IpMode::Both => true,
        }
    }
}

async fn ask(host: &str) -> io::Result<Arc<[IpAddr]>> {
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
