//! What a change of the directory would do on this node, before it is made. Nothing is written.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use mail_directory::attributes as a;
use mail_directory::edit::{Change, EntryKind};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::admin::api_error::ApiError;
use crate::admin::domains::{NewCertificate, NewNames, refusal, unread};
use crate::admin::turns::Turns;
use crate::app::env::AdminEnv;
use crate::app::preview::{EntryProposal, Preview};
use crate::app::stored::replace;
use crate::provision::CommandOutput;

/// Names of each kind, where the client does not say how many.
const FIRST: usize = 20;
/// Most that it may ask for.
const FIRST_MAX: usize = 1000;
/// Most of a body: some dozens of certificates with their chains.
pub(crate) const PROPOSAL_MAX: usize = 1024 * 1024;

/// Changes of the directory, as a whole.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Proposal {
    /// Each entry once.
    pub changes: Vec<EntryProposal>,
    /// How many names, accounts and sessions to name; 20 if absent, at most 1000.
    #[serde(default)]
    pub first: Option<usize>,
}

/// Says what changes of the directory would do on this node: certificates by name, routes, sessions, listeners. Values
/// are not checked as `portico prov` checks them. Nothing is changed.
#[utoipa::path(post, path = "/v1/preview", request_body = Proposal, responses(
    (status = 200, body = Preview),
    (status = 413, description = "The changes are more than 1 MiB", body = ApiError),
))]
pub(crate) async fn preview(
    State(env): State<Arc<AdminEnv>>,
    Extension(turns): Extension<Arc<Turns>>,
    body: Result<Json<Proposal>, JsonRejection>,
) -> Result<Json<Preview>, ApiError> {
    const SHAPE: &str = "the body is not {\"changes\": [{\"kind\": …, \"name\": …, \"attributes\": {…}}]}";
    let Json(proposal) = body.map_err(|rejection| unread(&rejection, SHAPE))?;
    let most = proposal.first.unwrap_or(FIRST).min(FIRST_MAX);
    previewed(&env, &turns, proposal.changes, most).await.map(Json)
}

/// What is to be changed of a domain.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DomainProposal {
    /// Its virtual host names.
    #[serde(default)]
    names: Option<NewNames>,
    /// Its certificate.
    #[serde(default)]
    certificate: Option<NewCertificate>,
    /// Its certificate and key are removed.
    #[serde(default)]
    remove_certificate: bool,
}

/// What a change of a domain would do.
#[derive(Serialize, ToSchema)]
pub(crate) struct DomainPreview {
    /// What the check of the change warns of.
    pub warnings: Vec<String>,
    /// What would happen on this node.
    pub preview: Preview,
}

/// Checks a change of a domain as if it were made, and says what it would do on this node. Nothing is changed.
#[utoipa::path(post, path = "/v1/domains/{domain}/preview", request_body = DomainProposal, params(
    ("domain" = String, Path, description = "Name of the domain"),
), responses(
    (status = 200, body = DomainPreview),
    (status = 404, description = "There is no such domain", body = ApiError),
    (status = 409, description = "A name already belongs to another domain", body = ApiError),
    (status = 422, description = "The change would be refused", body = ApiError),
    (status = 503, description = "The directory cannot be read", body = ApiError),
))]
pub(crate) async fn preview_domain(
    State(env): State<Arc<AdminEnv>>,
    Extension(turns): Extension<Arc<Turns>>,
    Path(domain): Path<String>,
    body: Result<Json<DomainProposal>, JsonRejection>,
) -> Result<Json<DomainPreview>, ApiError> {
    const SHAPE: &str = "the body is not {\"names\": …, \"certificate\": …, \"remove_certificate\": …}";
    let Json(proposal) = body.map_err(|rejection| unread(&rejection, SHAPE))?;
    let changes = proposal.changes()?;
    let unavailable = |message| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message);
    let mut editor = env.app.editor().await.map_err(unavailable)?.rehearsing();
    let mut output = CommandOutput::default();
    let tried = editor.change(EntryKind::Domains, &domain, &changes, &mut output);
    tried.await.map_err(refusal)?;
    let proposals = editor.tried().iter().map(EntryProposal::of).collect();
    let preview = previewed(&env, &turns, proposals, FIRST).await?;
    Ok(Json(DomainPreview {
        warnings: output.into_lines(),
        preview,
    }))
}

impl DomainProposal {
    fn changes(self) -> Result<Vec<Change>, ApiError> {
        let mut changes = self.names.map(NewNames::changes).unwrap_or_default();
        changes.extend(
            self.certificate
                .map(NewCertificate::changes)
                .transpose()?
                .unwrap_or_default(),
        );
        if self.remove_certificate {
            changes.extend([&a::SSL_CERTIFICATE, &a::SSL_PRIVATE_KEY].map(|attribute| replace(attribute, None)));
        }
        Ok(changes)
    }
}

/// One after the other: each may compare a million routes. One that has begun is made to its end.
async fn previewed(
    env: &Arc<AdminEnv>,
    turns: &Turns,
    changes: Vec<EntryProposal>,
    most: usize,
) -> Result<Preview, ApiError> {
    let failed = |error: &dyn std::fmt::Display| {
        let message = format!("the preview did not end: {error}");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    };
    let turn = turns.previews.clone().acquire_owned().await;
    let turn = turn.map_err(|error| failed(&error))?;
    let app = env.app.clone();
    let task = tokio::spawn(async move {
        let _turn = turn;
        app.preview(changes, most).await
    });
    task.await.map_err(|error| failed(&error))
}
