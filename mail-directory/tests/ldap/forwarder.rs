//! A firewall between Portico and slapd that can forget its connections: nothing passes on them any more, and neither
//! side hears of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub(crate) struct Forwarder {
    port: u16,
    forgotten: watch::Sender<usize>,
    opened: Arc<AtomicUsize>,
}

impl Forwarder {
    /// Listens on the loopback address and passes on to `server`.
    pub(crate) async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (forgotten, opened) = (watch::Sender::new(0), Arc::new(AtomicUsize::new(0)));
        let forwarder = Self {
            port: listener.local_addr().unwrap().port(),
            forgotten: forgotten.clone(),
            opened: opened.clone(),
        };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                opened.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(pass(client, server, forgotten.subscribe()));
            }
        });
        forwarder
    }

    /// `ldap://…`
    pub(crate) fn url(&self) -> String {
        format!("ldap://127.0.0.1:{}", self.port)
    }

    /// Forgets all connections that are open now.
    pub(crate) fn forget(&self) {
        self.forgotten.send_modify(|times| *times += 1);
    }

    /// How many connections there were.
    pub(crate) fn opened(&self) -> usize {
        self.opened.load(Ordering::SeqCst)
    }
}

/// Passes bytes until the connection is forgotten; then both ends stay open.
async fn pass(mut client: TcpStream, server: SocketAddr, mut forgotten: watch::Receiver<usize>) {
    let mut server = TcpStream::connect(server).await.unwrap();
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
        _ = forgotten.changed() => std::future::pending().await,
    }
}
