//! Which server connection a request gets, and how long it is kept: a shared one, one of its client's own, or one for
//! this request alone.

use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, HeaderName, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Version};
use pingora::Result;
use pingora::http::{RequestHeader, ResponseHeader};

use crate::http::repeat::may_be_repeated;
use crate::http::{bound_login, headers};
use crate::upstream::connection::{Demand, Owner, Repeatable, ServerConnection};
use crate::web::client::WebClient;
use crate::web::decision::{ProxyRequest, RequestInfo};

/// How long idle connections to servers are kept, where nothing else is set: less than Jetty's 60 s.
const KEEPALIVE: Duration = Duration::from_secs(50);
/// How long a server keeps a connection.
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
/// Most of a body that the engine keeps.
const BODY_KEPT: u64 = 64 * 1024;

/// What a request wants of its server connection.
#[derive(Debug, Clone)]
pub(crate) struct Keeping {
    pub(crate) demand: Demand,
    /// The client's connection, if it has server connections of its own.
    pub(crate) owner: Option<Arc<Owner>>,
    /// The connection is made for this request and ends with it.
    pub(crate) alone: bool,
    /// The client's connection may carry several clients.
    relayed: bool,
}

impl Keeping {
    /// For this request. `keepalive` is what its group says.
    ///
    /// A login that is bound to a connection is valid for one request where a forwarder has sent it: the next request
    /// on that connection may be another client's (RFC 9110 §3.3).
    pub(crate) fn of(
        web: &WebClient,
        request: &RequestHeader,
        info: &RequestInfo,
        proxied: &ProxyRequest,
        keepalive: Option<Duration>,
    ) -> Self {
        let (offers, relayed) = (bound_login::is_offered(&request.headers), info.relayed);
        if offers && !relayed {
            web.owner.bind();
        }
        let owner = web.owner.key().filter(|_| !relayed).map(|_| web.owner.clone());
        let keepalive = proxied.forward().keepalive.or(keepalive).unwrap_or(KEEPALIVE);
        let again = may_be_repeated(&request.method) && is_kept(&request.headers);
        let repeatable = match (again, &owner) {
            (true, _) => Repeatable::Yes,
            (false, Some(_)) => Repeatable::Bound,
            (false, None) => Repeatable::No,
        };
        // A login of three messages needs one connection for them.
        let keepalive = match &owner {
            Some(_) if keepalive.is_zero() => KEEPALIVE,
            _ => keepalive,
        };
        Self {
            demand: Demand { keepalive, repeatable },
            alone: owner.is_none() && (offers || keepalive.is_zero()),
            relayed,
            owner,
        }
    }

    /// Tells the server that it need not keep the connection, where that is so.
    pub(crate) fn announce(&self, upstream: &mut RequestHeader) -> Result<()> {
        if self.alone && upstream.version == Version::HTTP_11 {
            upstream.insert_header(CONNECTION, HeaderValue::from_static("close"))?;
        }
        Ok(())
    }

    /// Reads what an answer says about its connection, before anything is removed from its head.
    pub(crate) fn learn(&self, web: &WebClient, connection: &ServerConnection, response: &ResponseHeader) {
        connection.touch();
        if headers::closes(&response.headers) && !connection.is_http2() {
            connection.spend();
        }
        if let Some(said) = text(&response.headers, &KEEP_ALIVE) {
            connection.heed(said);
        }
        if bound_login::is_demanded(&response.headers) {
            if !self.relayed {
                web.owner.bind();
            }
            // One of HTTP/2 has many requests at once, and none of them logs it in.
            if self.owner.is_none() && !connection.is_http2() {
                connection.spend();
            }
        }
    }
}

/// Whether the body is short enough to be kept by the engine, and sent again from there.
fn is_kept(request: &HeaderMap) -> bool {
    let length = text(request, &CONTENT_LENGTH).map_or(Ok(0), str::parse::<u64>);
    length.is_ok_and(|length| length <= BODY_KEPT) && !request.contains_key(TRANSFER_ENCODING)
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
