//! Bytes both ways between a logged-in client and its mailbox server, until one of them ends it. Web sockets end
//! up here too.
//!
//! Nothing is parsed. Nothing is held while both sides are idle either: reads go into one scratch buffer per
//! thread, and only what the other side does not take at once is kept, in a buffer that is freed when drained.
//! A relay lives for hours and there are many thousands of them, so its future must stay small.

use std::cell::RefCell;
use std::future::poll_fn;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use crate::audit::EndedBy;
use crate::connection::BoxStream;
use crate::handle::{CloseReason, ConnectionHandle, Drain};

/// What one read may bring. Four full TLS records: larger reads win nothing, smaller ones cost system calls.
const SCRATCH: usize = 64 * 1024;

/// How long a client that has sent its end may still read answers without any byte moving. A client that
/// half-closes waits for the answer to a last command, not for new mail.
const HALF_CLOSED_IDLE: Duration = Duration::from_secs(60);

/// How long the server must have been silent before it is told that its client has sent its end. Told at once, a TLS
/// server stops in the middle of its last answers: until TLS 1.2 it had to (RFC 5246 section 7.2.1), and many still do.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// How long nothing has moved when a command is taken for answered.
const QUIET: Duration = Duration::from_millis(200);

/// How long a session whose account has moved may go on with a command.
const LAST_COMMAND: Duration = Duration::from_secs(5);

/// How long the last words are offered to a client that does not read.
const FAREWELL: Duration = Duration::from_secs(2);

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// How a relay ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayEnd {
    /// Who ended it.
    pub by: EndedBy,
    /// What made us end it.
    pub why: Option<&'static str>,
    /// From the client.
    pub bytes_in: u64,
    /// To the client.
    pub bytes_out: u64,
}

/// What a client hears when the session is ended by another side.
#[derive(Debug)]
pub struct Farewell {
    /// In most cases.
    pub usual: &'static [u8],
    /// When an administrator ends it.
    pub kick: &'static [u8],
    /// When its account is on another server now.
    pub moved: &'static [u8],
}

impl Farewell {
    /// Nothing is said.
    pub const NONE: Self = Self {
        usual: b"",
        kick: b"",
        moved: b"",
    };
}

/// One direction.
#[derive(Default)]
struct Flow {
    /// Read, and not yet taken by the other side.
    held: Vec<u8>,
    taken: usize,
    bytes: u64,
    last_byte: u8,
    /// The reading side has ended.
    ended: bool,
    /// The writing side has been told so.
    told: bool,
    unflushed: bool,
}

/// Both ends and both directions of one session.
pub struct Relay {
    client: BoxStream,
    server: BoxStream,
    to_server: Flow,
    to_client: Flow,
    idle: Duration,
    moved: Instant,
    timer: Pin<Box<Sleep>>,
    /// Whether the server is to be told of its client's end.
    tells_server: bool,
    /// The client has spoken, and the server has not answered yet.
    asked: bool,
}

enum Stop {
    Client,
    Server,
    Idle,
    Told(CloseReason),
}

impl Relay {
    /// A relay between these two, which ends when for `idle` no byte moved.
    pub fn new(client: BoxStream, server: BoxStream, idle: Duration) -> Self {
        Self {
            client,
            server,
            to_server: Flow::default(),
            to_client: Flow::default(),
            idle,
            moved: Instant::now(),
            timer: Box::pin(tokio::time::sleep(idle)),
            tells_server: false,
            asked: false,
        }
    }

    /// Bytes that are already owed to the server: what the client pipelined behind its login.
    pub fn owe_server(&mut self, bytes: Vec<u8>) {
        self.to_server.bytes += bytes.len() as u64;
        self.asked = !bytes.is_empty();
        self.to_server.held = bytes;
    }

    /// Bytes that are already owed to the client: the answer to its login.
    pub fn owe_client(&mut self, bytes: Vec<u8>) {
        self.to_client.last_byte = bytes.last().copied().unwrap_or_default();
        self.to_client.held = bytes;
    }

    /// Copies until one side ends, nothing moves for too long, or the node or an administrator ends it. `farewell` is
    /// said to the client in the last cases, if what it has read so far ends with a line.
    pub async fn run(
        &mut self,
        drain: &mut watch::Receiver<Drain>,
        live: &ConnectionHandle,
        farewell: &Farewell,
    ) -> RelayEnd {
        let stop = tokio::select! {
            stop = poll_fn(|cx| self.poll(cx, live)) => stop,
            () = sessions_end(drain) => Stop::Told(CloseReason::Drain),
            order = live.ended() => Stop::Told(order),
        };
        let stop = match stop {
            // In a box of its own: most sessions never come here, and should not be as large.
            Stop::Told(CloseReason::Moved) => Box::pin(self.last_command(live)).await,
            stop => stop,
        };
        match stop {
            Stop::Client => self.ended(EndedBy::Client, None),
            Stop::Server => self.ended(EndedBy::Upstream, None),
            Stop::Idle if self.to_server.ended => self.ended(EndedBy::Client, None),
            Stop::Idle => {
                self.send_farewell(farewell.usual).await;
                self.ended(EndedBy::Portico, Some("idle"))
            }
            Stop::Told(CloseReason::Drain | CloseReason::Evict) => {
                self.send_farewell(farewell.usual).await;
                self.ended(EndedBy::Portico, Some("drain"))
            }
            Stop::Told(CloseReason::Kick) => {
                self.send_farewell(farewell.kick).await;
                self.ended(EndedBy::Kick, None)
            }
            Stop::Told(CloseReason::Moved) => {
                self.send_farewell(farewell.moved).await;
                self.ended(EndedBy::Portico, Some("moved"))
            }
        }
    }

    /// Goes on until a command that is under way has been answered, as far as that can be seen from outside.
    async fn last_command(&mut self, live: &ConnectionHandle) -> Stop {
        let end = Instant::now() + LAST_COMMAND;
        loop {
            let before = self.to_server.bytes + self.to_client.bytes;
            tokio::select! {
                stop = poll_fn(|cx| self.poll(cx, live)) => return stop,
                () = live.kicked() => return Stop::Told(CloseReason::Kick),
                () = tokio::time::sleep(QUIET) => {}
            }
            let rests = self.to_server.bytes + self.to_client.bytes == before && self.is_answered();
            if rests || Instant::now() >= end {
                return Stop::Told(CloseReason::Moved);
            }
        }
    }

    /// The server has spoken last, with a whole line.
    fn is_answered(&self) -> bool {
        !self.asked && self.to_client.held.is_empty() && self.to_client.last_byte == b'\n'
    }

    fn poll(&mut self, cx: &mut Context<'_>, live: &ConnectionHandle) -> Poll<Stop> {
        let before = self.to_server.bytes + self.to_client.bytes;
        let was_ended = self.to_server.ended;
        let said = (self.to_server.bytes, self.to_client.bytes);
        // An error on either side ends the relay; whose it was is told by where it showed up.
        match self.to_server.poll(cx, &mut self.client, &mut self.server) {
            Poll::Ready(Err(Side::Read)) => return Poll::Ready(Stop::Client),
            Poll::Ready(Err(Side::Write)) => return Poll::Ready(Stop::Server),
            // The client has sent its end and the server knows; it may still have answers.
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        if self.to_server.ended && !was_ended {
            self.moved = Instant::now();
        }
        self.asked |= self.to_server.bytes != said.0;
        let answer = self.to_client.poll(cx, &mut self.server, &mut self.client);
        self.asked &= self.to_client.bytes == said.1;
        match answer {
            Poll::Ready(Err(Side::Write)) => return Poll::Ready(Stop::Client),
            Poll::Ready(Err(Side::Read)) => return Poll::Ready(Stop::Server),
            Poll::Ready(Ok(())) => {
                let told = ready!(self.to_client.poll_tell(cx, &mut self.client));
                return Poll::Ready(match self.to_server.ended || told.is_err() {
                    true => Stop::Client,
                    false => Stop::Server,
                });
            }
            Poll::Pending => {}
        }
        loop {
            if self.tells_server
                && let Poll::Ready(Err(_)) = self.to_server.poll_tell(cx, &mut self.server)
            {
                return Poll::Ready(Stop::Server);
            }
            ready!(self.poll_idle(cx, before, live));
            if self.tells_server || !self.to_server.ended {
                return Poll::Ready(Stop::Idle);
            }
            self.tells_server = true;
        }
    }

    /// Resolves when nothing has moved for too long. The timer is not moved with each byte: it is looked at when it fires.
    fn poll_idle(&mut self, cx: &mut Context<'_>, before: u64, live: &ConnectionHandle) -> Poll<()> {
        if self.to_server.bytes + self.to_client.bytes != before {
            self.moved = Instant::now();
            live.count(self.to_server.bytes, self.to_client.bytes, self.moved);
        }
        let limit = match (self.to_server.ended, self.tells_server) {
            (false, _) => self.idle,
            (true, false) => self.idle.min(LAST_ANSWERS),
            (true, true) => self.idle.min(HALF_CLOSED_IDLE),
        };
        let due = self.moved + limit;
        if self.timer.deadline() > due {
            self.timer.as_mut().reset(due);
        }
        loop {
            ready!(self.timer.as_mut().poll(cx));
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(due);
        }
    }

    /// Last words, if they do not land in the middle of an answer.
    async fn send_farewell(&mut self, farewell: &[u8]) {
        use tokio::io::AsyncWriteExt;
        if !self.to_client.held.is_empty() || self.to_client.last_byte != b'\n' {
            return;
        }
        let _ = tokio::time::timeout(FAREWELL, async {
            self.client.write_all(farewell).await?;
            self.client.shutdown().await
        })
        .await;
    }

    fn ended(&self, by: EndedBy, why: Option<&'static str>) -> RelayEnd {
        RelayEnd {
            by,
            why,
            bytes_in: self.to_server.bytes,
            bytes_out: self.to_client.bytes,
        }
    }
}

enum Side {
    Read,
    Write,
}

impl Flow {
    /// Moves what can be moved. Resolves when the reading side has ended and all that came from it has been written.
    fn poll(&mut self, cx: &mut Context<'_>, from: &mut BoxStream, to: &mut BoxStream) -> Poll<Result<(), Side>> {
        loop {
            ready!(self.poll_drain(cx, to)).map_err(|_| Side::Write)?;
            if self.ended {
                let _ = self.poll_flush(cx, to)?;
                return Poll::Ready(Ok(()));
            }
            match self.poll_move(cx, from, to) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(side)) => return Poll::Ready(Err(side)),
                Poll::Pending => return self.poll_flush(cx, to),
            }
        }
    }

    /// Tells the writing side that the reading side has ended.
    fn poll_tell(&mut self, cx: &mut Context<'_>, to: &mut BoxStream) -> Poll<Result<(), Side>> {
        if !self.told {
            ready!(Pin::new(to).poll_shutdown(cx)).map_err(|_| Side::Write)?;
            self.told = true;
        }
        Poll::Ready(Ok(()))
    }

    /// One read, and as much of it written as the other side takes.
    fn poll_move(&mut self, cx: &mut Context<'_>, from: &mut BoxStream, to: &mut BoxStream) -> Poll<Result<(), Side>> {
        BUFFER.with_borrow_mut(|scratch| {
            let mut read = ReadBuf::new(scratch);
            ready!(Pin::new(from).poll_read(cx, &mut read)).map_err(|_| Side::Read)?;
            let mut bytes = read.filled();
            let Some(&last) = bytes.last() else {
                self.ended = true;
                return Poll::Ready(Ok(()));
            };
            self.bytes += bytes.len() as u64;
            self.last_byte = last;
            self.unflushed = true;
            while !bytes.is_empty() {
                match Pin::new(&mut *to).poll_write(cx, bytes) {
                    Poll::Ready(Ok(0)) | Poll::Ready(Err(_)) => return Poll::Ready(Err(Side::Write)),
                    Poll::Ready(Ok(n)) => bytes = &bytes[n..],
                    Poll::Pending => {
                        self.held = bytes.to_vec();
                        break;
                    }
                }
            }
            Poll::Ready(Ok(()))
        })
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>, to: &mut BoxStream) -> Poll<Result<(), ()>> {
        while self.taken < self.held.len() {
            match ready!(Pin::new(&mut *to).poll_write(cx, &self.held[self.taken..])) {
                Ok(0) | Err(_) => return Poll::Ready(Err(())),
                Ok(n) => self.taken += n,
            }
            self.unflushed = true;
        }
        if !self.held.is_empty() {
            self.held = Vec::new();
            self.taken = 0;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>, to: &mut BoxStream) -> Poll<Result<(), Side>> {
        if self.unflushed {
            ready!(Pin::new(to).poll_flush(cx)).map_err(|_| Side::Write)?;
            self.unflushed = false;
        }
        Poll::Pending
    }
}

/// Resolves when the node ends this session.
async fn sessions_end(drain: &mut watch::Receiver<Drain>) {
    let over = match drain.wait_for(|drain| *drain > Drain::EndLogins).await.as_deref() {
        Ok(Drain::SpreadSessions(over)) => *over,
        // The sender lives as long as the process; if it is gone, so are we.
        _ => return,
    };
    // Boxed: few sessions ever come here, and all carry the room for it.
    let own_moment = Box::pin(tokio::time::sleep(over.mul_f64(lot())));
    tokio::select! {
        () = own_moment => {}
        _ = drain.wait_for(|drain| *drain == Drain::EndSessions) => {}
    }
}

/// A number between 0 and 1, by chance.
fn lot() -> f64 {
    let seed = RandomState::new().build_hasher().finish();
    f64::from((seed >> 32) as u32) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    struct Stage {
        client: DuplexStream,
        server: DuplexStream,
        drain: watch::Sender<Drain>,
        live: Arc<ConnectionHandle>,
        relay: tokio::task::JoinHandle<RelayEnd>,
    }

    fn stage(pipe: usize, idle: Duration) -> Stage {
        let (client, near) = duplex(pipe);
        let (server, far) = duplex(pipe);
        let (drain, mut watch) = watch::channel(Drain::Running);
        let mut relay = Relay::new(Box::new(near), Box::new(far), idle);
        relay.owe_client(b"a OK\r\n".to_vec());
        relay.owe_server(b"b NOOP\r\n".to_vec());
        let live = Arc::new(ConnectionHandle::new());
        let seen = live.clone();
        let farewell = Farewell {
            usual: b"* BYE\r\n",
            kick: b"* BYE kicked\r\n",
            moved: b"* BYE moved\r\n",
        };
        let relay = tokio::spawn(async move { relay.run(&mut watch, &seen, &farewell).await });
        Stage {
            live,
            client,
            server,
            drain,
            relay,
        }
    }

    async fn expect(stream: &mut DuplexStream, text: &[u8]) {
        let mut got = vec![0; text.len()];
        stream.read_exact(&mut got).await.unwrap();
        assert_eq!(got, text);
    }

    #[tokio::test(start_paused = true)]
    async fn carries_bytes_both_ways_and_the_half_close() {
        let mut s = stage(16, Duration::from_secs(60));
        expect(&mut s.client, b"a OK\r\n").await;
        expect(&mut s.server, b"b NOOP\r\n").await;
        s.client.write_all(b"c LOGOUT\r\n").await.unwrap();
        s.client.shutdown().await.unwrap();
        expect(&mut s.server, b"c LOGOUT\r\n").await;
        // The server learns of the end when it has been silent for a moment.
        let begun = Instant::now();
        for _ in 0..5 {
            tokio::time::sleep(LAST_ANSWERS * 3 / 4).await;
            s.server.write_all(b"* 1\r\n").await.unwrap();
            expect(&mut s.client, b"* 1\r\n").await;
        }
        assert_eq!(s.server.read(&mut [0; 8]).await.unwrap(), 0);
        assert_eq!(begun.elapsed().as_millis(), (LAST_ANSWERS * 19 / 4).as_millis());
        s.server.write_all(b"* BYE\r\n").await.unwrap();
        expect(&mut s.client, b"* BYE\r\n").await;
        drop(s.server);
        let ended = s.relay.await.unwrap();
        assert_eq!((ended.by, ended.bytes_in, ended.bytes_out), (EndedBy::Client, 18, 32));
    }

    #[tokio::test]
    async fn bulk_through_a_narrow_pipe_is_the_same() {
        let mut s = stage(100, Duration::from_secs(60));
        expect(&mut s.client, b"a OK\r\n").await;
        let sent: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
        let copy = sent.clone();
        let writer = tokio::spawn(async move {
            s.server.write_all(&copy).await.unwrap();
            s.server
        });
        let mut got = vec![0; sent.len()];
        s.client.read_exact(&mut got).await.unwrap();
        assert!(got == sent);
        drop(writer.await.unwrap());
        assert_eq!(s.relay.await.unwrap().by, EndedBy::Upstream);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_ends_with_a_farewell() {
        let mut s = stage(64, Duration::from_secs(60));
        expect(&mut s.client, b"a OK\r\n").await;
        tokio::time::sleep(Duration::from_secs(50)).await;
        s.server.write_all(b"* 1 EXISTS\r\n").await.unwrap();
        expect(&mut s.client, b"* 1 EXISTS\r\n").await;
        tokio::time::sleep(Duration::from_secs(50)).await;
        assert!(!s.relay.is_finished(), "the clock starts again with each byte");
        expect(&mut s.client, b"* BYE\r\n").await;
        assert_eq!(s.relay.await.unwrap().why, Some("idle"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_kick_ends_with_its_own_words() {
        let mut s = stage(64, Duration::from_secs(60));
        expect(&mut s.client, b"a OK\r\n").await;
        expect(&mut s.server, b"b NOOP\r\n").await;
        s.server.write_all(b"* 1 EXISTS\r\n").await.unwrap();
        expect(&mut s.client, b"* 1 EXISTS\r\n").await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!((s.live.bytes(), s.live.idle().as_secs()), ((8, 12), 5));
        s.live.end(CloseReason::Kick);
        expect(&mut s.client, b"* BYE kicked\r\n").await;
        assert_eq!(s.client.read(&mut [0; 8]).await.unwrap(), 0);
        assert_eq!(s.relay.await.unwrap().by, EndedBy::Kick);
    }

    #[tokio::test(start_paused = true)]
    async fn a_move_waits_for_the_answer_to_a_command() {
        let mut s = stage(64, Duration::from_secs(60));
        expect(&mut s.client, b"a OK\r\n").await;
        expect(&mut s.server, b"b NOOP\r\n").await;
        s.live.end(CloseReason::Moved);
        tokio::time::sleep(Duration::from_secs(2)).await;
        s.server.write_all(b"* 1 FETCH (BODY[] {100}\r\nhalf").await.unwrap();
        expect(&mut s.client, b"* 1 FETCH (BODY[] {100}\r\nhalf").await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        s.server.write_all(b")\r\nb OK\r\n").await.unwrap();
        expect(&mut s.client, b")\r\nb OK\r\n* BYE moved\r\n").await;
        assert_eq!(s.client.read(&mut [0; 8]).await.unwrap(), 0);
        let end = s.relay.await.unwrap();
        assert_eq!((end.by, end.why), (EndedBy::Portico, Some("moved")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_move_waits_no_longer_than_a_command_may_take_and_a_kick_not_at_all() {
        for kicked in [false, true] {
            let mut s = stage(64, Duration::from_secs(60));
            expect(&mut s.client, b"a OK\r\n").await;
            expect(&mut s.server, b"b NOOP\r\n").await;
            let begun = Instant::now();
            s.live.end(CloseReason::Moved);
            if kicked {
                tokio::time::sleep(Duration::from_millis(100)).await;
                s.live.end(CloseReason::Kick);
            }
            let end = s.relay.await.unwrap();
            let expected = if kicked {
                (EndedBy::Kick, 0)
            } else {
                (EndedBy::Portico, 5)
            };
            assert_eq!((end.by, begun.elapsed().as_secs()), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_farewell_in_the_middle_of_a_line() {
        let mut s = stage(64, Duration::from_secs(60));
        expect(&mut s.client, b"a OK\r\n").await;
        s.server.write_all(b"* 1 FETCH (BODY[] {100}\r\nhalf").await.unwrap();
        expect(&mut s.client, b"* 1 FETCH (BODY[] {100}\r\nhalf").await;
        s.drain.send(Drain::EndSessions).unwrap();
        assert_eq!(s.client.read(&mut [0; 8]).await.unwrap(), 0);
        assert_eq!(s.relay.await.unwrap().why, Some("drain"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_left_does_not_hold_the_server_for_long() {
        let mut s = stage(64, Duration::from_secs(3600));
        expect(&mut s.client, b"a OK\r\n").await;
        // However long it had been silent before.
        tokio::time::sleep(2 * HALF_CLOSED_IDLE).await;
        s.client.shutdown().await.unwrap();
        let begun = Instant::now();
        assert_eq!(s.relay.await.unwrap().by, EndedBy::Client);
        assert_eq!(begun.elapsed().as_secs(), HALF_CLOSED_IDLE.as_secs());
    }
}
