//! The route cache of this node and what it uses: memcached, lookup services, and the trust in them.
//!
//! Routes are explained in `route_cache`; this file only has the sockets, the TLS and the settings.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use mail_directory::tls_words::reasons;
use mail_directory::{Directory, System, attributes as a};
use route_cache::addresses::{AddressBook, Resolve};
use route_cache::lookup::{self, BoxStream, Dial, HandlerUrl, Services};
use route_cache::{KeptRoutes, RouteCache, SharedCache, lookup_server, memcached};

use crate::config::{Config, LookupConfig, MAX_HANDLERS};
use crate::tls::upstream::UpstreamTrust;
use crate::upstream::connect;
use crate::upstream::dns::{DnsCache, IpMode};

/// The route cache, and the addresses of the mailbox servers for clients that ask by address.
pub(crate) struct Routes {
    /// Where accounts live.
    pub cache: Arc<RouteCache>,
    /// The file that keeps them.
    pub kept: Option<Arc<KeptRoutes>>,
    /// Which server has which address.
    pub book: Arc<AddressBook>,
    /// The authorities that lookup services must be known by. New connections use the current ones.
    pub lookup_trust: Option<Arc<ArcSwap<UpstreamTrust>>>,
}

/// The authorities that lookup services must be known by; `None` where there are no such services. They must always
/// prove their identity: they decide where passwords go.
///
/// # Errors
/// The authorities cannot be read.
pub(crate) fn trust(config: &Config) -> Result<Option<Arc<UpstreamTrust>>, String> {
    let Some(lookup) = &config.lookup else { return Ok(None) };
    let ca_file = lookup.ca_file.as_deref().or(config.tls.upstream_ca_file.as_deref());
    let trust = UpstreamTrust::new(ca_file, true).map_err(|error| reasons(&error.to_string()).into_owned())?;
    Ok(Some(Arc::new(trust)))
}

impl Routes {
    /// Makes the cache; nothing is connected yet. `trust` is that of [`trust`].
    pub(crate) fn new(
        config: &Config,
        directory: Arc<dyn Directory>,
        dns: &Arc<DnsCache>,
        trust: Option<Arc<UpstreamTrust>>,
    ) -> Self {
        let cache = &config.route_cache;
        let settings = route_cache::Settings {
            node: config.node.clone(),
            capacity: cache.capacity,
            ttl: cache.ttl,
            stale: cache.stale,
            negative_ttl: cache.negative_ttl,
        };
        let system = directory.system();
        let node = system.node(&config.node);
        let book = AddressBook::new(Arc::new(NodeNames(dns.clone())));
        let mut routes = RouteCache::new(settings, directory.clone());
        let use_shared = node.flag(&a::REVERSE_PROXY_ZMLOOKUP_CACHING_ENABLED);
        if let Some(shared) = cache.memcached.as_ref().filter(|_| use_shared) {
            let life = system.global().duration(&a::REVERSE_PROXY_CACHE_ENTRY_TTL);
            let settings = memcached::Settings {
                servers: shared.servers.clone(),
                timeout: shared.timeout,
                retry: node.duration(&a::REVERSE_PROXY_CACHE_RECONNECT_INTERVAL),
            };
            routes = routes.with_shared(SharedCache::new(&settings, life, book.clone()));
        }
        let lookup_trust = trust.map(|trust| Arc::new(ArcSwap::new(trust)));
        if let (Some(services), Some(trust)) = (&config.lookup, &lookup_trust) {
            let settings = lookup::Settings {
                dialect: services.protocol,
                handlers: handlers(services, &system, &config.node),
                timeout: services.timeout,
                retry: node.duration(&a::REVERSE_PROXY_ROUTE_LOOKUP_TIMEOUT_CACHE),
            };
            let dial = Arc::new(Dialler {
                dns: dns.clone(),
                trust: trust.clone(),
            });
            routes = routes.with_lookup(Services::new(settings, dial, book.clone()));
        }
        let routes = Arc::new(routes);
        let kept = cache.snapshot.clone();
        Self {
            kept: kept.map(|path| Arc::new(KeptRoutes::new(routes.clone(), path))),
            cache: routes,
            book,
            lookup_trust,
        }
    }
}

/// The services of the node file; where it names none, those that Zimbra's proxy would use (MAIL §1.1).
fn handlers(services: &LookupConfig, system: &System, node: &str) -> Vec<HandlerUrl> {
    if !services.handlers.is_empty() {
        return services.handlers.clone();
    }
    let chosen = system.node(node).list(&a::REVERSE_PROXY_AVAILABLE_LOOKUP_TARGETS);
    let is_chosen = |name: &str| chosen.iter().any(|chosen| chosen.eq_ignore_ascii_case(name));
    let targets = system.servers().filter(|server| {
        let host = server.text(&a::SERVICE_HOSTNAME).unwrap_or(server.name());
        server.flag(&a::REVERSE_PROXY_LOOKUP_TARGET)
            && (chosen.is_empty() || is_chosen(server.name()) || is_chosen(host))
    });
    let urls: Vec<HandlerUrl> = targets
        .filter_map(|server| {
            Some(HandlerUrl {
                tls: true,
                host: server.text(&a::SERVICE_HOSTNAME).unwrap_or(server.name()).to_owned(),
                port: server.port(&a::EXTENSION_BIND_PORT)?,
                path: lookup_server::PATH.to_owned(),
            })
        })
        .take(MAX_HANDLERS)
        .collect();
    if urls.is_empty() {
        log::error!("directory.lookup names no handlers, and no server of the directory is a lookup target");
    }
    urls
}

/// The names that connections use, too, in all address families: an address of a server belongs to it, whether or not
/// we would use it.
struct NodeNames(Arc<DnsCache>);

#[async_trait]
impl Resolve for NodeNames {
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let addresses = self.0.resolve(host, 0, IpMode::Both).await?;
        Ok(addresses.iter().map(|address| address.ip()).collect())
    }
}

/// Connects to lookup services. The caller sets the time limit.
struct Dialler {
    dns: Arc<DnsCache>,
    trust: Arc<ArcSwap<UpstreamTrust>>,
}

#[async_trait]
impl Dial for Dialler {
    async fn connect(&self, url: &HandlerUrl) -> io::Result<BoxStream> {
        let tcp = connect::connect(&self.dns, &url.host, url.port, IpMode::Both).await?;
        match url.tls {
            true => Ok(Box::new(
                self.trust.load_full().connect(&url.host, Box::new(tcp)).await?,
            )),
            false => Ok(Box::new(tcp)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mail_directory::Entry;

    use super::*;

    fn server(name: &str, attributes: &[(&str, &str)]) -> Entry {
        let mut server = Entry::new(name);
        for (attribute, value) in attributes {
            server.set(attribute, [*value]);
        }
        server
    }

    #[test]
    fn lookup_targets_of_the_directory_are_asked_where_the_node_file_names_none() {
        let target = ("zimbraReverseProxyLookupTarget", "TRUE");
        let servers = || {
            [
                server("s1", &[target, ("zimbraServiceHostname", "one.test")]),
                server("s2", &[target, ("zimbraExtensionBindPort", "17072")]),
                server("s3", &[("zimbraReverseProxyLookupTarget", "FALSE")]),
            ]
        };
        let shown = |handlers: Vec<HandlerUrl>| -> Vec<String> {
            let one = |url: &HandlerUrl| format!("{} {}:{}{}", url.tls, url.host, url.port, url.path);
            handlers.iter().map(one).collect()
        };
        let path = "/service/extension/nginx-lookup";
        let (one, two) = (format!("true one.test:7072{path}"), format!("true s2:17072{path}"));
        let mut services = LookupConfig {
            protocol: lookup::Dialect::Zimbra,
            handlers: Vec::new(),
            timeout: Duration::from_secs(1),
            ca_file: None,
            admin: None,
        };
        let check = |services: &LookupConfig, chosen: &[&str], expected: &[&str]| {
            let mut node = Entry::new("proxy.test");
            node.set("zimbraReverseProxyAvailableLookupTargets", chosen.to_vec());
            let system = System::new(Entry::new("config"), servers().into_iter().chain([node]), [], []);
            assert_eq!(shown(handlers(services, &system, "proxy.test")), expected, "{chosen:?}");
        };
        check(&services, &[], &[&one, &two]);
        check(&services, &["ONE.test", "s3"], &[&one]);
        check(&services, &["s2"], &[&two]);
        check(&services, &["nobody"], &[]);
        services.handlers = vec![HandlerUrl::parse("http://x.test/y", lookup::Dialect::Zimbra).unwrap()];
        check(&services, &["s2"], &["false x.test:7072/y"]);
    }
}
