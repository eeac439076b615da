//! The big test: thousands of sessions in silence, logins and requests without a pause, and meanwhile everything that
//! is done to a node in a year. No client may notice.
//!
//! It prints what it counted: `cargo nextest run -p portico-tests --no-capture -E 'test(anger::)'`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use openssl::ssl::{Ssl, SslContext, SslMethod, SslVerifyMode};
use portico_tests::child::Child;
use portico_tests::load::Mail;
use portico_tests::portico::Portico;
use portico_tests::town::{FRONT, Town, people};
use portico_tests::wire::Wire;
use portico_tests::{Stage, simulator};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpSocket;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio_openssl::SslStream;

/// Sessions in silence.
const IDLE: usize = 2000;
/// Logins in a second that are begun, as long as no more than [`AT_ONCE`] are under way.
const RATE: u64 = 200;
/// Logins under way at one time, at most.
const AT_ONCE: usize = 64;
const ACCOUNTS: usize = 200;
const ROUNDS: usize = 20;
/// Before these rounds a new process takes over.
const UPGRADES: [usize; 3] = [10, 13, 16];
/// No wait is longer than this, or something hangs.
const PATIENCE: Duration = Duration::from_secs(30);
const SIM: &str = "sim.example.test";
const SIM_IP: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
/// What a process may have more after ten reloads and ten new certificates than before, in KiB: the allocator keeps
/// what the traffic needed at its busiest moment.
const MARGIN_KIB: u64 = 48 * 1024;

/// What was seen.
#[derive(Default)]
struct Seen {
    logins: AtomicUsize,
    requests: AtomicUsize,
    cut: AtomicUsize,
    failed: Mutex<Vec<String>>,
}

impl Seen {
    fn fail(&self, what: &str, error: &anyhow::Error) {
        self.failed
            .lock()
            .expect("nobody panics holding it")
            .push(format!("{what}: {error:#}"));
    }

    /// Says what was seen within this time, and checks that nothing failed although there was traffic.
    fn no_client_failed(&self, took: Duration) -> Result<()> {
        let count = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
        let (logins, requests, cut) = (count(&self.logins), count(&self.requests), count(&self.cut));
        let failed = self.failed.lock().expect("nobody panics holding it");
        println!(
            "in {took:.1?}: {logins} logins ({:.0}/s), {requests} requests, {} failed, {cut} sessions cut",
            logins as f64 / took.as_secs_f64(),
            failed.len(),
        );
        ensure!(
            failed.is_empty(),
            "{} failed, such as {:#?}",
            failed.len(),
            &failed[..failed.len().min(10)]
        );
        ensure!(cut == 0, "{cut} sessions were cut");
        ensure!(logins > 100 && requests > 100, "hardly any traffic");
        Ok(())
    }
}

type Stream = BufReader<SslStream<tokio::net::TcpStream>>;

struct Clients {
    tls: SslContext,
    imaps: SocketAddrV4,
    https: SocketAddrV4,
    seen: Seen,
    stop: AtomicBool,
}

impl Clients {
    async fn connect(&self, from: u8, to: SocketAddrV4) -> Result<Stream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 7, from)), 0))?;
        let tcp = socket.connect(to.into()).await.context("refused")?;
        tcp.set_nodelay(true)?;
        let mut ssl = Ssl::new(&self.tls)?;
        ssl.set_hostname(FRONT)?;
        let mut stream = SslStream::new(ssl, tcp)?;
        Pin::new(&mut stream).connect().await.context("handshake")?;
        Ok(BufReader::with_capacity(2048, stream))
    }

    async fn login(&self, number: usize) -> Result<Stream> {
        let mut stream = self.connect((number % 50) as u8 + 1, self.imaps).await?;
        must(&mut stream, "", "* OK").await?;
        let user = format!("user{}@a.example", number % ACCOUNTS);
        stream
            .write_all(format!("a LOGIN {user} secret\r\n").as_bytes())
            .await?;
        loop {
            let line = line(&mut stream).await?;
            if line.starts_with("a OK") {
                return Ok(stream);
            }
            ensure!(line.starts_with("* "), "login: {line}");
        }
    }

    /// A session in silence; at the end it must answer.
    async fn idle(self: Arc<Self>, number: usize, opened: Arc<Semaphore>) {
        let mut stream = match self.login(number).await {
            Ok(stream) => stream,
            Err(error) => return self.seen.fail("a session", &error),
        };
        opened.add_permits(1);
        let mut byte = [0];
        loop {
            match tokio::time::timeout(Duration::from_millis(500), stream.read(&mut byte)).await {
                Err(_) if !self.stop.load(Ordering::SeqCst) => {}
                Err(_) => break,
                Ok(_) => {
                    self.seen.cut.fetch_add(1, Ordering::SeqCst);
                    return;
                }
            }
        }
        if let Err(error) = must(&mut stream, "n NOOP\r\n", "n OK").await {
            self.seen.cut.fetch_add(1, Ordering::SeqCst);
            self.seen.fail("a session's last word", &error);
        }
    }

    /// Logins at a steady rate.
    async fn logins(self: Arc<Self>) {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let mut beat = tokio::time::interval(Duration::from_micros(1_000_000 / RATE));
        // Made up for, so that it is the rate that is stated.
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
        let mut number = 0;
        while !self.stop.load(Ordering::SeqCst) {
            beat.tick().await;
            let Ok(place) = places.clone().acquire_owned().await else {
                return;
            };
            number += 1;
            let clients = self.clone();
            tokio::spawn(async move {
                match clients.login_and_leave(number).await {
                    Ok(()) => drop(clients.seen.logins.fetch_add(1, Ordering::SeqCst)),
                    Err(error) => clients.seen.fail("a login", &error),
                }
                drop(place);
            });
        }
        let _all_done = places.acquire_many(AT_ONCE as u32).await;
    }

    async fn login_and_leave(&self, number: usize) -> Result<()> {
        within(async {
            let mut stream = self.login(number).await?;
            must(&mut stream, "b SELECT INBOX\r\n", "b OK").await?;
            must(&mut stream, "z LOGOUT\r\n", "* BYE").await
        })
        .await
    }

    /// Requests, one after the other, on a connection that is kept as long as the server wants.
    async fn requests(self: Arc<Self>, from: u8) {
        let mut kept = None;
        while !self.stop.load(Ordering::SeqCst) {
            let request = within(async {
                let mut stream = match kept.take() {
                    Some(stream) => stream,
                    None => self.connect(from, self.https).await?,
                };
                let more = request(&mut stream).await?;
                Ok(more.then_some(stream))
            });
            match request.await {
                Ok(stream) => {
                    kept = stream;
                    self.seen.requests.fetch_add(1, Ordering::SeqCst);
                }
                Err(error) => self.seen.fail("a request", &error),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// One request; whether the connection may be used again.
async fn request(stream: &mut Stream) -> Result<bool> {
    let text = format!("GET /home/alice@a.example/x HTTP/1.1\r\nHost: {FRONT}\r\n\r\n");
    stream.write_all(text.as_bytes()).await?;
    let status = line(stream).await?;
    ensure!(status.starts_with("HTTP/1.1 200"), "answer {status:?}");
    let (mut length, mut more) = (None, true);
    loop {
        let header = line(stream).await?.to_ascii_lowercase();
        match header.split_once(": ") {
            None => break,
            Some(("content-length", value)) => length = Some(value.parse::<usize>()?),
            Some(("connection", value)) => more = value != "close",
            Some(_) => {}
        }
    }
    let mut body = vec![0; length.context("no length")?];
    stream.read_exact(&mut body).await?;
    Ok(more)
}

async fn within<T>(act: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(PATIENCE, act).await.context("it hangs")?
}

async fn line(stream: &mut Stream) -> Result<String> {
    let mut line = String::new();
    ensure!(stream.read_line(&mut line).await? > 0, "the other side left");
    Ok(line.trim_end().to_owned())
}

async fn must(stream: &mut Stream, say: &str, start: &str) -> Result<()> {
    stream.write_all(say.as_bytes()).await?;
    let line = line(stream).await?;
    ensure!(line.starts_with(start), "expected {start:?}, got {line:?}");
    Ok(())
}

#[test]
fn a_year_of_changes_under_load_fails_no_client() -> Result<()> {
    Stage::run(|stage| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let mut node = LoadedNode::start(stage, &runtime)?;
        let clients = node.clients()?;
        let begun = Instant::now();
        let idle = runtime.block_on(open_sessions(&clients))?;
        let opened = begun.elapsed();
        let first = node.portico.rss_kib()?;
        let traffic: Vec<_> = (0..4)
            .map(|n| runtime.spawn(clients.clone().requests(60 + n)))
            .chain([runtime.spawn(clients.clone().logins())])
            .collect();

        let begun = Instant::now();
        let (grown, mut old) = node.live_through_a_year()?;
        // The processes in the middle had no sessions but short ones.
        for process in old.iter_mut().skip(1) {
            ensure!(process.wait(PATIENCE)?.success());
        }
        ensure!(old[0].is_running(), "the sessions' process has ended");
        let took = begun.elapsed();
        clients.stop.store(true, Ordering::SeqCst);
        runtime.block_on(async {
            for task in traffic.into_iter().chain(idle) {
                task.await?;
            }
            anyhow::Ok(())
        })?;
        ensure!(old[0].wait(PATIENCE)?.success());
        let last = node.portico.rss_kib()?;

        println!(
            "{IDLE} sessions (opened in {opened:.1?}), {ROUNDS} reloads, {ROUNDS} certificates, {} upgrades; memory of \
             the first process {first} KiB with all sessions, {grown} KiB after half of it, {last} KiB of the last \
             process at the end",
            UPGRADES.len()
        );
        clients.seen.no_client_failed(took)?;
        ensure!(grown < first + MARGIN_KIB, "{first} KiB became {grown} KiB");
        ensure!(last < first, "{last} KiB with nobody there, {first} KiB with everybody");
        Ok(())
    })
}

/// The node, and what is changed under it.
struct LoadedNode {
    town: Town,
    /// Certificate and key that it shows.
    files: (PathBuf, PathBuf),
    portico: Portico,
}

impl LoadedNode {
    /// Starts it in front of a server that takes any number of sessions.
    fn start(stage: &Stage, runtime: &Runtime) -> Result<Self> {
        let town = Town::build(stage, people())?;
        let sim = SocketAddrV4::new(SIM_IP, stage.port()?);
        let pair = town.ca.server(&[SIM, "127.0.0.6"])?;
        let listener = runtime.block_on(tokio::net::TcpListener::bind(sim))?;
        runtime.spawn(simulator::serve(listener, Mail::Imap, Some(pair.acceptor()?)));

        let mut directory = town.directory();
        let server = directory.store(SIM, SIM_IP);
        server.insert("zimbraImapSSLBindPort".into(), sim.port().into());
        directory.users(ACCOUNTS, &[SIM]);
        let mut node = town.node();
        let files = (stage.path().join("front.crt"), stage.path().join("front.key"));
        node.certificate = files.clone();
        change_certificate(&town, &files, "start.example.test")?;
        let portico = Portico::start(stage, &node, &directory, "info")?;
        Ok(Self { town, files, portico })
    }

    fn clients(&self) -> Result<Arc<Clients>> {
        let mut tls = SslContext::builder(SslMethod::tls_client())?;
        // Whose certificate it is, is looked at once a round.
        tls.set_verify(SslVerifyMode::NONE);
        Ok(Arc::new(Clients {
            tls: tls.build(),
            imaps: self.town.endpoints.imaps,
            https: self.town.endpoints.https,
            seen: Seen::default(),
            stop: AtomicBool::new(false),
        }))
    }

    /// Reloads, certificates and upgrades. Returns the memory of the first process at its end, and the old processes.
    fn live_through_a_year(&mut self) -> Result<(u64, Vec<Child>)> {
        let connector = self.town.ca.connector(&[])?;
        let mut old: Vec<Child> = Vec::new();
        let mut grown = 0;
        for round in 0..ROUNDS {
            if UPGRADES.contains(&round) {
                if old.is_empty() {
                    grown = self.portico.rss_kib()?;
                }
                old.push(self.portico.upgrade("info")?);
            }
            self.portico.reload()?;
            let name = format!("round{round}.example.test");
            change_certificate(&self.town, &self.files, &name)?;
            self.portico.reload()?;
            let wire = Wire::clear(self.town.endpoints.imaps)?.start_tls_any_name(&connector, FRONT)?;
            let found = wire.certificate_name()?;
            ensure!(found == name, "{found} is shown");
        }
        Ok((grown, old))
    }
}

/// Puts a certificate with this name in place of the one that is there.
fn change_certificate(town: &Town, files: &(PathBuf, PathBuf), name: &str) -> Result<()> {
    let pair = town.ca.server(&[name, FRONT])?;
    for (from, to) in [(&pair.certificate_file, &files.0), (&pair.key_file, &files.1)] {
        let new = to.with_extension("new");
        std::fs::copy(from, &new)?;
        std::fs::rename(new, to)?;
    }
    Ok(())
}

/// Opens the sessions, some at a time, and waits until all are open.
async fn open_sessions(clients: &Arc<Clients>) -> Result<Vec<tokio::task::JoinHandle<()>>> {
    let opened = Arc::new(Semaphore::new(0));
    let mut tasks = Vec::new();
    for number in 0..IDLE {
        tasks.push(tokio::spawn(clients.clone().idle(number, opened.clone())));
        if number % AT_ONCE == AT_ONCE - 1 || number == IDLE - 1 {
            let all = opened.acquire_many((tasks.len() - (number / AT_ONCE) * AT_ONCE) as u32);
            match tokio::time::timeout(PATIENCE, all).await {
                Ok(permits) => permits?.forget(),
                Err(_) => bail!("{:?}", clients.seen.failed.lock().expect("nobody panics holding it")),
            }
        }
    }
    Ok(tasks)
}
