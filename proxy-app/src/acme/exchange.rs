//! Requests to an authority: over TLS, each on a connection of its own, bounded in time and length.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::tls::upstream::UpstreamTrust;
use crate::upstream::connect::connect_to_service;
use crate::upstream::dns::DnsCache;

/// How long a request may take, its connection included. Authorities answer within a second or two.
const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// Most of an answer: a chain has some 6 KiB.
const ANSWER_MAX: usize = 256 * 1024;
/// The longest time that an authority may put a client off (Let's Encrypt: 7 days).
const PUT_OFF_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// What authorities want to know of a client (RFC 8555 §6.1).
pub(crate) const AGENT: &str = concat!("Portico/", env!("CARGO_PKG_VERSION"));

/// The way to an authority.
pub(crate) struct AuthorityWeb {
    /// Its host's name.
    pub dns: Arc<DnsCache>,
    /// By whom it must be known.
    pub trust: Arc<UpstreamTrust>,
}

/// An answer of an authority.
pub(crate) struct AuthorityAnswer {
    pub status: StatusCode,
    headers: HeaderMap,
    pub body: Bytes,
}

impl AuthorityWeb {
    /// Sends a request; a body is a signed one (RFC 8555 §6.2).
    ///
    /// # Errors
    /// The authority cannot be reached, is not the one that it should be, or gives no bounded answer in time.
    pub(crate) async fn ask(&self, method: Method, url: &str, body: Vec<u8>) -> Result<AuthorityAnswer, String> {
        let uri: Uri = url.parse().map_err(|_| format!("{url:?} is not a URL"))?;
        let host = uri.host().filter(|_| uri.scheme_str() == Some("https"));
        let host = host.ok_or_else(|| format!("{url:?} is not an https URL"))?;
        match timeout(ANSWER_WAIT, self.exchange(&uri, host, method, body)).await {
            Ok(answer) => answer.map_err(|error| format!("{host}: {error:#}")),
            Err(_) => Err(format!("{host}: no answer in time")),
        }
    }

    async fn exchange(&self, uri: &Uri, host: &str, method: Method, body: Vec<u8>) -> anyhow::Result<AuthorityAnswer> {
        let (name, port) = (host.trim_matches(['[', ']']), uri.port_u16().unwrap_or(443));
        let stream = connect_to_service(&self.dns, name, port, Some(&self.trust)).await?;
        let mut request = http::Request::builder()
            .method(method)
            .uri(uri.path_and_query().map_or("/", |path| path.as_str()))
            .header(
                header::HOST,
                uri.authority().map_or(host, |authority| authority.as_str()),
            )
            .header(header::USER_AGENT, AGENT)
            .header(header::CONNECTION, "close");
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/jose+json");
        }
        let (head, body) = exchange_on(stream, request, body, ANSWER_MAX).await?;
        Ok(AuthorityAnswer {
            status: head.status,
            headers: head.headers,
            body,
        })
    }
}

/// Sends a request, the only one on this connection, and reads its answer, whose body is no longer than `most`.
///
/// # Errors
/// There is no such answer.
pub(crate) async fn exchange_on(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: http::request::Builder,
    body: Vec<u8>,
    most: usize,
) -> anyhow::Result<(http::response::Parts, Bytes)> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // It ends with its sender, or with the body.
    tokio::spawn(connection);
    let answer = sender.send_request(request.body(Full::new(Bytes::from(body)))?).await?;
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, most).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
    Ok((head, body))
}

impl AuthorityAnswer {
    /// A field of its head.
    pub(crate) fn field(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The nonce for a further request (RFC 8555 §6.5.1): base64url, anything else is none.
    pub(crate) fn nonce(&self) -> Option<String> {
        let nonce = self.field(HeaderName::from_static("replay-nonce"))?;
        let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (!nonce.is_empty() && nonce.len() <= 512 && nonce.bytes().all(good)).then(|| nonce.to_owned())
    }

    /// How long to wait before the next request (RFC 9110 §10.2.3).
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        put_off(self.field(header::RETRY_AFTER)?, Timestamp::now())
    }
}

/// Seconds, or a date.
fn put_off(text: &str, now: Timestamp) -> Option<Duration> {
    let seconds = text.trim().parse::<u64>().ok().or_else(|| {
        let date = jiff::fmt::rfc2822::parse(text.trim()).ok()?.timestamp();
        u64::try_from(date.as_second() - now.as_second()).ok()
    })?;
    Some(Duration::from_secs(seconds).min(PUT_OFF_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_may_put_off_by_seconds_or_a_date() {
        let now: Timestamp = "1994-11-06T08:49:00Z".parse().unwrap();
        for (text, expected) in [
            ("120", Some(120)),
            (" 3 ", Some(3)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(37)),
            ("Sun, 06 Nov 1994 08:48:37 GMT", None),
            ("99999999999", Some(7 * 24 * 60 * 60)),
            ("-1", None),
            ("soon", None),
        ] {
            assert_eq!(put_off(text, now), expected.map(Duration::from_secs), "{text}");
        }
    }
}
