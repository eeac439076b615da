//! The meaning of the attributes for a login: who is it, on which server, at which port (MAIL §1.7).
//!
//! Split where the cache cuts: [`place`] asks the directory about an account and gives a [`Placement`], which
//! may be kept; [`route`] makes a [`Route`] of it with the servers, ports and modes of the moment. Nothing is
//! kept here.

use std::net::IpAddr;
use std::sync::Arc;

use mail_directory::attributes::{self, Attribute};
use mail_directory::{AccountBy, Directory, DirectoryError, Entry, System, View, domain_of, fold, names};

use crate::route::{Lookup, Offer, Route, RouteError, Server, Service, Subject, Tier, UpstreamTls};

/// Longest login name or id. Mail addresses end at 254; the mail proxy of nginx takes 256.
const MAX_SUBJECT: usize = 512;

/// Whom a lookup is about, in the one form under which he is cached and asked for: qualified and folded.
/// Names and ids can never be equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// `user@domain`.
    Name(Arc<str>),
    /// A `zimbraId`.
    Id(Arc<str>),
    /// A name without domain that only a lookup service can qualify, with what it goes by:
    /// `user@[address;host]`.
    Bare(Arc<str>),
}

impl Key {
    /// Normalises the subject of a lookup; here and nowhere else. Fails for what cannot be anybody's name.
    pub(crate) fn of(lookup: &Lookup, system: &System) -> Result<Key, RouteError> {
        let key = match &lookup.subject {
            Subject::Login(name) => Key::Name(Arc::from(names::account(&qualify(acceptable(name)?, lookup, system)?))),
            Subject::Id(id) => Key::Id(Arc::from(fold(acceptable(id)?))),
        };
        Ok(key)
    }

    /// The subject of a lookup as a lookup service hears it. A name without domain gets that of the virtual host or
    /// the virtual address that the client came to, if the directory knows it: Zimbra's service looks at the host
    /// for `http` alone (HTTP §3.5), and nginx's hears of neither. For others the service knows better, and for the
    /// cache such a name belongs to the address and host it was typed at.
    pub(crate) fn for_service(lookup: &Lookup, system: &System) -> Result<Key, RouteError> {
        let typed = match &lookup.subject {
            Subject::Login(name) => acceptable(name)?,
            Subject::Id(id) => return Ok(Key::Id(Arc::from(fold(acceptable(id)?)))),
        };
        match domain_for(typed, lookup, system) {
            Some((_, By::Itself)) => Ok(Key::Name(Arc::from(names::account(typed)))),
            Some((domain, By::VirtualHost | By::VirtualAddress)) => {
                Ok(Key::Name(Arc::from(names::account(&format!("{typed}@{domain}")))))
            }
            Some((_, By::Default)) | None => {
                let host = lookup
                    .host
                    .as_deref()
                    .filter(|_| matches!(lookup.service, Service::Web | Service::Admin));
                let local = lookup.local.to_canonical();
                let (user, host) = (names::account(typed), names::host(host.unwrap_or_default()));
                Ok(Key::Bare(Arc::from(format!("{user}@[{local};{host}]"))))
            }
        }
    }

    pub(crate) fn text(&self) -> &Arc<str> {
        match self {
            Key::Name(text) | Key::Id(text) | Key::Bare(text) => text,
        }
    }
}

/// Names with control characters are attacks on logs, filters and protocols, and empty ones are nobody's. Blanks
/// around a name are left out before it gets its domain.
fn acceptable(name: &str) -> Result<&str, RouteError> {
    let name = name.trim_matches(' ');
    if name.is_empty() || name.len() > MAX_SUBJECT || name.contains(char::is_control) {
        return Err(RouteError::UnknownUser);
    }
    Ok(name)
}

/// Adds the domain to a name without one: that of the host name the client asked for, else that of the local
/// address, else the default domain (MAIL §1.7 step 1, for all services alike).
pub(crate) fn qualify(name: &str, lookup: &Lookup, system: &System) -> Result<String, RouteError> {
    if name.contains('@') {
        return Ok(name.to_owned());
    }
    let (domain, _) = domain_for(name, lookup, system).ok_or(RouteError::UnknownUser)?;
    Ok(format!("{name}@{domain}"))
}

/// What tells the domain of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// The name.
    Itself,
    /// The host name that the client asked for.
    VirtualHost,
    /// The address that the client connected to.
    VirtualAddress,
    /// The global config.
    Default,
}

/// The domain of a name, and what tells it. Asked at every lookup, so it copies nothing.
pub(crate) fn domain_for<'a>(name: &'a str, lookup: &Lookup, system: &'a System) -> Option<(&'a str, By)> {
    if let Some(domain) = domain_of(name) {
        return Some((domain, By::Itself));
    }
    if let Some(domain) = lookup.host.as_deref().and_then(|host| system.domain_by_host(host)) {
        return Some((domain.name(), By::VirtualHost));
    }
    if let Some(domain) = system.domain_by_address(lookup.local) {
        return Some((domain.name(), By::VirtualAddress));
    }
    let default = system.global().text(&attributes::DEFAULT_DOMAIN_NAME)?;
    Some((default, By::Default))
}

/// What the directory says of an account, as far as routes depend on it. Small: there may be a million.
#[derive(Debug, Clone)]
pub(crate) struct Placement {
    /// Canonical name: the folded delivery address.
    pub(crate) account: Arc<str>,
    /// Its server, as `zimbraMailHost` names it; shared with the system where it knows that server.
    mail_host: Option<Arc<str>>,
    /// What few accounts have.
    special: Option<Box<Special>>,
}

/// What an account says about its login name and its external server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Special {
    /// The name to log in with, where `zimbraReverseProxyUserNameAttribute` says so.
    login: Option<Arc<str>>,
    /// `zimbraReverseProxyUseExternalRoute`.
    external: Option<bool>,
    /// Host and port by place in [`EXTERNAL`].
    servers: [(Option<Box<str>>, Option<u16>); 4],
    /// A lookup service gave these servers, each for its own protocol; it has to be asked for the others.
    piecemeal: bool,
}

/// Attributes of external servers.
const EXTERNAL: [(&Attribute, &Attribute); 4] = [
    (&attributes::EXTERNAL_IMAP_HOSTNAME, &attributes::EXTERNAL_IMAP_PORT),
    (
        &attributes::EXTERNAL_IMAP_SSL_HOSTNAME,
        &attributes::EXTERNAL_IMAP_SSL_PORT,
    ),
    (&attributes::EXTERNAL_POP3_HOSTNAME, &attributes::EXTERNAL_POP3_PORT),
    (
        &attributes::EXTERNAL_POP3_SSL_HOSTNAME,
        &attributes::EXTERNAL_POP3_SSL_PORT,
    ),
];

/// Names of the attributes that a [`Placement`] was read from. When the global config names others, what was
/// kept is no longer true.
#[derive(Debug)]
pub(crate) struct Reading {
    mail_host: String,
    login: Option<String>,
}

impl Reading {
    /// Whether the name to log in with is another attribute than the name of the account.
    pub(crate) fn names_logins(&self) -> bool {
        self.login.is_some()
    }

    /// What the global config says now.
    pub(crate) fn of(system: &System) -> Reading {
        let global = system.global();
        let mail_host = global
            .text(&attributes::REVERSE_PROXY_MAIL_HOST_ATTRIBUTE)
            .unwrap_or_default();
        let login = global.text(&attributes::REVERSE_PROXY_USER_NAME_ATTRIBUTE);
        Reading {
            mail_host: mail_host.to_owned(),
            login: login.map(str::to_owned),
        }
    }

    /// Whether this is still what the global config says. Asked at every lookup, so it copies nothing.
    pub(crate) fn is_of(&self, system: &System) -> bool {
        let global = system.global();
        global.text(&attributes::REVERSE_PROXY_MAIL_HOST_ATTRIBUTE) == Some(&self.mail_host)
            && global.text(&attributes::REVERSE_PROXY_USER_NAME_ATTRIBUTE) == self.login.as_deref()
    }
}

/// Asks the directory where an account is.
pub(crate) async fn place(
    directory: &dyn Directory,
    system: &System,
    key: &Key,
) -> Result<Option<Placement>, DirectoryError> {
    let entry = entry(directory, system, key).await?;
    Ok(entry.map(|entry| placement(&entry, key, system)))
}

/// Asks the directory for an account. In an alias domain the target domain is asked next (step 4).
pub(crate) async fn entry(
    directory: &dyn Directory,
    system: &System,
    key: &Key,
) -> Result<Option<Arc<Entry>>, DirectoryError> {
    let by = match key {
        Key::Name(name) | Key::Bare(name) => AccountBy::Name(name.to_string()),
        Key::Id(id) => AccountBy::Id(id.to_string()),
    };
    let mut entry = directory.account(&by).await?;
    if entry.is_none()
        && let Some(name) = in_target_domain(key, system)
    {
        entry = directory.account(&AccountBy::Name(name)).await?;
    }
    Ok(entry)
}

/// `user@alias.domain` → `user@target.domain`.
fn in_target_domain(key: &Key, system: &System) -> Option<String> {
    let Key::Name(name) = key else {
        return None;
    };
    let (user, domain) = name.rsplit_once('@')?;
    let domain = system
        .domain(domain)
        .filter(|d| d.choice(&attributes::DOMAIN_TYPE) == "alias")?;
    let target = system.domain_by_id(domain.text(&attributes::DOMAIN_ALIAS_TARGET_ID)?)?;
    Some(format!("{user}@{}", names::host(target.name())))
}

/// What an entry says of its account's place.
pub(crate) fn placement(entry: &Entry, key: &Key, system: &System) -> Placement {
    let reading = Reading::of(system);
    let account = names::account(
        entry
            .first(attributes::MAIL_DELIVERY_ADDRESS.name)
            .unwrap_or(entry.name()),
    );
    let mail_host = entry
        .first(&reading.mail_host)
        .map(|host| match system.server_key(host) {
            Some(shared) => shared.clone(),
            None => Arc::from(host),
        });
    let login = reading.login.and_then(|attribute| entry.first(&attribute));
    Placement {
        // One text for the key and the value, where they are the same.
        account: if **key.text() == *account {
            key.text().clone()
        } else {
            Arc::from(account)
        },
        mail_host,
        special: special(system.account(entry), login),
    }
}

fn special(account: View<'_>, login: Option<&str>) -> Option<Box<Special>> {
    let found = Special {
        login: login.map(Arc::from),
        external: account.flag_if_set(&attributes::REVERSE_PROXY_USE_EXTERNAL_ROUTE),
        servers: EXTERNAL.map(|(host, port)| (account.text(host).map(Box::from), account.port(port))),
        piecemeal: false,
    };
    (found != Special::default()).then(|| Box::new(found))
}

impl Placement {
    /// An account on a server of the directory, where somebody else than its entry said so. He had the last word
    /// about external servers, too.
    pub(crate) fn on(server: &Arc<str>, account: Arc<str>, login: Option<Arc<str>>, system: &System) -> Placement {
        let flag = &attributes::REVERSE_PROXY_USE_EXTERNAL_ROUTE;
        let elsewhere = system.domain_of(&account).is_some_and(|domain| domain.flag(flag));
        let special = Special {
            login,
            external: elsewhere.then_some(false),
            ..Special::default()
        };
        Placement {
            account,
            mail_host: Some(server.clone()),
            special: (special != Special::default()).then(|| Box::new(special)),
        }
    }

    /// An account on a server that is not in the directory, known for one mail protocol only. `None` for the web.
    pub(crate) fn outside(
        protocol: Protocol,
        host: &str,
        port: u16,
        account: Arc<str>,
        login: Option<Arc<str>>,
    ) -> Option<Placement> {
        let mut special = Special {
            login,
            external: Some(true),
            piecemeal: true,
            ..Special::default()
        };
        special.servers[protocol.external?] = (Some(Box::from(host)), Some(port));
        Some(Placement {
            account,
            mail_host: None,
            special: Some(Box::new(special)),
        })
    }

    /// Whether this says where to go for a protocol. If not, somebody has to be asked for it.
    pub(crate) fn answers(&self, protocol: Protocol) -> bool {
        self.pieces()
            .is_none_or(|own| protocol.external.is_some_and(|place| own.servers[place].1.is_some()))
    }

    /// Adds what an older answer said of other protocols. False if there was nothing to add.
    pub(crate) fn join(&mut self, older: &Placement) -> bool {
        let (Some(_), Some(theirs)) = (self.pieces(), older.pieces()) else {
            return false;
        };
        let Some(own) = self.special.as_mut().filter(|own| own.login == theirs.login) else {
            return false;
        };
        let mut joined = false;
        for (mine, other) in own.servers.iter_mut().zip(&theirs.servers) {
            if mine.1.is_none() && other.1.is_some() {
                mine.clone_from(other);
                joined = true;
            }
        }
        joined
    }

    /// The server of the directory that the account is on. `None` if it may be elsewhere for some protocol.
    pub(crate) fn server(&self) -> Option<&Arc<str>> {
        let inside = self.special.as_ref().is_none_or(|own| own.external != Some(true));
        self.mail_host.as_ref().filter(|_| inside)
    }

    fn pieces(&self) -> Option<&Special> {
        self.special.as_deref().filter(|own| own.piecemeal)
    }

    /// The name to log in with at the server.
    fn login(&self) -> &Arc<str> {
        let special = self.special.as_ref().and_then(|special| special.login.as_ref());
        special.unwrap_or(&self.account)
    }
}

/// The route for a lookup in one protocol, given what is known of its subject (`None`: no such account).
pub(crate) fn route(
    lookup: &Lookup,
    key: &Key,
    placement: Option<&Placement>,
    system: &System,
    protocol: Protocol,
    tier: Tier,
) -> Result<Route, RouteError> {
    let name = placement.map_or(key.text(), |placement| &placement.account);
    let domain = system.domain_of(name);
    allowed(domain, lookup.client)?;
    let wanted = Wanted {
        lookup,
        name,
        domain,
        protocol,
        tier,
    };
    let Some(placement) = placement else {
        return wanted.split_domain().ok_or(RouteError::UnknownUser);
    };
    match wanted.external(placement) {
        Some(route) => Ok(route),
        None => wanted.internal(placement, system),
    }
}

/// Step 3: the domain's list of client addresses, IPv4 and IPv6. It also guards accounts that exist only at an
/// external server. A list of which nothing can be read admits nobody.
fn allowed(domain: Option<View<'_>>, client: IpAddr) -> Result<(), RouteError> {
    let Some(domain) = domain else {
        return Ok(());
    };
    let list = &attributes::DOMAIN_ALLOWED_IPS;
    if domain.list(list).is_empty() {
        return Ok(());
    }
    let client = client.to_canonical();
    if domain.networks(list).iter().any(|network| network.contains(&client)) {
        return Ok(());
    }
    Err(RouteError::NotAllowed {
        domain: domain.name().to_owned(),
    })
}

/// A service together with whether it is spoken in TLS: what Zimbra calls the protocol.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Protocol {
    service: Service,
    /// As in the error texts and the lookup protocol of Zimbra.
    name: &'static str,
    /// The attribute that names the attribute with the port (step 6).
    port: &'static Attribute,
    /// Place in [`EXTERNAL`]; mail only.
    external: Option<usize>,
    tls: bool,
}

impl Protocol {
    /// What a node speaks to mailbox servers.
    pub(crate) fn of(service: Service, node: View<'_>) -> Protocol {
        match service == Service::Admin || node.flag(&attributes::REVERSE_PROXY_SSL_TO_UPSTREAM_ENABLED) {
            true => Protocol::tls(service),
            false => Protocol::clear(service),
        }
    }

    /// The protocol of this name; administration is told from the web by another header.
    pub(crate) fn named(name: &str) -> Option<Protocol> {
        let services = [Service::Imap, Service::Pop3, Service::Web];
        let mut all = services.into_iter().flat_map(Protocol::both);
        all.find(|protocol| protocol.name == name)
    }

    pub(crate) fn tls(service: Service) -> Protocol {
        let (name, port, external) = match service {
            Service::Imap => ("imapssl", &attributes::REVERSE_PROXY_IMAP_SSL_PORT_ATTRIBUTE, Some(1)),
            Service::Pop3 => ("pop3ssl", &attributes::REVERSE_PROXY_POP3_SSL_PORT_ATTRIBUTE, Some(3)),
            Service::Web => ("httpssl", &attributes::REVERSE_PROXY_HTTP_SSL_PORT_ATTRIBUTE, None),
            Service::Admin => ("httpssl", &attributes::REVERSE_PROXY_ADMIN_PORT_ATTRIBUTE, None),
        };
        Protocol {
            service,
            name,
            port,
            external,
            tls: true,
        }
    }

    /// A service without and with TLS.
    pub(crate) fn both(service: Service) -> [Protocol; 2] {
        [Protocol::clear(service), Protocol::tls(service)]
    }

    fn clear(service: Service) -> Protocol {
        let (name, port, external) = match service {
            Service::Imap => ("imap", &attributes::REVERSE_PROXY_IMAP_PORT_ATTRIBUTE, Some(0)),
            Service::Pop3 => ("pop3", &attributes::REVERSE_PROXY_POP3_PORT_ATTRIBUTE, Some(2)),
            Service::Web => ("http", &attributes::REVERSE_PROXY_HTTP_PORT_ATTRIBUTE, None),
            Service::Admin => return Protocol::tls(Service::Admin),
        };
        Protocol {
            service,
            name,
            port,
            external,
            tls: false,
        }
    }

    /// The service that is spoken.
    pub(crate) fn service(self) -> Service {
        self.service
    }

    /// Zimbra's word for it.
    pub(crate) fn name(self) -> &'static str {
        self.name
    }

    /// Whether it is for mail programs, whose names are written with `%XX`.
    pub(crate) fn is_mail(self) -> bool {
        self.external.is_some()
    }

    /// Step 6: how a server is reached. The error says what is missing.
    pub(crate) fn at(self, server: View<'_>, system: &System) -> Result<Server, String> {
        let port = system.global().text(self.port).and_then(|name| server.port_named(name));
        let Some(port) = port else {
            return Err(format!(
                "missing port for protocol {} on server {}",
                self.name,
                server.name()
            ));
        };
        let host = server.text(&attributes::SERVICE_HOSTNAME).unwrap_or(server.name());
        let host = &*names::reachable(host);
        Ok(Server {
            name: Arc::from(server.name()),
            host: Arc::from(host),
            port,
            tls: self.upstream_tls(certified_name(host, &names::reachable(server.name()))),
        })
    }

    fn upstream_tls(self, name: &str) -> UpstreamTls {
        match self.tls {
            true => UpstreamTls::Implicit { name: Arc::from(name) },
            false => UpstreamTls::Clear,
        }
    }
}

/// What is known when a route is made.
struct Wanted<'a> {
    lookup: &'a Lookup,
    /// The account, or the qualified login if there is none.
    name: &'a Arc<str>,
    domain: Option<View<'a>>,
    protocol: Protocol,
    tier: Tier,
}

impl Wanted<'_> {
    /// The account is not in the directory, but its domain has a second home for such.
    fn split_domain(&self) -> Option<Route> {
        let flag = &attributes::REVERSE_PROXY_USE_EXTERNAL_ROUTE_IF_ACCOUNT_NOT_EXIST;
        let is_name = matches!(self.lookup.subject, Subject::Login(_));
        self.domain.filter(|domain| is_name && domain.flag(flag))?;
        self.external_server(None)
    }

    /// Step 5: the account's own word, else that of its domain. An incomplete address is as good as none.
    fn external(&self, placement: &Placement) -> Option<Route> {
        let flag = &attributes::REVERSE_PROXY_USE_EXTERNAL_ROUTE;
        let own = placement.special.as_deref();
        let wanted = own
            .and_then(|own| own.external)
            .unwrap_or_else(|| self.domain.is_some_and(|domain| domain.flag(flag)));
        if !wanted || self.protocol.external.is_none() {
            return None;
        }
        let route = self.external_server(Some(placement));
        if route.is_none() {
            log::info!(
                "external route of {} is incomplete for {}",
                self.name,
                self.protocol.name
            );
        }
        route
    }

    fn external_server(&self, placement: Option<&Placement>) -> Option<Route> {
        let place = self.protocol.external?;
        let (host_attribute, port_attribute) = EXTERNAL[place];
        let own = placement.and_then(|placement| placement.special.as_ref());
        let (own_host, own_port) = own.map_or((None, None), |own| {
            let (host, port) = &own.servers[place];
            (host.as_deref(), *port)
        });
        let host = own_host.or_else(|| self.domain?.text(host_attribute))?;
        let port = own_port.or_else(|| self.domain?.port(port_attribute))?;
        let host = &*names::reachable(host);
        let server: Arc<str> = Arc::from(host);
        Some(Route {
            account: self.name.clone(),
            login: self.external_login(placement.map_or(self.name, Placement::login)),
            host: server.clone(),
            server,
            port,
            tls: self.protocol.upstream_tls(host),
            external: true,
            tier: self.tier,
        })
    }

    fn external_login(&self, login: &Arc<str>) -> Arc<str> {
        let flag = &attributes::REVERSE_PROXY_EXTERNAL_ROUTE_INCLUDE_ORIGINAL_AUTHUSERNAME;
        match &self.lookup.subject {
            Subject::Login(typed) if self.domain.is_some_and(|domain| domain.flag(flag)) => Arc::from(&**typed),
            Subject::Login(_) | Subject::Id(_) => login.clone(),
        }
    }

    /// Steps 4 and 6: the account's server and its port.
    fn internal(&self, placement: &Placement, system: &System) -> Result<Route, RouteError> {
        let missing = |text: String| Err(RouteError::NoRoute(text));
        let Some(mail_host) = &placement.mail_host else {
            return missing(format!("mailhost not found for user: {}", self.name));
        };
        let Some(server) = system.server(mail_host) else {
            return missing(format!("server {mail_host} is not in the directory"));
        };
        let server = self.protocol.at(server, system).map_err(RouteError::NoRoute)?;
        Ok(Route {
            account: placement.account.clone(),
            login: placement.login().clone(),
            server: server.name,
            host: server.host,
            port: server.port,
            tls: server.tls,
            external: false,
            tier: self.tier,
        })
    }
}

impl Offer {
    /// The servers of this group; `node` names the proxy whose modes count. A server whose port is missing, or that
    /// is named and not there, is left out.
    pub fn servers(self, system: &System, node: &str) -> Vec<Server> {
        let node = system.node(node);
        let (service, named) = match self {
            Offer::Web => (Service::Web, None),
            Offer::Admin => (Service::Admin, None),
            Offer::Ews => (Service::Web, Some(&attributes::REVERSE_PROXY_UPSTREAM_EWS_SERVERS)),
            Offer::Login => (Service::Web, Some(&attributes::REVERSE_PROXY_UPSTREAM_LOGIN_SERVERS)),
        };
        let protocol = Protocol::of(service, node);
        let found: Vec<View<'_>> = match named {
            None => system.web_servers().collect(),
            Some(list) => node
                .list(list)
                .into_iter()
                .filter_map(|name| system.server(name))
                .collect(),
        };
        let reached = found.into_iter().filter_map(|server| protocol.at(server, system).ok());
        reached.collect()
    }
}

/// The name that the server's certificate should have: its host name, or where that is an address the name of
/// its entry, or where that is no host name either the address.
fn certified_name<'a>(host: &'a str, entry: &'a str) -> &'a str {
    let is_address = host.parse::<IpAddr>().is_ok();
    if is_address && is_host_name(entry) { entry } else { host }
}

/// Letters, digits, hyphens and at least one dot; no address.
fn is_host_name(name: &str) -> bool {
    let label = |l: &str| !l.is_empty() && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    name.contains('.') && name.split('.').all(label) && name.parse::<IpAddr>().is_err()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::path::Path;

    use super::*;
    use mail_directory::file::YamlDirectory;

    const SYSTEM: &str = "
config: {zimbraDefaultDomainName: a.test}
servers:
  proxy.test: {zimbraServiceEnabled: proxy}
  clear.test: {zimbraServiceEnabled: proxy, zimbraReverseProxySSLToUpstreamEnabled: FALSE}
  store1.test: {zimbraServiceHostname: 127.0.0.2, zimbraImapSSLBindPort: 1993, zimbraServiceEnabled: mailbox}
  store2: {zimbraServiceHostname: host2.test, zimbraMailSSLPort: 0}
  store3: {zimbraServiceHostname: 127.0.0.3}
domains:
  a.test: {}
  v.test: {zimbraVirtualHostname: [mail.v.test, '*.w.test'], zimbraVirtualIPAddress: 192.0.2.7}
  guarded.test: {zimbraDomainAllowedIPs: [10.0.0.0/8, 'fd00::/8', 192.0.2.1]}
  broken.test: {zimbraId: id-broken}
  alias.test: {zimbraDomainType: alias, zimbraDomainAliasTargetId: id-target}
  target.test: {zimbraId: id-target}
  ext.test:
    zimbraReverseProxyUseExternalRoute: TRUE
    zimbraExternalImapSSLHostname: imap.ext.test
    zimbraExternalImapSSLPort: 993
    zimbraExternalPop3SSLHostname: pop.ext.test
  split.test:
    zimbraReverseProxyUseExternalRouteIfAccountNotExist: TRUE
    zimbraReverseProxyExternalRouteIncludeOriginalAuthusername: TRUE
    zimbraExternalImapHostname: old.split.test
    zimbraExternalImapPort: 143
    zimbraExternalImapSSLHostname: old.split.test
    zimbraExternalImapSSLPort: 994
    zimbraDomainAllowedIPs: 192.0.2.0/24
accounts:
  alice@a.test: {zimbraMailHost: store1.test, zimbraMailAlias: [Al@a.test, al@v.test], zimbraId: ID-Alice}
  key: {zimbraMailDeliveryAddress: Bob@a.test, zimbraMailHost: HOST2.test, uid: bobby}
  carl@v.test: {zimbraMailHost: store3}
  nohost@a.test: {}
  lost@a.test: {zimbraMailHost: gone.test}
  dora@guarded.test: {zimbraMailHost: store1.test}
  emil@target.test: {zimbraMailHost: store1.test}
  own@alias.test: {zimbraMailHost: store2}
  fay@ext.test: {zimbraMailHost: store1.test}
  gil@ext.test: {zimbraMailHost: store1.test, zimbraReverseProxyUseExternalRoute: FALSE}
  hal@ext.test: {zimbraMailHost: store1.test, zimbraExternalImapSSLPort: 1234, zimbraExternalPop3SSLPort: 5}
  ida@a.test:
    zimbraMailHost: store1.test
    zimbraReverseProxyUseExternalRoute: TRUE
    zimbraExternalImapSSLHostname: ida.test
    zimbraExternalImapSSLPort: 999
  jo@split.test: {zimbraMailHost: store1.test}
";

    fn lookup(subject: Subject, service: Service) -> Lookup {
        let address = "192.0.2.1".parse().unwrap();
        Lookup {
            subject,
            service,
            client: address,
            local: "192.0.2.99".parse().unwrap(),
            host: None,
        }
    }

    fn imap(login: &str) -> Lookup {
        lookup(Subject::Login(login.to_owned()), Service::Imap)
    }

    /// The route on `node`, in one line: account, login, server, host:port, TLS name.
    async fn answer(directory: &YamlDirectory, lookup: &Lookup, node: &str) -> String {
        let system = directory.system();
        let result = async {
            let key = Key::of(lookup, &system)?;
            let placement = place(directory, &system, &key).await?;
            let protocol = Protocol::of(lookup.service, system.node(node));
            route(lookup, &key, placement.as_ref(), &system, protocol, Tier::Directory)
        };
        match result.await {
            Err(error) => error.to_string(),
            Ok(r) => {
                let tls = match r.tls {
                    UpstreamTls::Clear => "clear".to_owned(),
                    UpstreamTls::Implicit { name } => name.to_string(),
                };
                format!("{} {} {} {}:{} {tls}", r.account, r.login, r.server, r.host, r.port)
            }
        }
    }

    #[track_caller]
    fn check(lookup: &Lookup, expected: &str) {
        check_on(SYSTEM, "proxy.test", lookup, expected);
    }

    #[track_caller]
    fn check_on(yaml: &str, node: &str, lookup: &Lookup, expected: &str) {
        let (directory, _) = YamlDirectory::parse(yaml, Path::new("d.yaml")).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let found = runtime.block_on(answer(&directory, lookup, node));
        assert_eq!(found, expected, "{lookup:?}");
    }

    const ALICE: &str = "alice@a.test alice@a.test store1.test 127.0.0.2:1993 store1.test";

    #[test]
    fn names_are_qualified() {
        let with = |host: Option<&str>, local: &str| {
            let host = host.map(str::to_owned);
            Lookup {
                host,
                local: local.parse().unwrap(),
                ..imap("carl")
            }
        };
        let carl = "carl@v.test carl@v.test store3 127.0.0.3:7993 127.0.0.3";
        check(&imap("alice"), ALICE);
        check(&imap("ALICE@A.Test"), ALICE);
        check(&with(None, "192.0.2.99"), "no such account");
        check(&with(Some("mail.v.test"), "192.0.2.99"), carl);
        check(&with(Some("Any.W.test"), "192.0.2.99"), carl);
        check(&with(Some("unknown.test"), "192.0.2.7"), carl);
        check(&with(None, "::ffff:192.0.2.7"), carl);
        let other = Lookup {
            host: Some("mail.v.test".to_owned()),
            ..imap("alice@a.test")
        };
        check(&other, ALICE);
        let no_default = SYSTEM.replace("zimbraDefaultDomainName: a.test", "");
        check_on(&no_default, "proxy.test", &imap("alice"), "no such account");
    }

    #[test]
    fn names_that_are_none_are_refused_before_the_directory_is_asked() {
        let long = "a".repeat(513);
        for name in [
            "",
            "al\0ice@a.test",
            "alice@a.test\r\n",
            "\u{85}alice@a.test",
            "\u{7f}",
            &long,
        ] {
            check(&imap(name), "no such account");
            check(&lookup(Subject::Id(name.to_owned()), Service::Web), "no such account");
        }
        for name in [
            "@",
            "alice@",
            "@a.test",
            "alice@@a.test",
            "al ice@a.test",
            "alice @a.test",
            "*",
            "alice@a.test@a.test",
        ] {
            check(&imap(name), "no such account");
        }
    }

    #[test]
    fn accounts_are_found_by_name_alias_and_id_and_called_by_their_canonical_name() {
        check(&imap("al@a.test"), ALICE);
        check(&imap("AL@V.test"), ALICE);
        check(&imap("  al@a.test "), ALICE);
        check(&lookup(Subject::Id("id-ALICE".to_owned()), Service::Imap), ALICE);
        check(
            &lookup(Subject::Id("alice@a.test".to_owned()), Service::Imap),
            "no such account",
        );
        check(&imap("id-alice"), "no such account");
        check(&imap("bob"), "bob@a.test bob@a.test store2 host2.test:7993 host2.test");
        check(&imap("nobody@a.test"), "no such account");
        check(&imap("nobody@nowhere.test"), "no such account");
    }

    #[test]
    fn alias_domains_stand_for_their_target() {
        let emil = "emil@target.test emil@target.test store1.test 127.0.0.2:1993 store1.test";
        check(&imap("emil@alias.test"), emil);
        check(
            &imap("own@alias.test"),
            "own@alias.test own@alias.test store2 host2.test:7993 host2.test",
        );
        check(&imap("nobody@alias.test"), "no such account");
    }

    #[test]
    fn ports_follow_service_mode_and_the_attribute_that_names_them() {
        let subject = || Subject::Login("alice".to_owned());
        for (service, node, port, tls) in [
            (Service::Imap, "proxy.test", 1993, "store1.test"),
            (Service::Imap, "clear.test", 7143, "clear"),
            (Service::Imap, "no-such-node", 1993, "store1.test"),
            (Service::Pop3, "proxy.test", 7995, "store1.test"),
            (Service::Pop3, "clear.test", 7110, "clear"),
            (Service::Web, "proxy.test", 8443, "store1.test"),
            (Service::Web, "clear.test", 8080, "clear"),
            (Service::Admin, "proxy.test", 7071, "store1.test"),
            (Service::Admin, "clear.test", 7071, "store1.test"),
        ] {
            let expected = format!("alice@a.test alice@a.test store1.test 127.0.0.2:{port} {tls}");
            check_on(SYSTEM, node, &lookup(subject(), service), &expected);
        }
        let bob = lookup(Subject::Login("bob".to_owned()), Service::Web);
        check(&bob, "bob@a.test bob@a.test store2 host2.test:8443 host2.test");
        let named = SYSTEM
            .replace("config: {", "config: {zimbraReverseProxyHttpSSLPortAttribute: myPort, ")
            .replace("zimbraMailSSLPort: 0", "MYPORT: 4444");
        check_on(
            &named,
            "proxy.test",
            &bob,
            "bob@a.test bob@a.test store2 host2.test:4444 host2.test",
        );
        let alice = lookup(subject(), Service::Web);
        check_on(
            &named,
            "proxy.test",
            &alice,
            "missing port for protocol httpssl on server store1.test",
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        check(&imap("nohost"), "mailhost not found for user: nohost@a.test");
        check(&imap("lost"), "server gone.test is not in the directory");
    }

    #[test]
    fn domains_admit_their_networks_only() {
        let dora = "dora@guarded.test dora@guarded.test store1.test 127.0.0.2:1993 store1.test";
        let refused = "client address is not allowed on domain guarded.test";
        for (client, expected) in [
            ("10.1.2.3", dora),
            ("::ffff:10.1.2.3", dora),
            ("192.0.2.1", dora),
            ("fd00::1", dora),
            ("192.0.2.2", refused),
            ("2001:db8::1", refused),
            ("::10.1.2.3", refused),
        ] {
            check(
                &Lookup {
                    client: client.parse().unwrap(),
                    ..imap("dora@guarded.test")
                },
                expected,
            );
        }
        // Unknown accounts have no external home here, so nothing is gained by hiding the list.
        check(
            &Lookup {
                client: "192.0.2.2".parse().unwrap(),
                ..imap("x@guarded.test")
            },
            refused,
        );
    }

    #[test]
    fn external_routes_are_the_accounts_or_else_the_domains() {
        let internal = |name: &str| format!("{name}@ext.test {name}@ext.test store1.test 127.0.0.2:1993 store1.test");
        check(
            &imap("fay@ext.test"),
            "fay@ext.test fay@ext.test imap.ext.test imap.ext.test:993 imap.ext.test",
        );
        check(&imap("gil@ext.test"), &internal("gil"));
        check(
            &imap("hal@ext.test"),
            "hal@ext.test hal@ext.test imap.ext.test imap.ext.test:1234 imap.ext.test",
        );
        check(&imap("ida"), "ida@a.test ida@a.test ida.test ida.test:999 ida.test");
        let pop3 = |login: &str| Lookup {
            service: Service::Pop3,
            ..imap(login)
        };
        check(
            &pop3("hal@ext.test"),
            "hal@ext.test hal@ext.test pop.ext.test pop.ext.test:5 pop.ext.test",
        );
        // Incomplete: the domain has no port for POP3.
        check(
            &pop3("fay@ext.test"),
            "fay@ext.test fay@ext.test store1.test 127.0.0.2:7995 store1.test",
        );
        // Nor anything for clear IMAP.
        let clear = "fay@ext.test fay@ext.test store1.test 127.0.0.2:7143 clear";
        check_on(SYSTEM, "clear.test", &imap("fay@ext.test"), clear);
        let web = Lookup {
            service: Service::Web,
            ..imap("fay@ext.test")
        };
        check(&web, "fay@ext.test fay@ext.test store1.test 127.0.0.2:8443 store1.test");
    }

    #[test]
    fn split_domains_send_unknown_accounts_to_their_other_home() {
        let known = "jo@split.test jo@split.test store1.test 127.0.0.2:1993 store1.test";
        check(&imap("jo@split.test"), known);
        let typed = "new@split.test New@SPLIT.test old.split.test old.split.test:994 old.split.test";
        check(&imap("New@SPLIT.test"), typed);
        let clear = "new@split.test new@split.test old.split.test old.split.test:143 clear";
        check_on(SYSTEM, "clear.test", &imap("new@split.test"), clear);
        for service in [Service::Pop3, Service::Web, Service::Admin] {
            check(
                &Lookup {
                    service,
                    ..imap("new@split.test")
                },
                "no such account",
            );
        }
        let elsewhere = Lookup {
            client: "10.0.0.1".parse().unwrap(),
            ..imap("new@split.test")
        };
        check(&elsewhere, "client address is not allowed on domain split.test");
    }

    #[test]
    fn the_login_name_may_come_from_an_attribute() {
        let named = SYSTEM.replace("config: {", "config: {zimbraReverseProxyUserNameAttribute: UID, ");
        check_on(
            &named,
            "proxy.test",
            &imap("bob"),
            "bob@a.test bobby store2 host2.test:7993 host2.test",
        );
        check_on(&named, "proxy.test", &imap("alice"), ALICE);
        let hosts = SYSTEM.replace("config: {", "config: {zimbraReverseProxyMailHostAttribute: otherHost, ");
        check_on(
            &hosts,
            "proxy.test",
            &imap("alice"),
            "mailhost not found for user: alice@a.test",
        );
    }

    /// Two questions may share a key only if they are about the same qualified name, or the same id.
    #[test]
    fn different_subjects_never_share_a_key() {
        let (directory, _) = YamlDirectory::parse(SYSTEM, Path::new("d.yaml")).unwrap();
        let system = directory.system();
        let words = [
            "a", "b", "A", "a@a.test", "a@v.test", "b@a.test", "id", "user=a", "a;ip=1", "ä", "Ä", "a@A.TEST",
        ];
        let hosts = [None, Some("mail.v.test"), Some("x.w.test"), Some("a.test"), Some("*")];
        let locals = ["192.0.2.7", "192.0.2.8", "::1"];
        let mut seen: HashMap<Key, (bool, String)> = HashMap::new();
        for word in words {
            for host in hosts {
                for local in locals {
                    let login = Lookup {
                        host: host.map(str::to_owned),
                        local: local.parse().unwrap(),
                        ..imap(word)
                    };
                    let virtual_domain = matches!(host, Some("mail.v.test" | "x.w.test")) || local == "192.0.2.7";
                    let domain = if virtual_domain { "v.test" } else { "a.test" };
                    let bare = !word.contains('@');
                    let meant = if bare {
                        format!("{word}@{domain}")
                    } else {
                        word.to_owned()
                    }
                    .to_lowercase();
                    let key = Key::of(&login, &system).unwrap();
                    assert_eq!(*seen.entry(key).or_insert((true, meant.clone())), (true, meant));
                    let id = Lookup {
                        subject: Subject::Id(word.to_owned()),
                        ..login
                    };
                    let meant = (false, word.to_lowercase());
                    assert_eq!(
                        *seen.entry(Key::of(&id, &system).unwrap()).or_insert(meant.clone()),
                        meant
                    );
                }
            }
        }
    }
}
