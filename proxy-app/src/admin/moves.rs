//! Moves of accounts over the admin API: planned, begun, watched, cancelled.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use mail_directory::edit::EntryKind;
use mail_directory::{attributes as a, names};
use route_cache::LONGEST_HOLD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::admin::act;
use crate::admin::api_error::ApiError;
use crate::admin::caller::Caller;
use crate::admin::orders;
use crate::app::env::AdminEnv;
use crate::app::moves::copy::CopyProgram;
use crate::app::moves::{AccountMove, MoveJob, MoveOrder, MoveScope};

/// Most arguments of a program.
const WORDS_MAX: usize = 64;
/// Fastest pace.
const MOST_EACH_SECOND: u32 = 1000;

/// What is to be moved, and how.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MoveRequest {
    /// Names, aliases or ids of accounts.
    #[serde(default)]
    pub accounts: Vec<String>,
    /// Or all accounts of this server.
    #[serde(default)]
    pub server: Option<String>,
    /// The server they go to.
    pub to: String,
    /// Only so many percent of them: the same ones each time, and with a higher number these and others.
    #[serde(default)]
    pub percent: Option<u8>,
    /// Only say who would be moved.
    #[serde(default)]
    pub dry_run: bool,
    /// The program that copies the mail of one account, with its arguments; `{account}`, `{from}` and `{to}` are
    /// replaced. Only over the socket.
    #[serde(default)]
    pub copy: Vec<String>,
    /// How long an account's logins may wait for its move, the copy included, in seconds.
    pub seconds: u64,
    /// Moves that begin each second; absent: 5.
    #[serde(default)]
    pub pace: Option<u32>,
    /// Only this node holds the account, ends its sessions and confirms the route, even where nodes know of each other.
    #[serde(default)]
    pub local: bool,
    /// Names of nodes that are not there: the move goes on without them.
    #[serde(default)]
    pub without: Vec<String>,
    /// Why. It is shown to administrators only.
    pub reason: String,
}

/// One account.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct OneMove {
    /// Its name.
    pub account: String,
    /// Its server before.
    pub from: String,
    /// `waiting`, `held`, `copying`, `changing`; at the end `moved`, `already there`, `undone` or `unconfirmed`. In a
    /// dry run `would move`.
    pub state: String,
    /// Why it was undone, or which nodes have not confirmed it.
    pub why: Option<String>,
    /// Sessions that were ended; in a dry run those that would be.
    pub sessions: usize,
    /// Milliseconds that it took.
    pub ms: Option<u64>,
}

/// An order, as far as it has come.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct MoveReport {
    /// Its number; absent in a dry run.
    pub id: Option<u64>,
    /// The server they go to.
    pub to: String,
    /// Whether something is still to be done.
    pub running: bool,
    /// The accounts, in the order in which they begin.
    pub accounts: Vec<OneMove>,
    /// In a dry run the nodes whose sessions are not counted, each with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_counted: Vec<String>,
}

/// The orders that this process remembers.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct MoveList {
    /// The newest last.
    pub moves: Vec<MoveReport>,
}

impl OneMove {
    fn of(one: AccountMove) -> Self {
        Self {
            account: one.account,
            from: one.from,
            state: one.step.name().to_owned(),
            why: one.why,
            sessions: one.sessions,
            ms: one.took.and_then(|took| u64::try_from(took.as_millis()).ok()),
        }
    }
}

impl MoveReport {
    fn of(job: &MoveJob) -> Self {
        Self {
            id: Some(job.id),
            to: job.order.to.clone(),
            running: job.is_running(),
            accounts: job.accounts().into_iter().map(OneMove::of).collect(),
            not_counted: Vec::new(),
        }
    }
}

/// Moves accounts to another mailbox server: their logins wait, their sessions end, the mail is copied if a program is
/// named, the directory is changed, and when every node has the new route their logins go on. What fails before the
/// directory is changed is undone; so it is where a node does not answer. The order is carried out by the node; ask for it by its number.
#[utoipa::path(post, path = "/v1/moves", request_body = MoveRequest, responses(
    (status = 200, body = MoveReport),
    (status = 400, body = ApiError),
    (status = 404, description = "There is no such server", body = ApiError),
    (status = 503, description = "The directory cannot be read or changed", body = ApiError),
))]
pub(crate) async fn begin(
    State(env): State<Arc<AdminEnv>>,
    Extension(caller): Extension<Caller>,
    Json(request): Json<MoveRequest>,
) -> Result<Json<MoveReport>, ApiError> {
    let lasts = check(&request, &caller)?;
    check_without(&env, &request.without)?;
    let to = mailbox_server(&env, &request.to)?;
    let mut accounts = match &request.server {
        Some(server) => accounts_of(&env, server).await?,
        None => request.accounts.clone(),
    };
    if let Some(percent) = request.percent {
        accounts.retain(|account| is_among(account, percent));
    }
    let scope = MoveScope {
        local: request.local,
        without: request.without.iter().map(|name| name.to_ascii_lowercase()).collect(),
    };
    if request.dry_run {
        return Ok(Json(dry_run(&env, accounts, to, scope).await?));
    }
    let order = MoveOrder {
        accounts,
        to,
        lasts,
        copy: (!request.copy.is_empty()).then(|| CopyProgram {
            words: request.copy.clone(),
            limit: lasts,
        }),
        pause: Duration::from_secs(1) / request.pace.unwrap_or(5),
        reason: request.reason,
        who: caller.to_string(),
        scope,
    };
    let act = format!(
        "move {} accounts to {}: {}",
        order.accounts.len(),
        order.to,
        order.reason
    );
    act::audit(&env, caller, act);
    Ok(Json(MoveReport::of(&env.app.begin_moves(order))))
}

/// Lists the orders.
#[utoipa::path(get, path = "/v1/moves", responses((status = 200, body = MoveList)))]
pub(crate) async fn list(State(env): State<Arc<AdminEnv>>) -> Json<MoveList> {
    let jobs = env.app.moves();
    Json(MoveList {
        moves: jobs.jobs().iter().map(|job| MoveReport::of(job)).collect(),
    })
}

/// Returns an order as far as it has come.
#[utoipa::path(get, path = "/v1/moves/{id}", params(("id" = u64, Path, description = "Its number")), responses(
    (status = 200, body = MoveReport),
    (status = 404, body = ApiError),
))]
pub(crate) async fn one(State(env): State<Arc<AdminEnv>>, Path(id): Path<u64>) -> Result<Json<MoveReport>, ApiError> {
    Ok(Json(MoveReport::of(&*job(&env, id)?)))
}

/// Begins none of its moves any more; those that have begun end as they would.
#[utoipa::path(delete, path = "/v1/moves/{id}", params(("id" = u64, Path, description = "Its number")), responses(
    (status = 200, body = MoveReport),
    (status = 404, body = ApiError),
))]
pub(crate) async fn cancel(
    State(env): State<Arc<AdminEnv>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<u64>,
) -> Result<Json<MoveReport>, ApiError> {
    let job = job(&env, id)?;
    job.cancel();
    act::audit(&env, caller, format!("cancel move order {id}"));
    Ok(Json(MoveReport::of(&job)))
}

fn job(env: &AdminEnv, id: u64) -> Result<Arc<MoveJob>, ApiError> {
    let missing = || ApiError::new(StatusCode::NOT_FOUND, format!("there is no move order {id}"));
    env.app.moves().job(id).ok_or_else(missing)
}

/// Whether it makes sense; how long an account may be held.
fn check(request: &MoveRequest, caller: &Caller) -> Result<Duration, ApiError> {
    orders::check_reason(&request.reason)?;
    let is_text = |text: &String| orders::is_text(text);
    let names = request.accounts.iter().chain(&request.server).chain([&request.to]);
    if request.accounts.is_empty() == request.server.is_none() || !names.into_iter().all(is_text) {
        return Err(ApiError::bad(
            "expected accounts, or a server whose accounts are to be moved",
        ));
    }
    let lasts = orders::lasting("a hold", request.seconds, LONGEST_HOLD)?;
    if request.percent.is_some_and(|percent| !(1..=100).contains(&percent)) {
        return Err(ApiError::bad("expected 1 to 100 percent"));
    }
    if request.pace.is_some_and(|pace| !(1..=MOST_EACH_SECOND).contains(&pace)) {
        return Err(ApiError::bad(format!("a pace is 1 to {MOST_EACH_SECOND} each second")));
    }
    if request.copy.len() > WORDS_MAX || !request.copy.iter().all(is_text) {
        return Err(ApiError::bad("no program can be called so"));
    }
    // The node runs it: a token for the API is no permission to run programs here.
    if !request.copy.is_empty() && !matches!(caller, Caller::Socket { .. }) {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "a program is only run over the socket",
        ));
    }
    Ok(lasts)
}

/// A name that no node has would be passed over in silence, and the node that is meant would have the move undone.
fn check_without(env: &AdminEnv, without: &[String]) -> Result<(), ApiError> {
    let Some(name) = without.first() else {
        return Ok(());
    };
    let Some(nodes) = &env.nodes else {
        return Err(ApiError::bad(format!(
            "there is no shared_state: this node knows no other one, nor {name}"
        )));
    };
    let known = nodes.members();
    let is_other = |name: &String| {
        let mut named = known.iter().filter(|member| member.node.eq_ignore_ascii_case(name));
        named.any(|member| !nodes.is_this(member))
    };
    match without.iter().find(|name| !is_other(name)) {
        None => Ok(()),
        Some(name) if name.eq_ignore_ascii_case(nodes.name()) => Err(ApiError::bad(format!(
            "{name} is this node, which carries the move out"
        ))),
        Some(name) => Err(ApiError::bad(format!(
            "without: no other node {name} is known, nor was one in the last day: portico status lists them"
        ))),
    }
}

/// The name of a server's entry that holds mailboxes.
fn mailbox_server(env: &AdminEnv, server: &str) -> Result<String, ApiError> {
    let snapshot = env.snapshot.load();
    let known = snapshot.system.server(server).map(|entry| entry.name().to_owned());
    let name =
        known.ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, format!("the directory has no server {server}")))?;
    match snapshot.system.mailbox_servers().any(|entry| entry.name() == name) {
        true => Ok(name),
        false => Err(ApiError::bad(format!("{name} holds no mailboxes"))),
    }
}

/// The accounts that are on a server, by name.
async fn accounts_of(env: &AdminEnv, server: &str) -> Result<Vec<String>, ApiError> {
    let server = mailbox_server(env, server)?;
    let unavailable = |why: String| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, why);
    let mut editor = env.app.editor().await.map_err(unavailable)?;
    let entries = editor.entries(EntryKind::Accounts).await;
    let entries = entries.map_err(|error| unavailable(error.to_string()))?;
    let attribute = env.app.mail_host_attribute();
    let snapshot = env.snapshot.load();
    let key = snapshot.system.server_key(&server);
    let on_it = |host: &str| snapshot.system.server_key(host) == key;
    let here = entries
        .iter()
        .filter(|entry| entry.first(&attribute).is_some_and(on_it));
    let mut names: Vec<String> = here.map(|entry| entry.name().to_owned()).collect();
    names.sort();
    Ok(names)
}

/// Whether an account is among the first so many percent, in an order by the hashes of their names.
fn is_among(account: &str, percent: u8) -> bool {
    // FNV-1a: the same on every node and in every version.
    let hash = names::account(account)
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    (hash >> 32) % 100 < u64::from(percent)
}

/// Who would be moved, and what that would cut.
async fn dry_run(env: &AdminEnv, accounts: Vec<String>, to: String, scope: MoveScope) -> Result<MoveReport, ApiError> {
    let unavailable = |why: String| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, why);
    let mut editor = env.app.editor().await.map_err(unavailable)?;
    let attribute = env.app.mail_host_attribute();
    let mut plan = Vec::new();
    for key in accounts {
        let found = editor.find(EntryKind::Accounts, &key).await;
        let found = found.map_err(|error| unavailable(error.to_string()))?;
        let address = found
            .as_ref()
            .and_then(|entry| entry.first(a::MAIL_DELIVERY_ADDRESS.name));
        let name = address.or(found.as_ref().map(|entry| entry.name())).unwrap_or(&key);
        let account = names::account(name);
        let from = found
            .as_ref()
            .and_then(|entry| entry.first(&attribute))
            .unwrap_or_default();
        let state = match &found {
            None => "no such account",
            Some(_) if from.eq_ignore_ascii_case(&to) => "already there",
            Some(_) => "would move",
        };
        plan.push(OneMove {
            from: from.to_owned(),
            state: state.to_owned(),
            why: None,
            sessions: 0,
            ms: None,
            account,
        });
    }
    let meant = plan.iter_mut().filter(|one| one.state == "would move");
    let mut meant: Vec<&mut OneMove> = meant.collect();
    let names: Vec<String> = meant.iter().map(|one| one.account.clone()).collect();
    let (counts, not_counted) = env.app.sessions_on_all_nodes(&names, scope).await;
    for one in &mut meant {
        one.sessions = counts.get(&one.account).copied().unwrap_or(0);
    }
    Ok(MoveReport {
        id: None,
        to,
        running: false,
        accounts: plan,
        not_counted,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_percent_are_the_same_accounts_and_others() {
        let names: Vec<String> = (0..10_000).map(|i| format!("user{i}@a.example")).collect();
        let of = |percent| names.iter().filter(|name| is_among(name, percent)).collect::<Vec<_>>();
        assert!((800..1200).contains(&of(10).len()), "{}", of(10).len());
        assert!(of(10).iter().all(|name| is_among(name, 20)));
        assert_eq!(of(100).len(), names.len());
        assert_eq!(is_among("User7@A.example", 50), is_among("user7@a.example", 50));
    }
}
