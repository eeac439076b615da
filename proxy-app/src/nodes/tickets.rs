//! The keys of TLS session tickets that nodes share: one node makes a key, all others take it.
//!
//! The key of the next period is made while the previous one is in use, so that all nodes go over to it without the
//! engine. What stands there opens no ticket by itself: the private key of the certificate is needed, too
//! ([`crate::tls::ticket_keys`]).

use std::sync::atomic::Ordering;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mail_directory::Secret;
use serde::{Deserialize, Serialize};

use super::Nodes;
use super::engine::{Engine, Failure};
use super::wire::{self, Bounded};
use crate::tls::ticket_keys::{SharedKey, octets};

/// How many periods the keys outlive the last node.
const PERIODS_KEPT: u64 = 3;

/// A key, as it stands in the engine.
#[derive(Serialize, Deserialize)]
struct StoredKey {
    v: u32,
    key: String,
}

impl Bounded for StoredKey {
    fn names(&self) -> Vec<&str> {
        vec![&self.key]
    }
}

impl StoredKey {
    fn of(key: &SharedKey) -> (String, Secret<Vec<u8>>) {
        let stored = Self {
            v: wire::VERSION,
            key: STANDARD.encode(key.1.expose()),
        };
        (key.0.to_string(), Secret::new(wire::text(&stored)))
    }

    /// `None`: it is not what it should be.
    fn read(field: &[u8], text: &[u8]) -> Option<SharedKey> {
        let period = std::str::from_utf8(field).ok()?.parse().ok()?;
        let stored: Self = wire::read(text, wire::FIELD_MAX)?;
        Some((period, octets(&Secret::new(stored.key))?))
    }
}

impl Nodes {
    /// Makes keys that no node has made yet, if it is not known that all have the same.
    pub(super) async fn share_new_tickets(&self, engine: &Engine) -> Result<(), Failure> {
        let now = self.time();
        match self.tickets.lack_shared(now) && !self.tickets_denied.load(Ordering::Relaxed) {
            true => self.share_tickets(engine).await,
            false => Ok(()),
        }
    }

    /// The same, and looks whether the engine still has those that this node knows.
    pub(super) async fn share_tickets(&self, engine: &Engine) -> Result<(), Failure> {
        let now = self.time();
        let Some((life, proposed)) = self.tickets.proposed(now) else {
            return Ok(());
        };
        let name = self.names().tickets(life);
        let mut commands = redis::pipe();
        for (field, text) in proposed.iter().map(StoredKey::of) {
            commands.cmd("HSETNX").arg(&name).arg(field).arg(text.expose());
        }
        let kept = PERIODS_KEPT.saturating_mul(life).div_ceil(1000);
        commands.cmd("EXPIRE").arg(&name).arg(kept);
        commands.cmd("HGETALL").arg(&name);
        let answer = match engine.try_last(&commands).await? {
            Ok(answer) => answer,
            Err(refusal) => {
                self.tickets_refused(&refusal);
                return Ok(());
            }
        };
        self.tickets_denied.store(false, Ordering::Relaxed);
        let old = self.take_tickets(wire::pairs(answer), now / life);
        if old.is_empty() {
            return Ok(());
        }
        let mut commands = redis::pipe();
        commands.cmd("HDEL").arg(&name).arg(old);
        let _old_ones_may_stay = engine.try_run(&commands).await?;
        Ok(())
    }

    /// Returns the fields of periods that are over.
    fn take_tickets(&self, fields: wire::Fields, period: u64) -> Vec<Vec<u8>> {
        let (mut keys, mut old) = (Vec::new(), Vec::new());
        let (previous, next) = (period.saturating_sub(1), period.saturating_add(1));
        for (field, text) in fields {
            match StoredKey::read(&field, &text) {
                Some((at, _)) if at < previous => old.push(field),
                Some(key) if key.0 <= next => keys.push(key),
                // Not made so early by a node of this time: it is in nobody's way.
                Some(_) => {}
                None if wire::is_newer(&text, wire::FIELD_MAX) => {}
                None => {
                    self.unfit.fetch_add(1, Ordering::Relaxed);
                    old.push(field);
                }
            }
        }
        self.tickets.take_shared(self.time(), keys);
        old
    }

    /// An engine that refuses the commands does all others. Its access control list may be of an earlier version.
    fn tickets_refused(&self, refusal: &Failure) {
        if !self.tickets_denied.swap(true, Ordering::Relaxed) {
            log::warn!("shared_state: keys of TLS session tickets are not shared, the engine refuses it: {refusal}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_written() {
        let (field, text) = StoredKey::of(&(17, Secret::new([9; 32])));
        let (period, key) = StoredKey::read(field.as_bytes(), text.expose()).unwrap();
        assert_eq!((period, key.expose()), (17, &[9; 32]));
        let good = String::from_utf8(text.expose().clone()).unwrap();
        for (field, text) in [
            ("x", good.clone()),
            ("-1", good.clone()),
            ("17", good.replace("\"v\":1", "\"v\":2")),
            ("17", good.replace("CQkJ", "CQk")),
            ("17", good.replace("CQkJCQkJ", "")),
            ("17", String::new()),
        ] {
            assert!(
                StoredKey::read(field.as_bytes(), text.as_bytes()).is_none(),
                "{field} {text}"
            );
        }
    }
}
