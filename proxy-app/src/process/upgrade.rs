//! One process takes over from another: the new one asks, gets the listening sockets, and confirms that it serves.
//!
//! The sockets themselves go by Pingora's way (`upgrade_sock`). Around it stands a second socket, `upgrade_sock` with
//! `.ask` behind it, at which the running process always listens. The new process connects to it, and as long as
//! that connection lives the old one knows that the new one does. Only when the new one has confirmed that it serves
//! does the old one stop accepting: whatever fails before, the old one serves on. Before it asks to take over, the new
//! one asks for the keys of TLS session tickets, which stand in no file.

use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use mail_directory::Secret;
use pingora::server::ListenFds;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, sleep, timeout};

use crate::admin::inode_of;
use crate::tls::ticket_keys::{TOLD_MAX, TicketKeys};

/// What the new process sends first, and what it sends when it serves.
const ASK: &[u8; 8] = b"upgrade\n";
const SERVES: &[u8; 7] = b"serves\n";

/// What it sends at a connection of its own to be told the keys of session tickets.
const TICKETS: &[u8; 8] = b"tickets\n";

/// How long a peer may take for its request.
const QUESTION: Duration = Duration::from_secs(2);
/// How long the new process may take to open Pingora's socket after it has asked. It does so at once.
const MEETING: Duration = Duration::from_secs(5);
/// How long it may take from the sockets to its first connection. It has checked its configuration before it asked.
const START: Duration = Duration::from_secs(60);

/// The path of the socket at which the running process is asked to hand over.
fn socket_path(upgrade_sock: &Path) -> PathBuf {
    let mut name = upgrade_sock.as_os_str().to_owned();
    name.push(".ask");
    name.into()
}

/// The request of a new process that the old one hands over to it.
pub(crate) struct UpgradeRequest {
    socket_path: PathBuf,
    stream: std::os::unix::net::UnixStream,
    /// The keys of session tickets of the old process, if it tells them.
    pub tickets: Option<Secret<String>>,
}

impl UpgradeRequest {
    /// Asks the running process for the keys of session tickets, and to hand over.
    ///
    /// # Errors
    /// No process is running.
    pub(crate) fn ask(upgrade_sock: &Path) -> anyhow::Result<Self> {
        // First: it answers nobody any more while it hands over.
        let tickets = told_tickets(&socket_path(upgrade_sock))
            .map_err(|error| log::debug!("the running process does not tell its ticket keys: {error}"))
            .ok();
        let request = Self::new(upgrade_sock)?;
        Ok(Self { tickets, ..request })
    }

    fn new(upgrade_sock: &Path) -> anyhow::Result<Self> {
        let socket_path = socket_path(upgrade_sock);
        let mut stream = std::os::unix::net::UnixStream::connect(&socket_path).with_context(|| {
            format!(
                "no running process can be asked at {} to give way",
                socket_path.display()
            )
        })?;
        stream.write_all(ASK).context("the running process does not listen")?;
        Ok(Self {
            socket_path,
            stream,
            tickets: None,
        })
    }

    /// Checks whether the old process still waits for this one, or has gone.
    ///
    /// # Errors
    /// It has given up, and serves on.
    pub(crate) fn is_awaited(&self) -> anyhow::Result<()> {
        self.stream.set_nonblocking(true)?;
        let looked = (&self.stream).read(&mut [0]);
        self.stream.set_nonblocking(false)?;
        match looked {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            _ => self.is_left_alone(),
        }
    }

    /// Notifies the old process that this one serves. It may have gone. Returns the connection to it.
    ///
    /// # Errors
    /// It has given up waiting, and serves on.
    pub(crate) fn serves(self) -> anyhow::Result<std::os::unix::net::UnixStream> {
        if let Err(error) = (&self.stream).write_all(SERVES) {
            self.is_left_alone()?;
            log::warn!("the previous process cannot be told that this one serves: {error}");
        }
        Ok(self.stream)
    }

    /// Two processes that both serve would do so for ever.
    fn is_left_alone(&self) -> anyhow::Result<()> {
        let answers = std::os::unix::net::UnixStream::connect(&self.socket_path).is_ok();
        ensure!(!answers, "the previous process waits no longer, and serves on");
        Ok(())
    }
}

/// What the running process tells of its ticket keys. An older one says nothing, and closes.
fn told_tickets(socket_path: &Path) -> io::Result<Secret<String>> {
    let mut stream = std::os::unix::net::UnixStream::connect(socket_path)?;
    stream.set_read_timeout(Some(QUESTION))?;
    stream.write_all(TICKETS)?;
    let mut told = String::with_capacity(TOLD_MAX);
    let read = stream.take(TOLD_MAX as u64).read_to_string(&mut told);
    let told = Secret::new(told);
    match read? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(told),
    }
}

/// The socket at which a running process is asked to hand over.
pub(crate) struct UpgradeSocket {
    path: PathBuf,
    /// Which file it was when we made it.
    inode: Option<u64>,
    socket: UnixListener,
}

impl UpgradeSocket {
    /// Opens it. The file of a previous process is replaced; two processes that run at once would have failed to bind
    /// their listening sockets before.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub(crate) fn open(upgrade_sock: &Path) -> io::Result<Self> {
        let path = socket_path(upgrade_sock);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = UnixListener::bind(&path)?;
        let inode = inode_of(&path);
        Ok(Self { path, inode, socket })
    }

    /// Pingora's socket, as text for its functions.
    pub(crate) fn upgrade_sock(&self) -> String {
        let path = self.path.to_string_lossy();
        path.strip_suffix(".ask").unwrap_or(&path).to_owned()
    }

    /// The next process that asks. One that asks for `tickets` is told them.
    pub(crate) async fn next_request(&self, tickets: &TicketKeys) -> UnixStream {
        loop {
            match self.socket.accept().await {
                Ok((stream, _)) => match timeout(QUESTION, read_request(stream, tickets)).await {
                    Ok(Ok(Some(stream))) => return stream,
                    Ok(Ok(None)) => {}
                    Ok(Err(error)) => log::warn!("an upgrade was requested without permission: {error:#}"),
                    Err(_) => log::warn!("somebody connected to {} and said nothing", self.path.display()),
                },
                Err(error) => {
                    log::warn!("{}: {error}", self.path.display());
                    sleep(QUESTION).await;
                }
            }
        }
    }

    /// Removes the socket file. One that another process has put in its place stays.
    pub(crate) fn close(self) {
        if self.inode.is_some() && inode_of(&self.path) == self.inode {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// `None`: it was answered.
async fn read_request(mut stream: UnixStream, tickets: &TicketKeys) -> anyhow::Result<Option<UnixStream>> {
    let asker = stream.peer_cred()?.uid();
    ensure!(is_ours(asker), "user {asker}");
    let mut word = [0; ASK.len()];
    stream.read_exact(&mut word).await?;
    if word == *TICKETS {
        stream.write_all(tickets.told().expose().as_bytes()).await?;
        return Ok(None);
    }
    ensure!(word == *ASK, "not our language");
    Ok(Some(stream))
}

/// Root, or the user that we are.
fn is_ours(user: u32) -> bool {
    user == 0 || std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == user)
}

/// Hands the listening sockets to the process that asked, and waits until it serves. Returns the connection to it.
///
/// # Errors
/// It does not. The sockets are still ours, too.
pub(crate) async fn hand_over(
    mut asker: UnixStream,
    fds: ListenFds,
    upgrade_sock: String,
) -> anyhow::Result<UnixStream> {
    let meeting = Instant::now() + MEETING;
    while std::fs::metadata(&upgrade_sock).is_err() {
        ensure!(Instant::now() < meeting, "the new process did not open {upgrade_sock}");
        sleep(Duration::from_millis(20)).await;
    }
    let owner = std::fs::metadata(&upgrade_sock)?.uid();
    ensure!(is_ours(owner), "{upgrade_sock} belongs to user {owner}");
    // Pingora waits for the other side with the whole thread.
    let sent = tokio::task::spawn_blocking(move || fds.lock().send_to_sock(upgrade_sock.as_str())).await?;
    if let Err(error) = sent {
        bail!("the new process did not take the sockets: {error}");
    }
    let mut word = [0; SERVES.len()];
    match timeout(START, asker.read_exact(&mut word)).await {
        Ok(Ok(_)) if word == *SERVES => Ok(asker),
        Ok(_) => bail!("the new process ended before it served"),
        Err(_) => bail!("the new process did not serve within {START:?}"),
    }
}

/// How this process was started, to start its successor the same way.
pub(crate) struct SuccessorCommand {
    program: PathBuf,
    arguments: Vec<std::ffi::OsString>,
}

impl SuccessorCommand {
    /// Remembers it: later the file of the program is another one, which is the point. In the background the working
    /// directory is another one, too, so the node file is given whole.
    ///
    /// # Errors
    /// The system does not know the file of this program.
    pub(crate) fn new(node_file: &Path) -> io::Result<Self> {
        Ok(Self {
            program: std::env::current_exe()?,
            arguments: vec!["-u".into(), "-c".into(), node_file.into()],
        })
    }

    /// Starts the successor, which will ask for the sockets.
    ///
    /// # Errors
    /// It cannot be started, or we are the first process of a container, which ends with us.
    pub(crate) fn start(&self) -> anyhow::Result<Child> {
        ensure!(
            std::process::id() != 1,
            "the first process of a container cannot be replaced: start a new container"
        );
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
        // These were meant for this process alone.
        for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID"] {
            command.env_remove(name);
        }
        command
            .spawn()
            .with_context(|| format!("{} cannot be started", self.program.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::ticket_keys::FromFile;

    #[tokio::test]
    async fn a_process_that_is_not_waited_for_does_not_serve_beside_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("upgrade.sock");
        let socket = UpgradeSocket::open(&path).unwrap();
        let keys = TicketKeys::default();
        let (upgrade_request, late) = (UpgradeRequest::new(&path).unwrap(), UpgradeRequest::new(&path).unwrap());
        let mut asker = socket.next_request(&keys).await;
        drop(socket.next_request(&keys).await);
        upgrade_request.is_awaited().unwrap();
        assert!(late.is_awaited().is_err());
        assert!(late.serves().is_err());
        upgrade_request.serves().unwrap();
        let mut word = [0; SERVES.len()];
        asker.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, SERVES);
        // Where no process serves, none stands in the way.
        let orphan = UpgradeRequest::new(&path).unwrap();
        drop(socket.next_request(&keys).await);
        socket.close();
        orphan.is_awaited().unwrap();
        orphan.serves().unwrap();
    }

    #[tokio::test]
    async fn a_new_process_is_told_the_keys_of_tickets_before_it_takes_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("upgrade.sock");
        let socket = UpgradeSocket::open(&path).unwrap();
        let keys = TicketKeys::default();
        keys.renew(0, Duration::from_secs(1), FromFile::No);
        let asking = tokio::task::spawn_blocking(move || UpgradeRequest::ask(&path).unwrap());
        let _asker = socket.next_request(&keys).await;
        let request = asking.await.unwrap();
        assert_eq!(request.tickets.unwrap().expose(), keys.told().expose());
    }

    #[tokio::test]
    async fn a_socket_of_another_process_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("upgrade.sock");
        let (old, new) = (UpgradeSocket::open(&path).unwrap(), UpgradeSocket::open(&path).unwrap());
        old.close();
        UpgradeRequest::new(&path).unwrap();
        new.close();
        assert!(UpgradeRequest::new(&path).is_err());
    }
}
