//! What forwarders in front say of a request: its client, and the scheme, host and port that the client sees. Only
//! those in `web.trusted_forwarders` are believed; entries left of theirs were written by the client itself.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use ipnet::IpNet;

/// How many hops of an X-Forwarded-For chain are followed. A content network, a balancer and a firewall make three.
const HOPS_MAX: usize = 32;

/// The older headers of forwarders. Where one of these is present, `Forwarded` is not read: a forwarder that writes the
/// one form passes on what clients write in the other.
const FAMILY: [&str; 4] = [
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-port",
];

/// What is believed of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Forwarded {
    /// The client: the TCP peer, unless it is one of our own forwarders. Then it is the right-most one that is not
    /// ours. When all are ours, the left-most is the client. An entry that is no address ends the search at the hop
    /// that wrote it.
    pub(crate) client: IpAddr,
    /// `http` or `https`, as the client sees it, where a forwarder says so.
    pub(crate) scheme: Option<&'static str>,
    /// The host that the client asks for, where a forwarder says so; not yet looked at.
    pub(crate) host: Option<String>,
    /// The port that the client sees, where a forwarder says so.
    pub(crate) port: Option<u16>,
}

impl Forwarded {
    /// Reads the headers of a request.
    pub(crate) fn read(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> Self {
        let peer = peer.to_canonical();
        let is_trusted = |address: &IpAddr| trusted.iter().any(|network| network.contains(address));
        let mut forwarded = Self {
            client: peer,
            scheme: None,
            host: None,
            port: None,
        };
        if !is_trusted(&peer) {
            return forwarded;
        }
        if FAMILY.iter().any(|name| headers.contains_key(*name)) {
            forwarded.follow(hops(headers), is_trusted);
            forwarded.scheme = last(headers, "x-forwarded-proto").and_then(scheme);
            forwarded.host = last(headers, "x-forwarded-host").map(str::to_owned);
            forwarded.port = last(headers, "x-forwarded-port").and_then(|port| port.parse().ok());
            return forwarded;
        }
        let elements = elements(headers).unwrap_or_default();
        let hops = elements.iter().rev().map(|element| element.address);
        let followed = forwarded.follow(hops, is_trusted);
        // The hop nearest to the client counts first; what it does not say is taken from the next one.
        for element in elements.iter().rev().take(followed) {
            forwarded.scheme = element.scheme.or(forwarded.scheme);
            forwarded.host = element.host.clone().or(forwarded.host.take());
        }
        forwarded
    }

    /// Whether a forwarder has said what the client sees.
    pub(crate) fn speaks(&self) -> bool {
        self.scheme.is_some() || self.host.is_some() || self.port.is_some()
    }

    /// Follows hops from right to left. Returns how many of them were written by forwarders of ours.
    fn follow(&mut self, hops: impl Iterator<Item = Option<IpAddr>>, is_trusted: impl Fn(&IpAddr) -> bool) -> usize {
        let mut followed = 0;
        for hop in hops.take(HOPS_MAX) {
            if !is_trusted(&self.client) {
                break;
            }
            followed += 1;
            match hop {
                Some(address) => self.client = address,
                None => break,
            }
        }
        followed
    }
}

/// The last of several values, which the forwarder wrote itself.
fn last<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let line = headers.get_all(name).iter().next_back()?.to_str().ok()?;
    Some(line.rsplit(',').next()?.trim())
}

/// WebSockets have schemes of their own, which mean the same.
fn scheme(text: &str) -> Option<&'static str> {
    match text.to_ascii_lowercase().as_str() {
        "https" | "wss" => Some("https"),
        "http" | "ws" => Some("http"),
        _ => None,
    }
}

/// What one hop says (RFC 7239 §4).
#[derive(Debug, Default)]
struct Element {
    address: Option<IpAddr>,
    scheme: Option<&'static str>,
    host: Option<String>,
}

/// The hops of `Forwarded` from left to right, over all its lines. `None` if it is malformed: the parts left and right
/// of a mistake cannot be forwarded apart.
fn elements(headers: &HeaderMap) -> Option<Vec<Element>> {
    let mut elements = Vec::new();
    for line in headers.get_all("forwarded") {
        for element in unquoted_split(line.to_str().ok()?, ',')? {
            elements.push(Element::parse(element)?);
        }
    }
    Some(elements)
}

impl Element {
    fn parse(text: &str) -> Option<Self> {
        let mut element = Self::default();
        for pair in unquoted_split(text, ';')? {
            let pair = pair.trim();
            if pair.is_empty() {
                continue;
            }
            let (name, value) = pair.split_once('=')?;
            let value = value_of(value);
            match name.to_ascii_lowercase().as_str() {
                "for" => element.address = hop_address(&value),
                "proto" => element.scheme = scheme(&value),
                "host" => element.host = Some(value),
                _ => {}
            }
        }
        Some(element)
    }
}

/// The parts between separators that do not stand in quotes (RFC 9110 §5.6.4). `None` if a quote has no end.
fn unquoted_split(text: &str, separator: char) -> Option<Vec<&str>> {
    let (mut parts, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, letter) in text.char_indices() {
        match letter {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if letter == separator && !quoted => {
                parts.push(&text[start..at]);
                start = at + letter.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    (!quoted).then_some(parts)
}

/// A token, or the text in quotes.
fn value_of(text: &str) -> String {
    let Some(inner) = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) else {
        return text.to_owned();
    };
    let mut letters = inner.chars();
    let mut value = String::with_capacity(inner.len());
    while let Some(letter) = letters.next() {
        value.extend(if letter == '\\' { letters.next() } else { Some(letter) });
    }
    value
}

/// The hops of X-Forwarded-For from right to left, over all its lines. `None` for an entry that is not an address.
fn hops(headers: &HeaderMap) -> impl Iterator<Item = Option<IpAddr>> {
    let lines = headers.get_all("x-forwarded-for").into_iter().rev();
    let entries = lines.flat_map(|line| line.as_bytes().rsplit(|&b| b == b','));
    let entries = entries
        .map(|entry| entry.trim_ascii())
        .filter(|entry| !entry.is_empty());
    entries.map(|entry| hop_address(std::str::from_utf8(entry).ok()?))
}

/// An address, as `192.0.2.1`, `2001:db8::1`, `[2001:db8::1]`, or any of these with the port that some balancers add.
fn hop_address(entry: &str) -> Option<IpAddr> {
    let bare = entry
        .strip_prefix('[')
        .and_then(|entry| entry.strip_suffix(']'))
        .unwrap_or(entry);
    let address = bare
        .parse()
        .or_else(|_| entry.parse::<SocketAddr>().map(|socket| socket.ip()));
    address.ok().map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::headers::tests::headers;

    #[test]
    fn client_addresses() {
        let trusted: Vec<IpNet> = ["10.0.0.0/8", "2001:db8:1::/48"]
            .map(|net| net.parse().unwrap())
            .to_vec();
        let long = format!("x-forwarded-for: 192.0.2.1{}", ", 10.0.0.1".repeat(40));
        for (peer, lines, expected) in [
            ("192.0.2.9", vec![], "192.0.2.9"),
            ("192.0.2.9", vec!["x-forwarded-for: 198.51.100.7"], "192.0.2.9"),
            ("10.0.0.1", vec![], "10.0.0.1"),
            ("10.0.0.1", vec!["x-forwarded-for: 198.51.100.7"], "198.51.100.7"),
            (
                "10.0.0.1",
                vec!["x-forwarded-for: 1.1.1.1, 198.51.100.7"],
                "198.51.100.7",
            ),
            (
                "10.0.0.1",
                vec!["x-forwarded-for: 1.1.1.1, 198.51.100.7,10.0.0.2 "],
                "198.51.100.7",
            ),
            (
                "10.0.0.1",
                vec!["x-forwarded-for: 1.1.1.1", "x-forwarded-for: 198.51.100.7"],
                "198.51.100.7",
            ),
            ("10.0.0.1", vec!["x-forwarded-for: 10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            ("10.0.0.1", vec!["x-forwarded-for: 198.51.100.7, ,"], "198.51.100.7"),
            ("10.0.0.1", vec!["x-forwarded-for: 198.51.100.7, unknown"], "10.0.0.1"),
            (
                "10.0.0.1",
                vec!["x-forwarded-for: 198.51.100.7, unknown, 10.0.0.2"],
                "10.0.0.2",
            ),
            ("10.0.0.1", vec!["x-forwarded-for: ü"], "10.0.0.1"),
            ("10.0.0.1", vec!["x-forwarded-for: 198.51.100.7:4711"], "198.51.100.7"),
            ("10.0.0.1", vec!["x-forwarded-for: 2001:DB8::7"], "2001:db8::7"),
            ("10.0.0.1", vec!["x-forwarded-for: [2001:db8::7]"], "2001:db8::7"),
            ("10.0.0.1", vec!["x-forwarded-for: [2001:db8::7]:4711"], "2001:db8::7"),
            ("10.0.0.1", vec!["x-forwarded-for: ::ffff:198.51.100.7"], "198.51.100.7"),
            ("::ffff:10.0.0.1", vec!["x-forwarded-for: 198.51.100.7"], "198.51.100.7"),
            ("::ffff:192.0.2.9", vec![], "192.0.2.9"),
            ("2001:db8:1::1", vec!["x-forwarded-for: 2001:db8:2::1"], "2001:db8:2::1"),
            ("10.0.0.1", vec!["x-real-ip: 198.51.100.7"], "10.0.0.1"),
            ("10.0.0.1", vec!["forwarded: for=198.51.100.7"], "198.51.100.7"),
            ("192.0.2.9", vec!["forwarded: for=198.51.100.7"], "192.0.2.9"),
            (
                "10.0.0.1",
                vec!["forwarded: for=1.1.1.1, FOR=\"[2001:db8::7]:4711\";by=x;proto=https, for=10.0.0.2"],
                "2001:db8::7",
            ),
            (
                "10.0.0.1",
                vec!["forwarded: for=1.1.1.1", "forwarded: for=198.51.100.7"],
                "198.51.100.7",
            ),
            ("10.0.0.1", vec!["forwarded: for=1.1.1.1, for=_hidden"], "10.0.0.1"),
            ("10.0.0.1", vec!["forwarded: for=1.1.1.1, proto=https"], "10.0.0.1"),
            (
                "10.0.0.1",
                vec!["forwarded: for=1.1.1.1, for=\"198.51.100.7"],
                "10.0.0.1",
            ),
            // A forwarder that writes the one form passes on what clients write in the other.
            (
                "10.0.0.1",
                vec!["forwarded: for=1.1.1.1", "x-forwarded-proto: https"],
                "10.0.0.1",
            ),
            (
                "10.0.0.1",
                vec!["forwarded: for=1.1.1.1", "x-forwarded-for: 198.51.100.7"],
                "198.51.100.7",
            ),
            ("10.0.0.1", vec![long.as_str()], "10.0.0.1"),
        ] {
            let client = Forwarded::read(peer.parse().unwrap(), &headers(&lines), &trusted).client;
            assert_eq!(client.to_string(), expected, "{peer} {lines:?}");
        }
        let peer = "10.0.0.1".parse().unwrap();
        assert_eq!(
            Forwarded::read(peer, &headers(&["x-forwarded-for: 1.1.1.1"]), &[]).client,
            peer
        );
    }

    #[track_caller]
    fn check(lines: &[&str], scheme: Option<&str>, host: Option<&str>, port: Option<u16>) {
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        let forwarded = Forwarded::read("10.0.0.1".parse().unwrap(), &headers(lines), &trusted);
        assert_eq!(
            (forwarded.scheme, forwarded.host.as_deref(), forwarded.port),
            (scheme, host, port),
            "{lines:?}"
        );
        let forwarded = Forwarded::read("192.0.2.9".parse().unwrap(), &headers(lines), &trusted);
        assert_eq!(
            (forwarded.scheme, forwarded.host, forwarded.port),
            (None, None, None),
            "{lines:?}"
        );
    }

    #[test]
    fn what_the_client_sees() {
        check(&[], None, None, None);
        check(&["x-forwarded-proto: HTTPS"], Some("https"), None, None);
        check(&["x-forwarded-proto: https, http"], Some("http"), None, None);
        check(&["x-forwarded-proto: wss"], Some("https"), None, None);
        check(
            &["x-forwarded-proto: gopher", "x-forwarded-port: 0x1"],
            None,
            None,
            None,
        );
        check(
            &["x-forwarded-host: a, b.example:8443", "x-forwarded-port: 8443"],
            None,
            Some("b.example:8443"),
            Some(8443),
        );
        check(
            &["forwarded: for=192.0.2.1;proto=https;host=\"mail.a.example:8443\""],
            Some("https"),
            Some("mail.a.example:8443"),
            None,
        );
        check(
            &[
                "forwarded: for=1.1.1.1;proto=gopher;host=evil, for=192.0.2.1;proto=https, for=10.0.0.2;proto=http;host=inner",
            ],
            Some("https"),
            Some("inner"),
            None,
        );
        check(
            &["forwarded: proto=https;host=\"a\\\"b,c\", for=_x;proto=http"],
            Some("http"),
            None,
            None,
        );
        check(&["forwarded: proto"], None, None, None);
        check(
            &["forwarded: proto=https", "x-forwarded-for: 192.0.2.1"],
            None,
            None,
            None,
        );
    }
}
