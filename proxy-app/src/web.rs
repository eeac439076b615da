//! The web side: a Pingora [`ProxyHttp`] whose phases find out where a request goes, and say what became of it.
//!
//! A request goes to the mailbox server of its account where one can be told, and to any healthy one otherwise:
//! every server can answer for every account, only slower. Passwords and tokens are not checked here.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::StatusCode;
use mail_proxy::audit::{Event, Phase, Record};
use parking_lot::Mutex;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::ALPN;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, Result};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};
use route_cache::{Lookup, Route, RouteError, Server, Subject, UpstreamTls};

use crate::app::App;
use crate::client_certs::Shown;
use crate::connector;
use crate::logs;
use crate::snapshot::{MailMode, Snapshot, web_service};

pub mod account;
pub mod connection;
mod frames;
pub mod headers;
pub mod locations;
pub mod login;
pub mod static_ui;
pub mod upstreams;
mod websocket;

use account::Claim;
use connection::WebClient;

/// An HTTP/2 connection without streams is closed after this.
pub const H2_IDLE: Duration = Duration::from_secs(180);
/// How long a client may take nothing of an answer: nginx's `send_timeout`.
const CLIENT_PATIENCE: Duration = Duration::from_secs(60);
/// How many servers a request without an account may try.
const TRIES: usize = 3;
/// Connections to servers are kept this long without use: less than Jetty's 60 s.
const UPSTREAM_IDLE: Duration = Duration::from_secs(50);
/// The longest wait of `NoOpRequest` and `WaitSetRequest` (1200 s) and a little more (HTTP §2.3).
const LONG_POLL: Duration = Duration::from_secs(1220);

/// The web side of the house.
pub struct Web {
    app: Arc<App>,
}

/// What is known of one request, from its first phase to its last.
pub struct Exchange {
    snapshot: Arc<Snapshot>,
    /// The client, after PROXY header and trusted forwarders.
    client: Option<IpAddr>,
    lookup: Option<Lookup>,
    route: Option<Route>,
    target: Option<Target>,
    tried: Vec<SocketAddr>,
    body: Option<login::Body>,
    seen: Option<login::Seen>,
    sets_cookie: bool,
    /// A server has answered.
    answered: bool,
}

/// Where a request goes.
#[derive(Clone)]
struct Target {
    server: Server,
    address: SocketAddr,
    /// The account's own server; nobody else will do.
    own: bool,
}

impl Web {
    /// The web side of `app`.
    pub fn new(app: Arc<App>) -> Web {
        Web { app }
    }

    /// Where the account of this request lives, if it has one that is known.
    async fn locate(&self, exchange: &mut Exchange) -> Result<Option<Target>> {
        let Some(lookup) = &exchange.lookup else {
            return Ok(None);
        };
        let begun = Instant::now();
        let found = self.app.routes.route(lookup).await;
        self.app.metrics.phase(Phase::Lookup, "http", begun.elapsed());
        let route = match found {
            Ok(route) => route,
            Err(RouteError::NotAllowed { .. }) => {
                return Error::e_explain(
                    ErrorType::HTTPStatus(403),
                    "client address is not allowed on this domain",
                );
            }
            // Any server can answer for anybody; what it says of an unknown user is for it to say.
            Err(error) => {
                log::debug!("no route for a web request: {error}");
                return Ok(None);
            }
        };
        let mode = exchange.snapshot.web.ip_mode;
        let addresses = self
            .app
            .names
            .resolve(&route.host, route.port, mode)
            .await
            .map_err(|error| Error::explain(ErrorType::ConnectNoRoute, format!("{}: {error}", route.host)).into_up())?;
        let address = addresses
            .iter()
            .find(|address| !exchange.tried.contains(address))
            .or(addresses.first());
        let target = address.map(|&address| Target {
            server: Server::of(&route),
            address,
            own: true,
        });
        exchange.route = Some(route);
        Ok(target)
    }

    fn any_server(&self, admin: bool, exchange: &Exchange) -> Result<Target> {
        let group = self.app.group(web_service(admin));
        let member = group.pick(&exchange.tried).filter(|_| exchange.tried.len() < TRIES);
        let Some(member) = member else {
            return Error::e_explain(ErrorType::HTTPStatus(503), "no mailbox server is up");
        };
        Ok(Target {
            server: member.server,
            address: member.address,
            own: false,
        })
    }
}

#[async_trait]
impl ProxyHttp for Web {
    type CTX = Exchange;

    fn new_ctx(&self) -> Exchange {
        Exchange {
            snapshot: self.app.snapshot.load_full(),
            client: None,
            lookup: None,
            route: None,
            target: None,
            tried: Vec::new(),
            body: None,
            seen: None,
            sets_cookie: false,
            answered: false,
        }
    }

    async fn request_filter(&self, session: &mut Session, exchange: &mut Exchange) -> Result<bool> {
        let Some(web) = connection::client_of(session) else {
            return Error::e_explain(ErrorType::InternalError, "a request without a connection");
        };
        let request = session.req_header();
        let Asked { client, host, lookup } = asked(&self.app, web, request);
        if host.is_none() && request.version > http::Version::HTTP_10 {
            return Error::e_explain(ErrorType::HTTPStatus(400), "a request without a good Host");
        }
        if let Err(refusal) = web.may_ask_for(host.as_deref(), &exchange.snapshot.web.sites) {
            return Error::e_explain(ErrorType::HTTPStatus(refusal.status()), refusal.why());
        }
        if !has_one_length(&request.headers) {
            return Error::e_explain(
                ErrorType::HTTPStatus(400),
                "a request with more than one Content-Length",
            );
        }
        if request.method == http::Method::TRACE {
            // It would tell a script the cookies that it must not see.
            return Error::e_explain(ErrorType::HTTPStatus(405), "TRACE");
        }
        let clear = web.tls.is_none() && !web.admin;
        exchange.client = Some(client);
        exchange.lookup = lookup;
        let form = login::is_login_path(request.uri.path());
        let basic = login::basic(&request.uri, &request.headers);
        session.set_write_timeout(Some(CLIENT_PATIENCE));
        if clear && exchange.snapshot.web.mode != MailMode::Both {
            return self.clear_port(session, exchange, host).await;
        }
        exchange.seen = basic;
        exchange.body = form.map(login::Body::new);
        Ok(false)
    }

    async fn upstream_peer(&self, session: &mut Session, exchange: &mut Exchange) -> Result<Box<HttpPeer>> {
        let admin = connection::client_of(session).is_some_and(|web| web.admin);
        let target = match self.locate(exchange).await? {
            Some(target) => {
                if let (Some(web), Some(route)) = (connection::client_of(session), &exchange.route) {
                    web.note(route);
                }
                target
            }
            None => self.any_server(admin, exchange)?,
        };
        let peer = peer(&target, session, &exchange.snapshot);
        exchange.target = Some(target);
        Ok(Box::new(peer))
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        chunk: &mut Option<Bytes>,
        end: bool,
        exchange: &mut Exchange,
    ) -> Result<()> {
        if let (Some(body), Some(chunk)) = (&mut exchange.body, chunk) {
            body.push(chunk);
        }
        if end && let Some(seen) = exchange.body.take().and_then(login::Body::user) {
            exchange.seen = Some(seen);
        }
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream: &mut RequestHeader,
        exchange: &mut Exchange,
    ) -> Result<()> {
        let Some(web) = connection::client_of(session) else {
            return Ok(());
        };
        for name in headers::dropped(&session.req_header().headers) {
            upstream.remove_header(&name);
        }
        let host = upstream
            .headers
            .get(http::header::HOST)
            .and_then(|host| host.to_str().ok())
            .map(str::to_owned);
        let hop = headers::Hop {
            client: exchange.client.unwrap_or(web.client.addr.ip()),
            scheme: scheme(web),
            host: host.as_deref(),
            port: web.client.local.port(),
        };
        for (name, value) in headers::added(hop) {
            upstream.insert_header(name, value)?;
        }
        for (name, value) in web.shown.iter().flat_map(Shown::headers) {
            upstream.insert_header(name, value)?;
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        _session: &mut Session,
        response: &mut ResponseHeader,
        exchange: &mut Exchange,
    ) -> Result<()> {
        exchange.answered = true;
        exchange.sets_cookie = response.headers.get_all(http::header::SET_COOKIE).iter().any(|cookie| {
            let name = cookie.as_bytes().split(|&b| b == b'=').next().unwrap_or_default();
            matches!(name, b"ZM_AUTH_TOKEN" | b"ZM_ADMIN_AUTH_TOKEN")
        });
        Ok(())
    }

    /// Nothing has been sent yet: the route is forgotten and asked for again, once; a request of nobody goes to
    /// another server.
    fn fail_to_connect(
        &self,
        session: &mut Session,
        _peer: &HttpPeer,
        exchange: &mut Exchange,
        mut error: Box<Error>,
    ) -> Box<Error> {
        let Some(target) = exchange.target.take() else {
            return error;
        };
        let admin = connection::client_of(session).is_some_and(|web| web.admin);
        self.app.group(web_service(admin)).eject(target.address);
        self.app.metrics.connected(&target.address.to_string(), false);
        exchange.tried.push(target.address);
        let again = match (target.own, &exchange.lookup) {
            (true, Some(lookup)) => {
                self.app.routes.forget(lookup);
                exchange.tried.len() == 1
            }
            _ => exchange.tried.len() < TRIES,
        };
        exchange.target = Some(target);
        error.set_retry(again);
        error
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, _exchange: &mut Exchange) -> FailToProxy {
        let code = status_of(error);
        let begun = session
            .response_written()
            .is_some_and(|response| !response.status.is_informational());
        if code > 0 && !begun {
            let number = connection::client_of(session).map_or(String::new(), |web| web.number.clone());
            session.set_keepalive(None);
            let page = error_page(code, &number);
            if let Err(error) = answer(session, code, &[("Content-Type", "text/html; charset=utf-8")], page).await {
                log::debug!("an error page could not be sent: {error}");
            }
        }
        FailToProxy {
            error_code: code,
            can_reuse_downstream: false,
        }
    }

    async fn logging(&self, session: &mut Session, _error: Option<&Error>, exchange: &mut Exchange) {
        let Some(web) = connection::client_of(session) else {
            return;
        };
        let status = session
            .response_written()
            .map_or(0, |response| response.status.as_u16());
        web.live.add_out(session.body_bytes_sent() as u64);
        let group = match &exchange.target {
            None => "none",
            Some(_) if web.admin => upstreams::ADMIN,
            Some(_) => upstreams::MAILBOX,
        };
        self.app.metrics.web_request(group, status);
        self.log_access(session, web, exchange, status);
        if let Some(seen) = exchange.seen.take().filter(|_| exchange.answered) {
            self.record_login(web, exchange, seen, status);
        }
    }

    fn suppress_error_log(&self, _session: &Session, _exchange: &Exchange, error: &Error) -> bool {
        // Clients that go away are no news; what we answered ourselves stands in the access log.
        *error.esource() == ErrorSource::Downstream || matches!(error.etype(), ErrorType::HTTPStatus(_))
    }
}

impl Web {
    /// A clear-text web port, where it does not serve: HTTP §1.5, §1.6.
    async fn clear_port(&self, session: &mut Session, exchange: &Exchange, host: Option<String>) -> Result<bool> {
        let request = session.req_header();
        if request.headers.contains_key(http::header::CONTENT_LENGTH)
            || request.headers.contains_key(http::header::TRANSFER_ENCODING)
        {
            // The body is not read.
            session.set_keepalive(None);
        }
        if exchange.snapshot.web.mode == MailMode::Https {
            let text = page("403 Forbidden", "This server speaks HTTPS only.");
            answer(session, 403, &[("Content-Type", "text/html; charset=utf-8")], text).await?;
            return Ok(true);
        }
        let host = host.unwrap_or_else(|| self.app.config.load().node.clone());
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let port = match exchange.snapshot.web.https_port {
            443 => String::new(),
            port => format!(":{port}"),
        };
        let target = session
            .req_header()
            .uri
            .path_and_query()
            .map_or("/", |target| target.as_str());
        let location = format!("https://{host}{port}{target}");
        let headers = [
            ("Location", location.as_str()),
            ("Content-Type", "text/html; charset=utf-8"),
        ];
        let text = page("302 Found", "This page has moved to HTTPS.");
        answer(session, 302, &headers, text).await?;
        Ok(true)
    }

    fn log_access(&self, session: &Session, web: &WebClient, exchange: &Exchange, status: u16) {
        if !self.app.access.is_on() {
            return;
        }
        let last = exchange.target.iter().map(|target| &target.address);
        let addresses = exchange
            .tried
            .iter()
            .chain(last.filter(|address| !exchange.tried.contains(address)));
        let upstream: Vec<String> = addresses.map(SocketAddr::to_string).collect();
        let seen = exchange.seen.as_ref().filter(|seen| seen.form == login::Form::Basic);
        let visit = Visit {
            client: exchange.client.unwrap_or(web.client.addr.ip()),
            user: seen.map(|seen| seen.user.as_str()),
            status,
            bytes: session.body_bytes_sent() as u64,
            upstream: &upstream.join(", "),
        };
        self.app.access.line(access_line(web, session.req_header(), visit));
    }

    /// A login as the answer shows it. Basic credentials come with every request; good ones are recorded once for
    /// a connection.
    fn record_login(&self, web: &WebClient, exchange: &Exchange, seen: login::Seen, status: u16) {
        let Some(outcome) = login::outcome(status, exchange.sets_cookie, seen.form) else {
            return;
        };
        if outcome == mail_proxy::audit::Outcome::Ok && seen.form == login::Form::Basic && !web.greets(&seen.user) {
            return;
        }
        self.app.audit.record(Record {
            event: Some(Event::WebLogin),
            conn: web.number.clone(),
            listener: web.listener.to_string(),
            proto: "http",
            tls: web.tls.as_ref().map(|tls| tls.cipher.clone()),
            sni: web.tls.as_ref().and_then(|tls| tls.sni.clone()),
            client: SocketAddr::new(exchange.client.unwrap_or(web.client.addr.ip()), web.client.addr.port())
                .to_string(),
            via: web.client.via.map(|via| via.to_string()),
            user: Some(seen.user),
            account: exchange.route.as_ref().map(|route| route.account.to_string()),
            route: exchange.target.as_ref().map(|target| target.address.to_string()),
            tier: exchange.route.as_ref().map(|route| route.tier.name()),
            mechanism: Some(seen.mechanism),
            outcome: Some(outcome),
            generation: exchange.snapshot.generation,
            ..Record::default()
        });
    }
}

/// Two lengths, even equal ones, are a request that two servers may read differently (RFC 9112 §6.3).
fn has_one_length(headers: &http::HeaderMap) -> bool {
    let mut lengths = headers.get_all(http::header::CONTENT_LENGTH).iter();
    let single = lengths.next().is_none_or(|length| !length.as_bytes().contains(&b','));
    single && lengths.next().is_none()
}

/// What a request asks for, before anything is looked up.
struct Asked {
    /// The client, after PROXY header and trusted forwarders.
    client: IpAddr,
    /// The requested host, if there is a good one.
    host: Option<String>,
    /// The question for the account's server, if the request belongs to an account.
    lookup: Option<Lookup>,
}

fn asked(app: &App, web: &WebClient, request: &http::request::Parts) -> Asked {
    let config = app.config.load();
    let trusted = &config.web.trusted_forwarders;
    let client = headers::client_address(web.client.addr.ip(), &request.headers, trusted);
    let host = account::host(&request.uri, &request.headers);
    let claim = match web.admin {
        true => account::admin(&request.headers),
        false => account::of(&request.uri, &request.headers),
    };
    let lookup = claim.map(|claim| Lookup {
        subject: match claim {
            Claim::Login(name) => Subject::Login(name),
            Claim::Id(id) => Subject::Id(id),
        },
        service: web_service(web.admin),
        client,
        local: web.client.local.ip(),
        host: host.clone(),
    });
    Asked { client, host, lookup }
}

/// What became of a request, for the access log.
struct Visit<'a> {
    client: IpAddr,
    /// User of Basic authentication.
    user: Option<&'a str>,
    status: u16,
    bytes: u64,
    /// The servers that were tried.
    upstream: &'a str,
}

fn access_line(web: &WebClient, request: &http::request::Parts, visit: Visit<'_>) -> String {
    let text = |name| {
        request
            .headers
            .get(name)
            .and_then(|value: &http::HeaderValue| value.to_str().ok())
    };
    headers::access_line(&headers::AccessEntry {
        client: &visit.client.to_string(),
        client_port: web.client.addr.port(),
        user: visit.user,
        time: &logs::local_time(),
        method: request.method.as_str(),
        scheme: scheme(web),
        host: account::host(&request.uri, &request.headers).as_deref(),
        target: request.uri.path_and_query().map_or("/", |target| target.as_str()),
        protocol: protocol(request.version),
        status: visit.status,
        bytes: visit.bytes,
        referer: text(http::header::REFERER),
        user_agent: text(http::header::USER_AGENT),
        upstream: (!visit.upstream.is_empty()).then_some(visit.upstream),
        local: &web.client.local.ip().to_string(),
        local_port: web.client.local.port(),
    })
}

/// The last user whose Basic credentials were good on a connection: a client that sends them with every request
/// is recorded once.
#[derive(Debug, Default)]
pub struct Greeted(Mutex<Option<String>>);

impl Greeted {
    /// True the first time for a user.
    pub fn greets(&self, user: &str) -> bool {
        let mut last = self.0.lock();
        if last.as_deref() == Some(user) {
            return false;
        }
        *last = Some(user.to_owned());
        true
    }
}

fn scheme(web: &WebClient) -> &'static str {
    if web.tls.is_some() { "https" } else { "http" }
}

fn protocol(version: http::Version) -> &'static str {
    match version {
        http::Version::HTTP_10 => "HTTP/1.0",
        http::Version::HTTP_2 => "HTTP/2.0",
        _ => "HTTP/1.1",
    }
}

fn peer(target: &Target, session: &Session, snapshot: &Snapshot) -> HttpPeer {
    let policy = &snapshot.web;
    let name = match &target.server.tls {
        UpstreamTls::Clear => None,
        UpstreamTls::Implicit { name } => Some(name.to_string()),
    };
    let mut peer = HttpPeer::new(target.address, name.is_some(), name.unwrap_or_default());
    let connect = policy.connect_timeout.min(connector::CONNECT);
    peer.options.connection_timeout = Some(connect);
    peer.options.total_connection_timeout = Some(connect);
    peer.options.idle_timeout = Some(UPSTREAM_IDLE);
    peer.options.write_timeout = Some(policy.send_timeout);
    peer.options.read_timeout = Some(patience(session.req_header().uri.path(), snapshot));
    peer.options.alpn = ALPN::H1;
    peer.options.verify_cert = policy.upstream_verify;
    peer.options.verify_hostname = policy.upstream_verify;
    peer.options.ca = policy.upstream_ca.clone();
    peer
}

/// How long a server may be silent before it answers: some requests wait for news (HTTP §2.3, P16 to P21).
fn patience(path: &str, snapshot: &Snapshot) -> Duration {
    let policy = &snapshot.web;
    let lower = path.get(..32).unwrap_or(path).to_ascii_lowercase();
    if lower.starts_with("/microsoft-server-activesync") || lower.starts_with("/ews/") {
        policy.polling_timeout
    } else if path.starts_with("/service/soap/NoOpRequest") || path.starts_with("/service/soap/WaitSetRequest") {
        LONG_POLL
    } else {
        policy.read_timeout
    }
}

/// The status that a failure is told with; 0 if nobody is there to be told.
fn status_of(error: &Error) -> u16 {
    match (error.etype(), error.esource()) {
        (ErrorType::HTTPStatus(code), _) => *code,
        (ErrorType::ConnectTimedout | ErrorType::ReadTimedout | ErrorType::WriteTimedout, ErrorSource::Upstream) => 504,
        (_, ErrorSource::Upstream) => 502,
        (ErrorType::WriteError | ErrorType::ReadError | ErrorType::ConnectionClosed, ErrorSource::Downstream) => 0,
        (ErrorType::ReadTimedout, ErrorSource::Downstream) => 408,
        (_, ErrorSource::Downstream) => 400,
        _ => 500,
    }
}

fn error_page(code: u16, number: &str) -> String {
    let reason = StatusCode::from_u16(code)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or("Error");
    let text = match code {
        502..=504 => "The mail server cannot be reached at the moment. Please try again in a minute.",
        _ => "The request could not be handled.",
    };
    page(
        &format!("{code} {reason}"),
        &format!("{text}</p><p><small>Reference: {number}</small>"),
    )
}

fn page(title: &str, text: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><title>{title}</title></head><body><h1>{title}</h1><p>{text}</p></body></html>\n"
    )
}

/// An answer of our own.
async fn answer(session: &mut Session, status: u16, headers: &[(&'static str, &str)], body: String) -> Result<()> {
    let mut response = ResponseHeader::build(status, Some(headers.len() + 1))?;
    for (name, value) in headers {
        response.insert_header(*name, *value)?;
    }
    response.insert_header("Content-Length", body.len().to_string())?;
    let head_only = session.req_header().method == http::Method::HEAD;
    session.write_response_header(Box::new(response), head_only).await?;
    if !head_only {
        session.write_response_body(Some(Bytes::from(body)), true).await?;
    }
    Ok(())
}
