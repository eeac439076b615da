//! The first line of a request of HTTP/1, before the engine reads it: refused or rewritten where the engine would take it
//! for something else.

use bytes::{BufMut, BytesMut};

/// Whether the request target is neither a path, nor a URL of ours, nor `*` (RFC 9112 §3.2), or not one word of visible
/// characters (§3). The engine takes such a word for the name of a host, and the path for `/`; and it escapes blanks.
pub(crate) fn lacks_a_target(head: &[u8]) -> bool {
    let mut words = line_of(head).split(|&b| b == b' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return false;
    };
    let is_one_word = words.nth(1).is_none() && !target.iter().any(u8::is_ascii_control);
    let is_known = target.starts_with(b"/") || target == b"*" || without_scheme(target).is_some();
    method != b"CONNECT" && !(is_one_word && is_known)
}

/// A later HTTP/1 version than ours is answered as ours (RFC 9110 §2.5).
pub(crate) fn as_ours(head: &mut [u8]) {
    let end = line_of(head).len();
    if let [.., b' ', b'H', b'T', b'T', b'P', b'/', b'1', b'.', minor @ b'2'..=b'9'] = &mut head[..end] {
        *minor = b'1';
    }
}

/// A URL of the host that `Host` names becomes a path (RFC 9112 §3.2.2), or `*` (§3.2.4). The engine refuses a URL whose
/// host is written in another way than in `Host`.
pub(crate) fn as_path(head: &mut BytesMut) {
    let line = line_of(head);
    let Some(begin) = line.iter().position(|&b| b == b' ').map(|blank| blank + 1) else {
        return;
    };
    if line.get(begin) == Some(&b'/') {
        return;
    }
    let (method, target) = (&line[..begin - 1], &line[begin..]);
    let end = target.iter().position(|&b| b == b' ').unwrap_or(target.len());
    let Some((port, url)) = without_scheme(&target[..end]) else {
        return;
    };
    let (authority, path) = url.split_at(url.iter().position(|b| b"/?#".contains(b)).unwrap_or(url.len()));
    let is_same = host_of(head).is_some_and(|host| place(authority, port) == place(host, port));
    if method == b"CONNECT" || authority.contains(&b'@') || !is_same {
        return;
    }
    let slash: &[u8] = match path {
        [] if method == b"OPTIONS" => b"*",
        [b'/', ..] => b"",
        _ => b"/",
    };
    let mut rewritten = BytesMut::with_capacity(head.len());
    for part in [&head[..begin], slash, path, &head[begin + end..]] {
        rewritten.put_slice(part);
    }
    *head = rewritten;
}

fn line_of(head: &[u8]) -> &[u8] {
    head.split(|&b| b == b'\r').next().unwrap_or_default()
}

/// A URL behind its scheme, and the port that this means.
fn without_scheme(target: &[u8]) -> Option<(&'static [u8], &[u8])> {
    let schemes: [(&[u8], &[u8]); 2] = [(b"http://", b"80"), (b"https://", b"443")];
    schemes.into_iter().find_map(|(scheme, port)| {
        let (begin, rest) = target.split_at_checked(scheme.len())?;
        begin.eq_ignore_ascii_case(scheme).then_some((port, rest))
    })
}

/// The one `Host` of a head.
fn host_of(head: &[u8]) -> Option<&[u8]> {
    let mut hosts = head.split(|&b| b == b'\n').filter_map(|line| {
        let (name, value) = line.split_at_checked(b"host:".len())?;
        name.eq_ignore_ascii_case(b"host:").then(|| value.trim_ascii())
    });
    hosts.next().filter(|_| hosts.next().is_none())
}

/// A host in lower case and a port, which is this one if there is none.
fn place<'a>(authority: &'a [u8], port: &'a [u8]) -> (Vec<u8>, &'a [u8]) {
    let digits = authority.iter().rev().take_while(|b| b.is_ascii_digit()).count();
    match authority.split_at(authority.len() - digits) {
        ([host @ .., b':'], []) => (host.to_ascii_lowercase(), port),
        ([host @ .., b':'], port) => (host.to_ascii_lowercase(), port),
        _ => (authority.to_ascii_lowercase(), port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_paths_or_urls() {
        for (line, expected) in [
            ("GET / HTTP/1.1", false),
            ("OPTIONS * HTTP/1.1", false),
            ("GET HTTP://a/ HTTP/1.1", false),
            ("CONNECT a:443 HTTP/1.1", false),
            ("GET /\u{e4} HTTP/1.1", false),
            ("nothing", false),
            ("GET ftp://a/b HTTP/1.1", true),
            ("GET a HTTP/1.1", true),
            ("POST a:80 HTTP/1.1", true),
            ("GET *x HTTP/1.1", true),
            ("GET ?a HTTP/1.1", true),
            ("GET ..\\a HTTP/1.1", true),
            ("GET /c/ a HTTP/1.1", true),
            ("GET  / HTTP/1.1", true),
            ("GET /  HTTP/1.1", true),
            ("GET / HTTP/1.1 ", true),
            ("GET /\ta HTTP/1.1", true),
            ("GET /\x01 HTTP/1.1", true),
            ("GET /\x7f HTTP/1.1", true),
        ] {
            assert_eq!(lacks_a_target(format!("{line}\r\n").as_bytes()), expected, "{line}");
        }
    }

    #[test]
    fn a_later_version_is_ours() {
        for (line, expected) in [
            ("GET / HTTP/1.2\r\n", "GET / HTTP/1.1\r\n"),
            ("GET / HTTP/1.0\r\n", "GET / HTTP/1.0\r\n"),
            ("GET / HTTP/2.0\r\n", "GET / HTTP/2.0\r\n"),
            ("GET /HTTP/1.2\r\n", "GET /HTTP/1.2\r\n"),
            (
                "GET / HTTP/1.1\r\nX:  HTTP/1.2\r\n",
                "GET / HTTP/1.1\r\nX:  HTTP/1.2\r\n",
            ),
        ] {
            let mut head = line.as_bytes().to_vec();
            as_ours(&mut head);
            assert_eq!(head, expected.as_bytes());
        }
    }

    #[test]
    fn a_url_of_the_same_host_is_a_path() {
        for (line, host, expected) in [
            ("GET /a", "a.test", "GET /a"),
            ("GET http://a.test/a?b", "a.test", "GET /a?b"),
            ("GET HTTP://A.test:80/a", "a.TEST", "GET /a"),
            ("GET http://a.test/a", "a.test:80", "GET /a"),
            ("GET https://a.test:/a", "a.test:443", "GET /a"),
            ("GET http://a.test?b", "a.test", "GET /?b"),
            ("GET http://a.test", "a.test", "GET /"),
            ("OPTIONS http://a.test", "a.test", "OPTIONS *"),
            ("OPTIONS http://a.test/", "a.test", "OPTIONS /"),
            ("GET http://[::1]:80/", "[::1]", "GET /"),
            // The engine refuses these.
            ("GET http://a.test/", "b.test", "GET http://a.test/"),
            ("GET http://a.test/", "a.test:443", "GET http://a.test/"),
            ("GET http://b@a.test/", "b@a.test", "GET http://b@a.test/"),
            ("GET http://a.test/", "a.test\r\nHost: a.test", "GET http://a.test/"),
        ] {
            let rest = format!(" HTTP/1.1\r\nX: y\r\nhOST: {host}\r\n\r\n");
            let mut head = BytesMut::from(format!("{line}{rest}").as_bytes());
            as_path(&mut head);
            assert_eq!(
                String::from_utf8_lossy(&head),
                format!("{expected}{rest}"),
                "{line} {host}"
            );
        }
        let mut without = BytesMut::from(&b"GET http://a.test/ HTTP/1.0\r\n\r\n"[..]);
        as_path(&mut without);
        assert_eq!(without, &b"GET http://a.test/ HTTP/1.0\r\n\r\n"[..]);
    }
}
