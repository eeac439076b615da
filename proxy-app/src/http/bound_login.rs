//! Logins that are bound to a connection: NTLM and Negotiate (RFC 4559). A server's answers to such a client must never
//! reach another client, so at the first sign of such a login the client gets server connections of its own
//! ([`Owner`](crate::upstream::connection::Owner)).

use http::header::{
    AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, WWW_AUTHENTICATE,
};

/// Schemes that log in a connection. Some servers call Negotiate `Kerberos`.
const SCHEMES: [&str; 4] = ["ntlm", "negotiate", "kerberos", "nego2"];

/// Whether a request logs in the connection that it comes on.
pub(crate) fn is_offered(request: &HeaderMap) -> bool {
    [AUTHORIZATION, PROXY_AUTHORIZATION]
        .iter()
        .any(|name| lines(request, name).any(|line| is_scheme(scheme(line))))
}

/// Whether an answer asks for such a login. A line may have several challenges.
pub(crate) fn is_demanded(response: &HeaderMap) -> bool {
    [WWW_AUTHENTICATE, PROXY_AUTHENTICATE].iter().any(|name| {
        let challenges = lines(response, name).flat_map(|line| line.split(|&byte| byte == b','));
        challenges.map(scheme).any(is_scheme)
    })
}

/// As bytes: a non-ASCII letter in a realm or in a message must not hide the scheme.
fn lines<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers.get_all(name).iter().map(HeaderValue::as_bytes)
}

fn scheme(credentials: &[u8]) -> &[u8] {
    let mut words = credentials
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    words.next().unwrap_or_default()
}

fn is_scheme(scheme: &[u8]) -> bool {
    SCHEMES
        .iter()
        .any(|known| scheme.eq_ignore_ascii_case(known.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| {
                let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
                (HeaderName::from_static(name), value)
            })
            .collect()
    }

    #[test]
    fn offers() {
        for (line, expected) in [
            (("authorization", "NTLM TlRMTVNTUAAB"), true),
            (("authorization", "negotiate YII="), true),
            (("authorization", "  Negotiate YII="), true),
            (("proxy-authorization", "NTLM x"), true),
            (("authorization", "NTLM TlRMä"), true),
            (("authorization", "Basic TlRMTQ=="), false),
            (("authorization", "Bearer NTLM"), false),
            (("authorization", "NTLMx y"), false),
            (("cookie", "NTLM y"), false),
        ] {
            assert_eq!(is_offered(&headers(&[line])), expected, "{line:?}");
        }
    }

    #[test]
    fn demands() {
        let name = "www-authenticate";
        for (lines, expected) in [
            (&[(name, "NTLM")][..], true),
            (&[(name, "Basic realm=\"x\""), (name, "Negotiate")], true),
            (&[(name, "Basic realm=\"x\", NTLM")], true),
            (&[(name, "Basic realm=\"Büro\", NTLM")], true),
            (&[("proxy-authenticate", "NTLM TlRM")], true),
            (&[(name, "Basic realm=\"NTLM\"")], false),
            (&[(name, "Bearer")], false),
        ] {
            assert_eq!(is_demanded(&headers(lines)), expected, "{lines:?}");
        }
    }
}
