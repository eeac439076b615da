//! The node's health for machines, its servers and its certificates for people.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use openssl::x509::{X509NameRef, X509Ref};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::acme::care::{DomainCare, Setback};
use crate::admin::api_error::ApiError;
use crate::admin::caller::Caller;
use crate::admin::{act, scrape};
use crate::app::acme_orders::at;
use crate::app::certificates as in_use;
use crate::app::env::AdminEnv;
use crate::nodes::OrderingNode;
use crate::tls::asn1_time::seconds_until;
use crate::tls::certificate::{CertKey, fingerprint_text, names_in};
use crate::upstream::groups::{self, Health};

/// Seconds of a day.
const DAY: i64 = 86_400;
/// Heaviest share of requests.
const MAX_WEIGHT: u32 = 1000;

/// Returns the metrics of this node, in the text format of Prometheus.
#[utoipa::path(get, path = "/metrics", responses((status = 200, content_type = "text/plain", body = String)))]
pub(crate) async fn metrics(State(env): State<Arc<AdminEnv>>) -> Response {
    env.metrics.settled().await;
    match scrape::text(&env) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Returns 200 while the process runs.
#[utoipa::path(get, path = "/healthz", responses((status = 200, content_type = "text/plain", body = String)))]
pub(crate) async fn alive() -> &'static str {
    "alive\n"
}

/// Returns whether the node is ready for new clients: the directory was read, the listeners are open, and the node is
/// not being drained.
#[utoipa::path(get, path = "/readyz", responses(
    (status = 200, content_type = "text/plain", body = String),
    (status = 503, description = "The reasons, one per line", content_type = "text/plain", body = String),
))]
pub(crate) async fn ready(State(env): State<Arc<AdminEnv>>) -> Response {
    let reasons = env.not_ready();
    match reasons.is_empty() {
        true => "ready\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n").into_response(),
    }
}

/// All servers of all groups.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Upstreams {
    /// By group.
    pub upstreams: Vec<UpstreamState>,
}

/// A server of a group.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = Upstream)]
pub(crate) struct UpstreamState {
    /// The group.
    pub group: String,
    /// Name of the server's entry, or its host.
    pub server: String,
    /// Its address and port.
    pub address: String,
    /// `up`, `not_ready` (the server's own answer) or `unreachable`.
    pub health: String,
    /// Why the last failed check failed.
    pub why: Option<String>,
    /// An administrator has put it into maintenance.
    pub maintenance: bool,
    /// Seconds for which it still gets no requests, because it failed to answer one.
    pub ejected: Option<u64>,
    /// Its weight.
    pub weight: u32,
    /// Requests in progress.
    pub busy: u64,
    /// Requests sent to it so far.
    pub requests: u64,
}

/// Lists the servers of all groups, with their health.
#[utoipa::path(get, path = "/v1/upstreams", responses((status = 200, body = Upstreams)))]
pub(crate) async fn upstreams(State(env): State<Arc<AdminEnv>>) -> Json<Upstreams> {
    let groups = env.groups.all();
    let of_group = |group: &Arc<groups::Group>| {
        let name = group.name().to_owned();
        group
            .state()
            .into_iter()
            .map(move |state| UpstreamState::new(&name, state))
    };
    Json(Upstreams {
        upstreams: groups.iter().flat_map(of_group).collect(),
    })
}

impl UpstreamState {
    fn new(group: &str, state: groups::ServerState) -> Self {
        let health = match state.health {
            Health::Up => "up",
            Health::NotReady => "not_ready",
            Health::Unreachable => "unreachable",
        };
        Self {
            group: group.to_owned(),
            server: state.server,
            address: state.address.to_string(),
            health: health.to_owned(),
            why: state.why,
            maintenance: state.maintenance,
            ejected: state.ejected.map(|left| left.as_secs()),
            weight: state.weight,
            busy: state.busy as u64,
            requests: state.requests,
        }
    }
}

/// What to change of a server. Absent fields stay as they are.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct UpstreamOrder {
    /// Start or end maintenance.
    #[serde(default)]
    pub maintenance: Option<bool>,
    /// The new weight; 0: the configured one.
    #[serde(default)]
    pub weight: Option<u32>,
}

/// Puts a server of a group into maintenance, where it gets no unauthenticated requests, or sets its weight, until the
/// process ends. Requests of accounts whose mailbox is on it still go there.
#[utoipa::path(put, path = "/v1/upstreams/{group}/{server}", request_body = UpstreamOrder, params(
    ("group" = String, Path, description = "The group"),
    ("server" = String, Path, description = "Name of the server's entry, or its host"),
), responses(
    (status = 200, body = Upstreams),
    (status = 400, body = ApiError),
    (status = 404, body = ApiError),
))]
pub(crate) async fn order_upstream(
    State(env): State<Arc<AdminEnv>>,
    Extension(caller): Extension<Caller>,
    Path((group, server)): Path<(String, String)>,
    Json(order): Json<UpstreamOrder>,
) -> Result<Json<Upstreams>, ApiError> {
    if order.maintenance.is_none() && order.weight.is_none() {
        return Err(ApiError::bad("expected maintenance or weight"));
    }
    if order.weight.is_some_and(|weight| weight > MAX_WEIGHT) {
        return Err(ApiError::bad(format!("a weight is at most {MAX_WEIGHT}")));
    }
    let missing = || ApiError::new(StatusCode::NOT_FOUND, format!("group {group} has no server {server}"));
    let found = env.groups.get(&group).ok_or_else(missing)?;
    let mut acts = Vec::new();
    if let Some(on) = order.maintenance {
        found.set_maintenance(&server, on).then_some(()).ok_or_else(missing)?;
        acts.push(if on {
            "maintenance on".to_owned()
        } else {
            "maintenance off".to_owned()
        });
    }
    if let Some(weight) = order.weight {
        let chosen = Some(weight).filter(|weight| *weight > 0);
        found.set_weight(&server, chosen).then_some(()).ok_or_else(missing)?;
        acts.push(chosen.map_or("weight as configured".to_owned(), |weight| format!("weight {weight}")));
    }
    act::audit(
        &env,
        caller,
        format!("upstream {server} in {group}: {}", acts.join(", ")),
    );
    let state = found.state().into_iter().filter(|state| state.server == server);
    Ok(Json(Upstreams {
        upstreams: state.map(|state| UpstreamState::new(&group, state)).collect(),
    }))
}

/// All certificates in use.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Certificates {
    /// Those that expire first come first.
    pub certificates: Vec<Certificate>,
    /// Domains for which the ACME authority is asked, by name.
    pub orders: Vec<CertificateOrders>,
    /// Why the ACME authority cannot be used, if it cannot.
    pub authority: Option<FailedOrder>,
    /// The node that orders for all, where nodes know of each other (`shared_state`) and one does. What has failed is known
    /// there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordered_by: Option<String>,
}

/// A domain for which the ACME authority is asked.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct CertificateOrders {
    /// Its name.
    pub domain: String,
    /// When its certificate is renewed, if it has one from the authority.
    pub renews: Option<String>,
    /// Why its last order has failed, if it has.
    pub failed: Option<FailedOrder>,
    /// Its names that get no certificate.
    pub names: Vec<FailedName>,
}

/// Why an order has failed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct FailedOrder {
    /// The reason.
    pub why: String,
    /// When there is another one.
    pub again: String,
}

/// A name that gets no certificate.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct FailedName {
    /// The name.
    pub name: String,
    /// The reason.
    pub why: String,
    /// When it is tried again; absent: not before something is changed.
    pub again: Option<String>,
}

/// A certificate.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Certificate {
    /// What it is used for: `default`, or the domain.
    pub used_for: String,
    /// Where it comes from: `acme` (the authority of the node file), `directory` or `files`.
    pub source: String,
    /// Subject.
    pub subject: String,
    /// Issuer.
    pub issuer: String,
    /// SHA-256 fingerprint, in hexadecimal.
    pub fingerprint: String,
    /// Names that it is valid for.
    pub names: Vec<String>,
    /// When it expires.
    pub not_after: String,
    /// Days until then; negative if it has expired.
    pub days_left: i64,
}

/// Lists the certificates in use on the listeners.
#[utoipa::path(get, path = "/v1/certificates", responses((status = 200, body = Certificates)))]
pub(crate) async fn certificates(State(env): State<Arc<AdminEnv>>) -> Json<Certificates> {
    let (store, system) = (env.certificates(), env.snapshot.load().system.clone());
    let source = |owner: &str, pair: &CertKey| {
        let domain = owner.strip_prefix("domain ").and_then(|name| system.domain(name));
        match domain {
            Some(domain) => in_use::source(&domain, pair),
            None if env.config.load().tls.default.is_some() => "files",
            None => "directory",
        }
    };
    let mut certificates: Vec<Certificate> = store
        .all()
        .into_iter()
        .map(|(owner, pair)| {
            let source = source(&owner, pair);
            Certificate::new(owner, pair, source)
        })
        .collect();
    certificates.sort_by(|one, other| (one.days_left, &one.used_for).cmp(&(other.days_left, &other.used_for)));
    let (authority, cared_for) = env.care.all();
    Json(Certificates {
        certificates,
        orders: cared_for.into_iter().map(CertificateOrders::new).collect(),
        authority: authority.map(FailedOrder::new),
        ordered_by: env.nodes.as_ref().and_then(|nodes| match nodes.ordering_node() {
            OrderingNode::This => Some(nodes.name().to_owned()),
            OrderingNode::Other(node) => Some(node),
            OrderingNode::Nobody => None,
        }),
    })
}

impl CertificateOrders {
    fn new((domain, care): (String, DomainCare)) -> Self {
        let barred = care
            .barred
            .into_iter()
            .map(|(name, why)| FailedName { name, why, again: None });
        let refused = care.names.into_iter().map(|(name, setback)| FailedName {
            name,
            why: setback.why,
            again: Some(at(setback.until)),
        });
        Self {
            domain,
            renews: care.renews.map(at),
            failed: care.order.map(FailedOrder::new),
            names: barred.chain(refused).collect(),
        }
    }
}

impl FailedOrder {
    fn new(setback: Setback) -> Self {
        Self {
            why: setback.why,
            again: at(setback.until),
        }
    }
}

impl Certificate {
    /// The facts of a certificate.
    pub(crate) fn new(used_for: String, pair: &CertKey, source: &str) -> Self {
        let facts = LeafFacts::of(pair.leaf());
        Self {
            used_for,
            source: source.to_owned(),
            subject: facts.subject,
            issuer: facts.issuer,
            fingerprint: facts.fingerprint,
            names: facts.names,
            not_after: facts.not_after,
            days_left: facts.days_left,
        }
    }
}

/// What answers say of any certificate.
pub(super) struct LeafFacts {
    pub(super) subject: String,
    pub(super) issuer: String,
    pub(super) fingerprint: String,
    pub(super) names: Vec<String>,
    pub(super) not_after: String,
    pub(super) days_left: i64,
}

impl LeafFacts {
    pub(super) fn of(leaf: &X509Ref) -> Self {
        Self {
            subject: distinguished(leaf.subject_name()),
            issuer: distinguished(leaf.issuer_name()),
            fingerprint: fingerprint_text(leaf),
            names: names_in(leaf),
            not_after: leaf.not_after().to_string(),
            days_left: seconds_until(leaf.not_after()).unwrap_or(0).div_euclid(DAY),
        }
    }
}

/// A name of a certificate as people write it.
fn distinguished(name: &X509NameRef) -> String {
    let parts = name.entries().map(|entry| {
        let value = entry.data().to_string().unwrap_or_default();
        format!("{}={value}", entry.object().nid().short_name().unwrap_or("?"))
    });
    parts.collect::<Vec<_>>().join(", ")
}
