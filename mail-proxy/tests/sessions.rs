//! Whole sessions in memory, with time standing still: what the client hears, when, and what the audit log says.
//!
//! Both ends are pipes; the mailbox servers are scripts, the directory is a YAML text. Real peers come elsewhere.

// The helpers of a test file are tests too; clippy knows only the functions marked so.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mail_directory::file::YamlDirectory;
use mail_directory::{AccountBy, Directory, DirectoryError, Entry, Secret, System, Touched};
use mail_proxy::audit::{Audit, EndedBy, Event, Outcome, Record};
use mail_proxy::throttle::{Rule, Throttle, ThrottleSettings};
use mail_proxy::{
    BoxStream, CertificateNames, Client, CloseReason, ConnectError, Connection, ConnectionFacts, ConnectionHandle,
    Decoys, Drain, LoginLimits, LoginSlot, Master, Mechanism, Protocol, ProxyVersion, ServerRule, ServerRules,
    SessionEnv, Settings, StartTls, TlsFacts, Transport, imap, pop3, serve,
};
use route_cache::{Held, Hold, Route, RouteCache};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::sync::watch;
use tokio::time::Instant;

const DIRECTORY: &str = "
config: {zimbraReverseProxySSLToUpstreamEnabled: FALSE, zimbraDefaultDomainName: a.example}
servers:
  one.example: {zimbraServiceEnabled: mailbox}
  two.example: {zimbraServiceEnabled: mailbox}
domains: {a.example: {}}
accounts:
  alice@a.example: {zimbraMailHost: one.example, zimbraMailAlias: al@a.example}
  bob@a.example: {zimbraMailHost: two.example}
  lost@a.example: {zimbraMailHost: nowhere.example}
  closed@a.example: {zimbraMailHost: one.example, zimbraAccountStatus: closed}
  worked@a.example: {zimbraMailHost: one.example, zimbraAccountStatus: maintenance}
  web@a.example: {zimbraMailHost: one.example, zimbraImapEnabled: FALSE}
  far@a.example:
    zimbraReverseProxyUseExternalRoute: TRUE
    zimbraExternalImapHostname: two.example
    zimbraExternalImapPort: 143
";

/// The YAML directory, which can be told to be down, or that once it has been asked Alice has moved or given her alias to
/// Bob.
struct Fake {
    yaml: YamlDirectory,
    asked: AtomicUsize,
    down: bool,
    moves: bool,
    gives_away: bool,
}

#[async_trait]
impl Directory for Fake {
    fn system(&self) -> Arc<System> {
        self.yaml.system()
    }

    async fn account(&self, by: &AccountBy) -> Result<Option<Arc<Entry>>, DirectoryError> {
        let before = self.asked.fetch_add(1, Ordering::Relaxed);
        if self.down {
            return Err(DirectoryError("connection refused by ldap7.internal".to_owned()));
        }
        if self.gives_away && before > 0 && *by == AccountBy::Name("al@a.example".to_owned()) {
            return self.yaml.account(&AccountBy::Name("bob@a.example".to_owned())).await;
        }
        let entry = self.yaml.account(by).await?;
        Ok(entry.map(|entry| {
            if !self.moves || before == 0 {
                return entry;
            }
            let mut moved = Entry::clone(&entry);
            moved.set("zimbraMailHost", ["two.example"]);
            Arc::new(moved)
        }))
    }
}

/// How a mailbox server behaves.
#[derive(Clone, Copy)]
enum Store {
    /// Takes any login whose password is `right`.
    Good,
    /// Says that the account lives elsewhere.
    WrongHost,
    /// Refuses connections.
    Refuses,
    /// Accepts, and never says a word.
    Frozen,
    /// Greets, and never says a word more.
    SilentBeforeTls,
    /// Hangs up in the middle of the login.
    HangsUp,
    /// Like a good one, but thinks for so many seconds.
    Slow(u64),
    /// Says this instead of a greeting.
    Greets(&'static str),
    /// Answers every login with this.
    Says(&'static str),
    /// Takes logins by SCRAM, whose proof is `right`, and thinks for so many milliseconds before its first message.
    Scram(u64),
    /// Answers the first message of SCRAM with this.
    ScramSays(&'static str),
    /// The same without a tag, and hangs up.
    ScramBreaks(&'static str),
    /// Can bind SCRAM to the channel.
    ScramBinds,
    /// Lists its capabilities only when asked, and takes any login whose password is `right`. The numbers of flights that
    /// its connections took are written down.
    Listing {
        flights: &'static Mutex<Vec<usize>>,
        pop3: bool,
        /// What it makes of a flight of several commands.
        lies: Lie,
    },
    /// So many connections hear this greeting or answer (or nothing, and are closed), the others are well.
    Later(usize, &'static str),
}

/// What a server makes of several commands that come at once, which it says that it takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lie {
    /// It takes them.
    No,
    /// It drops all but the first.
    Drops,
    /// It does not understand the last one.
    Refuses,
    /// It hangs up.
    HangsUp,
    /// It takes them, and nobody at the moment.
    Busy,
    /// It takes them, and thinks for some seconds before it answers the first.
    Pauses,
    /// It takes them, and the user must do something first.
    Expired,
}

impl Lie {
    async fn serve(self, mut pipe: DuplexStream, flights: &Mutex<Vec<usize>>, pop3: bool) -> io::Result<()> {
        let greeting: &[u8] = if pop3 { b"+OK ready\r\n" } else { b"* OK ready\r\n" };
        pipe.write_all(greeting).await?;
        let place = {
            let mut flights = flights.lock().unwrap();
            flights.push(0);
            flights.len() - 1
        };
        loop {
            let mut bytes = [0; 2048];
            let count = pipe.read(&mut bytes).await?;
            if count == 0 {
                return Ok(());
            }
            flights.lock().unwrap()[place] += 1;
            let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
            let is_hurried = text.contains("right\r\n") && (text.contains("ID (") || text.contains("USER "));
            if self == Self::Pauses {
                tokio::time::sleep(Duration::from_secs(3)).await;
            }
            let mut answers = String::new();
            let lines: Vec<&str> = text.lines().collect();
            for (at, line) in lines.iter().enumerate() {
                let is_last = at + 1 == lines.len();
                match self {
                    Self::HangsUp if is_hurried => return Ok(()),
                    Self::Drops if is_hurried && at > 0 => break,
                    _ => {}
                }
                let good = line.ends_with("right") && !line.ends_with("not right");
                let odd = self == Self::Refuses && is_hurried;
                answers += &match line.split(' ').collect::<Vec<_>>()[..] {
                    ["CAPA"] => "+OK\r\nTOP\r\nPIPELINING\r\n.\r\n".to_owned(),
                    ["PASS", ..] if self == Self::Busy => "-ERR [SYS/TEMP] later\r\n".to_owned(),
                    ["PASS", ..] if self == Self::Expired => "-ERR your password has expired\r\n".to_owned(),
                    _ if is_last && self == Self::Busy && line.ends_with("right") => {
                        "P2 NO [UNAVAILABLE] later\r\n".to_owned()
                    }
                    ["PASS", ..] if odd => "-ERR unknown command\r\n".to_owned(),
                    ["PASS", ..] if good => "+OK in\r\n".to_owned(),
                    ["PASS", ..] => "-ERR [AUTH] no\r\n".to_owned(),
                    ["XOIP" | "USER", ..] => "+OK\r\n".to_owned(),
                    [tag, "ID", ..] => format!("{tag} OK\r\n"),
                    [tag, "CAPABILITY"] => format!("* CAPABILITY IMAP4rev1 LITERAL+\r\n{tag} OK\r\n"),
                    _ if is_last && odd => "P2 BAD what?\r\n".to_owned(),
                    _ if is_last && good => "P2 OK in\r\n".to_owned(),
                    _ if is_last && !pop3 => "P2 NO [AUTHENTICATIONFAILED] no\r\n".to_owned(),
                    _ => String::new(),
                };
            }
            pipe.write_all(answers.as_bytes()).await?;
        }
    }
}

struct Network {
    stores: HashMap<&'static str, Store>,
    connects: Arc<AtomicUsize>,
}

#[async_trait]
impl Transport for Network {
    async fn start_tls(
        &self,
        stream: BoxStream,
        _protocol: Protocol,
        _local: IpAddr,
    ) -> io::Result<(BoxStream, TlsFacts)> {
        Ok((stream, tls_facts()))
    }

    async fn connect(
        &self,
        route: &Route,
        _header: Option<(ProxyVersion, &ConnectionFacts)>,
    ) -> Result<BoxStream, ConnectError> {
        self.connects.fetch_add(1, Ordering::Relaxed);
        let mut store = self.stores[&*route.host];
        if let Store::Later(count, first) = store {
            store = match self.connects.load(Ordering::Relaxed) > count {
                true => Store::Good,
                false => match first.is_empty() || first.starts_with('*') {
                    true => Store::Greets(first),
                    false => Store::Says(first),
                },
            };
        }
        if matches!(store, Store::Refuses) {
            return Err(ConnectError::Refused(format!("connect to {}: refused", route.host)));
        }
        let (near, far) = duplex(4096);
        tokio::spawn(store.run(far));
        Ok(Box::new(near))
    }

    async fn secure(&self, stream: BoxStream, _route: &Route) -> Result<BoxStream, ConnectError> {
        Ok(stream)
    }
}

impl Store {
    async fn run(self, mut pipe: DuplexStream) -> io::Result<()> {
        if matches!(self, Self::Frozen) {
            return std::future::pending().await;
        }
        if matches!(self, Self::SilentBeforeTls) {
            pipe.write_all(b"* OK ready\r\n").await?;
            return std::future::pending().await;
        }
        if let Self::Listing { flights, pop3, lies } = self {
            return lies.serve(pipe, flights, pop3).await;
        }
        if let Self::Greets(words) = self {
            return pipe.write_all(words.as_bytes()).await;
        }
        let scram = matches!(self, Self::Scram(_) | Self::ScramSays(_) | Self::ScramBreaks(_));
        let can = match self {
            Self::ScramBinds => "SASL-IR AUTH=SCRAM-SHA-256 AUTH=SCRAM-SHA-256-PLUS",
            _ if scram => "SASL-IR AUTH=SCRAM-SHA-256",
            _ => "LITERAL+",
        };
        pipe.write_all(format!("* OK [CAPABILITY IMAP4rev1 {can}] ready\r\n").as_bytes())
            .await?;
        let id = line(&mut pipe).await?;
        let tag = id.split(' ').next().unwrap_or_default().to_owned();
        pipe.write_all(format!("* ID NIL\r\n{tag} OK done\r\n").as_bytes())
            .await?;
        // LOGIN {n+} CRLF user {m+} CRLF password CRLF
        let login = line(&mut pipe).await?;
        let tag = login.split(' ').next().unwrap_or_default().to_owned();
        if scram {
            return self.scram(&tag, pipe).await;
        }
        line(&mut pipe).await?;
        let password = line(&mut pipe).await?;
        if let Self::Slow(seconds) = self {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
        }
        match self {
            Self::HangsUp => return Ok(()),
            Self::Says(answer) if answer.starts_with('*') => return pipe.write_all(answer.as_bytes()).await,
            Self::Says(answer) => pipe.write_all(format!("{tag} {answer}\r\n").as_bytes()).await?,
            Self::WrongHost => {
                pipe.write_all(format!("{tag} NO LOGIN failed (wrong host)\r\n").as_bytes())
                    .await?
            }
            _ if password != "right" => {
                pipe.write_all(format!("{tag} NO [AUTHENTICATIONFAILED] you are not alice\r\n").as_bytes())
                    .await?;
            }
            _ => {
                let ok = format!("* CAPABILITY IMAP4rev1 IDLE\r\n{tag} OK [CAPABILITY IMAP4rev1 IDLE] hello\r\n");
                pipe.write_all(ok.as_bytes()).await?;
            }
        }
        // From here on an echo, so that a relay can be told from a dialogue.
        let (mut read, mut write) = tokio::io::split(pipe);
        tokio::io::copy(&mut read, &mut write).await.map(drop)
    }
}

impl Store {
    async fn scram(self, tag: &str, mut pipe: DuplexStream) -> io::Result<()> {
        let say = |text: &str| format!("+ {}\r\n", STANDARD.encode(text));
        if let Self::ScramSays(answer) = self {
            return pipe.write_all(format!("{tag} {answer}\r\n").as_bytes()).await;
        }
        if let Self::ScramBreaks(words) = self {
            return pipe.write_all(words.as_bytes()).await;
        }
        if let Self::Scram(thinks) = self {
            tokio::time::sleep(Duration::from_millis(thinks)).await;
        }
        let first = format!("r=fyko{},s=QSXCR+Q6sek8bf92QSXCRA==,i=4096", "x".repeat(64));
        pipe.write_all(say(&first).as_bytes()).await?;
        let proof = line(&mut pipe).await?;
        if proof != STANDARD.encode(RIGHT_PROOF) {
            let no = format!("{tag} NO [AUTHENTICATIONFAILED] you are not alice\r\n");
            return pipe.write_all(no.as_bytes()).await;
        }
        pipe.write_all(say("v=QQ==").as_bytes()).await?;
        line(&mut pipe).await?;
        pipe.write_all(format!("{tag} OK hello\r\n").as_bytes()).await?;
        let (mut read, mut write) = tokio::io::split(pipe);
        tokio::io::copy(&mut read, &mut write).await.map(drop)
    }
}

const RIGHT_PROOF: &str = "c=biws,r=fykox,p=cmlnaHQ=";

async fn line(pipe: &mut DuplexStream) -> io::Result<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(pipe.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&line[..line.len() - 2]).into_owned())
}

#[derive(Default)]
struct Records(Mutex<Vec<Record>>);

impl Audit for Records {
    fn record(&self, record: Record) {
        self.0.lock().unwrap().push(record);
    }
}

/// Our end of a client's connection, which can be cut off instead of ended.
struct Near {
    pipe: DuplexStream,
    cut: Arc<AtomicBool>,
}

impl AsyncRead for Near {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.pipe).poll_read(cx, buffer))?;
        match buffer.filled().len() == before && self.cut.load(Ordering::Relaxed) {
            true => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            false => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for Near {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.pipe).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

/// A place among those who are counted, which notes when it is given up.
struct Counted(Instant, Arc<Mutex<Option<Duration>>>);

impl LoginSlot for Counted {
    fn heard(&self) {}

    fn under_way(&self) {}
}

impl Drop for Counted {
    fn drop(&mut self) {
        *self.1.lock().unwrap() = Some(self.0.elapsed());
    }
}

/// One client and everything around it.
struct Stage {
    client: DuplexStream,
    cut: Arc<AtomicBool>,
    records: Arc<Records>,
    connects: Arc<AtomicUsize>,
    drain: watch::Sender<Drain>,
    live: Arc<ConnectionHandle>,
    routes: Arc<RouteCache>,
    session: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Plan {
    one: Option<Store>,
    two: Option<Store>,
    down: bool,
    moves: bool,
    gives_away: bool,
    /// The name in the client's certificate, if it has shown one.
    certificate: Option<&'static str>,
    pop3: bool,
    starttls: bool,
    /// Seconds that a failed login waits, if not ten.
    wait: Option<u64>,
    /// The mailbox server's words are kept from the client.
    own_words: bool,
    /// Seconds that a mailbox server may take for a login, if not 120.
    patience: Option<u64>,
    /// What is known of servers.
    known: Arc<mail_proxy::KnownServers>,
    /// The mailbox servers must begin TLS with STARTTLS.
    secures: bool,
    /// How failed logins are judged, if not by default.
    throttle: Option<ThrottleSettings>,
}

fn tls_facts() -> TlsFacts {
    TlsFacts {
        cipher: "TLSv1.3 TEST".to_owned(),
        sni: None,
        alpn: None,
        client_name: None,
        certificate: None,
    }
}

fn master() -> Master {
    Master {
        user: "portico".to_owned(),
        password: Secret::new("right".to_owned()),
    }
}

fn settings() -> Settings {
    Settings {
        imap: Arc::new(imap::Settings {
            limits: LoginLimits {
                mechanisms: Mechanism::of_all_sasl().collect(),
                ..LoginLimits::default()
            },
            ..imap::Settings::default()
        }),
        pop3: Arc::new(pop3::Settings::default()),
        imap_idle: Duration::from_secs(2100),
        pop3_idle: Duration::from_secs(600),
        auth_wait: Duration::from_secs(10),
        hold_wait: Duration::from_secs(10),
        hold_text: "held".to_owned(),
        upstream_login: Duration::from_secs(120),
        pass_errors: true,
        send_imap_id: true,
        send_pop3_xoip: true,
        servers: Arc::default(),
        master: None,
        decoys: Arc::new(Decoys::default()),
        known: Arc::default(),
        product: ("Portico".to_owned(), "0".to_owned()),
    }
}

fn stage(plan: Plan) -> Stage {
    let connects = Arc::new(AtomicUsize::new(0));
    let records = Arc::new(Records::default());
    let drain = watch::Sender::new(Drain::Running);
    let env = environment(&plan, &connects, &records, &drain);
    let (client, pipe) = duplex(4096);
    let cut = Arc::new(AtomicBool::new(false));
    let near = Near { pipe, cut: cut.clone() };
    let live = Arc::new(ConnectionHandle::new());
    let connection = connection(&plan, near, &live);
    Stage {
        client,
        cut,
        records,
        connects,
        drain,
        live,
        routes: env.routes.clone(),
        session: tokio::spawn(serve(connection, env)),
    }
}

/// What the process hands in: routes from the directory, and the servers of the plan behind the transport.
fn environment(
    plan: &Plan,
    connects: &Arc<AtomicUsize>,
    records: &Arc<Records>,
    drain: &watch::Sender<Drain>,
) -> SessionEnv {
    let (yaml, _) = YamlDirectory::parse(DIRECTORY, Path::new("test.yaml")).unwrap();
    let directory = Fake {
        yaml,
        asked: AtomicUsize::new(0),
        down: plan.down,
        moves: plan.moves,
        gives_away: plan.gives_away,
    };
    let cache = route_cache::Settings {
        node: "proxy.example".to_owned(),
        capacity: 1000,
        ttl: Duration::from_secs(3600),
        stale: Duration::from_secs(3600),
        negative_ttl: Duration::from_secs(5),
    };
    let stores = [("one.example", plan.one), ("two.example", plan.two)];
    let network = Network {
        stores: stores.map(|(name, store)| (name, store.unwrap_or(Store::Good))).into(),
        connects: connects.clone(),
    };
    SessionEnv {
        routes: Arc::new(RouteCache::new(cache, Arc::new(directory))),
        transport: Arc::new(network),
        audit: records.clone(),
        settings: Arc::new(Settings {
            auth_wait: Duration::from_secs(plan.wait.unwrap_or(10)),
            upstream_login: Duration::from_secs(plan.patience.unwrap_or(120)),
            pass_errors: !plan.own_words,
            known: plan.known.clone(),
            master: plan.certificate.map(|_| Arc::new(master())),
            servers: Arc::new(ServerRules {
                rules: vec![ServerRule {
                    name: "*".to_owned(),
                    tell: None,
                    starttls: Some(plan.secures),
                }],
                ..ServerRules::default()
            }),
            ..settings()
        }),
        throttle: Arc::new(Throttle::new(plan.throttle.clone().unwrap_or_default())),
        limits: Arc::new(()),
        generation: 7,
        drain: drain.subscribe(),
    }
}

/// The connection of a client, accepted just now.
fn connection(plan: &Plan, stream: Near, handle: &Arc<ConnectionHandle>) -> Connection {
    let protocol = if plan.pop3 { Protocol::Pop3 } else { Protocol::Imap };
    let facts = ConnectionFacts {
        id: "c1".to_owned(),
        listener: "127.0.0.1:143".into(),
        proto: protocol.proto(),
        client: Client {
            addr: "192.0.2.7:4711".parse().unwrap(),
            via: None,
            local: "198.51.100.1:143".parse().unwrap(),
        },
        tls: plan.certificate.map(|name| TlsFacts {
            certificate: Some(Arc::new(CertificateNames {
                subject: format!("CN={name}"),
                accounts: vec![name.to_owned()],
            })),
            ..tls_facts()
        }),
        accepted: Instant::now(),
        handle: handle.clone(),
    };
    Connection {
        stream: Box::new(stream),
        facts: Arc::new(facts),
        protocol,
        starttls: if plan.starttls { StartTls::Only } else { StartTls::Off },
        login_deadline: Duration::from_secs(60),
    }
}

impl Stage {
    async fn say(&mut self, text: &str) {
        self.client.write_all(text.as_bytes()).await.unwrap();
    }

    #[track_caller]
    fn expect<'a>(&'a mut self, wanted: &'a str) -> impl Future<Output = ()> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            let got = line(&mut self.client)
                .await
                .unwrap_or_else(|error| panic!("{caller}: {error}, not {wanted:?}"));
            assert!(got.starts_with(wanted), "{caller}: {got:?}, not {wanted:?}");
        }
    }

    /// Begins a login by SCRAM, and returns what the server says.
    async fn scram(&mut self, user: &str) -> String {
        self.scram_with("n,,", user).await
    }

    /// The same with this header.
    async fn scram_with(&mut self, header: &str, user: &str) -> String {
        let first = STANDARD.encode(format!("{header}n={user},r=fyko"));
        self.say(&format!("a AUTHENTICATE SCRAM-SHA-256 {first}\r\n")).await;
        let said = line(&mut self.client).await.unwrap();
        let message = said.strip_prefix("+ ").unwrap_or_else(|| panic!("{said:?}"));
        String::from_utf8(STANDARD.decode(message).unwrap()).unwrap()
    }

    async fn prove(&mut self, proof: &str) {
        self.say(&format!("{}\r\n", STANDARD.encode(proof))).await;
    }

    /// The records after the client has gone without an end (RST).
    async fn reset(self) -> Vec<Record> {
        self.cut.store(true, Ordering::Relaxed);
        self.ended().await
    }

    /// The records, once the session has ended.
    async fn ended(self) -> Vec<Record> {
        drop(self.client);
        self.session.await.unwrap();
        self.records.0.lock().unwrap().clone()
    }
}

#[tokio::test(start_paused = true)]
async fn a_login_and_what_is_pipelined_behind_it() {
    let mut s = stage(Plan::default());
    s.expect("* OK IMAP4rev1").await;
    s.say("a LOGIN al@a.example right\r\nb NOOP\r\n").await;
    s.expect("* CAPABILITY IMAP4rev1 IDLE").await;
    s.expect("a OK [CAPABILITY IMAP4rev1 IDLE] hello").await;
    s.expect("b NOOP").await;
    let records = s.ended().await;
    assert_eq!(records.len(), 2, "{records:#?}");
    let login = &records[0];
    assert_eq!((login.event, login.outcome), (Some(Event::Login), Some(Outcome::Ok)));
    assert_eq!(
        (login.user.as_deref(), login.account.as_deref()),
        (Some("al@a.example"), Some("alice@a.example"))
    );
    assert_eq!(login.route.as_deref(), Some("one.example:7143"));
    assert_eq!((login.tier, login.generation), (Some("directory"), 7));
    let end = &records[1];
    assert_eq!(
        (end.event, end.ended_by),
        (Some(Event::SessionEnd), Some(EndedBy::Client))
    );
    assert_eq!((end.bytes_in, end.bytes_out), (Some(8), Some(8)));
}

/// The answer to a wrong password and the answer to an unknown name are the same, byte for byte and to the moment,
/// also where the mailbox server takes its time over a wrong one.
#[tokio::test(start_paused = true)]
async fn failed_logins_do_not_tell_which_accounts_exist() {
    let mut answers = Vec::new();
    let users = ["alice@a.example", "nobody@a.example", "\"odd\\\\name\"", "\"bell\x07\""];
    for (user, store) in users.into_iter().zip([Store::Good; 4]).chain([
        ("alice@a.example", Store::Slow(2)),
        ("alice@a.example", Store::Slow(17)),
        ("nobody@a.example", Store::Slow(17)),
    ]) {
        let mut s = stage(Plan {
            one: Some(store),
            ..Plan::default()
        });
        s.expect("* OK").await;
        let begun = Instant::now();
        s.say(&format!("a LOGIN {user} wrong\r\n")).await;
        answers.push((line(&mut s.client).await.unwrap(), begun.elapsed()));
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert_eq!(answers[0].0, "a NO [AUTHENTICATIONFAILED] LOGIN failed");
    assert_eq!(answers[0].1.as_secs(), 10);
}

/// Delays and refusals of the throttle tell as little, and no server is asked about what is refused.
#[tokio::test(start_paused = true)]
async fn throttled_logins_do_not_tell_which_accounts_exist() {
    let mut strict = ThrottleSettings::default();
    let pair = strict.rule_mut(Rule::Pair);
    (pair.delay_from, pair.refuse_from) = (1, 2);
    let mut all = Vec::new();
    for (user, store, connects) in [
        ("alice@a.example", Store::Good, 2),
        ("al@a.example", Store::Slow(2), 2),
        ("alice@a.example", Store::Slow(17), 2),
        ("nobody@a.example", Store::Good, 0),
    ] {
        let mut s = stage(Plan {
            one: Some(store),
            throttle: Some(strict.clone()),
            ..Plan::default()
        });
        s.expect("* OK").await;
        let mut answers = Vec::new();
        for password in ["wrong", "bad", "right"] {
            let begun = Instant::now();
            s.say(&format!("a LOGIN {user} {password}\r\n")).await;
            answers.push((line(&mut s.client).await.unwrap(), begun.elapsed().as_secs()));
        }
        assert_eq!(s.connects.load(Ordering::Relaxed), connects, "{user}");
        let records = s.ended().await;
        let refused = records
            .iter()
            .find(|record| record.outcome == Some(Outcome::Throttled))
            .unwrap();
        assert_eq!((refused.rule, refused.count), (Some("pair"), Some(2)));
        assert!(
            refused
                .retry_after
                .is_some_and(|seconds| (60..1_800).contains(&seconds))
        );
        let held = records
            .iter()
            .find(|record| record.throttle == Some("delayed"))
            .unwrap();
        assert!(
            held.ms_held.is_some_and(|held| (1_000..1_100).contains(&held)),
            "{held:?}"
        );
        all.push(answers);
    }
    assert!(all.iter().all(|answers| *answers == all[0]), "{all:?}");
    let failed = "a NO [AUTHENTICATIONFAILED] LOGIN failed".to_owned();
    let refused = "a NO [LIMIT] Too many failed logins, please try again later".to_owned();
    assert_eq!(all[0], [(failed.clone(), 10), (failed, 11), (refused, 0)]);
}

/// A server that is down or full says nothing of the password.
#[tokio::test(start_paused = true)]
async fn failures_of_the_system_are_not_counted() {
    let mut strict = ThrottleSettings::default();
    strict.rule_mut(Rule::Pair).refuse_from = 1;
    for store in [
        Store::Refuses,
        Store::Frozen,
        Store::Says("NO [UNAVAILABLE] full"),
        Store::Says("NO [LIMIT] 10"),
    ] {
        let mut s = stage(Plan {
            one: Some(store),
            throttle: Some(strict.clone()),
            ..Plan::default()
        });
        s.expect("* OK").await;
        for _ in 0..3 {
            s.say("a LOGIN alice@a.example right\r\n").await;
            let answer = line(&mut s.client).await.unwrap();
            assert!(!answer.contains("Too many failed"), "{answer}");
        }
        let records = s.ended().await;
        assert!(records.iter().all(|record| record.outcome != Some(Outcome::Throttled)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stale_route_is_mended_before_the_client_hears_anything() {
    for store in [Store::WrongHost, Store::Refuses, Store::HangsUp] {
        let mut s = stage(Plan {
            one: Some(store),
            moves: true,
            ..Plan::default()
        });
        s.expect("* OK").await;
        s.say("a LOGIN alice@a.example right\r\n").await;
        s.expect("* CAPABILITY").await;
        s.expect("a OK").await;
        let records = s.ended().await;
        assert_eq!(records[0].route.as_deref(), Some("two.example:7143"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_referral_is_followed_to_a_server_of_the_directory() {
    for one in [
        Store::Says("NO [REFERRAL imap://two.example/] try there"),
        Store::Says("NO [referral imap://alice%40a.example;AUTH=*@TWO.example:143/] try there"),
        Store::Says("OK [REFERRAL imap://two.example/] it is better there"),
        Store::Greets("* BYE [REFERRAL imap://two.example/] gone\r\n"),
    ] {
        let mut s = stage(Plan {
            one: Some(one),
            ..Plan::default()
        });
        s.expect("* OK").await;
        s.say("a LOGIN al@a.example right\r\n").await;
        s.expect("* CAPABILITY").await;
        s.expect("a OK [CAPABILITY IMAP4rev1 IDLE] hello").await;
        assert_eq!(s.connects.load(Ordering::Relaxed), 2);
        let records = s.ended().await;
        assert_eq!(records[0].route.as_deref(), Some("two.example:7143"));
        assert_eq!(records[0].tier, Some("referral"));
        assert_eq!(records[0].why.as_deref(), Some("referred by one.example"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_login_that_was_taken_stays_where_a_referral_leads_nowhere() {
    for (one, two) in [
        ("OK [REFERRAL imap://two.example/] hello", Store::Refuses),
        (
            "OK [REFERRAL imap://two.example/] hello",
            Store::Says("NO [ALERT] closed"),
        ),
        ("OK [REFERRAL imap://stranger.example/] hello", Store::Good),
        ("OK [REFERRAL imap://one.example/] hello", Store::Good),
        ("OK [REFERRAL rubbish] hello", Store::Good),
    ] {
        let mut s = stage(Plan {
            one: Some(Store::Says(one)),
            two: Some(two),
            ..Plan::default()
        });
        s.expect("* OK").await;
        s.say("a LOGIN alice@a.example right\r\n").await;
        s.expect("a OK hello").await;
        let records = s.ended().await;
        assert_eq!(records[0].route.as_deref(), Some("one.example:7143"), "{one}");
        assert_eq!(records[0].why, None, "{one}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_followed_is_an_outage_and_ends() {
    const TO_ONE: Store = Store::Says("NO [REFERRAL imap://one.example/] x");
    for (one, two, why, connects) in [
        ("NO [REFERRAL imap://two.example/] x", TO_ONE, "refer to each other", 4),
        (
            "NO [REFERRAL imap://one.example/] x",
            Store::Good,
            "refer to each other",
            2,
        ),
        ("NO [REFERRAL imap://127.0.0.1/] x", Store::Good, "does not know", 2),
        (
            "NO [REFERRAL imap://stranger.example/] x",
            Store::Good,
            "does not know",
            2,
        ),
        (
            "NO [REFERRAL imap://bob@two.example/] x",
            Store::Good,
            "is not followed",
            2,
        ),
        ("NO [REFERRAL :::] x", Store::Good, "lives elsewhere", 2),
        ("NO [REFERRAL imap://two.example/] x", Store::Refuses, "refused", 4),
    ] {
        let mut s = stage(Plan {
            one: Some(Store::Says(one)),
            two: Some(two),
            ..Plan::default()
        });
        s.expect("* OK").await;
        s.say("a LOGIN alice@a.example right\r\n").await;
        s.expect("a NO [UNAVAILABLE]").await;
        assert_eq!(s.connects.load(Ordering::Relaxed), connects, "{one}");
        let records = s.ended().await;
        assert_eq!(records[0].outcome, Some(Outcome::UpstreamDown), "{one}");
        let said = records[0].why.clone().unwrap_or_default();
        assert!(said.contains(why), "{one}: {said}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_server_is_reported_at_once_and_tried_twice() {
    let mut s = stage(Plan {
        one: Some(Store::Refuses),
        ..Plan::default()
    });
    s.expect("* OK").await;
    let begun = Instant::now();
    s.say("a LOGIN alice@a.example right\r\nb NOOP\r\n").await;
    s.expect("a NO [UNAVAILABLE]").await;
    s.expect("b OK").await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!(s.connects.load(Ordering::Relaxed), 2);
    let records = s.ended().await;
    assert_eq!(records[0].outcome, Some(Outcome::UpstreamDown));
    assert_eq!(records.len(), 2);
}

/// Proxies that send a login to each other are stopped, by what they tell each other. A client that is none cannot have
/// more of them follow.
#[tokio::test(start_paused = true)]
async fn a_login_does_not_go_round_in_circles() {
    for (ttl, goes_on) in [
        ("0", false),
        ("1", false),
        ("2", true),
        ("4294967295", true),
        ("x", true),
    ] {
        let mut s = stage(Plan {
            one: Some(Store::Good),
            ..Plan::default()
        });
        s.expect("* OK").await;
        s.say(&format!("i ID (\"x-proxy-ttl\" \"{ttl}\")\r\n")).await;
        s.expect("* ID").await;
        s.expect("i OK").await;
        s.say("a LOGIN alice@a.example right\r\n").await;
        s.expect(if goes_on { "* CAPABILITY" } else { "a NO [UNAVAILABLE]" })
            .await;
        assert_eq!(s.connects.load(Ordering::Relaxed), usize::from(goes_on), "{ttl}");
    }
}

/// A server that lists what it can only when asked is asked once; then all is said at once. Where that was a lie, the
/// client hears nothing of it, and it is not believed again. A wrong password is said once.
#[tokio::test(start_paused = true)]
async fn logins_take_fewer_flights_where_the_server_is_known() {
    for (lies, pop3, expected) in [
        // ID, CAPABILITY, LOGIN. XOIP, CAPA, USER, PASS.
        (Lie::No, false, &[3, 1, 1][..]),
        (Lie::No, true, &[4, 1, 1]),
        (Lie::Refuses, false, &[3, 1, 3, 3]),
        (Lie::Refuses, true, &[4, 1, 3, 3]),
        (Lie::HangsUp, false, &[3, 1, 3, 3]),
        (Lie::HangsUp, true, &[4, 1, 3, 3]),
        (Lie::Drops, true, &[4, 1, 3, 3]),
    ] {
        let flights: &Mutex<Vec<usize>> = Box::leak(Box::default());
        let known = Arc::<mail_proxy::KnownServers>::default();
        for password in ["not right", "right", "right"] {
            let mut s = stage(Plan {
                one: Some(Store::Listing { flights, pop3, lies }),
                pop3,
                known: known.clone(),
                ..Plan::default()
            });
            let (greeting, login) = match pop3 {
                true => ("+OK", format!("USER alice@a.example\r\nPASS {password}\r\n")),
                false => ("* OK", format!("a LOGIN alice@a.example \"{password}\"\r\n")),
            };
            s.expect(greeting).await;
            s.say(&login).await;
            if pop3 {
                s.expect("+OK").await;
            }
            s.expect(match (pop3, password) {
                (true, "right") => "+OK in",
                (true, _) => "-ERR [AUTH]",
                (false, "right") => "a OK in",
                (false, _) => "a NO [AUTHENTICATIONFAILED]",
            })
            .await;
        }
        assert_eq!(*flights.lock().unwrap(), expected, "{lies:?} {pop3}");
    }
}

/// A password is said a few times at most, and a server called as often, however well it is known, and for nothing that
/// it says is it known less.
#[tokio::test(start_paused = true)]
async fn a_known_server_that_takes_nobody_is_not_tried_more_often() {
    for pop3 in [false, true] {
        let flights: &Mutex<Vec<usize>> = Box::leak(Box::default());
        let known = Arc::<mail_proxy::KnownServers>::default();
        let server = |lies| Store::Listing { flights, pop3, lies };
        let said = |text: &'static str, err: &'static str| if pop3 { err } else { text };
        let mut expected = vec![if pop3 { 4 } else { 3 }, 1];
        for (store, told, slow) in [
            (server(Lie::No), said("a OK", "+OK in"), 0),
            (server(Lie::No), said("a OK", "+OK in"), 0),
            (server(Lie::Busy), said("a NO [UNAVAILABLE]", "-ERR [SYS/TEMP]"), 4),
            (Store::Later(99, ""), said("a NO [UNAVAILABLE]", "-ERR [SYS/TEMP]"), 4),
            (server(Lie::No), said("a OK", "+OK in"), 0),
        ] {
            let mut s = stage(Plan {
                one: Some(store),
                pop3,
                known: known.clone(),
                ..Plan::default()
            });
            s.expect(said("* OK", "+OK")).await;
            match pop3 {
                true => s.say("USER alice@a.example\r\nPASS right\r\n").await,
                false => s.say("a LOGIN alice@a.example right\r\n").await,
            }
            if pop3 {
                s.expect("+OK").await;
            }
            s.expect(told).await;
            assert_eq!(s.connects.load(Ordering::Relaxed), slow.max(1), "{told}");
        }
        // The first one at once, the others slowly.
        expected.extend(vec![1, 3, 3, 3]);
        expected.push(1);
        assert_eq!(*flights.lock().unwrap(), expected, "{pop3}");
    }
}

/// What has another reason than that it was said at once does not make a server known for nothing.
#[tokio::test(start_paused = true)]
async fn a_server_stays_known_after_failures_of_other_reasons() {
    let delegated = STANDARD.encode("bob@a.example\0alice@a.example\0right");
    for (pop3, first, login, told, between) in [
        (
            false,
            Lie::No,
            format!("a AUTHENTICATE PLAIN {delegated}\r\n"),
            "a NO [UNAVAILABLE]",
            &[2][..],
        ),
        (
            true,
            Lie::Expired,
            "USER alice@a.example\r\nPASS right\r\n".to_owned(),
            "-ERR your password has expired",
            &[1, 3],
        ),
    ] {
        let flights: &Mutex<Vec<usize>> = Box::leak(Box::default());
        let known = Arc::<mail_proxy::KnownServers>::default();
        let right = match pop3 {
            true => "USER alice@a.example\r\nPASS right\r\n",
            false => "a LOGIN alice@a.example right\r\n",
        };
        let taken = if pop3 { "+OK in" } else { "a OK in" };
        for (lies, login, told) in [(Lie::No, right, taken), (first, &login, told), (Lie::No, right, taken)] {
            let store = Store::Listing { flights, pop3, lies };
            let mut s = stage(Plan {
                one: Some(store),
                two: Some(store),
                pop3,
                known: known.clone(),
                ..Plan::default()
            });
            s.expect(if pop3 { "+OK" } else { "* OK" }).await;
            s.say(login).await;
            if pop3 {
                s.expect("+OK").await;
            }
            s.expect(told).await;
        }
        let expected = [&[if pop3 { 4 } else { 3 }][..], between, &[1]].concat();
        assert_eq!(*flights.lock().unwrap(), expected, "{pop3}");
    }
}

/// A server that has taken one login at once is not told another one again because it thinks: a wrong password would
/// count twice there.
#[tokio::test(start_paused = true)]
async fn a_known_server_that_thinks_hears_the_password_once() {
    let flights: &Mutex<Vec<usize>> = Box::leak(Box::default());
    let known = Arc::<mail_proxy::KnownServers>::default();
    for (lies, password, told) in [
        (Lie::No, "right", "a OK in"),
        (Lie::No, "right", "a OK in"),
        (Lie::Pauses, "not right", "a NO [AUTHENTICATIONFAILED]"),
        (Lie::Pauses, "right", "a OK in"),
    ] {
        let mut s = stage(Plan {
            one: Some(Store::Listing {
                flights,
                pop3: false,
                lies,
            }),
            known: known.clone(),
            ..Plan::default()
        });
        s.expect("* OK").await;
        s.say(&format!("a LOGIN alice@a.example \"{password}\"\r\n")).await;
        s.expect(told).await;
    }
    assert_eq!(*flights.lock().unwrap(), [3, 1, 1, 1]);
}

/// A server that does not begin TLS has not heard the password, so this is no failure of it.
#[tokio::test(start_paused = true)]
async fn a_server_that_is_silent_before_tls_is_down() {
    let mut s = stage(Plan {
        one: Some(Store::SilentBeforeTls),
        wait: Some(2),
        secures: true,
        ..Plan::default()
    });
    s.expect("* OK").await;
    s.say("a LOGIN alice@a.example right\r\n").await;
    s.expect("a NO [UNAVAILABLE]").await;
    let records = s.ended().await;
    assert_eq!(records[0].outcome, Some(Outcome::UpstreamDown));
    assert_eq!(records[0].phase, Some("starttls"));
}

/// One guess is one check: what a server says behind the password as its last word is its answer.
#[tokio::test(start_paused = true)]
async fn a_farewell_behind_the_password_is_an_answer() {
    for (said, told, outcome) in [
        (
            "* BYE [AUTHENTICATIONFAILED] no\r\n",
            "a NO [AUTHENTICATIONFAILED]",
            Outcome::BadCredentials,
        ),
        (
            "* BYE Authentication failed\r\n",
            "a NO [AUTHENTICATIONFAILED]",
            Outcome::BadCredentials,
        ),
        ("* BYE too many connections\r\n", "a NO [LIMIT]", Outcome::Limit),
        ("* BYE shutting down\r\n", "a NO [UNAVAILABLE]", Outcome::Busy),
    ] {
        let mut s = stage(Plan {
            one: Some(Store::Says(said)),
            ..Plan::default()
        });
        s.expect("* OK").await;
        s.say("a LOGIN alice@a.example right\r\n").await;
        s.expect(told).await;
        assert_eq!(s.connects.load(Ordering::Relaxed), 1, "{said}");
        let records = s.ended().await;
        assert_eq!(records[0].outcome, Some(outcome), "{said}");
    }
}

/// A server that takes nobody at the moment is tried again before the client hears of it, a few times; a limit and a
/// wrong password are answers.
#[tokio::test(start_paused = true)]
async fn a_server_that_is_busy_for_a_moment_is_tried_again() {
    for (count, first, told, connects) in [
        (2, "NO [UNAVAILABLE] later\r\n", "* CAPABILITY", 3),
        (1, "NO [INUSE] later\r\n", "* CAPABILITY", 2),
        (3, "* BYE restarting\r\n", "* CAPABILITY", 4),
        (2, "", "* CAPABILITY", 3),
        (99, "NO [UNAVAILABLE] later\r\n", "a NO [UNAVAILABLE]", 4),
        (1, "NO [LIMIT] too many\r\n", "a NO [LIMIT]", 1),
        (99, "", "a NO [UNAVAILABLE]", 4),
        (1, "* BYE too many connections\r\n", "a NO [UNAVAILABLE]", 1),
        (1, "NO [AUTHENTICATIONFAILED] no\r\n", "a NO [AUTHENTICATIONFAILED]", 1),
    ] {
        let mut s = stage(Plan {
            one: Some(Store::Later(count, first)),
            ..Plan::default()
        });
        s.expect("* OK").await;
        let begun = Instant::now();
        s.say("a LOGIN alice@a.example right\r\n").await;
        s.expect(told).await;
        let is_wrong = first.contains("FAILED");
        assert!(
            is_wrong || begun.elapsed() < Duration::from_secs(5),
            "{first}: {:?}",
            begun.elapsed()
        );
        assert_eq!(s.connects.load(Ordering::Relaxed), connects, "{first}");
        let logins = s
            .ended()
            .await
            .into_iter()
            .filter(|record| record.event == Some(Event::Login));
        assert_eq!(logins.count(), 1, "{first}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_frozen_server_costs_its_greeting_limit_once() {
    let mut s = stage(Plan {
        one: Some(Store::Frozen),
        ..Plan::default()
    });
    s.expect("* OK").await;
    let begun = Instant::now();
    s.say("a LOGIN alice@a.example right\r\n").await;
    s.expect("a NO [UNAVAILABLE]").await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(s.connects.load(Ordering::Relaxed), 1);
}

/// A login under way is recorded too when its client leaves, or when the node goes down.
#[tokio::test(start_paused = true)]
async fn a_login_under_way_is_not_forgotten() {
    let frozen = || Plan {
        one: Some(Store::Frozen),
        ..Plan::default()
    };
    let mut s = stage(frozen());
    s.expect("* OK").await;
    s.say("a LOGIN alice@a.example right\r\n").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let records = s.ended().await;
    assert_eq!(
        (records[0].event, records[0].outcome),
        (Some(Event::Login), Some(Outcome::UpstreamDown))
    );
    assert_eq!(
        (records[1].event, records[1].outcome),
        (Some(Event::SessionEnd), Some(Outcome::ClientGone))
    );

    for why in ["drain", "kick"] {
        let mut s = stage(frozen());
        s.expect("* OK").await;
        s.say("a LOGIN al@a.example right\r\n").await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        for name in ["al@a.example", "alice@a.example"] {
            assert!(s.live.is_logging_in(|under_way| under_way == name), "{name}");
        }
        match why {
            "drain" => s.drain.send(Drain::EndLogins).unwrap(),
            _ => s.live.end(CloseReason::Kick),
        }
        s.expect("* BYE").await;
        assert!(!s.live.is_logging_in(|_| true));
        let records = s.ended().await;
        let login = &records[0];
        assert_eq!((login.event, login.outcome), (Some(Event::Login), Some(Outcome::Ended)));
        assert_eq!(
            (login.why.as_deref(), login.account.as_deref()),
            (Some(why), Some("alice@a.example"))
        );
        assert_eq!(records.len(), 2);
    }
}

/// Thirty guesses of a quarter of a second each left no trace in the audit log. An attempt is finished and recorded
/// with its outcome, also when the client is gone; but not waited for without end.
#[tokio::test(start_paused = true)]
async fn a_guess_is_recorded_though_its_client_hangs_up() {
    for (store, password, outcome, why, after) in [
        (Store::Slow(2), "wrong", Outcome::BadCredentials, None, 2),
        (Store::Slow(17), "wrong", Outcome::BadCredentials, None, 17),
        (
            Store::Slow(2),
            "right",
            Outcome::Ok,
            Some("too late: the client had gone"),
            2,
        ),
        (
            Store::Slow(90),
            "wrong",
            Outcome::UpstreamDown,
            Some("the mailbox server does not answer"),
            30,
        ),
    ] {
        let mut s = stage(Plan {
            one: Some(store),
            ..Plan::default()
        });
        s.expect("* OK").await;
        let begun = Instant::now();
        s.say(&format!("a LOGIN alice@a.example {password}\r\n")).await;
        tokio::time::sleep(Duration::from_millis(250)).await;
        let records = s.reset().await;
        let login = &records[0];
        assert_eq!((login.event, login.outcome), (Some(Event::Login), Some(outcome)));
        // Its place is kept for ten seconds.
        assert_eq!((login.why.as_deref(), begun.elapsed().as_secs()), (why, after.max(10)));
        assert_eq!(records[1].outcome, Some(Outcome::ClientGone));
        assert_eq!((records.len(), records[1].duration), (2, Some(0.25)));
    }
}

/// A limit of one connection for an address told who exists: a guess at a name that nobody has gave its place back
/// at once, others when the mailbox server had answered.
#[tokio::test(start_paused = true)]
async fn a_guess_that_hangs_up_keeps_its_place_as_long_as_any_other() {
    for login in [
        "LOGIN alice@a.example wrong",
        "LOGIN nobody@a.example wrong",
        // No account can have it.
        "AUTHENTICATE PLAIN AAFAYS5leGFtcGxlAHdyb25n",
    ] {
        for (seconds, resets, stays) in [
            (2, true, 0),
            (2, false, 0),
            (17, true, 0),
            (17, false, 0),
            (17, true, 11),
        ] {
            let mut s = stage(Plan {
                one: Some(Store::Slow(seconds)),
                ..Plan::default()
            });
            let given_up = Arc::new(Mutex::new(None));
            s.live
                .hold_until_login(Box::new(Counted(Instant::now(), given_up.clone())));
            s.expect("* OK").await;
            s.say(&format!("a {login}\r\n")).await;
            tokio::time::sleep(Duration::from_secs(stays)).await;
            let records = match resets {
                true => s.reset().await,
                false => s.ended().await,
            };
            assert_eq!(records[1].outcome, Some(Outcome::ClientGone));
            let kept = given_up.lock().unwrap().unwrap().as_secs();
            assert_eq!(kept, stays.max(10), "{login}: {seconds} {resets}");
        }
    }
}

/// A client may send its end right behind its commands, as `printf … | nc -N` does: it gets its answers.
#[tokio::test(start_paused = true)]
async fn a_client_that_sends_its_end_right_behind_a_login_gets_all_answers() {
    let right = "b LOGIN alice@a.example right\r\nc NOOP\r\n";
    for (said, answers) in [
        (right.to_owned(), vec!["* CAPABILITY", "b OK", "c NOOP"]),
        (
            format!("a LOGIN alice@a.example wrong\r\n{right}"),
            vec!["a NO", "* CAPABILITY", "b OK", "c NOOP"],
        ),
        (
            "a LOGIN nobody@a.example wrong\r\nb LOGOUT\r\n".to_owned(),
            vec!["a NO", "* BYE", "b OK"],
        ),
    ] {
        let mut s = stage(Plan::default());
        s.expect("* OK").await;
        s.say(&said).await;
        s.client.shutdown().await.unwrap();
        for answer in answers {
            s.expect(answer).await;
        }
        assert_eq!(s.client.read(&mut [0; 9]).await.unwrap(), 0);
        let records = s.ended().await;
        assert_eq!(records.last().unwrap().outcome, None, "{records:#?}");
    }
}

/// Who has been answered at the wait may go on; the audit log hears how the attempt ended.
#[tokio::test(start_paused = true)]
async fn a_slow_server_takes_no_longer_than_an_unknown_name() {
    let slow = |wait, seconds| Plan {
        one: Some(Store::Slow(seconds)),
        wait: Some(wait),
        ..Plan::default()
    };
    let mut s = stage(slow(10, 17));
    s.expect("* OK").await;
    for password in ["wrong", "right"] {
        s.say(&format!("a LOGIN alice@a.example {password}\r\nb NOOP\r\n"))
            .await;
        s.expect("a NO [AUTHENTICATIONFAILED] LOGIN failed").await;
        s.expect("b OK").await;
    }
    let records = s.ended().await;
    let outcomes: Vec<_> = records.iter().map(|record| record.outcome).collect();
    let expected = [Outcome::BadCredentials, Outcome::Ok, Outcome::ClientGone];
    assert_eq!(outcomes, expected.map(Some));
    assert!(records[1].why.as_deref().is_some_and(|why| why.starts_with("too late")));

    // A short wait is no deadline for a server.
    let mut s = stage(slow(1, 4));
    s.expect("* OK").await;
    s.say("a LOGIN alice@a.example right\r\n").await;
    s.expect("* CAPABILITY").await;
    s.expect("a OK").await;
}

/// An attempt that was left behind is recorded even if the next one on the connection is good and ends soon.
#[tokio::test(start_paused = true)]
async fn what_was_left_behind_outlives_the_session() {
    let mut s = stage(Plan {
        one: Some(Store::Slow(17)),
        two: Some(Store::Good),
        ..Plan::default()
    });
    s.expect("* OK").await;
    s.say("a LOGIN alice@a.example wrong\r\n").await;
    s.expect("a NO").await;
    s.say("b LOGIN bob@a.example right\r\n").await;
    s.expect("* CAPABILITY").await;
    s.expect("b OK").await;
    let records = s.ended().await;
    let outcomes: Vec<_> = records.iter().map(|record| (record.event, record.outcome)).collect();
    let expected = [
        (Event::Login, Some(Outcome::Ok)),
        (Event::SessionEnd, None),
        (Event::Login, Some(Outcome::BadCredentials)),
    ];
    assert_eq!(outcomes, expected.map(|(event, outcome)| (Some(event), outcome)));
}

/// Whose fault it is, what the client hears and whether it is punished are three questions.
#[tokio::test(start_paused = true)]
async fn a_server_that_is_well_and_says_no_is_not_down() {
    const LIMIT: &str = "NO [UNAVAILABLE] Maximum number of connections from user+IP exceeded";
    let busy = "NO [INUSE] mailbox is locked";
    for (store, own_words, answer, outcome, phase) in [
        (Store::Says(LIMIT), false, LIMIT, Outcome::Limit, "login"),
        (
            Store::Says(LIMIT),
            true,
            "NO [UNAVAILABLE] service",
            Outcome::Limit,
            "login",
        ),
        (Store::Says(busy), false, busy, Outcome::Busy, "login"),
        (
            Store::Greets("* BYE we are full\r\n"),
            false,
            "NO [UNAVAILABLE] we are full",
            Outcome::Busy,
            "banner",
        ),
    ] {
        let mut s = stage(Plan {
            one: Some(store),
            own_words,
            ..Plan::default()
        });
        s.expect("* OK").await;
        let begun = Instant::now();
        for tag in ["a", "b", "c", "d"] {
            s.say(&format!("{tag} LOGIN alice@a.example right\r\n")).await;
            s.expect(&format!("{tag} {answer}")).await;
        }
        // What may be over in a moment is asked for again.
        let (each, took) = if outcome == Outcome::Limit { (1, 0) } else { (4, 1700) };
        assert_eq!(begun.elapsed().as_millis(), 4 * took);
        assert_eq!(s.connects.load(Ordering::Relaxed), 4 * each, "for each login");
        let records = s.ended().await;
        for (record, tier) in records.iter().zip(["directory", "memory", "memory", "memory"]) {
            assert_eq!((record.outcome, record.tier), (Some(outcome), Some(tier)));
            assert_eq!(record.phase, Some(phase));
        }
        assert_eq!(records.len(), 5);
    }
}

/// The account has moved, or memcached lied: the wrong server says that the password is wrong. One that is asked
/// for again in the same login is cured; a route that was right is kept.
#[tokio::test(start_paused = true)]
async fn a_refusal_by_an_old_route_asks_the_directory_again() {
    let mut s = stage(Plan {
        one: Some(Store::Says("NO [AUTHENTICATIONFAILED] who is that?")),
        moves: true,
        ..Plan::default()
    });
    s.expect("* OK").await;
    s.say("a LOGIN alice@a.example right\r\n").await;
    s.expect("a NO").await;
    s.say("b LOGIN alice@a.example right\r\n").await;
    s.expect("* CAPABILITY").await;
    s.expect("b OK").await;
    let records = s.ended().await;
    // Right after the directory was asked it would say the same.
    assert_eq!(records[0].route.as_deref(), Some("one.example:7143"));
    assert_eq!(records[1].route.as_deref(), Some("two.example:7143"));

    let mut s = stage(Plan::default());
    s.expect("* OK").await;
    for tag in ["a", "b"] {
        s.say(&format!("{tag} LOGIN alice@a.example wrong\r\n")).await;
        s.expect(&format!("{tag} NO [AUTHENTICATIONFAILED]")).await;
    }
    assert_eq!(
        s.connects.load(Ordering::Relaxed),
        2,
        "no second try at the same server"
    );
}

/// Who authenticates for somebody else stands in the record; so does a password that nobody was asked about.
#[tokio::test(start_paused = true)]
async fn what_a_record_says_of_credentials() {
    let long = "x".repeat(8193);
    let mut s = stage(Plan {
        one: Some(Store::Refuses),
        ..Plan::default()
    });
    s.expect("* OK").await;
    // alice@a.example NUL root@a.example NUL right
    s.say("a AUTHENTICATE PLAIN YWxpY2VAYS5leGFtcGxlAHJvb3RAYS5leGFtcGxlAHJpZ2h0\r\n")
        .await;
    s.expect("a NO [UNAVAILABLE]").await;
    let begun = Instant::now();
    s.say(&format!("b LOGIN alice@a.example {long}\r\n")).await;
    s.expect("b NO [TOOBIG] password is too long").await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    let records = s.ended().await;
    let names = (records[0].user.as_deref(), records[0].authcid.as_deref());
    assert_eq!(names, (Some("alice@a.example"), Some("root@a.example")));
    assert_eq!(records[1].outcome, Some(Outcome::PasswordTooLong));
    assert_eq!(records[1].user.as_deref(), Some("alice@a.example"));
}

/// A server that is at its end with a long password blames the password, whoever has it; one that says anything else
/// has understood it, and one that hangs up once may have been restarted.
#[tokio::test(start_paused = true)]
async fn a_long_password_is_blamed_for_nothing_else() {
    let long = format!("right{}", "x".repeat(700));
    for (store, outcome, asked) in [
        (
            Store::Says("NO [UNAVAILABLE] Temporary authentication failure."),
            Outcome::Busy,
            4,
        ),
        (Store::Says("NO temporary failure"), Outcome::Busy, 4),
        (Store::Says("NO [AUTHENTICATIONFAILED] no"), Outcome::BadCredentials, 1),
        (Store::Says("BAD what?"), Outcome::PasswordTooLong, 1),
        (Store::HangsUp, Outcome::PasswordTooLong, 2),
    ] {
        let mut s = stage(Plan {
            one: Some(store),
            ..Plan::default()
        });
        s.expect("* OK").await;
        s.say(&format!("a LOGIN alice@a.example {long}\r\n")).await;
        s.expect("a NO").await;
        assert_eq!(s.connects.load(Ordering::Relaxed), asked, "{outcome:?}");
        let records = s.ended().await;
        assert_eq!(records[0].outcome, Some(outcome));
    }
}

/// Nobody is asked about a password of no octets, whichever way it comes; and a name in another spelling is no other
/// account.
#[tokio::test(start_paused = true)]
async fn empty_passwords_and_spellings() {
    for login in [
        "a LOGIN alice@a.example \"\"",
        "a LOGIN alice@a.example {0+}\r\n",
        // NUL alice@a.example NUL
        "a AUTHENTICATE PLAIN AGFsaWNlQGEuZXhhbXBsZQA=",
    ] {
        let mut s = stage(Plan::default());
        s.expect("* OK").await;
        s.say(&format!("{login}\r\n")).await;
        s.expect("a NO [AUTHENTICATIONFAILED]").await;
        assert_eq!(s.connects.load(Ordering::Relaxed), 0, "{login}");
    }
    let mut s = stage(Plan::default());
    s.expect("* OK").await;
    // alice@a.example NUL Alice@A.example NUL right
    s.say("a AUTHENTICATE PLAIN YWxpY2VAYS5leGFtcGxlAEFsaWNlQEEuZXhhbXBsZQByaWdodA==\r\n")
        .await;
    s.expect("* CAPABILITY").await;
    let records = s.ended().await;
    assert_eq!(
        (records[0].authcid.as_deref(), records[0].outcome),
        (None, Some(Outcome::Ok))
    );
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_known_is_not_called_wrong() {
    let mut s = stage(Plan {
        down: true,
        ..Plan::default()
    });
    s.expect("* OK").await;
    s.say("a LOGIN alice@a.example right\r\n").await;
    s.expect("a NO [UNAVAILABLE] service temporarily unavailable, please try again later")
        .await;
    let records = s.ended().await;
    assert_eq!(records[0].outcome, Some(Outcome::DirectoryDown));
    assert!(records[0].why.as_deref().unwrap().contains("ldap7.internal"));

    let mut s = stage(Plan::default());
    s.expect("* OK").await;
    s.say("a LOGIN lost@a.example right\r\n").await;
    s.expect("a NO [UNAVAILABLE]").await;
    assert_eq!(s.ended().await[0].outcome, Some(Outcome::NoRoute));
}

/// Bytes do not extend the deadline; our own waiting does.
#[tokio::test(start_paused = true)]
async fn the_login_deadline() {
    let mut s = stage(Plan::default());
    s.expect("* OK").await;
    let begun = Instant::now();
    let writer = tokio::spawn(async move {
        while s.client.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
    });
    s.session.await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), 60);
    writer.abort();

    let mut s = stage(Plan::default());
    s.expect("* OK").await;
    let begun = Instant::now();
    s.say("a LOGIN nobody@a.example x\r\n").await;
    s.expect("a NO").await;
    s.expect("* BYE").await;
    assert_eq!(begun.elapsed().as_secs(), 70);
    let records = s.ended().await;
    assert_eq!(records[1].why.as_deref(), Some("login deadline"));
}

/// A balancer's health check is no news.
#[tokio::test(start_paused = true)]
async fn a_silent_visit_leaves_no_record() {
    let mut s = stage(Plan::default());
    s.expect("* OK").await;
    assert!(s.ended().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn passwords_in_clear_text_are_refused_and_recorded() {
    let mut s = stage(Plan {
        starttls: true,
        ..Plan::default()
    });
    s.expect("* OK").await;
    s.say("a LOGIN alice@a.example right\r\n").await;
    s.expect("a NO [PRIVACYREQUIRED]").await;
    s.say("b STARTTLS\r\n").await;
    s.expect("b OK").await;
    s.say("c LOGIN alice@a.example right\r\n").await;
    s.expect("* CAPABILITY").await;
    s.expect("c OK").await;
    let connects = s.connects.load(Ordering::Relaxed);
    let records = s.ended().await;
    assert_eq!((records[0].outcome, connects), (Some(Outcome::TlsRequired), 1));
    assert_eq!(records[0].count, None);
    assert_eq!(
        (records[1].outcome, records[1].tls.as_deref()),
        (Some(Outcome::Ok), Some("TLSv1.3 TEST"))
    );
}

/// One POP3 connection of 16 KB wrote 2,049 records.
#[tokio::test(start_paused = true)]
async fn a_flood_of_passwords_in_clear_text_is_one_record() {
    for (pop3, greeting, command, refusal) in [
        (false, "* OK", "a LOGIN alice@a.example x\r\n", "a NO"),
        (true, "+OK", "USER x\r\n", "-ERR"),
    ] {
        let mut s = stage(Plan {
            starttls: true,
            pop3,
            ..Plan::default()
        });
        s.expect(greeting).await;
        s.say(&command.repeat(100)).await;
        for _ in 0..5 {
            s.expect(refusal).await;
        }
        let records = s.ended().await;
        assert_eq!(records.len(), 2, "{records:?}");
        let refused = (records[0].outcome, records[0].count);
        assert_eq!(refused, (Some(Outcome::TlsRequired), Some(5)));
        assert_eq!(records[1].why.as_deref(), Some("too many bad commands"));
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_behind_starttls_close_the_connection() {
    let mut s = stage(Plan {
        starttls: true,
        ..Plan::default()
    });
    s.expect("* OK").await;
    s.say("a STARTTLS\r\nb LOGIN alice@a.example right\r\n").await;
    let mut rest = Vec::new();
    s.client.read_to_end(&mut rest).await.unwrap();
    assert!(
        !rest.windows(4).any(|w| w == b"a OK" || w == b"b OK"),
        "{:?}",
        String::from_utf8_lossy(&rest)
    );
    assert_eq!(s.ended().await[0].why.as_deref(), Some("bytes behind STARTTLS"));
}

#[tokio::test(start_paused = true)]
async fn a_kick_ends_a_session_before_and_after_login() {
    let mut early = stage(Plan::default());
    early.expect("* OK IMAP4rev1").await;
    early.live.end(CloseReason::Kick);
    early.expect("* BYE session ended by the administrator").await;
    let records = early.ended().await;
    assert_eq!(records.len(), 1, "{records:#?}");
    assert_eq!(records[0].ended_by, Some(EndedBy::Kick));

    let mut late = stage(Plan::default());
    late.expect("* OK IMAP4rev1").await;
    late.say("a LOGIN al@a.example right\r\n").await;
    late.expect("* CAPABILITY IMAP4rev1 IDLE").await;
    late.expect("a OK").await;
    let logins = late.live.logins();
    assert_eq!(
        (logins[0].user.as_str(), logins[0].account.as_str()),
        ("al@a.example", "alice@a.example")
    );
    late.live.end(CloseReason::Kick);
    late.expect("* BYE session ended by the administrator").await;
    let records = late.ended().await;
    assert_eq!(records[1].event, Some(Event::SessionEnd));
    assert_eq!(records[1].ended_by, Some(EndedBy::Kick));
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_logins_first_and_sessions_last() {
    let mut early = stage(Plan::default());
    early.expect("* OK").await;
    early.drain.send(Drain::EndLogins).unwrap();
    early.expect("* BYE").await;

    let mut late = stage(Plan::default());
    late.expect("* OK").await;
    late.say("a LOGIN alice@a.example right\r\n").await;
    late.expect("* CAPABILITY").await;
    late.expect("a OK").await;
    late.drain.send(Drain::EndLogins).unwrap();
    late.say("b NOOP\r\n").await;
    late.expect("b NOOP").await;
    late.drain.send(Drain::EndSessions).unwrap();
    late.expect("* BYE").await;
    assert_eq!(late.ended().await[1].why.as_deref(), Some("drain"));
}

#[tokio::test(start_paused = true)]
async fn a_spread_drain_ends_each_session_within_its_time() {
    let mut ends = Vec::new();
    for _ in 0..8 {
        let mut s = stage(Plan::default());
        s.expect("* OK").await;
        s.say("a LOGIN alice@a.example right\r\n").await;
        s.expect("* CAPABILITY").await;
        s.expect("a OK").await;
        let begun = Instant::now();
        s.drain.send(Drain::SpreadSessions(Duration::from_secs(1000))).unwrap();
        s.expect("* BYE").await;
        ends.push(begun.elapsed());
    }
    assert!(ends.iter().all(|end| *end <= Duration::from_secs(1001)), "{ends:?}");
    // Eight by chance in the same hundredth: once in ten million runs of millions.
    let (first, last) = (ends.iter().min().unwrap(), ends.iter().max().unwrap());
    assert!(*last - *first > Duration::from_secs(10), "{ends:?}");
}

#[tokio::test(start_paused = true)]
async fn pop3_fails_in_its_own_words() {
    let mut s = stage(Plan {
        pop3: true,
        one: Some(Store::Refuses),
        ..Plan::default()
    });
    s.expect("+OK POP3 ready").await;
    s.say("USER alice@a.example\r\nPASS right\r\n").await;
    s.expect("+OK").await;
    s.expect("-ERR [SYS/TEMP]").await;
    s.say("USER nobody@a.example\r\nPASS right\r\n").await;
    s.expect("+OK").await;
    s.expect("-ERR [AUTH]").await;
}

/// Thousands of these live for hours.
#[test]
fn the_future_of_a_session_is_small() {
    fn future_size<F: Future>(_: impl FnOnce(Connection, SessionEnv) -> F) -> usize {
        size_of::<F>()
    }
    let size = future_size(serve);
    assert!(size <= 464, "{size} octets");
}

#[tokio::test(start_paused = true)]
async fn an_exchange_is_relayed() {
    let mut s = stage(Plan {
        one: Some(Store::Scram(0)),
        ..Plan::default()
    });
    s.expect("* OK").await;
    let first = s.scram("Alice@a.example").await;
    assert_eq!(
        first,
        format!("r=fyko{},s=QSXCR+Q6sek8bf92QSXCRA==,i=4096", "x".repeat(64))
    );
    s.prove(RIGHT_PROOF).await;
    s.expect("+ dj1RUT09").await;
    s.say("\r\nb NOOP\r\n").await;
    s.expect("a OK hello").await;
    s.expect("b NOOP").await;
    let records = s.ended().await;
    let login = &records[0];
    assert_eq!(
        (login.mechanism, login.outcome),
        (Some("SCRAM-SHA-256"), Some(Outcome::Ok))
    );
    assert_eq!(
        (login.user.as_deref(), login.account.as_deref()),
        (Some("Alice@a.example"), Some("alice@a.example"))
    );
}

/// Neither the first message nor the end tells whether a server was asked, by its form or by its time.
#[tokio::test(start_paused = true)]
async fn a_failed_exchange_does_not_tell_which_accounts_exist() {
    let mut seen = Vec::new();
    let (bad, down) = (Outcome::BadCredentials, Outcome::UpstreamDown);
    for (user, store, expected) in [
        ("alice@a.example", Store::Scram(0), bad),
        ("alice@a.example", Store::Scram(200), bad),
        (
            "alice@a.example",
            Store::ScramSays("NO [AUTHENTICATIONFAILED] no such"),
            bad,
        ),
        ("alice@a.example", Store::ScramSays("NO LOGIN failed"), bad),
        ("alice@a.example", Store::ScramSays("BAD what?"), down),
        ("alice@a.example", Store::ScramBreaks("+ cj1meWtv\r\n"), down),
        ("alice@a.example", Store::ScramBreaks(""), down),
        ("alice@a.example", Store::ScramBinds, down),
        ("alice@a.example", Store::Good, down),
        ("al@a.example", Store::Scram(0), Outcome::UnknownUser),
        ("alice", Store::Scram(0), Outcome::UnknownUser),
        ("nobody@a.example", Store::Scram(0), Outcome::UnknownUser),
    ] {
        let mut s = stage(Plan {
            one: Some(store),
            ..Plan::default()
        });
        s.expect("* OK").await;
        let begun = Instant::now();
        let first = s.scram_with("y,,", user).await;
        let form: Vec<(usize, &str)> = first.split(',').map(|part| (part.len(), &part[..2])).collect();
        let at = begun.elapsed();
        tokio::time::sleep(Duration::from_secs(3)).await;
        let proved = Instant::now();
        s.prove("c=biws,r=fykox,p=d3Jvbmc=").await;
        let end = line(&mut s.client).await.unwrap();
        seen.push((format!("{form:?}"), at, end, proved.elapsed()));
        let records = s.ended().await;
        assert_eq!(records[0].mechanism, Some("SCRAM-SHA-256"));
        assert_eq!(records[0].outcome, Some(expected));
    }
    assert!(seen.iter().all(|one| *one == seen[0]), "{seen:#?}");
    let (_, at, end, after) = &seen[0];
    assert_eq!(end, "a NO [AUTHENTICATIONFAILED] AUTHENTICATE failed");
    assert_eq!((at.as_millis(), after.as_secs()), (250, 10));
}

/// A client with a certificate, and what it hears with this plan: the answer, how many servers were called, and why.
async fn certified(name: &'static str, plan: Plan) -> (String, usize, Option<String>) {
    let mut s = stage(Plan {
        certificate: Some(name),
        ..plan
    });
    s.expect("* OK").await;
    s.say("a AUTHENTICATE EXTERNAL =\r\n").await;
    let answer = line(&mut s.client).await.unwrap();
    let connects = s.connects.load(Ordering::Relaxed);
    (answer, connects, s.ended().await.swap_remove(0).why)
}

const NOT_CERTIFIED: &str = "a NO [AUTHENTICATIONFAILED] AUTHENTICATE failed";

/// Names change their owners while a login is under way, and the master opens any mailbox.
#[tokio::test(start_paused = true)]
async fn a_certificate_opens_no_other_mailbox_after_a_second_look() {
    let plan = Plan {
        one: Some(Store::Refuses),
        gives_away: true,
        ..Plan::default()
    };
    let (answer, connects, why) = certified("al@a.example", plan).await;
    assert_eq!((answer.as_str(), connects), (NOT_CERTIFIED, 1));
    assert_eq!(why.as_deref(), Some("the certificate is that of alice@a.example"));
}

/// A mailbox server need not look at the account of a master user's login.
#[tokio::test(start_paused = true)]
async fn a_certificate_opens_no_account_that_is_closed() {
    for (name, wanted, wanted_why) in [
        ("closed@a.example", NOT_CERTIFIED, "zimbraAccountStatus is closed"),
        ("web@a.example", NOT_CERTIFIED, "zimbraImapEnabled is FALSE"),
        (
            "worked@a.example",
            "a NO [UNAVAILABLE] held",
            "zimbraAccountStatus is maintenance",
        ),
        (
            "far@a.example",
            "a NO [UNAVAILABLE] service temporarily unavailable, please try again later",
            "an external server has no master user of ours",
        ),
    ] {
        let (answer, connects, why) = certified(name, Plan::default()).await;
        assert_eq!((answer.as_str(), connects), (wanted, 0), "{name}");
        assert_eq!(why.as_deref(), Some(wanted_why), "{name}");
    }
    let (_, connects, _) = certified("alice@a.example", Plan::default()).await;
    assert_ne!(connects, 0);
}

/// A failure counts for the account, and each as one: nobody here knows whether it was the same password.
#[tokio::test(start_paused = true)]
async fn failed_exchanges_are_counted() {
    let mut strict = ThrottleSettings::default();
    let pair = strict.rule_mut(Rule::Pair);
    (pair.delay_from, pair.refuse_from) = (2, 2);
    for user in ["alice@a.example", "nobody@a.example"] {
        let mut s = stage(Plan {
            one: Some(Store::Scram(0)),
            throttle: Some(strict.clone()),
            ..Plan::default()
        });
        s.expect("* OK").await;
        for _ in 0..2 {
            s.scram(user).await;
            s.prove("c=biws,r=fykox,p=d3Jvbmc=").await;
            s.expect("a NO [AUTHENTICATIONFAILED]").await;
        }
        s.say(&format!(
            "a AUTHENTICATE SCRAM-SHA-256 {}\r\n",
            STANDARD.encode(format!("n,,n={user},r=fyko"))
        ))
        .await;
        s.expect("a NO [LIMIT]").await;
        let records = s.ended().await;
        assert_eq!(records[2].outcome, Some(Outcome::Throttled), "{user}");
    }
}

/// Who gives up in the middle has failed in nothing, and is told at once.
#[tokio::test(start_paused = true)]
async fn an_exchange_that_is_given_up() {
    for user in ["alice@a.example", "nobody@a.example"] {
        let plan = || Plan {
            one: Some(Store::Scram(0)),
            ..Plan::default()
        };
        let mut s = stage(plan());
        s.expect("* OK").await;
        s.scram(user).await;
        let begun = Instant::now();
        s.say("*\r\n").await;
        s.expect("a BAD AUTHENTICATE aborted").await;
        assert!(begun.elapsed() < Duration::from_secs(1));
        s.say("b LOGOUT\r\n").await;
        s.expect("* BYE").await;
        let mut records = s.ended().await;
        let mut s = stage(plan());
        s.expect("* OK").await;
        s.scram(user).await;
        records.extend(s.reset().await);
        for login in [&records[0], &records[2]] {
            assert_eq!(
                (login.outcome, login.why.as_deref()),
                (Some(Outcome::ClientGone), Some("it has given up the exchange")),
                "{records:#?}"
            );
        }
    }
}

/// Before the client has heard anything another server can be asked. Afterwards its proof is good for one only.
#[tokio::test(start_paused = true)]
async fn an_exchange_goes_on_elsewhere_only_before_it_has_begun() {
    let moved = |one| Plan {
        one: Some(one),
        two: Some(Store::Scram(0)),
        moves: true,
        ..Plan::default()
    };
    let mut s = stage(moved(Store::ScramSays("NO AUTHENTICATE failed (wrong host)")));
    s.expect("* OK").await;
    s.scram("alice@a.example").await;
    s.prove(RIGHT_PROOF).await;
    s.expect("+ dj1RUT09").await;
    s.say("\r\n").await;
    s.expect("a OK hello").await;
    let records = s.ended().await;
    assert_eq!(records[0].route.as_deref(), Some("two.example:7143"));

    let mut s = stage(moved(Store::Scram(0)));
    s.expect("* OK").await;
    s.scram("alice@a.example").await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    s.prove("c=biws,r=fykox,p=d3Jvbmc=").await;
    s.expect("a NO [UNAVAILABLE]").await;
    s.scram("alice@a.example").await;
    s.prove(RIGHT_PROOF).await;
    s.expect("+ dj1RUT09").await;
    s.say("\r\n").await;
    s.expect("a OK hello").await;
    let records = s.ended().await;
    assert_eq!(records[0].outcome, Some(Outcome::UpstreamDown), "{:?}", records[0]);
    assert_eq!(records[1].route.as_deref(), Some("two.example:7143"));
}

/// What happens while the client is thinking: a hold begins. No move waits for the client, and so its login waits for the
/// move, and goes on only where the account has stayed.
#[tokio::test(start_paused = true)]
async fn an_exchange_goes_on_behind_a_hold_only_at_the_right_server() {
    let refers = Store::ScramSays("NO [REFERRAL imap://two.example/] try there");
    for (one, moves, ends, expected) in [
        (Store::Scram(0), false, true, "+ dj1RUT09"),
        (Store::Scram(0), true, true, "a NO [UNAVAILABLE]"),
        // Its client is not told meanwhile that the password is wrong.
        (Store::Scram(0), false, false, "a NO [UNAVAILABLE] held"),
        // The account has not moved: its server knows another one.
        (refers, false, true, "+ dj1RUT09"),
    ] {
        let mut s = stage(Plan {
            one: Some(one),
            two: Some(Store::Scram(0)),
            moves,
            wait: Some(5),
            ..Plan::default()
        });
        s.expect("* OK").await;
        s.scram("alice@a.example").await;
        assert!(!s.live.is_asking(|_| true));
        let now = SystemTime::now();
        let hold = Hold {
            held: Held::Account("alice@a.example".to_owned()),
            reason: "test".to_owned(),
            since: now,
            until: now + Duration::from_secs(60),
        };
        s.routes.holds().begin(hold.clone()).unwrap();
        let alice = Touched {
            names: vec!["alice@a.example".to_owned()],
            ids: Vec::new(),
        };
        s.routes.forget_accounts(&[alice]);
        if ends {
            s.routes.holds().release(&hold.held);
        }
        s.prove(RIGHT_PROOF).await;
        s.expect(expected).await;
        drop(s.ended().await);
    }
}

/// The time that the client takes for its proof is not the server's.
#[tokio::test(start_paused = true)]
async fn a_server_is_not_charged_with_the_time_of_a_client() {
    let mut s = stage(Plan {
        one: Some(Store::Scram(0)),
        patience: Some(5),
        ..Plan::default()
    });
    s.expect("* OK").await;
    s.scram("alice@a.example").await;
    tokio::time::sleep(Duration::from_secs(14)).await;
    s.prove(RIGHT_PROOF).await;
    s.expect("+ dj1RUT09").await;
    tokio::time::sleep(Duration::from_secs(14)).await;
    s.say("\r\n").await;
    s.expect("a OK hello").await;
    let records = s.ended().await;
    assert!(records[0].ms_login.is_some_and(|ms| ms < 1000), "{:?}", records[0]);
}

/// The time that the client takes for its proof has an end.
#[tokio::test(start_paused = true)]
async fn a_client_that_never_proves_anything_is_sent_away() {
    for user in ["alice@a.example", "nobody@a.example"] {
        let mut s = stage(Plan {
            one: Some(Store::Scram(0)),
            ..Plan::default()
        });
        s.expect("* OK").await;
        s.scram(user).await;
        let begun = Instant::now();
        s.expect("* BYE login takes too long").await;
        assert_eq!(begun.elapsed().as_secs(), 15);
        let records = s.ended().await;
        assert_eq!(records[0].outcome, Some(Outcome::ClientGone), "{records:#?}");
    }
}
