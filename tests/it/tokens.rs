//! Logins with a token instead of a password: XOAUTH2 and OAUTHBEARER, with a real Dovecot that asks an authorization
//! server.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Result, ensure};
use openssl::base64::encode_block;
use portico_tests::config::{Directory, Node};
use portico_tests::fake::Peer;
use portico_tests::tokens::TokenService;
use portico_tests::town::people;
use portico_tests::wire::Wire;

use crate::scene::{Scene, play_with};
use crate::upstreams::{in_clear, play_bounded_liar};

const ALICE: &str = "alice@a.example";
/// `{"status":"invalid_token","schemes":"bearer"}`
const CHALLENGE: &str = "+ eyJzdGF0dXMiOiJpbnZhbGlkX3Rva2VuIiwic2NoZW1lcyI6ImJlYXJlciJ9";

/// Everybody has a token: the local part of the name, and one of 5 kB; Dovecot takes no more than 8 KiB of base64.
fn play_with_tokens(test: impl FnOnce(&mut Scene) -> Result<()>) -> Result<()> {
    play_with(
        people(),
        |_, node, _| {
            let mail = "{mechanisms: [OAUTHBEARER, XOAUTH2], max_logins: 20}";
            node.more.push(("mail".to_owned(), mail.to_owned()));
            Ok(())
        },
        |scene| {
            let long = long_token();
            let names: Vec<String> = scene.town.people.iter().map(|person| person.name.clone()).collect();
            let mut tokens: Vec<(&str, &str)> = names
                .iter()
                .map(|name| (name.split('@').next().unwrap_or_default(), name.as_str()))
                .collect();
            tokens.push((&long, ALICE));
            let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, scene.stage.port()?);
            let service = TokenService::start(address, &tokens)?;
            for store in &mut scene.town.stores {
                store.dovecot.take_tokens(&service)?;
            }
            test(scene)
        },
    )
}

fn long_token() -> String {
    "t0k-".repeat(1250)
}

fn xoauth2(user: &str, token: &str) -> String {
    encode_block(format!("user={user}\x01auth=Bearer {token}\x01\x01").as_bytes())
}

fn oauthbearer(user: &str, token: &str) -> String {
    let message = format!("n,a={user},\x01host=mail.a.example\x01port=993\x01auth=Bearer {token}\x01\x01");
    encode_block(message.as_bytes())
}

type Message = fn(&str, &str) -> String;
const MECHANISMS: [(&str, Message); 2] = [("XOAUTH2", xoauth2), ("OAUTHBEARER", oauthbearer)];

#[test]
fn a_token_reaches_the_right_store() -> Result<()> {
    play_with_tokens(|scene| {
        scene.deliver_marks()?;
        let long = long_token();
        for (name, message) in MECHANISMS {
            for (local, token) in [("alice", "alice"), ("bob", "bob"), ("alice", long.as_str())] {
                let user = scene.town.person(local)?.name.clone();
                let mut imap = scene.imaps()?;
                imap.imap_ok(&format!("q1 AUTHENTICATE {name} {}", message(&user, token)))?;
                scene.is_inbox_of(&mut imap, local)?;
                let mut pop = scene.pop3s()?;
                pop.say(&format!("AUTH {name}"))?;
                ensure!(pop.line()? == "+ ", "no invitation");
                pop.pop_ok(&message(&user, token))?;
                pop.pop_ok("STAT")?;
            }
        }
        for (proto, mechanism) in [("imap", "XOAUTH2"), ("imap", "OAUTHBEARER"), ("pop3", "XOAUTH2")] {
            let fields = [
                ("event", "login"),
                ("proto", proto),
                ("mechanism", mechanism),
                ("outcome", "ok"),
            ];
            scene.portico.record(&fields)?;
        }
        Ok(())
    })
}

/// The client hears why, and its answer is awaited before it hears that the login has failed. Nobody learns who exists.
#[test]
fn a_bad_token_is_refused_in_two_steps() -> Result<()> {
    play_with_tokens(|scene| {
        for (name, message) in MECHANISMS {
            for (user, token) in [(ALICE, "wrong"), (ALICE, "bob"), ("nobody@a.example", "alice")] {
                let mut imap = scene.imaps()?;
                imap.say(&format!("q1 AUTHENTICATE {name} {}", message(user, token)))?;
                hears_the_challenge(&mut imap)?;
                imap.say("AQ==")?;
                let said = imap.line()?;
                ensure!(said == "q1 NO [AUTHENTICATIONFAILED] AUTHENTICATE failed", "{said}");
                // The connection is good for another try.
                imap.imap_ok(&format!("q2 AUTHENTICATE {name} {}", message(ALICE, "alice")))?;
            }
        }
        let mut pop = scene.pop3s()?;
        pop.say(&format!("AUTH XOAUTH2 {}", xoauth2(ALICE, "wrong")))?;
        hears_the_challenge(&mut pop)?;
        pop.say("")?;
        let said = pop.line()?;
        ensure!(said == "-ERR [AUTH] LOGIN failed", "{said}");
        let fields = [
            ("outcome", "bad_credentials"),
            ("mechanism", "OAUTHBEARER"),
            ("user", ALICE),
        ];
        scene.portico.record(&fields)?;
        Ok(())
    })
}

fn hears_the_challenge(wire: &mut Wire) -> Result<()> {
    let said = wire.line()?;
    ensure!(said == CHALLENGE, "{said}");
    Ok(())
}

/// A server that takes no tokens is not told one in any other way.
#[test]
fn a_server_without_tokens_gets_none() -> Result<()> {
    let change = |_: &_, node: &mut Node, _: &mut _| {
        node.more
            .push(("mail".to_owned(), "{mechanisms: [XOAUTH2]}".to_owned()));
        Ok(())
    };
    play_with(people(), change, |scene| {
        let mut imap = scene.imaps()?;
        let said = imap.imap_ok("q0 CAPABILITY")?.join(" ");
        ensure!(
            said.contains("AUTH=PLAIN AUTH=LOGIN AUTH=XOAUTH2") && !said.contains("OAUTHBEARER"),
            "{said}"
        );
        let said = imap
            .imap(&format!("q1 AUTHENTICATE XOAUTH2 {}", xoauth2(ALICE, "alice")))?
            .join(" ");
        ensure!(said.contains("q1 NO [UNAVAILABLE]"), "{said}");
        let record = scene
            .portico
            .record(&[("outcome", "upstream_down"), ("mechanism", "XOAUTH2")])?;
        ensure!(
            record.to_string().contains("neither OAUTHBEARER nor XOAUTH2"),
            "{record}"
        );
        Ok(())
    })
}

/// A token that looks like one of Zimbra's servers.
const ZIMBRAS: &str = "0_1f6bd1f2c1_69643d33363a";

#[test]
fn a_token_of_zimbras_servers_goes_on_by_their_mechanism() -> Result<()> {
    let offer = |_: &mut Directory, node: &mut Node| {
        node.more
            .push(("mail".to_owned(), "{mechanisms: [XOAUTH2, X-ZIMBRA]}".to_owned()));
    };
    let script = |peer: &mut Peer| {
        peer.imap_login("OK welcome")?;
        peer.freeze()
    };
    play_bounded_liar(offer, in_clear, script, |scene, fake| {
        let own = encode_block(format!("\0{ALICE}\0{ZIMBRAS}").as_bytes());
        for (name, message) in [("XOAUTH2", xoauth2(ALICE, ZIMBRAS)), ("X-ZIMBRA", own)] {
            let mut imap = scene.imaps()?;
            let said = imap.imap(&format!("q1 AUTHENTICATE {name} {message}"))?.join(" ");
            ensure!(said.contains("q1 OK welcome"), "{name}: {said}");
        }
        let heard = fake.heard();
        let told = encode_block(format!("{ALICE}\0{ALICE}\0{ZIMBRAS}").as_bytes());
        ensure!(
            heard.matches("AUTHENTICATE X-ZIMBRA\r\n").count() == 2 && heard.matches(&told).count() == 2,
            "{heard}"
        );
        scene.portico.record(&[("mechanism", "X-ZIMBRA"), ("outcome", "ok")])?;
        Ok(())
    })
}

/// A server of another make refuses the mechanism before it has heard the token.
#[test]
fn a_server_of_another_make_does_not_hear_a_token_of_zimbra() -> Result<()> {
    let change = |_: &_, node: &mut Node, _: &mut _| {
        node.more
            .push(("mail".to_owned(), "{mechanisms: [X-ZIMBRA]}".to_owned()));
        Ok(())
    };
    play_with(people(), change, |scene| {
        for message in [ZIMBRAS, "other"].map(|token| encode_block(format!("\0{ALICE}\0{token}").as_bytes())) {
            let mut imap = scene.imaps()?;
            let said = imap.imap(&format!("q1 AUTHENTICATE X-ZIMBRA {message}"))?.join(" ");
            // As of a name that nobody has.
            ensure!(said == "q1 NO [AUTHENTICATIONFAILED] AUTHENTICATE failed", "{said}");
            let mut pop = scene.pop3s()?;
            let said = pop.pop(&format!("AUTH X-ZIMBRA {message}"))?;
            ensure!(said == "-ERR [AUTH] LOGIN failed", "{said}");
        }
        scene.portico.record(&[("mechanism", "X-ZIMBRA"), ("proto", "pop3")])?;
        Ok(())
    })
}

const IMAPLIB: &str = r#"
import imaplib, ssl, sys
host, port, ca, user, token = sys.argv[1:6]
tls = ssl.create_default_context(cafile=ca)
def say(token):
    said = []
    def answer(challenge):
        said.append(challenge)
        return b"" if len(said) > 1 else ("user=%s\x01auth=Bearer %s\x01\x01" % (user, token)).encode()
    return answer
m = imaplib.IMAP4_SSL(host, int(port), ssl_context=tls)
assert "AUTH=XOAUTH2" in m.capabilities, m.capabilities
try:
    m.authenticate("XOAUTH2", say("wrong"))
    sys.exit("a wrong token was taken")
except imaplib.IMAP4.error as e:
    assert "AUTHENTICATIONFAILED" in str(e), e
m.authenticate("XOAUTH2", say(token))
assert m.select("INBOX")[0] == "OK"
m.logout()
"#;

#[test]
fn real_clients() -> Result<()> {
    play_with_tokens(|scene| {
        scene.deliver_marks()?;
        let (endpoints, ca) = (scene.town.endpoints, scene.town.ca.file().display().to_string());
        let port = endpoints.imaps.port().to_string();
        scene.run("python3", &["-c", IMAPLIB, "127.0.0.1", &port, &ca, ALICE, "alice"])?;
        for url in [
            format!("imaps://{}/INBOX;MAILINDEX=1", endpoints.imaps),
            format!("pop3s://{}/1", endpoints.pop3s),
        ] {
            let token = ["--user", "alice@a.example:", "--oauth2-bearer", "alice"];
            let mail = scene.run(
                "curl",
                &[&["-sS", "--cacert", ca.as_str()], &token[..], &[url.as_str()]].concat(),
            )?;
            ensure!(mail.contains("Subject: alice@a.example on "), "{mail}");
        }
        Ok(())
    })
}
