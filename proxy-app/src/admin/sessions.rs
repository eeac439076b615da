//! Connections and logins over the admin API: listed, ended, followed; and the node itself: its state, its drain.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::timeout;
use utoipa::ToSchema;

use mail_proxy::Proto;

use crate::admin::act;
use crate::admin::api_error::ApiError;
use crate::admin::caller::Caller;
use crate::admin::holds::{self, Missing};
use crate::admin::nodes::SharedState;
use crate::admin::orders::is_text;
use crate::admin::scrape;
use crate::app::changes::Generation;
use crate::app::env::AdminEnv;
use crate::app::snapshot::PRODUCT;
use crate::node::connections::{ConnectionFilter, Session};
use crate::node::logins::{Attempt, LoginFilter};
use crate::node::logs;

/// How long the directory may take to say whose alias a name is: a session ends without it, too.
const ALIAS_WITHIN: Duration = Duration::from_millis(500);
/// Longest time over which sessions are ended in a drain.
const MAX_SPREAD: u64 = 24 * 60 * 60;

/// The state of the node.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Status {
    /// Name of the node.
    pub node: String,
    /// Version of the program.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime: u64,
    /// Whether the node is ready for new clients.
    pub ready: bool,
    /// Whether the node is ready for new clients.
    pub not_ready: Vec<String>,
    /// Why the latest reading of the directory is not in force.
    pub directory_refused: Option<String>,
    /// By which way changes of the directory come.
    #[serde(default)]
    pub directory: Option<DirectoryWay>,
    /// Number of the configuration in force.
    pub generation: u64,
    /// Open connections of all kinds.
    pub connections: u64,
    /// Sessions by protocol.
    pub sessions: Vec<Count>,
    /// Names and ids in the route cache.
    pub routes: u64,
    /// The keys of TLS session tickets.
    #[serde(default)]
    pub ticket_keys: Option<TicketKeyState>,
    /// Domains of which this node has failed to get a certificate, or one of their names; absent where it orders none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_orders_failing: Option<u64>,
    /// How it stands with the other nodes; absent without `shared_state`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_state: Option<SharedState>,
}

/// By which way changes of the directory come, and how old this node's view of it is.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct DirectoryWay {
    /// `sync`: a server tells them as they happen; `poll`: they are looked for.
    pub changes_by: String,
    /// The server that tells them.
    pub server: Option<String>,
    /// Why no server tells them.
    pub why_poll: Option<String>,
    /// Seconds since it has been so.
    pub since: u64,
    /// Seconds since a server last said how far the directory has come.
    pub age: Option<f64>,
    /// How many changes servers have told this process.
    pub told: u64,
}

impl DirectoryWay {
    fn of(env: &AdminEnv) -> Option<Self> {
        let way = env.directory_way()?;
        Some(Self {
            changes_by: if way.told_by.is_some() { "sync" } else { "poll" }.to_owned(),
            server: way.told_by,
            why_poll: way.why,
            since: way.since.as_secs(),
            age: env.directory_age().map(|age| age.as_secs_f64()),
            told: way.told,
        })
    }
}

/// The keys of TLS session tickets: where they come from, and how old the one is that makes them.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct TicketKeyState {
    /// `file`, `shared_state` or `own`.
    pub source: String,
    /// Seconds since it has made tickets; of a file, since it was written.
    pub age: u64,
    /// How many keys are taken.
    pub taken: u64,
    /// Why the file of the node file cannot be used.
    pub fault: Option<String>,
}

impl TicketKeyState {
    fn of(env: &AdminEnv) -> Self {
        let tickets = env.snapshot.load().acceptors.state().tickets.clone();
        let ring = tickets.in_force();
        Self {
            source: ring.source.name().to_owned(),
            age: ring.age().as_secs(),
            taken: ring.taken() as u64,
            fault: tickets.fault(),
        }
    }
}

/// Sessions of a protocol.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Count {
    /// `imap`, `pop3`, `http` or `stream`.
    pub proto: String,
    /// With a known account.
    pub logged_in: u64,
    /// Without, or not logged in yet.
    pub others: u64,
}

/// Returns the state of the node.
#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = Status)))]
pub(crate) async fn status(State(env): State<Arc<AdminEnv>>) -> Json<Status> {
    let counts = env.sessions.counts();
    let count = |proto, logged_in| counts.get(&(proto, logged_in)).copied().unwrap_or(0);
    let not_ready = env.not_ready();
    Json(Status {
        node: env.config.load().node.clone(),
        version: PRODUCT.1.to_owned(),
        pid: std::process::id(),
        uptime: env.started.elapsed().as_secs(),
        ready: not_ready.is_empty(),
        not_ready: not_ready.into_iter().map(str::to_owned).collect(),
        directory_refused: env.directory_refusal(),
        directory: DirectoryWay::of(&env),
        generation: env.snapshot.load().generation,
        connections: env.open.count() as u64,
        sessions: Proto::ALL
            .map(|proto| Count {
                proto: proto.to_string(),
                logged_in: count(proto, true),
                others: count(proto, false),
            })
            .into(),
        routes: env.routes.len() as u64,
        ticket_keys: Some(TicketKeyState::of(&env)),
        certificate_orders_failing: scrape::failing_orders(&env).map(|count| count as u64),
        shared_state: env.nodes.as_deref().map(SharedState::of),
    })
}

/// The configurations of this process.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Generations {
    /// The last 64, newest first.
    pub generations: Vec<OneGeneration>,
}

/// A configuration that was, or is, in force.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct OneGeneration {
    /// Its number.
    pub generation: u64,
    /// Since when, UTC.
    pub since: String,
    /// What caused it.
    pub why: String,
    /// What changed since the previous one, one sentence each. No values, since some are keys.
    pub changes: Vec<String>,
}

/// Returns which configurations were in force, since when, and what changed.
#[utoipa::path(get, path = "/v1/generations", responses((status = 200, body = Generations)))]
pub(crate) async fn generations(State(env): State<Arc<AdminEnv>>) -> Json<Generations> {
    let one = |generation: Generation| OneGeneration {
        generation: generation.number,
        since: logs::utc(generation.since),
        why: generation.why,
        changes: generation.changes,
    };
    Json(Generations {
        generations: env.history.all().into_iter().map(one).collect(),
    })
}

/// Which sessions.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct SessionQuery {
    /// Only those with this text in their id, protocol, client address, user, account or server; case is ignored.
    text: Option<String>,
    /// At most this many, the newest.
    limit: Option<usize>,
    /// Only those of this user: the login as typed, or any name of the account, or its id.
    user: Option<String>,
    /// Only those of this client address.
    #[param(value_type = Option<String>)]
    ip: Option<IpAddr>,
}

/// The sessions found.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct SessionList {
    /// Oldest first.
    pub sessions: Vec<OneSession>,
    /// How many more were found than `limit`.
    #[serde(default)]
    pub more: u64,
}

/// A mail session or a web connection.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct OneSession {
    /// Its id, as `conn` in the audit log.
    pub session: String,
    /// `imap`, `pop3`, `http` or `stream`.
    pub proto: String,
    /// TLS from the first byte.
    pub tls: bool,
    /// Address of the listener.
    pub listener: String,
    /// Address of the client.
    pub client: String,
    /// The balancer between client and node.
    pub via: Option<String>,
    /// When it was accepted, UTC.
    pub since: String,
    /// Seconds since then.
    pub age: u64,
    /// Seconds since the last byte.
    pub idle: u64,
    /// Bytes from the client after login; on the web only WebSockets are counted.
    pub bytes_in: u64,
    /// Bytes to the client after login; on the web bodies and WebSockets.
    pub bytes_out: u64,
    /// The accounts logged in; more than one only on the web.
    pub logins: Vec<OneLogin>,
}

/// A login of a session.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct OneLogin {
    /// The login as typed; empty for a token.
    pub user: String,
    /// The account.
    pub account: String,
    /// `host:port` of its server.
    pub route: String,
}

impl OneSession {
    fn of(session: &Session) -> Self {
        let facts = &session.facts;
        let (bytes_in, bytes_out) = facts.handle.bytes();
        Self {
            session: facts.id.clone(),
            proto: facts.proto.to_string(),
            tls: facts.tls.is_some(),
            listener: facts.listener.to_string(),
            client: facts.client.addr.to_string(),
            via: facts.client.via.map(|via| via.to_string()),
            since: logs::utc(session.since),
            age: facts.handle.age().as_secs(),
            idle: facts.handle.idle().as_secs(),
            bytes_in,
            bytes_out,
            logins: facts
                .handle
                .logins()
                .into_iter()
                .map(|login| OneLogin {
                    user: login.user,
                    account: login.account,
                    route: login.route,
                })
                .collect(),
        }
    }
}

/// Lists mail sessions and web connections.
#[utoipa::path(get, path = "/v1/sessions", params(SessionQuery), responses((status = 200, body = SessionList)))]
pub(crate) async fn list(State(env): State<Arc<AdminEnv>>, Query(query): Query<SessionQuery>) -> Json<SessionList> {
    let account = account_of(&env, query.user.as_deref()).await;
    let filter = ConnectionFilter {
        user: query.user,
        account,
        ip: query.ip,
        id: None,
        text: query.text,
    };
    let found = env.sessions.list(&filter);
    let more = query.limit.map_or(0, |limit| found.len().saturating_sub(limit));
    Json(SessionList {
        sessions: found[more..].iter().map(|session| OneSession::of(session)).collect(),
        more: more as u64,
    })
}

/// The account that has this name as an alias, or this id. While the directory is down, only as far as memory knows.
async fn account_of(env: &AdminEnv, user: Option<&str>) -> Option<String> {
    let user = user.filter(|user| is_text(user))?;
    let named = timeout(ALIAS_WITHIN, holds::canonical(env, user, Missing::Named));
    named.await.ok()?.ok()
}

/// Which sessions to end: those that match all fields given.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kick {
    /// The login as typed, or any name of the account, or its id.
    #[serde(default)]
    pub user: Option<String>,
    /// A client address.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub ip: Option<IpAddr>,
    /// The id of a session.
    #[serde(default)]
    pub session: Option<String>,
}

/// Ends sessions and web connections now. Their clients can connect again; to keep an account out, also close it in
/// the directory.
#[utoipa::path(post, path = "/v1/sessions/kick", request_body = Kick, responses(
    (status = 200, body = SessionList),
    (status = 400, body = ApiError),
))]
pub(crate) async fn kick(
    State(env): State<Arc<AdminEnv>>,
    Extension(caller): Extension<Caller>,
    Json(kick): Json<Kick>,
) -> Result<Json<SessionList>, ApiError> {
    let named = [
        kick.user.as_ref().map(|user| format!("user {user}")),
        kick.ip.map(|ip| format!("ip {ip}")),
        kick.session.as_ref().map(|session| format!("session {session}")),
    ];
    let named: Vec<String> = named.into_iter().flatten().collect();
    if named.is_empty() {
        return Err(ApiError::bad("expected a user, an ip or a session"));
    }
    if ![&kick.user, &kick.session]
        .into_iter()
        .flatten()
        .all(|text| is_text(text))
    {
        return Err(ApiError::bad("no user and no session can have this name"));
    }
    let account = account_of(&env, kick.user.as_deref()).await;
    let ended = env.sessions.kick(&ConnectionFilter {
        user: kick.user,
        account,
        ip: kick.ip,
        id: kick.session,
        text: None,
    });
    act::audit(
        &env,
        caller,
        format!("kick {}: {} sessions", named.join(", "), ended.len()),
    );
    Ok(Json(SessionList {
        sessions: ended.iter().map(|session| OneSession::of(session)).collect(),
        more: 0,
    }))
}

/// Options of a drain.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DrainOrder {
    /// Also end the sessions, spread over this many seconds. Absent: they go on.
    #[serde(default)]
    pub end_sessions_over: Option<u64>,
}

/// The result of a drain.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Drained {
    /// Whether the node is ready for new clients.
    pub ready: bool,
    /// Open sessions.
    pub sessions: u64,
}

/// Takes the node out of service: `/readyz` answers 503 from now on, so that balancers send no more clients. The node
/// still serves clients that connect. On request its sessions are ended, spread over some time.
#[utoipa::path(post, path = "/v1/drain", request_body = DrainOrder, responses(
    (status = 200, body = Drained),
    (status = 400, body = ApiError),
))]
pub(crate) async fn drain(
    State(env): State<Arc<AdminEnv>>,
    Extension(caller): Extension<Caller>,
    Json(order): Json<DrainOrder>,
) -> Result<Json<Drained>, ApiError> {
    let over = order.end_sessions_over;
    if over.is_some_and(|seconds| seconds > MAX_SPREAD) {
        return Err(ApiError::bad(format!("at most {MAX_SPREAD} seconds")));
    }
    let what = over.map_or("drain".to_owned(), |seconds| {
        format!("drain, sessions end over {seconds} s")
    });
    act::audit(&env, caller, what);
    env.out_of_service.send_replace(true);
    if let Some(seconds) = over {
        let env = env.clone();
        tokio::spawn(async move {
            let mut state = env.out_of_service.subscribe();
            let undone = async {
                let _ = state.wait_for(|out| !out).await;
            };
            env.sessions.empty(Duration::from_secs(seconds), undone).await;
        });
    }
    Ok(Json(drained(&env)))
}

/// Puts the node back in service.
#[utoipa::path(delete, path = "/v1/drain", responses((status = 200, body = Drained)))]
pub(crate) async fn undrain(State(env): State<Arc<AdminEnv>>, Extension(caller): Extension<Caller>) -> Json<Drained> {
    act::audit(&env, caller, "drain undone".to_owned());
    env.out_of_service.send_replace(false);
    Json(drained(&env))
}

fn drained(env: &AdminEnv) -> Drained {
    Drained {
        ready: env.not_ready().is_empty(),
        sessions: env.sessions.counts().values().sum(),
    }
}

/// Which logins.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct LoginQuery {
    /// Only those of this user: the login as typed, or the account's name.
    user: Option<String>,
    /// Those of this client address.
    #[param(value_type = Option<String>)]
    ip: Option<IpAddr>,
    /// Only failed ones.
    #[serde(default)]
    failed: bool,
    /// Send new ones as they happen, until the client closes the connection.
    #[serde(default)]
    follow: bool,
}

/// Returns the latest login attempts, mail and web, as lines of JSON in the form of the audit log, and with `follow`
/// new ones as they happen. A client that reads too slowly gets a line `{"lost": N}` in place of those it missed.
#[utoipa::path(get, path = "/v1/logins", params(LoginQuery), responses(
    (status = 200, content_type = "application/x-ndjson", body = String),
    (status = 503, description = "Too many clients follow already", body = ApiError),
))]
pub(crate) async fn logins(State(env): State<Arc<AdminEnv>>, Query(query): Query<LoginQuery>) -> Response {
    let filter = LoginFilter {
        failed: query.failed,
        user: query.user,
        ip: query.ip,
    };
    // First, so that no login is missed between the two; one of this moment is sent twice at worst.
    let coming = Some(()).filter(|()| query.follow).map(|()| env.logins.follow());
    let recent: String = env
        .logins
        .recent(&filter)
        .iter()
        .map(|attempt| json_line(attempt))
        .collect();
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    let coming = match coming {
        None => return (kind, recent).into_response(),
        Some(Some(coming)) => coming,
        Some(None) => {
            return ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "too many follow the logins already")
                .into_response();
        }
    };
    let first = stream::iter(Some(recent).filter(|recent| !recent.is_empty()));
    let rest = stream::unfold((coming, filter), |(mut coming, filter)| async move {
        let line = next(&mut coming, &filter).await?;
        Some((line, (coming, filter)))
    });
    let lines = first.chain(rest).map(Ok::<_, std::convert::Infallible>);
    (kind, Body::from_stream(lines)).into_response()
}

/// The next line for a watcher.
async fn next(coming: &mut Receiver<Arc<Attempt>>, filter: &LoginFilter) -> Option<String> {
    loop {
        match coming.recv().await {
            Ok(attempt) if filter.matches(&attempt.record) => return Some(json_line(&attempt)),
            Ok(_) => {}
            Err(RecvError::Lagged(lost)) => return Some(format!("{{\"lost\":{lost}}}\n")),
            Err(RecvError::Closed) => return None,
        }
    }
}

fn json_line(attempt: &Attempt) -> String {
    logs::json(attempt.time, &attempt.record) + "\n"
}
