//! The two files of Portico's configuration, as values: the node file and the YAML directory.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// What a listener serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serve {
    /// HTTP.
    Web,
    /// IMAP.
    Imap,
    /// POP3.
    Pop3,
    /// The administration console.
    AdminConsole,
    /// Logins by certificate.
    Sso,
    /// Bytes, to somewhere else.
    Stream(StreamTo),
}

/// Where a stream goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamTo {
    /// The server.
    pub upstream: SocketAddr,
    /// Whether TLS is spoken with it.
    pub tls: bool,
    /// Whether it gets a PROXY header.
    pub send_proxy: bool,
}

/// TLS on a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// None at all.
    No,
    /// After STARTTLS or STLS.
    StartTls,
    /// From the first byte.
    Implicit,
}

/// One entry of `listeners`.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Where to listen.
    pub address: SocketAddr,
    /// What to serve.
    pub serve: Serve,
    /// TLS.
    pub tls: Tls,
    /// Networks that must send a PROXY header; none: no PROXY protocol.
    pub proxies: Vec<String>,
    /// Further keys, as they stand: `login_deadline: 1s`.
    pub more: Vec<String>,
}

/// The node file.
#[derive(Debug, Clone)]
pub struct Node {
    /// Name of the node's server entry.
    pub name: String,
    /// Lines of the section `directory`.
    pub directory: Vec<String>,
    /// The listeners; none: they are made from the directory.
    pub listeners: Vec<Listener>,
    /// Certificate and key where no name matches.
    pub certificate: (PathBuf, PathBuf),
    /// Verifies mailbox servers.
    pub upstream_ca: PathBuf,
    /// Further lines of the section `tls`: `upstream_min_version: TLSv1.3`.
    pub tls: Vec<String>,
    /// Further lines of the section `admin`: `http: 127.0.0.1:7180`.
    pub admin: Vec<String>,
    /// The section `web`: `("acme_dir", "acme")`.
    pub web: Vec<(String, String)>,
    /// Further top-level lines, as they stand: `("mail", "{login_deadline: 3s}")`.
    pub more: Vec<(String, String)>,
}

/// The lines for the directory in the file beside the node file, looked at every `poll`.
pub fn yaml_source(poll: &str) -> Vec<String> {
    vec![
        "source: yaml".to_owned(),
        format!("yaml: {{path: directory.yaml, poll: {poll}}}"),
    ]
}

impl Node {
    /// The YAML text, for a directory file and logs beside it in `dir`.
    pub fn yaml(&self, dir: &Path) -> String {
        let mut out = String::new();
        let _fits = self.write(dir, &mut out);
        out
    }

    fn write(&self, dir: &Path, out: &mut String) -> std::fmt::Result {
        writeln!(out, "version: 1\nwork_stealing: false")?;
        if self.more.iter().all(|(key, _)| key != "threads") {
            writeln!(out, "threads: 2")?;
        }
        writeln!(out, "grace_period_seconds: 0\ngraceful_shutdown_timeout_seconds: 1")?;
        writeln!(
            out,
            "pid_file: {}\nupgrade_sock: {}",
            quote(dir.join("pid")),
            quote(dir.join("upgrade.sock"))
        )?;
        writeln!(
            out,
            "node: {}\nstate_file: {}",
            self.name,
            quote(dir.join("node.state"))
        )?;
        writeln!(out, "directory:")?;
        self.directory.iter().try_for_each(|line| writeln!(out, "  {line}"))?;
        if !self.listeners.is_empty() {
            writeln!(out, "listeners:")?;
        }
        for listener in &self.listeners {
            writeln!(out, "  - {}", listener.yaml())?;
        }
        writeln!(
            out,
            "tls:\n  certificate: {}\n  key: {}",
            quote(&self.certificate.0),
            quote(&self.certificate.1)
        )?;
        writeln!(out, "  upstream_ca_file: {}", quote(&self.upstream_ca))?;
        self.tls.iter().try_for_each(|line| writeln!(out, "  {line}"))?;
        if self.more.iter().all(|(key, _)| key != "log") {
            writeln!(
                out,
                "log:\n  access: {}\n  audit: {}",
                quote(dir.join("access.log")),
                quote(dir.join("audit.log"))
            )?;
        }
        if self.more.iter().all(|(key, _)| key != "throttle") {
            // One address logs in, and fails to, for all tests.
            let throttle = std::env::var("PORTICO_THROTTLE");
            let throttle = throttle.as_deref().unwrap_or("{mode: dry_run}");
            writeln!(out, "throttle: {throttle}")?;
        }
        // The whole suite with all limits at one: every client still gets an answer.
        if self.more.iter().all(|(key, _)| key != "limits")
            && let Ok(limits) = std::env::var("PORTICO_LIMITS")
        {
            writeln!(out, "limits: {limits}")?;
        }
        if !self.web.is_empty() {
            writeln!(out, "web:")?;
        }
        for (key, value) in &self.web {
            writeln!(out, "  {key}: {value}")?;
        }
        writeln!(out, "admin:\n  socket: {}", quote(dir.join("admin.sock")))?;
        self.admin.iter().try_for_each(|line| writeln!(out, "  {line}"))?;
        self.more
            .iter()
            .try_for_each(|(key, value)| writeln!(out, "{key}: {value}"))
    }
}

impl Listener {
    fn yaml(&self) -> String {
        let serve = match self.serve {
            Serve::Web => "web",
            Serve::Imap => "imap",
            Serve::Pop3 => "pop3",
            Serve::AdminConsole => "admin-console",
            Serve::Sso => "sso",
            Serve::Stream(_) => "stream",
        };
        let stream = match self.serve {
            Serve::Stream(to) => {
                let proxy = if to.send_proxy { ", send_proxy: v2" } else { "" };
                format!(", upstream: \"{}\", upstream_tls: {}{proxy}", to.upstream, to.tls)
            }
            _ => String::new(),
        };
        let tls = match self.tls {
            Tls::No => "",
            Tls::StartTls => ", tls: starttls",
            Tls::Implicit => ", tls: implicit",
        };
        let proxies = match self.proxies.as_slice() {
            [] => String::new(),
            networks => format!(", proxy_protocol: {{trusted: {networks:?}}}"),
        };
        let more: String = self.more.iter().map(|key| format!(", {key}")).collect();
        format!(
            "{{address: \"{}\", serve: {serve}{tls}{proxies}{stream}{more}}}",
            self.address
        )
    }
}

/// A value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// One value.
    One(String),
    /// Several.
    List(Vec<String>),
    /// The content of a file, named with `!file`.
    File(PathBuf),
}

impl From<&str> for Value {
    fn from(one: &str) -> Self {
        Self::One(one.to_owned())
    }
}

impl From<String> for Value {
    fn from(one: String) -> Self {
        Self::One(one)
    }
}

impl From<u16> for Value {
    fn from(port: u16) -> Self {
        Self::One(port.to_string())
    }
}

impl From<&Path> for Value {
    fn from(file: &Path) -> Self {
        Self::File(file.to_owned())
    }
}

impl<const N: usize> From<[&str; N]> for Value {
    fn from(list: [&str; N]) -> Self {
        Self::List(list.map(str::to_owned).to_vec())
    }
}

/// The attributes of one entry.
pub type Entry = BTreeMap<String, Value>;

/// The YAML directory.
#[derive(Debug, Clone, Default)]
pub struct Directory {
    config: Entry,
    servers: BTreeMap<String, Entry>,
    domains: BTreeMap<String, Entry>,
    accounts: BTreeMap<String, Entry>,
}

impl Directory {
    /// Sets an attribute of the global configuration.
    pub fn config(&mut self, attribute: &str, value: impl Into<Value>) -> &mut Self {
        self.config.insert(attribute.to_owned(), value.into());
        self
    }

    /// A server's entry; made if it is not there.
    pub fn server(&mut self, name: &str) -> &mut Entry {
        self.servers.entry(name.to_owned()).or_default()
    }

    /// The entry of a node of Portico.
    pub fn node(&mut self, name: &str) -> &mut Entry {
        let entry = self.server(name);
        entry.insert("zimbraServiceEnabled".into(), ["proxy"].into());
        entry
    }

    /// The entry of a server that holds mailboxes and is reached by this name or address.
    pub fn store(&mut self, name: &str, host: impl ToString) -> &mut Entry {
        let entry = self.server(name);
        entry.insert("zimbraServiceEnabled".into(), ["mailbox"].into());
        entry.insert("zimbraServiceHostname".into(), host.to_string().into());
        entry
    }

    /// So many accounts `user0@a.example`, `user1@a.example` …, on these servers by turns.
    pub fn users(&mut self, count: usize, stores: &[&str]) {
        self.domain("a.example");
        for (number, store) in (0..count).zip(stores.iter().cycle()) {
            let entry = self.account(&format!("user{number}@a.example"));
            let id = format!("{number:08}-2222-3333-4444-555555555555");
            entry.insert("zimbraId".into(), id.into());
            entry.insert("zimbraMailHost".into(), (*store).into());
        }
    }

    /// A domain's entry; made if it is not there.
    pub fn domain(&mut self, name: &str) -> &mut Entry {
        self.domains.entry(name.to_owned()).or_default()
    }

    /// An account's entry; made if it is not there.
    pub fn account(&mut self, name: &str) -> &mut Entry {
        self.accounts.entry(name.to_owned()).or_default()
    }

    /// Takes all accounts out.
    pub fn forget_accounts(&mut self) {
        self.accounts.clear();
    }

    /// The YAML text.
    pub fn yaml(&self) -> String {
        let mut out = String::from("config:\n");
        write_entry(&self.config, "  ", &mut out);
        for (kind, entries) in [
            ("servers", &self.servers),
            ("domains", &self.domains),
            ("accounts", &self.accounts),
        ] {
            let _fits = writeln!(out, "{kind}:");
            for (name, entry) in entries {
                let _fits = writeln!(out, "  {}:", quote(name));
                write_entry(entry, "    ", &mut out);
            }
        }
        out.push_str("cos: {default: {}}\n");
        out
    }
}

impl Directory {
    /// The same entries in the places of a Carbonio tree (LDIF, RFC 2849), with all that stands above them.
    pub fn ldif(&self) -> String {
        let mut out = String::new();
        let folder = |dn: &str, class: &str| (dn.to_owned(), vec![class.to_owned()]);
        let mut put = |(dn, classes): (String, Vec<String>), entry: &Entry| record(&mut out, &dn, &classes, entry);
        put(folder("cn=zimbra", "organizationalRole"), &Entry::new());
        put(folder("cn=config,cn=zimbra", "zimbraGlobalConfig"), &self.config);
        for base in ["cn=servers,cn=zimbra", "cn=cos,cn=zimbra"] {
            put(folder(base, "organizationalRole"), &Entry::new());
        }
        put(folder("cn=default,cn=cos,cn=zimbra", "zimbraCOS"), &Entry::new());
        for (name, entry) in &self.servers {
            put(
                folder(&format!("cn={name},cn=servers,cn=zimbra"), "zimbraServer"),
                entry,
            );
        }
        let plain = ["dcObject".to_owned(), "organization".to_owned()];
        for parent in self.domains_above() {
            put(
                (domain_dn(&parent), plain.to_vec()),
                &Entry::from([("o".to_owned(), parent.as_str().into())]),
            );
        }
        for (name, entry) in &self.domains {
            let mut entry = entry.clone();
            entry.insert("o".to_owned(), name.as_str().into());
            entry.insert("zimbraDomainName".to_owned(), name.as_str().into());
            put(
                (domain_dn(name), [&plain[..], &["zimbraDomain".to_owned()]].concat()),
                &entry,
            );
            put(
                folder(&format!("ou=people,{}", domain_dn(name)), "organizationalUnit"),
                &Entry::new(),
            );
        }
        for (name, entry) in &self.accounts {
            let (user, domain) = name.split_once('@').unwrap_or((name, ""));
            let mut entry = entry.clone();
            for (attribute, value) in [("cn", user), ("sn", user), ("zimbraMailDeliveryAddress", name)] {
                entry.insert(attribute.to_owned(), value.into());
            }
            let dn = format!("uid={user},ou=people,{}", domain_dn(domain));
            put(
                (dn, vec!["inetOrgPerson".to_owned(), "zimbraAccount".to_owned()]),
                &entry,
            );
        }
        out
    }

    /// Domains that only stand above others, the highest first.
    fn domains_above(&self) -> Vec<String> {
        let above = |name: &str| -> Vec<String> {
            name.match_indices('.')
                .map(|(at, _)| name[at + 1..].to_owned())
                .collect()
        };
        let parents: BTreeSet<(usize, String)> = self
            .domains
            .keys()
            .flat_map(|name| above(name))
            .map(|parent| (parent.len(), parent))
            .collect();
        let names = parents.into_iter().map(|(_, parent)| parent);
        names.filter(|parent| !self.domains.contains_key(parent)).collect()
    }
}

fn domain_dn(name: &str) -> String {
    format!("dc={}", name.replace('.', ",dc="))
}

/// One record; the attribute of its own name comes from its place.
fn record(out: &mut String, dn: &str, classes: &[String], entry: &Entry) {
    let _fits = writeln!(out, "dn: {dn}");
    let own = entry.keys().filter_map(|attribute| {
        let certificates = attribute.starts_with("porticoAcme").then_some("porticoCertificates");
        certificates.or(attribute.starts_with("portico").then_some("porticoLimits"))
    });
    let own: BTreeSet<&str> = own.collect();
    for class in classes.iter().map(String::as_str).chain(own) {
        let _fits = writeln!(out, "objectClass: {class}");
    }
    if let Some((attribute, value)) = dn.split(',').next().and_then(|first| first.split_once('=')) {
        let _fits = writeln!(out, "{attribute}: {value}");
    }
    for (attribute, value) in entry {
        let values = match value {
            Value::One(one) => vec![one.clone()],
            Value::List(list) => list.clone(),
            Value::File(file) => vec![std::fs::read_to_string(file).unwrap_or_default()],
        };
        for value in values {
            let _fits = writeln!(out, "{attribute}:: {}", openssl::base64::encode_block(value.as_bytes()));
        }
    }
    out.push('\n');
}

fn write_entry(entry: &Entry, indent: &str, out: &mut String) {
    for (attribute, value) in entry {
        let value = match value {
            Value::One(one) => quote(one),
            Value::List(list) => format!("[{}]", list.iter().map(quote).collect::<Vec<_>>().join(", ")),
            Value::File(file) => format!("!file {}", quote(file)),
        };
        let _fits = writeln!(out, "{indent}{attribute}: {value}");
    }
}

/// A double-quoted scalar. What JSON escapes, YAML reads the same way.
pub fn quote(text: impl AsRef<Path>) -> String {
    serde_json::Value::from(text.as_ref().to_string_lossy()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_a_directory() {
        let mut directory = Directory::default();
        directory.config("zimbraDefaultDomainName", "a.example");
        directory
            .server("store1.example.test")
            .insert("zimbraImapBindPort".into(), 7143.into());
        directory
            .account("alice@a.example")
            .insert("zimbraMailAlias".into(), ["al@a.example"].into());
        let expected = "config:\n  zimbraDefaultDomainName: \"a.example\"\nservers:\n  \"store1.example.test\":\n    \
                        zimbraImapBindPort: \"7143\"\ndomains:\naccounts:\n  \"alice@a.example\":\n    \
                        zimbraMailAlias: [\"al@a.example\"]\ncos: {default: {}}\n";
        assert_eq!(directory.yaml(), expected);
    }
}
