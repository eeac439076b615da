//! What each part of the process gets of the running node: the web, the listeners, the admin API, the process. None of
//! them can ask for more, and only [`App`] changes what is in force.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use mail_directory::{Directory, WayOfChanges};
use mail_proxy::Drain;
use mail_proxy::audit::Audit;
use mail_proxy::throttle::Throttle;
use route_cache::{AddressBook, KeptRoutes, RouteCache};
use tokio::sync::{Notify, watch};

use crate::acme::care::CertificateCare;
use crate::acme::challenges::Challenges;
use crate::app::App;
use crate::app::changes::History;
use crate::app::snapshot::Snapshot;
use crate::app::wanted::WantedListeners;
use crate::config::{Config, Ends};
use crate::locations::LiveLocations;
use crate::node::connections::{ConnectionIds, OpenConnections, Sessions};
use crate::node::limits::NodeLimits;
use crate::node::logins::RecentLogins;
use crate::node::logs::Log;
use crate::node::metrics::Metrics;
use crate::node::refusals::{self, Reason, Refusals, RefusedConnection};
use crate::nodes::Nodes;
use crate::tls::certificate_store::{CertStore, SharedCertStore};
use crate::tls::ticket_keys::TicketKeys;
use crate::upstream::dns::DnsCache;
use crate::upstream::groups::Groups;

/// A value that is replaced as a whole while the node runs; only the node replaces it.
pub(crate) struct InForce<T>(Arc<ArcSwap<T>>);

impl<T> InForce<T> {
    pub(super) fn new(value: T) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(value)))
    }

    pub(super) fn store(&self, value: Arc<T>) {
        self.0.store(value);
    }

    /// What is in force now, for use at once.
    pub(crate) fn load(&self) -> Guard<Arc<T>> {
        self.0.load()
    }

    /// What is in force now, to be kept.
    pub(crate) fn load_full(&self) -> Arc<T> {
        self.0.load_full()
    }
}

impl<T> Clone for InForce<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// A section of the node file, as far as it is in force.
pub(crate) struct Section<T> {
    config: InForce<Config>,
    of: fn(&Config) -> T,
}

impl<T> Section<T> {
    fn new(config: &InForce<Config>, of: fn(&Config) -> T) -> Self {
        let config = config.clone();
        Self { config, of }
    }

    /// What is in force now.
    pub(crate) fn load(&self) -> T {
        (self.of)(&self.config.load())
    }
}

/// Records refused requests: in a metric, and within the share of an address in the audit log.
pub(crate) struct RefusalLog {
    metrics: Arc<Metrics>,
    audit: Arc<dyn Audit>,
    snapshot: InForce<Snapshot>,
    lately: Refusals,
}

impl RefusalLog {
    pub(super) fn new(metrics: Arc<Metrics>, audit: Arc<dyn Audit>, snapshot: InForce<Snapshot>) -> Self {
        Self {
            metrics,
            audit,
            snapshot,
            lately: Refusals::default(),
        }
    }

    /// Records that a request was refused, and why.
    pub(crate) fn refused(&self, connection: RefusedConnection<'_>, reason: Reason) {
        self.metrics.request_refused(connection.listener, reason);
        if let Some(count) = self.lately.share(connection.client.ip(), Instant::now()) {
            let generation = self.snapshot.load().generation;
            self.audit
                .record(refusals::record(connection, reason, count, generation));
        }
    }
}

/// What the web side uses.
pub(crate) struct WebEnv {
    /// The node file, as far as it is in force.
    pub config: InForce<Config>,
    /// What runs now.
    pub snapshot: InForce<Snapshot>,
    /// Where accounts live.
    pub routes: Arc<RouteCache>,
    /// Groups of servers, for unauthenticated requests.
    pub groups: Arc<Groups>,
    /// Host names of servers.
    pub dns: Arc<DnsCache>,
    /// Which request goes where.
    pub locations: Arc<LiveLocations>,
    /// Where lines about requests go.
    pub access: Log,
    /// Where audit records go.
    pub audit: Arc<dyn Audit>,
    /// Where refused requests are recorded.
    pub refusals: Arc<RefusalLog>,
    /// What is counted and measured.
    pub metrics: Arc<Metrics>,
    /// Challenges of an ACME authority that are open.
    pub challenges: Arc<Challenges>,
    /// What is remembered of failed logins.
    pub throttle: Arc<Throttle>,
    /// How many answers may wait for clients.
    pub limits: Arc<NodeLimits>,
    /// Connections that are open.
    pub open: OpenConnections,
    /// How many there have been.
    pub connection_ids: Arc<ConnectionIds>,
    /// The node's shutdown.
    pub drain: watch::Receiver<Drain>,
}

/// What the listeners use.
pub(crate) struct ListenEnv {
    /// Where the admin API listens; only a new process changes that.
    pub admin_http: Option<SocketAddr>,
    /// What runs now.
    pub snapshot: InForce<Snapshot>,
    /// Which listeners there should be.
    pub listeners: WantedListeners,
    /// Where accounts live.
    pub routes: Arc<RouteCache>,
    /// Which mailbox server has which address, for old proxies.
    pub book: Arc<AddressBook>,
    /// Groups of web servers, to be looked after while there are web listeners.
    pub groups: Arc<Groups>,
    /// What is remembered of failed logins.
    pub throttle: Arc<Throttle>,
    /// How many connections there may be.
    pub limits: Arc<NodeLimits>,
    /// Connections that are open.
    pub open: OpenConnections,
    /// Ids of new connections.
    pub connection_ids: Arc<ConnectionIds>,
    /// The list of connections.
    pub sessions: Arc<Sessions>,
    /// What is counted and measured.
    pub metrics: Arc<Metrics>,
    /// Where audit records go.
    pub audit: Arc<dyn Audit>,
    /// Where refused requests are recorded.
    pub refusals: Arc<RefusalLog>,
    /// The node's shutdown.
    pub drain: watch::Receiver<Drain>,
    /// What web connections use.
    pub web: Arc<WebEnv>,
}

/// What the admin API shows and changes.
pub(crate) struct AdminEnv {
    /// Reads node file and directory again.
    pub app: Arc<App>,
    /// The node file, as far as it is in force.
    pub config: InForce<Config>,
    /// What runs now.
    pub snapshot: InForce<Snapshot>,
    /// The configurations of this process.
    pub history: Arc<History>,
    /// Where accounts live.
    pub routes: Arc<RouteCache>,
    /// Groups of web servers.
    pub groups: Arc<Groups>,
    /// The list of connections.
    pub sessions: Arc<Sessions>,
    /// Connections that are open.
    pub open: OpenConnections,
    /// What is limited, and what that has refused.
    pub limits: Arc<NodeLimits>,
    /// What is remembered of failed logins.
    pub throttle: Arc<Throttle>,
    /// The routes in a file.
    pub kept_routes: Option<Arc<KeptRoutes>>,
    /// Login attempts, for clients that watch them.
    pub logins: Arc<RecentLogins>,
    /// What is counted and measured.
    pub metrics: Arc<Metrics>,
    /// Where audit records go.
    pub audit: Arc<dyn Audit>,
    /// Where refused requests are recorded.
    pub refusals: Arc<RefusalLog>,
    /// Whether an administrator has taken the node out of service.
    pub out_of_service: watch::Sender<bool>,
    /// The other nodes, if there is an engine by which they are known.
    pub nodes: Option<Arc<Nodes>>,
    /// What is remembered of certificates that an authority is asked for.
    pub care: Arc<CertificateCare>,
    /// When this process started.
    pub started: Instant,
    access: Log,
    certificates: SharedCertStore,
    directory: Arc<dyn Directory>,
    drain: watch::Receiver<Drain>,
}

impl AdminEnv {
    /// Why no new clients should be sent here; empty if they should.
    pub(crate) fn not_ready(&self) -> Vec<&'static str> {
        let reasons = [
            (self.is_ending(), "the process is shutting down"),
            (*self.out_of_service.borrow(), "an administrator has drained the node"),
        ];
        let holds = reasons.into_iter().filter(|(holds, _)| *holds);
        holds.map(|(_, reason)| reason).collect()
    }

    /// Whether the process ends, at once or with its last session.
    pub(crate) fn is_ending(&self) -> bool {
        *self.drain.borrow() != Drain::Running
    }

    /// The certificates that are shown.
    pub(crate) fn certificates(&self) -> Arc<CertStore> {
        self.certificates.load_full()
    }

    /// How many lines each log has lost.
    pub(crate) fn lost_lines(&self) -> [(&'static str, u64); 2] {
        [("audit", self.audit.lost()), ("access", self.access.lost())]
    }

    /// How long ago the directory was last read with success.
    pub(crate) fn directory_age(&self) -> Option<Duration> {
        self.directory.age()
    }

    /// Whether everything up to this point of it was read.
    pub(crate) async fn has_taken(&self, point: &str) -> bool {
        self.directory.has_taken(point).await
    }

    /// Notified when the route cache has followed all that the directory has told so far.
    pub(crate) fn directory_mark(&self) -> Arc<Notify> {
        self.directory.mark()
    }

    /// By which way its changes come.
    pub(crate) fn directory_way(&self) -> Option<WayOfChanges> {
        self.directory.way()
    }

    /// Why the last reading of the directory is not in force; `None` if it is.
    pub(crate) fn directory_refusal(&self) -> Option<String> {
        self.directory.refusal()
    }
}

/// What the start and the end of the process need.
pub(crate) struct ProcessEnv {
    /// The other nodes, if there is an engine by which they are known.
    pub nodes: Option<Arc<Nodes>>,
    /// Leaves its moves of accounts to a new process.
    pub app: Arc<App>,
    /// The routes in a file, for the next process.
    pub kept_routes: Option<Arc<KeptRoutes>>,
    /// The keys of TLS session tickets, for the next process.
    pub tickets: Arc<TicketKeys>,
    /// How long connections may still live.
    pub ends: Section<Ends>,
    /// Connections that are open.
    pub open: OpenConnections,
    /// Notifies all connections of the shutdown.
    pub drain: watch::Sender<Drain>,
}

impl App {
    /// What the web side uses.
    pub(crate) fn web(&self) -> Arc<WebEnv> {
        Arc::new(WebEnv {
            config: self.config.clone(),
            snapshot: self.snapshot.clone(),
            routes: self.routes.clone(),
            groups: self.groups.clone(),
            dns: self.dns.clone(),
            locations: self.locations.clone(),
            access: self.access.clone(),
            audit: self.audit.clone(),
            refusals: self.refusals.clone(),
            metrics: self.metrics.clone(),
            challenges: self.challenges.clone(),
            throttle: self.throttle.clone(),
            limits: self.limits.clone(),
            open: self.open.clone(),
            connection_ids: self.connection_ids.clone(),
            drain: self.drain.subscribe(),
        })
    }

    /// What the listeners use.
    pub(crate) fn listen(&self) -> Arc<ListenEnv> {
        Arc::new(ListenEnv {
            admin_http: self.config.load().admin.http,
            snapshot: self.snapshot.clone(),
            listeners: self.listeners.clone(),
            routes: self.routes.clone(),
            book: self.book.clone(),
            groups: self.groups.clone(),
            throttle: self.throttle.clone(),
            limits: self.limits.clone(),
            open: self.open.clone(),
            connection_ids: self.connection_ids.clone(),
            sessions: self.sessions.clone(),
            metrics: self.metrics.clone(),
            audit: self.audit.clone(),
            refusals: self.refusals.clone(),
            drain: self.drain.subscribe(),
            web: self.web(),
        })
    }

    /// What the admin API shows and changes.
    pub(crate) fn admin(self: &Arc<Self>) -> Arc<AdminEnv> {
        Arc::new(AdminEnv {
            app: self.clone(),
            config: self.config.clone(),
            snapshot: self.snapshot.clone(),
            history: self.history.clone(),
            routes: self.routes.clone(),
            groups: self.groups.clone(),
            sessions: self.sessions.clone(),
            open: self.open.clone(),
            limits: self.limits.clone(),
            throttle: self.throttle.clone(),
            kept_routes: self.kept_routes.clone(),
            logins: self.logins.clone(),
            metrics: self.metrics.clone(),
            audit: self.audit.clone(),
            refusals: self.refusals.clone(),
            out_of_service: self.out_of_service.clone(),
            nodes: self.nodes.clone(),
            care: self.care.clone(),
            started: self.started,
            access: self.access.clone(),
            certificates: self.certificates.clone(),
            directory: self.directory.clone(),
            drain: self.drain.subscribe(),
        })
    }

    /// What the start and the end of the process need.
    pub(crate) fn process(self: &Arc<Self>) -> ProcessEnv {
        ProcessEnv {
            nodes: self.nodes.clone(),
            app: self.clone(),
            kept_routes: self.kept_routes.clone(),
            tickets: self.tickets.clone(),
            ends: Section::new(&self.config, |config| config.ends),
            open: self.open.clone(),
            drain: self.drain.clone(),
        }
    }
}
