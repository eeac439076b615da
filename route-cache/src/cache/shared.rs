//! The cache that nodes share: the names of entries in memcached, and what of them is believed (MAIL §2, HTTP §3.4).
//!
//! memcached has no password: every client that reaches it can write into it. So nothing is taken from it but the
//! choice between the mailbox servers of the directory: an address and port that one of them has for the very
//! protocol. Ports and TLS come from the directory; names of accounts are never taken from it. Nothing here fails:
//! what cannot be read counts as absent.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mail_directory::System;
use tokio::time::{Instant, timeout};

use crate::addresses::AddressBook;
use crate::key::Key;
use crate::memcached::{self, Memcached};
use crate::percent::escape;
use crate::placement::Placement;
use crate::protocol::Protocol;
use crate::route::{Lookup, Service, Subject};

/// Names in Zimbra's protocols, as they stand in keys.
const PROTOCOLS: [&str; 6] = ["http", "httpssl", "imap", "imapssl", "pop3", "pop3ssl"];

/// The second tier.
pub struct SharedCache {
    memcached: Memcached,
    book: Arc<AddressBook>,
    /// Life of what is written.
    ttl: Duration,
    /// What was forgotten. A delete may be lost when a server is down or frozen; by the time its entry would be
    /// read again here, it has expired there.
    suspects: moka::sync::Cache<Key, ()>,
    /// The same for everything, as milliseconds since `born`.
    quiet_until: AtomicU64,
    /// Names that were written here since then: what stands there now is new.
    renewed: moka::sync::Cache<String, ()>,
    born: Instant,
}

/// What was found.
pub(crate) enum SharedAnswer {
    /// The account is on this server.
    Here(Placement),
    /// Something stands there that is not believed.
    Unbelievable,
    /// Nothing.
    Nothing,
}

/// Most keys that are remembered as forgotten.
const MAX_SUSPECTS: u64 = 100_000;

impl SharedCache {
    /// A tier whose entries live for `ttl`.
    pub fn new(settings: &memcached::Settings, ttl: Duration, book: Arc<AddressBook>) -> Self {
        Self {
            memcached: Memcached::new(settings),
            book,
            ttl,
            suspects: remembered(ttl),
            renewed: remembered(ttl),
            quiet_until: AtomicU64::new(0),
            born: Instant::now(),
        }
    }

    /// The servers, and whether they answered when they were last needed.
    pub fn servers(&self) -> Vec<(String, bool)> {
        self.memcached.servers()
    }

    /// Where the account is, within the time limit of one request.
    pub(crate) async fn find(&self, key: &Key, protocol: Protocol, system: &Arc<System>) -> SharedAnswer {
        let Some(name) = route_name(protocol, key) else {
            return SharedAnswer::Nothing;
        };
        let is_old = self.is_quiet() && !self.renewed.contains_key(&name);
        if is_old || self.suspects.contains_key(key) {
            return SharedAnswer::Nothing;
        }
        let limit = self.memcached.timeout();
        let asked = timeout(limit, async {
            let page = self.book.page(system, limit).await.filter(|page| page.suffice())?;
            Some((page, self.memcached.get(&name).await?))
        });
        let Ok(Some((page, value))) = asked.await else {
            return SharedAnswer::Nothing;
        };
        let address = address(&value);
        let server = address.and_then(|address| page.server_at(address.ip(), address.port(), protocol));
        match server {
            Some(server) => SharedAnswer::Here(Placement::on(server, key.text().clone(), None, system)),
            // It may be the address of a server whose name could not be resolved.
            None if address.is_some() && !page.is_complete() => SharedAnswer::Nothing,
            None => SharedAnswer::Unbelievable,
        }
    }

    /// Removes the entry that was not believed.
    pub(crate) fn discard(&self, key: &Key, protocol: Protocol) {
        if let Some(name) = route_name(protocol, key) {
            self.memcached.delete(&name);
        }
    }

    /// Prepares for [`SharedCache::keep`], which cannot wait.
    pub(crate) async fn prepare(&self, system: &Arc<System>) {
        let _ = self.book.page(system, self.memcached.timeout()).await;
    }

    /// Writes what the source said. Only under the account's own name and its id: the reader of an entry cannot see
    /// whether its name is an alias, and would log in with it.
    pub(crate) fn keep(&self, key: &Key, placement: &Placement, protocol: Protocol, system: &Arc<System>) {
        let value = placement
            .server()
            .and_then(|server| self.value(server, protocol, system));
        let Some(value) = value else { return };
        let account = Key::Name(placement.account.clone());
        let id = Some(key).filter(|key| matches!(key, Key::Id(_)));
        let names = [Some(&account), id].into_iter().flatten();
        for name in names.filter_map(|key| route_name(protocol, key)) {
            self.memcached.set(&name, &value, self.ttl);
            if self.is_quiet() {
                self.renewed.insert(name, ());
            }
        }
    }

    fn value(&self, server: &str, protocol: Protocol, system: &Arc<System>) -> Option<String> {
        let address = self.book.current(system)?.address_of(system.server_key(server)?)?;
        let at = protocol.at(system.server(server)?, system).ok()?;
        Some(SocketAddr::new(address, at.port).to_string())
    }

    /// Removes what stands under these keys, for every protocol, and does not believe it for as long as it could
    /// have lived.
    pub(crate) fn forget(&self, keys: &[Key]) {
        for key in keys {
            self.suspects.insert(key.clone(), ());
            for name in all_names(key) {
                self.memcached.delete(&name);
            }
        }
    }

    /// Removes the alias under which an old proxy remembers what this client typed.
    pub(crate) fn forget_alias(&self, lookup: &Lookup) {
        if let Some(name) = alias_name(lookup) {
            self.memcached.delete(&name);
        }
    }

    /// Believes nothing that stands there now, until all of it has expired. Other nodes use it too, so it is not
    /// emptied.
    pub(crate) fn forget_all(&self) {
        self.renewed.invalidate_all();
        let until = self.born.elapsed() + self.ttl;
        self.quiet_until.store(millis(until), Ordering::Relaxed);
    }

    fn is_quiet(&self) -> bool {
        millis(self.born.elapsed()) < self.quiet_until.load(Ordering::Relaxed)
    }
}

/// Remembers keys for as long as an entry lives.
fn remembered<K: std::hash::Hash + Eq + Send + Sync + 'static>(ttl: Duration) -> moka::sync::Cache<K, ()> {
    moka::sync::Cache::builder()
        .max_capacity(MAX_SUSPECTS)
        .time_to_live(ttl)
        .build()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// `ip:port` or `[ip6]:port`, and nothing else.
fn address(value: &[u8]) -> Option<SocketAddr> {
    std::str::from_utf8(value)
        .ok()?
        .parse()
        .ok()
        .filter(|address: &SocketAddr| address.port() > 0)
}

/// The name of a route. Names without domain have none: Carbonio's proxy puts the client's address in the place of
/// the domain, so two users with one name behind one address would share an entry.
fn route_name(protocol: Protocol, key: &Key) -> Option<String> {
    let admin = if protocol.service() == Service::Admin {
        "admin=1;"
    } else {
        ""
    };
    match key {
        Key::Id(id) => Some(format!("route:proto={};{admin}id={id}", protocol.name())),
        // An administrator is asked for by name in the form of any other user, with another port: not shared.
        Key::Name(_) if protocol.service() == Service::Admin => None,
        Key::Name(name) => Some(format!(
            "route:proto={};user={}",
            protocol.name(),
            spelled(name, protocol)
        )),
        Key::Bare(_) => None,
    }
}

/// Mail programs' names are written with `%XX` (MAIL §2.2).
fn spelled(name: &str, protocol: Protocol) -> String {
    if protocol.is_mail() {
        escape(name)
    } else {
        name.to_owned()
    }
}

/// All names that a key has, for removing.
fn all_names(key: &Key) -> Vec<String> {
    match key {
        Key::Id(id) => {
            let web = ["http", "httpssl"].into_iter();
            web.flat_map(|proto| ["", "admin=1;", "zx=1;"].map(|extra| format!("route:proto={proto};{extra}id={id}")))
                .collect()
        }
        Key::Name(name) => {
            let spell = |proto: &str| {
                if proto.starts_with("http") {
                    name.to_string()
                } else {
                    escape(name)
                }
            };
            PROTOCOLS
                .iter()
                .map(|proto| format!("route:proto={proto};user={}", spell(proto)))
                .collect()
        }
        Key::Bare(_) => Vec::new(),
    }
}

/// The name of an alias: what a client typed, and where (MAIL §2.2, HTTP §3.4).
fn alias_name(lookup: &Lookup) -> Option<String> {
    let Subject::Login(login) = &lookup.subject else {
        return None;
    };
    match lookup.service {
        Service::Imap | Service::Pop3 => {
            let client: IpAddr = lookup.client.to_canonical();
            Some(format!("alias:user={};ip={client}", escape(login)))
        }
        Service::Web | Service::Admin => lookup
            .host
            .as_ref()
            .map(|host| format!("alias:user={login};vhost={host}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memcached::hashed;

    fn lookup(login: &str, service: Service, host: Option<&str>) -> Lookup {
        Lookup {
            subject: Subject::Login(login.to_owned()),
            service,
            client: "198.51.100.7".parse().unwrap(),
            local: "192.0.2.1".parse().unwrap(),
            host: host.map(str::to_owned),
        }
    }

    fn name(text: &str) -> Key {
        Key::Name(Arc::from(text))
    }

    const ID: &str = "11111111-2222-3333-4444-555555555555";

    #[test]
    fn names_are_those_of_http_appendix_a() {
        let web = Protocol::tls(Service::Web);
        let id = Key::Id(Arc::from(ID));
        let all = all_names(&id);
        let zx = all.iter().find(|name| name.contains("httpssl;zx=1")).unwrap().clone();
        for (found, text, key) in [
            (
                route_name(web, &id),
                "route:proto=httpssl;id=11111111-2222-3333-4444-555555555555",
                "8ab50fa6317b78166f61d0cf8febc03c6a286632a485a1ceaf0d434032a0cc00",
            ),
            (
                route_name(Protocol::tls(Service::Admin), &id),
                "route:proto=httpssl;admin=1;id=11111111-2222-3333-4444-555555555555",
                "ff1e7690dd4b73d867cda0bef28c0519325d5d384a1a697c2d0f1ab6166ac91c",
            ),
            (
                Some(zx),
                "route:proto=httpssl;zx=1;id=11111111-2222-3333-4444-555555555555",
                "5f3106227da6703fe0d9e7a37c4a3361ffb9db14885071c64de3b9809a4aacee",
            ),
            (
                route_name(web, &name("bob@example.com")),
                "route:proto=httpssl;user=bob@example.com",
                "deff1e690586143354f94fdb3a68e77f8882d7f4d29aba845fa190d798528181",
            ),
            (
                // What an old proxy writes for a bare name; never read or written here.
                route_name(web, &name("bob@198.51.100.7")),
                "route:proto=httpssl;user=bob@198.51.100.7",
                "2952e60f146b0d606829783cc99443f242641da018a11eaf793fc6efd957fa36",
            ),
            (
                alias_name(&lookup("bob", Service::Web, Some("mail.example.com"))),
                "alias:user=bob;vhost=mail.example.com",
                "0e1aede394780c54581846d08d2feec866985ea74010d0da74a26383faf1fe88",
            ),
        ] {
            assert_eq!(found.as_deref(), Some(text));
            assert_eq!(hashed(text), key, "{text}");
        }
    }

    #[test]
    fn mail_names_are_those_of_mail_2_2() {
        let imap = Protocol::tls(Service::Imap);
        for (key, expected) in [
            (
                name("rossi@example.com"),
                Some("route:proto=imapssl;user=rossi@example.com"),
            ),
            (name("a b%c@é.test"), Some("route:proto=imapssl;user=a%20b%25c@é.test")),
            (Key::Bare(Arc::from("rossi@[192.0.2.1;]")), None),
        ] {
            assert_eq!(route_name(imap, &key).as_deref(), expected);
        }
        assert_eq!(route_name(Protocol::tls(Service::Admin), &name("root@a.test")), None);
        let alias = alias_name(&lookup("rossi", Service::Imap, Some("mail.example.com")));
        assert_eq!(alias.as_deref(), Some("alias:user=rossi;ip=198.51.100.7"));
        assert_eq!(all_names(&name("a@b")).len(), 6);
    }

    #[test]
    fn only_an_address_with_a_port_is_a_value() {
        for (value, expected) in [
            ("10.0.0.11:7993", Some("10.0.0.11:7993")),
            ("[2001:db8::1]:7143", Some("[2001:db8::1]:7143")),
            ("10.0.0.11", None),
            ("10.0.0.11:0", None),
            ("10.0.0.11:79930", None),
            ("store1.test:7993", None),
            ("10.0.0.11:7993\r\n", None),
            (" 10.0.0.11:7993", None),
            ("2001:db8::1:7143", None),
            ("", None),
        ] {
            assert_eq!(
                address(value.as_bytes()).map(|a| a.to_string()).as_deref(),
                expected,
                "{value:?}"
            );
        }
    }
}
