//! Groups of servers: any healthy one can answer unauthenticated web requests.
//!
//! The groups of mailbox servers come from the directory, others from the files of locations. They live as long as the
//! process: a reload changes their members, and what is known of a member's health stays. Requests of a known account
//! do not choose here: the route names their server.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use mail_directory::System;
use parking_lot::Mutex;
use pingora::connectors::http::Connector;
use pingora::server::ShutdownWatch;
use route_cache::ServerPool;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::tls::upstream::UpstreamTrust;
use crate::upstream::dial::{Dialer, Sources};
use crate::upstream::dns::{DnsCache, IpMode};
use crate::upstream::groups::spec::GroupSpec;
use crate::upstream::pool::ConnectionPool;

mod check;
mod group;
mod members;
mod server;
pub(crate) mod spec;

pub(crate) use group::{Group, Member};
pub(crate) use members::EXTENSION_PORTS;
pub(crate) use server::{Health, ServerState};

/// How often the members of a group are looked up and checked.
const REFRESH: Duration = Duration::from_secs(5);

/// Most connections that are kept for checks.
const CHECKED: usize = 128;

/// Mailbox servers' web side.
const MAILBOX: &str = "mailbox";
/// Mailbox servers' administration side.
const ADMIN: &str = "admin";
/// Mailbox servers' extensions on ports 8742 and 8743.
const ZX: &str = "zx";
/// `zimbraReverseProxyUpstreamEwsServers`
pub(crate) const EWS: &str = "ews";
/// `zimbraReverseProxyUpstreamLoginServers`
pub(crate) const LOGIN: &str = "login";
/// The groups that the directory makes.
pub(crate) const OF_DIRECTORY: [&str; 5] = [MAILBOX, ADMIN, ZX, EWS, LOGIN];

/// What the groups are made from, as it is now.
pub(crate) struct GroupInputs {
    /// The directory's entries.
    pub system: Arc<System>,
    /// Name of this node's server entry.
    pub node: String,
    /// Address families towards servers.
    pub ip_mode: IpMode,
    /// Whose certificates are trusted.
    pub trust: Arc<UpstreamTrust>,
    /// Whether mailbox servers must prove their identity.
    pub verify: bool,
}

/// What all groups share.
struct Shared {
    inputs: ArcSwap<GroupInputs>,
    dns: Arc<DnsCache>,
    connector: Connector<()>,
    /// Connections for checks, kept from one to the next, so that the servers log a login every few hours, not seconds.
    dialer: Dialer,
}

/// All groups of this node.
pub(crate) struct Groups {
    shared: Arc<Shared>,
    groups: ArcSwap<BTreeMap<String, Arc<Group>>>,
    /// Keeps changes apart.
    changing: Mutex<()>,
    changed: Notify,
}

impl Groups {
    /// The groups of the directory and these. They have no members before [`Groups::prepare`].
    pub(crate) fn new(inputs: GroupInputs, dns: Arc<DnsCache>, specs: &[GroupSpec]) -> Self {
        let shared = Arc::new(Shared {
            inputs: ArcSwap::from_pointee(inputs),
            dns,
            connector: Connector::new(None),
            dialer: Dialer {
                sources: Sources::default(),
                pool: ConnectionPool::new(CHECKED),
            },
        });
        let of_directory = [
            (MAILBOX, members::MemberSource::Directory(ServerPool::Web)),
            (ADMIN, members::MemberSource::Directory(ServerPool::Admin)),
            (ZX, members::MemberSource::Extensions),
            (EWS, members::MemberSource::Directory(ServerPool::Ews)),
            (LOGIN, members::MemberSource::Directory(ServerPool::Login)),
        ];
        let groups = of_directory.map(|(name, source)| (name.to_owned(), Arc::new(Group::new(name, source, &shared))));
        let groups = Self {
            shared,
            groups: ArcSwap::from_pointee(groups.into()),
            changing: Mutex::new(()),
            changed: Notify::new(),
        };
        groups.take_over(specs);
        groups
    }

    /// The group of this name.
    pub(crate) fn get(&self, name: &str) -> Option<Arc<Group>> {
        self.groups.load().get(name).cloned()
    }

    /// All groups, by name.
    pub(crate) fn all(&self) -> Vec<Arc<Group>> {
        self.groups.load().values().cloned().collect()
    }

    /// Takes over another directory and other groups of the files. What is known of a group in both is kept.
    pub(crate) fn adopt(&self, inputs: GroupInputs, specs: &[GroupSpec]) {
        self.shared.inputs.store(Arc::new(inputs));
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
                    group.set_source(members::MemberSource::File(spec.clone()));
                    group.clone()
                }
                None => Arc::new(Group::new(
                    &spec.name,
                    members::MemberSource::File(spec.clone()),
                    &self.shared,
                )),
            };
            groups.insert(spec.name.clone(), group);
        }
        self.groups.store(Arc::new(groups));
    }

    /// Finds the members once, so that the first request finds some.
    pub(crate) async fn prepare(&self) {
        self.each(|group| async move { group.find_members().await }).await;
    }

    /// Keeps the groups up to date until the node shuts down.
    pub(crate) async fn watch(self: Arc<Self>, mut shutdown: ShutdownWatch) {
        loop {
            tokio::select! {
                () = self.each(|group| async move { group.refresh().await }) => {}
                _ = shutdown.wait_for(|down| *down) => return,
            }
            tokio::select! {
                () = tokio::time::sleep(REFRESH) => {}
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

    /// Whether checks say that no server answers at this address. `false` where they say nothing.
    pub(crate) fn is_unreachable(&self, address: SocketAddr) -> bool {
        self.groups.load().values().any(|group| group.is_unreachable(address))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

    use mail_directory::Entry;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::upstream::groups::spec::{Check, GroupServerSpec};

    /// A server that answers checks with a status, and counts its connections.
    struct Peer {
        address: SocketAddr,
        status: Arc<AtomicU16>,
        connections: Arc<AtomicUsize>,
        task: tokio::task::JoinHandle<()>,
    }

    impl Peer {
        async fn start() -> Self {
            Self::at("127.0.0.1:0".parse().unwrap()).await
        }

        async fn at(address: SocketAddr) -> Self {
            let listener = TcpListener::bind(address).await.unwrap();
            let (status, connections) = (Arc::new(AtomicU16::new(200)), Arc::new(AtomicUsize::new(0)));
            let (told, counted) = (status.clone(), connections.clone());
            Self {
                address: listener.local_addr().unwrap(),
                status,
                connections,
                task: tokio::spawn(async move {
                    let mut all = JoinSet::new();
                    while let Ok((mut tcp, _)) = listener.accept().await {
                        counted.fetch_add(1, Ordering::SeqCst);
                        let told = told.clone();
                        all.spawn(async move {
                            let mut asked = [0; 4096];
                            while tcp.read(&mut asked).await.is_ok_and(|count| count > 0) {
                                let status = told.load(Ordering::SeqCst);
                                let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\n{{}}");
                                let _gone = tcp.write_all(answer.as_bytes()).await;
                            }
                        });
                    }
                }),
            }
        }

        /// It is gone, with its connections.
        async fn stop(self) -> SocketAddr {
            self.task.abort();
            let _ended = self.task.await;
            self.address
        }
    }

    fn inputs(system: System) -> GroupInputs {
        GroupInputs {
            system: Arc::new(system),
            node: "node.test".to_owned(),
            ip_mode: IpMode::V4,
            trust: Arc::new(UpstreamTrust::new(None, true).unwrap()),
            verify: true,
        }
    }

    fn empty() -> System {
        System::new(Entry::new("config"), [], [], [])
    }

    fn spec(name: &str, servers: &[(&Peer, u32)], check: Check) -> GroupSpec {
        let servers = servers.iter().map(|(peer, weight)| GroupServerSpec {
            host: peer.address.ip().to_string(),
            port: peer.address.port(),
            weight: *weight,
        });
        GroupSpec {
            name: name.to_owned(),
            servers: servers.collect(),
            tls: None,
            check,
            keepalive: None,
        }
    }

    async fn groups(specs: &[GroupSpec]) -> Groups {
        let groups = Groups::new(inputs(empty()), Arc::default(), specs);
        groups.prepare().await;
        groups
    }

    /// How often each is chosen, one request after the other.
    fn spread(group: &Group, count: usize) -> HashMap<SocketAddr, usize> {
        let mut chosen = HashMap::new();
        for _ in 0..count {
            let member = group.pick(&[]).expect("somebody is up");
            *chosen.entry(member.address).or_default() += 1;
        }
        chosen
    }

    const TCP: Check = Check::Tcp;

    fn ready() -> Check {
        Check::Http {
            path: "/ready".to_owned(),
        }
    }

    #[tokio::test]
    async fn requests_are_spread_by_weight() {
        let (a, b, c) = (Peer::start().await, Peer::start().await, Peer::start().await);
        let groups = groups(&[
            spec("even", &[(&a, 1), (&b, 1)], TCP),
            spec("weighted", &[(&a, 3), (&b, 1)], TCP),
            spec("three", &[(&a, 2), (&b, 1), (&c, 1)], TCP),
        ])
        .await;
        for (name, expected) in [
            ("even", [500, 500, 0]),
            ("weighted", [750, 250, 0]),
            ("three", [500, 250, 250]),
        ] {
            let chosen = spread(&groups.get(name).unwrap(), 1000);
            for (peer, expected) in [&a, &b, &c].into_iter().zip(expected) {
                let got = chosen.get(&peer.address).copied().unwrap_or_default();
                assert!(got.abs_diff(expected) <= 75, "{name}: {got} for {expected}");
            }
        }
    }

    #[tokio::test]
    async fn the_less_busy_one_gets_it() {
        let (a, b) = (Peer::start().await, Peer::start().await);
        let groups = groups(&[spec("g", &[(&a, 1), (&b, 1)], TCP)]).await;
        let group = groups.get("g").unwrap();
        let busy: Vec<_> = (0..10).map(|_| group.server(a.address).unwrap().enter()).collect();
        let held: Vec<_> = (0..10).map(|_| group.pick(&[]).unwrap()).collect();
        assert!(held.iter().all(|member| member.address == b.address));
        assert_eq!(group.state().iter().map(|state| state.busy).sum::<usize>(), 20);
        drop((busy, held));
        assert_eq!(group.state().iter().map(|state| state.busy).sum::<usize>(), 0);
    }

    #[tokio::test]
    async fn who_fails_is_left_alone_and_used_if_there_is_nobody_else() {
        let (a, b) = (Peer::start().await, Peer::start().await);
        let groups = groups(&[spec("g", &[(&a, 1), (&b, 1)], TCP)]).await;
        let group = groups.get("g").unwrap();
        group.eject(a.address);
        assert_eq!(spread(&group, 100).get(&a.address), None);
        assert_eq!(group.pick(&[b.address]).map(|member| member.address), Some(a.address));
        assert!(group.pick(&[a.address, b.address]).is_none());
        let state = group.state();
        let ejected = state.iter().find(|state| state.address == a.address).unwrap().ejected;
        assert!(ejected.is_some_and(|left| left > Duration::from_secs(8)), "{ejected:?}");
    }

    #[tokio::test]
    async fn checks_find_the_dead_and_the_unready() {
        let (a, b) = (Peer::start().await, Peer::start().await);
        let groups = groups(&[spec("g", &[(&a, 1), (&b, 1)], ready())]).await;
        let group = groups.get("g").unwrap();
        for _ in 0..5 {
            group.refresh().await;
        }
        assert_eq!(spread(&group, 100).len(), 2);
        assert_eq!(
            a.connections.load(Ordering::SeqCst),
            1,
            "the connection of a check is kept"
        );
        a.status.store(500, Ordering::SeqCst);
        group.refresh().await;
        assert_eq!(spread(&group, 100).len(), 2, "once is not enough");
        group.refresh().await;
        assert_eq!(spread(&group, 100).get(&a.address), None);
        assert!(!groups.is_unreachable(a.address));
        let address = b.stop().await;
        group.refresh().await;
        group.refresh().await;
        assert!(groups.is_unreachable(address));
        assert_eq!(
            spread(&group, 10).get(&a.address),
            Some(&10),
            "it answers, if only that it is not ready"
        );
        a.status.store(204, Ordering::SeqCst);
        let b = Peer::at(address).await;
        group.refresh().await;
        group.refresh().await;
        assert_eq!(spread(&group, 100).len(), 2);
        assert_eq!(
            group.state().iter().filter(|state| state.health == Health::Up).count(),
            2
        );
        b.status.store(404, Ordering::SeqCst);
        group.refresh().await;
        group.refresh().await;
        assert_eq!(
            spread(&group, 100).get(&b.address),
            None,
            "a path of a file must be there"
        );
    }

    #[tokio::test]
    async fn the_operator_decides() {
        let (a, b) = (Peer::start().await, Peer::start().await);
        let mut named = spec("g", &[(&a, 1), (&b, 1)], TCP);
        named.servers[1].host = "localhost".to_owned();
        let groups = groups(std::slice::from_ref(&named)).await;
        let group = groups.get("g").unwrap();
        assert!(!group.set_maintenance("nobody", true));
        assert!(group.set_maintenance("localhost", true));
        assert_eq!(spread(&group, 100).get(&b.address), None);
        assert!(group.pick(&[a.address]).is_none(), "not even if nobody else is left");
        groups.adopt(inputs(empty()), &[named]);
        group.refresh().await;
        assert_eq!(spread(&group, 100).get(&b.address), None, "a reload does not end it");
        assert!(group.set_maintenance("localhost", false));
        assert!(group.set_weight("localhost", Some(0)));
        assert_eq!(spread(&group, 100).get(&b.address), None);
        assert!(group.set_weight("localhost", None));
        assert_eq!(spread(&group, 200).len(), 2);
    }

    #[tokio::test]
    async fn a_reload_keeps_what_is_known() {
        let (a, b) = (Peer::start().await, Peer::start().await);
        let groups = groups(&[spec("g", &[(&a, 1), (&b, 1)], TCP), spec("gone", &[(&a, 1)], TCP)]).await;
        let group = groups.get("g").unwrap();
        group.eject(a.address);
        groups.adopt(
            inputs(empty()),
            &[spec("g", &[(&a, 5), (&b, 1)], ready()), spec("new", &[(&b, 1)], TCP)],
        );
        groups.prepare().await;
        assert!(groups.get("gone").is_none());
        assert!(groups.get("new").unwrap().pick(&[]).is_some());
        let state = groups.get("g").unwrap().state();
        let known = state.iter().find(|state| state.address == a.address).unwrap();
        assert!(known.ejected.is_some() && known.weight == 5, "{known:?}");
    }

    #[tokio::test]
    async fn the_directory_makes_groups() {
        let server = |name: &str, more: &[(&str, &str)]| {
            let mut entry = Entry::new(name);
            entry.set("zimbraServiceEnabled", ["mailbox"]);
            entry.set("zimbraServiceHostname", ["127.0.0.9"]);
            more.iter().for_each(|(key, value)| entry.set(key, [*value]));
            entry
        };
        let mut config = Entry::new("config");
        config.set("zimbraReverseProxyUpstreamEwsServers", ["b.test"]);
        config.set("zimbraReverseProxySSLToUpstreamEnabled", ["TRUE"]);
        let servers = [
            server("a.test", &[("zimbraMailSSLPort", "8443")]),
            server(
                "b.test",
                &[
                    ("zimbraMailSSLPort", "9443"),
                    ("zimbraReverseProxyLookupTarget", "FALSE"),
                ],
            ),
            server("c.test", &[("zimbraMailSSLPort", "9444"), ("zimbraMailMode", "off")]),
        ];
        let groups = Groups::new(inputs(System::new(config, servers, [], [])), Arc::default(), &[]);
        groups.prepare().await;
        let members = |name: &str| -> Vec<String> {
            let state = groups.get(name).unwrap().state();
            state
                .iter()
                .map(|state| format!("{} {}", state.server, state.address))
                .collect()
        };
        assert_eq!(members(MAILBOX), ["a.test 127.0.0.9:8443"]);
        assert_eq!(members(ADMIN), ["a.test 127.0.0.9:7071"]);
        assert_eq!(members(ZX), ["a.test 127.0.0.9:8743"]);
        assert_eq!(members(EWS), ["b.test 127.0.0.9:9443"]);
        assert_eq!(members(LOGIN), Vec::<String>::new());
        groups.adopt(inputs(empty()), &[]);
        groups.prepare().await;
        assert_eq!(groups.get(MAILBOX).unwrap().state().len(), 0);
    }
}
