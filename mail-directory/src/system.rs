//! Everything of the directory but the accounts, indexed for the questions that logins ask.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::attributes::{self, Attribute};
use crate::edit::EntryKind;
use crate::entry::Entry;
use crate::names::{domain_of, fold, host as host_name};
use crate::view::{Inherits, View};

/// Global config, servers, domains and classes of service at one moment. Never changed: a change of the
/// directory makes a new one.
#[derive(Debug, Default)]
pub struct System {
    pub(crate) config: Entry,
    pub(crate) servers: Entries,
    pub(crate) domains: Entries,
    pub(crate) cos: Entries,
    servers_by_host: HashMap<String, Arc<str>>,
    domains_by_host: HashMap<String, Arc<str>>,
    domains_by_address: HashMap<IpAddr, Arc<str>>,
    domains_by_id: HashMap<String, Arc<str>>,
    cos_by_id: HashMap<String, Arc<str>>,
}

/// RFC 4530: the same on every replica, and another one in a directory that was made anew.
pub(crate) const ENTRY_UUID: &str = "entryUUID";

/// Entries by folded name.
pub(crate) type Entries = BTreeMap<Arc<str>, Entry>;

impl System {
    /// Indexes the entries. Where two claim the same name or address the first in the alphabet has it;
    /// [`System::check`] reports the other.
    pub fn new(
        config: Entry,
        servers: impl IntoIterator<Item = Entry>,
        domains: impl IntoIterator<Item = Entry>,
        cos: impl IntoIterator<Item = Entry>,
    ) -> Self {
        let servers = by_name(EntryKind::Servers, servers);
        let domains = by_name(EntryKind::Domains, domains);
        let cos = by_name(EntryKind::Cos, cos);
        Self {
            servers_by_host: servers_by_host(&servers),
            domains_by_host: index(&domains, &attributes::VIRTUAL_HOSTNAME, |v| Some(host_name(v))),
            domains_by_address: index(&domains, &attributes::VIRTUAL_IP_ADDRESS, address),
            domains_by_id: index(&domains, &attributes::ID, |v| Some(fold(v))),
            cos_by_id: index(&cos, &attributes::ID, |v| Some(fold(v))),
            config,
            servers,
            domains,
            cos,
        }
    }

    /// The same with other entries: each takes the place of the one of its name, or `None` takes that away. Accounts
    /// are not part of it.
    pub fn with(&self, changes: impl IntoIterator<Item = (EntryKind, String, Option<Entry>)>) -> Self {
        let mut config = self.config.clone();
        let (mut servers, mut domains, mut cos) = (self.servers.clone(), self.domains.clone(), self.cos.clone());
        for (kind, name, entry) in changes {
            let entries = match kind {
                EntryKind::Servers => &mut servers,
                EntryKind::Domains => &mut domains,
                EntryKind::Cos => &mut cos,
                EntryKind::Config => {
                    config = entry.unwrap_or_else(|| Entry::new("config"));
                    continue;
                }
                EntryKind::Accounts => continue,
            };
            let key: Arc<str> = Arc::from(kind.key(&name));
            match entry {
                Some(entry) => drop(entries.insert(key, entry)),
                None => drop(entries.remove(&key)),
            }
        }
        Self::new(config, servers.into_values(), domains.into_values(), cos.into_values())
    }

    /// What tells this directory from others, whatever server is asked for it: the `entryUUID` (RFC 4530) that the
    /// global config has in LDAP. `None` where there is none, as in a file.
    pub fn identity(&self) -> Option<&str> {
        self.config.first(ENTRY_UUID)
    }

    /// The global config with the defaults of the attributes.
    pub fn global(&self) -> View<'_> {
        View::new(Some(&self.config), None, Inherits::ServerFromGlobal)
    }

    /// What counts on the node of this name: its server entry, found by entry name or `zimbraServiceHostname`,
    /// over the global config. Without an entry the global config alone.
    pub fn node(&self, name: &str) -> View<'_> {
        let own = self.server_key(name).and_then(|key| self.servers.get(key));
        View::new(own, Some(&self.config), Inherits::ServerFromGlobal)
    }

    /// The server with this `zimbraServiceHostname` or entry name.
    pub fn server(&self, host: &str) -> Option<View<'_>> {
        self.servers
            .get(self.server_key(host)?)
            .map(|entry| self.server_view(entry))
    }

    /// All servers, by name.
    pub fn servers(&self) -> impl Iterator<Item = View<'_>> {
        self.servers.values().map(|entry| self.server_view(entry))
    }

    /// Servers that hold mailboxes: those with `mailbox` in `zimbraServiceEnabled`. An entry without that attribute
    /// is not one.
    pub fn mailbox_servers(&self) -> impl Iterator<Item = View<'_>> {
        self.servers().filter(|server| {
            server
                .list(&attributes::SERVICE_ENABLED)
                .iter()
                .any(|s| s.eq_ignore_ascii_case("mailbox"))
        })
    }

    /// Mailbox servers that take web users who are not known yet: those with `zimbraReverseProxyLookupTarget` TRUE.
    /// Where no server has it, all mailbox servers but those whose own entry says FALSE. A server whose
    /// `zimbraMailMode` cannot serve web users is never one (HTTP §4.1).
    pub fn web_servers(&self) -> impl Iterator<Item = View<'_>> {
        let target = &attributes::REVERSE_PROXY_LOOKUP_TARGET;
        let chosen = self.mailbox_servers().any(|server| server.flag(target));
        let servers = self.mailbox_servers().filter(serves_web_users);
        servers.filter(move |server| match chosen {
            true => server.flag(target),
            false => server
                .entry()
                .is_none_or(|e| e.first(target.name).and_then(attributes::flag) != Some(false)),
        })
    }

    /// The domain of this name.
    pub fn domain(&self, name: &str) -> Option<View<'_>> {
        self.domains
            .get(host_name(name).as_str())
            .map(|entry| self.domain_view(entry))
    }

    /// The domain that this one is an alias of: the accounts with addresses in this one are there.
    pub fn target_of_alias(&self, domain: &View<'_>) -> Option<View<'_>> {
        let is_alias = domain.choice(&attributes::DOMAIN_TYPE) == "alias";
        self.domain_by_id(domain.text(&attributes::DOMAIN_ALIAS_TARGET_ID).filter(|_| is_alias)?)
    }

    /// All domains, by name.
    pub fn domains(&self) -> impl Iterator<Item = View<'_>> {
        self.domains.values().map(|entry| self.domain_view(entry))
    }

    /// The domain of an address, if the directory has it.
    pub fn domain_of(&self, address: &str) -> Option<View<'_>> {
        self.domain(domain_of(address)?)
    }

    /// The domain that has `host` as a virtual host name: exactly, else by the longest `*.` pattern.
    pub fn domain_by_host(&self, host: &str) -> Option<View<'_>> {
        let host = host_name(host);
        if let Some(name) = self.domains_by_host.get(&host) {
            return self.domain(name);
        }
        let parents = host.match_indices('.').map(|(at, _)| format!("*{}", &host[at..]));
        parents
            .filter_map(|pattern| self.domains_by_host.get(&pattern))
            .find_map(|name| self.domain(name))
    }

    /// The domain that has this local address as a virtual address.
    pub fn domain_by_address(&self, local: IpAddr) -> Option<View<'_>> {
        self.domain(self.domains_by_address.get(&local.to_canonical())?)
    }

    /// The domain with this `zimbraId`.
    pub fn domain_by_id(&self, id: &str) -> Option<View<'_>> {
        self.domain(self.domains_by_id.get(&fold(id))?)
    }

    /// All classes of service, by name.
    pub fn classes(&self) -> impl Iterator<Item = &Entry> {
        self.cos.values()
    }

    /// An account over its class of service: `zimbraCOSId` (an id or a name), else that of its domain, else
    /// `default`.
    pub fn account<'a>(&'a self, account: &'a Entry) -> View<'a> {
        let name = account
            .first(attributes::MAIL_DELIVERY_ADDRESS.name)
            .unwrap_or(account.name());
        let own = account.first(attributes::COS_ID.name);
        let domains = || {
            self.domain_of(name)
                .and_then(|d| d.text(&attributes::DOMAIN_DEFAULT_COS_ID))
        };
        let cos = own.and_then(|id| self.class(id)).or_else(|| self.class(domains()?));
        View::new(
            Some(account),
            cos.or_else(|| self.class("default")),
            Inherits::AccountFromCos,
        )
    }

    /// The class of service of this id or name.
    pub fn class(&self, id_or_name: &str) -> Option<&Entry> {
        let key = fold(id_or_name);
        let name = self.cos_by_id.get(&key).map_or(key.as_str(), |name| name);
        self.cos.get(name)
    }

    /// The folded entry name of the server that `host` means, shared with this system.
    pub fn server_key(&self, host: &str) -> Option<&Arc<str>> {
        self.servers_by_host.get(&host_name(host))
    }

    fn server_view<'a>(&'a self, entry: &'a Entry) -> View<'a> {
        View::new(Some(entry), Some(&self.config), Inherits::ServerFromGlobal)
    }

    fn domain_view<'a>(&'a self, entry: &'a Entry) -> View<'a> {
        View::new(Some(entry), Some(&self.config), Inherits::DomainFromGlobal)
    }
}

pub(crate) fn address(value: &str) -> Option<IpAddr> {
    value.parse().ok().map(|address: IpAddr| address.to_canonical())
}

fn by_name(kind: EntryKind, entries: impl IntoIterator<Item = Entry>) -> Entries {
    entries
        .into_iter()
        .map(|entry| (Arc::from(kind.key(entry.name())), entry))
        .collect()
}

/// Every value of an attribute → the first entry that has it.
fn index<K: std::hash::Hash + Eq>(
    entries: &Entries,
    attribute: &Attribute,
    key: impl Fn(&str) -> Option<K>,
) -> HashMap<K, Arc<str>> {
    let mut index = HashMap::new();
    for (name, entry) in entries {
        for key in entry.values(attribute.name).iter().filter_map(|value| key(value)) {
            index.entry(key).or_insert_with(|| name.clone());
        }
    }
    index
}

/// HTTP §4.1.
fn serves_web_users(server: &View<'_>) -> bool {
    let mode = server.text(&attributes::MAIL_MODE).unwrap_or_default();
    let modes = ["http", "https", "both", "mixed", "redirect"];
    modes.iter().any(|known| mode.eq_ignore_ascii_case(known))
}

/// Entry names go before host names, so that one server cannot take another's name.
fn servers_by_host(servers: &Entries) -> HashMap<String, Arc<str>> {
    let mut index: HashMap<String, Arc<str>> = servers.keys().map(|name| (host_name(name), name.clone())).collect();
    for (name, entry) in servers {
        for host in entry.values(attributes::SERVICE_HOSTNAME.name) {
            index.entry(host_name(host)).or_insert_with(|| name.clone());
        }
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attributes::*;
    use std::time::Duration;

    fn entry(name: &str, attributes: &[(&str, &str)]) -> Entry {
        let mut entry = Entry::new(name);
        for (attribute, values) in attributes {
            entry.set(attribute, values.split(' '));
        }
        entry
    }

    fn system() -> System {
        let config = [
            ("zimbraImapProxyBindPort", "1143"),
            ("zimbraReverseProxyConnectTimeout", "5s"),
            ("zimbraSSLCertificate", "global"),
            ("zimbraPublicServiceHostname", "public.test"),
            ("zimbraReverseProxyMailMode", "nonsense"),
            ("zimbraServiceEnabled", "mailbox"),
        ];
        let servers = [
            entry(
                "Store1.test",
                &[
                    ("zimbraServiceHostname", "127.0.0.1"),
                    ("ZIMBRASERVICEENABLED", "mailbox"),
                ],
            ),
            entry(
                "store2.test",
                &[
                    ("zimbraServiceHostname", "127.0.0.1"),
                    ("zimbraServiceEnabled", "mailbox"),
                ],
            ),
            entry(
                "proxy.test",
                &[
                    ("zimbraImapProxyBindPort", "0"),
                    ("zimbraReverseProxyConnectTimeout", "bad"),
                ],
            ),
        ];
        let domains = [
            entry(
                "a.test",
                &[
                    ("zimbraVirtualHostname", "mail.A.test"),
                    ("zimbraVirtualIPAddress", "192.0.2.7"),
                ],
            ),
            entry(
                "b.test",
                &[("zimbraVirtualHostname", "*.b.test *.x.b.test"), ("zimbraId", "ID-B")],
            ),
            entry(
                "c.test",
                &[("zimbraVirtualHostname", "*.x.b.test mail.a.test m.x.b.test")],
            ),
        ];
        let cos = [entry("default", &[]), entry("gold", &[("zimbraId", "id-gold")])];
        System::new(entry("config", &config), servers, domains, cos)
    }

    #[test]
    fn another_entry_takes_the_place_of_one() {
        let system = system();
        let other = system.with([
            (EntryKind::Domains, "B.test".to_owned(), None),
            (
                EntryKind::Servers,
                "STORE2.test".to_owned(),
                Some(entry("store2.test", &[])),
            ),
            (
                EntryKind::Cos,
                "new".to_owned(),
                Some(entry("new", &[("zimbraId", "id-new")])),
            ),
            (EntryKind::Config, String::new(), Some(Entry::new("config"))),
        ]);
        let names: Vec<_> = other.domains().map(|domain| domain.name().to_owned()).collect();
        assert_eq!(names, ["a.test", "c.test"]);
        assert_eq!(
            other.domain_by_host("x.x.b.test").map(|d| d.name().to_owned()),
            Some("c.test".to_owned())
        );
        assert_eq!(other.server("store2.test").unwrap().text(&SERVICE_HOSTNAME), None);
        assert!(other.class("id-new").is_some() && other.class("gold").is_some());
        assert_eq!(other.global().text(&PUBLIC_SERVICE_HOSTNAME), None);
    }

    #[test]
    fn nodes_inherit_from_the_global_config_and_then_from_the_defaults() {
        let system = system();
        let node = system.node("PROXY.test");
        assert_eq!(node.name(), "proxy.test");
        assert_eq!(node.port(&IMAP_PROXY_BIND_PORT), Some(1143));
        assert_eq!(node.port(&IMAP_SSL_PROXY_BIND_PORT), Some(993));
        assert_eq!(node.duration(&REVERSE_PROXY_CONNECT_TIMEOUT), Duration::from_secs(5));
        assert_eq!(node.choice(&REVERSE_PROXY_MAIL_MODE), "redirect");
        assert!(node.flag(&REVERSE_PROXY_MAIL_ENABLED) && !node.flag(&REVERSE_PROXY_LOOKUP_TARGET));
        assert_eq!(node.list(&REVERSE_PROXY_SSL_PROTOCOLS), ["TLSv1.2", "TLSv1.3"]);
        assert_eq!(node.text(&SSL_CERTIFICATE), Some("global"));
        assert_eq!(node.list(&SERVICE_ENABLED), Vec::<&str>::new());
        assert_eq!(system.node("nobody").port(&IMAP_PROXY_BIND_PORT), Some(1143));
    }

    #[test]
    fn domains_inherit_but_not_certificates() {
        let system = system();
        let domain = system.domain("A.test").unwrap();
        assert_eq!(domain.text(&PUBLIC_SERVICE_HOSTNAME), Some("public.test"));
        assert_eq!(domain.text(&SSL_CERTIFICATE), None);
    }

    #[test]
    fn servers_are_found_by_entry_name_before_host_name() {
        let system = system();
        for (host, name) in [
            ("store1.test", Some("Store1.test")),
            ("STORE2.test.", Some("store2.test")),
            ("127.0.0.1", Some("Store1.test")),
            ("127.0.0.2", None),
        ] {
            assert_eq!(system.server(host).map(|s| s.name()), name, "{host}");
        }
        let names: Vec<_> = system.mailbox_servers().map(|s| s.name()).collect();
        assert_eq!(names, ["Store1.test", "store2.test"]);
    }

    #[test]
    fn web_servers_are_the_lookup_targets_if_there_are_any() {
        let server = |name: &str, target: &str| {
            entry(
                name,
                &[
                    ("zimbraServiceEnabled", "mailbox"),
                    ("zimbraReverseProxyLookupTarget", target),
                ],
            )
        };
        for (targets, expected) in [
            (["", ""], vec!["0", "1"]),
            (["TRUE", ""], vec!["0"]),
            (["FALSE", ""], vec!["1"]),
            (["FALSE", "TRUE"], vec!["1"]),
        ] {
            let servers = targets
                .iter()
                .enumerate()
                .map(|(i, target)| server(&i.to_string(), target));
            let system = System::new(Entry::new("config"), servers, [], []);
            let names: Vec<_> = system.web_servers().map(|s| s.name()).collect();
            assert_eq!(names, expected, "{targets:?}");
        }
    }

    #[test]
    fn a_server_that_serves_no_web_users_is_no_web_server() {
        for (mode, serves) in [("", true), ("both", true), ("Redirect", true), ("off", false)] {
            let mut server = Entry::new("store.test");
            server.set("zimbraServiceEnabled", ["mailbox"]);
            if !mode.is_empty() {
                server.set("zimbraMailMode", [mode]);
            }
            let system = System::new(Entry::new("config"), [server], [], []);
            assert_eq!(system.web_servers().count() == 1, serves, "{mode}");
        }
    }

    #[test]
    fn domains_are_found_by_host_name_address_and_id() {
        let system = system();
        for (host, name) in [
            ("mail.a.test", Some("a.test")),
            ("MAIL.A.TEST.", Some("a.test")),
            ("www.b.test", Some("b.test")),
            ("b.test", None),
            ("y.x.b.test", Some("b.test")),
            ("m.x.b.test", Some("c.test")),
            ("", None),
        ] {
            assert_eq!(system.domain_by_host(host).map(|d| d.name()), name, "{host}");
        }
        let by_address = |a: &str| system.domain_by_address(a.parse().unwrap()).map(|d| d.name());
        assert_eq!(by_address("192.0.2.7"), Some("a.test"));
        assert_eq!(by_address("::ffff:192.0.2.7"), Some("a.test"));
        assert_eq!(by_address("192.0.2.8"), None);
        assert_eq!(system.domain_by_id("id-b").map(|d| d.name()), Some("b.test"));
    }

    #[test]
    fn classes_are_found_by_id_name_domain_or_default() {
        let mut domain = Entry::new("a.test");
        domain.set("zimbraDomainDefaultCOSId", ["id-gold"]);
        let mut cos = [Entry::new("default"), Entry::new("gold"), Entry::new("iron")];
        for class in &mut cos {
            let name = class.name().to_owned();
            class.set("zimbraId", [format!("id-{name}")]);
        }
        let system = System::new(Entry::new("config"), [], [domain], cos);
        for (account, own, class) in [
            ("u@a.test", None, "id-gold"),
            ("u@b.test", None, "id-default"),
            ("u@a.test", Some("iron"), "id-iron"),
            ("u@a.test", Some("ID-iron"), "id-iron"),
            ("u@b.test", Some("gone"), "id-default"),
        ] {
            let mut entry = Entry::new(account);
            entry.set("zimbraCOSId", own);
            let found = system.account(&entry).parent_name();
            assert_eq!(format!("id-{found}"), class, "{account} {own:?}");
        }
    }
}
