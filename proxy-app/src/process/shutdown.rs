//! How the process ends: its signals, and how open connections are ended.
//!
//! A node that is stopped has little time, which is stated. A node that was replaced by a new process has a day: it
//! only waits for its sessions to end by themselves.

use std::future::pending;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use mail_proxy::Drain;
use pingora::server::configuration::ServerConf;
use pingora::server::{ListenFds, ShutdownSignal, ShutdownSignalWatch};
use tokio::net::UnixStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::app::env::ProcessEnv;
use crate::listen::{Ending, GOODBYE};
use crate::node::systemd;
use crate::process::counts::ToldCounts;
use crate::process::upgrade::{self, SuccessorCommand, UpgradeSocket};
use crate::tls::ticket_keys::TicketKeys;

/// How long clients may go on to log in when the node is stopped: one that connected just before the listeners closed
/// gets in.
const LAST_LOGINS: Duration = Duration::from_secs(2);
/// How often to check whether connections are still open.
const LOOK: Duration = Duration::from_millis(50);
/// How long the routes may take to be written before another process takes over, which waits meanwhile, or before this
/// one ends. A million take about a second.
const LAST_WRITE: Duration = Duration::from_secs(2);
/// How long what the log writers still hold takes to go out.
const LAST_LINES: Duration = Duration::from_millis(100);

/// Where the listeners tell Pingora's server that the process ends.
#[derive(Clone)]
pub(crate) struct EndSignal(watch::Sender<Option<Ending>>);

impl Default for EndSignal {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

/// Signals are ours: Pingora only gets the result.
#[async_trait]
impl ShutdownSignalWatch for EndSignal {
    async fn recv(&self) -> ShutdownSignal {
        let mut ending = self.0.subscribe();
        // The sender is here.
        let _ = ending.wait_for(Option::is_some).await;
        ShutdownSignal::GracefulTerminate
    }
}

impl EndSignal {
    /// Tells Pingora.
    pub(crate) fn send(&self, ending: Ending) {
        self.0.send_replace(Some(ending));
    }

    /// Waits until a signal or a new process ends this one. `heir` becomes the connection to that process.
    pub(crate) async fn ended(
        &self,
        signals: &mut Signals,
        successor: Option<SuccessorCommand>,
        socket: Option<UpgradeSocket>,
        fds: ListenFds,
        env: &Arc<ProcessEnv>,
        heir: &mut Option<UnixStream>,
    ) -> Ending {
        let mut upgrade: Option<JoinHandle<anyhow::Result<UnixStream>>> = None;
        loop {
            tokio::select! {
                () = signals.end.next() => {
                    if let Some(socket) = socket {
                        socket.close();
                    }
                    return Ending::Stop;
                }
                () = signals.now.next() => at_once().await,
                () = signals.upgrade.next() => start(successor.as_ref()),
                () = signals.quit.next() => {
                    log::warn!("SIGQUIT alone does nothing: a new process that is started with -u asks by itself");
                }
                asker = next_request(socket.as_ref(), &env.tickets), if upgrade.is_none() => {
                    log::info!("a new process asks for the listening sockets");
                    let path = socket.as_ref().map(UpgradeSocket::upgrade_sock).unwrap_or_default();
                    let (env, fds) = (env.clone(), fds.clone());
                    upgrade = Some(tokio::spawn(async move {
                        env.app.leave_moves().await;
                        env.app.keep_state().await;
                        env.app.leave_files(true);
                        write_routes(&env).await;
                        write_throttle(&env).await;
                        upgrade::hand_over(asker, fds, path).await
                    }));
                }
                result = finished(&mut upgrade) => {
                    upgrade = None;
                    match result {
                        Ok(connection) => {
                            *heir = Some(connection);
                            return Ending::Replaced;
                        }
                        Err(error) => {
                            log::error!("the upgrade failed, this process serves on: {error:#}");
                            env.app.leave_files(false);
                            env.app.resume_moves();
                            env.kept_routes.iter().for_each(|kept| kept.write_on());
                        }
                    }
                }
            }
        }
    }
}

/// Writes the routes for the next process, and nothing after that; before them what mailbox servers can.
pub(crate) async fn write_routes(env: &ProcessEnv) {
    if timeout(LAST_WRITE, env.app.keep_state()).await.is_err() {
        log::warn!("the state of the node is not written within {LAST_WRITE:?}; the next process may miss the latest");
    }
    let Some(kept) = &env.kept_routes else {
        return;
    };
    if timeout(LAST_WRITE, kept.write_last()).await.is_err() {
        log::warn!("the routes are not written within {LAST_WRITE:?}; the next process may miss the latest");
    }
}

/// Writes what is known of failed logins for the next process.
async fn write_throttle(env: &ProcessEnv) {
    if timeout(LAST_WRITE, env.app.keep_throttle_now()).await.is_err() {
        log::warn!(
            "what is known of failed logins is not written within {LAST_WRITE:?}; the next process may miss the latest"
        );
    }
}

/// Opens the place where a new process asks. Without it there is no upgrade, which is no reason not to serve.
pub(crate) fn upgrade_socket(conf: &ServerConf) -> Option<UpgradeSocket> {
    UpgradeSocket::open(Path::new(&conf.upgrade_sock))
        .map_err(|error| log::error!("{}.ask: {error}; no upgrade is possible", conf.upgrade_sock))
        .ok()
}

async fn next_request(socket: Option<&UpgradeSocket>, tickets: &TicketKeys) -> UnixStream {
    match socket {
        Some(socket) => socket.next_request(tickets).await,
        None => pending().await,
    }
}

async fn finished(upgrade: &mut Option<JoinHandle<anyhow::Result<UnixStream>>>) -> anyhow::Result<UnixStream> {
    match upgrade {
        Some(task) => task.await?,
        None => pending().await,
    }
}

/// SIGUSR2: starts the program again; it will ask for the sockets. Its end, if it fails, is waited for, so that no
/// dead process is left.
fn start(successor: Option<&SuccessorCommand>) {
    let started = successor.map(SuccessorCommand::start);
    match started {
        Some(Ok(mut child)) => {
            log::info!("started process {} to take over", child.id());
            tokio::task::spawn_blocking(move || match child.wait() {
                Ok(status) if status.success() => {}
                Ok(status) => log::error!("the process that was to take over has ended: {status}"),
                Err(error) => log::error!("the process that was to take over: {error}"),
            });
        }
        Some(Err(error)) => log::error!("no upgrade: {error:#}"),
        None => log::error!("no upgrade: the file of this program is not known"),
    }
}

async fn at_once() {
    log::warn!("ending at once, as told");
    tokio::time::sleep(LAST_LINES).await;
    std::process::exit(0);
}

/// One kind of signal.
pub(crate) struct SignalStream(Option<Signal>);

impl SignalStream {
    pub(crate) fn new(kind: SignalKind) -> Self {
        Self(
            signal(kind)
                .map_err(|error| log::error!("signal {}: {error}", kind.as_raw_value()))
                .ok(),
        )
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        match &mut self.0 {
            Some(signal) => {
                if signal.recv().await.is_none() {
                    pending::<()>().await;
                }
            }
            None => pending().await,
        }
    }
}

/// The signals that this process knows. They are caught from the moment on at which this is made.
pub(crate) struct Signals {
    /// SIGTERM
    end: SignalStream,
    /// SIGINT
    now: SignalStream,
    /// SIGUSR2
    upgrade: SignalStream,
    /// SIGQUIT
    quit: SignalStream,
}

impl Signals {
    pub(crate) fn new() -> Self {
        Self {
            end: SignalStream::new(SignalKind::terminate()),
            now: SignalStream::new(SignalKind::interrupt()),
            upgrade: SignalStream::new(SignalKind::user_defined2()),
            quit: SignalStream::new(SignalKind::quit()),
        }
    }
}

/// Ends open connections, and then the process. Pingora alone would wait its whole grace period without any, and then
/// cut all off in the middle of a response.
pub(crate) async fn drain(env: &ProcessEnv, ending: Ending, mut signals: Signals, told: Option<ToldCounts>) {
    if ending == Ending::Replaced {
        log::info!(
            "a new process has taken over; {} connections go on here",
            env.open.count()
        );
        tokio::select! {
            () = wait_long(env) => return leave(env, told).await,
            () = signals.end.next() => {}
            () = signals.now.next() => at_once().await,
        }
    }
    systemd_stops(ending, env);
    tokio::select! {
        () = wait_short(env) => {}
        () = signals.end.next() => at_once().await,
        () = signals.now.next() => at_once().await,
    }
    leave(env, told).await;
}

/// After an upgrade the service is the new process, and this one notifies systemd no more.
fn systemd_stops(ending: Ending, env: &ProcessEnv) {
    log::info!("ending; {} connections are open", env.open.count());
    if ending == Ending::Stop {
        systemd::stopping("draining");
    }
}

/// Sessions end by themselves; after `drain_max` they are ended, each at a moment of its own.
async fn wait_long(env: &ProcessEnv) {
    let ends = env.ends.load();
    idle(env, ends.drain_max).await;
    env.drain.send_replace(Drain::SpreadSessions(ends.drain_spread));
    idle(env, ends.drain_spread + GOODBYE).await;
}

/// All connections end within `shutdown_timeout`.
async fn wait_short(env: &ProcessEnv) {
    let limit = env.ends.load().shutdown_timeout;
    let end = Instant::now() + limit;
    let goodbye = GOODBYE.min(limit / 4);
    idle(env, LAST_LOGINS.min(limit / 4)).await;
    env.drain.send_if_modified(|drain| {
        let further = *drain < Drain::EndLogins;
        if further {
            *drain = Drain::EndLogins;
        }
        further
    });
    idle(
        env,
        end.saturating_duration_since(Instant::now()).saturating_sub(goodbye),
    )
    .await;
    env.drain.send_replace(Drain::EndSessions);
    idle(env, goodbye).await;
}

/// Waits until no connection is open, and at most this long.
async fn idle(env: &ProcessEnv, limit: Duration) {
    let end = Instant::now() + limit;
    while env.open.count() > 0 && Instant::now() < end {
        tokio::time::sleep(LOOK).await;
    }
}

async fn leave(env: &ProcessEnv, told: Option<ToldCounts>) {
    if let Some(told) = told {
        told.finish().await;
    }
    tokio::time::sleep(LAST_LINES).await;
    log::info!("ended; {} connections were left", env.open.count());
    std::process::exit(0);
}
