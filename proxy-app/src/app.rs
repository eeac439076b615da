//! Wires the house once, and swaps what runs when the directory or a certificate has changed.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use mail_proxy::Drain;
use mail_proxy::audit::{Audit, Event, Record};
use pingora::server::configuration::ServerConf;
use pingora_proxy::HttpProxy;
use route_cache::directory::yaml::YamlDirectory;
use route_cache::yaml::{Problem, Problems, Severity};
use route_cache::{AddressBook, Directory, RouteCache, Service};
use tokio::sync::watch;

use crate::config::{AuditFormat, Config, Listener, ListenerTls};
use crate::logs::{AuditLog, CarbonioLog, Log};
use crate::names::Names;
use crate::routes::{self, Routes};
use crate::snapshot::{self, Built, Snapshot};
use crate::tls::{CertStore, Certificates, UpstreamTrust};
use crate::web::Web;
use crate::web::upstreams::Group;

/// A configuration that has been checked and can run. Nothing of it is a thread or a socket, so that it survives
/// the fork into the background.
pub struct Plan {
    /// The node file.
    pub config: Config,
    /// The listeners to open.
    pub listeners: Vec<Listener>,
    directory: Arc<YamlDirectory>,
    lookup_trust: Option<Arc<UpstreamTrust>>,
    names: Arc<Names>,
    certificates: Certificates,
    snapshot: Snapshot,
}

impl Plan {
    /// Reads the node file and all that it refers to.
    ///
    /// # Errors
    /// All problems at once. With a good configuration the second value holds its warnings.
    pub fn load(path: &Path) -> Result<(Plan, Problems), Problems> {
        let (config, mut problems) = Config::load(path)?;
        let (directory, warnings) = match YamlDirectory::load(&config.directory) {
            Ok(loaded) => loaded,
            Err(errors) => {
                problems.extend(errors);
                return Err(problems);
            }
        };
        problems.extend(warnings);
        let names = Arc::new(Names::default());
        let certificates = Certificates::default();
        let system = directory.system();
        let built = snapshot::build(&config, system.clone(), names.clone(), &certificates, 1);
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
        let listeners = config
            .listeners
            .clone()
            .unwrap_or_else(|| snapshot::listeners_of_directory(&config, &system));
        check_certificates(&listeners, &store, &mut problems);
        certificates.store(Arc::new(store));
        let lookup_trust = routes::trust(&config).unwrap_or_else(|error| {
            problems.push(error_at("directory.lookup.ca_file", error));
            None
        });
        let plan = Plan {
            config,
            listeners,
            directory: Arc::new(directory),
            lookup_trust,
            names,
            certificates,
            snapshot,
        };
        problems.or(plan)
    }
}

/// A listener with TLS needs a certificate to show to clients that ask for no name.
fn check_certificates(listeners: &[Listener], store: &CertStore, problems: &mut Problems) {
    if store.default.is_some() || listeners.iter().all(|listener| listener.tls == ListenerTls::Off) {
        return;
    }
    let message = "a listener has TLS, but there is no default certificate here or at the node's server entry";
    problems.push(error_at("tls.certificate", message.to_owned()));
}

fn error_at(key: &str, message: String) -> Problem {
    Problem {
        file: None,
        line: None,
        key: key.to_owned(),
        message,
        severity: Severity::Error,
    }
}

/// The running house.
pub struct App {
    /// The node file.
    pub config: Config,
    /// What runs now.
    pub snapshot: ArcSwap<Snapshot>,
    /// Where accounts live.
    pub routes: Arc<RouteCache>,
    /// Which mailbox server has which address.
    pub book: Arc<AddressBook>,
    /// Where audit records go.
    pub audit: Arc<dyn Audit>,
    /// Where lines about web requests go.
    pub access: Log,
    /// Host names of mailbox servers.
    pub names: Arc<Names>,
    /// Connections that are open.
    pub open: Open,
    /// The node's shutdown.
    pub drain: watch::Sender<Drain>,
    listeners: Vec<Listener>,
    web_servers: Arc<Group>,
    admin_servers: Arc<Group>,
    directory: Arc<YamlDirectory>,
    certificates: Certificates,
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
            listeners,
            directory,
            lookup_trust,
            names,
            certificates,
            snapshot,
        } = plan;
        let Routes { cache: routes, book } = Routes::new(&config, directory.clone(), &names, lookup_trust);
        let audit = open_log("audit", &config.log.audit)?;
        let audit: Arc<dyn Audit> = match config.log.audit_format {
            AuditFormat::Json => Arc::new(AuditLog(audit)),
            AuditFormat::Carbonio => Arc::new(CarbonioLog(audit)),
        };
        let access = open_log("access", &config.log.access)?;
        let ip_mode = snapshot.web.ip_mode;
        let group = |service| Arc::new(Group::new(routes.clone(), names.clone(), service, ip_mode));
        let (web_servers, admin_servers) = (group(Service::Web), group(Service::Admin));
        let app = Arc::new(App {
            snapshot: ArcSwap::from_pointee(snapshot),
            routes,
            book,
            audit,
            access,
            names,
            listeners,
            web_servers,
            admin_servers,
            open: Open::default(),
            drain: watch::Sender::new(Drain::Running),
            directory,
            certificates,
            born: u64::from(rand::random::<u32>()),
            connections: AtomicU64::new(0),
            config,
        });
        app.applied("started");
        Ok(app)
    }

    /// A number for a new connection: unique on this node, also across restarts.
    pub fn number(&self) -> String {
        format!(
            "{:08x}-{:x}",
            self.born,
            self.connections.fetch_add(1, Ordering::Relaxed)
        )
    }

    /// Reads the directory and the certificates again and runs what they say now. What cannot be used changes
    /// nothing.
    pub fn reload(&self) {
        match self.reread() {
            Ok((directory, built)) => {
                self.directory.adopt(directory);
                self.certificates.store(Arc::new(built.certificates));
                self.snapshot.store(Arc::new(built.snapshot));
                // An account may have moved.
                self.routes.clear();
                self.applied("reloaded");
            }
            Err(problems) => {
                report(&problems);
                log::error!("the configuration was not changed");
            }
        }
    }

    /// What would run, with nothing put in place yet.
    fn reread(&self) -> Result<(YamlDirectory, Built), Problems> {
        let (directory, mut problems) = self.directory.reread()?;
        let generation = self.snapshot.load().generation + 1;
        let names = self.names.clone();
        let built = snapshot::build(&self.config, directory.system(), names, &self.certificates, generation)?;
        problems.extend(built.warnings.clone());
        check_certificates(&self.listeners, &built.certificates, &mut problems);
        let (parts, warnings) = problems.or((directory, built))?;
        report(&warnings);
        Ok(parts)
    }

    fn applied(&self, why: &str) {
        let generation = self.snapshot.load().generation;
        log::info!("configuration {generation} is in force ({why})");
        self.audit.record(Record {
            event: Some(Event::Config),
            why: Some(why.to_owned()),
            generation,
            ..Record::default()
        });
    }

    /// The mailbox servers, for web requests of nobody in particular.
    pub fn group(&self, service: Service) -> &Arc<Group> {
        match service {
            Service::Admin => &self.admin_servers,
            _ => &self.web_servers,
        }
    }

    /// The HTTP engine of this house.
    pub fn web(self: &Arc<Self>, conf: &Arc<ServerConf>) -> Arc<HttpProxy<Web>> {
        let mut proxy = pingora_proxy::http_proxy(conf, Web::new(self.clone()));
        let mut options = pingora::apps::HttpServerOptions::default();
        options.h2_idle_timeout = Some(crate::web::H2_IDLE);
        proxy.server_options = Some(options);
        Arc::new(proxy)
    }
}

fn report(problems: &Problems) {
    for problem in problems {
        log::warn!("{problem}");
    }
}

fn open_log(name: &'static str, target: &crate::logs::Target) -> anyhow::Result<Log> {
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
