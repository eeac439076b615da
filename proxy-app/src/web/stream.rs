//! The bytes of a web connection, as the HTTP engine reads and writes them.
//!
//! What follows a request waits for its turn, small writes are gathered, the frames of HTTP/2 are watched as they pass.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::BytesMut;
use pingora::http::ResponseHeader;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use crate::app::env::WebEnv;
use crate::http::behind::RequestBody;
use crate::http::frames::Frames;
use crate::http::streams::Streams;
use crate::node::limits::AnswerCounter;
use crate::node::refusals::Reason;
use crate::tls::ClientTls;
use crate::upstream::gathered::Gathered;
use crate::web::client::{AnswerLines, FAREWELL, WebClient, client_in, note_refusal};
use crate::web::read_ahead::{ClientReading, UNSENT};

/// Most that is gathered before it is written: the head of an answer and a small body, and still one segment or two.
const GATHERED: usize = 4096;

/// What is read at once where little is expected. It is read into the stack, which is not zeroed for it.
const LITTLE: usize = 4096;

/// The bytes of a web connection.
pub(crate) enum Channel {
    /// Clear text.
    Plain(TcpStream),
    /// TLS
    Tls(ClientTls<TcpStream>),
}

/// A web connection with the traits that Pingora needs.
pub(crate) struct WebStream {
    pub(crate) channel: Channel,
    pub(crate) fd: RawFd,
    pub(crate) h2: bool,
    /// What is known of an HTTP/2 client's frames.
    pub(crate) frames: Option<Box<FrameWatch>>,
    pub(crate) socket: Arc<SocketDigest>,
    pub(crate) carrier: Arc<ProxyDigest>,
    /// Bytes that were read before the engine asked for them, or that follow the request under way.
    pub(crate) ahead: BytesMut,
    /// What is still to come of the HTTP/1 request that the engine has.
    pub(crate) request: Option<RequestBody>,
    /// How long a client whose connection ends is still read.
    pub(crate) farewell: Option<Pin<Box<Sleep>>>,
    /// The engine has a request of HTTP/1, and has written nothing yet.
    pub(crate) unanswered: bool,
    /// Written, and not yet flushed.
    pub(crate) held: Gathered,
    /// The client does not take what is written.
    pub(crate) stuck: bool,
    /// Counts the answers that wait for it.
    pub(crate) reader: Option<AnswerCounter>,
    pub(crate) reading: Arc<ClientReading>,
}

impl WebStream {
    /// Wraps a connection whose TLS handshake is done.
    ///
    /// # Errors
    /// Never in practice: it would be a failure to make an empty response head.
    pub(crate) fn new(channel: Channel, client: WebClient) -> pingora::Result<Self> {
        let (tcp, h2) = match &channel {
            Channel::Plain(tcp) => (tcp, false),
            Channel::Tls(tls) => (
                tls.get_ref().stream(),
                tls.ssl().selected_alpn_protocol() == Some(b"h2"),
            ),
        };
        let fd = tcp.as_raw_fd();
        let _where_the_system_can = SockRef::from(tcp).set_tcp_notsent_lowat(UNSENT);
        let socket = SocketDigest::from_raw_fd(fd);
        let _ = socket.peer_addr.set(Some(client.facts.client.addr.into()));
        let _ = socket.local_addr.set(Some(client.facts.client.local.into()));
        let reading = client.reading.clone();
        // Pingora carries a value of ours only in its digest for CONNECT proxies.
        let carrier = ProxyDigest::new(Box::new(ResponseHeader::build(200, Some(0))?), Some(Box::new(client)));
        Ok(Self {
            channel,
            fd,
            h2,
            frames: None,
            socket: Arc::new(socket),
            carrier: Arc::new(carrier),
            ahead: BytesMut::new(),
            request: None,
            farewell: None,
            unanswered: false,
            held: Gathered::default(),
            stuck: false,
            reader: None,
            reading,
        })
    }
}

impl WebStream {
    /// Waits until this many bytes are there, and keeps them for the next reads.
    pub(crate) async fn read_ahead(&mut self, count: usize) -> io::Result<()> {
        let mut bytes = BytesMut::zeroed(count);
        self.read_exact(&mut bytes).await?;
        self.ahead = bytes;
        Ok(())
    }

    /// The next request on an HTTP/1 connection begins: what stands behind its head is its body, so much of it, or
    /// the request behind it. Returns whether no other request can follow.
    pub(crate) fn begin_request(&mut self, head: &mut BytesMut, is_plain: bool) -> bool {
        let request = match is_plain {
            true => RequestBody::Sized(0),
            false => RequestBody::of(head),
        };
        let last = !request.may_be_followed(self.ahead.is_empty());
        if request == RequestBody::Unclear {
            head.unsplit(std::mem::take(&mut self.ahead));
        }
        self.request = Some(request);
        self.unanswered = true;
        last
    }

    /// From here on frames are counted.
    pub(crate) fn watch_frames(&mut self, env: &Arc<WebEnv>, patience: Duration) {
        self.frames = Some(Box::new(FrameWatch {
            env: env.clone(),
            frames: Frames::new(patience),
            streams: Streams::new(),
            owed: BytesMut::new(),
            alarm: None,
        }));
    }
}

/// The frames of an HTTP/2 client, and the deadline for those on their way.
pub(crate) struct FrameWatch {
    pub(crate) env: Arc<WebEnv>,
    pub(crate) frames: Frames,
    pub(crate) streams: Streams,
    /// What the engine has to read before the next bytes.
    pub(crate) owed: BytesMut,
    pub(crate) alarm: Option<Pin<Box<Sleep>>>,
}

impl FrameWatch {
    /// Takes note of what was read; fails if it is too much or too slow.
    pub(crate) fn check(&mut self, cx: &mut Context<'_>, read: Option<&[u8]>) -> io::Result<()> {
        if let Some(bytes) = read {
            let aborted = |error| io::Error::new(io::ErrorKind::ConnectionAborted, error);
            self.frames
                .pass(bytes, Instant::now())
                .map_err(|flood| aborted(flood.to_string()))?;
            self.streams
                .note_received(bytes)
                .map_err(|flood| aborted(flood.to_string()))?;
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

impl FrameWatch {
    /// Passes to the engine what it has to read before the next bytes.
    fn interject(&mut self, buf: &mut ReadBuf<'_>) {
        let count = buf.remaining().min(self.owed.len());
        buf.put_slice(&self.owed.split_to(count));
    }
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
            if let Err(error) = watch.check(cx, read) {
                log::info!("a connection is ended: {error}");
                let reason = match error.kind() {
                    io::ErrorKind::TimedOut => Reason::SlowHead,
                    _ => Reason::Flood,
                };
                note_refusal(&watch.env, &this.carrier, reason);
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

    /// The engine has all of a request, and checks whether its client is still there. Bytes that come now belong to the
    /// next request. While some of it waits, nothing more is read.
    fn poll_behind(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            return Poll::Pending;
        }
        let mut buffer = [MaybeUninit::uninit(); LITTLE];
        let mut read = ReadBuf::uninit(&mut buffer);
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
    pub(crate) async fn first_bytes(&mut self) -> io::Result<BytesMut> {
        if !self.ahead.is_empty() {
            return Ok(std::mem::take(&mut self.ahead));
        }
        std::future::poll_fn(|cx| {
            let mut buffer = [MaybeUninit::uninit(); LITTLE];
            let mut read = ReadBuf::uninit(&mut buffer);
            ready!(self.poll_channel(cx, &mut read))?;
            Poll::Ready(Ok(BytesMut::from(read.filled())))
        })
        .await
    }

    /// Reads what a client whose connection ends still sends, for a moment, and drops it. A client that has sent all of
    /// its request, and nothing more yet, is not waited for.
    fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut buffer = [MaybeUninit::uninit(); LITTLE];
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
            let mut read = ReadBuf::uninit(&mut buffer);
            match self.poll_channel(cx, &mut read) {
                Poll::Ready(Ok(())) if !read.filled().is_empty() => self.request = Some(RequestBody::Unclear),
                Poll::Pending if !self.ahead.is_empty() || self.request.is_some_and(|request| !request.is_over()) => {
                    return Poll::Pending;
                }
                _ => return Poll::Ready(()),
            }
        }
    }

    /// The request is over, and another one may follow. If the engine and this reader disagree on where it ended, the
    /// next bytes cannot be trusted.
    pub(crate) fn is_at_an_end(&self) -> bool {
        let followed = |request: RequestBody| request.is_over() && request.may_be_followed(self.ahead.is_empty());
        self.request.is_some_and(followed)
    }
}

/// Small writes are gathered until the engine flushes: it writes head and body of an answer one after the other,
/// and they should leave as one packet and one TLS record. The buffer lives only from write to flush.
impl AsyncWrite for WebStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if std::mem::take(&mut self.unanswered) && client_in(&self.carrier).is_some_and(|web| !web.is_taken()) {
            self.held.add(&nameless(buf), 0);
            return Poll::Ready(Ok(buf.len()));
        }
        let this = &mut *self;
        if let Some(lines) = this.lines_for(buf) {
            // A head without them would lack what protects its page.
            let added = lines.add_to(buf, &mut this.held, GATHERED);
            return Poll::Ready(
                added
                    .map(|()| buf.len())
                    .ok_or_else(|| io::ErrorKind::InvalidData.into()),
            );
        }
        let changed = this.changed(buf);
        let written = this.poll_gathered(cx, changed.as_deref().unwrap_or(buf));
        if let (Poll::Ready(Ok(count)), Some(watch)) = (&written, &mut this.frames) {
            for _ in 0..watch.streams.note_sent(&buf[..*count]) {
                note_refusal(&watch.env, &this.carrier, Reason::Unreadable);
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
                Channel::Tls(io) if cut => Pin::new(io.get_mut().stream_mut()).poll_shutdown(cx),
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
    /// The lines that this head gets from us. The engine may have filtered the final answer before it writes an interim
    /// one, which gets none.
    fn lines_for(&self, head: &[u8]) -> Option<AnswerLines> {
        match self.h2 || is_interim(head) {
            true => None,
            false => client_in(&self.carrier)?.answer_lines.lock().take(),
        }
    }

    fn poll_gathered(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.held.len() + buf.len() <= GATHERED {
            self.held.add(buf, GATHERED);
            return Poll::Ready(Ok(buf.len()));
        }
        ready!(self.poll_held(cx))?;
        self.poll_through(cx, buf)
    }

    /// The first of these bytes as the client should get them, if they may have to be changed.
    pub(crate) fn changed(&self, buf: &[u8]) -> Option<Vec<u8>> {
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
        if let Poll::Ready(Ok(count)) = &written {
            self.reading.took(*count);
            if let Some(reader) = &self.reader {
                reader.took(*count);
            }
        }
        written
    }

    /// Writes the gathered bytes.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut held = std::mem::take(&mut self.held);
        let sent = held.poll_out(|bytes| self.poll_through(cx, bytes));
        self.held = held;
        sent
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
    fn selected_alpn_proto(&self) -> Option<ALPN> {
        let alpn = if self.h2 { ALPN::H2 } else { ALPN::H1 };
        matches!(self.channel, Channel::Tls(_)).then_some(alpn)
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

/// Whether a head is that of an interim answer (RFC 9110 §15.2).
fn is_interim(head: &[u8]) -> bool {
    matches!(head, [b'H', b'T', b'T', b'P', b'/', b'1', b'.', _, b' ', b'1', ..])
}

/// The head of the engine's own answer to a request that it cannot read, without the engine's name.
fn nameless(head: &[u8]) -> Vec<u8> {
    let names = |line: &&[u8]| line.get(..7).is_some_and(|name| name.eq_ignore_ascii_case(b"server:"));
    let lines = head.split_inclusive(|&b| b == b'\n');
    lines.filter(|line| !names(line)).flatten().copied().collect()
}
