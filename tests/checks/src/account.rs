//! Whose request it is, and for which host: names that may be looked up and logged, whatever stands there, and the
//! same ones however the same request is written. The first line is the target, the others are headers.

use std::net::Ipv6Addr;

use http::header::{AUTHORIZATION, COOKIE, HOST, HeaderMap, HeaderName, HeaderValue};
use http::uri::Uri;
use proxy_app::http::account::{self, AccountClaim};

/// Longest user and longest host name that are looked up.
const USER_MAX: usize = 256;
const HOST_MAX: usize = 253;

pub(crate) fn check(bytes: &[u8]) {
    let mut lines = bytes.split(|&byte| byte == b'\n');
    let Ok(uri) = Uri::try_from(lines.next().unwrap_or_default()) else {
        return;
    };
    let headers: HeaderMap = lines.filter_map(header).collect();
    let claim = account::of(&uri, &headers);
    for claim in claim.iter().chain(&account::admin(&headers)) {
        let (AccountClaim::Login(name) | AccountClaim::Id(name)) = claim;
        assert!(
            !name.is_empty() && name.len() <= USER_MAX && !name.contains(char::is_control),
            "{claim:?}"
        );
    }
    check_ways_to_write(&uri, &headers, claim.as_ref());
    if let Some(host) = account::host(&uri, &headers) {
        check_host(&host);
    }
}

fn header(line: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let colon = line.iter().position(|&byte| byte == b':')?;
    let name = HeaderName::from_bytes(&line[..colon]).ok()?;
    Some((name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?))
}

fn check_ways_to_write(uri: &Uri, headers: &HeaderMap, claim: Option<&AccountClaim>) {
    let admin = account::admin(headers);
    let same = |uri: &Uri, headers: &HeaderMap, what: &str| {
        assert_eq!(account::of(uri, headers).as_ref(), claim, "{what}");
        assert_eq!(account::admin(headers), admin, "{what}");
    };
    // HTTP/2 may send each cookie in a header of its own (RFC 9113 §8.2.3).
    same(uri, &cookies_apart(headers), "cookies apart");
    let mut more = headers.clone();
    more.append(COOKIE, HeaderValue::from_static("ZM_OTHER=0_x_69643d313a613b"));
    if headers.contains_key(AUTHORIZATION) {
        more.append(AUTHORIZATION, HeaderValue::from_static("Basic ZXZlOng="));
    }
    same(uri, &more, "what comes later counts for nothing");
    if let Some(escaped) = escaped(uri) {
        same(&escaped, headers, "letters as escapes");
    }
}

fn cookies_apart(headers: &HeaderMap) -> HeaderMap {
    let mut apart = headers.clone();
    apart.remove(COOKIE);
    for line in headers.get_all(COOKIE) {
        for cookie in line.as_bytes().split(|&byte| byte == b';') {
            apart.append(COOKIE, HeaderValue::from_bytes(cookie).expect("a part of a value"));
        }
    }
    apart
}

/// The letters of the path as escapes (RFC 3986 §6.2.2.2).
fn escaped(uri: &Uri) -> Option<Uri> {
    let mut path = String::new();
    let mut in_escape = 0;
    for letter in uri.path().chars() {
        match letter {
            '%' => in_escape = 3,
            letter if in_escape == 0 && letter.is_ascii_alphanumeric() => {
                path.push_str(&format!("%{:02x}", u32::from(letter)));
                continue;
            }
            _ => {}
        }
        in_escape = usize::saturating_sub(in_escape, 1);
        path.push(letter);
    }
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    format!("{path}{query}").parse().ok()
}

fn check_host(host: &str) {
    assert!(!host.is_empty() && host.len() <= HOST_MAX, "{host:?}");
    let as_sent = match host.parse::<Ipv6Addr>() {
        Ok(address) => format!("[{address}]"),
        Err(_) => host.to_owned(),
    };
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.:".contains(&byte);
    assert!(host.bytes().all(letter), "{host:?}");
    let headers = HeaderMap::from_iter([(HOST, HeaderValue::from_str(&as_sent).expect("a host is a value"))]);
    let again = account::host(&Uri::from_static("/"), &headers);
    assert_eq!(again.as_deref(), Some(host), "not a fixed point");
}
