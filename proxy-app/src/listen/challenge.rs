//! Handshakes by which an ACME authority looks whether a name is controlled from here (TLS-ALPN-01, RFC 8737).
//!
//! Such a client is known by its first message, before TLS begins: the TLS library chooses what is spoken only after the
//! certificate (docs/adr/0028-challenges-before-tls.md). No other client gets the certificate of a
//! challenge, and this one gets no other.

use std::io;
use std::pin::Pin;

use openssl::ssl::{Ssl, SslContext};
use socket2::SockRef;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio_openssl::SslStream;

use crate::acme::challenge_certificate::ACME_TLS;
use crate::acme::challenges::Challenges;
use crate::listen::client_hello::{self, ClientHello, HELLO_MAX, HelloProgress};
use crate::tls::REFUSAL;
use crate::tls::failure::explain;

/// The context of the challenge that this client asks for, if one is open. Nothing is read from the connection; the
/// caller sets the time limit.
///
/// # Errors
/// The connection has failed.
pub(crate) async fn asked_for(tcp: &TcpStream, challenges: &Challenges) -> io::Result<Option<SslContext>> {
    if !challenges.have_handshakes() {
        return Ok(None);
    }
    let hello = client_hello(tcp).await?;
    let name = hello.as_ref().and_then(challenged);
    Ok(name.and_then(|name| challenges.context(&name)))
}

/// Does the handshake, and ends the connection (RFC 8737 §4). The caller sets the time limit.
///
/// # Errors
/// The handshake failed; the text says why.
pub(crate) async fn answer(tcp: TcpStream, context: &SslContext) -> io::Result<()> {
    let mut stream = SslStream::new(Ssl::new(context)?, tcp)?;
    match Pin::new(&mut stream).accept().await {
        Ok(()) => stream.shutdown().await,
        Err(error) => Err(explain(stream.ssl(), error, REFUSAL)),
    }
}

/// The name, in the form in which names are compared. An authority offers nothing else to speak (RFC 8737 §4).
fn challenged(hello: &ClientHello) -> Option<String> {
    let name = hello.name.as_ref().filter(|_| hello.protocols == [ACME_TLS])?;
    Some(name.to_ascii_lowercase())
}

/// The first message of this client, once it is here; it stays unread.
async fn client_hello(tcp: &TcpStream) -> io::Result<Option<ClientHello>> {
    // Tokio's own look takes bytes that were looked at before for new ones.
    let other: std::net::TcpStream = SockRef::from(tcp).try_clone()?.into();
    let mut bytes = vec![0; HELLO_MAX];
    let mut look = || {
        let count = other.peek(&mut bytes)?;
        match client_hello::parse(&bytes[..count]) {
            HelloProgress::Incomplete => Err(io::ErrorKind::WouldBlock.into()),
            HelloProgress::Complete(hello) => Ok(Some(hello)),
            HelloProgress::Other => Ok(None),
        }
    };
    loop {
        let ready = tcp.ready(Interest::READABLE).await?;
        match tcp.try_io(Interest::READABLE, &mut look) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if ready.is_read_closed() {
                    return Ok(None);
                }
            }
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_client_that_offers_nothing_else_is_an_authority() {
        for (protocols, expected) in [
            (&[&b"acme-tls/1"[..]][..], Some("mail.a.test")),
            (&[b"acme-tls/1", b"h2"], None),
            (&[b"h2"], None),
            (&[], None),
        ] {
            let hello = ClientHello {
                name: Some("Mail.a.test".to_owned()),
                protocols: protocols.iter().map(|name| name.to_vec()).collect(),
            };
            assert_eq!(challenged(&hello).as_deref(), expected, "{protocols:?}");
        }
    }
}
