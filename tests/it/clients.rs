//! Real mail clients: Python's imaplib and poplib, curl, mbsync, openssl s_client, fetchmail, getmail, offlineimap,
//! mpop, neomutt.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::scene::{Scene, play};
use crate::scram::play_scram;

const IMAPLIB: &str = r#"
import imaplib, ssl, sys
host, imap, imaps, ca, user, password = sys.argv[1:7]
tls = ssl.create_default_context(cafile=ca)
def use(m):
    m.create("Sent of %s" % m.port)
    assert m.append("INBOX", r"(\Seen)", None, b"Subject: by imaplib\r\n\r\nhello\r\n")[0] == "OK"
    assert m.select("INBOX")[0] == "OK"
    numbers = m.search(None, "SUBJECT", '"by imaplib"')[1][0].split()
    data = m.fetch(numbers[-1], "(RFC822)")[1]
    assert b"hello" in data[0][1], data
    m.close()
    m.logout()
m = imaplib.IMAP4_SSL(host, int(imaps), ssl_context=tls)
assert "IDLE" in m.capabilities, m.capabilities
m.login(user, password)
use(m)
m = imaplib.IMAP4(host, int(imap))
m.starttls(tls)
m.authenticate("PLAIN", lambda _: ("\0%s\0%s" % (user, password)).encode())
use(m)
m = imaplib.IMAP4_SSL(host, int(imaps), ssl_context=tls)
try:
    m.login(user, "not it")
    sys.exit("a wrong password was taken")
except imaplib.IMAP4.error as e:
    assert b"AUTHENTICATIONFAILED" in e.args[0], e
"#;

const POPLIB: &str = r#"
import poplib, ssl, sys
host, pop3, pop3s, ca, user, password = sys.argv[1:7]
tls = ssl.create_default_context(cafile=ca)
def use(m):
    m.user(user)
    m.pass_(password)
    count, _ = m.stat()
    assert count == 1, count
    assert any(user.encode() in line for line in m.retr(1)[1])
    m.uidl()
    m.quit()
m = poplib.POP3_SSL(host, int(pop3s), context=tls)
assert "USER" in m.capa(), m.capa()
use(m)
m = poplib.POP3(host, int(pop3))
assert "STLS" in m.capa(), m.capa()
m.stls(tls)
use(m)
m = poplib.POP3_SSL(host, int(pop3s), context=tls)
m.user(user)
try:
    m.pass_("not it")
    sys.exit("a wrong password was taken")
except poplib.error_proto:
    pass
"#;

#[test]
fn python() -> Result<()> {
    play(|scene| {
        scene.deliver_marks()?;
        let (endpoints, ca) = (scene.town.endpoints, ca(scene)?);
        for local in ["alice", "bob"] {
            let person = scene.town.person(local)?;
            let (name, password) = (person.name.as_str(), person.password());
            let run = |script, clear: u16, tls: u16| {
                let (clear, tls) = (clear.to_string(), tls.to_string());
                scene.run(
                    "python3",
                    &["-c", script, "127.0.0.1", &clear, &tls, &ca, name, &password],
                )
            };
            run(POPLIB, endpoints.pop3.port(), endpoints.pop3s.port())?;
            run(IMAPLIB, endpoints.imap.port(), endpoints.imaps.port())?;
        }
        Ok(())
    })
}

#[test]
fn curl() -> Result<()> {
    play(|scene| {
        scene.deliver_marks()?;
        let (endpoints, ca) = (scene.town.endpoints, ca(scene)?);
        for local in ["alice", "bob"] {
            let person = scene.town.person(local)?;
            let mark = format!("Subject: {} on {}", person.name, scene.town.stores[person.store].name);
            let user = format!("{}:{}", person.name, person.password());
            let urls = [
                format!("imaps://{}/INBOX;MAILINDEX=1", endpoints.imaps),
                format!("imap://{}/INBOX;MAILINDEX=1", endpoints.imap),
                format!("pop3s://{}/1", endpoints.pop3s),
                format!("pop3://{}/1", endpoints.pop3),
            ];
            for url in urls {
                let mail = scene.run("curl", &["-sS", "--ssl-reqd", "--cacert", &ca, "--user", &user, &url])?;
                ensure!(mail.contains(&mark), "{url}: {mail:?}");
            }
        }
        Ok(())
    })
}

#[test]
fn mbsync() -> Result<()> {
    play(|scene| {
        scene.deliver_marks()?;
        scene.town.stores[1]
            .dovecot
            .deliver("bob@a.example", "Subject: second\r\n\r\ntwo\r\n")?;
        let local = scene.stage.dir("mbsync")?;
        let config = format!(
            "IMAPAccount bob\nHost localhost\nPort {}\nUser bob@a.example\nPass bob-c4n4ry-two\nSSLType IMAPS\n\
             CertificateFile {}\n\nIMAPStore far\nAccount bob\n\nMaildirStore near\nPath {}/\nInbox {}/INBOX\n\n\
             Channel bob\nFar :far:\nNear :near:\nPatterns INBOX\nCreate Near\nSync All\nSyncState *\n",
            scene.town.endpoints.imaps.port(),
            ca(scene)?,
            local.display(),
            local.display(),
        );
        let rc = scene.stage.file("mbsync/rc", config)?;
        let rc = rc.to_str().context("path")?;
        scene.run("mbsync", &["-c", rc, "bob"])?;
        assert_eq!(std::fs::read_dir(local.join("INBOX/new"))?.count(), 2);
        std::fs::write(local.join("INBOX/new/1.2.three"), "Subject: third\n\nthree\n")?;
        scene.run("mbsync", &["-c", rc, "bob"])?;
        let mut wire = scene.login("bob")?;
        let inbox = wire.imap_ok("a1 SELECT INBOX")?;
        ensure!(inbox.contains(&"* 3 EXISTS".to_owned()), "{inbox:?}");
        Ok(())
    })
}

#[test]
fn openssl() -> Result<()> {
    play(|scene| {
        scene.deliver_marks()?;
        let (endpoints, ca) = (scene.town.endpoints, ca(scene)?);
        let imap = "printf '%s\\n' 'a LOGIN bob@a.example bob-c4n4ry-two' 'b STATUS INBOX (MESSAGES)' 'c LOGOUT'";
        let pop3 = "printf '%s\\n' 'USER bob@a.example' 'PASS bob-c4n4ry-two' 'STAT' 'QUIT'";
        let client = format!("openssl s_client -quiet -crlf -verify_return_error -CAfile {ca}");
        let cases = [
            (
                imap,
                format!("-starttls imap -connect {}", endpoints.imap),
                "(MESSAGES 1)",
            ),
            (imap, format!("-connect {}", endpoints.imaps), "(MESSAGES 1)"),
            (pop3, format!("-starttls pop3 -connect {}", endpoints.pop3), "+OK 1 "),
            (pop3, format!("-connect {}", endpoints.pop3s), "+OK 1 "),
        ];
        for (input, how, expected) in cases {
            let said = scene.run("sh", &["-c", &format!("{input} | {client} {how}")])?;
            ensure!(said.contains(expected), "{how}: {said:?}");
        }
        Ok(())
    })
}

#[test]
fn fetchmail() -> Result<()> {
    play(|scene| {
        scene.deliver_marks()?;
        for (proto, mechanism) in [("pop3", "USER"), ("imap", "LOGIN")] {
            let client = Client {
                proto,
                mechanism,
                command: "fetchmail -f rc",
                refused: (3, "Authorization failure on bob@a.example@localhost"),
            };
            client.fetches(scene, |at| {
                format!(
                    "set no bouncemail\npoll localhost service {} protocol {proto} user {BOB} password {} \
                     ssl sslcertck sslcertfile \"{}\" keep fetchall mda \"cat >> {}\"\n",
                    at.port, at.password, at.ca, at.mail
                )
            })?;
        }
        Ok(())
    })
}

#[test]
fn getmail() -> Result<()> {
    play(|scene| {
        scene.deliver_marks()?;
        let ways = [
            ("pop3", "USER", "operation error (POP error (b'-ERR [AUTH] "),
            ("imap", "LOGIN", "credential/login error (b'[AUTHENTICATIONFAILED] "),
        ];
        for (proto, mechanism, words) in ways {
            let client = Client {
                proto,
                mechanism,
                command: "getmail --getmaildir . --rcfile rc",
                refused: (127, words),
            };
            client.fetches(scene, |at| {
                format!(
                    "[retriever]\ntype = Simple{}SSLRetriever\nserver = localhost\nport = {}\nusername = {BOB}\n\
                     password = {}\nca_certs = {}\n\n[destination]\ntype = MDA_external\npath = /bin/sh\n\
                     arguments = (\"-c\", \"cat >> {}\")\nallow_root_commands = true\n",
                    proto.to_uppercase(),
                    at.port,
                    at.password,
                    at.ca,
                    at.mail
                )
            })?;
        }
        Ok(())
    })
}

#[test]
fn offlineimap() -> Result<()> {
    play(|scene| {
        scene.deliver_marks()?;
        let client = Client {
            proto: "imap",
            mechanism: "PLAIN",
            command: "offlineimap -o -u basic -c rc",
            refused: (1, "PLAIN authentication failed: b'[AUTHENTICATIONFAILED]"),
        };
        client.fetches(scene, |at| {
            format!(
                "[general]\naccounts = bob\nmetadata = state\n\n[Account bob]\nlocalrepository = near\n\
                 remoterepository = far\n\n[Repository near]\ntype = Maildir\nlocalfolders = {}\n\n[Repository far]\n\
                 type = IMAP\nremotehost = localhost\nremoteport = {}\nremoteuser = {BOB}\nremotepass = {}\nssl = yes\n\
                 sslcacertfile = {}\n",
                at.mail, at.port, at.password, at.ca
            )
        })
    })
}

/// With USER and PASS and by SASL. Its SCRAM is that of GNU SASL, which checks the server's signature.
#[test]
fn mpop() -> Result<()> {
    play_scram(|scene| {
        scene.deliver_marks()?;
        let ways = [
            ("user", "USER"),
            ("plain", "PLAIN"),
            ("login", "SASL-LOGIN"),
            ("scram-sha-1", "SCRAM-SHA-1"),
            ("scram-sha-256", "SCRAM-SHA-256"),
        ];
        for (auth, mechanism) in ways {
            let client = Client {
                proto: "pop3",
                mechanism,
                command: "mpop -C rc bob",
                refused: (77, "authentication failed"),
            };
            client.fetches(scene, |at| {
                format!(
                    "account bob\nhost localhost\nport {}\nuser {BOB}\npassword {}\nauth {auth}\ntls on\n\
                     tls_starttls off\ntls_trust_file {}\nkeep on\nuidls_file state\ndelivery mbox {}\n",
                    at.port, at.password, at.ca, at.mail
                )
            })?;
        }
        Ok(())
    })
}

/// It wants a terminal, which `script` gives it.
#[test]
fn neomutt() -> Result<()> {
    play(|scene| {
        scene.deliver_marks()?;
        for (auth, mechanism) in [("login", "SASL-LOGIN"), ("plain", "PLAIN")] {
            let client = Client {
                proto: "imap",
                mechanism,
                command: "script -qec 'TERM=xterm neomutt -n -F rc' /dev/stdout </dev/null",
                refused: (0, "Unable to open mailbox"),
            };
            client.fetches(scene, |at| {
                // Without a mail to pipe, it would drop what follows, and wait for keys.
                let fetch = format!("<pipe-message>cat >> {}<enter>", at.mail);
                let keys = if at.password == "not-it" { "" } else { &fetch };
                format!(
                    "set imap_user={BOB} imap_pass={} imap_authenticators={auth}\nset folder=imaps://localhost:{}/\n\
                     set spool_file=imaps://localhost:{}/INBOX\nset ssl_ca_certificates_file={}\n\
                     set wait_key=no sleep_time=0\npush '{keys}<quit>'\n",
                    at.password, at.port, at.port, at.ca
                )
            })?;
        }
        Ok(())
    })
}

const BOB: &str = "bob@a.example";

/// A program that fetches mail as its configuration file says.
struct Client {
    proto: &'static str,
    /// In the audit log.
    mechanism: &'static str,
    /// For a shell in the folder of the configuration file, `rc`.
    command: &'static str,
    /// How it ends where the password is wrong, and what it says.
    refused: (i32, &'static str),
}

/// What the configuration file needs to know.
struct At {
    port: u16,
    password: &'static str,
    ca: String,
    /// Where the mail goes.
    mail: String,
}

impl Client {
    /// It gets Bob's mail with his password; with another it ends by itself and says why.
    fn fetches(&self, scene: &Scene, rc: impl Fn(&At) -> String) -> Result<()> {
        let endpoints = scene.town.endpoints;
        let endpoint = if self.proto == "imap" {
            endpoints.imaps
        } else {
            endpoints.pop3s
        };
        for (password, outcome) in [("bob-c4n4ry-two", "ok"), ("not-it", "bad_credentials")] {
            let home = scene
                .stage
                .dir(&format!("{}-{}-{outcome}", self.proto, self.mechanism))?;
            let mail = home.join("mail").to_str().context("path")?.to_owned();
            let at = At {
                port: endpoint.port(),
                password,
                ca: ca(scene)?,
                mail,
            };
            let file = home.join("rc");
            std::fs::write(&file, rc(&at))?;
            std::fs::set_permissions(&file, Permissions::from_mode(0o600))?;
            let out = Command::new("timeout")
                .args(["60", "sh", "-c", self.command])
                .current_dir(&home)
                .env("HOME", &home)
                .output()?;
            let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
            let got = Command::new("grep")
                .args(["-rq", &format!("Subject: {BOB} on store2"), &at.mail])
                .stderr(Stdio::null())
                .status()?
                .success();
            let (code, words) = if outcome == "ok" { (0, "") } else { self.refused };
            ensure!(
                out.status.code() == Some(code) && said.contains(words) && got == (outcome == "ok"),
                "{} {outcome}: {}, mail: {got}; try scripts/install\n{said}",
                self.command,
                out.status
            );
            let fields = [
                ("user", BOB),
                ("proto", self.proto),
                ("mechanism", self.mechanism),
                ("outcome", outcome),
            ];
            scene.portico.record(&fields)?;
        }
        Ok(())
    }
}

fn ca(scene: &Scene) -> Result<String> {
    Ok(scene.town.ca.file().to_str().context("path")?.to_owned())
}
