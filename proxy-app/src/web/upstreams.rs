//! Mailbox servers as a group: for web requests of nobody in particular, any healthy one will do.
//!
//! The members come from the directory and are looked at again every few seconds. A member that does not accept
//! connections is left out by an active check, and at once when a request finds out first. Requests of a known
//! account never come here: its server is a matter of the route.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use pingora_load_balancing::discovery::ServiceDiscovery;
use pingora_load_balancing::health_check::{HealthObserve, TcpHealthCheck};
use pingora_load_balancing::selection::RoundRobin;
use pingora_load_balancing::{Backend, Backends, LoadBalancer};
use route_cache::{RouteCache, Server, Service};
use tokio::time::Instant;

use crate::names::{IpMode, Names};

/// How often the directory is asked for members, and members whether they live.
const LOOK: Duration = Duration::from_secs(5);
/// How long a member that failed a request is left alone. By then the active check has had its say.
const EJECTED: Duration = Duration::from_secs(10);
/// How often the balancer may pass over members that are not wanted: more than there are members in practice.
const PICKS: usize = 256;

/// A member of the group.
#[derive(Debug, Clone)]
pub struct Member {
    /// The server.
    pub server: Server,
    /// Its address.
    pub address: SocketAddr,
}

/// The group.
pub struct Group {
    balancer: LoadBalancer<RoundRobin>,
    ejected: Mutex<HashMap<SocketAddr, Instant>>,
}

impl Group {
    /// The servers that offer `service`.
    pub fn new(routes: Arc<RouteCache>, names: Arc<Names>, service: Service, ip_mode: IpMode) -> Group {
        let discovery = Discovery {
            routes,
            names,
            service,
            ip_mode,
        };
        let mut balancer = LoadBalancer::from_backends(Backends::new(Box::new(discovery)));
        let mut check = TcpHealthCheck::new();
        check.health_changed_callback = Some(Box::new(Announce));
        balancer.set_health_check(check);
        balancer.update_frequency = Some(LOOK);
        balancer.health_check_frequency = Some(LOOK);
        balancer.parallel_health_check = true;
        Group {
            balancer,
            ejected: Mutex::default(),
        }
    }

    /// Asks the directory once, so that the first request finds members.
    pub async fn prepare(&self) {
        if let Err(error) = self.balancer.update().await {
            log::warn!("mailbox servers: {error}");
        }
    }

    /// Keeps the group up to date until the node shuts down.
    pub async fn watch(self: Arc<Self>, shutdown: ShutdownWatch) {
        self.balancer.start(shutdown).await;
    }

    /// A healthy member that this request has not tried yet, in turn.
    pub fn pick(&self, tried: &[SocketAddr]) -> Option<Member> {
        let wanted = |backend: &Backend, healthy: bool| {
            healthy && member(backend).is_some_and(|m| !tried.contains(&m.address) && !self.is_ejected(m.address))
        };
        let backend = self.balancer.select_with(b"", PICKS, wanted)?;
        member(&backend).cloned()
    }

    /// A request found that this member does not accept connections.
    pub fn eject(&self, address: SocketAddr) {
        let now = Instant::now();
        let mut ejected = self.ejected.lock();
        ejected.retain(|_, until| *until > now);
        ejected.insert(address, now + EJECTED);
    }

    fn is_ejected(&self, address: SocketAddr) -> bool {
        self.ejected
            .lock()
            .get(&address)
            .is_some_and(|until| *until > Instant::now())
    }
}

/// Says in one line what changed.
struct Announce;

#[async_trait]
impl HealthObserve for Announce {
    async fn observe(&self, backend: &Backend, healthy: bool) {
        let name = member(backend).map_or("?", |member| &*member.server.name);
        match healthy {
            true => log::info!("mailbox server {name} ({}) accepts web connections again", backend.addr),
            false => log::warn!("mailbox server {name} ({}) accepts no web connections", backend.addr),
        }
    }
}

fn member(backend: &Backend) -> Option<&Member> {
    backend.ext.get()
}

struct Discovery {
    routes: Arc<RouteCache>,
    names: Arc<Names>,
    service: Service,
    ip_mode: IpMode,
}

#[async_trait]
impl ServiceDiscovery for Discovery {
    async fn discover(&self) -> pingora::Result<(BTreeSet<Backend>, HashMap<u64, bool>)> {
        let mut backends = BTreeSet::new();
        for server in self.routes.servers(self.service) {
            let addresses = match self.names.resolve(&server.host, server.port, self.ip_mode).await {
                Ok(addresses) => addresses,
                Err(error) => {
                    log::warn!("mailbox server {}: {error}", server.name);
                    continue;
                }
            };
            let Some(&address) = addresses.first() else { continue };
            let mut backend = Backend::new(&address.to_string())?;
            backend.ext.insert(Member { server, address });
            backends.insert(backend);
        }
        Ok((backends, HashMap::new()))
    }
}
