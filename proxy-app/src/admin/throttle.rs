//! The throttle over the admin API: who is held off and why; failures forgotten, networks let through.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::{Extension, Json};
use ipnet::IpNet;
use jiff::Timestamp;
use mail_proxy::throttle::{Action, Allowance, HeldOff, Level, Mode, Moment, Rule, ThrottleReport};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::admin::act;
use crate::admin::api_error::ApiError;
use crate::admin::caller::Caller;
use crate::admin::orders;
use crate::admin::route::{counted_as, lookup_of, sentence};
use crate::admin::standing;
use crate::app::env::AdminEnv;
use crate::node::logs;

/// Longest time for which a network is let through: who needs longer writes it into the node file.
const ALLOWED_MAX: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// What the throttle does now.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct ThrottleState {
    /// Login attempts that it delays now.
    pub waiting: u64,
    /// Its rules.
    pub rules: Vec<RuleState>,
    /// Clients that it has delayed or refused lately, the latest first; at most 1,000.
    pub held_off: Vec<HeldOffClient>,
    /// Networks that are let through for some time.
    pub allowed: Vec<AllowedNetwork>,
}

/// A rule.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct RuleState {
    /// `pair`, `address`, `network`, `account`, `spray` or `many`.
    pub rule: String,
    /// `off`, `dry_run` or `on`.
    pub mode: String,
    /// Failures from which attempts are delayed; 0: never.
    pub delay_from: u32,
    /// Failures from which attempts are refused; 0: never.
    pub refuse_from: u32,
    /// Seconds after which a failure counts half.
    pub window: u64,
    /// Attempts delayed since the start.
    pub delayed: u64,
    /// Attempts refused since the start.
    pub refused: u64,
    /// Attempts that it would have delayed or refused, in dry run.
    pub would: u64,
}

/// A client that was delayed or refused.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct HeldOffClient {
    /// The rule.
    pub rule: String,
    /// `on`, or `dry_run` if it was only recorded.
    pub mode: String,
    /// The account that it last asked for.
    pub account: String,
    /// Its address, or its IPv6 network.
    pub client: String,
    /// Failures that counted.
    pub count: u32,
    /// When it ends without further failures, UTC.
    pub until: String,
    /// When it was last delayed or refused, UTC.
    pub last: String,
    /// How often it was delayed.
    pub delayed: u64,
    /// How often it was refused.
    pub refused: u64,
}

/// A network that is let through for some time.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct AllowedNetwork {
    /// The network.
    pub network: String,
    /// Until when, UTC.
    pub until: String,
    /// Why.
    pub reason: String,
}

/// Returns what the throttle does now: its rules, and whom it holds off.
#[utoipa::path(get, path = "/v1/throttle", responses((status = 200, body = ThrottleState)))]
pub(crate) async fn state(State(env): State<Arc<AdminEnv>>) -> Json<ThrottleState> {
    Json(described(&env))
}

fn described(env: &AdminEnv) -> ThrottleState {
    let settings = env.throttle.settings();
    let count = |rule: Rule, mode: Mode, action: Option<&str>| -> u64 {
        let counts = env.throttle.counts();
        let of_rule = counts.filter(|(found, of, what, _)| {
            (*found, *of) == (rule, mode) && action.is_none_or(|action| action == *what)
        });
        of_rule.map(|(.., count)| count).sum()
    };
    let rule_state = |rule: Rule| {
        let limits = settings.rule(rule);
        RuleState {
            rule: rule.name().to_owned(),
            mode: limits.mode.name().to_owned(),
            delay_from: limits.delay_from,
            refuse_from: limits.refuse_from,
            window: limits.window.as_secs(),
            delayed: count(rule, Mode::On, Some("delayed")),
            refused: count(rule, Mode::On, Some("refused")),
            would: count(rule, Mode::DryRun, None),
        }
    };
    ThrottleState {
        waiting: env.throttle.waiting() as u64,
        rules: Rule::ALL.map(rule_state).into(),
        held_off: env.throttle.held_off().into_iter().map(HeldOffClient::of).collect(),
        allowed: env.throttle.allowances().into_iter().map(AllowedNetwork::of).collect(),
    }
}

impl HeldOffClient {
    fn of(held: HeldOff) -> Self {
        Self {
            rule: held.rule.name().to_owned(),
            mode: held.mode.name().to_owned(),
            account: held.account,
            client: held.client,
            count: held.count,
            until: utc(held.until),
            last: utc(held.last),
            delayed: held.delayed,
            refused: held.refused,
        }
    }
}

impl AllowedNetwork {
    fn of(allowance: Allowance) -> Self {
        Self {
            network: allowance.network.to_string(),
            until: utc(allowance.until),
            reason: allowance.reason,
        }
    }
}

fn utc(moment: Moment) -> String {
    let seconds = i64::try_from(moment.0.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).map_or_else(|_| String::new(), logs::utc)
}

/// The login to explain.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ThrottleQuery {
    /// The login as typed, or a `zimbraId`.
    login: String,
    /// Address of the client.
    #[param(value_type = String)]
    ip: IpAddr,
}

/// What would become of a login now.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct ThrottleExplained {
    /// The account, or the name that no account has.
    pub account: String,
    /// Address of the client.
    pub client: String,
    /// Seconds since the account logged in from there, if it is known there.
    pub known: Option<u64>,
    /// Why the client is always let through, if it is.
    pub allowed: Option<String>,
    /// Different accounts that have logged in from the address.
    pub accounts: u32,
    /// Failures that the address may have for their sake.
    pub tolerated: u32,
    /// Every rule that is looked at.
    pub rules: Vec<RuleLevel>,
    /// What would become of the login, as a sentence.
    pub verdict: String,
    /// Seconds until the rule acts no more, without further failures.
    pub retry_after: Option<u64>,
}

/// How a rule looks at a login.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct RuleLevel {
    /// The rule.
    pub rule: String,
    /// `dry_run` or `on`.
    pub mode: String,
    /// Failures that count now.
    pub failures: u32,
    /// From how many it delays this login; 0: never.
    pub delay_from: u32,
    /// From how many it refuses this login; 0: never.
    pub refuse_from: u32,
    /// `pass`, `delay`, `turn` or `refuse`.
    pub action: String,
}

/// Returns what would become of a login from an address now, and why. It counts nothing.
#[utoipa::path(get, path = "/v1/throttle/explain", params(ThrottleQuery), responses(
    (status = 200, body = ThrottleExplained),
    (status = 400, body = ApiError),
))]
pub(crate) async fn explain(
    State(env): State<Arc<AdminEnv>>,
    Query(query): Query<ThrottleQuery>,
) -> Result<Json<ThrottleExplained>, ApiError> {
    let account = account_name(&env, &query.login, Some(query.ip)).await?;
    let report = env.throttle.explain(&account, query.ip, env.throttle.now());
    Ok(Json(ThrottleExplained::new(account, query.ip, report)))
}

/// The name under which failures of a login are counted.
async fn account_name(env: &AdminEnv, login: &str, client: Option<IpAddr>) -> Result<String, ApiError> {
    let lookup = lookup_of(login, client)?;
    let explanation = env.routes.explain(&lookup).await;
    Ok(counted_as(env, &lookup, &explanation))
}

impl ThrottleExplained {
    fn new(account: String, client: IpAddr, report: ThrottleReport) -> Self {
        let verdict = match (&report.finding, &report.allowed, report.known) {
            (Some(finding), ..) => sentence(finding),
            (None, Some(_), _) => "lets it through: its network is allowed".to_owned(),
            (None, None, Some(_)) => "lets it through: the account is known there".to_owned(),
            (None, None, None) => "lets it through".to_owned(),
        };
        Self {
            account,
            client: client.to_canonical().to_string(),
            known: report.known.map(|known| known.as_secs()),
            allowed: report.allowed,
            accounts: report.accounts,
            tolerated: report.tolerated,
            rules: report.levels.iter().map(RuleLevel::of).collect(),
            verdict,
            retry_after: report.finding.map(|finding| finding.retry_after()),
        }
    }
}

impl RuleLevel {
    fn of(level: &Level) -> Self {
        let action = match level.action {
            Action::Pass => "pass",
            Action::Delay(_) => "delay",
            Action::Turn => "turn",
            Action::Refuse => "refuse",
        };
        Self {
            rule: level.rule.name().to_owned(),
            mode: level.mode.name().to_owned(),
            failures: level.failures.round() as u32,
            delay_from: level.delay_from.round() as u32,
            refuse_from: level.refuse_from.round() as u32,
            action: action.to_owned(),
        }
    }
}

/// Which failures to forget: those of an account, of an address, of both together, or all.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Clear {
    /// A login as typed, or a `zimbraId`.
    #[serde(default)]
    pub login: Option<String>,
    /// Address of a client.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub ip: Option<IpAddr>,
    /// All.
    #[serde(default)]
    pub all: bool,
}

/// What was forgotten.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct ClearedFailures {
    /// How many counts; absent: all.
    pub forgotten: Option<u64>,
}

/// Forgets failures. Where an account is known stays known.
#[utoipa::path(post, path = "/v1/throttle/clear", request_body = Clear, responses(
    (status = 200, body = ClearedFailures),
    (status = 400, body = ApiError),
))]
pub(crate) async fn clear(
    State(env): State<Arc<AdminEnv>>,
    Extension(caller): Extension<Caller>,
    Json(clear): Json<Clear>,
) -> Result<Json<ClearedFailures>, ApiError> {
    if clear.all != (clear.login.is_none() && clear.ip.is_none()) {
        return Err(ApiError::bad("expected all, or a login, an ip or both"));
    }
    if clear.all {
        env.throttle.clear_all();
        act::audit(&env, caller, "clear all failed logins".to_owned());
        return Ok(Json(ClearedFailures { forgotten: None }));
    }
    let account = match &clear.login {
        Some(login) => Some(account_name(&env, login, clear.ip).await?),
        None => None,
    };
    let forgotten = env.throttle.clear(account.as_deref(), clear.ip);
    let parts = [
        account.map(|account| format!("of {account}")),
        clear.ip.map(|ip| format!("from {ip}")),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    act::audit(&env, caller, format!("clear failed logins {}", parts.join(" ")));
    Ok(Json(ClearedFailures {
        forgotten: Some(forgotten as u64),
    }))
}

/// A network to let through for some time.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Allow {
    /// An address or a network.
    pub network: String,
    /// For how many seconds.
    pub seconds: u64,
    /// Why.
    pub reason: String,
}

/// Lets a network through for some time: its failures are neither counted nor refused.
#[utoipa::path(post, path = "/v1/throttle/allow", request_body = Allow, responses(
    (status = 200, body = ThrottleState),
    (status = 400, body = ApiError),
))]
pub(crate) async fn allow(
    State(env): State<Arc<AdminEnv>>,
    Extension(caller): Extension<Caller>,
    Json(allow): Json<Allow>,
) -> Result<Json<ThrottleState>, ApiError> {
    let network = network(&allow.network)?;
    let reason = allow.reason.trim().to_owned();
    orders::check_reason(&reason)?;
    let lasts = orders::lasting("an allowance", allow.seconds, ALLOWED_MAX)?;
    act::audit(
        &env,
        caller,
        format!("allow {network} for {} s: {reason}", allow.seconds),
    );
    let until = env.throttle.now().after(lasts);
    let allowance = Allowance { network, until, reason };
    env.throttle.allow(allowance.clone()).map_err(ApiError::bad)?;
    standing::note_allowance(&env, &allowance);
    Ok(Json(described(&env)))
}

/// A network that is not to be let through any more.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Disallow {
    /// The network, as it was allowed.
    pub network: String,
}

/// Ends the time for which a network is let through.
#[utoipa::path(delete, path = "/v1/throttle/allow", request_body = Disallow, responses(
    (status = 200, body = ThrottleState),
    (status = 400, body = ApiError),
))]
pub(crate) async fn disallow(
    State(env): State<Arc<AdminEnv>>,
    Extension(caller): Extension<Caller>,
    Json(disallow): Json<Disallow>,
) -> Result<Json<ThrottleState>, ApiError> {
    let network = network(&disallow.network)?;
    let allowances = env.throttle.allowances();
    let ended = allowances.into_iter().find(|allowance| allowance.network == network);
    let Some(ended) = ended.filter(|_| env.throttle.disallow(network)) else {
        return Err(ApiError::bad(format!("{network} is not allowed for some time")));
    };
    standing::note_disallowed(&env, &ended);
    act::audit(&env, caller, format!("disallow {network}"));
    Ok(Json(described(&env)))
}

/// An address, or a network in its one form.
fn network(text: &str) -> Result<IpNet, ApiError> {
    let network = text.parse().map(|network: IpNet| network.trunc());
    let network = network.or_else(|_| text.parse().map(|address: IpAddr| IpNet::from(address.to_canonical())));
    network.map_err(|_| ApiError::bad(format!("{text:?} is no address and no network")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_have_one_form() {
        for (text, expected) in [
            ("192.0.2.7", Some("192.0.2.7/32")),
            ("192.0.2.7/24", Some("192.0.2.0/24")),
            ("::ffff:192.0.2.7", Some("192.0.2.7/32")),
            ("2001:db8::1/64", Some("2001:db8::/64")),
            ("nowhere", None),
        ] {
            let found = network(text).ok().map(|network| network.to_string());
            assert_eq!(found.as_deref(), expected, "{text}");
        }
    }
}
