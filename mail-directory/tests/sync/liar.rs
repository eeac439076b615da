//! A server between Portico and slapd that lies where it is asked one thing: to tell changes, or for a name. Everything
//! else goes through.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// The number of the control that asks for changes, as it stands in a request.
const ASKED: &[u8] = b"1.3.6.1.4.1.4203.1.9.1.1";

/// The control that says that there are more pages (RFC 2696).
const PAGED: &[u8] = b"1.2.840.113556.1.4.319";

/// What it says to that.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Answer {
    /// These bytes, and then nothing.
    Bytes(&'static [u8]),
    /// Sequences in sequences, ten thousand deep.
    Nested,
    /// That far too many entries are still there.
    Present,
    /// Nothing.
    Silence,
    /// The end of the search, with the word that there are more pages; whatever is asked.
    Pages,
    /// That there is no such place in the tree.
    NoTree,
    /// That another server knows more, and no entry.
    Reference,
    /// More entries than anybody asked for.
    TooMany,
    /// It closes the connection.
    End,
    /// What slapd says, until it is told to speak nonsense.
    Truth,
}

impl Answer {
    /// The end of the search with `e-syncRefreshRequired`.
    pub(crate) const REFRESH_REQUIRED: Self = Self::Bytes(&[
        0x30, 0x0d, 0x02, 0x01, 0x04, 0x65, 0x08, 0x0a, 0x02, 0x10, 0x00, 0x04, 0x00, 0x04, 0x00,
    ]);
    /// The same with `unwillingToPerform`.
    pub(crate) const UNWILLING: Self = Self::Bytes(&[
        0x30, 0x0c, 0x02, 0x01, 0x04, 0x65, 0x07, 0x0a, 0x01, 0x35, 0x04, 0x00, 0x04, 0x00,
    ]);
    /// The same with `insufficientAccessRights`.
    pub(crate) const NO_RIGHT: Self = Self::Bytes(&[
        0x30, 0x0c, 0x02, 0x01, 0x04, 0x65, 0x07, 0x0a, 0x01, 0x32, 0x04, 0x00, 0x04, 0x00,
    ]);
    /// The truth at first.
    pub(crate) const LATER: Self = Self::Truth;

    /// To the request with this number.
    fn bytes(self, id: &[u8]) -> Vec<u8> {
        let message = |parts: &[Vec<u8>]| element(0x30, &[id.to_vec(), parts.concat()].concat());
        let done = |code: u8| element(0x65, &[0x0a, 1, code, 0x04, 0, 0x04, 0]);
        let cookie = element(0x30, &[0x02, 1, 0, 0x04, 1, b'c']);
        let paged = element(0x30, &[element(0x04, PAGED), element(0x04, &cookie)].concat());
        let entry = |i: u32| {
            element(
                0x64,
                &[element(0x04, format!("uid={i}").as_bytes()), element(0x30, &[])].concat(),
            )
        };
        match self {
            Self::Pages => message(&[done(0), element(0xa0, &paged)]),
            Self::NoTree => message(&[done(32)]),
            Self::Reference => [
                message(&[element(0x73, &element(0x04, b"ldap://other.test"))]),
                message(&[done(0)]),
            ]
            .concat(),
            Self::TooMany => (0..100)
                .flat_map(|i| message(&[entry(i)]))
                .chain(message(&[done(0)]))
                .collect(),
            Self::Bytes(bytes) => bytes.to_vec(),
            Self::Nested => (0..10_000).fold(vec![0x04, 0x00], |inner, _| element(0x30, &inner)),
            Self::Present => (0..200).flat_map(|_| present()).collect(),
            Self::Silence | Self::End | Self::Truth => Vec::new(),
        }
    }
}

/// A Sync Info message with a hundred numbers of entries.
fn present() -> Vec<u8> {
    let uuids: Vec<u8> = (0..100).flat_map(|_| element(0x04, &[7; 16])).collect();
    let set = element(0xa3, &element(0x31, &uuids));
    let response = [element(0x80, b"1.3.6.1.4.1.4203.1.9.1.4"), element(0x81, &set)].concat();
    element(0x30, &[vec![0x02, 0x01, 0x04], element(0x79, &response)].concat())
}

/// The number of a request, as it stands there.
fn number(request: &[u8]) -> &[u8] {
    let is_number = |part: &[u8]| part[0] == 0x02 && (1..=4).contains(&part[1]);
    let Some(at) = request.windows(2).position(is_number) else {
        return &[];
    };
    &request[at..at + 2 + usize::from(request[at + 1])]
}

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap().to_be_bytes();
    [&[tag, 0x84], &length[..], content].concat()
}

pub(crate) struct Liar {
    port: u16,
    spoil: Arc<Notify>,
}

impl Liar {
    /// Listens on the loopback address, before this server; lies where changes are asked for.
    pub(crate) async fn start(server: SocketAddr, answer: Answer) -> Self {
        Self::about(ASKED, server, answer).await
    }

    /// The same; lies where a request has these bytes in it.
    pub(crate) async fn about(asked: &'static [u8], server: SocketAddr, answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let spoil = Arc::new(Notify::new());
        let liar = Self {
            port: listener.local_addr().unwrap().port(),
            spoil: spoil.clone(),
        };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, server, asked, answer, spoil.clone()));
            }
        });
        liar
    }

    /// `ldap://…`
    pub(crate) fn url(&self) -> String {
        format!("ldap://127.0.0.1:{}", self.port)
    }

    /// Has the connection on which changes are told speak nonsense from now on.
    pub(crate) fn spoil(&self) {
        self.spoil.notify_waiters();
    }
}

async fn pass(mut client: TcpStream, server: SocketAddr, about: &[u8], answer: Answer, spoil: Arc<Notify>) {
    let mut server = TcpStream::connect(server).await.unwrap();
    let (mut asked, mut said) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let mut tells = false;
    loop {
        tokio::select! {
            Ok(length) = client.read(&mut asked) => {
                let request = &asked[..length];
                if length == 0 {
                    return;
                }
                tells |= request.windows(about.len()).any(|part| part == about);
                match (tells, answer) {
                    (true, Answer::End) => return,
                    (false, _) | (true, Answer::Truth) => server.write_all(request).await.unwrap(),
                    (true, answer) => {
                        let id = number(request);
                        let _ = client.write_all(&answer.bytes(id)).await;
                        if !matches!(answer, Answer::Pages | Answer::NoTree) {
                            return std::future::pending().await;
                        }
                    }
                }
            }
            Ok(length) = server.read(&mut said) => {
                if length == 0 {
                    return;
                }
                let _ = client.write_all(&said[..length]).await;
            }
            () = spoil.notified(), if tells => {
                let _ = client.write_all(&[0x30, 0x03, 0x02, 0x01, 0x04]).await;
                return std::future::pending().await;
            }
            else => return,
        }
    }
}
