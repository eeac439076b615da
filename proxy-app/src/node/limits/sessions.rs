//! How many mail sessions may be open at once, of an account, an address, a domain, a server.
//!
//! Only what has a limit is counted: a limit that a reload sets counts the sessions that begin from then on. Those of
//! other nodes are all counted, as far as they are known.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use mail_directory::domain_of;
use mail_proxy::NewSession;
use parking_lot::Mutex;

use super::Origin;

/// The part of `limits` about mail sessions; 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SessionsConfig {
    /// Sessions of one account.
    pub per_account: usize,
    /// Sessions of one account from one address.
    pub per_account_and_address: usize,
    /// Sessions from one address.
    pub per_address: usize,
    /// Sessions of the accounts of one domain.
    pub per_domain: usize,
    /// Sessions at one mailbox server.
    pub per_server: usize,
}

/// What sessions have in common that count together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum SessionKey {
    Account(String),
    AccountAndAddress(String, Origin),
    Address(Origin),
    Domain(String),
    Server(String),
}

/// What a session of another node counts for, as keyed hashes.
pub(crate) type SessionKeys = [u64; 5];

/// The sessions of other nodes.
#[derive(Default)]
struct Elsewhere {
    hasher: RandomState,
    counts: HashMap<u64, usize>,
}

/// The sessions that are counted.
#[derive(Default)]
pub(super) struct SessionCounts {
    here: Mutex<HashMap<SessionKey, usize>>,
    elsewhere: Mutex<Elsewhere>,
    watch: OnceLock<Arc<dyn SessionWatch>>,
}

/// Is told of every mail session that is counted.
pub(crate) trait SessionWatch: Send + Sync {
    /// One begins; it ends when the value is dropped. This must not wait.
    fn begun(&self, session: &NewSession<'_>) -> Box<dyn Send>;
}

impl SessionCounts {
    /// Counts one more session wherever there is a limit, or nowhere.
    pub(super) fn enter(
        self: &Arc<Self>,
        session: &NewSession<'_>,
        config: SessionsConfig,
    ) -> Result<SessionPlace, &'static str> {
        let keys = keys(session, config);
        let mut counts = self.here.lock();
        let elsewhere = self.elsewhere.lock();
        for (key, limit, name) in &keys {
            let count = counts.get(key).copied().unwrap_or(0) + elsewhere.count(key);
            if count >= *limit {
                return Err(name);
            }
        }
        drop(elsewhere);
        let keys: Vec<SessionKey> = keys.into_iter().map(|(key, ..)| key).collect();
        keys.iter().for_each(|key| *counts.entry(key.clone()).or_default() += 1);
        drop(counts);
        Ok(SessionPlace {
            counts: self.clone(),
            keys,
            _watched: self.watch.get().map(|watch| watch.begun(session)),
        })
    }

    /// Has this one be told of every session; only the first is.
    pub(super) fn watch(&self, watch: Arc<dyn SessionWatch>) {
        let _there_is_one_already = self.watch.set(watch);
    }

    /// What a session of another node counts for.
    pub(super) fn keys_elsewhere(&self, account: &str, client: IpAddr, server: &str) -> SessionKeys {
        let session = NewSession {
            account,
            client,
            server,
        };
        let elsewhere = self.elsewhere.lock();
        all_keys(&session).map(|key| elsewhere.hasher.hash_one(key))
    }

    /// One more or one less session of another node.
    pub(super) fn count_elsewhere(&self, keys: SessionKeys, begun: bool) {
        let counts = &mut self.elsewhere.lock().counts;
        for key in keys {
            if begun {
                *counts.entry(key).or_default() += 1;
            } else if let Some(count) = counts.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&key);
                }
            }
        }
    }
}

impl Elsewhere {
    fn count(&self, key: &SessionKey) -> usize {
        if self.counts.is_empty() {
            return 0;
        }
        let count = self.counts.get(&self.hasher.hash_one(key));
        count.copied().unwrap_or(0)
    }
}

/// What a session counts for.
fn all_keys(session: &NewSession<'_>) -> [SessionKey; 5] {
    let (account, origin) = (session.account.to_owned(), Origin::of(session.client));
    let domain = domain_of(session.account).unwrap_or_default().to_owned();
    [
        SessionKey::Account(account.clone()),
        SessionKey::AccountAndAddress(account, origin),
        SessionKey::Address(origin),
        SessionKey::Domain(domain),
        SessionKey::Server(session.server.to_owned()),
    ]
}

/// What a session counts for where there is a limit, the limit of each, and its name in the node file.
fn keys(session: &NewSession<'_>, config: SessionsConfig) -> Vec<(SessionKey, usize, &'static str)> {
    let limits = [
        (config.per_account, "limits.sessions_per_account"),
        (
            config.per_account_and_address,
            "limits.sessions_per_account_and_address",
        ),
        (config.per_address, "limits.sessions_per_address"),
        (config.per_domain, "limits.sessions_per_domain"),
        (config.per_server, "limits.sessions_per_server"),
    ];
    if limits.iter().all(|(limit, _)| *limit == 0) {
        return Vec::new();
    }
    let all = all_keys(session).into_iter().zip(limits);
    let all = all.map(|(key, (limit, name))| (key, limit, name));
    all.filter(|(_, limit, _)| *limit != 0).collect()
}

/// A session that is counted until this is dropped.
pub(super) struct SessionPlace {
    counts: Arc<SessionCounts>,
    keys: Vec<SessionKey>,
    _watched: Option<Box<dyn Send>>,
}

impl Drop for SessionPlace {
    fn drop(&mut self) {
        let mut counts = self.counts.here.lock();
        for key in &self.keys {
            if let Some(count) = counts.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_counts_what_it_names() {
        let (one, other) = (
            ("alice@a.test", "192.0.2.1", "store1"),
            ("bob@b.test", "192.0.2.2", "store2"),
        );
        let limited = |set: fn(&mut SessionsConfig)| {
            let mut config = SessionsConfig::default();
            set(&mut config);
            config
        };
        for (config, name, same) in [
            (
                limited(|c| c.per_account = 1),
                "limits.sessions_per_account",
                (one.0, other.1, other.2),
            ),
            (
                limited(|c| c.per_account_and_address = 1),
                "limits.sessions_per_account_and_address",
                (one.0, one.1, other.2),
            ),
            (
                limited(|c| c.per_address = 1),
                "limits.sessions_per_address",
                (other.0, one.1, other.2),
            ),
            (
                limited(|c| c.per_domain = 1),
                "limits.sessions_per_domain",
                ("carol@a.test", other.1, other.2),
            ),
            (
                limited(|c| c.per_server = 1),
                "limits.sessions_per_server",
                (other.0, other.1, one.2),
            ),
        ] {
            let counts = Arc::new(SessionCounts::default());
            let enter = |(account, client, server): (&str, &str, &str)| {
                let client = client.parse().unwrap();
                let session = NewSession {
                    account,
                    client,
                    server,
                };
                counts.enter(&session, config)
            };
            let first = enter(one).ok();
            assert!(first.is_some() && enter(same).err() == Some(name), "{name}");
            assert!(enter(other).is_ok(), "{name}");
            drop(first);
            assert!(enter(same).is_ok() && counts.here.lock().is_empty(), "{name}");
        }
    }

    #[test]
    fn sessions_of_other_nodes_count_until_they_end() {
        let counts = Arc::new(SessionCounts::default());
        let config = SessionsConfig {
            per_account: 2,
            per_domain: 3,
            ..SessionsConfig::default()
        };
        let client = "192.0.2.1".parse().unwrap();
        let enter = |account| {
            let server = "store1";
            counts.enter(
                &NewSession {
                    account,
                    client,
                    server,
                },
                config,
            )
        };
        let there = counts.keys_elsewhere("alice@a.test", "192.0.2.9".parse().unwrap(), "store2");
        counts.count_elsewhere(there, true);
        let here = enter("alice@a.test").ok();
        assert!(here.is_some());
        assert_eq!(enter("alice@a.test").err(), Some("limits.sessions_per_account"));
        let other = enter("bob@a.test").ok();
        assert!(other.is_some());
        assert_eq!(enter("carol@a.test").err(), Some("limits.sessions_per_domain"));
        counts.count_elsewhere(there, false);
        assert!(enter("alice@a.test").is_ok());
        counts.count_elsewhere(there, false);
        assert!(counts.elsewhere.lock().counts.is_empty());
    }

    #[test]
    fn without_limits_nothing_is_counted() {
        let counts = Arc::new(SessionCounts::default());
        let session = NewSession {
            account: "alice@a.test",
            client: "192.0.2.1".parse().unwrap(),
            server: "store1",
        };
        let places: Vec<_> = (0..100)
            .map(|_| counts.enter(&session, SessionsConfig::default()))
            .collect();
        assert!(places.iter().all(Result::is_ok) && counts.here.lock().is_empty());
    }
}
