//! `tls`: the default certificate, and the trust in mailbox servers.

use std::path::PathBuf;

use mail_directory::yaml::Mapping;

use super::LiveKey;
use super::read::ConfigReader;

pub(super) const LIVE: [LiveKey; 1] = [("tls", |now, new| now.tls.clone_from(&new.tls))];

/// `tls`
#[derive(Debug, Clone)]
pub(crate) struct TlsConfig {
    /// Default certificate and key files.
    pub default: Option<(PathBuf, PathBuf)>,
    /// Authorities that sign the certificates of mailbox servers.
    pub upstream_ca_file: Option<PathBuf>,
    /// Whether mailbox servers must prove their identity.
    pub upstream_verify: bool,
}

impl Default for TlsConfig {
    fn default() -> Self {
        Self {
            default: None,
            upstream_ca_file: None,
            upstream_verify: true,
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
        let certificate = section
            .take("certificate")
            .and_then(|node| node.path_buf(&mut self.problems));
        let key = section.take("key").and_then(|node| node.path_buf(&mut self.problems));
        match (certificate, key) {
            (Some(certificate), Some(key)) => config.default = Some((certificate, key)),
            (None, None) => {}
            _ => node.error("certificate and key go together", &mut self.problems),
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
        section.finish(&mut self.problems);
        config
    }
}
