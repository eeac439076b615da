//! Wires the house once, and swaps what runs when the directory or a certificate has changed.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use mail_directory::file::YamlDirectory;
use mail_directory::ldap::{self, LdapDirectory};
use mail_directory::yaml::Problems;
use mail_directory::{Directory, Judge, Losses, System};
use mail_proxy::Drain;
use mail_proxy::audit::{Audit, Event, Record};
use parking_lot::Mutex;
use route_cache::{AddressBook, RouteCache};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::app::changes::History;
use crate::app::routes::Routes;
use crate::app::snapshot::{Built, Snapshot, problem};
use crate::config::{self, AuditFormat, Config, Listener, ListenerTls, Source};
use crate::locations::Live;
use crate::node::connections::Sessions;
use crate::node::limits::Limits;
use crate::node::logins::{Logins, Watched};
use crate::node::logs::{self, AuditLog, CarbonioLog, Log};
use crate::node::metrics::Metrics;
use crate::node::refusals::{self, Place, Reason, Refusals};
use crate::node::systemd;
use crate::tls::{CertStore, Certificates, UpstreamTrust};
use crate::upstream::dns::Names;
use crate::upstream::groups::{Basis, Groups};

pub mod changes;
pub mod routes;
pub mod snapshot;

/// A configuration that has been checked and can run. Nothing of it is a thread or a socket, so that it survives
/// the fork into the background.
pub struct Plan {
    /// The node file.
    pub config: Config,
    path: PathBuf,
    /// The listeners to open.
    pub listeners: Vec<Listener>,
    directory: Arc<dyn Directory>,
    lookup_trust: Option<Arc<UpstreamTrust>>,
    names: Arc<Names>,
    certificates: Certificates,
    locations: Live,
    snapshot: Snapshot,
}

impl Plan {
    /// Reads the node file and all that it refers to.
    ///
    /// # Errors
    /// All problems at once. With a good configuration the second value holds its warnings.
    pub fn load(path: &Path) -> Result<(Plan, Problems), Problems> {
        let (config, mut problems) = Config::load(path)?;
        let (directory, warnings) = match open_directory(&config.directory.source) {
            Ok(opened) => opened,
            Err(errors) => {
                problems.extend(errors);
                return Err(problems);
            }
        };
        problems.extend(warnings);
        let names = Arc::new(Names::default());
        let certificates = Certificates::default();
        let system = directory.system();
        check_directory(&system, &mut problems);
        let built = snapshot::build(&config, system.clone(), names.clone(), &certificates, None);
        let Built {
            snapshot,
            certificates: store,
            warnings,
        } = match built {
            Ok(built) => built,
            Err(errors) => {
                problems.extend(errors);
                return Err(problems);
            }
        };
        problems.extend(warnings);
        let listeners = listeners(&config, &system);
        check_certificates(&listeners, &store, &mut problems);
        check_logs(&config, &mut problems);
        certificates.store(Arc::new(store));
        let locations = match Live::load(&config.web.locations, &config.node, &system) {
            Ok((locations, warnings)) => {
                problems.extend(warnings);
                locations
            }
            Err(errors) => {
                problems.extend(errors);
                return Err(problems);
            }
        };
        let lookup_trust = routes::trust(&config).unwrap_or_else(|error| {
            problems.push(problem("directory.lookup.ca_file", error));
            None
        });
        let plan = Plan {
            config,
            path: path.to_owned(),
            listeners,
            directory,
            lookup_trust,
            names,
            certificates,
            locations,
            snapshot,
        };
        problems.or(plan)
    }
}

/// A node that starts with an empty directory starts for nobody; somebody should hear of it.
fn check_directory(system: &System, problems: &mut Problems) {
    for (is_empty, message) in [
        (system.servers().next().is_none(), "there is no server in the directory"),
        (system.domains().next().is_none(), "there is no domain in the directory"),
    ] {
        if is_empty {
            problems.push(snapshot::warning("directory".to_owned(), message));
        }
    }
}

/// A log that cannot be written is found out before anything is taken over.
fn check_logs(config: &Config, problems: &mut Problems) {
    for (key, target) in [("log.access", &config.log.access), ("log.audit", &config.log.audit)] {
        if let Err(error) = target.probe() {
            problems.push(problem(key, format!("{target:?} cannot be opened: {error}")));
        }
    }
}

/// A listener with TLS needs a certificate to show to clients that ask for no name.
fn check_certificates(listeners: &[Listener], store: &CertStore, problems: &mut Problems) {
    if store.default.is_some() || listeners.iter().all(|listener| listener.tls == ListenerTls::Off) {
        return;
    }
    let message = "a listener has TLS, but there is no default certificate here or at the node's server entry";
    problems.push(problem("tls.certificate", message));
}

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
    pub names: Arc<Names>,
    /// Which web request goes where.
    pub locations: Live,
    /// Connections that are open.
    pub open: Open,
    /// How many there may be.
    pub limits: Arc<Limits>,
    /// Whose requests were refused lately.
    pub refusals: Refusals,
    /// Every connection, to be listed and ended.
    pub sessions: Arc<Sessions>,
    /// Login attempts, for those who watch.
    pub logins: Arc<Logins>,
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
    /// How far the doors have followed that list, and what they could not open.
    opened: watch::Sender<(u64, Problems)>,
    directory: Arc<dyn Directory>,
    certificates: Certificates,
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
            names,
            certificates,
            locations,
            snapshot,
        } = plan;
        names.never(addresses(&listeners));
        let Routes {
            cache: routes,
            book,
            lookup_trust,
        } = Routes::new(&config, directory.clone(), &names, lookup_trust);
        let audit_log = open_log("audit", &config.log.audit)?;
        let audit: Arc<dyn Audit> = match config.log.audit_format {
            AuditFormat::Json => Arc::new(AuditLog(audit_log.clone())),
            AuditFormat::Carbonio => Arc::new(CarbonioLog(audit_log.clone())),
        };
        let logins = Arc::new(Logins::default());
        let metrics = Arc::new(Metrics::new()?);
        let audit = Arc::new(Watched {
            log: audit,
            logins: logins.clone(),
            metrics: metrics.clone(),
        });
        let access = open_log("access", &config.log.access)?;
        let groups = Arc::new(Groups::new(
            basis(&config, &snapshot),
            names.clone(),
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
            names,
            locations,
            node_file: (path, config.written.clone()),
            reloading: Arc::default(),
            listeners: watch::Sender::new(ListenerList { number: 0, listeners }),
            opened: watch::Sender::new((0, Problems::new())),
            groups,
            open: Open::default(),
            limits: Limits::new(config.limits.clone()),
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
    pub fn refused(&self, place: Place<'_>, reason: Reason) {
        self.metrics.request_refused(place.listener, reason);
        if let Some(count) = self.refusals.share(place.client.ip(), Instant::now()) {
            let generation = self.snapshot.load().generation;
            self.audit.record(refusals::record(place, reason, count, generation));
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

    /// A number for a new connection: unique on this node, also across restarts.
    pub fn number(&self) -> String {
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

    /// Reads the node file, the directory, the certificates and the locations again and runs what they say now. What cannot be used
    /// changes nothing, and a directory that has lost more than `losses` neither. Once begun, it goes on to its end,
    /// also when nobody waits for it any more.
    pub async fn reload(self: &Arc<Self>, losses: Losses) -> Reloaded {
        let one = self.reloading.clone().lock_owned().await;
        let app = self.clone();
        let task = tokio::spawn(async move {
            let _one = one;
            app.reload_now(losses).await
        });
        result_of(task).await
    }

    async fn reload_now(self: &Arc<Self>, losses: Losses) -> Reloaded {
        systemd::reloading();
        let before = self.config.load_full();
        let (config, mut reloaded) = {
            let before = before.clone();
            self.off_the_runtime(move |app| app.node_file_now(&before)).await
        };
        let (access, audit) = (config.log.access.clone(), config.log.audit.clone());
        let old = self.snapshot.load().generation;
        self.adopt_all(&config, losses, &mut reloaded).await;
        reloaded.changes = self.history.since(old);
        let locations = self.off_the_runtime(|app| app.reload_locations("reloaded")).await;
        reloaded.problems.extend(locations.err().unwrap_or_default());
        let logs = self.off_the_runtime(move |app| app.reopen_logs(&access, &audit)).await;
        reloaded.problems.extend(logs);
        reloaded.problems.extend(self.listeners_settled().await);
        let trust = self.off_the_runtime(move |app| app.renew_lookup_trust(&config)).await;
        reloaded.problems.extend(trust);
        // An account may have moved.
        self.routes.ask_anew();
        reloaded.say();
        systemd::reloaded("serving");
        reloaded
    }

    /// Looks at the directory now, because it was changed from here, and runs what it says.
    ///
    /// # Errors
    /// It cannot be read or used; then everything stays as it was.
    pub async fn look_at_directory(self: &Arc<Self>) -> Result<(), Problems> {
        let app = self.clone();
        let judge: Arc<Judge> = Arc::new(move |system: &Arc<System>| {
            // Where the change is not seen yet, it is looked for again and again, and nothing is different.
            match Arc::ptr_eq(system, &app.snapshot.load().system) {
                true => Ok(()),
                false => app.adopt(None, Some(system), "changed over the admin API"),
            }
        });
        self.directory.clone().refresh(judge, Losses::Few).await
    }

    /// Reads files and checks certificates beside the runtime, whose threads serve.
    async fn off_the_runtime<T: Send + 'static>(self: &Arc<Self>, work: impl FnOnce(&App) -> T + Send + 'static) -> T {
        let app = self.clone();
        result_of(tokio::task::spawn_blocking(move || work(&app))).await
    }

    /// What the node file says now, as far as this process can take it over; what it said before, if it is no good.
    fn node_file_now(&self, before: &Arc<Config>) -> (Arc<Config>, Reloaded) {
        let (path, started) = &self.node_file;
        let mut reloaded = Reloaded::default();
        let config = match Config::load(path) {
            Ok((new, warnings)) => {
                reloaded.problems.extend(warnings);
                (_, reloaded.needs_upgrade) = config::changes(started, &new.written);
                let new = before.reloaded(&new);
                let mut problems = Problems::new();
                check_logs(&new, &mut problems);
                let usable = !problems.has_errors();
                reloaded.problems.extend(problems);
                if usable { Arc::new(new) } else { before.clone() }
            }
            Err(problems) => {
                reloaded.problems.extend(problems);
                before.clone()
            }
        };
        (config, reloaded)
    }

    /// Puts node file and directory in force, or neither.
    async fn adopt_all(self: &Arc<Self>, config: &Arc<Config>, losses: Losses, reloaded: &mut Reloaded) {
        let judge: Arc<Judge> = {
            let (app, config) = (self.clone(), config.clone());
            Arc::new(move |system: &Arc<System>| app.adopt(Some(&config), Some(system), "reloaded"))
        };
        let Err(problems) = self.directory.clone().refresh(judge, losses).await else {
            return;
        };
        reloaded.problems.extend(problems);
        // The directory cannot be read, or the node file is no good for it. The node file may be good with what the
        // directory said last.
        let adopted = {
            let config = config.clone();
            self.off_the_runtime(move |app| app.adopt(Some(&config), None, "reloaded"))
                .await
        };
        for problem in adopted.err().unwrap_or_default() {
            if !reloaded.problems.iter().any(|known| *known == problem) {
                reloaded.problems.push(problem);
            }
        }
    }

    /// Opens the log files anew where they are; says which cannot be.
    pub async fn reopen(self: &Arc<Self>) -> Problems {
        self.off_the_runtime(App::reopen_now).await
    }

    fn reopen_now(&self) -> Problems {
        let config = self.config.load();
        self.reopen_logs(&config.log.access, &config.log.audit)
    }

    /// The authorities of lookup services may be others now.
    fn renew_lookup_trust(&self, config: &Config) -> Problems {
        let mut problems = Problems::new();
        let Some(trust) = &self.lookup_trust else {
            return problems;
        };
        match routes::trust(config) {
            Ok(new) => new.into_iter().for_each(|new| trust.store(new)),
            Err(error) => problems.push(problem("directory.lookup.ca_file", error)),
        }
        problems
    }

    /// Opens the log files anew: they may have been renamed, or be other ones now.
    fn reopen_logs(&self, access: &logs::Target, audit: &logs::Target) -> Problems {
        let mut problems = Problems::new();
        for (log, target, key) in [
            (&self.access, access, "log.access"),
            (&self.audit_log, audit, "log.audit"),
        ] {
            if let Err(error) = log.reopen(target) {
                let message = format!("{target:?} cannot be opened: {error}; the file before is written on");
                problems.push(problem(key, message));
            }
        }
        problems
    }

    /// Waits until the doors are as they should be; says which cannot be opened.
    async fn listeners_settled(&self) -> Problems {
        let number = self.listeners.borrow().number;
        let mut opened = self.opened.subscribe();
        match timeout(SETTLING, opened.wait_for(|opened| opened.0 >= number)).await {
            Ok(Ok(opened)) => opened.1.clone(),
            _ => Problems::new(),
        }
    }

    /// The listeners that there should be.
    pub fn wanted(&self) -> ListenerList {
        self.listeners.borrow().clone()
    }

    /// The list of listeners, whenever it changes.
    pub fn subscribe_listeners(&self) -> watch::Receiver<ListenerList> {
        self.listeners.subscribe()
    }

    /// The doors have followed the list with this number, but for these problems.
    pub fn listeners_are(&self, number: u64, problems: Problems) {
        self.opened.send_replace((number, problems));
    }

    /// Follows the directory, until it is dropped: its system, and the accounts that change. Keeps routes fresh.
    pub async fn follow_directory(self: Arc<Self>) {
        let app = self.clone();
        let judge: Arc<Judge> =
            Arc::new(move |system: &Arc<System>| app.adopt(None, Some(system), "the directory changed"));
        let poll = self.config.load().directory.poll;
        let watch = self.directory.clone().watch(poll, judge);
        tokio::join!(
            watch,
            self.routes.follow_directory(),
            self.routes.clone().keep_fresh(),
            self.follow_locations()
        );
    }

    /// Takes changes of the files of locations over as they come.
    async fn follow_locations(self: &Arc<Self>) {
        let look = |app: &App| match app.locations.has_changed() {
            true => app.reload_locations("the locations changed"),
            false => Ok(()),
        };
        loop {
            tokio::time::sleep(self.config.load().directory.poll).await;
            if let Err(problems) = self.off_the_runtime(look).await {
                problems
                    .iter()
                    .for_each(|problem| log::warn!(target: "proxy_app::list", "{problem}"));
                log::error!("the locations cannot be read; those before stay in force");
            }
        }
    }

    fn reload_locations(&self, why: &str) -> Result<(), Problems> {
        // One change after the other.
        let _told = self.told.lock();
        let (config, snapshot) = (self.config.load_full(), self.snapshot.load());
        let warnings = self.locations.reload(&config.web.locations, &snapshot.system)?;
        self.groups
            .adopt(basis(&config, &snapshot), &self.locations.written().groups);
        warnings
            .iter()
            .for_each(|warning| log::warn!(target: "proxy_app::list", "{warning}"));
        log::info!(
            "{} locations are in force ({why})",
            self.locations.table().entries().len()
        );
        Ok(())
    }

    /// Runs what this node file and this system say, with nothing put in place before all of it is known to be good.
    /// `None`: the one that is in force.
    fn adopt(&self, config: Option<&Arc<Config>>, system: Option<&Arc<System>>, why: &str) -> Result<(), Problems> {
        // One after the other: each has its number, and what is in force is asked for when it is our turn.
        let mut told = self.told.lock();
        let before = self.snapshot.load_full();
        let config = &config.map_or_else(|| self.config.load_full(), Arc::clone);
        let system = system.unwrap_or(&before.system);
        let names = self.names.clone();
        let built = snapshot::build(config, system.clone(), names, &self.certificates, Some(&before))?;
        let mut problems = built.warnings;
        let listeners = listeners(config, system);
        check_certificates(&listeners, &built.certificates, &mut problems);
        let ((), warnings) = problems.or(())?;
        report_new(&mut told, &warnings);
        let changes = self.changes(config, &before, system, &built.certificates);
        self.certificates.store(Arc::new(built.certificates));
        self.locations.adopt(system);
        let basis = basis(config, &built.snapshot);
        self.groups.adopt(basis, &self.locations.written().groups);
        self.snapshot.store(Arc::new(built.snapshot));
        self.routes.set_lives(config.route_cache.ttl, config.route_cache.stale);
        self.limits.change(config.limits.clone());
        self.config.store(config.clone());
        self.want(listeners);
        self.applied(why, changes);
        Ok(())
    }

    /// What is different from what is in force, once these are.
    fn changes(&self, config: &Config, before: &Snapshot, system: &System, certificates: &CertStore) -> Vec<String> {
        let (live, _) = config::changes(&self.config.load().written, &config.written);
        let node_file = live.iter().map(|key| format!("node file: {key} is in force"));
        node_file
            .chain(changes::of_systems(&before.system, system))
            .chain(changes::of_certificates(&self.certificates.load(), certificates))
            .collect()
    }

    /// The doors follow this list.
    fn want(&self, listeners: Vec<Listener>) {
        self.names.never(addresses(&listeners));
        self.listeners.send_if_modified(|list| {
            let changed = list.listeners != listeners;
            if changed {
                list.number += 1;
                list.listeners = listeners;
            }
            changed
        });
    }

    fn applied(&self, why: &str, changes: Vec<String>) {
        let generation = self.snapshot.load().generation;
        log::info!("configuration {generation} is in force ({why})");
        for change in self.history.begin(generation, why, changes).changes {
            log::info!(target: "proxy_app::list", "{change}");
        }
        self.audit.record(Record {
            event: Some(Event::Config),
            why: Some(why.to_owned()),
            generation,
            ..Record::default()
        });
    }
}

/// What a task gives. A panic in it is one here; a task that is dropped goes with the runtime, and we with it.
async fn result_of<T>(task: tokio::task::JoinHandle<T>) -> T {
    match task.await.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(result) => result,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        Err(Err(_)) => std::future::pending().await,
    }
}

/// What the groups of servers are made from.
fn basis(config: &Config, snapshot: &Snapshot) -> Basis {
    Basis {
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

/// How long the doors may take to follow the list: opening a socket takes no time.
const SETTLING: Duration = Duration::from_secs(10);

/// What a reload has done.
#[derive(Debug, Default)]
pub struct Reloaded {
    /// What is different from before, a sentence each.
    pub changes: Vec<String>,
    /// Keys of the node file whose new values only a new process will take.
    pub needs_upgrade: Vec<String>,
    /// What is wrong. What has an error changes nothing.
    pub problems: Problems,
}

impl Reloaded {
    fn say(&self) {
        for problem in self.problems.iter() {
            log::warn!(target: "proxy_app::list", "{problem}");
        }
        if !self.needs_upgrade.is_empty() {
            log::warn!("node file: needs an upgrade: {}", self.needs_upgrade.join(", "));
        }
        if self.problems.has_errors() {
            log::error!("not everything could be read again; what cannot be used changes nothing");
        }
    }
}

fn addresses(listeners: &[Listener]) -> Vec<SocketAddr> {
    listeners.iter().map(|listener| listener.address).collect()
}

/// The listeners of the node file, or else those of the directory.
fn listeners(config: &Config, system: &System) -> Vec<Listener> {
    let written = config.listeners.clone();
    written.unwrap_or_else(|| snapshot::listeners_of_directory(config, system))
}

/// A change is made every few seconds; what was wrong before it need not be said again.
fn report_new(told: &mut BTreeSet<String>, problems: &Problems) {
    let texts: BTreeSet<String> = problems.iter().map(ToString::to_string).collect();
    texts
        .difference(told)
        .for_each(|text| log::warn!(target: "proxy_app::list", "{text}"));
    *told = texts;
}

/// Opens the directory that the node file names.
fn open_directory(source: &Source) -> Result<(Arc<dyn Directory>, Problems), Problems> {
    match source {
        Source::Yaml(path) => {
            let (directory, warnings) = YamlDirectory::load(path)?;
            Ok((Arc::new(directory), warnings))
        }
        Source::Ldap(settings) => {
            let (directory, warnings) = load_ldap((**settings).clone())?;
            Ok((Arc::new(directory), warnings))
        }
    }
}

/// On a runtime of its own, which is gone before the process goes into the background.
fn load_ldap(settings: ldap::Settings) -> Result<(LdapDirectory, Problems), Problems> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Problems::of_file(Path::new("tokio"), None, error.to_string()))?;
    let loaded = runtime.block_on(LdapDirectory::load(settings));
    // A name that cannot be resolved must not hold us up.
    runtime.shutdown_timeout(RUNTIME_END);
    loaded
}

/// How long what the reading of the directory started may take to end.
const RUNTIME_END: Duration = Duration::from_secs(1);

fn open_log(name: &'static str, target: &crate::node::logs::Target) -> anyhow::Result<Log> {
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
