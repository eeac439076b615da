//! The admin API of a running node: JSON over HTTP on a Unix socket, and where the node file says so on a TCP address.
//!
//! Here are its sockets and its connections, with their limits. Its paths are in `admin/api.rs`, access control in
//! `admin/caller.rs`; the verbs of the command line (`cli/node.rs`) are clients of it and of nothing else.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use pingora::server::{ListenFds, ShutdownWatch};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use crate::app::env::AdminEnv;
use crate::config::AdminConfig;
use crate::listen::sockets;
use crate::upstream::connect;

pub(crate) mod act;
pub mod api;
pub(crate) mod api_error;
pub(crate) mod caller;
pub(crate) mod certificate_orders;
pub(crate) mod console;
pub(crate) mod domains;
pub(crate) mod everywhere;
pub(crate) mod health;
pub(crate) mod holds;
pub(crate) mod live_probes;
pub(crate) mod move_steps;
pub(crate) mod moves;
pub(crate) mod nodes;
mod orders;
pub(crate) mod preview;
pub(crate) mod route;
pub(crate) mod scrape;
pub(crate) mod sessions;
pub(crate) mod slots;
mod standing;
pub(crate) mod taken;
pub(crate) mod throttle;
pub(crate) mod turns;

use caller::Caller;
use slots::{ConnectionSlots, Reach};

/// Connections at one time on the socket; a console and a scraper need a handful.
const MAX_CONNECTIONS: usize = 64;
/// How long a request head may take, and how long a connection may wait for the next one.
const HEAD: Duration = Duration::from_secs(10);
/// The same for connections without a slot, which may ask for health only.
const HEALTH_ONLY_HEAD: Duration = Duration::from_secs(3);
/// Most of a request head.
const HEAD_MAX: usize = 16 * 1024;
/// How long a client may take nothing of an answer.
const STALLED: Duration = Duration::from_secs(30);
/// Pause after a failed accept, which mostly means that the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Owner and group may use the socket: the permissions are its access control.
const SOCKET_MODE: u32 = 0o660;

/// The sockets of the API, opened and not yet served.
#[derive(Default)]
pub(crate) struct Sockets {
    unix: Option<(UnixListener, SocketFile)>,
    http: Option<TcpListener>,
}

/// A socket file, and which one it was when we made it.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Sockets {
    /// Opens what the node file names. With `upgrade` the path is taken over from the previous process.
    ///
    /// # Errors
    /// The address or the path cannot be bound, or another process answers at the path.
    pub(crate) fn open(config: &AdminConfig, upgrade: TakeOver, fds: &ListenFds) -> anyhow::Result<Self> {
        use anyhow::Context;
        let unix = config.socket.as_deref().map(|path| {
            let socket = unix(path, upgrade);
            socket.with_context(|| format!("cannot listen on admin.socket {}", path.display()))
        });
        let http = config.http.map(|address| {
            let socket = sockets::listen(address, true, fds);
            socket.with_context(|| format!("cannot listen on admin.http {address}"))
        });
        Ok(Self {
            unix: unix.transpose()?,
            http: http.transpose()?,
        })
    }

    /// Answers until the process ends. After an upgrade the new process answers on TCP, and only there.
    pub(crate) async fn serve(self, env: Arc<AdminEnv>, shutdown: ShutdownWatch) {
        let router = api::router(env);
        let file = self.unix.as_ref().map(|(_, file)| (file.path.clone(), file.inode));
        let unix = async {
            if let Some((socket, _place)) = &self.unix {
                serve_unix(socket, &router).await;
            }
        };
        let tcp = async {
            let Some(socket) = self.http else { return };
            tokio::select! {
                () = serve_tcp(&socket, &router) => {}
                () = replaced(shutdown, file) => {}
            }
        };
        tokio::join!(unix, tcp);
    }
}

/// Whether this process takes over from another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TakeOver {
    /// It does.
    Yes,
    /// It starts on its own.
    No,
}

/// Resolves when the node shuts down because another process has taken its place.
async fn replaced(mut shutdown: ShutdownWatch, file: Option<(PathBuf, u64)>) {
    let _ = shutdown.wait_for(|down| *down).await;
    // Without a socket file this is not known.
    let replaced = file.is_none_or(|(path, inode)| inode_of(&path).is_some_and(|now| now != inode));
    if !replaced {
        std::future::pending::<()>().await;
    }
}

/// The socket under its name. It is made beside it and moved there: no client finds one that does not listen yet, and
/// an old one is replaced in one step.
fn unix(path: &Path, upgrade: TakeOver) -> io::Result<(UnixListener, SocketFile)> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "there is a file that is no socket",
            ));
        }
        Ok(_) if upgrade == TakeOver::No && answers(path) => {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another process answers there",
            ));
        }
        Ok(_) => {}
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let new = path.with_file_name(name);
    let _ = std::fs::remove_file(&new);
    let listener = UnixListener::bind(&new)?;
    let ready = std::fs::set_permissions(&new, std::fs::Permissions::from_mode(SOCKET_MODE))
        .and_then(|()| std::fs::metadata(&new))
        .and_then(|made| std::fs::rename(&new, path).map(|()| made.ino()));
    match ready {
        Ok(inode) => {
            let path = path.to_owned();
            Ok((listener, SocketFile { path, inode }))
        }
        Err(error) => {
            let _ = std::fs::remove_file(&new);
            Err(error)
        }
    }
}

fn answers(path: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(path).is_ok()
}

/// Which file it is, if there is one.
pub(crate) fn inode_of(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|found| found.ino())
}

impl Drop for SocketFile {
    /// The file goes with the process that made it, if it is still its own.
    fn drop(&mut self) {
        if inode_of(&self.path) == Some(self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

async fn serve_unix(socket: &UnixListener, router: &Router) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = room.clone().acquire_owned().await else {
            return;
        };
        match socket.accept().await {
            Ok((stream, _)) => {
                let uid = stream.peer_cred().map(|peer| peer.uid()).ok();
                let connection = connection(stream, Caller::Socket { uid }, Reach::All, router);
                tokio::spawn(async move {
                    connection.await;
                    drop(slot);
                });
            }
            Err(error) => pause("admin.socket", &error).await,
        }
    }
}

async fn serve_tcp(socket: &TcpListener, router: &Router) {
    let mut slots = ConnectionSlots::default();
    loop {
        match socket.accept().await {
            Ok((stream, peer)) => {
                let tuned = SockRef::from(&stream).set_tcp_user_timeout(Some(STALLED));
                if tuned.and_then(|()| connect::tune(&stream)).is_err() {
                    continue;
                }
                let (caller, address) = (Caller::Http { address: peer }, peer.ip());
                let Some(slot) = slots.take(address) else {
                    let task = tokio::spawn(connection(stream, caller, Reach::Health, router));
                    slots.keep_for_health(address, task.abort_handle());
                    continue;
                };
                let connection = connection(stream, caller, Reach::All, router);
                tokio::spawn(async move {
                    connection.await;
                    drop(slot);
                });
            }
            Err(error) => pause("admin.http", &error).await,
        }
    }
}

async fn pause(name: &str, error: &io::Error) {
    log::warn!("accept on {name}: {error}");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

/// Serves one connection to its end. Its errors are only logged for debugging.
fn connection<S>(stream: S, caller: Caller, reach: Reach, router: &Router) -> impl Future<Output = ()> + Send + 'static
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let routes = TowerToHyperService::new(router.clone());
    // Not as layers of the router: it would be built anew for each connection, with all that its routes hold.
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        let known = request.extensions_mut();
        known.insert(caller.clone());
        known.insert(reach);
        routes.call(request)
    });
    let head = match reach {
        Reach::All => HEAD,
        Reach::Health => HEALTH_ONLY_HEAD,
    };
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .keep_alive(reach == Reach::All)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(stream), service);
    async move {
        if let Err(error) = served.await {
            log::debug!("admin connection: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_file_is_taken_from_the_dead_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let (first, file) = unix(&path, TakeOver::No).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let error = unix(&path, TakeOver::No).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        // A process that was killed leaves its file.
        std::mem::forget(file);
        drop(first);
        let (second, file) = unix(&path, TakeOver::No).unwrap();
        // An upgrade takes it from the living, whose end then leaves it alone.
        let (_third, _place) = unix(&path, TakeOver::Yes).unwrap();
        drop((second, file));
        assert!(answers(&path));
        std::fs::write(dir.path().join("file"), "x").unwrap();
        let error = unix(&dir.path().join("file"), TakeOver::Yes).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert!(unix(&dir.path().join("none/admin.sock"), TakeOver::No).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
