//! The running node: wired once from a plan. What changes in it stands in `app/reload.rs`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use mail_directory::Directory;
use mail_directory::yaml::Problems;
use mail_proxy::Drain;
use mail_proxy::audit::Audit;
use parking_lot::Mutex;
use route_cache::{AddressBook, RouteCache};
use tokio::sync::watch;

use crate::app::changes::History;
use crate::app::plan::{Plan, addresses};
use crate::app::routes::Routes;
use crate::app::snapshot::Snapshot;
use crate::config::{AuditFormat, Config, Listener};
use crate::locations::LiveLocations;
use crate::node::connections::Sessions;
use crate::node::limits::NodeLimits;
use crate::node::logins::{RecentLogins, Watched};
use crate::node::logs::{AuditLog, CarbonioLog, Log};
use crate::node::metrics::Metrics;
use crate::node::refusals::{self, Reason, Refusals, RefusedConnection};
use crate::tls::store::{CertStore, SharedCertStore};
use crate::tls::upstream::UpstreamTrust;
use crate::upstream::dns::DnsCache;
use crate::upstream::groups::{GroupInputs, Groups};

pub mod certificates;
pub mod changes;
pub mod listeners;
pub mod plan;
pub mod reload;
pub mod routes;
pub mod snapshot;

/// The running house.
pub struct App {
    /// The node file, as far as it is in force.
    pub config: ArcSwap<Config>,
    /// What runs now.
    pub snapshot: ArcSwap<Snapshot>,
    /// Where accounts live.
    pub routes: Arc<RouteCache>,
    /// Which mailbox server has which address.
    pub book: Arc<AddressBook>,
    lookup_trust: Option<Arc<ArcSwap<UpstreamTrust>>>,
    /// Where audit records go.
    pub audit: Arc<dyn Audit>,
    audit_log: Log,
    /// Where lines about web requests go.
    pub access: Log,
    /// Host names of mailbox servers.
    pub dns: Arc<DnsCache>,
    /// Which web request goes where.
    pub locations: LiveLocations,
    /// Connections that are open.
    pub open: Open,
    /// How many there may be.
    pub limits: Arc<NodeLimits>,
    /// Whose requests were refused lately.
    pub refusals: Refusals,
    /// Every connection, to be listed and ended.
    pub sessions: Arc<Sessions>,
    /// Login attempts, for those who watch.
    pub logins: Arc<RecentLogins>,
    /// What is counted and measured.
    pub metrics: Arc<Metrics>,
    /// Whether an administrator has taken the node out of service.
    pub out_of_service: watch::Sender<bool>,
    /// When this process started.
    pub started: Instant,
    /// The node's shutdown.
    pub drain: watch::Sender<Drain>,
    /// Groups of servers, for web requests of nobody in particular.
    pub groups: Arc<Groups>,
    /// The file, and as it was when the process started.
    node_file: (PathBuf, serde_yaml::Value),
    /// One reload after the other.
    reloading: Arc<tokio::sync::Mutex<()>>,
    listeners: watch::Sender<ListenerList>,
    /// How far the listeners have followed that list, and what they could not open.
    opened: watch::Sender<(u64, Problems)>,
    directory: Arc<dyn Directory>,
    certificates: SharedCertStore,
    /// The warnings of what runs now. Its lock keeps changes apart.
    told: Mutex<BTreeSet<String>>,
    /// The configurations of this process.
    pub history: History,
    born: u64,
    connections: AtomicU64,
}

impl App {
    /// Starts the house: opens its logs. From here on there are threads.
    ///
    /// # Errors
    /// A log cannot be opened.
    pub fn start(plan: Plan) -> anyhow::Result<Arc<App>> {
        let Plan {
            config,
            path,
            listeners,
            directory,
            lookup_trust,
            dns,
            certificates,
            locations,
            snapshot,
        } = plan;
        dns.never(addresses(&listeners));
        let Routes {
            cache: routes,
            book,
            lookup_trust,
        } = Routes::new(&config, directory.clone(), &dns, lookup_trust);
        let audit_log = open_log("audit", &config.log.audit)?;
        let audit: Arc<dyn Audit> = match config.log.audit_format {
            AuditFormat::Json => Arc::new(AuditLog(audit_log.clone())),
            AuditFormat::Carbonio => Arc::new(CarbonioLog(audit_log.clone())),
        };
        let logins = Arc::new(RecentLogins::default());
        let metrics = Arc::new(Metrics::new()?);
        let audit = Arc::new(Watched {
            log: audit,
            logins: logins.clone(),
            metrics: metrics.clone(),
        });
        let access = open_log("access", &config.log.access)?;
        let groups = Arc::new(Groups::new(
            group_inputs(&config, &snapshot),
            dns.clone(),
            &locations.written().groups,
        ));
        let app = Arc::new(App {
            snapshot: ArcSwap::from_pointee(snapshot),
            routes,
            book,
            lookup_trust,
            audit,
            audit_log,
            access,
            dns,
            locations,
            node_file: (path, config.written.clone()),
            reloading: Arc::default(),
            listeners: watch::Sender::new(ListenerList { number: 0, listeners }),
            opened: watch::Sender::new((0, Problems::new())),
            groups,
            open: Open::default(),
            limits: NodeLimits::new(config.limits.clone()),
            refusals: Refusals::default(),
            sessions: Arc::default(),
            logins,
            metrics,
            out_of_service: watch::Sender::new(false),
            started: Instant::now(),
            drain: watch::Sender::new(Drain::Running),
            directory,
            certificates,
            told: Mutex::default(),
            history: History::default(),
            born: u64::from(rand::random::<u32>()),
            connections: AtomicU64::new(0),
            config: ArcSwap::from_pointee(config),
        });
        app.applied("started", Vec::new());
        Ok(app)
    }

    /// Why no new clients should be sent here; empty if they should.
    pub fn not_ready(&self) -> Vec<&'static str> {
        let shuts_down = *self.drain.borrow() != Drain::Running;
        let reasons = [
            (shuts_down, "the process is shutting down"),
            (*self.out_of_service.borrow(), "an administrator has drained the node"),
        ];
        let holds = reasons.into_iter().filter(|(holds, _)| *holds);
        holds.map(|(_, reason)| reason).collect()
    }

    /// Writes down that a request was refused, and why.
    pub fn refused(&self, connection: RefusedConnection<'_>, reason: Reason) {
        self.metrics.request_refused(connection.listener, reason);
        if let Some(count) = self.refusals.share(connection.client.ip(), Instant::now()) {
            let generation = self.snapshot.load().generation;
            self.audit
                .record(refusals::record(connection, reason, count, generation));
        }
    }

    /// The certificates that are shown.
    pub fn certificates(&self) -> Arc<CertStore> {
        self.certificates.load_full()
    }

    /// How many lines each log has lost.
    pub fn lost_lines(&self) -> [(&'static str, u64); 2] {
        [("audit", self.audit.lost()), ("access", self.access.lost())]
    }

    /// How long ago the directory was last read with success.
    pub fn directory_age(&self) -> Option<Duration> {
        self.directory.age()
    }

    /// Why what was read last of the directory is not in force; `None` if it is.
    pub fn directory_refusal(&self) -> Option<String> {
        self.directory.refusal()
    }

    /// An id for a new connection: unique on this node, also across restarts.
    pub fn connection_id(&self) -> String {
        format!(
            "{:08x}-{:x}",
            self.born,
            self.connections.fetch_add(1, Ordering::Relaxed)
        )
    }

    /// How many connections there were since the start.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// The listeners that there should be.
    pub fn wanted(&self) -> ListenerList {
        self.listeners.borrow().clone()
    }

    /// The list of listeners, whenever it changes.
    pub fn subscribe_listeners(&self) -> watch::Receiver<ListenerList> {
        self.listeners.subscribe()
    }

    /// The listeners have followed the list with this number, but for these problems.
    pub fn listeners_are(&self, number: u64, problems: Problems) {
        self.opened.send_replace((number, problems));
    }
}

/// What the groups of servers are made from.
pub(crate) fn group_inputs(config: &Config, snapshot: &Snapshot) -> GroupInputs {
    GroupInputs {
        system: snapshot.system.clone(),
        node: config.node.clone(),
        ip_mode: snapshot.web.ip_mode,
        ca: snapshot.web.upstream_ca.clone(),
        verify: snapshot.web.upstream_verify,
    }
}

/// Which listeners there should be.
#[derive(Debug, Clone)]
pub struct ListenerList {
    /// One more with each change.
    pub number: u64,
    /// The listeners.
    pub listeners: Vec<Listener>,
}

fn open_log(name: &'static str, target: &crate::node::logs::LogTarget) -> anyhow::Result<Log> {
    use anyhow::Context;
    Log::start(name, target).with_context(|| format!("the {name} log {target:?} cannot be opened"))
}

/// A count of open connections.
#[derive(Clone, Default)]
pub struct Open(Arc<AtomicUsize>);

impl Open {
    /// Counts one connection until the value is dropped.
    pub fn enter(&self) -> Entered {
        self.0.fetch_add(1, Ordering::Relaxed);
        Entered(self.0.clone())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// One open connection.
pub struct Entered(Arc<AtomicUsize>);

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
