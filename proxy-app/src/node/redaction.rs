//! Text from outside made fit for a log: no value of a token or a password, nothing that could break a line.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::ops::Range;

use percent_encoding::percent_decode_str;

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
    "psw",
    "nonce",
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
const SECRET_NAMES: &[&str] = &["code", "key", "sig", "sid", "pin", "pw", "cred", "creds", "refresh"];

/// What separates names and values in URLs, queries and JSON.
const BETWEEN: [char; 16] = [
    '&', ';', '?', '#', '/', ',', '=', ':', '{', '}', '[', ']', '"', '\'', '\\', ' ',
];

/// What may stand between a name and its separator: the quotes of JSON, the brackets of a list.
const BEHIND_NAMES: [char; 5] = ['"', '\'', '\\', '[', ']'];

/// How often a URL may be encoded within others and still be read. What is encoded more often is hidden.
const LAYERS: usize = 4;

const HIDDEN: &str = "***";

/// A request target or other URL, fit for a log: values of tokens, passwords and the like are hidden, also in a
/// URL within the URL, and what could break a line or a quotation is escaped.
pub(crate) fn redact(target: &str) -> Cow<'_, str> {
    match hidden(target) {
        Cow::Borrowed(same) => escaped(same),
        Cow::Owned(clean) => Cow::Owned(escaped(&clean).into_owned()),
    }
}

/// A word of a log line without the values of tokens, passwords and the like.
pub(crate) fn without_secrets(word: &str) -> Cow<'_, str> {
    hidden(word)
}

/// `\xHH` for quotes, backslashes and all that is not printable ASCII, as nginx writes it: a client must not be
/// able to forge a line or to reach the terminal of its reader.
pub(crate) fn escaped(value: &str) -> Cow<'_, str> {
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

/// A URL without the values of tokens, passwords and the like.
pub(crate) fn hidden(target: &str) -> Cow<'_, str> {
    let passwords: Vec<Range<usize>> = passwords_in(target).collect();
    if passwords.is_empty() {
        return hidden_in_parts(target);
    }
    let mut clean = target.to_owned();
    for password in passwords.into_iter().rev() {
        clean.replace_range(password, HIDDEN);
    }
    Cow::Owned(hidden_in_parts(&clean).into_owned())
}

/// Where in `https://user:password@host` the passwords are (RFC 3986 §3.2.1), also those of URLs within the URL.
fn passwords_in(url: &str) -> impl Iterator<Item = Range<usize>> {
    url.match_indices("://").filter_map(|(at, separator)| {
        let start = at + separator.len();
        let rest = &url[start..];
        let authority = &rest[..rest.find(['/', '?', '#', ' ']).unwrap_or(rest.len())];
        let user = &authority[..authority.rfind('@')?];
        Some(start + user.find(':')? + 1..start + user.len())
    })
}

/// Path parameters (`;jsessionid=…`) carry secrets as well as query arguments do.
fn hidden_in_parts(target: &str) -> Cow<'_, str> {
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
        if names(&layer).any(is_secret) || passwords_in(&layer).next().is_some() {
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
pub(crate) fn names(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices(['=', ':']).filter_map(|(at, separator)| {
        let before = &text[..at];
        let is_pair = separator == "=" || before.ends_with(['"', '\'']);
        let name = before.trim_end_matches(BEHIND_NAMES).rsplit(BETWEEN).next();
        name.filter(|_| is_pair)
    })
}

/// Hyphens and the like do not make another name: `api_key` is `apiKey`.
pub(crate) fn is_secret(name: &str) -> bool {
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
        check_redacted(
            "/a?psw=9&cred=9&nonce=9&refresh=9",
            "/a?psw=***&cred=***&nonce=***&refresh=***",
        );
        check_redacted("/a?ZAuthToken=x", "/a?ZAuthToken=***");
        check_redacted("/a?%7aauthtoken=x", "/a?%7aauthtoken=***");
        check_redacted("/a?zauthtoken=", "/a?zauthtoken=***");
        check_redacted("https://bob:pw@a/b?c#d@e", "https://bob:***@a/b?c#d@e");
        check_redacted("https://bob:p@w@a/b?otp=1", "https://bob:***@a/b?otp=***");
        check_redacted("/a?to=https%3A%2F%2Fbob%3Apw%40a%2Fb", "/a?to=***");
        check_redacted("/a?to=ftp://bob:pw@a", "/a?to=***");
        check_redacted(
            "https://a/fetch/https://bob:pw@a/x",
            "https://a/fetch/https://bob:***@a/x",
        );
        check_redacted(
            "/login?next=https%3A%2F%2Fsso%2F%3Fback%3Dhttps%3A%2F%2Fbob%3Apw%40y%2F",
            "/login?next=***",
        );
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
}
