//! What another state of the directory would make of the routes: which accounts would be sent elsewhere.
//!
//! Nothing is kept or forgotten, nothing counts as used, and the directory is not asked: what is in memory is compared.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use mail_directory::{Entry, System, attributes, domain_of, names};

use super::RouteCache;
use super::known::{Kept, KeptValue};
use crate::key::Key;
use crate::placement::{self, Placement, PlacementAttributes};
use crate::protocol::Protocol;
use crate::route::{Lookup, Server, Service, Subject, UpstreamTls};
use crate::routing;
use crate::source::Source;

/// Routes that are taken out of the table at once, to be compared without its lock.
const AT_ONCE: usize = 512;

/// The services whose routes are compared.
const SERVICES: [Service; 3] = [Service::Imap, Service::Pop3, Service::Web];

/// Where the clients of an account are sent, by place in `SERVICES`; `None`: not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destinations([Option<Destination>; 3]);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Destination {
    At(Server),
    /// There is none, for this reason.
    Nowhere(String),
}

/// An account that would be sent elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountMove {
    /// Its canonical name.
    pub account: Arc<str>,
    /// For which services.
    pub services: Vec<Service>,
    /// The server now; with its address, where only that would be another one.
    pub from: String,
    /// The server then, or why there would be none.
    pub to: String,
}

/// What comparing all routes in memory has found.
#[derive(Debug, Default)]
pub struct RouteComparison {
    /// Accounts that were compared.
    pub compared: u64,
    /// How many of them would be sent elsewhere.
    pub moved: u64,
    /// The first of these by name.
    pub first: Vec<AccountMove>,
    /// Accounts would be read by other attributes: all routes in memory are looked up again, and where they will lead
    /// is not known.
    pub read_anew: bool,
}

impl RouteCache {
    /// Whether the directory's accounts decide where clients are sent, and no lookup service does.
    pub fn asks_directory(&self) -> bool {
        matches!(self.source, Source::Directory(_))
    }

    /// Compares all accounts in memory. Names at most `most` of those that would be sent elsewhere. Blocks: there may be
    /// a million.
    pub fn compare(&self, before: &System, after: &System, most: usize) -> RouteComparison {
        let mut comparison = RouteComparison {
            read_anew: !PlacementAttributes::of(before).is_of(after),
            ..RouteComparison::default()
        };
        let mut first = BTreeMap::new();
        let mut known = Known::default();
        let mut cursor = self.known.begin();
        loop {
            let some = self.known.walk(&mut cursor, AT_ONCE, placement_of);
            if some.is_empty() {
                break;
            }
            for placement in &some {
                comparison.compared += 1;
                let Some(differs) = known.difference(placement, before, after, self.node()) else {
                    continue;
                };
                comparison.moved += 1;
                first.insert(placement.account.clone(), differs.of(placement.account.clone()));
                if first.len() > most {
                    first.pop_last();
                }
            }
        }
        comparison.first = first.into_values().collect();
        comparison
    }

    /// Where the clients of an account in memory would be sent; `None`: it is not in memory.
    pub fn destinations(&self, account: &str, system: &System) -> Option<Destinations> {
        let kept = self.peek(&Key::Name(Arc::from(names::account(account))))?;
        Some(Destinations::of(&kept.placement, system, self.node()))
    }

    /// Where they would be sent if its entry were this one.
    pub fn destinations_by_entry(&self, entry: &Entry, system: &System) -> Destinations {
        let address = entry.first(attributes::MAIL_DELIVERY_ADDRESS.name);
        let key = Key::Name(Arc::from(names::account(address.unwrap_or(entry.name()))));
        Destinations::of(&placement::placement(entry, &key, system), system, self.node())
    }
}

impl Destinations {
    fn of(placement: &Placement, system: &System, node: &str) -> Self {
        Self(SERVICES.map(|service| {
            let protocol = Protocol::of(service, system.node(node));
            placement
                .answers(protocol)
                .then(|| destination(placement, system, protocol))
        }))
    }

    /// Those of an account that does not exist.
    pub fn of_nobody() -> Self {
        Self(SERVICES.map(|_| Some(Destination::Nowhere("no such account".to_owned()))))
    }

    /// The server for a service, by name; `None` where there is none.
    pub fn server(&self, service: Service) -> Option<&str> {
        let place = SERVICES.iter().position(|other| *other == service)?;
        match self.0[place].as_ref()? {
            Destination::At(server) => Some(&server.name),
            Destination::Nowhere(_) => None,
        }
    }

    /// The move of an account from here to there; `None`: it stays.
    pub fn move_to(&self, there: &Self, account: &str) -> Option<AccountMove> {
        Some(self.difference(there)?.of(Arc::from(account)))
    }

    fn difference(&self, there: &Self) -> Option<Difference> {
        let pairs = self.0.iter().zip(&there.0).zip(SERVICES);
        let differ: Vec<_> = pairs
            .filter_map(|((from, to), service)| Some((from.as_ref()?, to.as_ref()?, service)))
            .filter(|(from, to, _)| from != to)
            .collect();
        let (from, to, _) = differ.first()?;
        Some(Difference {
            services: differ.iter().map(|(.., service)| *service).collect(),
            from: from.words(to),
            to: to.words(from),
        })
    }
}

impl Destination {
    /// By name, where that tells it from the other one.
    fn words(&self, other: &Self) -> String {
        match (self, other) {
            (Self::Nowhere(why), _) => format!("no server ({why})"),
            (Self::At(one), Self::At(other)) if one.name != other.name => one.name.to_string(),
            (Self::At(one), Self::At(other)) if one.address() == other.address() => {
                let tls = match one.tls {
                    UpstreamTls::Clear => "in clear text".to_owned(),
                    UpstreamTls::Implicit { ref name } => format!("with TLS as {name}"),
                    UpstreamTls::StartTls { ref name } => format!("with STARTTLS as {name}"),
                };
                format!("{} at {} {tls}", one.name, one.address())
            }
            (Self::At(one), Self::At(_)) => format!("{} at {}", one.name, one.address()),
            (Self::At(one), Self::Nowhere(_)) => one.name.to_string(),
        }
    }
}

/// A move without its account.
#[derive(Debug, Clone)]
struct Difference {
    services: Vec<Service>,
    from: String,
    to: String,
}

impl Difference {
    fn of(self, account: Arc<str>) -> AccountMove {
        AccountMove {
            account,
            services: self.services,
            from: self.from,
            to: self.to,
        }
    }
}

/// What was found for accounts without anything of their own, by server and domain: there are few such pairs.
#[derive(Default)]
struct Known(HashMap<(Option<Arc<str>>, String), Option<Difference>>);

impl Known {
    fn difference(&mut self, placement: &Placement, before: &System, after: &System, node: &str) -> Option<Difference> {
        let ask = || Destinations::of(placement, before, node).difference(&Destinations::of(placement, after, node));
        if placement.special.is_some() {
            return ask();
        }
        let domain = domain_of(&placement.account).unwrap_or_default().to_owned();
        let known = self.0.entry((placement.mail_host.clone(), domain));
        known.or_insert_with(ask).clone()
    }
}

/// What is kept of an account under its own name.
fn placement_of(_: &Key, kept: &Kept) -> Option<Placement> {
    match &kept.what {
        KeptValue::Here(placement) => Some(placement.clone()),
        KeptValue::See(_) => None,
    }
}

fn destination(placement: &Placement, system: &System, protocol: Protocol) -> Destination {
    let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let lookup = Lookup {
        subject: Subject::Login(placement.account.to_string()),
        service: protocol.service(),
        client: nobody,
        local: nobody,
        host: None,
    };
    match routing::of_admitted(&lookup, placement, system, protocol) {
        Ok(route) => Destination::At(Server::of(&route)),
        Err(error) => Destination::Nowhere(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use mail_directory::Directory;
    use mail_directory::edit::EntryKind;
    use mail_directory::file::YamlDirectory;

    use super::*;
    use crate::cache::Settings;

    const DIRECTORY: &str = "
config: {zimbraReverseProxySSLToUpstreamEnabled: FALSE}
servers:
  s1: {zimbraServiceHostname: 127.0.0.2}
  s2: {zimbraServiceHostname: 127.0.0.3}
domains: {a.test: {zimbraDomainAllowedIPs: 192.0.2.0/24}, b.test: {}}
accounts:
  a@a.test: {zimbraMailHost: s1}
  b@a.test: {zimbraMailHost: s1}
  c@b.test: {zimbraMailHost: s2}
";

    async fn cache() -> (RouteCache, Arc<System>) {
        let (directory, _) = YamlDirectory::parse(DIRECTORY, Path::new("d.yaml")).unwrap();
        let system = directory.system();
        let settings = Settings {
            node: "proxy".to_owned(),
            capacity: 100,
            ttl: Duration::from_secs(60),
            stale: Duration::from_secs(60),
            negative_ttl: Duration::from_secs(5),
        };
        let cache = RouteCache::new(settings, Arc::new(directory));
        for name in ["a@a.test", "b@a.test", "c@b.test"] {
            let lookup = Lookup {
                subject: Subject::Login(name.to_owned()),
                service: Service::Imap,
                client: "192.0.2.1".parse().unwrap(),
                local: "192.0.2.2".parse().unwrap(),
                host: None,
            };
            cache.route(&lookup).await.unwrap();
        }
        (cache, system)
    }

    fn entry(name: &str, attributes: &[(&str, &str)]) -> Entry {
        let mut entry = Entry::new(name);
        attributes.iter().for_each(|(name, value)| entry.set(name, [*value]));
        entry
    }

    fn shown(comparison: &RouteComparison) -> Vec<String> {
        let of = |one: &AccountMove| format!("{} {}: {} to {}", one.account, one.services.len(), one.from, one.to);
        comparison.first.iter().map(of).collect()
    }

    #[tokio::test]
    async fn accounts_that_another_system_sends_elsewhere_are_found() {
        let (cache, system) = cache().await;
        let external = [
            ("zimbraReverseProxyUseExternalRoute", "TRUE"),
            ("zimbraExternalImapHostname", "old.test"),
            ("zimbraExternalImapPort", "143"),
        ];
        for (kind, entry, expected) in [
            (EntryKind::Servers, entry("s3", &[]), vec![]),
            (
                EntryKind::Servers,
                entry(
                    "s2",
                    &[("zimbraServiceHostname", "127.0.0.9"), ("zimbraImapBindPort", "99")],
                ),
                vec!["c@b.test 3: s2 at 127.0.0.3:7143 to s2 at 127.0.0.9:99"],
            ),
            (
                EntryKind::Domains,
                entry("a.test", &external),
                vec!["a@a.test 1: s1 to old.test", "b@a.test 1: s1 to old.test"],
            ),
            (
                EntryKind::Domains,
                entry("b.test", &[("zimbraDomainAllowedIPs", "10.0.0.0/8")]),
                vec![],
            ),
            (
                EntryKind::Config,
                entry("config", &[]),
                vec![
                    "a@a.test 3: s1 at 127.0.0.2:7143 to s1 at 127.0.0.2:7993",
                    "b@a.test 3: s1 at 127.0.0.2:7143 to s1 at 127.0.0.2:7993",
                    "c@b.test 3: s2 at 127.0.0.3:7143 to s2 at 127.0.0.3:7993",
                ],
            ),
        ] {
            let name = entry.name().to_owned();
            let after = system.with([(kind, name.clone(), Some(entry))]);
            let comparison = cache.compare(&system, &after, 10);
            assert_eq!(shown(&comparison), expected, "{name}");
            assert_eq!((comparison.compared, comparison.moved), (3, expected.len() as u64));
            assert!(!comparison.read_anew);
        }
        let gone = system.with([(EntryKind::Servers, "s1".to_owned(), None)]);
        let comparison = cache.compare(&system, &gone, 1);
        assert_eq!(comparison.moved, 2);
        assert_eq!(
            shown(&comparison),
            ["a@a.test 3: s1 to no server (server s1 is not in the directory)"]
        );
        let config = entry("config", &[("zimbraReverseProxyMailHostAttribute", "other")]);
        let other = system.with([(EntryKind::Config, String::new(), Some(config))]);
        assert!(cache.compare(&system, &other, 1).read_anew);
    }

    #[tokio::test]
    async fn an_account_is_compared_by_its_entry() {
        let (cache, system) = cache().await;
        let of = |host| cache.destinations_by_entry(&entry("x@b.test", &[("zimbraMailHost", host)]), &system);
        assert_eq!(of("s1").server(Service::Imap), Some("s1"));
        assert_eq!(of("s1").move_to(&of("s1"), "x@b.test"), None);
        let moved = of("s1").move_to(&of("s2"), "x@b.test").unwrap();
        assert_eq!((moved.from.as_str(), moved.to.as_str()), ("s1", "s2"));
        let gone = of("s1").move_to(&Destinations::of_nobody(), "x@b.test").unwrap();
        assert_eq!(gone.to, "no server (no such account)");
        assert_eq!(
            cache.destinations("C@b.test", &system).unwrap().server(Service::Web),
            Some("s2")
        );
        assert_eq!(cache.destinations("x@b.test", &system), None);
    }
}
