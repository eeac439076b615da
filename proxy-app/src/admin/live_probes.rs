//! What clients see of the names of a domain at this node, over the admin API: a look, which changes nothing.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::{StatusCode, Uri};
use openssl::x509::X509Ref;
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;
use utoipa::ToSchema;

use crate::admin::api_error::ApiError;
use crate::admin::caller::Caller;
use crate::admin::health::LeafFacts;
use crate::app::env::AdminEnv;
use crate::app::live_probe::{ProbeAsker, ProbePlan, ProbeRefusal, SeenListener, SeenName, TURN_WAIT, WHOLE_WAIT};
use crate::nodes::ANSWERS;
use crate::tls::certificate::fingerprint_text;

/// How long a node has for it, as others see it: for its turn, for the look itself, and for its answer to come.
pub(super) const PROBED: Duration = TURN_WAIT.saturating_add(WHOLE_WAIT).saturating_add(ANSWERS);
/// Addresses of a name, and names in its place, that are listed: anybody may have written them.
const RECORDS: usize = 16;
/// Names of a certificate that are listed: it may come from anybody.
const NAMES: usize = 100;

/// Whose names to look at.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ProbeQuery {
    /// A domain, by its name or by one of its virtual host names.
    name: String,
}

/// What a client sees of the names of a domain.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub(crate) struct LiveProbe {
    /// The domain.
    pub domain: String,
    /// Its virtual host names, in alphabetical order; at most 50.
    pub names: Vec<ProbedName>,
    /// How many more it has.
    pub more: u64,
    /// The certificates that were shown.
    pub certificates: Vec<ProbedCertificate>,
}

/// A virtual host name as clients see it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct ProbedName {
    /// The name, or a pattern `*.name`.
    pub name: String,
    /// The name that was looked for in place of a pattern.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<String>,
    /// Its addresses, as the resolvers of this node know them (`acme.resolvers`, or the system's); at most 16.
    pub addresses: Vec<String>,
    /// The names that stand in its place there (CNAME records), in the order in which they were answered; at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// How many more addresses and such names there are.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_records: u64,
    /// Why there are no addresses.
    pub dns_problem: Option<String>,
    /// What each TLS listener for web and mail clients shows for it.
    pub listeners: Vec<ProbedListener>,
}

/// What a listener shows for a name.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct ProbedListener {
    /// Its address, as configured.
    pub listener: String,
    /// `HTTPS`, `IMAPS`, `POP3S`, `IMAP STARTTLS` or `POP3 STLS`.
    pub service: String,
    /// The certificate: its SHA-256 fingerprint. Absent where none was shown.
    pub fingerprint: Option<String>,
    /// Whether it is good for the name.
    pub covered: bool,
    /// Whether it is the certificate that this node has in force for the name.
    pub in_force: bool,
    /// Why the authorities of the node that looked do not vouch for it, which need not be those of its clients. Absent:
    /// they do, or there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub untrusted: Option<String>,
    /// Version of TLS.
    pub protocol: Option<String>,
    /// What is wrong: there is no certificate, it is not good for the name or not at this time, or it is not the one in
    /// force. `null`: nothing.
    pub problem: Option<String>,
}

/// A certificate that was shown.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct ProbedCertificate {
    /// SHA-256 fingerprint, in hexadecimal.
    pub fingerprint: String,
    /// Names that it is valid for; at most 100.
    pub names: Vec<String>,
    /// Subject.
    pub subject: String,
    /// Issuer.
    pub issuer: String,
    /// When it expires.
    pub not_after: String,
    /// Days until then; negative if it has expired.
    pub days_left: i64,
}

/// Looks at the virtual host names of a domain as clients do: what the DNS says of each, and which certificate each TLS
/// listener for web and mail clients shows for it, in a real handshake. Nothing is changed; each look is a connection
/// from this node's own address. It takes up to 20 seconds, and as long again where a look that another node has asked for
/// comes first.
#[utoipa::path(get, path = "/v1/certificates/probe", params(ProbeQuery), responses(
    (status = 200, body = LiveProbe),
    (status = 404, description = "No domain has this name", body = ApiError),
    (status = 409, description = "The domain has no virtual host name", body = ApiError),
    (status = 503, description = "Somebody else looks at the moment", body = ApiError),
))]
pub(crate) async fn probe(
    State(env): State<Arc<AdminEnv>>,
    Query(query): Query<ProbeQuery>,
) -> Result<Json<LiveProbe>, ApiError> {
    let plan = env.app.plan_probe(&query.name).map_err(refusal)?;
    let seen = env.app.probe(&plan).await.map_err(refusal)?;
    Ok(Json(LiveProbe::new(plan, seen)))
}

/// Refuses a request before any node looks: where so many have asked already, and where this node is to look and does
/// not know the name. The place is kept until all have answered.
pub(super) fn admit(
    env: &AdminEnv,
    caller: Option<&Caller>,
    to_look_at: Option<&Uri>,
) -> Result<OwnedSemaphorePermit, ApiError> {
    if let Some(uri) = to_look_at {
        let query = Query::<ProbeQuery>::try_from_uri(uri);
        let query = query.map_err(|error| ApiError::bad(error.body_text()))?;
        env.app.plan_probe(&query.name).map_err(refusal)?;
    }
    let asker = match caller {
        Some(Caller::Node { .. }) => ProbeAsker::OtherNode,
        _ => ProbeAsker::Here,
    };
    env.app.admit_probe(asker).map_err(refusal)
}

fn refusal(why: ProbeRefusal) -> ApiError {
    let status = match why {
        ProbeRefusal::NoSuchName(_) => StatusCode::NOT_FOUND,
        ProbeRefusal::NoNames(_) => StatusCode::CONFLICT,
        ProbeRefusal::Busy => StatusCode::SERVICE_UNAVAILABLE,
        ProbeRefusal::Broken(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    ApiError::new(status, why.to_string())
}

#[allow(clippy::trivially_copy_pass_by_ref)] // Serde passes it so.
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl LiveProbe {
    fn new(plan: ProbePlan, seen: Vec<SeenName>) -> Self {
        let mut certificates: Vec<ProbedCertificate> = Vec::new();
        let listeners = seen.iter().flat_map(|name| &name.listeners);
        for certificate in listeners.filter_map(|listener| listener.certificate.as_ref().ok()) {
            let leaf = &certificate.shown.leaf;
            let fingerprint = fingerprint_text(leaf);
            if certificates.iter().all(|known| known.fingerprint != fingerprint) {
                certificates.push(ProbedCertificate::new(leaf));
            }
        }
        Self {
            domain: plan.domain,
            names: seen.into_iter().map(ProbedName::new).collect(),
            more: plan.more as u64,
            certificates,
        }
    }
}

impl ProbedCertificate {
    fn new(leaf: &X509Ref) -> Self {
        let mut facts = LeafFacts::of(leaf);
        facts.names.truncate(NAMES);
        Self {
            fingerprint: facts.fingerprint,
            names: facts.names,
            subject: facts.subject,
            issuer: facts.issuer,
            not_after: facts.not_after,
            days_left: facts.days_left,
        }
    }
}

impl ProbedName {
    fn new(seen: SeenName) -> Self {
        let listeners = seen.listeners.iter();
        let listeners = listeners.map(|listener| ProbedListener::new(listener, &seen.asked));
        let listeners = listeners.collect();
        let (mut addresses, mut aliases, dns_problem) = match seen.records {
            Err(why) => (Vec::new(), Vec::new(), Some(why)),
            Ok(records) => {
                let why = match (records.addresses.is_empty(), records.exists) {
                    (false, _) => None,
                    (true, true) => Some("it has no address in the DNS".to_owned()),
                    (true, false) => Some("it is not in the DNS".to_owned()),
                };
                (records.addresses, records.aliases, why)
            }
        };
        let beyond = [addresses.len(), aliases.len()].map(|count| count.saturating_sub(RECORDS) as u64);
        addresses.truncate(RECORDS);
        aliases.truncate(RECORDS);
        Self {
            more_records: beyond.iter().sum(),
            asked: seen.name.starts_with("*.").then_some(seen.asked),
            name: seen.name,
            addresses: addresses.iter().map(ToString::to_string).collect(),
            aliases: aliases.iter().map(ToString::to_string).collect(),
            dns_problem,
            listeners,
        }
    }
}

impl ProbedListener {
    fn new(seen: &SeenListener, asked: &str) -> Self {
        let shown = seen.certificate.as_ref().ok();
        let problem = match &seen.certificate {
            Ok(certificate) => certificate.problem(asked),
            Err(why) => Some(why.clone()),
        };
        Self {
            listener: seen.address.to_string(),
            service: seen.service.to_owned(),
            fingerprint: shown.map(|certificate| fingerprint_text(&certificate.shown.leaf)),
            covered: shown.is_some_and(|certificate| certificate.is_good_for_name),
            in_force: shown.is_some_and(|certificate| certificate.is_in_force),
            untrusted: shown.and_then(|certificate| certificate.shown.distrust.clone()),
            protocol: shown.map(|certificate| certificate.shown.version.to_owned()),
            problem,
        }
    }
}
