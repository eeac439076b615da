//! Mailbox servers that lie, stall or break: what a real one does only on its worst day.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use openssl::ssl::{SslAcceptor, SslStream};

/// A server that plays a script on every connection and records what it received. It ends when dropped.
pub struct Fake {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<u8>>>,
    ended: Arc<AtomicBool>,
    connections: Arc<Mutex<usize>>,
    resumed: Arc<Mutex<usize>>,
}

/// The server's end of a connection.
pub struct Peer {
    stream: BufReader<Box<dyn PeerStream>>,
    heard: Arc<Mutex<Vec<u8>>>,
    ended: Arc<AtomicBool>,
}

trait PeerStream: Read + Write + Send {
    /// Ends what is sent: in TLS with its closing message.
    fn end(&mut self) -> Result<()>;
}

impl PeerStream for TcpStream {
    fn end(&mut self) -> Result<()> {
        Ok(self.shutdown(Shutdown::Write)?)
    }
}

impl PeerStream for SslStream<TcpStream> {
    fn end(&mut self) -> Result<()> {
        self.shutdown()?;
        self.get_mut().end()
    }
}

impl Fake {
    /// Starts one in clear text, or in TLS.
    pub fn start(
        address: impl Into<SocketAddr>,
        tls: Option<SslAcceptor>,
        script: impl Fn(&mut Peer) -> Result<()> + Send + Sync + 'static,
    ) -> Result<Self> {
        let address = address.into();
        let listener = TcpListener::bind(address).with_context(|| format!("listening on {address}"))?;
        let fake = Self {
            address,
            heard: Arc::default(),
            ended: Arc::default(),
            connections: Arc::default(),
            resumed: Arc::default(),
        };
        let (heard, ended, connections) = (fake.heard.clone(), fake.ended.clone(), fake.connections.clone());
        let resumed = fake.resumed.clone();
        let script = Arc::new(script);
        thread::spawn(move || {
            for tcp in listener.incoming().flatten() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                *connections.lock().expect("nobody panics holding it") += 1;
                let (heard, ended, tls, script) = (heard.clone(), ended.clone(), tls.clone(), script.clone());
                let resumed = resumed.clone();
                thread::spawn(move || {
                    let peer = Peer::accept(tcp, tls, heard, ended, &resumed);
                    let _other_side_left = peer.and_then(|mut peer| script(&mut peer));
                });
            }
        });
        Ok(fake)
    }

    /// Every byte it received, from all connections.
    pub fn heard(&self) -> String {
        String::from_utf8_lossy(&self.heard.lock().expect("nobody panics holding it")).into_owned()
    }

    /// How many connections it accepted.
    pub fn connections(&self) -> usize {
        *self.connections.lock().expect("nobody panics holding it")
    }

    /// How many of them resumed a TLS session.
    pub fn resumed(&self) -> usize {
        *self.resumed.lock().expect("nobody panics holding it")
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _wakes_it = TcpStream::connect(self.address);
    }
}

impl Peer {
    fn accept(
        tcp: TcpStream,
        tls: Option<SslAcceptor>,
        heard: Arc<Mutex<Vec<u8>>>,
        ended: Arc<AtomicBool>,
        resumed: &Mutex<usize>,
    ) -> Result<Self> {
        let stream: Box<dyn PeerStream> = match tls {
            Some(tls) => {
                let stream = tls.accept(tcp)?;
                *resumed.lock().expect("nobody panics holding it") += usize::from(stream.ssl().session_reused());
                Box::new(stream)
            }
            None => Box::new(tcp),
        };
        Ok(Self {
            stream: BufReader::new(stream),
            heard,
            ended,
        })
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        self.stream.get_mut().write_all(bytes.as_ref())?;
        Ok(self.stream.get_mut().flush()?)
    }

    /// Ends what is sent: in TLS with its closing message, which is not sent otherwise.
    pub fn end(&mut self) -> Result<()> {
        self.stream.get_mut().end()
    }

    /// Sends a line.
    pub fn say(&mut self, line: &str) -> Result<()> {
        self.send(format!("{line}\r\n"))
    }

    /// The next line.
    pub fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        if self.stream.read_until(b'\n', &mut line)? == 0 {
            bail!("the other side left");
        }
        self.heard
            .lock()
            .expect("nobody panics holding it")
            .extend_from_slice(&line);
        Ok(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned())
    }

    /// Sends nothing more, and reads until the other side closes or the server ends.
    pub fn freeze(&mut self) -> Result<()> {
        while !self.ended.load(Ordering::SeqCst) {
            match self.line() {
                Ok(_) => {}
                Err(e) => return Err(e),
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// So many bytes.
    pub fn bytes(&mut self, count: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Sends and reads nothing more until the server ends.
    pub fn hang(&self) {
        while !self.ended.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// An IMAP dialogue from greeting to login, which is answered with `answer` behind its tag.
    pub fn imap_login(&mut self, answer: &str) -> Result<()> {
        let tag = self.imap_hears_login()?;
        self.say(&format!("{tag} {answer}"))
    }

    /// Takes an IMAP login, and says nothing to it.
    pub fn imap_login_unanswered(&mut self) -> Result<()> {
        self.imap_hears_login()?;
        self.freeze()
    }

    /// The tag of the command with the password.
    fn imap_hears_login(&mut self) -> Result<String> {
        self.say("* OK ready")?;
        loop {
            let line = self.line()?;
            let mut words = line.split(' ');
            let (tag, command) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            match command.to_ascii_uppercase().as_str() {
                "LOGIN" => {
                    self.literals(&line)?;
                    return Ok(tag.to_owned());
                }
                "AUTHENTICATE" => {
                    if words.nth(1).is_none() {
                        self.say("+ ")?;
                        self.line()?;
                    }
                    return Ok(tag.to_owned());
                }
                _ => self.say(&format!("{tag} OK done"))?,
            }
        }
    }

    /// Reads on while lines end in a literal, which comes as a line of its own here.
    fn literals(&mut self, first: &str) -> Result<()> {
        let mut line = first.to_owned();
        while line.ends_with('}') {
            if !line.ends_with("+}") {
                self.say("+ go on")?;
            }
            line = self.line()?;
        }
        Ok(())
    }
}
