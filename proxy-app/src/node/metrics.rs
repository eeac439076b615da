//! What is counted and measured, for Prometheus.
//!
//! Every metric stands in one table with its labels; docs/metrics.md explains each. No metric names an account, and
//! labels that come from configurations are bounded. Counting holds no lock for long; what other modules know already
//! (sessions, health, ages) is collected at a scrape, and what previous processes have counted is added.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mail_proxy::audit::{Event, Outcome, Phase, Record};
use mail_proxy::{Proto, Totals};
use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry, TextEncoder,
};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::node::metrics::previous::{Counts, PreviousCounts};
use crate::node::refusals::Reason;

pub(crate) mod previous;

/// How long a scrape waits for what a previous process has counted. It tells at once, or not at all.
const PREVIOUS: Duration = Duration::from_secs(2);

/// Most values of a label that names servers; what is beyond is `other`.
const MAX_SERVERS: usize = 256;

/// Upper ends of the histograms of phases, in seconds: from an answer out of memory to the longest wait there is.
const BUCKETS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Phases, as labels, in the order of [`Phase`].
const PHASES: [&str; 5] = ["accept", "tls", "lookup", "connect", "login"];

/// One metric.
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Its help text.
    pub help: &'static str,
    /// Its labels.
    pub labels: &'static [&'static str],
}

const fn metric(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, help, labels }
}

const ACCEPTED: Metric = metric("portico_connections_total", &["listener"], "Accepted connections.");
const REFUSED: Metric = metric(
    "portico_connections_refused_total",
    &["listener", "reason"],
    "Connections refused before any command or request: no PROXY header (proxy), no TLS (tls), a network that is not allowed (network), or a limit (connections, per_address, mail_per_address, handshakes).",
);
const REQUESTS_REFUSED: Metric = metric(
    "portico_requests_refused_total",
    &["listener", "reason"],
    "Web requests refused before they were parsed and routed, and wrong tokens of the admin API.",
);
const REQUESTS_LIMITED: Metric = metric(
    "portico_requests_limited_total",
    &["limit"],
    "Web requests refused with 503 because their address has as many under way as it may have: requests_per_address; WebSockets, waiting_requests_per_address; and logins whose body cannot be held, held_bodies.",
);
const PHASE: Metric = metric(
    "portico_phase_seconds",
    &["protocol", "phase"],
    "Duration of each phase of a login: accept (to the PROXY header), tls, lookup, connect, login.",
);
const TLS_HANDSHAKES: Metric = metric(
    "portico_tls_handshakes_total",
    &["protocol", "kind"],
    "TLS handshakes with clients that came to their end: full ones, and those that resumed a session.",
);
pub(crate) const TICKET_KEY: Metric = metric(
    "portico_tls_ticket_key_age_seconds",
    &["source"],
    "Time since the key of TLS session tickets in force makes them, by where keys come from: file, shared_state or own.",
);
const LOGINS: Metric = metric(
    "portico_logins_total",
    &["protocol", "outcome"],
    "Login attempts by outcome, as in the audit log.",
);
pub(crate) const THROTTLED: Metric = metric(
    "portico_throttled_total",
    &["rule", "mode", "action"],
    "Login attempts that a rule of the throttle has delayed or refused, or would have in dry run.",
);
pub(crate) const HELD: Metric = metric(
    "portico_throttle_waiting",
    &[],
    "Login attempts that the throttle delays now.",
);
const POLICY: Metric = metric(
    "portico_policy_requests_total",
    &["command", "result"],
    "Questions (allow) and reports (report) for the policy service of throttle.policy: passed, delayed, refused, told; failed, or skipped while it is left alone after failures; lost where too many reports waited.",
);
const CONNECTS: Metric = metric(
    "portico_upstream_connects_total",
    &["upstream", "outcome"],
    "Connections to mailbox servers for mail, and failed ones for the web, by outcome: ok or failed.",
);
const WEB: Metric = metric(
    "portico_web_requests_total",
    &["group", "class"],
    "Web requests by group of servers and status class.",
);
const BYTES: Metric = metric(
    "portico_relay_bytes_total",
    &["protocol", "direction"],
    "Bytes relayed in logged-in sessions and WebSockets, from clients (in) and to them (out).",
);
const LOOKUPS: Metric = metric(
    "portico_lookups_total",
    &["tier"],
    "Lookups by the tier that answered; nobody and failed where there was no route.",
);
const QUESTIONS: Metric = metric(
    "portico_directory_questions_total",
    &[],
    "Account lookups sent to the directory or to the lookup services.",
);
const TOLD: Metric = metric(
    "portico_directory_changes_told_total",
    &[],
    "Changes of entries that LDAP servers told as they happened.",
);
const DROPPED: Metric = metric(
    "portico_log_dropped_lines_total",
    &["log"],
    "Log lines dropped because the disk or pipe was too slow or full.",
);
const LEFT_OUT: Metric = metric(
    "portico_log_left_out_lines_total",
    &["level"],
    "Lines of the diagnostic log suppressed because one place in the source wrote too many.",
);
pub(crate) const SESSIONS: Metric = metric(
    "portico_sessions",
    &["protocol", "state"],
    "Open sessions and connections by state: logged_in or other.",
);
pub(crate) const OPEN: Metric = metric(
    "portico_connections_open",
    &[],
    "Open connections of all kinds, those in a handshake included.",
);
pub(crate) const ROUTES: Metric = metric("portico_routes", &[], "Names and ids in the route cache.");
pub(crate) const HOLDS: Metric = metric(
    "portico_holds",
    &[],
    "Holds: accounts, domains and servers whose new logins wait.",
);
pub(crate) const RETURNING: Metric = metric(
    "portico_servers_returning",
    &["upstream", "state"],
    "Mailbox servers whose logins are let in at a pace: down, or back since a short while.",
);
const RETURN_TURNS: Metric = metric(
    "portico_return_turns_total",
    &["outcome"],
    "Logins at servers that were down which waited for their turn, or got none: waited or refused.",
);
pub(crate) const KEPT_ROUTES: Metric = metric(
    "portico_kept_routes_age_seconds",
    &[],
    "Time since this process wrote the file that keeps its routes.",
);
pub(crate) const GENERATION: Metric = metric("portico_generation", &[], "Number of the configuration in force.");
pub(crate) const READY: Metric = metric("portico_ready", &[], "1 if the node is ready for new clients.");
pub(crate) const UPTIME: Metric = metric("portico_uptime_seconds", &[], "Time since the process started.");
pub(crate) const CERTIFICATE: Metric = metric(
    "portico_certificate_expiry_seconds",
    &["certificate"],
    "Time until a certificate expires; negative if it has expired.",
);
pub(crate) const REVOCATION_LIST: Metric = metric(
    "portico_revocation_list_expiry_seconds",
    &["issuer"],
    "Time until a newer list of revoked client certificates must be there; negative if it should be already.",
);
pub(crate) const FAILING_ORDERS: Metric = metric(
    "portico_certificate_orders_failing",
    &[],
    "Domains whose last order of a certificate has failed.",
);
pub(crate) const DIRECTORY: Metric = metric(
    "portico_directory_age_seconds",
    &[],
    "Time since the directory was last read successfully.",
);
pub(crate) const REFUSED_DIRECTORY: Metric = metric(
    "portico_directory_refused",
    &[],
    "1 if the latest reading of the directory was refused and is not in force.",
);
pub(crate) const SYNC: Metric = metric(
    "portico_directory_sync",
    &[],
    "1 if an LDAP server tells changes as they happen, 0 if they are looked for.",
);
pub(crate) const MEMCACHED: Metric = metric(
    "portico_memcached_up",
    &["upstream"],
    "1 if the server answered when it was last used.",
);
pub(crate) const SHARED_STATE: Metric = metric(
    "portico_shared_state_up",
    &[],
    "1 if the engine of shared_state answers; 0 while this node goes on alone.",
);
pub(crate) const SHARED_FAILURES: Metric = metric(
    "portico_shared_state_failures_total",
    &["kind"],
    "Failures of the engine of shared_state (engine), and texts in it that were not what they should be (text).",
);
pub(crate) const CLOCK: Metric = metric(
    "portico_shared_state_clock_ahead_seconds",
    &[],
    "How far the clock of this machine is ahead of that of the engine of shared_state.",
);
pub(crate) const NODES: Metric = metric(
    "portico_nodes",
    &["state"],
    "Nodes that this one knows of, itself included: awake, or silent.",
);
pub(crate) const HEALTHY: Metric = metric(
    "portico_upstream_healthy",
    &["group", "upstream"],
    "1 if the server gets unauthenticated requests: checks pass, no maintenance, not ejected.",
);
pub(crate) const BUSY: Metric = metric(
    "portico_upstream_busy",
    &["group", "upstream"],
    "Requests in progress at the server.",
);

/// All there are.
pub const ALL: &[&Metric] = &[
    &ACCEPTED,
    &REFUSED,
    &REQUESTS_REFUSED,
    &REQUESTS_LIMITED,
    &PHASE,
    &TLS_HANDSHAKES,
    &TICKET_KEY,
    &LOGINS,
    &THROTTLED,
    &POLICY,
    &HELD,
    &CONNECTS,
    &WEB,
    &BYTES,
    &LOOKUPS,
    &QUESTIONS,
    &TOLD,
    &DROPPED,
    &LEFT_OUT,
    &SESSIONS,
    &OPEN,
    &ROUTES,
    &HOLDS,
    &RETURNING,
    &RETURN_TURNS,
    &KEPT_ROUTES,
    &GENERATION,
    &READY,
    &UPTIME,
    &CERTIFICATE,
    &REVOCATION_LIST,
    &FAILING_ORDERS,
    &DIRECTORY,
    &REFUSED_DIRECTORY,
    &SYNC,
    &MEMCACHED,
    &SHARED_STATE,
    &SHARED_FAILURES,
    &CLOCK,
    &NODES,
    &HEALTHY,
    &BUSY,
];

/// The classes of a status, as a label has them.
const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// The counters of the web requests of a group, by class: found once, not by their labels for each request.
#[derive(Default)]
pub(crate) struct WebAnswers([OnceLock<IntCounter>; CLASSES.len()]);

/// The counters of this process.
pub(crate) struct Metrics {
    registry: Registry,
    accepted: IntCounterVec,
    refused: IntCounterVec,
    requests_refused: IntCounterVec,
    phases: [[Histogram; PHASES.len()]; Proto::ALL.len()],
    logins: IntCounterVec,
    policy: IntCounterVec,
    connects: IntCounterVec,
    web: IntCounterVec,
    own_answers: WebAnswers,
    /// Servers that have a label of their own.
    servers: Mutex<HashSet<String>>,
    /// Bytes by protocol.
    pub bytes: [Arc<Totals>; Proto::ALL.len()],
    scraped: Mutex<ScrapeMetrics>,
    previous: Mutex<PreviousCounts>,
    /// Whether a previous process has not told yet what it has counted.
    awaits_previous: watch::Sender<bool>,
}

/// What is filled in at a scrape.
pub(crate) struct ScrapeMetrics {
    bytes: IntCounterVec,
    pub(crate) lookups: IntCounterVec,
    pub(crate) questions: IntCounterVec,
    pub(crate) told: IntCounterVec,
    pub(crate) dropped: IntCounterVec,
    pub(crate) throttled: IntCounterVec,
    pub(crate) limited: IntCounterVec,
    pub(crate) left_out: IntCounterVec,
    pub(crate) shared_failures: IntCounterVec,
    pub(crate) turns: IntCounterVec,
    pub(crate) handshakes: IntCounterVec,
    gauges: Vec<(&'static str, GaugeVec)>,
}

/// Why a connection was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It should have begun with a PROXY header.
    Proxy,
    /// The handshake failed.
    Tls,
    /// Its network may not ask here.
    Network,
    /// There are too many.
    Connections,
    /// Another one needed its place.
    Evicted,
    /// There are too many from its address.
    PerAddress,
    /// There are too many mail connections from its address.
    MailPerAddress,
    /// There are too many in a handshake.
    Handshakes,
}

impl Metrics {
    /// All at zero.
    ///
    /// # Errors
    /// Never in practice: the table holds no name twice.
    pub(crate) fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let counters = |metric: &Metric| -> prometheus::Result<IntCounterVec> {
            register(
                &registry,
                IntCounterVec::new(Opts::new(metric.name, metric.help), metric.labels)?,
            )
        };
        let options = HistogramOpts::new(PHASE.name, PHASE.help).buckets(BUCKETS.to_vec());
        let phases = register(&registry, HistogramVec::new(options, PHASE.labels)?)?;
        let gauges = [
            &SESSIONS,
            &HELD,
            &OPEN,
            &ROUTES,
            &HOLDS,
            &RETURNING,
            &KEPT_ROUTES,
            &GENERATION,
            &READY,
            &UPTIME,
            &CERTIFICATE,
            &REVOCATION_LIST,
            &FAILING_ORDERS,
            &TICKET_KEY,
            &DIRECTORY,
            &REFUSED_DIRECTORY,
            &SYNC,
            &MEMCACHED,
            &SHARED_STATE,
            &CLOCK,
            &NODES,
            &HEALTHY,
            &BUSY,
        ];
        let gauge = |metric: &Metric| -> prometheus::Result<(&'static str, GaugeVec)> {
            let gauge = GaugeVec::new(Opts::new(metric.name, metric.help), metric.labels)?;
            Ok((metric.name, register(&registry, gauge)?))
        };
        Ok(Self {
            accepted: counters(&ACCEPTED)?,
            refused: counters(&REFUSED)?,
            requests_refused: counters(&REQUESTS_REFUSED)?,
            phases: Proto::ALL.map(|proto| PHASES.map(|phase| phases.with_label_values(&[proto.name(), phase]))),
            logins: counters(&LOGINS)?,
            policy: counters(&POLICY)?,
            connects: counters(&CONNECTS)?,
            web: counters(&WEB)?,
            own_answers: WebAnswers::default(),
            servers: Mutex::default(),
            bytes: Default::default(),
            scraped: Mutex::new(ScrapeMetrics {
                bytes: counters(&BYTES)?,
                lookups: counters(&LOOKUPS)?,
                questions: counters(&QUESTIONS)?,
                told: counters(&TOLD)?,
                dropped: counters(&DROPPED)?,
                throttled: counters(&THROTTLED)?,
                limited: counters(&REQUESTS_LIMITED)?,
                left_out: counters(&LEFT_OUT)?,
                shared_failures: counters(&SHARED_FAILURES)?,
                turns: counters(&RETURN_TURNS)?,
                handshakes: counters(&TLS_HANDSHAKES)?,
                gauges: gauges.map(gauge).into_iter().collect::<Result<_, _>>()?,
            }),
            previous: Mutex::default(),
            awaits_previous: watch::Sender::new(false),
            registry,
        })
    }

    /// The counter of a listener's connections.
    pub(crate) fn accepted(&self, listener: &str) -> IntCounter {
        self.accepted.with_label_values(&[listener])
    }

    /// A connection was refused before any command or request.
    pub(crate) fn refused(&self, listener: &str, why: Refused) {
        let reason = match why {
            Refused::Proxy => "proxy",
            Refused::Tls => "tls",
            Refused::Network => "network",
            Refused::Connections => "connections",
            Refused::Evicted => "evicted",
            Refused::PerAddress => "per_address",
            Refused::MailPerAddress => "mail_per_address",
            Refused::Handshakes => "handshakes",
        };
        self.refused.with_label_values(&[listener, reason]).inc();
    }

    /// A request was refused before anything was known of it.
    pub(crate) fn request_refused(&self, listener: &str, why: Reason) {
        self.requests_refused.with_label_values(&[listener, why.name()]).inc();
    }

    /// The counter of what the policy service is asked and told.
    pub(crate) fn policy(&self) -> IntCounterVec {
        self.policy.clone()
    }

    /// A part of a login took this long.
    pub(crate) fn phase(&self, phase: Phase, proto: Proto, took: Duration) {
        self.phases[proto as usize][phase as usize].observe(took.as_secs_f64());
    }

    /// Where the bytes of a protocol are added up.
    pub(crate) fn totals(&self, proto: Proto) -> Arc<Totals> {
        self.bytes[proto as usize].clone()
    }

    /// A record for the audit log.
    pub(crate) fn record(&self, record: &Record) {
        if !matches!(record.event, Some(Event::Login | Event::WebLogin)) {
            return;
        }
        let proto = record.proto.map_or("", Proto::name);
        let outcome = record.outcome.map_or(Outcome::Ended.name(), Outcome::name);
        self.logins.with_label_values(&[proto, outcome]).inc();
    }

    /// A mailbox server was connected to, or could not be.
    pub(crate) fn connected(&self, server: &str, ok: bool) {
        let outcome = if ok { "ok" } else { "failed" };
        self.connects
            .with_label_values(&[self.server_label(server), outcome])
            .inc();
    }

    /// A web request was answered.
    pub(crate) fn web_request(&self, group: &str, answers: &WebAnswers, status: u16) {
        let class = match status / 100 {
            class @ 1..=5 => usize::from(class),
            _ => 0,
        };
        let counter = answers.0[class].get_or_init(|| self.web.with_label_values(&[group, CLASSES[class]]));
        counter.inc();
    }

    /// A web request got an answer of our own, or none.
    pub(crate) fn own_answer(&self, status: u16) {
        self.web_request("none", &self.own_answers, status);
    }

    /// The name of a server, or `other` where there are too many.
    fn server_label<'a>(&self, server: &'a str) -> &'a str {
        let mut servers = self.servers.lock();
        if servers.contains(server) {
            return server;
        }
        if servers.len() == MAX_SERVERS {
            return "other";
        }
        servers.insert(server.to_owned());
        server
    }

    /// Everything in Prometheus' text form. `fill` sets what is collected at a scrape.
    ///
    /// # Errors
    /// Never in practice: all names are valid.
    pub(crate) fn text(&self, fill: impl FnOnce(&ScrapeMetrics)) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.gather(fill))
    }

    /// What has been counted here and in previous processes, for the next one.
    pub(crate) fn counts(&self, fill: impl FnOnce(&ScrapeMetrics)) -> Counts {
        Counts::of(&self.gather(fill))
    }

    fn gather(&self, fill: impl FnOnce(&ScrapeMetrics)) -> Vec<MetricFamily> {
        let scraped = self.scraped.lock();
        for (proto, totals) in Proto::ALL.iter().zip(&self.bytes) {
            let (bytes_in, bytes_out) = totals.bytes();
            set(&scraped.bytes, &[proto.name(), "in"], bytes_in);
            set(&scraped.bytes, &[proto.name(), "out"], bytes_out);
        }
        // Values of servers that are gone must not stay.
        scraped.gauges.iter().for_each(|(_, gauge)| gauge.reset());
        fill(&scraped);
        self.previous.lock().add_to(self.registry.gather())
    }

    /// What the previous process has counted is yet to come, and scrapes wait for it: a counter that begins at zero and
    /// then jumps would look like that many events.
    pub(crate) fn await_previous(&self) {
        self.awaits_previous.send_replace(true);
    }

    /// What the previous process has counted; `None`: it tells nothing more.
    pub(crate) fn take_previous(&self, counts: Option<Counts>) {
        if let Some(counts) = counts {
            let mut previous = self.previous.lock();
            previous.take(counts);
            // Servers that had a label keep it.
            let mut servers = self.servers.lock();
            let left = MAX_SERVERS.saturating_sub(servers.len());
            servers.extend(previous.values(CONNECTS.name, "upstream").take(left).cloned());
        }
        self.awaits_previous.send_replace(false);
    }

    /// Resolves when the counters are those of the node and not of this process alone.
    pub(crate) async fn settled(&self) {
        let mut awaits = self.awaits_previous.subscribe();
        // Without an answer they begin at zero, as after a start.
        let _late = timeout(PREVIOUS, awaits.wait_for(|awaits| !awaits)).await;
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> prometheus::Result<C> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

impl ScrapeMetrics {
    /// Sets a gauge.
    pub(crate) fn set(&self, metric: &Metric, labels: &[&str], value: f64) {
        let gauge = self.gauges.iter().find(|(name, _)| *name == metric.name);
        if let Some((_, gauge)) = gauge {
            gauge.with_label_values(labels).set(value);
        }
    }
}

/// Brings a counter up to a count that is kept elsewhere.
pub(crate) fn set(counter: &IntCounterVec, labels: &[&str], value: u64) {
    let counter = counter.with_label_values(labels);
    counter.inc_by(value.saturating_sub(counter.get()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_good_and_counting_counts() {
        let metrics = Metrics::new().unwrap();
        metrics.accepted("127.0.0.1:993").inc();
        metrics.refused("127.0.0.1:993", Refused::Tls);
        metrics.phase(Phase::Lookup, Proto::Imap, Duration::from_millis(3));
        metrics.web_request("mailbox", &WebAnswers::default(), 304);
        for i in 0..1000 {
            metrics.connected(&format!("10.0.0.{i}:7993"), false);
        }
        metrics.record(&Record {
            event: Some(Event::Login),
            proto: Some(Proto::Imap),
            user: Some("alice@a.test".to_owned()),
            outcome: Some(Outcome::BadCredentials),
            ..Record::default()
        });
        let text = TextEncoder::new().encode_to_string(&metrics.registry.gather()).unwrap();
        for line in [
            "portico_connections_total{listener=\"127.0.0.1:993\"} 1",
            "portico_connections_refused_total{listener=\"127.0.0.1:993\",reason=\"tls\"} 1",
            "portico_phase_seconds_bucket{phase=\"lookup\",protocol=\"imap\",le=\"0.0025\"} 0",
            "portico_phase_seconds_bucket{phase=\"lookup\",protocol=\"imap\",le=\"0.005\"} 1",
            "portico_logins_total{outcome=\"bad_credentials\",protocol=\"imap\"} 1",
            "portico_web_requests_total{class=\"3xx\",group=\"mailbox\"} 1",
            "portico_upstream_connects_total{outcome=\"failed\",upstream=\"other\"} 744",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
        assert!(!text.contains("alice"), "{text}");
        let names: HashSet<&str> = ALL.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), ALL.len());
    }
}
