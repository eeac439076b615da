//! What runs: made from the node file and the directory as they are at one moment, immutable, swapped whole.
//!
//! A mail session keeps the snapshot it was born with; a web request takes the one of its moment.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mail_directory::System;
use mail_directory::View;
use mail_directory::attributes as a;
use mail_directory::secret_file;
use mail_directory::yaml::{Problem, Problems, Severity};
use mail_proxy::{Settings, StartTls, imap, pop3};
use openssl::ssl::SslVersion;
use openssl::x509::X509;
use route_cache::Service;

use crate::config::{Config, Listener, ListenerTls, Serve, Source};
use crate::http::compression;
use crate::tls::vhosts::{Site, Sites};
use crate::tls::{Acceptors, CertKey, CertStore, Certificates, TlsPolicy, UpstreamTrust};
use crate::upstream::connect::MailTransport;
use crate::upstream::dns::{IpMode, Names};

/// Name and version as this program tells them.
pub const PRODUCT: (&str, &str) = ("Portico", env!("CARGO_PKG_VERSION"));

/// One running configuration.
pub struct Snapshot {
    /// Its number: 1 at start, one more with each change.
    pub generation: u64,
    /// The directory's entries, as they were.
    pub system: Arc<System>,
    /// How mail sessions are run.
    pub mail: Arc<Settings>,
    /// How long a client may take from accept to its credentials, where its listener has no rule of its own.
    pub login_deadline: Duration,
    /// STARTTLS policy for IMAP.
    pub imap_starttls: StartTls,
    /// STLS policy for POP3.
    pub pop3_starttls: StartTls,
    /// How web requests are handled.
    pub web: WebPolicy,
    /// TLS towards clients.
    pub acceptors: Arc<Acceptors>,
    /// Sockets and TLS for mail sessions.
    pub transport: Arc<MailTransport>,
}

/// What the clear web port does (`zimbraReverseProxyMailMode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MailMode {
    /// It refuses.
    Https,
    /// It sends everybody to HTTPS.
    Redirect,
    /// It serves like the TLS port.
    Both,
}

/// How web requests are handled.
pub struct WebPolicy {
    /// The virtual hosts.
    pub sites: Arc<Sites>,
    /// What the clear port does.
    pub mode: MailMode,
    /// Port to send clients to (`zimbraMailSSLProxyPort`).
    pub https_port: u16,
    /// Connecting to a server.
    pub connect_timeout: Duration,
    /// Silence of a server that owes an answer.
    pub read_timeout: Duration,
    /// A server that takes no bytes.
    pub send_timeout: Duration,
    /// Silence on requests that wait for news.
    pub polling_timeout: Duration,
    /// Authorities that sign the servers' certificates; `None`: the system's.
    pub upstream_ca: Option<Arc<Box<[X509]>>>,
    /// Whether servers must prove who they are.
    pub upstream_verify: bool,
    /// Address families towards servers.
    pub ip_mode: IpMode,
    /// Which answers are compressed for the client.
    pub compression: compression::Rules,
    /// Whether clients see which program a server is.
    pub show_server: bool,
}

impl WebPolicy {
    /// The site that a request belongs to: by its host (in lower case, without port), else by the local address.
    pub fn site(&self, host: Option<&str>, local: IpAddr) -> &Arc<Site> {
        self.sites.of(host, local)
    }
}

/// A snapshot and what goes with it.
pub struct Built {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// The certificates of the directory and the node file.
    pub certificates: CertStore,
    /// Warnings: what was left out, and why.
    pub warnings: Problems,
}

/// Builds what runs, to follow on what ran before.
///
/// # Errors
/// All problems that make the configuration unusable; a bad certificate of one domain is only a warning.
pub fn build(
    config: &Config,
    system: Arc<System>,
    names: Arc<Names>,
    certificates: &Certificates,
    before: Option<&Snapshot>,
) -> Result<Built, Problems> {
    let mut problems = Problems::new();
    let node = system.node(&config.node);
    let old_sites = before.map(|before| before.web.sites.as_ref());
    let sites = Arc::new(Sites::build(&system, &config.node, old_sites, &mut problems));
    open_directory(config, &mut problems);
    let mut store = cert_store(config, &system, &node, &certificates.load(), &mut problems);
    store.sites = Some(sites.clone());
    let policy = tls_policy(&node, &sites);
    let old_acceptors = before.map(|before| before.acceptors.clone());
    let acceptors = old_acceptors.filter(|acceptors| acceptors.are_for(&policy));
    let acceptors = acceptors.or_else(|| acceptors_for(policy, certificates, &mut problems));
    let parts = tls_parts(config, acceptors, &mut problems);
    let Some((acceptors, trust, upstream_ca)) = parts.filter(|_| !problems.has_errors()) else {
        return Err(problems);
    };
    let ip_mode = ip_mode(&node);
    let snapshot = Snapshot {
        generation: before.map_or(1, |before| before.generation + 1),
        mail: Arc::new(mail_settings(config, &node)),
        login_deadline: config.mail.login_deadline,
        imap_starttls: starttls(&node, &a::REVERSE_PROXY_IMAP_START_TLS_MODE),
        pop3_starttls: starttls(&node, &a::REVERSE_PROXY_POP3_START_TLS_MODE),
        web: WebPolicy {
            sites,
            mode: mail_mode(&node),
            https_port: node.port(&a::MAIL_SSL_PROXY_PORT).unwrap_or(443),
            connect_timeout: node.duration(&a::REVERSE_PROXY_UPSTREAM_CONNECT_TIMEOUT),
            read_timeout: node.duration(&a::REVERSE_PROXY_UPSTREAM_READ_TIMEOUT),
            send_timeout: node.duration(&a::REVERSE_PROXY_UPSTREAM_SEND_TIMEOUT),
            polling_timeout: node.duration(&a::REVERSE_PROXY_UPSTREAM_POLLING_TIMEOUT),
            upstream_ca,
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
            names,
            ip_mode,
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

type TlsParts = (Arc<Acceptors>, Arc<UpstreamTrust>, Option<Arc<Box<[X509]>>>);

/// New acceptors: sessions that were begun with the ones before are not resumed.
fn acceptors_for(policy: TlsPolicy, certificates: &Certificates, problems: &mut Problems) -> Option<Arc<Acceptors>> {
    let acceptors = Acceptors::new(certificates, policy.clone()).or_else(|error| {
        let message = format!("{error}; the ciphers that Portico chooses are used");
        problems.push(warning("zimbraReverseProxySSLCiphers".to_owned(), message));
        let ciphers = None;
        Acceptors::new(certificates, TlsPolicy { ciphers, ..policy })
    });
    acceptors
        .map(Arc::new)
        .map_err(|error| problems.push(problem("zimbraReverseProxySSLProtocols", error)))
        .ok()
}

fn tls_parts(config: &Config, acceptors: Option<Arc<Acceptors>>, problems: &mut Problems) -> Option<TlsParts> {
    let ca_file = config.tls.upstream_ca_file.as_deref();
    let trust = UpstreamTrust::new(ca_file, config.tls.upstream_verify)
        .map_err(|error| problems.push(problem("tls.upstream_ca_file", error)))
        .ok();
    let upstream_ca = ca_file.and_then(|path| authorities(path, problems));
    Some((acceptors?, Arc::new(trust?), upstream_ca))
}

fn authorities(path: &Path, problems: &mut Problems) -> Option<Arc<Box<[X509]>>> {
    let read = std::fs::read(path).map_err(anyhow::Error::from);
    match read.and_then(|pem| Ok(X509::stack_from_pem(&pem)?)) {
        Ok(certificates) if !certificates.is_empty() => Some(Arc::new(certificates.into())),
        Ok(_) => {
            problems.push(problem(
                "tls.upstream_ca_file",
                format!("{} holds no certificate", path.display()),
            ));
            None
        }
        Err(error) => {
            problems.push(problem("tls.upstream_ca_file", format!("{}: {error}", path.display())));
            None
        }
    }
}

/// An error that belongs to a key and not to a line.
pub(crate) fn problem(key: &str, message: impl ToString) -> Problem {
    Problem {
        file: None,
        line: None,
        key: key.to_owned(),
        message: message.to_string(),
        severity: Severity::Error,
    }
}

pub(crate) fn warning(key: String, message: impl ToString) -> Problem {
    Problem {
        file: None,
        line: None,
        key,
        message: message.to_string(),
        severity: Severity::Warning,
    }
}

/// The default certificate, and those of the domains under all their virtual host names. A pair of the directory
/// that cannot be used is left out, with a warning: the one before stays, and where there was none the default is
/// shown.
fn cert_store(
    config: &Config,
    system: &System,
    node: &View<'_>,
    before: &CertStore,
    problems: &mut Problems,
) -> CertStore {
    let mut store = CertStore::new(default_certificate(config, node, before, problems));
    for domain in system.domains() {
        let key = format!("domains.{}.zimbraSSLCertificate", domain.name());
        let fresh = own_pair(&domain).transpose().map(|pair| pair.map(Arc::new));
        if let Some(Err(why)) = &fresh {
            store.note_fault(domain.name(), why.clone());
        }
        let pair = usable(fresh, before.of_domain(domain.name()), key, problems);
        let names: Vec<&str> = domain.list(&a::VIRTUAL_HOSTNAME);
        let uncovered = pair.iter().flat_map(|pair| pair.uncovered(names.iter().copied()));
        for name in uncovered {
            problems.push(warning(
                format!("domains.{}", domain.name()),
                format!("its certificate is not good for {name}"),
            ));
        }
        // Without a certificate, too: what is this domain's is no other's.
        for name in names {
            store.add(name, pair.clone());
        }
        for address in domain.addresses(&a::VIRTUAL_IP_ADDRESS) {
            store.add_address(address, pair.clone());
        }
        if let Some(pair) = pair {
            store.keep(domain.name(), pair);
        }
    }
    store
}

/// Says where a directory file holds a private key and everybody may read it.
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

/// The certificate and key of an entry, if it has them.
fn own_pair(entry: &View<'_>) -> Result<Option<CertKey>, String> {
    match (entry.text(&a::SSL_CERTIFICATE), entry.text(&a::SSL_PRIVATE_KEY)) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => {
            let pair = CertKey::from_pem(certificate.as_bytes(), key.as_bytes()).map_err(|error| error.to_string())?;
            match pair.expired() {
                Some(when) => Err(format!("the certificate expired on {when}")),
                None => Ok(Some(pair)),
            }
        }
        _ => Err("there is a certificate without a key, or a key without a certificate".to_owned()),
    }
}

/// What an entry has, or if that cannot be used what it had before.
fn usable(
    fresh: Option<Result<Arc<CertKey>, String>>,
    before: Option<Arc<CertKey>>,
    key: String,
    problems: &mut Problems,
) -> Option<Arc<CertKey>> {
    match (fresh?, before) {
        (Ok(pair), _) => Some(pair),
        (Err(error), None) => {
            problems.push(warning(key, error));
            None
        }
        (Err(error), before) => {
            problems.push(warning(key, format!("{error}; the certificate before stays in use")));
            before
        }
    }
}

fn default_certificate(
    config: &Config,
    node: &View<'_>,
    before: &CertStore,
    problems: &mut Problems,
) -> Option<Arc<CertKey>> {
    let Some((certificate, key)) = &config.tls.default else {
        let fresh = own_pair(node).transpose().map(|pair| pair.map(Arc::new));
        return usable(
            fresh,
            before.default.clone(),
            "zimbraSSLCertificate of the node".to_owned(),
            problems,
        );
    };
    let read = |path: &Path| std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
    let pair = match (read(certificate), read(key)) {
        (Ok(certificate), Ok(key)) => CertKey::from_pem(&certificate, &key),
        (certificate, key) => {
            for error in [certificate.err(), key.err()].into_iter().flatten() {
                problems.push(problem("tls", error));
            }
            return None;
        }
    };
    let pair = pair
        .map_err(|error| problems.push(problem("tls.certificate", error)))
        .ok()?;
    if let Some(message) = secret_file::warning(key) {
        problems.push(warning("tls.key".to_owned(), message));
    }
    if let Some(when) = pair.expired() {
        // Users can click a warning away; they cannot read mail at a door that does not open.
        problems.push(warning("tls.certificate".to_owned(), format!("expired on {when}")));
    }
    Some(Arc::new(pair))
}

fn tls_policy(node: &View<'_>, sites: &Sites) -> TlsPolicy {
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
    // OpenSSL's numbers grow with the versions.
    let by_age = |version: &&SslVersion| age(**version);
    TlsPolicy {
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
        ciphers: node.text(&a::REVERSE_PROXY_SSL_CIPHERS).map(str::to_owned),
        rules: sites.rules(),
    }
}

fn age(version: SslVersion) -> u8 {
    match version {
        SslVersion::TLS1 => 0,
        SslVersion::TLS1_1 => 1,
        SslVersion::TLS1_2 => 2,
        _ => 3,
    }
}

fn mail_settings(config: &Config, node: &View<'_>) -> Settings {
    let (name, version) = PRODUCT;
    let (imap_default, pop3_default) = (imap::Settings::default(), pop3::Settings::default());
    let imap_plain = node.flag(&a::REVERSE_PROXY_IMAP_SASL_PLAIN_ENABLED);
    let pop3_plain = node.flag(&a::REVERSE_PROXY_POP3_SASL_PLAIN_ENABLED);
    let owned = |list: Vec<&str>| list.into_iter().map(str::to_owned).collect::<Vec<_>>();
    let imap_banner = node.flag(&a::REVERSE_PROXY_IMAP_EXPOSE_VERSION_ON_BANNER);
    let pop3_banner = node.flag(&a::REVERSE_PROXY_POP3_EXPOSE_VERSION_ON_BANNER);
    Settings {
        imap: Arc::new(imap::Settings {
            greeting: if imap_banner {
                format!("{name} {version} IMAP4 ready")
            } else {
                imap_default.greeting.clone()
            },
            capabilities: owned(node.list(&a::REVERSE_PROXY_IMAP_ENABLED_CAPABILITY)),
            sasl_plain: imap_plain,
            sasl_login: imap_plain,
            id: vec![
                ("NAME".to_owned(), name.to_owned()),
                ("VERSION".to_owned(), version.to_owned()),
            ],
            max_errors: config.mail.max_bad_commands,
            max_logins: config.mail.max_logins,
        }),
        pop3: Arc::new(pop3::Settings {
            greeting: if pop3_banner {
                format!("{name} {version} POP3 ready")
            } else {
                pop3_default.greeting.clone()
            },
            capabilities: owned(node.list(&a::REVERSE_PROXY_POP3_ENABLED_CAPABILITY)),
            sasl_plain: pop3_plain,
            sasl_login: pop3_plain,
            max_errors: config.mail.max_bad_commands,
            max_logins: config.mail.max_logins,
        }),
        imap_idle: config.mail.imap_idle,
        pop3_idle: config.mail.pop3_idle,
        auth_wait: node.duration(&a::REVERSE_PROXY_AUTH_WAIT_INTERVAL),
        upstream_login: node.duration(&a::REVERSE_PROXY_CONNECT_TIMEOUT),
        pass_errors: node.flag(&a::REVERSE_PROXY_PASS_ERRORS),
        send_imap_id: node.flag(&a::REVERSE_PROXY_SEND_IMAP_ID),
        send_pop3_xoip: node.flag(&a::REVERSE_PROXY_SEND_POP3_XOIP),
        product: (name.to_owned(), version.to_owned()),
    }
}

fn starttls(node: &View<'_>, attribute: &a::Attribute) -> StartTls {
    match node.choice(attribute) {
        "off" => StartTls::Off,
        "on" => StartTls::On,
        _ => StartTls::Only,
    }
}

fn mail_mode(node: &View<'_>) -> MailMode {
    match node.choice(&a::REVERSE_PROXY_MAIL_MODE) {
        "https" => MailMode::Https,
        "both" => MailMode::Both,
        _ => MailMode::Redirect,
    }
}

fn ip_mode(node: &View<'_>) -> IpMode {
    match node.choice(&a::IP_MODE) {
        "ipv6" => IpMode::V6,
        "both" => IpMode::Both,
        _ => IpMode::V4,
    }
}

/// The listeners of a node whose file names none, from the directory's switches and ports (MAIL §6.1, HTTP §1.1).
pub fn listeners_of_directory(config: &Config, system: &System) -> Vec<Listener> {
    let node = system.node(&config.node);
    let web = node.flag(&a::REVERSE_PROXY_HTTP_ENABLED);
    let mail = node.flag(&a::REVERSE_PROXY_MAIL_ENABLED);
    let table = [
        (
            web && mail_mode(&node) != MailMode::Https,
            &a::MAIL_PROXY_PORT,
            Serve::Web,
            ListenerTls::Off,
        ),
        (web, &a::MAIL_SSL_PROXY_PORT, Serve::Web, ListenerTls::Implicit),
        (
            mail && node.flag(&a::REVERSE_PROXY_MAIL_IMAP_ENABLED),
            &a::IMAP_PROXY_BIND_PORT,
            Serve::Imap,
            ListenerTls::StartTls,
        ),
        (
            mail && node.flag(&a::REVERSE_PROXY_MAIL_IMAPS_ENABLED),
            &a::IMAP_SSL_PROXY_BIND_PORT,
            Serve::Imap,
            ListenerTls::Implicit,
        ),
        (
            mail && node.flag(&a::REVERSE_PROXY_MAIL_POP3_ENABLED),
            &a::POP3_PROXY_BIND_PORT,
            Serve::Pop3,
            ListenerTls::StartTls,
        ),
        (
            mail && node.flag(&a::REVERSE_PROXY_MAIL_POP3S_ENABLED),
            &a::POP3_SSL_PROXY_BIND_PORT,
            Serve::Pop3,
            ListenerTls::Implicit,
        ),
        (
            web,
            &a::CARBONIO_ADMIN_PROXY_PORT,
            Serve::AdminConsole,
            ListenerTls::Implicit,
        ),
        (
            web && signs_on(config, &node, system),
            &a::MAIL_SSL_PROXY_CLIENT_CERT_PORT,
            Serve::Sso,
            ListenerTls::Implicit,
        ),
    ];
    let addresses: &[IpAddr] = match ip_mode(&node) {
        IpMode::V4 => &[IpAddr::V4(Ipv4Addr::UNSPECIFIED)],
        IpMode::V6 => &[IpAddr::V6(Ipv6Addr::UNSPECIFIED)],
        IpMode::Both => &[IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)],
    };
    let ports = table
        .iter()
        .filter(|row| row.0)
        .filter_map(|row| Some((node.port(row.1)?, row.2, row.3)));
    ports
        .flat_map(|(port, serve, tls)| {
            addresses.iter().map(move |ip| Listener {
                address: SocketAddr::new(*ip, port),
                serve,
                tls,
                proxy_trusted: None,
                starttls: None,
                login_deadline: None,
                allow: None,
                stream: None,
            })
        })
        .collect()
}

/// Whether certificates are asked for somewhere, and somebody can say whose they are (HTTP §5.6).
fn signs_on(config: &Config, node: &View<'_>, system: &System) -> bool {
    let asks = |entry: &View<'_>| entry.choice(&a::REVERSE_PROXY_CLIENT_CERT_MODE) != "off";
    let is_told = config.lookup.as_ref().is_some_and(|lookup| lookup.admin.is_some());
    is_told && (asks(node) || system.domains().any(|domain| asks(&domain)))
}

/// The service that a listener's web requests want.
pub fn web_service(admin: bool) -> Service {
    if admin { Service::Admin } else { Service::Web }
}
