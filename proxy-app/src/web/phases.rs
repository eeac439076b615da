//! The web side: a Pingora [`ProxyHttp`] whose phases find out where a request goes, and record what became of it.
//!
//! A request goes to the mailbox server of its account where that is known, and to any healthy one otherwise: every
//! server can answer for every account, only slower. Passwords and tokens are not checked here.

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::request::Parts;
use mail_proxy::audit::{Outcome, Record};
use mail_proxy::throttle::Counted;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::server::configuration::ServerConf;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, OrErr, Result};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};

use route_cache::bracketed;

use crate::app::env::WebEnv;
use crate::app::snapshot::MailMode;
use crate::http::answer_head::{self, Framing};
use crate::http::answers::{self, ErrorForm, LocalAnswer};
use crate::http::compression::Compressing;
use crate::http::repeat::may_be_repeated;
use crate::http::{compression, headers, login, old_clients};
use crate::locations::{Action, Files, MatchedLocation};
use crate::node::limits::RequestKind;
use crate::node::redaction;
use crate::node::refusals::{Reason, RefusedConnection};
use crate::upstream::dial::{Dialer, Sources};
use crate::upstream::pool::ConnectionPool;
use crate::upstream::{body_clock, http2};
use crate::web::access_log::{self, AccessRecord};
use crate::web::client::{self, WebClient, client_of};
use crate::web::decision::{self, Decision, ProxyRequest, RequestInfo};
use crate::web::keeping::Keeping;
use crate::web::read_ahead::{Portions, ReadAhead};
use crate::web::request_context::{BODY_LEAST, DRIPPING, RequestContext, answer_with, dress, dress_for, relocate};
use crate::web::server_choice::{ROUTE_YOUNG, TRIES, choose, unreachable};
use crate::web::{throttle, upstream_headers, upstream_peer};

/// How long a client may take nothing of an answer: nginx's `send_timeout`.
const CLIENT_PATIENCE: Duration = Duration::from_secs(60);
/// Why a client that leaves counts: it stands in the audit record, and fail2ban's filter looks for it.
const LEFT_EARLY: &str = "counted as a failed login";
/// Most interim answers before the final one: enough for a 102 at intervals for half an hour (RFC 2518 §10.1).
const INTERIM_MAX: usize = 100;

/// The web side of the node.
pub(crate) struct Web {
    pub(crate) env: Arc<WebEnv>,
    pub(crate) requests: AtomicU64,
    pub(crate) dialer: Dialer,
}

impl Web {
    /// The web side, in an engine with this configuration.
    pub(crate) fn new(env: Arc<WebEnv>, conf: &ServerConf) -> Self {
        Self {
            env,
            requests: AtomicU64::new(0),
            dialer: Dialer {
                sources: Sources::of(conf),
                pool: ConnectionPool::new(conf.upstream_keepalive_pool_size.saturating_mul(conf.threads.max(1))),
            },
        }
    }
}

/// Why a request is refused whose client has as many under way as it may have.
const TOO_MANY: &str = "too many requests of one address";

#[async_trait]
impl ProxyHttp for Web {
    /// In a box: the engine moves it from one future into the next.
    type CTX = Box<RequestContext>;

    fn new_ctx(&self) -> Box<RequestContext> {
        Box::new(RequestContext::new(self.env.snapshot.load_full()))
    }

    /// None for every request: [`old_clients`] and [`compression`] add theirs where they are needed.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, context: &mut Self::CTX) -> Result<bool> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        old_clients::respect(session);
        let request = session.req_header();
        if request.version < http::Version::HTTP_2 && headers::closes(&request.headers) {
            session.set_keepalive(None);
        }
        let has_come = session.as_mut().is_body_done();
        let Some(web) = client_of(session) else {
            return Error::e_explain(ErrorType::InternalError, "a request without a connection");
        };
        if session.req_header().method == http::Method::CONNECT {
            // CONNECT is never allowed. The engine would refuse it too, but with its own name in the answer.
            if session.req_header().version == http::Version::HTTP_2 {
                // The reason for refusing a request of HTTP/1 is known when the engine returns its connection.
                let refused = RefusedConnection::of(&web.facts);
                self.env.refusals.refused(refused, Reason::Connect);
            }
            return Error::e_explain(ErrorType::HTTPStatus(405), "CONNECT");
        }
        web.take();
        let request = session.req_header();
        if request.version == http::Version::HTTP_2 {
            // That of an HTTP/1 connection is held around all of its request.
            context.under_way = Some(web.facts.handle.waits_for_us());
        }
        context.awaits_client = (!has_come).then(|| web.facts.handle.awaits_client());
        let info = RequestInfo::read(&self.env, web, request);
        context.form = ErrorForm::of(request);
        let no_host = info.host.is_none() && request.version > http::Version::HTTP_10;
        let info = Arc::new(info);
        context.info = Some(info.clone());
        let vhosts = &context.snapshot.web.vhosts;
        let vhost = vhosts.of(info.host.as_deref(), web.facts.client.local.ip());
        context.vhost = Some(vhost.clone());
        if no_host {
            return Error::e_explain(ErrorType::HTTPStatus(400), "a request without a good Host");
        }
        match self.env.limits.begin_request(info.client, RequestKind::Plain) {
            Ok(place) => context.place = place,
            Err(_) => return Error::e_explain(ErrorType::HTTPStatus(503), TOO_MANY),
        }
        if let Err(refusal) = web.may_ask_for(info.host.as_deref(), vhost, vhosts) {
            return Error::e_explain(ErrorType::HTTPStatus(refusal.status()), refusal.why());
        }
        if !has_one_length(&request.headers) {
            return Error::e_explain(
                ErrorType::HTTPStatus(400),
                "a request with more than one Content-Length",
            );
        }
        if !answer_head::has_known_coding(&request.headers) {
            return Error::e_explain(ErrorType::HTTPStatus(501), "a transfer coding that is not known");
        }
        if request.version == http::Version::HTTP_2 && is_malformed(request) {
            return Error::e_explain(ErrorType::HTTPStatus(400), "a malformed request (RFC 9113 §8.1.1)");
        }
        if request.uri.path() == "*" && request.method != http::Method::OPTIONS {
            return Error::e_explain(ErrorType::HTTPStatus(400), "no path (RFC 9113 §8.3.1)");
        }
        if request.method == http::Method::TRACE {
            // It would show a script the cookies that it must not see.
            return Error::e_explain(ErrorType::HTTPStatus(405), "TRACE");
        }
        if request.method == http::Method::OPTIONS && request.uri.path() == "*" {
            Box::pin(answer_with(LocalAnswer::options()?, session, context)).await?;
            return Ok(true);
        }
        let clear = info.is_clear(web);
        let signs_on = web.sso;
        session.set_write_timeout(Some(CLIENT_PATIENCE));
        // What few requests need is in boxes, here and below: the others are not to move room for it.
        if signs_on {
            return Box::pin(self.sign_on(session, context, &info)).await;
        }
        let may_be_challenge = answers::challenged(session.req_header().uri.path()).is_some();
        if may_be_challenge && Box::pin(self.challenge(session, context)).await? {
            return Ok(true);
        }
        if clear && context.snapshot.web.mode != MailMode::Both {
            return Box::pin(self.clear_port(session, context, &info)).await;
        }
        self.go(session, context, &info).await
    }

    async fn upstream_peer(&self, session: &mut Session, context: &mut Self::CTX) -> Result<Box<HttpPeer>> {
        // The server that was tried previously is not busy with it any more.
        context.target = None;
        let Some(web) = client_of(session) else {
            return Error::e_explain(ErrorType::InternalError, "a request without a connection");
        };
        let target = choose(&self.env, web, context).await?;
        let (Some(proxied), Some(info)) = (&context.proxied, &context.info) else {
            return Error::e_explain(ErrorType::InternalError, "a request without a location");
        };
        let keepalive = context.group(&self.env.groups).and_then(|group| group.keepalive());
        let keeping = Keeping::of(web, session.req_header(), info, proxied, keepalive);
        let mut peer = upstream_peer::new(&target, proxied, &context.snapshot);
        let ahead = ReadAhead::new(self.portions(web));
        if !session.as_mut().is_body_done() {
            let grace = self.env.config.load().web.client_body_timeout;
            context.expect_body(grace);
        }
        let (pace, dialer) = (ahead.pace.clone(), self.dialer.clone());
        let body = context.body_clock.clone();
        let dial = upstream_peer::dial(&target, proxied, &context.snapshot, &keeping, pace, body, dialer);
        let dial = Arc::new(dial);
        peer.options.custom_l4 = Some(dial.clone());
        context.dial = Some(dial);
        context.ahead = Some(ahead);
        context.keeping = Some(keeping);
        context.target = Some(target);
        Ok(Box::new(peer))
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        chunk: &mut Option<Bytes>,
        end: bool,
        context: &mut Self::CTX,
    ) -> Result<()> {
        if end && chunk.as_ref().is_some_and(Bytes::is_empty) {
            // The engine would write it as the last chunk, and then the last chunk.
            *chunk = None;
        }
        if let (Some(body), Some(chunk)) = (&mut context.body, &chunk) {
            body.push(chunk);
        }
        context.body_bytes += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        let grace = self.env.config.load().web.client_body_timeout;
        if !end && is_dripping(context.begun.elapsed(), context.body_bytes, grace) {
            return Error::e_explain(ErrorType::HTTPStatus(408), DRIPPING);
        }
        if end {
            context.body_clock.stop();
            context.awaits_client = None;
        } else {
            context.expect_body(grace);
            client_of(session).iter().for_each(|web| web.facts.handle.heard());
        }
        let most = context.proxied.as_ref().and_then(|proxied| proxied.forward().max_body);
        if most.is_some_and(|most| context.body_bytes > most) {
            return Error::e_explain(ErrorType::HTTPStatus(413), "a body above the limit of its location");
        }
        if end
            && let Some(body) = context.body.take()
            && let Some(seen) = context.readable(body.read())?
        {
            context.seen = Some(seen);
            // The server has not got the end of it yet.
            if let (Some(web), Some(info)) = (client_of(session), context.info.clone()) {
                let headers = &session.req_header().headers;
                Box::pin(throttle::admit_now(&self.env, web, context, &info, headers)).await?;
            }
        }
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream: &mut RequestHeader,
        context: &mut Self::CTX,
    ) -> Result<()> {
        if session.as_mut().is_body_empty() && headers::lacks_a_length(upstream) {
            upstream.insert_header(http::header::CONTENT_LENGTH, "0")?;
        }
        let (Some(web), Some(proxied)) = (client_of(session), &context.proxied) else {
            return Ok(());
        };
        let (Some(info), Some(target)) = (&context.info, &context.target) else {
            return Ok(());
        };
        // The engine keeps how the client spelled the names, and so makes three allocations and two searches of every
        // header that is set. Servers know names in any case, as HTTP/2 has them all in lower case.
        let mut parts = Parts::from(std::mem::replace(upstream, nothing()));
        if let Some(cookies) = headers::joined_cookies(&parts.headers) {
            parts.headers.insert(http::header::COOKIE, cookies);
        }
        for name in headers::dropped(&session.req_header().headers) {
            parts.headers.remove(&name);
        }
        for name in [http::header::UPGRADE, http::header::CONNECTION] {
            // Web sockets are not handled here.
            parts.headers.remove(&name);
        }
        for name in &proxied.forward().remove_headers {
            parts.headers.remove(name);
        }
        parts.uri = proxied.uri(&session.req_header().uri).map_err(|error| {
            Error::explain(
                ErrorType::HTTPStatus(400),
                format!("the path cannot be sent on: {error}"),
            )
        })?;
        upstream_headers::set(&mut parts.headers, web, info, proxied, &target.server).or_err(
            ErrorType::InvalidHTTPHeader,
            "a name of the configuration that cannot stand in a header",
        )?;
        *upstream = parts.into();
        if let Some(keeping) = &context.keeping {
            keeping.announce(upstream)?;
        }
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        context: &mut Self::CTX,
    ) -> Result<()> {
        if let (Some(web), Some(keeping), Some(connection)) =
            (client_of(session), &context.keeping, context.connection())
        {
            keeping.learn(web, connection, response);
        }
        context.read_on();
        context.interim += usize::from(response.status.is_informational());
        if context.interim > INTERIM_MAX {
            let why = "the server never comes to its answer";
            return Err(Error::explain(ErrorType::HTTPStatus(502), why).into_up());
        }
        let mended = answer_head::mend(response);
        if mended != Ok(Framing::Sound)
            && let Some(connection) = context.connection().filter(|connection| !connection.is_http2())
        {
            connection.spend();
        }
        mended.map_err(|why| Error::explain(ErrorType::HTTPStatus(502), why).into_up())?;
        answer_head::strip(response);
        if !context.snapshot.web.show_server {
            answer_head::hide_server(response);
        }
        Ok(())
    }

    fn upstream_response_body_filter(
        &self,
        session: &mut Session,
        chunk: &mut Option<Bytes>,
        end: bool,
        context: &mut Self::CTX,
    ) -> Result<Option<Duration>> {
        if context.ahead.as_ref().is_some_and(|ahead| ahead.pace.is_drained()) {
            compression::pause(session);
        }
        context.read_on();
        if let Some(seen) = &context.seen {
            context.gate.read(&self.env, seen, chunk.as_ref(), end);
        }
        if let Some(connection) = context.connection() {
            connection.touch();
        }
        Ok(None)
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        context: &mut Self::CTX,
    ) -> Result<()> {
        if response.status.is_informational() {
            // It is not the final answer, and its headers are about what the server will do (RFC 9110 §15.2).
            return Ok(());
        }
        context.answered = true;
        context.sets_cookie = response.headers.get_all(http::header::SET_COOKIE).iter().any(|cookie| {
            let name = cookie.as_bytes().split(|&b| b == b'=').next().unwrap_or_default();
            matches!(name, b"ZM_AUTH_TOKEN" | b"ZM_ADMIN_AUTH_TOKEN")
        });
        if let Some(target) = &context.target {
            match (&target.member, context.group(&self.env.groups)) {
                (Some(member), _) => member.answered(),
                (None, Some(group)) => group.answered(target.address),
                (None, None) => {}
            }
        }
        let status = response.status.as_u16();
        context.status = status;
        if let Some(seen) = &context.seen {
            context.gate.answered(&self.env, response, seen, context.sets_cookie);
        }
        if matches!(status, 404 | 502..=504) && context.form == ErrorForm::Page {
            // A user gets a page that says what to do; programs get what the server says (HTTP §12.2, 16).
            return Error::e_explain(ErrorType::HTTPStatus(status), "the server's own error");
        }
        if session.req_header().version == http::Version::HTTP_2 {
            // It has all names in lower case.
            answer_head::forget_spelling(response);
        }
        relocate(context, response)?;
        answer_head::speak_our_version(response);
        old_clients::end_behind(session, response);
        dress_for(session, context, response)?;
        if let Some(info) = &context.info {
            compression::begin(session, response, &self.compressing(context, info));
        }
        Ok(())
    }

    /// The request was on its way. It goes to another server of its group only if it can be repeated without harm and
    /// nothing was answered yet; a kept connection may have ended before the server read anything.
    fn error_while_proxy(
        &self,
        peer: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        context: &mut Self::CTX,
        _new_to_the_engine: bool,
    ) -> Box<Error> {
        let mut error = error.more_context(format!("server {}", peer._address));
        if is_body_late(&error) {
            error.etype = ErrorType::HTTPStatus(408);
            error.as_down();
        }
        if is_late(&error) {
            error.etype = ErrorType::ReadTimedout;
        }
        let reused = context.reuses();
        let heard =
            context.answered || matches!(error.etype(), ErrorType::HTTPStatus(_) | ErrorType::InvalidHTTPHeader);
        let repeatable = may_be_repeated(&session.req_header().method) || is_unprocessed(&error);
        if heard || !repeatable || session.as_ref().retry_buffer_truncated() {
            error.set_retry(false);
            return error;
        }
        let broken = *error.esource() == ErrorSource::Upstream
            && !matches!(error.etype(), ErrorType::ReadTimedout | ErrorType::WriteTimedout);
        let address = context
            .target
            .as_ref()
            .filter(|target| !target.own)
            .map(|target| target.address);
        match address {
            Some(address) if broken && !reused => {
                if let Some(group) = context.group(&self.env.groups) {
                    group.eject(address);
                }
                context.tried.push(address);
                error.set_retry(context.tried.len() < TRIES);
            }
            // However a kept connection ends: TLS reports it with another error.
            _ => error.set_retry(broken && reused),
        }
        error
    }

    /// Nothing has been sent yet: the route is forgotten and looked up again, once; an unauthenticated request goes to
    /// another server.
    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        context: &mut Self::CTX,
        mut error: Box<Error>,
    ) -> Box<Error> {
        let Some(target) = context.target.take() else {
            return error;
        };
        self.env.metrics.connected(&target.address.to_string(), false);
        let again = unreachable(&self.env, context, &target);
        context.target = Some(target);
        error.set_retry(again);
        error
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, context: &mut Self::CTX) -> FailToProxy {
        let code = status_of(error);
        let begun = session
            .response_written()
            .is_some_and(|response| !response.status.is_informational());
        if begun {
            let by_client = *error.esource() == ErrorSource::Downstream;
            context.incomplete = Some(if by_client { "client" } else { "server" });
            client::cut_short(session).await;
        }
        if code > 0 && !begun {
            session.set_keepalive(None);
            let answer = LocalAnswer::error(code, context.form, context.id());
            let answer = answer.and_then(|answer| answer.retry_after(context.gate.retry_after()));
            let sent = match answer {
                Ok(answer) => answer_with(answer, session, context).await,
                Err(error) => Err(error),
            };
            if let Err(error) = sent {
                log::debug!("an error page could not be sent: {error}");
            }
        }
        if context.answered && *error.esource() == ErrorSource::Upstream {
            log::warn!("request {}: the answer was broken off: {error}", context.id());
        } else if matches!(code, 500 | 502..=504) && !context.answered {
            log::warn!("request {}: {code}: {error}", context.id());
        }
        FailToProxy {
            error_code: code,
            can_reuse_downstream: false,
        }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, context: &mut Self::CTX) {
        let Some(web) = client_of(session) else {
            return;
        };
        let status = session
            .response_written()
            .filter(|response| !response.status.is_informational())
            .map_or(0, |response| response.status.as_u16());
        web.facts.handle.add_out(session.body_bytes_sent() as u64);
        let metrics = &self.env.metrics;
        match context.group(&self.env.groups).filter(|_| context.target.is_some()) {
            Some(group) => metrics.web_request(group.name(), &group.answers, status),
            None => metrics.own_answer(status),
        }
        self.log_access(session, web, context, status);
        if let Some(unreadable) = context.unreadable.take() {
            return record_unreadable(&self.env, web, context, unreadable);
        }
        let Some(seen) = context.seen.take() else { return };
        let by_client = error.is_some_and(|error| *error.esource() == ErrorSource::Downstream);
        let outcome = match context.answered {
            _ if context.gate.is_closed() => Some(Outcome::Throttled),
            // Whether its client has got it or not.
            true => seen.outcome(context.status, context.sets_cookie),
            false => login::unanswered(status, by_client && context.target.is_some()),
        };
        record_login(&self.env, web, context, seen, outcome);
    }

    fn suppress_error_log(&self, _session: &Session, _context: &Self::CTX, _error: &Error) -> bool {
        // Logged in `fail_to_proxy`. Clients that go away are not worth a line; our own answers are in the access log.
        true
    }

    /// What Pingora's own lines say of a request: as much as the access log would, and nothing else.
    fn request_summary(&self, session: &Session, context: &Self::CTX) -> String {
        let request = session.req_header();
        let target = request.uri.path_and_query().map_or("/", |target| target.as_str());
        let target = redaction::redact(target);
        format!("request {}: {} {target}", context.id(), request.method)
    }
}

impl Web {
    /// How an answer for this client may be compressed.
    fn compressing(&self, context: &RequestContext, info: &RequestInfo) -> Compressing<'_> {
        Compressing {
            rules: context.snapshot.web.compression,
            limits: &self.env.limits,
            client: info.client,
        }
    }

    /// How much of an answer is read at once for this client.
    fn portions(&self, web: &WebClient) -> Portions {
        Portions::new(&web.reading, &self.env.limits, web.facts.client.addr.ip())
    }

    /// Answers the challenge of an ACME authority, on every listener and in every mode. A challenge that is not ours and has
    /// no file here is handled like any other request: another program may have it.
    async fn challenge(&self, session: &mut Session, context: &RequestContext) -> Result<bool> {
        let Some(token) = answers::challenged(session.req_header().uri.path()) else {
            return Ok(false);
        };
        let own = self.env.challenges.answer(token).map(String::into_bytes);
        let folder = self.env.config.load().web.acme_dir.clone();
        let proof = match (own, folder) {
            (Some(own), _) => Some(own),
            (None, Some(folder)) => answers::proof(folder.join(token)).await,
            (None, None) => None,
        };
        let Some(proof) = proof else {
            return Ok(false);
        };
        let answer = LocalAnswer::text(200, "application/octet-stream", proof)?;
        answer_with(answer, session, context).await?;
        Ok(true)
    }

    /// Answers on a clear-text web port that does not serve: HTTP §1.5, §1.6.
    async fn clear_port(&self, session: &mut Session, context: &RequestContext, info: &RequestInfo) -> Result<bool> {
        if context.snapshot.web.mode == MailMode::Https {
            let answer = LocalAnswer::error(403, context.form, info.id.as_str())?;
            answer_with(answer, session, context).await?;
            return Ok(true);
        }
        let host = info.host.clone().unwrap_or_else(|| self.env.config.load().node.clone());
        let host = bracketed(&host);
        let port = match context.snapshot.web.https_port {
            443 => String::new(),
            port => format!(":{port}"),
        };
        let target = session
            .req_header()
            .uri
            .path_and_query()
            .map_or("/", |target| target.as_str());
        let answer = LocalAnswer::redirect(302, &format!("https://{host}{port}{target}"))?;
        answer_with(answer, session, context).await?;
        Ok(true)
    }

    /// Answers the request, or lets it go on to a server.
    async fn go(&self, session: &mut Session, context: &mut RequestContext, info: &RequestInfo) -> Result<bool> {
        let Some(web) = client_of(session) else {
            return Error::e_explain(ErrorType::InternalError, "a request without a connection");
        };
        let request = session.req_header();
        match decision::decide(&self.env, &context.snapshot, web, request, info) {
            Decision::Forward(proxied) => {
                context.found = Some(proxied.found.clone());
                check_length(&proxied, &request.headers)?;
                context.proxied = Some(proxied);
                let seen = login::basic(&request.method, &request.uri, &request.headers);
                context.seen = context.readable(seen)?;
                if let Some(form) = login::is_login_path(request.uri.path()) {
                    context.readable(login::check_coding(form, &request.headers))?;
                    context.body = Some(login::LoginBody::new(form));
                }
                if context.seen.is_some() || context.body.is_some() {
                    Box::pin(throttle::admit(&self.env, session, context, info)).await?;
                }
                Ok(false)
            }
            Decision::Redirect { to, status, found } => {
                context.found = Some(found);
                let answer = LocalAnswer::redirect(status, &to)?;
                Box::pin(answer_with(answer, session, context)).await?;
                Ok(true)
            }
            Decision::Local(found, path) => {
                context.found = Some(found.clone());
                Box::pin(self.local(session, context, info, &found, &path)).await?;
                Ok(true)
            }
            Decision::Refused { status, why } => Error::e_explain(ErrorType::HTTPStatus(status), why),
        }
    }

    /// The answer of a location that has one itself.
    async fn local(
        &self,
        session: &mut Session,
        context: &RequestContext,
        info: &RequestInfo,
        found: &MatchedLocation,
        path: &str,
    ) -> Result<()> {
        let secure = info.scheme == "https";
        let answer = match &found.entry.location.action {
            Action::Files(files) => return self.file(session, context, found, files, path).await,
            Action::Answer { status, body: None, .. } if *status >= 400 => {
                LocalAnswer::error(*status, context.form, info.id.as_str())?
            }
            Action::Answer { status, kind, body } => {
                LocalAnswer::text(*status, kind, body.clone().unwrap_or_default())?
            }
            Action::Logout { to, cookies } => {
                // Where the domain names a place, the web client goes there itself (HTTP §2.2, S3).
                let elsewhere = context.vhost.as_ref().and_then(|vhost| to.of_vhost(vhost));
                let to = elsewhere.is_none().then_some(to.to.as_str());
                LocalAnswer::logout(cookies, to, secure)?
            }
            Action::Status => LocalAnswer::text(200, "text/plain", self.status())?,
            Action::Forward(_) | Action::Redirect { .. } => {
                return Error::e_explain(ErrorType::InternalError, "a location that has no answer");
            }
        };
        answer_with(answer, session, context).await
    }

    /// Answers with a file of a location's folder.
    async fn file(
        &self,
        session: &mut Session,
        context: &RequestContext,
        found: &MatchedLocation,
        files: &Files,
        path: &str,
    ) -> Result<()> {
        let (Some(tree), Some(web), Some(info)) = (&found.entry.tree, client_of(session), &context.info) else {
            return Error::e_explain(ErrorType::InternalError, "a location for files without a folder");
        };
        let below = path.strip_prefix(files.strip.as_str()).unwrap_or(path);
        let mut portions = self.portions(web);
        let finish = |head: &mut ResponseHeader| {
            if let Err(error) = dress(context, head) {
                log::warn!("request {}: {error}", context.id());
            }
        };
        let compressing = self.compressing(context, info);
        tree.serve(session, below, &compressing, finish, || portions.next())
            .await
    }

    /// In the form of nginx's stub_status, for exporters that read that. Connections are those of all listeners.
    fn status(&self) -> String {
        let (open, all) = (self.env.open.count(), self.env.connection_ids.count());
        let requests = self.requests.load(Ordering::Relaxed);
        format!(
            "Active connections: {open} \nserver accepts handled requests\n {all} {all} {requests} \n\
             Reading: 0 Writing: {open} Waiting: 0 \n"
        )
    }

    fn log_access(&self, session: &Session, web: &WebClient, context: &RequestContext, status: u16) {
        let Some(info) = context.info.as_ref().filter(|_| self.env.access.is_on()) else {
            return;
        };
        let last = context.target.iter().map(|target| &target.address);
        let addresses = context
            .tried
            .iter()
            .chain(last.filter(|address| !context.tried.contains(address)));
        let mut upstream = String::new();
        for address in addresses {
            let before = if upstream.is_empty() { "" } else { ", " };
            write!(upstream, "{before}{address}").expect("a String takes everything");
        }
        let seen = context
            .seen
            .as_ref()
            .filter(|seen| seen.form == login::LoginForm::Basic);
        let record = AccessRecord {
            user: seen.map(|seen| seen.user.as_str()),
            status,
            bytes: session.body_bytes_sent() as u64,
            upstream: &upstream,
            location: context.found.as_ref().map(|found| found.entry.location.name.as_str()),
            incomplete: context.incomplete,
            begun: context.begun,
        };
        self.env.access.line(access_log::of_request(
            &self.env,
            web,
            session.req_header(),
            info,
            record,
        ));
    }
}

/// Records a login with the outcome that the answer shows, or with the end of its client, and looks up an old route
/// again whose server refused it. Basic credentials come with every request: good ones are recorded once for a
/// connection, and after that no request that its client leaves counts as a guess.
pub(crate) fn record_login(
    env: &WebEnv,
    web: &WebClient,
    context: &mut RequestContext,
    seen: login::LoginAttempt,
    outcome: Option<Outcome>,
) {
    let counts = context.gate.tell(env, &seen, outcome);
    let Some(outcome) = outcome else { return };
    if outcome == Outcome::BadCredentials {
        doubt_route(env, context);
    }
    if seen.form == login::LoginForm::Basic && web.has_recorded(&seen, outcome) {
        return;
    }
    let is_counted = outcome == Outcome::ClientGone && counts == Counted::Stranger;
    let mut record = Record {
        user: Some(seen.user),
        mechanism: Some(seen.mechanism),
        outcome: Some(outcome),
        why: is_counted.then(|| LEFT_EARLY.to_owned()),
        ..record_of(web, context)
    };
    context.gate.note(&mut record);
    env.audit.record(record);
}

/// Records a login that cannot be read; its client has been told so.
fn record_unreadable(env: &WebEnv, web: &WebClient, context: &RequestContext, login: login::UnreadableLogin) {
    env.audit.record(Record {
        mechanism: Some(login.mechanism),
        outcome: Some(Outcome::ProtocolError),
        why: Some(login.why.to_owned()),
        ..record_of(web, context)
    });
}

/// The record of a login in a request, to be filled in.
fn record_of(web: &WebClient, context: &RequestContext) -> Record {
    let client = context
        .info
        .as_ref()
        .map_or(web.facts.client.addr.ip(), |info| info.client);
    Record {
        request: context.info.as_ref().map(|info| info.id.as_str().to_owned()),
        account: context.route.as_ref().map(|route| route.account.to_string()),
        route: context.target.as_ref().map(|target| target.address.to_string()),
        tier: context.route.as_ref().map(|route| route.tier.name()),
        ..web.login_record(client, context.snapshot.generation)
    }
}

/// The account's own server has refused a login: if its route is an old one, the source is asked again in the
/// background, so that the next login finds an account that has moved.
fn doubt_route(env: &WebEnv, context: &RequestContext) {
    let own = context.target.as_ref().is_some_and(|target| target.own);
    let lookup = context.proxied.as_ref().and_then(|proxied| proxied.lookup.clone());
    if let Some(lookup) = lookup.filter(|_| own) {
        let routes = env.routes.clone();
        tokio::spawn(async move { routes.ask_again(&lookup, ROUTE_YOUNG).await });
    }
}

/// Whether the server was silent for too long; the engine does not know why it cannot read on.
fn is_late(error: &Error) -> bool {
    let io: Option<&io::Error> = error.root_cause().downcast_ref();
    *error.etype() == ErrorType::ReadError && io.is_some_and(|io| io.kind() == io::ErrorKind::TimedOut)
}

/// Whether the client of a request was silent in the middle of its body.
fn is_body_late(error: &Error) -> bool {
    let io: Option<&io::Error> = error.root_cause().downcast_ref();
    io.is_some_and(body_clock::is_late_body)
}

/// Whether the server says that it has not processed the request, so that it may be repeated whatever its method is.
fn is_unprocessed(error: &Error) -> bool {
    let io: Option<&io::Error> = error.root_cause().downcast_ref();
    io.is_some_and(http2::is_unprocessed)
}

/// Whether the library of HTTP/2 has let through what is malformed: a path that does not begin with a slash, another
/// scheme than ours (RFC 9113 §8.3.1), or a value with blanks around it (§8.2.1).
fn is_malformed(request: &RequestHeader) -> bool {
    let target = request.uri.path_and_query().map_or("/", |target| target.as_str());
    let scheme = request.uri.scheme_str().unwrap_or("https");
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    !(target.starts_with('/') || target == "*")
        || !matches!(scheme, "http" | "https")
        || request.headers.values().any(|value| {
            let value = value.as_bytes();
            is_blank(value.first()) || is_blank(value.last())
        })
}

/// A head without anything in it.
fn nothing() -> RequestHeader {
    http::Request::new(()).into_parts().0.into()
}

/// Two lengths, even equal ones: two servers may read such a request differently (RFC 9112 §6.3).
fn has_one_length(headers: &http::HeaderMap) -> bool {
    let mut lengths = headers.get_all(http::header::CONTENT_LENGTH).iter();
    let single = lengths.next().is_none_or(|length| !length.as_bytes().contains(&b','));
    single && lengths.next().is_none()
}

/// A body that announces a length over the limit is refused before any of it is read.
fn check_length(proxied: &ProxyRequest, headers: &http::HeaderMap) -> Result<()> {
    let length = headers.get(http::header::CONTENT_LENGTH);
    let length: Option<u64> = length.and_then(|length| length.to_str().ok()?.parse().ok());
    match (length, proxied.forward().max_body) {
        (Some(length), Some(most)) if length > most => {
            Error::e_explain(ErrorType::HTTPStatus(413), "a body above the limit of its location")
        }
        _ => Ok(()),
    }
}

/// Whether a body that has brought so few bytes in this time is only there to hold a connection.
fn is_dripping(elapsed: Duration, bytes: u64, grace: Duration) -> bool {
    elapsed > grace && bytes < (elapsed - grace).as_secs() * BODY_LEAST
}

/// The status of the answer to a failure; 0 if there is no client to get one.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_may_be_slow_but_not_drip() {
        let after = Duration::from_secs;
        let is_dripping = |elapsed, bytes| is_dripping(elapsed, bytes, after(60));
        assert!(!is_dripping(after(59), 0));
        assert!(!is_dripping(after(120), 60 * BODY_LEAST));
        assert!(is_dripping(after(120), 60 * BODY_LEAST - 1));
        assert!(is_dripping(after(3600), 1000));
        assert!(!is_dripping(after(3600), 1_000_000));
    }
}
