//! The node file as written, read strictly. All problems are reported at once, each with its key and line.
//!
//! A [`Config`] only says what the file says. What runs is a snapshot, made from it and the directory. Each section has
//! a file: its struct, its defaults, its reader, and which of its keys a reload puts in force.

use std::path::{Path, PathBuf};

use mail_directory::yaml::{Document, Problems};

use self::pingora::PingoraConfig;
use self::read::ConfigReader;
use crate::node::limits::LimitsConfig;

pub(crate) use self::acme::{
    AcmeConfig, AcmeDomains, CertificateKeyKind, ChallengeKind, ExternalAccount, SelfRequestPorts,
};
pub(crate) use self::acme_dns::{AcmeDns, DnsUpdateServer, DnsWay, TsigAlgorithm, TsigKey};
pub(crate) use self::admin::AdminConfig;
pub(crate) use self::directory::{DirectoryConfig, Source};
pub(crate) use self::ends::Ends;
pub(crate) use self::listeners::{Listener, ListenerTls, Serve, StreamConfig};
pub(crate) use self::log::{AccessFormat, AuditFormat, LogConfig};
pub(crate) use self::lookup::{LookupConfig, MAX_HANDLERS};
pub(crate) use self::mail::MailConfig;
pub(crate) use self::policy::PolicyConfig;
pub(crate) use self::route_cache::RouteCacheConfig;
pub(crate) use self::shared_state::{Place, SharedStateConfig};
pub(crate) use self::throttle::ThrottleConfig;
pub(crate) use self::tls::TlsConfig;
pub(crate) use self::web::WebConfig;

mod acme;
mod acme_dns;
mod admin;
mod diff;
mod directory;
mod ends;
mod limits;
mod listeners;
mod log;
mod lookup;
mod mail;
mod pingora;
mod policy;
mod read;
mod route_cache;
mod shared_state;
mod state;
mod throttle;
mod tls;
mod web;

/// A node file.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Pingora's own settings.
    pub server: PingoraConfig,
    /// Name of this node's server entry in the directory.
    pub node: String,
    /// Where the directory is.
    pub directory: DirectoryConfig,
    /// Services to ask for routes instead of reading accounts.
    pub lookup: Option<LookupConfig>,
    /// The route cache.
    pub route_cache: RouteCacheConfig,
    /// The listeners, or `None`: made from the directory's port attributes.
    pub listeners: Option<Vec<Listener>>,
    /// Certificates and trust.
    pub tls: TlsConfig,
    /// How many connections may wait.
    pub limits: LimitsConfig,
    /// Guessing of passwords.
    pub throttle: ThrottleConfig,
    /// Mail sessions.
    pub mail: MailConfig,
    /// The web side.
    pub web: WebConfig,
    /// Logs.
    pub log: LogConfig,
    /// The admin API.
    pub admin: AdminConfig,
    /// Where the node keeps what it knows from process to process.
    pub state_file: Option<PathBuf>,
    /// The engine by which nodes know of each other.
    pub shared_state: Option<SharedStateConfig>,
    /// Where certificates of domains are got from.
    pub acme: Option<AcmeConfig>,
    /// How the process ends.
    pub ends: Ends,
    /// The file as it was written, to see what has changed.
    pub written: serde_yaml::Value,
}

/// A key that a reload puts in force, with all keys below it, and how. All other keys are read at the start only.
type LiveKey = (&'static str, fn(&mut Config, &Config));

fn live() -> impl Iterator<Item = &'static LiveKey> {
    let sections: [&'static [LiveKey]; 10] = [
        &acme::LIVE,
        &ends::LIVE,
        &limits::LIVE,
        &listeners::LIVE,
        &log::LIVE,
        &mail::LIVE,
        &route_cache::LIVE,
        &throttle::LIVE,
        &tls::LIVE,
        &web::LIVE,
    ];
    sections.into_iter().flatten()
}

/// The admin socket that a node file names, whatever else is wrong with the file: a running process must be reachable.
///
/// # Errors
/// The file cannot be read, or the key is no path.
pub(crate) fn admin_socket(path: &Path) -> Result<Option<PathBuf>, Problems> {
    let document = Document::load(path)?;
    let mut problems = Problems::new();
    let socket = || {
        let admin = document.root().mapping(&mut problems)?.take("admin")?;
        admin.mapping(&mut problems)?.take("socket")?.path_buf(&mut problems)
    };
    let socket = { socket }();
    match problems.has_errors() {
        true => Err(problems),
        false => Ok(socket),
    }
}

impl Config {
    /// Reads a node file.
    ///
    /// # Errors
    /// All problems of the file at once. With a valid file the second value holds its warnings.
    pub(crate) fn load(path: &Path) -> Result<(Self, Problems), Problems> {
        let document = Document::load(path)?;
        let mut reader = ConfigReader {
            problems: Problems::new(),
        };
        match Self::read(&mut reader, &document, path) {
            Some(config) => reader.problems.or(config),
            None => Err(reader.problems),
        }
    }

    /// `None`: the file is not even a mapping.
    fn read(reader: &mut ConfigReader, document: &Document, path: &Path) -> Option<Self> {
        let mut root = document.root().mapping(&mut reader.problems)?;
        let server = reader.server(&mut root);
        let node = reader.text(&mut root, "node").unwrap_or_else(host_name);
        let (directory, lookup) = reader.directory(&mut root, path);
        let config = Self {
            node: node.to_ascii_lowercase(),
            route_cache: reader.route_cache(&mut root, &directory),
            directory,
            lookup,
            listeners: reader.listeners(&mut root),
            tls: reader.tls(&mut root),
            limits: reader.limits(&mut root),
            throttle: reader.throttle(&mut root),
            mail: reader.mail(&mut root),
            web: reader.web(&mut root),
            log: reader.log(&mut root),
            admin: reader.admin(&mut root),
            state_file: reader.state_file(&mut root),
            shared_state: reader.shared_state(&mut root),
            acme: reader.acme(&mut root),
            ends: reader.ends(&mut root, &server),
            server,
            written: document.root().to_value(),
        };
        root.finish(&mut reader.problems);
        Some(config)
    }

    /// This configuration, with what a reload may take from a newer one.
    #[must_use]
    pub(crate) fn reloaded(&self, new: &Self) -> Self {
        let mut now = self.clone();
        live().for_each(|(_, put)| put(&mut now, new));
        now.written.clone_from(&new.written);
        now
    }
}

/// Keys whose values differ, as they are written: `(put in force by a reload, only by a new process)`.
pub(crate) fn changes(old: &serde_yaml::Value, new: &serde_yaml::Value) -> (Vec<String>, Vec<String>) {
    let mut changed = Vec::new();
    diff::differences("", Some(old), Some(new), &mut changed);
    let is_live = |key: &String| {
        live().any(|(live, _)| {
            key.strip_prefix(live)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    };
    changed.into_iter().partition(is_live)
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(|_| String::new(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    pub(crate) fn load(text: &str) -> Result<(Config, Problems), Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("portico.yaml");
        std::fs::write(&path, text).unwrap();
        let folder = format!("{}/", dir.path().display());
        Config::load(&path).map_err(|problems| {
            problems
                .iter()
                .map(|problem| problem.to_string().replace(&folder, ""))
                .collect()
        })
    }

    #[test]
    fn the_shipped_example_is_good() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf/portico.yaml");
        let (config, _) = Config::load(&path).unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(config.listeners.unwrap().len(), 6);
    }

    #[test]
    fn an_empty_file_has_defaults() {
        let (config, problems) = load("").unwrap();
        assert!(problems.is_empty());
        assert!(config.listeners.is_none());
        assert_eq!(config.mail.login_deadline, Duration::from_secs(60));
        assert!(config.tls.upstream_verify);
    }

    #[test]
    fn all_problems_at_once_with_key_and_line() {
        let problems = load(concat!(
            "version: 1\n",
            "threads: many\n",
            "listenners: []\n",
            "listeners:\n",
            "  - {address: '127.0.0.1:143', serve: imap, tls: maybe}\n",
            "  - {address: nowhere, serve: smtp}\n",
            "  - {address: '127.0.0.1:143', serve: pop3, proxy_protocol: {trusted: [10.0.0.0/99]}}\n",
            "route_cache: {ttl: soon}\n",
            "tls: {certificate: a.crt}\n",
        ))
        .unwrap_err();
        let expected = [
            ("2", "threads"),
            ("3", "listenners"),
            ("5", "listeners[0].tls"),
            ("6", "listeners[1].address"),
            ("6", "listeners[1].serve"),
            ("7", "listeners[2].proxy_protocol.trusted[0]"),
            ("8", "route_cache.ttl"),
            ("9", "tls"),
        ];
        for (line, key) in expected {
            let start = format!("portico.yaml:{line}: {key}: ");
            assert!(
                problems.iter().any(|problem| problem.starts_with(&start)),
                "no {start} in {problems:#?}"
            );
        }
        assert!(
            problems.iter().any(|problem| problem.contains("already listened on")),
            "{problems:#?}"
        );
    }

    /// Each key of [`LIVE`](live) puts in force what it names, and nothing else is.
    #[test]
    fn a_reload_puts_in_force_what_is_called_live() {
        let old = load("").unwrap().0;
        let every = [
            "acme: {directory_url: 'https://ca.test/dir'}",
            "listeners: [{address: '127.0.0.1:1143', serve: imap}]",
            "tls: {upstream_verify: false}",
            "limits: {connections: 1}",
            "throttle: {max_delay: 1s}",
            "mail: {max_logins: 1}",
            "web: {show_server: true}",
            "log.access: off",
            "log.access_format: json",
            "log.audit: off",
            "route_cache.ttl: 1s",
            "route_cache.stale: 1s",
            "shutdown_timeout: 1s",
            "drain_max: 1s",
            "drain_spread: 1s",
        ];
        let named: Vec<&str> = every.iter().filter_map(|line| Some(line.split_once(": ")?.0)).collect();
        let mut keys: Vec<&str> = live().map(|(key, _)| *key).collect();
        keys.sort_by_key(|key| named.iter().position(|name| name == key));
        assert_eq!(keys, named, "a line for every live key");
        let nested = |line: &str| match line.split_once(": ").unwrap() {
            (key, value) if key.contains('.') => {
                let (section, key) = key.split_once('.').unwrap();
                format!("{section}: {{{key}: {value}}}\n")
            }
            _ => format!("{line}\n"),
        };
        for line in every {
            let new = load(&nested(line)).unwrap().0;
            let (live, rest) = changes(&old.written, &new.written);
            assert_eq!((live.len(), rest.len()), (1, 0), "{line}");
            let (now, wanted) = (old.reloaded(&new), of_this_folder(&new, &old));
            assert_eq!(format!("{now:?}"), format!("{wanted:?}"), "{line}");
        }
        for line in [
            "node: another",
            "threads: 9",
            "log.audit_format: carbonio",
            "route_cache.capacity: 9",
        ] {
            let new = load(&nested(line)).unwrap().0;
            assert!(changes(&old.written, &new.written).0.is_empty(), "{line}");
            let mut now = old.reloaded(&new);
            now.written.clone_from(&old.written);
            assert_eq!(format!("{now:?}"), format!("{old:?}"), "{line}");
        }
    }

    /// Each file lies in a folder of its own, and the directory beside it.
    fn of_this_folder(new: &Config, old: &Config) -> Config {
        Config {
            directory: old.directory.clone(),
            ..new.clone()
        }
    }

    #[test]
    fn what_a_reload_can_do() {
        let value = |text: &str| serde_yaml::from_str(text).unwrap();
        let (live, not) = changes(
            &value("{threads: 2, listeners: [{a: 1}], route_cache: {ttl: 1h, capacity: 5}, log: {}, tls: {key: a}}"),
            &value("{threads: 4, listeners: [{a: 2}], route_cache: {ttl: 2h, capacity: 6}, tls: {key: a}, web: ~}"),
        );
        assert_eq!(live, ["listeners", "route_cache.ttl"]);
        assert_eq!(not, ["route_cache.capacity", "threads"]);
        let (live, not) = changes(
            &value("{}"),
            &value("{mail: {pop3_idle: 1m}, memcached: {servers: []}, drain_max: 1h, web: {locations: x}}"),
        );
        assert_eq!(live, ["drain_max", "mail.pop3_idle", "web.locations"]);
        assert_eq!(not, ["memcached.servers"]);
    }
}
