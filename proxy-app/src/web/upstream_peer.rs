//! What the engine is told of the server of a request: its address, TLS towards it, and the waits.

use std::time::Duration;

use pingora::protocols::ALPN;
use pingora::upstreams::peer::HttpPeer;
use route_cache::UpstreamTls;

use crate::app::snapshot::Snapshot;
use crate::locations::Timeouts;
use crate::upstream::connect;
use crate::web::decision::ProxyRequest;
use crate::web::request_context::UpstreamTarget;

/// Most that a server may send ahead of the client in a response over HTTP/2; the engine's default is 8 MiB.
const H2_WINDOW: u32 = 64 * 1024;

/// The server as the engine's peer.
pub(crate) fn new(target: &UpstreamTarget, proxied: &ProxyRequest, snapshot: &Snapshot) -> HttpPeer {
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
