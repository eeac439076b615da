//! A host and a port as one value, and the one form in which they are written and read.

use std::borrow::Cow;
use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

/// A server's host name or address, and its TCP port.
///
/// Written as `store1.example.com:143`, `192.0.2.1:143` or `[2001:db8::1]:143`; [`FromStr`] reads exactly what
/// [`Display`](fmt::Display) writes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// Host name or address, without brackets.
    pub host: Arc<str>,
    /// TCP port.
    pub port: u16,
}

impl HostPort {
    /// This port of this host.
    pub fn new(host: impl Into<Arc<str>>, port: u16) -> Self {
        Self {
            host: host.into(),
            port,
        }
    }

    /// As it stands in `Host`: the zone of an address means nothing to another host and stays here (RFC 6874
    /// section 4).
    pub fn authority(&self) -> String {
        format!("{}:{}", bracketed(without_zone(&self.host)), self.port)
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        Self::new(address.ip().to_string(), address.port())
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", bracketed(&self.host), self.port)
    }
}

/// The address without `%zone`; a name has none.
pub fn without_zone(host: &str) -> &str {
    host.split_once('%').map_or(host, |(address, _)| address)
}

/// A host as it stands before a port and in URLs: an IPv6 address gets brackets (RFC 3986 section 3.2.2).
pub fn bracketed(host: &str) -> Cow<'_, str> {
    match host.contains(':') {
        true => Cow::Owned(format!("[{host}]")),
        false => Cow::Borrowed(host),
    }
}

/// The text is not `host:port`, or an IPv6 address in it has no brackets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoHostPort;

impl FromStr for HostPort {
    type Err = NoHostPort;

    /// ```text
    /// host-port = ( name / IPv4address / "[" IPv6address [ "%" zone ] "]" ) ":" port      ; port 1 to 65535
    /// ```
    fn from_str(text: &str) -> Result<Self, NoHostPort> {
        let (host, port) = text.rsplit_once(':').ok_or(NoHostPort)?;
        let in_brackets = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let good = match in_brackets {
            Some(address) => is_ipv6(address),
            None => !host.is_empty() && !host.contains(':') && is_plain(host),
        };
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        match port.parse() {
            Ok(port @ 1..) if good && digits => Ok(Self::new(in_brackets.unwrap_or(host), port)),
            _ => Err(NoHostPort),
        }
    }
}

fn is_ipv6(address: &str) -> bool {
    let (address, zone) = address.split_once('%').unwrap_or((address, ""));
    address.parse::<Ipv6Addr>().is_ok() && is_plain(zone)
}

/// Whether nothing in it could end a host in a URL, a header or a line.
fn is_plain(host: &str) -> bool {
    host.chars()
        .all(|char| char.is_ascii_graphic() && !"[]/\\@?#%\"".contains(char))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV6;

    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for text in [
            "store1.example.com:143",
            "store_1:65535",
            "192.0.2.1:1",
            "[::1]:143",
            "[2001:DB8::1]:8443",
            "[fe80::1%eth0]:143",
        ] {
            let read: HostPort = text.parse().expect(text);
            assert_eq!(read.to_string(), text);
        }
        assert_eq!("[::1]:143".parse(), Ok(HostPort::new("::1", 143)));
    }

    #[test]
    fn a_zone_stays_on_this_host() {
        for (text, authority) in [
            ("[fe80::1%eth0]:80", "[fe80::1]:80"),
            ("[::1]:143", "[::1]:143"),
            ("store1.example.com:143", "store1.example.com:143"),
        ] {
            let read: HostPort = text.parse().expect(text);
            assert_eq!(read.authority(), authority);
        }
        let link_local = SocketAddrV6::new("fe80::1".parse().expect("address"), 80, 0, 2);
        assert_eq!(HostPort::from(SocketAddr::V6(link_local)).to_string(), "[fe80::1]:80");
    }

    #[test]
    fn what_is_not_clear_is_not_read() {
        for text in [
            "",
            ":143",
            "host",
            "host:",
            "host:0",
            "host:65536",
            "host:+1",
            "host: 1",
            "::1",
            "::1:143",
            "[]:1",
            "[::1]",
            "[::1]143",
            "[host]:1",
            "[192.0.2.1]:1",
            "[::1:1",
            "::1]:1",
            "[::1%a]b]:1",
            "a b:1",
            "b\u{fc}cher.example:25",
            "a/b:1",
            "a@b:1",
            "a\r\nb:1",
            "a:b:1",
        ] {
            assert_eq!(text.parse::<HostPort>(), Err(NoHostPort), "{text:?}");
        }
    }
}
