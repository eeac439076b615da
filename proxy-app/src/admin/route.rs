//! Routes, explained and forgotten, over the admin API.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use mail_directory::names;
use mail_proxy::login_name;
use mail_proxy::throttle::{Action, Finding};
use route_cache::{
    AccountReport, AnswerKind, Explanation, FoundBy, Lookup, NameDomain, Route, Service, Subject, TierReport,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::admin::act;
use crate::admin::api_error::ApiError;
use crate::admin::caller::Caller;
use crate::admin::turns::Turns;
use crate::app::env::AdminEnv;
use crate::upstream::groups::Health;

/// Most logins in one purge.
const MAX_PURGE: usize = 1000;

/// The protocol of a login.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[schema(as = Wanted)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LoginProtocol {
    /// IMAP
    #[default]
    Imap,
    /// POP3
    Pop3,
    /// Web client, SOAP, DAV, ActiveSync.
    Web,
    /// Administration.
    Admin,
}

impl LoginProtocol {
    fn service(self) -> Service {
        match self {
            Self::Imap => Service::Imap,
            Self::Pop3 => Service::Pop3,
            Self::Web => Service::Web,
            Self::Admin => Service::Admin,
        }
    }
}

/// The login to explain, and where it comes from.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ExplainQuery {
    /// The login as typed, or a `zimbraId`.
    login: String,
    /// The protocol; `imap` if absent.
    #[serde(default)]
    #[param(inline)]
    protocol: LoginProtocol,
    /// Address of the client. Absent: one that every domain allows.
    #[param(value_type = Option<String>)]
    ip: Option<IpAddr>,
    /// Host name that the client asks for, as SNI or Host.
    host: Option<String>,
    /// Local address that the client connects to.
    #[param(value_type = Option<String>)]
    local: Option<IpAddr>,
}

/// How a login would be routed now.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct Explained {
    /// The login as typed, without suffix.
    pub login: String,
    /// The suffix that was removed: `/tb`, `/wm` or `/ni`.
    pub suffix: Option<String>,
    /// The name or id that is looked up in the caches and the directory.
    pub name: Option<String>,
    /// The domain of the name.
    pub domain: Option<DomainOf>,
    /// The account's entry in the directory.
    pub account: Option<Account>,
    /// Why there is none.
    pub no_account: Option<String>,
    /// The answer of each tier, in the order in which they are asked.
    pub tiers: Vec<TierAnswer>,
    /// The route of the login.
    pub route: Option<ExplainedRoute>,
    /// Why there is no route.
    pub no_route: Option<String>,
    /// What would still make the login fail, one sentence each.
    pub in_the_way: Vec<String>,
    /// Number of the configuration in force.
    pub generation: u64,
}

/// The domain of a login, and how it was found.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct DomainOf {
    /// Its name.
    pub name: String,
    /// `given`, `virtual_host`, `virtual_address`, `default` or `service`.
    pub found_by: String,
    /// How it was found, as a sentence.
    pub because: String,
    /// Whether the directory has it.
    pub known: bool,
    /// The target of this alias domain.
    pub target: Option<String>,
}

/// An account's entry.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct Account {
    /// Canonical name.
    pub name: String,
    /// `zimbraId`
    pub id: Option<String>,
    /// `zimbraAccountStatus`
    pub status: String,
    /// The login is an alias.
    pub alias: bool,
    /// Its server, as the entry names it.
    pub server: Option<String>,
}

/// The answer of a tier.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct TierAnswer {
    /// `memory`, `stale`, `memcached` or `directory`.
    pub tier: String,
    /// `account`, `nobody`, `nothing` or `failed`.
    pub says: String,
    /// The account.
    pub account: Option<String>,
    /// Its server; absent for an external one.
    pub server: Option<String>,
    /// Why it failed.
    pub why: Option<String>,
    /// How many seconds old the answer is at most.
    pub age: Option<u64>,
}

/// The route of a login.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(as = Way)]
pub(crate) struct ExplainedRoute {
    /// The name to log in with at the server.
    pub login: String,
    /// The server's name.
    pub server: String,
    /// Host or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Name that the server's certificate must be valid for; absent: clear text.
    pub tls: Option<String>,
    /// The server is not in the directory.
    pub external: bool,
    /// The tier that answered.
    pub tier: String,
    /// How many seconds old the answer is at most.
    pub age: Option<u64>,
}

/// Returns how a login would be routed now, and why. It changes no cache, connects to no server and counts nothing.
#[utoipa::path(get, path = "/v1/routes/explain", params(ExplainQuery), responses(
    (status = 200, body = Explained),
    (status = 400, body = ApiError),
))]
pub(crate) async fn explain(
    State(env): State<Arc<AdminEnv>>,
    Query(query): Query<ExplainQuery>,
) -> Result<Json<Explained>, ApiError> {
    let (lookup, suffix) = query.lookup()?;
    let generation = env.snapshot.load().generation;
    let explanation = env.routes.explain(&lookup).await;
    let account = counted_as(&env, &lookup, &explanation);
    let throttled = query.ip.and_then(|client| throttled(&env, &account, client));
    let (Subject::Login(login) | Subject::Id(login)) = lookup.subject;
    let mut explained = Explained::new(login, suffix, explanation, generation);
    // The mail side of a server may be healthy where its web side is not.
    if matches!(query.protocol, LoginProtocol::Web | LoginProtocol::Admin) {
        let health = explained.route.as_ref().and_then(|way| unwell(&env, &way.server));
        explained.in_the_way.extend(health);
    }
    explained.in_the_way.extend(throttled);
    Ok(Json(explained))
}

/// The name under which failures of a login that was explained are counted.
pub(super) fn counted_as(env: &AdminEnv, lookup: &Lookup, explanation: &Explanation) -> String {
    match (&explanation.route, &explanation.account) {
        (Ok(route), _) => route.account.to_string(),
        (Err(_), AccountReport::Found(account)) => names::account(&account.name),
        (Err(_), _) => env.routes.key_name(lookup),
    }
}

/// What the throttle would do to a login, if anything, as a sentence.
fn throttled(env: &AdminEnv, account: &str, client: IpAddr) -> Option<String> {
    let report = env.throttle.explain(account, client, env.throttle.now());
    Some(format!("the throttle {}", sentence(&report.finding?)))
}

/// What the throttle does to a login, and why.
pub(super) fn sentence(finding: &Finding) -> String {
    let (rule, count) = (finding.rule.name(), finding.count);
    let what = match finding.action {
        Action::Pass => return "lets it through".to_owned(),
        Action::Delay(delay) => format!("delays it for {} s", delay.as_secs()),
        Action::Turn => "lets attempts go first that have no answer yet".to_owned(),
        Action::Refuse => format!("refuses it for {} s", finding.retry_after()),
    };
    format!("{what}: rule {rule}, {count} failures")
}

/// Why web checks call a server unhealthy, if they do.
fn unwell(env: &AdminEnv, server: &str) -> Option<String> {
    let groups = env.groups.all();
    let mut states = groups.iter().flat_map(|group| group.state());
    let state = states.find(|state| state.server == server && (state.health != Health::Up || state.maintenance))?;
    let why = state.why.map_or(String::new(), |why| format!(": {why}"));
    Some(match state.health {
        Health::Up => format!("server {server} is in maintenance for unauthenticated web requests"),
        Health::NotReady => format!("server {server} says that it is not ready{why}"),
        Health::Unreachable => format!("server {server} does not answer web checks{why}"),
    })
}

impl ExplainQuery {
    fn lookup(&self) -> Result<(Lookup, Option<&'static str>), ApiError> {
        let anywhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let (subject, suffix) = subject(&self.login)?;
        let lookup = Lookup {
            subject,
            service: self.protocol.service(),
            client: self.ip.unwrap_or(anywhere),
            local: self.local.unwrap_or(anywhere),
            host: self.host.clone(),
        };
        Ok((lookup, suffix))
    }
}

/// The subject of the lookup: a login as a mail program would send it, or an id.
fn subject(typed: &str) -> Result<(Subject, Option<&'static str>), ApiError> {
    if is_id(typed) {
        return Ok((Subject::Id(typed.to_owned()), None));
    }
    let Some((name, suffix)) = login_name(typed) else {
        return Err(ApiError::bad("no account can have this name"));
    };
    Ok((Subject::Login(name.to_owned()), suffix))
}

/// The form of a `zimbraId`: 8-4-4-4-12 hexadecimal digits.
fn is_id(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    let lengths = groups.iter().map(|group| group.len());
    lengths.eq([8, 4, 4, 4, 12]) && text.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit())
}

impl Explained {
    fn new(login: String, suffix: Option<&str>, explanation: Explanation, generation: u64) -> Self {
        let tiers: Vec<TierAnswer> = explanation.tiers.into_iter().map(TierAnswer::new).collect();
        let (account, no_account) = match explanation.account {
            AccountReport::Found(found) => {
                let account = Account {
                    name: found.name,
                    id: found.id,
                    status: found.status,
                    alias: found.alias,
                    server: found.server,
                };
                (Some(account), None)
            }
            AccountReport::Nobody => (None, Some("the directory has no such account".to_owned())),
            AccountReport::NotAsked => (None, Some("the directory is not asked for accounts".to_owned())),
            AccountReport::Failed(why) => (None, Some(format!("the directory does not answer: {why}"))),
        };
        let (route, no_route) = match explanation.route {
            Ok(route) => (Some(ExplainedRoute::new(&route, &tiers)), None),
            Err(error) => (None, Some(error.to_string())),
        };
        Self {
            login,
            suffix: suffix.map(str::to_owned),
            name: explanation.name,
            domain: explanation.domain.map(DomainOf::new),
            account,
            no_account,
            tiers,
            route,
            no_route,
            in_the_way: explanation.blockers.iter().map(ToString::to_string).collect(),
            generation,
        }
    }
}

impl DomainOf {
    fn new(domain: NameDomain) -> Self {
        let (found_by, because) = match domain.by {
            FoundBy::Given => ("given", "it was typed".to_owned()),
            FoundBy::VirtualHost(host) => (
                "virtual_host",
                format!("the client asked for {host} (zimbraVirtualHostname)"),
            ),
            FoundBy::VirtualAddress(address) => (
                "virtual_address",
                format!("the client connected to {address} (zimbraVirtualIPAddress)"),
            ),
            FoundBy::Default => ("default", "it is the default (zimbraDefaultDomainName)".to_owned()),
            FoundBy::Service => ("service", "a lookup service finds it".to_owned()),
        };
        Self {
            name: domain.name,
            found_by: found_by.to_owned(),
            because,
            known: domain.known,
            target: domain.target,
        }
    }
}

impl TierAnswer {
    fn new(tier: TierReport) -> Self {
        let (says, account, server, why) = match tier.answer {
            AnswerKind::Nothing => ("nothing", None, None, None),
            AnswerKind::Account { name, server } => ("account", Some(name), server, None),
            AnswerKind::Nobody => ("nobody", None, None, None),
            AnswerKind::Failed(why) => ("failed", None, None, Some(why)),
        };
        Self {
            tier: tier.tier.name().to_owned(),
            says: says.to_owned(),
            account,
            server,
            why,
            age: tier.age.map(|age| age.as_secs()),
        }
    }
}

impl ExplainedRoute {
    fn new(route: &Route, tiers: &[TierAnswer]) -> Self {
        let tier = route.tier.name();
        Self {
            login: route.login.to_string(),
            server: route.server.to_string(),
            host: route.host.to_string(),
            port: route.port,
            tls: route.tls.name().map(ToString::to_string),
            external: route.external,
            age: tiers
                .iter()
                .find(|answer| answer.tier == tier)
                .and_then(|answer| answer.age),
            tier: tier.to_owned(),
        }
    }
}

/// Which routes to purge.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Purge {
    /// Logins as typed, names, aliases or ids.
    #[serde(default)]
    pub logins: Vec<String>,
    /// All.
    #[serde(default)]
    pub all: bool,
}

/// What was purged.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Forgotten {
    /// By account.
    pub accounts: Vec<ForgottenAccount>,
    /// How many answers were in memory, if all were purged.
    pub all: Option<u64>,
}

/// What was purged of one account.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct ForgottenAccount {
    /// The login, as in the request.
    pub login: String,
    /// Every name and id.
    pub names: Vec<ForgottenName>,
}

/// A name that was purged.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct ForgottenName {
    /// Name, alias or id.
    pub name: String,
    /// Whether it was in memory. In memcached it is deleted in any case.
    pub in_memory: bool,
}

/// Purges the routes of accounts, under every known name and id, in memory and in memcached; or all routes in
/// memory, and ignores what memcached holds until it has expired.
#[utoipa::path(post, path = "/v1/routes/purge", request_body = Purge, responses(
    (status = 200, body = Forgotten),
    (status = 400, body = ApiError),
))]
pub(crate) async fn purge(
    State(env): State<Arc<AdminEnv>>,
    Extension(caller): Extension<Caller>,
    Extension(turns): Extension<Arc<Turns>>,
    Json(purge): Json<Purge>,
) -> Result<Json<Forgotten>, ApiError> {
    if purge.all != purge.logins.is_empty() || purge.logins.len() > MAX_PURGE {
        return Err(ApiError::bad(format!("expected all, or 1 to {MAX_PURGE} logins")));
    }
    let lookups = purge.logins.into_iter().map(|login| {
        let lookup = lookup_of(&login, None)?;
        Ok((login, lookup))
    });
    let lookups = lookups.collect::<Result<Vec<_>, ApiError>>()?;
    if purge.all {
        let all = env.routes.len() as u64;
        env.routes.clear();
        act::audit(&env, caller, "purge all routes".to_owned());
        return Ok(Json(Forgotten {
            accounts: Vec::new(),
            all: Some(all),
        }));
    }
    let failed = |error: &dyn std::fmt::Display| {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the purge did not end: {error}"),
        )
    };
    let turn = turns
        .purges
        .clone()
        .acquire_owned()
        .await
        .map_err(|error| failed(&error))?;
    let task = tokio::spawn(async move {
        let _turn = turn;
        forget(&env, caller, lookups).await
    });
    task.await.map_err(|error| failed(&error))?.map(Json)
}

async fn forget(env: &AdminEnv, caller: Caller, lookups: Vec<(String, Lookup)>) -> Result<Forgotten, ApiError> {
    let mut accounts = Vec::new();
    for (login, lookup) in lookups {
        let purged = env.routes.purge(&lookup).await;
        let purged = purged.map_err(|error| ApiError::bad(format!("{login}: {error}")))?;
        act::audit(env, &caller, format!("purge route of {login}"));
        accounts.push(ForgottenAccount {
            login,
            names: purged
                .into_iter()
                .map(|purged| ForgottenName {
                    name: purged.key,
                    in_memory: purged.in_memory,
                })
                .collect(),
        });
    }
    Ok(Forgotten { accounts, all: None })
}

/// The lookup of a login from this client, or from anywhere.
pub(super) fn lookup_of(login: &str, ip: Option<IpAddr>) -> Result<Lookup, ApiError> {
    let query = ExplainQuery {
        login: login.to_owned(),
        protocol: LoginProtocol::Imap,
        ip,
        host: None,
        local: None,
    };
    Ok(query.lookup()?.0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mail_proxy::throttle::Rule;

    use super::*;

    #[test]
    fn findings_are_sentences() {
        let finding = |action| Finding {
            rule: Rule::Spray,
            action,
            count: 21,
            lasts: Duration::from_secs(89),
        };
        let refused = sentence(&finding(Action::Refuse));
        assert_eq!(refused, "refuses it for 90 s: rule spray, 21 failures");
        let delayed = sentence(&finding(Action::Delay(Duration::from_secs(2))));
        assert_eq!(delayed, "delays it for 2 s: rule spray, 21 failures");
    }

    #[test]
    fn a_login_is_a_name_or_an_id() {
        for (typed, expected) in [
            ("al/tb", Some((Subject::Login("al".to_owned()), Some("/tb")))),
            ("al@a.test", Some((Subject::Login("al@a.test".to_owned()), None))),
            (
                "11111111-2222-3333-4444-55555555555F",
                Some((Subject::Id("11111111-2222-3333-4444-55555555555F".to_owned()), None)),
            ),
            (
                "11111111-2222-3333-4444-55555555555g",
                Some((Subject::Login("11111111-2222-3333-4444-55555555555g".to_owned()), None)),
            ),
            ("", None),
            ("a\r\nb", None),
        ] {
            assert_eq!(subject(typed).ok(), expected, "{typed:?}");
        }
    }
}
