//! What would be answered now and why, and what is forgotten on demand: for administrators who ask why an account is
//! sent to a server.
//!
//! An explanation asks every tier and changes none: nothing is kept or forgotten, and nothing is marked as used.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mail_directory::attributes as a;
use mail_directory::{DirectoryError, Entry, System, Touched};

use super::RouteCache;
use super::fetch::Trace;
use super::known::{KeptPlacement, KeptValue};
use super::question::{Fetched, Freshness, Query};
use crate::key::{By, Key, domain_for};
use crate::placement::{self, Placement};
use crate::protocol::Protocol;
use crate::route::{Lookup, Route, RouteError, Service, Subject, Tier};
use crate::source::Source;

/// Why a lookup has the answer that it has.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// The name or id under which the tiers are asked: qualified and folded. `None` for what cannot be a name.
    pub name: Option<String>,
    /// The domain of the name, and how it was found. `None` for an id, or where no domain could be found.
    pub domain: Option<NameDomain>,
    /// What the directory has of the account.
    pub account: AccountReport,
    /// What each tier says, in the order in which they are asked.
    pub tiers: Vec<TierReport>,
    /// The answer.
    pub route: Result<Route, RouteError>,
    /// What stands in the way of a login although there is a route, or tells more than the error.
    pub blockers: Vec<Blocker>,
}

/// A domain, and how a login came to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameDomain {
    /// Its name.
    pub name: String,
    /// How it was found.
    pub by: FoundBy,
    /// Whether the directory has it.
    pub known: bool,
    /// The domain that this alias domain stands for.
    pub target: Option<String>,
}

/// How the domain of a login was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoundBy {
    /// It was typed.
    Given,
    /// By the host name that the client asked for (`zimbraVirtualHostname`).
    VirtualHost(String),
    /// By the address that the client connected to (`zimbraVirtualIPAddress`).
    VirtualAddress(IpAddr),
    /// `zimbraDefaultDomainName`
    Default,
    /// A lookup service will find it.
    Service,
}

/// What the directory has of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccountReport {
    /// Its entry.
    Found(AccountFacts),
    /// No account has this name or id.
    Nobody,
    /// It was not asked: lookup services know the accounts, or the name cannot be one.
    NotAsked,
    /// It could not be asked.
    Failed(String),
}

/// The part of an account's entry that a login depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountFacts {
    /// Canonical name: the delivery address.
    pub name: String,
    /// `zimbraId`
    pub id: Option<String>,
    /// `zimbraAccountStatus`
    pub status: String,
    /// Whether the login is another name of the account.
    pub alias: bool,
    /// The server that the entry names (`zimbraMailHost`).
    pub server: Option<String>,
}

/// What a tier says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TierReport {
    /// Which one. Memory past its time is [`Tier::Stale`], and what a previous process asked for [`Tier::KeptFile`].
    pub tier: Tier,
    /// What it says.
    pub answer: AnswerKind,
    /// How old the answer is at most, where that is known.
    pub age: Option<Duration>,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnswerKind {
    /// It knows nothing.
    Nothing,
    /// The account is this one and on this server, or where none is named on an external one.
    Account {
        /// Canonical name.
        name: String,
        /// The server.
        server: Option<String>,
    },
    /// There is no such account.
    Nobody,
    /// It could not be asked.
    Failed(String),
}

/// What stands in the way of a login.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Blocker {
    /// New logins wait, and are refused if that lasts.
    #[error("{0}: new logins wait")]
    Held(String),
    /// The account's status forbids it.
    #[error("zimbraAccountStatus is {0}: the mailbox server refuses the login")]
    Status(String),
    /// The account may not use the service.
    #[error("{0} is FALSE for the account: the mailbox server refuses the login")]
    ServiceDisabled(&'static str),
    /// The domain admits clients from some networks only, and no client was named.
    #[error("domain {domain} admits clients from {networks} only (zimbraDomainAllowedIPs)")]
    OnlyFrom {
        /// The domain.
        domain: String,
        /// Its list.
        networks: String,
    },
    /// The server is not one that holds mailboxes.
    #[error("server {0} does not have mailbox in zimbraServiceEnabled")]
    NoMailboxServer(String),
    /// This node does not serve it.
    #[error("{0} is FALSE for this node: it serves no such clients")]
    NodeDisabled(&'static str),
    /// What is in memory is not what the directory says.
    #[error(
        "memory says server {kept}, the directory says {now}: the next look at the directory will see it, or purge the route"
    )]
    Moved {
        /// Kept.
        kept: String,
        /// Asked now.
        now: String,
    },
}

/// What was forgotten of one account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purged {
    /// A name, alias or id.
    pub key: String,
    /// Whether something was kept under it in memory.
    pub in_memory: bool,
}

impl RouteCache {
    /// What [`RouteCache::route`] would answer now and why, without leaving a trace. A client address of `0.0.0.0`
    /// or `::` stands for a client that every domain admits.
    pub async fn explain(&self, lookup: &Lookup) -> Explanation {
        let system = self.directory.system();
        let node = system.node(&self.settings.node);
        let protocol = Protocol::of(lookup.service, node);
        let domain = self.domain(lookup, &system);
        let key = match self.source.key(lookup, &system) {
            Ok(key) => key,
            Err(error) => return Explanation::of_nobody(domain, error),
        };
        let (entry, account) = self.entry(&key, &system).await;
        let mut blockers = node_blockers(lookup.service, &system, &self.settings.node);
        let lookup = &admitted(lookup, entry.as_deref(), &key, &system, &mut blockers);
        let query = Query {
            lookup,
            key,
            protocol,
            system: &system,
            freshness: Freshness::Fresh,
        };
        let old = self.peek(&query.key);
        let mut tiers = vec![self.memory_report(&query.key, old.as_ref())];
        let old = old
            .filter(|old| old.placement.answers(protocol))
            .filter(|_| self.reading.load().is_of(&system));
        let shared = self.ask_shared(&query, Trace::None).await;
        if self.shared.is_some() {
            tiers.push(tier_report(
                Tier::Memcached,
                shared.as_ref().map(|fetched| fetched.placement.as_ref()),
            ));
        }
        let asked = match self.directory_answer(&query, entry.as_deref(), &account) {
            Some(said) => said,
            None => self.ask_source(&query).await,
        };
        tiers.push(source_report(&asked));
        blockers.extend(moved(&tiers));
        let route = match self.remembered_unseen(&query, old.as_ref()) {
            Some(route) => route,
            None => self.conclude(&query, shared.map_or(asked, Ok), old),
        };
        if let Some(entry) = &entry {
            blockers.extend(account_blockers(lookup.service, entry, &system));
        }
        if let Ok(route) = &route {
            blockers.extend(server_blocker(route, &system));
            blockers.extend(self.hold_of(route).map(Blocker::Held));
        }
        Explanation {
            name: Some(query.key.text().to_string()),
            domain,
            account,
            tiers,
            route,
            blockers,
        }
    }

    /// What the directory says now against logins of an account, by its canonical name: its status, or that it may not
    /// use the service. Nothing where lookup services know the accounts, or where there is no entry.
    ///
    /// # Errors
    /// The directory cannot be asked.
    pub async fn account_blockers(&self, account: &str, service: Service) -> Result<Vec<Blocker>, RouteError> {
        let Source::Directory(directory) = &self.source else {
            return Ok(Vec::new());
        };
        let system = self.directory.system();
        let entry = placement::entry(&**directory, &system, &Key::Name(account.into())).await?;
        Ok(entry.map_or_else(Vec::new, |entry| account_blockers(service, &entry, &system)))
    }

    /// Forgets an account under every name and id that memory or the directory knows of it, here and in the shared
    /// cache, and says what that was.
    ///
    /// # Errors
    /// What was asked for cannot be the name of an account.
    pub async fn purge(&self, lookup: &Lookup) -> Result<Vec<Purged>, RouteError> {
        let system = self.directory.system();
        let key = self.source.key(lookup, &system)?;
        let mut account = Touched::default();
        note(&mut account, &key);
        if let Some(old) = self.peek(&key) {
            note(&mut account, &Key::Name(old.placement.account));
        }
        if let (Some(entry), _) = self.entry(&key, &system).await {
            let of_entry = Touched::of(&entry);
            account.names.extend(of_entry.names);
            account.ids.extend(of_entry.ids);
        }
        let names = account.names.iter().map(|name| Key::Name(name.as_str().into()));
        let ids = account.ids.iter().map(|id| Key::Id(id.as_str().into()));
        let mut keys: Vec<Key> = names.chain(ids).chain([key]).collect();
        keys.extend(self.aliases_of(&keys));
        let mut seen = HashSet::new();
        keys.retain(|key| seen.insert(key.clone()));
        let purged = keys
            .iter()
            .map(|key| Purged {
                key: key.text().to_string(),
                in_memory: self.known.peek(key).is_some() || self.nobody.contains_key(key),
            })
            .collect();
        self.forget_on_demand(lookup, keys);
        Ok(purged)
    }

    /// Names in memory that stand for one of these accounts.
    fn aliases_of(&self, accounts: &[Key]) -> Vec<Key> {
        let mut found = Vec::new();
        self.known.each(|key, known| {
            if let KeptValue::See(account) = &known.what
                && accounts.contains(&Key::Name(account.clone()))
            {
                found.push(key.clone());
            }
        });
        found
    }

    fn domain(&self, lookup: &Lookup, system: &System) -> Option<NameDomain> {
        let Subject::Login(login) = &lookup.subject else {
            return None;
        };
        let (name, by) = match (&self.source, domain_for(login, lookup, system)) {
            (Source::Services(_), Some((_, By::Default)) | None) => ("", FoundBy::Service),
            (_, found) => {
                let (name, by) = found?;
                (name, FoundBy::of(by, lookup))
            }
        };
        let known = system.domain(name);
        let target = known
            .filter(|domain| domain.choice(&a::DOMAIN_TYPE) == "alias")
            .and_then(|domain| system.domain_by_id(domain.text(&a::DOMAIN_ALIAS_TARGET_ID)?));
        Some(NameDomain {
            known: known.is_some(),
            target: target.map(|domain| domain.name().to_owned()),
            name: name.to_owned(),
            by,
        })
    }

    /// The account's entry, where accounts are the directory's.
    async fn entry(&self, key: &Key, system: &System) -> (Option<Arc<Entry>>, AccountReport) {
        let Source::Directory(directory) = &self.source else {
            return (None, AccountReport::NotAsked);
        };
        let entry = match placement::entry(&**directory, system, key).await {
            Ok(Some(entry)) => entry,
            Ok(None) => return (None, AccountReport::Nobody),
            Err(error) => return (None, AccountReport::Failed(error.to_string())),
        };
        let name = entry.first(a::MAIL_DELIVERY_ADDRESS.name).unwrap_or(entry.name());
        let host = system.global().text(&a::REVERSE_PROXY_MAIL_HOST_ATTRIBUTE);
        let facts = AccountFacts {
            alias: matches!(key, Key::Name(asked) if **asked != *mail_directory::names::account(name)),
            name: name.to_owned(),
            id: entry.first(a::ID.name).map(str::to_owned),
            status: system.account(&entry).choice(&a::ACCOUNT_STATUS).to_owned(),
            server: host.and_then(|host| entry.first(host)).map(str::to_owned),
        };
        (Some(entry), AccountReport::Found(facts))
    }

    /// What the directory would answer, out of what it has just returned; `None` where lookup services are asked.
    fn directory_answer(
        &self,
        query: &Query<'_>,
        entry: Option<&Entry>,
        account: &AccountReport,
    ) -> Option<Result<Fetched, RouteError>> {
        match account {
            AccountReport::NotAsked => None,
            AccountReport::Failed(why) => Some(Err(DirectoryError(why.clone()).into())),
            AccountReport::Found(_) | AccountReport::Nobody => Some(Ok(Fetched {
                at: self.now(),
                placement: entry.map(|entry| placement::placement(entry, &query.key, query.system)),
                tier: Tier::Directory,
                alias: true,
            })),
        }
    }

    /// Like [`RouteCache::find_key`], without counting as use.
    pub(super) fn peek(&self, key: &Key) -> Option<KeptPlacement> {
        KeptPlacement::find(key, |key| self.known.peek(key))
    }

    fn memory_report(&self, key: &Key, old: Option<&KeptPlacement>) -> TierReport {
        let Some(old) = old else {
            return match self.nobody.contains_key(key) {
                true => tier_report(Tier::Memory, Some(None)),
                false => tier_report(Tier::Memory, None),
            };
        };
        let tier = old.tier(if self.is_fresh(old) { Tier::Memory } else { Tier::Stale });
        TierReport {
            age: Some(Duration::from_millis(self.now().saturating_sub(old.at))),
            ..tier_report(tier, Some(Some(&old.placement)))
        }
    }

    /// Like [`RouteCache::remembered`], without counting as use.
    fn remembered_unseen(&self, query: &Query<'_>, old: Option<&KeptPlacement>) -> Option<Result<Route, RouteError>> {
        if old.is_none() && !self.nobody.contains_key(&query.key) {
            return None;
        }
        self.remembered(query, old)
    }
}

impl FoundBy {
    fn of(by: By, lookup: &Lookup) -> Self {
        match by {
            By::Itself => Self::Given,
            By::VirtualHost => Self::VirtualHost(lookup.host.clone().unwrap_or_default()),
            By::VirtualAddress => Self::VirtualAddress(lookup.local),
            By::Default => Self::Default,
        }
    }
}

impl Explanation {
    fn of_nobody(domain: Option<NameDomain>, error: RouteError) -> Self {
        Self {
            name: None,
            domain,
            account: AccountReport::NotAsked,
            tiers: Vec::new(),
            route: Err(error),
            blockers: Vec::new(),
        }
    }
}

/// `Some(None)`: there is no such account.
fn tier_report(tier: Tier, placement: Option<Option<&Placement>>) -> TierReport {
    let answer = match placement {
        None => AnswerKind::Nothing,
        Some(None) => AnswerKind::Nobody,
        Some(Some(placement)) => AnswerKind::Account {
            name: placement.account.to_string(),
            server: placement.server().map(|server| server.to_string()),
        },
    };
    TierReport {
        tier,
        answer,
        age: None,
    }
}

/// What the directory says now.
fn source_report(asked: &Result<Fetched, RouteError>) -> TierReport {
    match asked {
        Ok(fetched) => TierReport {
            age: Some(Duration::ZERO),
            ..tier_report(Tier::Directory, Some(fetched.placement.as_ref()))
        },
        Err(error) => TierReport {
            tier: Tier::Directory,
            answer: AnswerKind::Failed(error.to_string()),
            age: None,
        },
    }
}

fn note(account: &mut Touched, key: &Key) {
    match key {
        Key::Name(name) => account.names.push(name.to_string()),
        Key::Id(id) => account.ids.push(id.to_string()),
        Key::Bare(_) => {}
    }
}

/// Where no client was named, a client that the domain admits; the list is noted.
fn admitted(lookup: &Lookup, entry: Option<&Entry>, key: &Key, system: &System, blockers: &mut Vec<Blocker>) -> Lookup {
    let mut lookup = lookup.clone();
    let name = entry.map_or(&**key.text(), |entry| {
        entry.first(a::MAIL_DELIVERY_ADDRESS.name).unwrap_or(entry.name())
    });
    let Some(domain) = system.domain_of(name).filter(|_| lookup.client.is_unspecified()) else {
        return lookup;
    };
    let networks = domain.networks(&a::DOMAIN_ALLOWED_IPS);
    if let Some(first) = networks.first() {
        lookup.client = first.addr();
        let networks: Vec<String> = networks.iter().map(ToString::to_string).collect();
        blockers.push(Blocker::OnlyFrom {
            domain: domain.name().to_owned(),
            networks: networks.join(", "),
        });
    }
    lookup
}

fn node_blockers(service: Service, system: &System, node: &str) -> Vec<Blocker> {
    let node = system.node(node);
    let flag = match service {
        Service::Imap | Service::Pop3 => &a::REVERSE_PROXY_MAIL_ENABLED,
        Service::Web | Service::Admin => &a::REVERSE_PROXY_HTTP_ENABLED,
    };
    let off = Some(flag).filter(|flag| !node.flag(flag));
    off.map(|flag| Blocker::NodeDisabled(flag.name)).into_iter().collect()
}

fn account_blockers(service: Service, entry: &Entry, system: &System) -> Vec<Blocker> {
    let account = system.account(entry);
    let status = account.choice(&a::ACCOUNT_STATUS);
    let status = Some(status).filter(|status| *status != "active");
    let flag = match service {
        Service::Imap => Some(&a::IMAP_ENABLED),
        Service::Pop3 => Some(&a::POP3_ENABLED),
        Service::Web | Service::Admin => None,
    };
    let status = status.map(|status| Blocker::Status(status.to_owned()));
    let disabled = flag.filter(|flag| !account.flag(flag));
    status
        .into_iter()
        .chain(disabled.map(|flag| Blocker::ServiceDisabled(flag.name)))
        .collect()
}

fn server_blocker(route: &Route, system: &System) -> Option<Blocker> {
    let server = system.server(&route.server).filter(|_| !route.external)?;
    let services = server.list(&a::SERVICE_ENABLED);
    let holds = services.iter().any(|service| service.eq_ignore_ascii_case("mailbox"));
    (!holds).then(|| Blocker::NoMailboxServer(server.name().to_owned()))
}

/// Whether memory and directory name different servers.
fn moved(tiers: &[TierReport]) -> Option<Blocker> {
    let server = |wanted: &[Tier]| {
        tiers
            .iter()
            .find(|tier| wanted.contains(&tier.tier))
            .and_then(|tier| match &tier.answer {
                AnswerKind::Account { server, .. } => server.clone(),
                _ => None,
            })
    };
    let kept = server(&[Tier::Memory, Tier::Stale, Tier::KeptFile])?;
    let now = server(&[Tier::Directory])?;
    (kept != now).then_some(Blocker::Moved { kept, now })
}
