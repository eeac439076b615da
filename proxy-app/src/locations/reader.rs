//! Reads files of locations: strictly, and all problems at once, each with file, line and key.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use mail_directory::attributes::{self, Attribute, Kind};
use mail_directory::yaml::{Document, Mapping, Node, Problems};
use regex::{Regex, RegexBuilder};

use route_cache::HostPort;

use crate::locations::{
    Action, Destination, Files, Forward, ForwardTo, HostMatch, HostRule, ListenerKind, Location, Mailbox, PathMatch,
    RequiredCookie, Timeouts, VirtualHostUrl, Wait,
};
use crate::upstream::groups::spec::{Check, GroupServerSpec, GroupSpec, GroupTls};

/// Carbonio's whole table.
const CARBONIO: &str = include_str!("../../../conf/carbonio.yaml");
/// Its name in `include`, and the name that problems show.
const CARBONIO_NAME: &str = "carbonio";

/// Most locations of a table, and most groups: far more than a file needs; each request looks through them.
const LOCATIONS_MAX: usize = 2000;
const GROUPS_MAX: usize = 500;
/// Most servers of a group.
const SERVERS_MAX: usize = 256;
/// Files may include files this deep.
const INCLUDES_MAX: usize = 8;
/// Most memory of a compiled regex, in bytes. A list of some hundred names takes a tenth of it.
const REGEX_SIZE: usize = 256 * 1024;
/// Longest body of a fixed answer. It is kept in memory.
const BODY_MAX: usize = 64 * 1024;
/// Groups whose servers the directory names.
const OF_DIRECTORY: [&str; 5] = ["mailbox", "admin", "zx", "ews", "login"];
/// The cookies that a logout clears (HTTP §2.5).
const COOKIES: [&str; 8] = [
    "ZM_AUTH_TOKEN",
    "ZX_AUTH_TOKEN",
    "ZM_ADMIN_AUTH_TOKEN",
    "JSESSIONID",
    "AUTH_TOKEN_TYPE",
    "T",
    "Y",
    "ADMIN_AUTH_KEY",
];

/// Locations and groups as they are written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Locations {
    /// In the order in which they are written; included files are in their place.
    pub locations: Vec<Location>,
    /// The groups that the files name. Of two with the same name the first counts.
    pub groups: Vec<GroupSpec>,
    /// The files that were read, to look for changes.
    pub files: Vec<PathBuf>,
}

impl Locations {
    /// Reads these files, one after the other; without files, Carbonio's table.
    ///
    /// # Errors
    /// All problems of the files at once. Otherwise the second value holds the warnings.
    pub(crate) fn load(files: &[PathBuf]) -> Result<(Self, Problems), Problems> {
        let mut reader = LocationsReader::default();
        match files {
            [] => reader.carbonio(),
            files => files.iter().for_each(|file| reader.file(file, 0)),
        }
        reader.check_groups();
        reader.problems.or(reader.found)
    }

    #[cfg(test)]
    pub(super) fn parse(text: &str) -> Result<(Self, Problems), Problems> {
        let mut reader = LocationsReader::default();
        reader.document(Document::parse(text, Path::new("locations.yaml")), 0);
        reader.check_groups();
        reader.problems.or(reader.found)
    }
}

#[derive(Default)]
struct LocationsReader {
    found: Locations,
    /// Where a group is named: file, line and key, to be checked when all files are read.
    named: Vec<(String, Problems)>,
    problems: Problems,
}

impl LocationsReader {
    fn carbonio(&mut self) {
        self.document(Document::parse(CARBONIO, Path::new(CARBONIO_NAME)), 0);
    }

    fn file(&mut self, path: &Path, depth: usize) {
        self.found.files.push(path.to_owned());
        self.document(Document::load(path), depth);
    }

    fn document(&mut self, document: Result<Document, Problems>, depth: usize) {
        let document = match document {
            Ok(document) => document,
            Err(problems) => return self.problems.extend(problems),
        };
        let Some(mut root) = document.root().mapping(&mut self.problems) else {
            return;
        };
        if let Some(groups) = root.take("groups") {
            self.groups(groups);
        }
        if let Some(locations) = root.take("locations") {
            self.locations(locations, depth);
        }
        root.finish(&mut self.problems);
    }

    fn groups(&mut self, node: Node<'_>) {
        let Some(groups) = node.mapping(&mut self.problems) else {
            return;
        };
        for (name, node) in groups.entries() {
            if OF_DIRECTORY.contains(&name) {
                node.error("the servers of this group stand in the directory", &mut self.problems);
                continue;
            }
            if self.found.groups.len() >= GROUPS_MAX {
                node.error(format!("more than {GROUPS_MAX} groups"), &mut self.problems);
                return;
            }
            let known = self.found.groups.iter().any(|group| group.name == name);
            if let Some(group) = self.group(name, node).filter(|_| !known) {
                self.found.groups.push(group);
            }
        }
    }

    fn group(&mut self, name: &str, node: Node<'_>) -> Option<GroupSpec> {
        let mut section = node.mapping(&mut self.problems)?;
        let servers = section.require("servers", &mut self.problems);
        let servers = servers.map(|node| self.servers(node)).unwrap_or_default();
        let tls = self.group_tls(&mut section);
        let check = self.check(&mut section);
        let keepalive = self.keepalive(&mut section);
        section.finish(&mut self.problems);
        Some(GroupSpec {
            name: name.to_owned(),
            servers,
            tls,
            check,
            keepalive,
        })
    }

    fn servers(&mut self, node: Node<'_>) -> Vec<GroupServerSpec> {
        let items = node.one_or_many(&mut self.problems).unwrap_or_default();
        if items.is_empty() || items.len() > SERVERS_MAX {
            node.error(format!("wants 1 to {SERVERS_MAX} servers"), &mut self.problems);
        }
        items.into_iter().filter_map(|item| self.server(item)).collect()
    }

    /// `host:port`, or `{server: host:port, weight: 2}`.
    fn server(&mut self, item: Node<'_>) -> Option<GroupServerSpec> {
        if !item.is_mapping() {
            return self.host_and_port(item, 1);
        }
        let mut section = item.mapping(&mut self.problems)?;
        let server = section.require("server", &mut self.problems);
        let weight = section.take("weight");
        section.finish(&mut self.problems);
        let mut number = 1;
        if let Some(node) = weight {
            match node.u32(&mut self.problems) {
                Some(weight @ 1..=1000) => number = weight,
                _ => node.error("expected a weight from 1 to 1000", &mut self.problems),
            }
        }
        self.host_and_port(server?, number)
    }

    fn host_and_port(&mut self, node: Node<'_>, weight: u32) -> Option<GroupServerSpec> {
        let text = node.str(&mut self.problems)?;
        let Ok(HostPort { host, port }) = text.parse() else {
            node.error(
                "expected a server and its port, as in 127.78.0.1:20000",
                &mut self.problems,
            );
            return None;
        };
        Some(GroupServerSpec {
            host: host.to_string(),
            port,
            weight,
        })
    }

    /// `tls: true`, or `tls: {name: files.example.test, verify: false}`.
    fn group_tls(&mut self, section: &mut Mapping<'_>) -> Option<GroupTls> {
        let node = section.take("tls")?;
        if !node.is_mapping() {
            return node.bool(&mut self.problems)?.then_some(GroupTls {
                name: None,
                verify: true,
            });
        }
        let mut tls = node.mapping(&mut self.problems)?;
        let name = tls.take("name").and_then(|node| node.str(&mut self.problems));
        let verify = tls.take("verify").and_then(|node| node.bool(&mut self.problems));
        tls.finish(&mut self.problems);
        Some(GroupTls {
            name: name.map(str::to_owned),
            verify: verify.unwrap_or(true),
        })
    }

    /// `check: tcp`, or `check: /health`.
    fn check(&mut self, section: &mut Mapping<'_>) -> Check {
        let Some(node) = section.take("check") else {
            return Check::Tcp;
        };
        match node.str(&mut self.problems) {
            Some("tcp") | None => Check::Tcp,
            Some(path) if path.starts_with('/') => Check::Http { path: path.to_owned() },
            Some(_) => {
                node.error("expected tcp, or a path that is asked for", &mut self.problems);
                Check::Tcp
            }
        }
    }

    fn locations(&mut self, node: Node<'_>, depth: usize) {
        for item in node.items(&mut self.problems).unwrap_or_default() {
            if self.found.locations.len() >= LOCATIONS_MAX {
                return item.error(format!("more than {LOCATIONS_MAX} locations"), &mut self.problems);
            }
            let Some(mut entry) = item.mapping(&mut self.problems) else {
                continue;
            };
            match entry.take("include") {
                Some(node) => {
                    entry.finish(&mut self.problems);
                    self.include(node, depth);
                }
                None => {
                    if let Some(location) = self.location(entry) {
                        self.found.locations.push(location);
                    }
                }
            }
        }
    }

    fn include(&mut self, node: Node<'_>, depth: usize) {
        if node.str(&mut self.problems) == Some(CARBONIO_NAME) {
            return self.carbonio();
        }
        match node.path_buf(&mut self.problems) {
            Some(_) if depth >= INCLUDES_MAX => {
                node.error(
                    format!("files include files more than {INCLUDES_MAX} deep"),
                    &mut self.problems,
                );
            }
            Some(path) => self.file(&path, depth + 1),
            None => {}
        }
    }

    fn location(&mut self, mut entry: Mapping<'_>) -> Option<Location> {
        let node = entry.node();
        let before = self.problems.len();
        let ignore_case = self.flag(&mut entry, "ignore_case", false);
        let paths = self.paths(&mut entry, ignore_case);
        if paths.is_empty() && self.problems.len() == before {
            node.error("says no path: exact, prefix or regex", &mut self.problems);
        }
        let action = self.action(&mut entry, &paths);
        let location = Location {
            name: name_of(&paths),
            ignore_case,
            listeners: self.listeners(&mut entry),
            hosts: self.hosts(&mut entry),
            methods: self.methods(&mut entry),
            user_agent: self.text(&mut entry, "user_agent"),
            query: self.query(&mut entry),
            allow: entry.take("allow").and_then(|node| node.networks(&mut self.problems)),
            required_cookie: self.required_cookie(&mut entry),
            security_headers: self.flag(&mut entry, "security_headers", true),
            answer_headers: self.headers(&mut entry, "answer_headers"),
            // A location without one is left out below, after all of its mistakes have been found.
            action: action.clone().unwrap_or(Action::Status),
            paths,
        };
        entry.finish(&mut self.problems);
        action.map(|_| location)
    }

    fn paths(&mut self, entry: &mut Mapping<'_>, ignore_case: bool) -> Vec<PathMatch> {
        let mut paths = Vec::new();
        for (key, kind) in [("exact", 0), ("prefix", 1), ("regex", 2)] {
            let Some(node) = entry.take(key) else { continue };
            for item in node.one_or_many(&mut self.problems).unwrap_or_default() {
                let Some(text) = item.str(&mut self.problems) else {
                    continue;
                };
                match kind {
                    2 => paths.extend(self.regex(item, ignore_case).map(PathMatch::Regex)),
                    _ if !is_path(text) => {
                        item.error(
                            "expected a path as it is when decoded, from its first slash",
                            &mut self.problems,
                        );
                    }
                    0 => paths.push(PathMatch::Exact(text.to_owned())),
                    _ => paths.push(match text.strip_suffix('*') {
                        Some(start) => PathMatch::Start(start.to_owned()),
                        None => PathMatch::Prefix(text.to_owned()),
                    }),
                }
            }
        }
        paths
    }

    /// A regex that begins with `^`: one that may match anywhere in a path catches paths that it was not meant for.
    fn regex(&mut self, node: Node<'_>, ignore_case: bool) -> Option<Regex> {
        let text = node.str(&mut self.problems)?;
        if !text.starts_with('^') || has_open_alternative(text) {
            node.error(
                "must be anchored: begin with ^, and have | only in parentheses",
                &mut self.problems,
            );
            return None;
        }
        let built = RegexBuilder::new(text)
            .case_insensitive(ignore_case)
            .size_limit(REGEX_SIZE)
            .dfa_size_limit(REGEX_SIZE)
            .build();
        built
            .map_err(|error| node.error(one_line(&error.to_string()), &mut self.problems))
            .ok()
    }

    fn listeners(&mut self, entry: &mut Mapping<'_>) -> Vec<ListenerKind> {
        let table = [("web", 0), ("admin", 1), ("both", 2)];
        let chosen = entry
            .take("listener")
            .and_then(|node| node.choice(&table, &mut self.problems));
        match chosen.unwrap_or(0) {
            0 => vec![ListenerKind::Web],
            1 => vec![ListenerKind::Admin],
            _ => vec![ListenerKind::Web, ListenerKind::Admin],
        }
    }

    fn hosts(&mut self, entry: &mut Mapping<'_>) -> Vec<HostMatch> {
        let Some(names) = entry.take("hosts").and_then(|node| node.strs(&mut self.problems)) else {
            return Vec::new();
        };
        let host = |name: &str| {
            let name = name.to_ascii_lowercase();
            match name.strip_prefix('*') {
                Some(parent) if parent.starts_with('.') => HostMatch::Below(parent[1..].to_owned()),
                _ => HostMatch::Name(name),
            }
        };
        names.into_iter().map(host).collect()
    }

    fn methods(&mut self, entry: &mut Mapping<'_>) -> Vec<Method> {
        let Some(node) = entry.take("methods") else {
            return Vec::new();
        };
        let mut methods = Vec::new();
        for item in node.one_or_many(&mut self.problems).unwrap_or_default() {
            let Some(text) = item.str(&mut self.problems) else {
                continue;
            };
            match Method::from_bytes(text.as_bytes()) {
                Ok(method) if !text.bytes().any(|b| b.is_ascii_lowercase()) => methods.push(method),
                _ => item.error("expected a method in capital letters, such as GET", &mut self.problems),
            }
        }
        methods
    }

    /// `query: loginOp=logout`
    fn query(&mut self, entry: &mut Mapping<'_>) -> Option<(String, String)> {
        let node = entry.take("query")?;
        match node.str(&mut self.problems)?.split_once('=') {
            Some((name, value)) if !name.is_empty() => Some((name.to_owned(), value.to_owned())),
            _ => {
                node.error(
                    "expected an argument with its value, as in loginOp=logout",
                    &mut self.problems,
                );
                None
            }
        }
    }

    fn required_cookie(&mut self, entry: &mut Mapping<'_>) -> Option<RequiredCookie> {
        let mut section = entry.take("gate")?.mapping(&mut self.problems)?;
        let cookie = section.require("cookie", &mut self.problems);
        let cookie = cookie.and_then(|node| node.str(&mut self.problems)).map(str::to_owned);
        let to = self.destination(&mut section);
        let except = section.take("except").and_then(|node| self.regex(node, true));
        section.finish(&mut self.problems);
        Some(RequiredCookie {
            cookie: cookie?,
            to: to?,
            except,
        })
    }

    /// `to`, and the attribute that may name another place.
    fn destination(&mut self, section: &mut Mapping<'_>) -> Option<Destination> {
        let to = section.require("to", &mut self.problems);
        let urls = [
            ("carbonioWebUILoginURL", VirtualHostUrl::Login),
            ("carbonioWebUILogoutURL", VirtualHostUrl::Logout),
            ("carbonioAdminUILoginURL", VirtualHostUrl::AdminLogin),
            ("carbonioAdminUILogoutURL", VirtualHostUrl::AdminLogout),
        ];
        let vhost = section
            .take("attribute")
            .and_then(|node| node.choice(&urls, &mut self.problems));
        let node = to?;
        let to = node.str(&mut self.problems)?;
        let good = to.starts_with('/') || to.starts_with("https://") || to.starts_with("http://");
        if !good || HeaderValue::from_str(to).is_err() {
            node.error("expected a path or a URL", &mut self.problems);
        }
        Some(Destination {
            to: to.to_owned(),
            vhost,
        })
    }

    fn attribute(&mut self, node: Node<'_>) -> Option<&'static Attribute> {
        let name = node.str(&mut self.problems)?;
        let found = attributes::find(name).filter(|attribute| attribute.kind == Kind::Duration);
        if found.is_none() {
            node.error(
                format!("{name} is no attribute that could stand here"),
                &mut self.problems,
            );
        }
        found
    }

    fn action(&mut self, entry: &mut Mapping<'_>, paths: &[PathMatch]) -> Option<Action> {
        let keys = ["mailbox", "group", "static", "redirect", "answer", "logout", "status"];
        let mut given: Vec<(&str, Node<'_>)> = Vec::new();
        for key in keys {
            given.extend(entry.take(key).map(|node| (key, node)));
        }
        let [(key, node)] = given.as_slice() else {
            let message = format!("wants one of {}, has {}", keys.join(", "), given.len());
            entry.node().error(message, &mut self.problems);
            return None;
        };
        match *key {
            "mailbox" => {
                let services = [
                    ("web", Mailbox::Web),
                    ("admin", Mailbox::Admin),
                    ("zx", Mailbox::Zx),
                    ("ews", Mailbox::Ews),
                ];
                let to = ForwardTo::Mailbox(node.choice(&services, &mut self.problems)?);
                Some(Action::Forward(Box::new(self.forward(entry, to, paths))))
            }
            "group" => {
                let name = node.str(&mut self.problems)?;
                self.names_group(name, *node);
                let to = ForwardTo::Group(name.into());
                Some(Action::Forward(Box::new(self.forward(entry, to, paths))))
            }
            "static" => self.files(*node, paths),
            "redirect" => self.redirect(*node),
            "answer" => self.answer(*node),
            "logout" => self.logout(*node),
            _ => match node.bool(&mut self.problems)? {
                true => Some(Action::Status),
                false => {
                    node.error("expected true", &mut self.problems);
                    None
                }
            },
        }
    }

    fn files(&mut self, node: Node<'_>, paths: &[PathMatch]) -> Option<Action> {
        let mut section = node.mapping(&mut self.problems)?;
        let root = section.require("root", &mut self.problems);
        let root = root.and_then(|node| node.path_buf(&mut self.problems));
        let file = section.take("file").and_then(|node| {
            let file = PathBuf::from(node.str(&mut self.problems)?);
            let inside = file
                .components()
                .all(|part| matches!(part, std::path::Component::Normal(_)));
            if !inside {
                node.error("expected a file below root", &mut self.problems);
            }
            Some(file)
        });
        let strip = match section.take("strip") {
            Some(node) => node.str(&mut self.problems).unwrap_or_default().to_owned(),
            None => match paths {
                [PathMatch::Prefix(prefix) | PathMatch::Start(prefix)] => prefix.clone(),
                _ => String::new(),
            },
        };
        let cache_control = section.take("cache_control").and_then(|node| {
            let text = node.str(&mut self.problems)?;
            if HeaderValue::from_str(text).is_err() {
                node.error("cannot stand in a header", &mut self.problems);
            }
            Some(text.to_owned())
        });
        let dot_files = self.flag(&mut section, "dot_files", false);
        section.finish(&mut self.problems);
        Some(Action::Files(Files {
            root: root?,
            file,
            strip,
            cache_control,
            dot_files,
        }))
    }

    fn redirect(&mut self, node: Node<'_>) -> Option<Action> {
        let mut section = node.mapping(&mut self.problems)?;
        let to = self.destination(&mut section);
        let status = self.status(&mut section, 307, &[301, 302, 303, 307, 308]);
        section.finish(&mut self.problems);
        Some(Action::Redirect { to: to?, status })
    }

    fn status(&mut self, section: &mut Mapping<'_>, default: u16, allowed: &[u16]) -> u16 {
        let Some(node) = section.take("status") else {
            return default;
        };
        match node.u16(&mut self.problems) {
            Some(status) if allowed.is_empty() && (200..=599).contains(&status) => status,
            Some(status) if allowed.contains(&status) => status,
            Some(_) => {
                node.error("expected a status that can be answered here", &mut self.problems);
                default
            }
            None => default,
        }
    }

    fn answer(&mut self, node: Node<'_>) -> Option<Action> {
        let mut section = node.mapping(&mut self.problems)?;
        let status = self.status(&mut section, 200, &[]);
        let kind = section.take("type").and_then(|node| {
            let text = node.str(&mut self.problems)?;
            if HeaderValue::from_str(text).is_err() {
                node.error("cannot stand in a header", &mut self.problems);
            }
            Some(text.to_owned())
        });
        let body = section.take("body").and_then(|node| {
            let text = node.text(&mut self.problems)?;
            if text.len() > BODY_MAX {
                node.error(format!("has more than {BODY_MAX} bytes"), &mut self.problems);
            }
            Some(text.into_owned())
        });
        section.finish(&mut self.problems);
        Some(Action::Answer {
            status,
            kind: kind.unwrap_or_else(|| "text/plain; charset=utf-8".to_owned()),
            body,
        })
    }

    fn logout(&mut self, node: Node<'_>) -> Option<Action> {
        let mut section = node.mapping(&mut self.problems)?;
        let to = self.destination(&mut section);
        let cookies = section.take("cookies").and_then(|node| {
            let names = node.strs(&mut self.problems)?;
            let token = |name: &&str| HeaderName::from_bytes(name.as_bytes()).is_ok();
            if !names.iter().all(token) {
                node.error("expected names of cookies", &mut self.problems);
            }
            Some(names.into_iter().map(str::to_owned).collect())
        });
        section.finish(&mut self.problems);
        Some(Action::Logout {
            to: to?,
            cookies: cookies.unwrap_or_else(|| COOKIES.map(str::to_owned).to_vec()),
        })
    }

    fn forward(&mut self, entry: &mut Mapping<'_>, to: ForwardTo, paths: &[PathMatch]) -> Forward {
        let is_mailbox = matches!(to, ForwardTo::Mailbox(_));
        // Streaming is the only way here, so these change nothing; they are accepted so that old tables can be read.
        for key in ["request_buffering", "response_buffering"] {
            let words = [("on", ()), ("off", ())];
            entry.take(key).and_then(|node| node.choice(&words, &mut self.problems));
        }
        Forward {
            path: self.replacement(entry, paths),
            host: self.host_rule(entry),
            forwarded: self.flag(entry, "forwarded", true),
            set_headers: self.headers(entry, "set_headers"),
            remove_headers: self.header_names(entry),
            timeouts: self.timeouts(entry),
            websocket: self.flag(entry, "websocket", false),
            max_body: self.max_body(entry),
            rewrite_location: self.flag(entry, "rewrite_location", is_mailbox),
            http2: self.flag(entry, "http2", false),
            keepalive: self.keepalive(entry),
            to,
        }
    }

    fn replacement(&mut self, entry: &mut Mapping<'_>, paths: &[PathMatch]) -> Option<String> {
        let node = entry.take("path")?;
        let text = node.str(&mut self.problems)?;
        if !is_path(text) || text.contains(['?', '#', '%', ' ']) {
            node.error("expected a path", &mut self.problems);
        }
        if paths.iter().any(|path| matches!(path, PathMatch::Regex(_))) {
            node.error("takes the place of a prefix; a regex has none", &mut self.problems);
        }
        Some(text.to_owned())
    }

    fn host_rule(&mut self, entry: &mut Mapping<'_>) -> HostRule {
        let Some(node) = entry.take("host") else {
            return HostRule::Keep;
        };
        match node.str(&mut self.problems) {
            Some("keep") | None => HostRule::Keep,
            Some("upstream") => HostRule::Upstream,
            Some(text) => {
                let bare = text.replace("{host}", "h").replace("{port}", "1");
                if bare.is_empty()
                    || !bare
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b))
                {
                    node.error(
                        "expected keep, upstream, or a host in which {host} and {port} may stand",
                        &mut self.problems,
                    );
                }
                HostRule::Text(text.to_owned())
            }
        }
    }

    fn timeouts(&mut self, entry: &mut Mapping<'_>) -> Timeouts<Wait> {
        let mut timeouts = Timeouts {
            connect: Wait::Attribute(&attributes::REVERSE_PROXY_UPSTREAM_CONNECT_TIMEOUT),
            send: Wait::Attribute(&attributes::REVERSE_PROXY_UPSTREAM_SEND_TIMEOUT),
            read: Wait::Attribute(&attributes::REVERSE_PROXY_UPSTREAM_READ_TIMEOUT),
            idle: Wait::Attribute(&attributes::REVERSE_PROXY_UPSTREAM_POLLING_TIMEOUT),
        };
        let Some(node) = entry.take("timeouts") else {
            return timeouts;
        };
        let Some(mut section) = node.mapping(&mut self.problems) else {
            return timeouts;
        };
        for (key, wait) in [
            ("connect", &mut timeouts.connect),
            ("send", &mut timeouts.send),
            ("read", &mut timeouts.read),
            ("idle", &mut timeouts.idle),
        ] {
            if let Some(written) = section.take(key).and_then(|node| self.wait(node)) {
                *wait = written;
            }
        }
        section.finish(&mut self.problems);
        timeouts
    }

    /// `1220s`, or the name of an attribute.
    fn wait(&mut self, node: Node<'_>) -> Option<Wait> {
        let text = node.str(&mut self.problems)?;
        if text.starts_with(|c: char| c.is_ascii_alphabetic()) {
            let attribute = self.attribute(node)?;
            return Some(Wait::Attribute(attribute));
        }
        let wait = node.duration(&mut self.problems)?;
        if wait < Duration::from_millis(1) {
            node.error("a wait of zero lets no server answer", &mut self.problems);
        }
        Some(Wait::Fixed(wait))
    }

    /// `keepalive: 50s`, or 0.
    fn keepalive(&mut self, entry: &mut Mapping<'_>) -> Option<Duration> {
        let node = entry.take("keepalive")?;
        match node.str(&mut self.problems)? {
            "0" => Some(Duration::ZERO),
            _ => node.duration(&mut self.problems),
        }
    }

    /// `10M`, `512k`, or bytes; 0 is no limit.
    fn max_body(&mut self, entry: &mut Mapping<'_>) -> Option<u64> {
        let node = entry.take("max_body")?;
        let text = node.str(&mut self.problems)?;
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let unit = match &text[digits..] {
            "" => Some(1),
            "k" | "K" => Some(1 << 10),
            "M" | "m" => Some(1 << 20),
            "G" | "g" => Some(1 << 30),
            _ => None,
        };
        let number: Option<u64> = text[..digits].parse().ok();
        let bytes = number.zip(unit).and_then(|(number, unit)| number.checked_mul(unit));
        if bytes.is_none() {
            node.error("expected a size such as 10M, 512k or 4096", &mut self.problems);
        }
        bytes.filter(|bytes| *bytes > 0)
    }

    fn headers(&mut self, entry: &mut Mapping<'_>, key: &str) -> Vec<(HeaderName, HeaderValue)> {
        let Some(section) = entry.take(key).and_then(|node| node.mapping(&mut self.problems)) else {
            return Vec::new();
        };
        let mut headers = Vec::new();
        for (name, node) in section.entries() {
            let value = node.str(&mut self.problems).map(HeaderValue::from_str);
            match (self.header_name(name, node), value) {
                (Some(name), Some(Ok(value))) => headers.push((name, value)),
                (Some(_), Some(Err(_))) => node.error("cannot stand in a header", &mut self.problems),
                _ => {}
            }
        }
        headers
    }

    fn header_names(&mut self, entry: &mut Mapping<'_>) -> Vec<HeaderName> {
        let Some(node) = entry.take("remove_headers") else {
            return Vec::new();
        };
        let items = node.one_or_many(&mut self.problems).unwrap_or_default();
        let named = items.into_iter().filter_map(|item| {
            let name = item.str(&mut self.problems)?;
            self.header_name(name, item)
        });
        named.collect()
    }

    /// A header that may be changed: those that say where a message ends are left to the code that copies the body.
    fn header_name(&mut self, name: &str, node: Node<'_>) -> Option<HeaderName> {
        const FRAMING: [&str; 6] = [
            "content-length",
            "transfer-encoding",
            "connection",
            "upgrade",
            "te",
            "trailer",
        ];
        match HeaderName::from_bytes(name.as_bytes()) {
            Ok(name) if !FRAMING.contains(&name.as_str()) => Some(name),
            _ => {
                node.error(format!("{name} is no header that can be changed"), &mut self.problems);
                None
            }
        }
    }

    fn flag(&mut self, entry: &mut Mapping<'_>, key: &str, default: bool) -> bool {
        let node = entry.take(key);
        node.and_then(|node| node.bool(&mut self.problems)).unwrap_or(default)
    }

    fn text(&mut self, entry: &mut Mapping<'_>, key: &str) -> Option<String> {
        entry.take(key)?.str(&mut self.problems).map(str::to_owned)
    }

    /// A group may be written in a file that is read later, so a problem with a name is kept until then.
    fn names_group(&mut self, name: &str, node: Node<'_>) {
        let mut problems = Problems::new();
        node.error(format!("there is no group {name}"), &mut problems);
        self.named.push((name.to_owned(), problems));
    }

    fn check_groups(&mut self) {
        for (name, problems) in std::mem::take(&mut self.named) {
            let known = OF_DIRECTORY.contains(&name.as_str()) || self.found.groups.iter().any(|g| g.name == name);
            if !known {
                self.problems.extend(problems);
            }
        }
    }
}

fn name_of(paths: &[PathMatch]) -> String {
    match paths.first() {
        None => String::new(),
        Some(PathMatch::Exact(path)) => format!("exact {path}"),
        Some(PathMatch::Prefix(path)) => format!("prefix {path}"),
        Some(PathMatch::Start(path)) => format!("prefix {path}*"),
        Some(PathMatch::Regex(regex)) => format!("regex {regex}"),
    }
}

/// A decoded path in its one normal form: no double slash, no dots to resolve.
fn is_path(text: &str) -> bool {
    text.starts_with('/') && crate::locations::path::normalized(&text.replace('%', "%25")).as_deref() == Some(text)
}

/// `^/a|/b` is anchored on one side only.
fn has_open_alternative(regex: &str) -> bool {
    let (mut depth, mut in_class, mut escaped) = (0_usize, false, false);
    for letter in regex.chars() {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '[' => in_class = true,
            ']' => in_class = false,
            '(' if !in_class => depth += 1,
            ')' if !in_class => depth = depth.saturating_sub(1),
            '|' if !in_class && depth == 0 => return true,
            _ => {}
        }
    }
    false
}

/// The regex crate draws the problem over several lines; its last line says what is wrong.
fn one_line(error: &str) -> String {
    error.lines().last().unwrap_or_default().trim().to_owned()
}
