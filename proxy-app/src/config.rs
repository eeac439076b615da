//! The node file: what was written, read strictly. All problems are reported at once, each with its key and line.
//!
//! A [`Config`] only says what the file says. What runs is a snapshot, made from it and the directory.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use mail_directory::yaml::{Document, Mapping, Node, Problems};
use mail_directory::{Secret, ldap, secret_file};
use mail_proxy::StartTls;
use pingora::server::configuration::ServerConf;
use route_cache::lookup::certauth::NodeLogin;
use route_cache::lookup::{Dialect, HandlerUrl};

use route_cache::HostPort;

use crate::node::limits::LimitsConfig;
use crate::node::logs::Target;

/// Pingora hands at most this many listening sockets to the process that replaces it; above that the new process
/// dies while the old one stops all the same.
const MAX_LISTENERS: usize = 32;
/// And the names of those sockets, joined with blanks, must fit here with some room to spare.
const MAX_LISTENER_NAMES: usize = 1900;

/// Shortest admin token: nobody guesses 16 letters in the life of a node.
const MIN_TOKEN: usize = 16;

/// Most memcached servers: each may cost a login some waiting.
const MAX_MEMCACHED: usize = 16;
/// The same for lookup services.
pub const MAX_HANDLERS: usize = 16;
/// As whom Zimbra's proxy asks for tokens.
const ADMIN_USER: &str = "zmnginx";

/// Most upstreams of a stream listener: each may cost a connection some waiting.
const MAX_UPSTREAMS: usize = 8;
/// How long a stream may be silent: XMPP clients that save power speak a few times an hour.
const STREAM_IDLE: Duration = Duration::from_secs(3600);

/// How often changes of the directory are looked for, and how often at most: a look is a question to the server.
const POLL: Duration = Duration::from_secs(5);
const MIN_POLL: Duration = Duration::from_millis(100);
/// Where the last good reading of an LDAP directory is kept. Not beside the pid file, which may lie in a folder that
/// everybody can write or that is empty after a boot: it is for starting then.
const SNAPSHOT: &str = "/var/lib/portico/directory.snapshot";

/// A node file.
#[derive(Debug)]
pub struct Config {
    /// Pingora's own settings.
    pub server: ServerConf,
    /// Name of this node's server entry in the directory.
    pub node: String,
    /// Where the directory is.
    pub directory: DirectoryConfig,
    /// Services to ask for routes instead of reading accounts.
    pub lookup: Option<LookupConfig>,
    /// The route cache.
    pub route_cache: RouteCacheConfig,
    /// The listeners, or `None`: made from the directory's port attributes.
    pub listeners: Option<Vec<Listener>>,
    /// Certificates and trust.
    pub tls: TlsConfig,
    /// How many connections may wait.
    pub limits: LimitsConfig,
    /// Mail sessions.
    pub mail: MailConfig,
    /// The web side.
    pub web: WebConfig,
    /// Logs.
    pub log: LogConfig,
    /// The admin API.
    pub admin: AdminConfig,
    /// How the process ends.
    pub ends: Ends,
    /// The file as it was written, to see what has changed.
    pub written: serde_yaml::Value,
}

/// `shutdown_timeout`, `drain_max`, `drain_spread`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// From SIGTERM to the end of the process.
    pub shutdown_timeout: Duration,
    /// How long sessions may go on after a new process has taken over.
    pub drain_max: Duration,
    /// How long it then takes to end those that are left, each at a moment of its own.
    pub drain_spread: Duration,
}

impl Default for Ends {
    fn default() -> Ends {
        Ends {
            shutdown_timeout: Duration::from_secs(30),
            drain_max: Duration::from_secs(24 * 3600),
            drain_spread: Duration::from_secs(300),
        }
    }
}

/// Keys that a reload puts in force. All others are read at the start only. A key stands for all below it.
const LIVE: [&str; 19] = [
    "listeners",
    "tls",
    "limits",
    "mail",
    "web.trusted_forwarders",
    "web.locations",
    "web.acme_dir",
    "web.compress_authenticated",
    "web.show_server",
    "web.client_header_timeout",
    "web.client_body_timeout",
    "log.access",
    "log.access_format",
    "log.audit",
    "route_cache.ttl",
    "route_cache.stale",
    "shutdown_timeout",
    "drain_max",
    "drain_spread",
];

/// `directory`
#[derive(Debug, Clone)]
pub struct DirectoryConfig {
    /// Which kind, and where.
    pub source: Source,
    /// How often changes are looked for.
    pub poll: Duration,
    /// Whom `portico prov` binds as, and the file with the password; a node that serves reads it only for a change over
    /// its admin API.
    pub admin: Option<(String, PathBuf)>,
}

/// A kind of directory.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file.
    Yaml(PathBuf),
    /// LDAP servers.
    Ldap(Box<ldap::Settings>),
}

/// `route_cache`
#[derive(Debug, Clone)]
pub struct RouteCacheConfig {
    /// Routes in memory.
    pub capacity: u64,
    /// How long a route is used without asking.
    pub ttl: Duration,
    /// How long it may still serve behind that while the directory is down.
    pub stale: Duration,
    /// How long "there is no such account" is remembered.
    pub negative_ttl: Duration,
    /// The tier that nodes share.
    pub memcached: Option<MemcachedConfig>,
}

/// `route_cache.memcached`
#[derive(Debug, Clone)]
pub struct MemcachedConfig {
    /// `host:port`; the order counts.
    pub servers: Vec<String>,
    /// For one request.
    pub timeout: Duration,
}

/// `directory.lookup`
#[derive(Debug, Clone)]
pub struct LookupConfig {
    /// What the services speak.
    pub protocol: Dialect,
    /// Where they are; empty: where the directory says.
    pub handlers: Vec<HandlerUrl>,
    /// For one lookup.
    pub timeout: Duration,
    /// Authorities that sign their certificates; `None`: those of mailbox servers.
    pub ca_file: Option<PathBuf>,
    /// As whom they are asked for tokens; `None`: they are not.
    pub admin: Option<NodeLogin>,
}

/// What a listener serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serve {
    /// The web client and every protocol over HTTP.
    Web,
    /// IMAP
    Imap,
    /// POP3
    Pop3,
    /// The administration console.
    AdminConsole,
    /// Logins by certificate, and nothing else.
    Sso,
    /// Zimbra's lookup protocol, for proxies that are not replaced yet.
    Lookup,
    /// Bytes, to the server that the listener names.
    Stream,
}

/// Where a listener with `serve: stream` sends its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamConfig {
    /// Servers, tried in this order.
    pub upstreams: Vec<HostPort>,
    /// Whether TLS is spoken with them.
    pub upstream_tls: bool,
    /// Silence on both sides.
    pub idle: Duration,
    /// Whether they are told of the client in a PROXY header (version 2).
    pub send_proxy: bool,
}

/// TLS on a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenerTls {
    /// None.
    Off,
    /// From the first byte.
    Implicit,
    /// Offered by STARTTLS or STLS, as the directory's policy says.
    StartTls,
}

/// One listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Where to listen.
    pub address: SocketAddr,
    /// What is spoken.
    pub serve: Serve,
    /// Whether it is inside TLS.
    pub tls: ListenerTls,
    /// What it offers of STARTTLS, and whether it takes passwords before it; `None`: what the directory says.
    pub starttls: Option<StartTls>,
    /// Time from accept to credentials; `None`: that of all.
    pub login_deadline: Option<Duration>,
    /// Networks whose connections begin with a PROXY header; `None`: nobody's do.
    pub proxy_trusted: Option<Vec<IpNet>>,
    /// Networks whose connections are taken; `None`: all.
    pub allow: Option<Vec<IpNet>>,
    /// Where the bytes go, with [`Serve::Stream`].
    pub stream: Option<StreamConfig>,
}

/// `tls`
#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// Default certificate and key files.
    pub default: Option<(PathBuf, PathBuf)>,
    /// Authorities that sign the certificates of mailbox servers.
    pub upstream_ca_file: Option<PathBuf>,
    /// Whether mailbox servers must prove who they are.
    pub upstream_verify: bool,
}

/// `mail`
#[derive(Debug, Clone)]
pub struct MailConfig {
    /// Time from accept to credentials.
    pub login_deadline: Duration,
    /// Silence of a logged-in IMAP session.
    pub imap_idle: Duration,
    /// Silence of a logged-in POP3 session.
    pub pop3_idle: Duration,
    /// Failed logins in one connection.
    pub max_logins: u32,
    /// Bad commands in one connection before login.
    pub max_bad_commands: u32,
}

/// `web`
#[derive(Debug, Clone)]
pub struct WebConfig {
    /// Networks whose `X-Forwarded-For` is believed.
    pub trusted_forwarders: Vec<IpNet>,
    /// The files of locations, in order; none: the built-in table.
    pub locations: Vec<PathBuf>,
    /// Where another program puts the answers to challenges of an ACME authority.
    pub acme_dir: Option<PathBuf>,
    /// Whether answers to requests that somebody is logged in with may be compressed.
    pub compress_authenticated: bool,
    /// Whether clients see the `Server` of a server's answer.
    pub show_server: bool,
    /// How long a request head may take from its first byte to its last.
    pub client_header_timeout: Duration,
    /// How long a request body may take, whatever it is.
    pub client_body_timeout: Duration,
}

/// nginx gives 60 s for each read of a head; this is for all of it.
impl Default for WebConfig {
    fn default() -> WebConfig {
        WebConfig {
            trusted_forwarders: Vec::new(),
            locations: Vec::new(),
            acme_dir: None,
            compress_authenticated: false,
            show_server: false,
            client_header_timeout: Duration::from_secs(30),
            client_body_timeout: Duration::from_secs(60),
        }
    }
}

/// The form of the access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessFormat {
    /// The line of a Carbonio proxy.
    Carbonio,
    /// One JSON object a line.
    Json,
}

/// The form of the audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditFormat {
    /// One JSON object a line.
    Json,
    /// The line of a Carbonio mailbox server's audit.log.
    Carbonio,
}

/// `log`
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// Where the access log goes.
    pub access: Target,
    /// Its form.
    pub access_format: AccessFormat,
    /// Where the audit log goes.
    pub audit: Target,
    /// Its form.
    pub audit_format: AuditFormat,
}

/// `admin`
#[derive(Debug, Clone, Default)]
pub struct AdminConfig {
    /// The Unix socket of the admin API.
    pub socket: Option<PathBuf>,
    /// Its TCP address.
    pub http: Option<SocketAddr>,
    /// What a client on TCP must show; `None`: it may only read.
    pub token: Option<Secret<String>>,
}

/// The admin socket that a node file names, whatever else is wrong with the file: a running process must be reachable.
///
/// # Errors
/// The file cannot be read, or the key is no path.
pub fn admin_socket(path: &Path) -> Result<Option<PathBuf>, Problems> {
    let document = Document::load(path)?;
    let mut problems = Problems::new();
    let socket = || {
        let admin = document.root().mapping(&mut problems)?.take("admin")?;
        admin.mapping(&mut problems)?.take("socket")?.path_buf(&mut problems)
    };
    let socket = { socket }();
    match problems.has_errors() {
        true => Err(problems),
        false => Ok(socket),
    }
}

impl Config {
    /// Reads a node file.
    ///
    /// # Errors
    /// Every problem of the file, at once. With a good file the second value holds its warnings.
    pub fn load(path: &Path) -> Result<(Config, Problems), Problems> {
        let document = Document::load(path)?;
        let mut reader = Reader {
            problems: Problems::new(),
        };
        let mut config = reader.config(&document, path);
        config.written = document.root().to_value();
        reader.problems.or(config)
    }

    /// This configuration, with what a reload may take from a newer one.
    #[must_use]
    pub fn reloaded(&self, new: &Config) -> Config {
        Config {
            // Pingora has its own copy.
            server: ServerConf::default(),
            node: self.node.clone(),
            directory: self.directory.clone(),
            lookup: self.lookup.clone(),
            route_cache: RouteCacheConfig {
                ttl: new.route_cache.ttl,
                stale: new.route_cache.stale,
                ..self.route_cache.clone()
            },
            listeners: new.listeners.clone(),
            tls: new.tls.clone(),
            limits: new.limits.clone(),
            mail: new.mail.clone(),
            web: new.web.clone(),
            log: LogConfig {
                access: new.log.access.clone(),
                access_format: new.log.access_format,
                audit: new.log.audit.clone(),
                ..self.log
            },
            admin: self.admin.clone(),
            ends: new.ends,
            written: new.written.clone(),
        }
    }
}

/// Keys whose values differ, as they are written: `(put in force by a reload, only by a new process)`.
pub fn changes(old: &serde_yaml::Value, new: &serde_yaml::Value) -> (Vec<String>, Vec<String>) {
    let mut changed = Vec::new();
    differences("", Some(old), Some(new), &mut changed);
    let live = |key: &String| {
        LIVE.iter().any(|live| {
            key.strip_prefix(live)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    };
    changed.into_iter().partition(live)
}

fn differences(key: &str, old: Option<&serde_yaml::Value>, new: Option<&serde_yaml::Value>, changed: &mut Vec<String>) {
    let nothing = |value: Option<&serde_yaml::Value>| value.is_none_or(serde_yaml::Value::is_null);
    if old == new || (nothing(old) && nothing(new)) {
        return;
    }
    let mappings = [old, new].map(|value| value.and_then(serde_yaml::Value::as_mapping));
    // A section that comes or goes as a whole is its keys that come or go; one that is empty is nothing.
    let is_section =
        |value: Option<&serde_yaml::Value>| value.is_none_or(|value| value.is_null() || value.is_mapping());
    if mappings.iter().all(Option::is_none) || !is_section(old) || !is_section(new) {
        changed.push(key.to_owned());
        return;
    }
    let mut names: Vec<&str> = mappings
        .iter()
        .flatten()
        .flat_map(|mapping| mapping.keys().filter_map(serde_yaml::Value::as_str))
        .collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let [old, new] = mappings.map(|mapping| mapping.and_then(|mapping| mapping.get(name)));
        let below = match key {
            "" => name.to_owned(),
            _ => format!("{key}.{name}"),
        };
        differences(&below, old, new, changed);
    }
}

/// The problems found so far, and one method for each section.
struct Reader {
    problems: Problems,
}

impl Reader {
    fn config(&mut self, document: &Document, path: &Path) -> Config {
        let Some(mut root) = document.root().mapping(&mut self.problems) else {
            return self.empty();
        };
        let server = self.server(&mut root);
        let grace = server.grace_period_seconds.map(Duration::from_secs);
        let node = self.text(&mut root, "node").unwrap_or_else(host_name);
        let (directory, lookup) = self.directory(&mut root, path);
        let config = Config {
            server,
            node: node.to_ascii_lowercase(),
            directory,
            lookup,
            route_cache: self.route_cache(&mut root),
            listeners: self.listeners(&mut root),
            tls: self.tls(&mut root),
            limits: self.limits(&mut root),
            mail: self.mail(&mut root),
            web: self.web(&mut root),
            log: self.log(&mut root),
            admin: self.admin(&mut root),
            ends: self.ends(&mut root, grace),
            written: serde_yaml::Value::Null,
        };
        root.finish(&mut self.problems);
        config
    }

    /// Stands in for a file that is not even a mapping; its problem is already noted.
    fn empty(&mut self) -> Config {
        Config {
            server: ServerConf::default(),
            node: String::new(),
            directory: DirectoryConfig {
                source: Source::Yaml(PathBuf::new()),
                poll: POLL,
                admin: None,
            },
            lookup: None,
            route_cache: self.route_cache_of(None),
            listeners: None,
            tls: TlsConfig {
                default: None,
                upstream_ca_file: None,
                upstream_verify: true,
            },
            limits: LimitsConfig::default(),
            mail: self.mail_of(None),
            web: WebConfig::default(),
            log: LogConfig {
                access: Target::Stdout,
                access_format: AccessFormat::Carbonio,
                audit: Target::Stdout,
                audit_format: AuditFormat::Json,
            },
            admin: AdminConfig::default(),
            ends: Ends::default(),
            written: serde_yaml::Value::Null,
        }
    }

    /// Pingora's `grace_period_seconds` says the same as `shutdown_timeout`, which counts where both are written.
    fn ends(&mut self, root: &mut Mapping<'_>, grace: Option<Duration>) -> Ends {
        let mut ends = Ends::default();
        ends.shutdown_timeout = grace.unwrap_or(ends.shutdown_timeout);
        self.duration(root, "shutdown_timeout", &mut ends.shutdown_timeout);
        self.duration(root, "drain_max", &mut ends.drain_max);
        self.duration(root, "drain_spread", &mut ends.drain_spread);
        ends
    }

    /// Pingora's own keys, whatever they are in the version at hand.
    fn server(&mut self, root: &mut Mapping<'_>) -> ServerConf {
        let known = serde_yaml::to_value(ServerConf::default()).unwrap_or_default();
        let mut chosen = serde_yaml::Mapping::new();
        for key in known
            .as_mapping()
            .into_iter()
            .flat_map(|m| m.keys())
            .filter_map(|key| key.as_str())
        {
            let Some(node) = root.take(key) else { continue };
            let mut alone = serde_yaml::Mapping::new();
            alone.insert(key.into(), node.to_value());
            match serde_yaml::from_value::<ServerConf>(alone.into()) {
                Ok(_) => drop(chosen.insert(key.into(), node.to_value())),
                Err(error) => node.error(error.to_string(), &mut self.problems),
            }
        }
        serde_yaml::from_value(chosen.into()).unwrap_or_default()
    }

    fn directory(&mut self, root: &mut Mapping<'_>, path: &Path) -> (DirectoryConfig, Option<LookupConfig>) {
        let mut config = DirectoryConfig {
            source: Source::Yaml(path.with_file_name("directory.yaml")),
            poll: POLL,
            admin: None,
        };
        let Some(mut section) = self.section(root, "directory") else {
            return (config, None);
        };
        let source = section.take("source");
        let kinds = [("yaml", "yaml"), ("ldap", "ldap")];
        let chosen = source.and_then(|source| source.choice(&kinds, &mut self.problems));
        let chosen = chosen.unwrap_or("yaml");
        let lookup = self.lookup(&mut section);
        let snapshot = section
            .take("snapshot")
            .and_then(|node| node.path_buf(&mut self.problems));
        let yaml = section.take("yaml").filter(|node| !node.is_null());
        let ldap = section.take("ldap").filter(|node| !node.is_null());
        let (wanted, idle) = if chosen == "ldap" { (ldap, yaml) } else { (yaml, ldap) };
        if let Some(node) = idle {
            node.warning(format!("has no effect: source is {chosen}"), &mut self.problems);
        }
        match wanted {
            Some(node) if chosen == "ldap" => self.ldap(node, snapshot.as_deref(), &mut config),
            Some(node) => self.yaml(node, &mut config),
            None if chosen == "ldap" => {
                let message = "source is ldap, but there is no section ldap";
                section.node().error(message, &mut self.problems);
            }
            None => {}
        }
        section.finish(&mut self.problems);
        (config, lookup)
    }

    fn yaml(&mut self, node: Node<'_>, config: &mut DirectoryConfig) {
        let Some(mut section) = node.mapping(&mut self.problems) else {
            return;
        };
        if let Some(path) = section.take("path").and_then(|node| node.path_buf(&mut self.problems)) {
            config.source = Source::Yaml(path);
        }
        self.poll(&mut section, config);
        section.finish(&mut self.problems);
    }

    fn ldap(&mut self, node: Node<'_>, snapshot: Option<&Path>, config: &mut DirectoryConfig) {
        let Some(mut section) = node.mapping(&mut self.problems) else {
            return;
        };
        let urls = section.require("urls", &mut self.problems);
        let urls = urls
            .and_then(|node| node.one_or_many(&mut self.problems))
            .unwrap_or_default();
        let urls = urls.into_iter().filter_map(|node| self.url(node)).collect();
        let starttls = section.take("starttls").and_then(|node| node.bool(&mut self.problems));
        let trust = section.take("ca_file").and_then(|node| self.trust(node));
        let mut settings = ldap::Settings {
            urls,
            starttls: starttls.unwrap_or(true),
            trust: trust.unwrap_or_default(),
            bind: self.bind(&mut section),
            timeout: Duration::from_secs(3),
            snapshot: Some(snapshot.unwrap_or(Path::new(SNAPSHOT)).to_owned()),
        };
        self.duration(&mut section, "timeout", &mut settings.timeout);
        if settings.timeout.is_zero() {
            node.error("a timeout of zero lets no server answer", &mut self.problems);
        }
        if settings.urls.is_empty() {
            node.error("urls names no server", &mut self.problems);
        }
        let clear = |url: &ldap::Url| !url.is_tls() && !settings.starttls;
        if settings.bind.is_some() && settings.urls.iter().any(clear) {
            node.warning(
                "the password goes over the network in clear text: use ldaps or starttls",
                &mut self.problems,
            );
        }
        config.admin = self.admin_bind(&mut section);
        self.poll(&mut section, config);
        section.finish(&mut self.problems);
        config.source = Source::Ldap(Box::new(settings));
    }

    fn url(&mut self, node: Node<'_>) -> Option<ldap::Url> {
        let url = ldap::Url::parse(node.str(&mut self.problems)?);
        url.map_err(|message| node.error(message, &mut self.problems)).ok()
    }

    fn trust(&mut self, node: Node<'_>) -> Option<ldap::Trust> {
        let path = node.path_buf(&mut self.problems)?;
        let read = std::fs::read(&path).map_err(|error| error.to_string());
        let trust = read.and_then(|pem| ldap::Trust::only(&pem));
        trust
            .map_err(|error| node.error(format!("{}: {error}", path.display()), &mut self.problems))
            .ok()
    }

    /// A name without a password would be let in as nobody (RFC 4513 §5.1.2).
    fn bind(&mut self, section: &mut Mapping<'_>) -> Option<(String, Secret<String>)> {
        let dn = self.text(section, "bind_dn").filter(|dn| !dn.is_empty());
        let password = section.take("bind_password_file").and_then(|node| self.password(node));
        if dn.is_some() != password.is_some() {
            section
                .node()
                .error("bind_dn and bind_password_file go together", &mut self.problems);
        }
        dn.zip(password)
    }

    fn admin_bind(&mut self, section: &mut Mapping<'_>) -> Option<(String, PathBuf)> {
        let dn = self.text(section, "admin_bind_dn").filter(|dn| !dn.is_empty());
        let file = section.take("admin_bind_password_file");
        let file = file.and_then(|node| node.path_buf(&mut self.problems));
        if dn.is_some() != file.is_some() {
            let message = "admin_bind_dn and admin_bind_password_file go together";
            section.node().error(message, &mut self.problems);
        }
        dn.zip(file)
    }

    fn password(&mut self, node: Node<'_>) -> Option<Secret<String>> {
        let path = node.path_buf(&mut self.problems)?;
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => Secret::new(text),
            Err(error) => {
                node.error(format!("{}: {error}", path.display()), &mut self.problems);
                return None;
            }
        };
        if let Some(message) = secret_file::warning(&path) {
            node.warning(message, &mut self.problems);
        }
        let line = text.expose().trim_end_matches(['\r', '\n']);
        if line.is_empty() {
            node.error(format!("{} is empty", path.display()), &mut self.problems);
            return None;
        }
        Some(Secret::new(line.to_owned()))
    }

    fn poll(&mut self, section: &mut Mapping<'_>, config: &mut DirectoryConfig) {
        let Some(node) = section.take("poll") else { return };
        match node.duration(&mut self.problems) {
            Some(poll) if poll < MIN_POLL => {
                node.error(format!("expected at least {MIN_POLL:?}"), &mut self.problems);
            }
            Some(poll) => config.poll = poll,
            None => {}
        }
    }

    fn lookup(&mut self, directory: &mut Mapping<'_>) -> Option<LookupConfig> {
        let mut section = self.section(directory, "lookup")?;
        let words = [("zimbra", Dialect::Zimbra), ("nginx", Dialect::Nginx)];
        let protocol = section.require("protocol", &mut self.problems);
        let protocol = protocol.and_then(|node| node.choice(&words, &mut self.problems));
        let handlers = match protocol {
            // Where they are absent, the directory names them.
            Some(Dialect::Zimbra) => section.take("handlers"),
            _ => section.require("handlers", &mut self.problems),
        };
        let handlers = handlers.map(|node| self.some_items(node, MAX_HANDLERS));
        let ca_file = section
            .take("ca_file")
            .and_then(|node| node.path_buf(&mut self.problems));
        let mut timeout = Duration::from_secs(5);
        self.duration(&mut section, "timeout", &mut timeout);
        let admin = self.node_login(&mut section, protocol);
        let protocol = protocol?;
        let handlers: Vec<HandlerUrl> = handlers
            .unwrap_or_default()
            .into_iter()
            .filter_map(|node| self.handler(node, protocol))
            .collect();
        if admin.is_some() && handlers.iter().any(|url| !url.tls) {
            section.node().warning(
                "the password goes over the network in clear text: use https",
                &mut self.problems,
            );
        }
        section.finish(&mut self.problems);
        Some(LookupConfig {
            protocol,
            handlers,
            timeout,
            ca_file,
            admin,
        })
    }

    /// As whom services are asked for tokens; nginx's protocol has none.
    fn node_login(&mut self, lookup: &mut Mapping<'_>, protocol: Option<Dialect>) -> Option<NodeLogin> {
        let user = self.text(lookup, "admin_user");
        let file = lookup.take("admin_password_file");
        let node = lookup.node();
        if file.is_none() && user.is_some() {
            node.error("admin_user needs admin_password_file", &mut self.problems);
        }
        let file = file?;
        if protocol == Some(Dialect::Nginx) {
            file.error("goes with protocol: zimbra only", &mut self.problems);
        }
        let password = self.password(file)?;
        let login = NodeLogin::new(user.unwrap_or_else(|| ADMIN_USER.to_owned()), password);
        login.map_err(|why| node.error(why.to_owned(), &mut self.problems)).ok()
    }

    fn handler(&mut self, node: Node<'_>, protocol: Dialect) -> Option<HandlerUrl> {
        let url = HandlerUrl::parse(&node.text(&mut self.problems)?, protocol);
        url.map_err(|why| node.error(why, &mut self.problems)).ok()
    }

    /// At least one and at most `most` items.
    fn some_items<'a>(&mut self, node: Node<'a>, most: usize) -> Vec<Node<'a>> {
        let Some(items) = node.items(&mut self.problems) else {
            return Vec::new();
        };
        if items.is_empty() || items.len() > most {
            node.error(format!("wants 1 to {most} items"), &mut self.problems);
        }
        items
    }

    fn route_cache(&mut self, root: &mut Mapping<'_>) -> RouteCacheConfig {
        let section = self.section(root, "route_cache");
        self.route_cache_of(section)
    }

    fn route_cache_of(&mut self, section: Option<Mapping<'_>>) -> RouteCacheConfig {
        let mut config = RouteCacheConfig {
            capacity: 200_000,
            ttl: Duration::from_secs(3600),
            stale: Duration::from_secs(24 * 3600),
            negative_ttl: Duration::from_secs(5),
            memcached: None,
        };
        let Some(mut section) = section else { return config };
        if let Some(capacity) = section.take("capacity").and_then(|node| node.u64(&mut self.problems)) {
            config.capacity = capacity;
        }
        self.duration(&mut section, "ttl", &mut config.ttl);
        self.duration(&mut section, "stale", &mut config.stale);
        self.duration(&mut section, "negative_ttl", &mut config.negative_ttl);
        config.memcached = self.memcached(&mut section);
        section.finish(&mut self.problems);
        config
    }

    fn memcached(&mut self, cache: &mut Mapping<'_>) -> Option<MemcachedConfig> {
        let mut section = self.section(cache, "memcached")?;
        let mut config = MemcachedConfig {
            servers: Vec::new(),
            timeout: Duration::from_millis(200),
        };
        if let Some(node) = section.require("servers", &mut self.problems) {
            let items = self.some_items(node, MAX_MEMCACHED);
            let servers = items.into_iter().filter_map(|node| self.host_and_port(node));
            config.servers = servers.map(|server| server.to_string()).collect();
        }
        self.duration(&mut section, "timeout", &mut config.timeout);
        section.finish(&mut self.problems);
        Some(config)
    }

    fn host_and_port(&mut self, node: Node<'_>) -> Option<HostPort> {
        let read = node.text(&mut self.problems)?.parse().ok();
        if read.is_none() {
            node.error(
                "expected a host name or address and a port, as in 127.0.0.1:11211",
                &mut self.problems,
            );
        }
        read
    }

    fn listeners(&mut self, root: &mut Mapping<'_>) -> Option<Vec<Listener>> {
        let node = root.take("listeners")?;
        let items = node.items(&mut self.problems)?;
        let mut listeners: Vec<Listener> = Vec::new();
        for item in items {
            let Some(listener) = self.listener(item) else { continue };
            if listeners.iter().any(|other| other.address == listener.address) {
                item.error(
                    format!("{} is already listened on", listener.address),
                    &mut self.problems,
                );
            }
            listeners.push(listener);
        }
        let names: usize = listeners
            .iter()
            .map(|listener| listener.address.to_string().len() + 1)
            .sum();
        if listeners.len() > MAX_LISTENERS || names > MAX_LISTENER_NAMES {
            let message = format!(
                "{} listeners are too many: at most {MAX_LISTENERS} can be handed to the next process in an upgrade",
                listeners.len()
            );
            node.error(message, &mut self.problems);
        }
        Some(listeners)
    }

    fn listener(&mut self, item: Node<'_>) -> Option<Listener> {
        let mut entry = item.mapping(&mut self.problems)?;
        let address = entry.require("address", &mut self.problems);
        let address = address.and_then(|node| node.socket_addr(&mut self.problems));
        let serve_table = [
            ("web", Serve::Web),
            ("imap", Serve::Imap),
            ("pop3", Serve::Pop3),
            ("admin-console", Serve::AdminConsole),
            ("sso", Serve::Sso),
            ("lookup", Serve::Lookup),
            ("stream", Serve::Stream),
        ];
        let serve = entry.require("serve", &mut self.problems);
        let serve = serve.and_then(|node| node.choice(&serve_table, &mut self.problems));
        let tls_table = [
            ("off", ListenerTls::Off),
            ("implicit", ListenerTls::Implicit),
            ("starttls", ListenerTls::StartTls),
        ];
        let mut tls = ListenerTls::Off;
        if let Some(node) = entry.take("tls") {
            tls = node.choice(&tls_table, &mut self.problems).unwrap_or(tls);
            if tls == ListenerTls::StartTls && !matches!(serve, None | Some(Serve::Imap | Serve::Pop3)) {
                node.error("only mail listeners have STARTTLS; use implicit", &mut self.problems);
            }
        }
        let (starttls, login_deadline) = self.before_login(&mut entry, serve, tls);
        if serve == Some(Serve::Sso) && tls != ListenerTls::Implicit {
            item.error(
                "serve: sso needs tls: implicit, where certificates are",
                &mut self.problems,
            );
        }
        let allow = self.allow(&mut entry, serve);
        let stream = match serve {
            Some(Serve::Stream) => self.stream(&mut entry),
            _ => None,
        };
        let proxy_trusted = self.section(&mut entry, "proxy_protocol").and_then(|mut section| {
            let trusted = section.require("trusted", &mut self.problems);
            section.finish(&mut self.problems);
            trusted.and_then(|node| node.networks(&mut self.problems))
        });
        entry.finish(&mut self.problems);
        Some(Listener {
            address: address?,
            serve: serve?,
            tls,
            starttls,
            login_deadline,
            proxy_trusted,
            allow,
            stream,
        })
    }

    /// `starttls` and `login_deadline`
    fn before_login(
        &mut self,
        entry: &mut Mapping<'_>,
        serve: Option<Serve>,
        tls: ListenerTls,
    ) -> (Option<StartTls>, Option<Duration>) {
        let modes = [("off", StartTls::Off), ("on", StartTls::On), ("only", StartTls::Only)];
        let starttls = entry.take("starttls").and_then(|node| {
            if tls != ListenerTls::StartTls {
                node.error("starttls goes with tls: starttls", &mut self.problems);
            }
            node.choice(&modes, &mut self.problems)
        });
        let login_deadline = entry.take("login_deadline").and_then(|node| {
            if !matches!(serve, None | Some(Serve::Imap | Serve::Pop3)) {
                node.error(
                    "login_deadline goes with serve: imap and serve: pop3",
                    &mut self.problems,
                );
            }
            node.duration(&mut self.problems)
        });
        (starttls, login_deadline)
    }

    fn stream(&mut self, entry: &mut Mapping<'_>) -> Option<StreamConfig> {
        let upstream = entry.require("upstream", &mut self.problems);
        let nodes = upstream.and_then(|node| node.one_or_many(&mut self.problems))?;
        let upstreams: Vec<HostPort> = nodes.into_iter().filter_map(|node| self.host_and_port(node)).collect();
        if upstreams.is_empty() || upstreams.len() > MAX_UPSTREAMS {
            entry.node().error(
                format!("upstream names 1 to {MAX_UPSTREAMS} servers"),
                &mut self.problems,
            );
        }
        let upstream_tls = entry
            .take("upstream_tls")
            .and_then(|node| node.bool(&mut self.problems));
        let send_proxy = entry.take("send_proxy");
        let send_proxy = send_proxy.and_then(|node| node.choice(&[("off", false), ("v2", true)], &mut self.problems));
        let mut idle = STREAM_IDLE;
        self.duration(entry, "idle", &mut idle);
        Some(StreamConfig {
            upstreams,
            upstream_tls: upstream_tls.unwrap_or(false),
            idle,
            send_proxy: send_proxy.unwrap_or(false),
        })
    }

    /// Who may ask where accounts are learns who has one, so the networks must be named there; elsewhere they would
    /// look like a protection of mail and web that is not there.
    fn allow(&mut self, entry: &mut Mapping<'_>, serve: Option<Serve>) -> Option<Vec<IpNet>> {
        if serve == Some(Serve::Lookup) {
            let node = entry.require("allow", &mut self.problems)?;
            return node.networks(&mut self.problems);
        }
        let node = entry.take("allow")?;
        node.error("goes with serve: lookup only", &mut self.problems);
        None
    }

    fn tls(&mut self, root: &mut Mapping<'_>) -> TlsConfig {
        let mut config = TlsConfig {
            default: None,
            upstream_ca_file: None,
            upstream_verify: true,
        };
        let Some(mut section) = self.section(root, "tls") else {
            return config;
        };
        let node = section.node();
        let certificate = section
            .take("certificate")
            .and_then(|node| node.path_buf(&mut self.problems));
        let key = section.take("key").and_then(|node| node.path_buf(&mut self.problems));
        match (certificate, key) {
            (Some(certificate), Some(key)) => config.default = Some((certificate, key)),
            (None, None) => {}
            _ => node.error("certificate and key go together", &mut self.problems),
        }
        config.upstream_ca_file = section
            .take("upstream_ca_file")
            .and_then(|node| node.path_buf(&mut self.problems));
        if let Some(verify) = section
            .take("upstream_verify")
            .and_then(|node| node.bool(&mut self.problems))
        {
            config.upstream_verify = verify;
        }
        section.finish(&mut self.problems);
        config
    }

    fn limits(&mut self, root: &mut Mapping<'_>) -> LimitsConfig {
        let mut config = LimitsConfig::default();
        let Some(mut section) = self.section(root, "limits") else {
            return config;
        };
        for (key, limit) in [
            ("connections", &mut config.connections),
            ("connections_per_address", &mut config.connections_per_address),
            ("handshakes", &mut config.handshakes),
            ("unread_answers", &mut config.unread_answers),
            ("unread_answers_per_address", &mut config.unread_answers_per_address),
        ] {
            if let Some(count) = section.take(key).and_then(|node| node.u32(&mut self.problems)) {
                *limit = count as usize;
            }
        }
        if let Some(networks) = section
            .take("exempt")
            .and_then(|node| node.networks(&mut self.problems))
        {
            config.exempt = networks;
        }
        section.finish(&mut self.problems);
        config
    }

    fn mail(&mut self, root: &mut Mapping<'_>) -> MailConfig {
        let section = self.section(root, "mail");
        self.mail_of(section)
    }

    /// Where nothing is written, the values of a Carbonio proxy's local configuration (MAIL §6.1), with POP3's
    /// idle limit at the 10 minutes that RFC 1939 §3 asks for.
    fn mail_of(&mut self, section: Option<Mapping<'_>>) -> MailConfig {
        let mut config = MailConfig {
            login_deadline: Duration::from_secs(60),
            imap_idle: Duration::from_secs(2100),
            pop3_idle: Duration::from_secs(600),
            max_logins: 3,
            max_bad_commands: 5,
        };
        let Some(mut section) = section else { return config };
        self.duration(&mut section, "login_deadline", &mut config.login_deadline);
        self.duration(&mut section, "imap_idle", &mut config.imap_idle);
        self.duration(&mut section, "pop3_idle", &mut config.pop3_idle);
        if let Some(n) = section.take("max_logins").and_then(|node| node.u32(&mut self.problems)) {
            config.max_logins = n;
        }
        if let Some(n) = section
            .take("max_bad_commands")
            .and_then(|node| node.u32(&mut self.problems))
        {
            config.max_bad_commands = n;
        }
        section.finish(&mut self.problems);
        config
    }

    fn web(&mut self, root: &mut Mapping<'_>) -> WebConfig {
        let mut config = WebConfig::default();
        let Some(mut section) = self.section(root, "web") else {
            return config;
        };
        if let Some(networks) = section
            .take("trusted_forwarders")
            .and_then(|node| node.networks(&mut self.problems))
        {
            config.trusted_forwarders = networks;
        }
        config.compress_authenticated = section
            .take("compress_authenticated")
            .and_then(|node| node.bool(&mut self.problems))
            .unwrap_or(false);
        config.show_server = section
            .take("show_server")
            .and_then(|node| node.bool(&mut self.problems))
            .unwrap_or(false);
        for (key, wait) in [
            ("client_header_timeout", &mut config.client_header_timeout),
            ("client_body_timeout", &mut config.client_body_timeout),
        ] {
            if let Some(time) = section.take(key).and_then(|node| node.duration(&mut self.problems)) {
                *wait = time;
            }
        }
        if let Some(node) = section.take("locations") {
            let files = node.each(&mut self.problems, |item, problems| item.path_buf(problems));
            config.locations = files.unwrap_or_default();
        }
        config.acme_dir = section
            .take("acme_dir")
            .and_then(|node| node.path_buf(&mut self.problems));
        section.finish(&mut self.problems);
        config
    }

    fn log(&mut self, root: &mut Mapping<'_>) -> LogConfig {
        let mut config = LogConfig {
            access: Target::Stdout,
            access_format: AccessFormat::Carbonio,
            audit: Target::Stdout,
            audit_format: AuditFormat::Json,
        };
        let Some(mut section) = self.section(root, "log") else {
            return config;
        };
        if let Some(target) = self.target(&mut section, "access") {
            config.access = target;
        }
        let formats = [("carbonio", AccessFormat::Carbonio), ("json", AccessFormat::Json)];
        if let Some(format) = section
            .take("access_format")
            .and_then(|node| node.choice(&formats, &mut self.problems))
        {
            config.access_format = format;
        }
        if let Some(target) = self.target(&mut section, "audit") {
            config.audit = target;
        }
        let formats = [("json", AuditFormat::Json), ("carbonio", AuditFormat::Carbonio)];
        if let Some(format) = section
            .take("audit_format")
            .and_then(|node| node.choice(&formats, &mut self.problems))
        {
            config.audit_format = format;
        }
        section.finish(&mut self.problems);
        config
    }

    fn target(&mut self, section: &mut Mapping<'_>, key: &str) -> Option<Target> {
        let node = section.take(key)?;
        match node.text(&mut self.problems)?.as_ref() {
            "-" => Some(Target::Stdout),
            "off" => Some(Target::Off),
            _ => node.path_buf(&mut self.problems).map(Target::File),
        }
    }

    fn admin(&mut self, root: &mut Mapping<'_>) -> AdminConfig {
        let mut config = AdminConfig::default();
        let Some(mut section) = self.section(root, "admin") else {
            return config;
        };
        config.socket = section
            .take("socket")
            .and_then(|node| node.path_buf(&mut self.problems));
        config.http = section
            .take("http")
            .and_then(|node| node.socket_addr(&mut self.problems));
        config.token = section.take("token_file").and_then(|node| self.token(node));
        section.finish(&mut self.problems);
        config
    }

    fn token(&mut self, node: Node<'_>) -> Option<Secret<String>> {
        let path = node.path_buf(&mut self.problems)?;
        let token = match std::fs::read_to_string(&path) {
            Ok(text) => Secret::new(text.trim().to_owned()),
            Err(error) => {
                node.error(format!("{}: {error}", path.display()), &mut self.problems);
                return None;
            }
        };
        if let Some(message) = secret_file::warning(&path) {
            node.warning(message, &mut self.problems);
        }
        let good = token.expose().len() >= MIN_TOKEN && token.expose().bytes().all(|byte| byte.is_ascii_graphic());
        if !good {
            let message = format!("a token has at least {MIN_TOKEN} printable letters and no blank");
            node.error(message, &mut self.problems);
        }
        Some(token)
    }

    fn section<'a>(&mut self, parent: &mut Mapping<'a>, key: &str) -> Option<Mapping<'a>> {
        parent
            .take(key)
            .filter(|node| !node.is_null())?
            .mapping(&mut self.problems)
    }

    fn text(&mut self, parent: &mut Mapping<'_>, key: &str) -> Option<String> {
        Some(parent.take(key)?.text(&mut self.problems)?.into_owned())
    }

    fn duration(&mut self, section: &mut Mapping<'_>, key: &str, value: &mut Duration) {
        if let Some(duration) = section.take(key).and_then(|node| node.duration(&mut self.problems)) {
            *value = duration;
        }
    }
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(|_| String::new(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<(Config, Problems), Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("portico.yaml");
        std::fs::write(&path, text).unwrap();
        let folder = format!("{}/", dir.path().display());
        Config::load(&path).map_err(|problems| {
            problems
                .iter()
                .map(|problem| problem.to_string().replace(&folder, ""))
                .collect()
        })
    }

    #[test]
    fn the_shipped_example_is_good() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf/portico.yaml");
        let (config, _) = Config::load(&path).unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(config.listeners.unwrap().len(), 6);
    }

    #[test]
    fn an_empty_file_has_defaults() {
        let (config, problems) = load("").unwrap();
        assert!(problems.is_empty());
        assert!(config.listeners.is_none());
        assert_eq!(config.mail.login_deadline, Duration::from_secs(60));
        assert!(config.tls.upstream_verify);
    }

    #[test]
    fn all_problems_at_once_with_key_and_line() {
        let problems = load(concat!(
            "version: 1\n",
            "threads: many\n",
            "listenners: []\n",
            "listeners:\n",
            "  - {address: '127.0.0.1:143', serve: imap, tls: maybe}\n",
            "  - {address: nowhere, serve: smtp}\n",
            "  - {address: '127.0.0.1:143', serve: pop3, proxy_protocol: {trusted: [10.0.0.0/99]}}\n",
            "route_cache: {ttl: soon}\n",
            "tls: {certificate: a.crt}\n",
        ))
        .unwrap_err();
        let expected = [
            ("2", "threads"),
            ("3", "listenners"),
            ("5", "listeners[0].tls"),
            ("6", "listeners[1].address"),
            ("6", "listeners[1].serve"),
            ("7", "listeners[2].proxy_protocol.trusted[0]"),
            ("8", "route_cache.ttl"),
            ("9", "tls"),
        ];
        for (line, key) in expected {
            let start = format!("portico.yaml:{line}: {key}: ");
            assert!(
                problems.iter().any(|problem| problem.starts_with(&start)),
                "no {start} in {problems:#?}"
            );
        }
        assert!(
            problems.iter().any(|problem| problem.contains("already listened on")),
            "{problems:#?}"
        );
    }

    #[test]
    fn shared_caches_and_lookup_services() {
        let (config, _) = load(concat!(
            "directory: {lookup: {protocol: zimbra, handlers: ['https://10.0.0.11:7072/x'], timeout: 2s}}\n",
            "route_cache: {memcached: {servers: [127.0.0.1:11211, 'cache.test:11211']}}\n",
            "listeners:\n",
            "  - {address: '127.0.0.1:7072', serve: lookup, tls: implicit, allow: [10.0.0.0/8]}\n",
        ))
        .unwrap();
        assert_eq!(config.lookup.unwrap().handlers[0].host, "10.0.0.11");
        assert_eq!(
            config.route_cache.memcached.unwrap().servers,
            ["127.0.0.1:11211", "cache.test:11211"]
        );
        assert_eq!(config.listeners.unwrap()[0].allow.as_ref().unwrap().len(), 1);
        // Zimbra's services stand in the directory, others nowhere else.
        let (config, _) = load("directory: {lookup: {protocol: zimbra}}\n").unwrap();
        assert!(config.lookup.unwrap().handlers.is_empty());
        for wrong in ["{protocol: nginx}", "{protocol: zimbra, handlers: []}"] {
            let problems = load(&format!("directory: {{lookup: {wrong}}}\n")).unwrap_err();
            assert!(
                problems.iter().any(|problem| problem.contains("directory.lookup")),
                "{wrong}"
            );
        }
        let problems = load(concat!(
            "directory: {lookup: {protocol: zimbra, handlers: ['10.0.0.11']}}\n",
            "route_cache: {memcached: {servers: [cache.test]}}\n",
            "listeners:\n",
            "  - {address: '127.0.0.1:7072', serve: lookup}\n",
            "  - {address: '127.0.0.1:7073', serve: lookup, tls: starttls, allow: [10.0.0.0/8]}\n",
            "  - {address: '127.0.0.1:7074', serve: imap, allow: [10.0.0.0/8]}\n",
        ))
        .unwrap_err();
        for key in [
            "directory.lookup.handlers[0]",
            "route_cache.memcached.servers[0]",
            "listeners[0]",
            "listeners[1].tls",
            "listeners[2].allow",
        ] {
            assert!(
                problems.iter().any(|problem| problem.contains(&format!(" {key}"))),
                "no {key} in {problems:#?}"
            );
        }
    }

    #[test]
    fn single_sign_on_needs_tls_and_a_password() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let (good, bad) = (file("good", "s3cr3t\n"), file("bad", "two\nlines\n"));
        let lookup = |more: &str| load(&format!("directory: {{lookup: {{protocol: zimbra, {more}}}}}\n"));
        let (config, _) = lookup(&format!("admin_password_file: {good}")).unwrap();
        assert!(config.lookup.unwrap().admin.is_some());
        let (_, warnings) = lookup(&format!("admin_password_file: {good}, handlers: ['http://a.test/']")).unwrap();
        assert!(
            warnings
                .iter()
                .any(|warning| warning.to_string().contains("in clear text"))
        );
        for wrong in ["admin_user: x".to_owned(), format!("admin_password_file: {bad}")] {
            assert!(lookup(&wrong).is_err(), "{wrong}");
        }
        let nginx = format!("{{protocol: nginx, handlers: ['https://a.test/'], admin_password_file: {good}}}");
        assert!(load(&format!("directory: {{lookup: {nginx}}}\n")).is_err());
        for (tls, is_good) in [("implicit", true), ("off", false), ("starttls", false)] {
            let listener = format!("listeners: [{{address: '127.0.0.1:3443', serve: sso, tls: {tls}}}]\n");
            assert_eq!(load(&listener).is_ok(), is_good, "{tls}");
        }
    }

    #[test]
    fn an_ldap_directory_needs_servers_and_a_whole_bind() {
        let (config, problems) = load(concat!(
            "directory:\n",
            "  source: ldap\n",
            "  ldap: {urls: ['ldap://a:389', 'ldaps://b'], starttls: false, timeout: 1s, poll: 2s}\n",
        ))
        .unwrap();
        assert!(problems.is_empty(), "{problems}");
        assert_eq!(config.directory.poll, Duration::from_secs(2));
        let Source::Ldap(settings) = config.directory.source else {
            panic!("no LDAP")
        };
        assert_eq!((settings.urls.len(), settings.timeout), (2, Duration::from_secs(1)));
        assert_eq!(settings.snapshot.as_deref(), Some(Path::new(SNAPSHOT)));
        for (text, expected) in [
            ("directory: {source: ldap}", "no section ldap"),
            ("directory: {source: ldap, ldap: {urls: []}}", "names no server"),
            (
                "directory: {source: ldap, ldap: {urls: 'http://a'}}",
                "expected ldap://host:port",
            ),
            (
                "directory: {source: ldap, ldap: {urls: 'ldap://a', bind_dn: x}}",
                "go together",
            ),
            (
                "directory: {source: ldap, ldap: {urls: 'ldap://a', admin_bind_dn: x}}",
                "go together",
            ),
            (
                "directory: {source: ldap, ldap: {urls: 'ldap://a', ca_file: none.pem}}",
                "No such file",
            ),
            (
                "directory: {source: ldap, ldap: {urls: 'ldap://a', bind_password_file: none}}",
                "No such file",
            ),
            (
                "directory: {source: ldap, ldap: {urls: 'ldap://a', poll: 1ms}}",
                "at least 100ms",
            ),
            (
                "directory: {source: ldap, ldap: {urls: 'ldap://a', timeout: 0s}}",
                "timeout of zero",
            ),
        ] {
            let problems = load(text).unwrap_err();
            assert!(
                problems.iter().any(|problem| problem.contains(expected)),
                "{text}: {problems:?}"
            );
        }
    }

    #[test]
    fn streams_name_their_upstreams() {
        let (config, _) = load(concat!(
            "listeners:\n",
            "  - {address: '127.0.0.1:8636', serve: stream, tls: implicit, upstream: 'a.test:636', upstream_tls: true,\n",
            "     idle: 5m, send_proxy: v2}\n",
            "  - {address: '127.0.0.1:5222', serve: stream, tls: implicit, upstream: ['127.0.0.2:1', '[::1]:2']}\n",
        ))
        .unwrap();
        let streams: Vec<StreamConfig> = config.listeners.unwrap().into_iter().filter_map(|l| l.stream).collect();
        assert!(streams[0].upstream_tls && streams[0].send_proxy && !streams[1].upstream_tls);
        assert_eq!(
            (streams[0].idle, streams[1].idle),
            (Duration::from_secs(300), STREAM_IDLE)
        );
        let names: Vec<String> = streams
            .iter()
            .flat_map(|s| &s.upstreams)
            .map(ToString::to_string)
            .collect();
        assert_eq!(names, ["a.test:636", "127.0.0.2:1", "[::1]:2"]);
        for (listener, expected) in [
            ("serve: stream", "upstream"),
            ("serve: stream, upstream: []", "1 to 8"),
            ("serve: stream, upstream: nowhere", "expected a host name"),
            ("serve: stream, upstream: 'a:1', tls: starttls", "only mail listeners"),
            ("serve: stream, upstream: 'a:1', send_proxy: v1", "send_proxy"),
            ("serve: imap, upstream: 'a:1'", "upstream"),
        ] {
            let problems = load(&format!("listeners: [{{address: '127.0.0.1:1', {listener}}}]")).unwrap_err();
            assert!(
                problems.iter().any(|p| p.contains(expected)),
                "{listener}: {problems:?}"
            );
        }
    }

    #[test]
    fn what_a_reload_can_do() {
        let value = |text: &str| serde_yaml::from_str(text).unwrap();
        let (live, not) = changes(
            &value("{threads: 2, listeners: [{a: 1}], route_cache: {ttl: 1h, capacity: 5}, log: {}, tls: {key: a}}"),
            &value("{threads: 4, listeners: [{a: 2}], route_cache: {ttl: 2h, capacity: 6}, tls: {key: a}, web: ~}"),
        );
        assert_eq!(live, ["listeners", "route_cache.ttl"]);
        assert_eq!(not, ["route_cache.capacity", "threads"]);
        let (live, not) = changes(
            &value("{}"),
            &value("{mail: {pop3_idle: 1m}, memcached: {servers: []}, drain_max: 1h, web: {locations: x}}"),
        );
        assert_eq!(live, ["drain_max", "mail.pop3_idle", "web.locations"]);
        assert_eq!(not, ["memcached.servers"]);
    }

    #[test]
    fn too_many_listeners_for_an_upgrade() {
        let lines: String = (0..33)
            .map(|i| format!("  - {{address: '127.0.0.1:{}', serve: imap}}\n", 2000 + i))
            .collect();
        let problems = load(&format!("listeners:\n{lines}")).unwrap_err();
        assert!(problems[0].contains("33 listeners are too many"), "{problems:?}");
    }
}
