//! What a server gets with a request: headers, and how long it may take.

use std::time::Duration;

use http::header::{HOST, HeaderMap, HeaderValue, InvalidHeaderValue};
use pingora::protocols::ALPN;
use pingora::upstreams::peer::HttpPeer;
use route_cache::{HostPort, Server, UpstreamTls, bracketed};

use crate::app::snapshot::Snapshot;
use crate::http::headers::{X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PORT, X_FORWARDED_PROTO, X_REQUEST_ID};
use crate::locations::{HostRule, Timeouts};
use crate::tls::client_certs::PresentedCert;
use crate::upstream::connect;
use crate::web::client::WebClient;
use crate::web::decision::{ProxyRequest, RequestInfo};
use crate::web::request_context::UpstreamTarget;

/// Tells a server of the client: the headers that it gets from us, after those of `headers::dropped` are removed. One
/// address and never a chain: mailbox servers compare the whole value (HTTP §6.2).
///
/// # Errors
/// A name of the configuration that cannot stand in a header.
pub(crate) fn tell(
    headers: &mut HeaderMap,
    web: &WebClient,
    info: &RequestInfo,
    proxied: &ProxyRequest,
    server: &Server,
) -> Result<(), InvalidHeaderValue> {
    let forward = proxied.forward();
    headers.reserve(8);
    if forward.forwarded {
        headers.insert(X_FORWARDED_FOR, web.told.client(info.client));
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(info.scheme));
        headers.insert(X_FORWARDED_PORT, web.told.port(info.port));
        if let Some(host) = &info.host_as_sent {
            headers.insert(X_FORWARDED_HOST, host.clone());
        }
    }
    let shown = web.shown.iter().flat_map(PresentedCert::headers);
    shown.for_each(|(name, value)| drop(headers.insert(name, value)));
    headers.insert(X_REQUEST_ID, info.id.value().clone());
    let host = match &forward.host {
        HostRule::Keep => match &info.host_as_sent {
            Some(host) => host.clone(),
            None => HeaderValue::from_str(&HostPort::from(web.facts.client.local).to_string())?,
        },
        HostRule::Upstream if proxied.mailbox().is_none() => HeaderValue::from_str(proxied.group())?,
        HostRule::Upstream => HeaderValue::from_str(&server.address().authority())?,
        HostRule::Text(text) => {
            let local = || web.facts.client.local.ip().to_string();
            let host = info.host.clone().unwrap_or_else(local);
            let text = text.replace("{host}", &bracketed(&host));
            HeaderValue::from_str(&text.replace("{port}", &server.port.to_string()))?
        }
    };
    headers.insert(HOST, host);
    for (name, value) in &forward.set_headers {
        headers.insert(name, value.clone());
    }
    Ok(())
}

/// Most that a server may send ahead of the client in a response over HTTP/2; the engine's default is 8 MiB.
const H2_WINDOW: u32 = 64 * 1024;

pub(crate) fn peer(target: &UpstreamTarget, proxied: &ProxyRequest, snapshot: &Snapshot) -> HttpPeer {
    let policy = &snapshot.web;
    let waits = waits(proxied, snapshot);
    let name = match &target.server.tls {
        UpstreamTls::Clear => None,
        UpstreamTls::Implicit { name } => Some(name.to_string()),
    };
    // The connections in the pool were made under these rules.
    let is_tls = name.is_some();
    let mut peer = HttpPeer::new(target.address, is_tls, name.unwrap_or_default());
    let connect = waits.connect.min(connect::CONNECT);
    peer.options.connection_timeout = Some(connect);
    peer.options.total_connection_timeout = Some(connect);
    peer.options.write_timeout = Some(waits.send);
    peer.options.read_timeout = Some(waits.read);
    peer.options.alpn = if is_tls && proxied.forward().http2 {
        ALPN::H2H1
    } else {
        ALPN::H1
    };
    peer.options.h2_stream_window_size = Some(H2_WINDOW);
    peer.options.verify_cert = target.verify;
    peer.options.verify_hostname = target.verify;
    peer.options.ca = policy.upstream_ca.clone();
    peer
}

/// The waits of a request's location on this node.
pub(crate) fn waits(proxied: &ProxyRequest, snapshot: &Snapshot) -> Timeouts<Duration> {
    let policy = &snapshot.web;
    proxied.found.entry.timeouts.unwrap_or(Timeouts {
        connect: policy.connect_timeout,
        send: policy.send_timeout,
        read: policy.read_timeout,
        idle: policy.polling_timeout,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::headers;

    #[test]
    fn clients_cannot_send_what_we_add() {
        for name in [
            X_FORWARDED_FOR,
            X_FORWARDED_PROTO,
            X_FORWARDED_PORT,
            X_FORWARDED_HOST,
            X_REQUEST_ID,
        ] {
            let sent = HeaderMap::from_iter([(name.clone(), HeaderValue::from_static("x"))]);
            assert_eq!(headers::dropped(&sent), [name]);
        }
    }
}
