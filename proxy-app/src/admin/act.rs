//! Acts on the node as a whole over the admin API, and their audit records.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use mail_directory::Losses;
use mail_proxy::audit::{Event, Record};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::admin::api_error::ApiError;
use crate::admin::caller::Caller;
use crate::app::env::AdminEnv;

/// Records the act of a caller.
pub(crate) fn audit(env: &AdminEnv, caller: impl std::fmt::Display, act: String) {
    log::info!("{caller}: {act}");
    env.audit.record(Record {
        event: Some(Event::Admin),
        who: Some(caller.to_string()),
        act: Some(act),
        generation: env.snapshot.load().generation,
        ..Record::default()
    });
}

/// What a reload did.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = Reloaded)]
pub(crate) struct ReloadResult {
    /// Number of the configuration that is in force now.
    pub generation: u64,
    /// What changed, one sentence each; empty: nothing.
    pub changes: Vec<String>,
    /// Keys of the node file whose new values take effect only after an upgrade.
    pub needs_upgrade: Vec<String>,
    /// Warnings.
    pub warnings: Vec<String>,
}

/// How to reload.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ReloadQuery {
    /// Accept a directory that has no server or no domain any more.
    #[serde(default)]
    force: bool,
}

/// Reads the node file, the directory and the certificates again, as SIGHUP does.
///
/// A part that cannot be used changes nothing; the response then lists every problem.
#[utoipa::path(post, path = "/v1/reload", params(ReloadQuery), responses(
    (status = 200, body = ReloadResult),
    (status = 422, description = "Something cannot be used", body = ApiError),
))]
pub(crate) async fn reload(
    State(env): State<Arc<AdminEnv>>,
    Extension(caller): Extension<Caller>,
    Query(how): Query<ReloadQuery>,
) -> Result<Json<ReloadResult>, ApiError> {
    audit(&env, caller, "reload".to_owned());
    let reloaded = env.app.reload(if how.force { Losses::All } else { Losses::Most }).await;
    let problems = reloaded.problems.iter().map(ToString::to_string).collect();
    if reloaded.problems.has_errors() {
        return Err(ApiError {
            problems,
            ..ApiError::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "not everything could be read again; what cannot be used changes nothing",
            )
        });
    }
    Ok(Json(ReloadResult {
        generation: env.snapshot.load().generation,
        changes: reloaded.changes,
        needs_upgrade: reloaded.needs_upgrade,
        warnings: problems,
    }))
}
