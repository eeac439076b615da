//! The PROXY protocol, versions 1 and 2, as receiver: the address of the client behind the balancer.
//!
//! [`parse`] is a pure function over the bytes read so far; `read` feeds it from a socket without taking one
//! byte more than the header. Whether a peer is trusted to send one is the listener's business.
//! Source: the PROXY protocol specification (HAProxy, `proxy-protocol.txt`), sections 2.1 and 2.2.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::upstream::proxy_header::{PP2_CLIENT_SSL, PP2_TYPE_SSL, V2_SIGNATURE};

/// Longest version 1 header, line end included (section 2.1).
const V1_MAX: usize = 107;
/// Fixed part of a version 2 header.
const V2_FIXED: usize = 16;
/// Longest variable part of a version 2 header that we take: addresses and TLVs. HAProxy with all its TLS
/// information stays below 1 KiB; the field itself could say 65535.
const V2_MAX: usize = 2048;

/// The content of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// The connection is relayed for this client, which had connected to this address.
    Proxied {
        /// The client.
        source: SocketAddr,
        /// Where it connected to.
        destination: SocketAddr,
        /// It speaks TLS with the balancer, which has ended it (section 2.2.6).
        tls: bool,
    },
    /// The balancer speaks for itself (a health check), or does not know the client.
    Local,
}

/// How far a header has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// All bytes belong to the header, and more must follow.
    Incomplete,
    /// The header, and how many bytes it takes.
    Complete(Header, usize),
}

/// Why bytes are not a PROXY header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// They begin differently.
    #[error("not a PROXY header")]
    NotAHeader,
    /// They begin like one and go on wrongly.
    #[error("bad PROXY header")]
    Bad,
    /// The header says that it is longer than we take.
    #[error("PROXY header is too long")]
    TooLong,
}

/// Looks at the bytes read so far.
pub fn parse(bytes: &[u8]) -> Result<Progress, ProxyError> {
    if begins(bytes, V2_SIGNATURE) {
        return parse_v2(bytes);
    }
    if begins(bytes, b"PROXY ") {
        return parse_v1(bytes);
    }
    Err(ProxyError::NotAHeader)
}

/// Is one the beginning of the other?
fn begins(bytes: &[u8], signature: &[u8]) -> bool {
    let n = bytes.len().min(signature.len());
    bytes[..n] == signature[..n]
}

/// `PROXY TCP4 192.0.2.1 192.0.2.9 56324 443 CRLF`
fn parse_v1(bytes: &[u8]) -> Result<Progress, ProxyError> {
    let window = &bytes[..bytes.len().min(V1_MAX)];
    let Some(end) = window.iter().position(|&b| b == b'\n') else {
        return if bytes.len() < V1_MAX {
            Ok(Progress::Incomplete)
        } else {
            Err(ProxyError::TooLong)
        };
    };
    let line = window[..end].strip_suffix(b"\r").ok_or(ProxyError::Bad)?;
    let line = std::str::from_utf8(line).map_err(|_| ProxyError::Bad)?;
    let header = v1_fields(line).ok_or(ProxyError::Bad)?;
    Ok(Progress::Complete(header, end + 1))
}

fn v1_fields(line: &str) -> Option<Header> {
    let mut fields = line.split(' ');
    fields.next().filter(|word| *word == "PROXY")?;
    let family = fields.next()?;
    if family == "UNKNOWN" {
        return Some(Header::Local);
    }
    let source: IpAddr = fields.next()?.parse().ok()?;
    let destination: IpAddr = fields.next()?.parse().ok()?;
    let source_port = v1_port(fields.next()?)?;
    let destination_port = v1_port(fields.next()?)?;
    let family_holds = match family {
        "TCP4" => source.is_ipv4() && destination.is_ipv4(),
        "TCP6" => source.is_ipv6() && destination.is_ipv6(),
        _ => false,
    };
    (family_holds && fields.next().is_none()).then(|| Header::Proxied {
        source: SocketAddr::new(source, source_port),
        destination: SocketAddr::new(destination, destination_port),
        tls: false,
    })
}

/// A decimal port without sign or leading zero.
fn v1_port(text: &str) -> Option<u16> {
    let plain = text == "0" || (!text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit()));
    text.parse().ok().filter(|_| plain)
}

fn parse_v2(bytes: &[u8]) -> Result<Progress, ProxyError> {
    let Some((fixed, rest)) = bytes.split_first_chunk::<V2_FIXED>() else {
        return Ok(Progress::Incomplete);
    };
    let [version_command, family, length @ ..] = [fixed[12], fixed[13], fixed[14], fixed[15]];
    let length = usize::from(u16::from_be_bytes(length));
    if version_command >> 4 != 2 {
        return Err(ProxyError::Bad);
    }
    if length > V2_MAX {
        return Err(ProxyError::TooLong);
    }
    let Some(rest) = rest.get(..length) else {
        return Ok(Progress::Incomplete);
    };
    let header = match version_command & 0xf {
        0 => Header::Local,
        1 => v2_addresses(family, rest)?,
        _ => return Err(ProxyError::Bad),
    };
    Ok(Progress::Complete(header, V2_FIXED + length))
}

fn v2_addresses(family: u8, rest: &[u8]) -> Result<Header, ProxyError> {
    match family {
        0x11 => {
            let (a, tlvs) = rest.split_first_chunk::<12>().ok_or(ProxyError::Bad)?;
            let ip = |at: usize| IpAddr::V4(Ipv4Addr::new(a[at], a[at + 1], a[at + 2], a[at + 3]));
            let port = |at: usize| u16::from_be_bytes([a[at], a[at + 1]]);
            Ok(proxied(ip(0), ip(4), port(8), port(10), speaks_tls(tlvs)?))
        }
        0x21 => {
            let (a, tlvs) = rest.split_first_chunk::<36>().ok_or(ProxyError::Bad)?;
            let ip = |at: usize| {
                let mut octets = [0; 16];
                octets.copy_from_slice(&a[at..at + 16]);
                IpAddr::V6(Ipv6Addr::from(octets))
            };
            let port = |at: usize| u16::from_be_bytes([a[at], a[at + 1]]);
            Ok(proxied(ip(0), ip(16), port(32), port(34), speaks_tls(tlvs)?))
        }
        // AF_UNSPEC: the balancer does not know.
        0x00 => Ok(Header::Local),
        // No mail client comes by UNIX sockets or datagrams.
        _ => Err(ProxyError::Bad),
    }
}

fn proxied(source: IpAddr, destination: IpAddr, source_port: u16, destination_port: u16, tls: bool) -> Header {
    Header::Proxied {
        source: SocketAddr::new(source, source_port),
        destination: SocketAddr::new(destination, destination_port),
        tls,
    }
}

/// Whether the client speaks TLS, by the TLVs. A header whose TLVs overrun it is a broken or hostile one.
fn speaks_tls(mut tlvs: &[u8]) -> Result<bool, ProxyError> {
    let mut tls = false;
    while !tlvs.is_empty() {
        let [kind, high, low, rest @ ..] = tlvs else {
            return Err(ProxyError::Bad);
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (value, rest) = rest.split_at_checked(length).ok_or(ProxyError::Bad)?;
        tls |= *kind == PP2_TYPE_SSL && value.first().is_some_and(|client| client & PP2_CLIENT_SSL != 0);
        tlvs = rest;
    }
    Ok(tls)
}

/// Reads exactly the header from a fresh connection. The caller sets the time limit.
pub(crate) async fn read(stream: &mut TcpStream) -> io::Result<Header> {
    let mut bytes = [0; V2_FIXED + V2_MAX];
    let mut held = 0;
    loop {
        let seen = held + stream.peek(&mut bytes[held..]).await?;
        if seen == held {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match parse(&bytes[..seen]) {
            Ok(Progress::Complete(header, length)) => {
                // What was taken before is a proper beginning of the header, so it is never longer than the whole.
                stream.read_exact(&mut bytes[held..length]).await?;
                return Ok(header);
            }
            // All that was seen belongs to the header, so it may be taken.
            Ok(Progress::Incomplete) => {
                stream.read_exact(&mut bytes[held..seen]).await?;
                held = seen;
            }
            Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::proxy_header::v2 as v2_header;

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = V2_SIGNATURE.to_vec();
        bytes.extend([0x20 | command, family]);
        bytes.extend((rest.len() as u16).to_be_bytes());
        bytes.extend(rest);
        bytes
    }

    /// Every proper beginning of a valid header is incomplete, and bytes behind it do not matter.
    #[track_caller]
    fn check(header: &[u8], expected: Header) {
        for n in 1..header.len() {
            assert_eq!(parse(&header[..n]), Ok(Progress::Incomplete), "first {n} bytes");
        }
        let mut more = header.to_vec();
        more.extend(b"a LOGIN");
        for bytes in [header, &more] {
            assert_eq!(parse(bytes), Ok(Progress::Complete(expected, header.len())));
        }
    }

    fn from(source: &str, destination: &str) -> Header {
        Header::Proxied {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            tls: false,
        }
    }

    #[test]
    fn version_1() {
        check(
            b"PROXY TCP4 192.0.2.1 198.51.100.9 56324 993\r\n",
            from("192.0.2.1:56324", "198.51.100.9:993"),
        );
        check(
            b"PROXY TCP6 2001:db8::1 ::1 1 65535\r\n",
            from("[2001:db8::1]:1", "[::1]:65535"),
        );
        check(b"PROXY UNKNOWN\r\n", Header::Local);
        check(b"PROXY UNKNOWN ffff:f:f ::1 1 2\r\n", Header::Local);
    }

    #[test]
    fn version_2() {
        let v4 = [192, 0, 2, 1, 198, 51, 100, 9, 0xdc, 0x04, 0x03, 0xe1];
        check(&v2(1, 0x11, &v4), from("192.0.2.1:56324", "198.51.100.9:993"));
        let mut v6 = [0u8; 36];
        v6[15] = 1;
        v6[31] = 2;
        v6[33] = 7;
        v6[35] = 9;
        check(&v2(1, 0x21, &v6), from("[::1]:7", "[::2]:9"));
        let mut with_tlv = v4.to_vec();
        with_tlv.extend([0x04, 0, 2, 1, 2, 0x20, 0, 0]);
        check(&v2(1, 0x11, &with_tlv), from("192.0.2.1:56324", "198.51.100.9:993"));
        for (client, expected) in [(0, false), (1, true), (7, true), (6, false)] {
            let mut with_tls = v4.to_vec();
            with_tls.extend([0x04, 0, 1, 0, 0x20, 0, 15, client, 0, 0, 0, 0, 0x21, 0, 7]);
            with_tls.extend(b"TLSv1.3");
            let (source, destination) = ("192.0.2.1:56324", "198.51.100.9:993");
            let expected = Header::Proxied {
                source: source.parse().unwrap(),
                destination: destination.parse().unwrap(),
                tls: expected,
            };
            check(&v2(1, 0x11, &with_tls), expected);
        }
        check(&v2(0, 0x11, &v4), Header::Local);
        check(&v2(0, 0x00, b""), Header::Local);
    }

    #[test]
    fn refused() {
        let v4 = [192, 0, 2, 1, 198, 51, 100, 9, 0xdc, 0x04, 0x03, 0xe1];
        let mut overrun = v4.to_vec();
        overrun.extend([0x04, 0, 9, 1]);
        let mut huge = V2_SIGNATURE.to_vec();
        huge.extend([0x21, 0x11, 0xff, 0xff]);
        let long = [b"PROXY TCP4 ".to_vec(), vec![b'1'; 200]].concat();
        for (bytes, error) in [
            (b"GET / HTTP/1.1\r\n".to_vec(), ProxyError::NotAHeader),
            (b"\x16\x03\x01".to_vec(), ProxyError::NotAHeader),
            (b"PROXY TCP4 192.0.2.1 198.51.100.9 56324\r\n".to_vec(), ProxyError::Bad),
            (b"PROXY TCP4 ::1 ::1 1 2\r\n".to_vec(), ProxyError::Bad),
            (b"PROXY TCP4 192.0.2.1 198.51.100.9 +1 2\r\n".to_vec(), ProxyError::Bad),
            (b"PROXY TCP4 192.0.2.1 198.51.100.9 01 2\r\n".to_vec(), ProxyError::Bad),
            (
                b"PROXY TCP4 192.0.2.1 198.51.100.9 1 65536\r\n".to_vec(),
                ProxyError::Bad,
            ),
            (b"PROXY TCP4 192.0.2.1 198.51.100.9 1 2 3\r\n".to_vec(), ProxyError::Bad),
            (b"PROXY TCP4  192.0.2.1 198.51.100.9 1 2\r\n".to_vec(), ProxyError::Bad),
            (b"PROXY UNKNOWN\n".to_vec(), ProxyError::Bad),
            (long, ProxyError::TooLong),
            (v2(1, 0x11, &v4[..11]), ProxyError::Bad),
            (v2(1, 0x11, &overrun), ProxyError::Bad),
            (v2(1, 0x31, &[0; 216]), ProxyError::Bad),
            (v2(1, 0x12, &v4), ProxyError::Bad),
            (v2(2, 0x11, &v4), ProxyError::Bad),
            ([V2_SIGNATURE.as_slice(), &[0x11, 0x11, 0, 0]].concat(), ProxyError::Bad),
            (huge, ProxyError::TooLong),
        ] {
            assert_eq!(parse(&bytes), Err(error), "{:?}", bytes.escape_ascii().to_string());
        }
    }

    #[tokio::test]
    async fn reads_no_byte_more_than_the_header() {
        use tokio::io::AsyncWriteExt;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        client.set_nodelay(true).unwrap();
        let sender = tokio::spawn(async move {
            for byte in b"PROXY TCP4 192.0.2.1 198.51.100.9 56324 993\r\na NOOP" {
                client.write_all(&[*byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
            client
        });
        assert_eq!(
            read(&mut server).await.unwrap(),
            from("192.0.2.1:56324", "198.51.100.9:993")
        );
        let mut rest = [0; 6];
        server.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"a NOOP");
        drop(sender.await.unwrap());
    }

    #[test]
    fn what_is_written_can_be_read() {
        for (source, destination) in [
            ("192.0.2.1:50000", "198.51.100.2:8636"),
            ("[2001:db8::1]:50000", "[2001:db8::2]:8636"),
            ("192.0.2.1:50000", "[2001:db8::2]:8636"),
        ] {
            let (source, destination): (SocketAddr, SocketAddr) =
                (source.parse().unwrap(), destination.parse().unwrap());
            let bytes = v2_header(source, destination, b"");
            let Ok(Progress::Complete(
                Header::Proxied {
                    source: from,
                    destination: to,
                    tls: false,
                },
                length,
            )) = parse(&bytes)
            else {
                panic!("{source}: {bytes:?}");
            };
            assert_eq!(length, bytes.len());
            assert_eq!((from.ip().to_canonical(), from.port()), (source.ip(), source.port()));
            assert_eq!(
                (to.ip().to_canonical(), to.port()),
                (destination.ip(), destination.port())
            );
        }
    }
}
