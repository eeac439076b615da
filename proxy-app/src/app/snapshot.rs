//! What runs: made from the node file and the directory as they are at one moment, immutable, replaced as a whole.
//!
//! A mail session keeps the snapshot that it began with; a web request takes the current one.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mail_directory::attributes::{self as a, Attribute};
use mail_directory::tls_words::reasons;
use mail_directory::yaml::{Problems, problem, warning};
use mail_directory::{System, View, secret_file};
use mail_proxy::throttle::ThrottleSettings;
use mail_proxy::{Mechanism, ServerRules, Settings, StartTls, Tell, imap, pop3};
use openssl::ssl::SslVersion;
use openssl::x509::X509;

use crate::app::certificates::cert_store;
use crate::app::throttle;
use crate::config::{Config, Source};
use crate::http::compression;
use crate::tls::certificate_store::{CertStore, SharedCertStore};
use crate::tls::ciphers::CipherList;
use crate::tls::client_certs::ClientCerts;
use crate::tls::profile::Profile;
use crate::tls::revocation::RevocationLists;
use crate::tls::upstream::UpstreamTrust;
use crate::tls::vhosts::{VirtualHost, VirtualHosts, warn_without_list};
use crate::tls::{Acceptors, TlsPolicy, TlsState};
use crate::upstream::connect::MailTransport;
use crate::upstream::dns::{DnsCache, IpMode};

/// Name and version of this program as it reports them.
pub(crate) const PRODUCT: (&str, &str) = ("Portico", env!("CARGO_PKG_VERSION"));

/// One running configuration.
pub(crate) struct Snapshot {
    /// Its number: 1 at start, one more with each change.
    pub generation: u64,
    /// The directory's entries at that moment.
    pub system: Arc<System>,
    /// How mail sessions are run.
    pub mail: Arc<Settings>,
    /// How long a client may take from accept to its credentials, where its listener sets no other time.
    pub login_deadline: Duration,
    /// STARTTLS policy for IMAP.
    pub imap_starttls: StartTls,
    /// STLS policy for POP3.
    pub pop3_starttls: StartTls,
    /// What becomes of clients whose logins fail too often.
    pub throttle: ThrottleSettings,
    /// How web requests are handled.
    pub web: WebPolicy,
    /// What authorities of clients have taken back.
    pub revoked: Arc<RevocationLists>,
    /// TLS towards clients.
    pub acceptors: Arc<Acceptors>,
    /// Sockets and TLS for mail sessions.
    pub transport: Arc<MailTransport>,
}

/// What the clear web port does (`zimbraReverseProxyMailMode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MailMode {
    /// It refuses.
    Https,
    /// It sends all clients to HTTPS.
    Redirect,
    /// It serves like the TLS port.
    Both,
}

/// How web requests are handled.
pub(crate) struct WebPolicy {
    /// The virtual hosts.
    pub vhosts: Arc<VirtualHosts>,
    /// What the clear port does.
    pub mode: MailMode,
    /// Port to send clients to (`zimbraMailSSLProxyPort`).
    pub https_port: u16,
    /// How long connecting to a server may take.
    pub connect_timeout: Duration,
    /// How long a server that owes an answer may be silent.
    pub read_timeout: Duration,
    /// How long a server may take no bytes.
    pub send_timeout: Duration,
    /// How long requests that wait for news may be silent.
    pub polling_timeout: Duration,
    /// Whether servers must prove their identity.
    pub upstream_verify: bool,
    /// Address families towards servers.
    pub ip_mode: IpMode,
    /// Which answers are compressed for the client.
    pub compression: compression::Rules,
    /// Whether clients see the name of a server's program.
    pub show_server: bool,
}

impl WebPolicy {
    /// The site that a request belongs to: by its host (in lower case, without port), else by the local address.
    pub(crate) fn vhost(&self, host: Option<&str>, local: IpAddr) -> &Arc<VirtualHost> {
        self.vhosts.of(host, local)
    }
}

/// A snapshot and what belongs to it.
pub(crate) struct Built {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// The certificates of the directory and the node file.
    pub certificates: CertStore,
    /// Warnings: what was left out, and why.
    pub warnings: Problems,
}

/// Builds what runs, as the successor of what ran previously.
///
/// # Errors
/// All problems that make the configuration unusable; a bad certificate of one domain is only a warning.
pub(crate) fn build(
    config: &Config,
    system: Arc<System>,
    dns: Arc<DnsCache>,
    certificates: &SharedCertStore,
    before: Option<&Snapshot>,
) -> Result<Built, Problems> {
    let mut problems = Problems::new();
    let node = system.node(&config.node);
    let old_vhosts = before.map(|before| before.web.vhosts.as_ref());
    let revoked = revocation_lists(config, before, &mut problems);
    let vhosts = VirtualHosts::build(&system, &config.node, &revoked, old_vhosts, &mut problems);
    let vhosts = Arc::new(vhosts);
    open_directory(config, &mut problems);
    let mut store = cert_store(config, &system, &node, &certificates.load(), &mut problems);
    store.vhosts = Some(vhosts.clone());
    store.mail_certs = mail_rules(config, &revoked, &mut problems);
    let policy = tls_policy(&node, &vhosts, &mut problems);
    let old_acceptors = before.map(|before| before.acceptors.clone());
    let state = old_acceptors.as_ref().map(|acceptors| acceptors.state().clone());
    let acceptors = old_acceptors.filter(|acceptors| acceptors.are_for(&policy));
    let acceptors = acceptors.or_else(|| acceptors_for(policy, certificates, state, &mut problems));
    let parts = tls_parts(config, acceptors, &mut problems);
    let Some((acceptors, trust)) = parts.filter(|_| !problems.has_errors()) else {
        return Err(problems);
    };
    let ip_mode = ip_mode(&node);
    let throttle = throttle::settings(&config.throttle, &node, &mut problems);
    let mail = mail_settings(config, &system, &node, before, &mut problems);
    exposed_master(config, &system, &node, &mail, &mut problems);
    let snapshot = Snapshot {
        throttle,
        generation: before.map_or(1, |before| before.generation + 1),
        revoked,
        mail: Arc::new(mail),
        login_deadline: config.mail.login_deadline,
        imap_starttls: starttls(&node, &a::REVERSE_PROXY_IMAP_START_TLS_MODE),
        pop3_starttls: starttls(&node, &a::REVERSE_PROXY_POP3_START_TLS_MODE),
        web: WebPolicy {
            vhosts,
            mode: mail_mode(&node),
            https_port: node.port(&a::MAIL_SSL_PROXY_PORT).unwrap_or(443),
            connect_timeout: node.duration(&a::REVERSE_PROXY_UPSTREAM_CONNECT_TIMEOUT),
            read_timeout: node.duration(&a::REVERSE_PROXY_UPSTREAM_READ_TIMEOUT),
            send_timeout: node.duration(&a::REVERSE_PROXY_UPSTREAM_SEND_TIMEOUT),
            polling_timeout: node.duration(&a::REVERSE_PROXY_UPSTREAM_POLLING_TIMEOUT),
            upstream_verify: config.tls.upstream_verify,
            ip_mode,
            compression: compression::Rules {
                enabled: node.flag(&a::HTTP_COMPRESSION_ENABLED),
                authenticated: config.web.compress_authenticated,
            },
            show_server: config.web.show_server,
        },
        transport: Arc::new(MailTransport {
            acceptors: acceptors.clone(),
            trust,
            dns,
            ip_mode,
            returns: before
                .map(|before| before.transport.returns.clone())
                .unwrap_or_default(),
            pace: config.mail.return_pace,
        }),
        acceptors,
        system,
    };
    Ok(Built {
        snapshot,
        certificates: store,
        warnings: problems,
    })
}

/// The lists of `tls.client_crl_file`: read again where the file has changed, the previous ones where it cannot be used.
fn revocation_lists(config: &Config, before: Option<&Snapshot>, problems: &mut Problems) -> Arc<RevocationLists> {
    const KEY: &str = "tls.client_crl_file";
    let path = config.tls.client_crl_file.as_deref();
    let before = before.map(|before| &before.revoked);
    let lists = match (path, before) {
        (None, _) => Arc::default(),
        (Some(path), Some(before)) if before.are_current(Some(path)) => before.clone(),
        (Some(path), before) => match (RevocationLists::read(path), before.filter(|before| before.are_of(path))) {
            (Ok(lists), _) => Arc::new(lists),
            (Err(error), Some(before)) => {
                let message = format!("{}: {error}; the previous lists stay in force", path.display());
                problems.push(warning(KEY.to_owned(), message));
                Arc::new(before.kept(path))
            }
            (Err(error), None) => {
                problems.push(problem(KEY, format!("{}: {error}", path.display())));
                Arc::default()
            }
        },
    };
    for issuer in lists.over() {
        problems.push(warning(KEY.to_owned(), is_over(&issuer)));
    }
    lists
}

/// What it means that the list of an issuer is over.
pub(crate) fn is_over(issuer: &str) -> String {
    format!("the list of {issuer} is over: no certificate of this authority is good before a newer list is there")
}

/// The rules of mail listeners for certificates of clients, where they are logins.
fn mail_rules(config: &Config, revoked: &Arc<RevocationLists>, problems: &mut Problems) -> Option<Arc<ClientCerts>> {
    let rules = config.mail.external.clone().filter(|_| config.mail.master.is_some())?;
    let rules = rules.as_ref().clone().with_lists(revoked);
    warn_without_list(&rules, problems);
    Some(Arc::new(rules))
}

type TlsParts = (Arc<Acceptors>, Arc<UpstreamTrust>);

/// Makes new acceptors, which go on with the state of the previous ones.
fn acceptors_for(
    policy: TlsPolicy,
    certificates: &SharedCertStore,
    state: Option<TlsState>,
    problems: &mut Problems,
) -> Option<Arc<Acceptors>> {
    let state = state.unwrap_or_default();
    let acceptors = Acceptors::new(certificates, policy.clone(), state.clone()).or_else(|error| {
        // Each cipher has been tried already; to be sure.
        let message = format!(
            "{}; the ciphers that Portico chooses are used",
            reasons(&error.to_string())
        );
        problems.push(warning(a::REVERSE_PROXY_SSL_CIPHERS.name.to_owned(), message));
        let (min, max) = (policy.profile.min, policy.profile.max);
        let profile = Arc::new(Profile {
            min,
            max,
            ciphers: None,
        });
        Acceptors::new(certificates, TlsPolicy { profile, ..policy }, state)
    });
    acceptors
        .map(Arc::new)
        .map_err(|error| problems.push(problem("zimbraReverseProxySSLProtocols", reasons(&error.to_string()))))
        .ok()
}

fn tls_parts(config: &Config, acceptors: Option<Arc<Acceptors>>, problems: &mut Problems) -> Option<TlsParts> {
    let ca_file = config.tls.upstream_ca_file.as_deref();
    let own = config.tls.upstream_own.as_ref();
    let own = own.map(|(certificate, key)| (certificate.as_path(), key.as_path()));
    // Most often it is the certificate: the file of authorities is looked at by itself.
    let key = if own.is_some() {
        "tls.upstream_certificate"
    } else {
        "tls.upstream_ca_file"
    };
    let (verify, oldest) = (config.tls.upstream_verify, config.tls.upstream_min_version);
    let trust = UpstreamTrust::with_version(ca_file, verify, own, oldest)
        .map_err(|error| problems.push(problem(key, reasons(&error.to_string()))))
        .ok();
    if let Some(path) = ca_file {
        check_authorities(path, problems);
    }
    Some((acceptors?, Arc::new(trust?)))
}

/// The file must hold certificates: without one no server could prove its identity.
fn check_authorities(path: &Path, problems: &mut Problems) {
    let read = std::fs::read(path).map_err(anyhow::Error::from);
    match read.and_then(|pem| Ok(X509::stack_from_pem(&pem)?)) {
        Ok(certificates) if !certificates.is_empty() => {}
        Ok(_) => problems.push(problem(
            "tls.upstream_ca_file",
            format!("{} holds no certificate", path.display()),
        )),
        Err(error) => {
            let why = error.to_string();
            problems.push(problem(
                "tls.upstream_ca_file",
                format!("{}: {}", path.display(), reasons(&why)),
            ));
        }
    }
}

/// Warns where a directory file holds a private key and any user of the machine may read it.
fn open_directory(config: &Config, problems: &mut Problems) {
    let Source::Yaml(path) = &config.directory.source else {
        return;
    };
    let Some(message) = secret_file::warning(path) else {
        return;
    };
    let text = std::fs::read_to_string(path).unwrap_or_default();
    if text.contains(secret_file::PRIVATE_KEY) {
        problems.push(warning(
            "directory.yaml.path".to_owned(),
            format!("{message}, with a private key in it"),
        ));
    }
}

fn tls_policy(node: &View<'_>, vhosts: &VirtualHosts, problems: &mut Problems) -> TlsPolicy {
    let versions: Vec<SslVersion> = node
        .list(&a::REVERSE_PROXY_SSL_PROTOCOLS)
        .iter()
        .flat_map(|value| value.split_whitespace())
        .filter_map(|name| match name {
            "TLSv1" => Some(SslVersion::TLS1),
            "TLSv1.1" => Some(SslVersion::TLS1_1),
            "TLSv1.2" => Some(SslVersion::TLS1_2),
            "TLSv1.3" => Some(SslVersion::TLS1_3),
            _ => None,
        })
        .collect();
    let by_age = |version: &&SslVersion| age(**version);
    let profile = Profile {
        min: versions
            .iter()
            .min_by_key(by_age)
            .copied()
            .unwrap_or(SslVersion::TLS1_2),
        max: versions
            .iter()
            .max_by_key(by_age)
            .copied()
            .unwrap_or(SslVersion::TLS1_3),
        ciphers: ciphers(node, problems),
    };
    TlsPolicy {
        profile: Arc::new(profile),
        rules: vhosts.rules(),
    }
}

/// The ciphers of the directory, as far as they are honoured; `None` for those that Portico chooses.
fn ciphers(node: &View<'_>, problems: &mut Problems) -> Option<String> {
    let attribute = &a::REVERSE_PROXY_SSL_CIPHERS;
    let list = CipherList::read(node.text(attribute)?);
    let chosen = "the ciphers that Portico chooses are used";
    let message = match (list.warning(), &list.honoured) {
        (None, Some(_)) => return list.honoured,
        (Some(why), Some(_)) => why,
        (Some(why), None) => format!("{why}; {chosen}"),
        (None, None) => format!("no cipher is left; {chosen}"),
    };
    problems.push(warning(attribute.name.to_owned(), message));
    list.honoured
}

fn age(version: SslVersion) -> u8 {
    match version {
        SslVersion::TLS1 => 0,
        SslVersion::TLS1_1 => 1,
        SslVersion::TLS1_2 => 2,
        _ => 3,
    }
}

/// Whether a list has the values that every directory is installed with, in any order: then nobody has chosen it.
fn is_as_shipped(node: &View<'_>, attribute: &Attribute) -> bool {
    let list = node.list(attribute);
    list.len() == attribute.default.len() && attribute.default.iter().all(|value| list.contains(value))
}

/// What the directory says that its servers are told of clients.
fn told_servers(system: &System, problems: &mut Problems) -> HashMap<Arc<str>, Tell> {
    let mut told = HashMap::new();
    for server in system.servers() {
        let words = server.list(&a::PORTICO_SERVER_TELL);
        if words.is_empty() {
            continue;
        }
        match Tell::of_words(words) {
            Ok(tell) => {
                told.insert(server.name().to_ascii_lowercase().into(), tell);
            }
            Err(why) => {
                let key = format!("{} of {}", a::PORTICO_SERVER_TELL.name, server.name());
                problems.push(warning(key, format!("{why}; it has no effect")));
            }
        }
    }
    told
}

/// Warns where the password of the master user, which opens every mailbox, is said to servers that have not proved who
/// they are.
fn exposed_master(config: &Config, system: &System, node: &View<'_>, mail: &Settings, problems: &mut Problems) {
    if mail.master.is_none() {
        return;
    }
    let mut warn = |message: String| problems.push(warning("mail.master".to_owned(), message));
    if !config.tls.upstream_verify {
        warn(
            "its password goes to servers whose certificates are not checked: tls.upstream_verify is false".to_owned(),
        );
    }
    if node.flag(&a::REVERSE_PROXY_SSL_TO_UPSTREAM_ENABLED) {
        return;
    }
    let is_clear =
        |server: &View<'_>| !server.flag(&a::PORTICO_SERVER_START_TLS) && !mail.servers.starttls_at(server.name());
    if let Some(server) = system.mailbox_servers().find(is_clear) {
        warn(format!(
            "its password goes over the network in clear text, as to {}: zimbraReverseProxySSLToUpstreamEnabled is FALSE",
            server.name()
        ));
    }
}

fn mail_settings(
    config: &Config,
    system: &System,
    node: &View<'_>,
    before: Option<&Snapshot>,
    problems: &mut Problems,
) -> Settings {
    let (name, version) = PRODUCT;
    let (imap_default, pop3_default) = (imap::Settings::default(), pop3::Settings::default());
    let imap_plain = node.flag(&a::REVERSE_PROXY_IMAP_SASL_PLAIN_ENABLED);
    let pop3_plain = node.flag(&a::REVERSE_PROXY_POP3_SASL_PLAIN_ENABLED);
    let mechanisms = |plain| {
        let mut offered = config.mail.mechanisms;
        if plain {
            offered.insert(Mechanism::SaslPlain);
            offered.insert(Mechanism::SaslLogin);
        }
        offered
    };
    let limits = |plain| mail_proxy::LoginLimits {
        mechanisms: mechanisms(plain),
        max_errors: config.mail.max_bad_commands,
        max_logins: config.mail.max_logins,
    };
    let owned = |list: Vec<&str>| list.into_iter().map(str::to_owned).collect::<Vec<_>>();
    let imap_banner = node.flag(&a::REVERSE_PROXY_IMAP_EXPOSE_VERSION_ON_BANNER);
    let pop3_banner = node.flag(&a::REVERSE_PROXY_POP3_EXPOSE_VERSION_ON_BANNER);
    Settings {
        imap: Arc::new(imap::Settings {
            greeting: if imap_banner {
                format!("{name} {version} IMAP4 ready")
            } else {
                imap_default.greeting
            },
            shows_learned: is_as_shipped(node, &a::REVERSE_PROXY_IMAP_ENABLED_CAPABILITY),
            capabilities: owned(node.list(&a::REVERSE_PROXY_IMAP_ENABLED_CAPABILITY)),
            learned: before
                .map(|before| before.mail.imap.learned.clone())
                .unwrap_or(imap_default.learned),
            limits: limits(imap_plain),
            id: vec![
                ("NAME".to_owned(), name.to_owned()),
                ("VERSION".to_owned(), version.to_owned()),
            ],
        }),
        pop3: Arc::new(pop3::Settings {
            greeting: if pop3_banner {
                format!("{name} {version} POP3 ready")
            } else {
                pop3_default.greeting
            },
            shows_learned: is_as_shipped(node, &a::REVERSE_PROXY_POP3_ENABLED_CAPABILITY),
            capabilities: owned(node.list(&a::REVERSE_PROXY_POP3_ENABLED_CAPABILITY)),
            learned: before
                .map(|before| before.mail.pop3.learned.clone())
                .unwrap_or(pop3_default.learned),
            limits: limits(pop3_plain),
        }),
        imap_idle: config.mail.imap_idle,
        pop3_idle: config.mail.pop3_idle,
        auth_wait: node.duration(&a::REVERSE_PROXY_AUTH_WAIT_INTERVAL),
        hold_wait: config.mail.hold_wait,
        hold_text: config.mail.hold_text.clone(),
        upstream_login: node
            .duration(&a::REVERSE_PROXY_CONNECT_TIMEOUT)
            .min(config.mail.server_login_timeout),
        pass_errors: node.flag(&a::REVERSE_PROXY_PASS_ERRORS),
        send_imap_id: node.flag(&a::REVERSE_PROXY_SEND_IMAP_ID),
        send_pop3_xoip: node.flag(&a::REVERSE_PROXY_SEND_POP3_XOIP),
        known: before.map(|before| before.mail.known.clone()).unwrap_or_default(),
        servers: Arc::new(ServerRules {
            rules: config.mail.servers.clone(),
            directory: told_servers(system, problems),
        }),
        master: config.mail.master.clone().filter(|_| config.mail.external.is_some()),
        decoys: before.map(|before| before.mail.decoys.clone()).unwrap_or_default(),
        product: (name.to_owned(), version.to_owned()),
    }
}

fn starttls(node: &View<'_>, attribute: &Attribute) -> StartTls {
    match node.choice(attribute) {
        "off" => StartTls::Off,
        "on" => StartTls::On,
        _ => StartTls::Only,
    }
}

pub(crate) fn mail_mode(node: &View<'_>) -> MailMode {
    match node.choice(&a::REVERSE_PROXY_MAIL_MODE) {
        "https" => MailMode::Https,
        "both" => MailMode::Both,
        _ => MailMode::Redirect,
    }
}

pub(crate) fn ip_mode(node: &View<'_>) -> IpMode {
    match node.choice(&a::IP_MODE) {
        "ipv6" => IpMode::V6,
        "both" => IpMode::Both,
        _ => IpMode::V4,
    }
}
