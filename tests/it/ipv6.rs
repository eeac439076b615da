//! Clients and servers at IPv6 addresses: wherever a port stands behind one, it has brackets.

use std::io::Read;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portico_tests::config::{Directory, Listener, Node, Serve, StreamTo, Tls};
use portico_tests::fake::{Fake, Peer};
use portico_tests::nginx::Nginx;
use portico_tests::portico::Portico;
use portico_tests::town::{FRONT, Town, people};
use portico_tests::wire::Wire;
use portico_tests::{Stage, until};

use crate::admin::{done, json};
use crate::scene::{Scene, greeted};

const SOON: Duration = Duration::from_secs(10);

/// A town whose first store is at `::1`, and listeners there.
struct Sixth<'a> {
    scene: Scene<'a>,
    imap: SocketAddr,
    web: SocketAddr,
    stream: SocketAddr,
    /// A real nginx: the web side of the store.
    store: SocketAddr,
    /// A server of a group, which is checked.
    checked: Fake,
    checked_at: SocketAddr,
    streamed: TcpListener,
    _nginx: Nginx,
}

fn local(stage: &Stage) -> Result<SocketAddr> {
    Ok(SocketAddrV6::new(Ipv6Addr::LOCALHOST, stage.port()?, 0, 0).into())
}

fn play(test: impl FnOnce(&mut Sixth) -> Result<()>) -> Result<()> {
    Stage::run(|stage| {
        let mut town = Town::build(stage, people())?;
        let dovecot = &mut town.stores[0].dovecot;
        let listen = format!("listen = {}", dovecot.ip);
        dovecot.set(&[(&listen, &format!("{listen}, ::1"))])?;
        let (imap, web, stream, store) = (local(stage)?, local(stage)?, local(stage)?, local(stage)?);
        let nginx = start_nginx(stage, &town, store)?;
        let checked_at = local(stage)?;
        let checked = Fake::start(checked_at, None, healthy)?;
        let streamed = TcpListener::bind((Ipv6Addr::LOCALHOST, 0))?;
        let mut node = town.node();
        listen_there(&mut node, imap, Serve::Imap);
        listen_there(&mut node, web, Serve::Web);
        let to = StreamTo {
            upstream: streamed.local_addr()?,
            tls: false,
            send_proxy: false,
        };
        listen_there(&mut node, stream, Serve::Stream(to));
        let locations = format!(
            "groups:\n  checked: {{servers: [\"{checked_at}\"], check: /ready}}\n\
             \x20 zoned: {{servers: [\"[::1%1]:{}\"], check: /zoned}}\nlocations:\n\
             - {{prefix: /checked, group: checked}}\n- {{prefix: /zoned, group: zoned}}\n- {{prefix: /own, mailbox: web, host: upstream}}\n\
             - {{prefix: /, mailbox: web}}\n",
            checked_at.port()
        );
        let locations = stage.file("ipv6.yaml", locations)?;
        node.web = vec![("locations".to_owned(), portico_tests::config::quote(&locations))];
        let portico = Portico::start(stage, &node, &directory(&town, store), "debug")?;
        let mut sixth = Sixth {
            scene: Scene { stage, town, portico },
            imap,
            web,
            stream,
            store,
            checked,
            checked_at,
            streamed,
            _nginx: nginx,
        };
        test(&mut sixth)?;
        sixth.scene.end()
    })
}

/// It answers with the `Host` that it was sent.
fn start_nginx(stage: &Stage, town: &Town, at: SocketAddr) -> Result<Nginx> {
    let free = || -> Result<SocketAddrV4> { Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, stage.port()?)) };
    let pair = town.ca.server(&["six.example.test"])?;
    let more = format!("listen {at};\nlocation / {{ return 200 \"$http_host\"; }}");
    Nginx::start(stage, "six", [free()?, free()?], &pair, &more)
}

fn healthy(peer: &mut Peer) -> Result<()> {
    loop {
        while !peer.line()?.is_empty() {}
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
    }
}

fn listen_there(node: &mut Node, address: SocketAddr, serve: Serve) {
    node.listeners.push(Listener {
        address,
        serve,
        tls: Tls::Implicit,
        proxies: Vec::new(),
        more: Vec::new(),
    });
}

fn directory(town: &Town, store: SocketAddr) -> Directory {
    let mut directory = town.directory();
    directory
        .config("zimbraIPMode", "both")
        .config("zimbraReverseProxyMailMode", "both")
        .config("zimbraReverseProxySSLToUpstreamEnabled", "FALSE");
    let entry = directory.server(&town.stores[0].name);
    entry.insert("zimbraServiceHostname".into(), "::1".into());
    entry.insert("zimbraMailPort".into(), store.port().into());
    let other = directory.server(&town.stores[1].name);
    other.insert("zimbraReverseProxyLookupTarget".into(), "FALSE".into());
    directory
}

impl Sixth<'_> {
    fn login(&self) -> Result<Wire> {
        let wire = Wire::clear(self.imap)?.start_tls_any_name(&self.scene.town.ca.connector(&[])?, FRONT)?;
        let mut wire = greeted(wire, "* OK ")?;
        wire.imap_ok("a1 LOGIN alice@a.example alice-c4n4ry-one")?;
        Ok(wire)
    }

    /// The mailbox server's address as the logs have it.
    fn route(&self) -> String {
        format!("[::1]:{}", self.scene.town.stores[0].dovecot.imap)
    }

    fn get(&self, path: &str) -> Result<String> {
        let url = format!("https://{}{path}", self.web);
        self.scene.curl(&url, &["-k", "--http1.1"])?.text()
    }
}

#[test]
fn the_audit_log_and_the_list_of_sessions_have_brackets() -> Result<()> {
    play(|six| {
        let mut wire = six.login()?;
        let (us, route) = (wire.local()?.to_string(), six.route());
        ensure!(us.starts_with("[::1]:"), "{us}");
        let portico = &six.scene.portico;
        let fields = [
            ("event", "login"),
            ("outcome", "ok"),
            ("client", &us),
            ("route", &route),
        ];
        portico.record(&fields)?;
        let shown = done(portico, &["sessions"])?;
        ensure!(shown.contains(&us) && shown.contains(&route), "{shown}");
        let list = json(portico, &["sessions"])?;
        let logins = &list["sessions"][0]["logins"][0];
        ensure!(logins["route"] == route.as_str(), "{list}");
        let explained = done(portico, &["route", "explain", "alice@a.example"])?;
        ensure!(explained.contains(&format!("{route} in clear text")), "{explained}");
        wire.imap_ok("a2 LOGOUT")?;
        portico.record(&[("event", "session_end"), ("client", &us), ("route", &route)])?;
        Ok(())
    })
}

#[test]
fn a_server_that_is_down_is_named_with_brackets() -> Result<()> {
    play(|six| {
        six.scene.town.stores[0].dovecot.stop()?;
        ensure!(six.login().is_err(), "a login without a server");
        let failed = six.scene.portico.record(&[("outcome", "upstream_down")])?;
        let why = failed["why"].as_str().context("no reason")?;
        ensure!(why.starts_with(&format!("connect to {}: ", six.route())), "{why}");
        Ok(())
    })
}

#[test]
fn a_web_server_is_sent_a_host_with_brackets() -> Result<()> {
    play(|six| {
        let host = format!("[::1]:{}", six.store.port());
        assert_eq!(six.get("/own")?, host);
        // What the client asked for is sent on as it is.
        assert_eq!(six.get("/theirs")?, six.web.to_string());
        // The zone of an address is for this host alone.
        for path in ["/ready", "/zoned"] {
            let check = format!("GET {path} HTTP/1.1\r\nHost: [::1]:{}\r\n", six.checked_at.port());
            until("a check", SOON, || {
                Ok(six.checked.heard().contains(&check).then_some(()))
            })?;
        }
        Ok(())
    })
}

#[test]
fn the_access_log_has_brackets() -> Result<()> {
    play(|six| {
        six.get("/theirs")?;
        let line = until("a line", SOON, || {
            let log = six.scene.portico.access_log();
            Ok(log.lines().find(|line| line.contains("/theirs")).map(str::to_owned))
        })?;
        ensure!(line.starts_with("[::1]:"), "{line}");
        ensure!(line.contains("https://[::1]/theirs"), "{line}");
        let (store, us) = (format!("\"{}\"", six.store), format!("\"{}\"", six.web));
        ensure!(line.contains(&store) && line.contains(&us), "{line}");
        Ok(())
    })
}

#[test]
fn a_stream_reaches_a_server_there_and_is_recorded_with_brackets() -> Result<()> {
    play(|six| {
        let mut wire = Wire::clear(six.stream)?.start_tls_any_name(&six.scene.town.ca.connector(&[])?, FRONT)?;
        wire.send("hello")?;
        let (mut server, _) = six.streamed.accept()?;
        let mut said = [0; 5];
        server.read_exact(&mut said)?;
        assert_eq!(&said, b"hello");
        let us = wire.local()?.to_string();
        drop((wire, server));
        let route = six.streamed.local_addr()?.to_string();
        let fields = [
            ("event", "session_end"),
            ("proto", "stream"),
            ("client", &us),
            ("route", &route),
        ];
        six.scene.portico.record(&fields)?;
        Ok(())
    })
}
