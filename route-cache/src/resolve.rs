//! The meaning of the attributes for a login: who is it, on which server, at which port (MAIL §1.7).
//!
//! Split where the cache cuts: [`place`] asks the directory about an account and gives a [`Placement`], which
//! may be kept; [`route`] makes a [`Route`] of it with the servers, ports and modes of the moment. Nothing is
//! kept here.

use std::net::IpAddr;
use std::sync::Arc;

use crate::attributes::{self, Attribute};
use crate::directory::{AccountBy, Directory, DirectoryError, Entry, System, View, fold};
use crate::route::{Lookup, Route, RouteError, Server, Service, Subject, Tier, UpstreamTls};

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
}

impl Key {
    /// Normalises the subject of a lookup; here and nowhere else. Fails for what cannot be anybody's name.
    pub(crate) fn of(lookup: &Lookup, system: &System) -> Result<Key, RouteError> {
        let key = match &lookup.subject {
            Subject::Login(name) => Key::Name(Arc::from(fold(&qualify(acceptable(name)?, lookup, system)?))),
            Subject::Id(id) => Key::Id(Arc::from(fold(acceptable(id)?))),
        };
        Ok(key)
    }

    fn text(&self) -> &Arc<str> {
        match self {
            Key::Name(text) | Key::Id(text) => text,
        }
    }
}

/// Names with control characters are attacks on logs, filters and protocols, and empty ones are nobody's.
fn acceptable(name: &str) -> Result<&str, RouteError> {
    if name.is_empty() || name.len() > MAX_SUBJECT || name.contains(char::is_control) {
        return Err(RouteError::UnknownUser);
    }
    Ok(name)
}

/// Adds the domain to a name without one: that of the host name the client asked for, else that of the local
/// address, else the default domain (MAIL §1.7 step 1, for all services alike).
fn qualify(name: &str, lookup: &Lookup, system: &System) -> Result<String, RouteError> {
    if name.contains('@') {
        return Ok(name.to_owned());
    }
    let by_host = || lookup.host.as_deref().and_then(|host| system.domain_by_host(host));
    let domain = by_host()
        .or_else(|| system.domain_by_address(lookup.local))
        .map(|domain| domain.name());
    let domain = domain.or_else(|| system.global().text(&attributes::DEFAULT_DOMAIN_NAME));
    domain
        .map(|domain| format!("{name}@{domain}"))
        .ok_or(RouteError::UnknownUser)
}

/// What the directory says of an account, as far as routes depend on it. Small: there may be a million.
#[derive(Debug, Clone)]
pub(crate) struct Placement {
    /// Canonical name: the folded delivery address.
    pub(crate) account: Arc<str>,
    /// Its server, as `zimbraMailHost` names it; shared with the system where it knows that server.
    mail_host: Option<Arc<str>>,
    /// The name to log in with, where `zimbraReverseProxyUserNameAttribute` says so.
    login: Option<Arc<str>>,
    /// What the account itself says about an external server; mostly nothing.
    external: Option<Box<External>>,
}

/// The external route attributes of one account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct External {
    wanted: Option<bool>,
    /// Host and port by place in [`EXTERNAL`].
    servers: [(Option<Box<str>>, Option<u16>); 4],
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

/// Asks the directory where an account is. In an alias domain the target domain is asked next (step 4).
pub(crate) async fn place(
    directory: &dyn Directory,
    system: &System,
    key: &Key,
) -> Result<Option<Placement>, DirectoryError> {
    let by = match key {
        Key::Name(name) => AccountBy::Name(name.to_string()),
        Key::Id(id) => AccountBy::Id(id.to_string()),
    };
    let mut entry = directory.account(&by).await?;
    if entry.is_none()
        && let Some(name) = in_target_domain(key, system)
    {
        entry = directory.account(&AccountBy::Name(name)).await?;
    }
    Ok(entry.map(|entry| placement(&entry, key, system)))
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
    Some(format!("{user}@{}", fold(target.name())))
}

fn placement(entry: &Entry, key: &Key, system: &System) -> Placement {
    let reading = Reading::of(system);
    let account = fold(
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
    Placement {
        // One text for the key and the value, where they are the same.
        account: if **key.text() == *account {
            key.text().clone()
        } else {
            Arc::from(account)
        },
        mail_host,
        login: reading
            .login
            .and_then(|attribute| entry.first(&attribute))
            .map(Arc::from),
        external: external(system.account(entry)),
    }
}

fn external(account: View<'_>) -> Option<Box<External>> {
    let found = External {
        wanted: account.flag_if_set(&attributes::REVERSE_PROXY_USE_EXTERNAL_ROUTE),
        servers: EXTERNAL.map(|(host, port)| (account.text(host).map(Box::from), account.port(port))),
    };
    (found != External::default()).then(|| Box::new(found))
}

/// The route for a lookup, given what is known of its subject (`None`: no such account). `node` names the
/// proxy whose modes count.
pub(crate) fn route(
    lookup: &Lookup,
    key: &Key,
    placement: Option<&Placement>,
    system: &System,
    node: &str,
    tier: Tier,
) -> Result<Route, RouteError> {
    let name = placement.map_or(key.text(), |placement| &placement.account);
    let domain = system.domain_of(name);
    allowed(domain, lookup.client)?;
    let wanted = Wanted {
        lookup,
        name,
        domain,
        protocol: Protocol::of(lookup.service, system.node(node)),
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
struct Protocol {
    /// As in the error texts and the lookup protocol of Zimbra.
    name: &'static str,
    /// The attribute that names the attribute with the port (step 6).
    port: &'static Attribute,
    /// Place in [`EXTERNAL`]; mail only.
    external: Option<usize>,
    tls: bool,
}

impl Protocol {
    fn of(service: Service, node: View<'_>) -> Protocol {
        let tls = service == Service::Admin || node.flag(&attributes::REVERSE_PROXY_SSL_TO_UPSTREAM_ENABLED);
        let (name, port, external) = match (service, tls) {
            (Service::Imap, false) => ("imap", &attributes::REVERSE_PROXY_IMAP_PORT_ATTRIBUTE, Some(0)),
            (Service::Imap, true) => ("imapssl", &attributes::REVERSE_PROXY_IMAP_SSL_PORT_ATTRIBUTE, Some(1)),
            (Service::Pop3, false) => ("pop3", &attributes::REVERSE_PROXY_POP3_PORT_ATTRIBUTE, Some(2)),
            (Service::Pop3, true) => ("pop3ssl", &attributes::REVERSE_PROXY_POP3_SSL_PORT_ATTRIBUTE, Some(3)),
            (Service::Web, false) => ("http", &attributes::REVERSE_PROXY_HTTP_PORT_ATTRIBUTE, None),
            (Service::Web, true) => ("httpssl", &attributes::REVERSE_PROXY_HTTP_SSL_PORT_ATTRIBUTE, None),
            (Service::Admin, _) => ("httpssl", &attributes::REVERSE_PROXY_ADMIN_PORT_ATTRIBUTE, None),
        };
        Protocol {
            name,
            port,
            external,
            tls,
        }
    }

    /// Step 6: how a server is reached. The error says what is missing.
    fn at(self, server: View<'_>, system: &System) -> Result<Server, String> {
        let port = system.global().text(self.port).and_then(|name| server.port_named(name));
        let Some(port) = port else {
            return Err(format!(
                "missing port for protocol {} on server {}",
                self.name,
                server.name()
            ));
        };
        let host = server.text(&attributes::SERVICE_HOSTNAME).unwrap_or(server.name());
        Ok(Server {
            name: Arc::from(server.name()),
            host: Arc::from(host),
            port,
            tls: self.upstream_tls(certified_name(host, server.name())),
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
        self.external_server(None, None)
    }

    /// Step 5: the account's own word, else that of its domain. An incomplete address is as good as none.
    fn external(&self, placement: &Placement) -> Option<Route> {
        let flag = &attributes::REVERSE_PROXY_USE_EXTERNAL_ROUTE;
        let own = placement.external.as_deref();
        let wanted = own
            .and_then(|own| own.wanted)
            .unwrap_or_else(|| self.domain.is_some_and(|domain| domain.flag(flag)));
        if !wanted || self.protocol.external.is_none() {
            return None;
        }
        let route = self.external_server(own, placement.login.as_ref());
        if route.is_none() {
            log::info!(
                "external route of {} is incomplete for {}",
                self.name,
                self.protocol.name
            );
        }
        route
    }

    fn external_server(&self, own: Option<&External>, login: Option<&Arc<str>>) -> Option<Route> {
        let place = self.protocol.external?;
        let (host_attribute, port_attribute) = EXTERNAL[place];
        let (own_host, own_port) = own.map_or((None, None), |own| {
            let (host, port) = &own.servers[place];
            (host.as_deref(), *port)
        });
        let host = own_host.or_else(|| self.domain?.text(host_attribute))?;
        let port = own_port.or_else(|| self.domain?.port(port_attribute))?;
        let server: Arc<str> = Arc::from(host);
        Some(Route {
            account: self.name.clone(),
            login: self.external_login(login),
            host: server.clone(),
            server,
            port,
            tls: self.protocol.upstream_tls(host),
            tier: self.tier,
        })
    }

    fn external_login(&self, login: Option<&Arc<str>>) -> Arc<str> {
        let flag = &attributes::REVERSE_PROXY_EXTERNAL_ROUTE_INCLUDE_ORIGINAL_AUTHUSERNAME;
        match &self.lookup.subject {
            Subject::Login(typed) if self.domain.is_some_and(|domain| domain.flag(flag)) => Arc::from(&**typed),
            Subject::Login(_) | Subject::Id(_) => login.unwrap_or(self.name).clone(),
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
            login: placement.login.as_ref().unwrap_or(&placement.account).clone(),
            server: server.name,
            host: server.host,
            port: server.port,
            tls: server.tls,
            tier: self.tier,
        })
    }
}

/// The servers of the directory that offer a web service to requests of nobody in particular; `node` names the
/// proxy whose modes count. A server whose port is missing is left out.
pub(crate) fn servers(service: Service, system: &System, node: &str) -> Vec<Server> {
    let protocol = Protocol::of(service, system.node(node));
    system
        .web_servers()
        .filter_map(|server| protocol.at(server, system).ok())
        .collect()
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
