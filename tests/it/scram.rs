//! Logins by SCRAM: client and a real Dovecot check each other, and Portico passes their messages on.

use anyhow::{Context, Result, bail, ensure};
use openssl::base64::{decode_block, encode_block};
use openssl::hash::{MessageDigest, hash};
use openssl::pkcs5::pbkdf2_hmac;
use openssl::pkey::PKey;
use openssl::sign::Signer;
use portico_tests::dovecot::Login;
use portico_tests::town::people;
use portico_tests::wire::Wire;

use crate::scene::{Scene, play_with};

const ALICE: &str = "alice@a.example";
const MECHANISMS: [&str; 2] = ["SCRAM-SHA-256", "SCRAM-SHA-1"];

/// Alice and Bob log in by SCRAM; the others' passwords are kept in a form that it cannot use.
pub(crate) fn play_scram(test: impl FnOnce(&mut Scene) -> Result<()>) -> Result<()> {
    play_with(
        people(),
        |_, node, _| {
            let mail = "{mechanisms: [SCRAM-SHA-256, SCRAM-SHA-1], max_logins: 20}";
            node.more.push(("mail".to_owned(), mail.to_owned()));
            Ok(())
        },
        |scene| {
            let users = [scene.town.person("alice")?.clone(), scene.town.person("bob")?.clone()];
            let users = users.each_ref().map(|person| Login {
                name: &person.name,
                password: &person.password,
            });
            for store in &mut scene.town.stores {
                store.dovecot.take_scram(&users)?;
            }
            test(scene)
        },
    )
}

/// The client's side of an exchange (RFC 5802 section 3).
struct Client {
    digest: MessageDigest,
    bare: String,
    password: String,
    signature: Vec<u8>,
}

impl Client {
    fn new(mechanism: &str, user: &str, password: &str) -> Self {
        let digest = match mechanism {
            "SCRAM-SHA-1" => MessageDigest::sha1(),
            _ => MessageDigest::sha256(),
        };
        Self {
            digest,
            bare: format!("n={user},r=fyko+d2lbbFgONRv9qkxdawL"),
            password: password.to_owned(),
            signature: Vec::new(),
        }
    }

    /// The first message, in base64 like all of them.
    fn first(&self) -> String {
        encode_block(format!("n,,{}", self.bare).as_bytes())
    }

    fn prove(&mut self, challenge: &str) -> Result<String> {
        let challenge = String::from_utf8(decode_block(challenge)?)?;
        let [nonce, salt, count] = challenge.split(',').collect::<Vec<_>>()[..] else {
            bail!("{challenge}");
        };
        let salt = decode_block(salt.strip_prefix("s=").context("salt")?)?;
        let mut salted = vec![0; self.digest.size()];
        let count = count.strip_prefix("i=").context("count")?.parse()?;
        pbkdf2_hmac(self.password.as_bytes(), &salt, count, self.digest, &mut salted)?;
        let key = self.hmac(&salted, b"Client Key")?;
        let without_proof = format!("c=biws,{nonce}");
        let signed = format!("{},{challenge},{without_proof}", self.bare);
        let signature = self.hmac(&hash(self.digest, &key)?, signed.as_bytes())?;
        let proof: Vec<u8> = key
            .iter()
            .zip(&signature)
            .map(|(key, signature)| key ^ signature)
            .collect();
        self.signature = self.hmac(&self.hmac(&salted, b"Server Key")?, signed.as_bytes())?;
        Ok(encode_block(
            format!("{without_proof},p={}", encode_block(&proof)).as_bytes(),
        ))
    }

    /// Whether the server knows the password, too.
    fn check(&self, last: &str) -> Result<()> {
        let last = String::from_utf8(decode_block(last)?)?;
        ensure!(last == format!("v={}", encode_block(&self.signature)), "{last}");
        Ok(())
    }

    fn hmac(&self, key: &[u8], text: &[u8]) -> Result<Vec<u8>> {
        Ok(Signer::new(self.digest, &*PKey::hmac(key)?)?.sign_oneshot_to_vec(text)?)
    }

    /// Plays it behind the command. Returns the server's answer, whatever it is.
    fn play(&mut self, wire: &mut Wire) -> Result<String> {
        let proof = self.prove(&challenge(wire)?)?;
        wire.say(&proof)?;
        let said = wire.line()?;
        let Some(last) = said.strip_prefix("+ ") else {
            return Ok(said);
        };
        self.check(last)?;
        wire.say("")?;
        wire.line()
    }
}

fn challenge(wire: &mut Wire) -> Result<String> {
    let said = wire.line()?;
    said.strip_prefix("+ ").map(str::to_owned).with_context(|| said.clone())
}

#[test]
fn an_exchange_reaches_the_right_store() -> Result<()> {
    play_scram(|scene| {
        scene.deliver_marks()?;
        for mechanism in MECHANISMS {
            for (local, typed) in [("alice", "Alice@A.Example"), ("bob", "bob@a.example")] {
                let person = scene.town.person(local)?.clone();
                let mut client = Client::new(mechanism, typed, &person.password());
                let mut imap = scene.imaps()?;
                imap.say(&format!("q1 AUTHENTICATE {mechanism} {}", client.first()))?;
                let said = client.play(&mut imap)?;
                ensure!(said.starts_with("q1 OK"), "{said}");
                scene.is_inbox_of(&mut imap, local)?;
                let mut client = Client::new(mechanism, &person.name, &person.password());
                let mut pop = scene.pop3s()?;
                pop.say(&format!("AUTH {mechanism}"))?;
                ensure!(challenge(&mut pop)?.is_empty(), "no invitation");
                pop.say(&client.first())?;
                let said = client.play(&mut pop)?;
                ensure!(said.starts_with("+OK"), "{said}");
                pop.pop_ok("STAT")?;
            }
            for proto in ["imap", "pop3"] {
                let fields = [("proto", proto), ("mechanism", mechanism), ("outcome", "ok")];
                scene.portico.record(&fields)?;
            }
        }
        Ok(())
    })
}

/// A wrong password, a password that the server keeps in a form of no use here, and a name that nobody has: Dovecot
/// tells them apart at once, and nobody learns it.
#[test]
fn refusals_are_alike() -> Result<()> {
    play_scram(|scene| {
        let carol = scene.town.person("carol")?.clone();
        let mut seen = Vec::new();
        let cases = [
            (ALICE, "wrong".to_owned(), "bad_credentials"),
            (carol.name.as_str(), carol.password(), "bad_credentials"),
            ("nobody@a.example", "wrong".to_owned(), "unknown_user"),
        ];
        for (user, password, outcome) in cases {
            let mut client = Client::new("SCRAM-SHA-256", user, &password);
            let mut imap = scene.imaps()?;
            imap.say(&format!("q1 AUTHENTICATE SCRAM-SHA-256 {}", client.first()))?;
            let first = challenge(&mut imap)?;
            let proof = client.prove(&first)?;
            imap.say(&proof)?;
            let text = String::from_utf8(decode_block(&first)?)?;
            let form: Vec<usize> = text.split(',').map(str::len).collect();
            seen.push((form, imap.line()?));
            let fields = [("user", user), ("mechanism", "SCRAM-SHA-256"), ("outcome", outcome)];
            scene.portico.record(&fields)?;
        }
        ensure!(seen.iter().all(|one| *one == seen[0]), "{seen:?}");
        ensure!(
            seen[0].1 == "q1 NO [AUTHENTICATIONFAILED] AUTHENTICATE failed",
            "{seen:?}"
        );
        Ok(())
    })
}

#[test]
fn a_server_without_scram_tells_nobody_who_exists() -> Result<()> {
    let change = |_: &_, node: &mut portico_tests::config::Node, _: &mut _| {
        node.more
            .push(("mail".to_owned(), "{mechanisms: [SCRAM-SHA-256]}".to_owned()));
        Ok(())
    };
    play_with(people(), change, |scene| {
        let mut client = Client::new("SCRAM-SHA-256", ALICE, "x");
        let mut imap = scene.imaps()?;
        imap.say(&format!("q1 AUTHENTICATE SCRAM-SHA-256 {}", client.first()))?;
        let said = client.play(&mut imap)?;
        ensure!(said.contains("q1 NO [AUTHENTICATIONFAILED]"), "{said}");
        let fields = [("outcome", "upstream_down"), ("mechanism", "SCRAM-SHA-256")];
        let record = scene.portico.record(&fields)?.to_string();
        ensure!(record.contains("does not offer the SCRAM mechanism"), "{record}");
        Ok(())
    })
}

/// mbsync and the SASL library of Cyrus, which check the server's signature.
#[test]
fn mbsync() -> Result<()> {
    play_scram(|scene| {
        scene.deliver_marks()?;
        let ca = scene.town.ca.file();
        for mechanism in MECHANISMS {
            let local = scene.stage.dir(&format!("mbsync-{mechanism}"))?;
            let config = format!(
                "IMAPAccount bob\nHost localhost\nPort {}\nUser bob@a.example\nPass bob-c4n4ry-two\nSSLType IMAPS\n\
                 AuthMechs {mechanism}\nCertificateFile {}\n\nIMAPStore far\nAccount bob\n\n\
                 MaildirStore near\nPath {}/\nInbox {}/INBOX\n\n\
                 Channel bob\nFar :far:\nNear :near:\nPatterns INBOX\nCreate Near\nSync All\nSyncState *\n",
                scene.town.endpoints.imaps.port(),
                ca.display(),
                local.display(),
                local.display(),
            );
            let rc = scene.stage.file(&format!("mbsync-{mechanism}/rc"), config)?;
            scene.run("mbsync", &["-c", rc.to_str().context("path")?, "bob"])?;
            ensure!(std::fs::read_dir(local.join("INBOX/new"))?.count() == 1, "{mechanism}");
            let fields = [("mechanism", mechanism), ("outcome", "ok"), ("user", "bob@a.example")];
            scene.portico.record(&fields)?;
        }
        Ok(())
    })
}
