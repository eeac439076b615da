//! The head of a server's answer before it goes on: refused where it is not clear where its body ends, and without the
//! headers that are only between the server and us.
//!
//! What a client of one version of HTTP ignores is an error to another: in HTTP/2 a 204 with a length ends the stream
//! with PROTOCOL_ERROR.

use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, SERVER, TRANSFER_ENCODING};
use http::response::Parts;
use http::{StatusCode, Version};
use pingora::http::ResponseHeader;

use crate::http::headers;

/// Fields that end at the next hop (RFC 9110 §7.6.1); the challenge of a proxy is one between it and us (§11.7.1).
/// `Transfer-Encoding` is left to the code that copies the body. Trailers of HTTP/1 are not passed on.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authentication-info",
    "te",
    "trailer",
    "upgrade",
    "http2-settings",
];
/// Headers that `Connection` cannot remove: the two sides would disagree where a message ends.
const NEVER_NOMINATED: [&str; 2] = ["content-length", "transfer-encoding"];

/// Whether the bytes that follow on the connection can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Yes.
    Sound,
    /// The head can, as it was mended; the bytes that follow the answer cannot.
    Mended,
}

/// Mends the head of an answer.
///
/// # Errors
/// Why it cannot be mended: it is not clear where its body ends, or it answers something that was not requested.
pub(crate) fn mend(response: &mut ResponseHeader) -> Result<Framing, &'static str> {
    if response.status == StatusCode::SWITCHING_PROTOCOLS {
        // WebSockets are handled elsewhere.
        return Err("the server switches to a protocol that nobody asked for");
    }
    if !has_known_coding(&response.headers) {
        return Err("the server uses a transfer coding that is not known");
    }
    Ok(mend_length(response))
}

/// Whether a message is sent as it is, or in chunks, and in no other coding (RFC 9112 §6.1, §7). What is not decoded
/// here must not go on as if it was.
pub(crate) fn has_known_coding(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(TRANSFER_ENCODING).iter();
    let single = |line: &HeaderValue| line.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    lines.next().is_none_or(single) && lines.next().is_none()
}

/// An answer without a body has no length of one (RFC 9110 §8.6, RFC 9112 §6.1), and no answer has two. The engine has
/// checked that two are equal.
fn mend_length(response: &mut ResponseHeader) -> Framing {
    let bodyless = response.status.is_informational() || response.status == StatusCode::NO_CONTENT;
    let mut lengths = response.headers.get_all(CONTENT_LENGTH).iter();
    if bodyless {
        let promised = lengths.any(|length| length.as_bytes() != b"0");
        response.remove_header(&CONTENT_LENGTH);
        let coded = response.remove_header(&TRANSFER_ENCODING).is_some();
        return if promised || coded {
            Framing::Mended
        } else {
            Framing::Sound
        };
    }
    let first = lengths.next().map(HeaderValue::as_bytes).unwrap_or_default();
    let one = first.split(|&b| b == b',').next().unwrap_or(first).trim_ascii();
    if lengths.next().is_some() || one.len() != first.len() {
        let one = String::from_utf8_lossy(one).into_owned();
        let _digits_can_stand_in_a_field = response.insert_header(CONTENT_LENGTH, one);
        return Framing::Mended;
    }
    // It may say which coding a body would have been sent in; HTTP/2 has no word for that.
    if response.status == StatusCode::NOT_MODIFIED {
        response.remove_header(&TRANSFER_ENCODING);
    }
    Framing::Sound
}

/// Removes the headers that are only between the server and us.
pub(crate) fn strip(response: &mut ResponseHeader) {
    let nominated: Vec<&str> = values(&response.headers, &CONNECTION)
        .flat_map(headers::options)
        .collect();
    let is_dropped = |name: &&HeaderName| {
        let name = name.as_str();
        let named = || nominated.iter().any(|option| option.eq_ignore_ascii_case(name));
        HOP_BY_HOP.contains(&name) || named() && !NEVER_NOMINATED.contains(&name)
    };
    let dropped: Vec<HeaderName> = response.headers.keys().filter(is_dropped).cloned().collect();
    for name in dropped {
        response.remove_header(&name);
    }
}

/// Removes the header that names the server's program.
pub(crate) fn hide_server(response: &mut ResponseHeader) {
    response.remove_header(&SERVER);
}

/// Forgets how the server spelled the names of headers: while the engine knows it, each name that is set is read again
/// and entered into a second table.
pub(crate) fn forget_spelling(response: &mut ResponseHeader) {
    *response = taken(response).into();
}

/// Sets headers, each in place of those of its name. Without a spelling to keep, no name need be read again.
///
/// # Errors
/// Never in practice: names and values are good.
pub(crate) fn set(response: &mut ResponseHeader, headers: &[(&HeaderName, &HeaderValue)]) -> pingora::Result<()> {
    if response.has_case() {
        return headers
            .iter()
            .try_for_each(|(name, value)| response.insert_header(*name, *value));
    }
    let mut parts = taken(response);
    parts.headers.reserve(headers.len());
    for &(name, value) in headers {
        parts.headers.insert(name, value.clone());
    }
    *response = parts.into();
    Ok(())
}

/// A head without its spelling, and another one in its place.
fn taken(response: &mut ResponseHeader) -> Parts {
    let nothing = http::Response::new(()).into_parts().0.into();
    Parts::from(std::mem::replace(response, nothing))
}

/// The version that we speak ourselves, whatever the server does (RFC 9110 §2.5).
pub(crate) fn speak_our_version(response: &mut ResponseHeader) {
    if response.version < Version::HTTP_11 {
        response.set_version(Version::HTTP_11);
    }
}

fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers.get_all(name).iter().filter_map(|line| line.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, lines: &[(&'static str, &'static str)]) -> ResponseHeader {
        let mut response = ResponseHeader::build(status, None).unwrap();
        for (name, value) in lines {
            response.append_header(*name, *value).unwrap();
        }
        response
    }

    #[track_caller]
    fn check(status: u16, lines: &[(&'static str, &'static str)], expected: Result<(Framing, &str), &str>) {
        let mut response = answer(status, lines);
        let got = mend(&mut response);
        let rest: Vec<String> = [CONTENT_LENGTH, TRANSFER_ENCODING]
            .iter()
            .flat_map(|name| values(&response.headers, name).map(str::to_owned))
            .collect();
        match expected {
            Ok((framing, left)) => assert_eq!((got, rest.join("|").as_str()), (Ok(framing), left), "{lines:?}"),
            Err(why) => assert!(got.is_err_and(|got| got.contains(why)), "{lines:?}"),
        }
    }

    #[test]
    fn lengths() {
        const LENGTH: &str = "Content-Length";
        const CODING: &str = "Transfer-Encoding";
        use Framing::{Mended, Sound};
        check(200, &[(LENGTH, "5")], Ok((Sound, "5")));
        check(200, &[(LENGTH, "5, 5")], Ok((Mended, "5")));
        check(200, &[(LENGTH, "5"), (LENGTH, "5")], Ok((Mended, "5")));
        check(200, &[(CODING, "chunked")], Ok((Sound, "chunked")));
        check(200, &[(CODING, "Chunked")], Ok((Sound, "Chunked")));
        check(200, &[], Ok((Sound, "")));
        check(204, &[(LENGTH, "0")], Ok((Sound, "")));
        check(204, &[(LENGTH, "5")], Ok((Mended, "")));
        check(204, &[(CODING, "chunked")], Ok((Mended, "")));
        check(103, &[(LENGTH, "5")], Ok((Mended, "")));
        check(304, &[(LENGTH, "5")], Ok((Sound, "5")));
        check(304, &[(CODING, "chunked")], Ok((Sound, "")));
        for coding in [
            "xchunked",
            "gzip, chunked",
            "chunked, chunked",
            "identity",
            "chunked;x=1",
            "",
        ] {
            check(200, &[(CODING, coding)], Err("transfer coding"));
        }
        check(200, &[(CODING, "gzip"), (CODING, "chunked")], Err("transfer coding"));
        check(200, &[(CODING, "chunked"), (CODING, "chunked")], Err("transfer coding"));
        check(101, &[], Err("nobody asked"));
    }

    #[test]
    fn what_is_between_the_server_and_us() {
        let mut response = answer(
            200,
            &[
                ("Connection", "Keep-Alive, X-Hop , content-length"),
                ("Connection", "x-other"),
                ("Keep-Alive", "timeout=5"),
                ("Proxy-Authenticate", "Basic"),
                ("Upgrade", "h2c"),
                ("TE", "trailers"),
                ("X-Hop", "1"),
                ("X-Other", "2"),
                ("X-Stays", "3"),
                ("Content-Length", "4"),
                ("WWW-Authenticate", "NTLM"),
                ("Server", "Jetty(9.4)"),
            ],
        );
        strip(&mut response);
        hide_server(&mut response);
        let mut left: Vec<&str> = response.headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-length", "www-authenticate", "x-stays"]);
    }
}
