//! Listening sockets, taken over from the process that this one replaces or bound anew.
//!
//! This is the one place of the house that needs `unsafe`: Pingora hands listening sockets from the old process
//! to the new one as numbers, and Rust cannot know that nobody else owns a number.
#![allow(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd};

use pingora::server::ListenFds;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// Connections that the kernel keeps for us while we are busy: a reconnect storm after a network fault must not
/// be refused. The kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// The listening socket for `address`, under the name by which the next process will ask for it.
///
/// # Errors
/// The address cannot be bound (in use, not ours, a port below 1024 without the right to it).
pub fn listen(address: SocketAddr, only_v6: bool, fds: Option<&ListenFds>) -> io::Result<TcpListener> {
    let key = key(address);
    if let Some(fds) = fds
        && let Some(&fd) = fds.lock().get(&key)
    {
        // SAFETY: Pingora received this descriptor from the old process for this key, keeps it as a plain number
        // and never closes it; each key belongs to one listener of this process, which takes it once.
        let listener = unsafe { std::net::TcpListener::from_raw_fd(fd) };
        listener.set_nonblocking(true)?;
        return TcpListener::from_std(listener);
    }
    let listener = bind(address, only_v6)?;
    if let Some(fds) = fds {
        fds.lock().add(key, listener.as_raw_fd());
    }
    Ok(listener)
}

/// The name of a listening socket in the hand-over. Pingora joins the names with blanks, so there is none in it.
pub fn key(address: SocketAddr) -> String {
    address.to_string()
}

fn bind(address: SocketAddr, only_v6: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}
