//! The mail sessions of this node, as the other nodes are told of them. Pure.
//!
//! A session is noted when it is let in and when it ends, by the task that serves it, in memory; `link` carries it on.
//! While this node is alone only the sessions that live are kept.

use std::collections::HashMap;
use std::net::IpAddr;

use mail_proxy::Protocol;
use serde::{Deserialize, Serialize};

use super::wire::{self, Bounded};

/// Sessions in one change, so that it is a message of some hundred kilobytes at most.
const AT_ONCE: usize = 500;

/// A mail session, as far as other nodes count it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SessionFacts {
    /// Canonical name of the account.
    pub account: String,
    /// Address of the client.
    pub client: IpAddr,
    /// Name of the mailbox server.
    pub server: String,
    /// What it speaks.
    pub protocol: Protocol,
    /// Since when, in milliseconds since 1970.
    pub since: u64,
}

/// What has changed among the sessions of a node: one step from one number to the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Change {
    v: u32,
    /// Whose sessions.
    pub(super) from: String,
    /// The number of this change. Where one is missing, all are read again.
    pub(super) number: u64,
    /// Those that have begun.
    pub(super) begun: Vec<(u64, SessionFacts)>,
    /// Those that have ended.
    pub(super) ended: Vec<u64>,
}

impl Bounded for Change {
    fn names(&self) -> Vec<&str> {
        let facts = self.begun.iter().flat_map(|(_, facts)| facts.names());
        std::iter::once(self.from.as_str()).chain(facts).collect()
    }
}

impl Bounded for SessionFacts {
    fn names(&self) -> Vec<&str> {
        vec![&self.account, &self.server]
    }
}

/// The sessions of this node.
#[derive(Debug, Default)]
pub(super) struct OwnSessions {
    all: HashMap<u64, SessionFacts>,
    next: u64,
    number: u64,
    /// What the others have not been told; `None` while this node is alone.
    untold: Option<Untold>,
}

#[derive(Debug, Default)]
struct Untold {
    begun: Vec<u64>,
    ended: Vec<u64>,
}

impl OwnSessions {
    /// One more; returns its number.
    pub(super) fn begin(&mut self, facts: SessionFacts) -> u64 {
        self.next += 1;
        self.all.insert(self.next, facts);
        if let Some(untold) = &mut self.untold {
            untold.begun.push(self.next);
        }
        self.next
    }

    /// One less.
    pub(super) fn end(&mut self, session: u64) {
        self.all.remove(&session);
        if let Some(untold) = &mut self.untold {
            untold.ended.push(session);
        }
    }

    /// Whether there is something to tell.
    pub(super) fn is_untold(&self) -> bool {
        let is_some = |untold: &Untold| !untold.begun.is_empty() || !untold.ended.is_empty();
        self.untold.as_ref().is_some_and(is_some)
    }

    /// From here on changes are told. Returns all that live, in portions as they are written; the number that they
    /// stand for is [`OwnSessions::number`].
    pub(super) fn tell_all(&mut self) -> Vec<Vec<(String, Vec<u8>)>> {
        self.untold = Some(Untold::default());
        self.number += 1;
        let fields: Vec<_> = self.all.iter().map(|(id, facts)| field(*id, facts)).collect();
        fields.chunks(AT_ONCE).map(<[_]>::to_vec).collect()
    }

    /// Nobody is told any more.
    pub(super) fn go_alone(&mut self) {
        self.untold = None;
    }

    /// The number of the latest change.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The next change to tell; at most some hundred sessions.
    pub(super) fn take_change(&mut self, from: &str) -> Option<Change> {
        if !self.is_untold() {
            return None;
        }
        let untold = self.untold.as_mut()?;
        let some = |all: &mut Vec<u64>| -> Vec<u64> { all.drain(..all.len().min(AT_ONCE)).collect() };
        let begun = some(&mut untold.begun);
        // What has begun is told before it ends.
        let ended = if untold.begun.is_empty() {
            some(&mut untold.ended)
        } else {
            Vec::new()
        };
        self.number += 1;
        let live = |id: u64| Some((id, self.all.get(&id)?.clone()));
        Some(Change {
            v: wire::VERSION,
            from: from.to_owned(),
            number: self.number,
            begun: begun.into_iter().filter_map(live).collect(),
            ended,
        })
    }
}

impl Change {
    /// The fields that it writes.
    pub(super) fn fields(&self) -> Vec<(String, Vec<u8>)> {
        self.begun.iter().map(|(id, facts)| field(*id, facts)).collect()
    }
}

fn field(id: u64, facts: &SessionFacts) -> (String, Vec<u8>) {
    (id.to_string(), wire::text(&(wire::VERSION, facts)))
}

/// A session as it is written; `None` if it is not what it should be.
pub(super) fn read_field(id: &[u8], text: &[u8]) -> Option<(u64, SessionFacts)> {
    if text.len() > wire::FIELD_MAX {
        return None;
    }
    let id = std::str::from_utf8(id).ok()?.parse().ok()?;
    let (version, facts): (u32, SessionFacts) = serde_json::from_slice(text).ok()?;
    (version == wire::VERSION && wire::fit(&facts)).then_some((id, facts))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(account: &str) -> SessionFacts {
        SessionFacts {
            account: account.to_owned(),
            client: "192.0.2.1".parse().unwrap(),
            server: "store1".to_owned(),
            protocol: Protocol::Imap,
            since: 5,
        }
    }

    #[test]
    fn changes_lead_from_one_state_to_the_next() {
        let mut own = OwnSessions::default();
        let first = own.begin(facts("a@x"));
        assert!(!own.is_untold(), "nobody listens");
        let told: Vec<_> = own.tell_all().concat();
        assert_eq!(told.len(), 1);
        assert_eq!(
            read_field(told[0].0.as_bytes(), &told[0].1),
            Some((first, facts("a@x")))
        );
        let short = own.begin(facts("b@x"));
        own.end(short);
        own.end(first);
        let last = own.begin(facts("c@x"));
        let change = own.take_change("r").unwrap();
        assert_eq!((change.number, own.number()), (2, 2));
        assert_eq!(change.begun, [(last, facts("c@x"))]);
        assert_eq!(change.ended, [short, first]);
        assert!(own.take_change("r").is_none());
        own.go_alone();
        own.end(last);
        assert!(!own.is_untold() && own.tell_all().is_empty());
    }

    #[test]
    fn a_change_is_bounded_and_its_ends_come_last() {
        let mut own = OwnSessions::default();
        own.tell_all();
        let ids: Vec<u64> = (0..AT_ONCE + 1).map(|i| own.begin(facts(&format!("{i}@x")))).collect();
        own.end(ids[AT_ONCE]);
        let change = own.take_change("r").unwrap();
        assert_eq!((change.begun.len(), change.ended.len()), (AT_ONCE, 0));
        let change = own.take_change("r").unwrap();
        assert_eq!((change.begun.len(), change.ended.len()), (0, 1));
        assert!(wire::read::<Change>(&wire::text(&change), wire::MESSAGE_MAX).is_some());
    }

    #[test]
    fn what_is_not_a_session_is_not_read() {
        let good = field(7, &facts("a@x"));
        let text = String::from_utf8(good.1).unwrap();
        assert!(read_field(b"7", text.as_bytes()).is_some());
        for (id, text) in [
            ("x", text.clone()),
            ("7", text.replace("[1,", "[2,")),
            ("7", text.replace("192.0.2.1", "nowhere")),
            ("7", text.replace("a@x", &"a".repeat(600))),
            ("7", "[".repeat(3000)),
        ] {
            assert_eq!(read_field(id.as_bytes(), text.as_bytes()), None, "{id} {text:.80}");
        }
    }
}
