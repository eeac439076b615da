//! What the tests of shared caches and lookup services need: a mail system of two servers, a real memcached, a
//! directory that counts.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use route_cache::addresses::Literal;
use route_cache::directory::yaml::YamlDirectory;
use route_cache::{
    AccountBy, AddressBook, Directory, DirectoryError, Entry, Lookup, RouteCache, Service, Settings, Subject, System,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
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
    pub(crate) fn new(yaml: &str) -> Arc<Counting> {
        let (inner, _) = YamlDirectory::parse(yaml, Path::new("d.yaml")).unwrap_or_else(|p| panic!("{p}"));
        Arc::new(Counting {
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

/// A port of the loopback address that nobody has.
pub(crate) fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().port()
}

/// A real memcached, ended with the value.
pub(crate) struct Memcached {
    child: Child,
    pub(crate) port: u16,
}

impl Memcached {
    pub(crate) async fn start() -> Memcached {
        Memcached::start_at(free_port()).await
    }

    pub(crate) async fn start_at(port: u16) -> Memcached {
        let mut command = Command::new("memcached");
        let port_text = port.to_string();
        command.args([
            "-l",
            "127.0.0.1",
            "-p",
            &port_text,
            "-U",
            "0",
            "-m",
            "16",
            "-t",
            "1",
            "-u",
            "root",
        ]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.expect("memcached is missing: run scripts/install test");
        let memcached = Memcached { child, port };
        let _ = until(
            "memcached accepts",
            || TcpStream::connect(memcached.address()),
            |r| r.is_ok(),
        )
        .await;
        memcached
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Sends a command as nginx would, and gives the answer.
    pub(crate) async fn say(&self, command: &str) -> String {
        let mut stream = TcpStream::connect(self.address()).await.unwrap();
        stream.write_all(command.as_bytes()).await.unwrap();
        let mut heard = String::new();
        let ends = ["END\r\n", "STORED\r\n", "DELETED\r\n", "NOT_FOUND\r\n"];
        while !ends.iter().any(|end| heard.ends_with(end)) {
            let mut buffer = [0; 1024];
            let n = stream.read(&mut buffer).await.unwrap();
            assert!(n > 0, "{heard}");
            heard.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
        }
        heard
    }

    /// The value under a logical name.
    pub(crate) async fn value(&self, name: &str) -> Option<String> {
        let answer = self
            .say(&format!("get {}\r\n", route_cache::memcached::hashed(name)))
            .await;
        answer
            .split("\r\n")
            .nth(1)
            .filter(|value| !value.is_empty())
            .map(str::to_owned)
    }

    /// Writes as nginx does.
    pub(crate) async fn add(&self, name: &str, value: &str) {
        let key = route_cache::memcached::hashed(name);
        let command = format!("add {key} 0 3600 {}\r\n{value}\r\n", value.len());
        assert_eq!(self.say(&command).await, "STORED\r\n");
    }

    pub(crate) fn signal(&self, signal: &str) {
        let status = Command::new("kill")
            .args([signal, &self.child.id().to_string()])
            .status();
        assert!(status.expect("kill").success());
    }

    pub(crate) fn kill(mut self) -> u16 {
        self.end();
        self.port
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Memcached {
    fn drop(&mut self) {
        self.end();
    }
}

/// Asks again until the answer is right.
pub(crate) async fn until<T, F: Future<Output = T>>(
    what: &str,
    mut ask: impl FnMut() -> F,
    right: impl Fn(&T) -> bool,
) -> T {
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
