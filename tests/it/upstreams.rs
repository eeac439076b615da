//! Mailbox servers that lie, stall or break: the client hears a clear word soon, and no password goes astray.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use portico_tests::Stage;
use portico_tests::certs::{Authority, Pair};
use portico_tests::config::{Directory, Node};
use portico_tests::fake::{Fake, Peer};
use portico_tests::portico::Portico;
use portico_tests::town::{Town, people};

use crate::scene::{Scene, timed};

const LIAR: &str = "liar.example.test";
const LIAR_IP: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 4);
/// The connect timeout is set to two seconds here, and a broken server may be tried twice.
const SOON: Duration = Duration::from_secs(8);
/// What is in every attempt's password.
const CANARY: &str = "c4n4ry";

/// Alice's mailbox is on a server with this certificate (none: in clear text) that plays this script.
fn play_liar(
    certificate: impl FnOnce(&Stage, &Town) -> Result<Option<Pair>>,
    script: impl Fn(&mut Peer) -> Result<()> + Send + Sync + 'static,
    test: impl FnOnce(&Scene, &Fake) -> Result<()>,
) -> Result<()> {
    let bound = |directory: &mut Directory, _: &mut Node| {
        directory.config("zimbraReverseProxyConnectTimeout", "2s");
    };
    play_bounded_liar(bound, certificate, script, test)
}

/// The same; the first argument says how long a login may take, or what else is not as usual.
pub(crate) fn play_bounded_liar(
    bound: impl FnOnce(&mut Directory, &mut Node),
    certificate: impl FnOnce(&Stage, &Town) -> Result<Option<Pair>>,
    script: impl Fn(&mut Peer) -> Result<()> + Send + Sync + 'static,
    test: impl FnOnce(&Scene, &Fake) -> Result<()>,
) -> Result<()> {
    Stage::run(|stage| {
        let town = Town::build(stage, people())?;
        let at = SocketAddrV4::new(LIAR_IP, stage.port()?);
        let pair = certificate(stage, &town)?;
        let (mut directory, mut node) = (town.directory(), town.node());
        bound(&mut directory, &mut node);
        if pair.is_none() {
            directory.config("zimbraReverseProxySSLToUpstreamEnabled", "FALSE");
        }
        add_liar(&mut directory, at.port());
        let fake = Fake::start(at, pair.map(|p| p.acceptor()).transpose()?, script)?;
        let portico = Portico::start(stage, &node, &directory, "debug")?;
        let mut scene = Scene { stage, town, portico };
        test(&scene, &fake)?;
        scene.end()
    })
}

fn add_liar(directory: &mut Directory, port: u16) {
    let entry = directory.store(LIAR, LIAR_IP);
    for attribute in [
        "zimbraImapBindPort",
        "zimbraImapSSLBindPort",
        "zimbraPop3BindPort",
        "zimbraPop3SSLBindPort",
    ] {
        entry.insert(attribute.into(), port.into());
    }
    directory
        .account("alice@a.example")
        .insert("zimbraMailHost".into(), LIAR.into());
}

pub(crate) fn in_clear(_: &Stage, _: &Town) -> Result<Option<Pair>> {
    Ok(None)
}

/// Alice hears soon that her server cannot be reached, by IMAP and POP3; Bob is not concerned.
fn is_unavailable(scene: &Scene) -> Result<()> {
    let (answer, wait) = timed(|| scene.imaps()?.imap("a1 LOGIN alice@a.example alice-c4n4ry-one"))?;
    ensure!(
        answer.last().is_some_and(|l| l.starts_with("a1 NO [UNAVAILABLE]")),
        "{answer:?}"
    );
    ensure!(wait < SOON, "{wait:?}");
    let (answer, wait) = timed(|| {
        let mut wire = scene.pop3s()?;
        wire.pop_ok("USER alice@a.example")?;
        wire.pop("PASS alice-c4n4ry-one")
    })?;
    ensure!(answer.starts_with("-ERR [SYS/TEMP]"), "{answer:?}");
    ensure!(wait < SOON, "{wait:?}");
    scene.portico.record(&[
        ("user", "alice@a.example"),
        ("proto", "imap"),
        ("outcome", "upstream_down"),
    ])?;
    scene.portico.record(&[
        ("user", "alice@a.example"),
        ("proto", "pop3"),
        ("outcome", "upstream_down"),
    ])?;
    scene.login("bob").map(drop)
}

/// A certificate that is not good for the server's name: nothing is said to it.
fn is_refused(certificate: impl FnOnce(&Stage, &Town) -> Result<Option<Pair>>) -> Result<()> {
    play_liar(
        certificate,
        |peer| peer.imap_login("OK welcome"),
        |scene, fake| {
            is_unavailable(scene)?;
            ensure!(fake.connections() > 0, "nobody asked the liar");
            ensure!(fake.heard().is_empty(), "it heard {:?}", fake.heard());
            Ok(())
        },
    )
}

#[test]
fn a_certificate_of_another_name_is_refused() -> Result<()> {
    is_refused(|_, town| Ok(Some(town.ca.server(&["store1.example.test", "127.0.0.2"])?)))
}

#[test]
fn an_expired_certificate_is_refused() -> Result<()> {
    is_refused(|_, town| Ok(Some(town.ca.expired(&[LIAR, "127.0.0.4"])?)))
}

#[test]
fn a_certificate_of_an_unknown_authority_is_refused() -> Result<()> {
    is_refused(|stage, _| {
        Ok(Some(
            Authority::new(&stage.dir("other-ca")?)?.server(&[LIAR, "127.0.0.4"])?,
        ))
    })
}

/// A session counts for what was proved when it began, so it may be resumed.
#[test]
fn tls_sessions_with_a_server_are_resumed() -> Result<()> {
    let certificate = |_: &Stage, town: &Town| Ok(Some(town.ca.server(&[LIAR, "127.0.0.4"])?));
    let script = |peer: &mut Peer| {
        peer.imap_login("OK welcome")?;
        peer.freeze()
    };
    play_liar(certificate, script, |scene, fake| {
        for resumed in [0, 1, 2] {
            let answer = scene.imaps()?.imap("a1 LOGIN alice@a.example alice-c4n4ry-one")?;
            ensure!(answer.last().is_some_and(|l| l == "a1 OK welcome"), "{answer:?}");
            ensure!(
                fake.resumed() == resumed,
                "{} of {}",
                fake.resumed(),
                fake.connections()
            );
        }
        // Other authorities, a new snapshot: what was proved before counts no more.
        scene.portico.reload()?;
        scene.imaps()?.imap("a1 LOGIN alice@a.example alice-c4n4ry-one")?;
        ensure!(fake.resumed() == 2, "a session of another context was resumed");
        Ok(())
    })
}

#[test]
fn silence_is_unavailable() -> Result<()> {
    play_liar(in_clear, |peer| peer.freeze(), never_heard)
}

#[test]
fn silence_in_the_middle_is_unavailable() -> Result<()> {
    let script = |peer: &mut Peer| {
        peer.say("* OK ready")?;
        peer.freeze()
    };
    play_liar(in_clear, script, |scene, _| is_unavailable_by_imap(scene))
}

/// The story: a server takes the password and says nothing more, and its users wait for the two minutes that a directory
/// gives a login unless somebody has changed it.
#[test]
fn silence_to_the_login_costs_seconds() -> Result<()> {
    let bound = |_: &mut Directory, node: &mut Node| {
        node.more
            .push(("mail".to_owned(), "{server_login_timeout: 2s}".to_owned()));
    };
    let script = |peer: &mut Peer| peer.imap_login_unanswered();
    play_bounded_liar(bound, in_clear, script, |scene, fake| {
        is_unavailable_by_imap(scene)?;
        ensure!(fake.heard().contains(CANARY), "it heard no password");
        Ok(())
    })
}

#[test]
fn garbage_is_unavailable() -> Result<()> {
    let script = |peer: &mut Peer| {
        peer.send([0xFF, 0x00, 0x16, 0x03, b'\r', b'\n'])?;
        peer.freeze()
    };
    play_liar(in_clear, script, never_heard)
}

#[test]
fn a_line_without_end_is_unavailable() -> Result<()> {
    let script = |peer: &mut Peer| {
        peer.send("* OK ")?;
        for _ in 0..256 {
            peer.send([b'x'; 65536])?;
        }
        peer.freeze()
    };
    play_liar(in_clear, script, |scene, fake| {
        let before = scene.portico.rss_at_rest_kib()?;
        never_heard(scene, fake)?;
        let grown = scene.portico.rss_kib()?.saturating_sub(before);
        ensure!(grown < 16 * 1024, "memory has grown by {grown} KiB");
        Ok(())
    })
}

#[test]
fn closing_at_once_is_unavailable() -> Result<()> {
    play_liar(in_clear, |_| Ok(()), |scene, _| is_unavailable(scene))
}

/// A session that is logged in before the password was sent is not the client's.
#[test]
fn a_session_that_is_already_logged_in_is_not_taken() -> Result<()> {
    let script = |peer: &mut Peer| {
        peer.say("* PREAUTH welcome, whoever you are")?;
        peer.freeze()
    };
    play_liar(in_clear, script, |scene, fake| {
        is_unavailable_by_imap(scene)?;
        ensure!(!fake.heard().contains(CANARY), "it heard {:?}", fake.heard());
        Ok(())
    })
}

#[test]
fn temporary_refusals_are_unavailable() -> Result<()> {
    play_liar(
        in_clear,
        |peer| peer.imap_login("NO [UNAVAILABLE] backend is down"),
        |scene, _| is_unavailable_by_imap(scene),
    )
}

#[test]
fn a_servers_own_words_reach_the_user() -> Result<()> {
    let script = |peer: &mut Peer| peer.imap_login("NO [ALERT] password must be changed");
    play_liar(in_clear, script, |scene, _| {
        let answer = scene.imaps()?.imap("a1 LOGIN alice@a.example alice-c4n4ry-one")?;
        ensure!(
            answer
                .last()
                .is_some_and(|l| l == "a1 NO [ALERT] password must be changed"),
            "{answer:?}"
        );
        Ok(())
    })
}

#[test]
fn wrong_host_is_asked_again_before_the_client_hears_of_it() -> Result<()> {
    let asked = AtomicUsize::new(0);
    let script = move |peer: &mut Peer| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => peer.imap_login("NO LOGIN failed (wrong host)"),
        _ => {
            peer.imap_login("OK second thoughts")?;
            peer.freeze()
        }
    };
    play_liar(in_clear, script, |scene, fake| {
        let answer = scene.imaps()?.imap("a1 LOGIN alice@a.example alice-c4n4ry-one")?;
        ensure!(
            answer.last().is_some_and(|l| l.starts_with("a1 OK second")),
            "{answer:?}"
        );
        assert_eq!(fake.connections(), 2);
        Ok(())
    })
}

#[test]
fn wrong_host_twice_is_unavailable() -> Result<()> {
    let script = |peer: &mut Peer| peer.imap_login("NO LOGIN failed (wrong host)");
    play_liar(in_clear, script, |scene, fake| {
        is_unavailable_by_imap(scene)?;
        ensure!(fake.connections() <= 2, "{} connections", fake.connections());
        Ok(())
    })
}

/// A mailbox server switches its quirks by the suffix; the directory must not see it.
#[test]
fn the_suffix_of_a_login_comes_back_towards_the_server() -> Result<()> {
    let script = |peer: &mut Peer| {
        peer.imap_login("OK in")?;
        peer.freeze()
    };
    play_liar(in_clear, script, |scene, fake| {
        let mut wire = scene.imaps()?;
        wire.imap_ok("a1 LOGIN alice@a.example/tb alice-c4n4ry-one")?;
        ensure!(fake.heard().contains("alice@a.example/tb"), "{:?}", fake.heard());
        scene
            .portico
            .record(&[("account", "alice@a.example"), ("outcome", "ok")])
            .map(drop)
    })
}

#[test]
fn bytes_behind_the_servers_ok_reach_the_client() -> Result<()> {
    let script = |peer: &mut Peer| {
        peer.imap_login("OK in\r\n* 7 EXISTS\r\n* OK done")?;
        peer.freeze()
    };
    play_liar(in_clear, script, |scene, _| {
        let mut wire = scene.imaps()?;
        wire.imap_ok("a1 LOGIN alice@a.example alice-c4n4ry-one")?;
        assert_eq!(wire.line()?, "* 7 EXISTS");
        assert_eq!(wire.line()?, "* OK done");
        Ok(())
    })
}

fn is_unavailable_by_imap(scene: &Scene) -> Result<()> {
    let (answer, wait) = timed(|| scene.imaps()?.imap("a1 LOGIN alice@a.example alice-c4n4ry-one"))?;
    ensure!(
        answer.last().is_some_and(|l| l.starts_with("a1 NO [UNAVAILABLE]")),
        "{answer:?}"
    );
    ensure!(wait < SOON, "{wait:?}");
    scene.login("bob").map(drop)
}

fn never_heard(scene: &Scene, fake: &Fake) -> Result<()> {
    is_unavailable(scene)?;
    ensure!(!fake.heard().contains(CANARY), "it heard {:?}", fake.heard());
    Ok(())
}
