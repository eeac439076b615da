//! Holds over the admin API: new logins of an account, a domain or a server wait.

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use jiff::Timestamp;
use mail_directory::names;
use route_cache::{Held, Hold, LONGEST_HOLD, Lookup, RouteError, Service, Subject};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::admin::act;
use crate::admin::api_error::ApiError;
use crate::admin::caller::Caller;
use crate::admin::orders::{self, is_text};
use crate::admin::standing;
use crate::app::env::AdminEnv;
use crate::app::moves::rivals::MoveClaim;
use crate::node::logs;

/// Whose logins; one of the three.
#[derive(Debug, Default, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct HoldName {
    /// A name, an alias or the `zimbraId` of an account.
    #[serde(default)]
    pub account: Option<String>,
    /// The name of a domain.
    #[serde(default)]
    pub domain: Option<String>,
    /// The name of a mailbox server.
    #[serde(default)]
    pub server: Option<String>,
    /// `account` is the name of an account and nothing else: the directory is not asked.
    #[serde(default)]
    pub exact: bool,
    /// Who has ordered it at the node that asks.
    #[serde(default)]
    pub by: Option<String>,
    /// That node moves the account, since then, in milliseconds since 1970.
    #[serde(default)]
    pub move_since: Option<u64>,
}

impl HoldName {
    /// The move of another node that this is a step of.
    fn claim(&self, caller: &Caller) -> Option<MoveClaim> {
        let Caller::Node { name } = caller else { return None };
        self.move_since.map(|since| MoveClaim {
            since,
            node: name.to_string(),
        })
    }
}

/// A hold to begin.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct HoldOrder {
    /// Whose logins.
    #[serde(flatten)]
    pub held: HoldName,
    /// After how many seconds it ends by itself; at most a day.
    pub seconds: u64,
    /// Why. It is shown to administrators only.
    pub reason: String,
}

/// A hold.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct OneHold {
    /// `account`, `domain` or `server`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
    /// When it began, UTC.
    pub since: String,
    /// When it ends by itself, UTC.
    pub until: String,
}

/// All holds.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct HoldList {
    /// By kind and name.
    pub holds: Vec<OneHold>,
}

impl OneHold {
    fn of(hold: &Hold) -> Self {
        let (kind, name) = match &hold.held {
            Held::Account(name) => ("account", name),
            Held::Domain(name) => ("domain", name),
            Held::Server(name) => ("server", name),
        };
        let utc = |time: SystemTime| Timestamp::try_from(time).map(logs::utc).unwrap_or_default();
        Self {
            kind: kind.to_owned(),
            name: name.clone(),
            reason: hold.reason.clone(),
            since: utc(hold.since),
            until: utc(hold.until),
        }
    }
}

/// Lists the holds of this node.
#[utoipa::path(get, path = "/v1/holds", responses((status = 200, body = HoldList)))]
pub(crate) async fn list(State(env): State<Arc<AdminEnv>>) -> Json<HoldList> {
    let holds = env.routes.holds().all();
    Json(HoldList {
        holds: holds.iter().map(OneHold::of).collect(),
    })
}

/// Begins a hold, or changes the one that there is: new mail logins wait for its end (`mail.hold_wait`) and then hear
/// `mail.hold_text`; web requests get 503. Sessions go on.
#[utoipa::path(post, path = "/v1/holds", request_body = HoldOrder, responses(
    (status = 200, body = OneHold),
    (status = 400, body = ApiError),
    (status = 404, description = "There is no such account, domain or server", body = ApiError),
    (status = 409, description = "This node moves the account, and the node that asks began later", body = ApiError),
    (status = 503, description = "There are too many holds", body = ApiError),
))]
pub(crate) async fn begin(
    State(env): State<Arc<AdminEnv>>,
    Extension(caller): Extension<Caller>,
    Json(order): Json<HoldOrder>,
) -> Result<Json<OneHold>, ApiError> {
    orders::check_reason(&order.reason)?;
    let lasts = orders::lasting("a hold", order.seconds, LONGEST_HOLD)?;
    let since = SystemTime::now();
    let hold = Hold {
        held: resolve(&env, &order.held, Missing::Refused).await?,
        reason: order.reason,
        since,
        until: since + lasts,
    };
    if let (Held::Account(account), Some(claim)) = (&hold.held, order.held.claim(&caller)) {
        let here = env.config.load().node.clone();
        let gives_way = env.app.moves().give_way(account, claim, hold.until, &here);
        gives_way.map_err(|why| ApiError::new(StatusCode::CONFLICT, why))?;
    }
    let begun = env.routes.holds().begin(hold.clone());
    begun.map_err(|error| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()))?;
    standing::note_hold(&env, &hold);
    env.app.keep_state().await;
    let act = format!("hold {} for {} s: {}", hold.held, order.seconds, hold.reason);
    act::audit(&env, orders::given_by(&caller, order.held.by.as_deref()), act);
    Ok(Json(OneHold::of(&hold)))
}

/// Ends a hold: logins that wait go on, and ask for their route again.
#[utoipa::path(post, path = "/v1/holds/release", request_body = HoldName, responses(
    (status = 200, body = OneHold),
    (status = 400, body = ApiError),
    (status = 404, description = "There is no such hold", body = ApiError),
))]
pub(crate) async fn release(
    State(env): State<Arc<AdminEnv>>,
    Extension(caller): Extension<Caller>,
    Json(name): Json<HoldName>,
) -> Result<Json<OneHold>, ApiError> {
    let held = resolve(&env, &name, Missing::Named).await?;
    if let Held::Account(account) = &held {
        end_of_move(&env, account, name.claim(&caller).as_ref())?;
        // It may have moved while it was held: those who wait ask for their route anew.
        env.app.forget_account(account);
    }
    let Some(hold) = env.routes.holds().release(&held) else {
        return Err(ApiError::new(StatusCode::NOT_FOUND, format!("{held} is not held")));
    };
    standing::note_release(&env, &hold);
    env.app.keep_state().await;
    let who = orders::given_by(&caller, name.by.as_deref());
    act::audit(&env, who, format!("release {held}"));
    Ok(Json(OneHold::of(&hold)))
}

/// Notes that what held an account does not any more.
///
/// # Errors
/// It is held by a move that goes on, and the one that was told of is another.
fn end_of_move(env: &AdminEnv, account: &str, claim: Option<&MoveClaim>) -> Result<(), ApiError> {
    let (moves, here) = (env.app.moves(), env.config.load().node.clone());
    match claim {
        None => moves.released(account),
        Some(claim) if moves.ended_elsewhere(account, claim, &here) => {}
        Some(_) => {
            let why = format!("another move holds {account}");
            return Err(ApiError::new(StatusCode::NOT_FOUND, why));
        }
    }
    Ok(())
}

/// What to do about a name that the directory does not have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// It is refused.
    Refused,
    /// It is taken as it is: there may be a hold of it.
    Named,
}

async fn resolve(env: &AdminEnv, name: &HoldName, missing: Missing) -> Result<Held, ApiError> {
    let HoldName {
        account,
        domain,
        server,
        exact,
        ..
    } = name;
    let held = match (account, domain, server) {
        (Some(account), None, None) if *exact && is_text(account) => Held::Account(names::account(account)),
        (Some(account), None, None) if is_text(account) => Held::Account(canonical(env, account, missing).await?),
        (None, Some(domain), None) if is_text(domain) => Held::Domain(target_of(env, domain)),
        (None, None, Some(server)) if is_text(server) => Held::Server(entry_of(env, server)),
        _ => return Err(ApiError::bad("expected an account, a domain or a server")),
    };
    let snapshot = env.snapshot.load();
    let known = match &held {
        Held::Account(_) => true,
        Held::Domain(name) => snapshot.system.domain(name).is_some(),
        Held::Server(name) => snapshot.system.server(name).is_some(),
    };
    match known || missing == Missing::Named {
        true => Ok(held),
        false => Err(ApiError::new(
            StatusCode::NOT_FOUND,
            format!("the directory has no {held}"),
        )),
    }
}

/// The name of a server's entry: it may be called by its host name.
fn entry_of(env: &AdminEnv, server: &str) -> String {
    let snapshot = env.snapshot.load();
    let entry = snapshot.system.server(server);
    entry.map_or(server, |entry| entry.name()).to_ascii_lowercase()
}

/// The name of the account, whatever name it is called by. While the directory is down, what was typed.
pub(super) async fn canonical(env: &AdminEnv, name: &str, missing: Missing) -> Result<String, ApiError> {
    let unspecified = std::net::Ipv4Addr::UNSPECIFIED.into();
    let lookup = Lookup {
        subject: match name.contains('@') {
            true => Subject::Login(name.to_owned()),
            false => Subject::Id(name.to_owned()),
        },
        service: Service::Imap,
        client: unspecified,
        local: unspecified,
        host: None,
    };
    match env.routes.route(&lookup).await {
        Ok(route) => Ok(route.account.to_string()),
        Err(RouteError::UnknownUser) if missing == Missing::Refused => Err(ApiError::new(
            StatusCode::NOT_FOUND,
            format!("the directory has no account {name}"),
        )),
        Err(_) => Ok(names::account(name)),
    }
}

/// The domain whose accounts have addresses in this one: itself, or the target of an alias domain.
fn target_of(env: &AdminEnv, domain: &str) -> String {
    let snapshot = env.snapshot.load();
    let alias = snapshot.system.domain(domain);
    let target = alias.and_then(|alias| snapshot.system.target_of_alias(&alias));
    names::host(target.map_or(domain, |target| target.name()))
}
