//! What a move of an account asks of each node, as requests that nodes pass on to each other: the end of its sessions,
//! and whether it goes to its new server. What is asked again and again is recorded once.

use std::collections::HashSet;
use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::admin::act;
use crate::admin::api_error::ApiError;
use crate::admin::caller::Caller;
use crate::admin::orders::{self, is_text};
use crate::app::env::AdminEnv;
use crate::app::moves::reach::{RouteConfirmed, SessionsLeft, SessionsThere};

/// Whose sessions end.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EndSessions {
    /// The name of the account.
    pub account: String,
    /// At once, and not behind the answer to their command.
    #[serde(default)]
    pub now: bool,
    /// It was asked before, and is not recorded again.
    #[serde(default)]
    pub again: bool,
    /// Who has ordered it at the node that asks.
    #[serde(default)]
    pub by: Option<String>,
}

/// Whose sessions are counted.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CountSessions {
    /// The names of the accounts.
    pub accounts: HashSet<String>,
}

/// Which route is to be confirmed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConfirmRoute {
    /// The name of the account.
    pub account: String,
    /// The name of its server's entry.
    pub server: String,
    /// It was asked before, and is not recorded again.
    #[serde(default)]
    pub again: bool,
    /// Who has ordered it at the node that asks.
    #[serde(default)]
    pub by: Option<String>,
}

/// Has the sessions of an account end as in a move: IMAP clients are told BYE. Ask again until none is left.
#[utoipa::path(post, path = "/v1/sessions/end", request_body = EndSessions, responses(
    (status = 200, body = SessionsLeft),
    (status = 400, body = ApiError),
))]
pub(crate) async fn end(
    State(env): State<Arc<AdminEnv>>,
    Extension(caller): Extension<Caller>,
    Json(order): Json<EndSessions>,
) -> Result<Json<SessionsLeft>, ApiError> {
    check(&order.account)?;
    let left = env.app.end_sessions_of(&order.account, order.now);
    if !order.again {
        let who = orders::given_by(&caller, order.by.as_deref());
        act::audit(&env, who, format!("end sessions of {}: {left} sessions", order.account));
    }
    Ok(Json(SessionsLeft { left }))
}

/// Counts the sessions of accounts, as a dry run of a move does.
#[utoipa::path(post, path = "/v1/sessions/count", request_body = CountSessions, responses(
    (status = 200, body = SessionsThere),
))]
pub(crate) async fn count(State(env): State<Arc<AdminEnv>>, Json(order): Json<CountSessions>) -> Json<SessionsThere> {
    let sessions = env.sessions.counts_of(&order.accounts);
    Json(SessionsThere { sessions })
}

/// Looks at the directory past all caches, and says whether the account goes to this server now.
#[utoipa::path(post, path = "/v1/routes/confirm", request_body = ConfirmRoute, responses(
    (status = 200, body = RouteConfirmed),
    (status = 400, body = ApiError),
))]
pub(crate) async fn confirm(
    State(env): State<Arc<AdminEnv>>,
    Extension(caller): Extension<Caller>,
    Json(order): Json<ConfirmRoute>,
) -> Result<Json<RouteConfirmed>, ApiError> {
    check(&order.account)?;
    check(&order.server)?;
    let why_not = env.app.goes_to(&order.account, &order.server).await.err();
    let goes = why_not.is_none();
    if !order.again {
        let who = orders::given_by(&caller, order.by.as_deref());
        let found = why_not
            .as_ref()
            .map_or_else(|| "it goes there".to_owned(), |why| format!("not yet: {why}"));
        act::audit(
            &env,
            who,
            format!("confirm {} on {}: {found}", order.account, order.server),
        );
    }
    Ok(Json(RouteConfirmed { goes, why_not }))
}

fn check(name: &str) -> Result<(), ApiError> {
    is_text(name)
        .then_some(())
        .ok_or_else(|| ApiError::bad("nothing has such a name"))
}
