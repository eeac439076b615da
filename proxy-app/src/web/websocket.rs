//! WebSocket upgrades: asked for at the server first, and relayed once it has agreed.
//!
//! The HTTP engine loses some of them: with a server that answers quickly, it takes the end of the (empty) request
//! for the end of the web socket. So the upgrade is done here. A request that is not a plain upgrade goes to the
//! engine like any other. Any other answer than 101 is passed on, and both connections end with it: no byte that a
//! client sends behind its request reaches a server that has not agreed.

use std::time::{Duration, Instant};

use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Uri, Version};
use mail_proxy::BoxStream;
use mail_proxy::relay::{Ended, Farewell, Relay};
use route_cache::Server;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::connection::{self, HEAD_MAX, WebClient};
use super::upstreams::Member;
use super::way::{Asked, Onward, Way, way};
use super::{Home, Visit, headers, home, onward_headers, waits};
use crate::app::App;
use crate::snapshot::{MailMode, Snapshot};

/// How long either side may be silent while an answer that is not a web socket is passed on.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most headers of a request that we take over: Pingora's own limit.
const HEADERS_MAX: usize = 256;

/// What a server said to an upgrade.
pub(super) struct Answered {
    verdict: Verdict,
    idle: Duration,
    request: Parts,
    asked: Asked,
    name: String,
    location: String,
    begun: Instant,
    /// Counts the server as busy while it lives.
    _member: Option<Member>,
}

enum Verdict {
    /// It agrees: its answer, and what it sent behind it.
    Switched { server: BoxStream, answer: Vec<u8> },
    /// It has another answer, of which this much has come.
    Refused {
        server: BoxStream,
        status: u16,
        head: Vec<u8>,
        body: Vec<u8>,
        rest: Option<u64>,
    },
    /// It does not answer.
    Silent,
}

/// Asks for the upgrade, if this is a request for one. `None`: it is something for the engine, and no server has
/// heard of it.
pub(super) async fn ask(app: &App, web: &WebClient, head: &[u8]) -> Option<Answered> {
    let begun = Instant::now();
    if web.sso {
        return None;
    }
    let request = parse(head).filter(is_upgrade)?;
    let snapshot = app.snapshot.load_full();
    if web.tls.is_none() && !web.admin && snapshot.web.mode != MailMode::Both {
        return None;
    }
    let asked = Asked::read(app, web, &request);
    asked.host.as_ref()?;
    // The engine says why not.
    web.may_ask_for(asked.host.as_deref(), &snapshot.web.sites).ok()?;
    let Way::Forward(onward) = way(app, &snapshot, web, &request, &asked) else {
        return None;
    };
    if !onward.forward().websocket {
        return None;
    }
    let waits = waits(&onward, &snapshot);
    let (server, member) = locate(app, &snapshot, web, &onward).await?;
    let stream = match &member {
        Some(member) => {
            // The address that was chosen, under the rules of its group; the name stays that of the server.
            let mut chosen = server.clone();
            chosen.host = member.address.ip().to_string().into();
            chosen.port = member.address.port();
            snapshot.transport.dial_as(&chosen, b"", member.verify).await
        }
        None => snapshot.transport.dial(&server).await,
    };
    let stream = stream.ok()?;
    let head = upstream_head(web, &request, &asked, &onward, &server);
    let verdict = timeout(waits.read, exchange(stream, &head)).await;
    Some(Answered {
        verdict: verdict.ok().flatten().unwrap_or(Verdict::Silent),
        idle: waits.idle,
        request,
        asked,
        name: format!("{}:{}", server.host, server.port),
        location: onward.found.entry.location.name.clone(),
        begun,
        _member: member,
    })
}

impl Answered {
    /// Relays until one side ends it, or passes the answer on.
    pub(super) async fn finish(self, app: &App, web: &WebClient, mut client: BoxStream) {
        let (status, bytes) = match self.verdict {
            Verdict::Switched { server, answer } => {
                let answered = answer.len() as u64;
                let mut relay = Box::new(Relay::new(client, server, self.idle));
                relay.owe_client(answer);
                let Ended { bytes_out, .. } = relay
                    .run(&mut app.drain.subscribe(), &web.live, Farewell::default())
                    .await;
                (101, answered + bytes_out)
            }
            Verdict::Refused {
                server,
                status,
                head,
                body,
                rest,
            } => {
                let bytes = pass_on(&mut client, server, [head, body].concat(), rest).await;
                let _ = timeout(PATIENCE, client.shutdown()).await;
                (status, bytes)
            }
            Verdict::Silent => {
                let page = connection::plain_answer("504 Gateway Timeout", "The mail server does not answer.");
                let bytes = page.len() as u64;
                let _ = timeout(PATIENCE, client.write_all(page.as_bytes())).await;
                let _ = timeout(PATIENCE, client.shutdown()).await;
                (504, bytes)
            }
        };
        let visit = Visit {
            user: None,
            status,
            bytes,
            upstream: &self.name,
            location: Some(&self.location),
            incomplete: None,
            begun: self.begun,
        };
        let line = super::access_line(app, web, &self.request, &self.asked, visit);
        app.access.line(line);
    }
}

/// Copies an answer that is not 101 to its end. Gives the bytes that the client got.
async fn pass_on(client: &mut BoxStream, mut server: BoxStream, begun: Vec<u8>, mut rest: Option<u64>) -> u64 {
    let mut bytes = 0;
    let mut chunk = begun;
    loop {
        match timeout(PATIENCE, client.write_all(&chunk)).await {
            Ok(Ok(())) => bytes += chunk.len() as u64,
            _ => return bytes,
        }
        if rest == Some(0) {
            break;
        }
        chunk = vec![0; 16 * 1024];
        match timeout(PATIENCE, server.read(&mut chunk)).await {
            Ok(Ok(n)) if n > 0 => chunk.truncate(n),
            _ => break,
        }
        if let Some(rest) = &mut rest {
            chunk.truncate(usize::try_from(*rest).unwrap_or(usize::MAX));
            *rest -= chunk.len() as u64;
        }
    }
    let _ = timeout(PATIENCE, client.flush()).await;
    bytes
}

/// The request, if the head is whole, good, and nothing stands behind it.
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

/// RFC 6455 §4.1: a GET of HTTP/1.1 without a body, for a path of this host.
fn is_upgrade(request: &Parts) -> bool {
    request.method == Method::GET
        && request.version == Version::HTTP_11
        && request.uri.authority().is_none()
        && headers::is_websocket(&request.headers)
        && !request.headers.contains_key(http::header::CONTENT_LENGTH)
        && !request.headers.contains_key(http::header::TRANSFER_ENCODING)
}

/// The account's server, or any healthy one, which is a member of a group. `None` where the engine has something to
/// say, such as that checks find the account's server dead.
async fn locate(app: &App, snapshot: &Snapshot, web: &WebClient, onward: &Onward) -> Option<(Server, Option<Member>)> {
    match home(app, snapshot, onward).await {
        Home::Known(route, server) => {
            let mode = snapshot.web.ip_mode;
            let addresses = app.names.resolve(&server.host, server.port, mode).await.ok()?;
            if addresses.iter().all(|address| app.groups.is_unreachable(*address)) {
                return None;
            }
            web.note(&route);
            Some((server, None))
        }
        Home::NotAllowed => None,
        Home::Anybody => app
            .groups
            .get(onward.group())?
            .pick(&[])
            .map(|member| (member.server.clone(), Some(member))),
    }
}

/// The request as the server gets it: the same header rules as for any other.
fn upstream_head(web: &WebClient, request: &Parts, asked: &Asked, onward: &Onward, server: &Server) -> Vec<u8> {
    let dropped = headers::dropped(&request.headers);
    let ours = onward_headers(web, asked, onward, server);
    let is_ours = |name: &HeaderName| ours.iter().any(|(our, _)| our == name);
    let removed = &onward.forward().remove_headers;
    let mut head = format!("GET {} HTTP/1.1\r\n", onward.target).into_bytes();
    let mut line = |name: &str, value: &[u8]| {
        head.extend_from_slice(name.as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value);
        head.extend_from_slice(b"\r\n");
    };
    for (name, value) in &request.headers {
        // The two are written anew: `Connection` may have named more.
        let anew = matches!(name, &http::header::CONNECTION | &http::header::UPGRADE) || is_ours(name);
        if !anew && !dropped.contains(name) && !removed.contains(name) {
            line(name.as_str(), value.as_bytes());
        }
    }
    line("connection", b"Upgrade");
    line("upgrade", b"websocket");
    for (name, value) in &ours {
        line(name.as_str(), value.as_bytes());
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// Sends the request and reads the head of the answer.
async fn exchange(mut server: BoxStream, head: &[u8]) -> Option<Verdict> {
    server.write_all(head).await.ok()?;
    server.flush().await.ok()?;
    let mut answer = Vec::with_capacity(1024);
    loop {
        if server.read_buf(&mut answer).await.ok()? == 0 || answer.len() > HEAD_MAX {
            return None;
        }
        if let Some((length, status, switched, head, rest)) = head_of(&answer)? {
            if switched {
                return Some(Verdict::Switched { server, answer });
            }
            let body = answer.split_off(length);
            let rest = rest.map(|rest| rest.saturating_sub(body.len() as u64));
            return Some(Verdict::Refused {
                server,
                status,
                head,
                body,
                rest,
            });
        }
    }
}

type Head = (usize, u16, bool, Vec<u8>, Option<u64>);

/// The head of an answer, if it is whole: its length, its status, whether it is a 101 to a web socket, the same head
/// with an end of the connection announced, and the length of the body where it is told. `None`: it is none.
fn head_of(answer: &[u8]) -> Option<Option<Head>> {
    let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(length) = parsed.parse(answer).ok()? else {
        return Some(None);
    };
    let status = parsed.code?;
    let mut head = format!("HTTP/1.1 {status} {}\r\n", parsed.reason.unwrap_or_default()).into_bytes();
    let (mut switched, mut rest) = (false, None);
    for field in parsed.headers.iter() {
        let name = field.name.to_ascii_lowercase();
        switched |= name == "upgrade" && field.value.eq_ignore_ascii_case(b"websocket");
        if name == "content-length" {
            rest = std::str::from_utf8(field.value)
                .ok()
                .and_then(|value| value.trim().parse().ok());
        }
        if !matches!(name.as_str(), "connection" | "keep-alive" | "upgrade") {
            head.extend_from_slice(field.name.as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(field.value);
            head.extend_from_slice(b"\r\n");
        }
    }
    head.extend_from_slice(b"Connection: close\r\n\r\n");
    if matches!(status, 204 | 304) {
        rest = Some(0);
    }
    Some(Some((length, status, switched && status == 101, head, rest)))
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
        check(
            &format!("GET /ws HTTP/1.1\r\n{tail}\r\nGET /admin HTTP/1.1\r\n\r\n"),
            false,
        );
        check(&format!("GET /ws HTTP/1.1\r\n{tail}Content-Length: 3\r\n\r\n"), false);
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

    #[test]
    fn heads_of_answers() {
        assert_eq!(head_of(b"HTTP/1.1 101 Sw"), Some(None));
        assert_eq!(head_of(b"* OK IMAP ready\r\n"), None);
        let (length, status, switched, ..) = head_of(b"HTTP/1.1 101 x\r\nUpgrade: WebSocket\r\n\r\nframe")
            .unwrap()
            .unwrap();
        assert_eq!((length, status, switched), (37 + 1, 101, true));
        let answer = b"HTTP/1.1 403 No\r\nContent-Length: 3\r\nConnection: keep-alive\r\nUpgrade: websocket\r\n\r\nno!";
        let (length, status, switched, head, rest) = head_of(answer).unwrap().unwrap();
        assert_eq!(
            (&answer[length..], status, switched, rest),
            (&b"no!"[..], 403, false, Some(3))
        );
        assert_eq!(
            head,
            b"HTTP/1.1 403 No\r\nContent-Length: 3\r\nConnection: close\r\n\r\n"
        );
    }
}
