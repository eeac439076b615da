//! A connection to a web server as the HTTP engine has it for one request.
//!
//! Before the engine would keep a connection it reads one byte, to see whether the server has closed it. It never reads
//! a single byte otherwise, and it does not ask about a connection whose request or response is incomplete. At this
//! question the socket looks for itself, says that it is closed, and goes to our own pool when the engine drops it.
//!
//! While the engine writes it does not read. So the socket itself looks for the answer when the server takes nothing
//! more of a request, and drops the rest of one that is already answered.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::upstream::body_clock::{BodyAlarm, BodyClock};
use crate::upstream::connection::ServerConnection;
use crate::upstream::early::{AnswerBeginning, Answered};
use crate::upstream::gathered::Gathered;
use crate::upstream::http2::Exchange;
use crate::upstream::link::Link;
use crate::upstream::outgoing::OutgoingRequest;
use crate::upstream::pace::Pace;
use crate::upstream::pool::{ConnectionPool, RestingLink, ServerKey};

/// A write of a few bytes: the engine writes the length of a chunk, the chunk and its end one after the other. They
/// leave together.
const SMALL: usize = 32;
/// Most that is gathered for that; the engine's own chunks are smaller.
const GATHERED: usize = 128 * 1024;
/// Most that is read of an answer while its request is written: interim answers, and the status of the final one.
const EARLY_MAX: usize = 16 * 1024;
/// How long a server that agrees may take nothing of the request before the rest of it is dropped: a server may read
/// while it answers.
const GRACE: Duration = Duration::from_secs(5);

/// Where a connection goes after its request.
pub(crate) struct Home {
    pub(crate) pool: Arc<ConnectionPool>,
    pub(crate) server: ServerKey,
    /// How long it may rest.
    pub(crate) keepalive: Duration,
}

/// How an answer is read.
#[derive(Clone)]
pub(crate) struct AnswerReading {
    /// How far ahead of its client.
    pub(crate) pace: Arc<Pace>,
    /// How long its server may be silent.
    pub(crate) patience: Duration,
    /// How long its client may, in the middle of the request.
    pub(crate) body: Arc<BodyClock>,
}

/// A server that gives or takes nothing. It counts only while the server is waited for, and not while its client is.
struct Silence {
    patience: Duration,
    until: Option<Instant>,
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Silence {
    const fn of(patience: Duration) -> Self {
        Self {
            patience,
            until: None,
            alarm: None,
        }
    }

    /// Waits until it was too long. The alarm is moved when it has come, not with each byte.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let until = *self.until.get_or_insert_with(|| Instant::now() + self.patience);
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(until)));
        loop {
            ready!(alarm.as_mut().poll(cx));
            if Instant::now() >= until {
                return Poll::Ready(());
            }
            alarm.as_mut().reset(until);
        }
    }
}

/// A connection in use.
pub(crate) struct ServerSocket {
    wire: Wire,
    connection: Arc<ServerConnection>,
    /// `None`: it ends with the request.
    home: Option<Home>,
    pace: Option<Arc<Pace>>,
    silence: Option<Silence>,
    body: Option<(Arc<BodyClock>, BodyAlarm)>,
    /// The engine has done with it, and it is good for another request.
    rests: bool,
    /// Written, and not yet flushed.
    held: Gathered,
    /// What is written of a request of HTTP/1.
    request: Option<OutgoingRequest>,
    beginning: AnswerBeginning,
    /// The answer, as far as it was read while its request was written.
    early: BytesMut,
    /// The server agrees, and takes nothing more.
    stalled: Option<Silence>,
    /// The server has answered, and the rest of the request is dropped.
    dropping: bool,
}

enum Wire {
    Http1(Link),
    Http2(Box<Exchange>),
    /// It has gone home.
    None,
}

impl ServerSocket {
    /// For one request.
    pub(crate) fn new(
        link: RestingLink,
        connection: Arc<ServerConnection>,
        home: Option<Home>,
        answer: Option<AnswerReading>,
    ) -> Self {
        Self {
            silence: answer.as_ref().map(|answer| Silence::of(answer.patience)),
            body: answer
                .as_ref()
                .map(|answer| (answer.body.clone(), BodyAlarm::default())),
            pace: answer.map(|answer| answer.pace),
            wire: match link {
                RestingLink::Http1(link) => Wire::Http1(link),
                RestingLink::Http2(link) => Wire::Http2(Box::new(Exchange::new(link))),
            },
            connection,
            home,
            rests: false,
            held: Gathered::default(),
            request: None,
            beginning: AnswerBeginning::new(),
            early: BytesMut::new(),
            stalled: None,
            dropping: false,
        }
    }

    /// The engine asks whether the connection can be kept.
    fn is_good(&mut self) -> bool {
        match &mut self.wire {
            _ if self.dropping => false,
            Wire::Http1(link) => self.held.is_empty() && self.early.is_empty() && link.has_fallen_silent(),
            Wire::Http2(exchange) => exchange.is_over(),
            Wire::None => false,
        }
    }

    /// Reads no more than this.
    fn poll_portion(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>, portion: usize) -> Poll<io::Result<usize>> {
        let before = buf.filled().len();
        if buf.remaining() <= portion {
            ready!(self.poll_link(cx, buf))?;
            return Poll::Ready(Ok(buf.filled().len() - before));
        }
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(portion));
        ready!(self.poll_link(cx, &mut part))?;
        let count = part.filled().len();
        buf.advance(count);
        Poll::Ready(Ok(count))
    }

    fn poll_link(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.wire {
            Wire::Http1(_) if !self.early.is_empty() => {
                let count = buf.remaining().min(self.early.len());
                buf.put_slice(&self.early[..count]);
                self.early.advance(count);
                Poll::Ready(Ok(()))
            }
            Wire::Http1(link) => {
                let before = buf.filled().len();
                ready!(Pin::new(link).poll_read(cx, buf))?;
                self.beginning.read(&buf.filled()[before..]);
                Poll::Ready(Ok(()))
            }
            Wire::Http2(exchange) => Pin::new(exchange).poll_read(cx, buf),
            Wire::None => Poll::Ready(Ok(())),
        }
    }

    /// Whether these bytes belong to the request. The engine writes its head at once.
    fn check(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &self.wire {
            Wire::Http1(_) => self
                .request
                .get_or_insert_with(|| OutgoingRequest::begin(bytes))
                .check(bytes),
            Wire::Http2(_) | Wire::None => Ok(()),
        }
    }

    /// They have been written.
    fn note(&mut self, bytes: &[u8]) {
        if let Some(request) = &mut self.request {
            request.pass(bytes);
        }
    }

    /// Something went either way, or is not expected of the server.
    fn end_silence(&mut self) {
        if let Some(silence) = &mut self.silence {
            silence.until = None;
        }
    }

    /// Waits until the server has been silent for too long.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.silence {
            Some(silence) => {
                ready!(silence.poll_end(cx));
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the server is silent")))
            }
            None => Poll::Pending,
        }
    }

    /// Waits until the client has been silent for too long in the middle of its request.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.body {
            Some((clock, alarm)) => alarm.poll_late(clock, cx).map(Err),
            None => Poll::Pending,
        }
    }

    fn poll_through(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.wire {
            Wire::Http1(link) => Pin::new(link).poll_write(cx, buf),
            Wire::Http2(exchange) => Pin::new(exchange).poll_write(cx, buf),
            Wire::None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    /// The server takes nothing now. Ready if it has answered: the rest of the request is dropped from now on.
    fn poll_answered(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let answered = match &mut self.wire {
            Wire::Http1(link) => poll_beginning(link, cx, &mut self.beginning, &mut self.early),
            Wire::Http2(exchange) => exchange.poll_answered(cx),
            Wire::None => Answered::No,
        };
        match answered {
            Answered::No => return Poll::Pending,
            Answered::Agreeing => ready!(self.stalled.get_or_insert_with(|| Silence::of(GRACE)).poll_end(cx)),
            Answered::Decided => {}
        }
        self.dropping = true;
        self.held = Gathered::default();
        self.connection.spend();
        Poll::Ready(())
    }

    /// Writes this behind what is gathered.
    fn poll_out(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_held(cx))?;
        let sent = self.poll_through(cx, buf);
        if let (Poll::Ready(_), Some(stalled)) = (&sent, &mut self.stalled) {
            stalled.until = None;
        }
        sent
    }

    /// Writes the gathered bytes.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut held = std::mem::take(&mut self.held);
        let sent = held.poll_out(|bytes| self.poll_through(cx, bytes));
        self.held = held;
        sent
    }
}

/// Reads an answer of HTTP/1 as far as its status, and keeps what was read.
fn poll_beginning(
    link: &mut Link,
    cx: &mut Context<'_>,
    beginning: &mut AnswerBeginning,
    early: &mut BytesMut,
) -> Answered {
    while beginning.answered() == Answered::No && early.len() < EARLY_MAX {
        let mut bytes = [0; 512];
        let mut read = ReadBuf::new(&mut bytes);
        match Pin::new(&mut *link).poll_read(cx, &mut read) {
            Poll::Pending => break,
            Poll::Ready(Ok(())) if !read.filled().is_empty() => {
                beginning.read(read.filled());
                early.extend_from_slice(read.filled());
            }
            // There will be no answer. The engine hears of it when it reads.
            Poll::Ready(_) => return Answered::Decided,
        }
    }
    beginning.answered()
}

impl Drop for ServerSocket {
    fn drop(&mut self) {
        let Some(home) = self.home.take().filter(|_| self.rests && !self.connection.is_spent()) else {
            return;
        };
        let link = match std::mem::replace(&mut self.wire, Wire::None) {
            Wire::Http1(link) => Some(RestingLink::Http1(link)),
            Wire::Http2(exchange) => exchange.finish().map(RestingLink::Http2),
            Wire::None => None,
        };
        if let Some(link) = link {
            home.pool
                .put(home.server, link, self.connection.clone(), home.keepalive);
        }
    }
}

impl AsyncRead for ServerSocket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.capacity() == 1 {
            this.rests = this.is_good();
            return Poll::Ready(Ok(()));
        }
        let portion = match &this.pace {
            None => Poll::Ready(usize::MAX),
            Some(pace) => pace.poll_portion(cx),
        };
        let Poll::Ready(portion) = portion else {
            this.end_silence();
            return this.poll_late(cx);
        };
        let room = portion.min(buf.remaining());
        match this.poll_portion(cx, buf, portion) {
            Poll::Ready(read) => {
                this.end_silence();
                let count = read?;
                if let Some(pace) = &this.pace {
                    pace.note_read(count, room);
                }
                Poll::Ready(Ok(()))
            }
            Poll::Pending => match this.poll_late(cx) {
                Poll::Pending => this.poll_silence(cx),
                late => late,
            },
        }
    }
}

impl AsyncWrite for ServerSocket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.end_silence();
        if this.dropping {
            return Poll::Ready(Ok(buf.len()));
        }
        if let Err(error) = this.check(buf) {
            this.connection.spend();
            return Poll::Ready(Err(error));
        }
        if buf.len() + this.held.len() <= GATHERED && (buf.len() <= SMALL || !this.held.is_empty()) {
            this.held.add(buf, 0);
            this.note(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        match this.poll_out(cx, buf) {
            Poll::Pending => this.poll_answered(cx).map(|()| Ok(buf.len())),
            Poll::Ready(Ok(count)) => {
                this.note(&buf[..count]);
                Poll::Ready(Ok(count))
            }
            failed => failed,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this.poll_held(cx) {
            Poll::Pending if this.poll_answered(cx).is_ready() => return Poll::Ready(Ok(())),
            // The engine sends the end of a body without a limit.
            Poll::Pending => return this.poll_silence(cx),
            Poll::Ready(held) => held?,
        }
        match &mut this.wire {
            Wire::Http1(_) if this.dropping => Poll::Ready(Ok(())),
            Wire::Http1(link) => Pin::new(link).poll_flush(cx),
            Wire::Http2(exchange) => Pin::new(exchange).poll_flush(cx),
            Wire::None => Poll::Ready(Ok(())),
        }
    }

    /// The engine waits for it without a limit, so a server that does not take the farewell goes without.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let farewell = match &mut self.get_mut().wire {
            Wire::Http1(link) => Pin::new(link).poll_shutdown(cx),
            Wire::Http2(exchange) => Pin::new(exchange).poll_shutdown(cx),
            Wire::None => Poll::Ready(Ok(())),
        };
        match farewell {
            Poll::Pending => Poll::Ready(Ok(())),
            said => said,
        }
    }
}

impl VirtualSocket for ServerSocket {
    /// Its options were set when it was opened.
    fn set_socket_option(&self, _: VirtualSockOpt) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for ServerSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerSocket({:?})", self.connection)
    }
}
