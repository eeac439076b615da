//! The doors: accepts connections on every listener, finds out who they are, does TLS, and hands a ready stream
//! to the mail proxy or to the HTTP engine.
//!
//! The accept loop only accepts. PROXY header, TLS handshake and login happen in the connection's own task, under
//! one deadline. All listening sockets belong to one Pingora service, so they take part in its upgrade.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_trait::async_trait;
use mail_directory::Losses;
use mail_directory::yaml::Problems;
use mail_proxy::audit::Phase;
use mail_proxy::{BoxStream, Client, Connection, Drain, House, Live, Order, Protocol, StartTls, TlsFacts};
use pingora::server::configuration::ServerConf;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use pingora_proxy::HttpProxy;
use route_cache::lookup::serve::serve_lookup;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::SignalKind;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use crate::admin::{self, Upgrade};
use crate::app::snapshot::{Snapshot, problem};
use crate::app::{App, Plan};
use crate::config::{Listener, ListenerTls, Serve};
use crate::listen::proxy_protocol::Header;
use crate::listen::stream::Caller;
use crate::node::connections::{Entered, Session};
use crate::node::diagnostics;
use crate::node::limits::{Held, Ticket};
use crate::node::metrics::Refused;
use crate::node::refusals::{self, Place, Reason};
use crate::node::systemd;
use crate::process::daemon::{self, Waiting};
use crate::process::shutdown::{self, End, Ending, On, Signals};
use crate::process::upgrade::{Again, Asking};
use crate::tls::{self, Inside};
use crate::upstream::connect;
use crate::web::connection::{self, Channel, WebClient, WebStream};
use crate::web::{Greeted, Web};

pub mod proxy_protocol;
pub mod sockets;
pub mod stream;

/// How long a balancer may take for its header. It sends it with the first segment.
const PROXY_HEADER: Duration = Duration::from_secs(5);
/// How long an old proxy may take for its handshake; it does it before anything else.
const LOOKUP_HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a web connection that is to end may still do so by itself.
const KICKED: Duration = Duration::from_millis(200);
/// Pause after a failed accept, which mostly means that the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often a listener that could not be opened is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// The Pingora service that owns all listeners.
pub struct Doors {
    plan: Option<Plan>,
    conf: Arc<ServerConf>,
    keys: Vec<String>,
    end: End,
    again: Option<Again>,
    asking: Option<Asking>,
    waiting: Option<Waiting>,
}

/// The hall, its doors that are not served yet, and the sockets of the admin API.
type Opened = (Hall, Vec<(Listener, TcpListener)>, admin::Sockets);

/// A listener and its socket, or why there is none.
type Bound = (Listener, io::Result<TcpListener>);

/// A listener in service.
struct Door {
    listener: Listener,
    name: Arc<str>,
    app: Arc<App>,
    web: Arc<HttpProxy<Web>>,
    shutdown: ShutdownWatch,
}

impl Doors {
    /// The doors of a checked configuration. `again` starts this program once more; `asking` is there if another
    /// process is to give way to this one.
    pub fn new(plan: Plan, conf: Arc<ServerConf>, end: End, again: Option<Again>, asking: Option<Asking>) -> Doors {
        let keys = plan
            .listeners
            .iter()
            .map(|listener| listener.address)
            .chain(plan.config.admin.http)
            .map(sockets::key)
            .collect();
        Doors {
            plan: Some(plan),
            keys,
            end,
            again,
            asking,
            waiting: Waiting::new(&conf),
            conf,
        }
    }

    /// Opens everything, or says what cannot be opened.
    fn open(&mut self, plan: Plan, fds: ListenFds, shutdown: &ShutdownWatch) -> anyhow::Result<Opened> {
        use anyhow::Context;
        for wrong in sockets::take_activated(systemd::activated().into_iter(), &fds) {
            log::error!("a socket of systemd cannot be used: {wrong}");
        }
        // Sockets that are there already come from the old process, which is on its way out, or from systemd: a new
        // listener that fails must not take the others with it. Nor may one that the directory made up.
        let all_or_nothing = fds.lock().is_empty() && plan.config.listeners.is_some();
        let addresses = plan.listeners.iter().map(|listener| listener.address);
        close_others(addresses.chain(plan.config.admin.http), &fds);
        let bound = bind(&plan.listeners, &fds);
        let some = bound.iter().any(|(_, socket)| socket.is_ok());
        let mut sockets = Vec::new();
        for (listener, socket) in bound {
            match socket.with_context(|| format!("cannot listen on {}", listener.address)) {
                Ok(socket) => sockets.push((listener, socket)),
                Err(error) if all_or_nothing || !some => return Err(error),
                Err(error) => log::error!("{error:#}; the other listeners serve"),
            }
        }
        let config = plan.config.admin.clone();
        let (app, admin) = match self.asking {
            None => {
                let admin = admin::Sockets::open(&config, Upgrade::No, &fds)?;
                (App::start(plan)?, admin)
            }
            // Those of the process before are taken when everything else stands.
            Some(_) => (App::start(plan)?, admin::Sockets::default()),
        };
        let web = app.web(&self.conf);
        let hall = Hall {
            app,
            web,
            shutdown: shutdown.clone(),
            fds,
            open: Vec::new(),
            watches_groups: false,
        };
        Ok((hall, sockets, admin))
    }
}

/// Takes the place of the process that was asked.
fn take_over(asking: Asking, hall: &Hall) -> anyhow::Result<()> {
    asking.is_awaited()?;
    let config = hall.app.config.load().admin.clone();
    // Last, when nothing else can go wrong: the socket file is taken from the process before.
    match admin::Sockets::open(&config, Upgrade::Yes, &hall.fds) {
        Ok(admin) => drop(tokio::spawn(admin.serve(hall.app.clone(), hall.shutdown.clone()))),
        Err(error) => log::error!("{error:#}; the other listeners serve"),
    }
    asking.serves()
}

/// Ends a process that cannot serve.
fn give_up(error: &anyhow::Error) -> ! {
    log::error!("{error:#}");
    eprintln!("portico: {error:#}");
    std::process::exit(1)
}

/// The sockets of these listeners.
fn bind(listeners: &[Listener], fds: &ListenFds) -> Vec<Bound> {
    let socket = |listener: &Listener| {
        let only_v6 = shares_port(listener, listeners);
        (listener.clone(), sockets::listen(listener.address, only_v6, fds))
    };
    listeners.iter().map(socket).collect()
}

/// Whether there is a listener of its own for IPv4 on the same port; then the IPv6 one must leave IPv4 alone.
fn shares_port(listener: &Listener, listeners: &[Listener]) -> bool {
    listeners
        .iter()
        .any(|other| other.address.is_ipv4() && other.address.port() == listener.address.port())
}

/// Closes the sockets of all other addresses.
fn close_others(keep: impl Iterator<Item = SocketAddr>, fds: &ListenFds) {
    for address in sockets::close_others(keep, fds) {
        log::info!(target: "proxy_app::list", "not listening on {address} any more");
    }
}

/// The doors that are open.
struct Hall {
    app: Arc<App>,
    web: Arc<HttpProxy<Web>>,
    shutdown: ShutdownWatch,
    fds: ListenFds,
    open: Vec<OpenDoor>,
    /// Whether the groups of web servers are looked after.
    watches_groups: bool,
}

/// An accept loop. It ends when `stop` is dropped.
struct OpenDoor {
    listener: Listener,
    only_v6: bool,
    stop: oneshot::Sender<Last>,
    task: JoinHandle<()>,
}

/// What becomes of the connections that the kernel has taken and nobody has accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    /// They are served: after this the socket is gone.
    Served,
    /// They stay in the socket's queue: somebody else accepts from it, too.
    Left,
}

impl Hall {
    async fn serve(&mut self, listener: Listener, socket: TcpListener) {
        self.watch_groups(listener.serve).await;
        log::info!(
            target: "proxy_app::list",
            "listening on {} ({:?}, TLS {:?})",
            listener.address,
            listener.serve,
            listener.tls
        );
        let only_v6 = shares_port(&listener, &self.app.wanted().listeners);
        let door = Arc::new(Door {
            name: listener.address.to_string().into(),
            listener: listener.clone(),
            app: self.app.clone(),
            web: self.web.clone(),
            shutdown: self.shutdown.clone(),
        });
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(accept(door, socket, stopped));
        self.open.push(OpenDoor {
            listener,
            only_v6,
            stop,
            task,
        });
    }

    /// Web servers are looked after from the first door on that needs them; before it opens, it is known who is well.
    async fn watch_groups(&mut self, serve: Serve) {
        if self.watches_groups || !matches!(serve, Serve::Web | Serve::AdminConsole) {
            return;
        }
        self.watches_groups = true;
        self.app.groups.prepare().await;
        tokio::spawn(self.app.groups.clone().watch(self.shutdown.clone()));
    }

    /// Opens and closes doors, until they are the ones that are wanted. The others are not touched. Says what cannot
    /// be opened.
    async fn follow(&mut self, wanted: &[Listener]) -> Problems {
        let stays = |open: &OpenDoor, wanted: &[Listener]| {
            wanted.contains(&open.listener) && open.only_v6 == shares_port(&open.listener, wanted)
        };
        let (stay, go): (Vec<_>, Vec<_>) = std::mem::take(&mut self.open)
            .into_iter()
            .partition(|open| stays(open, wanted));
        self.open = stay;
        // A door that only changes keeps its socket, and with it who is waiting there.
        let keeps_socket = |gone: &OpenDoor| {
            let same = |new: &&Listener| new.address == gone.listener.address;
            wanted
                .iter()
                .find(same)
                .is_some_and(|new| gone.only_v6 == shares_port(new, wanted))
        };
        let kept: Vec<SocketAddr> = self
            .open
            .iter()
            .chain(go.iter().filter(|gone| keeps_socket(gone)))
            .map(|open| open.listener.address)
            .chain(self.app.config.load().admin.http)
            .collect();
        for door in go {
            let last = if keeps_socket(&door) { Last::Left } else { Last::Served };
            let _ = door.stop.send(last);
            let _ = door.task.await;
        }
        close_others(kept.into_iter(), &self.fds);
        let missing = |listener: &&Listener| self.open.iter().all(|open| open.listener != **listener);
        let missing: Vec<Listener> = wanted.iter().filter(missing).cloned().collect();
        let mut problems = Problems::new();
        for listener in missing {
            match sockets::listen(listener.address, shares_port(&listener, wanted), &self.fds) {
                Ok(socket) => self.serve(listener, socket).await,
                Err(error) => problems.push(problem(
                    "listeners",
                    format!("cannot listen on {}: {error}", listener.address),
                )),
            }
        }
        problems
    }

    /// Serves, and follows the list of listeners, until the process is to end.
    async fn run(mut self, told: impl Future<Output = Ending>) -> (Ending, Hall) {
        let mut lists = self.app.subscribe_listeners();
        tokio::pin!(told);
        let mut failing = Problems::new();
        loop {
            let list = tokio::select! {
                ending = &mut told => return (ending, self),
                Ok(()) = lists.changed() => lists.borrow_and_update().clone(),
                () = tokio::time::sleep(AGAIN), if !failing.is_empty() => lists.borrow().clone(),
            };
            let problems = self.follow(&list.listeners).await;
            if problems != failing {
                problems
                    .iter()
                    .for_each(|problem| log::error!("{problem}; the other listeners serve"));
            }
            failing = problems.clone();
            self.app.listeners_are(list.number, problems);
        }
    }

    /// Accepts no more.
    async fn close(&mut self, last: Last) {
        let mut tasks = Vec::new();
        for door in std::mem::take(&mut self.open) {
            let _ = door.stop.send(last);
            tasks.push(door.task);
        }
        for task in tasks {
            let _ = task.await;
        }
        close_others(std::iter::empty(), &self.fds);
    }
}

#[async_trait]
impl Service for Doors {
    async fn start_service(&mut self, fds: Option<ListenFds>, mut shutdown: ShutdownWatch, _listeners_per_fd: usize) {
        let (Some(plan), Some(fds)) = (self.plan.take(), fds) else {
            return;
        };
        // Before anybody can see that we are here: a signal that nobody catches ends the process.
        let (mut signals, hangups) = (Signals::new(), On::new(SignalKind::hangup()));
        let rotations = On::new(SignalKind::user_defined1());
        let (mut hall, sockets, admin) = match self.open(plan, fds, &shutdown) {
            Ok(opened) => opened,
            Err(error) => give_up(&error),
        };
        let app = hall.app.clone();
        // Not one of the tasks: it answers until the process ends.
        tokio::spawn(admin.serve(app.clone(), shutdown.clone()));
        for (listener, socket) in sockets {
            hall.serve(listener, socket).await;
        }
        let tasks = [
            tokio::spawn(reload_on_hangup(app.clone(), hangups)),
            tokio::spawn(reopen_logs(app.clone(), rotations)),
            tokio::spawn(app.clone().follow_directory()),
            tokio::spawn(systemd::say_alive()),
            tokio::spawn(diagnostics::tell_what_is_left_out()),
        ];
        if let Some(asking) = self.asking.take() {
            if let Err(error) = take_over(asking, &hall) {
                give_up(&error);
            }
            daemon::take_pid_file(Path::new(&self.conf.pid_file));
        }
        systemd::serves("serving");
        if let Some(waiting) = self.waiting {
            tokio::spawn(waiting.tell());
        }
        let gate = shutdown::gate(&self.conf);
        let told = self.end.told(&mut signals, self.again.take(), gate, hall.fds.clone());
        let (ending, mut hall) = hall.run(told).await;
        hall.close(match ending {
            Ending::Stop => Last::Served,
            Ending::Replaced => Last::Left,
        })
        .await;
        self.end.tell(ending);
        // The sender lives in Pingora's server; if it is gone, so is the process.
        let _ = shutdown.wait_for(|down| *down).await;
        tasks.iter().for_each(JoinHandle::abort);
        shutdown::drain(&app, ending, signals).await;
    }

    fn name(&self) -> &str {
        "doors"
    }

    fn listen_addresses(&self) -> Option<Vec<String>> {
        Some(self.keys.clone())
    }
}

/// SIGHUP reads the node file, the directory and the certificates again.
async fn reload_on_hangup(app: Arc<App>, mut hangups: On) {
    loop {
        hangups.next().await;
        app.reload(Losses::Most).await;
    }
}

/// SIGUSR1 opens the log files anew, and nothing else: what nginx's users send after a rotation.
async fn reopen_logs(app: Arc<App>, mut rotations: On) {
    loop {
        rotations.next().await;
        for problem in app.reopen().await {
            log::error!("{problem}");
        }
    }
}

async fn accept(door: Arc<Door>, socket: TcpListener, mut stop: oneshot::Receiver<Last>) {
    let last = loop {
        tokio::select! {
            accepted = socket.accept() => door.take(accepted).await,
            last = &mut stop => break last.unwrap_or(Last::Left),
        }
    };
    if last == Last::Served {
        // A timeout of nothing looks once.
        while let Ok(Ok(accepted)) = timeout(Duration::ZERO, socket.accept()).await {
            door.take(Ok(accepted)).await;
        }
    }
}

impl Door {
    async fn take(self: &Arc<Self>, accepted: io::Result<(TcpStream, SocketAddr)>) {
        match accepted {
            Ok((tcp, peer)) => {
                let accepted = Instant::now();
                // On Pingora's runtime of single threads, this picks one of them.
                pingora_runtime::current_handle().spawn(self.clone().serve(tcp, peer, accepted));
            }
            Err(error) => {
                log::warn!("accept on {}: {error}", self.name);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }

    async fn serve(self: Arc<Self>, mut tcp: TcpStream, peer: SocketAddr, accepted: Instant) {
        let _entered = self.app.open.enter();
        self.app.metrics.accepted(&self.name).inc();
        let Some(mut ticket) = self.app.limits.enter() else {
            return self.app.metrics.refused(&self.name, Refused::Connections);
        };
        let Some(client) = self.identify(&mut tcp, peer).await.filter(|client| self.admits(client)) else {
            return;
        };
        if !ticket.is_from(client.addr.ip()) {
            return self.app.metrics.refused(&self.name, Refused::PerAddress);
        }
        self.took(Phase::Accept, accepted);
        let waiter = ticket.waiter();
        tokio::select! {
            () = self.serve_client(tcp, client, accepted, ticket) => {}
            () = waiter.sent_away() => self.app.metrics.refused(&self.name, Refused::Evicted),
        }
    }

    async fn serve_client(&self, tcp: TcpStream, client: Client, accepted: Instant, ticket: Ticket) {
        let snapshot = self.app.snapshot.load_full();
        match self.listener.serve {
            Serve::Imap => self.mail(Protocol::Imap, tcp, client, snapshot, accepted, ticket).await,
            Serve::Pop3 => self.mail(Protocol::Pop3, tcp, client, snapshot, accepted, ticket).await,
            Serve::Web | Serve::AdminConsole | Serve::Sso => self.web(tcp, client, snapshot, accepted, ticket).await,
            Serve::Lookup => self.lookup(tcp, client, snapshot, accepted, ticket).await,
            Serve::Stream => self.stream(tcp, client, snapshot, accepted, ticket).await,
        }
    }

    /// How long a client may take from accept to its credentials, or for its handshake.
    fn patience(&self, snapshot: &Snapshot) -> Duration {
        let own = self.listener.login_deadline;
        self.app.limits.patience(own.unwrap_or(snapshot.login_deadline))
    }

    /// Who connects. `None`: somebody we do not talk to.
    async fn identify(&self, tcp: &mut TcpStream, peer: SocketAddr) -> Option<Client> {
        connect::tune(tcp).ok()?;
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
                self.app.metrics.refused(&self.name, Refused::Proxy);
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
        ticket: Ticket,
    ) {
        let queued = ticket.queue();
        let login_deadline = self.patience(&snapshot);
        let deadline = accepted + login_deadline;
        let channel = self.channel(tls::inside(protocol), tcp, client, &snapshot, deadline);
        let Some((stream, tls)) = channel.await else { return };
        let starttls = match (self.listener.tls, protocol) {
            (ListenerTls::StartTls, Protocol::Imap) => self.listener.starttls.unwrap_or(snapshot.imap_starttls),
            (ListenerTls::StartTls, Protocol::Pop3) => self.listener.starttls.unwrap_or(snapshot.pop3_starttls),
            _ => StartTls::Off,
        };
        let (number, live, _entered) = self.enter(protocol.name(), tls.is_some(), &client, accepted);
        ticket.waiter().ends_by(&live);
        let seen = live.clone();
        live.hold_until_login(Box::new(Held {
            queued,
            ticket: Some(ticket),
        }));
        let connection = Connection {
            stream,
            number,
            listener: self.name.clone(),
            protocol,
            client,
            tls,
            starttls,
            accepted,
            login_deadline,
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
        let session = mail_proxy::serve(connection, house);
        // A session may live for days; the configuration that it was born with lives on only in what it uses.
        drop(snapshot);
        session.await;
        if seen.order() == Some(Order::Evict) {
            self.app.metrics.refused(&self.name, Refused::Evicted);
        }
    }

    async fn web(&self, tcp: TcpStream, client: Client, snapshot: Arc<Snapshot>, accepted: Instant, ticket: Ticket) {
        let queued = ticket.queue();
        let deadline = accepted + self.patience(&snapshot);
        let begun = Instant::now();
        let (channel, tls, shown) = match self.listener.tls {
            ListenerTls::Implicit => {
                let handshake = Box::pin(web_handshake(tcp, client.local.ip(), &snapshot));
                let stream = match self.handshake(client, deadline, handshake).await {
                    Some(Some(stream)) => stream,
                    Some(None) => {
                        let place = Place::new("", &self.name, &client);
                        return refusals::record(&self.app, place, Reason::ClearText);
                    }
                    None => return,
                };
                self.took(Phase::Tls, begun);
                let facts = tls::facts(stream.ssl());
                let shown = match tls::shown(stream.ssl()) {
                    Ok(shown) => shown,
                    Err(error) => return self.no_handshake(client, &error.into()),
                };
                (Channel::Tls(stream), Some(facts), Some(shown))
            }
            ListenerTls::Off | ListenerTls::StartTls => (Channel::Plain(tcp), None, None),
        };
        drop(snapshot);
        let (number, live, _entered) = self.enter("http", tls.is_some(), &client, accepted);
        live.hold_until_login(Box::new(Held { queued, ticket: None }));
        let client = WebClient {
            number,
            listener: self.name.clone(),
            client,
            tls,
            shown,
            admin: self.listener.serve == Serve::AdminConsole,
            sso: self.listener.serve == Serve::Sso,
            owner: Arc::default(),
            cut_short: AtomicBool::new(false),
            greeted: Greeted::default(),
            live: live.clone(),
            taken: AtomicBool::default(),
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
    async fn lookup(&self, tcp: TcpStream, client: Client, snapshot: Arc<Snapshot>, accepted: Instant, ticket: Ticket) {
        let queued = ticket.queue();
        let stream: route_cache::lookup::BoxStream = match self.listener.tls {
            ListenerTls::Implicit => {
                let handshake = Box::pin(snapshot.acceptors.accept(Inside::Lookup, client.local.ip(), tcp));
                let deadline = accepted + LOOKUP_HANDSHAKE;
                let Some(stream) = self.handshake(client, deadline, handshake).await else {
                    return;
                };
                Box::new(stream)
            }
            ListenerTls::Off | ListenerTls::StartTls => Box::new(tcp),
        };
        drop((snapshot, queued));
        let mut drain = self.app.drain.subscribe();
        let serve = serve_lookup(stream, &self.app.routes, &self.app.book);
        tokio::pin!(serve);
        tokio::select! {
            () = &mut serve => return,
            _ = drain.wait_for(|drain| *drain >= Drain::EndLogins) => {}
        }
        // An answer that is under way is given; a connection that only waits is not waited for long.
        let _ = timeout(shutdown::GOODBYE, serve).await;
    }

    async fn stream(&self, tcp: TcpStream, client: Client, snapshot: Arc<Snapshot>, accepted: Instant, ticket: Ticket) {
        let Some(door) = &self.listener.stream else { return };
        let queued = ticket.queue();
        let deadline = accepted + stream::HANDSHAKE;
        let channel = self.channel(Inside::Stream, tcp, client, &snapshot, deadline);
        let Some((stream, tls)) = channel.await else { return };
        drop((snapshot, queued));
        let (number, live, _entered) = self.enter("stream", tls.is_some(), &client, accepted);
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

    /// A number for a connection, what is seen of it while it lives, and its place in the list of those that do.
    fn enter(
        &self,
        protocol: &'static str,
        tls: bool,
        client: &Client,
        accepted: Instant,
    ) -> (String, Arc<Live>, Entered) {
        let number = self.app.number();
        let live = Arc::new(Live::born(accepted, self.app.metrics.totals(protocol)));
        let session = Session::new(number.clone(), self.name.clone(), protocol, tls, client, live.clone());
        let entered = self.app.sessions.enter(session);
        (number, live, entered)
    }

    /// Whether this client may talk to this listener at all.
    fn admits(&self, client: &Client) -> bool {
        let Some(networks) = &self.listener.allow else {
            return true;
        };
        let admitted = networks.iter().any(|network| network.contains(&client.addr.ip()));
        if !admitted {
            self.app.metrics.refused(&self.name, Refused::Network);
            log::info!("{}: {} is in none of the networks of allow", self.name, client.addr);
        }
        admitted
    }

    /// Measures what comes before the login.
    fn took(&self, phase: Phase, begun: Instant) {
        let proto = match self.listener.serve {
            Serve::Imap => "imap",
            Serve::Pop3 => "pop3",
            Serve::Web | Serve::AdminConsole | Serve::Sso => "http",
            Serve::Stream => "stream",
            Serve::Lookup => return,
        };
        self.app.metrics.phase(phase, proto, begun.elapsed());
    }

    /// The stream of a client who comes for mail or for a stream, and what TLS says of him. `None`: no handshake.
    async fn channel(
        &self,
        inside: Inside,
        tcp: TcpStream,
        client: Client,
        snapshot: &Snapshot,
        deadline: Instant,
    ) -> Option<(BoxStream, Option<TlsFacts>)> {
        if self.listener.tls != ListenerTls::Implicit {
            return Some((Box::new(tcp), None));
        }
        let begun = Instant::now();
        let handshake = Box::pin(snapshot.acceptors.accept(inside, client.local.ip(), tcp));
        let stream = self.handshake(client, deadline, handshake).await?;
        self.took(Phase::Tls, begun);
        let facts = tls::facts(stream.ssl());
        Some((Box::new(stream), Some(facts)))
    }

    /// A handshake within the limits. `None`: it came to nothing, and that has been said. Boxed: a handshake is
    /// short, and its future large.
    async fn handshake<T>(
        &self,
        client: Client,
        deadline: Instant,
        handshake: Pin<Box<impl Future<Output = std::io::Result<T>>>>,
    ) -> Option<T> {
        let Some(_counted) = self.app.limits.handshake() else {
            self.app.metrics.refused(&self.name, Refused::Handshakes);
            return None;
        };
        let done = match timeout_at(deadline, handshake).await {
            Ok(done) => done,
            Err(late) => Err(late.into()),
        };
        done.map_err(|error| self.no_handshake(client, &error)).ok()
    }

    fn no_handshake(&self, client: Client, error: &std::io::Error) {
        self.app.metrics.refused(&self.name, Refused::Tls);
        // A client that goes away is no news; scanners, health checks and browsers do it all day.
        let level = match has_gone(error) {
            true => log::Level::Debug,
            false => log::Level::Info,
        };
        log::log!(level, "{}: no TLS with {}: {error}", self.name, client.addr);
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

/// Whether the client of a handshake has simply gone.
fn has_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<openssl::ssl::Error>());
    let kind = inner.map_or(Some(error.kind()), |inner| match inner.io_error() {
        Some(error) => Some(error.kind()),
        // Without an error of its own it is the end of the stream.
        None if inner.code() == openssl::ssl::ErrorCode::SYSCALL => Some(UnexpectedEof),
        None => None,
    });
    matches!(
        kind,
        Some(BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
    )
}

/// An IPv4 client on a dual-stack listener is an IPv4 client.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
