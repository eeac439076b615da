//! `limits`: how many connections may wait. The values are defined beside the code that uses them, in `node/limits.rs`.

use mail_directory::yaml::Mapping;

use super::LiveKey;
use super::read::ConfigReader;
use crate::node::limits::LimitsConfig;

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
            ("handshakes", &mut config.handshakes),
            ("unread_answers", &mut config.unread_answers),
            ("unread_answers_per_address", &mut config.unread_answers_per_address),
            ("sessions_per_account", &mut config.sessions.per_account),
            (
                "sessions_per_account_and_address",
                &mut config.sessions.per_account_and_address,
            ),
            ("sessions_per_address", &mut config.sessions.per_address),
            ("sessions_per_domain", &mut config.sessions.per_domain),
            ("sessions_per_server", &mut config.sessions.per_server),
        ] {
            if let Some(count) = section.take(key).and_then(|node| node.u32(&mut self.problems)) {
                *limit = count as usize;
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
