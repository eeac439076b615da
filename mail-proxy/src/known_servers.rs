//! What mailbox servers have said of themselves before a login, so that the next one takes fewer flights: who the client
//! is, and its login, go out together.
//!
//! It counts as long as the server greets with the same words. A server that has answered such a login oddly is known
//! for nothing from then on, and gets one command after the other.

use std::collections::HashMap;

use parking_lot::Mutex;

/// Servers that are remembered. Where there are more, all are heard again.
const SERVERS: usize = 1024;
/// Octets of a greeting or a list.
const TEXT: usize = 4096;

/// What one server has said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownServer {
    /// The words of its greeting.
    pub greeting: String,
    /// Its capabilities, as its protocol lists them, with blanks between; empty: it is known for nothing.
    pub capabilities: String,
}

/// The servers that have been heard.
#[derive(Debug, Default)]
pub struct KnownServers(Mutex<HashMap<Box<str>, Known>>);

#[derive(Debug)]
struct Known {
    server: KnownServer,
    /// A login that was said at once has been taken.
    keeps_up: bool,
}

impl KnownServers {
    /// What is known of the server at this address, in this kind of connection.
    pub(crate) fn of(&self, address: &str) -> Option<KnownServer> {
        self.0.lock().get(address).map(|known| known.server.clone())
    }

    /// Notes what it has said now. One that is known for nothing stays so while it greets alike.
    pub(crate) fn note(&self, address: &str, heard: KnownServer) {
        if heard.greeting.len() > TEXT || heard.capabilities.len() > TEXT {
            return;
        }
        let mut servers = self.0.lock();
        let known = servers.get(address).map(|known| &known.server);
        let is_old = |known: &KnownServer| known.capabilities.is_empty() && known.greeting == heard.greeting;
        if known.is_some_and(|known| *known == heard || is_old(known)) {
            return;
        }
        if servers.len() >= SERVERS && !servers.contains_key(address) {
            servers.clear();
        }
        let keeps_up = false;
        servers.insert(
            address.into(),
            Known {
                server: heard,
                keeps_up,
            },
        );
    }

    /// Whether it is known to take logins that are said at once: when it is silent, it thinks.
    pub(crate) fn keeps_up(&self, address: &str) -> bool {
        self.0.lock().get(address).is_some_and(|known| known.keeps_up)
    }

    /// Notes that it has taken one.
    pub(crate) fn kept_up(&self, address: &str) {
        if let Some(known) = self.0.lock().get_mut(address) {
            known.keeps_up = true;
        }
    }

    /// Believes nothing more of what the server lists.
    pub(crate) fn distrust(&self, address: &str) {
        if let Some(known) = self.0.lock().get_mut(address) {
            known.server.capabilities.clear();
            known.keeps_up = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_and_texts_are_bounded() {
        let heard = |list: &str| KnownServer {
            greeting: "+OK".to_owned(),
            capabilities: list.to_owned(),
        };
        let known = KnownServers::default();
        known.note("one:110", heard(&"X".repeat(TEXT + 1)));
        assert_eq!(known.of("one:110"), None);
        for n in 0..SERVERS {
            known.note(&format!("store{n}:110"), heard("PIPELINING"));
        }
        known.note("store0:110", heard("TOP"));
        assert_eq!(known.0.lock().len(), SERVERS);
        known.note("one:110", heard("UIDL"));
        assert_eq!(known.0.lock().len(), 1);
        assert_eq!(known.of("one:110"), Some(heard("UIDL")));
        known.distrust("one:110");
        known.note("one:110", heard("PIPELINING"));
        assert_eq!(known.of("one:110"), Some(heard("")));
        let new = KnownServer {
            greeting: "+OK new".to_owned(),
            ..heard("PIPELINING")
        };
        known.note("one:110", new.clone());
        assert_eq!(known.of("one:110"), Some(new));
    }
}
