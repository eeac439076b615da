//! Paths of requests: the one form in which they are compared, and the form in which they are sent on.

use std::borrow::Cow;

use http::Uri;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

/// What may stand in a path as it is (RFC 3986 §3.3) is not encoded; everything else is. A semicolon is encoded,
/// because here it is part of a name: Java servers would drop what follows a bare one.
const NOT_IN_PATHS: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b';')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// A path as locations see it: decoded, dots resolved, slashes merged, always with a slash in front. `None` for one
/// that no browser sends and that servers read differently: it climbs above the root, has a NUL or a line end, a
/// percent sign that is not followed by two hexadecimal digits (RFC 3986 §2.1; Java servers take `%u0061` for a
/// letter), an ASCII letter in more bytes than it needs (RFC 3629 §3), or dots with a parameter (`..;x`), which Java
/// servers take for dots.
pub fn normalized(raw: &str) -> Option<Cow<'_, str>> {
    if is_plain(raw) {
        return Some(Cow::Borrowed(raw));
    }
    let decoded = decoded(raw)?;
    if decoded
        .split('/')
        .any(|segment| segment.starts_with(".;") || segment.starts_with("..;"))
    {
        return None;
    }
    resolved(&decoded, Empty::Merged).map(Cow::Owned)
}

/// The other ways in which servers read a path that is sent on as it is; `None` is one that they refuse. If one of them
/// leads to another location, the request would bypass that location's rules.
pub fn other_readings(raw: &str) -> Vec<Option<String>> {
    let mut readings = Vec::new();
    if is_plain(raw) && !raw.contains([';', '\\']) {
        return readings;
    }
    let decoded_with = |raw: &str, empty| decoded(raw).and_then(|path| resolved(&path, empty));
    let has_empty = raw.contains("//") || raw.contains("/;") || has_encoded_slash(raw);
    if raw.contains(';') {
        let names = without_parameters(raw);
        readings.push(decoded_with(&names, Empty::Merged));
        if has_empty {
            readings.push(decoded_with(&names, Empty::Kept));
        }
    }
    if has_empty {
        readings.push(decoded_with(raw, Empty::Kept));
    }
    if has_encoded_slash(raw) {
        // A letter of a name, as in RFC 3986 §2.2.
        let letters = raw.replace("%2f", "%252F").replace("%2F", "%252F");
        readings.push(decoded_with(&letters, Empty::Merged));
    }
    if let Some(decoded) = decoded(raw).filter(|decoded| decoded.contains('\\')) {
        readings.push(resolved(&decoded.replace('\\', "/"), Empty::Merged));
    }
    readings
}

/// The path as servers with path parameters see it, such as Java servers: what follows a `;` in a segment is not part
/// of its name. Only a `;` that is sent as it is counts; `%3b` is a letter to them.
fn without_parameters(raw: &str) -> String {
    let names = raw
        .split('/')
        .map(|segment| segment.split(';').next().unwrap_or_default());
    names.collect::<Vec<_>>().join("/")
}

/// How segments without a name are read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Empty {
    /// They are dropped, as in nginx.
    Merged,
    /// They are segments, and dots may take them back, as in RFC 3986 §5.2.4 and in Jetty.
    Kept,
}

/// Resolves dots; `None` for a path that climbs above the root.
fn resolved(decoded: &str, empty: Empty) -> Option<String> {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = decoded.strip_prefix('/').unwrap_or(decoded).split('/').peekable();
    while let Some(segment) = segments.next() {
        match segment {
            "" if empty == Empty::Kept && segments.peek().is_some() => kept.push(segment),
            "" | "." => {}
            ".." => drop(kept.pop()?),
            name => kept.push(name),
        }
    }
    let mut path = String::with_capacity(decoded.len() + 1);
    for segment in kept {
        path.extend(["/", segment]);
    }
    if path.is_empty() || matches!(decoded.rsplit('/').next(), Some("" | "." | "..")) {
        path.push('/');
    }
    Some(path)
}

/// The letters of a path; `None` if it has an invalid escape, or letters that a path may not have.
fn decoded(raw: &str) -> Option<Cow<'_, str>> {
    let mut escapes = raw.split('%').skip(1).map(str::as_bytes);
    if !escapes.all(|rest| matches!(rest, [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit())) {
        return None;
    }
    let bytes = percent_decode_str(raw);
    if is_overlong(&Cow::from(bytes.clone())) {
        return None;
    }
    let decoded = bytes.decode_utf8_lossy();
    (!decoded.contains(['\0', '\r', '\n'])).then_some(decoded)
}

/// An ASCII letter in two, three or four bytes (RFC 3629 §3), such as `C0 AE` for a dot.
fn is_overlong(bytes: &[u8]) -> bool {
    let follows = |byte: Option<&u8>, from: u8, to: u8| byte.is_some_and(|byte| (from..=to).contains(byte));
    bytes.iter().enumerate().any(|(at, first)| match first {
        0xC0 | 0xC1 => follows(bytes.get(at + 1), 0x80, 0xBF),
        0xE0 => follows(bytes.get(at + 1), 0x80, 0x9F) && follows(bytes.get(at + 2), 0x80, 0xBF),
        0xF0 => follows(bytes.get(at + 1), 0x80, 0x8F) && follows(bytes.get(at + 2), 0x80, 0xBF),
        _ => false,
    })
}

fn has_encoded_slash(raw: &str) -> bool {
    raw.contains("%2f") || raw.contains("%2F")
}

/// Whether there is nothing in it to decode, resolve or merge. Every request asks twice: a search for text would take five
/// times as many instructions.
fn is_plain(raw: &str) -> bool {
    let bytes = raw.as_bytes();
    let mut pairs = bytes.windows(2);
    bytes.first() == Some(&b'/') && !bytes.contains(&b'%') && !pairs.any(|pair| matches!(pair, b"//" | b"/."))
}

/// Path and query with the first `matched` bytes of the decoded path replaced. The rest stays as it was sent, with its
/// escapes; only where dots or double slashes obscure the prefix, the decoded path is encoded again.
pub fn replaced(uri: &Uri, decoded: &str, matched: usize, with: &str) -> String {
    let raw = uri.path();
    let (prefix, rest) = decoded.split_at(matched.min(decoded.len()));
    let as_sent = raw
        .get(..prefix.len())
        .filter(|start| start.eq_ignore_ascii_case(prefix))
        .map(|_| &raw[prefix.len()..])
        .filter(|sent| percent_decode_str(sent).decode_utf8_lossy() == rest);
    let rest = match as_sent {
        Some(sent) => Cow::Borrowed(sent),
        None => Cow::Owned(utf8_percent_encode(rest, NOT_IN_PATHS).to_string()),
    };
    let mut target = format!("{with}{rest}");
    if !target.starts_with('/') {
        target.insert(0, '/');
    }
    if let Some(query) = uri.query() {
        target.extend(["?", query]);
    }
    target
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_form_for_all_ways_to_write_a_path() {
        for (raw, expected) in [
            ("/", Some("/")),
            ("", Some("/")),
            ("*", Some("/*")),
            ("/a/b", Some("/a/b")),
            ("/a/b/", Some("/a/b/")),
            ("//a///b", Some("/a/b")),
            ("/a/./b/../c", Some("/a/c")),
            ("/a/b/..", Some("/a/")),
            ("/a/b/.", Some("/a/b/")),
            ("/%7ebob/%2E%2e/x%20y", Some("/x y")),
            ("/a%2fb", Some("/a/b")),
            ("/a%2f..%2f..%2fb", None),
            ("/..", None),
            ("/a/../..", None),
            ("/a%00b", None),
            ("/a%0ab", None),
            ("/a%0Db", None),
            ("/a/..;x/b", None),
            ("/a/.;/b", None),
            ("/a/.well-known", Some("/a/.well-known")),
            ("/%ff", Some("/\u{fffd}")),
            ("/%", None),
            ("/a%2", None),
            ("/a%2g", None),
            ("/a%u0061", None),
            ("/a%25u0061", Some("/a%u0061")),
            ("/a%%2e", None),
            ("/%c0%ae%c0%ae/a", None),
            ("/%e0%80%af/a", None),
            ("/%f0%80%80%af/a", None),
            ("/%c0x", Some("/\u{fffd}x")),
            ("/%e0%a4%85", Some("/अ")),
            ("/%c3%a4", Some("/ä")),
        ] {
            assert_eq!(normalized(raw).as_deref(), expected, "{raw}");
        }
    }

    #[track_caller]
    fn check_readings(raw: &str, expected: &[Option<&str>]) {
        let readings = other_readings(raw);
        let readings: Vec<_> = readings.iter().map(Option::as_deref).collect();
        assert_eq!(readings, expected, "{raw}");
    }

    #[test]
    fn what_servers_make_of_the_same_path() {
        check_readings("/a/b%20c/./d", &[]);
        check_readings("/a;x/b;y=1;z/c", &[Some("/a/b/c")]);
        check_readings("/a;jsessionid=1", &[Some("/a")]);
        check_readings("/a%3bx/b", &[]);
        check_readings("/%2e%2e;x/a", &[None]);
        check_readings("/;x/a", &[Some("/a"), Some("//a"), Some("/;x/a")]);
        check_readings("/a/;/../b", &[Some("/b"), Some("/a/b"), Some("/a/b")]);
        check_readings("/a//../b", &[Some("/a/b")]);
        check_readings("/a//b//", &[Some("/a//b//")]);
        check_readings("/a//..//../b", &[Some("/a/b")]);
        check_readings("/a%2f../b", &[Some("/b"), Some("/a%2F../b")]);
        check_readings("/a/..%5c..%5cb", &[None]);
        check_readings("/a/b%5c..%5cc", &[Some("/a/c")]);
    }

    #[track_caller]
    fn check(raw: &str, prefix: &str, with: &str, expected: &str) {
        let uri: Uri = raw.parse().unwrap();
        let decoded = normalized(uri.path()).unwrap();
        assert!(decoded.to_ascii_lowercase().starts_with(prefix), "{decoded}");
        assert_eq!(replaced(&uri, &decoded, prefix.len(), with), expected, "{raw}");
    }

    #[test]
    fn prefixes_are_replaced() {
        check("/services/files/x?y=1", "/services/files/", "/", "/x?y=1");
        check("/services/files/", "/services/files/", "/", "/");
        check("/services/files/a%20b%2Fc", "/services/files/", "/", "/a%20b%2Fc");
        check("/services/chats/events", "/services/chats/events", "/events", "/events");
        check(
            "/services/chats/events/1?",
            "/services/chats/events",
            "/events",
            "/events/1?",
        );
        check("/services/file%73/a%20b", "/services/files/", "/", "/a%20b");
        check("/services//files/x", "/services/files/", "/", "/x");
        check("/services/x/../files/a/../b?c", "/services/files/", "/", "/b?c");
        check("/services/files/../files/%3fx", "/services/files/", "/", "/%3Fx");
        check("/services/files/a/%2e%2e/b", "/services/files/", "/", "/b");
        check("/services/files/a%3bx", "/services/files/", "/", "/a%3bx");
        check("/services//files/a%3bx", "/services/files/", "/", "/a%3Bx");
        check("/AutoDiscover/X", "/autodiscover", "/x", "/x/X");
    }
}
