//! Requests of the admin API that all nodes carry out: the node that is asked passes them on, and its answer names every
//! other node with what that one has said, or that it has said nothing.
//!
//! A request travels as it is, and takes the same way through the API of the other node: the same checks, the same audit
//! records. So what is in [`SHARED`] needs nothing else to act on all nodes.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;
use utoipa::ToSchema;

use crate::admin::api_error::ApiError;
use crate::admin::caller::Caller;
use crate::admin::{live_probes, standing, taken};
use crate::app::env::AdminEnv;
use crate::nodes::{ANSWERS, Local, NodeDuty, Nodes, Said, SelfReport, StandingOrder};

/// Longest answer of a node to another one.
const ANSWER_MAX: usize = 768 * 1024;
/// Sessions that a node lists for another one.
const SESSIONS: usize = 500;
/// Longest body that is passed on: no request has a longer one.
const PASSED_MAX: usize = 64 * 1024;
/// How long an answer of one node is waited for where that waits for something itself. The process that asks ours waits a
/// minute.
const WAITED: Duration = Duration::from_secs(55);
/// Longest query that is passed on.
const QUERY_MAX: usize = 4 * 1024;

/// A request that nodes pass on to each other.
struct SharedRequest {
    method: Method,
    path: &'static str,
    /// Whether it goes to all nodes unless it says otherwise. The others go to a node that is named.
    all: bool,
    /// Whether it takes long: it waits for something, or each node has a limit for it.
    is_long: bool,
    /// How all nodes do it at the same time. `None`: this node does it first, and the others if it has not refused.
    together: Option<DoneTogether>,
}

/// A request that takes so long that no node waits for another one to begin it.
#[derive(Clone, Copy)]
struct DoneTogether {
    /// How long each node has for it.
    within: Duration,
    /// Refuses it before any other node hears of it.
    admit: Admission,
}

/// Finds a place for a request of this caller, which it keeps until all nodes have answered, and has a look at the
/// request if it is for this node. It does not wait.
type Admission = fn(&AdminEnv, Option<&Caller>, Option<&Uri>) -> Result<OwnedSemaphorePermit, ApiError>;

const fn shared(method: Method, path: &'static str) -> SharedRequest {
    SharedRequest {
        method,
        path,
        all: true,
        is_long: false,
        together: None,
    }
}

impl SharedRequest {
    const fn long(mut self) -> Self {
        self.is_long = true;
        self
    }

    const fn done_together(mut self, within: Duration, admit: Admission) -> Self {
        self.together = Some(DoneTogether { within, admit });
        self.long()
    }

    const fn on_request(mut self) -> Self {
        self.all = false;
        self
    }
}

/// All of them. A node takes no other request from another one.
static SHARED: [SharedRequest; 16] = [
    shared(Method::GET, "/v1/sessions"),
    shared(Method::POST, "/v1/sessions/kick"),
    shared(Method::POST, "/v1/sessions/end"),
    shared(Method::POST, "/v1/sessions/count"),
    shared(Method::POST, "/v1/routes/purge"),
    shared(Method::POST, "/v1/routes/confirm").long(),
    shared(Method::POST, "/v1/directory/wait").long(),
    shared(Method::POST, "/v1/throttle/clear"),
    shared(Method::POST, "/v1/throttle/allow"),
    shared(Method::DELETE, "/v1/throttle/allow"),
    shared(Method::POST, "/v1/holds"),
    shared(Method::POST, "/v1/holds/release"),
    shared(Method::POST, "/v1/drain").on_request(),
    shared(Method::DELETE, "/v1/drain").on_request(),
    shared(Method::POST, "/v1/certificates/order").long().on_request(),
    shared(Method::GET, "/v1/certificates/probe").done_together(live_probes::PROBED, live_probes::admit),
];

// An answer of all nodes comes while its client still waits.
const _: () = assert!(live_probes::PROBED.as_millis() < WAITED.as_millis());

/// Whether a request is passed on, for the description of the API.
pub(crate) fn is_shared(method: &str, path: &str) -> bool {
    let mut known = SHARED.iter();
    known.any(|shared| shared.method.as_str().eq_ignore_ascii_case(method) && shared.path == path)
}

/// What another node has said.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct NodeAnswer {
    /// Its name.
    pub node: String,
    /// Why it has not done it, or that it has not answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Its answer, in the form of ours; absent where there was nothing to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub answer: Option<Value>,
}

/// Which nodes a request is for; taken out of its query.
#[derive(Debug, Default, PartialEq, Eq)]
struct Scope {
    local: bool,
    node: Option<String>,
}

impl Scope {
    /// The scope, and what is left of the query.
    fn of(query: &str) -> Result<(Self, String), ApiError> {
        let mut scope = Self::default();
        let mut rest = Vec::new();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                Some(("local", value)) => {
                    let local = value.parse();
                    scope.local = local.map_err(|_| ApiError::bad("local: expected true or false"))?;
                }
                Some(("node", name)) => {
                    let name = percent_encoding::percent_decode_str(name).decode_utf8();
                    let name = name.map_err(|_| ApiError::bad("node: expected a name"))?;
                    scope.node = Some(name.to_ascii_lowercase());
                }
                _ => rest.push(part),
            }
        }
        Ok((scope, rest.join("&")))
    }
}

/// A request without its scope, as it is passed on.
struct Passed {
    verb: String,
    body: Value,
}

/// Passes requests on, before and beside their own handlers.
pub(crate) async fn everywhere(State(env): State<Arc<AdminEnv>>, request: Request, next: Next) -> Response {
    let known = SHARED
        .iter()
        .find(|shared| shared.method == request.method() && shared.path == request.uri().path());
    let Some(shared) = known else {
        return next.run(request).await;
    };
    let passed = async move {
        let passed = pass(&env, shared, request, next).await;
        passed.unwrap_or_else(IntoResponse::into_response)
    };
    if shared.together.is_none() {
        return passed.await;
    }
    // It goes on when its client has gone, and keeps its place: other nodes have begun it, too.
    tokio::spawn(passed).await.unwrap_or_else(|_| {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the answer of this node is not what it should be",
        )
        .into_response()
    })
}

async fn pass(env: &Arc<AdminEnv>, shared: &SharedRequest, request: Request, next: Next) -> Result<Response, ApiError> {
    let (scope, query) = Scope::of(request.uri().query().unwrap_or_default())?;
    let is_here = scope.node.as_ref().is_none_or(|node| *node == env.config.load().node);
    let caller = request.extensions().get::<Caller>();
    let comes_from_a_node = matches!(caller, Some(Caller::Node { .. }));
    let admitted = shared.together.map(|together| {
        let to_look_at = is_here.then_some(request.uri());
        (together.admit)(env, caller, to_look_at)
    });
    let _place = admitted.transpose()?;
    let Some(nodes) = env.nodes.as_ref().filter(|_| !scope.local && !comes_from_a_node) else {
        return match is_here {
            true => Ok(next.run(request).await),
            false => Err(ApiError::bad("there is no shared_state: this node knows no other one")),
        };
    };
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, PASSED_MAX).await;
    let body = body.map_err(|_| ApiError::bad("the body does not come, or is too long"))?;
    let passed = Passed::new(&parts, &query, &body);
    match (is_here, scope.node) {
        (false, Some(node)) => {
            let wait = if shared.is_long { WAITED } else { ANSWERS };
            passed?.to_one(nodes, &node, wait).await
        }
        (true, None) if shared.all => {
            let passed = passed?;
            let here = next.run(Request::from_parts(parts, Body::from(body)));
            let within = shared.together.map(|together| together.within);
            match within.or_else(|| passed.waits()) {
                Some(within) => passed.to_all_at_once(nodes, here, within).await,
                None => passed.to_all(nodes, here.await).await,
            }
        }
        _ => Ok(next.run(Request::from_parts(parts, Body::from(body))).await),
    }
}

/// The answer of another node to a request of [`SHARED`] without a query.
pub(crate) async fn answer_of(nodes: &Nodes, node: &str, path: &str, body: &Value) -> Result<Value, ApiError> {
    ask_one(nodes, node, (&format!("POST {path}?"), body), WAITED).await
}

async fn ask_one(nodes: &Nodes, node: &str, (verb, body): (&str, &Value), wait: Duration) -> Result<Value, ApiError> {
    let said = nodes.order(Some(node), verb, body, wait).await;
    // In an upgrade two processes are one node: the younger one counts.
    let said = said.into_iter().next_back();
    let said = said.ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, format!("no node {node} is known")))?;
    let failed = |why| ApiError::new(StatusCode::BAD_GATEWAY, format!("{node}: {why}"));
    said.answer.map_err(failed)
}

impl Passed {
    fn new(parts: &Parts, query: &str, body: &[u8]) -> Result<Self, ApiError> {
        let body = match body.is_empty() {
            true => Value::Null,
            false => serde_json::from_slice(body).map_err(|error| ApiError::bad(error.to_string()))?,
        };
        Ok(Self {
            verb: format!("{} {}?{query}", parts.method, parts.uri.path()),
            body,
        })
    }

    /// The answer of one node in the place of ours.
    async fn to_one(&self, nodes: &Nodes, node: &str, wait: Duration) -> Result<Response, ApiError> {
        let answer = ask_one(nodes, node, (&self.verb, &self.body), wait).await?;
        Ok(axum::Json(answer).into_response())
    }

    /// Our answer, with those of the others. What this node refuses is not passed on.
    async fn to_all(&self, nodes: &Nodes, here: Response) -> Result<Response, ApiError> {
        if !here.status().is_success() {
            return Ok(here);
        }
        together(nodes, here, self.to_others(nodes, ANSWERS).await).await
    }

    /// The same where all begin at the same time. What this node refuses meanwhile, it refuses at once.
    async fn to_all_at_once(
        &self,
        nodes: &Nodes,
        here: impl Future<Output = Response>,
        within: Duration,
    ) -> Result<Response, ApiError> {
        let here = async {
            let here = here.await;
            if here.status().is_success() {
                Ok(here)
            } else {
                Err(here)
            }
        };
        let others = async { Ok(self.to_others(nodes, within).await) };
        match tokio::try_join!(here, others) {
            Ok((here, said)) => together(nodes, here, said).await,
            Err(refusal) => Ok(refusal),
        }
    }

    async fn to_others(&self, nodes: &Nodes, within: Duration) -> Vec<Said> {
        nodes.order(None, &self.verb, &self.body, within).await
    }

    /// How long others have time, if the request is to wait for something: all wait at the same time.
    fn waits(&self) -> Option<Duration> {
        let within = Duration::from_millis(self.body.get("within_ms")?.as_u64()?);
        Some(within.min(taken::MOST) + ANSWERS)
    }
}

/// The answer of this node, with what the others have said.
async fn together(nodes: &Nodes, here: Response, said: Vec<Said>) -> Result<Response, ApiError> {
    if !here.status().is_success() {
        return Ok(here);
    }
    let (mut parts, body) = here.into_parts();
    let unfit = |_| {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the answer of this node is not what it should be",
        )
    };
    let bytes = axum::body::to_bytes(body, usize::MAX)
        .await
        .map_err(|error| unfit(error.to_string()))?;
    let mut answer: Value = serde_json::from_slice(&bytes).map_err(|error| unfit(error.to_string()))?;
    if let Value::Object(fields) = &mut answer {
        let said: Vec<NodeAnswer> = said.into_iter().map(NodeAnswer::of).collect();
        let said = serde_json::to_value(said).map_err(|error| unfit(error.to_string()))?;
        fields.insert("node".to_owned(), nodes.name().into());
        fields.insert("nodes".to_owned(), said);
    }
    parts.headers.remove(header::CONTENT_LENGTH);
    Ok(Response::from_parts(parts, Body::from(answer.to_string())))
}

impl NodeAnswer {
    pub(crate) fn of(said: Said) -> Self {
        let (answer, error) = match said.answer {
            Ok(Value::Null) => (None, None),
            Ok(answer) => (Some(answer), None),
            Err(why) => (None, Some(why)),
        };
        Self {
            node: said.node,
            error,
            answer,
        }
    }
}

/// The API of this node, for the other nodes.
pub(crate) struct ForOthers {
    env: Arc<AdminEnv>,
    router: Router,
}

impl ForOthers {
    /// For the router of this node.
    pub(crate) fn new(env: Arc<AdminEnv>, router: Router) -> Self {
        Self { env, router }
    }

    async fn carry_out(&self, from: &str, request: Request) -> Result<Value, String> {
        log::debug!("node {from}: {} {}", request.method(), request.uri());
        let service = TowerToHyperService::new(self.router.clone());
        let Ok(response) = service.call(request).await;
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), ANSWER_MAX).await;
        let body = body.map_err(|_| "its answer is too long".to_owned())?;
        match status {
            StatusCode::NOT_FOUND => Ok(Value::Null),
            status if status.is_success() => serde_json::from_slice(&body).map_err(|error| error.to_string()),
            status => Err(match serde_json::from_slice::<ApiError>(&body) {
                Ok(refusal) => refusal.error,
                Err(_) => status.to_string(),
            }),
        }
    }
}

/// The one of [`SHARED`] that an order means, and its query.
fn meant(verb: &str) -> Option<(&'static SharedRequest, &str)> {
    let (method, target) = verb.split_once(' ')?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut known = SHARED.iter();
    let shared = known.find(|shared| shared.method.as_str() == method && shared.path == path)?;
    Some((shared, query))
}

/// The request that an order stands for; `None` if it is none that nodes pass on.
fn request_of(from: &str, verb: &str, body: &Value) -> Option<Request> {
    let (shared, query) = meant(verb)?;
    if query.len() > QUERY_MAX {
        return None;
    }
    let limit = match shared.path {
        "/v1/sessions" if !query.contains("limit=") => format!("&limit={SESSIONS}"),
        _ => String::new(),
    };
    let body = match body {
        Value::Null => Body::empty(),
        body => Body::from(body.to_string()),
    };
    let request = Request::builder()
        .method(shared.method.clone())
        .uri(format!("{}?{query}{limit}", shared.path))
        .header(header::CONTENT_TYPE, "application/json")
        .extension(Caller::Node { name: from.into() });
    request.body(body).ok()
}

#[async_trait]
impl Local for ForOthers {
    fn report(&self) -> SelfReport {
        let env = &self.env;
        let counts = env.sessions.counts();
        let logged_in = counts.iter().filter(|((_, logged_in), _)| *logged_in);
        SelfReport {
            state: match (env.is_ending(), *env.out_of_service.borrow()) {
                (true, _) => NodeDuty::Leaving,
                (false, true) => NodeDuty::Drained,
                (false, false) => NodeDuty::Ready,
            },
            generation: env.snapshot.load().generation,
            sessions: logged_in.map(|(_, count)| count).sum(),
        }
    }

    async fn act(&self, from: &str, verb: &str, body: Value) -> Result<Value, String> {
        let request = request_of(from, verb, &body);
        let request = request.ok_or_else(|| "it takes no such order from another node".to_owned())?;
        self.carry_out(from, request).await
    }

    fn is_long(&self, verb: &str) -> bool {
        meant(verb).is_some_and(|(shared, _)| shared.is_long)
    }

    fn standing(&self) -> Vec<StandingOrder> {
        standing::all(&self.env)
    }

    async fn adopt(&self, orders: Vec<StandingOrder>) {
        standing::adopt(&self.env, orders).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scope_is_taken_out_of_the_query() {
        let scope = |local, node: Option<&str>| Scope {
            local,
            node: node.map(str::to_owned),
        };
        for (query, expected) in [
            ("", Some((scope(false, None), ""))),
            ("user=a&local=true&ip=b", Some((scope(true, None), "user=a&ip=b"))),
            ("node=Proxy2%2Etest", Some((scope(false, Some("proxy2.test")), ""))),
            ("local=maybe", None),
            ("node=%ff", None),
        ] {
            let found = Scope::of(query).ok();
            let expected = expected.map(|(scope, rest)| (scope, rest.to_owned()));
            assert_eq!(found, expected, "{query}");
        }
    }

    #[test]
    fn a_node_takes_no_other_orders() {
        let accepted = |verb: &str| request_of("proxy2", verb, &Value::Null).is_some();
        assert!(accepted("POST /v1/sessions/kick?"));
        assert!(accepted("GET /v1/sessions?user=a"));
        for verb in [
            "POST /v1/reload?",
            "GET /metrics",
            "PUT /v1/domains/a.test/certificate",
            "POST /v1/sessions/kick/../../reload",
            "POST",
            "",
            "GET /v1/sessions?a b\r\nc",
        ] {
            assert!(!accepted(verb), "{verb}");
        }
        assert!(!accepted(&format!("GET /v1/sessions?{}", "a".repeat(QUERY_MAX + 1))));
        let is_long = |verb: &str| meant(verb).is_some_and(|(shared, _)| shared.is_long);
        assert!(is_long("POST /v1/directory/wait?") && is_long("POST /v1/routes/confirm"));
        assert!(is_long("GET /v1/certificates/probe?name=a.test"));
        assert!(!is_long("POST /v1/sessions/kick?") && !is_long("POST /v1/drain"));
        let request = request_of("proxy2", "GET /v1/sessions?user=a", &Value::Null).unwrap();
        assert_eq!(request.uri(), "/v1/sessions?user=a&limit=500");
        assert!(matches!(request.extensions().get(), Some(Caller::Node { .. })));
    }
}
