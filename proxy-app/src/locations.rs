//! Locations: which request goes where, as data. The table is read from files; conf/carbonio.yaml is built in.
//!
//! A location says which requests it matches and how they are handled. Nothing is done here: `LocationTable::find`
//! chooses one, and the phases of a request act on it. docs/web-locations.md describes the form of the files.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderName, HeaderValue, Method};
use ipnet::IpNet;
use mail_directory::View;
use mail_directory::attributes::Attribute;
use regex::Regex;

use crate::http::account;
use crate::http::static_ui::{self, Tree};
use crate::tls::vhosts::VirtualHost;

mod live;
pub mod path;
mod reader;

pub(crate) use live::LiveLocations;
pub(crate) use reader::Locations;

/// The kind of listener that a request came in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ListenerKind {
    /// The web client's listener.
    Web,
    /// The administration console's listener.
    Admin,
}

/// A location as it is written.
#[derive(Debug, Clone)]
pub(crate) struct Location {
    /// What it matches, as in the file: `prefix /services/files/`. For logs.
    pub name: String,
    /// The paths.
    pub paths: Vec<PathMatch>,
    /// Letters of the path are compared without regard to case.
    pub ignore_case: bool,
    /// The listeners it serves.
    pub listeners: Vec<ListenerKind>,
    /// The hosts it serves; empty: all.
    pub hosts: Vec<HostMatch>,
    /// The methods it serves; empty: all.
    pub methods: Vec<Method>,
    /// A text that the User-Agent must contain.
    pub user_agent: Option<String>,
    /// An argument that the query must have, with its value.
    pub query: Option<(String, String)>,
    /// Networks whose clients are served; `None`: all. Other clients get 403.
    pub allow: Option<Vec<IpNet>>,
    /// A client without this cookie is sent to log in.
    pub required_cookie: Option<RequiredCookie>,
    /// How its requests are handled.
    pub action: Action,
    /// Whether answers get the headers of `zimbraReverseProxyResponseHeaders` and the CSP.
    pub security_headers: bool,
    /// Headers that all its answers have.
    pub answer_headers: Vec<(HeaderName, HeaderValue)>,
}

/// Which paths belong to a location. Always the decoded path, with dots resolved and slashes merged.
#[derive(Debug, Clone)]
pub(crate) enum PathMatch {
    /// Exactly this path.
    Exact(String),
    /// Paths that begin so, and end there or go on with a slash.
    Prefix(String),
    /// Paths that begin so.
    Start(String),
    /// Paths that match; always anchored at the beginning.
    Regex(Regex),
}

/// Which hosts belong to a location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HostMatch {
    /// This name, in lower case.
    Name(String),
    /// All names below this one: `*.example.com` without the star.
    Below(String),
}

/// A cookie that must be present. It is not verified: that is left to the server (HTTP §2.2).
#[derive(Debug, Clone)]
pub(crate) struct RequiredCookie {
    /// Name of the cookie.
    pub cookie: String,
    /// Where clients without it are sent.
    pub to: Destination,
    /// Paths that need no cookie.
    pub except: Option<Regex>,
}

/// A place to send a browser to.
#[derive(Debug, Clone)]
pub(crate) struct Destination {
    /// The place, if no attribute names another one. A relative one stays relative.
    pub to: String,
    /// The attribute of the virtual host that may name another one.
    pub vhost: Option<VirtualHostUrl>,
}

/// A place that a domain may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VirtualHostUrl {
    /// `carbonioWebUILoginURL`
    Login,
    /// `carbonioWebUILogoutURL`
    Logout,
    /// `carbonioAdminUILoginURL`
    AdminLogin,
    /// `carbonioAdminUILogoutURL`
    AdminLogout,
}

/// How a request is handled.
#[derive(Debug, Clone)]
pub(crate) enum Action {
    /// It goes to a server.
    Forward(Box<Forward>),
    /// It is answered with a file.
    Files(Files),
    /// The browser is sent elsewhere.
    Redirect {
        /// Where to.
        to: Destination,
        /// Status.
        status: u16,
    },
    /// A fixed answer.
    Answer {
        /// Status.
        status: u16,
        /// Content-Type of the body.
        kind: String,
        /// The body; `None` with an error status: the error page.
        body: Option<String>,
    },
    /// Cookies are cleared, and the browser is sent on (HTTP §2.5). With an attribute set the answer is 200 without a
    /// redirect, because the web client goes there itself.
    Logout {
        /// Where to.
        to: Destination,
        /// The cookies, in order.
        cookies: Vec<String>,
    },
    /// Counters of this node, as nginx's stub_status writes them.
    Status,
}

/// Files below a folder.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    /// The folder.
    pub root: PathBuf,
    /// This file of the folder is served for every path.
    pub file: Option<PathBuf>,
    /// The part of the path that is cut off before it is looked for in the folder.
    pub strip: String,
    /// The Cache-Control of its answers.
    pub cache_control: Option<String>,
    /// Names that begin with a dot are served too.
    pub dot_files: bool,
}

/// Where a request is sent, and how.
#[derive(Debug, Clone)]
pub(crate) struct Forward {
    /// The server or group.
    pub to: ForwardTo,
    /// What replaces the matched prefix; `None`: the path stays as it was sent.
    pub path: Option<String>,
    /// The Host header that the server gets.
    pub host: HostRule,
    /// Whether the server learns of the client by `X-Forwarded-*`.
    pub forwarded: bool,
    /// Request headers that are set, after all other rules.
    pub set_headers: Vec<(HeaderName, HeaderValue)>,
    /// Request headers that are removed.
    pub remove_headers: Vec<HeaderName>,
    /// Longest waits.
    pub timeouts: Timeouts<Wait>,
    /// WebSockets may be opened here.
    pub websocket: bool,
    /// Longest body of a request, in bytes; `None`: no limit.
    pub max_body: Option<u64>,
    /// Whether `Location` and `Refresh` of an answer are rewritten to lead here (HTTP §2.4).
    pub rewrite_location: bool,
    /// Whether HTTP/2 is spoken with servers that offer it.
    pub http2: bool,
    /// How long idle connections to its servers are kept; zero: not at all; `None`: as its group says.
    pub keepalive: Option<Duration>,
}

/// The server that a request goes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ForwardTo {
    /// The server of the request's account, or any of them.
    Mailbox(Mailbox),
    /// Any server of a group.
    Group(Arc<str>),
}

/// A service of mailbox servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mailbox {
    /// The web client's side.
    Web,
    /// The administration side; only its own token names an account.
    Admin,
    /// The extensions on ports 8742 and 8743.
    Zx,
    /// Exchange Web Services, on the servers of `zimbraReverseProxyUpstreamEwsServers`.
    Ews,
}

impl Mailbox {
    /// The group of these servers.
    pub(crate) fn group(self) -> &'static str {
        match self {
            Self::Web => "mailbox",
            Self::Admin => "admin",
            Self::Zx => "zx",
            Self::Ews => "ews",
        }
    }
}

/// The Host header that a server gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HostRule {
    /// As the client sent it.
    Keep,
    /// Name of the group, or host and port of the mailbox server.
    Upstream,
    /// A text; `{host}` is the requested host without port, `{port}` the server's port.
    Text(String),
}

/// The longest waits for a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timeouts<T> {
    /// For the connection.
    pub connect: T,
    /// For it to take bytes of the request.
    pub send: T,
    /// For bytes of the answer.
    pub read: T,
    /// Silence of an open WebSocket.
    pub idle: T,
}

/// A wait as it is written.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wait {
    /// This long.
    Fixed(Duration),
    /// As long as an attribute of the node says.
    Attribute(&'static Attribute),
}

impl Wait {
    fn of(self, node: &View<'_>) -> Duration {
        match self {
            Self::Fixed(wait) => wait,
            Self::Attribute(attribute) => node.duration(attribute),
        }
    }
}

impl Timeouts<Wait> {
    /// The waits on a node.
    pub(crate) fn of(&self, node: &View<'_>) -> Timeouts<Duration> {
        Timeouts {
            connect: self.connect.of(node),
            send: self.send.of(node),
            read: self.read.of(node),
            idle: self.idle.of(node),
        }
    }
}

/// A location in force.
pub(crate) struct ActiveLocation {
    /// The location as it is written.
    pub location: Location,
    /// Its waits on this node, if it forwards requests.
    pub timeouts: Option<Timeouts<Duration>>,
    /// Its folder, if it answers with files.
    pub tree: Option<Tree>,
}

/// The location of a request.
#[derive(Debug, Clone)]
pub(crate) struct MatchedLocation {
    /// The location.
    pub entry: Arc<ActiveLocation>,
    /// How many bytes of the decoded path its prefix matched; 0 for a regex, the whole path for an exact one.
    pub matched: usize,
}

/// What the conditions of a location look at in a request.
#[derive(Clone, Copy)]
pub(crate) struct LocationQuery<'a> {
    /// The listener it came in by.
    pub listener: ListenerKind,
    /// The decoded path.
    pub path: &'a str,
    /// The requested host, in lower case.
    pub host: Option<&'a str>,
    /// Its head.
    pub request: &'a Parts,
}

/// The table in force: immutable, and fast to search.
pub(crate) struct LocationTable {
    entries: Vec<Arc<ActiveLocation>>,
    /// By path in lower case.
    exact: HashMap<String, Vec<(String, usize)>>,
    regexes: Vec<(Regex, usize)>,
    /// Longest first; of equal ones the one that is written first.
    prefixes: Vec<Prefix>,
    has_ews: bool,
}

struct Prefix {
    text: String,
    whole_segments: bool,
    entry: usize,
}

impl LocationTable {
    /// The table of these locations on a node. Locations for EWS servers are left out where `has_ews` says that there
    /// are none.
    pub(crate) fn new(locations: &[Location], node: &View<'_>, has_ews: bool) -> Self {
        let mut table = Self {
            entries: Vec::new(),
            exact: HashMap::new(),
            regexes: Vec::new(),
            prefixes: Vec::new(),
            has_ews,
        };
        for (at, location) in locations.iter().enumerate() {
            for path in &location.paths {
                table.add(path, at);
            }
            let timeouts = match &location.action {
                Action::Forward(forward) => Some(forward.timeouts.of(node)),
                _ => None,
            };
            let tree = match &location.action {
                Action::Files(files) => Some(files.tree()),
                _ => None,
            };
            table.entries.push(Arc::new(ActiveLocation {
                location: location.clone(),
                timeouts,
                tree,
            }));
        }
        // A stable sort: what is written first stays first.
        table
            .prefixes
            .sort_by_key(|prefix| std::cmp::Reverse(prefix.text.len()));
        table
    }

    fn add(&mut self, path: &PathMatch, entry: usize) {
        let (text, whole_segments) = match path {
            PathMatch::Exact(path) => {
                let same = self.exact.entry(path.to_ascii_lowercase()).or_default();
                return same.push((path.clone(), entry));
            }
            PathMatch::Regex(regex) => return self.regexes.push((regex.clone(), entry)),
            PathMatch::Prefix(text) => (text, true),
            PathMatch::Start(text) => (text, false),
        };
        self.prefixes.push(Prefix {
            text: text.clone(),
            whole_segments,
            entry,
        });
    }

    /// The location of a request. Of those whose conditions hold: the exact one, else the first regex, else the longest
    /// prefix.
    pub(crate) fn find(&self, query: LocationQuery<'_>) -> Option<MatchedLocation> {
        self.find_exact(query)
            .or_else(|| self.find_regex(query))
            .or_else(|| self.find_prefix(query))
    }

    /// Whether a server would read the path of this request as that of another location, whose rules were not applied.
    /// Where we answer ourselves, or send on the path as we have read it, only path parameters can be read differently.
    pub(crate) fn is_passed_by(&self, found: &MatchedLocation, query: LocationQuery<'_>) -> bool {
        let raw = query.request.uri.path();
        let as_sent = found.forward().is_some_and(|forward| forward.path.is_none());
        if !as_sent && !raw.contains(';') {
            return false;
        }
        let same = |path: &String| {
            let other = self.find(LocationQuery { path, ..query });
            other.is_some_and(|other| Arc::ptr_eq(&other.entry, &found.entry))
        };
        let readings = path::other_readings(raw);
        !readings.iter().all(|path| path.as_ref().is_some_and(same))
    }

    /// All locations, in the order of the file.
    pub(crate) fn entries(&self) -> &[Arc<ActiveLocation>] {
        &self.entries
    }

    fn find_exact(&self, query: LocationQuery<'_>) -> Option<MatchedLocation> {
        let path = query.path;
        let lower = match path.bytes().any(|b| b.is_ascii_uppercase()) {
            true => Cow::Owned(path.to_ascii_lowercase()),
            false => Cow::Borrowed(path),
        };
        let (_, entry) = self.exact.get(&*lower)?.iter().find(|(text, entry)| {
            let same = text == path || self.entries[*entry].location.ignore_case;
            same && self.admits(*entry, query)
        })?;
        Some(self.found(*entry, path.len()))
    }

    fn find_regex(&self, query: LocationQuery<'_>) -> Option<MatchedLocation> {
        let (_, entry) = self
            .regexes
            .iter()
            .find(|(regex, entry)| self.admits(*entry, query) && regex.is_match(query.path))?;
        Some(self.found(*entry, 0))
    }

    fn find_prefix(&self, query: LocationQuery<'_>) -> Option<MatchedLocation> {
        let prefix = self.prefixes.iter().find(|prefix| {
            let ignore_case = self.entries[prefix.entry].location.ignore_case;
            prefix.matches(query.path, ignore_case) && self.admits(prefix.entry, query)
        })?;
        Some(self.found(prefix.entry, prefix.text.len()))
    }

    fn found(&self, entry: usize, matched: usize) -> MatchedLocation {
        MatchedLocation {
            entry: self.entries[entry].clone(),
            matched,
        }
    }

    fn admits(&self, entry: usize, query: LocationQuery<'_>) -> bool {
        let location = &self.entries[entry].location;
        let no_ews = !self.has_ews
            && matches!(&location.action, Action::Forward(forward) if forward.to == ForwardTo::Mailbox(Mailbox::Ews));
        !no_ews && location.admits(query)
    }
}

impl Prefix {
    fn matches(&self, path: &str, ignore_case: bool) -> bool {
        let text = &self.text;
        let Some(start) = path.as_bytes().get(..text.len()) else {
            return false;
        };
        let begins = match ignore_case {
            true => start.eq_ignore_ascii_case(text.as_bytes()),
            false => start == text.as_bytes(),
        };
        let whole = || text.ends_with('/') || matches!(path.as_bytes().get(text.len()), None | Some(b'/'));
        begins && (!self.whole_segments || whole())
    }
}

impl Location {
    /// Whether all conditions hold, the path aside.
    fn admits(&self, query: LocationQuery<'_>) -> bool {
        let request = query.request;
        let host = || {
            let named = |host| self.hosts.iter().any(|wanted| wanted.matches(host));
            query.host.is_some_and(named)
        };
        let user_agent = |wanted: &String| {
            let agent = request.headers.get(http::header::USER_AGENT);
            agent.is_some_and(|agent| String::from_utf8_lossy(agent.as_bytes()).contains(wanted.as_str()))
        };
        let argument = |(name, value): &(String, String)| {
            let found = account::argument(&request.uri, name);
            found.is_some_and(|found| found == value.as_bytes())
        };
        self.listeners.contains(&query.listener)
            && (self.methods.is_empty() || self.methods.contains(&request.method))
            && (self.hosts.is_empty() || host())
            && self.user_agent.as_ref().is_none_or(user_agent)
            && self.query.as_ref().is_none_or(argument)
    }

    /// Whether a client at this address is served.
    pub(crate) fn allows(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        let networks = self.allow.as_ref();
        networks.is_none_or(|networks| networks.iter().any(|network| network.contains(&client)))
    }

    /// The rules for forwarding its requests, if it forwards.
    pub(crate) fn forward(&self) -> Option<&Forward> {
        match &self.action {
            Action::Forward(forward) => Some(forward),
            _ => None,
        }
    }
}

impl HostMatch {
    fn matches(&self, host: &str) -> bool {
        match self {
            Self::Name(name) => name == host,
            Self::Below(parent) => host
                .strip_suffix(parent.as_str())
                .is_some_and(|below| below.len() > 1 && below.ends_with('.')),
        }
    }
}

impl Destination {
    /// The place that the virtual host of a request names, if it names one.
    pub(crate) fn of_vhost<'a>(&self, vhost: &'a VirtualHost) -> Option<&'a str> {
        let url = match self.vhost? {
            VirtualHostUrl::Login => &vhost.login_url,
            VirtualHostUrl::Logout => &vhost.logout_url,
            VirtualHostUrl::AdminLogin => &vhost.admin_login_url,
            VirtualHostUrl::AdminLogout => &vhost.admin_logout_url,
        };
        url.as_ref()?.to_str().ok()
    }

    /// The place for the virtual host of a request.
    pub(crate) fn at(&self, vhost: &VirtualHost) -> String {
        self.of_vhost(vhost).unwrap_or(&self.to).to_owned()
    }
}

impl RequiredCookie {
    /// Where a request is sent that is not admitted; `None`: it is admitted.
    pub(crate) fn turns_away(&self, path: &str, request: &Parts) -> Option<&Destination> {
        let free = self.except.as_ref().is_some_and(|except| except.is_match(path));
        let shown = account::cookie(&request.headers, &self.cookie).is_some_and(|value| !value.is_empty());
        (!free && !shown).then_some(&self.to)
    }
}

impl MatchedLocation {
    /// The rules for forwarding the request, if it is forwarded.
    pub(crate) fn forward(&self) -> Option<&Forward> {
        self.entry.location.forward()
    }

    /// Path and query as the server gets them, if they are others than the client's.
    pub(crate) fn replaced(&self, forward: &Forward, query: LocationQuery<'_>) -> Option<String> {
        let with = forward.path.as_ref()?;
        Some(path::replaced(&query.request.uri, query.path, self.matched, with))
    }
}

impl Files {
    fn tree(&self) -> Tree {
        let options = static_ui::TreeOptions {
            file: self.file.clone(),
            index: Some("index.html".to_owned()),
            cache_control: self.cache_control.clone(),
            dot_files: self.dot_files,
            also: Vec::new(),
        };
        Tree::new(&self.root, options)
    }
}

impl fmt::Debug for ActiveLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry({})", self.location.name)
    }
}

impl fmt::Debug for LocationTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Table({} locations)", self.entries.len())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use http::Request;
    use mail_directory::Directory as _;
    use mail_directory::System;
    use mail_directory::file::YamlDirectory;

    use super::*;

    fn system(config: &str) -> Arc<System> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("directory.yaml");
        std::fs::write(&path, config).unwrap();
        YamlDirectory::load(&path).unwrap().0.system()
    }

    fn table(text: Option<&str>, has_ews: bool) -> LocationTable {
        let read = match text {
            Some(text) => Locations::parse(text),
            None => Locations::load(&[]),
        };
        let (read, warnings) = read.unwrap_or_else(|problems| panic!("{problems}"));
        assert!(warnings.is_empty(), "{warnings}");
        LocationTable::new(&read.locations, &system("config: {}").node("proxy"), has_ews)
    }

    fn request(target: &str, lines: &[&str]) -> Parts {
        let mut request = Request::builder().uri(target);
        for line in lines {
            let (name, value) = line.split_once(": ").unwrap();
            request = request.header(name, value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn find(
        table: &LocationTable,
        listener: ListenerKind,
        target: &str,
        lines: &[&str],
    ) -> Option<(String, MatchedLocation, Parts)> {
        let request = request(target, lines);
        let path = path::normalized(request.uri.path())?.into_owned();
        let query = LocationQuery {
            listener,
            path: &path,
            host: Some("mail.a.example"),
            request: &request,
        };
        let found = table.find(query)?;
        let name = found.entry.location.name.clone();
        Some((name, found, request))
    }

    #[track_caller]
    fn chosen(table: &LocationTable, listener: ListenerKind, target: &str, lines: &[&str]) -> String {
        find(table, listener, target, lines).map_or_else(|| "none".to_owned(), |(name, ..)| name)
    }

    /// Where Carbonio's table sends a request, for each of its rows and each of its corrections (HTTP §2.1 to §2.3,
    /// §12.2).
    #[test]
    fn rows_of_carbonio() {
        let carbonio = table(None, true);
        for (target, expected) in [
            ("/robots.txt", "exact /robots.txt"),
            ("/favicon.ico", "exact /favicon.ico"),
            ("/logout", "prefix /logout"),
            ("/logout/x", "prefix /logout"),
            ("/logoutx", "prefix /"),
            ("/services/docs/logout-x", "prefix /services/docs/"),
            ("/services/docs/x/logout", "prefix /services/docs/"),
            ("/zx/x/logout", "prefix /zx/"),
            ("/static/login/", "prefix /static/"),
            ("/services/files/x/static/y", "prefix /services/files/"),
            ("/home/bob/static/y", "prefix /service/"),
            ("/.well-known/acme-challenge/x", "prefix /.well-known/"),
            ("/xwell-known/y", "prefix /"),
            ("/.well-known/caldav", "prefix /.well-known/caldav"),
            ("/.well-known/carddav/", "prefix /.well-known/caldav"),
            ("/meeting", "prefix /meeting*"),
            ("/meeting/room", "prefix /meeting*"),
            ("/meetingXYZ", "prefix /meeting*"),
            (
                "/files/public/link/access/assets/x.js",
                "prefix /files/public/link/access/assets/",
            ),
            ("/files/public/link/access/abc", "prefix /files/public/link/access/"),
            ("/carbonio/focus-mode/meetings", "prefix /carbonio/focus-mode/meetings"),
            (
                "/carbonio/focus-mode/meetings/1",
                "prefix /carbonio/focus-mode/meetings",
            ),
            ("/carbonio/focus-mode/meetingsx", "prefix /carbonio"),
            ("/carbonio", "prefix /carbonio"),
            ("/carbonio/mails", "prefix /carbonio"),
            ("/carboniox", "prefix /"),
            ("/?loginOp=logout", "exact /"),
            ("/", "exact /"),
            ("/zx/powerstore/x", "prefix /zx/powerstore/"),
            ("/nginx_status", "exact /nginx_status"),
            ("/zmerror_upstream_502.html", "regex ^/zmerror_[^/]*\\.html$"),
            ("/Carbonio_error_404.html", "regex ^/zmerror_[^/]*\\.html$"),
            ("/services/files/graphql", "prefix /services/files/"),
            ("/services/chats/events", "prefix /services/chats/events"),
            ("/services/chats/rooms", "prefix /services/chats/"),
            ("/services/messaging/ws-xmpp", "prefix /services/messaging/ws-xmpp"),
            ("/services/docs/x", "prefix /services/docs/"),
            ("/services/docs/editor/x", "prefix /services/docs/editor/"),
            ("/services/tasks/x", "prefix /services/tasks/"),
            ("/services/storages/x", "prefix /services/storages/"),
            ("/services/catalog/x", "prefix /services/catalog/"),
            ("/services/mobile/tokens", "prefix /services/mobile/tokens"),
            (
                "/services/certificate-manager/x",
                "prefix /services/certificate-manager/",
            ),
            ("/zx/login/v3/config", "prefix /zx/login/"),
            ("/zx/auth/supported", "prefix /zx/login/"),
            ("/zx/ws-x/y", "prefix /zx/ws-*"),
            ("/zx/x", "prefix /zx/"),
            (
                "/Microsoft-Server-ActiveSync?Cmd=Sync",
                "prefix /Microsoft-Server-ActiveSync*",
            ),
            ("/service/extension/drive/a/b", "regex ^/service/extension/drive/.+/"),
            ("/SERVICE/extension/Drive/a/b", "regex ^/service/extension/drive/.+/"),
            ("/service/extension/drive/a", "prefix /service/"),
            ("/service/soap/NoOpRequest", "prefix /service/soap/NoOpRequest*"),
            ("/service/soap/WaitSetRequest", "prefix /service/soap/NoOpRequest*"),
            ("/service/soap/SearchRequest", "prefix /service/"),
            ("/autodiscover/autodiscover.xml", "prefix /autodiscover*"),
            ("/Autodiscover/Autodiscover.xml", "prefix /autodiscover*"),
            ("/EWS/exchange.asmx", "prefix /ews/Exchange.asmx*"),
            ("/service/admin/soap/GetDomainRequest", "prefix /service/admin"),
            ("/service//admin/soap", "prefix /service/admin"),
            ("/service/x/%2e%2e/admin/soap", "prefix /service/admin"),
            ("/service/home/~/", "prefix /service/"),
            ("/service", "prefix /"),
            ("/principals/users/bob/", "prefix /service/"),
            ("/dav/bob/Calendar/", "prefix /service/"),
            ("/home/~/x", "prefix /service/"),
            ("/shf/x", "prefix /service/"),
            ("/user/x", "prefix /service/"),
            ("/zimbraAdmin", "prefix /"),
            ("/modern", "prefix /"),
            ("/x/service/y", "prefix /"),
        ] {
            assert_eq!(chosen(&carbonio, ListenerKind::Web, target, &[]), expected, "{target}");
        }
        for (target, expected) in [
            ("/favicon.ico", "exact /favicon.ico"),
            ("/", "prefix /"),
            ("/anything", "prefix /"),
            ("/robots.txt", "prefix /"),
            ("/carbonioAdmin", "prefix /carbonioAdmin*"),
            ("/carbonioAdmin/domains", "prefix /carbonioAdmin*"),
            ("/login/x.js", "prefix /login"),
            ("/static/login/", "prefix /static/"),
            ("/logout", "prefix /logout"),
            ("/service/admin/soap/AuthRequest", "prefix /service"),
            ("/services/storages/x", "prefix /services/storages/"),
            ("/services/catalog/x", "prefix /services/catalog/"),
            ("/services/files/x", "prefix /"),
            ("/zx/powerstore/x", "prefix /zx/powerstore/"),
            ("/zx/login/v3/config", "prefix /zx/"),
            ("/zx/auth/x", "prefix /zx/"),
            ("/.well-known/x", "prefix /"),
            ("/Microsoft-Server-ActiveSync", "prefix /"),
        ] {
            assert_eq!(
                chosen(&carbonio, ListenerKind::Admin, target, &[]),
                expected,
                "admin {target}"
            );
        }
    }

    /// Two locations have `exact /`, `prefix /autodiscover*`: their conditions tell them apart.
    #[test]
    fn conditions() {
        let carbonio = table(None, true);
        let outlook = ["user-agent: Microsoft ExchangeWebServices/1.0"];
        let of = |table: &LocationTable, target: &str, lines: &[&str]| {
            let (_, found, _) = find(table, ListenerKind::Web, target, lines).unwrap();
            found.forward().map(|forward| forward.to.clone())
        };
        let (web, ews) = (
            Some(ForwardTo::Mailbox(Mailbox::Web)),
            Some(ForwardTo::Mailbox(Mailbox::Ews)),
        );
        assert_eq!(of(&carbonio, "/Autodiscover/x", &outlook), ews);
        assert_eq!(of(&carbonio, "/Autodiscover/x", &["user-agent: curl"]), web);
        assert_eq!(of(&carbonio, "/ews/exchange.asmx", &[]), ews);
        let no_ews = table(None, false);
        assert_eq!(of(&no_ews, "/Autodiscover/x", &outlook), web);
        assert_eq!(of(&no_ews, "/ews/exchange.asmx", &[]), web);
        let logout = |target| {
            let (_, found, _) = find(&carbonio, ListenerKind::Web, target, &[]).unwrap();
            matches!(found.entry.location.action, Action::Logout { .. })
        };
        assert!(logout("/?x=1&loginOp=logout"));
        assert!(!logout("/?loginOp=relogin"));
        let own = table(
            Some(
                "locations:\n\
                 - {exact: /a, methods: POST, answer: {body: post}}\n\
                 - {exact: /a, hosts: '*.a.example', answer: {body: host}}\n\
                 - {exact: /a, hosts: other.example, answer: {body: other}}\n\
                 - {exact: /a, answer: {body: rest}}\n",
            ),
            false,
        );
        let body = |host: &str| {
            let request = request("/a", &[]);
            let found = own.find(LocationQuery {
                listener: ListenerKind::Web,
                path: "/a",
                host: Some(host),
                request: &request,
            });
            match &found.unwrap().entry.location.action {
                Action::Answer { body, .. } => body.clone().unwrap(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(body("mail.a.example"), "host");
        assert_eq!(body("a.example"), "rest");
        assert_eq!(body("xa.example"), "rest");
        assert_eq!(body("other.example"), "other");
    }

    /// Jetty takes `/service;x/admin` for `/service/admin`; here it is below `/`. Jetty also keeps empty segments,
    /// which dots may take back.
    #[test]
    fn no_reading_is_a_way_past_a_location() {
        let carbonio = table(None, false);
        for (target, expected) in [
            ("/service;x/admin/soap", true),
            ("/;x/service/admin/soap", true),
            ("/service/admin;x/soap", true),
            ("/service/admi%6e;x/soap", true),
            ("/static;x/login", true),
            ("/zimbra;%2e/upload", false),
            ("/service%3bx/admin/soap", false),
            ("/service/upload;jsessionid=node01abc?fmt=raw", false),
            ("/home/bob;x/inbox;y", false),
            ("/service/upload?a;b", false),
            ("/service//../admin/soap", true),
            ("/service/extension//../../admin/q", true),
            ("/service/x//../admin", false),
            ("/service/x/;/../../admin", true),
            ("/service/x%2f..%2f../y", true),
            ("/home/x%5c..%5c..%5cservice", true),
            ("//service/soap", true),
            ("/service//soap//x", false),
            ("/service/a%2fb", false),
            ("/home/a.example%5cbob/x", false),
            ("//carbonio//x", false),
            ("/service/x/../y", false),
        ] {
            let (_, found, request) = find(&carbonio, ListenerKind::Web, target, &[]).unwrap();
            let path = path::normalized(request.uri.path()).unwrap();
            let query = LocationQuery {
                listener: ListenerKind::Web,
                path: &path,
                host: Some("mail.a.example"),
                request: &request,
            };
            assert_eq!(carbonio.is_passed_by(&found, query), expected, "{target}");
        }
    }

    /// Exact, then the first regex, then the longest prefix; of equal ones the first.
    #[test]
    fn order() {
        let table = table(
            Some(
                "locations:\n\
                 - {prefix: /a, answer: {body: '1'}}\n\
                 - {prefix: /a/long/, answer: {body: '2'}}\n\
                 - {regex: '^/a/.*\\.txt$', answer: {body: '3'}}\n\
                 - {regex: '^/a/x', answer: {body: '4'}}\n\
                 - {exact: /a/x.txt, answer: {body: '5'}}\n\
                 - {exact: /a/x.txt, answer: {body: '6'}}\n\
                 - {prefix: '/b*', ignore_case: true, answer: {body: '7'}}\n\
                 - {exact: /C, ignore_case: true, answer: {body: '8'}}\n",
            ),
            false,
        );
        for (target, expected) in [
            ("/a", "1"),
            ("/a/", "1"),
            ("/ab", ""),
            ("/a/long/x", "2"),
            ("/a/long", "1"),
            ("/a/long/x.txt", "3"),
            ("/a/xy", "4"),
            ("/a/x.txt", "5"),
            ("/Bcd", "7"),
            ("/c", "8"),
            ("/A", ""),
        ] {
            let found = find(&table, ListenerKind::Web, target, &[]);
            let body = found.map(|(_, found, _)| match &found.entry.location.action {
                Action::Answer { body, .. } => body.clone().unwrap_or_default(),
                other => panic!("{other:?}"),
            });
            assert_eq!(body.unwrap_or_default(), expected, "{target}");
        }
    }

    /// How long each row waits for its server (HTTP §2.3).
    #[test]
    fn waits_of_carbonio() {
        let seconds = Duration::from_secs;
        let (usual, poll, noop) = (seconds(60), seconds(3600), seconds(1220));
        let expected = BTreeMap::from([
            ("/services/files/x", usual),
            ("/services/chats/events", usual),
            ("/services/docs/editor/x", usual),
            ("/zx/login/x", usual),
            ("/zx/ws-x", usual),
            ("/zx/x", usual),
            ("/Microsoft-Server-ActiveSync", poll),
            ("/service/extension/drive/a/b", noop),
            ("/service/soap/NoOpRequest", noop),
            ("/service/soap/WaitSetRequest", noop),
            ("/autodiscover/x", usual),
            ("/ews/Exchange.asmx", poll),
            ("/service/soap/SearchRequest", usual),
            ("/dav/bob/", usual),
            ("/", usual),
        ]);
        for has_ews in [true, false] {
            let table = table(None, has_ews);
            for (target, read) in &expected {
                let target = if *target == "/" { "/anything" } else { target };
                let (_, found, _) = find(&table, ListenerKind::Web, target, &[]).unwrap();
                let timeouts = found.entry.timeouts.unwrap();
                assert_eq!(timeouts.read, *read, "{target}");
                assert_eq!((timeouts.connect, timeouts.send), (seconds(25), usual), "{target}");
                assert_eq!(timeouts.idle, poll, "{target}");
            }
        }
        // Attributes are those of the node.
        let (read, _) = Locations::load(&[]).unwrap();
        let system = system(
            "config: {zimbraReverseProxyUpstreamReadTimeout: 30s}\n\
             servers: {proxy: {zimbraReverseProxyUpstreamPollingTimeout: 2h}}\n",
        );
        let table = LocationTable::new(&read.locations, &system.node("proxy"), false);
        let read = |target| {
            find(&table, ListenerKind::Web, target, &[])
                .unwrap()
                .1
                .entry
                .timeouts
                .unwrap()
                .read
        };
        assert_eq!(read("/dav/x"), seconds(30));
        assert_eq!(read("/Microsoft-Server-ActiveSync"), seconds(7200));
    }

    #[test]
    fn gates() {
        let carbonio = table(None, false);
        let turned = |target: &str, lines: &[&str]| {
            let (_, found, request) = find(&carbonio, ListenerKind::Web, target, lines).unwrap();
            let path = path::normalized(request.uri.path()).unwrap().into_owned();
            let required_cookie = found.entry.location.required_cookie.as_ref().unwrap();
            required_cookie.turns_away(&path, &request).map(|to| to.to.clone())
        };
        let login = Some("/static/login/".to_owned());
        assert_eq!(turned("/carbonio/", &[]), login);
        assert_eq!(turned("/carbonio/", &["cookie: XZM_AUTH_TOKEN=1"]), login);
        assert_eq!(turned("/carbonio/", &["cookie: ZX_AUTH_TOKEN=1"]), login);
        assert_eq!(turned("/carbonio/", &["cookie: a=ZM_AUTH_TOKEN=1"]), login);
        assert_eq!(turned("/carbonio/", &["cookie: ZM_AUTH_TOKEN="]), login);
        assert_eq!(turned("/carbonio/", &["cookie: a=b; ZM_AUTH_TOKEN=0_1_2"]), None);
        assert_eq!(
            turned("/carbonio/", &["cookie: a=b", "cookie: ZM_AUTH_TOKEN=0_1_2"]),
            None
        );
        assert_eq!(turned("/services/files/x", &[]), login);
        assert_eq!(turned("/services/files/link/x", &[]), None);
        assert_eq!(turned("/services/files/Public/x", &[]), None);
        assert_eq!(turned("/services/files/publicx", &[]), login);
        assert_eq!(turned("/services/files/x/../link/y", &[]), None);
    }

    #[test]
    fn targets() {
        let carbonio = table(None, false);
        for (target, expected) in [
            ("/services/files/x?y=1", "/x?y=1"),
            ("/services/chats/events", "/events"),
            ("/services/docs/editor/x", "/services/docs/editor/x"),
            ("/services/mobile/tokens/1", "/tokens/1"),
            ("/zx/login/a%20b", "/zx/login/a%20b"),
            ("/home/./x/../y", "/home/./x/../y"),
        ] {
            let (_, found, request) = find(&carbonio, ListenerKind::Web, target, &[]).unwrap();
            let path = path::normalized(request.uri.path()).unwrap().into_owned();
            let query = LocationQuery {
                listener: ListenerKind::Web,
                path: &path,
                host: None,
                request: &request,
            };
            let replaced = found.replaced(found.forward().unwrap(), query);
            assert_eq!(replaced.as_deref().unwrap_or(target), expected, "{target}");
        }
    }

    #[track_caller]
    fn wrong(text: &str, line: usize, key: &str, message: &str) {
        let problems = Locations::parse(text).expect_err(text).to_string();
        let start = format!("locations.yaml:{line}: {key}: ");
        let found = problems.lines().any(|l| l.starts_with(&start) && l.contains(message));
        assert!(found, "{text}\n{problems}");
    }

    #[test]
    fn mistakes_are_told_with_line_and_key() {
        wrong("locations:\n- {answer: {}}", 2, "locations[0]", "says no path");
        wrong("locations:\n- {exact: /a}", 2, "locations[0]", "wants one of");
        wrong(
            "locations:\n- exact: /a\n  answer: {}\n  status: true",
            2,
            "locations[0]",
            "has 2",
        );
        wrong(
            "locations:\n- {exact: a, answer: {}}",
            2,
            "locations[0].exact",
            "expected a path",
        );
        wrong(
            "locations:\n- {exact: /a//b, answer: {}}",
            2,
            "locations[0].exact",
            "expected a path",
        );
        wrong(
            "locations:\n- {exact: /a/../b, answer: {}}",
            2,
            "locations[0].exact",
            "expected a path",
        );
        wrong(
            "locations:\n- {regex: 'a', answer: {}}",
            2,
            "locations[0].regex",
            "anchored",
        );
        wrong(
            "locations:\n- {regex: '^/a|/b', answer: {}}",
            2,
            "locations[0].regex",
            "anchored",
        );
        wrong(
            "locations:\n- {regex: '^/(', answer: {}}",
            2,
            "locations[0].regex",
            "unclosed",
        );
        wrong(
            "locations:\n- {regex: '^/(a{1000}){1000}', answer: {}}",
            2,
            "locations[0].regex",
            "size limit",
        );
        wrong(
            "locations:\n- {exact: /a, group: files}",
            2,
            "locations[0].group",
            "no group files",
        );
        wrong(
            "locations:\n- {exact: /a, mailbox: webb}",
            2,
            "locations[0].mailbox",
            "one of web, admin",
        );
        wrong(
            "locations:\n- {exact: /a, mailbox: web, hosst: keep}",
            2,
            "locations[0].hosst",
            "did you mean",
        );
        wrong(
            "locations:\n- {exact: /a, mailbox: web, host: 'a b'}",
            2,
            "locations[0].host",
            "expected keep",
        );
        wrong(
            "locations:\n- {exact: /a, mailbox: web, max_body: 3X}",
            2,
            "locations[0].max_body",
            "a size",
        );
        wrong(
            "locations:\n- exact: /a\n  mailbox: web\n  timeouts:\n    read: zimbraMailPort",
            5,
            "locations[0].timeouts.read",
            "no attribute that could stand here",
        );
        wrong(
            "locations:\n- {exact: /a, mailbox: web, timeouts: {read: 5}}",
            2,
            "locations[0].timeouts.read",
            "a duration",
        );
        wrong(
            "locations:\n- {exact: /a, mailbox: web, set_headers: {Content-Length: 1}}",
            2,
            "locations[0].set_headers.Content-Length",
            "no header that can be changed",
        );
        wrong(
            "locations:\n- {regex: '^/a', mailbox: web, path: /}",
            2,
            "locations[0].path",
            "takes the place of a prefix",
        );
        wrong(
            "locations:\n- {exact: /a, static: {root: /x, file: ../y}}",
            2,
            "locations[0].static.file",
            "below root",
        );
        wrong(
            "locations:\n- {exact: /a, methods: get, answer: {}}",
            2,
            "locations[0].methods",
            "capital letters",
        );
        wrong("groups:\n  files: {servers: []}", 2, "groups.files.servers", "1 to 256");
        wrong(
            "groups:\n  files: {servers: ['a']}",
            2,
            "groups.files.servers[0]",
            "a server and its port",
        );
        wrong(
            "groups:\n  ews: {servers: ['a:1']}",
            2,
            "groups.ews",
            "stand in the directory",
        );
        wrong(
            "locations:\n- {include: carbonio, exact: /a}",
            2,
            "locations[0].exact",
            "unknown key",
        );
    }

    #[test]
    fn files_include_files() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            std::fs::write(dir.path().join(name), text).unwrap();
            dir.path().join(name)
        };
        let site = write(
            "site.yaml",
            "groups:\n  files: {servers: [{server: 'a.test:1', weight: 3}, '[::1]:2'], tls: true, check: /health}\n\
             locations:\n- {exact: /robots.txt, answer: {body: own}}\n- include: more.yaml\n- include: carbonio\n",
        );
        write("more.yaml", "locations:\n- {prefix: /more/, group: files}\n");
        let (read, _) = Locations::load(&[site]).unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(read.files.len(), 2);
        let files = &read.groups[0];
        assert_eq!((files.servers.len(), files.servers[0].weight), (2, 3));
        assert_eq!((files.servers[1].host.as_str(), files.servers[1].port), ("::1", 2));
        assert_eq!(
            files.check,
            crate::upstream::groups::spec::Check::Http {
                path: "/health".to_owned()
            }
        );
        assert_eq!(read.groups.iter().filter(|group| group.name == "files").count(), 1);
        let table = LocationTable::new(&read.locations, &system("config: {}").node("x"), false);
        let (_, found, _) = find(&table, ListenerKind::Web, "/robots.txt", &[]).unwrap();
        let Action::Answer { body, .. } = &found.entry.location.action else {
            panic!()
        };
        assert_eq!(body.as_deref(), Some("own"));
        assert_eq!(chosen(&table, ListenerKind::Web, "/more/x", &[]), "prefix /more/");
        assert_eq!(chosen(&table, ListenerKind::Web, "/zx/x", &[]), "prefix /zx/");
        let circle = write("circle.yaml", "locations:\n- include: circle.yaml\n");
        let problems = Locations::load(&[circle]).unwrap_err().to_string();
        assert!(problems.contains("deep"), "{problems}");
        let gone = Locations::load(&[dir.path().join("gone.yaml")])
            .unwrap_err()
            .to_string();
        assert!(gone.contains("gone.yaml"), "{gone}");
    }
}
