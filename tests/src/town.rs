//! The usual set-up: two mailbox servers with a few people, and what Portico in front of them needs to know.

use std::fs::Permissions;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::Stage;
use crate::certs::{Authority, Pair};
use crate::config::{Directory, Listener, Node, Serve, Tls};
use crate::dovecot::{Dovecot, Login};
use crate::haproxy::{Forward, HaProxy, Header};
use crate::portico::Portico;
use crate::secrets;
use crate::web::{Account, WebBackend, auth_token};

/// From here HAProxy connects, and only from here a PROXY header is trusted.
pub const BALANCER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);
/// Name of the node's server entry.
pub const NODE: &str = "proxy1.example.test";
/// A name of Portico's default certificate.
pub const FRONT: &str = "mail.example.test";

/// A user with a mailbox.
#[derive(Debug, Clone)]
pub struct Person {
    /// Name of the account.
    pub name: String,
    /// Its `zimbraId`.
    pub id: String,
    /// On which of the two stores the mailbox is: 0 or 1.
    pub store: usize,
    /// Password, any bytes.
    pub password: Vec<u8>,
    /// Other names.
    pub aliases: Vec<String>,
    /// There is a mailbox on the other store, too, as after a copy.
    pub everywhere: bool,
}

impl Person {
    /// A user without aliases. The same name always gets the same id.
    pub fn new(name: &str, store: usize, password: impl AsRef<[u8]>) -> Self {
        let hash: String = openssl::sha::sha256(name.as_bytes())[..4]
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        let id = format!("{hash}-2222-3333-4444-555555555555");
        Self {
            name: name.to_owned(),
            id,
            store,
            password: password.as_ref().to_vec(),
            aliases: Vec::new(),
            everywhere: false,
        }
    }

    /// The same with a mailbox on both stores.
    pub fn everywhere(mut self) -> Self {
        self.everywhere = true;
        self
    }

    /// The same with another name.
    pub fn alias(mut self, alias: &str) -> Self {
        self.aliases.push(alias.to_owned());
        self
    }

    /// The password, and what of it stands in a SASL exchange and in HTTP Basic. Short ones are found everywhere.
    pub fn secrets(&self) -> Vec<Vec<u8>> {
        let encode = |bytes: &[u8]| openssl::base64::encode_block(bytes).into_bytes();
        let sasl = [b"\0", self.name.as_bytes(), b"\0", &self.password].concat();
        let basic = [self.name.as_bytes(), b":", &self.password].concat();
        let all = [
            self.password.clone(),
            encode(&self.password),
            encode(&sasl),
            encode(&basic),
        ];
        all.into_iter().filter(|secret| secret.len() > 6).collect()
    }

    /// The password as text.
    pub fn password(&self) -> String {
        String::from_utf8_lossy(&self.password).into_owned()
    }
}

/// Alice and Carol on the first store, Bob and Dave on the second.
pub fn people() -> Vec<Person> {
    vec![
        Person::new("alice@a.example", 0, "alice-c4n4ry-one").alias("al@a.example"),
        Person::new("bob@a.example", 1, "bob-c4n4ry-two"),
        Person::new("carol@b.example", 0, "carol-c4n4ry-three"),
        Person::new("dave@b.example", 1, "dave-c4n4ry-four").alias("david@a.example"),
    ]
}

/// One mailbox server: mail and web.
pub struct Store {
    /// Name of its server entry.
    pub name: String,
    /// Its mail side.
    pub dovecot: Dovecot,
    /// Its web side.
    pub web: WebBackend,
}

/// Where Portico, or HAProxy in front of it, listens.
#[derive(Debug, Clone, Copy)]
pub struct Endpoints {
    /// HTTP.
    pub http: SocketAddrV4,
    /// HTTPS.
    pub https: SocketAddrV4,
    /// IMAP with STARTTLS.
    pub imap: SocketAddrV4,
    /// IMAP in TLS.
    pub imaps: SocketAddrV4,
    /// POP3 with STLS.
    pub pop3: SocketAddrV4,
    /// POP3 in TLS.
    pub pop3s: SocketAddrV4,
}

/// Ports to ask for, in the order of [`Endpoints`]; others are taken where these are not free.
pub type Ports = [u16; 6];

impl Endpoints {
    /// Endpoints on 127.0.0.1 with these ports, or with any.
    pub fn new(stage: &Stage, wanted: Option<Ports>) -> Result<Self> {
        let endpoint = |at: usize| -> Result<SocketAddrV4> {
            let port = match wanted {
                Some(ports) => stage.port_near(ports[at])?,
                None => stage.port()?,
            };
            Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
        };
        Ok(Self {
            http: endpoint(0)?,
            https: endpoint(1)?,
            imap: endpoint(2)?,
            imaps: endpoint(3)?,
            pop3: endpoint(4)?,
            pop3s: endpoint(5)?,
        })
    }

    /// Each endpoint with what it serves.
    pub fn each(&self) -> [(SocketAddrV4, Serve, Tls); 6] {
        [
            (self.http, Serve::Web, Tls::No),
            (self.https, Serve::Web, Tls::Implicit),
            (self.imap, Serve::Imap, Tls::StartTls),
            (self.imaps, Serve::Imap, Tls::Implicit),
            (self.pop3, Serve::Pop3, Tls::StartTls),
            (self.pop3s, Serve::Pop3, Tls::Implicit),
        ]
    }
}

/// Two stores, their people, certificates, and Portico's endpoints (Portico itself is started with [`Town::open`]).
pub struct Town {
    /// Signed everything.
    pub ca: Authority,
    /// The two stores.
    pub stores: [Store; 2],
    /// The users of the stores.
    pub people: Vec<Person>,
    /// The file of web locations.
    pub locations: PathBuf,
    /// Portico's endpoints.
    pub endpoints: Endpoints,
    /// Portico's endpoints with the PROXY protocol.
    pub behind: Endpoints,
    /// For the admin API over TCP, where the node file opens it.
    pub admin: SocketAddrV4,
    /// Portico's certificate where no name matches.
    pub default: Pair,
    /// Certificates of the domains, by domain.
    pub domains: Vec<(&'static str, Pair)>,
}

impl Town {
    /// Starts the stores.
    pub fn build(stage: &Stage, people: Vec<Person>) -> Result<Self> {
        Self::build_with(stage, people, [None, None])
    }

    /// Starts the stores; Portico's endpoints, plain and behind a balancer, shall have these ports.
    pub fn build_with(stage: &Stage, people: Vec<Person>, ports: [Option<Ports>; 2]) -> Result<Self> {
        let ca = Authority::new(&stage.dir("ca")?)?;
        let stores = [
            build_store(stage, &ca, 0, &people)?,
            build_store(stage, &ca, 1, &people)?,
        ];
        let domains = vec![
            ("a.example", ca.server(&["mail.a.example", "imap.a.example"])?),
            ("b.example", ca.server(&["mail.b.example"])?),
            ("c.example", ca.server(&["*.c.example"])?),
        ];
        secrets::plant(people.iter().flat_map(Person::secrets));
        secrets::plant(people.iter().map(|person| auth_token(&person.id).into_bytes()));
        Ok(Self {
            locations: write_locations(stage, &stores[0])?,
            stores,
            people,
            endpoints: Endpoints::new(stage, ports[0])?,
            behind: Endpoints::new(stage, ports[1])?,
            admin: SocketAddrV4::new(Ipv4Addr::LOCALHOST, stage.port()?),
            default: ca.server(&[FRONT, "localhost", "127.0.0.1"])?,
            domains,
            ca,
        })
    }

    /// Starts Portico with the usual node file and directory.
    pub fn open(&self, stage: &Stage) -> Result<Portico> {
        Portico::start(stage, &self.node(), &self.directory(), "info")
    }

    /// The usual node file.
    pub fn node(&self) -> Node {
        let endpoint = |(address, serve, tls)| Listener {
            address: SocketAddr::V4(address),
            serve,
            tls,
            proxies: Vec::new(),
            more: Vec::new(),
        };
        let behind = |(address, serve, tls)| Listener {
            address: SocketAddr::V4(address),
            serve,
            tls,
            proxies: vec![format!("{BALANCER}/32")],
            more: Vec::new(),
        };
        Node {
            name: NODE.to_owned(),
            directory: crate::config::yaml_source("5s"),
            listeners: self
                .endpoints
                .each()
                .map(endpoint)
                .into_iter()
                .chain(self.behind.each().map(behind))
                .collect(),
            certificate: (self.default.certificate_file.clone(), self.default.key_file.clone()),
            upstream_ca: self.ca.file(),
            tls: Vec::new(),
            admin: Vec::new(),
            web: vec![("locations".to_owned(), crate::config::quote(&self.locations))],
            more: Vec::new(),
        }
    }

    /// The usual directory: both stores, three domains with their certificates, and the people.
    pub fn directory(&self) -> Directory {
        let mut directory = Directory::default();
        directory
            .config("zimbraReverseProxyMailMode", "redirect")
            .config("zimbraDefaultDomainName", "a.example");
        directory.config("zimbraReverseProxyAuthWaitInterval", "1s");
        let node = directory.node(NODE);
        node.insert("zimbraMailSSLProxyPort".into(), self.endpoints.https.port().into());
        for store in &self.stores {
            *directory.server(&store.name) = store.entry();
        }
        for (domain, pair) in &self.domains {
            let names = match *domain {
                "a.example" => vec!["mail.a.example".to_owned(), "imap.a.example".to_owned()],
                "b.example" => vec!["mail.b.example".to_owned()],
                _ => vec![format!("*.{domain}")],
            };
            let entry = directory.domain(domain);
            entry.insert("zimbraVirtualHostname".into(), crate::config::Value::List(names));
            entry.insert("zimbraSSLCertificate".into(), pair.certificate_file.as_path().into());
            entry.insert("zimbraSSLPrivateKey".into(), pair.key.clone().into());
        }
        for person in &self.people {
            let entry = directory.account(&person.name);
            entry.insert("zimbraId".into(), person.id.clone().into());
            entry.insert("zimbraMailHost".into(), self.stores[person.store].name.clone().into());
            if !person.aliases.is_empty() {
                entry.insert(
                    "zimbraMailAlias".into(),
                    crate::config::Value::List(person.aliases.clone()),
                );
            }
        }
        directory
    }

    /// Writes this node file, the usual directory and all that they name into `dir`, for a Portico that sees them at
    /// /etc/portico, and nothing else of this machine. Its sockets and logs are in /run/portico, unless they are
    /// replaced: pairs of what stands in the node file and what shall.
    pub fn configure(&self, dir: &Path, mut node: Node, replaced: &[(&str, &str)]) -> Result<()> {
        let inside = Path::new("/etc/portico");
        for (from, to) in [
            (&node.certificate.0, "front.crt"),
            (&node.certificate.1, "front.key"),
            (&node.upstream_ca, "ca.pem"),
        ] {
            std::fs::copy(from, dir.join(to))?;
        }
        node.certificate = (inside.join("front.crt"), inside.join("front.key"));
        node.upstream_ca = inside.join("ca.pem");
        // The table that is built in.
        node.web.clear();
        let mut directory = self.directory();
        for (domain, pair) in &self.domains {
            let text = std::fs::read_to_string(&pair.certificate_file)?;
            directory
                .domain(domain)
                .insert("zimbraSSLCertificate".into(), text.into());
        }
        let mut yaml = node.yaml(Path::new("/run/portico"));
        for (stands, shall) in replaced {
            anyhow::ensure!(yaml.contains(stands), "no {stands} in {yaml}");
            yaml = yaml.replace(stands, shall);
        }
        std::fs::write(dir.join("portico.yaml"), yaml)?;
        std::fs::write(dir.join("directory.yaml"), directory.yaml())?;
        for file in std::fs::read_dir(dir)? {
            std::fs::set_permissions(file?.path(), Permissions::from_mode(0o644))?;
        }
        Ok(())
    }

    /// Starts HAProxy in front of the endpoints with the PROXY protocol. Returns it and where it listens.
    pub fn balancer(&self, stage: &Stage, header: Header, wanted: Option<Ports>) -> Result<(HaProxy, Endpoints)> {
        let front = Endpoints::new(stage, wanted)?;
        let pairs = front.each().into_iter().zip(self.behind.each());
        let forwards: Vec<Forward> = pairs
            .map(|((from, ..), (to, ..))| Forward { from, to, header })
            .collect();
        Ok((HaProxy::start(stage, BALANCER, &forwards)?, front))
    }

    /// A user, by the part of the name before the `@`.
    pub fn person(&self, local: &str) -> Result<&Person> {
        let found = self.people.iter().find(|p| p.name.split('@').next() == Some(local));
        found.with_context(|| format!("nobody is called {local}"))
    }

    /// Every password, and what of it stands in a SASL exchange.
    pub fn secrets(&self) -> Vec<Vec<u8>> {
        self.people.iter().flat_map(Person::secrets).collect()
    }
}

/// Carbonio's locations, with what stands in for its authentication service, and the page of the demo at `/`.
fn write_locations(stage: &Stage, store: &Store) -> Result<PathBuf> {
    let file = stage.dir("locations")?.join("town.yaml");
    let text = format!(
        "groups:\n  carbonio-auth: {{servers: [\"{}\"]}}\nlocations:\n- {{exact: /, mailbox: web}}\n- include: carbonio\n",
        store.web.http
    );
    std::fs::write(&file, text)?;
    Ok(file)
}

impl Store {
    fn entry(&self) -> crate::config::Entry {
        let ports = [
            ("zimbraImapBindPort", self.dovecot.imap),
            ("zimbraImapSSLBindPort", self.dovecot.imaps),
            ("zimbraPop3BindPort", self.dovecot.pop3),
            ("zimbraPop3SSLBindPort", self.dovecot.pop3s),
            ("zimbraMailPort", self.web.http.port()),
            ("zimbraMailSSLPort", self.web.https.port()),
        ];
        let mut entry: crate::config::Entry = ports.map(|(name, port)| (name.to_owned(), port.into())).into();
        entry.insert("zimbraServiceEnabled".into(), ["mailbox"].into());
        entry.insert("zimbraServiceHostname".into(), self.dovecot.ip.to_string().into());
        entry.insert("zimbraReverseProxyLookupTarget".into(), "TRUE".into());
        entry.insert("zimbraMailMode".into(), "both".into());
        entry
    }
}

fn build_store(stage: &Stage, ca: &Authority, number: usize, people: &[Person]) -> Result<Store> {
    let short = format!("store{}", number + 1);
    let name = format!("{short}.example.test");
    let ip = Ipv4Addr::new(127, 0, 0, 2 + number as u8);
    let pair = ca.server(&[&name, &ip.to_string()])?;
    let here: Vec<&Person> = people.iter().filter(|p| p.store == number || p.everywhere).collect();
    let logins: Vec<Login> = here
        .iter()
        .map(|p| Login {
            name: &p.name,
            password: &p.password,
        })
        .collect();
    let account = |p: &Person| Account {
        name: p.name.clone(),
        id: p.id.clone(),
        password: p.password(),
    };
    // As with real ones: any server accepts the web login of any account, and knows where the mailbox is.
    let accounts = people.iter().map(account).collect();
    let dovecot = Dovecot::start(stage, &short, ip, &pair, &logins)?;
    let mail = dovecot.mail_dir();
    Ok(Store {
        dovecot,
        web: WebBackend::start(stage, &short, ip, &pair, accounts, mail)?,
        name,
    })
}
