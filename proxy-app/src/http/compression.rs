//! Which answers are compressed for the client (HTTP §6.4), and how they pass the encoder.
//!
//! An answer with a secret and with some text of the request in it must not be compressed: from its length an
//! eavesdropper finds the secret, guess by guess (BREACH). So answers to requests with a login are not compressed,
//! unless the node file says otherwise; scripts, styles and fonts hold no secret.

use std::any::Any;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName};
use http::{HeaderValue, Method, StatusCode, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::{HttpModule, HttpModuleBuilder, HttpModules, Module};
use pingora::{ErrorType, OrErr, Result};
use pingora_proxy::Session;

use crate::http::encoder::{Coding, Encoder};
use crate::node::limits::{Lease, LeaseKind, NodeLimits};

/// Shorter answers are not worth it: nginx's `gzip_min_length` in Carbonio's configuration.
const LENGTH_LEAST: u64 = 256;
/// After a silence of this length the next bytes of an answer are not kept: the server sends them one by one.
const SILENCE: Duration = Duration::from_millis(200);
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

/// Whose answer it is, and by which rules it is compressed.
pub(crate) struct Compressing<'a> {
    pub rules: Rules,
    pub limits: &'a Arc<NodeLimits>,
    pub client: IpAddr,
}

/// The modules of an answer that is compressed. All others have none: each costs several allocations.
static MODULES: LazyLock<HttpModules> = LazyLock::new(|| {
    let mut modules = HttpModules::new();
    modules.add_module(Box::new(PackingBuilder));
    modules
});

struct PackingBuilder;

impl HttpModuleBuilder for PackingBuilder {
    fn init(&self) -> Module {
        Box::new(Packing::default())
    }
}

/// The engine's module that compresses one answer.
#[derive(Default)]
struct Packing {
    open: Option<OpenPacking>,
    /// The server has nothing more to say at the moment.
    pause: bool,
}

/// An answer whose end has not come yet.
struct OpenPacking {
    encoder: Encoder,
    coding: Coding,
    /// When its last bytes came.
    last: Instant,
    _lease: Lease,
}

#[async_trait]
impl HttpModule for Packing {
    async fn response_header_filter(&mut self, response: &mut ResponseHeader, end: bool) -> Result<()> {
        if response.status.is_informational() {
            return Ok(());
        }
        if end {
            self.open = None;
        }
        match &self.open {
            Some(open) => dress(response, open.coding),
            None => Ok(()),
        }
    }

    fn response_body_filter(&mut self, body: &mut Option<Bytes>, end: bool) -> Result<()> {
        let bytes = body.take().unwrap_or_default();
        if end {
            *body = self.finish(&bytes)?.or(Some(bytes));
            return Ok(());
        }
        let pause = std::mem::take(&mut self.pause);
        let Some(open) = &mut self.open else {
            *body = Some(bytes);
            return Ok(());
        };
        let slow = std::mem::replace(&mut open.last, Instant::now()).elapsed() > SILENCE;
        let packed = match pause || slow {
            true => open.encoder.push_and_flush(&bytes),
            false => open.encoder.push(&bytes),
        };
        let packed = packed.or_err(ErrorType::InternalError, "an answer cannot be compressed")?;
        *body = Some(packed).filter(|packed| !packed.is_empty());
        Ok(())
    }

    /// What is kept goes out in place of the trailers: they would end the answer before it.
    fn response_trailer_filter(&mut self, _trailers: &mut Option<Box<HeaderMap>>) -> Result<Option<Bytes>> {
        self.finish(&[])
    }

    fn response_done_filter(&mut self) -> Result<Option<Bytes>> {
        self.finish(&[])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

impl Packing {
    /// The end of the answer, once; its encoder is no more.
    fn finish(&mut self, bytes: &[u8]) -> Result<Option<Bytes>> {
        let Some(open) = self.open.take() else {
            return Ok(None);
        };
        let end = open.encoder.finish(bytes);
        Ok(Some(
            end.or_err(ErrorType::InternalError, "an answer cannot be compressed")?,
        ))
    }
}

/// Has this answer compressed if that is useful and safe, before its head is written. Where there are as many encoders
/// as there may be, it is sent as it is.
pub(crate) fn begin(session: &mut Session, response: &mut ResponseHeader, how: &Compressing<'_>) {
    let choice = choose(session.req_header(), response, how.rules);
    if choice == CompressionChoice::AsItIs {
        return;
    }
    vary(response);
    let CompressionChoice::Packed(coding) = choice else {
        return;
    };
    let Some(lease) = how.limits.lease(LeaseKind::Encoder, how.client) else {
        return;
    };
    let encoder = match Encoder::new(coding) {
        Ok(encoder) => encoder,
        Err(error) => return log::debug!("an answer is not compressed: {error}"),
    };
    // Clients of HTTP/1.0, which have a module of their own, get nothing compressed.
    session.downstream_modules_ctx = MODULES.build_ctx();
    if let Some(packing) = session.downstream_modules_ctx.get_mut::<Packing>() {
        packing.open = Some(OpenPacking {
            encoder,
            coding,
            last: Instant::now(),
            _lease: lease,
        });
    }
}

/// What the server has sent of this answer is sent on with nothing kept back: nothing more has come behind it.
pub(crate) fn pause(session: &mut Session) {
    if let Some(packing) = session.downstream_modules_ctx.get_mut::<Packing>() {
        packing.pause = true;
    }
}

/// The head of an answer that is compressed on its way.
fn dress(response: &mut ResponseHeader, coding: Coding) -> Result<()> {
    response.insert_header(header::CONTENT_ENCODING, coding.name())?;
    response.remove_header(&header::CONTENT_LENGTH);
    // A range would be one of the compressed bytes, which nobody keeps.
    response.remove_header(&header::ACCEPT_RANGES);
    // The engine has no need of it for HTTP/2, and removes it there.
    response.insert_header(header::TRANSFER_ENCODING, "chunked")?;
    // Other bytes, the same content: a weak tag (RFC 9110 §8.8.1). What is no tag cannot become one.
    let Some(tag) = response.headers.get(header::ETAG).map(HeaderValue::as_bytes) else {
        return Ok(());
    };
    if tag.starts_with(b"\"") {
        let weak = HeaderValue::from_bytes(&[b"W/", tag].concat());
        let weak = weak.or_err(ErrorType::InvalidHTTPHeader, "an ETag")?;
        response.insert_header(header::ETAG, weak)?;
    } else if !tag.starts_with(b"W/") {
        response.remove_header(&header::ETAG);
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CompressionChoice {
    /// It does not depend on what the client accepts.
    AsItIs,
    /// It would be compressed for other clients.
    NotForThis,
    Packed(Coding),
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
        Some(coding) => CompressionChoice::Packed(coding),
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
        HeaderName::from_static("content-digest"),
        HeaderName::from_static("repr-digest"),
        HeaderName::from_static("content-md5"),
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

/// What the client prefers (RFC 9110 §12.5.3); of equals the one that costs least.
fn preferred(headers: &HeaderMap) -> Option<Coding> {
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
    for coding in Coding::ALL {
        let weight = weight(coding.name());
        if weight > best_weight {
            (best, best_weight) = (Some(coding), weight);
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
            ("gzip, deflate, br, zstd", CompressionChoice::Packed(Coding::Zstd)),
            ("gzip, deflate, br", CompressionChoice::Packed(Coding::Gzip)),
            ("br", CompressionChoice::Packed(Coding::Brotli)),
            ("br;q=1.0, gzip;q=0.9", CompressionChoice::Packed(Coding::Brotli)),
            ("gzip, zstd", CompressionChoice::Packed(Coding::Zstd)),
            ("gzip", CompressionChoice::Packed(Coding::Gzip)),
            ("GZIP;q=1.0, br;q=0.5", CompressionChoice::Packed(Coding::Gzip)),
            ("br;q=0, gzip", CompressionChoice::Packed(Coding::Gzip)),
            ("*", CompressionChoice::Packed(Coding::Zstd)),
            ("*;q=0.5, zstd;q=0", CompressionChoice::Packed(Coding::Gzip)),
            ("gzip;q=0.5, identity", CompressionChoice::NotForThis),
            ("gzip;q=0, br;q=0, zstd;q=0", CompressionChoice::NotForThis),
            ("deflate", CompressionChoice::NotForThis),
            ("", CompressionChoice::NotForThis),
            ("gzip;q=x", CompressionChoice::Packed(Coding::Gzip)),
        ] {
            let line = format!("Accept-Encoding: {wish}");
            check(&[&line], &["Content-Type: text/html; charset=utf-8"], RULES, expected);
        }
        check(&[], &["Content-Type: text/html"], RULES, CompressionChoice::NotForThis);
    }

    #[test]
    fn only_what_may_be_changed_is() {
        let packed = CompressionChoice::Packed(Coding::Zstd);
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
        let packed = CompressionChoice::Packed(Coding::Zstd);
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

    #[tokio::test]
    async fn the_head_says_what_the_body_is() {
        for (tag, expected) in [("\"a\"", Some("W/\"a\"")), ("W/\"a\"", Some("W/\"a\"")), ("a", None)] {
            let tag = format!("ETag: {tag}");
            let mut head = response(&["Content-Length: 1000", "Accept-Ranges: bytes", &tag]);
            let limits = NodeLimits::new(crate::node::limits::LimitsConfig::default());
            let open = OpenPacking {
                encoder: Encoder::new(Coding::Zstd).unwrap(),
                coding: Coding::Zstd,
                last: Instant::now(),
                _lease: limits.lease(LeaseKind::Encoder, [192, 0, 2, 1].into()).unwrap(),
            };
            let mut packing = Packing {
                open: Some(open),
                pause: false,
            };
            let mut hint = ResponseHeader::build(103, None).unwrap();
            packing.response_header_filter(&mut hint, false).await.unwrap();
            assert!(hint.headers.is_empty());
            packing.response_header_filter(&mut head, false).await.unwrap();
            assert_eq!(text(&head.headers, header::CONTENT_ENCODING), "zstd");
            assert_eq!(text(&head.headers, header::CONTENT_LENGTH), "");
            assert_eq!(text(&head.headers, header::ACCEPT_RANGES), "");
            let tag = head.headers.get(header::ETAG).map(|tag| tag.to_str().unwrap());
            assert_eq!(tag, expected);
            let mut whole = response(&["Content-Length: 0"]);
            packing.response_header_filter(&mut whole, true).await.unwrap();
            assert!(!whole.headers.contains_key(header::CONTENT_ENCODING));
            assert!(packing.response_done_filter().unwrap().is_none());
        }
    }
}
