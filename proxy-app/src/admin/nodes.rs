//! The other nodes over the admin API: which there are, and how this one stands with them; those that are gone for good
//! are forgotten.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::admin::act;
use crate::admin::api_error::ApiError;
use crate::admin::caller::Caller;
use crate::app::env::AdminEnv;
use crate::node::logs;
use crate::nodes::{ForgetError, Nodes, PeerNode, Standing};

/// How the node stands with the engine by which nodes know of each other.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct SharedState {
    /// Whether the engine answers. If not, this node goes on alone, and `nodes` is what it knew last.
    pub joined: bool,
    /// Since when, UTC.
    pub since: String,
    /// Where the engine is.
    pub engine: Option<String>,
    /// Why it does not answer.
    pub why: Option<String>,
    /// How many milliseconds the clock of this machine is ahead of the engine's.
    #[serde(default)]
    pub clock_ahead_ms: Option<i64>,
    /// How often it has failed since the start.
    pub failures: u64,
    /// How many texts in it were not what they should be.
    pub unfit: u64,
    /// All nodes, this one included, by name.
    pub nodes: Vec<OneNode>,
}

/// A node, as the others see it.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct OneNode {
    /// Its name.
    pub node: String,
    /// It is the one that answers.
    pub this: bool,
    /// Version of the program.
    pub version: String,
    /// Process id. In an upgrade two processes are one node.
    pub pid: u32,
    /// `ready`, `drained`, or `leaving`: it only keeps its sessions.
    pub state: String,
    /// When it started, UTC.
    pub since: String,
    /// Number of its configuration in force.
    pub generation: u64,
    /// Its logged-in sessions.
    pub sessions: u64,
    /// For how many seconds it has said nothing, if that is too long.
    pub silent: Option<u64>,
}

/// Which node is gone for good.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ForgetNode {
    /// Its name.
    pub node: String,
}

/// The nodes that are left.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct NodesLeft {
    /// All that are known, this one included, by name.
    pub nodes: Vec<OneNode>,
}

/// Takes a node that is gone for good off the list of all nodes, so that orders to all do not wait for it or name it.
/// Without this it is on the list for a day. A node that comes back is on it again by itself.
#[utoipa::path(post, path = "/v1/nodes/forget", request_body = ForgetNode, responses(
    (status = 200, body = NodesLeft),
    (status = 400, description = "There is no shared_state", body = ApiError),
    (status = 404, description = "No such node is known", body = ApiError),
    (status = 409, description = "It is not silent", body = ApiError),
    (status = 503, description = "The engine does not answer", body = ApiError),
))]
pub(crate) async fn forget(
    State(env): State<Arc<AdminEnv>>,
    Extension(caller): Extension<Caller>,
    Json(gone): Json<ForgetNode>,
) -> Result<Json<NodesLeft>, ApiError> {
    let nodes = env.nodes.as_ref();
    let nodes = nodes.ok_or_else(|| ApiError::bad("there is no shared_state: this node knows no other one"))?;
    let name = gone.node.to_ascii_lowercase();
    nodes.forget(&name).await.map_err(|why| {
        let status = match why {
            ForgetError::Unknown(_) => StatusCode::NOT_FOUND,
            ForgetError::Awake(_) => StatusCode::CONFLICT,
            ForgetError::Engine(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        ApiError::new(status, why.to_string())
    })?;
    act::audit(&env, caller, format!("forget node {name}"));
    Ok(Json(NodesLeft {
        nodes: OneNode::all(nodes),
    }))
}

impl SharedState {
    /// As it is now.
    pub(super) fn of(nodes: &Nodes) -> Self {
        let (joined, since, engine, why) = match nodes.standing() {
            Standing::Joined { engine, since } => (true, since, Some(engine), None),
            Standing::Alone { why, since } => (false, since, None, Some(why)),
        };
        let (failures, unfit) = nodes.counts();
        Self {
            joined,
            since: logs::utc(since),
            engine,
            why,
            clock_ahead_ms: nodes.clock_ahead(),
            failures,
            unfit,
            nodes: OneNode::all(nodes),
        }
    }
}

impl OneNode {
    fn all(nodes: &Nodes) -> Vec<Self> {
        let all = nodes.members().into_iter();
        all.map(|member| Self::of(nodes, member)).collect()
    }

    fn of(nodes: &Nodes, member: PeerNode) -> Self {
        let since = i64::try_from(member.since).ok();
        let since = since.and_then(|since| Timestamp::from_millisecond(since).ok());
        Self {
            this: nodes.is_this(&member),
            node: member.node,
            version: member.version,
            pid: member.pid,
            state: member.state.name().to_owned(),
            since: since.map(logs::utc).unwrap_or_default(),
            generation: member.generation,
            sessions: member.sessions,
            silent: member.silent.map(|silent| silent.as_secs()),
        }
    }
}
