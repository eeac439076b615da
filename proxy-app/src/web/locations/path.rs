//! Paths of requests: the one form in which they are compared, and the form in which they are sent on.

use std::borrow::Cow;

use http::Uri;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

/// What stands in a path as it is (RFC 3986 §3.3) is not encoded; all else is.
const NOT_IN_PATHS: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
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
/// that no browser sends and that servers read differently: it climbs above the root, has a NUL or a line end, or
/// dots with a parameter (`..;x`), which Java servers take for dots.
pub fn normalized(raw: &str) -> Option<Cow<'_, str>> {
    if is_plain(raw) {
        return Some(Cow::Borrowed(raw));
    }
    let decoded = percent_decode_str(raw).decode_utf8_lossy();
    if decoded.contains(['\0', '\r', '\n']) {
        return None;
    }
    let mut kept: Vec<&str> = Vec::new();
    for segment in decoded.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(kept.pop()?),
            dots if dots.starts_with(".;") || dots.starts_with("..;") => return None,
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
    Some(Cow::Owned(path))
}

/// The same for a server that knows path parameters, as Java servers do: what stands behind a `;` of a segment is not
/// part of its name. Only one that is sent as it is counts; `%3b` is a letter to them.
pub fn without_parameters(raw: &str) -> Option<String> {
    let names = raw
        .split('/')
        .map(|segment| segment.split(';').next().unwrap_or_default());
    let kept = names.collect::<Vec<_>>().join("/");
    normalized(&kept).map(Cow::into_owned)
}

/// Nothing in it to decode, resolve or merge.
fn is_plain(raw: &str) -> bool {
    raw.starts_with('/') && !raw.contains('%') && !raw.contains("//") && !raw.contains("/.")
}

/// Path and query with the first `matched` bytes of the decoded path replaced. The rest stays as it was sent, escapes
/// and all; only where dots or double slashes hide what the prefix is, the decoded path is encoded anew.
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
            ("/%", Some("/%")),
            ("/%c3%a4", Some("/ä")),
        ] {
            assert_eq!(normalized(raw).as_deref(), expected, "{raw}");
        }
    }

    #[test]
    fn parameters_are_no_part_of_names() {
        for (raw, expected) in [
            ("/a;x/b;y=1;z/c", Some("/a/b/c")),
            ("/a;jsessionid=1", Some("/a")),
            ("/;x/a", Some("/a")),
            ("/a/;", Some("/a/")),
            ("/a%3bx/b", Some("/a;x/b")),
            ("/a;x%2fb/c", Some("/a/c")),
            ("/%2e%2e;x/a", None),
        ] {
            assert_eq!(without_parameters(raw).as_deref(), expected, "{raw}");
        }
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
        check("/AutoDiscover/X", "/autodiscover", "/x", "/x/X");
    }
}
