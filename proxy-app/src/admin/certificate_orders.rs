//! Certificates that an administrator orders of the ACME authority, over the admin API.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::acme::care::OrderUrge;
use crate::admin::api_error::ApiError;
use crate::admin::caller::Caller;
use crate::admin::health::FailedName;
use crate::admin::{act, everywhere};
use crate::app::env::AdminEnv;
use crate::app::urged_orders::{OrderOutcome, OrderPlan, OrderRefusal, addresses_of};
use crate::nodes::OrderingNode;

/// Which certificate to order.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CertificateRequestOrder {
    /// A domain, by its name or by one of its virtual host names.
    pub name: String,
    /// Also where the certificate in use is good.
    #[serde(default)]
    pub renew: bool,
    /// Only say what would be ordered.
    #[serde(default)]
    pub dry_run: bool,
}

/// What has become of an order, or what it would be.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct CertificateOrdered {
    /// The domain.
    pub domain: String,
    /// `issued`: the new certificate is in force; `failed`; `under way`: it takes longer than 45 seconds, and
    /// `GET /v1/certificates` says what comes of it; `dry run`.
    pub state: String,
    /// Why it has failed, or would fail at once.
    pub why: Option<String>,
    /// The node that orders, where nodes know of each other (`shared_state`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The URL of the authority.
    pub authority: String,
    /// The names that are asked for.
    pub names: Vec<OrderedName>,
    /// Names that get no certificate.
    pub left_out: Vec<FailedName>,
    /// How names are shown to be controlled, the preferred way first. The first that the authority offers is taken.
    pub challenges: Vec<OrderedChallenge>,
}

/// A name that is asked for.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct OrderedName {
    /// The name.
    pub name: String,
    /// Its addresses as this node finds them; only in a dry run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Whether a request to it comes to a node of ours; absent: it was not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leads_here: Option<bool>,
    /// Why it has no address, or does not lead here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// A way to show who controls a name.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct OrderedChallenge {
    /// `http-01`, `tls-alpn-01`.
    pub kind: String,
    /// The listeners of this node that answer it.
    pub answered_at: Vec<String>,
    /// Why none does.
    pub why: Option<String>,
}

/// Orders a certificate for a domain, whatever pause there is, and waits up to 45 seconds for it. With `dry_run` nothing
/// is ordered, and the answer says what would be. Where one node orders for all (`shared_state`), it gets the request.
#[utoipa::path(post, path = "/v1/certificates/order", request_body = CertificateRequestOrder, responses(
    (status = 200, body = CertificateOrdered),
    (status = 404, description = "No domain has this name", body = ApiError),
    (status = 409, description = "There is nothing to order, or nobody to order it of", body = ApiError),
    (status = 502, description = "The node that orders does not answer, or refuses", body = ApiError),
))]
pub(crate) async fn order(
    State(env): State<Arc<AdminEnv>>,
    Extension(caller): Extension<Caller>,
    Json(request): Json<CertificateRequestOrder>,
) -> Result<Json<CertificateOrdered>, ApiError> {
    let urge = if request.renew {
        OrderUrge::Renew
    } else {
        OrderUrge::Request
    };
    let plan = env.app.plan_order(&request.name, urge).map_err(refusal)?;
    let mut answer = CertificateOrdered::planned(&plan);
    if request.dry_run {
        answer.look(&env, &plan).await;
        return Ok(Json(answer));
    }
    if let Some(node) = other_node(&env, &caller)? {
        return at_node(&env, &node, &request).await;
    }
    let what = if request.renew { "renewed" } else { "ordered" };
    act::audit(&env, caller, format!("domain {}: certificate {what}", plan.domain));
    match env.app.order_now(&plan).await {
        OrderOutcome::Issued(names) => {
            "issued".clone_into(&mut answer.state);
            answer.left_out.extend(names.into_iter().map(failed_name));
        }
        OrderOutcome::Failed(why) => {
            "failed".clone_into(&mut answer.state);
            answer.why = Some(why);
        }
        OrderOutcome::UnderWay => "under way".clone_into(&mut answer.state),
    }
    Ok(Json(answer))
}

/// The node that orders, if it is another one. While the engine is away none does, and this one does as it is told.
fn other_node(env: &AdminEnv, caller: &Caller) -> Result<Option<String>, ApiError> {
    let Some(nodes) = env.nodes.as_ref().filter(|nodes| nodes.has_joined()) else {
        return Ok(None);
    };
    let conflict = |why: String| Err(ApiError::new(StatusCode::CONFLICT, why));
    match (nodes.ordering_node(), caller) {
        (OrderingNode::This, _) => Ok(None),
        (OrderingNode::Other(node), Caller::Node { .. }) => {
            conflict(format!("{node} orders certificates, and not this node"))
        }
        (OrderingNode::Other(node), _) => Ok(Some(node)),
        // The engine holds no turns. An order at another node at the same time costs one of the authority's, and no more.
        (OrderingNode::Nobody, _) if nodes.turns_are_denied() => Ok(None),
        (OrderingNode::Nobody, _) => {
            conflict("no node orders certificates yet: some seconds after a start or a failure one does".to_owned())
        }
    }
}

/// The answer of the node that orders.
async fn at_node(
    env: &AdminEnv,
    node: &str,
    request: &CertificateRequestOrder,
) -> Result<Json<CertificateOrdered>, ApiError> {
    let unfit = |error: serde_json::Error| {
        let why = format!("{node}: its answer is not what it should be: {error}");
        ApiError::new(StatusCode::BAD_GATEWAY, why)
    };
    let Some(nodes) = &env.nodes else {
        return Err(ApiError::bad("there is no shared_state: this node knows no other one"));
    };
    let body = serde_json::to_value(request).map_err(unfit)?;
    let answer = everywhere::answer_of(nodes, node, "/v1/certificates/order", &body).await?;
    let mut answer: CertificateOrdered = serde_json::from_value(answer).map_err(unfit)?;
    answer.node = Some(node.to_owned());
    Ok(Json(answer))
}

fn refusal(why: OrderRefusal) -> ApiError {
    match why {
        OrderRefusal::NoSuchName(why) => ApiError::new(StatusCode::NOT_FOUND, why),
        OrderRefusal::Conflict(why, problems) => ApiError {
            problems,
            ..ApiError::new(StatusCode::CONFLICT, why)
        },
    }
}

fn failed_name((name, why): (String, String)) -> FailedName {
    FailedName { name, why, again: None }
}

impl CertificateOrdered {
    fn planned(plan: &OrderPlan) -> Self {
        let names = plan.names.iter().map(|name| OrderedName {
            name: name.clone(),
            addresses: Vec::new(),
            leads_here: None,
            why: None,
        });
        let challenges = plan.challenges.iter().map(|(kind, at)| OrderedChallenge {
            kind: (*kind).to_owned(),
            answered_at: at.iter().flatten().map(ToString::to_string).collect(),
            why: at.as_ref().err().cloned(),
        });
        Self {
            domain: plan.domain.clone(),
            state: "dry run".to_owned(),
            why: None,
            node: None,
            authority: plan.authority.clone(),
            names: names.collect(),
            left_out: plan.barred.iter().cloned().map(failed_name).collect(),
            challenges: challenges.collect(),
        }
    }

    /// Looks at everything that costs nothing at the authority.
    async fn look(&mut self, env: &AdminEnv, plan: &OrderPlan) {
        let (authority, found, asked) = tokio::join!(
            env.app.look_at_authority(),
            addresses_of(&plan.names),
            env.app.ask_ourselves(&plan.names)
        );
        self.why = authority.err();
        for (name, found) in self.names.iter_mut().zip(found) {
            match found {
                Ok(addresses) => name.addresses = addresses,
                Err(why) => name.why = Some(why),
            }
        }
        for (asked, said) in asked {
            if let Some(name) = self.names.iter_mut().find(|name| name.name == asked) {
                name.leads_here = Some(said.is_ok());
                name.why = name.why.take().or(said.err());
            }
        }
        if self.why.is_none() && plan.challenges.iter().all(|(_, at)| at.is_err()) {
            self.why = Some("this node can answer none of acme.challenges".to_owned());
        }
    }
}
