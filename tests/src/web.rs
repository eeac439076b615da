//! A small web mail server: a page to log in and read mail, and for all else it returns the request as JSON; it takes
//! logins, streams bodies, echoes WebSockets.
//!
//! It stands in for the mailbox server's HTTP side, of which the tests need the protocol only. A thread for each
//! connection, in clear text and TLS.

mod http;
mod login;
mod webmail;

use std::io::{BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::{Context, Result};
use openssl::sha::Sha256;
use openssl::ssl::SslAcceptor;
use serde_json::json;

use crate::Stage;
use crate::certs::Pair;
use http::{Body, Request, Stream, respond, websocket};
pub use login::auth_token;

/// An account for logins on the web.
#[derive(Debug, Clone)]
pub struct Account {
    /// Name of the account.
    pub name: String,
    /// Its `zimbraId`.
    pub id: String,
    /// Its password.
    pub password: String,
}

/// A running web server. It ends when dropped.
pub struct WebBackend {
    /// In clear text.
    pub http: SocketAddrV4,
    /// With TLS.
    pub https: SocketAddrV4,
    state: Arc<BackendState>,
    acceptor: SslAcceptor,
    open: Option<Open>,
}

struct BackendState {
    name: String,
    /// A Maildir for each account that lives here.
    mail: PathBuf,
    accounts: Vec<Account>,
    ready: AtomicBool,
    asked: AtomicUsize,
}

/// What is open: a flag for the accepting threads, and every connection, to cut them.
struct Open {
    ended: Arc<AtomicBool>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl WebBackend {
    /// Starts one that calls itself `name` and shows the mails below `mail`.
    pub fn start(
        stage: &Stage,
        name: &str,
        ip: Ipv4Addr,
        pair: &Pair,
        accounts: Vec<Account>,
        mail: PathBuf,
    ) -> Result<Self> {
        let state = BackendState {
            name: name.to_owned(),
            mail,
            accounts,
            ready: AtomicBool::new(true),
            asked: AtomicUsize::new(0),
        };
        let http = SocketAddrV4::new(ip, stage.port()?);
        let https = SocketAddrV4::new(ip, stage.port()?);
        Self::open(state, http, https, pair)
    }

    /// Starts one that only echoes, at these addresses.
    pub fn echo(name: &str, http: SocketAddrV4, https: SocketAddrV4, pair: &Pair) -> Result<Self> {
        let state = BackendState {
            name: name.to_owned(),
            mail: PathBuf::new(),
            accounts: Vec::new(),
            ready: AtomicBool::new(true),
            asked: AtomicUsize::new(0),
        };
        Self::open(state, http, https, pair)
    }

    fn open(state: BackendState, http: SocketAddrV4, https: SocketAddrV4, pair: &Pair) -> Result<Self> {
        let mut backend = Self {
            http,
            https,
            state: Arc::new(state),
            acceptor: pair.acceptor()?,
            open: None,
        };
        backend.start_again()?;
        Ok(backend)
    }

    /// Listens again after [`WebBackend::stop`].
    pub fn start_again(&mut self) -> Result<()> {
        let mut open = Open {
            ended: Arc::default(),
            connections: Arc::default(),
            threads: Vec::new(),
        };
        for (address, tls) in [(self.http, None), (self.https, Some(self.acceptor.clone()))] {
            let listener = TcpListener::bind(address).with_context(|| format!("listening on {address}"))?;
            let (ended, connections, state) = (open.ended.clone(), open.connections.clone(), self.state.clone());
            open.threads.push(thread::spawn(move || {
                accept(&listener, tls, &ended, &connections, &state)
            }));
        }
        self.open = Some(open);
        Ok(())
    }

    /// Stops listening and cuts all connections.
    pub fn stop(&mut self) {
        let Some(open) = self.open.take() else { return };
        open.ended.store(true, Ordering::SeqCst);
        for address in [self.http, self.https] {
            let _wakes_it = TcpStream::connect(address);
        }
        for thread in open.threads {
            let _ended = thread.join();
        }
        for connection in open.connections.lock().expect("nobody panics holding it").iter() {
            let _cut = connection.shutdown(Shutdown::Both);
        }
    }

    /// Whether `/service/health/ready` says 200 or 500.
    pub fn set_ready(&self, ready: bool) {
        self.state.ready.store(ready, Ordering::SeqCst);
    }

    /// How many requests it got, health checks not counted.
    pub fn request_count(&self) -> usize {
        self.state.asked.load(Ordering::SeqCst)
    }
}

impl Drop for WebBackend {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The byte at a place of the endless body that `…/bytes-N` sends the beginning of.
pub fn pattern(at: u64) -> u8 {
    (at.wrapping_mul(0x9E37_79B9) >> 7) as u8
}

/// SHA-256 of the first `count` bytes of that body, in hex.
pub fn pattern_sha256(count: u64) -> String {
    let mut hash = Sha256::new();
    pattern_chunks(count, |chunk| {
        hash.update(chunk);
        Ok(())
    })
    .expect("hashing cannot fail");
    hex(&hash.finish())
}

fn accept(
    listener: &TcpListener,
    tls: Option<SslAcceptor>,
    ended: &AtomicBool,
    connections: &Mutex<Vec<TcpStream>>,
    state: &Arc<BackendState>,
) {
    for tcp in listener.incoming().flatten() {
        if ended.load(Ordering::SeqCst) {
            return;
        }
        if let Ok(copy) = tcp.try_clone() {
            connections.lock().expect("nobody panics holding it").push(copy);
        }
        let (tls, state) = (tls.clone(), state.clone());
        thread::spawn(move || {
            let _client_went_away = talk(tcp, tls, &state);
        });
    }
}

fn talk(tcp: TcpStream, tls: Option<SslAcceptor>, state: &BackendState) -> Result<()> {
    tcp.set_nodelay(true)?;
    let secure = tls.is_some();
    let stream: Box<dyn Stream> = match tls {
        Some(tls) => Box::new(tls.accept(tcp)?),
        None => Box::new(tcp),
    };
    let mut stream = BufReader::with_capacity(64 * 1024, stream);
    while let Some(request) = Request::read(&mut stream)? {
        let last = request
            .header("connection")
            .is_some_and(|c| c.eq_ignore_ascii_case("close"));
        state.answer(&request, secure, &mut stream)?;
        if last {
            break;
        }
    }
    Ok(())
}

impl BackendState {
    fn answer(&self, request: &Request, secure: bool, stream: &mut BufReader<Box<dyn Stream>>) -> Result<()> {
        if request.path() == "/service/health/ready" {
            let status = if self.ready.load(Ordering::SeqCst) { 200 } else { 500 };
            return respond(stream.get_mut(), status, &[], b"{}");
        }
        self.asked.fetch_add(1, Ordering::SeqCst);
        if request
            .header("upgrade")
            .is_some_and(|u| u.eq_ignore_ascii_case("websocket"))
        {
            return websocket(request, stream);
        }
        if let Some(count) = request.path().rsplit_once("/bytes-").and_then(|(_, n)| n.parse().ok()) {
            return stream_pattern(stream.get_mut(), count);
        }
        if webmail::answer(&self.name, &self.accounts, &self.mail, request, stream.get_mut())? {
            return Ok(());
        }
        let body = Body::read(request, stream)?;
        if let Some(wanted) = request.header("x-answer") {
            return answer_as_set(wanted, stream.get_mut());
        }
        if request.path().ends_with("/AuthRequest") {
            return login::answer(&self.accounts, &body.head, stream.get_mut());
        }
        if request.method == "POST" && request.path().starts_with("/zx/auth/") {
            return login::answer_zx(&self.accounts, &body.head, stream.get_mut());
        }
        if login::wants_basic(request.path()) && !login::basic_is_good(&self.accounts, request) {
            let challenge = [("WWW-Authenticate", "Basic realm=\"mail\"")];
            return respond(stream.get_mut(), 401, &challenge, b"authentication required\n");
        }
        let echo = json!({
            "server": self.name, "method": request.method, "target": request.target, "headers": request.headers,
            "tls": secure, "body_bytes": body.bytes, "body_sha256": body.sha256,
        });
        let text = format!("{echo}\n");
        respond(
            stream.get_mut(),
            200,
            &[("Content-Type", "application/json")],
            text.as_bytes(),
        )
    }
}

/// Answers what the request's `X-Answer` says: `{"status": 302, "headers": [["Location", "…"]], "body": "…"}`.
fn answer_as_set(wanted: &str, out: &mut dyn Stream) -> Result<()> {
    let wanted: serde_json::Value = serde_json::from_str(wanted)?;
    let headers = wanted["headers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let headers: Vec<(&str, &str)> = headers
        .iter()
        .filter_map(|pair| Some((pair[0].as_str()?, pair[1].as_str()?)))
        .collect();
    let status = wanted["status"].as_u64().and_then(|status| u16::try_from(status).ok());
    respond(
        out,
        status.context("no status")?,
        &headers,
        wanted["body"].as_str().unwrap_or_default().as_bytes(),
    )
}

fn stream_pattern(out: &mut dyn Stream, count: u64) -> Result<()> {
    write!(
        out,
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {count}\r\n\r\n"
    )?;
    pattern_chunks(count, |chunk| Ok(out.write_all(chunk)?))?;
    Ok(out.flush()?)
}

fn pattern_chunks(count: u64, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut at = 0;
    while at < count {
        let chunk: Vec<u8> = (at..count.min(at + 65536)).map(pattern).collect();
        take(&chunk)?;
        at += chunk.len() as u64;
    }
    Ok(())
}

/// A file's worth of that body, to upload.
pub fn pattern_file(path: &std::path::Path, count: u64) -> Result<()> {
    let mut file = std::fs::File::create(path)?;
    pattern_chunks(count, |chunk| Ok(file.write_all(chunk)?))
}

/// SHA-256 of a file, in hex.
pub fn file_sha256(path: &std::path::Path) -> Result<String> {
    let (mut file, mut hash, mut chunk) = (std::fs::File::open(path)?, Sha256::new(), vec![0; 65536]);
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hex(&hash.finish())),
            count => hash.update(&chunk[..count]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs::Authority;
    use crate::wire::Wire;

    #[test]
    fn echoes_and_takes_logins() -> Result<()> {
        Stage::run(|stage| {
            let ca = Authority::new(&stage.dir("ca")?)?;
            let pair = ca.server(&["store1.example.test", "127.0.0.2"])?;
            let alice = Account {
                name: "alice@a.example".into(),
                id: "11".into(),
                password: "pass <1>".into(),
            };
            let backend = WebBackend::start(
                stage,
                "store1",
                Ipv4Addr::new(127, 0, 0, 2),
                &pair,
                vec![alice],
                stage.path().join("mail"),
            )?;
            let mut wire = Wire::tls(backend.https, &ca.connector(&[])?, "store1.example.test")?;
            wire.send("POST /x?y=1 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")?;
            while !wire.line()?.is_empty() {}
            let echo: serde_json::Value = serde_json::from_str(&wire.line()?)?;
            assert_eq!(echo["target"], "/x?y=1");
            assert_eq!(echo["body_bytes"], 3);
            let soap = "<account by=\"name\">alice@a.example</account><password>pass &lt;1&gt;</password>";
            let head = format!(
                "POST /service/soap/AuthRequest HTTP/1.1\r\nContent-Length: {}\r\n\r\n",
                soap.len()
            );
            wire.send(head + soap)?;
            assert_eq!(wire.line()?, "HTTP/1.1 200 OK");
            assert!(wire.line()?.starts_with("Set-Cookie: ZM_AUTH_TOKEN=0_"));
            Ok(())
        })
    }
}
