//! Listening sockets, taken over from the process that this one replaces, from systemd, or bound here.
//!
//! This file needs `unsafe`: listening sockets come from the old process and from systemd as numbers,
//! and Rust cannot know that a number has no other owner.
//!
//! The table of Pingora's server holds a descriptor of its own for each of them: it is what the next process is
//! given, and it keeps the kernel's queue while a listener is changed.
#![allow(unsafe_code)]

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, RawFd};

use pingora::server::ListenFds;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use crate::upstream::connect;

/// Connections that the kernel keeps for us while we are busy: a reconnect storm after a network fault must not
/// be refused. The kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// The listening socket for `address`, under the name by which the next process will ask for it.
///
/// # Errors
/// The address cannot be bound (in use, not ours, a port below 1024 without the right to it).
pub(crate) fn listen(address: SocketAddr, only_v6: bool, fds: &ListenFds) -> io::Result<TcpListener> {
    let key = key(address);
    let mut table = fds.lock();
    let listener = match table.get(&key) {
        Some(&fd) => {
            // SAFETY: the table owns this descriptor and closes it only together with its entry, and while the
            // table is locked the entry stays.
            let held = unsafe { BorrowedFd::borrow_raw(fd) };
            std::net::TcpListener::from(held.try_clone_to_owned()?)
        }
        None => {
            let listener = bind(address, only_v6)?;
            table.add(key, listener.try_clone()?.into_raw_fd());
            listener
        }
    };
    listener.set_nonblocking(true)?;
    connect::tune(&listener)?;
    TcpListener::from_std(listener)
}

/// Closes what the table holds for other addresses than these, so that no client waits in a queue that is not served.
/// Returns their addresses.
pub(crate) fn close_others(keep: impl IntoIterator<Item = SocketAddr>, fds: &ListenFds) -> Vec<String> {
    let keep: HashSet<String> = keep.into_iter().map(key).collect();
    fds.lock().close_unclaimed(&keep)
}

/// Puts the sockets that systemd has opened for us into the table, under their addresses. Returns what is wrong
/// with those that cannot be used.
pub(crate) fn take_activated(passed: impl Iterator<Item = RawFd>, fds: &ListenFds) -> Vec<String> {
    let mut wrong = Vec::new();
    for fd in passed {
        // SAFETY: systemd opened this descriptor for this process, as LISTEN_PID says, and it is taken once, here.
        let socket = unsafe { Socket::from_raw_fd(fd) };
        let address = socket.local_addr().ok().and_then(|address| address.as_socket());
        match address.filter(|_| socket.is_listener().unwrap_or(false)) {
            Some(address) => fds.lock().add(key(address), socket.into_raw_fd()),
            None => wrong.push(format!("descriptor {fd} is no listening TCP socket")),
        }
    }
    wrong
}

/// The name of a listening socket in the hand-over. Pingora joins the names with blanks, so there is none in it.
pub(crate) fn key(address: SocketAddr) -> String {
    address.to_string()
}

fn bind(address: SocketAddr, only_v6: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pingora::server::Fds;
    use socket2::SockRef;
    use tokio::net::TcpStream;

    use super::*;

    /// The kernel hands down what is set at the listening socket, also at one of an earlier process.
    #[tokio::test]
    async fn accepted_connections_are_tuned() {
        let fds: ListenFds = Arc::new(parking_lot::Mutex::new(Fds::new()));
        let earlier = bind("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let address = earlier.local_addr().unwrap();
        fds.lock().add(key(address), earlier.into_raw_fd());
        let listener = listen(address, false, &fds).unwrap();
        let _client = TcpStream::connect(address).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let accepted = SockRef::from(&accepted);
        assert!(accepted.tcp_nodelay().unwrap() && accepted.keepalive().unwrap());
        assert!(accepted.tcp_keepalive_time().unwrap() < std::time::Duration::from_secs(7200));
    }
}
