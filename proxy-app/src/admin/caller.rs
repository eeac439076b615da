//! Callers of the admin API, and what they may do.
//!
//! On the socket the permissions of the file decide. On TCP any client that reaches the address may read until a token
//! is configured; without the token nothing can be changed there.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use mail_directory::Secret;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::admin::api_error::ApiError;
use crate::admin::console;
use crate::admin::slots::Reach;
use crate::app::env::AdminEnv;
use crate::node::refusals::{Reason, RefusedConnection};

/// The client of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Caller {
    /// A process of this machine, with its user by the kernel.
    Socket {
        /// The user id; `None` if the kernel does not know it.
        uid: Option<u32>,
    },
    /// A client of `admin.http`.
    Http {
        /// Its address.
        address: SocketAddr,
    },
    /// Another node, which passes on what it was asked itself.
    Node {
        /// Its name, as it says.
        name: Arc<str>,
    },
}

impl fmt::Display for Caller {
    /// As the audit log has it: `uid 0`, address and port, or `node proxy2.example.test`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket { uid: Some(uid) } => write!(f, "uid {uid}"),
            Self::Socket { uid: None } => f.write_str("socket"),
            Self::Http { address } => write!(f, "{address}"),
            Self::Node { name } => write!(f, "node {name}"),
        }
    }
}

/// Why nothing can be changed on TCP.
const READ_ONLY: &str = "admin.http is read-only without admin.token_file; use the socket";

/// What the caller may do.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Access {
    /// Whether the caller may change something.
    pub may_change: bool,
    /// Why not.
    pub why_not: Option<String>,
}

/// Returns what the caller may do here.
#[utoipa::path(get, path = "/v1/access", responses((status = 200, body = Access)))]
pub(crate) async fn access(State(env): State<Arc<AdminEnv>>, Extension(caller): Extension<Caller>) -> Json<Access> {
    // Where there is a token, this caller has sent it.
    let may_change = matches!(caller, Caller::Socket { .. }) || env.config.load().admin.token.is_some();
    Json(Access {
        may_change,
        why_not: (!may_change).then(|| READ_ONLY.to_owned()),
    })
}

/// Paths without account data, requested by machines without a token.
pub(crate) const OPEN: [&str; 3] = ["/metrics", "/healthz", "/readyz"];

/// Passes requests that are allowed.
pub(crate) async fn guard(State(env): State<Arc<AdminEnv>>, request: Request, next: Next) -> Response {
    let caller = request.extensions().get::<Caller>().cloned();
    let Some(caller) = caller else {
        return ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "a request of nobody").into_response();
    };
    let guarded = GuardedRequest {
        method: request.method(),
        path: request.uri().path(),
        headers: request.headers(),
    };
    if request.extensions().get::<Reach>() == Some(&Reach::Health) && !guarded.is_open() {
        let why = "there are too many connections to admin.http; this one is told of health only";
        return ApiError::new(StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    }
    let config = env.config.load_full();
    match guarded.admit(&caller, config.admin.token.as_ref(), &config.node) {
        Ok(()) => next.run(request).await,
        Err(denied) => {
            if let (Some(reason), Caller::Http { address }) = (denied.reason, caller) {
                env.refusals.refused(refused_connection(address), reason);
            }
            ApiError::new(denied.status, denied.why).into_response()
        }
    }
}

fn refused_connection(client: SocketAddr) -> RefusedConnection<'static> {
    RefusedConnection {
        id: "",
        listener: "admin.http",
        client: SocketAddr::new(client.ip().to_canonical(), client.port()),
        via: None,
    }
}

/// Why a request is not let through.
struct Denied {
    status: StatusCode,
    why: &'static str,
    /// The reason in its audit record.
    reason: Option<Reason>,
}

fn denied(status: StatusCode, why: &'static str, reason: Option<Reason>) -> Result<(), Denied> {
    Err(Denied { status, why, reason })
}

struct GuardedRequest<'a> {
    method: &'a Method,
    path: &'a str,
    headers: &'a HeaderMap,
}

impl GuardedRequest<'_> {
    fn reads(&self) -> bool {
        matches!(*self.method, Method::GET | Method::HEAD)
    }

    /// Whether it is open to all clients.
    fn is_open(&self) -> bool {
        self.reads() && OPEN.contains(&self.path)
    }

    fn admit(&self, caller: &Caller, token: Option<&Secret<String>>, node: &str) -> Result<(), Denied> {
        let reads = self.reads();
        if matches!(caller, Caller::Socket { .. } | Caller::Node { .. }) || self.is_open() {
            return Ok(());
        }
        match token {
            Some(token) if self.bears(token) || (reads && console::is_page(self.path)) => Ok(()),
            Some(_) => {
                // Without any it is no guess: a browser asks so before it knows that there is a token.
                let guess = self.headers.contains_key(header::AUTHORIZATION);
                let why = "this needs the token of admin.token_file";
                denied(StatusCode::UNAUTHORIZED, why, guess.then_some(Reason::Token))
            }
            None if !reads => denied(StatusCode::FORBIDDEN, READ_ONLY, None),
            None if !self.names_us(node) => {
                let why = "the Host is neither an address nor localhost nor this node";
                denied(StatusCode::FORBIDDEN, why, Some(Reason::AdminHost))
            }
            None => Ok(()),
        }
    }

    /// The scheme is in any case (RFC 9110 §11.1), and blanks stand behind it (§11.4).
    fn bears(&self, token: &Secret<String>) -> bool {
        let value = self.headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
        let Some((scheme, given)) = value.and_then(|value| value.split_at_checked("Bearer ".len())) else {
            return false;
        };
        if !scheme.eq_ignore_ascii_case(b"Bearer ") {
            return false;
        }
        let given = given.trim_ascii_start();
        let wanted = token.expose().as_bytes();
        given.len() == wanted.len() && openssl::memcmp::eq(given, wanted)
    }

    /// A foreign web page can make a browser ask us under a name that its owner lets point here (DNS rebinding); it
    /// would read the list of sessions.
    fn names_us(&self, node: &str) -> bool {
        let host = self.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let Some(host) = host else { return true };
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        let name = name.trim_start_matches('[').trim_end_matches(']');
        name.parse::<IpAddr>().is_ok() || name.eq_ignore_ascii_case("localhost") || name.eq_ignore_ascii_case(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(caller: &Caller, line: &str, headers: &[(&'static str, &str)], token: Option<&str>) -> u16 {
        let (method, path) = line.split_once(' ').unwrap();
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        let guarded = GuardedRequest {
            method: &method.parse().unwrap(),
            path,
            headers: &map,
        };
        let token = token.map(|token| Secret::new(token.to_owned()));
        guarded
            .admit(caller, token.as_ref(), "proxy1.example.test")
            .map_or_else(|denied| denied.status.as_u16(), |()| 200)
    }

    #[test]
    fn tcp_reads_without_a_token_and_does_all_with_it() {
        let tcp = Caller::Http {
            address: "192.0.2.1:5".parse().unwrap(),
        };
        let socket = Caller::Socket { uid: Some(0) };
        let node = &Caller::Node { name: "proxy2".into() };
        let good = [("authorization", "Bearer 0123456789abcdef")];
        let bad = [("authorization", "Bearer 0123456789abcdeX")];
        let lower = [("authorization", "bearer  0123456789abcdef")];
        let other = [("authorization", "Basic 0123456789abcdef")];
        let token = Some("0123456789abcdef");
        let (tcp, socket) = (&tcp, &socket);
        for (caller, line, headers, token, expected) in [
            (socket, "POST /v1/reload", &[][..], None, 200),
            (socket, "POST /v1/reload", &[], token, 200),
            (node, "POST /v1/sessions/kick", &[], token, 200),
            (tcp, "GET /v1/status", &[], None, 200),
            (tcp, "POST /v1/reload", &[], None, 403),
            (tcp, "POST /metrics", &[], None, 403),
            (tcp, "GET /v1/status", &[], token, 401),
            (tcp, "GET /v1/status", &bad, token, 401),
            (tcp, "POST /v1/reload", &bad, token, 401),
            (tcp, "POST /v1/reload", &good, token, 200),
            (tcp, "POST /v1/reload", &lower, token, 200),
            (tcp, "POST /v1/reload", &other, token, 401),
            (tcp, "GET /metrics", &[], token, 200),
            (tcp, "GET /v1/status", &[("host", "evil.example:7180")], None, 403),
            (tcp, "GET /metrics", &[("host", "evil.example")], None, 200),
            // The page asks for the token itself.
            (tcp, "GET /", &[], token, 200),
            (tcp, "GET /console/main.js", &bad, token, 200),
            (tcp, "POST /", &[], token, 401),
            (tcp, "GET /", &[], None, 200),
            (tcp, "GET /", &[("host", "evil.example:7180")], None, 403),
            (tcp, "GET /console/main.js", &[("host", "evil.example:7180")], None, 403),
            (tcp, "GET /v1/status", &[("host", "127.0.0.1:7180")], None, 200),
            (tcp, "GET /v1/status", &[("host", "[::1]:7180")], None, 200),
            (tcp, "GET /v1/status", &[("host", "LOCALHOST")], None, 200),
            (tcp, "GET /v1/status", &[("host", "proxy1.example.test:1")], None, 200),
        ] {
            assert_eq!(
                admit(caller, line, headers, token),
                expected,
                "{caller} {line} {headers:?}"
            );
        }
    }
}
