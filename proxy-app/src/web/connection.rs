//! A web connection in front of Pingora's HTTP engine: who it is, how long it may be silent, and which request
//! heads may come in.
//!
//! Pingora has no limit on the time a request head takes, takes heads of 1 MiB, tolerates bare LF, and keeps
//! large buffers for idle connections. So HTTP/1 heads are gathered here, whole, under a deadline and a size limit, and checked for
//! the forms that two HTTP parsers may read differently; while a connection is idle no buffer is held. The engine gets
//! the bytes of one request at a time; what a client sends behind it waits for its turn (RFC 9112 §9.3.2). HTTP/2
//! goes to the engine as it comes, with its frames counted.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use mail_proxy::{Client, Drain, Live, LoggedIn, TlsFacts};
use pingora::apps::{HttpServerApp, ServerApp};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
};
use pingora::server::ShutdownWatch;
use pingora_proxy::HttpProxy;
use route_cache::Route;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until, timeout, timeout_at};
use tokio_openssl::SslStream;

use crate::app::App;
use crate::http::behind::Body;
use crate::http::frames::Frames;
use crate::http::streams::Streams;
use crate::node::limits::Reader;
use crate::node::refusals::{Place, Reason};
use crate::tls::client_certs::Shown;
use crate::tls::vhosts::{Refusal, Sites};
use crate::upstream::connection::Owner;
use crate::web::{Greeted, Web, websocket};

/// How long a connection may be kept between requests: nginx's default.
const KEEPALIVE: Duration = Duration::from_secs(75);
/// Most answers at once on an HTTP/2 connection. Browsers wait with more; each that its client does not read costs.
const STREAMS: u32 = 64;
/// What the engine keeps for the socket of one HTTP/2 answer; its own default is 400 KiB.
const SEND_BUFFER: usize = 32 * 1024;
/// Longest request head: nginx's four buffers of 8 KiB.
pub const HEAD_MAX: usize = 32 * 1024;
/// Most that is gathered before it is written: the head of an answer and a small body, and still one segment or two.
const GATHERED: usize = 4096;
/// Length of what an HTTP/2 client says first (RFC 9113 §3.4).
const H2_PREFACE: usize = 24;
/// How long a last answer may take to be written, and then what its client still sends is read and thrown away: a
/// connection that is closed on unread bytes is reset, and the reset destroys answers that are on their way.
const FAREWELL: Duration = Duration::from_secs(2);
/// What is read at once where little is expected.
const LITTLE: usize = 4096;

/// What is known of a web connection; reaches the phases of a request through its digest.
#[derive(Debug)]
pub struct WebClient {
    /// Number of the connection.
    pub number: String,
    /// Address of the listener.
    pub listener: Arc<str>,
    /// Who connected.
    pub client: Client,
    /// Its TLS channel.
    pub tls: Option<TlsFacts>,
    /// What it has shown of itself there.
    pub shown: Option<Shown>,
    /// Whether the listener is the administration console's.
    pub admin: bool,
    /// Whether the listener only logs in by certificate.
    pub sso: bool,
    /// Who is known to have logged in on it.
    pub greeted: Greeted,
    /// The server connections that are its own.
    pub owner: Arc<Owner>,
    /// Its last answer has no good end, and the connection must not look as if it had.
    pub cut_short: AtomicBool,
    /// What the process sees of it.
    pub live: Arc<Live>,
    /// Whether the engine has taken the last request.
    pub taken: AtomicBool,
}

impl WebClient {
    /// Notes whose request goes which way.
    pub(super) fn note(&self, route: &Route) {
        let login = || LoggedIn {
            user: String::new(),
            account: route.account.to_string(),
            route: format!("{}:{}", route.host, route.port),
        };
        self.live.log_in(login, &route.account);
    }

    /// The engine has taken a request.
    pub(super) fn take(&self) {
        self.taken.store(true, Ordering::Relaxed);
    }

    fn is_taken(&self) -> bool {
        self.taken.load(Ordering::Relaxed)
    }

    /// True the first time for a user.
    pub fn greets(&self, user: &str) -> bool {
        self.greeted.greets(user)
    }

    /// Whether requests for this host may be served on this connection.
    ///
    /// # Errors
    /// They may not, and why.
    pub fn may_ask_for(&self, host: Option<&str>, sites: &Sites) -> Result<(), Refusal> {
        let shown = self.shown.as_ref().map(|shown| shown.policy.id());
        sites.check(host, self.client.local.ip(), shown)
    }
}

/// The bytes of a web connection.
pub enum Channel {
    /// Clear text.
    Plain(TcpStream),
    /// TLS
    Tls(SslStream<TcpStream>),
}

/// A web connection as Pingora wants it.
pub struct WebStream {
    channel: Channel,
    fd: RawFd,
    h2: bool,
    /// What is seen of an HTTP/2 client's frames.
    frames: Option<Box<Watch>>,
    tls: Option<Arc<SslDigest>>,
    socket: Arc<SocketDigest>,
    carrier: Arc<ProxyDigest>,
    /// Read before the engine asked, or behind the request under way.
    ahead: BytesMut,
    /// What is still to come of the HTTP/1 request that the engine has.
    request: Option<Body>,
    /// Until when a client that was sent away is still heard.
    farewell: Option<Pin<Box<Sleep>>>,
    /// The engine has a request of HTTP/1, and has written nothing yet.
    unanswered: bool,
    /// Written, and not yet flushed.
    held: Vec<u8>,
    sent: usize,
    /// The client does not take what is written.
    stuck: bool,
    /// Counts the answers that wait for it.
    reader: Option<Reader>,
}

impl WebStream {
    /// Wraps a connection whose TLS handshake is done.
    ///
    /// # Errors
    /// Never in practice: an empty response head could not be made.
    pub fn new(channel: Channel, client: WebClient) -> pingora::Result<WebStream> {
        let (fd, h2, tls) = match &channel {
            Channel::Plain(tcp) => (tcp.as_raw_fd(), false, None),
            Channel::Tls(tls) => {
                let digest = SslDigest::from_ssl(tls.ssl());
                (
                    tls.get_ref().as_raw_fd(),
                    tls.ssl().selected_alpn_protocol() == Some(b"h2"),
                    Some(Arc::new(digest)),
                )
            }
        };
        let socket = SocketDigest::from_raw_fd(fd);
        let _ = socket.peer_addr.set(Some(client.client.addr.into()));
        let _ = socket.local_addr.set(Some(client.client.local.into()));
        // Pingora carries a value of ours only in the digest that it has for CONNECT proxies.
        let carrier = ProxyDigest::new(Box::new(ResponseHeader::build(200, Some(0))?), Some(Box::new(client)));
        Ok(WebStream {
            channel,
            fd,
            h2,
            frames: None,
            tls,
            socket: Arc::new(socket),
            carrier: Arc::new(carrier),
            ahead: BytesMut::new(),
            request: None,
            farewell: None,
            unanswered: false,
            held: Vec::new(),
            sent: 0,
            stuck: false,
            reader: None,
        })
    }
}

impl WebStream {
    /// Waits until this many bytes are there, and keeps them for the next reads.
    async fn read_ahead(&mut self, count: usize) -> io::Result<()> {
        let mut bytes = BytesMut::zeroed(count);
        self.read_exact(&mut bytes).await?;
        self.ahead = bytes;
        Ok(())
    }

    /// From here on frames are counted.
    fn watch_frames(&mut self, app: &Arc<App>, patience: Duration) {
        self.frames = Some(Box::new(Watch {
            app: app.clone(),
            frames: Frames::new(patience),
            streams: Streams::new(),
            owed: BytesMut::new(),
            alarm: None,
        }));
    }
}

/// The frames of an HTTP/2 client, and the time by which those on their way must be here.
struct Watch {
    app: Arc<App>,
    frames: Frames,
    streams: Streams,
    /// What the engine is to read before what comes next.
    owed: BytesMut,
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Watch {
    /// Takes note of what was read; fails if it is too much or too slow.
    fn look(&mut self, cx: &mut Context<'_>, read: Option<&[u8]>) -> io::Result<()> {
        if let Some(bytes) = read {
            let aborted = |error| io::Error::new(io::ErrorKind::ConnectionAborted, error);
            self.frames
                .pass(bytes, Instant::now())
                .map_err(|flood| aborted(flood.to_string()))?;
            self.streams.hear(bytes).map_err(|flood| aborted(flood.to_string()))?;
        }
        loop {
            let next = [self.frames.deadline(), self.streams.deadline()]
                .into_iter()
                .flatten()
                .min();
            let Some(next) = next else {
                self.alarm = None;
                return Ok(());
            };
            let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(next)));
            if alarm.deadline() != next {
                alarm.as_mut().reset(next);
            }
            if alarm.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            if self.frames.deadline().is_some_and(|deadline| deadline <= next) {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "an HTTP/2 frame takes too long",
                ));
            }
            self.owed.extend_from_slice(&self.streams.interjection(next));
        }
    }
}

impl Watch {
    /// Gives the engine what it is to read before what comes next.
    fn interject(&mut self, buf: &mut ReadBuf<'_>) {
        let count = buf.remaining().min(self.owed.len());
        buf.put_slice(&self.owed.split_to(count));
    }
}

/// What is known of the connection of a request.
pub fn client_of(session: &pingora_proxy::Session) -> Option<&WebClient> {
    client_in(session.digest()?.proxy_digest.as_ref()?)
}

/// Delivers what came of an answer that breaks off, and ends the connection: in TLS without the farewell that would
/// make an answer of unknown length look whole (RFC 9112 §9.8). HTTP/2 has a reset for it.
pub(super) async fn cut_short(session: &mut pingora_proxy::Session) {
    if session.req_header().version == http::Version::HTTP_2 {
        return;
    }
    if let Some(web) = client_of(session) {
        web.cut_short.store(true, Ordering::Relaxed);
    }
    let _who_does_not_read_gets_less = timeout(FAREWELL, session.as_downstream_mut().shutdown()).await;
}

fn client_in(carrier: &ProxyDigest) -> Option<&WebClient> {
    carrier.user_data.as_ref()?.downcast_ref()
}

/// What HTTP/2 clients may have at once, and what of it the engine keeps.
pub(crate) fn h2_options() -> H2Options {
    let mut options = default_h2_options();
    options
        .max_concurrent_streams(STREAMS)
        .max_send_buffer_size(SEND_BUFFER);
    options
}

/// Serves a connection to its end, or until its client is the slowest of too many.
pub async fn serve(app: &Arc<App>, proxy: &Arc<HttpProxy<Web>>, mut stream: WebStream, shutdown: &ShutdownWatch) {
    let Some(web) = client_in(&stream.carrier) else {
        return;
    };
    let reader = app.limits.reader(web.client.addr.ip());
    let end = reader.end();
    stream.reader = Some(reader);
    tokio::select! {
        () = serve_on(app, proxy, stream, shutdown) => {}
        () = end.notified() => {}
    }
}

async fn serve_on(app: &Arc<App>, proxy: &Arc<HttpProxy<Web>>, mut stream: WebStream, shutdown: &ShutdownWatch) {
    if stream.h2 {
        let patience = app.config.load().web.client_header_timeout;
        // The engine waits for the preface without a limit.
        let Ok(Ok(())) = timeout(patience, stream.read_ahead(H2_PREFACE)).await else {
            return;
        };
        stream.watch_frames(app, patience);
        ServerApp::process_new(proxy, Box::new(stream), shutdown).await;
        return;
    }
    let carrier = stream.carrier.clone();
    let mut stream = Box::new(stream);
    let mut kept = None;
    loop {
        let mut head = match read_head(&mut stream, app).await {
            Ok(Some(head)) => head,
            Ok(None) | Err(HeadError::Io) => return,
            Err(HeadError::Refused(reason)) => {
                note_refusal(app, &carrier, reason);
                return refuse(&mut stream, reason.status()).await;
            }
        };
        let _under_way = client_in(&carrier).map(|web| web.live.waits_for_us());
        // What has been sent behind the head may be meant for the server that has not agreed yet.
        if stream.ahead.is_empty()
            && let Some(web) = client_in(&carrier)
            && let Some(answered) = Box::pin(websocket::ask(app, web, &head)).await
        {
            return answered.finish(app, web, stream).await;
        }
        let request = Body::of(&head);
        let last = !request.may_be_followed(stream.ahead.is_empty());
        if request == Body::Unclear {
            head.unsplit(std::mem::take(&mut stream.ahead));
        }
        stream.request = Some(request);
        stream.unanswered = true;
        let mut session = ServerSession::new_http1(stream);
        match kept {
            Some(settings) => pingora::apps::HttpPersistentSettings::apply_to_session(settings, &mut session),
            None => session.set_keepalive(Some(KEEPALIVE.as_secs())),
        }
        // The client learns from the answer that this connection ends. Closing it while it waits would cross with the
        // client's next request.
        if last || *shutdown.borrow() {
            session.set_keepalive_reuses_remaining(Some(0));
        }
        let reason = reason_of_engine(&head);
        session.set_pipelined_prefix(head);
        // The phases of a request are a large future, and an idle connection must not keep it.
        let Some(reused) = Box::pin(proxy.process_new_http(session, shutdown)).await else {
            // The engine answers by itself what it cannot read, and tells nobody.
            if client_in(&carrier).is_some_and(|web| !web.is_taken()) && !*shutdown.borrow() {
                note_refusal(app, &carrier, reason);
            }
            return;
        };
        if let Some(web) = client_in(&carrier) {
            web.taken.store(false, Ordering::Relaxed);
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

/// Why the engine does not take a request with this head, if it does not.
fn reason_of_engine(head: &[u8]) -> Reason {
    let line = head.split(|&b| b == b'\r').next().unwrap_or_default();
    let mut words = line.split(|&b| b == b' ');
    match (words.next(), words.next()) {
        (Some(b"CONNECT"), _) => Reason::Connect,
        (_, Some(target)) if !target.starts_with(b"/") && target.contains(&b':') => Reason::BadUrl,
        _ => Reason::Unreadable,
    }
}

fn note_refusal(app: &App, carrier: &ProxyDigest, reason: Reason) {
    if let Some(web) = client_in(carrier) {
        let place = Place::new(&web.number, &web.listener, &web.client);
        app.refused(place, reason);
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

/// A whole request head; what came behind it stays in front of the stream. `None` at the end of the connection.
async fn read_head(stream: &mut WebStream, app: &App) -> Result<Option<BytesMut>, HeadError> {
    let mut drain = app.drain.subscribe();
    stream.request = None;
    let mut head = BytesMut::new();
    let until = Instant::now() + KEEPALIVE;
    // Empty lines in front of a request are none of it: old clients send one behind a body (RFC 9112 §2.2).
    while matches!(&head[..], b"" | b"\r") {
        let read = tokio::select! {
            biased;
            read = timeout_at(until, stream.first_bytes()) => read,
            _ = drain.wait_for(|drain| *drain >= Drain::EndLogins) => return Ok(None),
        };
        match read {
            Ok(Ok(bytes)) if !bytes.is_empty() => head.unsplit(bytes),
            _ => return Ok(None),
        }
        while head.starts_with(b"\r\n") {
            head.advance(2);
        }
    }
    let deadline = Instant::now() + app.config.load().web.client_header_timeout;
    loop {
        if let Some(length) = complete(&head)? {
            stream.ahead = head.split_off(length);
            if lacks_a_target(&head) {
                return Err(HeadError::Refused(Reason::BadUrl));
            }
            as_ours(&mut head);
            return Ok(Some(head));
        }
        match timeout_at(deadline, stream.read_buf(&mut head)).await {
            Ok(Ok(0) | Err(_)) => return Err(HeadError::Io),
            Ok(Ok(_)) => {}
            Err(_) => return Err(HeadError::Refused(Reason::SlowHead)),
        }
    }
}

/// Whether what is asked for is neither a path, nor a URL of ours, nor `*` (RFC 9112 §3.2). The engine takes such a word
/// for the name of a host, and the path for `/`.
fn lacks_a_target(head: &[u8]) -> bool {
    let line = head.split(|&b| b == b'\r').next().unwrap_or_default();
    let mut words = line.split(|&b| b == b' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return false;
    };
    let begins = |scheme: &str| {
        let begin = target.get(..scheme.len());
        begin.is_some_and(|begin| begin.eq_ignore_ascii_case(scheme.as_bytes()))
    };
    method != b"CONNECT" && target != b"*" && !["/", "http://", "https://"].into_iter().any(begins)
}

/// A later HTTP/1 than ours is answered as ours (RFC 9110 §2.5).
fn as_ours(head: &mut [u8]) {
    let end = head.iter().position(|&b| b == b'\r').unwrap_or_default();
    if let [.., b' ', b'H', b'T', b'T', b'P', b'/', b'1', b'.', minor @ b'2'..=b'9'] = &mut head[..end] {
        *minor = b'1';
    }
}

/// The length of the head, if it is whole. Lines end with CRLF and nothing else (RFC 9112 §2.2 lets a server refuse bare LF); a line
/// that begins with a blank would be a continuation (obs-fold, §5.2). Parsers differ on all of these, and where
/// they differ requests are smuggled.
///
/// # Errors
/// It is none that may come in.
pub fn complete(head: &[u8]) -> Result<Option<usize>, HeadError> {
    let mut rest = head;
    loop {
        let Some(end) = rest.iter().position(|&b| b == b'\n') else {
            return match rest.contains(&0) {
                true => Err(HeadError::Refused(Reason::BadHead)),
                false if head.len() > HEAD_MAX => Err(HeadError::Refused(Reason::LongHead)),
                false => Ok(None),
            };
        };
        let line = rest[..end]
            .strip_suffix(b"\r")
            .ok_or(HeadError::Refused(Reason::BadHead))?;
        if line.is_empty() {
            let length = head.len() - rest.len() + end + 1;
            return if length > HEAD_MAX {
                Err(HeadError::Refused(Reason::LongHead))
            } else {
                Ok(Some(length))
            };
        }
        let folded = matches!(line.first(), Some(b' ' | b'\t'));
        if line.iter().any(|b| matches!(b, 0 | b'\r')) || folded {
            return Err(HeadError::Refused(Reason::BadHead));
        }
        rest = &rest[end + 1..];
    }
}

/// The head of an answer that the engine gives by itself, to what it cannot read, without its name.
fn nameless(head: &[u8]) -> Vec<u8> {
    let names = |line: &&[u8]| line.get(..7).is_some_and(|name| name.eq_ignore_ascii_case(b"server:"));
    let lines = head.split_inclusive(|&b| b == b'\n');
    lines.filter(|line| !names(line)).flatten().copied().collect()
}

async fn refuse(stream: &mut WebStream, status: &str) {
    // Answers to the requests before may be on their way.
    stream.request = Some(Body::Unclear);
    let _ = timeout(2 * FAREWELL, async {
        stream.write_all(plain_answer(status, status).as_bytes()).await?;
        stream.flush().await?;
        AsyncWriteExt::shutdown(stream).await
    })
    .await;
}

/// A whole answer with a short text, for requests that the engine never sees.
pub fn plain_answer(status: &str, text: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}\n",
        text.len() + 1
    )
}

impl AsyncRead for WebStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.request.is_some_and(|request| request.is_over()) {
            return this.poll_behind(cx);
        }
        if !this.ahead.is_empty() {
            let n = buf.remaining().min(this.ahead.len());
            let n = this
                .request
                .as_mut()
                .map_or(n, |request| request.pass(&this.ahead[..n]));
            buf.put_slice(&this.ahead.split_to(n));
            return Poll::Ready(Ok(()));
        }
        if let Some(watch) = this.frames.as_mut().filter(|watch| !watch.owed.is_empty()) {
            watch.interject(buf);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let polled = this.poll_channel(cx, buf);
        if let (Some(request), Poll::Ready(Ok(()))) = (&mut this.request, &polled) {
            let end = before + request.pass(&buf.filled()[before..]);
            this.ahead.extend_from_slice(&buf.filled()[end..]);
            buf.set_filled(end);
        }
        if let Some(watch) = &mut this.frames {
            let read = polled.is_ready().then(|| &buf.filled()[before..]);
            if let Err(error) = watch.look(cx, read) {
                log::info!("a connection is ended: {error}");
                return Poll::Ready(Err(error));
            }
            if polled.is_pending() && !watch.owed.is_empty() {
                watch.interject(buf);
                return Poll::Ready(Ok(()));
            }
        }
        this.count_waiting();
        polled
    }
}

impl WebStream {
    fn poll_channel(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.channel {
            Channel::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Channel::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }

    /// The engine has all of a request, and looks whether its client is still there. What comes now is of the next
    /// request. While something of it waits, nothing more is read.
    fn poll_behind(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            return Poll::Pending;
        }
        let mut buffer = [0; LITTLE];
        let mut read = ReadBuf::new(&mut buffer);
        ready!(self.poll_channel(cx, &mut read))?;
        match read.filled() {
            [] => Poll::Ready(Ok(())),
            bytes => {
                self.ahead.extend_from_slice(bytes);
                Poll::Pending
            }
        }
    }

    /// The first read of a request. Its buffer lives only while bytes are there, not while we wait for them.
    async fn first_bytes(&mut self) -> io::Result<BytesMut> {
        if !self.ahead.is_empty() {
            return Ok(std::mem::take(&mut self.ahead));
        }
        std::future::poll_fn(|cx| {
            let mut buffer = [0; LITTLE];
            let mut read = ReadBuf::new(&mut buffer);
            ready!(self.poll_channel(cx, &mut read))?;
            Poll::Ready(Ok(BytesMut::from(read.filled())))
        })
        .await
    }

    /// Reads what a client that was sent away still says, for a moment, and throws it away. Who has said all that
    /// was expected of him, and nothing more yet, is not waited for.
    fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut buffer = [0; LITTLE];
        let limit = sleep_until(Instant::now() + FAREWELL);
        if self
            .farewell
            .get_or_insert_with(|| Box::pin(limit))
            .as_mut()
            .poll(cx)
            .is_ready()
        {
            return Poll::Ready(());
        }
        loop {
            let mut read = ReadBuf::new(&mut buffer);
            match self.poll_channel(cx, &mut read) {
                Poll::Ready(Ok(())) if !read.filled().is_empty() => self.request = Some(Body::Unclear),
                Poll::Pending if !self.ahead.is_empty() || self.request.is_some_and(|request| !request.is_over()) => {
                    return Poll::Pending;
                }
                _ => return Poll::Ready(()),
            }
        }
    }

    /// The request is over, and another one may follow. Where the engine has ended it elsewhere than we have, nobody
    /// knows what comes next.
    fn is_at_an_end(&self) -> bool {
        let followed = |request: Body| request.is_over() && request.may_be_followed(self.ahead.is_empty());
        self.request.is_some_and(followed)
    }
}

/// Small writes are gathered until the engine flushes: it writes head and body of an answer one after the other,
/// and they should leave as one packet and one TLS record. The buffer lives only from write to flush.
impl AsyncWrite for WebStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if std::mem::take(&mut self.unanswered) && client_in(&self.carrier).is_some_and(|web| !web.is_taken()) {
            self.held.extend(nameless(buf));
            return Poll::Ready(Ok(buf.len()));
        }
        let this = &mut *self;
        let changed = this.changed(buf);
        let written = this.poll_gathered(cx, changed.as_deref().unwrap_or(buf));
        if let (Poll::Ready(Ok(count)), Some(watch)) = (&written, &mut this.frames) {
            for _ in 0..watch.streams.say(&buf[..*count]) {
                note_refusal(&watch.app, &this.carrier, Reason::Unreadable);
            }
            if watch.streams.deadline().is_some() {
                // The alarm is set by the next read.
                cx.waker().wake_by_ref();
            }
        }
        self.stuck |= written.is_pending();
        self.count_waiting();
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = match self.poll_held(cx) {
            Poll::Ready(Ok(())) => match &mut self.channel {
                Channel::Plain(io) => Pin::new(io).poll_flush(cx),
                Channel::Tls(io) => Pin::new(io).poll_flush(cx),
            },
            other => other,
        };
        self.stuck = flushed.is_pending();
        self.count_waiting();
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.farewell.is_none() {
            ready!(self.poll_held(cx))?;
            let cut = client_in(&self.carrier).is_some_and(|web| web.cut_short.load(Ordering::Relaxed));
            ready!(match &mut self.channel {
                Channel::Plain(io) => Pin::new(io).poll_shutdown(cx),
                Channel::Tls(io) if cut => Pin::new(io.get_mut()).poll_shutdown(cx),
                Channel::Tls(io) => Pin::new(io).poll_shutdown(cx),
            })?;
        }
        match self.h2 {
            true => Poll::Ready(Ok(())),
            false => self.poll_farewell(cx).map(Ok),
        }
    }
}

impl WebStream {
    fn poll_gathered(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.held.len() + buf.len() <= GATHERED {
            self.held.extend_from_slice(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        ready!(self.poll_held(cx))?;
        self.poll_through(cx, buf)
    }

    /// The first of these bytes as the client is to get them, if that may be different.
    fn changed(&self, buf: &[u8]) -> Option<Vec<u8>> {
        let watch = self.frames.as_ref().filter(|watch| watch.streams.changes())?;
        let mut first = buf[..buf.len().min(GATHERED)].to_vec();
        watch.streams.change(&mut first);
        Some(first)
    }

    /// Takes note of how many answers wait for the client.
    fn count_waiting(&mut self) {
        let waiting = match &self.frames {
            Some(watch) => watch.streams.waiting(self.stuck),
            None => usize::from(self.stuck),
        };
        if let Some(reader) = &mut self.reader {
            reader.waits(waiting);
        }
    }

    fn poll_through(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = match &mut self.channel {
            Channel::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Channel::Tls(io) => Pin::new(io).poll_write(cx, buf),
        };
        if let (Poll::Ready(Ok(count)), Some(reader)) = (&written, &self.reader) {
            reader.took(*count);
        }
        written
    }

    /// Writes what was gathered.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.held.len() {
            let held = std::mem::take(&mut self.held);
            let written = self.poll_through(cx, &held[self.sent..]);
            self.held = held;
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.sent += n,
            }
        }
        if self.sent > 0 {
            self.held = Vec::new();
            self.sent = 0;
        }
        Poll::Ready(Ok(()))
    }
}

#[async_trait]
impl Shutdown for WebStream {
    async fn shutdown(&mut self) {
        let _ = timeout(FAREWELL, AsyncWriteExt::shutdown(self)).await;
    }
}

impl UniqueID for WebStream {
    fn id(&self) -> i32 {
        self.fd
    }
}

impl Ssl for WebStream {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.tls.clone()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.tls.as_ref().map(|_| if self.h2 { ALPN::H2 } else { ALPN::H1 })
    }
}

impl GetTimingDigest for WebStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for WebStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(self.carrier.clone())
    }
}

impl GetSocketDigest for WebStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(self.socket.clone())
    }
}

impl Peek for WebStream {}

impl std::fmt::Debug for WebStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WebStream({})", self.fd)
    }
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

    #[test]
    fn targets_are_paths_or_urls() {
        for (line, expected) in [
            ("GET / HTTP/1.1", false),
            ("OPTIONS * HTTP/1.1", false),
            ("GET HTTP://a/ HTTP/1.1", false),
            ("CONNECT a:443 HTTP/1.1", false),
            ("nothing", false),
            ("GET ftp://a/b HTTP/1.1", true),
            ("GET a HTTP/1.1", true),
            ("POST a:80 HTTP/1.1", true),
            ("GET *x HTTP/1.1", true),
            ("GET ?a HTTP/1.1", true),
            ("GET ..\\a HTTP/1.1", true),
        ] {
            assert_eq!(lacks_a_target(format!("{line}\r\n").as_bytes()), expected, "{line}");
        }
    }

    #[test]
    fn a_later_version_is_ours() {
        for (line, expected) in [
            ("GET / HTTP/1.2\r\n", "GET / HTTP/1.1\r\n"),
            ("GET / HTTP/1.0\r\n", "GET / HTTP/1.0\r\n"),
            ("GET / HTTP/2.0\r\n", "GET / HTTP/2.0\r\n"),
            ("GET /HTTP/1.2\r\n", "GET /HTTP/1.2\r\n"),
            (
                "GET / HTTP/1.1\r\nX:  HTTP/1.2\r\n",
                "GET / HTTP/1.1\r\nX:  HTTP/1.2\r\n",
            ),
        ] {
            let mut head = line.as_bytes().to_vec();
            as_ours(&mut head);
            assert_eq!(head, expected.as_bytes());
        }
    }
}
