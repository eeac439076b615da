//! The headers that a virtual host adds to answers, and their lines for a head of HTTP/1, which are put together once.

use std::collections::HashSet;
use std::slice;

use bytes::{Bytes, BytesMut};
use http::header::{
    CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY_REPORT_ONLY, HeaderMap, HeaderName, HeaderValue, REFERRER_POLICY,
    STRICT_TRANSPORT_SECURITY,
};
use pingora::http::ResponseHeader;

/// Headers of a virtual host's answers.
#[derive(Debug, Default)]
pub(crate) struct HostHeaders {
    headers: Vec<(HeaderName, HeaderValue)>,
    lines: Option<HostLines>,
}

/// The same as lines.
#[derive(Debug)]
struct HostLines {
    over_tls: Bytes,
    /// Without `Strict-Transport-Security`: any machine on the way could have added it (RFC 6797 §7.2).
    in_clear: Bytes,
}

impl HostHeaders {
    /// These headers; of two with one name the first.
    pub(crate) fn new(mut headers: Vec<(HeaderName, HeaderValue)>) -> Self {
        let mut known = HashSet::new();
        headers.retain(|(name, _)| known.insert(name.clone()));
        // The lines of others must be known to whoever sends the head: codings, lengths, rules for caches.
        let apart = headers.iter().all(|(name, _)| is_for_browsers(name));
        let lines = apart.then(|| HostLines {
            over_tls: lines(&headers, |_| true),
            in_clear: lines(&headers, |name| name != STRICT_TRANSPORT_SECURITY),
        });
        Self { headers, lines }
    }

    /// The lines of all of them, for the head of an answer that has these headers already. `None`: it has one of them
    /// itself, or not all are for browsers alone.
    pub(crate) fn lines(&self, answer: &HeaderMap, is_tls: bool) -> Option<&Bytes> {
        let lines = self.lines.as_ref()?;
        let is_ours = |name: &HeaderName| self.headers.iter().any(|(ours, _)| ours == name);
        let lines = if is_tls { &lines.over_tls } else { &lines.in_clear };
        (!answer.keys().any(is_ours)).then_some(lines)
    }
}

impl<'a> IntoIterator for &'a HostHeaders {
    type Item = &'a (HeaderName, HeaderValue);
    type IntoIter = slice::Iter<'a, (HeaderName, HeaderValue)>;

    fn into_iter(self) -> Self::IntoIter {
        self.headers.iter()
    }
}

/// Whether a header is for the browser alone: nothing that sends the head reads or sets it. Our own header with the
/// request id is none of them.
fn is_for_browsers(name: &HeaderName) -> bool {
    static NAMES: [HeaderName; 4] = [
        CONTENT_SECURITY_POLICY,
        CONTENT_SECURITY_POLICY_REPORT_ONLY,
        REFERRER_POLICY,
        STRICT_TRANSPORT_SECURITY,
    ];
    let text = name.as_str();
    NAMES.contains(name) || text == "permissions-policy" || (text.starts_with("x-") && text != "x-request-id")
}

/// The lines of those that are `wanted`, as the engine would write them.
fn lines(headers: &[(HeaderName, HeaderValue)], wanted: impl Fn(&HeaderName) -> bool) -> Bytes {
    let mut head = http::Response::new(()).into_parts().0;
    let wanted = headers.iter().filter(|(name, _)| wanted(name)).cloned();
    head.headers.extend(wanted);
    let mut lines = BytesMut::new();
    ResponseHeader::from(head).header_to_h1_wire(&mut lines);
    lines.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> Vec<(HeaderName, HeaderValue)> {
        let lines = lines.iter();
        lines
            .map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn lines_are_those_of_headers_for_browsers() {
        let host = HostHeaders::new(headers(&[
            ("strict-transport-security", "max-age=1"),
            ("x-frame-options", "deny"),
            ("x-frame-options", "sameorigin"),
        ]));
        let html = HeaderMap::from_iter(headers(&[("content-type", "text/html")]));
        let lines = |is_tls| host.lines(&html, is_tls).map(Bytes::as_ref);
        assert_eq!(
            lines(true),
            Some(&b"strict-transport-security: max-age=1\r\nx-frame-options: deny\r\n"[..])
        );
        assert_eq!(lines(false), Some(&b"x-frame-options: deny\r\n"[..]));
        assert_eq!(host.into_iter().count(), 2);
    }

    #[test]
    fn where_the_server_or_the_engine_has_a_say_there_are_no_lines() {
        let framed = HeaderMap::from_iter(headers(&[("x-frame-options", "deny")]));
        let host = HostHeaders::new(headers(&[
            ("x-frame-options", "sameorigin"),
            ("referrer-policy", "origin"),
        ]));
        assert_eq!(host.lines(&framed, true), None);
        for name in [
            "vary",
            "cache-control",
            "content-encoding",
            "connection",
            "x-request-id",
        ] {
            let host = HostHeaders::new(headers(&[("referrer-policy", "origin"), (name, "x")]));
            assert_eq!(host.lines(&HeaderMap::new(), true), None, "{name}");
        }
        assert_eq!(HostHeaders::default().lines(&framed, true), None);
    }
}
