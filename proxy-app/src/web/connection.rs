//! A web connection in front of Pingora's HTTP engine: its client, how long it may be silent, and which request heads
//! are accepted.
//!
//! Pingora has no limit on the time a request head takes, takes heads of 1 MiB, tolerates bare LF, and keeps large
//! buffers for idle connections. So HTTP/1 heads are read whole here, under a deadline and a size limit, and checked
//! for the forms that two HTTP parsers may read differently; while a connection is idle no buffer is held. The engine
//! gets the bytes of one request at a time; what a client sends behind it waits for its turn (RFC 9112 §9.3.2). HTTP/2
//! goes to the engine as it comes, with its frames counted.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use mail_proxy::Drain;
use pingora::apps::{HttpPersistentSettings, HttpServerApp, ServerApp};
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;
use pingora_proxy::HttpProxy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, Sleep, sleep, timeout, timeout_at};

use crate::app::env::WebEnv;
use crate::http::HEAD_MAX;
use crate::http::answers::plain_answer;
use crate::http::behind::RequestBody;
use crate::http::request_line;
use crate::node::refusals::Reason;
use crate::web::client::{FAREWELL, client_in, note_refusal};
use crate::web::phases::Web;
use crate::web::stream::WebStream;
use crate::web::websocket;

/// How long a connection may be kept between requests: nginx's default.
const KEEPALIVE: Duration = Duration::from_secs(75);
/// Length of what an HTTP/2 client says first (RFC 9113 §3.4).
const H2_PREFACE: usize = 24;

/// Serves a connection to its end, or until too many answers wait and its client is the slowest.
pub(crate) async fn serve(
    env: &Arc<WebEnv>,
    proxy: &Arc<HttpProxy<Web>>,
    mut stream: WebStream,
    shutdown: &ShutdownWatch,
) {
    let Some(web) = client_in(&stream.carrier) else {
        return;
    };
    let reader = env.limits.answer_counter(web.facts.client.addr.ip());
    let end = reader.end();
    stream.reader = Some(reader);
    tokio::select! {
        () = serve_on(env, proxy, stream, shutdown) => {}
        () = end.notified() => {}
    }
}

async fn serve_on(env: &Arc<WebEnv>, proxy: &Arc<HttpProxy<Web>>, stream: WebStream, shutdown: &ShutdownWatch) {
    match stream.h2 {
        true => serve_http2(env, proxy, stream, shutdown).await,
        false => serve_http1(env, proxy, Box::new(stream), shutdown).await,
    }
}

async fn serve_http2(env: &Arc<WebEnv>, proxy: &Arc<HttpProxy<Web>>, mut stream: WebStream, shutdown: &ShutdownWatch) {
    let patience = env.config.load().web.client_header_timeout;
    // The engine waits for the preface without a limit.
    if let Ok(Ok(())) = timeout(patience, stream.read_ahead(H2_PREFACE)).await {
        stream.watch_frames(env, patience);
        ServerApp::process_new(proxy, Box::new(stream), shutdown).await;
    }
}

async fn serve_http1(
    env: &Arc<WebEnv>,
    proxy: &Arc<HttpProxy<Web>>,
    mut stream: Box<WebStream>,
    shutdown: &ShutdownWatch,
) {
    let carrier = stream.carrier.clone();
    let mut kept = None;
    let mut drain = env.drain.clone();
    // Made once for all requests: each of these costs a lock when it is made, and one when it is dropped.
    let mut rest = BetweenRequests {
        limit: pin!(sleep(KEEPALIVE)),
        drained: pin!(drain.wait_for(|drain| *drain >= Drain::EndLogins)),
    };
    loop {
        let WholeHead { mut head, is_plain } = match read_head(&mut stream, env, &mut rest).await {
            Ok(Some(whole)) => whole,
            Ok(None) | Err(HeadError::Io) => return,
            Err(HeadError::Refused(reason)) => {
                note_refusal(env, &carrier, reason);
                return refuse(&mut stream, reason.status()).await;
            }
        };
        let _under_way = client_in(&carrier).map(|web| web.facts.handle.waits_for_us());
        // What has been sent behind the head may be meant for the server that has not agreed yet.
        if !is_plain
            && stream.ahead.is_empty()
            && let Some(web) = client_in(&carrier)
            && let Some(answered) = Box::pin(websocket::ask(env, web, &head)).await
        {
            return answered.finish(env, web, stream).await;
        }
        let moved = client_in(&carrier).is_some_and(|web| web.facts.handle.close_reason().is_some());
        let last = stream.begin_request(&mut head, is_plain) || *shutdown.borrow() || moved;
        let mut session = session_on(stream, kept, last);
        let reason = reason_of_engine(&head);
        session.set_pipelined_prefix(head);
        // Its phases are a large future, in a box of its own: an idle connection does not keep it.
        let Some(reused) = proxy.process_new_http(session, shutdown).await else {
            // The engine answers by itself what it cannot read, and does not report it.
            if client_in(&carrier).is_some_and(|web| !web.is_taken()) && !*shutdown.borrow() {
                note_refusal(env, &carrier, reason);
            }
            return;
        };
        if let Some(web) = client_in(&carrier) {
            web.end_request();
        }
        let (returned, settings) = reused.consume();
        let Ok(mut ours) = returned.into_any().downcast::<WebStream>() else {
            return;
        };
        if !ours.is_at_an_end() {
            let _ = timeout(2 * FAREWELL, AsyncWriteExt::shutdown(&mut ours)).await;
            return;
        }
        (stream, kept) = (ours, settings);
    }
}

/// The engine's session for the request that is read next on a connection. A `last` one tells the client that the
/// connection ends: if it were closed while it waits, that could cross with the client's next request.
fn session_on(stream: Box<WebStream>, kept: Option<HttpPersistentSettings>, last: bool) -> ServerSession {
    let mut session = ServerSession::new_http1(stream);
    match kept {
        Some(settings) => settings.apply_to_session(&mut session),
        None => session.set_keepalive(Some(KEEPALIVE.as_secs())),
    }
    if last {
        session.set_keepalive_reuses_remaining(Some(0));
    }
    session
}

/// Why the engine does not take a request with this head, if it refuses it.
fn reason_of_engine(head: &[u8]) -> Reason {
    let line = head.split(|&b| b == b'\r').next().unwrap_or_default();
    let mut words = line.split(|&b| b == b' ');
    match (words.next(), words.next()) {
        (Some(b"CONNECT"), _) => Reason::Connect,
        (_, Some(target)) if !target.starts_with(b"/") && target.contains(&b':') => Reason::BadUrl,
        _ => Reason::Unreadable,
    }
}

/// Why there is no request head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadError {
    /// The connection ended, or broke.
    Io,
    /// It is refused, and why.
    Refused(Reason),
}

/// A whole request head.
struct WholeHead {
    head: BytesMut,
    /// Nothing in it announces a body or asks for another protocol.
    is_plain: bool,
}

/// What ends a connection between two requests.
struct BetweenRequests<'a, D> {
    /// How long it may be kept: moved on when it has come, not with each request.
    limit: Pin<&'a mut Sleep>,
    /// The node's shutdown.
    drained: Pin<&'a mut D>,
}

impl<D: Future> BetweenRequests<'_, D> {
    /// Whether the connection ends: the node shuts down, or nothing has come until this moment.
    fn poll_end(&mut self, cx: &mut Context<'_>, until: Instant) -> Poll<()> {
        if self.drained.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        while self.limit.as_mut().poll(cx).is_ready() {
            if Instant::now() >= until {
                return Poll::Ready(());
            }
            self.limit.as_mut().reset(until);
        }
        Poll::Pending
    }
}

/// A whole request head; what follows it stays in front of the stream. `None` at the end of the connection.
async fn read_head(
    stream: &mut WebStream,
    env: &WebEnv,
    rest: &mut BetweenRequests<'_, impl Future>,
) -> Result<Option<WholeHead>, HeadError> {
    stream.request = None;
    let mut head = BytesMut::new();
    let until = Instant::now() + KEEPALIVE;
    // Empty lines in front of a request are not part of it: old clients send one behind a body (RFC 9112 §2.2).
    while matches!(&head[..], b"" | b"\r") {
        let read = tokio::select! {
            biased;
            read = stream.first_bytes() => read,
            () = poll_fn(|cx| rest.poll_end(cx, until)) => return Ok(None),
        };
        match read {
            Ok(bytes) if !bytes.is_empty() => head.unsplit(bytes),
            _ => return Ok(None),
        }
        while head.starts_with(b"\r\n") {
            head.advance(2);
        }
    }
    let mut deadline = None;
    loop {
        if let Some((length, is_plain)) = scanned(&head)? {
            stream.ahead = head.split_off(length);
            if request_line::lacks_a_target(&head) {
                return Err(HeadError::Refused(Reason::BadUrl));
            }
            request_line::as_ours(&mut head);
            request_line::as_path(&mut head);
            return Ok(Some(WholeHead { head, is_plain }));
        }
        let deadline = *deadline.get_or_insert_with(|| Instant::now() + env.config.load().web.client_header_timeout);
        match timeout_at(deadline, stream.read_buf(&mut head)).await {
            Ok(Ok(0) | Err(_)) => return Err(HeadError::Io),
            Ok(Ok(_)) => {}
            Err(_) => return Err(HeadError::Refused(Reason::SlowHead)),
        }
    }
}

/// The length of the head, if it is whole. Lines end with CRLF and nothing else (RFC 9112 §2.2 lets a server refuse
/// bare LF); a line that begins with a blank would be a continuation (obs-fold, §5.2). Parsers differ on all of these,
/// and such differences allow request smuggling.
///
/// # Errors
/// The head is not valid.
pub fn complete(head: &[u8]) -> Result<Option<usize>, HeadError> {
    scanned(head).map(|whole| whole.map(|(length, _)| length))
}

/// The same, and whether nothing in the head announces a body or asks for another protocol.
fn scanned(head: &[u8]) -> Result<Option<(usize, bool)>, HeadError> {
    let mut is_plain = !head.starts_with(b"CONNECT ");
    let mut begin = 0;
    loop {
        let rest = &head[begin..];
        let end = rest.iter().position(|b| matches!(b, 0 | b'\r' | b'\n'));
        let line = match end.map(|end| (&rest[..end], &rest[end..])) {
            None | Some((_, [b'\r'])) if head.len() > HEAD_MAX => {
                return Err(HeadError::Refused(Reason::LongHead));
            }
            None | Some((_, [b'\r'])) => return Ok(None),
            Some((line, [b'\r', b'\n', ..])) => line,
            Some(_) => return Err(HeadError::Refused(Reason::BadHead)),
        };
        begin += line.len() + 2;
        let starts = |name: &[u8]| {
            line.get(..name.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(name))
        };
        match line.first() {
            None if begin > HEAD_MAX => return Err(HeadError::Refused(Reason::LongHead)),
            None => return Ok(Some((begin, is_plain))),
            Some(b' ' | b'\t') => return Err(HeadError::Refused(Reason::BadHead)),
            Some(b'c' | b'C') => is_plain &= !starts(b"content-length"),
            Some(b't' | b'T') => is_plain &= !starts(b"transfer-encoding"),
            Some(b'u' | b'U') => is_plain &= !starts(b"upgrade"),
            Some(_) => {}
        }
    }
}

async fn refuse(stream: &mut WebStream, status: &str) {
    // Answers to previous requests may be on their way.
    stream.request = Some(RequestBody::Unclear);
    let _ = timeout(2 * FAREWELL, async {
        stream.write_all(plain_answer(status, status).as_bytes()).await?;
        stream.flush().await?;
        AsyncWriteExt::shutdown(stream).await
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(head: &str, expected: Result<bool, Reason>) {
        let got = match complete(head.as_bytes()) {
            Ok(length) => Ok(length.is_some()),
            Err(HeadError::Refused(reason)) => Err(reason),
            Err(HeadError::Io) => unreachable!("nothing is read here"),
        };
        assert_eq!(got, expected, "{head:?}");
    }

    #[test]
    fn heads() {
        check("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Ok(true));
        assert!(matches!(
            complete(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nbody"),
            Ok(Some(27))
        ));
        check("GET / HTTP/1.1\r\nHost: a\r\n\r", Ok(false));
        check("GET / HT", Ok(false));
        check("GET / HTTP/1.1\nHost: a\n\n", Err(Reason::BadHead));
        check("GET / HTTP/1.1\r\nHost: a\n", Err(Reason::BadHead));
        check("GET / HTTP/1.1\r\nX: a\rb\r\n\r\n", Err(Reason::BadHead));
        check("GET / HTTP/1.1\r\nX: a\r\n folded\r\n\r\n", Err(Reason::BadHead));
        check("GET / HTTP/1.1\r\nX: \0\r\n", Err(Reason::BadHead));
        check(&"x".repeat(HEAD_MAX + 1), Err(Reason::LongHead));
        let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(HEAD_MAX));
        check(&long, Err(Reason::LongHead));
    }

    /// The body of a plain head is not looked for, so there must be none in any reading.
    #[test]
    fn a_plain_head_has_no_body() {
        for (fields, expected) in [
            ("", true),
            ("Content-Type: a/b\r\nTE: trailers\r\nUser-Agent: x\r\n", true),
            ("content-length: 0\r\n", false),
            ("CONTENT-LENGTH : 5\r\n", false),
            ("A: b\r\nTransfer-encoding: chunked\r\n", false),
            ("tRANSFER-eNCODING:\r\n", false),
            ("Upgrade: websocket\r\n", false),
            ("uPGRADE: h2c\r\n", false),
        ] {
            for line in ["GET / HTTP/1.1", "POST / HTTP/1.0", "CONNECT a:1 HTTP/1.1"] {
                let head = format!("{line}\r\nHost: a\r\n{fields}\r\n");
                let (length, is_plain) = scanned(head.as_bytes()).unwrap().expect("it is whole");
                assert_eq!(length, head.len());
                assert_eq!(is_plain, expected && !line.starts_with("CONNECT"), "{head:?}");
                let body = RequestBody::of(head.as_bytes());
                assert!(!is_plain || body == RequestBody::Sized(0), "{head:?}: {body:?}");
            }
        }
    }

    #[test]
    fn what_the_engine_does_not_take() {
        for (head, expected) in [
            ("CONNECT a:443 HTTP/1.1\r\n", Reason::Connect),
            ("GET http://a@b/ HTTP/1.1\r\n", Reason::BadUrl),
            ("GET /http://a HTTP/1.1\r\n", Reason::Unreadable),
            ("\x16\x03\x01", Reason::Unreadable),
        ] {
            assert_eq!(reason_of_engine(head.as_bytes()), expected, "{head:?}");
        }
    }
}
