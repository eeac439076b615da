//! The PROXY protocol as sender: the header in front of a connection that is relayed for a client. Pure.
//!
//! Source: the PROXY protocol specification (HAProxy, `proxy-protocol.txt`), sections 2.1 and 2.2.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use mail_proxy::{ConnectionFacts, ProxyVersion, TlsFacts};

/// How a header of version 2 begins.
pub(crate) const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// What is known of the client's TLS, and the bit that says that there is any (section 2.2.6).
pub(crate) const PP2_TYPE_SSL: u8 = 0x20;
pub(crate) const PP2_CLIENT_SSL: u8 = 1;

/// It has shown a certificate, in this connection and in this session.
const PP2_CLIENT_CERT: u8 = 2 | 4;
const PP2_TYPE_ALPN: u8 = 0x01;
const PP2_TYPE_AUTHORITY: u8 = 0x02;
const PP2_SUBTYPE_SSL_VERSION: u8 = 0x21;
const PP2_SUBTYPE_SSL_CN: u8 = 0x22;
const PP2_SUBTYPE_SSL_CIPHER: u8 = 0x23;

/// Octets of a value of a client, at most: a longer one is left out. Names of hosts and people are shorter, and the
/// whole header stays below what receivers take.
const MAX_VALUE: usize = 255;

/// The header for this client. What is relayed for a client without an address is relayed for nobody (`UNKNOWN`,
/// `LOCAL`).
pub(crate) fn encode(version: ProxyVersion, facts: &ConnectionFacts) -> Vec<u8> {
    let (source, destination) = (facts.client.addr, facts.client.local);
    let is_known = !source.ip().is_unspecified() && source.port() != 0;
    match (version, is_known) {
        (ProxyVersion::V1, false) => b"PROXY UNKNOWN\r\n".to_vec(),
        (ProxyVersion::V1, true) => v1(source, destination),
        (ProxyVersion::V2, false) => local(),
        (ProxyVersion::V2, true) => v2(source, destination, &facts.tls.as_ref().map(of_tls).unwrap_or_default()),
    }
}

/// The header of a connection that is relayed for nobody (`LOCAL`).
pub(crate) fn local() -> Vec<u8> {
    [V2_SIGNATURE.as_slice(), &[0x20, 0x00, 0, 0]].concat()
}

/// `PROXY TCP4 192.0.2.1 192.0.2.9 56324 443 CRLF`
fn v1(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let (from, to) = same_family(source, destination);
    let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
    format!(
        "PROXY {family} {from} {to} {} {}\r\n",
        source.port(),
        destination.port()
    )
    .into_bytes()
}

/// Version 2 with these TLVs.
pub(crate) fn v2(source: SocketAddr, destination: SocketAddr, tlvs: &[u8]) -> Vec<u8> {
    let (family, addresses) = match same_family(source, destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => (0x11, [from.octets(), to.octets()].concat()),
        (from, to) => (0x21, [as_v6(from).octets(), as_v6(to).octets()].concat()),
    };
    let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
    let rest = [&addresses, &ports, tlvs].concat();
    // Version 2, PROXY. The TLVs are bounded by `MAX_VALUE`.
    let length = u16::try_from(rest.len()).unwrap_or_default().to_be_bytes();
    [V2_SIGNATURE.as_slice(), &[0x21, family], &length, &rest].concat()
}

/// Two addresses of one family: where only one is IPv4, it is written as IPv6 (RFC 4291 section 2.5.5.2).
fn same_family(source: SocketAddr, destination: SocketAddr) -> (IpAddr, IpAddr) {
    match (source.ip().to_canonical(), destination.ip().to_canonical()) {
        (from, to) if from.is_ipv4() == to.is_ipv4() => (from, to),
        (from, to) => (as_v6(from).into(), as_v6(to).into()),
    }
}

fn as_v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

/// What is known of the client's TLS: the name that it asked for, the protocol inside, version and cipher, and whom its
/// certificate names.
fn of_tls(tls: &TlsFacts) -> Vec<u8> {
    let (version, cipher) = tls.cipher.split_once(' ').unwrap_or((&tls.cipher, ""));
    let name = tls.client_name.as_deref();
    let certificate = if name.is_some() { PP2_CLIENT_CERT } else { 0 };
    // 0: it has shown a certificate, and that is good.
    let verify = u32::from(name.is_none()).to_be_bytes();
    let mut ssl = [[PP2_CLIENT_SSL | certificate].as_slice(), &verify].concat();
    put(&mut ssl, PP2_SUBTYPE_SSL_VERSION, Some(version));
    put(&mut ssl, PP2_SUBTYPE_SSL_CN, name);
    put(&mut ssl, PP2_SUBTYPE_SSL_CIPHER, Some(cipher));
    let mut tlvs = Vec::new();
    put(&mut tlvs, PP2_TYPE_ALPN, tls.alpn.as_deref());
    put(&mut tlvs, PP2_TYPE_AUTHORITY, tls.sni.as_deref());
    put_bytes(&mut tlvs, PP2_TYPE_SSL, &ssl);
    tlvs
}

fn put(tlvs: &mut Vec<u8>, kind: u8, value: Option<&str>) {
    let fits = value.filter(|value| (1..=MAX_VALUE).contains(&value.len()));
    if let Some(value) = fits {
        put_bytes(tlvs, kind, value.as_bytes());
    }
}

fn put_bytes(tlvs: &mut Vec<u8>, kind: u8, value: &[u8]) {
    if let Ok(length) = u16::try_from(value.len()) {
        tlvs.push(kind);
        tlvs.extend(length.to_be_bytes());
        tlvs.extend(value);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mail_proxy::{Client, ConnectionHandle, Proto};
    use tokio::time::Instant;

    use super::*;

    fn facts(source: &str, destination: &str, tls: Option<TlsFacts>) -> ConnectionFacts {
        ConnectionFacts {
            id: "p1-1".to_owned(),
            listener: "127.0.0.1:993".into(),
            proto: Proto::Imap,
            client: Client {
                addr: source.parse().unwrap(),
                via: None,
                local: destination.parse().unwrap(),
            },
            tls,
            accepted: Instant::now(),
            handle: Arc::new(ConnectionHandle::new()),
        }
    }

    #[test]
    fn one_line_of_text() {
        for (source, destination, line) in [
            ("192.0.2.1:5", "198.51.100.2:993", "TCP4 192.0.2.1 198.51.100.2 5 993"),
            (
                "[::ffff:192.0.2.1]:5",
                "198.51.100.2:993",
                "TCP4 192.0.2.1 198.51.100.2 5 993",
            ),
            (
                "[2001:db8::1]:5",
                "[2001:db8::2]:993",
                "TCP6 2001:db8::1 2001:db8::2 5 993",
            ),
            (
                "192.0.2.1:5",
                "[2001:db8::2]:993",
                "TCP6 ::ffff:192.0.2.1 2001:db8::2 5 993",
            ),
            ("0.0.0.0:0", "198.51.100.2:993", "UNKNOWN"),
        ] {
            let header = encode(ProxyVersion::V1, &facts(source, destination, None));
            assert_eq!(header, format!("PROXY {line}\r\n").into_bytes(), "{source}");
            assert!(header.len() <= 107, "section 2.1");
        }
    }

    #[test]
    fn tls_is_told_in_tlvs() {
        let tls = TlsFacts {
            cipher: "TLSv1.3 AES".to_owned(),
            sni: Some("m.test".to_owned()),
            alpn: Some("imap".to_owned()),
            client_name: Some("Alice".to_owned()),
            certificate: None,
        };
        let header = encode(
            ProxyVersion::V2,
            &facts("192.0.2.1:5", "198.51.100.2:993", Some(tls.clone())),
        );
        let tlvs = b"\x01\0\x04imap\x02\0\x06m.test\x20\0\x1d\x07\0\0\0\0\x21\0\x07TLSv1.3\x22\0\x05Alice\x23\0\x03AES";
        assert_eq!(&header[..16], b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x3c");
        assert_eq!(&header[28..], tlvs);
        let without = TlsFacts {
            sni: Some("x".repeat(MAX_VALUE + 1)),
            alpn: None,
            client_name: None,
            ..tls
        };
        let header = encode(ProxyVersion::V2, &facts("[::1]:5", "[::2]:993", Some(without)));
        assert_eq!(&header[52..], b"\x20\0\x15\x01\0\0\0\x01\x21\0\x07TLSv1.3\x23\0\x03AES");
        let nobody = encode(ProxyVersion::V2, &facts("0.0.0.0:0", "198.51.100.2:993", None));
        assert_eq!(nobody, b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0");
    }
}
