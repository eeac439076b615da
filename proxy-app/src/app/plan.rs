//! A configuration that has been checked and can run, before any part of it runs.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mail_directory::file::YamlDirectory;
use mail_directory::ldap::{self, LdapDirectory};
use mail_directory::yaml::{Problems, problem, warning};
use mail_directory::{Directory, System};

use crate::app::listeners::listeners_of_directory;
use crate::app::routes;
use crate::app::snapshot::{self, Built, Snapshot};
use crate::config::{Config, Listener, ListenerTls, Source};
use crate::locations::LiveLocations;
use crate::tls::certificate_store::{CertStore, SharedCertStore};
use crate::tls::upstream::UpstreamTrust;
use crate::upstream::dns::DnsCache;

/// A configuration that has been checked and can run. Nothing of it is a thread or a socket, so that it survives the
/// fork into the background.
pub(crate) struct Plan {
    /// The node file.
    pub config: Config,
    pub(crate) path: PathBuf,
    /// The listeners to open.
    pub listeners: Vec<Listener>,
    pub(crate) directory: Arc<dyn Directory>,
    pub(crate) lookup_trust: Option<Arc<UpstreamTrust>>,
    pub(crate) dns: Arc<DnsCache>,
    pub(crate) certificates: SharedCertStore,
    pub(crate) locations: LiveLocations,
    pub(crate) snapshot: Snapshot,
}

impl Plan {
    /// Reads the node file and all that it refers to.
    ///
    /// # Errors
    /// All problems at once. With a valid configuration the second value holds its warnings.
    pub(crate) fn load(path: &Path) -> Result<(Self, Problems), Problems> {
        let (config, mut problems) = Config::load(path)?;
        let (directory, warnings) = match open_directory(&config.directory.source) {
            Ok(opened) => opened,
            Err(errors) => {
                problems.extend(errors);
                return Err(problems);
            }
        };
        problems.extend(warnings);
        let dns = Arc::new(DnsCache::default());
        let certificates = SharedCertStore::default();
        let system = directory.system();
        check_directory(&system, &mut problems);
        let built = snapshot::build(&config, system.clone(), dns.clone(), &certificates, None);
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
        let locations = match LiveLocations::load(&config.web.locations, &config.node, &system) {
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
        let plan = Self {
            config,
            path: path.to_owned(),
            listeners,
            directory,
            lookup_trust,
            dns,
            certificates,
            locations,
            snapshot,
        };
        problems.or(plan)
    }
}

/// A node that starts with an empty directory serves no user; the administrator should see a warning.
fn check_directory(system: &System, problems: &mut Problems) {
    for (is_empty, message) in [
        (system.servers().next().is_none(), "there is no server in the directory"),
        (system.domains().next().is_none(), "there is no domain in the directory"),
    ] {
        if is_empty {
            problems.push(warning("directory".to_owned(), message));
        }
    }
}

/// A log that cannot be written is found out before a running process is replaced.
pub(crate) fn check_logs(config: &Config, problems: &mut Problems) {
    for (key, target) in [("log.access", &config.log.access), ("log.audit", &config.log.audit)] {
        if let Err(error) = target.probe() {
            problems.push(problem(key, format!("{target:?} cannot be opened: {error}")));
        }
    }
}

/// A listener with TLS needs a certificate to show to clients that ask for no name.
pub(crate) fn check_certificates(listeners: &[Listener], store: &CertStore, problems: &mut Problems) {
    if store.default.is_some() || listeners.iter().all(|listener| listener.tls == ListenerTls::Off) {
        return;
    }
    let message = "a listener has TLS, but there is no default certificate here or at the node's server entry";
    problems.push(problem("tls.certificate", message));
}

pub(crate) fn addresses(listeners: &[Listener]) -> Vec<SocketAddr> {
    listeners.iter().map(|listener| listener.address).collect()
}

/// The listeners of the node file, or else those of the directory.
pub(crate) fn listeners(config: &Config, system: &System) -> Vec<Listener> {
    let written = config.listeners.clone();
    written.unwrap_or_else(|| listeners_of_directory(config, system))
}

/// Opens the directory that the node file names.
pub(crate) fn open_directory(source: &Source) -> Result<(Arc<dyn Directory>, Problems), Problems> {
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

/// Loads on a runtime of its own, which ends before the process goes into the background.
fn load_ldap(settings: ldap::Settings) -> Result<(LdapDirectory, Problems), Problems> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Problems::of_file(Path::new("tokio"), None, error.to_string()))?;
    let loaded = runtime.block_on(LdapDirectory::load(settings));
    // A name that cannot be resolved must not delay the start.
    runtime.shutdown_timeout(RUNTIME_END);
    loaded
}

/// How long the tasks that the reading of the directory has started may take to end.
const RUNTIME_END: Duration = Duration::from_secs(1);
