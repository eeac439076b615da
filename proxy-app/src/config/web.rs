//! `web`: forwarders that are trusted, files of locations, waits for clients.

use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use mail_directory::yaml::Mapping;

use super::LiveKey;
use super::read::ConfigReader;

pub(super) const LIVE: [LiveKey; 1] = [("web", |now, new| now.web.clone_from(&new.web))];

/// `web`
#[derive(Debug, Clone)]
pub(crate) struct WebConfig {
    /// Networks whose `X-Forwarded-For` is believed.
    pub trusted_forwarders: Vec<IpNet>,
    /// The files of locations, in order; none: the built-in table.
    pub locations: Vec<PathBuf>,
    /// Where another program puts the answers to challenges of an ACME authority.
    pub acme_dir: Option<PathBuf>,
    /// Whether answers to requests with a login may be compressed.
    pub compress_authenticated: bool,
    /// Whether clients see the `Server` of a server's answer.
    pub show_server: bool,
    /// How long a request head may take from its first byte to its last.
    pub client_header_timeout: Duration,
    /// How long a request body may take, whatever its length.
    pub client_body_timeout: Duration,
}

/// nginx allows 60 s for each read of a head; this is for all of it.
impl Default for WebConfig {
    fn default() -> Self {
        Self {
            trusted_forwarders: Vec::new(),
            locations: Vec::new(),
            acme_dir: None,
            compress_authenticated: false,
            show_server: false,
            client_header_timeout: Duration::from_secs(30),
            client_body_timeout: Duration::from_secs(60),
        }
    }
}

impl ConfigReader {
    pub(super) fn web(&mut self, root: &mut Mapping<'_>) -> WebConfig {
        let mut config = WebConfig::default();
        let Some(mut section) = self.section(root, "web") else {
            return config;
        };
        if let Some(networks) = section
            .take("trusted_forwarders")
            .and_then(|node| node.networks(&mut self.problems))
        {
            config.trusted_forwarders = networks;
        }
        config.compress_authenticated = section
            .take("compress_authenticated")
            .and_then(|node| node.bool(&mut self.problems))
            .unwrap_or(false);
        config.show_server = section
            .take("show_server")
            .and_then(|node| node.bool(&mut self.problems))
            .unwrap_or(false);
        for (key, wait) in [
            ("client_header_timeout", &mut config.client_header_timeout),
            ("client_body_timeout", &mut config.client_body_timeout),
        ] {
            if let Some(time) = section.take(key).and_then(|node| node.duration(&mut self.problems)) {
                *wait = time;
            }
        }
        if let Some(node) = section.take("locations") {
            let files = node.each(&mut self.problems, |item, problems| item.path_buf(problems));
            config.locations = files.unwrap_or_default();
        }
        config.acme_dir = section
            .take("acme_dir")
            .and_then(|node| node.path_buf(&mut self.problems));
        section.finish(&mut self.problems);
        config
    }
}
