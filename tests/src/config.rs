//! The two files that tell Portico what to do, as values: the node file and the YAML directory.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddrV4;
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
    /// Bytes, to somewhere else.
    Stream(StreamTo),
}

/// Where a stream goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamTo {
    /// The server.
    pub upstream: SocketAddrV4,
    /// Whether TLS is spoken with it.
    pub tls: bool,
    /// Whether it is told of the client.
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
    pub address: SocketAddrV4,
    /// What to serve.
    pub serve: Serve,
    /// TLS.
    pub tls: Tls,
    /// Networks that must send a PROXY header; none: no PROXY protocol.
    pub proxies: Vec<String>,
}

/// The node file.
#[derive(Debug, Clone)]
pub struct Node {
    /// Name of the node's server entry.
    pub name: String,
    /// The listeners; none: they are made from the directory.
    pub listeners: Vec<Listener>,
    /// Certificate and key where no name matches.
    pub certificate: (PathBuf, PathBuf),
    /// Verifies mailbox servers.
    pub upstream_ca: PathBuf,
    /// Further lines of the section `admin`: `http: 127.0.0.1:7180`.
    pub admin: Vec<String>,
    /// Further top-level lines, as they stand: `("mail", "{login_deadline: 3s}")`.
    pub more: Vec<(String, String)>,
}

impl Node {
    /// The YAML text, for a directory file and logs beside it in `dir`.
    pub fn yaml(&self, dir: &Path) -> String {
        let mut out = String::new();
        let _fits = self.write(dir, &mut out);
        out
    }

    fn write(&self, dir: &Path, out: &mut String) -> std::fmt::Result {
        writeln!(out, "version: 1\nthreads: 2")?;
        writeln!(out, "grace_period_seconds: 0\ngraceful_shutdown_timeout_seconds: 1")?;
        writeln!(
            out,
            "pid_file: {}\nupgrade_sock: {}",
            quote(dir.join("pid")),
            quote(dir.join("upgrade.sock"))
        )?;
        writeln!(out, "node: {}", self.name)?;
        writeln!(out, "directory:\n  source: yaml\n  yaml: {{path: directory.yaml}}")?;
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
        writeln!(
            out,
            "log:\n  access: {}\n  audit: {}",
            quote(dir.join("access.log")),
            quote(dir.join("audit.log"))
        )?;
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
        format!(
            "{{address: \"{}\", serve: {serve}{tls}{proxies}{stream}}}",
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
    fn from(one: &str) -> Value {
        Value::One(one.to_owned())
    }
}

impl From<String> for Value {
    fn from(one: String) -> Value {
        Value::One(one)
    }
}

impl From<u16> for Value {
    fn from(port: u16) -> Value {
        Value::One(port.to_string())
    }
}

impl From<&Path> for Value {
    fn from(file: &Path) -> Value {
        Value::File(file.to_owned())
    }
}

impl<const N: usize> From<[&str; N]> for Value {
    fn from(list: [&str; N]) -> Value {
        Value::List(list.map(str::to_owned).to_vec())
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
    pub fn config(&mut self, attribute: &str, value: impl Into<Value>) -> &mut Directory {
        self.config.insert(attribute.to_owned(), value.into());
        self
    }

    /// A server's entry; made if it is not there.
    pub fn server(&mut self, name: &str) -> &mut Entry {
        self.servers.entry(name.to_owned()).or_default()
    }

    /// A domain's entry; made if it is not there.
    pub fn domain(&mut self, name: &str) -> &mut Entry {
        self.domains.entry(name.to_owned()).or_default()
    }

    /// An account's entry; made if it is not there.
    pub fn account(&mut self, name: &str) -> &mut Entry {
        self.accounts.entry(name.to_owned()).or_default()
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
fn quote(text: impl AsRef<Path>) -> String {
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
