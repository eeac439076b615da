//! The metrics for Prometheus: the counters of the node, and what is collected at a scrape.

use mail_proxy::Proto;

use crate::app::App;
use crate::node::diagnostics;
use crate::node::metrics::{
    BUSY, CERTIFICATE, DIRECTORY, GENERATION, HEALTHY, MEMCACHED, OPEN, READY, REFUSED_DIRECTORY, ROUTES, SESSIONS,
    ScrapeMetrics, UPTIME, set,
};
use crate::upstream::groups::Health;

/// Everything in Prometheus' text form.
///
/// # Errors
/// Never in practice: all names are good.
pub(super) fn text(app: &App) -> prometheus::Result<String> {
    app.metrics.text(|read| fill(read, app))
}

fn fill(read: &ScrapeMetrics, app: &App) {
    let counters = app.routes.counters();
    for (tier, count) in counters.answers() {
        set(&read.lookups, &[tier], count);
    }
    set(&read.questions, &[], counters.questions());
    for (log, count) in app.lost_lines() {
        set(&read.dropped, &[log], count);
    }
    for (level, count) in diagnostics::left_out() {
        set(&read.left_out, &[level], count);
    }
    let counts = app.sessions.counts();
    for proto in Proto::ALL {
        for (state, logged_in) in [("logged_in", true), ("other", false)] {
            let count = counts.get(&(proto, logged_in)).copied().unwrap_or(0);
            read.set(&SESSIONS, &[proto.name(), state], count as f64);
        }
    }
    read.set(&OPEN, &[], app.open.count() as f64);
    read.set(&ROUTES, &[], app.routes.len() as f64);
    read.set(&GENERATION, &[], app.snapshot.load().generation as f64);
    read.set(&READY, &[], if app.not_ready().is_empty() { 1.0 } else { 0.0 });
    read.set(&UPTIME, &[], app.started.elapsed().as_secs_f64());
    for (owner, certificate) in app.certificates().all() {
        read.set(&CERTIFICATE, &[&owner], certificate.seconds_left() as f64);
    }
    if let Some(age) = app.directory_age() {
        read.set(&DIRECTORY, &[], age.as_secs_f64());
    }
    read.set(
        &REFUSED_DIRECTORY,
        &[],
        f64::from(u8::from(app.directory_refusal().is_some())),
    );
    for (server, up) in app.routes.memcached() {
        read.set(&MEMCACHED, &[&server], if up { 1.0 } else { 0.0 });
    }
    for group in app.groups.all() {
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
