//! Unauthenticated requests: spread evenly, and no client notices that a server dies and comes back.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use openssl::ssl::SslConnector;
use portico_tests::until;
use portico_tests::web::auth_token;
use portico_tests::wire::Wire;

use crate::scene::{Scene, play, timed};

const HOST: &str = "mail.a.example";
/// How long things may take that happen within two checks, on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// A connection that is used for one request after the other, and opened again when it was closed between them.
struct Client {
    endpoint: SocketAddrV4,
    tls: SslConnector,
    wire: Option<Wire>,
}

impl Client {
    fn new(scene: &Scene) -> Result<Self> {
        Ok(Self {
            endpoint: scene.town.endpoints.https,
            tls: scene.town.ca.connector(&["http/1.1"])?,
            wire: None,
        })
    }

    /// The status, and the server that answered.
    fn ask(&mut self, path: &str, more: &str) -> Result<(String, String)> {
        let mut wire = match self.wire.take() {
            Some(wire) => wire,
            None => Wire::tls(self.endpoint, &self.tls, HOST)?,
        };
        wire.send(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n{more}\r\n"))?;
        let status = wire.line()?.split(' ').nth(1).unwrap_or_default().to_owned();
        let (mut length, mut last) = (0, false);
        loop {
            let line = wire.line()?.to_ascii_lowercase();
            match line.split_once(": ") {
                Some(("content-length", value)) => length = value.parse()?,
                Some(("connection", "close")) => last = true,
                Some(_) => {}
                None => break,
            }
        }
        let body = wire.bytes(length)?;
        if !last {
            self.wire = Some(wire);
        }
        let echo: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        Ok((status, echo["server"].as_str().unwrap_or_default().to_owned()))
    }
}

/// People without a name who ask all the time.
struct Crowd {
    ended: Arc<AtomicBool>,
    heard: Arc<Mutex<BTreeMap<String, usize>>>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Crowd {
    fn gather(scene: &Scene) -> Result<Self> {
        let mut crowd = Self {
            ended: Arc::default(),
            heard: Arc::default(),
            threads: Vec::new(),
        };
        for _ in 0..4 {
            let (ended, heard, mut client) = (crowd.ended.clone(), crowd.heard.clone(), Client::new(scene)?);
            crowd.threads.push(thread::spawn(move || {
                while !ended.load(Ordering::SeqCst) {
                    let (status, server) = client.ask("/service/of-nobody", "")?;
                    ensure!(status == "200", "a client got {status}");
                    *heard
                        .lock()
                        .expect("nobody panics holding it")
                        .entry(server)
                        .or_default() += 1;
                }
                Ok(())
            }));
        }
        Ok(crowd)
    }

    /// Who has answered since the last call.
    fn take(&self) -> BTreeMap<String, usize> {
        std::mem::take(&mut self.heard.lock().expect("nobody panics holding it"))
    }

    /// Waits until so many more were answered, and says by whom.
    fn next(&self, count: usize) -> Result<BTreeMap<String, usize>> {
        self.take();
        until("answers", SOON, || {
            ensure!(!self.threads.iter().any(JoinHandle::is_finished), "a client has ended");
            let heard = self.heard.lock().expect("nobody panics holding it");
            Ok((heard.values().sum::<usize>() >= count).then_some(()))
        })?;
        Ok(self.take())
    }

    fn end(self) -> Result<()> {
        self.ended.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().expect("nobody panics")?;
        }
        Ok(())
    }
}

fn share(heard: &BTreeMap<String, usize>, server: &str) -> f64 {
    let all: usize = heard.values().sum();
    heard.get(server).copied().unwrap_or_default() as f64 / all.max(1) as f64
}

#[test]
fn a_server_dies_and_returns_and_no_client_notices() -> Result<()> {
    play(|scene| {
        let crowd = Crowd::gather(scene)?;
        // On a busy machine one may be slow at first, and has fewer requests for that.
        until("each to have its share", SOON, || {
            let heard = crowd.next(400)?;
            Ok((0.4..0.6).contains(&share(&heard, "store1")).then_some(()))
        })?;
        for _ in 0..2 {
            scene.town.stores[0].web.stop();
            crowd.next(20)?;
            let heard = crowd.next(200)?;
            assert_eq!(share(&heard, "store2"), 1.0, "{heard:?}");
            scene.town.stores[0].web.start_again()?;
            until("the server to be asked again", SOON, || {
                let heard = crowd.next(50).inspect_err(|error| eprintln!("{error:#}"))?;
                Ok((share(&heard, "store1") > 0.0).then_some(()))
            })?;
            until("it to have its share again", SOON, || {
                let heard = crowd.next(400)?;
                Ok((0.4..0.6).contains(&share(&heard, "store1")).then_some(()))
            })?;
        }
        crowd.end().context("a client has noticed")
    })
}

#[test]
fn a_server_that_is_not_ready_is_left_out() -> Result<()> {
    play(|scene| {
        let crowd = Crowd::gather(scene)?;
        scene.town.stores[1].web.set_ready(false);
        until("it to be left out", SOON, || {
            Ok((share(&crowd.next(100)?, "store2") == 0.0).then_some(()))
        })?;
        // Its own accounts are its own.
        let cookie = format!(
            "Cookie: ZM_AUTH_TOKEN={}\r\n",
            auth_token(&scene.town.person("bob")?.id)
        );
        let (status, server) = Client::new(scene)?.ask("/service/of-bob", &cookie)?;
        assert_eq!((&*status, &*server), ("200", "store2"));
        scene.town.stores[1].web.set_ready(true);
        until("it to be back", SOON, || {
            Ok((share(&crowd.next(100)?, "store2") > 0.3).then_some(()))
        })?;
        crowd.end()
    })
}

#[test]
fn an_accounts_own_server_that_is_down_is_reported_at_once() -> Result<()> {
    play(|scene| {
        let cookie = format!(
            "Cookie: ZM_AUTH_TOKEN={}\r\n",
            auth_token(&scene.town.person("bob")?.id)
        );
        let mut client = Client::new(scene)?;
        assert_eq!(client.ask("/service/of-bob", &cookie)?.0, "200");
        scene.town.stores[1].web.stop();
        for _ in 0..20 {
            let ((status, _), took) = timed(|| client.ask("/service/of-bob", &cookie))?;
            ensure!(
                status == "502" && took < Duration::from_secs(3),
                "{status} after {took:?}"
            );
        }
        scene.town.stores[1].web.start_again()?;
        until("the server to serve its account again", SOON, || {
            Ok((client.ask("/service/of-bob", &cookie)?.0 == "200").then_some(()))
        })
    })
}
