//! Which headers of a request a mailbox server may get, and which a log may.
//!
//! Decisions only: the caller changes the message and writes the line. Message framing (Content-Length,
//! Transfer-Encoding, Expect) is not touched; it is left to the code that copies the body.

use http::Method;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;

/// Facts about a client, which the servers behind us believe. Only we may state them.
const FACTS: &[&str] = &[
    "forwarded",
    "x-forwarded",
    "x-real-ip",
    "x-originating-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-remote-ip",
    "x-remote-addr",
    "true-client-ip",
    "cf-connecting-ip",
    "x-via",
    // Certificate facts of a client from the handshake: see `client_certs`, and the names that other proxies use.
    "x-client-verify",
    "x-client-s-dn",
    "x-client-i-dn",
    "x-client-serial",
    "x-client-fingerprint",
    "x-client-cert",
    "client-cert",
    "client-cert-chain",
    "x-request-id",
    // Some frameworks take these for the path, and so bypass every rule that we apply to the real one.
    "x-original-url",
    "x-rewrite-url",
    // CGI programs find it as HTTP_PROXY and send their requests there.
    "proxy",
];

/// Families of such facts. `x-forwarded-client-cert` and `x-envoy-*` steer the mesh's sidecars, which take everything
/// that comes from us as internal and trusted.
const FACT_PREFIXES: &[&str] = &["x-forwarded-", "x-proxy-", "x-envoy-", "x-ssl-", "ssl-client-"];

/// The headers between a proxy and the lookup service (HTTP §3.5). A list and not `auth-*`: other services may have
/// headers of that beginning.
const LOOKUP: &[&str] = &[
    "auth-method",
    "auth-user",
    "auth-pass",
    "auth-protocol",
    "auth-login-attempt",
    "auth-id",
    "auth-admin-user",
    "auth-admin-pass",
    "auth-zimbra-admin",
    "auth-zimbra-zx",
    "auth-status",
    "auth-server",
    "auth-port",
    "auth-wait",
    "auth-cache-alias",
    "auth-error-code",
    "client-ip",
];

/// Headers that end at the next hop (RFC 9110 §7.6.1). `http2-settings` only serves to smuggle an upgrade to
/// HTTP/2 past a proxy.
const HOP_BY_HOP: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "upgrade",
    "http2-settings",
];

/// Headers that `Connection` cannot remove: without them the two sides would disagree where a message ends or which
/// host it is for.
const NEVER_NOMINATED: &[&str] = &["host", "content-length", "transfer-encoding", "expect"];

/// The request headers that must not go on to any server, whatever their values:
///
/// - facts about the client that only we may state (`Forwarded`, `X-Forwarded-*`, `X-Real-IP`, …);
/// - the headers of the lookup service (`Auth-User`, `Client-IP`, …);
/// - names with an underscore, which CGI-like servers take for the same with a hyphen (nginx drops them too);
/// - hop-by-hop headers, and those that `Connection` names. For a WebSocket upgrade `Connection` and `Upgrade`
///   stay; an upgrade to anything else would be a tunnel past our rules.
pub(crate) fn dropped(headers: &HeaderMap) -> Vec<HeaderName> {
    let nominated: Vec<&str> = connection_options(headers).collect();
    let websocket = is_websocket(headers);
    let is_dropped = |name: &&HeaderName| match name.as_str() {
        "connection" | "upgrade" if websocket => false,
        name => is_ours(name) || HOP_BY_HOP.contains(&name) || is_nominated(name, &nominated),
    };
    headers.keys().filter(is_dropped).cloned().collect()
}

/// The cookies of a request in one field, if they came in several. HTTP/2 clients split them so that their headers
/// compress better; before any other protocol they are joined again (RFC 9113 §8.2.3): many servers read one field, or
/// join several with a comma.
pub(crate) fn joined_cookies(headers: &HeaderMap) -> Option<HeaderValue> {
    let fields = headers.get_all(header::COOKIE);
    fields.iter().nth(1)?;
    let filled = fields
        .iter()
        .map(HeaderValue::as_bytes)
        .filter(|field| !field.is_empty());
    HeaderValue::from_bytes(&filled.collect::<Vec<_>>().join(&b"; "[..])).ok()
}

/// Whether a request without a body should have said so (RFC 9110 §8.6). HTTP/2 ends a stream instead, and servers of
/// HTTP/1.1 answer a POST that has no length with 411.
pub(crate) fn lacks_a_length(request: &Parts) -> bool {
    matches!(request.method, Method::POST | Method::PUT | Method::PATCH)
        && !request.headers.contains_key(header::CONTENT_LENGTH)
        && !request.headers.contains_key(header::TRANSFER_ENCODING)
}

/// Whether a request asks to become a WebSocket (RFC 6455 §4.1).
pub(crate) fn is_websocket(headers: &HeaderMap) -> bool {
    let asked = headers
        .get(header::UPGRADE)
        .is_some_and(|kind| kind.as_bytes().eq_ignore_ascii_case(b"websocket"));
    asked
        && headers.get_all(header::UPGRADE).iter().count() == 1
        && connection_options(headers).any(|option| option.eq_ignore_ascii_case("upgrade"))
}

/// Header of a request's id, towards the server and in the answer.
pub(crate) const REQUEST_ID: &str = "x-request-id";
/// The same, towards the server.
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static(REQUEST_ID);
/// The client's address.
pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// The scheme that the client sees.
pub(crate) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// The port that the client sees.
pub(crate) const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
/// The host that the client asks for, as it sent it.
pub(crate) const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

fn is_ours(name: &str) -> bool {
    let in_family = FACT_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    in_family || FACTS.contains(&name) || LOOKUP.contains(&name) || name.contains('_')
}

fn is_nominated(name: &str, nominated: &[&str]) -> bool {
    nominated.iter().any(|option| option.eq_ignore_ascii_case(name)) && !NEVER_NOMINATED.contains(&name)
}

/// Whether the connection ends behind this message (RFC 9112 §9.3): `close` counts in every line, whatever stands beside
/// it. The engine looks at the first line only, and lets `keep-alive` win.
pub(crate) fn closes(headers: &HeaderMap) -> bool {
    connection_options(headers).any(|option| option.eq_ignore_ascii_case("close"))
}

/// The options of all Connection headers, as they are written.
fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lines = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|line| line.to_str().ok());
    lines.flat_map(options)
}

/// The options of one such header. As bytes: a search for text costs more than the few letters here.
pub(crate) fn options(line: &str) -> impl Iterator<Item = &str> {
    let bytes = line.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
    bytes.filter_map(|option| std::str::from_utf8(option).ok())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[test]
    fn a_connection_ends_where_any_option_says_so() {
        for (lines, expected) in [
            (&[][..], false),
            (&["connection: keep-alive"], false),
            (&["connection: close"], true),
            (&["connection: keep-alive, Close"], true),
            (&["connection: close ,foo"], true),
            (&["connection: foo", "connection: close"], true),
            (&["connection: closed", "x: close"], false),
        ] {
            assert_eq!(closes(&headers(lines)), expected, "{lines:?}");
        }
    }

    /// A head with these lines.
    pub(crate) fn headers(lines: &[&str]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for line in lines {
            let (name, value) = line.split_once(": ").unwrap();
            map.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            );
        }
        map
    }

    #[track_caller]
    fn check_dropped(lines: &[&str], expected: &[&str]) {
        let names = dropped(&headers(lines));
        let mut names: Vec<&str> = names.iter().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, expected, "{lines:?}");
    }

    #[test]
    fn what_is_dropped() {
        check_dropped(
            &[
                "host: a",
                "cookie: a=b",
                "authorization: Basic x",
                "content-length: 1",
                "via: 1.1 x",
                "origin: x",
            ],
            &[],
        );
        check_dropped(
            &[
                "x-zimbra-csrf-token: x",
                "user-agent: x",
                "x-forwardedfoo: x",
                "auth-token: x",
                "expect: 100-continue",
            ],
            &[],
        );
        check_dropped(
            &["X-Forwarded-For: a", "X-Forwarded-For: b", "Forwarded: for=x"],
            &["forwarded", "x-forwarded-for"],
        );
        check_dropped(
            &["x-forwarded-client-cert: a", "x-envoy-retry-on: 5xx", "x-proxy-ip: a"],
            &["x-envoy-retry-on", "x-forwarded-client-cert", "x-proxy-ip"],
        );
        check_dropped(
            &["x-real-ip: a", "x-originating-ip: a", "x-via: a", "proxy: http://x"],
            &["proxy", "x-originating-ip", "x-real-ip", "x-via"],
        );
        check_dropped(&["auth-user: a", "client-ip: a"], &["auth-user", "client-ip"]);
        check_dropped(
            &["x_forwarded_for: a", "my_header: a"],
            &["my_header", "x_forwarded_for"],
        );
        check_dropped(
            &[
                "te: trailers",
                "keep-alive: 5",
                "proxy-authorization: x",
                "transfer-encoding: chunked",
            ],
            &["keep-alive", "proxy-authorization", "te"],
        );
    }

    #[test]
    fn connection_names_headers_away() {
        check_dropped(&["connection: close"], &["connection"]);
        check_dropped(
            &["connection: Foo, keep-alive", "foo: 1", "bar: 1"],
            &["connection", "foo"],
        );
        check_dropped(
            &["connection: foo", "connection: BAR", "foo: 1", "bar: 1"],
            &["bar", "connection", "foo"],
        );
        check_dropped(
            &[
                "connection: host, content-length, transfer-encoding, expect",
                "host: a",
                "content-length: 1",
                "transfer-encoding: chunked",
                "expect: x",
            ],
            &["connection"],
        );
    }

    #[test]
    fn only_web_sockets_may_upgrade() {
        let key = "sec-websocket-key: x";
        check_dropped(&["connection: Upgrade", "upgrade: websocket", key], &[]);
        check_dropped(
            &[
                "connection: keep-alive, upgrade, foo",
                "upgrade: WebSocket",
                "foo: 1",
                "keep-alive: 5",
                key,
            ],
            &["foo", "keep-alive"],
        );
        check_dropped(&["connection: close", "upgrade: websocket"], &["connection", "upgrade"]);
        check_dropped(&["upgrade: websocket"], &["upgrade"]);
        check_dropped(
            &[
                "connection: upgrade, http2-settings",
                "upgrade: h2c",
                "http2-settings: x",
            ],
            &["connection", "http2-settings", "upgrade"],
        );
        check_dropped(
            &["connection: upgrade", "upgrade: websocket, h2c"],
            &["connection", "upgrade"],
        );
        check_dropped(
            &["connection: upgrade", "upgrade: websocket", "upgrade: h2c"],
            &["connection", "upgrade"],
        );
    }

    #[test]
    fn cookies_are_joined() {
        for (lines, expected) in [
            (&[][..], None),
            (&["cookie: a=b; c=d"], None),
            (
                &["cookie: a=b", "x: y", "cookie: c=d; e=f", "cookie: g=h"],
                Some("a=b; c=d; e=f; g=h"),
            ),
            (&["cookie: ", "cookie: a=b", "cookie: "], Some("a=b")),
        ] {
            let joined = joined_cookies(&headers(lines));
            assert_eq!(
                joined.as_ref().map(|value| value.to_str().unwrap()),
                expected,
                "{lines:?}"
            );
        }
    }
}
