//! The running node: made once from a plan. `app/reload.rs` changes it, and `app/env.rs` holds what other parts get of
//! it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use arc_swap::ArcSwap;
use mail_directory::Directory;
use mail_proxy::Drain;
use mail_proxy::audit::Audit;
use mail_proxy::throttle::Throttle;
use parking_lot::Mutex;
use route_cache::{AddressBook, KeptRoutes, RouteCache};
use tokio::sync::{Notify, watch};

use crate::acme::care::CertificateCare;
use crate::acme::challenges::Challenges;
use crate::acme::unstored::UnstoredCertificates;
use crate::app::changes::History;
use crate::app::env::{InForce, RefusalLog};
use crate::app::live_probe::ProbeTurns;
use crate::app::moves::Moves;
use crate::app::plan::{Plan, addresses};
use crate::app::routes::Routes;
use crate::app::snapshot::{PRODUCT, Snapshot};
use crate::app::state_file::StateFile;
use crate::app::wanted::WantedListeners;
use crate::config::{AuditFormat, Config};
use crate::locations::LiveLocations;
use crate::node::connections::{ConnectionIds, OpenConnections, Sessions};
use crate::node::limits::NodeLimits;
use crate::node::logins::{RecentLogins, Watched};
use crate::node::logs::{AuditForm, AuditLog, CarbonioLog, Log};
use crate::node::metrics::Metrics;
use crate::nodes::{Counting, Nodes};
use crate::tls::certificate_store::SharedCertStore;
use crate::tls::ticket_keys::TicketKeys;
use crate::tls::upstream::UpstreamTrust;
use crate::upstream::dns::DnsCache;
use crate::upstream::groups::{GroupInputs, Groups};

pub(crate) mod acme_orders;
pub(crate) mod certificates;
pub(crate) mod changes;
pub(crate) mod doors;
pub(crate) mod env;
pub(crate) mod listeners;
pub(crate) mod live_probe;
mod moved;
pub(crate) mod moves;
mod orders_among_nodes;
pub(crate) mod plan;
mod policy;
pub(crate) mod preview;
pub(crate) mod reload;
pub(crate) mod routes;
pub(crate) mod snapshot;
pub(crate) mod state_file;
pub(crate) mod stored;
pub(crate) mod throttle;
mod tickets;
pub(crate) mod urged_orders;
pub(crate) mod wanted;

/// The running node, for the code that changes it: it reads its files and its directory again. All other parts get what
/// they need of it when it starts ([`mod@env`]).
pub(crate) struct App {
    /// The node file, as far as it is in force.
    config: InForce<Config>,
    snapshot: InForce<Snapshot>,
    routes: Arc<RouteCache>,
    kept_routes: Option<Arc<KeptRoutes>>,
    /// Which mailbox server has which address.
    book: Arc<AddressBook>,
    lookup_trust: Option<Arc<ArcSwap<UpstreamTrust>>>,
    audit: Arc<dyn Audit>,
    audit_log: Log,
    access: Log,
    /// Host names of mailbox servers.
    dns: Arc<DnsCache>,
    locations: Arc<LiveLocations>,
    open: OpenConnections,
    limits: Arc<NodeLimits>,
    /// What is remembered of failed logins.
    throttle: Arc<Throttle>,
    refusals: Arc<RefusalLog>,
    /// Every connection, to be listed and ended.
    sessions: Arc<Sessions>,
    logins: Arc<RecentLogins>,
    metrics: Arc<Metrics>,
    /// Whether an administrator has taken the node out of service.
    out_of_service: watch::Sender<bool>,
    started: Instant,
    drain: watch::Sender<Drain>,
    /// Groups of servers, for unauthenticated web requests.
    groups: Arc<Groups>,
    /// The file, and as it was when the process started.
    node_file: (PathBuf, serde_yaml::Value),
    /// Makes reloads wait for each other.
    reloading: Arc<tokio::sync::Mutex<()>>,
    listeners: WantedListeners,
    directory: Arc<dyn Directory>,
    certificates: SharedCertStore,
    /// The keys of TLS session tickets.
    tickets: Arc<TicketKeys>,
    /// The warnings of what runs now. Its lock keeps changes apart.
    reported: Mutex<BTreeSet<String>>,
    /// The configurations of this node.
    history: Arc<History>,
    /// What the next process is to know.
    state_file: StateFile,
    /// Whether it runs already.
    replaced: AtomicBool,
    /// Accounts on their way to another server.
    moves: Arc<Moves>,
    connection_ids: Arc<ConnectionIds>,
    /// The other nodes, if there is an engine by which they are known.
    nodes: Option<Arc<Nodes>>,
    /// Held from the check of a change of a domain until it is stored.
    storing: tokio::sync::Mutex<()>,
    /// What is remembered of certificates that an authority is asked for.
    care: Arc<CertificateCare>,
    /// Certificates that it has issued, and the directory has not taken.
    unstored: UnstoredCertificates,
    /// Challenges of the authority that are open.
    challenges: Arc<Challenges>,
    /// Changes when orders of certificates have ended, for administrators who wait for them.
    orders_ended: watch::Sender<()>,
    /// Notified when another configuration is in force.
    configured: Notify,
    /// Who looks at the listeners, and when.
    probes: ProbeTurns,
}

impl App {
    /// Starts the node: opens its logs. From here on there are threads.
    ///
    /// # Errors
    /// A log cannot be opened.
    pub(crate) fn start(plan: Plan) -> anyhow::Result<Arc<Self>> {
        let Plan {
            config,
            path,
            listeners,
            directory,
            lookup_trust,
            dns,
            certificates,
            locations,
            mut snapshot,
        } = plan;
        let state_file = StateFile::new(config.state_file.clone());
        let state = state_file.read();
        let history = Arc::new(History::default());
        history.go_on(state.generations());
        snapshot.generation += history.last();
        state.servers().tell(&snapshot.mail);
        dns.never(addresses(&listeners));
        let Routes {
            cache: routes,
            kept: kept_routes,
            book,
            lookup_trust,
        } = Routes::new(&config, directory.clone(), &dns, lookup_trust);
        let audit_log = open_log("audit", &config.log.audit)?;
        let audit = Arc::new(Watched {
            log: written_as(config.log.audit_format, audit_log.clone()),
            logins: Arc::default(),
            metrics: Arc::new(Metrics::new()?),
            left: Arc::default(),
        });
        let (logins, metrics) = (audit.logins.clone(), audit.metrics.clone());
        let access = open_log("access", &config.log.access)?;
        let groups = Arc::new(Groups::new(
            group_inputs(&config, &snapshot),
            dns.clone(),
            &locations.written().groups,
        ));
        let limits = NodeLimits::new(config.limits.clone());
        let throttle = remembering(&config, &snapshot);
        let tickets = snapshot.acceptors.state().tickets.clone();
        let nodes = other_nodes(&config, &dns, &limits, &throttle, &tickets)?;
        let snapshot = InForce::new(snapshot);
        let refusals = Arc::new(RefusalLog::new(metrics.clone(), audit.clone(), snapshot.clone()));
        let app = Arc::new(Self {
            snapshot,
            routes,
            kept_routes,
            book,
            lookup_trust,
            audit,
            audit_log,
            access,
            dns,
            locations: Arc::new(locations),
            node_file: (path, config.written.clone()),
            reloading: Arc::default(),
            listeners: WantedListeners::new(listeners),
            groups,
            open: OpenConnections::default(),
            limits,
            throttle,
            refusals,
            sessions: Arc::default(),
            logins,
            metrics,
            out_of_service: watch::Sender::new(false),
            started: Instant::now(),
            drain: watch::Sender::new(Drain::Running),
            directory,
            certificates,
            tickets,
            reported: Mutex::default(),
            history,
            state_file,
            replaced: AtomicBool::new(false),
            moves: Arc::default(),
            connection_ids: Arc::default(),
            nodes,
            storing: tokio::sync::Mutex::default(),
            care: Arc::default(),
            unstored: UnstoredCertificates::default(),
            challenges: Arc::default(),
            orders_ended: watch::Sender::new(()),
            configured: Notify::new(),
            probes: ProbeTurns::default(),
            config: InForce::new(config),
        });
        app.set_policy(&app.config.load_full());
        app.renew_tickets();
        app.share_challenges();
        app.take_holds(&state);
        app.moves.take_over(state.moves());
        app.applied("started", Vec::new());
        Ok(app)
    }
}

/// The others of this mail system, if the node file says how they are reached.
fn other_nodes(
    config: &Config,
    dns: &Arc<DnsCache>,
    limits: &Arc<NodeLimits>,
    throttle: &Arc<Throttle>,
    tickets: &Arc<TicketKeys>,
) -> anyhow::Result<Option<Arc<Nodes>>> {
    let Some(shared) = config.shared_state.clone() else {
        return Ok(None);
    };
    let counting = Counting {
        limits: limits.clone(),
        throttle: throttle.clone(),
        remembered: throttle::written(config.throttle.file.as_deref()),
        tickets: tickets.clone(),
    };
    Nodes::new(shared, &config.node, PRODUCT.1, dns.clone(), counting).map(Some)
}

/// The audit log in the form that the node file wants.
fn written_as(format: AuditFormat, log: Log) -> Arc<dyn AuditForm> {
    match format {
        AuditFormat::Json => Arc::new(AuditLog(log)),
        AuditFormat::Carbonio => Arc::new(CarbonioLog(log)),
    }
}

/// The throttle, with what an earlier process has left of it.
fn remembering(config: &Config, snapshot: &Snapshot) -> Arc<Throttle> {
    let throttle = Arc::new(Throttle::new(snapshot.throttle.clone()));
    let file = config.throttle.file.iter();
    file.for_each(|file| throttle::restore(&throttle, file));
    throttle
}

/// What the groups of servers are made from.
pub(crate) fn group_inputs(config: &Config, snapshot: &Snapshot) -> GroupInputs {
    GroupInputs {
        system: snapshot.system.clone(),
        node: config.node.clone(),
        ip_mode: snapshot.web.ip_mode,
        trust: snapshot.transport.trust.clone(),
        verify: snapshot.web.upstream_verify,
    }
}

fn open_log(name: &'static str, target: &crate::node::logs::LogTarget) -> anyhow::Result<Log> {
    use anyhow::Context;
    Log::start(name, target).with_context(|| format!("the {name} log {target:?} cannot be opened"))
}
