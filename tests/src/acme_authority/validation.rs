//! Whether a client controls a name: HTTP-01 (RFC 8555 §8.3) and TLS-ALPN-01 (RFC 8737), at 127.0.0.1.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use openssl::sha::sha256;
use openssl::ssl::{SslConnector, SslMethod, SslStream, SslVerifyMode};
use openssl::x509::X509;

/// How long a connection may be silent.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most of an answer to HTTP-01 that is read.
const ANSWER_MAX: u64 = 4096;
/// What is spoken in TLS-ALPN-01 (RFC 8737 §6.2).
pub const ACME_TLS: &[u8] = b"acme-tls/1";
/// `id-pe-acmeIdentifier` as a critical extension, up to the digest (RFC 8737 §3): a sequence of its OID
/// (1.3.6.1.5.5.7.1.31), TRUE, and an octet string in an octet string.
const IDENTIFIER: &[u8] = b"\x30\x31\x06\x08\x2b\x06\x01\x05\x05\x07\x01\x1f\x01\x01\xff\x04\x22\x04\x20";

/// A way to show who controls a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChallengeKind {
    /// `http-01`
    Http01,
    /// `tls-alpn-01`
    TlsAlpn01,
    /// `dns-01`, which is offered only.
    Dns01,
}

/// Where the authority looks, whatever the name.
#[derive(Debug, Clone, Copy)]
pub struct ValidationPorts {
    /// For HTTP-01.
    pub http: u16,
    /// For TLS-ALPN-01.
    pub tls: u16,
}

impl ChallengeKind {
    /// As it stands in a challenge.
    pub fn word(self) -> &'static str {
        match self {
            Self::Http01 => "http-01",
            Self::TlsAlpn01 => "tls-alpn-01",
            Self::Dns01 => "dns-01",
        }
    }

    /// Looks whether the holder of the account answers for this name.
    pub(super) fn validate(self, name: &str, token: &str, answer: &str, ports: ValidationPorts) -> Result<()> {
        match self {
            Self::Http01 => http_01(name, token, answer, ports.http),
            Self::TlsAlpn01 => tls_alpn_01(name, answer, ports.tls),
            Self::Dns01 => bail!("this authority does not look into the DNS"),
        }
    }
}

fn connected(port: u16) -> Result<TcpStream> {
    let tcp = TcpStream::connect(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    tcp.set_write_timeout(Some(PATIENCE))?;
    Ok(tcp)
}

fn http_01(name: &str, token: &str, answer: &str, port: u16) -> Result<()> {
    let mut tcp = connected(port)?;
    write!(
        tcp,
        "GET /.well-known/acme-challenge/{token} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n"
    )?;
    let mut lines = BufReader::new(tcp.take(ANSWER_MAX));
    let mut head = String::new();
    while lines.read_line(&mut head)? > 2 {}
    ensure!(head.starts_with("HTTP/1.1 200 "), "answered {head:?}");
    let mut body = String::new();
    lines.read_to_string(&mut body)?;
    // §8.3: white space at the end is ignored.
    ensure!(body.trim_end() == answer, "answered {body:?}");
    Ok(())
}

fn tls_alpn_01(name: &str, answer: &str, port: u16) -> Result<()> {
    let mut stream = acme_tls(name, port)?;
    let certificate = stream.ssl().peer_certificate().context("no certificate")?;
    check_certificate(&certificate, name, answer)?;
    // RFC 8737 §4: nothing is said over the connection.
    let count = stream.read(&mut [0])?;
    ensure!(count == 0, "something is said after the handshake");
    Ok(())
}

/// A connection as an authority opens it for this name.
pub fn acme_tls(name: &str, port: u16) -> Result<SslStream<TcpStream>> {
    let mut tls = SslConnector::builder(SslMethod::tls_client())?;
    tls.set_verify(SslVerifyMode::NONE);
    tls.set_alpn_protos(&[&[ACME_TLS.len() as u8], ACME_TLS].concat())?;
    let tls = tls.build().configure()?.verify_hostname(false);
    let stream = tls.connect(name, connected(port)?);
    let stream = stream.map_err(|error| anyhow::anyhow!("handshake: {error}"))?;
    let agreed = stream.ssl().selected_alpn_protocol();
    ensure!(agreed == Some(ACME_TLS), "agreed on {agreed:?}");
    Ok(stream)
}

/// RFC 8737 §3: signed by itself, one name, and the digest of the key authorization in a critical extension.
fn check_certificate(certificate: &X509, name: &str, answer: &str) -> Result<()> {
    let names = certificate.subject_alt_names().context("no names")?;
    let only = match (names.len(), names.get(0).and_then(|only| only.dnsname())) {
        (1, Some(only)) => only,
        _ => bail!("not one DNS name"),
    };
    ensure!(only.eq_ignore_ascii_case(name), "for {only}");
    ensure!(certificate.verify(&*certificate.public_key()?)?, "not signed by itself");
    let der = certificate.to_der()?;
    let wanted = [IDENTIFIER, &sha256(answer.as_bytes())].concat();
    let found = der.windows(wanted.len()).filter(|part| *part == wanted).count();
    ensure!(found == 1, "no critical acmeIdentifier with the right digest");
    Ok(())
}
