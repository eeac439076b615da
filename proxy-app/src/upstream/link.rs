//! The bytes between us and a web server, in clear text or TLS, and whether a connection that rests is still good.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use openssl::ssl::ErrorCode;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_openssl::SslStream;

/// A connection whose handshake is done.
#[derive(Debug)]
pub(crate) enum Link {
    /// Clear text.
    Clear(TcpStream),
    /// TLS, verified as its server demands.
    Tls(Box<SslStream<TcpStream>>),
}

impl Link {
    /// Whether the server has closed it or said something, as the kernel knows it now: neither belongs to a connection
    /// without a request.
    pub(crate) fn is_silent(&self) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        let tcp = match self {
            Self::Clear(tcp) => tcp,
            Self::Tls(tls) if tls.ssl().pending() > 0 => return false,
            Self::Tls(tls) => tls.get_ref(),
        };
        let peeked = SockRef::from(tcp).peek(&mut byte);
        peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// The same for one that has just been used: what only TLS has to say is heard.
    pub(crate) fn has_fallen_silent(&mut self) -> bool {
        let mut byte = [0];
        let mut read = ReadBuf::new(&mut byte);
        Pin::new(self)
            .poll_read(&mut Context::from_waker(std::task::Waker::noop()), &mut read)
            .is_pending()
    }
}

impl AsyncRead for Link {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => {
                let before = buf.filled().len();
                ready!(Pin::new(&mut **tls).poll_read(cx, buf))?;
                match buf.filled().len() == before && buf.remaining() > 0 {
                    true => poll_ended(tls, cx),
                    false => Poll::Ready(Ok(())),
                }
            }
        }
    }
}

/// The end of TLS. Without its closing message it may come from anyone on the way, and an answer that ends with the
/// connection is not known to be whole (RFC 9112 §9.8).
fn poll_ended(tls: &mut SslStream<TcpStream>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    Poll::Ready(match ready!(Pin::new(tls).poll_peek(cx, &mut [0])) {
        Err(error) if error.code() == ErrorCode::ZERO_RETURN => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "TLS has ended without its closing message",
        )),
    })
}

impl AsyncWrite for Link {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Clear(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
