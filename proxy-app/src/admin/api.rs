//! The paths of the admin API, and the description that is made from them.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use http_body_util::BodyExt as _;
use utoipa::openapi::path::{ParameterBuilder, ParameterIn};
use utoipa::openapi::{self, Content, OpenApi, Ref, RefOr, ResponseBuilder};
use utoipa::{OpenApi as _, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::router::UtoipaMethodRouterExt as _;
use utoipa_axum::routes;

use crate::admin::api_error::ApiError;
use crate::admin::caller::{self, guard};
use crate::admin::everywhere::{self, everywhere};
use crate::admin::preview::{self, PROPOSAL_MAX};
use crate::admin::turns::Turns;
use crate::admin::{
    act, certificate_orders, console, domains, health, holds, live_probes, move_steps, moves, nodes, route, sessions,
    taken, throttle,
};
use crate::app::env::AdminEnv;

/// Most of a request's body.
pub(crate) const BODY_MAX: usize = 64 * 1024;
/// How much of a body that is too long is still read, so that its client reads why it was refused, and how long that
/// may take. Nothing of it is kept: it may come from a client without the token.
const HEARD_OUT: usize = 4 * 1024 * 1024;
const HEARING: Duration = Duration::from_secs(10);
/// Longest refusal of the framework; it may quote the request.
const REFUSAL_MAX: usize = 128 * 1024;
/// How long a request may take, its body included. A reload asks the directory, which has its own limits below this.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "Portico",
    description = "The admin API of a running node. Access to the socket is controlled by its file permissions; on \
                   TCP it is read-only unless a token is configured."
))]
struct ApiDescription;

/// The API of this node.
pub(crate) fn router(env: Arc<AdminEnv>) -> Router {
    let (router, description) = described();
    let description = Json(description);
    router
        .route("/", get(console::page))
        .route("/console/{file}", get(console::asset))
        .route("/v1/openapi.json", get(move || std::future::ready(description.clone())))
        .fallback(|| async { ApiError::new(StatusCode::NOT_FOUND, "there is no such path") })
        .method_not_allowed_fallback(|| async {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method")
        })
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(middleware::from_fn_with_state(env.clone(), everywhere))
        .layer(middleware::from_fn(bounded))
        .layer(middleware::from_fn(patience))
        .layer(Extension(Arc::new(Turns::default())))
        .layer(middleware::from_fn_with_state(env.clone(), guard))
        .layer(middleware::map_response(as_it_says))
        .with_state(env)
}

/// The OpenAPI description.
pub fn description() -> OpenApi {
    described().1
}

fn described() -> (Router<Arc<AdminEnv>>, OpenApi) {
    let (router, description) = OpenApiRouter::with_openapi(ApiDescription::openapi())
        .routes(routes!(route::explain))
        .routes(routes!(route::purge))
        .routes(routes!(throttle::state))
        .routes(routes!(throttle::explain))
        .routes(routes!(throttle::clear))
        .routes(routes!(throttle::allow, throttle::disallow))
        .routes(routes!(act::reload))
        .routes(routes!(taken::wait))
        .routes(routes!(caller::access))
        .routes(routes!(sessions::status))
        .routes(routes!(sessions::generations))
        .routes(routes!(sessions::list))
        .routes(routes!(sessions::kick))
        .routes(routes!(sessions::drain, sessions::undrain))
        .routes(routes!(sessions::logins))
        .routes(routes!(nodes::forget))
        .routes(routes!(holds::list, holds::begin))
        .routes(routes!(holds::release))
        .routes(routes!(moves::list, moves::begin))
        .routes(routes!(moves::one, moves::cancel))
        .routes(routes!(move_steps::end))
        .routes(routes!(move_steps::count))
        .routes(routes!(move_steps::confirm))
        .routes(routes!(health::upstreams))
        .routes(routes!(health::order_upstream))
        .routes(routes!(health::certificates))
        .routes(routes!(certificate_orders::order))
        .routes(routes!(live_probes::probe))
        .routes(routes!(domains::list))
        .routes(routes!(domains::set_virtual_hosts))
        .routes(routes!(domains::set_certificate, domains::remove_certificate))
        .routes(routes!(preview::preview_domain))
        .routes(routes!(preview::preview).layer(DefaultBodyLimit::max(PROPOSAL_MAX)))
        .routes(routes!(health::metrics))
        .routes(routes!(health::alive))
        .routes(routes!(health::ready))
        .split_for_parts();
    (router, with_usual_refusals(with_scope(description)))
}

/// Adds to the requests that nodes pass on which nodes they are for.
fn with_scope(mut description: OpenApi) -> OpenApi {
    let parameter = |name: &str, what: &str| {
        ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Query)
            .description(Some(what))
            .build()
    };
    for (path, item) in &mut description.paths.paths {
        let operations = [
            ("GET", &mut item.get),
            ("POST", &mut item.post),
            ("DELETE", &mut item.delete),
        ];
        for (method, operation) in operations {
            let Some(operation) = operation.as_mut().filter(|_| everywhere::is_shared(method, path)) else {
                continue;
            };
            operation.parameters.get_or_insert_default().extend([
                parameter(
                    "local",
                    "`true`: only this node, even where nodes know of each other (`shared_state`).",
                ),
                parameter("node", "Only the node with this name."),
            ]);
        }
    }
    description
}

/// Adds the refusals of every request of a kind to each of its paths in the description.
fn with_usual_refusals(mut description: OpenApi) -> OpenApi {
    const ASKED: [(StatusCode, &str); 1] = [(StatusCode::BAD_REQUEST, "A parameter is missing or not valid")];
    const ORDERED: [(StatusCode, &str); 4] = [
        (StatusCode::BAD_REQUEST, "The body is not JSON"),
        (StatusCode::PAYLOAD_TOO_LARGE, "The body is longer than 64 KiB"),
        (StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Type is not JSON"),
        (StatusCode::UNPROCESSABLE_ENTITY, "The JSON does not match the schema"),
    ];
    const GUARDED: [(StatusCode, &str); 3] = [
        (StatusCode::UNAUTHORIZED, "This needs the token"),
        (
            StatusCode::FORBIDDEN,
            "Without a token nothing can be changed, and Host must be a name or address of this node",
        ),
        (StatusCode::REQUEST_TIMEOUT, "The request took more than a minute"),
    ];
    for (path, item) in &mut description.paths.paths {
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            let asks = operation.parameters.as_ref().is_some_and(|all| !all.is_empty());
            let orders = operation.request_body.is_some();
            let is_open = caller::OPEN.contains(&path.as_str());
            let usual = [(asks, &ASKED[..]), (orders, &ORDERED), (!is_open, &GUARDED)];
            for (status, what) in usual.iter().filter(|(is_so, _)| *is_so).flat_map(|(_, all)| *all) {
                let known = &mut operation.responses.responses;
                known.entry(status.as_str().to_owned()).or_insert_with(|| refusal(what));
            }
        }
    }
    description
}

fn refusal(what: &str) -> RefOr<openapi::Response> {
    let content = Content::new(Some(Ref::from_schema_name(ApiError::name())));
    let response = ResponseBuilder::new().description(what);
    response.content("application/json", content).into()
}

/// Ends requests whose body does not come or whose work does not end.
async fn patience(request: Request, next: Next) -> Response {
    match tokio::time::timeout(PATIENCE, next.run(request)).await {
        Ok(response) => in_json(response).await,
        Err(_) => ApiError::new(StatusCode::REQUEST_TIMEOUT, "this takes too long").into_response(),
    }
}

/// Refuses a body with a Content-Length that is too long. One without it ends at the limit.
async fn bounded(request: Request, next: Next) -> Response {
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length: Option<usize> = length.and_then(|length| length.to_str().ok()?.parse().ok());
    let most = body_max(request.uri().path());
    if length.is_none_or(|length| length <= most) {
        return next.run(request).await;
    }
    let _what_comes_later_is_not_read = tokio::time::timeout(HEARING, hear_out(request.into_body())).await;
    too_long(most).into_response()
}

/// Most of a request's body at this path.
fn body_max(path: &str) -> usize {
    match path {
        "/v1/preview" => PROPOSAL_MAX,
        _ => BODY_MAX,
    }
}

async fn hear_out(mut body: Body) {
    let mut left = HEARD_OUT;
    while left > 0
        && let Some(Ok(frame)) = body.frame().await
    {
        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
    }
}

/// A body is longer than any may be.
fn too_long(most: usize) -> ApiError {
    let message = format!("the request is longer than {} KiB", most / 1024);
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
}

/// No browser may guess another type than Content-Type: answers contain names from the network.
async fn as_it_says(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}

/// The framework refuses invalid queries and bodies in plain text; ours is JSON.
async fn in_json(response: Response) -> Response {
    let is_text = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"text/plain"));
    let status = response.status();
    if !status.is_client_error() || !is_text {
        return response;
    }
    let text = axum::body::to_bytes(response.into_body(), REFUSAL_MAX).await;
    let text = String::from_utf8_lossy(&text.unwrap_or_default()).into_owned();
    ApiError::new(status, text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_has_every_refusal() {
        let description = serde_json::to_value(description()).unwrap();
        let said = |path: &str, method: &str| -> Vec<String> {
            let all = description["paths"][path][method]["responses"].as_object().unwrap();
            all.keys().cloned().collect()
        };
        let order = [
            "200", "400", "401", "403", "404", "408", "409", "413", "415", "422", "503",
        ];
        assert_eq!(said("/v1/domains/{domain}/virtual-hosts", "put"), order);
        assert_eq!(said("/v1/domains", "get"), ["200", "400", "401", "403", "408"]);
        assert_eq!(said("/metrics", "get"), ["200"]);
        let taken = &description["paths"]["/v1/domains/{domain}/virtual-hosts"]["put"]["responses"]["409"];
        assert_eq!(taken["description"], "A name already belongs to another domain");
        assert!(description["components"]["schemas"]["Failure"].is_object());
    }

    #[tokio::test]
    async fn refusals_of_the_framework_are_json_and_other_texts_stay() {
        let refused = (StatusCode::BAD_REQUEST, "missing field \"login\"").into_response();
        let response = in_json(refused).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        let body = axum::body::to_bytes(response.into_body(), REFUSAL_MAX).await.unwrap();
        let failure: ApiError = serde_json::from_slice(&body).unwrap();
        assert_eq!(failure.error, "missing field \"login\"");
        let text = in_json("ready\n".into_response()).await;
        let body = axum::body::to_bytes(text.into_body(), REFUSAL_MAX).await.unwrap();
        assert_eq!(&body[..], b"ready\n");
    }
}
