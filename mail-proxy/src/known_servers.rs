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
pub struct KnownServers(Mutex<HashMap<Box<str>, KnownServer>>);

impl KnownServers {
    /// What is known of the server at this address, in this kind of connection.
    pub(crate) fn of(&self, address: &str) -> Option<KnownServer> {
        self.0.lock().get(address).cloned()
    }

    /// Notes what it has said now. One that is known for nothing stays so while it greets alike.
    pub(crate) fn note(&self, address: &str, heard: KnownServer) {
        if heard.greeting.len() > TEXT || heard.capabilities.len() > TEXT {
            return;
        }
        let mut servers = self.0.lock();
        let known = servers.get(address);
        if known.is_some_and(|known| known.capabilities.is_empty() && known.greeting == heard.greeting) {
            return;
        }
        if servers.len() >= SERVERS && !servers.contains_key(address) {
            servers.clear();
        }
        servers.insert(address.into(), heard);
    }

    /// Believes nothing more of what the server lists.
    pub(crate) fn distrust(&self, address: &str) {
        if let Some(known) = self.0.lock().get_mut(address) {
            known.capabilities.clear();
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
