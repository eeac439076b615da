//! `directory`: which kind of directory there is, and where.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mail_directory::yaml::{Mapping, Node};
use mail_directory::{Secret, ldap};

use super::lookup::LookupConfig;
use super::read::ConfigReader;

/// How often changes of the directory are looked for, and how often at most: each look is a question to the server.
const POLL: Duration = Duration::from_secs(5);

const MIN_POLL: Duration = Duration::from_millis(100);

/// Where the last good reading of an LDAP directory is kept. Not beside the pid file, which may lie in a folder that
/// every user can write or that is empty after a boot: it is needed to start then.
const SNAPSHOT: &str = "/var/lib/portico/directory.snapshot";

/// `directory`
#[derive(Debug, Clone)]
pub(crate) struct DirectoryConfig {
    /// Which kind, and where.
    pub source: Source,
    /// How often changes are looked for.
    pub poll: Duration,
    /// The name that `portico prov` binds as, and the file with the password; a serving node reads it only for a change
    /// over its admin API.
    pub admin: Option<(String, PathBuf)>,
}

/// A kind of directory.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// A file.
    Yaml(PathBuf),
    /// LDAP servers.
    Ldap(Box<ldap::Settings>),
}

impl ConfigReader {
    pub(super) fn directory(&mut self, root: &mut Mapping<'_>, path: &Path) -> (DirectoryConfig, Option<LookupConfig>) {
        let mut config = DirectoryConfig {
            source: Source::Yaml(path.with_file_name("directory.yaml")),
            poll: POLL,
            admin: None,
        };
        let Some(mut section) = self.section(root, "directory") else {
            return (config, None);
        };
        let source = section.take("source");
        let kinds = [("yaml", "yaml"), ("ldap", "ldap")];
        let chosen = source.and_then(|source| source.choice(&kinds, &mut self.problems));
        let chosen = chosen.unwrap_or("yaml");
        let lookup = self.lookup(&mut section);
        let snapshot = section
            .take("snapshot")
            .and_then(|node| node.path_buf(&mut self.problems));
        let yaml = section.take("yaml").filter(|node| !node.is_null());
        let ldap = section.take("ldap").filter(|node| !node.is_null());
        let (wanted, idle) = if chosen == "ldap" { (ldap, yaml) } else { (yaml, ldap) };
        if let Some(node) = idle {
            node.warning(format!("has no effect: source is {chosen}"), &mut self.problems);
        }
        match wanted {
            Some(node) if chosen == "ldap" => self.ldap(node, snapshot.as_deref(), &mut config),
            Some(node) => self.yaml(node, &mut config),
            None if chosen == "ldap" => {
                let message = "source is ldap, but there is no section ldap";
                section.node().error(message, &mut self.problems);
            }
            None => {}
        }
        section.finish(&mut self.problems);
        (config, lookup)
    }

    fn yaml(&mut self, node: Node<'_>, config: &mut DirectoryConfig) {
        let Some(mut section) = node.mapping(&mut self.problems) else {
            return;
        };
        if let Some(path) = section.take("path").and_then(|node| node.path_buf(&mut self.problems)) {
            config.source = Source::Yaml(path);
        }
        self.poll(&mut section, config);
        section.finish(&mut self.problems);
    }

    fn ldap(&mut self, node: Node<'_>, snapshot: Option<&Path>, config: &mut DirectoryConfig) {
        let Some(mut section) = node.mapping(&mut self.problems) else {
            return;
        };
        let urls = section.require("urls", &mut self.problems);
        let urls = urls
            .and_then(|node| node.one_or_many(&mut self.problems))
            .unwrap_or_default();
        let urls = urls.into_iter().filter_map(|node| self.url(node)).collect();
        let starttls = section.take("starttls").and_then(|node| node.bool(&mut self.problems));
        let trust = section.take("ca_file").and_then(|node| self.trust(node));
        let mut settings = ldap::Settings {
            urls,
            starttls: starttls.unwrap_or(true),
            trust: trust.unwrap_or_default(),
            bind: self.bind(&mut section),
            timeout: Duration::from_secs(3),
            snapshot: Some(snapshot.unwrap_or(Path::new(SNAPSHOT)).to_owned()),
            sync: section.take("sync").and_then(|node| node.bool(&mut self.problems)) != Some(false),
        };
        self.duration(&mut section, "timeout", &mut settings.timeout);
        if settings.timeout.is_zero() {
            node.error("a timeout of zero lets no server answer", &mut self.problems);
        }
        if settings.urls.is_empty() {
            node.error("urls names no server", &mut self.problems);
        }
        let clear = |url: &ldap::Url| !url.is_tls() && !settings.starttls;
        if settings.bind.is_some() && settings.urls.iter().any(clear) {
            node.warning(
                "the password goes over the network in clear text: use ldaps or starttls",
                &mut self.problems,
            );
        }
        config.admin = self.admin_bind(&mut section);
        self.poll(&mut section, config);
        section.finish(&mut self.problems);
        config.source = Source::Ldap(Box::new(settings));
    }

    fn url(&mut self, node: Node<'_>) -> Option<ldap::Url> {
        let url = ldap::Url::parse(node.str(&mut self.problems)?);
        url.map_err(|message| node.error(message, &mut self.problems)).ok()
    }

    fn trust(&mut self, node: Node<'_>) -> Option<ldap::Trust> {
        let path = node.path_buf(&mut self.problems)?;
        let read = std::fs::read(&path).map_err(|error| error.to_string());
        let trust = read.and_then(|pem| ldap::Trust::only(&pem));
        trust
            .map_err(|error| node.error(format!("{}: {error}", path.display()), &mut self.problems))
            .ok()
    }

    /// A server would accept a name without a password as an anonymous bind (RFC 4513 §5.1.2).
    fn bind(&mut self, section: &mut Mapping<'_>) -> Option<(String, Secret<String>)> {
        let dn = self.text(section, "bind_dn").filter(|dn| !dn.is_empty());
        let password = section.take("bind_password_file").and_then(|node| self.password(node));
        if dn.is_some() != password.is_some() {
            section
                .node()
                .error("bind_dn and bind_password_file go together", &mut self.problems);
        }
        dn.zip(password)
    }

    fn admin_bind(&mut self, section: &mut Mapping<'_>) -> Option<(String, PathBuf)> {
        let dn = self.text(section, "admin_bind_dn").filter(|dn| !dn.is_empty());
        let file = section.take("admin_bind_password_file");
        let file = file.and_then(|node| node.path_buf(&mut self.problems));
        if dn.is_some() != file.is_some() {
            let message = "admin_bind_dn and admin_bind_password_file go together";
            section.node().error(message, &mut self.problems);
        }
        dn.zip(file)
    }

    fn poll(&mut self, section: &mut Mapping<'_>, config: &mut DirectoryConfig) {
        let Some(node) = section.take("poll") else { return };
        match node.duration(&mut self.problems) {
            Some(poll) if poll < MIN_POLL => {
                node.error(format!("expected at least {MIN_POLL:?}"), &mut self.problems);
            }
            Some(poll) => config.poll = poll,
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::load;

    #[test]
    fn an_ldap_directory_needs_servers_and_a_whole_bind() {
        let (config, problems) = load(concat!(
            "directory:\n",
            "  source: ldap\n",
            "  ldap: {urls: ['ldap://a:389', 'ldaps://b'], starttls: false, timeout: 1s, poll: 2s, sync: false}\n",
        ))
        .unwrap();
        assert!(problems.is_empty(), "{problems}");
        assert_eq!(config.directory.poll, Duration::from_secs(2));
        let Source::Ldap(settings) = config.directory.source else {
            panic!("no LDAP")
        };
        assert_eq!((settings.urls.len(), settings.timeout), (2, Duration::from_secs(1)));
        assert!(!settings.sync);
        assert_eq!(settings.snapshot.as_deref(), Some(Path::new(SNAPSHOT)));
        for (text, expected) in [
            ("directory: {source: ldap}", "no section ldap"),
            ("directory: {source: ldap, ldap: {urls: []}}", "names no server"),
            (
                "directory: {source: ldap, ldap: {urls: 'http://a'}}",
                "expected ldap://host:port",
            ),
            (
                "directory: {source: ldap, ldap: {urls: 'ldap://a', bind_dn: x}}",
                "go together",
            ),
            (
                "directory: {source: ldap, ldap: {urls: 'ldap://a', admin_bind_dn: x}}",
                "go together",
            ),
            (
                "directory: {source: ldap, ldap: {urls: 'ldap://a', ca_file: none.pem}}",
                "No such file",
            ),
            (
                "directory: {source: ldap, ldap: {urls: 'ldap://a', bind_password_file: none}}",
                "No such file",
            ),
            (
                "directory: {source: ldap, ldap: {urls: 'ldap://a', poll: 1ms}}",
                "at least 100ms",
            ),
            (
                "directory: {source: ldap, ldap: {urls: 'ldap://a', timeout: 0s}}",
                "timeout of zero",
            ),
        ] {
            let problems = load(text).unwrap_err();
            assert!(
                problems.iter().any(|problem| problem.contains(expected)),
                "{text}: {problems:?}"
            );
        }
    }
}
