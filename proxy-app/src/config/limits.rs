//! `limits`: how many connections may wait. The values are defined beside the code that uses them, in `node/limits.rs`.

use mail_directory::yaml::{Mapping, Node, Problems};

use super::LiveKey;
use super::read::ConfigReader;
use crate::node::limits::{LimitsConfig, SessionLimit};

pub(super) const LIVE: [LiveKey; 1] = [("limits", |now, new| now.limits.clone_from(&new.limits))];

impl ConfigReader {
    pub(super) fn limits(&mut self, root: &mut Mapping<'_>) -> LimitsConfig {
        let mut config = LimitsConfig::default();
        let Some(mut section) = self.section(root, "limits") else {
            return config;
        };
        for (key, limit) in [
            ("connections", &mut config.connections),
            ("connections_per_address", &mut config.connections_per_address),
            ("mail_connections_per_address", &mut config.mail_connections_per_address),
            ("handshakes", &mut config.handshakes),
            ("unread_answers", &mut config.unread_answers),
            ("unread_answers_per_address", &mut config.unread_answers_per_address),
            ("requests_per_address", &mut config.requests.per_address),
            ("waiting_requests_per_address", &mut config.requests.waiting_per_address),
        ] {
            if let Some(count) = section.take(key).and_then(|node| node.u32(&mut self.problems)) {
                *limit = count as usize;
            }
        }
        let sessions = &mut config.sessions;
        for (key, limit) in [
            ("sessions_per_account", &mut sessions.per_account),
            (
                "sessions_per_account_and_address",
                &mut sessions.per_account_and_address,
            ),
            ("sessions_per_address", &mut sessions.per_address),
            ("sessions_per_domain", &mut sessions.per_domain),
            ("sessions_per_server", &mut sessions.per_server),
        ] {
            if let Some(node) = section.take(key) {
                *limit = session_limit(&node, &mut self.problems);
            }
        }
        if let Some(networks) = section
            .take("exempt")
            .and_then(|node| node.networks(&mut self.problems))
        {
            config.exempt = networks;
        }
        section.finish(&mut self.problems);
        config
    }
}

/// One number for all protocols together, or a mapping with one for each and one for all.
fn session_limit(node: &Node<'_>, problems: &mut Problems) -> SessionLimit {
    let mut limit = SessionLimit::default();
    if !node.is_mapping() {
        limit.all = count(node, problems);
        return limit;
    }
    let Some(mut section) = node.mapping(problems) else {
        return limit;
    };
    for (key, limit) in [
        ("all", &mut limit.all),
        ("imap", &mut limit.imap),
        ("pop3", &mut limit.pop3),
    ] {
        if let Some(node) = section.take(key) {
            *limit = count(&node, problems);
        }
    }
    section.finish(problems);
    limit
}

fn count(node: &Node<'_>, problems: &mut Problems) -> usize {
    node.u32(problems).map_or(0, |count| count as usize)
}
