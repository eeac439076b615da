//! `tls`: the default certificate, and the trust in mailbox servers.

use std::path::PathBuf;
use std::time::Duration;

use mail_directory::yaml::{Mapping, Node};

use openssl::ssl::SslVersion;

use super::LiveKey;
use super::read::ConfigReader;
use crate::tls::ticket_file::TicketFile;
use crate::tls::ticket_keys::LIFE;
use crate::tls::upstream::OLDEST_UPSTREAM;

pub(super) const LIVE: [LiveKey; 1] = [("tls", |now, new| now.tls.clone_from(&new.tls))];

/// How long a key may make tickets. Tickets live twice as long at most, and RFC 8446 section 4.6.1 gives them a week.
const LIVES: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(84 * 60 * 60);

/// `tls`
#[derive(Debug, Clone)]
pub(crate) struct TlsConfig {
    /// Default certificate and key files.
    pub default: Option<(PathBuf, PathBuf)>,
    /// Authorities that sign the certificates of mailbox servers.
    pub upstream_ca_file: Option<PathBuf>,
    /// Whether mailbox servers must prove their identity.
    pub upstream_verify: bool,
    /// Certificate and key files by which servers may know this node.
    pub upstream_own: Option<(PathBuf, PathBuf)>,
    /// Oldest version of TLS that is spoken with servers.
    pub upstream_min_version: SslVersion,
    /// Lists of what authorities of clients have taken back.
    pub client_crl_file: Option<PathBuf>,
    /// Keys of session tickets that an administrator distributes.
    pub ticket_keys_file: Option<PathBuf>,
    /// How long a key of others makes tickets.
    pub ticket_key_life: Duration,
}

impl Default for TlsConfig {
    fn default() -> Self {
        Self {
            default: None,
            upstream_ca_file: None,
            upstream_verify: true,
            upstream_own: None,
            upstream_min_version: OLDEST_UPSTREAM,
            client_crl_file: None,
            ticket_keys_file: None,
            ticket_key_life: LIFE,
        }
    }
}

impl ConfigReader {
    pub(super) fn tls(&mut self, root: &mut Mapping<'_>) -> TlsConfig {
        let mut config = TlsConfig::default();
        let Some(mut section) = self.section(root, "tls") else {
            return config;
        };
        let node = section.node();
        let (certificate, key) = (section.take("certificate"), section.take("key"));
        config.default = self.pair(&node, certificate, key);
        let (certificate, key) = (section.take("upstream_certificate"), section.take("upstream_key"));
        config.upstream_own = self.pair(&node, certificate, key);
        let versions = [("TLSv1.2", SslVersion::TLS1_2), ("TLSv1.3", SslVersion::TLS1_3)];
        if let Some(version) = section
            .take("upstream_min_version")
            .and_then(|node| node.choice(&versions, &mut self.problems))
        {
            config.upstream_min_version = version;
        }
        config.upstream_ca_file = section
            .take("upstream_ca_file")
            .and_then(|node| node.path_buf(&mut self.problems));
        if let Some(verify) = section
            .take("upstream_verify")
            .and_then(|node| node.bool(&mut self.problems))
        {
            config.upstream_verify = verify;
        }
        config.client_crl_file = section
            .take("client_crl_file")
            .and_then(|node| node.path_buf(&mut self.problems));
        config.ticket_keys_file = section.take("ticket_keys_file").and_then(|node| self.ticket_keys(node));
        self.duration(&mut section, "ticket_key_life", &mut config.ticket_key_life);
        if !LIVES.contains(&config.ticket_key_life) {
            node.error("ticket_key_life: expected 1s to 84h", &mut self.problems);
        }
        section.finish(&mut self.problems);
        config
    }

    /// A file of keys. They are read again where they are used.
    fn ticket_keys(&mut self, node: Node<'_>) -> Option<PathBuf> {
        let path = node.path_buf(&mut self.problems)?;
        if let Err(error) = TicketFile::read(&path) {
            node.error(format!("{}: {error}", path.display()), &mut self.problems);
        }
        Some(path)
    }

    /// The files of a certificate and its key.
    fn pair(
        &mut self,
        section: &Node<'_>,
        certificate: Option<Node<'_>>,
        key: Option<Node<'_>>,
    ) -> Option<(PathBuf, PathBuf)> {
        if certificate.is_some() != key.is_some() {
            section.error("certificate and key go together", &mut self.problems);
        }
        let certificate = certificate?.path_buf(&mut self.problems);
        Some((certificate?, key?.path_buf(&mut self.problems)?))
    }
}
