//! `admin`: where the admin API is reached, and what TCP clients must show.

use std::net::SocketAddr;
use std::path::PathBuf;

use mail_directory::Secret;
use mail_directory::yaml::{Mapping, Node};

use super::read::ConfigReader;

/// Shortest admin token: 16 letters cannot be guessed in the life of a node.
const MIN_TOKEN: usize = 16;

/// `admin`
#[derive(Debug, Clone, Default)]
pub(crate) struct AdminConfig {
    /// The Unix socket of the admin API.
    pub socket: Option<PathBuf>,
    /// Its TCP address.
    pub http: Option<SocketAddr>,
    /// The token that a client on TCP must show; `None`: it may only read.
    pub token: Option<Secret<String>>,
}

impl ConfigReader {
    pub(super) fn admin(&mut self, root: &mut Mapping<'_>) -> AdminConfig {
        let mut config = AdminConfig::default();
        let Some(mut section) = self.section(root, "admin") else {
            return config;
        };
        config.socket = section
            .take("socket")
            .and_then(|node| node.path_buf(&mut self.problems));
        config.http = section
            .take("http")
            .and_then(|node| node.socket_addr(&mut self.problems));
        config.token = section.take("token_file").and_then(|node| self.token(node));
        section.finish(&mut self.problems);
        config
    }

    fn token(&mut self, node: Node<'_>) -> Option<Secret<String>> {
        let path = node.path_buf(&mut self.problems)?;
        let token = match std::fs::read_to_string(&path) {
            Ok(text) => Secret::new(text.trim().to_owned()),
            Err(error) => {
                node.error(format!("{}: {error}", path.display()), &mut self.problems);
                return None;
            }
        };
        self.warn_if_open(node, &path);
        let good = token.expose().len() >= MIN_TOKEN && token.expose().bytes().all(|byte| byte.is_ascii_graphic());
        if !good {
            let message = format!("a token has at least {MIN_TOKEN} printable letters and no blank");
            node.error(message, &mut self.problems);
        }
        Some(token)
    }
}
