//! WebSocket upgrades: first the server is asked, and once it has agreed the bytes are relayed.
//!
//! The HTTP engine loses some of them: with a server that answers quickly, it takes the end of the (empty) request for
//! the end of the web socket. So the upgrade is done here. A request that is not a plain upgrade goes to the engine
//! like any other. Any other answer than 101 is passed on with the headers of every answer, and both connections end
//! with it: no byte that a client sends behind its request reaches a server that has not agreed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version};
use mail_proxy::BoxStream;
use mail_proxy::relay::{Farewell, Relay, RelayEnd};
use route_cache::Server;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::app::env::WebEnv;
use crate::app::snapshot::MailMode;
use crate::http::answers::{ErrorForm, LocalAnswer};
use crate::http::{HEAD_MAX, answer_head, headers, login};
use crate::node::limits::RequestKind;
use crate::web::access_log::{self, AccessRecord};
use crate::web::client::WebClient;
use crate::web::decision::{Decision, ProxyRequest, RequestInfo, decide};
use crate::web::phases::record_login;
use crate::web::request_context::{RequestContext, UpstreamTarget, dress, relocate};
use crate::web::server_choice::{choose, unreachable};
use crate::web::{throttle, upstream_headers, upstream_peer};

mod answer;

use answer::{AnswerHead, Rest};

/// How long a client may take nothing of an answer that is not a web socket.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most headers of a request that we accept: Pingora's own limit.
const HEADERS_MAX: usize = 256;
/// Most heads of interim answers (RFC 9110 §15.2) before the answer; one is usual.
const INTERIM_MAX: usize = 8;
/// Most that is taken from a client before the server has agreed. The rest waits in the kernel.
const EARLY_MAX: usize = 4096;

/// An upgrade whose server is connected.
pub(crate) struct WebSocketUpgrade {
    context: RequestContext,
    request: Parts,
    server: BoxStream,
    /// The request as the server gets it.
    head: Vec<u8>,
    read: Duration,
    idle: Duration,
    name: String,
}

/// How a server answered it.
enum UpgradeOutcome {
    /// It agrees, and has sent `behind` after its answer. The client has already sent `early`.
    Switched {
        head: Box<AnswerHead>,
        behind: Vec<u8>,
        early: Vec<u8>,
    },
    /// It has another answer; `body` is the part of its body that has come.
    Refused { head: Box<AnswerHead>, body: Vec<u8> },
    /// It has no valid answer.
    Failed { status: u16, why: &'static str },
    /// The client has left.
    ClientLeft,
}

/// What became of an answer.
struct CopiedAnswer {
    status: u16,
    /// What the client got.
    bytes: u64,
    /// Which side has ended it too early.
    incomplete: Option<&'static str>,
}

impl CopiedAnswer {
    const fn whole(status: u16, bytes: u64) -> Self {
        Self {
            status,
            bytes,
            incomplete: None,
        }
    }
}

/// Finds a server and connects to it, if this is a request for an upgrade. `None`: the engine has to handle it, and
/// nothing has been sent to a server.
pub(crate) async fn ask(env: &WebEnv, web: &WebClient, head: &[u8]) -> Option<Box<WebSocketUpgrade>> {
    if web.sso {
        return None;
    }
    let request = parse(head).filter(is_upgrade)?;
    let snapshot = env.snapshot.load_full();
    let info = RequestInfo::read(env, web, &request);
    if info.is_clear(web) && snapshot.web.mode != MailMode::Both {
        return None;
    }
    info.host.as_ref()?;
    // The engine answers with the reason.
    let vhosts = &snapshot.web.vhosts;
    let vhost = vhosts.of(info.host.as_deref(), web.facts.client.local.ip()).clone();
    web.may_ask_for(info.host.as_deref(), &vhost, vhosts).ok()?;
    let Decision::Forward(proxied) = decide(env, &snapshot, web, &request, &info) else {
        return None;
    };
    if !proxied.forward().websocket {
        return None;
    }
    let waits = upstream_peer::waits(&proxied, &snapshot);
    let mut context = RequestContext::new(snapshot);
    context.form = ErrorForm::of(&request);
    context.vhost = Some(vhost);
    // One that cannot be read is the engine's.
    context.seen = login::basic(&request.method, &request.uri, &request.headers).ok()?;
    context.found = Some(proxied.found.clone());
    context.proxied = Some(proxied.clone());
    // One too many is the engine's, which counts it as any other request.
    let place = env.limits.begin_request(info.client, RequestKind::Waits);
    context.place = place.ok()?;
    throttle::admit_early(env, web, &mut context, &info, &request.headers).await?;
    let Some((target, server)) = connect(env, web, &mut context).await else {
        throttle::withdraw(env, web, &mut context);
        return None;
    };
    let Some(head) = upstream_head(web, &request, &info, &proxied, &target.server) else {
        throttle::withdraw(env, web, &mut context);
        return None;
    };
    let name = target.server.address().to_string();
    context.info = Some(Arc::new(info));
    context.target = Some(target);
    Some(Box::new(WebSocketUpgrade {
        context,
        request,
        server,
        head,
        read: waits.read,
        idle: waits.idle,
        name,
    }))
}

impl WebSocketUpgrade {
    /// Asks the server; relays until one side ends it, or passes the answer on.
    pub(crate) fn finish<'a>(
        self: Box<Self>,
        env: &'a WebEnv,
        web: &'a WebClient,
        client: BoxStream,
    ) -> impl Future<Output = ()> + Send + 'a {
        // Most connections never become one, and should not be as large.
        Box::pin(self.run(env, web, client))
    }

    async fn run(mut self: Box<Self>, env: &WebEnv, web: &WebClient, mut client: BoxStream) {
        let show_server = self.context.snapshot.web.show_server;
        let asking = talk(&mut self.server, &mut client, &self.head, show_server);
        let outcome = timeout(self.read, asking).await.unwrap_or(UpgradeOutcome::Failed {
            status: 504,
            why: "no answer to an upgrade in time",
        });
        if matches!(
            outcome,
            UpgradeOutcome::Switched { .. } | UpgradeOutcome::Refused { .. }
        ) && let Some(target) = &self.context.target
            && let Some(group) = self.context.group(&env.groups)
        {
            group.answered(target.address);
        }
        self.record_login(env, web, &outcome);
        let copied = match outcome {
            UpgradeOutcome::Switched { head, behind, early } => {
                let answer = [self.agreement(*head), behind].concat();
                let answered = answer.len() as u64;
                let mut relay = Box::new(Relay::new(client, self.server, self.idle));
                relay.owe_client(answer);
                relay.owe_server(early);
                let RelayEnd { bytes_out, .. } = relay
                    .run(&mut env.drain.clone(), &web.facts.handle, &Farewell::NONE)
                    .await;
                let copied = CopiedAnswer::whole(101, answered + bytes_out);
                return self.context.log(env, web, &self.request, &self.name, copied);
            }
            UpgradeOutcome::Refused { head, body } => self.pass_on(&mut client, *head, body).await,
            UpgradeOutcome::Failed { status, why } => {
                log::warn!("request {}: {status}: {why}", self.context.id());
                self.fail(&mut client, status).await
            }
            UpgradeOutcome::ClientLeft => CopiedAnswer::whole(0, 0),
        };
        if copied.incomplete == Some("server") {
            log::warn!(
                "request {}: the answer was broken off: that of a server that refuses an upgrade",
                self.context.id()
            );
            web.cut_short.store(true, Ordering::Relaxed);
        }
        let _ = timeout(PATIENCE, client.shutdown()).await;
        self.context.log(env, web, &self.request, &self.name, copied);
    }

    /// Records the attempt of an upgrade that logs in: guesses of passwords must not bypass the audit log in this way.
    fn record_login(&mut self, env: &WebEnv, web: &WebClient, outcome: &UpgradeOutcome) {
        let Some(seen) = self.context.seen.take() else { return };
        let answered = |status| seen.outcome(status, self.context.sets_cookie);
        let outcome = match outcome {
            UpgradeOutcome::Switched { .. } => answered(101),
            UpgradeOutcome::Refused { head, .. } => answered(head.response.status.as_u16()),
            UpgradeOutcome::Failed { status, .. } => login::unanswered(*status, false),
            UpgradeOutcome::ClientLeft => login::unanswered(0, self.context.target.is_some()),
        };
        record_login(env, web, &mut self.context, seen, outcome);
    }

    /// The answer of a server that agrees, as the client gets it: without what is only between the server and us, and
    /// with the request's id.
    fn agreement(&self, head: AnswerHead) -> Vec<u8> {
        let mut response = head.response;
        if !self.context.snapshot.web.show_server {
            answer_head::hide_server(&mut response);
        }
        let _an_id_can_stand_in_a_field = response.insert_header(headers::REQUEST_ID, self.context.id());
        answer::switched_wire(&response)
    }

    /// Passes an answer on that is not 101, as the engine would.
    async fn pass_on(&mut self, client: &mut BoxStream, head: AnswerHead, body: Vec<u8>) -> CopiedAnswer {
        let status = head.response.status.as_u16();
        if matches!(status, 404 | 502..=504) && self.context.form == ErrorForm::Page {
            return self.fail(client, status).await;
        }
        let mut response = head.response;
        if !self.context.snapshot.web.show_server {
            answer_head::hide_server(&mut response);
        }
        let finished = relocate(&self.context, &mut response).and_then(|()| dress(&self.context, &mut response));
        if finished.is_err() {
            return self.fail(client, 502).await;
        }
        let begun = [answer::wire(&response), body].concat();
        let (bytes, incomplete) = copy(client, &mut self.server, begun, head.rest, self.read).await;
        CopiedAnswer {
            status,
            bytes,
            incomplete,
        }
    }

    /// Answers with an error of our own.
    async fn fail(&mut self, client: &mut BoxStream, status: u16) -> CopiedAnswer {
        let page = LocalAnswer::error(status, self.context.form, self.context.id()).and_then(|mut page| {
            dress(&self.context, &mut page.head)?;
            page.head.insert_header(http::header::CONTENT_LENGTH, page.body.len())?;
            page.head
                .insert_header(http::header::DATE, pingora::protocols::http::date::get_cached_date())?;
            Ok([answer::wire(&page.head), page.body.to_vec()].concat())
        });
        let Ok(page) = page else {
            return CopiedAnswer::whole(status, 0);
        };
        match timeout(PATIENCE, client.write_all(&page)).await {
            Ok(Ok(())) => CopiedAnswer::whole(status, page.len() as u64),
            _ => CopiedAnswer::whole(status, 0),
        }
    }
}

impl RequestContext {
    /// Writes the access line of an upgrade.
    fn log(&self, env: &WebEnv, web: &WebClient, request: &Parts, upstream: &str, copied: CopiedAnswer) {
        let Some(info) = &self.info else { return };
        let CopiedAnswer {
            status,
            bytes,
            incomplete,
        } = copied;
        match self.group(&env.groups) {
            Some(group) => env.metrics.web_request(group.name(), &group.answers, status),
            None => env.metrics.own_answer(status),
        }
        let record = AccessRecord {
            user: None,
            status,
            bytes,
            upstream,
            location: self.found.as_ref().map(|found| found.entry.location.name.as_str()),
            incomplete,
            begun: self.begun,
        };
        env.access.line(access_log::of_request(env, web, request, info, record));
    }
}

/// Sends the request and reads the answer's head. Interim answers go on to the client (RFC 9110 §15.2); a client that
/// leaves ends it.
async fn talk(server: &mut BoxStream, client: &mut BoxStream, head: &[u8], show_server: bool) -> UpgradeOutcome {
    const BROKEN: UpgradeOutcome = UpgradeOutcome::Failed {
        status: 502,
        why: "the server breaks off instead of answering an upgrade",
    };
    if server.write_all(head).await.is_err() || server.flush().await.is_err() {
        return BROKEN;
    }
    let (mut answer, mut early, mut interim) = (Vec::with_capacity(1024), Vec::new(), 0);
    loop {
        let read = match AnswerHead::parse(&answer) {
            Err(why) => return UpgradeOutcome::Failed { status: 502, why },
            Ok(read) => read,
        };
        match read {
            Some(head) if head.is_switched => {
                let behind = answer.split_off(head.length);
                let head = Box::new(head);
                return UpgradeOutcome::Switched { head, behind, early };
            }
            Some(mut head) if head.response.status.is_informational() && interim < INTERIM_MAX => {
                if !show_server {
                    answer_head::hide_server(&mut head.response);
                }
                interim += 1;
                answer.drain(..head.length);
                let told = answer::interim_wire(&head.response);
                if client.write_all(&told).await.is_err() || client.flush().await.is_err() {
                    return UpgradeOutcome::ClientLeft;
                }
                continue;
            }
            Some(head) if head.response.status.is_informational() => return BROKEN,
            Some(head) => {
                let mut body = answer.split_off(head.length);
                body.truncate(head.begun);
                return UpgradeOutcome::Refused {
                    head: Box::new(head),
                    body,
                };
            }
            None if answer.len() > HEAD_MAX => return BROKEN,
            None => {}
        }
        tokio::select! {
            read = server.read_buf(&mut answer) => if !matches!(read, Ok(1..)) { return BROKEN },
            read = client.read_buf(&mut early), if early.len() < EARLY_MAX => {
                if !matches!(read, Ok(1..)) { return UpgradeOutcome::ClientLeft }
            }
        }
    }
}

/// Copies an answer to its end; its server may be silent for `patience`. Returns the bytes that the client got, and
/// which side has ended it too early.
async fn copy(
    client: &mut BoxStream,
    server: &mut BoxStream,
    begun: Vec<u8>,
    mut rest: Rest,
    patience: Duration,
) -> (u64, Option<&'static str>) {
    let mut bytes = 0;
    let mut chunk = begun;
    loop {
        let sent = async {
            client.write_all(&chunk).await?;
            client.flush().await
        };
        match timeout(PATIENCE, sent).await {
            Ok(Ok(())) => bytes += chunk.len() as u64,
            _ => return (bytes, Some("client")),
        }
        if rest.is_over() {
            return (bytes, None);
        }
        chunk = vec![0; 16 * 1024];
        match timeout(patience, server.read(&mut chunk)).await {
            Ok(Ok(0)) if rest == Rest::UntilEnd => return (bytes, None),
            Ok(Ok(n)) if n > 0 => chunk.truncate(n),
            _ => return (bytes, Some("server")),
        }
        let Some(theirs) = rest.pass(&chunk) else {
            return (bytes, Some("server"));
        };
        chunk.truncate(theirs);
    }
}

/// The request, if the head is whole and valid, and nothing follows it.
fn parse(head: &[u8]) -> Option<Parts> {
    let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut fields);
    match parsed.parse(head) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        _ => return None,
    }
    let (mut parts, ()) = http::Request::new(()).into_parts();
    parts.method = Method::from_bytes(parsed.method?.as_bytes()).ok()?;
    parts.uri = parsed.path?.parse::<Uri>().ok()?;
    parts.version = if parsed.version? == 1 {
        Version::HTTP_11
    } else {
        Version::HTTP_10
    };
    for field in parsed.headers {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        parts.headers.append(name, HeaderValue::from_bytes(field.value).ok()?);
    }
    Some(parts)
}

/// RFC 6455 §4.1: a GET of HTTP/1.1 without a body, for a path of this host. Envoy says in every request that its body
/// has a length of 0.
fn is_upgrade(request: &Parts) -> bool {
    let mut lengths = request.headers.get_all(http::header::CONTENT_LENGTH).iter();
    let empty = lengths.next().is_none_or(|length| length == "0") && lengths.next().is_none();
    request.method == Method::GET
        && request.version == Version::HTTP_11
        && request.uri.authority().is_none()
        && headers::is_websocket(&request.headers)
        && empty
        && !request.headers.contains_key(http::header::TRANSFER_ENCODING)
}

/// Chooses a server and connects to it. `None` where the engine has to answer, such as when checks find the account's
/// server dead.
async fn connect(env: &WebEnv, web: &WebClient, context: &mut RequestContext) -> Option<(UpstreamTarget, BoxStream)> {
    loop {
        let target = choose(env, web, context).await.ok()?;
        if context.tried.contains(&target.address) {
            return None;
        }
        let transport = &context.snapshot.transport;
        let stream = if target.own {
            transport.dial(&target.server).await
        } else {
            // The address that was chosen, under the rules of its group; the name stays that of the server.
            let mut chosen = target.server.clone();
            chosen.host = target.address.ip().to_string().into();
            chosen.port = target.address.port();
            transport.dial_as(&chosen, b"", target.verify).await
        };
        match stream {
            Ok(stream) => return Some((target, stream)),
            Err(_) if unreachable(env, context, &target) => {}
            Err(_) => return None,
        }
    }
}

/// The request as the server gets it, by the same header rules as for any other. `None` where the engine has to answer.
fn upstream_head(
    web: &WebClient,
    request: &Parts,
    info: &RequestInfo,
    proxied: &ProxyRequest,
    server: &Server,
) -> Option<Vec<u8>> {
    use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, UPGRADE};
    let dropped = headers::dropped(&request.headers);
    let mut ours = HeaderMap::new();
    upstream_headers::set(&mut ours, web, info, proxied, server).ok()?;
    let cookies = headers::joined_cookies(&request.headers);
    let removed = &proxied.forward().remove_headers;
    // `Connection` may have named other headers; there is no body.
    let is_anew = |name: &HeaderName| {
        matches!(name, &CONNECTION | &UPGRADE | &CONTENT_LENGTH)
            || cookies.is_some() && name == COOKIE
            || ours.contains_key(name)
    };
    let target = proxied.target(&request.uri);
    let mut head = format!("GET {target} HTTP/1.1\r\n").into_bytes();
    let mut line = |name: &str, value: &[u8]| {
        head.extend_from_slice(name.as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value);
        head.extend_from_slice(b"\r\n");
    };
    for (name, value) in &request.headers {
        if !is_anew(name) && !dropped.contains(name) && !removed.contains(name) {
            line(name.as_str(), value.as_bytes());
        }
    }
    if let Some(cookies) = cookies.as_ref().filter(|_| !removed.contains(&COOKIE)) {
        line(COOKIE.as_str(), cookies.as_bytes());
    }
    line("connection", b"Upgrade");
    line("upgrade", b"websocket");
    for (name, value) in &ours {
        line(name.as_str(), value.as_bytes());
    }
    head.extend_from_slice(b"\r\n");
    Some(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(head: &str, expected: bool) {
        assert_eq!(
            parse(head.as_bytes()).is_some_and(|request| is_upgrade(&request)),
            expected,
            "{head:?}"
        );
    }

    #[test]
    fn only_plain_upgrades_are_taken() {
        let tail = "Host: a\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n";
        check(&format!("GET /ws HTTP/1.1\r\n{tail}\r\n"), true);
        check(&format!("GET /ws HTTP/1.1\r\n{tail}Content-Length: 0\r\n\r\n"), true);
        check(
            &format!("GET /ws HTTP/1.1\r\n{tail}\r\nGET /admin HTTP/1.1\r\n\r\n"),
            false,
        );
        check(&format!("GET /ws HTTP/1.1\r\n{tail}Content-Length: 3\r\n\r\n"), false);
        check(
            &format!("GET /ws HTTP/1.1\r\n{tail}Content-Length: 0, 0\r\n\r\n"),
            false,
        );
        check(
            &format!("GET /ws HTTP/1.1\r\n{tail}Content-Length: 0\r\nContent-Length: 0\r\n\r\n"),
            false,
        );
        check(
            &format!("GET /ws HTTP/1.1\r\n{tail}Transfer-Encoding: chunked\r\n\r\n"),
            false,
        );
        check(&format!("GET http://b/ws HTTP/1.1\r\n{tail}\r\n"), false);
        check(&format!("POST /ws HTTP/1.1\r\n{tail}\r\n"), false);
        check(&format!("GET /ws HTTP/1.0\r\n{tail}\r\n"), false);
        check(
            "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
            false,
        );
        check("GET /ws HTTP/1.1\r\nHost: a\r\n\r\n", false);
    }
}
