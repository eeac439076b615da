//! Decides how a request is handled: what it asks for, its location, and whether it may go on. Nothing is answered or
//! sent here; HTTP requests and WebSockets share it, so that neither can bypass the other's rules.

use std::net::IpAddr;

use http::header::{FORWARDED, HeaderName, HeaderValue, VIA};
use http::request::Parts;
use http::uri::{InvalidUri, Uri};
use route_cache::{Lookup, Service, Subject};

use crate::app::env::WebEnv;
use crate::app::snapshot::Snapshot;
use crate::http::account::{self, AccountClaim};
use crate::http::headers;
use crate::http::request_id::RequestId;
use crate::http::trusted_forwarders::Forwarded;
use crate::locations::{Action, Forward, ForwardTo, ListenerKind, LocationQuery, Mailbox, MatchedLocation, path};
use crate::web::client::WebClient;

/// Headers of forwarders in a request, also of those that are not trusted.
static RELAYED: [HeaderName; 3] = [VIA, FORWARDED, headers::X_FORWARDED_FOR];

/// What a request says before anything is looked up.
#[derive(Debug, Clone)]
pub(crate) struct RequestInfo {
    /// Its id, for logs and for the server; from a trusted forwarder, or made here.
    pub(crate) id: RequestId,
    /// The client, after PROXY header and trusted forwarders.
    pub(crate) client: IpAddr,
    /// The requested host, if there is a valid one.
    pub(crate) host: Option<String>,
    /// The same as it was sent, with its port.
    pub(crate) host_as_sent: Option<HeaderValue>,
    /// `http` or `https`, as the client sees it.
    pub(crate) scheme: &'static str,
    /// The port that the client sees.
    pub(crate) port: u16,
    /// It was sent on by a forwarder, which may send the requests of several clients over one connection (RFC 9110
    /// §3.3).
    pub(crate) relayed: bool,
}

impl RequestInfo {
    /// Reads a request.
    pub(crate) fn read(env: &WebEnv, web: &WebClient, request: &Parts) -> Self {
        let config = env.config.load();
        let (peer, trusted) = (web.facts.client.addr.ip(), &config.web.trusted_forwarders);
        let is_trusted = trusted.iter().any(|network| network.contains(&peer.to_canonical()));
        let forwarded = Forwarded::read(peer, &request.headers, trusted);
        let local = match web.facts.tls.is_some() || web.tls_in_front {
            true => "https",
            false => "http",
        };
        let host = Host::read(request, &forwarded);
        let port = forwarded
            .port
            .or_else(|| host.as_ref()?.port)
            .or_else(|| forwarded.scheme.map(default_port));
        Self {
            id: is_trusted
                .then(|| RequestId::forwarded(&request.headers))
                .flatten()
                .unwrap_or_else(RequestId::random),
            client: forwarded.client,
            scheme: forwarded.scheme.unwrap_or(local),
            // If no forwarder names one it is ours, whatever the client writes into Host.
            port: port
                .filter(|_| forwarded.speaks())
                .unwrap_or(web.facts.client.local.port()),
            relayed: is_trusted || RELAYED.iter().any(|name| request.headers.contains_key(name)),
            host_as_sent: host.as_ref().map(|host| host.as_sent.clone()),
            host: host.map(|host| host.name),
        }
    }

    /// Whether it came in clear text, as far as the client sees: a forwarder or balancer may have ended its TLS. The
    /// listener of the administration console has no clear side.
    pub(crate) fn is_clear(&self, web: &WebClient) -> bool {
        web.facts.tls.is_none() && !web.admin && self.scheme != "https"
    }
}

/// The host of a request.
struct Host {
    /// In lower case, without port.
    name: String,
    /// As the client wrote it.
    as_sent: HeaderValue,
    port: Option<u16>,
}

impl Host {
    /// The host that a forwarder names, or that of the request itself. A forwarder does not make a request with a bad
    /// host valid.
    fn read(request: &Parts, forwarded: &Forwarded) -> Option<Self> {
        let own = account::host(&request.uri, &request.headers)?;
        let outer = forwarded
            .host
            .as_deref()
            .and_then(|host| Some((account::host_of(host)?, host)));
        let Some((name, as_sent)) = outer else {
            let as_sent = account::host_as_sent(&request.uri, &request.headers)?;
            let port = port_of(as_sent.to_str().ok()?);
            return Some(Self {
                name: own,
                as_sent,
                port,
            });
        };
        let port = port_of(as_sent);
        let missing = forwarded
            .port
            .filter(|outer_port| port.is_none() && Some(*outer_port) != forwarded.scheme.map(default_port));
        let as_sent = match missing {
            Some(port) => HeaderValue::from_str(&format!("{as_sent}:{port}")),
            None => HeaderValue::from_str(as_sent),
        };
        let as_sent = as_sent.ok()?;
        Some(Self { name, as_sent, port })
    }
}

fn default_port(scheme: &str) -> u16 {
    if scheme == "https" { 443 } else { 80 }
}

/// The port of `host:port`.
fn port_of(authority: &str) -> Option<u16> {
    let (_, port) = authority.rsplit_once(':').filter(|(_, port)| !port.contains(']'))?;
    port.parse().ok()
}

/// A request on its way to a server.
#[derive(Debug, Clone)]
pub(crate) struct ProxyRequest {
    /// Its location.
    pub(crate) found: MatchedLocation,
    /// Path and query as the server gets them, if they are others than the client's.
    replaced: Option<String>,
    /// The question for the account's server, if it belongs to an account.
    pub(crate) lookup: Option<Lookup>,
}

impl ProxyRequest {
    /// The rules of its location.
    pub(crate) fn forward(&self) -> &Forward {
        self.found.forward().expect("only made for locations that forward")
    }

    /// Path and query as the server gets them, of a request with this URL.
    pub(crate) fn target<'a>(&'a self, uri: &'a Uri) -> &'a str {
        match &self.replaced {
            Some(replaced) => replaced,
            None => uri.path_and_query().map_or("/", |target| target.as_str()),
        }
    }

    /// The same as a URL, without an authority in it: `Host` stays as it is set.
    ///
    /// # Errors
    /// What replaces the path makes it invalid.
    pub(crate) fn uri(&self, uri: &Uri) -> Result<Uri, InvalidUri> {
        match (&self.replaced, uri.path_and_query()) {
            (None, Some(target)) => Ok(target.clone().into()),
            _ => self.target(uri).parse(),
        }
    }

    /// Whether it is one for the mailbox servers, and which of their services.
    pub(crate) fn mailbox(&self) -> Option<Mailbox> {
        match self.forward().to {
            ForwardTo::Mailbox(service) => Some(service),
            ForwardTo::Group(_) => None,
        }
    }

    /// The group of servers any of which can answer it.
    pub(crate) fn group(&self) -> &str {
        match &self.forward().to {
            ForwardTo::Mailbox(service) => service.group(),
            ForwardTo::Group(name) => name,
        }
    }
}

/// How a request is handled.
#[derive(Debug)]
pub(crate) enum Decision {
    /// It goes to a server.
    Forward(Box<ProxyRequest>),
    /// Its location answers it; with the decoded path.
    Local(MatchedLocation, String),
    /// The browser is sent elsewhere.
    Redirect {
        to: String,
        status: u16,
        found: MatchedLocation,
    },
    /// It is refused.
    Refused { status: u16, why: &'static str },
}

impl Decision {
    const fn refused(status: u16, why: &'static str) -> Self {
        Self::Refused { status, why }
    }

    const fn read_differently() -> Self {
        Self::refused(400, "a path that servers read differently")
    }
}

/// Decides how a request is handled.
pub(crate) fn decide(
    env: &WebEnv,
    snapshot: &Snapshot,
    web: &WebClient,
    request: &Parts,
    info: &RequestInfo,
) -> Decision {
    let raw = request.uri.path();
    let Some(path) = path::normalized(raw) else {
        return match has_line_end(raw) {
            true => Decision::refused(403, "a line end in the path"),
            false => Decision::read_differently(),
        };
    };
    let query = LocationQuery {
        listener: if web.admin {
            ListenerKind::Admin
        } else {
            ListenerKind::Web
        },
        path: &path,
        host: info.host.as_deref(),
        request,
    };
    let table = env.locations.table();
    let Some(found) = table.find(query) else {
        return Decision::refused(404, "no location");
    };
    if table.is_passed_by(&found, query) {
        return Decision::read_differently();
    }
    let location = &found.entry.location;
    let vhost = || snapshot.web.vhost(info.host.as_deref(), web.facts.client.local.ip());
    if !location.allows(info.client) {
        return Decision::refused(403, "the location does not allow this client");
    }
    let required_cookie = location.required_cookie.as_ref();
    if let Some(to) = required_cookie.and_then(|required_cookie| required_cookie.turns_away(&path, request)) {
        let to = to.at(vhost());
        return Decision::Redirect { to, status: 307, found };
    }
    match &location.action {
        Action::Forward(forward) => {
            // For mailbox servers also in the query, as always (HTTP §2.3, P22).
            if matches!(forward.to, ForwardTo::Mailbox(_)) && request.uri.query().is_some_and(has_line_end) {
                return Decision::refused(403, "a line end in the query");
            }
            let replaced = found.replaced(forward, query);
            let lookup = lookup(forward, web, request, info);
            Decision::Forward(Box::new(ProxyRequest {
                found,
                replaced,
                lookup,
            }))
        }
        Action::Redirect { to, status } => {
            let (to, status) = (to.at(vhost()), *status);
            Decision::Redirect { to, status, found }
        }
        _ => Decision::Local(found, path.into_owned()),
    }
}

/// Which account to look for. The administration side knows only its own token (HTTP §3.1).
fn lookup(forward: &Forward, web: &WebClient, request: &Parts, info: &RequestInfo) -> Option<Lookup> {
    let ForwardTo::Mailbox(mailbox) = forward.to else {
        return None;
    };
    let (service, claim) = match mailbox {
        Mailbox::Admin => (Service::Admin, account::admin(&request.headers)),
        Mailbox::Web | Mailbox::Zx | Mailbox::Ews => (Service::Web, account::of(&request.uri, &request.headers)),
    };
    Some(Lookup {
        subject: match claim? {
            AccountClaim::Login(name) => Subject::Login(name),
            AccountClaim::Id(id) => Subject::Id(id),
        },
        service,
        client: info.client,
        local: web.facts.client.local.ip(),
        host: info.host.clone(),
    })
}

/// An encoded line end; no client needs one, and what servers build from the text may break at it.
fn has_line_end(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes
        .windows(3)
        .any(|part| part.eq_ignore_ascii_case(b"%0a") || part.eq_ignore_ascii_case(b"%0d"))
}
