//! The members of a group: which servers they are, by the directory or a file, and where they are reached.
//!
//! Discovery, checks and requests share this.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use mail_directory::attributes as a;
use parking_lot::Mutex;
use pingora_load_balancing::Backend;
use pingora_load_balancing::discovery::ServiceDiscovery;
use route_cache::{Server, ServerPool, UpstreamTls};
use tokio::task::JoinSet;

use crate::upstream::groups::Shared;
use crate::upstream::groups::server::{FailureLimits, GroupServer, Overrides, ServerDescription};
use crate::upstream::groups::spec::{Check, GroupSpec};

/// How many addresses of one host are members.
const ADDRESSES_MAX: usize = 16;

/// Where mailbox servers report their own state (HTTP §4.4).
pub(crate) const READY: &str = "/service/health/ready";

/// nginx's ports for the extensions of a mailbox server, clear and TLS (HTTP §3.5, §4.1).
pub(crate) const EXTENSION_PORTS: (u16, u16) = (8742, 8743);

/// Used where a file does not say: nginx's `max_fails` and `fail_timeout`.
const LIMITS: FailureLimits = FailureLimits {
    max_fails: 1,
    patience: Duration::from_secs(10),
};

/// Where the members of a group come from.
pub(crate) enum MemberSource {
    /// Mailbox servers of the directory.
    Directory(ServerPool),
    /// The extensions of mailbox servers.
    Extensions,
    /// A file.
    File(GroupSpec),
}

/// What discovery, checks and requests share.
pub(crate) struct Members {
    pub(crate) name: String,
    pub(crate) shared: Arc<Shared>,
    pub(crate) source: ArcSwap<MemberSource>,
    pub(crate) servers: ArcSwap<Vec<Arc<GroupServer>>>,
    pub(crate) overrides: Mutex<HashMap<String, Overrides>>,
    /// Hosts that could not be resolved; said once.
    pub(crate) unknown: Mutex<BTreeSet<String>>,
}

impl Members {
    pub(crate) fn server(&self, address: SocketAddr) -> Option<Arc<GroupServer>> {
        self.servers
            .load()
            .iter()
            .find(|server| server.address == address)
            .cloned()
    }

    /// How its members are checked.
    pub(crate) fn check(&self) -> Check {
        match &**self.source.load() {
            MemberSource::Directory(_) | MemberSource::Extensions => Check::Http { path: READY.to_owned() },
            MemberSource::File(spec) => spec.check.clone(),
        }
    }

    /// Whether a server that does not have the path of the check counts as up: older ones do not have it.
    pub(crate) fn tolerates_unknown_path(&self) -> bool {
        !matches!(&**self.source.load(), MemberSource::File(_))
    }

    /// Which servers are members, by the directory or the file.
    pub(crate) fn described(&self) -> Vec<ServerDescription> {
        let inputs = self.shared.inputs.load();
        let of_directory = |pool: ServerPool| {
            let servers = pool.servers(&inputs.system, &inputs.node);
            servers.into_iter().map(|server| {
                let view = inputs.system.server(&server.name);
                let limits = view.map_or(LIMITS, |view| FailureLimits {
                    max_fails: view.number(&a::MAIL_PROXY_MAX_FAILS),
                    patience: view
                        .duration(&a::MAIL_PROXY_RECONNECT_TIMEOUT)
                        .max(Duration::from_secs(1)),
                });
                ServerDescription {
                    server,
                    weight: 1,
                    limits,
                    verify: inputs.verify,
                }
            })
        };
        match &**self.source.load() {
            MemberSource::Directory(pool) => of_directory(*pool).collect(),
            MemberSource::Extensions => {
                let mut servers: Vec<_> = of_directory(ServerPool::Web).collect();
                for description in &mut servers {
                    description.server.port = match description.server.tls {
                        UpstreamTls::Clear => EXTENSION_PORTS.0,
                        UpstreamTls::Implicit { .. } | UpstreamTls::StartTls { .. } => EXTENSION_PORTS.1,
                    };
                }
                servers
            }
            MemberSource::File(spec) => of_file(spec).collect(),
        }
    }

    /// The addresses of these servers.
    pub(crate) async fn addresses(&self, descriptions: Vec<ServerDescription>) -> Vec<(SocketAddr, ServerDescription)> {
        let ip_mode = self.shared.inputs.load().ip_mode;
        // A mailbox server is one; the host of a file may be the name of many.
        let most = match &**self.source.load() {
            MemberSource::File(_) => ADDRESSES_MAX,
            _ => 1,
        };
        let mut lookups = JoinSet::new();
        for (at, description) in descriptions.into_iter().enumerate() {
            let dns = self.shared.dns.clone();
            lookups.spawn(async move {
                let addresses = dns
                    .resolve(&description.server.host, description.server.port, ip_mode)
                    .await;
                (at, description, addresses)
            });
        }
        let mut found = lookups.join_all().await;
        found.sort_by_key(|(at, ..)| *at);
        let mut reached = Vec::new();
        for (_, description, addresses) in found {
            match addresses {
                Ok(addresses) => {
                    self.unknown.lock().remove(&*description.server.host);
                    reached.extend(
                        addresses
                            .into_iter()
                            .take(most)
                            .map(|address| (address, description.clone())),
                    );
                }
                Err(error) => {
                    if self.unknown.lock().insert(description.server.host.to_string()) {
                        log::warn!("server {} of group {}: {error}", description.server.host, self.name);
                    }
                }
            }
        }
        reached
    }

    /// Makes a member of each server; one that is a member already keeps what is known of it.
    fn set_servers(&self, members: Vec<(SocketAddr, ServerDescription)>) {
        let before = self.servers.load_full();
        let overrides = self.overrides.lock();
        let mut servers: Vec<Arc<GroupServer>> = Vec::new();
        for (address, description) in members {
            if servers.iter().any(|server| server.address == address) {
                continue;
            }
            let overrides = overrides.get(&*description.server.name).copied().unwrap_or_default();
            let known = before.iter().find(|server| {
                server.address == address && server.description().server.name == description.server.name
            });
            servers.push(match known {
                Some(server) => {
                    server.describe(description, overrides);
                    server.clone()
                }
                None => Arc::new(GroupServer::new(address, description, overrides)),
            });
        }
        self.servers.store(Arc::new(servers));
    }
}

pub(crate) fn of_file(spec: &GroupSpec) -> impl Iterator<Item = ServerDescription> {
    spec.servers.iter().map(|server| ServerDescription {
        server: Server {
            name: server.host.as_str().into(),
            host: server.host.as_str().into(),
            port: server.port,
            tls: match &spec.tls {
                None => UpstreamTls::Clear,
                Some(tls) => UpstreamTls::Implicit {
                    name: tls.name.as_deref().unwrap_or(&server.host).into(),
                },
            },
        },
        weight: server.weight,
        limits: LIMITS,
        verify: spec.tls.as_ref().is_some_and(|tls| tls.verify),
    })
}

pub(crate) struct Discovery(pub(crate) Arc<Members>);

#[async_trait]
impl ServiceDiscovery for Discovery {
    async fn discover(&self) -> pingora::Result<(BTreeSet<Backend>, HashMap<u64, bool>)> {
        let members = &self.0;
        let found = members.addresses(members.described()).await;
        members.set_servers(found);
        let servers = members.servers.load();
        let backends = servers.iter().filter_map(|server| server.backend.clone()).collect();
        Ok((backends, HashMap::new()))
    }
}
