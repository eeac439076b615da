//! A connection from its acceptance to the proxy that serves it: PROXY header, limits, TLS, and a place in the list of
//! those that are open.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use mail_proxy::audit::Phase;
use mail_proxy::{
    BoxStream, Client, CloseReason, Connection, ConnectionFacts, ConnectionHandle, Drain, Proto, Protocol, SessionEnv,
    StartTls, TlsFacts,
};
use parking_lot::Mutex;
use pingora::server::ShutdownWatch;
use pingora_proxy::HttpProxy;
use route_cache::lookup_server::serve_lookup;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::acme::challenges::Challenges;
use crate::app::env::ListenEnv;
use crate::app::snapshot::Snapshot;
use crate::config::{Listener, ListenerTls, Serve};
use crate::http::answers;
use crate::listen::GOODBYE;
use crate::listen::challenge;
use crate::listen::proxy_protocol::{self, Header};
use crate::listen::stream;
use crate::node::connections::{ConnectionGuard, Session};
use crate::node::limits::{ConnectionKind, HeldUntilLogin, Limit, Permit};
use crate::node::metrics::Refused;
use crate::node::refusals::{Reason, RefusedConnection};
use crate::tls::profile::InnerProtocol;
use crate::tls::{self, ClientTls};
use crate::web::client::{ForwardedValues, SeenUser, WebClient};
use crate::web::connection;
use crate::web::phases::Web;
use crate::web::stream::{Channel, WebStream};

/// How long a balancer may take for its header. It sends it with the first segment.
const PROXY_HEADER: Duration = Duration::from_secs(5);

/// How long an old proxy may take for its handshake, which comes first.
const LOOKUP_HANDSHAKE: Duration = Duration::from_secs(10);

/// How long requests may go on whose account is on another server now.
const LAST_REQUESTS: Duration = Duration::from_secs(5);

/// How long a web connection that is to end may still do so by itself.
const KICKED: Duration = Duration::from_millis(200);

/// Pause after a failed accept, which usually means that the process has no file descriptor left.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A listener in service.
pub(crate) struct ActiveListener {
    pub(crate) listener: Listener,
    pub(crate) name: Arc<str>,
    pub(crate) env: Arc<ListenEnv>,
    pub(crate) web: Arc<HttpProxy<Web>>,
    pub(crate) shutdown: ShutdownWatch,
}

/// A connection that may be served.
struct Arrival {
    tcp: TcpStream,
    client: Client,
    /// Whether the client speaks TLS with the balancer in front.
    tls_in_front: bool,
    snapshot: Arc<Snapshot>,
    accepted: Instant,
    /// Held while it is served, by a mail connection until its login.
    permit: Permit,
}

/// A mail connection whose TLS is done.
struct BegunMail<S> {
    session: S,
    seen: Arc<ConnectionHandle>,
    _listed: ConnectionGuard,
}

impl ActiveListener {
    pub(crate) async fn take(self: &Arc<Self>, accepted: io::Result<(TcpStream, SocketAddr)>) {
        match accepted {
            Ok((tcp, peer)) => {
                let accepted = Instant::now();
                // On Pingora's runtime of single threads, this picks one of them.
                pingora_runtime::current_handle().spawn(self.clone().serve(tcp, peer, accepted));
            }
            Err(error) => {
                log::warn!("accept on {}: {error}", self.name);
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }

    /// What is needed to begin is boxed, here and below: a mail session may live for days, and what it is awaited in is
    /// its memory.
    async fn serve(self: Arc<Self>, tcp: TcpStream, peer: SocketAddr, accepted: Instant) {
        let _counted = self.env.open.enter();
        self.env.metrics.accepted(&self.name).inc();
        let Some(arrival) = Box::pin(self.receive(tcp, peer, accepted)).await else {
            return;
        };
        let pending = arrival.permit.pending();
        tokio::select! {
            () = self.serve_client(arrival) => {}
            () = pending.evicted() => self.env.metrics.refused(&self.name, Refused::Evicted),
        }
    }

    /// Finds out who it is, and whether there is room. `None`: it is refused.
    async fn receive(&self, mut tcp: TcpStream, peer: SocketAddr, accepted: Instant) -> Option<Arrival> {
        let Some(mut permit) = self.env.limits.enter() else {
            self.env.metrics.refused(&self.name, Refused::Connections);
            return None;
        };
        let (client, tls_in_front) = self.identify(&mut tcp, peer).await?;
        if !self.admits(&client) {
            return None;
        }
        if let Err(limit) = permit.admit_address(client.addr.ip(), self.kind_of(&client)) {
            self.env.metrics.refused(&self.name, reason_of(limit));
            return None;
        }
        self.observe_phase(Phase::Accept, accepted);
        Some(Arrival {
            tcp,
            client,
            tls_in_front,
            snapshot: self.env.snapshot.load_full(),
            accepted,
            permit,
        })
    }

    fn serve_client(&self, arrival: Arrival) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        match self.listener.serve {
            Serve::Imap => Box::pin(self.mail(Box::pin(self.begin_mail(Protocol::Imap, arrival)))),
            Serve::Pop3 => Box::pin(self.mail(Box::pin(self.begin_mail(Protocol::Pop3, arrival)))),
            Serve::Web | Serve::AdminConsole | Serve::Sso => Box::pin(self.web(arrival)),
            Serve::Lookup => Box::pin(self.lookup(arrival)),
            Serve::Stream => Box::pin(self.stream(arrival)),
        }
    }

    /// What a connection of this client counts as for its address.
    fn kind_of(&self, client: &Client) -> ConnectionKind {
        match self.listener.serve {
            Serve::Imap | Serve::Pop3 => ConnectionKind::Mail {
                known_accounts: self.env.throttle.accounts_of(client.addr.ip()),
            },
            _ => ConnectionKind::Other,
        }
    }

    /// How long a client may take from accept to its credentials, or for its handshake.
    fn patience(&self, snapshot: &Snapshot) -> Duration {
        let own = self.listener.login_deadline;
        self.env.limits.patience(own.unwrap_or(snapshot.login_deadline))
    }

    /// The address that the client has connected to. A listener at one address knows it; for one at all addresses the
    /// kernel is asked.
    fn local_address(&self, tcp: &TcpStream) -> io::Result<SocketAddr> {
        match self.listener.address {
            address if address.ip().is_unspecified() || address.port() == 0 => tcp.local_addr(),
            address => Ok(address),
        }
    }

    /// Identifies the client, and whether it speaks TLS with the balancer in front. `None`: the connection is refused.
    async fn identify(&self, tcp: &mut TcpStream, peer: SocketAddr) -> Option<(Client, bool)> {
        let peer = canonical(peer);
        let direct = Client {
            addr: peer,
            via: None,
            local: canonical(self.local_address(tcp).ok()?),
        };
        let trusted = self.listener.proxy_trusted.as_deref().unwrap_or_default();
        if !trusted.iter().any(|network| network.contains(&peer.ip())) {
            return Some((direct, false));
        }
        let header = match timeout(PROXY_HEADER, proxy_protocol::read(tcp)).await {
            Ok(header) => header,
            Err(late) => Err(late.into()),
        };
        match header {
            Ok(Header::Proxied {
                source,
                destination,
                tls,
            }) => {
                let client = Client {
                    addr: canonical(source),
                    via: Some(peer),
                    local: canonical(destination),
                };
                Some((client, tls))
            }
            Ok(Header::Local) => Some((direct, false)),
            Err(error) => {
                self.env.metrics.refused(&self.name, Refused::Proxy);
                log::warn!(
                    "{}: no PROXY header from {peer}, which must send one: {error}",
                    self.name
                );
                None
            }
        }
    }

    async fn mail(&self, begin: Pin<Box<impl Future<Output = Option<BegunMail<impl Future<Output = ()>>>>>>) {
        let Some(BegunMail { session, seen, _listed }) = begin.await else {
            return;
        };
        session.await;
        if seen.close_reason() == Some(CloseReason::Evict) {
            self.env.metrics.refused(&self.name, Refused::Evicted);
        }
    }

    async fn begin_mail(
        &self,
        protocol: Protocol,
        arrival: Arrival,
    ) -> Option<BegunMail<impl Future<Output = ()> + Send + use<>>> {
        let Arrival {
            tcp,
            client,
            snapshot,
            accepted,
            permit,
            ..
        } = arrival;
        let queued = permit.queue();
        let login_deadline = self.patience(&snapshot);
        let deadline = accepted + login_deadline;
        let channel = self.channel(tls::inner_protocol(protocol), tcp, client, &snapshot, deadline);
        let (stream, tls) = channel.await?;
        let starttls = match (self.listener.tls, protocol) {
            (ListenerTls::StartTls, Protocol::Imap) => self.listener.starttls.unwrap_or(snapshot.imap_starttls),
            (ListenerTls::StartTls, Protocol::Pop3) => self.listener.starttls.unwrap_or(snapshot.pop3_starttls),
            _ => StartTls::Off,
        };
        let (facts, listed) = self.enter(protocol.proto(), tls, client, accepted);
        permit.pending().ends_by(&facts.handle);
        let seen = facts.handle.clone();
        seen.hold_until_login(Box::new(HeldUntilLogin {
            queued,
            _permit: Some(permit),
        }));
        let connection = Connection {
            stream,
            facts,
            protocol,
            starttls,
            login_deadline,
        };
        let session = mail_proxy::serve(connection, self.session_env(&snapshot));
        // Of the configuration that a session started with, only what it uses stays in memory.
        Some(BegunMail {
            session,
            seen,
            _listed: listed,
        })
    }

    fn session_env(&self, snapshot: &Snapshot) -> SessionEnv {
        SessionEnv {
            routes: self.env.routes.clone(),
            transport: snapshot.transport.clone(),
            audit: self.env.audit.clone(),
            throttle: self.env.throttle.clone(),
            limits: self.env.limits.clone(),
            settings: snapshot.mail.clone(),
            generation: snapshot.generation,
            drain: self.env.drain.clone(),
        }
    }

    async fn web(&self, arrival: Arrival) {
        let Arrival {
            tcp,
            client,
            tls_in_front,
            snapshot,
            accepted,
            permit,
        } = arrival;
        let queued = permit.queue();
        let deadline = accepted + self.patience(&snapshot);
        let begun = Instant::now();
        let (channel, tls, shown) = match self.listener.tls {
            ListenerTls::Implicit => {
                let challenges = &self.env.web.challenges;
                let handshake = Box::pin(web_handshake(tcp, client.local.ip(), &snapshot, challenges));
                let stream = match self.handshake(client, deadline, handshake).await {
                    Some(WebHandshake::Done(stream)) => stream,
                    Some(WebHandshake::Challenge) => {
                        return log::debug!("{}: {} was shown a challenge's certificate", self.name, client.addr);
                    }
                    Some(WebHandshake::ClearText) => {
                        let refused = RefusedConnection::new("", &self.name, &client);
                        return self.env.refusals.refused(refused, Reason::ClearText);
                    }
                    None => return,
                };
                self.observe_phase(Phase::Tls, begun);
                let facts = tls::facts(stream.ssl());
                let shown = match tls::presented(stream.ssl()) {
                    Ok(shown) => shown,
                    Err(error) => return self.handshake_failed(client, &error.into()),
                };
                (Channel::Tls(stream), Some(facts), Some(shown))
            }
            ListenerTls::Off | ListenerTls::StartTls => (Channel::Plain(tcp), None, None),
        };
        drop(snapshot);
        let (facts, _listed) = self.enter(Proto::Http, tls, client, accepted);
        let live = facts.handle.clone();
        live.hold_until_login(Box::new(HeldUntilLogin { queued, _permit: None }));
        let client = WebClient {
            facts,
            tls_in_front,
            shown,
            admin: self.listener.serve == Serve::AdminConsole,
            sso: self.listener.serve == Serve::Sso,
            owner: Arc::default(),
            cut_short: AtomicBool::new(false),
            seen_user: SeenUser::default(),
            forwarded: ForwardedValues::default(),
            taken: AtomicBool::default(),
            reading: Arc::default(),
            answer_lines: Mutex::default(),
        };
        let stream = match WebStream::new(channel, client) {
            Ok(stream) => stream,
            Err(error) => return log::error!("{}: {error}", self.name),
        };
        let is_h2 = stream.h2;
        let serve = connection::serve(&self.env.web, &self.web, stream, &self.shutdown);
        tokio::pin!(serve);
        tokio::select! {
            () = &mut serve => return,
            // In a drain, requests are served on.
            () = live.kicked() => {}
            () = live.moved() => {
                tokio::select! {
                    () = &mut serve => return,
                    () = live.kicked() => {}
                    () = last_requests(&live, is_h2) => {}
                }
            }
        }
        // A WebSocket ends by itself and writes its line of the access log.
        let _ = timeout(KICKED, serve).await;
    }

    /// A connection of an old proxy, which looks up the servers of accounts.
    async fn lookup(&self, arrival: Arrival) {
        let Arrival {
            tcp,
            client,
            snapshot,
            accepted,
            permit,
            ..
        } = arrival;
        let queued = permit.queue();
        let stream: BoxStream = match self.listener.tls {
            ListenerTls::Implicit => {
                let handshake = Box::pin(snapshot.acceptors.accept(InnerProtocol::Lookup, client.local.ip(), tcp));
                let deadline = accepted + LOOKUP_HANDSHAKE;
                let Some(stream) = self.handshake(client, deadline, handshake).await else {
                    return;
                };
                Box::new(stream)
            }
            ListenerTls::Off | ListenerTls::StartTls => Box::new(tcp),
        };
        drop((snapshot, queued));
        let mut drain = self.env.drain.clone();
        let serve = serve_lookup(stream, &self.env.routes, &self.env.book);
        tokio::pin!(serve);
        tokio::select! {
            () = &mut serve => return,
            _ = drain.wait_for(|drain| *drain >= Drain::EndLogins) => {}
        }
        // An answer that is under way is sent; a connection that only waits is not waited for long.
        let _ = timeout(GOODBYE, serve).await;
    }

    async fn stream(&self, arrival: Arrival) {
        let Arrival {
            tcp,
            client,
            snapshot,
            accepted,
            permit,
            ..
        } = arrival;
        let Some(config) = &self.listener.stream else { return };
        let queued = permit.queue();
        let deadline = accepted + stream::HANDSHAKE;
        let channel = self.channel(InnerProtocol::Stream, tcp, client, &snapshot, deadline);
        let Some((stream, tls)) = channel.await else { return };
        drop((snapshot, queued));
        let (facts, _listed) = self.enter(Proto::Stream, tls, client, accepted);
        stream::serve(&self.env, config, stream, &facts).await;
    }

    /// What is known of a connection, and its place in the list of those that live.
    fn enter(
        &self,
        proto: Proto,
        tls: Option<TlsFacts>,
        client: Client,
        accepted: Instant,
    ) -> (Arc<ConnectionFacts>, ConnectionGuard) {
        let facts = Arc::new(ConnectionFacts {
            id: self.env.connection_ids.next(),
            listener: self.name.clone(),
            proto,
            client,
            tls,
            accepted,
            handle: Arc::new(ConnectionHandle::accepted(accepted, self.env.metrics.totals(proto))),
        });
        let guard = self.env.sessions.enter(Session::new(facts.clone()));
        (facts, guard)
    }

    /// Whether this client may talk to this listener at all.
    fn admits(&self, client: &Client) -> bool {
        let Some(networks) = &self.listener.allow else {
            return true;
        };
        let admitted = networks.iter().any(|network| network.contains(&client.addr.ip()));
        if !admitted {
            self.env.metrics.refused(&self.name, Refused::Network);
            log::info!("{}: {} is in none of the networks of allow", self.name, client.addr);
        }
        admitted
    }

    /// Measures a phase before the login.
    fn observe_phase(&self, phase: Phase, begun: Instant) {
        let proto = match self.listener.serve {
            Serve::Imap => Proto::Imap,
            Serve::Pop3 => Proto::Pop3,
            Serve::Web | Serve::AdminConsole | Serve::Sso => Proto::Http,
            Serve::Stream => Proto::Stream,
            Serve::Lookup => return,
        };
        self.env.metrics.phase(phase, proto, begun.elapsed());
    }

    /// The stream of a client of a mail or stream listener, and its TLS facts. `None`: the handshake failed.
    async fn channel(
        &self,
        inner: InnerProtocol,
        tcp: TcpStream,
        client: Client,
        snapshot: &Snapshot,
        deadline: Instant,
    ) -> Option<(BoxStream, Option<TlsFacts>)> {
        if self.listener.tls != ListenerTls::Implicit {
            return Some((Box::new(tcp), None));
        }
        let begun = Instant::now();
        let handshake = Box::pin(snapshot.acceptors.accept(inner, client.local.ip(), tcp));
        let stream = self.handshake(client, deadline, handshake).await?;
        self.observe_phase(Phase::Tls, begun);
        let facts = tls::facts(stream.ssl());
        Some((Box::new(stream), Some(facts)))
    }

    /// A handshake within the limits. `None`: it failed, and that has been logged. Boxed: a handshake is
    /// short, and its future large.
    async fn handshake<T>(
        &self,
        client: Client,
        deadline: Instant,
        handshake: Pin<Box<impl Future<Output = io::Result<T>>>>,
    ) -> Option<T> {
        let Some(counted) = self.env.limits.handshake(client.addr.ip()) else {
            self.env.metrics.refused(&self.name, Refused::Handshakes);
            return None;
        };
        let done = tokio::select! {
            done = timeout_at(deadline, handshake) => done.unwrap_or_else(|late| Err(late.into())),
            () = counted.evicted() => {
                self.env.metrics.refused(&self.name, Refused::Handshakes);
                return None;
            }
        };
        done.map_err(|error| self.handshake_failed(client, &error)).ok()
    }

    fn handshake_failed(&self, client: Client, error: &io::Error) {
        self.env.metrics.refused(&self.name, Refused::Tls);
        // Not worth a line: scanners, health checks and browsers close connections all day.
        let level = match has_gone(error) {
            true => log::Level::Debug,
            false => log::Level::Info,
        };
        log::log!(level, "{}: no TLS with {}: {error}", self.name, client.addr);
    }
}

/// What the metrics call the limit on an address that has refused a connection.
fn reason_of(limit: Limit) -> Refused {
    match limit {
        Limit::MailPerAddress => Refused::MailPerAddress,
        Limit::Connections | Limit::PerAddress | Limit::Handshakes => Refused::PerAddress,
    }
}

/// How the handshake of a web connection has ended.
enum WebHandshake {
    /// Requests may follow.
    Done(ClientTls<TcpStream>),
    /// The client speaks clear text, and was answered 400.
    ClearText,
    /// It was an authority that looks for the certificate of a challenge, and has seen it.
    Challenge,
}

async fn web_handshake(
    mut tcp: TcpStream,
    local: IpAddr,
    snapshot: &Snapshot,
    challenges: &Challenges,
) -> io::Result<WebHandshake> {
    let mut first = [0];
    let n = tcp.peek(&mut first).await?;
    if n == 1 && first[0].is_ascii_uppercase() {
        let text = "The plain HTTP request was sent to HTTPS port";
        tcp.write_all(answers::plain_answer("400 Bad Request", text).as_bytes())
            .await?;
        tcp.shutdown().await?;
        return Ok(WebHandshake::ClearText);
    }
    if let Some(context) = challenge::asked_for(&tcp, challenges).await? {
        challenge::answer(tcp, &context).await?;
        return Ok(WebHandshake::Challenge);
    }
    let accepted = snapshot.acceptors.accept(InnerProtocol::Web, local, tcp).await;
    accepted.map(WebHandshake::Done)
}

/// Whether the client has closed the connection during the handshake.
fn has_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(
        error.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
    )
}

/// An IPv4 client on a dual-stack listener is an IPv4 client.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Resolves when no request is under way any more, or they have taken too long. HTTP/2 does not say.
async fn last_requests(live: &ConnectionHandle, is_h2: bool) {
    let end = Instant::now() + LAST_REQUESTS;
    while (is_h2 || live.is_waited_for()) && Instant::now() < end {
        sleep(ACCEPT_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<A, B, C, D, F>(_: impl Fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    fn size_of_session<F>(_: impl Fn(&'static ActiveListener, Arrival) -> F) -> usize {
        size_of::<F>()
    }

    /// The bug: each mail session held room for all that a web connection or one with a PROXY header needs, 5.8 KiB.
    #[test]
    fn a_mail_session_holds_no_room_for_what_others_need() {
        let task = size_of_future(ActiveListener::serve);
        let session =
            size_of_session(|active, arrival| active.mail(Box::pin(active.begin_mail(Protocol::Imap, arrival))));
        println!("task {task}, session {session}");
        assert!(task + session < 1024, "{task} + {session}");
    }
}
