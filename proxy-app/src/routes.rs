//! The route cache of this node, with what stands around it: memcached, lookup services, and who reaches them.
//!
//! What any of it means is in `route_cache`; here are only its sockets, its TLS and its settings.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use route_cache::addresses::{AddressBook, Resolve};
use route_cache::attributes as a;
use route_cache::lookup::{self, BoxStream, Dial, HandlerUrl, Services};
use route_cache::{Directory, RouteCache, SharedCache, memcached};
use tokio::net::TcpStream;

use crate::config::Config;
use crate::connector;
use crate::names::{IpMode, Names};
use crate::tls::UpstreamTrust;

/// The route cache, and the addresses of the mailbox servers for those who ask by address.
pub struct Routes {
    /// Where accounts live.
    pub cache: Arc<RouteCache>,
    /// Which server has which address.
    pub book: Arc<AddressBook>,
}

/// Whom lookup services must be known by; `None` where there are none. They must always prove who they are: they
/// decide where passwords go.
///
/// # Errors
/// The authorities cannot be read.
pub fn trust(config: &Config) -> Result<Option<Arc<UpstreamTrust>>, String> {
    let Some(lookup) = &config.lookup else { return Ok(None) };
    let ca_file = lookup.ca_file.as_deref().or(config.tls.upstream_ca_file.as_deref());
    let trust = UpstreamTrust::new(ca_file, true).map_err(|error| error.to_string())?;
    Ok(Some(Arc::new(trust)))
}

impl Routes {
    /// Makes the cache; nothing is connected yet. `trust` is that of [`trust`].
    pub fn new(
        config: &Config,
        directory: Arc<dyn Directory>,
        names: &Arc<Names>,
        trust: Option<Arc<UpstreamTrust>>,
    ) -> Routes {
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
        let book = AddressBook::new(Arc::new(NodeNames(names.clone())));
        let mut routes = RouteCache::new(settings, directory.clone());
        if let Some(shared) = &cache.memcached {
            let settings = memcached::Settings {
                servers: shared.servers.clone(),
                timeout: shared.timeout,
                retry: node.duration(&a::REVERSE_PROXY_CACHE_RECONNECT_INTERVAL),
            };
            routes = routes.with_shared(SharedCache::new(&settings, cache.ttl, book.clone()));
        }
        if let (Some(services), Some(trust)) = (&config.lookup, trust) {
            let settings = lookup::Settings {
                dialect: services.protocol,
                handlers: services.handlers.clone(),
                timeout: services.timeout,
                retry: node.duration(&a::REVERSE_PROXY_ROUTE_LOOKUP_TIMEOUT_CACHE),
            };
            let dial = Arc::new(Dialler {
                names: names.clone(),
                trust,
            });
            routes = routes.with_lookup(Services::new(settings, dial, book.clone()));
        }
        Routes {
            cache: Arc::new(routes),
            book,
        }
    }
}

/// The names that connections use, too, in all address families: an address of a server is one, whether or not we
/// would use it.
struct NodeNames(Arc<Names>);

#[async_trait]
impl Resolve for NodeNames {
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let addresses = self.0.resolve(host, 0, IpMode::Both).await?;
        Ok(addresses.iter().map(|address| address.ip()).collect())
    }
}

/// Connects to lookup services. The caller sets the time limit.
struct Dialler {
    names: Arc<Names>,
    trust: Arc<UpstreamTrust>,
}

#[async_trait]
impl Dial for Dialler {
    async fn connect(&self, url: &HandlerUrl) -> io::Result<BoxStream> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for address in self.names.resolve(&url.host, url.port, IpMode::Both).await? {
            match TcpStream::connect(address).await {
                Ok(tcp) => return self.greet(url, tcp).await,
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

impl Dialler {
    async fn greet(&self, url: &HandlerUrl, tcp: TcpStream) -> io::Result<BoxStream> {
        connector::tune(&tcp)?;
        match url.tls {
            true => Ok(Box::new(self.trust.connect(&url.host, Box::new(tcp)).await?)),
            false => Ok(Box::new(tcp)),
        }
    }
}
