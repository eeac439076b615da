//! What a server gets with a request: headers, and how long it may take.

use std::net::IpAddr;
use std::time::Duration;

use pingora::protocols::ALPN;
use pingora::upstreams::peer::HttpPeer;
use route_cache::{HostPort, Server, UpstreamTls, bracketed};

use crate::app::snapshot::Snapshot;
use crate::http::headers;
use crate::locations::{HostRule, Timeouts};
use crate::tls::client_certs::PresentedCert;
use crate::upstream::connect;
use crate::web::client::WebClient;
use crate::web::decision::{ProxyRequest, RequestInfo};
use crate::web::request_context::UpstreamTarget;

/// The hop of a request from the client to us.
#[derive(Debug, Clone, Copy)]
struct Hop<'a> {
    /// The client's address, after trusted forwarders.
    client: IpAddr,
    /// `http` or `https`.
    scheme: &'a str,
    /// The Host header that the client sent, port included; `None` when there was none.
    host: Option<&'a str>,
    /// The port that the client sees.
    port: u16,
}

/// The headers that a server gets from us, after those of [`headers::dropped`] are removed.
pub(crate) fn proxy_headers(
    web: &WebClient,
    info: &RequestInfo,
    proxied: &ProxyRequest,
    server: &Server,
) -> Vec<(http::HeaderName, String)> {
    let forward = proxied.forward();
    let mut lines = Vec::with_capacity(8);
    if forward.forwarded {
        let hop = Hop {
            client: info.client,
            scheme: info.scheme,
            host: info.host_as_sent.as_deref(),
            port: info.port,
        };
        let told = x_forwarded(hop).into_iter();
        lines.extend(told.map(|(name, value)| (http::HeaderName::from_static(name), value)));
    }
    let shown = web.shown.iter().flat_map(PresentedCert::headers);
    lines.extend(shown.filter_map(|(name, value)| Some((name, value.to_str().ok()?.to_owned()))));
    lines.push((http::HeaderName::from_static(headers::REQUEST_ID), info.id.clone()));
    let host = match &forward.host {
        HostRule::Keep => info
            .host_as_sent
            .clone()
            .unwrap_or_else(|| HostPort::from(web.facts.client.local).to_string()),
        HostRule::Upstream if proxied.mailbox().is_none() => proxied.group().to_owned(),
        HostRule::Upstream => server.address().authority(),
        HostRule::Text(text) => {
            let host = info
                .host
                .clone()
                .unwrap_or_else(|| web.facts.client.local.ip().to_string());
            text.replace("{host}", &bracketed(&host))
                .replace("{port}", &server.port.to_string())
        }
    };
    lines.push((http::header::HOST, host));
    let set = forward.set_headers.iter();
    lines.extend(set.filter_map(|(name, value)| Some((name.clone(), value.to_str().ok()?.to_owned()))));
    lines
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

/// The request headers to set towards a server, after those of [`headers::dropped`] are removed. One address and never
/// a chain: mailbox servers compare the whole value (HTTP §6.2).
fn x_forwarded(hop: Hop<'_>) -> Vec<(&'static str, String)> {
    let mut lines = vec![
        ("x-forwarded-for", hop.client.to_canonical().to_string()),
        ("x-forwarded-proto", hop.scheme.to_owned()),
        ("x-forwarded-port", hop.port.to_string()),
    ];
    if let Some(host) = hop.host {
        lines.push(("x-forwarded-host", host.to_owned()));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added() {
        let hop = Hop {
            client: "::ffff:198.51.100.7".parse().unwrap(),
            scheme: "https",
            host: Some("mail.example.com:8443"),
            port: 8443,
        };
        let expected = [
            ("x-forwarded-for", "198.51.100.7"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-port", "8443"),
            ("x-forwarded-host", "mail.example.com:8443"),
        ];
        assert_eq!(x_forwarded(hop), expected.map(|(name, value)| (name, value.to_owned())));
        let bare = Hop {
            host: None,
            client: "2001:db8::1".parse().unwrap(),
            ..hop
        };
        assert_eq!(x_forwarded(bare)[0].1, "2001:db8::1");
        assert!(x_forwarded(bare).iter().all(|(name, _)| *name != "x-forwarded-host"));
        // Clients cannot send the headers that we add.
        for (name, _) in x_forwarded(hop) {
            let name = http::HeaderName::from_static(name);
            let sent = http::HeaderMap::from_iter([(name.clone(), http::HeaderValue::from_static("x"))]);
            assert_eq!(headers::dropped(&sent), [name]);
        }
    }
}
