//! A client's connection, line by line or byte by byte, in clear text or TLS, with a deadline on every wait.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, SocketAddrV4, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use openssl::nid::Nid;
use openssl::ssl::{ShutdownState, SslConnector, SslStream};
use socket2::{Domain, Socket, Type};

/// How long an answer may take, unless a test says otherwise.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection.
pub struct Wire {
    link: Link,
    unread: Vec<u8>,
}

enum Link {
    Clear(TcpStream),
    Tls(Box<SslStream<TcpStream>>),
}

impl Wire {
    /// Connects in clear text.
    pub fn clear(to: impl Into<SocketAddr>) -> Result<Self> {
        let to = to.into();
        Self::over(TcpStream::connect_timeout(&to, PATIENCE).with_context(|| format!("connecting to {to}"))?)
    }

    /// Connects in clear text from a given address.
    pub fn clear_from(from: IpAddr, to: SocketAddrV4) -> Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(from, 0).into())?;
        socket
            .connect(&to.into())
            .with_context(|| format!("connecting from {from} to {to}"))?;
        Self::over(socket.into())
    }

    /// Connects and starts TLS, asking for `name`.
    pub fn tls(to: SocketAddrV4, tls: &SslConnector, name: &str) -> Result<Self> {
        Self::clear(to)?.start_tls(tls, name)
    }

    /// Starts TLS on a connection in clear text. Verifies the certificate against `name`.
    pub fn start_tls(self, tls: &SslConnector, name: &str) -> Result<Self> {
        self.handshake(tls, name, true)
    }

    /// Starts TLS, asking for `name`, with a certificate for whatever name.
    pub fn start_tls_any_name(self, tls: &SslConnector, name: &str) -> Result<Self> {
        self.handshake(tls, name, false)
    }

    /// The connection's own address.
    pub fn local(&self) -> Result<SocketAddr> {
        Ok(self.tcp().local_addr()?)
    }

    /// The common name of the server's certificate.
    pub fn certificate_name(&self) -> Result<String> {
        let Link::Tls(tls) = &self.link else { bail!("no TLS") };
        let certificate = tls.ssl().peer_certificate().context("no certificate")?;
        let name = certificate
            .subject_name()
            .entries_by_nid(Nid::COMMONNAME)
            .next()
            .context("no common name")?;
        Ok(name.data().to_string()?)
    }

    /// The server's certificate, as it came (DER).
    pub fn certificate(&self) -> Result<Vec<u8>> {
        let Link::Tls(tls) = &self.link else { bail!("no TLS") };
        Ok(tls.ssl().peer_certificate().context("no certificate")?.to_der()?)
    }

    /// The protocol agreed upon by ALPN.
    pub fn alpn(&self) -> Option<String> {
        match &self.link {
            Link::Tls(tls) => tls
                .ssl()
                .selected_alpn_protocol()
                .map(|p| String::from_utf8_lossy(p).into_owned()),
            Link::Clear(_) => None,
        }
    }

    /// How long each wait for bytes may take from now on.
    pub fn patience(&self, wait: Duration) -> Result<()> {
        Ok(self.tcp().set_read_timeout(Some(wait))?)
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        match &mut self.link {
            Link::Clear(tcp) => tcp.write_all(bytes.as_ref()).context("sending"),
            Link::Tls(tls) => tls.write_all(bytes.as_ref()).context("sending in TLS"),
        }
    }

    /// Sends a line.
    pub fn say(&mut self, line: &str) -> Result<()> {
        self.send(format!("{line}\r\n"))
    }

    /// The next line, without its end. An end of the connection is an error.
    pub fn line(&mut self) -> Result<String> {
        match self.line_or_end()? {
            Some(line) => Ok(line),
            None => bail!("connection ended; unread: {:?}", String::from_utf8_lossy(&self.unread)),
        }
    }

    /// The next line, or none if the connection ended.
    pub fn line_or_end(&mut self) -> Result<Option<String>> {
        let mut seen = 0;
        loop {
            if let Some(at) = self.unread[seen..].iter().position(|b| *b == b'\n') {
                let mut line: Vec<u8> = self.unread.drain(..=seen + at).collect();
                line.pop();
                line.pop_if(|b| *b == b'\r');
                return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
            }
            seen = self.unread.len();
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// Exactly so many bytes.
    pub fn bytes(&mut self, count: usize) -> Result<Vec<u8>> {
        while self.unread.len() < count {
            ensure!(
                self.fill()?,
                "connection ended after {} of {count} bytes",
                self.unread.len()
            );
        }
        Ok(self.unread.drain(..count).collect())
    }

    /// Everything until the connection ends.
    pub fn rest(&mut self) -> Result<Vec<u8>> {
        while self.fill()? {}
        Ok(std::mem::take(&mut self.unread))
    }

    /// Whether TLS has ended with its closing message.
    pub fn is_closed_properly(&mut self) -> bool {
        match &mut self.link {
            Link::Clear(_) => false,
            Link::Tls(tls) => tls.get_shutdown().contains(ShutdownState::RECEIVED),
        }
    }

    /// Whether nothing comes for this long, and the connection does not end either.
    pub fn is_silent(&mut self, wait: Duration) -> Result<bool> {
        self.patience(wait)?;
        let silent = self.unread.is_empty() && self.fill().is_err();
        self.patience(PATIENCE)?;
        Ok(silent)
    }

    /// Closes the sending side.
    pub fn shut(&mut self) -> Result<()> {
        if let Link::Tls(tls) = &mut self.link {
            tls.shutdown()?;
        }
        Ok(self.tcp().shutdown(Shutdown::Write)?)
    }

    /// An IMAP command: sends the line and returns all answers up to the one with its tag.
    pub fn imap(&mut self, command: &str) -> Result<Vec<String>> {
        self.say(command)?;
        let tag = command.split(' ').next().unwrap_or_default();
        self.imap_answer(tag)
    }

    /// The lines up to the one with this tag.
    pub fn imap_answer(&mut self, tag: &str) -> Result<Vec<String>> {
        let mut lines = vec![self.line()?];
        while lines.last().is_none_or(|l| l.split(' ').next() != Some(tag)) {
            lines.push(
                self.line()
                    .with_context(|| format!("before the answer to {tag}, after {lines:?}"))?,
            );
        }
        Ok(lines)
    }

    /// An IMAP command that must be answered with OK.
    pub fn imap_ok(&mut self, command: &str) -> Result<Vec<String>> {
        let lines = self.imap(command)?;
        let tag = command.split(' ').next().unwrap_or_default();
        ensure!(
            lines.last().is_some_and(|l| l.starts_with(&format!("{tag} OK"))),
            "{lines:?}"
        );
        Ok(lines)
    }

    /// A POP3 command with an answer of one line.
    pub fn pop(&mut self, command: &str) -> Result<String> {
        self.say(command)?;
        self.line()
    }

    /// A POP3 command that must be answered with +OK.
    pub fn pop_ok(&mut self, command: &str) -> Result<String> {
        let line = self.pop(command)?;
        ensure!(line.starts_with("+OK"), "answer to a command: {line}");
        Ok(line)
    }

    /// The lines of a POP3 server's list, without the one that ends it.
    pub fn pop_list(&mut self, command: &str) -> Result<Vec<String>> {
        self.pop_ok(command)?;
        let mut lines = Vec::new();
        loop {
            match self.line()? {
                last if last == "." => return Ok(lines),
                line => lines.push(line),
            }
        }
    }

    fn over(tcp: TcpStream) -> Result<Self> {
        tcp.set_read_timeout(Some(PATIENCE))?;
        tcp.set_write_timeout(Some(PATIENCE))?;
        tcp.set_nodelay(true)?;
        Ok(Self {
            link: Link::Clear(tcp),
            unread: Vec::new(),
        })
    }

    fn handshake(self, tls: &SslConnector, name: &str, verify: bool) -> Result<Self> {
        ensure!(
            self.unread.is_empty(),
            "bytes before TLS: {:?}",
            String::from_utf8_lossy(&self.unread)
        );
        let Link::Clear(tcp) = self.link else {
            bail!("TLS in TLS")
        };
        let stream = tls.configure()?.verify_hostname(verify).connect(name, tcp);
        let stream = stream.map_err(|e| anyhow::anyhow!("TLS handshake asking for {name}: {e}"))?;
        Ok(Self {
            link: Link::Tls(Box::new(stream)),
            unread: Vec::new(),
        })
    }

    fn tcp(&self) -> &TcpStream {
        match &self.link {
            Link::Clear(tcp) => tcp,
            Link::Tls(tls) => tls.get_ref(),
        }
    }

    /// Reads once; false at the end of the connection.
    fn fill(&mut self) -> Result<bool> {
        let mut chunk = [0; 16384];
        let read = match &mut self.link {
            Link::Clear(tcp) => tcp.read(&mut chunk),
            Link::Tls(tls) => tls.read(&mut chunk),
        };
        match read {
            Ok(count) => {
                self.unread.extend_from_slice(&chunk[..count]);
                Ok(count > 0)
            }
            Err(e) if is_end(&e) => Ok(false),
            Err(e) => Err(e).context("waiting for bytes"),
        }
    }
}

/// A connection that was reset, or TLS that ended without close_notify, has ended all the same.
fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(
        error.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
    ) || error.to_string().contains("unexpected eof")
}
