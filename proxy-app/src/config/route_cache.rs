//! `route_cache`: how many routes are kept, for how long, and the tier that nodes share.

use std::path::PathBuf;
use std::time::Duration;

use mail_directory::yaml::Mapping;
use route_cache::HostPort;

use super::LiveKey;
use super::directory::{DirectoryConfig, Source};
use super::read::ConfigReader;

/// Most memcached servers: each may make a login wait.
const MAX_MEMCACHED: usize = 16;

pub(super) const LIVE: [LiveKey; 2] = [
    ("route_cache.ttl", |now, new| now.route_cache.ttl = new.route_cache.ttl),
    ("route_cache.stale", |now, new| {
        now.route_cache.stale = new.route_cache.stale
    }),
];

/// The file that keeps the routes of an LDAP directory, in the folder of the file that keeps its last good reading.
const SNAPSHOT: &str = "routes.snapshot";

/// `route_cache`
#[derive(Debug, Clone)]
pub(crate) struct RouteCacheConfig {
    /// Routes in memory.
    pub capacity: u64,
    /// How long a route is used without a new lookup.
    pub ttl: Duration,
    /// How long it may still serve after that while the directory is down.
    pub stale: Duration,
    /// How long "there is no such account" is remembered.
    pub negative_ttl: Duration,
    /// The file that keeps the routes of this node.
    pub snapshot: Option<PathBuf>,
    /// The tier that nodes share.
    pub memcached: Option<MemcachedConfig>,
}

impl Default for RouteCacheConfig {
    fn default() -> Self {
        Self {
            capacity: 200_000,
            ttl: Duration::from_secs(3600),
            stale: Duration::from_secs(24 * 3600),
            negative_ttl: Duration::from_secs(5),
            snapshot: None,
            memcached: None,
        }
    }
}

/// `route_cache.memcached`
#[derive(Debug, Clone)]
pub(crate) struct MemcachedConfig {
    /// The order counts.
    pub servers: Vec<HostPort>,
    /// The longest time of one request.
    pub timeout: Duration,
}

impl ConfigReader {
    pub(super) fn route_cache(&mut self, root: &mut Mapping<'_>, directory: &DirectoryConfig) -> RouteCacheConfig {
        let mut config = RouteCacheConfig {
            snapshot: beside(directory),
            ..RouteCacheConfig::default()
        };
        let Some(mut section) = self.section(root, "route_cache") else {
            return config;
        };
        if let Some(capacity) = section.take("capacity").and_then(|node| node.u64(&mut self.problems)) {
            config.capacity = capacity;
        }
        self.duration(&mut section, "ttl", &mut config.ttl);
        self.duration(&mut section, "stale", &mut config.stale);
        self.duration(&mut section, "negative_ttl", &mut config.negative_ttl);
        self.routes_snapshot(&mut section, &mut config);
        config.memcached = self.memcached(&mut section);
        section.finish(&mut self.problems);
        config
    }

    fn routes_snapshot(&mut self, section: &mut Mapping<'_>, config: &mut RouteCacheConfig) {
        let Some(node) = section.take("snapshot") else {
            return;
        };
        config.snapshot = match node.str(&mut self.problems) {
            None | Some("off") => None,
            Some(_) => node.path_buf(&mut self.problems),
        };
    }

    fn memcached(&mut self, cache: &mut Mapping<'_>) -> Option<MemcachedConfig> {
        let mut section = self.section(cache, "memcached")?;
        let mut config = MemcachedConfig {
            servers: Vec::new(),
            timeout: Duration::from_millis(200),
        };
        if let Some(node) = section.require("servers", &mut self.problems) {
            let items = self.some_items(node, MAX_MEMCACHED);
            config.servers = items.into_iter().filter_map(|node| self.host_and_port(node)).collect();
        }
        self.duration(&mut section, "timeout", &mut config.timeout);
        section.finish(&mut self.problems);
        Some(config)
    }
}

/// A YAML directory has all its accounts in memory from the start.
fn beside(directory: &DirectoryConfig) -> Option<PathBuf> {
    match &directory.source {
        Source::Ldap(settings) => Some(settings.snapshot.as_ref()?.with_file_name(SNAPSHOT)),
        Source::Yaml(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use route_cache::HostPort;

    use crate::config::tests::load;

    #[test]
    fn routes_are_kept_beside_the_last_good_reading() {
        let check = |text: &str, expected: Option<&str>| {
            let (config, _) = load(text).unwrap();
            assert_eq!(
                config.route_cache.snapshot.as_deref(),
                expected.map(Path::new),
                "{text}"
            );
        };
        let ldap = "directory: {source: ldap, snapshot: /a/b, ldap: {urls: 'ldaps://a'}}\n";
        check("", None);
        check("route_cache: {snapshot: /c}", Some("/c"));
        check(ldap, Some("/a/routes.snapshot"));
        check(&format!("{ldap}route_cache: {{snapshot: /c}}"), Some("/c"));
        check(&format!("{ldap}route_cache: {{snapshot: off}}"), None);
        let default = "/var/lib/portico/routes.snapshot";
        check("directory: {source: ldap, ldap: {urls: 'ldaps://a'}}", Some(default));
    }

    #[test]
    fn shared_caches_and_lookup_services() {
        let (config, _) = load(concat!(
            "directory: {lookup: {protocol: zimbra, handlers: ['https://10.0.0.11:7072/x'], timeout: 2s}}\n",
            "route_cache: {memcached: {servers: [127.0.0.1:11211, 'cache.test:11211']}}\n",
            "listeners:\n",
            "  - {address: '127.0.0.1:7072', serve: lookup, tls: implicit, allow: [10.0.0.0/8]}\n",
        ))
        .unwrap();
        assert_eq!(config.lookup.unwrap().handlers[0].host, "10.0.0.11");
        assert_eq!(
            config.route_cache.memcached.unwrap().servers,
            [HostPort::new("127.0.0.1", 11211), HostPort::new("cache.test", 11211)]
        );
        assert_eq!(config.listeners.unwrap()[0].allow.as_ref().unwrap().len(), 1);
        // The directory names Zimbra's services; it has no entry for others.
        let (config, _) = load("directory: {lookup: {protocol: zimbra}}\n").unwrap();
        assert!(config.lookup.unwrap().handlers.is_empty());
        for wrong in ["{protocol: nginx}", "{protocol: zimbra, handlers: []}"] {
            let problems = load(&format!("directory: {{lookup: {wrong}}}\n")).unwrap_err();
            assert!(
                problems.iter().any(|problem| problem.contains("directory.lookup")),
                "{wrong}"
            );
        }
        let problems = load(concat!(
            "directory: {lookup: {protocol: zimbra, handlers: ['10.0.0.11']}}\n",
            "route_cache: {memcached: {servers: [cache.test]}}\n",
            "listeners:\n",
            "  - {address: '127.0.0.1:7072', serve: lookup}\n",
            "  - {address: '127.0.0.1:7073', serve: lookup, tls: starttls, allow: [10.0.0.0/8]}\n",
            "  - {address: '127.0.0.1:7074', serve: imap, allow: [10.0.0.0/8]}\n",
        ))
        .unwrap_err();
        for key in [
            "directory.lookup.handlers[0]",
            "route_cache.memcached.servers[0]",
            "listeners[0]",
            "listeners[1].tls",
            "listeners[2].allow",
        ] {
            assert!(
                problems.iter().any(|problem| problem.contains(&format!(" {key}"))),
                "no {key} in {problems:#?}"
            );
        }
    }
}
