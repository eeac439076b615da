//! What the engine is told of the server of a request, the connection that it gets to it, and the waits.

use std::sync::Arc;
use std::time::Duration;

use pingora::upstreams::peer::HttpPeer;

use crate::app::snapshot::Snapshot;
use crate::locations::Timeouts;
use crate::upstream::body_clock::BodyClock;
use crate::upstream::connect;
use crate::upstream::dial::{Dial, Dialer};
use crate::upstream::pace::Pace;
use crate::upstream::pool::ServerKey;
use crate::upstream::socket::AnswerReading;
use crate::web::decision::ProxyRequest;
use crate::web::keeping::Keeping;
use crate::web::request_context::UpstreamTarget;

/// The server as the engine's peer. The engine makes no connections of its own, so that it needs to know nothing of TLS
/// and of HTTP/2. Nor does it know how long an answer may take: it would count the time that its client takes.
pub(crate) fn new(target: &UpstreamTarget, proxied: &ProxyRequest, snapshot: &Snapshot) -> HttpPeer {
    let waits = waits(proxied, snapshot);
    let mut peer = HttpPeer::new(target.address, false, String::new());
    peer.options.write_timeout = Some(waits.send);
    peer
}

/// The connection that the request needs.
pub(crate) fn dial(
    target: &UpstreamTarget,
    proxied: &ProxyRequest,
    snapshot: &Snapshot,
    keeping: &Keeping,
    pace: Arc<Pace>,
    body: Arc<BodyClock>,
    dialer: Dialer,
) -> Dial {
    let tls = target.server.tls.name().cloned();
    let server = ServerKey {
        address: target.address,
        // Logins of a connection know one with one request at a time only.
        http2: tls.is_some() && proxied.forward().http2 && keeping.owner.is_none(),
        tls,
        verify: target.verify,
        owner: keeping.owner.as_ref().and_then(|owner| owner.key()),
    };
    let waits = waits(proxied, snapshot);
    let patience = waits.connect.min(connect::CONNECT);
    let trust = snapshot.transport.trust.clone();
    let mut dial = Dial::new(dialer, server, trust, patience, keeping.demand);
    dial.owner = keeping.owner.clone();
    dial.alone = keeping.alone;
    dial.answer = Some(AnswerReading {
        pace,
        patience: waits.read,
        body,
    });
    dial
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
