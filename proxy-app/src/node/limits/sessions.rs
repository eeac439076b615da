//! How many mail sessions may be open at once, of an account, an address, a domain, a server.
//!
//! Only what has a limit is counted: a limit that a reload sets counts the sessions that begin from then on.

use std::collections::HashMap;
use std::sync::Arc;

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

/// The sessions that are counted.
#[derive(Default)]
pub(super) struct SessionCounts(Mutex<HashMap<SessionKey, usize>>);

impl SessionCounts {
    /// Counts one more session wherever there is a limit, or nowhere.
    pub(super) fn enter(
        self: &Arc<Self>,
        session: &NewSession<'_>,
        config: SessionsConfig,
    ) -> Result<SessionPlace, &'static str> {
        let keys = keys(session, config);
        let mut counts = self.0.lock();
        for (key, limit, name) in &keys {
            if counts.get(key).is_some_and(|count| count >= limit) {
                return Err(name);
            }
        }
        let keys: Vec<SessionKey> = keys.into_iter().map(|(key, ..)| key).collect();
        keys.iter().for_each(|key| *counts.entry(key.clone()).or_default() += 1);
        Ok(SessionPlace {
            counts: self.clone(),
            keys,
        })
    }
}

/// What a session counts for, the limit of each, and its name in the node file.
fn keys(session: &NewSession<'_>, config: SessionsConfig) -> Vec<(SessionKey, usize, &'static str)> {
    let (account, origin) = (session.account.to_owned(), Origin::of(session.client));
    let domain = domain_of(session.account).unwrap_or_default().to_owned();
    let all = [
        (
            SessionKey::Account(account.clone()),
            config.per_account,
            "limits.sessions_per_account",
        ),
        (
            SessionKey::AccountAndAddress(account, origin),
            config.per_account_and_address,
            "limits.sessions_per_account_and_address",
        ),
        (
            SessionKey::Address(origin),
            config.per_address,
            "limits.sessions_per_address",
        ),
        (
            SessionKey::Domain(domain),
            config.per_domain,
            "limits.sessions_per_domain",
        ),
        (
            SessionKey::Server(session.server.to_owned()),
            config.per_server,
            "limits.sessions_per_server",
        ),
    ];
    all.into_iter().filter(|(_, limit, _)| *limit != 0).collect()
}

/// A session that is counted until this is dropped.
pub(super) struct SessionPlace {
    counts: Arc<SessionCounts>,
    keys: Vec<SessionKey>,
}

impl Drop for SessionPlace {
    fn drop(&mut self) {
        let mut counts = self.counts.0.lock();
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
            assert!(enter(same).is_ok() && counts.0.lock().is_empty(), "{name}");
        }
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
        assert!(places.iter().all(Result::is_ok) && counts.0.lock().is_empty());
    }
}
