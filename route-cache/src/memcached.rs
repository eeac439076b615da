//! A small client for memcached: `get`, `set` and `delete` on several servers, chosen as Carbonio's proxy does.
//!
//! Nothing here knows what a key or a value means; `shared.rs` does. Whatever a server does, the caller receives an
//! answer or a miss within the time limit: there is no error to handle, because a cache that fails counts as empty.

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

mod link;
pub mod wire;

use link::Link;
use wire::Command;

use crate::host_port::HostPort;

/// memcached takes a larger expiry for a date (its protocol.txt, "Expiration times").
const MAX_TTL: Duration = Duration::from_secs(30 * 24 * 3600);

/// How memcached is used.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Their order is part of the choice, so all nodes that share them must list them alike.
    pub servers: Vec<HostPort>,
    /// How long one request may take, its connection included.
    pub timeout: Duration,
    /// How long a server that failed is left alone.
    pub retry: Duration,
}

/// The servers together.
pub struct Memcached {
    links: Box<[Arc<Link>]>,
    timeout: Duration,
}

impl Memcached {
    /// A client that connects when it is first needed.
    pub fn new(settings: &Settings) -> Self {
        let link = |server: &HostPort| Arc::new(Link::new(server, settings.timeout, settings.retry));
        Self {
            links: settings.servers.iter().map(link).collect(),
            timeout: settings.timeout,
        }
    }

    /// The servers, and whether they answered when they were last needed.
    pub fn servers(&self) -> Vec<(String, bool)> {
        self.links.iter().map(|link| link.is_up()).collect()
    }

    /// The time limit of one request.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The value under `name`, or `None` if there is none or no server answers.
    pub async fn get(&self, name: &str) -> Option<Vec<u8>> {
        let command = Command::Get { key: hashed(name) };
        self.order(name).find_map(|link| link.ask(&command))?.answer().await
    }

    /// Stores a value, in place of what is there, without waiting.
    pub fn set(&self, name: &str, value: &str, ttl: Duration) {
        let command = Command::Set {
            key: hashed(name),
            ttl: ttl.clamp(Duration::from_secs(1), MAX_TTL).as_secs(),
            value: value.to_owned(),
        };
        let _ = self.order(name).find_map(|link| link.ask(&command));
    }

    /// Removes what is under `name`, from every server: while one was down its entries went to the next. Does not
    /// wait.
    pub fn delete(&self, name: &str) {
        let command = Command::Delete { key: hashed(name) };
        for link in &self.links {
            let _ = link.ask(&command);
        }
    }

    /// The servers for a name: the chosen one, then the next ones as they were declared (MAIL §2.3).
    fn order(&self, name: &str) -> impl Iterator<Item = &Arc<Link>> {
        let count = self.links.len();
        let first = choice(name, count);
        (0..count).map(move |step| &self.links[(first + step) % count])
    }
}

/// The key on the wire: SHA-256 of the name in lower-case hex, so that no name can break out of its command.
pub fn hashed(name: &str) -> String {
    Sha256::digest(name).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Which of `servers` holds a name: the one-at-a-time hash over the name as it is, not over the key on the wire.
pub fn choice(name: &str, servers: usize) -> usize {
    match servers {
        0 | 1 => 0,
        _ => (one_at_a_time(name.as_bytes()) % servers as u64) as usize,
    }
}

/// Jenkins' one-at-a-time hash in 64 bits (MAIL §2.3).
fn one_at_a_time(bytes: &[u8]) -> u64 {
    let mut hash: u64 = 0;
    for byte in bytes {
        hash = hash.wrapping_add(u64::from(*byte));
        hash = hash.wrapping_add(hash << 10);
        hash ^= hash >> 6;
    }
    hash = hash.wrapping_add(hash << 3);
    hash ^= hash >> 11;
    hash.wrapping_add(hash << 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_choices_are_those_of_mail_2_3() {
        for (name, key, hash, of_two, of_three) in [
            (
                "route:proto=imapssl;user=rossi@example.com",
                "11cf43ce8fa2ab3fe74315f0577db7969c7d6602ada2114021b1491ce950689c",
                0xc271_a463_8c3d_1eed,
                1,
                0,
            ),
            (
                "alias:user=rossi;ip=203.0.113.7",
                "f8ddbce616e281a164ee3d16b3c23acf3d1a4179dce90978973bfc2ab37beab2",
                0xa9a4_94ec_8790_ce7f,
                1,
                0,
            ),
            (
                "route:proto=httpssl;id=11111111-2222-3333-4444-555555555555",
                "8ab50fa6317b78166f61d0cf8febc03c6a286632a485a1ceaf0d434032a0cc00",
                0x83a8_59b6_d369_09f5,
                1,
                0,
            ),
            (
                "throttle:proto=i,ip=203.0.113.7",
                "f96f18c526bfa64787eb6add28be7661f7d63de839e1aad91157aa4e8bbb3799",
                0xeeec_a1e7_4d08_84d1,
                1,
                2,
            ),
        ] {
            assert_eq!(hashed(name), key, "{name}");
            assert_eq!(one_at_a_time(name.as_bytes()), hash, "{name}");
            assert_eq!((choice(name, 2), choice(name, 3)), (of_two, of_three), "{name}");
            assert_eq!((choice(name, 0), choice(name, 1)), (0, 0), "{name}");
        }
    }
}
