//! A TLS client of another make, rustls, and what it says of its handshakes.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, Stream, SupportedProtocolVersion};
pub use rustls::{HandshakeKind, NamedGroup};

use crate::certs::{Authority, Pair};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// How a client shakes hands.
pub struct Manners<'a> {
    /// TLS 1.2, TLS 1.3 or both.
    pub versions: &'a [&'static SupportedProtocolVersion],
    /// How keys may be agreed, the best first; it sends a share for the first.
    pub groups: &'a [NamedGroup],
    /// What it presents if it is asked for a certificate.
    pub certificate: Option<&'a Pair>,
    /// What it offers by ALPN.
    pub alpn: &'a [&'a str],
}

impl Default for Manners<'_> {
    fn default() -> Self {
        Self {
            versions: rustls::ALL_VERSIONS,
            groups: &[NamedGroup::X25519MLKEM768, NamedGroup::X25519, NamedGroup::secp256r1],
            certificate: None,
            alpn: &[],
        }
    }
}

/// A client that keeps the sessions of its connections, and resumes them where the server lets it.
pub struct RustlsClient(Arc<ClientConfig>);

/// What a handshake has agreed on, and what the server said then.
#[derive(Debug)]
pub struct Agreed {
    /// Full, with a second ClientHello, or resumed.
    pub kind: HandshakeKind,
    /// How keys were agreed.
    pub group: Option<NamedGroup>,
    /// `TLSv1_3`.
    pub version: String,
    /// The cipher suite in the words of its RFC.
    pub suite: String,
    /// The name agreed by ALPN.
    pub alpn: Option<String>,
    /// What came until the server closed the connection, or the first line where it did not.
    pub answer: String,
}

impl RustlsClient {
    /// A client that trusts this authority alone, and verifies names.
    pub fn new(authority: &Authority, manners: &Manners) -> Result<Self> {
        let mut provider = aws_lc_rs::default_provider();
        let known = provider.kx_groups.clone();
        let group = |name: &NamedGroup| known.iter().find(|group| group.name() == *name).copied();
        provider.kx_groups = manners.groups.iter().filter_map(group).collect();
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_file_iter(authority.file())? {
            roots.add(root?)?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(manners.versions)?
            .with_root_certificates(roots);
        let mut config = match manners.certificate {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pair.certificate.as_bytes()).collect();
                builder.with_client_auth_cert(chain?, PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?)?
            }
        };
        config.alpn_protocols = manners.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Ok(Self(Arc::new(config)))
    }

    /// Shakes hands with a server that must be `name`, says something, and reads the answer.
    pub fn ask(&self, to: SocketAddrV4, name: &str, say: &str) -> Result<Agreed> {
        let name = ServerName::try_from(name.to_owned())?;
        let mut connection = ClientConnection::new(self.0.clone(), name)?;
        let mut tcp = TcpStream::connect_timeout(&to.into(), PATIENCE)?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        let mut tls = Stream::new(&mut connection, &mut tcp);
        tls.write_all(say.as_bytes())?;
        let answer = read_answer(&mut tls, !say.is_empty())?;
        Ok(Agreed {
            kind: connection.handshake_kind().context("no handshake")?,
            group: connection.negotiated_key_exchange_group().map(|group| group.name()),
            version: format!("{:?}", connection.protocol_version().context("no version")?),
            suite: format!(
                "{:?}",
                connection.negotiated_cipher_suite().context("no suite")?.suite()
            ),
            alpn: connection
                .alpn_protocol()
                .map(|name| String::from_utf8_lossy(name).into_owned()),
            answer,
        })
    }
}

/// All that comes, or the first line of a server that speaks first and waits.
fn read_answer(tls: &mut impl Read, to_its_end: bool) -> Result<String> {
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match tls.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => answer.extend(&buffer[..n]),
            // HTTP says by itself where an answer ends.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
            Err(error) => bail!("after {:?}: {error}", String::from_utf8_lossy(&answer)),
        }
        if !to_its_end && answer.ends_with(b"\n") {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
