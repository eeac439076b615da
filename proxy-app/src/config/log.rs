//! `log`: where access log and audit log go, and their forms.

use mail_directory::yaml::Mapping;

use super::LiveKey;
use super::read::ConfigReader;
use crate::node::logs::LogTarget;

pub(super) const LIVE: [LiveKey; 3] = [
    ("log.access", |now, new| now.log.access.clone_from(&new.log.access)),
    ("log.access_format", |now, new| {
        now.log.access_format = new.log.access_format
    }),
    ("log.audit", |now, new| now.log.audit.clone_from(&new.log.audit)),
];

/// The form of the access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AccessFormat {
    /// The line of a Carbonio proxy.
    Carbonio,
    /// One JSON object per line.
    Json,
}

/// The form of the audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AuditFormat {
    /// One JSON object per line.
    Json,
    /// The line of a Carbonio mailbox server's audit.log.
    Carbonio,
}

/// `log`
#[derive(Debug, Clone)]
pub(crate) struct LogConfig {
    /// Where the access log goes.
    pub access: LogTarget,
    /// Its form.
    pub access_format: AccessFormat,
    /// Where the audit log goes.
    pub audit: LogTarget,
    /// Its form.
    pub audit_format: AuditFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            access: LogTarget::Stdout,
            access_format: AccessFormat::Carbonio,
            audit: LogTarget::Stdout,
            audit_format: AuditFormat::Json,
        }
    }
}

impl ConfigReader {
    pub(super) fn log(&mut self, root: &mut Mapping<'_>) -> LogConfig {
        let mut config = LogConfig::default();
        let Some(mut section) = self.section(root, "log") else {
            return config;
        };
        if let Some(target) = self.target(&mut section, "access") {
            config.access = target;
        }
        let formats = [("carbonio", AccessFormat::Carbonio), ("json", AccessFormat::Json)];
        if let Some(format) = section
            .take("access_format")
            .and_then(|node| node.choice(&formats, &mut self.problems))
        {
            config.access_format = format;
        }
        if let Some(target) = self.target(&mut section, "audit") {
            config.audit = target;
        }
        let formats = [("json", AuditFormat::Json), ("carbonio", AuditFormat::Carbonio)];
        if let Some(format) = section
            .take("audit_format")
            .and_then(|node| node.choice(&formats, &mut self.problems))
        {
            config.audit_format = format;
        }
        section.finish(&mut self.problems);
        config
    }

    fn target(&mut self, section: &mut Mapping<'_>, key: &str) -> Option<LogTarget> {
        let node = section.take(key)?;
        match node.text(&mut self.problems)?.as_ref() {
            "-" => Some(LogTarget::Stdout),
            "off" => Some(LogTarget::Off),
            _ => node.path_buf(&mut self.problems).map(LogTarget::File),
        }
    }
}
