//! Reading a node file: the problems found so far, and what several sections read alike. Each section adds its own
//! part.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mail_directory::tls_words::reasons;
use mail_directory::yaml::{Mapping, Node, Problems};
use mail_directory::{Secret, secret_file};
use openssl::error::ErrorStack;
use route_cache::HostPort;

use crate::tls::upstream::UpstreamTrust;

/// The problems found so far; each section has a method in its own file.
pub(super) struct ConfigReader {
    pub(super) problems: Problems,
}

impl ConfigReader {
    pub(super) fn section<'a>(&mut self, parent: &mut Mapping<'a>, key: &str) -> Option<Mapping<'a>> {
        parent
            .take(key)
            .filter(|node| !node.is_null())?
            .mapping(&mut self.problems)
    }

    pub(super) fn text(&mut self, parent: &mut Mapping<'_>, key: &str) -> Option<String> {
        Some(parent.take(key)?.text(&mut self.problems)?.into_owned())
    }

    pub(super) fn duration(&mut self, section: &mut Mapping<'_>, key: &str, value: &mut Duration) {
        if let Some(duration) = section.take(key).and_then(|node| node.duration(&mut self.problems)) {
            *value = duration;
        }
    }

    /// At least one and at most `most` items.
    pub(super) fn some_items<'a>(&mut self, node: Node<'a>, most: usize) -> Vec<Node<'a>> {
        let Some(items) = node.items(&mut self.problems) else {
            return Vec::new();
        };
        if items.is_empty() || items.len() > most {
            node.error(format!("wants 1 to {most} items"), &mut self.problems);
        }
        items
    }

    pub(super) fn host_and_port(&mut self, node: Node<'_>) -> Option<HostPort> {
        let read = node.text(&mut self.problems)?.parse().ok();
        if read.is_none() {
            node.error(
                "expected a host name or address and a port, as in 127.0.0.1:11211",
                &mut self.problems,
            );
        }
        read
    }

    /// Warns of a secret that every user of the machine may read.
    pub(super) fn warn_if_open(&mut self, node: Node<'_>, path: &Path) {
        if let Some(message) = secret_file::warning(path) {
            node.warning(message, &mut self.problems);
        }
    }

    /// `ca_file`: by whom the certificate of a service must be signed; absent: the system's authorities.
    pub(super) fn service_trust(&mut self, section: &mut Mapping<'_>) -> Option<Arc<UpstreamTrust>> {
        let node = section.take("ca_file");
        let file = node.as_ref().and_then(|node| node.path_buf(&mut self.problems));
        if let (Some(node), Some(file)) = (&node, &file)
            && let Err(error) = std::fs::metadata(file)
        {
            node.error(format!("{}: {error}", file.display()), &mut self.problems);
            return None;
        }
        let made = UpstreamTrust::new(file.as_deref(), true);
        let failed = |error: ErrorStack| reasons(&error.to_string()).into_owned();
        let node = node.unwrap_or_else(|| section.node());
        made.map_err(|error| node.error(failed(error), &mut self.problems))
            .ok()
            .map(Arc::new)
    }

    pub(super) fn password(&mut self, node: Node<'_>) -> Option<Secret<String>> {
        let path = node.path_buf(&mut self.problems)?;
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => Secret::new(text),
            Err(error) => {
                node.error(format!("{}: {error}", path.display()), &mut self.problems);
                return None;
            }
        };
        self.warn_if_open(node, &path);
        let line = text.expose().trim_end_matches(['\r', '\n']);
        if line.is_empty() {
            node.error(format!("{} is empty", path.display()), &mut self.problems);
            return None;
        }
        Some(Secret::new(line.to_owned()))
    }
}
