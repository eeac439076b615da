//! What stands between Portico and a server: a firewall that can forget its connections, so that nothing passes on them
//! any more and neither side hears of it; or a long way, on which everything takes its time.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

/// Portions that are under way on a long way.
const UNDER_WAY: usize = 64;
/// The largest portion.
const PORTION: usize = 16 * 1024;

/// A forwarder on a port of its own. It works as long as its runtime does.
#[derive(Debug)]
pub struct Forwarder {
    port: u16,
    forgotten: watch::Sender<usize>,
    opened: Arc<AtomicUsize>,
}

impl Forwarder {
    /// Listens on the loopback address and passes on to `server`.
    ///
    /// # Errors
    /// No port is free.
    pub async fn start(server: SocketAddr) -> io::Result<Self> {
        Self::slow(server, Duration::ZERO).await
    }

    /// The same where what is said to `server` arrives this much later.
    ///
    /// # Errors
    /// No port is free.
    pub async fn slow(server: SocketAddr, late: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (forgotten, opened) = (watch::Sender::new(0), Arc::new(AtomicUsize::new(0)));
        let forwarder = Self {
            port: listener.local_addr()?.port(),
            forgotten: forgotten.clone(),
            opened: opened.clone(),
        };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                opened.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(pass(client, server, late, forgotten.subscribe()));
            }
        });
        Ok(forwarder)
    }

    /// `ldap://…`
    pub fn url(&self) -> String {
        format!("ldap://127.0.0.1:{}", self.port)
    }

    /// Forgets all connections that are open now.
    pub fn forget(&self) {
        self.forgotten.send_modify(|times| *times += 1);
    }

    /// How many connections there were.
    pub fn opened(&self) -> usize {
        self.opened.load(Ordering::SeqCst)
    }
}

/// Passes bytes until the connection is forgotten; then both ends stay open. A server that is not there closes it.
async fn pass(mut client: TcpStream, server: SocketAddr, late: Duration, mut forgotten: watch::Receiver<usize>) {
    let Ok(mut server) = TcpStream::connect(server).await else {
        return;
    };
    let passing = async {
        if late.is_zero() {
            tokio::io::copy_bidirectional(&mut client, &mut server).await.map(drop)
        } else {
            let (from_client, to_client) = client.split();
            let (from_server, to_server) = server.split();
            tokio::try_join!(
                pass_late(from_client, to_server, late),
                pass_late(from_server, to_client, Duration::ZERO)
            )
            .map(drop)
        }
    };
    tokio::select! {
        _ = passing => {}
        _ = forgotten.changed() => std::future::pending().await,
    }
}

/// Passes bytes one way, each so much later than it came.
async fn pass_late(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    late: Duration,
) -> io::Result<()> {
    let (begins, mut under_way) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let reads = async move {
        let mut portion = vec![0; PORTION];
        loop {
            let length = from.read(&mut portion).await?;
            let sent = begins.send((Instant::now() + late, portion[..length].to_vec())).await;
            if length == 0 || sent.is_err() {
                return Ok::<_, io::Error>(());
            }
        }
    };
    let writes = async move {
        while let Some((arrives, portion)) = under_way.recv().await {
            sleep_until(arrives).await;
            match portion.is_empty() {
                true => to.shutdown().await?,
                false => to.write_all(&portion).await?,
            }
        }
        Ok(())
    };
    tokio::try_join!(reads, writes).map(drop)
}
