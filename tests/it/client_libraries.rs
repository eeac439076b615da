//! Libraries that mail clients are made of, of which Debian has no package: IMAPClient for Python, imapflow for Node.js.
//! `scripts/install` gets them.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::scene::{Scene, play};

/// Where `scripts/install` puts them.
fn libraries() -> Result<PathBuf> {
    let named = std::env::var_os("PORTICO_CLIENTS").map(PathBuf::from);
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/share/portico-clients"));
    named.or_else(home).context("neither PORTICO_CLIENTS nor HOME is set")
}

/// Lists what the server can, logs in by LOGIN and PLAIN, stores, finds and reads a mail, waits in IDLE.
const IMAPCLIENT: &str = r#"
import ssl, sys
from imapclient import IMAPClient
from imapclient.exceptions import LoginError
imap, imaps, ca, user, password = sys.argv[1:6]
tls = ssl.create_default_context(cafile=ca)
def use(client):
    client.id_({"name": "IMAPClient"})
    assert client.has_capability("MOVE"), client.capabilities()
    client.select_folder("INBOX")
    client.append("INBOX", b"Subject: by IMAPClient\r\n\r\nhello\r\n", [b"\\Seen"])
    found = client.search(["SUBJECT", "by IMAPClient"])
    assert found, "not found"
    for data in client.fetch(found, ["BODY[]", "FLAGS"]).values():
        assert b"hello" in data[b"BODY[]"], data
    client.idle()
    client.idle_check(timeout=0)
    client.idle_done()
    client.delete_messages(found)
    client.expunge()
    client.logout()
client = IMAPClient("localhost", int(imaps), ssl_context=tls)
client.login(user, password)
use(client)
client = IMAPClient("localhost", int(imap), ssl=False)
client.starttls(tls)
client.plain_login(user, password)
use(client)
client = IMAPClient("localhost", int(imaps), ssl_context=tls)
try:
    client.login(user, "not it")
    sys.exit("a wrong password was taken")
except LoginError as error:
    assert "AUTHENTICATIONFAILED" in str(error), error
"#;

/// The same; it says ID and what it can take before it logs in, and compresses where the server lists that.
const IMAPFLOW: &str = r#"
const { ImapFlow } = require("imapflow");
const { readFileSync } = require("fs");
const [imap, imaps, ca, user, pass] = process.argv.slice(1);
const client = (port, secure, pass, loginMethod) => new ImapFlow({
  host: "localhost", port: Number(port), secure, doSTARTTLS: secure ? undefined : true, logger: false,
  tls: { ca: readFileSync(ca) }, auth: { user, pass, loginMethod },
});
async function use(client) {
  await client.connect();
  const lock = await client.getMailboxLock("INBOX");
  await client.append("INBOX", "Subject: by imapflow\r\n\r\nhello\r\n", ["\\Seen"]);
  const found = await client.search({ subject: "by imapflow" });
  if (!found.length) throw new Error("not found");
  const { source } = await client.fetchOne(found[0], { source: true });
  if (!source.includes("hello")) throw new Error(source);
  await client.messageDelete(found);
  lock.release();
  await client.logout();
}
(async () => {
  for (const method of ["LOGIN", "AUTH=PLAIN", "AUTH=LOGIN"]) await use(client(imaps, true, pass, method));
  await use(client(imap, false, pass));
  const wrong = client(imaps, true, "not it");
  const refused = await wrong.connect().then(() => null, (error) => error);
  if (!refused || !refused.authenticationFailed) throw refused || new Error("a wrong password was taken");
  wrong.close();
})().catch((error) => { console.error(error); process.exit(1); });
"#;

#[test]
fn imapclient() -> Result<()> {
    play(|scene| use_it(scene, "python3", "-c", IMAPCLIENT, "LOGIN"))
}

#[test]
fn imapflow() -> Result<()> {
    play(|scene| use_it(scene, "node", "-e", IMAPFLOW, "SASL-LOGIN"))
}

/// Runs a script for users on both servers; each logs in and is refused once.
fn use_it(scene: &Scene, program: &str, option: &str, script: &str, mechanism: &str) -> Result<()> {
    let (endpoints, libraries) = (scene.town.endpoints, libraries()?);
    let ca = scene.town.ca.file().to_str().context("path")?.to_owned();
    for local in ["alice", "bob"] {
        let person = scene.town.person(local)?;
        let out = Command::new("timeout")
            .args(["60", program, option, script])
            .args([
                endpoints.imap.port().to_string(),
                endpoints.imaps.port().to_string(),
                ca.clone(),
            ])
            .args([&person.name, &person.password()])
            .env("PYTHONPATH", libraries.join("python"))
            .env("NODE_PATH", libraries.join("node/node_modules"))
            .output()?;
        let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        ensure!(
            out.status.success(),
            "{program} {}; try scripts/install\n{said}",
            out.status
        );
        let taken = [
            ("user", person.name.as_str()),
            ("mechanism", mechanism),
            ("outcome", "ok"),
        ];
        scene.portico.record(&taken)?;
        let refused = [("user", person.name.as_str()), ("outcome", "bad_credentials")];
        scene.portico.record(&refused)?;
    }
    Ok(())
}
