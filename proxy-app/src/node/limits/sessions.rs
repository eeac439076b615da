//! How many mail sessions may be open at once, of an account, an address, a domain, a server; all together, and over
//! each protocol.
//!
//! The numbers of the node file are replaced by those of the directory, where there are any
//! (`portico…MaxSessions`). Only what has a limit is counted: a limit that a reload sets counts the sessions that begin from then on. Those of
//! other nodes are all counted, as far as they are known.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, OnceLock};

use mail_directory::attributes::{self as a, Attribute};
use mail_directory::domain_of;
use mail_proxy::{NewSession, Protocol};
use parking_lot::Mutex;
use route_cache::MaxSessions;

use super::Origin;

/// The part of `limits` about mail sessions; 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SessionsConfig {
    /// Sessions of one account.
    pub per_account: SessionLimit,
    /// Sessions of one account from one address.
    pub per_account_and_address: SessionLimit,
    /// Sessions from one address.
    pub per_address: SessionLimit,
    /// Sessions of the accounts of one domain.
    pub per_domain: SessionLimit,
    /// Sessions at one mailbox server.
    pub per_server: SessionLimit,
}

/// How many there may be; 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SessionLimit {
    /// Over all protocols together.
    pub all: usize,
    /// Over IMAP.
    pub imap: usize,
    /// Over POP3.
    pub pop3: usize,
}

/// What sessions have in common that count together, and over which protocol; `None`: over all.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct SessionKey {
    in_common: InCommon,
    protocol: Option<Protocol>,
}

/// What sessions have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum InCommon {
    Account(String),
    AccountAndAddress(String, Origin),
    Address(Origin),
    Domain(String),
    Server(String),
}

/// What a session of another node counts for, as keyed hashes.
pub(crate) type SessionKeys = [u64; 10];

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
    pub(super) fn keys_elsewhere(&self, session: &NewSession<'_>) -> SessionKeys {
        let hasher = &self.elsewhere.lock().hasher;
        let in_common = in_common(session);
        std::array::from_fn(|at| {
            let protocol = (at >= in_common.len()).then_some(session.protocol);
            let in_common = in_common[at % in_common.len()].clone();
            hasher.hash_one(SessionKey { in_common, protocol })
        })
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

/// What a session counts for, in the order of [`SessionsConfig::limits`].
fn in_common(session: &NewSession<'_>) -> [InCommon; 5] {
    let (account, origin) = (session.account.to_owned(), Origin::of(session.client));
    let domain = domain_of(session.account).unwrap_or_default().to_owned();
    [
        InCommon::Account(account.clone()),
        InCommon::AccountAndAddress(account, origin),
        InCommon::Address(origin),
        InCommon::Domain(domain),
        InCommon::Server(session.server.to_owned()),
    ]
}

impl SessionsConfig {
    /// Each limit with the names that it has in the node file: over all protocols, over IMAP, over POP3.
    fn limits(&self) -> [(SessionLimit, [&'static str; 3]); 5] {
        macro_rules! names {
            ($key:literal) => {
                [
                    concat!("limits.", $key),
                    concat!("limits.", $key, ".imap"),
                    concat!("limits.", $key, ".pop3"),
                ]
            };
        }
        [
            (self.per_account, names!("sessions_per_account")),
            (self.per_account_and_address, names!("sessions_per_account_and_address")),
            (self.per_address, names!("sessions_per_address")),
            (self.per_domain, names!("sessions_per_domain")),
            (self.per_server, names!("sessions_per_server")),
        ]
    }
}

/// What the directory says in the place of `all`, with the name that it has there, in the order of
/// [`SessionsConfig::limits`].
fn in_directory(max: MaxSessions) -> [Option<(usize, &'static str)>; 5] {
    let named = |limit: Option<u32>, attribute: &Attribute| Some((limit? as usize, attribute.name));
    [
        named(max.account, &a::PORTICO_ACCOUNT_MAX_SESSIONS),
        None,
        None,
        named(max.domain, &a::PORTICO_DOMAIN_MAX_SESSIONS),
        named(max.server, &a::PORTICO_SERVER_MAX_SESSIONS),
    ]
}

impl SessionLimit {
    /// What applies to a session over this protocol: the limit, and over which protocols it counts.
    fn of(self, protocol: Protocol) -> [(usize, Option<Protocol>); 3] {
        let only = |limit, of| (if protocol == of { limit } else { 0 }, Some(of));
        [
            (self.all, None),
            only(self.imap, Protocol::Imap),
            only(self.pop3, Protocol::Pop3),
        ]
    }
}

/// What a session counts for where there is a limit, the limit of each, and its name.
fn keys(session: &NewSession<'_>, config: SessionsConfig) -> Vec<(SessionKey, usize, &'static str)> {
    if is_unlimited(session, config) {
        return Vec::new();
    }
    let mut keys = Vec::new();
    let limits = config.limits().into_iter().zip(in_directory(session.max));
    for (in_common, ((mut limit, mut names), there)) in in_common(session).into_iter().zip(limits) {
        if let Some((number, name)) = there {
            (limit.all, names[0]) = (number, name);
        }
        let applies = limit.of(session.protocol).into_iter().zip(names);
        let applies = applies.filter(|((limit, _), _)| *limit != 0);
        keys.extend(applies.map(|((limit, protocol), name)| {
            let in_common = in_common.clone();
            (SessionKey { in_common, protocol }, limit, name)
        }));
    }
    keys
}

/// Whether neither the node file nor the directory limits anything that a session counts for.
pub(super) fn is_unlimited(session: &NewSession<'_>, config: SessionsConfig) -> bool {
    config == SessionsConfig::default() && session.max == MaxSessions::default()
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

    fn session<'a>(account: &'a str, client: &str, server: &'a str, protocol: Protocol) -> NewSession<'a> {
        NewSession {
            account,
            client: client.parse().unwrap(),
            server,
            protocol,
            max: MaxSessions::default(),
        }
    }

    fn limited(set: fn(&mut SessionsConfig)) -> SessionsConfig {
        let mut config = SessionsConfig::default();
        set(&mut config);
        config
    }

    #[test]
    fn every_limit_counts_what_it_names() {
        let one = session("alice@a.test", "192.0.2.1", "store1", Protocol::Imap);
        let other = session("bob@b.test", "192.0.2.2", "store2", Protocol::Pop3);
        let alice = NewSession {
            account: one.account,
            ..other
        };
        let at_home = NewSession {
            client: one.client,
            ..other
        };
        let at_the_server = NewSession {
            server: one.server,
            ..other
        };
        let neighbour = NewSession {
            account: "carol@a.test",
            ..other
        };
        for (config, name, same) in [
            (limited(|c| c.per_account.all = 1), "limits.sessions_per_account", alice),
            (
                limited(|c| c.per_account_and_address.all = 1),
                "limits.sessions_per_account_and_address",
                NewSession {
                    server: other.server,
                    ..one
                },
            ),
            (
                limited(|c| c.per_address.all = 1),
                "limits.sessions_per_address",
                at_home,
            ),
            (
                limited(|c| c.per_domain.all = 1),
                "limits.sessions_per_domain",
                neighbour,
            ),
            (
                limited(|c| c.per_server.all = 1),
                "limits.sessions_per_server",
                at_the_server,
            ),
        ] {
            let counts = Arc::new(SessionCounts::default());
            let first = counts.enter(&one, config).ok();
            assert!(
                first.is_some() && counts.enter(&same, config).err() == Some(name),
                "{name}"
            );
            assert!(counts.enter(&other, config).is_ok(), "{name}");
            drop(first);
            assert!(
                counts.enter(&same, config).is_ok() && counts.here.lock().is_empty(),
                "{name}"
            );
        }
    }

    #[test]
    fn the_directory_replaces_numbers_of_the_node_file() {
        let counts = Arc::new(SessionCounts::default());
        let config = limited(|c| {
            c.per_account = SessionLimit {
                all: 2,
                imap: 3,
                pop3: 0,
            };
            c.per_domain.all = 1;
        });
        let mut session = session("alice@a.test", "192.0.2.1", "store1", Protocol::Imap);
        session.max = MaxSessions {
            account: Some(4),
            domain: Some(0),
            server: Some(5),
        };
        let mut places = Vec::new();
        let mut enter =
            |session: &NewSession<'_>, config| counts.enter(session, config).map(|place| places.push(place));
        for _ in 0..3 {
            assert_eq!(enter(&session, config), Ok(()));
        }
        assert_eq!(enter(&session, config), Err("limits.sessions_per_account.imap"));
        session.protocol = Protocol::Pop3;
        assert_eq!(enter(&session, config), Ok(()));
        assert_eq!(enter(&session, config), Err("porticoAccountMaxSessions"));
        session.account = "bob@a.test";
        assert_eq!(enter(&session, SessionsConfig::default()), Ok(()));
        assert_eq!(
            enter(&session, SessionsConfig::default()),
            Err("porticoServerMaxSessions")
        );
    }

    #[test]
    fn protocols_count_apart_and_together() {
        let counts = Arc::new(SessionCounts::default());
        let config = limited(|c| {
            c.per_account = SessionLimit {
                all: 3,
                imap: 2,
                pop3: 2,
            };
        });
        let of = |protocol| session("alice@a.test", "192.0.2.1", "store1", protocol);
        let enter = |protocol| counts.enter(&of(protocol), config);
        let imap = [enter(Protocol::Imap), enter(Protocol::Imap)];
        assert!(imap.iter().all(Result::is_ok));
        assert_eq!(enter(Protocol::Imap).err(), Some("limits.sessions_per_account.imap"));
        let pop3 = enter(Protocol::Pop3);
        assert!(pop3.is_ok());
        assert_eq!(enter(Protocol::Pop3).err(), Some("limits.sessions_per_account"));
        drop(imap);
        let there = counts.keys_elsewhere(&of(Protocol::Pop3));
        counts.count_elsewhere(there, true);
        assert_eq!(enter(Protocol::Pop3).err(), Some("limits.sessions_per_account.pop3"));
        assert!(enter(Protocol::Imap).is_ok());
    }

    #[test]
    fn sessions_of_other_nodes_count_until_they_end() {
        let counts = Arc::new(SessionCounts::default());
        let config = limited(|c| {
            c.per_account.all = 2;
            c.per_domain.all = 3;
        });
        let enter = |account| counts.enter(&session(account, "192.0.2.1", "store1", Protocol::Imap), config);
        let there = counts.keys_elsewhere(&session("alice@a.test", "192.0.2.9", "store2", Protocol::Pop3));
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
        let session = session("alice@a.test", "192.0.2.1", "store1", Protocol::Imap);
        let places: Vec<_> = (0..100)
            .map(|_| counts.enter(&session, SessionsConfig::default()))
            .collect();
        assert!(places.iter().all(Result::is_ok) && counts.here.lock().is_empty());
    }
}
