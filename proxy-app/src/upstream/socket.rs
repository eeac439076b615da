//! A connection to a web server as the HTTP engine has it for one request.
//!
//! Before the engine would keep a connection it reads one byte, to see whether the server has closed it. It never reads
//! a single byte otherwise, and it does not ask about a connection whose request or response is incomplete. At this
//! question the socket looks for itself, says that it is closed, and goes to our own pool when the engine drops it.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::upstream::connection::ServerConnection;
use crate::upstream::http2::Exchange;
use crate::upstream::link::Link;
use crate::upstream::pool::{ConnectionPool, RestingLink, ServerKey};

/// A write of a few bytes: the engine writes the length of a chunk, the chunk and its end one after the other. They
/// leave together.
const SMALL: usize = 32;
/// Most that is gathered for that; the engine's own chunks are smaller.
const GATHERED: usize = 128 * 1024;

/// Where a connection goes after its request.
pub(crate) struct Home {
    pub(crate) pool: Arc<ConnectionPool>,
    pub(crate) server: ServerKey,
    /// How long it may rest.
    pub(crate) keepalive: Duration,
}

/// A connection in use.
pub(crate) struct ServerSocket {
    wire: Wire,
    connection: Arc<ServerConnection>,
    /// `None`: it ends with the request.
    home: Option<Home>,
    /// The engine has done with it, and it is good for another request.
    rests: bool,
    /// Written, and not yet flushed.
    held: Vec<u8>,
    sent: usize,
}

enum Wire {
    Http1(Link),
    Http2(Box<Exchange>),
    /// It has gone home.
    None,
}

impl ServerSocket {
    /// For one request.
    pub(crate) fn new(link: RestingLink, connection: Arc<ServerConnection>, home: Option<Home>) -> Self {
        Self {
            wire: match link {
                RestingLink::Http1(link) => Wire::Http1(link),
                RestingLink::Http2(link) => Wire::Http2(Box::new(Exchange::new(link))),
            },
            connection,
            home,
            rests: false,
            held: Vec::new(),
            sent: 0,
        }
    }

    /// The engine asks whether the connection can be kept.
    fn is_good(&mut self) -> bool {
        match &mut self.wire {
            Wire::Http1(link) => self.held.is_empty() && link.has_fallen_silent(),
            Wire::Http2(exchange) => exchange.is_over(),
            Wire::None => false,
        }
    }

    fn poll_through(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.wire {
            Wire::Http1(link) => Pin::new(link).poll_write(cx, buf),
            Wire::Http2(exchange) => Pin::new(exchange).poll_write(cx, buf),
            Wire::None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    /// Writes the gathered bytes.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.held.len() {
            let held = std::mem::take(&mut self.held);
            let written = self.poll_through(cx, &held[self.sent..]);
            self.held = held;
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.sent += count,
            }
        }
        if self.sent > 0 {
            (self.held, self.sent) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }
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
        match &mut this.wire {
            Wire::Http1(link) => Pin::new(link).poll_read(cx, buf),
            Wire::Http2(exchange) => Pin::new(exchange).poll_read(cx, buf),
            Wire::None => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for ServerSocket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if buf.len() + this.held.len() <= GATHERED && (buf.len() <= SMALL || !this.held.is_empty()) {
            this.held.extend_from_slice(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        ready!(this.poll_held(cx))?;
        this.poll_through(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_held(cx))?;
        match &mut this.wire {
            Wire::Http1(link) => Pin::new(link).poll_flush(cx),
            Wire::Http2(exchange) => Pin::new(exchange).poll_flush(cx),
            Wire::None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().wire {
            Wire::Http1(link) => Pin::new(link).poll_shutdown(cx),
            Wire::Http2(exchange) => Pin::new(exchange).poll_shutdown(cx),
            Wire::None => Poll::Ready(Ok(())),
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
