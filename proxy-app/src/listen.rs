//! The listeners that are open: opened and closed as the list of listeners changes, each with its accept loop.
//!
//! The accept loop only accepts. PROXY header, TLS handshake and login happen in the connection's own task
//! (`listen/connection.rs`), under one deadline.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mail_directory::yaml::{Problems, problem};
use pingora::server::{ListenFds, ShutdownWatch};
use pingora_proxy::HttpProxy;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::app::env::ListenEnv;
use crate::config::{Listener, Serve};
use crate::listen::connection::ActiveListener;
use crate::web::phases::Web;

mod challenge;
pub mod client_hello;
mod connection;
pub mod proxy_protocol;
pub(crate) mod sockets;
pub(crate) mod stream;

/// How often a listener that could not be opened is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// A listener and its socket, or why there is none.
pub(crate) type Bound = (Listener, io::Result<TcpListener>);

/// The sockets of these listeners.
pub(crate) fn bind(listeners: &[Listener], fds: &ListenFds) -> Vec<Bound> {
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
pub(crate) fn close_others(keep: impl IntoIterator<Item = SocketAddr>, fds: &ListenFds) {
    for address in sockets::close_others(keep, fds) {
        log::info!(target: "proxy_app::list", "not listening on {address} any more");
    }
}

/// The listeners that are open.
pub(crate) struct ListenerSet {
    pub(crate) env: Arc<ListenEnv>,
    pub(crate) web: Arc<HttpProxy<Web>>,
    pub(crate) shutdown: ShutdownWatch,
    pub(crate) fds: ListenFds,
    pub(crate) open: Vec<ListenerTask>,
    /// Whether the groups of web servers are being watched.
    pub(crate) watches_groups: bool,
}

/// An accept loop. It ends when `stop` is dropped.
pub(crate) struct ListenerTask {
    listener: Listener,
    only_v6: bool,
    stop: oneshot::Sender<Backlog>,
    task: JoinHandle<()>,
}

/// What to do with the connections in the kernel's queue that are not accepted yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backlog {
    /// Serve them: after this the socket is gone.
    Served,
    /// Leave them in the queue: another accept loop or process takes them.
    Left,
}

impl ListenerSet {
    pub(crate) async fn serve(&mut self, listener: Listener, socket: TcpListener) {
        self.watch_groups(listener.serve).await;
        log::info!(
            target: "proxy_app::list",
            "listening on {} ({:?}, TLS {:?})",
            listener.address,
            listener.serve,
            listener.tls
        );
        let only_v6 = shares_port(&listener, &self.env.listeners.current().listeners);
        let active = Arc::new(ActiveListener {
            name: listener.address.to_string().into(),
            listener: listener.clone(),
            env: self.env.clone(),
            web: self.web.clone(),
            shutdown: self.shutdown.clone(),
        });
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(accept(active, socket, stopped));
        self.open.push(ListenerTask {
            listener,
            only_v6,
            stop,
            task,
        });
    }

    /// Web servers are watched from the first listener on that needs them; they are checked once before it opens.
    async fn watch_groups(&mut self, serve: Serve) {
        if self.watches_groups || !matches!(serve, Serve::Web | Serve::AdminConsole) {
            return;
        }
        self.watches_groups = true;
        self.env.groups.prepare().await;
        tokio::spawn(self.env.groups.clone().watch(self.shutdown.clone()));
    }

    /// Opens and closes listeners until they are the wanted ones. The others are not touched. Returns what cannot be
    /// opened.
    async fn follow(&mut self, wanted: &[Listener]) -> Problems {
        let stays = |open: &ListenerTask, wanted: &[Listener]| {
            wanted.contains(&open.listener) && open.only_v6 == shares_port(&open.listener, wanted)
        };
        let (stay, go): (Vec<_>, Vec<_>) = std::mem::take(&mut self.open)
            .into_iter()
            .partition(|open| stays(open, wanted));
        self.open = stay;
        // A listener that only changes keeps its socket, and with it the clients in its queue.
        let keeps_socket = |gone: &ListenerTask| {
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
            .chain(self.env.admin_http)
            .collect();
        for task in go {
            let backlog = if keeps_socket(&task) {
                Backlog::Left
            } else {
                Backlog::Served
            };
            let _ = task.stop.send(backlog);
            let _ = task.task.await;
        }
        close_others(kept, &self.fds);
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
    pub(crate) async fn run(mut self, ended: impl Future<Output = Ending>) -> (Ending, Self) {
        let mut lists = self.env.listeners.subscribe();
        tokio::pin!(ended);
        let mut failing = Problems::new();
        loop {
            let list = tokio::select! {
                ending = &mut ended => return (ending, self),
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
            self.env.listeners.opened(list.number, problems);
        }
    }

    /// Accepts no more.
    pub(crate) async fn close(&mut self, backlog: Backlog) {
        let mut tasks = Vec::new();
        for task in std::mem::take(&mut self.open) {
            let _ = task.stop.send(backlog);
            tasks.push(task.task);
        }
        for task in tasks {
            let _ = task.await;
        }
        close_others([], &self.fds);
    }
}

async fn accept(active: Arc<ActiveListener>, socket: TcpListener, mut stop: oneshot::Receiver<Backlog>) {
    let backlog = loop {
        tokio::select! {
            accepted = socket.accept() => active.take(accepted).await,
            backlog = &mut stop => break backlog.unwrap_or(Backlog::Left),
        }
    };
    if backlog == Backlog::Served {
        // A zero timeout polls once.
        while let Ok(Ok(accepted)) = timeout(Duration::ZERO, socket.accept()).await {
            active.take(Ok(accepted)).await;
        }
    }
}

/// How long it takes to end all connections with a last response.
pub(crate) const GOODBYE: Duration = Duration::from_secs(3);

/// Why a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It is stopped.
    Stop,
    /// A new process has taken over.
    Replaced,
}
