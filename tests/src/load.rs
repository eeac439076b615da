//! A load generator for mail: many clients at a time, each of which does the same again and again, and is timed.
//!
//! Every answer is read and checked; a run in which one of them is not what it must be has failed. It knows nothing
//! of the server's certificate: it measures, and verifies nothing.

use std::net::{SocketAddr, SocketAddrV4};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use openssl::ssl::{Ssl, SslContext, SslMethod, SslVerifyMode};
use socket2::SockRef;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpSocket;
use tokio_openssl::SslStream;

/// A protocol of mail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mail {
    /// IMAP.
    Imap,
    /// POP3.
    Pop3,
}

/// What each client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Connect, log in, one command, log out.
    Login,
    /// Log in once, then fetch mails of this many bytes; a mail is a unit.
    Fetch(usize),
    /// Log in, fetch mails from 1 to 256 KiB, IDLE, log out; IMAP only.
    Mixed,
}

/// Where to, and how much.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// The server.
    pub address: SocketAddrV4,
    /// What it speaks.
    pub mail: Mail,
    /// Inside TLS.
    pub tls: bool,
    /// What each client does.
    pub act: Act,
    /// Clients at a time.
    pub clients: usize,
    /// Units in all.
    pub units: usize,
    /// Accounts to log in as, `user0@a.example` and so on.
    pub accounts: usize,
    /// The first of them.
    pub first_account: usize,
    /// Octets of a TCP segment, if it is to be smaller than on loopback.
    pub segment: Option<u32>,
}

/// What came out.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// How long all of it took.
    pub took: Duration,
    /// How long each unit took, shortest first.
    pub each: Vec<Duration>,
}

impl Outcome {
    /// Units in a second.
    pub fn rate(&self) -> f64 {
        self.each.len() as f64 / self.took.as_secs_f64()
    }

    /// The time in which this part of all units was done, in milliseconds.
    pub fn percentile(&self, part: f64) -> f64 {
        let at = (self.each.len() as f64 * part) as usize;
        let found = self.each.get(at.min(self.each.len().saturating_sub(1)));
        found.map_or(0.0, |time| time.as_secs_f64() * 1000.0)
    }
}

/// Anything that carries a dialogue.
pub trait Channel: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Channel for T {}

impl Load {
    /// Runs it.
    ///
    /// # Errors
    /// A unit failed: its answer was not what it must be, or the connection broke.
    pub async fn run(self) -> Result<Outcome> {
        let mut tls = SslContext::builder(SslMethod::tls_client())?;
        tls.set_verify(SslVerifyMode::NONE);
        let (tls, next) = (tls.build(), Arc::new(AtomicUsize::new(0)));
        let start = Instant::now();
        let clients: Vec<_> = (0..self.clients)
            .map(|_| tokio::spawn(self.client(tls.clone(), next.clone())))
            .collect();
        let mut each = Vec::with_capacity(self.units);
        for client in clients {
            each.extend(client.await??);
        }
        let took = start.elapsed();
        each.sort_unstable();
        Ok(Outcome { took, each })
    }

    /// One client: takes the next unit until there is none.
    async fn client(self, tls: SslContext, next: Arc<AtomicUsize>) -> Result<Vec<Duration>> {
        let mut each = Vec::new();
        let mut session = None;
        loop {
            let unit = next.fetch_add(1, Ordering::Relaxed);
            if unit >= self.units {
                return Ok(each);
            }
            let user = format!("user{}@a.example", (self.first_account + unit) % self.accounts);
            let start = Instant::now();
            match self.act {
                Act::Login => {
                    let mut wire = self.login(&tls, &user).await?;
                    wire.leave(self.mail).await?;
                }
                Act::Mixed => {
                    let mut wire = self.login(&tls, &user).await?;
                    wire.mixed().await?;
                    wire.leave(self.mail).await?;
                }
                Act::Fetch(size) => {
                    if session.is_none() {
                        session = Some(self.login(&tls, &user).await?);
                    }
                    let wire = session.as_mut().context("it was just opened")?;
                    wire.fetch(size).await?;
                }
            }
            each.push(start.elapsed());
        }
    }

    async fn login(&self, tls: &SslContext, user: &str) -> Result<LoadSession> {
        let socket = TcpSocket::new_v4()?;
        if let Some(segment) = self.segment {
            SockRef::from(&socket).set_tcp_mss(segment)?;
        }
        let tcp = socket.connect(SocketAddr::from(self.address)).await?;
        tcp.set_nodelay(true)?;
        let stream: Box<dyn Channel> = if self.tls {
            let mut ssl = Ssl::new(tls)?;
            ssl.set_hostname("mail.example.test")?;
            let mut stream = SslStream::new(ssl, tcp)?;
            Pin::new(&mut stream).connect().await?;
            Box::new(stream)
        } else {
            Box::new(tcp)
        };
        let mut wire = LoadSession(BufReader::with_capacity(16 * 1024, stream));
        match self.mail {
            Mail::Imap => {
                wire.must("", "* OK").await?;
                wire.must(&format!("a LOGIN {user} secret\r\n"), "a OK").await?;
                wire.must("b SELECT INBOX\r\n", "b OK").await?;
            }
            Mail::Pop3 => {
                wire.must("", "+OK").await?;
                wire.must(&format!("USER {user}\r\n"), "+OK").await?;
                wire.must("PASS secret\r\n", "+OK").await?;
                wire.must("STAT\r\n", "+OK 1").await?;
            }
        }
        Ok(wire)
    }
}

struct LoadSession(BufReader<Box<dyn Channel>>);

impl LoadSession {
    /// Sends a command and reads one line, which must begin so.
    async fn must(&mut self, say: &str, start: &str) -> Result<()> {
        self.0.write_all(say.as_bytes()).await?;
        let mut line = String::new();
        self.0.read_line(&mut line).await?;
        ensure!(line.starts_with(start), "expected {start:?}, got {line:?}");
        Ok(())
    }

    async fn leave(&mut self, mail: Mail) -> Result<()> {
        match mail {
            Mail::Imap => {
                self.must("z LOGOUT\r\n", "* BYE").await?;
                self.must("", "z OK").await
            }
            Mail::Pop3 => self.must("QUIT\r\n", "+OK").await,
        }
    }

    async fn mixed(&mut self) -> Result<()> {
        for size in [1024, 16 * 1024, 256 * 1024] {
            self.fetch(size).await?;
        }
        self.must("i IDLE\r\n", "+").await?;
        self.must("DONE\r\n", "i OK").await?;
        self.must("n NOOP\r\n", "n OK").await
    }

    async fn fetch(&mut self, size: usize) -> Result<()> {
        self.must(&format!("f FETCH {size}\r\n"), "* 1 FETCH").await?;
        let mut left = size;
        while left > 0 {
            let seen = self.0.fill_buf().await?.len().min(left);
            ensure!(seen > 0, "the mail ended early");
            self.0.consume(seen);
            left -= seen;
        }
        self.must("", ")").await?;
        self.must("", "f OK").await
    }
}
