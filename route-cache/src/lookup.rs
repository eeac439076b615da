//! Lookup services: other servers that know where an account is. Zimbra's on port 7072 (MAIL §1) and any server for
//! nginx's `auth_http` (MAIL §1.11).
//!
//! [`Services`] asks them; [`crate::lookup_server`] is the other side, for proxies that ask us. No user's password is
//! ever sent: the field that the protocols have for it holds a fixed word. Sockets and TLS come from the outside
//! through [`Dial`]. [`certauth`] asks them for a token, for a client that has shown a certificate.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::addresses::AddressBook;
use crate::host_port::HostPort;
use crate::key::Key;
use crate::placement::{Placement, SourceAnswer};
use crate::protocol::Protocol;
use crate::route::{Lookup, RouteError, Service, Subject};

pub mod certauth;
mod handler;
pub mod wire;

pub use handler::{HttpService, ServiceFault};
use mail_directory::{DirectoryError, System, domain_of, fold, names};
use wire::{Question, Response, ServiceAnswer};

/// Questions under way at one time. A service asks a directory for each; more at once only makes all of them slow.
const MAX_ASKING: usize = 64;
/// The least time that a service gets, however many have failed before it.
const MIN_PATIENCE: Duration = Duration::from_millis(100);

/// A stream of bytes both ways: TCP, TLS, or one end of a test.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Any stream.
pub type BoxStream = Box<dyn Stream>;

/// Connects to a lookup service, with TLS and its verification where the URL says `https`.
#[async_trait]
pub trait Dial: Send + Sync + 'static {
    /// A new connection. The caller has a time limit.
    ///
    /// # Errors
    /// Refused, unreachable, or the service could not prove its identity.
    async fn connect(&self, url: &HandlerUrl) -> std::io::Result<BoxStream>;
}

/// The lookup protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Zimbra's nginx-lookup.
    Zimbra,
    /// nginx's auth_http.
    Nginx,
}

/// Where a service is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandlerUrl {
    /// `https`?
    pub tls: bool,
    /// Host name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Path and query.
    pub path: String,
}

impl HandlerUrl {
    /// Where to connect to.
    pub fn address(&self) -> HostPort {
        HostPort::new(self.host.as_str(), self.port)
    }

    /// Reads `http://host[:port]/path` or `https://…`. Without a port it is 7072 for Zimbra's protocol, and that of
    /// the scheme for nginx's.
    ///
    /// # Errors
    /// It is no such URL; the text says why.
    pub fn parse(text: &str, dialect: Dialect) -> Result<Self, String> {
        let (tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err("begins neither with http:// nor with https://".to_owned()),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, port)) => (host, port.strip_prefix(':')),
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let plain = |c: char| c.is_ascii_graphic() && !"@:[]?#".contains(c);
        let is_address = host.parse::<IpAddr>().is_ok();
        if host.is_empty() || !(is_address || host.chars().all(plain)) {
            return Err("has no host name or address".to_owned());
        }
        if !path.chars().all(|c| c.is_ascii_graphic()) {
            return Err("has a blank or another letter that must be written as %XX".to_owned());
        }
        let default = match (dialect, tls) {
            (Dialect::Zimbra, _) => 7072,
            (Dialect::Nginx, true) => 443,
            (Dialect::Nginx, false) => 80,
        };
        let port = port.map_or(Ok(default), |port| {
            port.parse().map_err(|_| format!("{port} is no port"))
        })?;
        Ok(Self {
            tls,
            host: host.to_owned(),
            port,
            path: if path.is_empty() {
                "/".to_owned()
            } else {
                path.to_owned()
            },
        })
    }
}

/// How services are asked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Their protocol.
    pub dialect: Dialect,
    /// All of them know the same.
    pub handlers: Vec<HandlerUrl>,
    /// How long one lookup may take, however many services it takes.
    pub timeout: Duration,
    /// How long a service that failed is asked only when no other is left.
    pub retry: Duration,
}

/// The services, as a source of routes.
pub struct Services {
    dialect: Dialect,
    handlers: Vec<HttpService>,
    timeout: Duration,
    dial: Arc<dyn Dial>,
    book: Arc<AddressBook>,
    asking: Semaphore,
    next: AtomicUsize,
}

impl Services {
    /// Services that are reached through `dial`; the book says which addresses are servers of the directory.
    pub fn new(settings: Settings, dial: Arc<dyn Dial>, book: Arc<AddressBook>) -> Self {
        let handlers = settings.handlers.into_iter();
        Self {
            dialect: settings.dialect,
            handlers: handlers.map(|url| HttpService::new(url, settings.retry)).collect(),
            timeout: settings.timeout,
            dial,
            book,
            asking: Semaphore::new(MAX_ASKING),
            next: AtomicUsize::new(0),
        }
    }

    /// Where the account is.
    pub(crate) async fn place(
        &self,
        lookup: &Lookup,
        key: &Key,
        protocol: Protocol,
        system: &Arc<System>,
    ) -> Result<SourceAnswer, RouteError> {
        let question = self.question(lookup, key, protocol)?;
        match self.ask(&question).await {
            ServiceAnswer::Route {
                server,
                port,
                user,
                alias,
            } => {
                let (account, login) = names(lookup, key, user.as_deref())?;
                let placement = self.placement(&server, port, protocol, account, login, system).await?;
                Ok(SourceAnswer {
                    placement: Some(placement),
                    alias: alias || self.dialect == Dialect::Nginx,
                })
            }
            ServiceAnswer::Nobody => Ok(SourceAnswer {
                placement: None,
                alias: true,
            }),
            ServiceAnswer::NotAllowed => Err(RouteError::NotAllowed {
                domain: domain_of(key.text()).unwrap_or_default().to_owned(),
            }),
            ServiceAnswer::NoRoute(why) => Err(RouteError::NoRoute(why)),
            ServiceAnswer::CannotTell(why) => Err(RouteError::DirectoryDown(DirectoryError(why))),
        }
    }

    /// nginx's protocol knows no web and no ids. A server of the directory is the same for mail and web.
    fn question<'a>(&self, lookup: &'a Lookup, key: &'a Key, protocol: Protocol) -> Result<Question<'a>, RouteError> {
        let by_id = matches!(key, Key::Id(_));
        if by_id && self.dialect == Dialect::Nginx {
            return Err(RouteError::NoRoute(
                "lookup services of nginx's protocol know no ids".to_owned(),
            ));
        }
        let user = match (&lookup.subject, key) {
            (Subject::Login(typed), Key::Bare(_)) => typed,
            _ => &**key.text(),
        };
        Ok(Question {
            by_id,
            user,
            protocol,
            client: lookup.client,
            local: lookup.local,
            host: lookup.host.as_deref(),
        })
    }

    /// Asks one after the other until one can tell, within the time limit for all.
    async fn ask(&self, question: &Question<'_>) -> ServiceAnswer {
        let request = |url: &HandlerUrl| question.request(self.dialect, url);
        let read = |response: &Response| match ServiceAnswer::read(response, self.dialect, question) {
            ServiceAnswer::CannotTell(why) => Err(why),
            answer => Ok(answer),
        };
        let told = self.first_to_tell(request, read).await;
        told.unwrap_or_else(ServiceAnswer::CannotTell)
    }

    /// The answer of the first service that can tell; or why none can.
    async fn first_to_tell<T, R: AsRef<[u8]>>(
        &self,
        request: impl Fn(&HandlerUrl) -> R,
        read: impl Fn(&Response) -> Result<T, String>,
    ) -> Result<T, String> {
        let deadline = Instant::now() + self.timeout;
        let Ok(Ok(_permit)) = timeout_at(deadline, self.asking.acquire()).await else {
            return Err("too many lookups are under way".to_owned());
        };
        let mut last = "there is no lookup service".to_owned();
        let order = self.order();
        for (at, handler) in order.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now()) / (order.len() - at) as u32;
            let until = Instant::now() + left.max(MIN_PATIENCE);
            let request = request(&handler.url);
            match timeout_at(until, handler.ask(&*self.dial, request.as_ref())).await {
                Ok(Ok(response)) => match read(&response) {
                    Err(why) => last = format!("{}: {why}", handler.url.host),
                    Ok(told) => return Ok(told),
                },
                Ok(Err(fault)) => last = handler.failed(&fault.to_string()),
                Err(_) => last = handler.failed("no answer in time"),
            }
        }
        Err(last)
    }

    /// In turn, and those that failed lately at the end.
    fn order(&self) -> Vec<&HttpService> {
        let count = self.handlers.len().max(1);
        let first = self.next.fetch_add(1, Ordering::Relaxed) % count;
        let turn = self.handlers[first.min(self.handlers.len())..]
            .iter()
            .chain(&self.handlers[..first]);
        let (well, failed): (Vec<_>, Vec<_>) = turn.partition(|handler| handler.is_well());
        well.into_iter().chain(failed).collect()
    }

    /// The server of the directory at this address; else, for mail, a server outside.
    async fn placement(
        &self,
        host: &str,
        port: u16,
        protocol: Protocol,
        account: Arc<str>,
        login: Option<Arc<str>>,
        system: &Arc<System>,
    ) -> Result<Placement, RouteError> {
        let strange = || {
            RouteError::NoRoute(format!(
                "a lookup service answered with {}, which is no server of the directory",
                HostPort::new(host, port)
            ))
        };
        let Ok(address) = host.parse::<IpAddr>() else {
            let server = system.server_key(host).ok_or_else(strange)?;
            return Ok(Placement::on(server, account, login, system));
        };
        let down = || {
            RouteError::DirectoryDown(DirectoryError(
                "the addresses of the mailbox servers are not known".to_owned(),
            ))
        };
        let page = self.book.page(system, self.timeout).await.ok_or_else(down)?;
        let spoken = self.spoken(protocol);
        if let Some(server) = spoken
            .iter()
            .find_map(|protocol| page.server_at(address, port, *protocol))
        {
            return Ok(Placement::on(server, account, login, system));
        }
        if !page.knows(address) && !is_elsewhere(address) {
            return Err(strange());
        }
        Placement::outside(protocol, host, port, account, login).ok_or_else(strange)
    }

    /// The protocols whose port the answer may have. nginx does not speak TLS to mailbox servers, so what answers it
    /// may know clear ports only; and it knows no web.
    fn spoken(&self, protocol: Protocol) -> Vec<Protocol> {
        match (self.dialect, protocol.service()) {
            (Dialect::Zimbra, _) => vec![protocol],
            (Dialect::Nginx, Service::Pop3) => Protocol::both(Service::Pop3).to_vec(),
            (Dialect::Nginx, _) => Protocol::both(Service::Imap).to_vec(),
        }
    }
}

/// An address that an outside service may send us to: not this machine, not what only this network segment knows
/// (cloud metadata), not a group.
fn is_elsewhere(address: IpAddr) -> bool {
    let link_local = match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let address = address.to_canonical();
    !(link_local || address.is_loopback() || address.is_unspecified() || address.is_multicast())
}

/// The account, and the name to log in with where that is another. The service's answer counts for both if it is a
/// full name; a name without domain is only good for logging in.
fn names(lookup: &Lookup, key: &Key, user: Option<&str>) -> Result<(Arc<str>, Option<Arc<str>>), RouteError> {
    let Some(user) = user.filter(|user| !user.is_empty()) else {
        let typed = match (&lookup.subject, key) {
            (Subject::Login(typed), Key::Bare(_)) => Some(Arc::from(typed.as_str())),
            _ => None,
        };
        return Ok((key.text().clone(), typed));
    };
    let account: Arc<str> = match user.contains('@') {
        true => Arc::from(names::account(user)),
        false => key.text().clone(),
    };
    let is_the_id = matches!(key, Key::Id(id) if **id == *fold(user));
    let login = (!is_the_id && names::account(user) != *account).then(|| Arc::from(user));
    Ok((account, login))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read() {
        let url = |tls, host: &str, port, path: &str| {
            Ok(HandlerUrl {
                tls,
                host: host.to_owned(),
                port,
                path: path.to_owned(),
            })
        };
        for (text, dialect, expected) in [
            (
                "https://10.0.0.11:7072/x/y?z",
                Dialect::Zimbra,
                url(true, "10.0.0.11", 7072, "/x/y?z"),
            ),
            (
                "http://lookup.test",
                Dialect::Zimbra,
                url(false, "lookup.test", 7072, "/"),
            ),
            ("https://[fd00::1]/a", Dialect::Nginx, url(true, "fd00::1", 443, "/a")),
            ("http://[fd00::1]:81/a", Dialect::Nginx, url(false, "fd00::1", 81, "/a")),
            ("http://a.test/", Dialect::Nginx, url(false, "a.test", 80, "/")),
        ] {
            assert_eq!(HandlerUrl::parse(text, dialect), expected, "{text}");
        }
        for text in [
            "",
            "a.test:7072",
            "ftp://a.test/",
            "http:///x",
            "http://u@a.test/",
            "http://a.test:x/",
            "http://a.test:70720/",
            "http://a.test/a b",
            "http://a.test/\r\nX: y",
            "http://a\r\n.test/",
            "http://fd00::1/",
        ] {
            assert!(HandlerUrl::parse(text, Dialect::Zimbra).is_err(), "{text:?}");
        }
    }

    #[test]
    fn nobody_outside_sends_us_to_ourselves() {
        for (address, expected) in [
            ("10.0.0.1", true),
            ("2001:db8::1", true),
            ("127.0.0.1", false),
            ("::1", false),
            ("0.0.0.0", false),
            ("169.254.169.254", false),
            ("fe80::1", false),
            ("224.0.0.1", false),
            ("::ffff:127.0.0.1", false),
            ("255.255.255.255", false),
        ] {
            assert_eq!(is_elsewhere(address.parse().unwrap()), expected, "{address}");
        }
    }
}
