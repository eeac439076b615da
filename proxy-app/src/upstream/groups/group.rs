//! One group: its members, and which of them gets a request.

use std::cell::LazyCell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use pingora_load_balancing::Backends;
use route_cache::Server;
use tokio::time::Instant;

use crate::node::metrics::WebAnswers;
use crate::upstream::groups::Shared;
use crate::upstream::groups::check::HealthProbe;
use crate::upstream::groups::members::{Discovery, MemberSource, Members};
use crate::upstream::groups::server::{Busy, GroupServer, Health, Overrides, ServerState};

/// A member that was chosen for a request. While it lives, the server counts as busy with it.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    /// The server.
    pub server: Server,
    /// Its address.
    pub address: SocketAddr,
    /// Whether it must prove its identity.
    pub verify: bool,
    busy: Arc<Busy>,
}

impl Member {
    /// It has answered.
    pub(crate) fn answered(&self) {
        self.busy.server().answered(Instant::now);
    }
}

/// A group.
pub(crate) struct Group {
    members: Arc<Members>,
    backends: Backends,
    /// How many requests its servers have answered.
    pub(crate) answers: WebAnswers,
    /// The turn of the last one that was chosen.
    turn: AtomicU64,
}

impl Group {
    pub(super) fn new(name: &str, source: MemberSource, shared: &Arc<Shared>) -> Self {
        let members = Arc::new(Members {
            name: name.to_owned(),
            shared: shared.clone(),
            source: ArcSwap::from_pointee(source),
            servers: ArcSwap::default(),
            overrides: Mutex::default(),
            unknown: Mutex::default(),
        });
        let mut backends = Backends::new(Box::new(Discovery(members.clone())));
        backends.set_health_check(Box::new(HealthProbe(members.clone())));
        Self {
            members,
            backends,
            answers: WebAnswers::default(),
            turn: AtomicU64::new(0),
        }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.members.name
    }

    pub(super) fn set_source(&self, source: MemberSource) {
        self.members.source.store(Arc::new(source));
    }

    /// Looks up its members.
    pub(super) async fn find_members(&self) {
        if let Err(error) = self.backends.update(|_| ()).await {
            log::warn!("group {}: {error}", self.name());
        }
    }

    /// Looks up its members, and checks whether each is up.
    pub(super) async fn refresh(&self) {
        self.find_members().await;
        self.backends.run_health_check(true).await;
    }

    /// Picks a server for an unauthenticated request, without those in `tried`: power of two choices by weight, and
    /// of two that are equally busy the one whose turn it is.
    ///
    /// Members that do not answer requests come after all others, and those that answer that they are not ready come
    /// last: they are still tried where no better one is left.
    pub(crate) fn pick(&self, tried: &[SocketAddr]) -> Option<Member> {
        let servers = self.members.servers.load();
        // Only a server that has failed lately needs to know it.
        let now = LazyCell::new(Instant::now);
        // How good a choice it is, 0 the best; `None`: it gets nothing.
        let class = |server: &GroupServer| match (self.is_ready(server), server.is_ejected(|| *now)) {
            (true, false) => Some(0),
            (true, true) => Some(1),
            (false, _) => (server.health() == Health::NotReady).then_some(2),
        };
        let choices = servers.iter().filter(|server| !tried.contains(&server.address));
        let choices = choices.filter_map(|server| {
            let share = server.share(|| *now);
            (share > 0.0).then_some((class(server)?, server, share))
        });
        let mut best: Vec<(&Arc<GroupServer>, f64)> = Vec::new();
        let mut best_class = u8::MAX;
        for (class, server, share) in choices {
            if class < best_class {
                best.clear();
                best_class = class;
            }
            if class == best_class {
                best.push((server, share));
            }
        }
        let (server, share) = better_of_two(&best)?;
        Some(self.member(server, share))
    }

    /// The server at this address, if it gets requests.
    pub(crate) fn member_at(&self, address: SocketAddr) -> Option<Member> {
        let (server, now) = (self.server(address)?, Instant::now());
        let share = server.share(|| now);
        (share > 0.0 && self.is_ready(&server) && !server.is_ejected(|| now)).then(|| self.member(&server, share))
    }

    /// Whether checks say that it takes requests.
    fn is_ready(&self, server: &GroupServer) -> bool {
        server
            .backend
            .as_ref()
            .is_some_and(|backend| self.backends.ready(backend))
    }

    fn member(&self, server: &Arc<GroupServer>, share: f64) -> Member {
        let turn = self.turn.load(Ordering::Relaxed).max(server.turn());
        self.turn.store(turn, Ordering::Relaxed);
        let description = server.description();
        Member {
            server: description.server.clone(),
            address: server.address,
            verify: description.verify,
            busy: Arc::new(server.take(turn, share)),
        }
    }

    /// How long connections to its servers are kept, where a file says so.
    pub(crate) fn keepalive(&self) -> Option<Duration> {
        match &**self.members.source.load() {
            MemberSource::File(spec) => spec.keepalive,
            MemberSource::Directory(_) | MemberSource::Extensions => None,
        }
    }

    /// Whether it has servers that may get requests: if none of them can be reached, they count as not answering.
    pub(crate) fn has_members(&self) -> bool {
        let (servers, now) = (self.members.servers.load(), Instant::now());
        servers.iter().any(|server| server.share(|| now) > 0.0)
    }

    /// A request got no answer from this address.
    pub(crate) fn eject(&self, address: SocketAddr) {
        if let Some(server) = self.server(address)
            && server.failed(Instant::now())
        {
            let name = &server.description().server.name;
            log::warn!("{name} ({address}) in group {} does not answer requests", self.name());
        }
    }

    /// A request was answered from this address.
    pub(crate) fn answered(&self, address: SocketAddr) {
        if let Some(server) = self.server(address) {
            server.answered(Instant::now);
        }
    }

    /// Takes a server out of service for unauthenticated requests, or back into it. `server` is the name of its entry,
    /// or its host in a file. It counts until the process ends. Returns false if there is no such server here.
    pub(crate) fn set_maintenance(&self, server: &str, on: bool) -> bool {
        self.override_server(server, |overrides| overrides.maintenance = on)
    }

    /// Sets another weight of a server; `None`: the configured one. Returns false if there is no such server here.
    pub(crate) fn set_weight(&self, server: &str, weight: Option<u32>) -> bool {
        self.override_server(server, |overrides| overrides.weight = weight)
    }

    fn override_server(&self, name: &str, change: impl FnOnce(&mut Overrides)) -> bool {
        let servers = self.members.servers.load();
        let named: Vec<_> = servers
            .iter()
            .filter(|server| *server.description().server.name == *name)
            .collect();
        if named.is_empty() {
            return false;
        }
        let mut all = self.members.overrides.lock();
        let overrides = all.entry(name.to_owned()).or_default();
        change(overrides);
        named.iter().for_each(|server| server.obey(*overrides));
        true
    }

    /// What is known of its members.
    pub(crate) fn state(&self) -> Vec<ServerState> {
        let servers = self.members.servers.load();
        servers
            .iter()
            .map(|server| server.state(self.is_ready(server)))
            .collect()
    }

    /// Whether checks say that no server answers at this address. `false` where they say nothing.
    pub(crate) fn is_unreachable(&self, address: SocketAddr) -> bool {
        let unreachable = |server: Arc<GroupServer>| !self.is_ready(&server) && server.health() == Health::Unreachable;
        self.server(address).is_some_and(unreachable)
    }

    pub(super) fn server(&self, address: SocketAddr) -> Option<Arc<GroupServer>> {
        self.members.server(address)
    }
}

/// The less busy of two that are drawn by their shares.
fn better_of_two<'a>(servers: &[(&'a Arc<GroupServer>, f64)]) -> Option<(&'a Arc<GroupServer>, f64)> {
    if let [only] = servers {
        return Some(*only);
    }
    let first = draw(servers, None)?;
    let Some(second) = draw(servers, Some(first)) else {
        return Some(servers[first]);
    };
    let order = |at: usize| (servers[at].0.load(servers[at].1), servers[at].0.turn());
    let (first_load, first_turn) = order(first);
    let (second_load, second_turn) = order(second);
    let first_is_better = first_load < second_load || first_load == second_load && first_turn <= second_turn;
    Some(servers[if first_is_better { first } else { second }])
}

/// Draws one by its share, other than `but`.
fn draw(servers: &[(&Arc<GroupServer>, f64)], but: Option<usize>) -> Option<usize> {
    let candidates = || servers.iter().enumerate().filter(move |(at, _)| Some(*at) != but);
    let all: f64 = candidates().map(|(_, (_, share))| share).sum();
    let mut left = all * rand::random::<f64>();
    for (at, (_, share)) in candidates() {
        left -= share;
        if left <= 0.0 {
            return Some(at);
        }
    }
    // The sum was rounded.
    candidates().next_back().map(|(at, _)| at)
}
