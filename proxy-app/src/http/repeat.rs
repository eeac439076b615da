//! Which requests may be sent a second time when a server did not answer the first (RFC 9110 §9.2.2).

use http::Method;

/// Safe and idempotent methods beside those of RFC 9110, as the registry of HTTP methods has them. Calendars and
/// address books depend on PROPFIND and REPORT. LOCK, PATCH and POST are not among them.
const METHODS: [&str; 28] = [
    // RFC 4918
    "PROPFIND",
    "PROPPATCH",
    "MKCOL",
    "COPY",
    "MOVE",
    "UNLOCK",
    // RFC 3253
    "REPORT",
    "VERSION-CONTROL",
    "CHECKIN",
    "CHECKOUT",
    "UNCHECKOUT",
    "UPDATE",
    "LABEL",
    "MERGE",
    "BASELINE-CONTROL",
    "MKWORKSPACE",
    "MKACTIVITY",
    // RFC 3648, 3744, 4437, 4791, 5323, 5842
    "ORDERPATCH",
    "ACL",
    "MKREDIRECTREF",
    "UPDATEREDIRECTREF",
    "MKCALENDAR",
    "SEARCH",
    "BIND",
    "REBIND",
    "UNBIND",
    // RFC 2068
    "LINK",
    "UNLINK",
];

/// Whether a request with this method has the same effect if it is sent twice.
pub(crate) fn may_be_repeated(method: &Method) -> bool {
    method.is_idempotent() || METHODS.contains(&method.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods() {
        for name in [
            "GET",
            "PUT",
            "DELETE",
            "OPTIONS",
            "PROPFIND",
            "REPORT",
            "MKCALENDAR",
            "UNLOCK",
        ] {
            assert!(may_be_repeated(&name.parse().unwrap()), "{name}");
        }
        for name in ["POST", "PATCH", "LOCK", "CONNECT", "propfind", "SUBSCRIBE"] {
            assert!(!may_be_repeated(&name.parse().unwrap()), "{name}");
        }
    }
}
