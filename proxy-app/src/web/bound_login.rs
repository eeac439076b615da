//! Logins that are bound to a connection: NTLM and Negotiate (RFC 4559). What a server says to such a client must
//! never reach another, so the first sign of one gives the client server connections of its own
//! ([`Owner`](super::upstreams::connection::Owner)).

use http::header::{AUTHORIZATION, HeaderMap, HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, WWW_AUTHENTICATE};

/// Schemes that log in a connection. Kerberos alone is what Negotiate is called by some servers.
const SCHEMES: [&str; 4] = ["ntlm", "negotiate", "kerberos", "nego2"];

/// Whether a request logs in the connection that it comes on.
pub(super) fn is_offered(request: &HeaderMap) -> bool {
    [AUTHORIZATION, PROXY_AUTHORIZATION]
        .iter()
        .any(|name| lines(request, name).any(|line| is_scheme(scheme(line))))
}

/// Whether an answer asks for such a login. A line may have several challenges.
pub(super) fn is_demanded(response: &HeaderMap) -> bool {
    [WWW_AUTHENTICATE, PROXY_AUTHENTICATE].iter().any(|name| {
        let challenges = lines(response, name).flat_map(|line| line.split(','));
        challenges.map(scheme).any(is_scheme)
    })
}

fn lines<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers.get_all(name).iter().filter_map(|line| line.to_str().ok())
}

fn scheme(credentials: &str) -> &str {
    credentials.split_ascii_whitespace().next().unwrap_or_default()
}

fn is_scheme(scheme: &str) -> bool {
    SCHEMES.iter().any(|known| scheme.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn offers() {
        for (line, expected) in [
            (("authorization", "NTLM TlRMTVNTUAAB"), true),
            (("authorization", "negotiate YII="), true),
            (("authorization", "  Negotiate YII="), true),
            (("proxy-authorization", "NTLM x"), true),
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
            (&[("proxy-authenticate", "NTLM TlRM")], true),
            (&[(name, "Basic realm=\"NTLM\"")], false),
            (&[(name, "Bearer")], false),
        ] {
            assert_eq!(is_demanded(&headers(lines)), expected, "{lines:?}");
        }
    }
}
