//! The doors: accepts connections on every listener, finds out who they are, does TLS, and hands a ready stream
//! to the mail proxy or to the HTTP engine.
//!
//! The accept loop only accepts. PROXY header, TLS handshake and login happen in the connection's own task, under
//! one deadline. All listening sockets belong to one Pingora service, so they take part in its upgrade.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use mail_proxy::{BoxStream, Client, Connection, Drain, House, Live, Protocol, StartTls};
use pingora::server::configuration::ServerConf;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use pingora_proxy::HttpProxy;
use route_cache::lookup::serve::serve_lookup;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout, timeout_at};

use crate::admin::{self, Upgrade};
use crate::app::{App, Plan};
use crate::config::{Listener, ListenerTls, Serve};
use crate::connector;
use crate::inherited;
use crate::proxy_protocol::{self, Header};
use crate::sessions::Session;
use crate::snapshot::Snapshot;
use crate::stream::{self, Caller};
use crate::tls::{self, Inside};
use crate::web::connection::{self, Channel, WebClient, WebStream};
use crate::web::{Greeted, Web};

/// How long a balancer may take for its header. It sends it with the first segment.
const PROXY_HEADER: Duration = Duration::from_secs(5);
/// How long an old proxy may take for its handshake; it does it before anything else.
const LOOKUP_HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a web connection that is to end may still do so by itself.
const KICKED: Duration = Duration::from_millis(200);
/// Pause after a failed accept, which mostly means that the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Pingora ends the process this long after a shutdown began, unless the node file says otherwise.
const GRACE: Duration = Duration::from_secs(300);
/// Before that, sessions are told goodbye; this is how long that takes.
const GOODBYE: Duration = Duration::from_secs(3);

/// The Pingora service that owns all listeners.
pub struct Doors {
    plan: Option<Plan>,
    conf: Arc<ServerConf>,
    keys: Vec<String>,
}

/// A door and its socket.
type Open = (Arc<Door>, TcpListener);

/// A listener in service.
struct Door {
    listener: Listener,
    name: Arc<str>,
    app: Arc<App>,
    web: Arc<HttpProxy<Web>>,
    shutdown: ShutdownWatch,
}

impl Doors {
    /// The doors of a checked configuration.
    pub fn new(plan: Plan, conf: Arc<ServerConf>) -> Doors {
        let keys = plan
            .listeners
            .iter()
            .map(|listener| listener.address)
            .chain(plan.config.admin.http)
            .map(inherited::key)
            .collect();
        Doors {
            plan: Some(plan),
            conf,
            keys,
        }
    }

    /// Opens everything, or says what cannot be opened.
    fn open(
        &mut self,
        plan: Plan,
        fds: Option<&ListenFds>,
        shutdown: &ShutdownWatch,
    ) -> anyhow::Result<(Arc<App>, Vec<Open>, admin::Sockets)> {
        use anyhow::Context;
        let listeners = plan.listeners.clone();
        // After a take-over the old process is on its way out, and a new listener that fails must not take the others
        // with it.
        let taken_over = fds.is_some_and(|fds| !fds.lock().is_empty());
        let mut open = Vec::new();
        for listener in &listeners {
            // With a listener of its own for IPv4 on the same port, the IPv6 one must leave IPv4 alone.
            let only_v6 = listeners
                .iter()
                .any(|other| other.address.is_ipv4() && other.address.port() == listener.address.port());
            let socket = inherited::listen(listener.address, only_v6, fds)
                .with_context(|| format!("cannot listen on {}", listener.address));
            match socket {
                Ok(socket) => open.push((listener.clone(), socket)),
                Err(error) if taken_over => log::error!("{error:#}; the other listeners serve"),
                Err(error) => return Err(error),
            }
        }
        let upgrade = if taken_over { Upgrade::Yes } else { Upgrade::No };
        let admin = match admin::Sockets::open(&plan.config.admin, upgrade, fds) {
            Err(error) if taken_over => {
                log::error!("{error:#}; the other listeners serve");
                admin::Sockets::default()
            }
            opened => opened?,
        };
        let app = App::start(plan)?;
        let web = app.web(&self.conf);
        let doors = open.into_iter().map(|(listener, socket)| {
            log::info!(
                "listening on {} ({:?}, TLS {:?})",
                listener.address,
                listener.serve,
                listener.tls
            );
            let door = Door {
                name: listener.address.to_string().into(),
                listener,
                app: app.clone(),
                web: web.clone(),
                shutdown: shutdown.clone(),
            };
            (Arc::new(door), socket)
        });
        Ok((app.clone(), doors.collect(), admin))
    }
}

#[async_trait]
impl Service for Doors {
    async fn start_service(&mut self, fds: Option<ListenFds>, mut shutdown: ShutdownWatch, _listeners_per_fd: usize) {
        let Some(plan) = self.plan.take() else { return };
        let (app, doors, admin) = match self.open(plan, fds.as_ref(), &shutdown) {
            Ok(opened) => opened,
            Err(error) => {
                log::error!("{error:#}");
                eprintln!("portico: {error:#}");
                std::process::exit(1);
            }
        };
        let mut tasks = Vec::new();
        let web = |listener: &Listener| matches!(listener.serve, Serve::Web | Serve::AdminConsole);
        if doors.iter().any(|(door, _)| web(&door.listener)) {
            app.groups.prepare().await;
            tasks.push(tokio::spawn(app.groups.clone().watch(shutdown.clone())));
        }
        // Not one of the tasks: it answers until the process ends.
        tokio::spawn(admin.serve(app.clone(), shutdown.clone()));
        tasks.push(tokio::spawn(reload_on_hangup(app.clone())));
        tasks.push(tokio::spawn(app.clone().follow_directory()));
        tasks.extend(
            doors
                .into_iter()
                .map(|(door, socket)| tokio::spawn(accept(door, socket))),
        );
        // The sender lives in Pingora's server; if it is gone, so is the process.
        let _ = shutdown.wait_for(|down| *down).await;
        tasks.into_iter().for_each(|task| task.abort());
        drain(&app, self.conf.grace_period_seconds.map_or(GRACE, Duration::from_secs)).await;
    }

    fn name(&self) -> &str {
        "doors"
    }

    fn listen_addresses(&self) -> Option<Vec<String>> {
        Some(self.keys.clone())
    }
}

/// Ends what is not logged in, waits for the rest as long as it may, says goodbye, and leaves. Pingora alone would
/// wait its whole grace period with nobody there, and then cut everybody off in mid-word.
async fn drain(app: &App, grace: Duration) {
    let end = Instant::now() + grace.saturating_sub(GOODBYE);
    app.drain.send_replace(Drain::EndLogins);
    while app.open.count() > 0 && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    app.drain.send_replace(Drain::EndSessions);
    let end = Instant::now() + GOODBYE;
    while app.open.count() > 0 && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // What the log writers still hold goes out.
    tokio::time::sleep(Duration::from_millis(100)).await;
    log::info!("all connections have ended");
    std::process::exit(0);
}

/// SIGHUP reads the directory and the certificates again.
async fn reload_on_hangup(app: Arc<App>) {
    let Ok(mut hangups) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()) else {
        return;
    };
    while hangups.recv().await.is_some() {
        // What is wrong stands in the log.
        let _ = app.reload().await;
    }
}

async fn accept(door: Arc<Door>, socket: TcpListener) {
    loop {
        match socket.accept().await {
            Ok((tcp, peer)) => {
                let accepted = Instant::now();
                // On Pingora's runtime of single threads, this picks one of them.
                pingora_runtime::current_handle().spawn(door.clone().serve(tcp, peer, accepted));
            }
            Err(error) => {
                log::warn!("accept on {}: {error}", door.name);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Door {
    async fn serve(self: Arc<Self>, mut tcp: TcpStream, peer: SocketAddr, accepted: Instant) {
        let _entered = self.app.open.enter();
        let Some(client) = self.identify(&mut tcp, peer).await.filter(|client| self.admits(client)) else {
            return;
        };
        let snapshot = self.app.snapshot.load_full();
        match self.listener.serve {
            Serve::Imap => self.mail(Protocol::Imap, tcp, client, snapshot, accepted).await,
            Serve::Pop3 => self.mail(Protocol::Pop3, tcp, client, snapshot, accepted).await,
            Serve::Web => self.web(tcp, client, snapshot, accepted, false).await,
            Serve::AdminConsole => self.web(tcp, client, snapshot, accepted, true).await,
            Serve::Lookup => self.lookup(tcp, client, snapshot, accepted).await,
            Serve::Stream => self.stream(tcp, client, snapshot, accepted).await,
        }
    }

    /// Who connects. `None`: somebody we do not talk to.
    async fn identify(&self, tcp: &mut TcpStream, peer: SocketAddr) -> Option<Client> {
        connector::tune(tcp).ok()?;
        let peer = canonical(peer);
        let direct = Client {
            addr: peer,
            via: None,
            local: canonical(tcp.local_addr().ok()?),
        };
        let trusted = self.listener.proxy_trusted.as_deref().unwrap_or_default();
        if !trusted.iter().any(|network| network.contains(&peer.ip())) {
            return Some(direct);
        }
        let header = match timeout(PROXY_HEADER, proxy_protocol::read(tcp)).await {
            Ok(header) => header,
            Err(late) => Err(late.into()),
        };
        match header {
            Ok(Header::Proxied { source, destination }) => Some(Client {
                addr: canonical(source),
                via: Some(peer),
                local: canonical(destination),
            }),
            Ok(Header::Local) => Some(direct),
            Err(error) => {
                log::warn!(
                    "{}: no PROXY header from {peer}, which must send one: {error}",
                    self.name
                );
                None
            }
        }
    }

    async fn mail(
        &self,
        protocol: Protocol,
        tcp: TcpStream,
        client: Client,
        snapshot: Arc<Snapshot>,
        accepted: Instant,
    ) {
        let deadline = accepted + snapshot.mail.login_deadline;
        let (stream, tls): (BoxStream, _) = match self.listener.tls {
            ListenerTls::Implicit => {
                // Boxed: a handshake is short, and its future large.
                let handshake = Box::pin(snapshot.acceptors.accept(tls::inside(protocol), client.local.ip(), tcp));
                match timeout_at(deadline, handshake).await {
                    Ok(Ok(stream)) => {
                        let facts = tls::facts(stream.ssl());
                        (Box::new(stream), Some(facts))
                    }
                    Ok(Err(error)) => return self.no_handshake(client, &error),
                    Err(late) => return self.no_handshake(client, &late.into()),
                }
            }
            ListenerTls::Off | ListenerTls::StartTls => (Box::new(tcp), None),
        };
        let starttls = match (self.listener.tls, protocol) {
            (ListenerTls::StartTls, Protocol::Imap) => snapshot.imap_starttls,
            (ListenerTls::StartTls, Protocol::Pop3) => snapshot.pop3_starttls,
            _ => StartTls::Off,
        };
        let number = self.app.number();
        let live = Arc::new(Live::born(accepted));
        let session = Session::new(
            number.clone(),
            self.name.clone(),
            protocol.name(),
            tls.is_some(),
            &client,
            live.clone(),
        );
        let connection = Connection {
            stream,
            number,
            listener: self.name.clone(),
            protocol,
            client,
            tls,
            starttls,
            accepted,
            live,
        };
        let house = House {
            routes: self.app.routes.clone(),
            transport: snapshot.transport.clone(),
            audit: self.app.audit.clone(),
            settings: snapshot.mail.clone(),
            generation: snapshot.generation,
            drain: self.app.drain.subscribe(),
        };
        let _entered = self.app.sessions.enter(session);
        let session = mail_proxy::serve(connection, house);
        // A session may live for days; the configuration that it was born with lives on only in what it uses.
        drop(snapshot);
        session.await;
    }

    async fn web(&self, tcp: TcpStream, client: Client, snapshot: Arc<Snapshot>, accepted: Instant, admin: bool) {
        let deadline = accepted + snapshot.mail.login_deadline;
        let (channel, tls, shown) = match self.listener.tls {
            ListenerTls::Implicit => {
                match timeout_at(deadline, Box::pin(web_handshake(tcp, client.local.ip(), &snapshot))).await {
                    Ok(Ok(None)) => return,
                    Ok(Ok(Some(stream))) => {
                        let facts = tls::facts(stream.ssl());
                        let shown = match tls::shown(stream.ssl()) {
                            Ok(shown) => shown,
                            Err(error) => return self.no_handshake(client, &error.into()),
                        };
                        (Channel::Tls(stream), Some(facts), Some(shown))
                    }
                    Ok(Err(error)) => return self.no_handshake(client, &error),
                    Err(late) => return self.no_handshake(client, &late.into()),
                }
            }
            ListenerTls::Off | ListenerTls::StartTls => (Channel::Plain(tcp), None, None),
        };
        drop(snapshot);
        let number = self.app.number();
        let live = Arc::new(Live::born(accepted));
        let session = Session::new(
            number.clone(),
            self.name.clone(),
            "http",
            tls.is_some(),
            &client,
            live.clone(),
        );
        let _entered = self.app.sessions.enter(session);
        let client = WebClient {
            number,
            listener: self.name.clone(),
            client,
            tls,
            shown,
            admin,
            greeted: Greeted::default(),
            live: live.clone(),
        };
        let stream = match WebStream::new(channel, client) {
            Ok(stream) => stream,
            Err(error) => return log::error!("{}: {error}", self.name),
        };
        let serve = connection::serve(&self.app, &self.web, stream, &self.shutdown);
        tokio::pin!(serve);
        tokio::select! {
            () = &mut serve => return,
            // In a drain, requests are served on.
            () = live.kicked() => {}
        }
        // A web socket hears of it by itself and says in the access log that it was there.
        let _ = timeout(KICKED, serve).await;
    }

    /// An old proxy, asking where accounts are.
    async fn lookup(&self, tcp: TcpStream, client: Client, snapshot: Arc<Snapshot>, accepted: Instant) {
        let stream: route_cache::lookup::BoxStream = match self.listener.tls {
            ListenerTls::Implicit => {
                let handshake = Box::pin(snapshot.acceptors.accept(Inside::Lookup, client.local.ip(), tcp));
                match timeout_at(accepted + LOOKUP_HANDSHAKE, handshake).await {
                    Ok(Ok(stream)) => Box::new(stream),
                    Ok(Err(error)) => return self.no_handshake(client, &error),
                    Err(late) => return self.no_handshake(client, &late.into()),
                }
            }
            ListenerTls::Off | ListenerTls::StartTls => Box::new(tcp),
        };
        drop(snapshot);
        let mut drain = self.app.drain.subscribe();
        let serve = serve_lookup(stream, &self.app.routes, &self.app.book);
        tokio::pin!(serve);
        tokio::select! {
            () = &mut serve => return,
            _ = drain.wait_for(|drain| *drain >= Drain::EndLogins) => {}
        }
        // An answer that is under way is given; a connection that only waits is not waited for long.
        let _ = timeout(GOODBYE, serve).await;
    }

    async fn stream(&self, tcp: TcpStream, client: Client, snapshot: Arc<Snapshot>, accepted: Instant) {
        let Some(door) = &self.listener.stream else { return };
        let (stream, tls): (BoxStream, _) = match self.listener.tls {
            ListenerTls::Implicit => {
                let handshake = Box::pin(snapshot.acceptors.accept(Inside::Stream, client.local.ip(), tcp));
                match timeout_at(accepted + stream::HANDSHAKE, handshake).await {
                    Ok(Ok(stream)) => {
                        let facts = tls::facts(stream.ssl());
                        (Box::new(stream), Some(facts))
                    }
                    Ok(Err(error)) => return self.no_handshake(client, &error),
                    Err(late) => return self.no_handshake(client, &late.into()),
                }
            }
            ListenerTls::Off | ListenerTls::StartTls => (Box::new(tcp), None),
        };
        drop(snapshot);
        let (number, live) = (self.app.number(), Arc::new(Live::born(accepted)));
        let session = Session::new(
            number.clone(),
            self.name.clone(),
            "stream",
            tls.is_some(),
            &client,
            live.clone(),
        );
        let _entered = self.app.sessions.enter(session);
        let caller = Caller {
            stream,
            client,
            tls,
            listener: self.name.clone(),
            number,
            live,
        };
        stream::serve(&self.app, door, caller).await;
    }

    /// Whether this client may talk to this listener at all.
    fn admits(&self, client: &Client) -> bool {
        let Some(networks) = &self.listener.allow else {
            return true;
        };
        let admitted = networks.iter().any(|network| network.contains(&client.addr.ip()));
        if !admitted {
            log::info!("{}: {} is in none of the networks of allow", self.name, client.addr);
        }
        admitted
    }

    fn no_handshake(&self, client: Client, error: &std::io::Error) {
        log::info!("{}: no TLS with {}: {error}", self.name, client.addr);
    }
}

/// The handshake of a web connection; `None` for somebody who speaks clear text, who is told so.
async fn web_handshake(
    mut tcp: TcpStream,
    local: IpAddr,
    snapshot: &Snapshot,
) -> std::io::Result<Option<tokio_openssl::SslStream<TcpStream>>> {
    let mut first = [0];
    let n = tcp.peek(&mut first).await?;
    if n == 1 && first[0].is_ascii_uppercase() {
        let text = "The plain HTTP request was sent to HTTPS port";
        tcp.write_all(connection::plain_answer("400 Bad Request", text).as_bytes())
            .await?;
        tcp.shutdown().await?;
        return Ok(None);
    }
    snapshot.acceptors.accept(Inside::Web, local, tcp).await.map(Some)
}

/// An IPv4 client on a dual-stack listener is an IPv4 client.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
