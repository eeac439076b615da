//! What mailbox servers have said of themselves before a login, so that the next one takes fewer flights: who the client
//! is, and its login, go out together.
//!
//! It counts as long as the server greets with the same words. A server that has answered such a login oddly is known
//! for nothing from then on, and gets one command after the other.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use route_cache::HostPort;

use crate::proto::Protocol;

/// Servers that are remembered. Where there are more, all are heard again.
const SERVERS: usize = 1024;
/// Octets of a greeting or a list.
const TEXT: usize = 4096;

/// A mailbox server in one kind of connection: what it says may depend on how it is spoken to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ServerDoor {
    pub(crate) protocol: Protocol,
    pub(crate) address: HostPort,
    /// TLS begins with STARTTLS or STLS.
    pub(crate) starttls: bool,
}

/// What one server has said at earlier logins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownServer {
    /// The words of its greeting.
    pub greeting: String,
    /// Its capabilities, as its protocol lists them; empty: it is known for nothing.
    pub capabilities: String,
    /// Whether it has taken a login that was said at once: when it is silent, it thinks.
    pub keeps_up: bool,
}

impl KnownServer {
    /// Whether a dialogue brings nothing new. A server that is known for nothing stays so while it greets alike.
    fn covers(&self, heard: &Said, list: &str) -> bool {
        self.greeting == heard.greeting && (self.capabilities.is_empty() || self.capabilities == list)
    }
}

/// What a server says of itself in one dialogue.
#[derive(Debug, Default)]
pub struct Said {
    /// The words of its greeting, without what is another one each time.
    pub greeting: String,
    /// Its capabilities, as in [`KnownServer`]; empty: it has no list. `None`: it was not asked for them.
    pub list: Option<String>,
    /// Whether the login went out together with what stands before it because of what was known, so that an odd answer
    /// may come from that.
    pub hurried: bool,
}

/// The servers that have been heard.
#[derive(Debug, Default)]
pub struct KnownServers(Mutex<HashMap<ServerDoor, Arc<KnownServer>>>);

impl KnownServers {
    /// What is known of a server.
    pub(crate) fn of(&self, door: &ServerDoor) -> Option<Arc<KnownServer>> {
        self.0.lock().get(door).cloned()
    }

    /// Notes what a server has said in a dialogue at whose beginning this was known of it, and whether it has taken the
    /// login. Where that is nothing new, no lock is taken.
    pub(crate) fn note(&self, door: &ServerDoor, known: Option<&KnownServer>, heard: &Said, taken: bool) {
        if let Some(list) = &heard.list
            && heard.greeting.len().max(list.len()) <= TEXT
            && !known.is_some_and(|known| known.covers(heard, list))
        {
            self.learn(door, heard, list);
        }
        if taken && heard.hurried && !known.is_some_and(|known| known.keeps_up) {
            self.change(door, |known| known.keeps_up = true);
        }
    }

    fn learn(&self, door: &ServerDoor, heard: &Said, list: &str) {
        let mut servers = self.0.lock();
        if servers.get(door).is_some_and(|known| known.covers(heard, list)) {
            return;
        }
        if servers.len() >= SERVERS && !servers.contains_key(door) {
            servers.clear();
        }
        let learned = KnownServer {
            greeting: heard.greeting.clone(),
            capabilities: list.to_owned(),
            keeps_up: false,
        };
        servers.insert(door.clone(), Arc::new(learned));
    }

    /// Believes nothing more of what the server lists.
    pub(crate) fn distrust(&self, door: &ServerDoor) {
        self.change(door, |known| {
            known.capabilities.clear();
            known.keeps_up = false;
        });
    }

    fn change(&self, door: &ServerDoor, change: impl FnOnce(&mut KnownServer)) {
        if let Some(known) = self.0.lock().get_mut(door) {
            change(Arc::make_mut(known));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door(host: &str) -> ServerDoor {
        ServerDoor {
            protocol: Protocol::Pop3,
            address: HostPort::new(host, 110),
            starttls: false,
        }
    }

    fn heard(greeting: &str, list: &str) -> Said {
        Said {
            greeting: greeting.to_owned(),
            list: Some(list.to_owned()),
            hurried: false,
        }
    }

    fn list(known: &KnownServers, host: &str) -> Option<String> {
        Some(known.of(&door(host))?.capabilities.clone())
    }

    #[test]
    fn servers_and_texts_are_bounded() {
        let known = KnownServers::default();
        let note = |host: &str, greeting: &str, list: &str| {
            let before = known.of(&door(host));
            known.note(&door(host), before.as_deref(), &heard(greeting, list), true);
        };
        note("one", "+OK", &"X".repeat(TEXT + 1));
        assert_eq!(list(&known, "one"), None);
        for n in 0..SERVERS {
            note(&format!("store{n}"), "+OK", "PIPELINING");
        }
        note("store0", "+OK", "TOP");
        assert_eq!(known.0.lock().len(), SERVERS);
        note("one", "+OK", "UIDL");
        assert_eq!(known.0.lock().len(), 1);
        assert_eq!(list(&known, "one").as_deref(), Some("UIDL"));
        known.distrust(&door("one"));
        note("one", "+OK", "PIPELINING");
        assert_eq!(list(&known, "one").as_deref(), Some(""));
        note("one", "+OK new", "PIPELINING");
        assert_eq!(list(&known, "one").as_deref(), Some("PIPELINING"));
    }

    /// A login that began when more was known says nothing against what another has found meanwhile.
    #[test]
    fn an_older_login_does_not_bring_trust_back() {
        let known = KnownServers::default();
        let first = heard("+OK", "PIPELINING");
        known.note(&door("one"), None, &first, true);
        known.distrust(&door("one"));
        known.note(&door("one"), None, &first, true);
        assert_eq!(list(&known, "one").as_deref(), Some(""));
    }

    #[test]
    fn a_server_keeps_up_that_has_taken_a_hurried_login() {
        let known = KnownServers::default();
        let said = heard("+OK", "PIPELINING");
        known.note(&door("one"), None, &said, true);
        let before = known.of(&door("one")).expect("it was noted");
        assert!(!before.keeps_up);
        let hurried = |hurried| Said {
            hurried,
            list: None,
            ..heard("+OK", "")
        };
        known.note(&door("one"), Some(&before), &hurried(false), true);
        known.note(&door("one"), Some(&before), &hurried(true), false);
        assert!(!known.of(&door("one")).expect("it was noted").keeps_up);
        known.note(&door("one"), Some(&before), &hurried(true), true);
        assert!(known.of(&door("one")).expect("it was noted").keeps_up);
    }
}
