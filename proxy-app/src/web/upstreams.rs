//! Groups of servers: for web requests of nobody in particular, any healthy one will do.
//!
//! The groups of mailbox servers come from the directory, others from the files of locations. They live as long as
//! the process: a reload changes their members, and what is known of a member's health stays. Requests of a known
//! account do not choose here: its server is a matter of the route.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use openssl::x509::X509;
use parking_lot::Mutex;
use pingora::connectors::TransportConnector;
use pingora::connectors::http::Connector;
use pingora::server::ShutdownWatch;
use route_cache::{Offer, System};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::locations::group::GroupSpec;
use crate::names::{IpMode, Names};

mod check;
mod group;
mod seat;

pub use group::{Group, Member};
pub use seat::{Busy, Health, State};

/// How often the members of a group are looked up, and asked whether they live.
const LOOK: Duration = Duration::from_secs(5);

/// Mailbox servers' web side.
pub const MAILBOX: &str = "mailbox";
/// Mailbox servers' administration side.
pub const ADMIN: &str = "admin";
/// Mailbox servers' extensions on ports 8742 and 8743.
pub const ZX: &str = "zx";
/// `zimbraReverseProxyUpstreamEwsServers`
pub const EWS: &str = "ews";
/// `zimbraReverseProxyUpstreamLoginServers`
pub const LOGIN: &str = "login";
/// The groups that the directory makes.
pub const OF_DIRECTORY: [&str; 5] = [MAILBOX, ADMIN, ZX, EWS, LOGIN];

/// What the groups are made from, as it is now.
pub struct Basis {
    /// The directory's entries.
    pub system: Arc<System>,
    /// Name of this node's server entry.
    pub node: String,
    /// Address families towards servers.
    pub ip_mode: IpMode,
    /// Authorities that sign the servers' certificates; `None`: the system's.
    pub ca: Option<Arc<Box<[X509]>>>,
    /// Whether mailbox servers must prove who they are.
    pub verify: bool,
}

/// What all groups share.
struct House {
    basis: ArcSwap<Basis>,
    names: Arc<Names>,
    /// Connections for checks, kept from one to the next: the servers see one login of ours in hours, not in seconds.
    connector: Connector<()>,
    /// Connections for checks that only connect.
    sockets: TransportConnector,
}

/// All groups of this node.
pub struct Groups {
    house: Arc<House>,
    groups: ArcSwap<BTreeMap<String, Arc<Group>>>,
    /// Keeps changes apart.
    changing: Mutex<()>,
    changed: Notify,
}

impl Groups {
    /// The groups of the directory and these. No member is known before [`Groups::prepare`].
    pub fn new(basis: Basis, names: Arc<Names>, specs: &[GroupSpec]) -> Groups {
        let house = Arc::new(House {
            basis: ArcSwap::from_pointee(basis),
            names,
            connector: Connector::new(None),
            sockets: TransportConnector::new(None),
        });
        let of_directory = [
            (MAILBOX, group::Source::Directory(Offer::Web)),
            (ADMIN, group::Source::Directory(Offer::Admin)),
            (ZX, group::Source::Extensions),
            (EWS, group::Source::Directory(Offer::Ews)),
            (LOGIN, group::Source::Directory(Offer::Login)),
        ];
        let groups = of_directory.map(|(name, source)| (name.to_owned(), Arc::new(Group::new(name, source, &house))));
        let groups = Groups {
            house,
            groups: ArcSwap::from_pointee(groups.into()),
            changing: Mutex::new(()),
            changed: Notify::new(),
        };
        groups.take_over(specs);
        groups
    }

    /// The group of this name.
    pub fn get(&self, name: &str) -> Option<Arc<Group>> {
        self.groups.load().get(name).cloned()
    }

    /// All groups, by name.
    pub fn all(&self) -> Vec<Arc<Group>> {
        self.groups.load().values().cloned().collect()
    }

    /// Goes on with another directory and other groups of the files. What both have keeps what is known of it.
    pub fn adopt(&self, basis: Basis, specs: &[GroupSpec]) {
        self.house.basis.store(Arc::new(basis));
        self.take_over(specs);
        self.changed.notify_one();
    }

    fn take_over(&self, specs: &[GroupSpec]) {
        let _one_after_the_other = self.changing.lock();
        let before = self.groups.load_full();
        let of_directory = before.iter().filter(|(name, _)| OF_DIRECTORY.contains(&name.as_str()));
        let mut groups: BTreeMap<String, Arc<Group>> = of_directory.map(|(n, g)| (n.clone(), g.clone())).collect();
        for spec in specs.iter().filter(|spec| !OF_DIRECTORY.contains(&spec.name.as_str())) {
            let group = match before.get(&spec.name) {
                Some(group) => {
                    group.set_source(group::Source::File(spec.clone()));
                    group.clone()
                }
                None => Arc::new(Group::new(&spec.name, group::Source::File(spec.clone()), &self.house)),
            };
            groups.insert(spec.name.clone(), group);
        }
        self.groups.store(Arc::new(groups));
    }

    /// Finds the members once, so that the first request finds some.
    pub async fn prepare(&self) {
        self.each(|group| async move { group.find_members().await }).await;
    }

    /// Keeps the groups up to date until the node shuts down.
    pub async fn watch(self: Arc<Self>, mut shutdown: ShutdownWatch) {
        loop {
            tokio::select! {
                () = self.each(|group| async move { group.look().await }) => {}
                _ = shutdown.wait_for(|down| *down) => return,
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = self.changed.notified() => {}
                _ = shutdown.wait_for(|down| *down) => return,
            }
        }
    }

    /// One group must not wait for the servers of another.
    async fn each<F>(&self, act: impl Fn(Arc<Group>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut looks = JoinSet::new();
        for group in self.all() {
            looks.spawn(act(group));
        }
        while looks.join_next().await.is_some() {}
    }

    /// Whether checks say that nobody answers at this address. `false` where they say nothing.
    pub fn is_unreachable(&self, address: SocketAddr) -> bool {
        self.groups.load().values().any(|group| group.is_unreachable(address))
    }
}
