//! Which account a web request belongs to, and which host it asks for: read from path, headers and query.
//!
//! Nothing is verified here. No signature, expiry or password is checked: a forged claim only decides which mailbox
//! server refuses the request (HTTP §3.1). The lookup finds out whether the account exists.

use std::borrow::Cow;
use std::net::Ipv6Addr;

use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::{Engine as _, alphabet};
use http::header::{AUTHORIZATION, COOKIE, HOST, HeaderMap, HeaderValue};
use http::uri::Uri;
use mail_directory::Secret;
use mail_proxy::throttle::PasswordMark;
use percent_encoding::percent_decode_str;

/// Longest token that is read. A token of the mailbox server has under 1 KiB; a signed JWT with groups and an RSA
/// signature stays under 4 KiB, and no usual server takes a header line over 16 KiB.
const TOKEN_MAX: usize = 16 * 1024;

/// Longest user name: a local part of 64 and a domain of 190, more than any directory entry has.
const USER_MAX: usize = 256;

/// Longest host name (RFC 1035 §2.3.4).
const HOST_MAX: usize = 253;

/// Longest label of a host name (RFC 1035 §2.3.4).
const LABEL_MAX: usize = 63;

const USER_COOKIE: &str = "ZM_AUTH_TOKEN";
const ADMIN_COOKIE: &str = "ZM_ADMIN_AUTH_TOKEN";

/// Clients leave the padding out, or leave trailing bits set; the mailbox server accepts both.
const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const BASE64: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const BASE64_URL: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// The account that a request names, still to be looked up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum AccountClaim {
    /// A user as typed: `name` or `name@domain`. Bare names are qualified by the lookup.
    Login(String),
    /// An account's `zimbraId`.
    Id(String),
}

/// The account of a request to the mail and web locations: the path's user, else the token's (HTTP §3.1).
///
/// The path wins over the cookie: a user who opens a share of B goes to B's server with A's token.
pub fn of(uri: &Uri, headers: &HeaderMap) -> Option<AccountClaim> {
    by_path(uri, headers)
        .or_else(|| by_token(uri, headers))
        .or_else(|| by_jwt(uri, headers))
}

/// The account of a request to the admin locations: only the admin token says it (HTTP §3.1).
pub fn admin(headers: &HeaderMap) -> Option<AccountClaim> {
    token_id(cookie(headers, ADMIN_COOKIE)?).map(AccountClaim::Id)
}

/// The host that a request asks for, in lower case, without port, brackets and final dot; an IPv6 address in
/// its canonical form. `None` when there is none, more than one, or one that cannot be a host.
///
/// The request target wins over the Host header (RFC 9112 §3.2.2).
pub fn host(uri: &Uri, headers: &HeaderMap) -> Option<String> {
    if let Some(authority) = uri.authority() {
        return host_of(authority.as_str());
    }
    let mut lines = headers.get_all(HOST).iter();
    let (only, None) = (lines.next()?, lines.next()) else {
        return None;
    };
    host_of(only.to_str().ok()?)
}

/// The same host as it was sent, with its port.
pub(crate) fn host_as_sent(uri: &Uri, headers: &HeaderMap) -> Option<HeaderValue> {
    match uri.authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => headers.get(HOST).filter(|host| host.to_str().is_ok()).cloned(),
    }
}

/// The user of `Authorization: Basic`, as typed.
pub(crate) fn basic_user(headers: &HeaderMap) -> Option<String> {
    user(&basic_login(headers)?.0).filter(|name| !name.contains('\u{fffd}'))
}

/// The name of `Authorization: Basic` as typed, and what tells the password from others. `None`: there is no name in it.
/// The password itself is wiped.
///
/// Read as leniently as by servers, which skip what is no letter of base64: a login that only they can read would not
/// be judged.
pub(crate) fn basic_login(headers: &HeaderMap) -> Option<(String, PasswordMark)> {
    let encoded = authorization(headers, "basic")?;
    let letters = encoded.iter().take_while(|&&byte| byte != b'=');
    let letters = letters.filter_map(|&byte| match byte {
        b'-' => Some(b'+'),
        b'_' => Some(b'/'),
        b'+' | b'/' => Some(byte),
        _ => byte.is_ascii_alphanumeric().then_some(byte),
    });
    let mut kept = Vec::with_capacity(encoded.len());
    kept.extend(letters);
    let mut letters = Secret::new(kept);
    if letters.expose().len() % 4 == 1 {
        // It stands for nothing.
        letters = Secret::new(letters.expose()[..letters.expose().len() - 1].to_vec());
    }
    // Filled in place and then put under lock: an undecodable rest must be wiped too.
    let mut plain = Vec::with_capacity(encoded.len());
    let decoded = BASE64.decode_vec(letters.expose(), &mut plain);
    let plain = Secret::new(plain);
    decoded.ok()?;
    // Old clients send both in Latin-1.
    let (name, password) = split_at_byte(plain.expose(), b':')?;
    let name = String::from_utf8_lossy(name).trim().to_owned();
    (!name.is_empty()).then(|| (name, PasswordMark::of(password)))
}

/// `path` with percent signs decoded; `None` when that is not UTF-8.
pub(crate) fn decoded(path: &str) -> Option<Cow<'_, str>> {
    percent_decode_str(path).decode_utf8().ok()
}

/// The same without the parameters of its segments, as mailbox servers read it.
pub(crate) fn without_parameters(path: &str) -> Option<Cow<'_, str>> {
    if !path.bytes().any(|byte| matches!(byte, b';' | b'%')) {
        return Some(path.into());
    }
    match path.contains(';') {
        true => decoded(&stripped(path)).map(|path| path.into_owned().into()),
        false => decoded(path),
    }
}

/// A path without the parameters of its segments (RFC 3986 §3.3), which mailbox servers take away before they decode it:
/// `/home;x/alice` is `/home/alice` there, and `/home%3bx/alice` is not.
fn stripped(path: &str) -> String {
    let segments = path
        .split('/')
        .map(|segment| segment.split(';').next().unwrap_or_default());
    segments.collect::<Vec<_>>().join("/")
}

/// The segments of a decoded path, with empty ones and dots resolved (RFC 3986 §5.2.4). A final slash leaves
/// an empty last segment. `None` for a path that climbs above the root.
pub(crate) fn segments(path: &str) -> Option<Vec<&str>> {
    let mut kept = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(kept.pop()?),
            name => kept.push(name),
        }
    }
    if matches!(path.rsplit('/').next(), Some("" | "." | "..")) {
        kept.push("");
    }
    Some(kept)
}

/// A name that may be looked up and logged: not empty, not too long, nothing in it that could break a line.
pub(crate) fn user(typed: &str) -> Option<String> {
    let good = !typed.is_empty() && typed.len() <= USER_MAX && !typed.contains(char::is_control);
    good.then(|| typed.to_owned())
}

/// Steps 1 to 4 of HTTP §3.1. At most one of them applies: each begins with another segment.
fn by_path(uri: &Uri, headers: &HeaderMap) -> Option<AccountClaim> {
    let path = without_parameters(uri.path())?;
    // Nearly all others are recognized by this alone.
    let mut parts = path.as_bytes().windows(3);
    if !parts.any(|part| matches!(part, b"hom" | b"Mic" | b"dav" | b"pri") || part.eq_ignore_ascii_case(b"ews")) {
        return None;
    }
    let login = match segments(&path)?.as_slice() {
        ["home", owner, _, ..] | ["service", "home", owner, _, ..] => rest_user(owner),
        [first, ..] if first.starts_with("Microsoft-Server-ActiveSync") => device_user(uri, headers),
        [ews, page, ..] if ews.eq_ignore_ascii_case("ews") && is_exchange(page) => device_user(uri, headers),
        // An address in second place is the owner, as in the old DAV URLs; a bare name there may as well be a folder of
        // an account that is called `home`, and the mailbox server would read it so.
        ["dav", "home", owner, _, ..] if owner.contains('@') => user(owner),
        ["dav", owner, _, ..] | ["principals", "users", owner, _, ..] => dav_user(owner),
        _ => None,
    };
    login.map(AccountClaim::Login)
}

/// `~` alone means "me" and names no account; `~bob` is bob.
fn rest_user(owner: &str) -> Option<String> {
    user(owner.strip_prefix('~').unwrap_or(owner))
}

fn dav_user(owner: &str) -> Option<String> {
    if owner == "~" { None } else { user(owner) }
}

fn is_exchange(page: &str) -> bool {
    const PAGE: &str = "exchange.asmx";
    page.get(..PAGE.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(PAGE))
}

/// The user of a phone or an Outlook. Any Authorization header, even a broken one, keeps the query unread:
/// the two must never be able to name different users.
fn device_user(uri: &Uri, headers: &HeaderMap) -> Option<String> {
    let typed = if headers.contains_key(AUTHORIZATION) {
        basic_user(headers)?
    } else {
        String::from_utf8(argument(uri, "User")?).ok()?
    };
    user(&without_backslash(&typed))
}

/// `DOM\bob` is `bob@DOM`. A name with its own domain keeps it.
pub(crate) fn without_backslash(typed: &str) -> Cow<'_, str> {
    match typed.split_once('\\') {
        None => Cow::Borrowed(typed),
        Some((domain, name)) if domain.is_empty() || name.is_empty() || name.contains('@') => Cow::Borrowed(name),
        Some((domain, name)) => Cow::Owned(format!("{name}@{domain}")),
    }
}

/// Step 5 of HTTP §3.1. With a broken cookie the query is not read.
fn by_token(uri: &Uri, headers: &HeaderMap) -> Option<AccountClaim> {
    let id = match cookie(headers, USER_COOKIE) {
        Some(token) => token_id(token),
        None => token_id(&argument(uri, "zauthtoken")?),
    };
    id.map(AccountClaim::Id)
}

/// Step 6 of HTTP §3.1. With a broken bearer token the query is not read.
fn by_jwt(uri: &Uri, headers: &HeaderMap) -> Option<AccountClaim> {
    let id = match authorization(headers, "bearer") {
        Some(jwt) => jwt_subject(jwt),
        None => jwt_subject(&argument(uri, "zjwt")?),
    };
    id.map(AccountClaim::Id)
}

/// `<key version>_<HMAC hex>_<data hex>`, where data are fields as below (HTTP §3.2). Reading stops at the first
/// malformed field, but an id before it counts.
fn token_id(token: &[u8]) -> Option<String> {
    if token.len() > TOKEN_MAX {
        return None;
    }
    let data = unhex(token.splitn(3, |&b| b == b'_').nth(2)?)?;
    let mut rest = data.as_slice();
    loop {
        let (name, value, after) = field(rest)?;
        if name == b"id" {
            return user(std::str::from_utf8(value).ok()?);
        }
        rest = after;
    }
}

/// `name=len:value;`, where the value may hold any byte. Returns name, value and what follows.
fn field(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (name, rest) = split_at_byte(data, b'=')?;
    let (digits, rest) = split_at_byte(rest, b':')?;
    let (value, rest) = rest.split_at_checked(decimal(digits)?)?;
    Some((name, value, rest.strip_prefix(b";")?))
}

/// Digits only: `str::parse` alone would also take a sign.
fn decimal(digits: &[u8]) -> Option<usize> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn unhex(digits: &[u8]) -> Option<Vec<u8>> {
    let nibble = |digit: u8| char::from(digit).to_digit(16).map(|n| n as u8);
    let pairs = digits.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return None;
    }
    pairs
        .map(|pair| Some(nibble(pair[0])? << 4 | nibble(pair[1])?))
        .collect()
}

/// Claim `sub` of a JWT (RFC 7519 §4.1.2), which we take as the account's id.
fn jwt_subject(jwt: &[u8]) -> Option<String> {
    if jwt.len() > TOKEN_MAX {
        return None;
    }
    let parts: Vec<&[u8]> = jwt.splitn(4, |&b| b == b'.').collect();
    let [_, payload, _] = parts.as_slice() else {
        return None;
    };
    let claims: serde_json::Value = serde_json::from_slice(&BASE64_URL.decode(payload).ok()?).ok()?;
    user(claims.get("sub")?.as_str()?)
}

/// What follows the scheme in the first Authorization header, when it is of that scheme. `scheme` in lower case.
fn authorization<'a>(headers: &'a HeaderMap, scheme: &str) -> Option<&'a [u8]> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (offered, rest) = value.split_at_checked(value.iter().position(u8::is_ascii_whitespace)?)?;
    let right = offered.eq_ignore_ascii_case(scheme.as_bytes()) && rest.len() <= TOKEN_MAX;
    right.then(|| rest.trim_ascii())
}

/// The first cookie of exactly this name, over all Cookie headers (HTTP/2 may send one for each cookie).
/// Read as bytes: a neighbour with a UTF-8 value must not hide it.
pub(crate) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let lines = headers.get_all(COOKIE).iter();
    let mut pairs = lines.flat_map(|line| line.as_bytes().split(|&b| b == b';'));
    pairs.find_map(|pair| {
        let (key, value) = split_at_byte(pair, b'=')?;
        (key.trim_ascii() == name.as_bytes()).then(|| unquoted(value.trim_ascii()))
    })
}

/// RFC 6265 §4.1.1 allows a cookie value in double quotes.
fn unquoted(value: &[u8]) -> &[u8] {
    let inner = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
    inner.unwrap_or(value)
}

/// The first query argument of this name, percent-decoded. A plus sign stays one: names like `bob+lists@…` are
/// sent bare, and none of the arguments read here has blanks.
pub(crate) fn argument(uri: &Uri, name: &str) -> Option<Vec<u8>> {
    uri.query()?.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        percent_decode_str(key)
            .eq(name.bytes())
            .then(|| percent_decode_str(value).collect())
    })
}

fn split_at_byte(bytes: &[u8], byte: u8) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|&b| b == byte)?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

/// `host [ ":" port ]` (RFC 9110 §7.2). User information is refused: it only serves to disguise a host.
pub(crate) fn host_of(authority: &str) -> Option<String> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let address: Ipv6Addr = address.parse().ok()?;
        return is_port_suffix(port).then(|| address.to_string());
    }
    let colon = authority.bytes().position(|b| b == b':');
    let (name, port) = authority.split_at(colon.unwrap_or(authority.len()));
    let name = name.strip_suffix('.').unwrap_or(name);
    let mut labels = name.as_bytes().split(|&b| b == b'.');
    let good = is_port_suffix(port) && name.len() <= HOST_MAX && labels.all(is_label);
    good.then(|| name.to_ascii_lowercase())
}

/// Nothing, a colon alone (RFC 3986 §3.2.3), or a colon and a port.
fn is_port_suffix(suffix: &str) -> bool {
    let Some(port) = suffix.strip_prefix(':') else {
        return suffix.is_empty();
    };
    port.is_empty() || decimal(port.as_bytes()).is_some_and(|port| u16::try_from(port).is_ok())
}

/// Underscores are no host name letters (RFC 1123 §2.1), but internal names have them.
fn is_label(label: &[u8]) -> bool {
    let letter = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    (1..=LABEL_MAX).contains(&label.len()) && label.iter().all(letter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::headers::tests::headers;
    use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};

    const ID: &str = "11111111-2222-3333-4444-555555555555";
    /// The token data of HTTP Appendix A.
    const DATA: &str = "69643d33363a31313131313131312d323232322d333333332d343434342d3535353535353535353535353b6578703d31333a313839333435363030303030303b747970653d363a7a696d6272613b7469643d393a3132333435363738393b76657273696f6e3d363a32362e362e303b";

    fn token() -> String {
        format!("0_{}_{DATA}", "ab".repeat(20))
    }

    fn with_data(clear: impl AsRef<[u8]>) -> String {
        let hex: String = clear.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        format!("0_ff_{hex}")
    }

    fn jwt(payload: &str) -> String {
        format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(payload))
    }

    fn sub() -> String {
        jwt(&format!(r#"{{"iss":"x","sub":"{ID}"}}"#))
    }

    fn basic(plain: impl AsRef<[u8]>) -> String {
        format!("authorization: Basic {}", BASE64_STANDARD.encode(plain))
    }

    #[track_caller]
    fn check(target: &str, lines: &[&str], expected: Option<AccountClaim>) {
        assert_eq!(
            of(&target.parse().unwrap(), &headers(lines)),
            expected,
            "{target} {lines:?}"
        );
    }

    #[test]
    fn parameters_of_segments_are_no_part_of_a_name() {
        check("/home;x/alice@a.example;y=1/inbox", &[], login("alice@a.example"));
        check("/service/home;x/alice@a.example/inbox", &[], login("alice@a.example"));
        check("/home/alice%3bx@a.example/", &[], login("alice;x@a.example"));
    }

    fn login(name: &str) -> Option<AccountClaim> {
        Some(AccountClaim::Login(name.to_owned()))
    }

    fn id() -> Option<AccountClaim> {
        Some(AccountClaim::Id(ID.to_owned()))
    }

    fn cookie_line() -> String {
        format!("cookie: ZM_AUTH_TOKEN={}", token())
    }

    #[test]
    fn vectors_of_the_specification() {
        let cookie = cookie_line();
        let eas = "/Microsoft-Server-ActiveSync?User=x&DeviceId=1";
        check("/home/bob@example.com/calendar", &[], login("bob@example.com"));
        check("/home/~bob/inbox", &[], login("bob"));
        check("/home/~/?auth=co&id=1", &[&cookie], id());
        check("/home/bob", &[&cookie], id());
        check("/service/home/bob/x", &[], login("bob"));
        check("/dav/bob@example.com/Calendar/", &[], login("bob@example.com"));
        check("/principals/users/bob@example.com/", &[], login("bob@example.com"));
        check(eas, &[&basic("EX\\bob:pw")], login("bob@EX"));
        check(eas, &[], login("x"));
        let bearer = format!("authorization: Bearer {}", sub());
        check(eas, &[&bearer], id());
        check(
            eas,
            &[&bearer, &format!("cookie: ZM_AUTH_TOKEN={}", with_data("id=1:c;"))],
            Some(AccountClaim::Id("c".into())),
        );
        check("/service/soap/SearchRequest", &[&basic("bob:pw")], None);
        assert_eq!(admin(&headers(&[&cookie])), None);
        assert_eq!(
            admin(&headers(&[&format!("cookie: ZM_ADMIN_AUTH_TOKEN={}", token())])),
            id()
        );
    }

    #[test]
    fn paths_are_decoded_and_normalised() {
        check("/home/bob%40example.com/x", &[], login("bob@example.com"));
        check("//home//bob//", &[], login("bob"));
        check("/./home/a/../bob/x", &[], login("bob"));
        check("/home/%2e%2e/home/bob/x", &[], login("bob"));
        check("/home/bob/.", &[], login("bob"));
        check("/home/bob/..", &[], None);
        check("/home%2Fbob%2Fx", &[], login("bob"));
        check("/service/home/~bob/x", &[], login("bob"));
        check("/home/%7Ebob/x", &[], login("bob"));
        check("/home/%7E/x", &[], None);
        check("/home/%C3%BC@example.com/x", &[], login("ü@example.com"));
        check("https://mail.example.com/home/bob/x", &[], login("bob"));
    }

    #[test]
    fn the_path_wins_over_the_token() {
        check("/home/alice/x", &[&cookie_line()], login("alice"));
        check("/dav/alice/x", &[&cookie_line(), &basic("bob:pw")], login("alice"));
    }

    #[test]
    fn paths_that_name_nobody_leave_it_to_the_token() {
        for path in [
            "/",
            "/home",
            "/home/",
            "/home//",
            "/home/~/",
            "/Home/bob/x",
            "/service/home/~/x",
            "/xhome/bob/x",
            "/x/home/bob/x",
            "/dav/bob",
            "/dav/~/x",
            "/principals/bob/x",
            "/principals/users/bob",
            "/user/bob/x",
            "/service/dav/home/bob@example.com/x",
            "/../home/bob/x",
            "/home/%ff/x",
            "/home/a%0d%0ab/x",
            "/home/a%00/x",
            "/home/a%C2%85b/x",
            "/microsoft-server-activesync",
            "/x/ews/Exchange.asmx",
        ] {
            check(path, &[&cookie_line()], id());
            check(path, &[&basic("bob:pw")], None);
        }
        check(&format!("/home/{}/x", "a".repeat(256)), &[], login(&"a".repeat(256)));
        check(&format!("/home/{}/x", "a".repeat(257)), &[&cookie_line()], id());
    }

    #[test]
    fn a_dav_user_that_is_called_home() {
        check("/dav/home/bob@example.com/Calendar/", &[], login("bob@example.com"));
        check("/dav/home/Calendar/", &[], login("home"));
        check("/dav/home/bob@example.com", &[], login("home"));
        check("/dav/home/", &[], login("home"));
    }

    #[test]
    fn devices_name_their_user() {
        let eas = "/Microsoft-Server-ActiveSync";
        let ews = "/EWS/exchange.ASMX/s";
        for (plain, expected) in [
            ("bob:pw", "bob"),
            ("bob:pw:with:colons", "bob"),
            ("bob:", "bob"),
            ("EX\\bob@example.com:pw", "bob@example.com"),
            ("\\bob:pw", "bob"),
            ("bob\\:pw@x", ""),
            (":pw", ""),
            ("bob", ""),
            ("b\rob:pw", ""),
        ] {
            check(eas, &[&basic(plain)], user(expected).map(AccountClaim::Login));
            check(ews, &[&basic(plain)], user(expected).map(AccountClaim::Login));
        }
        let latin1 = basic(b"bob:p\xe4ss");
        check(eas, &[&latin1], login("bob"));
        check(eas, &[&basic(b"b\xf6b:pw")], None);
        check(eas, &["authorization: bAsIc  Ym9iOnB3"], login("bob"));
        check(eas, &["authorization: Basic Ym9iOnA"], login("bob"));
        for broken in ["Basic", "Basic ", "Basic !!!", "Basicx Ym9iOnB3", "Negotiate YII=", ""] {
            check(&format!("{eas}?User=x"), &[&format!("authorization: {broken}")], None);
        }
    }

    #[test]
    fn devices_name_their_user_in_the_query() {
        let eas = "/Microsoft-Server-ActiveSync";
        for (query, expected) in [
            ("Cmd=Sync&User=bob", "bob"),
            ("User=bob%40example.com&Cmd=Sync", "bob@example.com"),
            ("User=EX%5Cbob", "bob@EX"),
            ("User=bob+lists@example.com", "bob+lists@example.com"),
            ("User=bob&User=eve", "bob"),
            ("%55ser=bob", "bob"),
            ("XUser=eve&User=bob", "bob"),
            ("user=bob", ""),
            ("User", ""),
            ("User=", ""),
            ("User=%ff", ""),
            ("User=a%0Ab", ""),
            ("", ""),
        ] {
            check(&format!("{eas}?{query}"), &[], user(expected).map(AccountClaim::Login));
            check(
                &format!("/ews/Exchange.asmx?{query}"),
                &[],
                user(expected).map(AccountClaim::Login),
            );
        }
    }

    #[test]
    fn cookies_are_read_like_a_server_does() {
        let token = token();
        for lines in [
            vec![format!("cookie: a=1; ZM_AUTH_TOKEN={token}; b=2")],
            vec![format!("cookie: a=1;ZM_AUTH_TOKEN={token}")],
            vec!["cookie: a=1".to_owned(), format!("cookie: ZM_AUTH_TOKEN={token}")],
            vec![
                format!("cookie: ZM_AUTH_TOKEN={token}"),
                "cookie: ZM_AUTH_TOKEN=junk".to_owned(),
            ],
            vec![format!("cookie: XZM_AUTH_TOKEN=1; ZM_AUTH_TOKEN={token}")],
            vec![format!("cookie: ZM_AUTH_TOKEN=\"{token}\"")],
            vec![format!("cookie: name=Zoë; ZM_AUTH_TOKEN={token}")],
            vec![format!("cookie: ZM_AUTH_TOKEN={}", token.to_uppercase())],
        ] {
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            check("/service/soap", &lines, id());
        }
        for line in [
            "cookie: XZM_AUTH_TOKEN=",
            "cookie: zm_auth_token=",
            "cookie: ZM_ADMIN_AUTH_TOKEN=",
            "cookie: ZM_AUTH_TOKENX=",
        ] {
            check("/service/soap", &[&format!("{line}{token}")], None);
        }
    }

    #[test]
    fn the_query_is_read_when_there_is_no_cookie() {
        let target = format!("/service/home/~/?auth=qp&zauthtoken={}", token());
        check(&target, &[], id());
        check(&target, &["cookie: ZM_AUTH_TOKEN=junk"], None);
        check(
            &format!("{target}&zjwt={}", jwt(r#"{"sub":"j"}"#)),
            &["cookie: ZM_AUTH_TOKEN=junk"],
            Some(AccountClaim::Id("j".into())),
        );
        check(&target, &["cookie: other=junk"], id());
        check(&format!("/x?zauthtoken={}", token().replace('_', "%5F")), &[], id());
    }

    #[test]
    fn broken_tokens_claim_nothing() {
        let huge = format!("id=36:{ID};x=16300:{};", "a".repeat(16300));
        for token in [
            "",
            "_",
            "__",
            "0_ab",
            "0_ab_",
            "0_ab_6",
            "0_ab_zz",
            "0_ab_69 4",
            &format!("0_ab{DATA}"),
            &format!("0_ab_{}", &DATA[1..]),
            &format!("0_ab_{DATA}_"),
            &format!("0_ab_cd_{DATA}"),
            &with_data("exp=1:2;"),
            &with_data("id"),
            &with_data("id="),
            &with_data("id=1"),
            &with_data("id=1:"),
            &with_data("id=1:a"),
            &with_data("id=0:;"),
            &with_data("id=2:a;"),
            &with_data("id=1:ab;"),
            &with_data("id=:a;"),
            &with_data("id=+1:a;"),
            &with_data("id=-1:a;"),
            &with_data("id= 1:a;"),
            &with_data("id=99999:a;"),
            &with_data("id=18446744073709551615:a;"),
            &with_data("id=99999999999999999999999999:a;"),
            &with_data(b"id=2:\xff\xfe;"),
            &with_data("id=3:a\nb;"),
            &with_data("x=9:id=1:a;"),
            &with_data("x=1:abid=1:a;"),
            &with_data("ID=1:a;"),
            &with_data(format!("id=257:{};", "a".repeat(257))),
            &with_data(huge),
        ] {
            let line = format!("cookie: ZM_AUTH_TOKEN={token}");
            check("/service/soap", &[&line], None);
            check(
                "/service/soap",
                &[&line, &format!("authorization: Bearer {}", sub())],
                id(),
            );
        }
    }

    #[test]
    fn the_id_may_stand_anywhere_before_a_broken_field() {
        for data in [
            "id=1:a;",
            "exp=1:2;id=1:a;",
            "x=3:a;b;id=1:a;",
            "id=1:a;broken",
            "id=1:a;id=1:b;",
            "x=0:;id=1:a;",
            "x=\u{0030}01:;;id=1:a;",
        ] {
            check(
                "/x",
                &[&format!("cookie: ZM_AUTH_TOKEN={}", with_data(data))],
                Some(AccountClaim::Id("a".into())),
            );
        }
    }

    #[test]
    fn jwt_subjects() {
        let padded = format!(
            "e30.{}.c2ln",
            base64::prelude::BASE64_URL_SAFE.encode(r#"{"sub":"abcd"}"#)
        );
        for (jwt, expected) in [
            (jwt(r#"{"sub":"abcd"}"#), "abcd"),
            (padded, "abcd"),
            (
                jwt(r#"{ "a" : {"sub":"eve"}, "b":"\"sub\":\"eve\"", "sub" : "ab\u0063d" }"#),
                "abcd",
            ),
            (jwt(r#"{"sub":"ü>?ÿ"}"#), "ü>?ÿ"),
            (jwt(r#"{"sub":1}"#), ""),
            (jwt(r#"{"sub":""}"#), ""),
            (jwt(r#"{"sub":"a\nb"}"#), ""),
            (jwt(r#"["abcd"]"#), ""),
            (jwt(r#"{"sub":"abcd""#), ""),
            (jwt(&"[".repeat(9000)), ""),
            (jwt(&format!(r#"{{"sub":"{}"}}"#, "a".repeat(257))), ""),
            (jwt(&format!(r#"{{"sub":"abcd","x":"{}"}}"#, "a".repeat(16384))), ""),
            (format!("{}.x", jwt(r#"{"sub":"abcd"}"#)), ""),
            ("e30.eyJzdWIiOiJhYmNkIn0".to_owned(), ""),
            ("a.b.c".to_owned(), ""),
            ("..".to_owned(), ""),
        ] {
            let expected = user(expected).map(AccountClaim::Id);
            check("/x", &[&format!("authorization: Bearer {jwt}")], expected.clone());
            check("/x", &[&format!("authorization: bearer {jwt}")], expected.clone());
            check(&format!("/x?zjwt={jwt}"), &[&basic("bob:pw")], expected.clone());
            check(&format!("/x?a=1&zjwt={jwt}"), &[], expected);
        }
        let target = format!("/x?zjwt={}", sub());
        check(&target, &["authorization: Bearer opaque"], None);
    }

    #[track_caller]
    fn check_host(target: &str, lines: &[&str], expected: Option<&str>) {
        assert_eq!(
            host(&target.parse().unwrap(), &headers(lines)).as_deref(),
            expected,
            "{target} {lines:?}"
        );
    }

    #[test]
    fn hosts() {
        for (line, expected) in [
            ("Mail.Example.COM", Some("mail.example.com")),
            ("mail.example.com:8443", Some("mail.example.com")),
            ("mail.example.com:", Some("mail.example.com")),
            ("mail.example.com.", Some("mail.example.com")),
            ("mail.example.com.:443", Some("mail.example.com")),
            ("xn--bcher-kva.example", Some("xn--bcher-kva.example")),
            ("my_host", Some("my_host")),
            ("192.0.2.1:443", Some("192.0.2.1")),
            ("[2001:DB8:0::1]:443", Some("2001:db8::1")),
            ("[::1]", Some("::1")),
            ("", None),
            (".", None),
            (":443", None),
            ("a..b", None),
            ("a:port", None),
            ("a:65536", None),
            ("a:+1", None),
            ("a:1:2", None),
            ("::1", None),
            ("[::1", None),
            ("[::1]x", None),
            ("[example.com]", None),
            ("[fe80::1%25eth0]", None),
            ("user@example.com", None),
            ("a/b", None),
            ("a b", None),
            ("a,b", None),
            ("bücher.example", None),
        ] {
            check_host("/", &[&format!("host: {line}")], expected);
        }
        check_host("/", &[&format!("host: {}", "a".repeat(64))], None);
        check_host(
            "/",
            &[&format!("host: {}", "a.".repeat(127))],
            Some(&"a.".repeat(127)[..253]),
        );
        check_host("/", &[&format!("host: {}b", "a.".repeat(127))], None);
        check_host("/", &[], None);
        check_host("/", &["host: a", "host: b"], None);
        check_host(
            "https://Target.example:443/x",
            &["host: other.example"],
            Some("target.example"),
        );
        check_host("https://[::1]:443/x", &[], Some("::1"));
        check_host("https://user@target.example/x", &["host: other.example"], None);
    }
}
