//! What the tests of shared caches and lookup services need: a mail system of two servers, a real memcached, a
//! directory that counts.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use mail_directory::file::YamlDirectory;
use mail_directory::{AccountBy, Directory, DirectoryError, Entry, System};
use portico_tests::{Stage, memcached};
use route_cache::addresses::Literal;
use route_cache::{AddressBook, Lookup, RouteCache, Service, Settings, Subject};
use tokio::net::TcpStream;

/// How long a condition may take to come true.
const PATIENCE: Duration = Duration::from_secs(20);

/// Two servers, a hundred users, some aliases.
pub(crate) fn system() -> String {
    let mut yaml = String::from(
        "
config: {zimbraDefaultDomainName: a.test}
servers:
  proxy.test: {zimbraServiceEnabled: proxy}
  store1.test: {zimbraServiceEnabled: mailbox, zimbraServiceHostname: 127.0.0.2, zimbraImapSSLBindPort: 1993}
  store2.test: {zimbraServiceEnabled: mailbox, zimbraServiceHostname: 127.0.0.3}
  web.test: {zimbraServiceEnabled: proxy, zimbraServiceHostname: 127.0.0.4}
domains: {a.test: {}, v.test: {zimbraVirtualHostname: mail.v.test, zimbraVirtualIPAddress: 192.0.2.7}}
accounts:
  alice@a.test: {zimbraMailHost: store1.test, zimbraMailAlias: al@a.test, zimbraId: id-alice}
  rossi@v.test: {zimbraMailHost: store2.test}
",
    );
    for i in 0..100 {
        yaml.push_str(&format!(
            "  user{i}@a.test: {{zimbraMailHost: store{}.test}}\n",
            1 + i % 2
        ));
    }
    yaml
}

/// A YAML directory that counts questions for accounts, and can be down.
pub(crate) struct Counting {
    inner: YamlDirectory,
    pub(crate) asked: AtomicUsize,
    pub(crate) down: AtomicBool,
}

impl Counting {
    pub(crate) fn new(yaml: &str) -> Arc<Self> {
        let (inner, _) = YamlDirectory::parse(yaml, Path::new("d.yaml")).unwrap_or_else(|p| panic!("{p}"));
        Arc::new(Self {
            inner,
            asked: AtomicUsize::new(0),
            down: AtomicBool::new(false),
        })
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Directory for Counting {
    fn system(&self) -> Arc<System> {
        self.inner.system()
    }

    async fn account(&self, by: &AccountBy) -> Result<Option<Arc<Entry>>, DirectoryError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.down.load(Ordering::SeqCst) {
            return Err(DirectoryError("down".to_owned()));
        }
        self.inner.account(by).await
    }
}

pub(crate) fn cache(directory: &Arc<Counting>) -> RouteCache {
    let settings = Settings {
        node: "proxy.test".to_owned(),
        capacity: 100_000,
        ttl: Duration::from_secs(3600),
        stale: Duration::from_secs(3600),
        negative_ttl: Duration::from_secs(5),
    };
    RouteCache::new(settings, directory.clone())
}

pub(crate) fn book() -> Arc<AddressBook> {
    AddressBook::new(Arc::new(Literal))
}

pub(crate) fn login(name: &str, service: Service) -> Lookup {
    let subject = match name.strip_prefix('#') {
        Some(id) => Subject::Id(id.to_owned()),
        None => Subject::Login(name.to_owned()),
    };
    Lookup {
        subject,
        service,
        client: "203.0.113.7".parse().unwrap(),
        local: "192.0.2.1".parse().unwrap(),
        host: None,
    }
}

/// Account, login if it is another, host:port and tier of the answer, or the error.
pub(crate) async fn ask(cache: &RouteCache, lookup: &Lookup) -> String {
    match cache.route(lookup).await {
        Ok(r) => {
            let login = if r.login == r.account {
                String::new()
            } else {
                format!("({}) ", r.login)
            };
            format!("{} {login}{}:{} {}", r.account, r.host, r.port, r.tier.name())
        }
        Err(error) => error.to_string(),
    }
}

/// A port of the loopback address that no socket has.
pub(crate) fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().port()
}

/// A real memcached, ended with the value. Names are logical: nobody here thinks of keys on the wire.
pub(crate) struct Memcached {
    server: memcached::Memcached,
    // The last to go: it is the folder of the server.
    _stage: Stage,
}

impl Memcached {
    pub(crate) fn start() -> Self {
        let stage = Stage::new().unwrap();
        Self {
            server: memcached::Memcached::start(&stage).unwrap(),
            _stage: stage,
        }
    }

    pub(crate) fn address(&self) -> String {
        self.server.address().to_string()
    }

    /// Sends a command as nginx would, and gives the answer.
    pub(crate) fn say(&self, command: &str) -> String {
        self.server.say(command).unwrap()
    }

    /// The first line of the value under a logical name: some values lie about where they end.
    pub(crate) fn value(&self, name: &str) -> Option<String> {
        let answer = self.say(&format!("get {}\r\n", route_cache::memcached::hashed(name)));
        let value = answer.split("\r\n").nth(1).filter(|value| !value.is_empty());
        value.map(str::to_owned)
    }

    /// Waits until this value stands under a logical name.
    pub(crate) async fn becomes(&self, name: &str, value: &str) {
        let what = format!("{name} to be {value}");
        until(
            &what,
            async || self.value(name),
            |found| found.as_deref() == Some(value),
        )
        .await;
    }

    /// Writes as nginx does.
    pub(crate) fn add(&self, name: &str, value: &str) {
        self.server.add(&route_cache::memcached::hashed(name), value).unwrap();
    }

    pub(crate) fn freeze(&self) {
        self.server.freeze().unwrap();
    }

    pub(crate) fn thaw(&self) {
        self.server.thaw().unwrap();
    }

    pub(crate) fn kill(&mut self) {
        self.server.kill();
    }

    pub(crate) fn start_again(&mut self) {
        self.server.start_again().unwrap();
    }
}

/// Asks again until the answer is right.
pub(crate) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> T, right: impl Fn(&T) -> bool) -> T {
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        let answer = ask().await;
        if right(&answer) {
            return answer;
        }
        assert!(std::time::Instant::now() < end, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A server that hands each connection to `serve`.
pub(crate) async fn server<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = socket.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}
