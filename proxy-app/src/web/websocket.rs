//! WebSocket upgrades: asked for at the server first, and relayed once it has agreed.
//!
//! The HTTP engine loses some of them: with a server that answers quickly, it takes the end of the (empty) request
//! for the end of the web socket. So the upgrade is done here. A request that is not a plain upgrade, and one
//! that the server does not answer with 101, goes to the engine like any other; no byte that a client sends before
//! the 101 reaches a server as anything but its request.

use std::time::Duration;

use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Uri, Version};
use mail_proxy::BoxStream;
use mail_proxy::relay::{Ended, Relay};
use route_cache::{RouteError, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::connection::{HEAD_MAX, WebClient};
use super::{Asked, Visit, asked, headers, scheme, web_service};
use crate::app::App;
use crate::snapshot::{MailMode, Snapshot};

/// Most headers of a request that we take over: Pingora's own limit.
const HEADERS_MAX: usize = 256;

/// A server that has agreed to a web socket.
pub(super) struct Switched {
    server: BoxStream,
    /// Its answer, and what it sent behind it.
    answer: Vec<u8>,
    idle: Duration,
    request: Parts,
    asked: Asked,
    name: String,
}

/// Asks for the upgrade, if this is a request for one. `None`: it is something for the engine.
pub(super) async fn ask(app: &App, web: &WebClient, head: &[u8]) -> Option<Switched> {
    let request = parse(head).filter(is_upgrade)?;
    let snapshot = app.snapshot.load_full();
    if web.tls.is_none() && !web.admin && snapshot.web.mode != MailMode::Both {
        return None;
    }
    let asked = asked(app, web, &request);
    asked.host.as_ref()?;
    let server = locate(app, web, &asked).await?;
    let mut stream = snapshot.transport.dial(&server).await.ok()?;
    let head = upstream_head(web, &request, &asked);
    let answer = timeout(snapshot.web.read_timeout, exchange(&mut stream, &head))
        .await
        .ok()??;
    let name = format!("{}:{}", server.host, server.port);
    Some(Switched {
        server: stream,
        answer,
        idle: idle(&snapshot),
        request,
        asked,
        name,
    })
}

/// Nothing is known of what is said on it; servers that wait for news speak at least this often.
fn idle(snapshot: &Snapshot) -> Duration {
    snapshot.web.polling_timeout
}

impl Switched {
    /// Relays until one side ends it.
    pub(super) async fn relay(self, app: &App, web: &WebClient, client: BoxStream) {
        let mut relay = Box::new(Relay::new(client, self.server, self.idle));
        let answered = self.answer.len() as u64;
        relay.owe_client(self.answer);
        let Ended { bytes_out, .. } = relay.run(&mut app.drain.subscribe(), b"").await;
        let visit = Visit {
            client: self.asked.client,
            user: None,
            status: 101,
            bytes: answered + bytes_out,
            upstream: &self.name,
        };
        app.access.line(super::access_line(web, &self.request, visit));
    }
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

/// The account's server, or any healthy one. `None` where the engine has something to say.
async fn locate(app: &App, web: &WebClient, asked: &Asked) -> Option<Server> {
    if let Some(lookup) = &asked.lookup {
        match app.routes.route(lookup).await {
            Ok(route) => return Some(Server::of(&route)),
            Err(RouteError::NotAllowed { .. }) => return None,
            Err(_) => {}
        }
    }
    app.group(web_service(web.admin)).pick(&[]).map(|member| member.server)
}

/// The request as the server gets it: the same header rules as for any other.
fn upstream_head(web: &WebClient, request: &Parts, asked: &Asked) -> Vec<u8> {
    let dropped = headers::dropped(&request.headers);
    let target = request.uri.path_and_query().map_or("/", |target| target.as_str());
    let mut head = format!("GET {target} HTTP/1.1\r\n").into_bytes();
    let mut line = |name: &str, value: &[u8]| {
        head.extend_from_slice(name.as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value);
        head.extend_from_slice(b"\r\n");
    };
    for (name, value) in &request.headers {
        // The two are written anew: `Connection` may have named more.
        if !dropped.contains(name) && !matches!(name, &http::header::CONNECTION | &http::header::UPGRADE) {
            line(name.as_str(), value.as_bytes());
        }
    }
    line("connection", b"Upgrade");
    line("upgrade", b"websocket");
    let hop = headers::Hop {
        client: asked.client,
        scheme: scheme(web),
        host: request
            .headers
            .get(http::header::HOST)
            .and_then(|host| host.to_str().ok()),
        port: web.client.local.port(),
    };
    for (name, value) in headers::added(hop) {
        line(name, value.as_bytes());
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// Sends the request; gives the answer if it is a 101 to a web socket, with what came behind it.
async fn exchange(server: &mut BoxStream, head: &[u8]) -> Option<Vec<u8>> {
    server.write_all(head).await.ok()?;
    server.flush().await.ok()?;
    let mut answer = Vec::with_capacity(1024);
    loop {
        if server.read_buf(&mut answer).await.ok()? == 0 || answer.len() > HEAD_MAX {
            return None;
        }
        let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut parsed = httparse::Response::new(&mut fields);
        if parsed.parse(&answer).ok()?.is_complete() {
            let upgrades = |field: &httparse::Header<'_>| {
                field.name.eq_ignore_ascii_case("upgrade") && field.value.eq_ignore_ascii_case(b"websocket")
            };
            let switched = parsed.code == Some(101) && parsed.headers.iter().any(upgrades);
            return switched.then_some(answer);
        }
    }
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
}
