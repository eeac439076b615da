//! The Pingora service that owns all listeners: opens them, follows signals, and ends with the process.
//!
//! All listening sockets belong to one service, so they take part in its upgrade.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use mail_directory::Losses;
use pingora::server::configuration::ServerConf;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use tokio::net::TcpListener;
use tokio::signal::unix::SignalKind;
use tokio::task::JoinHandle;

use crate::admin::everywhere::ForOthers;
use crate::admin::{self, TakeOver};
use crate::app::App;
use crate::app::env::{AdminEnv, ProcessEnv};
use crate::app::plan::Plan;
use crate::config::Listener;
use crate::listen::{Backlog, Ending, ListenerSet, bind, close_others, sockets};
use crate::node::{diagnostics, systemd};
use crate::process::counts::{self, ToldCounts};
use crate::process::daemon::{self, WaitingCommand};
use crate::process::shutdown::{self, EndSignal, SignalStream, Signals};
use crate::process::upgrade::{SuccessorCommand, UpgradeRequest};
use crate::web::engine::engine;

/// The Pingora service that owns all listeners.
pub(crate) struct ListenerService {
    plan: Option<Plan>,
    conf: Arc<ServerConf>,
    keys: Vec<String>,
    end: EndSignal,
    successor: Option<SuccessorCommand>,
    upgrade_request: Option<UpgradeRequest>,
    waiting: Option<WaitingCommand>,
}

/// The set of listeners, the sockets that it does not serve yet, and those of the admin API.
pub(crate) type OpenedListeners = (Arc<App>, ListenerSet, Vec<(Listener, TcpListener)>, admin::Sockets);

impl ListenerService {
    /// The listeners of a checked configuration. `successor` starts this program once more; `upgrade_request` is there
    /// if another process is to hand over to this one.
    pub(crate) fn new(
        plan: Plan,
        conf: Arc<ServerConf>,
        end: EndSignal,
        successor: Option<SuccessorCommand>,
        upgrade_request: Option<UpgradeRequest>,
    ) -> Self {
        let keys = plan
            .listeners
            .iter()
            .map(|listener| listener.address)
            .chain(plan.config.admin.http)
            .map(sockets::key)
            .collect();
        Self {
            plan: Some(plan),
            keys,
            end,
            successor,
            upgrade_request,
            waiting: WaitingCommand::new(&conf),
            conf,
        }
    }

    /// Opens everything.
    ///
    /// # Errors
    /// What cannot be opened.
    pub(crate) fn open(
        &mut self,
        plan: Plan,
        fds: ListenFds,
        shutdown: &ShutdownWatch,
    ) -> anyhow::Result<OpenedListeners> {
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
        let (app, admin) = match self.upgrade_request {
            None => {
                let admin = admin::Sockets::open(&config, TakeOver::No, &fds)?;
                (App::start(plan)?, admin)
            }
            // Those of the previous process are taken when everything else is ready.
            Some(_) => (App::start(plan)?, admin::Sockets::default()),
        };
        let env = app.listen();
        let web = engine(&env.web, &self.conf);
        let listeners = ListenerSet {
            env,
            web,
            shutdown: shutdown.clone(),
            fds,
            open: Vec::new(),
            watches_groups: false,
        };
        Ok((app, listeners, sockets, admin))
    }
}

/// Takes over from the process that was asked.
pub(crate) fn take_over(
    upgrade_request: UpgradeRequest,
    env: Arc<AdminEnv>,
    listeners: &ListenerSet,
) -> anyhow::Result<()> {
    upgrade_request.is_awaited()?;
    env.app.take_holds_again();
    env.app.resume_moves();
    let (config, metrics) = (env.config.load().admin.clone(), env.metrics.clone());
    metrics.await_previous();
    // Last, when nothing else can go wrong: the socket file is taken from the previous process.
    match admin::Sockets::open(&config, TakeOver::Yes, &listeners.fds) {
        Ok(admin) => drop(tokio::spawn(admin.serve(env, listeners.shutdown.clone()))),
        Err(error) => log::error!("{error:#}; the other listeners serve"),
    }
    let previous = upgrade_request.serves()?;
    tokio::spawn(counts::take(previous, metrics));
    Ok(())
}

/// Ends a process that cannot serve.
fn give_up(error: &anyhow::Error) -> ! {
    log::error!("{error:#}");
    eprintln!("portico: {error:#}");
    std::process::exit(1)
}

#[async_trait]
impl Service for ListenerService {
    async fn start_service(&mut self, fds: Option<ListenFds>, mut shutdown: ShutdownWatch, _listeners_per_fd: usize) {
        let (Some(plan), Some(fds)) = (self.plan.take(), fds) else {
            return;
        };
        // Before the process can be seen: a signal without a handler ends it.
        let (mut signals, hangups) = (Signals::new(), SignalStream::new(SignalKind::hangup()));
        let rotations = SignalStream::new(SignalKind::user_defined1());
        let (app, mut listeners, sockets, admin) = match self.open(plan, fds, &shutdown) {
            Ok(opened) => opened,
            Err(error) => give_up(&error),
        };
        let env = Arc::new(app.process());
        load_routes(&env).await;
        if let Some(request) = &self.upgrade_request {
            take_throttle(&env).await;
            request.tickets.iter().for_each(|told| app.take_tickets(told));
        }
        // Not one of the tasks: it answers until the process ends.
        tokio::spawn(admin.serve(app.admin(), shutdown.clone()));
        for (listener, socket) in sockets {
            listeners.serve(listener, socket).await;
        }
        let mut tasks = care_for(&app, hangups);
        // Not one of the tasks: an old process writes its logs as long as it has sessions.
        tokio::spawn(reopen_logs(app.clone(), rotations));
        let following = tokio::spawn(app.clone().follow_directory());
        follow_nodes(&env, app.admin());
        if let Some(upgrade_request) = self.upgrade_request.take() {
            if let Err(error) = take_over(upgrade_request, app.admin(), &listeners) {
                give_up(&error);
            }
            daemon::take_pid_file(Path::new(&self.conf.pid_file));
        } else {
            app.resume_moves();
        }
        tasks.extend(follow_routes(&env));
        tasks.push(tokio::spawn(app.clone().follow_certificates()));
        tasks.push(tokio::spawn(app.clone().follow_tickets()));
        systemd::serves("serving");
        if let Some(waiting) = self.waiting {
            tokio::spawn(waiting.notify());
        }
        let socket = shutdown::upgrade_socket(&self.conf);
        let (successor, fds, mut heir) = (self.successor.take(), listeners.fds.clone(), None);
        let ended = self.end.ended(&mut signals, successor, socket, fds, &env, &mut heir);
        let (ending, mut listeners) = listeners.run(ended).await;
        if ending == Ending::Replaced {
            app.is_replaced();
        }
        let told = heir.map(|heir| ToldCounts::begin(heir, app.admin()));
        listeners
            .close(match ending {
                Ending::Stop => Backlog::Served,
                Ending::Replaced => Backlog::Left,
            })
            .await;
        if ending == Ending::Stop {
            shutdown::write_routes(&env).await;
        }
        self.end.send(ending);
        // The sender lives in Pingora's server; if it is gone, so is the process.
        let _ = shutdown.wait_for(|down| *down).await;
        tasks.iter().for_each(JoinHandle::abort);
        app.order_no_more().await;
        // Sessions that an upgrade has left here follow the directory as long as they live.
        if ending == Ending::Stop {
            following.abort();
            // A new process has begun to keep it itself.
            app.keep_throttle_now().await;
        }
        shutdown::drain(&env, ending, signals, told).await;
        if let Some(nodes) = &env.nodes {
            nodes.leave().await;
        }
    }

    fn name(&self) -> &str {
        "listeners"
    }

    fn listen_addresses(&self) -> Option<Vec<String>> {
        Some(self.keys.clone())
    }
}

/// What the previous process knew serves from the first login on.
async fn load_routes(env: &ProcessEnv) {
    if let Some(kept) = &env.kept_routes {
        kept.load().await;
    }
}

/// The guesses at the previous process count at this one.
async fn take_throttle(env: &ProcessEnv) {
    let written = env.app.take_throttle_again().await;
    env.nodes.iter().for_each(|nodes| nodes.remembers(written));
}

/// Keeps routes for the next process. Not before this one has taken over: the previous one would still write the file
/// if this one failed.
fn follow_routes(env: &ProcessEnv) -> Option<JoinHandle<()>> {
    let kept = env.kept_routes.clone()?;
    Some(tokio::spawn(async move { kept.follow().await }))
}

/// Not one of the tasks: the others are to know of this process as long as it has sessions.
fn follow_nodes(env: &ProcessEnv, local: Arc<AdminEnv>) {
    if let Some(nodes) = env.nodes.clone() {
        let router = admin::api::router(local.clone());
        tokio::spawn(nodes.follow(Arc::new(ForOthers::new(local, router))));
    }
}

/// What goes on as long as the process serves.
fn care_for(app: &Arc<App>, hangups: SignalStream) -> Vec<JoinHandle<()>> {
    vec![
        tokio::spawn(reload_on_hangup(app.clone(), hangups)),
        tokio::spawn(app.clone().keep_throttle()),
        tokio::spawn(systemd::say_alive()),
        tokio::spawn(diagnostics::report_left_out()),
    ]
}

/// SIGHUP reads the node file, the directory and the certificates again.
async fn reload_on_hangup(app: Arc<App>, mut hangups: SignalStream) {
    loop {
        hangups.next().await;
        app.reload(Losses::Most).await;
    }
}

/// SIGUSR1 opens the log files again, and nothing else: what nginx's users send after a rotation.
pub(crate) async fn reopen_logs(app: Arc<App>, mut rotations: SignalStream) {
    loop {
        rotations.next().await;
        for problem in app.reopen().await {
            log::error!("{problem}");
        }
    }
}
