//! The metrics for Prometheus: the counters of the node, and what is collected at a scrape.

use std::sync::Arc;

use mail_proxy::Proto;

use crate::acme::care::DomainCare;
use crate::app::env::AdminEnv;
use crate::node::diagnostics;
use crate::node::limits::{LeaseKind, RequestKind};
use crate::node::metrics::{
    BUSY, CERTIFICATE, CLOCK, DIRECTORY, FAILING_ORDERS, GENERATION, HEALTHY, HELD, HOLDS, KEPT_ROUTES, MEMCACHED,
    NODES, OPEN, READY, REFUSED_DIRECTORY, RETURNING, REVOCATION_LIST, ROUTES, SESSIONS, SHARED_STATE, SYNC,
    ScrapeMetrics, TICKET_KEY, UPTIME, set,
};
use crate::nodes::{Nodes, OrderingNode, Standing};
use crate::tls::TlsState;
use crate::upstream::groups::Health;

/// Everything in Prometheus' text form.
///
/// # Errors
/// Never in practice: all names are good.
pub(super) fn text(env: &AdminEnv) -> prometheus::Result<String> {
    env.metrics.text(|read| fill(read, env))
}

/// What has been counted, as a line for the next process.
pub(crate) fn counts(env: &AdminEnv) -> Vec<u8> {
    env.metrics.counts(|read| fill(read, env)).line()
}

/// Domains of which this node has failed to get a certificate, or one of their names, and at least one while the authority
/// cannot be used; `None`: it orders none.
pub(super) fn failing_orders(env: &AdminEnv) -> Option<usize> {
    env.config.load().acme.as_ref()?;
    let is_ours = |nodes: &Arc<Nodes>| nodes.ordering_node() == OrderingNode::This;
    if !env.nodes.as_ref().is_none_or(is_ours) {
        return None;
    }
    let (authority, domains) = env.care.all();
    let has_failed = |(_, care): &&(String, DomainCare)| care.order.is_some() || !care.names.is_empty();
    let failed = domains.iter().filter(has_failed).count();
    // Where the authority cannot be used, no order of any has begun that could fail.
    Some(failed.max(usize::from(authority.is_some())))
}

fn fill(read: &ScrapeMetrics, env: &AdminEnv) {
    let counters = env.routes.counters();
    for (tier, count) in counters.answers() {
        set(&read.lookups, &[tier], count);
    }
    set(&read.questions, &[], counters.questions());
    for (log, count) in env.lost_lines() {
        set(&read.dropped, &[log], count);
    }
    for (level, count) in diagnostics::left_out() {
        set(&read.left_out, &[level], count);
    }
    for (rule, mode, action, count) in env.throttle.counts() {
        set(&read.throttled, &[rule.name(), mode.name(), action], count);
    }
    for (limit, kind) in [
        ("requests_per_address", RequestKind::Plain),
        ("waiting_requests_per_address", RequestKind::Waits),
    ] {
        set(&read.limited, &[limit], env.limits.refused_requests(kind));
    }
    set(
        &read.limited,
        &["held_bodies"],
        env.limits.refused_leases(LeaseKind::Body),
    );
    read.set(&HELD, &[], env.throttle.waiting() as f64);
    let counts = env.sessions.counts();
    for proto in Proto::ALL {
        for (state, logged_in) in [("logged_in", true), ("other", false)] {
            let count = counts.get(&(proto, logged_in)).copied().unwrap_or(0);
            read.set(&SESSIONS, &[proto.name(), state], count as f64);
        }
    }
    read.set(&OPEN, &[], env.open.count() as f64);
    read.set(&ROUTES, &[], env.routes.len() as f64);
    fill_tls(read, env.snapshot.load().acceptors.state());
    let transport = env.snapshot.load().transport.clone();
    for (server, is_down) in transport.returns.now(transport.pace) {
        read.set(&RETURNING, &[&server, if is_down { "down" } else { "back" }], 1.0);
    }
    let (waited, refused) = transport.returns.counts();
    set(&read.turns, &["waited"], waited);
    set(&read.turns, &["refused"], refused);
    read.set(&HOLDS, &[], env.routes.holds().all().len() as f64);
    if let Some(age) = env.kept_routes.as_ref().and_then(|kept| kept.age()) {
        read.set(&KEPT_ROUTES, &[], age.as_secs_f64());
    }
    read.set(&GENERATION, &[], env.snapshot.load().generation as f64);
    read.set(&READY, &[], if env.not_ready().is_empty() { 1.0 } else { 0.0 });
    read.set(&UPTIME, &[], env.started.elapsed().as_secs_f64());
    for (owner, certificate) in env.certificates().all() {
        read.set(&CERTIFICATE, &[&owner], certificate.seconds_left() as f64);
    }
    for list in env.snapshot.load().revoked.facts() {
        if let Some(left) = list.seconds_left {
            read.set(&REVOCATION_LIST, &[&list.issuer], left as f64);
        }
    }
    if let Some(failing) = failing_orders(env) {
        read.set(&FAILING_ORDERS, &[], failing as f64);
    }
    if let Some(age) = env.directory_age() {
        read.set(&DIRECTORY, &[], age.as_secs_f64());
    }
    if let Some(way) = env.directory_way() {
        read.set(&SYNC, &[], f64::from(u8::from(way.told_by.is_some())));
        set(&read.told, &[], way.told);
    }
    read.set(
        &REFUSED_DIRECTORY,
        &[],
        f64::from(u8::from(env.directory_refusal().is_some())),
    );
    for (server, up) in env.routes.memcached() {
        read.set(&MEMCACHED, &[&server], if up { 1.0 } else { 0.0 });
    }
    if let Some(nodes) = &env.nodes {
        fill_nodes(read, nodes);
    }
    for group in env.groups.all() {
        for state in group.state() {
            let labels = [group.name(), state.server.as_str()];
            read.set(
                &HEALTHY,
                &labels,
                if state.health == Health::Up && !state.maintenance && state.ejected.is_none() {
                    1.0
                } else {
                    0.0
                },
            );
            read.set(&BUSY, &labels, state.busy as f64);
        }
    }
}

/// Handshakes with clients, and the keys of their tickets.
fn fill_tls(read: &ScrapeMetrics, tls: &TlsState) {
    for (protocol, kind, count) in tls.handshakes.all() {
        set(&read.handshakes, &[protocol, kind], count);
    }
    let ring = tls.tickets.in_force();
    read.set(&TICKET_KEY, &[ring.source.name()], ring.age().as_secs_f64());
}

/// What is known of the other nodes.
fn fill_nodes(read: &ScrapeMetrics, nodes: &Nodes) {
    let joined = matches!(nodes.standing(), Standing::Joined { .. });
    read.set(&SHARED_STATE, &[], f64::from(u8::from(joined)));
    if let Some(ahead) = nodes.clock_ahead() {
        read.set(&CLOCK, &[], ahead as f64 / 1000.0);
    }
    let (failures, unfit) = nodes.counts();
    set(&read.shared_failures, &["engine"], failures);
    set(&read.shared_failures, &["text"], unfit);
    let members = nodes.members();
    let silent = members.iter().filter(|member| member.silent.is_some()).count();
    read.set(&NODES, &["awake"], (members.len() - silent) as f64);
    read.set(&NODES, &["silent"], silent as f64);
}
