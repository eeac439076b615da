//! What is known of one request, from its first phase to its last, and the headers of every answer to it.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use http::Version;
use mail_proxy::{AwaitsClient, WaitsForUs};
use pingora::http::ResponseHeader;
use pingora::{Error, ErrorType, Result};
use pingora_proxy::Session;
use route_cache::{Route, Server};

use crate::app::snapshot::Snapshot;
use crate::http::answer_head;
use crate::http::answers::{self, ErrorForm, LocalAnswer};
use crate::http::relocation::Relocation;
use crate::http::{headers, login};
use crate::locations::MatchedLocation;
use crate::node::limits::RequestPlace;
use crate::tls::vhosts::VirtualHost;
use crate::upstream::body_clock::BodyClock;
use crate::upstream::connection::ServerConnection;
use crate::upstream::dial::Dial;
use crate::upstream::groups::{Group, Groups, Member};
use crate::web::client::{AnswerLines, client_of};
use crate::web::decision::{ProxyRequest, RequestInfo};
use crate::web::keeping::Keeping;
use crate::web::login_gate::LoginGate;
use crate::web::read_ahead::ReadAhead;

/// After `web.client_body_timeout` a request body must have brought this many bytes a second on average: a modem does a
/// hundred times as many.
pub(crate) const BODY_LEAST: u64 = 64;
/// Why a body that brings fewer is not read on.
pub(crate) const DRIPPING: &str = "a body that comes drop by drop";

/// How long it may take until more comes of a body that has brought so many bytes.
pub(crate) fn body_time(bytes: u64, grace: Duration) -> Duration {
    grace + Duration::from_secs(bytes / BODY_LEAST + 1)
}

/// Where a request goes.
#[derive(Clone)]
pub(crate) struct UpstreamTarget {
    pub(crate) server: Server,
    pub(crate) address: SocketAddr,
    /// Whether the server must prove its identity.
    pub(crate) verify: bool,
    /// It is the account's own server; no other one can answer.
    pub(crate) own: bool,
    /// Counts the server as busy while it lives.
    pub(crate) member: Option<Member>,
}

/// What is known of one request, from its first phase to its last.
pub(crate) struct RequestContext {
    /// Held while it is under way, so that its connection is not ended to make room for another.
    pub(crate) under_way: Option<WaitsForUs>,
    /// Held while its body is to come: its connection may be ended for another then.
    pub(crate) awaits_client: Option<AwaitsClient>,
    /// Counts it for its client's address.
    pub(crate) place: Option<RequestPlace>,
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) begun: Instant,
    /// What it asks for; `None` before it was read.
    pub(crate) info: Option<Arc<RequestInfo>>,
    /// The virtual host that it asks for.
    pub(crate) vhost: Option<Arc<VirtualHost>>,
    /// Where it goes, if to a server.
    pub(crate) proxied: Option<Box<ProxyRequest>>,
    group: OnceLock<Option<Arc<Group>>>,
    /// Its location, for logs and for the headers of the answer.
    pub(crate) found: Option<MatchedLocation>,
    /// The form in which its client gets errors.
    pub(crate) form: ErrorForm,
    pub(crate) route: Option<Route>,
    pub(crate) target: Option<UpstreamTarget>,
    pub(crate) tried: Vec<SocketAddr>,
    /// What it needs of its server connection.
    pub(crate) keeping: Option<Keeping>,
    /// How that is found.
    pub(crate) dial: Option<Arc<Dial>>,
    /// How its answer is read.
    pub(crate) ahead: Option<ReadAhead>,
    /// Bytes of the body so far.
    pub(crate) body_bytes: u64,
    /// When more must have come.
    pub(crate) body_clock: Arc<BodyClock>,
    pub(crate) body: Option<login::LoginBody>,
    pub(crate) seen: Option<login::LoginAttempt>,
    /// Its login cannot be read.
    pub(crate) unreadable: Option<login::UnreadableLogin>,
    /// What the throttle has said of its login.
    pub(crate) gate: LoginGate,
    pub(crate) sets_cookie: bool,
    /// A server has answered.
    pub(crate) answered: bool,
    /// So; it may not reach the client.
    pub(crate) status: u16,
    /// Interim answers of a server (RFC 9110 §15.2).
    pub(crate) interim: usize,
    /// Which side ended the answer too early.
    pub(crate) incomplete: Option<&'static str>,
}

impl RequestContext {
    pub(crate) fn new(snapshot: Arc<Snapshot>) -> Self {
        Self {
            snapshot,
            begun: Instant::now(),
            info: None,
            vhost: None,
            proxied: None,
            group: OnceLock::new(),
            found: None,
            form: ErrorForm::Json,
            route: None,
            target: None,
            tried: Vec::new(),
            keeping: None,
            dial: None,
            ahead: None,
            under_way: None,
            awaits_client: None,
            place: None,
            body_bytes: 0,
            body_clock: Arc::default(),
            body: None,
            seen: None,
            unreadable: None,
            gate: LoginGate::default(),
            sets_cookie: false,
            answered: false,
            status: 0,
            interim: 0,
            incomplete: None,
        }
    }

    /// The group of servers that the request's location names.
    pub(crate) fn group(&self, groups: &Groups) -> Option<&Arc<Group>> {
        let proxied = self.proxied.as_ref()?;
        self.group.get_or_init(|| groups.get(proxied.group())).as_ref()
    }

    /// More of the body must come; `grace` is `web.client_body_timeout`.
    pub(crate) fn expect_body(&self, grace: Duration) {
        self.body_clock
            .expect_by(self.begun + body_time(self.body_bytes, grace));
    }

    /// Its server connection, once there is one.
    pub(crate) fn connection(&self) -> Option<&Arc<ServerConnection>> {
        Some(&self.dial.as_ref()?.found()?.connection)
    }

    /// The engine has passed on what it has read of the answer.
    pub(crate) fn read_on(&mut self) {
        if let Some(ahead) = &mut self.ahead {
            ahead.pass();
        }
    }

    /// Whether that has carried other requests.
    pub(crate) fn reuses(&self) -> bool {
        let found = self.dial.as_ref().and_then(|dial| dial.found());
        found.is_some_and(|found| found.reused)
    }

    /// The login of a request, if it can be read.
    ///
    /// # Errors
    /// It cannot; with the status of the answer.
    pub(crate) fn readable<T>(&mut self, read: std::result::Result<T, login::UnreadableLogin>) -> Result<T> {
        read.or_else(|unreadable| {
            self.unreadable = Some(unreadable);
            Error::e_explain(ErrorType::HTTPStatus(unreadable.status), unreadable.why)
        })
    }

    pub(crate) fn id(&self) -> &str {
        self.info.as_ref().map_or("-", |info| info.id.as_str())
    }
}

/// Rewrites `Location` and `Refresh` of a server's answer to lead to us.
pub(crate) fn relocate(context: &RequestContext, response: &mut ResponseHeader) -> Result<()> {
    let (Some(proxied), Some(info), Some(target)) = (&context.proxied, &context.info, &context.target) else {
        return Ok(());
    };
    let (Some(host), Some(host_as_sent)) = (&info.host, &info.host_as_sent) else {
        return Ok(());
    };
    if !proxied.forward().rewrite_location {
        return Ok(());
    }
    if !Relocation::is_in(&response.headers) {
        return Ok(());
    }
    let host_as_sent = host_as_sent.to_str().unwrap_or_default();
    let address = target.address.ip().to_string();
    let relocation = Relocation {
        scheme: info.scheme,
        host_as_sent,
        host,
        our_port: info.port,
        server: &[&target.server.name, &target.server.host, &address],
        server_port: target.server.port,
    };
    for (name, value) in relocation.of(&response.headers) {
        response.insert_header(name, value)?;
    }
    Ok(())
}

/// Sends an answer of our own to the client, with the headers that every answer has.
pub(crate) async fn answer_with(
    mut answer: LocalAnswer,
    session: &mut Session,
    context: &RequestContext,
) -> Result<()> {
    answers::hear_out(session).await;
    client_of(session).inspect(|web| web.forget_lines());
    dress(context, &mut answer.head)?;
    answer.send(session).await
}

/// Gives a server's answer the headers that every answer has. Those of a virtual host, which most answers have in common,
/// go to a client of HTTP/1 as lines.
pub(crate) fn dress_for(session: &Session, context: &RequestContext, response: &mut ResponseHeader) -> Result<()> {
    let lines = client_of(session)
        .filter(|_| session.req_header().version < Version::HTTP_2)
        .and_then(|web| Some((web, lines_for(context, response)?)));
    let Some((web, lines)) = lines else {
        return dress(context, response);
    };
    *web.answer_lines.lock() = Some(lines);
    undress(context, response);
    Ok(())
}

/// The headers of [`dress`] as lines, where they come from the virtual host alone.
fn lines_for(context: &RequestContext, response: &ResponseHeader) -> Option<AnswerLines> {
    let (info, vhost) = (context.info.as_ref()?, context.vhost.as_ref()?);
    let location = &context.found.as_ref()?.entry.location;
    if !location.security_headers || !location.answer_headers.is_empty() {
        return None;
    }
    let host = vhost.headers.lines(&response.headers, info.scheme == "https")?.clone();
    let id = info.id.clone();
    (!response.headers.contains_key(&headers::X_REQUEST_ID)).then_some(AnswerLines { id, host })
}

/// The headers that every answer has: its request's id, those of the virtual host, those of the location. Where the
/// server sets a header of the virtual host itself, the server's stays: it knows its page, and two of them would
/// contradict each other.
pub(crate) fn dress(context: &RequestContext, response: &mut ResponseHeader) -> Result<()> {
    let request_id = headers::X_REQUEST_ID;
    let id = context.info.iter().map(|info| (&request_id, info.id.value()));
    let location = context.found.as_ref().map(|found| &found.entry.location);
    let vhost = context
        .vhost
        .iter()
        .filter(|_| location.is_none_or(|location| location.security_headers));
    let of_vhost = vhost.flat_map(|vhost| &vhost.headers);
    let of_vhost = of_vhost.filter(|(name, _)| *name != request_id && !response.headers.contains_key(name));
    let of_location = location.iter().flat_map(|location| &location.answer_headers);
    let added: Vec<_> = id
        .chain(of_vhost.chain(of_location).map(|(name, value)| (name, value)))
        .collect();
    answer_head::set(response, &added)?;
    undress(context, response);
    Ok(())
}

/// Takes from an answer what it may not have.
fn undress(context: &RequestContext, response: &mut ResponseHeader) {
    if context.info.as_ref().is_none_or(|info| info.scheme != "https") {
        // In clear text any machine on the way could have added it (RFC 6797 §7.2).
        response.remove_header(&http::header::STRICT_TRANSPORT_SECURITY);
    }
}
