//! One connection to one memcached server, shared by all callers, and what happens when it fails.
//!
//! Requests go out as they come, and answers come back in that order. The first thing that is wrong (silence past the
//! limit, an end, a byte that was not asked for, an answer that does not fit) ends the connection for good, and with
//! it all requests that wait. The server is then left alone for a while, and after that tried by a request that no
//! caller waits for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::wire::{Babble, Command, Reply};
use crate::host_port::HostPort;

/// Requests on their way to the connection. More than can be answered in the time limit are worth nothing.
const MAX_QUEUE: usize = 4096;
/// Requests sent and not answered.
const MAX_OUTSTANDING: usize = 4096;
/// Bytes not sent yet, above which no request is taken from the queue.
const MAX_UNSENT: usize = 64 * 1024;
/// Bytes read at once.
const READ: usize = 16 * 1024;
/// The request that tries a server which had failed. Any key will do: what counts is an answer in time.
const PROBE: &str = "0";

/// A server, connected or not.
pub(super) struct Link {
    server: HostPort,
    timeout: Duration,
    retry: Duration,
    state: Mutex<State>,
}

enum State {
    /// Never tried.
    New,
    /// There is a connection, or one is being made.
    Up(mpsc::Sender<QueuedCommand>),
    /// It failed, and is left alone until then.
    Down(Instant),
    /// It failed, and is being tried again.
    Trying,
}

/// A command and where its answer goes.
struct QueuedCommand {
    command: Command,
    deadline: Instant,
    answer: oneshot::Sender<Reply>,
}

/// An answer that is under way.
pub(super) struct Pending {
    answer: oneshot::Receiver<Reply>,
    deadline: Instant,
}

impl Pending {
    /// The value, or `None`: there is none, or the server failed.
    pub(super) async fn answer(self) -> Option<Vec<u8>> {
        match timeout_at(self.deadline, self.answer).await {
            Ok(Ok(Reply::Value(value))) => Some(value),
            Ok(Ok(Reply::Nothing | Reply::Done) | Err(_)) | Err(_) => None,
        }
    }
}

impl Link {
    pub(super) fn new(server: &HostPort, timeout: Duration, retry: Duration) -> Self {
        Self {
            server: server.clone(),
            timeout,
            retry,
            state: Mutex::new(State::New),
        }
    }

    /// Its name, and whether it answered when it was last needed.
    pub(super) fn is_up(&self) -> (String, bool) {
        let up = matches!(&*self.state.lock(), State::New | State::Up(_));
        (self.server.to_string(), up)
    }

    /// Sends a command; `None` if the server is down or too much waits for it.
    pub(super) fn ask(self: &Arc<Self>, command: &Command) -> Option<Pending> {
        let queue = self.queue()?;
        let (answer, receiver) = oneshot::channel();
        let deadline = Instant::now() + self.timeout;
        let request = QueuedCommand {
            command: command.clone(),
            deadline,
            answer,
        };
        queue.try_send(request).ok()?;
        Some(Pending {
            answer: receiver,
            deadline,
        })
    }

    /// Where requests go now.
    fn queue(self: &Arc<Self>) -> Option<mpsc::Sender<QueuedCommand>> {
        let mut state = self.state.lock();
        match &*state {
            State::Up(queue) => return Some(queue.clone()),
            State::Trying => return None,
            State::Down(until) if Instant::now() < *until => return None,
            State::Down(_) => {
                *state = State::Trying;
                tokio::spawn(Run::new(self).again());
                return None;
            }
            State::New => {}
        }
        let (queue, requests) = mpsc::channel(MAX_QUEUE);
        *state = State::Up(queue.clone());
        tokio::spawn(Run::new(self).first(requests));
        Some(queue)
    }
}

/// What a connection's task knows. It does not hold the link, so that it ends when the link is dropped.
struct Run {
    link: std::sync::Weak<Link>,
    server: HostPort,
    timeout: Duration,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("no answer in time")]
    Silent,
    #[error("it closed the connection")]
    Closed,
    #[error("it said what nobody had asked for")]
    Babble,
    /// This client is not used any more.
    #[error("not needed any more")]
    Unused,
}

impl From<Babble> for Ended {
    fn from(Babble: Babble) -> Self {
        Self::Babble
    }
}

impl Run {
    fn new(link: &Arc<Link>) -> Self {
        Self {
            link: Arc::downgrade(link),
            server: link.server.clone(),
            timeout: link.timeout,
        }
    }

    async fn first(self, requests: mpsc::Receiver<QueuedCommand>) {
        let ended = match self.connect().await {
            Ok(stream) => Conversation::new(stream, requests).run().await,
            Err(ended) => ended,
        };
        self.ended(&ended);
    }

    /// Tries a server that had failed: it must answer before any request is sent to it.
    async fn again(self) {
        let ended = match self.probe().await {
            Ok(stream) => {
                let Some(requests) = self.open() else { return };
                log::info!("memcached {} is back", self.server);
                Conversation::new(stream, requests).run().await
            }
            Err(ended) => ended,
        };
        self.ended(&ended);
    }

    async fn connect(&self) -> Result<TcpStream, Ended> {
        let connected = timeout(self.timeout, TcpStream::connect((&*self.server.host, self.server.port))).await;
        let stream = connected.map_err(|_| Ended::Silent)??;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn probe(&self) -> Result<TcpStream, Ended> {
        let mut stream = self.connect().await?;
        let probe = Command::Get { key: PROBE.to_owned() };
        let mut bytes = Vec::new();
        probe.encode(&mut bytes);
        let answered = timeout(self.timeout, async {
            stream.write_all(&bytes).await?;
            let mut heard = Vec::new();
            loop {
                if stream.read_buf(&mut heard).await? == 0 {
                    return Err(Ended::Closed);
                }
                match probe.reply(&heard)? {
                    Some((_, length)) if length == heard.len() => return Ok(()),
                    Some(_) => return Err(Ended::Babble),
                    None => {}
                }
            }
        });
        answered.await.map_err(|_| Ended::Silent)??;
        Ok(stream)
    }

    fn open(&self) -> Option<mpsc::Receiver<QueuedCommand>> {
        let (queue, requests) = mpsc::channel(MAX_QUEUE);
        *self.link.upgrade()?.state.lock() = State::Up(queue);
        Some(requests)
    }

    fn ended(&self, ended: &Ended) {
        let Some(link) = self.link.upgrade() else { return };
        *link.state.lock() = State::Down(Instant::now() + link.retry);
        log::warn!("memcached {}: {ended}; left alone for {:?}", self.server, link.retry);
    }
}

/// A connection in use.
struct Conversation {
    stream: TcpStream,
    requests: mpsc::Receiver<QueuedCommand>,
    unsent: Vec<u8>,
    heard: Vec<u8>,
    /// In the order in which they were sent. A caller that went away stays in it: its answer comes all the same.
    waiting: VecDeque<QueuedCommand>,
}

impl Conversation {
    fn new(stream: TcpStream, requests: mpsc::Receiver<QueuedCommand>) -> Self {
        Self {
            stream,
            requests,
            unsent: Vec::new(),
            heard: Vec::new(),
            waiting: VecDeque::new(),
        }
    }

    async fn run(mut self) -> Ended {
        loop {
            if let Err(ended) = self.step().await {
                return ended;
            }
        }
    }

    async fn step(&mut self) -> Result<(), Ended> {
        let (mut reader, mut writer) = self.stream.split();
        let deadline = self.waiting.front().map(|request| request.deadline);
        let room = self.waiting.len() < MAX_OUTSTANDING && self.unsent.len() < MAX_UNSENT;
        self.heard.reserve(READ);
        // What has come is looked at before the clock: a busy moment of our own is not the server's silence.
        tokio::select! {
            biased;
            read = reader.read_buf(&mut self.heard) => match read? {
                0 => Err(Ended::Closed),
                _ => self.hear(),
            },
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => Err(Ended::Silent),
            written = writer.write(&self.unsent), if !self.unsent.is_empty() => {
                self.unsent.drain(..written?);
                Ok(())
            }
            request = self.requests.recv(), if room => {
                self.send(request.ok_or(Ended::Unused)?);
                Ok(())
            }
        }
    }

    /// A request that no caller waits for any more is not sent at all.
    fn send(&mut self, request: QueuedCommand) {
        let wanted = match request.command {
            Command::Get { .. } => !request.answer.is_closed() && Instant::now() < request.deadline,
            Command::Set { .. } | Command::Delete { .. } => true,
        };
        if wanted {
            request.command.encode(&mut self.unsent);
            self.waiting.push_back(request);
        }
    }

    /// A server that always answers too late is as good as silent, or each of its answers would cost a timeout.
    fn hear(&mut self) -> Result<(), Ended> {
        let (mut used, now) = (0, Instant::now());
        while used < self.heard.len() {
            let front = self.waiting.front().ok_or(Ended::Babble)?;
            let Some((reply, length)) = front.command.reply(&self.heard[used..])? else {
                break;
            };
            used += length;
            let request = self.waiting.pop_front().ok_or(Ended::Babble)?;
            if now > request.deadline {
                return Err(Ended::Silent);
            }
            let _ = request.answer.send(reply);
        }
        self.heard.drain(..used);
        Ok(())
    }
}
