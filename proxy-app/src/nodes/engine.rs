//! A connection to the engine (Valkey or Redis): where it is, how it is secured, and what of its answers is believed.
//!
//! The crate `redis` writes commands and reads answers (RESP3); the sockets, TLS and every wait are ours, as everywhere
//! else in the house. Whatever comes is bounded before the crate sees it: between two whole answers no more than
//! [`ANSWER_MAX`] bytes are read.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use mail_directory::Secret;
use mail_proxy::BoxStream;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, Pipeline, ProtocolVersion, PushInfo, PushKind, RedisConnectionInfo};
use redis::{RedisError, ServerError, Value};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::config::{Place, SharedStateConfig};
use crate::tls::upstream::UpstreamTrust;
use crate::upstream::connect;
use crate::upstream::dns::{DnsCache, IpMode};

/// Most bytes that are read before an answer or a message is whole.
const ANSWER_MAX: usize = 32 * 1024 * 1024;
/// Messages that wait to be handled; what is beyond is lost, and made up for.
pub(super) const QUEUE: usize = 1024;
/// Most redirections before one place is given up.
const HOPS: usize = 3;
/// Longest text of the engine that is repeated in a log.
const WORDS_MAX: usize = 160;

/// Why the engine is not of use, in words that can be logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure(pub(crate) String);

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        Self(words(&error.to_string()))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self(words(&error.to_string()))
    }
}

/// Whether an engine that serves has said no to a command: it may not be used, is not known, or another kind of value is
/// in its way. Other errors say that it does not serve.
fn refuses(error: &RedisError) -> bool {
    let refusals = error.clone().into_server_errors();
    let is_refusal = |(_, error): &(usize, ServerError)| match error.code() {
        "NOPERM" | "WRONGTYPE" => true,
        "ERR" => error
            .details()
            .is_some_and(|details| details.starts_with("unknown command")),
        _ => false,
    };
    refusals.is_some_and(|errors| errors.iter().all(is_refusal))
}

/// Text from outside, fit for a log.
pub(super) fn words(text: &str) -> String {
    let printable = text.chars().map(|c| if c.is_control() { '?' } else { c });
    printable.take(WORDS_MAX).collect()
}

/// What a connection is made with.
pub(super) struct EngineDialer {
    pub(super) config: SharedStateConfig,
    pub(super) trust: UpstreamTrust,
    pub(super) dns: Arc<DnsCache>,
}

/// A message of another node: the channel, and what it says.
pub(super) type Message = (Vec<u8>, Vec<u8>);

/// A connection that has been made and has answered.
pub(super) struct Engine {
    connection: MultiplexedConnection,
    driver: JoinHandle<()>,
    /// Bytes read since something was whole.
    read: Arc<AtomicUsize>,
    /// Messages that found no room.
    lost: Arc<AtomicUsize>,
    wait: std::time::Duration,
    /// Where it is.
    pub(super) place: Place,
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Engine {
    /// Runs commands, and returns their answers.
    ///
    /// # Errors
    /// There is no answer in time, or one of them is an error. The connection is not to be used again.
    pub(super) async fn run(&self, commands: &Pipeline) -> Result<Vec<Value>, Failure> {
        self.try_run(commands).await?
    }

    /// The same for commands that an engine may refuse and be of use all the same: the inner error is its refusal.
    ///
    /// # Errors
    /// As [`Engine::run`], but for a refusal.
    pub(super) async fn try_run(&self, commands: &Pipeline) -> Result<Result<Vec<Value>, Failure>, Failure> {
        let mut connection = self.connection.clone();
        let answers = timeout(self.wait, commands.query_async::<Vec<Value>>(&mut connection)).await;
        self.read.store(0, Ordering::Relaxed);
        match answers.map_err(|_| self.silent())? {
            Err(error) if !refuses(&error) => Err(error.into()),
            answers => Ok(answers.map_err(Failure::from)),
        }
    }

    /// The answer to the last of such commands.
    ///
    /// # Errors
    /// As [`Engine::try_run`].
    pub(super) async fn try_last(&self, commands: &Pipeline) -> Result<Result<Value, Failure>, Failure> {
        let answers = self.try_run(commands).await?;
        Ok(answers.map(|mut answers| answers.pop().unwrap_or(Value::Nil)))
    }

    /// Asks to be sent what is said in a channel.
    ///
    /// # Errors
    /// As [`Engine::run`].
    pub(super) async fn subscribe(&self, channel: &str) -> Result<(), Failure> {
        let mut connection = self.connection.clone();
        let answer = timeout(self.wait, connection.subscribe(channel)).await;
        Ok(answer.map_err(|_| self.silent())??)
    }

    /// How many messages were lost since this was asked the last time.
    pub(super) fn lost(&self) -> usize {
        self.lost.swap(0, Ordering::Relaxed)
    }

    fn silent(&self) -> Failure {
        Failure(format!("no answer within {} ms", self.wait.as_millis()))
    }
}

impl EngineDialer {
    /// The first place that serves. `first` says with which to begin.
    ///
    /// # Errors
    /// None does; the last one's failure.
    pub(super) async fn connect(&self, first: usize, messages: &mpsc::Sender<Message>) -> Result<Engine, Failure> {
        let count = self.config.places.len().max(1);
        let mut failure = Failure("no place is known".to_owned());
        for at in 0..count {
            let Some(place) = self.config.places.get((first + at) % count) else {
                break;
            };
            let found = match &self.config.sentinel {
                None => self.follow(place.clone(), messages).await,
                Some(_) => self.by_sentinel(place, messages).await,
            };
            match found {
                Ok(engine) => return Ok(engine),
                Err(error) => failure = Failure(format!("{place}: {error}")),
            }
        }
        Err(failure)
    }

    /// A Sentinel says where the primary is.
    async fn by_sentinel(&self, sentinel: &Place, messages: &mpsc::Sender<Message>) -> Result<Engine, Failure> {
        let Some(group) = &self.config.sentinel else {
            return Err(Failure("no Sentinel is known".to_owned()));
        };
        let asked = self.open(sentinel.clone(), None, group.password.as_ref(), None).await?;
        let mut ask = redis::pipe();
        ask.cmd("SENTINEL").arg("get-master-addr-by-name").arg(&group.name);
        let answer = asked.run(&ask).await?;
        let known = answer.into_iter().next().and_then(primary);
        let (host, port) = known.ok_or_else(|| Failure(format!("it knows no primary of {}", group.name)))?;
        self.follow(beside(sentinel, &host, port), messages).await
    }

    /// A node of a Cluster that does not hold our names says who does. They all have one hash tag, and so one holder.
    async fn follow(&self, mut place: Place, messages: &mpsc::Sender<Message>) -> Result<Engine, Failure> {
        for _ in 0..HOPS {
            let user = self.config.user.as_deref();
            let engine = self
                .open(place.clone(), user, self.config.password.as_ref(), Some(messages))
                .await?;
            // It must be there, ours to use, and no replica, which takes no writes.
            let probe = Cmd::new()
                .arg("EXPIRE")
                .arg(super::wire::Names(&self.config.prefix).nodes())
                .arg(super::wire::KEPT)
                .to_owned();
            let mut connection = engine.connection.clone();
            let answer = timeout(engine.wait, probe.query_async::<Value>(&mut connection)).await;
            let Err(error) = answer.map_err(|_| engine.silent())? else {
                return Ok(engine);
            };
            let moved = error.redirect_node().and_then(|(address, _)| host_and_port(address));
            let Some((host, port)) = moved else {
                return Err(error.into());
            };
            place = beside(&place, &host, port);
        }
        Err(Failure("it sends us from one to the next".to_owned()))
    }

    async fn open(
        &self,
        place: Place,
        user: Option<&str>,
        password: Option<&Secret<String>>,
        messages: Option<&mpsc::Sender<Message>>,
    ) -> Result<Engine, Failure> {
        let wait = self.config.timeout;
        let late = || Failure(format!("no connection within {} ms", 2 * wait.as_millis()));
        let opened = timeout(2 * wait, async {
            let (read, lost) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let stream = BoundedStream {
                stream: self.stream(&place).await?,
                read: read.clone(),
            };
            let mut settings = AsyncConnectionConfig::new().set_response_timeout(None);
            if let Some(messages) = messages {
                settings = settings.set_push_sender(taker(messages.clone(), read.clone(), lost.clone()));
            }
            let opened = MultiplexedConnection::new_with_config(&login(user, password), stream, settings).await;
            let (connection, driver) = opened?;
            Ok(Engine {
                connection,
                driver: tokio::spawn(driver),
                read,
                lost,
                wait,
                place: place.clone(),
            })
        });
        opened.await.map_err(|_| late())?
    }

    async fn stream(&self, place: &Place) -> Result<BoxStream, Failure> {
        match place {
            Place::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
            Place::Tcp { address, tls } => {
                let stream = connect::connect(&self.dns, &address.host, address.port, IpMode::Both).await?;
                match tls {
                    false => Ok(Box::new(stream)),
                    true => Ok(self.trust.connect(&address.host, Box::new(stream)).await?),
                }
            }
        }
    }
}

fn login(user: Option<&str>, password: Option<&Secret<String>>) -> RedisConnectionInfo {
    let mut login = RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP3)
        .set_skip_set_lib_name();
    if let Some(user) = user {
        login = login.set_username(user);
    }
    if let Some(password) = password {
        login = login.set_password(password.expose());
    }
    login
}

/// Another server of the same installation is reached in the same way.
fn beside(place: &Place, host: &str, port: u16) -> Place {
    Place::Tcp {
        address: route_cache::HostPort::new(host, port),
        tls: matches!(place, Place::Tcp { tls: true, .. }),
    }
}

fn host_and_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let is_host = !host.is_empty() && host.len() <= 255 && !host.contains(|c: char| c.is_control() || c == ' ');
    Some((host.to_owned(), port.parse().ok()?)).filter(|_| is_host)
}

fn primary(answer: Value) -> Option<(String, u16)> {
    let Value::Array(parts) = answer else { return None };
    let mut parts = parts.into_iter().filter_map(super::wire::bytes);
    let host = String::from_utf8(parts.next()?).ok()?;
    let port = String::from_utf8(parts.next()?).ok()?;
    host_and_port(&format!("{host}:{port}"))
}

/// Takes the messages of other nodes. It may not wait.
fn taker(
    messages: mpsc::Sender<Message>,
    read: Arc<AtomicUsize>,
    lost: Arc<AtomicUsize>,
) -> impl Fn(PushInfo) -> Result<(), ()> + Send + Sync + 'static {
    move |push: PushInfo| {
        read.store(0, Ordering::Relaxed);
        if push.kind != PushKind::Message {
            return Ok(());
        }
        let mut parts = push.data.into_iter().filter_map(super::wire::bytes);
        if let (Some(channel), Some(text)) = (parts.next(), parts.next())
            && messages.try_send((channel, text)).is_err()
        {
            lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// A stream that ends when too much comes without being whole.
struct BoundedStream {
    stream: BoxStream,
    read: Arc<AtomicUsize>,
}

impl AsyncRead for BoundedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let come = buffer.filled().len() - before;
        match self.read.fetch_add(come, Ordering::Relaxed) + come > ANSWER_MAX {
            true => Poll::Ready(Err(io::Error::other("an answer is too long"))),
            false => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for BoundedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirections_name_a_host_and_a_port() {
        let to = |host: &str, port| Some((host.to_owned(), port));
        for (text, expected) in [
            ("127.0.0.1:7001", to("127.0.0.1", 7001)),
            ("::1:7001", to("::1", 7001)),
            ("[::1]:7001", to("::1", 7001)),
            (":7001", None),
            ("a b:7001", None),
            ("host:port", None),
            ("host", None),
        ] {
            assert_eq!(host_and_port(text), expected, "{text}");
        }
    }

    #[test]
    fn words_of_the_engine_fit_into_a_line() {
        assert_eq!(words("ERR\r\n\u{1b}[2J"), "ERR???[2J");
        assert_eq!(words(&"x".repeat(10_000)).len(), WORDS_MAX);
    }
}
