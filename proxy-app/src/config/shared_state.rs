//! `shared_state`: the engine (Valkey or Redis) by which nodes know of each other.

use std::path::PathBuf;
use std::time::Duration;

use mail_directory::Secret;
use mail_directory::tls_words::reasons;
use mail_directory::yaml::{Mapping, Node};
use openssl::error::ErrorStack;
use route_cache::HostPort;

use super::read::ConfigReader;
use crate::tls::upstream::UpstreamTrust;

/// Most places: each may take the whole timeout before the next one is tried.
const MAX_PLACES: usize = 8;
/// Longest prefix of the names in the engine, and longest user name.
const NAME_MAX: usize = 64;
/// The port of the engine, and that of its Sentinels.
const PORT: u16 = 6379;

/// `shared_state`
#[derive(Debug, Clone)]
pub(crate) struct SharedStateConfig {
    /// Where the engine or its Sentinels are, tried in order.
    pub places: Vec<Place>,
    /// The user of its access control list, if not the default one.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<Secret<String>>,
    /// Authorities that its certificate is checked with; absent: the system's.
    pub ca_file: Option<PathBuf>,
    /// The certificate that this node shows the engine, and its key.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// The name of the group whose primary the Sentinels tell.
    pub sentinel: Option<Sentinel>,
    /// The longest wait for one answer.
    pub timeout: Duration,
    /// What all names in the engine begin with.
    pub prefix: String,
}

/// `shared_state.sentinel`
#[derive(Debug, Clone)]
pub(crate) struct Sentinel {
    /// What Sentinels call the group.
    pub name: String,
    /// The password of the Sentinels themselves.
    pub password: Option<Secret<String>>,
}

/// Where a server is, and whether TLS is spoken with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A TCP address.
    Tcp {
        /// Host and port.
        address: HostPort,
        /// TLS from the first byte.
        tls: bool,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

impl SharedStateConfig {
    /// TLS towards the engine.
    ///
    /// # Errors
    /// A file cannot be used.
    pub(crate) fn trust(&self) -> Result<UpstreamTrust, ErrorStack> {
        let own = self
            .certificate
            .as_ref()
            .map(|(certificate, key)| (&**certificate, &**key));
        UpstreamTrust::with_certificate(self.ca_file.as_deref(), true, own)
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { address, tls: true } => write!(f, "rediss://{address}"),
            Self::Tcp { address, tls: false } => write!(f, "redis://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Place {
    /// A place as it is written. Passwords and database numbers do not stand in it.
    fn parse(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return path.starts_with('/').then(|| Self::Unix(path.into()));
        }
        let schemes = [("rediss://", true), ("redis://", false)];
        let (rest, tls) = schemes
            .into_iter()
            .find_map(|(scheme, tls)| Some((text.strip_prefix(scheme)?, tls)))?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.is_empty() || rest.contains(['/', '@', '?', ' ']) {
            return None;
        }
        let address = rest.parse().or_else(|_| format!("{rest}:{PORT}").parse()).ok()?;
        Some(Self::Tcp { address, tls })
    }

    fn is_clear(&self) -> bool {
        matches!(self, Self::Tcp { tls: false, .. })
    }
}

impl ConfigReader {
    pub(super) fn shared_state(&mut self, root: &mut Mapping<'_>) -> Option<SharedStateConfig> {
        let mut section = self.section(root, "shared_state")?;
        let node = section.node();
        let mut config = SharedStateConfig {
            places: self.places(&mut section),
            user: self.text(&mut section, "user"),
            password: section.take("password_file").and_then(|node| self.password(node)),
            ca_file: section.take("ca_file").and_then(|node| self.authorities(node)),
            certificate: self.own_certificate(&mut section),
            sentinel: self.sentinel(&mut section),
            timeout: Duration::from_millis(400),
            prefix: self
                .text(&mut section, "prefix")
                .unwrap_or_else(|| "portico".to_owned()),
        };
        self.duration(&mut section, "timeout", &mut config.timeout);
        section.finish(&mut self.problems);
        self.judge(node, &config);
        Some(config)
    }

    fn places(&mut self, section: &mut Mapping<'_>) -> Vec<Place> {
        let Some(node) = section.require("url", &mut self.problems) else {
            return Vec::new();
        };
        let items = node.one_or_many(&mut self.problems).unwrap_or_default();
        if items.is_empty() || items.len() > MAX_PLACES {
            node.error(format!("wants 1 to {MAX_PLACES} items"), &mut self.problems);
        }
        items.into_iter().filter_map(|node| self.place(node)).collect()
    }

    fn place(&mut self, node: Node<'_>) -> Option<Place> {
        let place = Place::parse(node.str(&mut self.problems)?);
        if place.is_none() {
            node.error(
                "expected rediss://host:port, redis://host:port or unix:/path; user and password have keys of their own",
                &mut self.problems,
            );
        }
        place
    }

    fn authorities(&mut self, node: Node<'_>) -> Option<PathBuf> {
        let path = node.path_buf(&mut self.problems)?;
        let read = std::fs::read(&path).map_err(|error| error.to_string());
        let trust = read.and_then(|_| UpstreamTrust::new(Some(&path), true).map_err(|error| error.to_string()));
        if let Err(error) = trust {
            node.error(format!("{}: {error}", path.display()), &mut self.problems);
        }
        Some(path)
    }

    /// Both or none.
    fn own_certificate(&mut self, section: &mut Mapping<'_>) -> Option<(PathBuf, PathBuf)> {
        let node = section.node();
        let certificate = section.take("certificate");
        let key = section.take("key");
        match (certificate, key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => {
                let certificate = certificate.path_buf(&mut self.problems)?;
                let own = (certificate, key.path_buf(&mut self.problems)?);
                self.warn_if_open(key, &own.1);
                if let Err(error) = UpstreamTrust::with_certificate(None, true, Some((&own.0, &own.1))) {
                    let why = reasons(&error.to_string()).into_owned();
                    node.error(format!("{}: {why}", own.0.display()), &mut self.problems);
                }
                Some(own)
            }
            _ => {
                node.error("certificate and key go together", &mut self.problems);
                None
            }
        }
    }

    fn sentinel(&mut self, section: &mut Mapping<'_>) -> Option<Sentinel> {
        let mut section = self.section(section, "sentinel")?;
        let name = section.require("name", &mut self.problems);
        let sentinel = Sentinel {
            name: name.and_then(|node| node.text(&mut self.problems))?.into_owned(),
            password: section.take("password_file").and_then(|node| self.password(node)),
        };
        section.finish(&mut self.problems);
        Some(sentinel)
    }

    fn judge(&mut self, node: Node<'_>, config: &SharedStateConfig) {
        let is_name = |name: &str| {
            let good = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
            !name.is_empty() && name.len() <= NAME_MAX && name.chars().all(good)
        };
        if !is_name(&config.prefix) {
            node.error("prefix: expected letters, digits, and - _ . :", &mut self.problems);
        }
        if config.user.is_some() && config.password.is_none() {
            node.error("user and password_file go together", &mut self.problems);
        }
        let bounds = Duration::from_millis(50)..=Duration::from_secs(5);
        if !bounds.contains(&config.timeout) {
            node.error("timeout: expected 50ms to 5s", &mut self.problems);
        }
        if config.places.iter().any(Place::is_clear) && config.password.is_some() {
            node.warning(
                "the password goes over the network in clear text: use rediss://",
                &mut self.problems,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::tests::load;

    #[test]
    fn places_are_urls_without_secrets() {
        let tcp = |host: &str, port, tls| {
            let address = HostPort::new(host, port);
            Some(Place::Tcp { address, tls })
        };
        for (text, expected) in [
            ("redis://127.0.0.1:7000", tcp("127.0.0.1", 7000, false)),
            ("rediss://cache.test", tcp("cache.test", 6379, true)),
            ("rediss://cache.test/", tcp("cache.test", 6379, true)),
            ("redis://[::1]:7", tcp("::1", 7, false)),
            ("unix:/run/valkey.sock", Some(Place::Unix("/run/valkey.sock".into()))),
            ("unix:valkey.sock", None),
            ("rediss://u:p@cache.test", None),
            ("rediss://cache.test/1", None),
            ("redis://", None),
            ("http://cache.test", None),
        ] {
            assert_eq!(Place::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn the_section_is_read_strictly() {
        let (config, problems) = load("shared_state: {url: 'rediss://a.test', timeout: 1s, prefix: mail}").unwrap();
        let config = config.shared_state.unwrap();
        assert_eq!(
            (config.timeout, config.prefix.as_str()),
            (Duration::from_secs(1), "mail")
        );
        assert!(problems.is_empty() && config.sentinel.is_none(), "{problems}");
        let group = "shared_state: {url: ['redis://a:26379', 'redis://b:26379'], sentinel: {name: main}}";
        let (config, _) = load(group).unwrap();
        let config = config.shared_state.unwrap();
        assert_eq!(
            (config.places.len(), config.sentinel.unwrap().name.as_str()),
            (2, "main")
        );
        assert!(load("").unwrap().0.shared_state.is_none());
        for (text, expected) in [
            ("shared_state: {}", "url"),
            ("shared_state: {url: []}", "wants 1 to 8"),
            ("shared_state: {url: 'http://a'}", "expected rediss://"),
            ("shared_state: {url: 'redis://a', user: u}", "go together"),
            ("shared_state: {url: 'redis://a', timeout: 1m}", "50ms to 5s"),
            ("shared_state: {url: 'redis://a', prefix: 'a b'}", "expected letters"),
            ("shared_state: {url: 'redis://a', ca_file: none.pem}", "No such file"),
            ("shared_state: {url: 'redis://a', certificate: a.pem}", "go together"),
            (
                "shared_state: {url: 'redis://a', certificate: none.pem, key: none.key}",
                "none.pem",
            ),
            ("shared_state: {url: 'redis://a', password_file: none}", "No such file"),
            ("shared_state: {url: 'redis://a', sentinel: {}}", "name"),
            ("shared_state: {url: 'redis://a', more: 1}", "more"),
        ] {
            let problems = load(text).unwrap_err();
            assert!(
                problems.iter().any(|problem| problem.contains(expected)),
                "{text}: {problems:?}"
            );
        }
    }

    #[test]
    fn a_key_that_everybody_can_read_is_told_of() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key.pem");
        std::fs::write(&key, "no key").unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
        let section = format!("{{url: 'redis://a', certificate: none.pem, key: {}}}", key.display());
        let problems = load(&format!("shared_state: {section}")).unwrap_err();
        let told = problems
            .iter()
            .any(|problem| problem.contains("can be read by everybody"));
        assert!(told, "{problems:?}");
    }
}
