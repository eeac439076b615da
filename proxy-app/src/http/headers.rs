//! What a mailbox server may learn from a request's headers, and what a log may learn from a request.
//!
//! Decisions only: the caller changes the message and writes the line. Message framing (Content-Length,
//! Transfer-Encoding, Expect) is not touched; it belongs to who copies the body.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::IpAddr;

use http::Method;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use percent_encoding::percent_decode_str;

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
    // What a client has proved of itself in the handshake: see `client_certs`, and the names that other proxies use.
    "x-client-verify",
    "x-client-s-dn",
    "x-client-i-dn",
    "x-client-serial",
    "x-client-fingerprint",
    "x-client-cert",
    "client-cert",
    "client-cert-chain",
    "x-request-id",
    // Some frameworks take these for the path, behind every rule that we apply to the real one.
    "x-original-url",
    "x-rewrite-url",
    // CGI programs find it as HTTP_PROXY and send their requests there.
    "proxy",
];

/// Families of such facts. `x-forwarded-client-cert` and `x-envoy-*` steer the mesh's sidecars, to which all that
/// comes from us is internal and thus trusted.
const FACT_PREFIXES: &[&str] = &["x-forwarded-", "x-proxy-", "x-envoy-", "x-ssl-", "ssl-client-"];

/// The language between a proxy and the lookup service (HTTP §3.5). A list and not `auth-*`: other services may
/// have headers of that beginning.
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

/// What `Connection` cannot name away: without them the two sides would disagree where a message ends or whom it
/// is for.
const NEVER_NOMINATED: &[&str] = &["host", "content-length", "transfer-encoding", "expect"];

/// Words that make a query argument's value unfit for a log, anywhere in its name.
const SECRET_WORDS: &[&str] = &[
    "token",
    "jwt",
    "pass",
    "pwd",
    "secret",
    "preauth",
    "otp",
    "saml",
    "session",
    "ticket",
    "csrf",
    "credential",
    "signature",
    "authorization",
    "bearer",
    "assertion",
    "verifier",
    "hmac",
    "apikey",
    "accesskey",
    "privatekey",
];

/// Short names that would be too common as a part of others.
const SECRET_NAMES: &[&str] = &["code", "key", "sig", "sid", "pin", "pw"];

/// What separates names and values in URLs, queries and JSON.
const BETWEEN: [char; 16] = [
    '&', ';', '?', '#', '/', ',', '=', ':', '{', '}', '[', ']', '"', '\'', '\\', ' ',
];
/// What may stand between a name and its separator: the quotes of JSON, the brackets of a list.
const BEHIND_NAMES: [char; 5] = ['"', '\'', '\\', '[', ']'];
/// How often a URL may be encoded within others and still be read. What is encoded more often is hidden.
const LAYERS: usize = 4;

const HIDDEN: &str = "***";

/// The request headers that must not go on to any server, whatever they say:
///
/// - facts about the client that only we may state (`Forwarded`, `X-Forwarded-*`, `X-Real-IP`, …);
/// - the language of the lookup service (`Auth-User`, `Client-IP`, …);
/// - names with an underscore, which CGI-like servers take for the same with a hyphen (nginx drops them too);
/// - hop-by-hop headers, and those that `Connection` names. For a WebSocket upgrade `Connection` and `Upgrade`
///   stay; an upgrade to anything else would be a tunnel past our rules.
pub fn dropped(headers: &HeaderMap) -> Vec<HeaderName> {
    let nominated = connection_options(headers);
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
pub fn joined_cookies(headers: &HeaderMap) -> Option<HeaderValue> {
    let fields: Vec<&[u8]> = headers
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    let filled: Vec<&[u8]> = fields.iter().copied().filter(|field| !field.is_empty()).collect();
    (fields.len() > 1).then(|| HeaderValue::from_bytes(&filled.join(&b"; "[..])).ok())?
}

/// Whether a request without a body should have said so (RFC 9110 §8.6). HTTP/2 ends a stream instead, and servers of
/// HTTP/1.1 answer a POST that has no length with 411.
pub fn lacks_a_length(request: &Parts) -> bool {
    matches!(request.method, Method::POST | Method::PUT | Method::PATCH)
        && !request.headers.contains_key(header::CONTENT_LENGTH)
        && !request.headers.contains_key(header::TRANSFER_ENCODING)
}

/// Whether a request asks to become a WebSocket (RFC 6455 §4.1).
pub fn is_websocket(headers: &HeaderMap) -> bool {
    let asked = headers
        .get(header::UPGRADE)
        .is_some_and(|kind| kind.as_bytes().eq_ignore_ascii_case(b"websocket"));
    asked
        && headers.get_all(header::UPGRADE).iter().count() == 1
        && connection_options(headers).iter().any(|o| o == "upgrade")
}

/// The id that a trusted forwarder gave a request, if it is one that can stand in every log.
pub fn forwarded_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get("x-request-id")?.to_str().ok()?;
    let good = (8..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    good.then(|| id.to_owned())
}

/// The hop of a request from the client to us.
#[derive(Debug, Clone, Copy)]
pub struct Hop<'a> {
    /// The client's address, after trusted forwarders.
    pub client: IpAddr,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// The Host header that the client sent, port included; `None` when there was none.
    pub host: Option<&'a str>,
    /// The port that the client sees.
    pub port: u16,
}

/// Header of a request's id, towards the server and in the answer.
pub const REQUEST_ID: &str = "x-request-id";

/// The request headers to set towards a server, after those of [`dropped`] are gone. One address and never a
/// chain: mailbox servers compare the whole value (HTTP §6.2).
pub fn added(hop: Hop<'_>) -> Vec<(&'static str, String)> {
    let mut lines = vec![
        ("x-forwarded-for", hop.client.to_canonical().to_string()),
        ("x-forwarded-proto", hop.scheme.to_owned()),
        ("x-forwarded-port", hop.port.to_string()),
    ];
    if let Some(host) = hop.host {
        lines.push(("x-forwarded-host", host.to_owned()));
    }
    lines
}

/// A request target or other URL, fit for a log: values of tokens, passwords and the like are hidden, also in a
/// URL within the URL, and what could break a line or a quotation is escaped.
pub fn redact(target: &str) -> Cow<'_, str> {
    match hidden(target) {
        Cow::Borrowed(same) => escaped(same),
        Cow::Owned(clean) => Cow::Owned(escaped(&clean).into_owned()),
    }
}

/// A word of a log line without the values of tokens, passwords and the like.
pub fn without_secrets(word: &str) -> Cow<'_, str> {
    hidden(word)
}

/// What a line of the access log tells. Absent texts are `None`; all are raw and are cleaned by [`access_line`].
#[derive(Debug, Clone, Copy)]
pub struct AccessEntry<'a> {
    /// The client's address.
    pub client: &'a str,
    /// The client's port.
    pub client_port: u16,
    /// The user of Basic authentication.
    pub user: Option<&'a str>,
    /// Time at the end of the request, as `02/Jan/2026:15:04:05 +0000`.
    pub time: &'a str,
    /// The method.
    pub method: &'a str,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// The requested host, without port.
    pub host: Option<&'a str>,
    /// Path and query as sent.
    pub target: &'a str,
    /// `HTTP/1.1`, `HTTP/2.0`.
    pub protocol: &'a str,
    /// Status of the answer; 0 when there was none.
    pub status: u16,
    /// Bytes sent, headers included.
    pub bytes: u64,
    /// The Referer header.
    pub referer: Option<&'a str>,
    /// The User-Agent header.
    pub user_agent: Option<&'a str>,
    /// Address and port of each server that was tried, joined by `, `; `None` for an answer of our own.
    pub upstream: Option<&'a str>,
    /// Our address.
    pub local: &'a str,
    /// Our port.
    pub local_port: u16,
    /// Who ended the answer before its end: `server` or `client`.
    pub incomplete: Option<&'a str>,
}

/// What a line in JSON tells beside an [`AccessEntry`].
#[derive(Debug, Clone, Copy)]
pub struct AccessMore<'a> {
    /// Id of the request.
    pub request: &'a str,
    /// Number of the connection.
    pub conn: &'a str,
    /// The location.
    pub location: Option<&'a str>,
    /// Seconds from the request's head to the end of the answer.
    pub duration: f64,
}

/// One line of the access log as JSON, without line end. Absent texts are left out.
pub fn access_json(entry: &AccessEntry<'_>, more: AccessMore<'_>) -> String {
    let mut line = serde_json::json!({
        "time": entry.time,
        "request": more.request,
        "conn": more.conn,
        "client": entry.client,
        "client_port": entry.client_port,
        "method": entry.method,
        "scheme": entry.scheme,
        "target": redact(entry.target),
        "protocol": entry.protocol,
        "status": entry.status,
        "bytes": entry.bytes,
        "local": entry.local,
        "local_port": entry.local_port,
        "duration": (more.duration * 1e6).round() / 1e6,
    });
    for (name, value) in [
        ("user", entry.user.map(Cow::Borrowed)),
        ("host", entry.host.map(Cow::Borrowed)),
        ("referer", entry.referer.map(redact)),
        ("user_agent", entry.user_agent.map(Cow::Borrowed)),
        ("upstream", entry.upstream.map(Cow::Borrowed)),
        ("location", more.location.map(Cow::Borrowed)),
        ("incomplete", entry.incomplete.map(Cow::Borrowed)),
    ] {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            line[name] = value.into_owned().into();
        }
    }
    line.to_string()
}

/// One line of the access log, without line end, in the format of HTTP §6.5 (two blanks after the bracket; IPv6
/// addresses without brackets, as nginx writes them).
pub fn access_line(entry: &AccessEntry<'_>) -> String {
    let user = text(entry.user).replace(' ', "\\x20");
    let request = format!(
        "{} {}://{}{} {}",
        escaped(entry.method),
        entry.scheme,
        text(entry.host),
        redact(entry.target),
        entry.protocol
    );
    let referer = entry
        .referer
        .filter(|referer| !referer.is_empty())
        .map_or(Cow::Borrowed("-"), redact);
    let incomplete = entry
        .incomplete
        .map_or(String::new(), |who| format!(" incomplete={who}"));
    format!(
        "{}:{} - {user} [{}]  \"{request}\" {:03} {} \"{referer}\" \"{}\" \"{}\" \"{}:{}\"{incomplete}",
        entry.client,
        entry.client_port,
        entry.time,
        entry.status,
        entry.bytes,
        text(entry.user_agent),
        text(entry.upstream),
        entry.local,
        entry.local_port,
    )
}

fn is_ours(name: &str) -> bool {
    let in_family = FACT_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    in_family || FACTS.contains(&name) || LOOKUP.contains(&name) || name.contains('_')
}

fn is_nominated(name: &str, nominated: &[String]) -> bool {
    nominated.iter().any(|option| option == name) && !NEVER_NOMINATED.contains(&name)
}

/// The options of all Connection headers, in lower case.
fn connection_options(headers: &HeaderMap) -> Vec<String> {
    let lines = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|line| line.to_str().ok());
    let options = lines.flat_map(|line| line.split(','));
    options.map(|option| option.trim().to_ascii_lowercase()).collect()
}

/// `-` for what is absent or empty, as in every access log.
fn text(value: Option<&str>) -> Cow<'_, str> {
    match value {
        None | Some("") => Cow::Borrowed("-"),
        Some(value) => escaped(value),
    }
}

/// `\xHH` for quotes, backslashes and all that is not printable ASCII, as nginx writes it: a client must not be
/// able to forge a line or to reach the terminal of who reads it.
fn escaped(value: &str) -> Cow<'_, str> {
    let plain = |b: u8| (b' '..=b'~').contains(&b) && b != b'"' && b != b'\\';
    if value.bytes().all(plain) {
        return Cow::Borrowed(value);
    }
    let mut clean = String::with_capacity(value.len() + 16);
    for byte in value.bytes() {
        if plain(byte) {
            clean.push(char::from(byte));
        } else {
            write!(clean, "\\x{byte:02X}").expect("a String takes everything");
        }
    }
    Cow::Owned(clean)
}

/// Path parameters (`;jsessionid=…`) carry secrets as well as query arguments do.
fn hidden(target: &str) -> Cow<'_, str> {
    let (path, query) = target.split_at(target.find('?').unwrap_or(target.len()));
    let pieces = path.split_inclusive('/').chain(query.split_inclusive('&'));
    if pieces.clone().all(|piece| secret_at(piece).is_none()) {
        return Cow::Borrowed(target);
    }
    let mut clean = String::with_capacity(target.len());
    for piece in pieces {
        match secret_at(piece) {
            None => clean.push_str(piece),
            Some(at) => {
                let separator = if piece.ends_with(['/', '&']) {
                    &piece[piece.len() - 1..]
                } else {
                    ""
                };
                clean.extend([&piece[..at], HIDDEN, separator]);
            }
        }
    }
    Cow::Owned(clean)
}

/// Where in `a=…;b=…` the first secret begins. All behind it is hidden with it: servers differ in whether a semicolon
/// ends a value.
fn secret_at(piece: &str) -> Option<usize> {
    let mut start = 0;
    for pair in piece.split_inclusive([';', '?', '#']) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if has_secret(name) {
            return Some(start);
        }
        if pair.len() > name.len() && (is_secret(name) || has_secret(value)) {
            return Some(start + name.len() + 1);
        }
        start += pair.len();
    }
    None
}

/// Whether a text is itself a URL, a query or JSON with a secret, as in `?redirect=%2Fhome%3Fzauthtoken%3D…`, encoded
/// once or more often (a login page that was asked to return to a login page).
fn has_secret(text: &str) -> bool {
    let mut layer = Cow::Borrowed(text);
    for _ in 0..LAYERS {
        if names(&layer).any(is_secret) {
            return true;
        }
        let within = percent_decode_str(&layer).decode_utf8_lossy();
        if within == layer {
            return false;
        }
        layer = Cow::Owned(within.into_owned());
    }
    true
}

/// The names of a query's `name=value`, and of JSON's `"name":`.
fn names(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices(['=', ':']).filter_map(|(at, separator)| {
        let before = &text[..at];
        let is_pair = separator == "=" || before.ends_with(['"', '\'']);
        let name = before.trim_end_matches(BEHIND_NAMES).rsplit(BETWEEN).next();
        name.filter(|_| is_pair)
    })
}

/// Hyphens and the like do not make another name: `api_key` is `apiKey`.
fn is_secret(name: &str) -> bool {
    let name = percent_decode_str(name).decode_utf8_lossy().to_ascii_lowercase();
    let bare = name.replace(['-', '_', '.'], "");
    SECRET_NAMES.contains(&name.as_str())
        || SECRET_WORDS
            .iter()
            .any(|word| name.contains(word) || bare.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[&str]) -> HeaderMap {
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

    #[test]
    fn what_is_added() {
        let hop = Hop {
            client: "::ffff:198.51.100.7".parse().unwrap(),
            scheme: "https",
            host: Some("mail.example.com:8443"),
            port: 8443,
        };
        let expected = [
            ("x-forwarded-for", "198.51.100.7"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-port", "8443"),
            ("x-forwarded-host", "mail.example.com:8443"),
        ];
        assert_eq!(added(hop), expected.map(|(name, value)| (name, value.to_owned())));
        let bare = Hop {
            host: None,
            client: "2001:db8::1".parse().unwrap(),
            ..hop
        };
        assert_eq!(added(bare)[0].1, "2001:db8::1");
        assert!(added(bare).iter().all(|(name, _)| *name != "x-forwarded-host"));
        // What we add is what we never let through.
        for (name, _) in added(hop) {
            check_dropped(&[&format!("{name}: x")], &[&name.to_ascii_lowercase()]);
        }
    }

    #[track_caller]
    fn check_redacted(target: &str, expected: &str) {
        assert_eq!(redact(target), expected, "{target}");
    }

    #[test]
    fn harmless_targets_stay() {
        for target in [
            "/",
            "*",
            "",
            "/home/~/inbox?fmt=json&query=in:inbox&auth=co",
            "/a?b",
            "/a?=b",
            "/a?x=YQ==&y=%2Fb%3Fc%3Dd",
            "/a;v=1/b",
        ] {
            assert!(
                matches!(redact(target), Cow::Borrowed(same) if same == target),
                "{target}"
            );
        }
    }

    #[test]
    fn secrets_are_hidden() {
        check_redacted("/a?zauthtoken=0_1_2", "/a?zauthtoken=***");
        check_redacted("/a?x=1&zauthtoken=0_1_2&y=2", "/a?x=1&zauthtoken=***&y=2");
        check_redacted("/a?zjwt=a.b.c&zjwt=d.e.f", "/a?zjwt=***&zjwt=***");
        check_redacted("/a?code=9", "/a?code=***");
        check_redacted("/a?ZAuthToken=x", "/a?ZAuthToken=***");
        check_redacted("/a?%7aauthtoken=x", "/a?%7aauthtoken=***");
        check_redacted("/a?zauthtoken=", "/a?zauthtoken=***");
        check_redacted("/a?x=1;zauthtoken=y;z&w=1", "/a?x=1;zauthtoken=***&w=1");
        check_redacted(
            "/a?user=bob&password=s%26t&newPasswd=x&code=9",
            "/a?user=bob&password=***&newPasswd=***&code=***",
        );
        check_redacted(
            "/service/preauth?account=bob&preauth=ab12",
            "/service/preauth?account=bob&preauth=***",
        );
        check_redacted("/a;jsessionid=x/b;v=1?y=2", "/a;jsessionid=***/b;v=1?y=2");
        check_redacted("/a?to=/b?zauthtoken=x", "/a?to=/b?zauthtoken=***");
        check_redacted("/a?to=%2Fb%3Fzauthtoken%3Dx&y=1", "/a?to=***&y=1");
        check_redacted("/a?to=%252Fb%253Fzauthtoken%253Dx", "/a?to=***");
        check_redacted("/a?zauthtoken=a/b?c", "/a?zauthtoken=***");
        check_redacted("/a?to=%25252Fb%25253Fzauthtoken%25253Dx", "/a?to=***");
        check_redacted("/a?to=%2525252525252Fb", "/a?to=***");
        check_redacted("/a?token%3Dx&y=1", "/a?***&y=1");
        check_redacted("/a?x=1&token%3Dx=2", "/a?x=1&***");
        check_redacted("/token%3Dx/b", "/***/b");
        check_redacted("/a?{\"user\":\"b\",\"password\":\"x\"}", "/a?***");
        check_redacted("/a?r=%7B%22password%22%3A%22x%22%7D", "/a?r=***");
        check_redacted("/a?r=auth%5Btoken%5D%5B%5D%3Dx", "/a?r=***");
        for name in [
            "api_key",
            "apiKey",
            "X-Api-Key",
            "access_key",
            "private.key",
            "Authorization",
            "pw",
        ] {
            check_redacted(&format!("/a?{name}=x&y=1"), &format!("/a?{name}=***&y=1"));
        }
        check_redacted(
            "https://mail.example.com/a?zjwt=x",
            "https://mail.example.com/a?zjwt=***",
        );
    }

    #[test]
    fn lines_cannot_be_forged() {
        check_redacted("/a\" 200\r\n", "/a\\x22 200\\x0D\\x0A");
        check_redacted("/\\\u{1b}[2J\u{7f}", "/\\x5C\\x1B[2J\\x7F");
        check_redacted("/ü?zjwt=\"", "/\\xC3\\xBC?zjwt=***");
        check_redacted("/a?zjwt=x&y=\n", "/a?zjwt=***&y=\\x0A");
    }

    const ENTRY: AccessEntry<'static> = AccessEntry {
        client: "198.51.100.7",
        client_port: 50000,
        user: None,
        time: "02/Jan/2026:15:04:05 +0100",
        method: "GET",
        scheme: "https",
        host: Some("mail.example.com"),
        target: "/home/~/?fmt=json",
        protocol: "HTTP/2.0",
        status: 200,
        bytes: 1234,
        referer: None,
        user_agent: None,
        upstream: None,
        local: "192.0.2.1",
        local_port: 443,
        incomplete: None,
    };

    #[track_caller]
    fn check_line(entry: AccessEntry<'_>, expected: &str) {
        assert_eq!(access_line(&entry), expected);
    }

    #[test]
    fn access_lines_in_json() {
        let more = AccessMore {
            request: "0123456789abcdef",
            conn: "1-2",
            location: Some("prefix /home/"),
            duration: 0.012_345_678,
        };
        let entry = AccessEntry {
            target: "/home/~/?zauthtoken=0_1_2",
            user_agent: Some("x\"\n"),
            ..ENTRY
        };
        let line = access_json(&entry, more);
        assert!(!line.contains('\n') && !line.contains("0_1_2"), "{line}");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["request"], "0123456789abcdef");
        assert_eq!(value["location"], "prefix /home/");
        assert_eq!(value["duration"], 0.012_346);
        assert_eq!(value["user_agent"], "x\"\n");
        assert_eq!(value.get("referer"), None);
    }

    #[test]
    fn ids_of_forwarders() {
        let id = |value: &str| forwarded_id(&headers(&[&format!("x-request-id: {value}")]));
        assert_eq!(id("abc-DEF_1.2").as_deref(), Some("abc-DEF_1.2"));
        assert_eq!(id("short"), None);
        assert_eq!(id("a b c d e f g"), None);
        assert_eq!(id(&"x".repeat(129)), None);
    }

    #[test]
    fn access_lines() {
        check_line(
            ENTRY,
            r#"198.51.100.7:50000 - - [02/Jan/2026:15:04:05 +0100]  "GET https://mail.example.com/home/~/?fmt=json HTTP/2.0" 200 1234 "-" "-" "-" "192.0.2.1:443""#,
        );
        check_line(
            AccessEntry {
                incomplete: Some("server"),
                ..ENTRY
            },
            r#"198.51.100.7:50000 - - [02/Jan/2026:15:04:05 +0100]  "GET https://mail.example.com/home/~/?fmt=json HTTP/2.0" 200 1234 "-" "-" "-" "192.0.2.1:443" incomplete=server"#,
        );
        check_line(
            AccessEntry {
                client: "2001:db8::7",
                user: Some("bob"),
                referer: Some("https://mail.example.com/carbonio/?zjwt=x"),
                user_agent: Some("Mozilla/5.0 (X11)"),
                upstream: Some("10.0.0.1:8443, 10.0.0.2:8443"),
                local: "2001:db8::1",
                ..ENTRY
            },
            r#"2001:db8::7:50000 - bob [02/Jan/2026:15:04:05 +0100]  "GET https://mail.example.com/home/~/?fmt=json HTTP/2.0" 200 1234 "https://mail.example.com/carbonio/?zjwt=***" "Mozilla/5.0 (X11)" "10.0.0.1:8443, 10.0.0.2:8443" "2001:db8::1:443""#,
        );
        check_line(
            AccessEntry {
                user: Some("bob [x]\n"),
                host: None,
                target: "/?zauthtoken=0_1_2",
                status: 0,
                bytes: 0,
                referer: Some(""),
                user_agent: Some("x\" \"y\r\nz"),
                ..ENTRY
            },
            r#"198.51.100.7:50000 - bob\x20[x]\x0A [02/Jan/2026:15:04:05 +0100]  "GET https://-/?zauthtoken=*** HTTP/2.0" 000 0 "-" "x\x22 \x22y\x0D\x0Az" "-" "192.0.2.1:443""#,
        );
    }
}
