//! Which answers are compressed for the client, and how (HTTP §6.4). Pingora's module does it.
//!
//! An answer with a secret and with some text of the request in it must not be compressed: from its length an
//! eavesdropper finds the secret, guess by guess (BREACH). So answers to requests with a login are not compressed,
//! unless the node file says otherwise; scripts, styles and fonts hold no secret.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::header::{self, HeaderMap, HeaderName};
use http::{HeaderValue, Method, StatusCode, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::modules::http::compression::{ResponseCompression, ResponseCompressionBuilder};
use pingora::protocols::http::compression::Algorithm;
use pingora_proxy::Session;

/// Shorter answers are not worth it: nginx's `gzip_min_length` in Carbonio's configuration.
const LENGTH_LEAST: u64 = 256;
/// Most KiB of all encoders at one moment; other answers are sent as they are. A client that reads slowly keeps its
/// encoder in use.
const MEMORY_MAX: usize = 512 * 1024;
/// Levels: gzip's is that of Carbonio's configuration, the others cost about as much time. And the KiB that an encoder
/// takes of an answer whose client stops after 4 MB; one of zlib has no window that grows.
const LEVELS: [(Algorithm, u32, usize); 3] = [
    (Algorithm::Brotli, 4, 3400),
    (Algorithm::Zstd, 3, 3800),
    (Algorithm::Gzip, 6, 400),
];
/// Content types that shrink, beside those of [`NO_SECRETS`].
const TEXTS: [&str; 13] = [
    "text/html",
    "text/plain",
    "text/xml",
    "application/json",
    "application/ld+json",
    "application/geo+json",
    "application/manifest+json",
    "application/xml",
    "application/xhtml+xml",
    "application/atom+xml",
    "application/rss+xml",
    "application/rdf+xml",
    "application/soap+xml",
];
/// Content types that shrink and do not depend on the user.
const NO_SECRETS: [&str; 9] = [
    "text/css",
    "text/javascript",
    "application/javascript",
    "application/x-javascript",
    "font/eot",
    "font/otf",
    "font/ttf",
    "font/woff2",
    "image/svg+xml",
];

/// What the node is configured to compress.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Rules {
    /// `zimbraHttpCompressionEnabled`
    pub enabled: bool,
    /// `web.compress_authenticated`
    pub authenticated: bool,
}

/// KiB of the encoders in this process.
static AT_WORK: AtomicUsize = AtomicUsize::new(0);

/// The modules of an answer that is compressed. All others have none: each costs several allocations.
static MODULES: LazyLock<HttpModules> = LazyLock::new(|| {
    let mut modules = HttpModules::new();
    modules.add_module(ResponseCompressionBuilder::enable(0));
    modules
});

/// One answer that is being compressed, until the value is dropped; the KiB of its encoder.
#[derive(Debug)]
pub(crate) struct Packing(usize);

impl Drop for Packing {
    fn drop(&mut self) {
        AT_WORK.fetch_sub(self.0, Ordering::Relaxed);
    }
}

impl Packing {
    fn begin(memory: usize) -> Option<Self> {
        let room = |taken: usize| Some(taken + memory).filter(|taken| *taken <= MEMORY_MAX);
        let taken = AT_WORK.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room);
        taken.ok().map(|_| Self(memory))
    }
}

/// Has this answer compressed if that is useful and safe, before its head is written. The returned value must be kept
/// until the answer ends.
pub(crate) fn begin(session: &mut Session, response: &mut ResponseHeader, rules: Rules) -> Option<Packing> {
    let choice = choose(session.req_header(), response, rules);
    if choice == CompressionChoice::AsItIs {
        return None;
    }
    vary(response);
    let CompressionChoice::Packed(algorithm) = choice else {
        return None;
    };
    let (_, level, memory) = *LEVELS.iter().find(|(known, ..)| *known == algorithm)?;
    // The module reads the client's header without its weights. It gets our choice instead.
    let mut wish = RequestHeader::build(Method::GET, b"/", Some(1)).ok()?;
    wish.insert_header(header::ACCEPT_ENCODING, algorithm.as_str()).ok()?;
    let packing = Packing::begin(memory)?;
    // Clients of HTTP/1.0, which have a module of their own, get nothing compressed.
    session.downstream_modules_ctx = MODULES.build_ctx();
    let module = session.downstream_modules_ctx.get_mut::<ResponseCompression>()?;
    module.adjust_algorithm_level(algorithm, level);
    module.request_filter(&wish);
    Some(packing)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CompressionChoice {
    /// It does not depend on what the client accepts.
    AsItIs,
    /// It would be compressed for other clients.
    NotForThis,
    Packed(Algorithm),
}

fn choose(request: &RequestHeader, response: &ResponseHeader, rules: Rules) -> CompressionChoice {
    if !rules.enabled {
        return CompressionChoice::AsItIs;
    }
    let kind = text(&response.headers, header::CONTENT_TYPE);
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let is_one_of = |kinds: &[&str]| kinds.iter().any(|known| known.eq_ignore_ascii_case(kind));
    let no_secret = is_one_of(&NO_SECRETS);
    if !(no_secret || is_one_of(&TEXTS)) || !may_be_changed(response) {
        return CompressionChoice::AsItIs;
    }
    if !no_secret && !rules.authenticated && has_secrets(request, response) {
        return CompressionChoice::AsItIs;
    }
    let preferred = preferred(&request.headers);
    match preferred.filter(|_| request.version >= Version::HTTP_11 && request.method != Method::HEAD) {
        Some(algorithm) => CompressionChoice::Packed(algorithm),
        None => CompressionChoice::NotForThis,
    }
}

fn may_be_changed(response: &ResponseHeader) -> bool {
    let headers = &response.headers;
    let has_body = !matches!(
        response.status,
        StatusCode::NO_CONTENT | StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED
    ) && !response.status.is_informational();
    let length = text(headers, header::CONTENT_LENGTH).parse::<u64>();
    let fixed = [
        header::CONTENT_ENCODING,
        header::CONTENT_RANGE,
        HeaderName::from_static("digest"),
    ];
    let no_transform = |value: &HeaderValue| {
        let value = value.to_str().unwrap_or_default();
        value
            .split(',')
            .any(|word| word.trim().eq_ignore_ascii_case("no-transform"))
    };
    has_body
        && length.unwrap_or(u64::MAX) >= LENGTH_LEAST
        && !fixed.iter().any(|name| headers.contains_key(name))
        && !headers.get_all(header::CACHE_CONTROL).iter().any(no_transform)
}

/// The client is logged in, or is being logged in.
fn has_secrets(request: &RequestHeader, response: &ResponseHeader) -> bool {
    let credentials = [header::COOKIE, header::AUTHORIZATION];
    let query = request.uri.query().unwrap_or_default();
    credentials.iter().any(|name| request.headers.contains_key(name))
        || query
            .split('&')
            .any(|part| matches!(part.split('=').next(), Some("zauthtoken" | "zjwt")))
        || response.headers.contains_key(header::SET_COOKIE)
}

/// What the client prefers (RFC 9110 §12.5.3); of equals the one that compresses best.
fn preferred(headers: &HeaderMap) -> Option<Algorithm> {
    let wishes: Vec<(String, f32)> = headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(wish)
        .collect();
    let weight = |name: &str| {
        let named = |preferred: &str| {
            wishes
                .iter()
                .find(|(name, _)| name == preferred)
                .map(|(_, weight)| *weight)
        };
        named(name).or_else(|| named("*")).unwrap_or(0.0)
    };
    let mut best = None;
    let mut best_weight = 0.0;
    for (algorithm, ..) in LEVELS {
        let weight = weight(algorithm.as_str());
        if weight > best_weight {
            (best, best_weight) = (Some(algorithm), weight);
        }
    }
    best.filter(|_| best_weight >= weight_of_identity(&wishes))
}

/// Where the client does not list it, no compression comes last.
fn weight_of_identity(wishes: &[(String, f32)]) -> f32 {
    let named = wishes.iter().find(|(name, _)| name == "identity");
    named.map_or(0.0, |(_, weight)| *weight)
}

fn wish(text: &str) -> (String, f32) {
    let mut parts = text.split(';');
    let name = parts.next().unwrap_or_default().trim().to_ascii_lowercase();
    let weight = parts.find_map(|part| part.trim().strip_prefix("q=")?.parse::<f32>().ok());
    (name, weight.unwrap_or(1.0))
}

fn vary(response: &mut ResponseHeader) {
    let known = response.headers.get_all(header::VARY).iter().any(|value| {
        let value = value.to_str().unwrap_or_default();
        value.split(',').any(|name| {
            let name = name.trim();
            name == "*" || name.eq_ignore_ascii_case("accept-encoding")
        })
    });
    if !known {
        let value = HeaderValue::from_static("Accept-Encoding");
        if let Err(error) = response.append_header("Vary", value) {
            log::debug!("no Vary: {error}");
        }
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> &str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules {
        enabled: true,
        authenticated: false,
    };
    const BROWSER: &str = "Accept-Encoding: gzip, deflate, br, zstd";

    fn request(lines: &[&str]) -> RequestHeader {
        let mut request = RequestHeader::build(Method::GET, b"/x?y=1", None).unwrap();
        for (name, value) in lines.iter().filter_map(|line| line.split_once(": ")) {
            request.append_header(name.to_owned(), value).unwrap();
        }
        request
    }

    fn response(lines: &[&str]) -> ResponseHeader {
        let mut response = ResponseHeader::build(200, None).unwrap();
        for (name, value) in lines.iter().filter_map(|line| line.split_once(": ")) {
            response.append_header(name.to_owned(), value).unwrap();
        }
        response
    }

    #[track_caller]
    fn check(asked: &[&str], answered: &[&str], rules: Rules, expected: CompressionChoice) {
        let got = choose(&request(asked), &response(answered), rules);
        assert_eq!(got, expected, "{asked:?} {answered:?}");
    }

    #[test]
    fn clients_choose() {
        for (wish, expected) in [
            ("gzip, deflate, br, zstd", CompressionChoice::Packed(Algorithm::Brotli)),
            ("gzip, zstd", CompressionChoice::Packed(Algorithm::Zstd)),
            ("gzip", CompressionChoice::Packed(Algorithm::Gzip)),
            ("GZIP;q=1.0, br;q=0.5", CompressionChoice::Packed(Algorithm::Gzip)),
            ("br;q=0, gzip", CompressionChoice::Packed(Algorithm::Gzip)),
            ("*", CompressionChoice::Packed(Algorithm::Brotli)),
            ("*;q=0.5, br;q=0", CompressionChoice::Packed(Algorithm::Zstd)),
            ("gzip;q=0.5, identity", CompressionChoice::NotForThis),
            ("gzip;q=0, br;q=0, zstd;q=0", CompressionChoice::NotForThis),
            ("deflate", CompressionChoice::NotForThis),
            ("", CompressionChoice::NotForThis),
            ("gzip;q=x", CompressionChoice::Packed(Algorithm::Gzip)),
        ] {
            let line = format!("Accept-Encoding: {wish}");
            check(&[&line], &["Content-Type: text/html; charset=utf-8"], RULES, expected);
        }
        check(&[], &["Content-Type: text/html"], RULES, CompressionChoice::NotForThis);
    }

    #[test]
    fn only_what_may_be_changed_is() {
        let packed = CompressionChoice::Packed(Algorithm::Brotli);
        for (lines, expected) in [
            (&["Content-Type: application/json", "Content-Length: 256"][..], packed),
            (&["Content-Type: Text/HTML"], packed),
            (
                &["Content-Type: text/html", "Content-Length: 255"],
                CompressionChoice::AsItIs,
            ),
            (
                &["Content-Type: text/html", "Content-Encoding: gzip"],
                CompressionChoice::AsItIs,
            ),
            (
                &["Content-Type: text/html", "Content-Range: bytes 0-999/1000"],
                CompressionChoice::AsItIs,
            ),
            (
                &["Content-Type: text/html", "Cache-Control: private, No-Transform"],
                CompressionChoice::AsItIs,
            ),
            (&["Content-Type: text/event-stream"], CompressionChoice::AsItIs),
            (&["Content-Type: image/jpeg"], CompressionChoice::AsItIs),
            (&["Content-Type: application/zip"], CompressionChoice::AsItIs),
            (&["Content-Type: multipart/mixed"], CompressionChoice::AsItIs),
            (&[], CompressionChoice::AsItIs),
        ] {
            check(&[BROWSER], lines, RULES, expected);
        }
        let off = Rules {
            enabled: false,
            ..RULES
        };
        check(&[BROWSER], &["Content-Type: text/html"], off, CompressionChoice::AsItIs);
        let mut head = request(&[BROWSER]);
        head.set_method(Method::HEAD);
        assert_eq!(
            choose(&head, &response(&["Content-Type: text/html"]), RULES),
            CompressionChoice::NotForThis
        );
        let mut old = request(&[BROWSER]);
        old.set_version(Version::HTTP_10);
        assert_eq!(
            choose(&old, &response(&["Content-Type: text/html"]), RULES),
            CompressionChoice::NotForThis
        );
    }

    #[test]
    fn secrets_are_not_packed_unless_the_node_says_so() {
        let packed = CompressionChoice::Packed(Algorithm::Brotli);
        let preferred = Rules {
            authenticated: true,
            ..RULES
        };
        for (asked, answered) in [
            ("Cookie: ZM_AUTH_TOKEN=0_x", "X: y"),
            ("Authorization: Basic eA==", "X: y"),
            ("X: y", "Set-Cookie: ZM_AUTH_TOKEN=0_x"),
        ] {
            let asked = [BROWSER, asked];
            check(
                &asked,
                &["Content-Type: text/html", answered],
                RULES,
                CompressionChoice::AsItIs,
            );
            check(&asked, &["Content-Type: text/html", answered], preferred, packed);
            check(&asked, &["Content-Type: text/css", answered], RULES, packed);
        }
        let mut token = request(&[BROWSER]);
        token.set_uri("/service/x?fmt=json&zauthtoken=0_x".parse().unwrap());
        assert_eq!(
            choose(&token, &response(&["Content-Type: text/html"]), RULES),
            CompressionChoice::AsItIs
        );
    }

    #[test]
    fn there_are_so_many_at_once() {
        let mut all: Vec<_> = (0..4)
            .map(|_| Packing::begin(MEMORY_MAX / 4).expect("there is room"))
            .collect();
        assert!(Packing::begin(1).is_none());
        all.pop();
        assert!(Packing::begin(MEMORY_MAX / 4).is_some());
        assert!(Packing::begin(MEMORY_MAX / 4 + 1).is_none());
    }
}
