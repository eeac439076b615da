//! `portico prov` on a YAML file and on a real slapd: the same words, the same answers; and a running Portico that
//! takes the changes over without losing anybody.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use portico_tests::certs::{Authority, Pair};
use portico_tests::config::{Directory, Listener, Node, Serve, Tls, yaml_source};
use portico_tests::fake::{Fake, Peer};
use portico_tests::portico::{Portico, binary};
use portico_tests::slapd::{READER, Slapd};
use portico_tests::web::WebBackend;
use portico_tests::wire::Wire;
use portico_tests::{Stage, until};

const NODE: &str = "proxy1.example.test";
const FRONT: &str = "mail.example.test";
/// Within this time a change must be seen from outside.
const SOON: Duration = Duration::from_secs(5);
const POLL: &str = "300ms";
/// Sessions that must not notice anything.
const SESSIONS: usize = 200;

/// What a command said.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Said {
    out: String,
    err: String,
    code: i32,
}

/// `portico prov` with a node file.
struct Prov {
    conf: PathBuf,
}

impl Prov {
    /// With a node file of its own that names this directory.
    fn new(stage: &Stage, folder: &str, source: &[String]) -> Result<Self> {
        let lines: String = source.iter().map(|line| format!("  {line}\n")).collect();
        let text = format!("version: 1\nnode: {NODE}\ndirectory:\n{lines}");
        let conf = stage.file(&format!("{folder}/portico.yaml"), text)?;
        Ok(Self { conf })
    }

    fn command(&self) -> Result<Command> {
        let mut command = Command::new(binary()?);
        command.arg("prov").arg("-c").arg(&self.conf).env("RUST_LOG", "off");
        Ok(command)
    }

    fn say(&self, words: &[&str]) -> Result<Said> {
        said(self.command()?.args(words).stdin(Stdio::null()).output()?)
    }

    /// Must be done without a word of complaint; gives the answer.
    fn must(&self, words: &[&str]) -> Result<String> {
        let said = self.say(words)?;
        ensure!(said.code == 0 && said.err.is_empty(), "{words:?}: {said:?}");
        Ok(said.out)
    }

    /// With these lines on standard input.
    fn read(&self, lines: &str) -> Result<Said> {
        use std::io::Write;
        let mut child = self
            .command()?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("stdin")?.write_all(lines.as_bytes())?;
        said(child.wait_with_output()?)
    }
}

fn said(output: std::process::Output) -> Result<Said> {
    Ok(Said {
        out: without_ids(&String::from_utf8(output.stdout)?),
        err: String::from_utf8(output.stderr)?,
        code: output.status.code().context("killed")?,
    })
}

/// New ids are different each time.
fn without_ids(text: &str) -> String {
    let is_id = |word: &str| {
        let lengths: Vec<usize> = word.split('-').map(str::len).collect();
        lengths == [8, 4, 4, 4, 12] && word.chars().all(|c| c == '-' || c.is_ascii_hexdigit())
    };
    let words = text.split_inclusive([' ', '\n']);
    words
        .map(|word| {
            let bare = word.trim_end_matches([' ', '\n']);
            if is_id(bare) {
                word.replace(bare, "ID")
            } else {
                word.to_owned()
            }
        })
        .collect()
}

fn directory() -> Directory {
    let mut directory = Directory::default();
    directory
        .config("zimbraReverseProxyMailMode", "redirect")
        .config("zimbraDefaultDomainName", "a.example");
    directory.node(NODE);
    for (name, host) in [
        ("store1.example.test", "127.0.0.2"),
        ("store2.example.test", "127.0.0.3"),
    ] {
        let server = directory.store(name, host);
        server.insert("zimbraId".into(), format!("id-{name}").into());
    }
    directory
        .domain("a.example")
        .insert("zimbraVirtualHostname".into(), ["mail.a.example"].into());
    directory.domain("a.example").insert("zimbraId".into(), "id-a".into());
    directory.domain("b.example");
    let alice = directory.account("alice@a.example");
    alice.insert("zimbraId".into(), "id-alice".into());
    alice.insert("zimbraMailAlias".into(), ["al@a.example"].into());
    alice.insert("zimbraMailHost".into(), "store1.example.test".into());
    directory
}

/// The same directory in a file and in LDAP.
fn both(stage: &Stage) -> Result<(Prov, Prov, Slapd)> {
    let file = stage.file("yaml/directory.yaml", directory().yaml())?;
    std::fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let yaml = Prov::new(stage, "yaml", &yaml_source(POLL))?;
    let slapd = Slapd::start(stage, "slapd", &directory())?;
    let ldap = Prov::new(stage, "ldap", &slapd.source(POLL))?;
    Ok((yaml, ldap, slapd))
}

/// Words parted by blanks (`''` is the empty one), standard output, what standard error contains, exit code.
type Row = (&'static str, &'static str, &'static str, i32);

/// A command that says nothing and is done.
const fn done(line: &'static str) -> Row {
    (line, "", "", 0)
}

/// One that prints this.
const fn shown(line: &'static str, out: &'static str) -> Row {
    (line, out, "", 0)
}

/// One that changes nothing and says why.
const fn refused(line: &'static str, err: &'static str) -> Row {
    (line, "", err, 2)
}

const READING: &[Row] = &[
    shown("gas", "proxy1.example.test\nstore1.example.test\nstore2.example.test\n"),
    shown("getAllServers mailbox", "store1.example.test\nstore2.example.test\n"),
    shown(
        "gs PROXY1.example.test ZimbraReverseProxyMailMode zimbraimapproxybindport zimbraServiceEnabled",
        "# name proxy1.example.test\nzimbraImapProxyBindPort: 143\nzimbraReverseProxyMailMode: redirect\n\
         zimbraServiceEnabled: proxy\n\n",
    ),
    shown(
        "gs -e proxy1.example.test zimbraReverseProxyMailMode zimbraServiceEnabled",
        "# name proxy1.example.test\nzimbraServiceEnabled: proxy\n\n",
    ),
    shown(
        "gs id-store1.example.test zimbraServiceHostname",
        "# name store1.example.test\nzimbraServiceHostname: 127.0.0.2\n\n",
    ),
    refused("gs nobody", "ERROR: account.NO_SUCH_SERVER (no such server: nobody)\n"),
    refused("gd nobody", "ERROR: account.NO_SUCH_DOMAIN (no such domain: nobody)\n"),
    refused(
        "ga no@body",
        "ERROR: account.NO_SUCH_ACCOUNT (no such account: no@body)\n",
    ),
    refused("ga *", "ERROR: account.NO_SUCH_ACCOUNT (no such account: *)\n"),
    shown("gad", "a.example\nb.example\n"),
    shown(
        "gad zimbraVirtualHostname",
        "# name a.example\nzimbraVirtualHostname: mail.a.example\n\n# name b.example\n\n",
    ),
    shown(
        "gdi virtualHostname MAIL.a.example zimbraVirtualHostname zimbraDomainType",
        "# name a.example\nzimbraDomainType: local\nzimbraVirtualHostname: mail.a.example\n\n",
    ),
    shown("gdi id id-a zimbraId", "# name a.example\nzimbraId: id-a\n\n"),
    refused("gdi colour red", "service.INVALID_REQUEST"),
    shown(
        "ga al@a.example zimbraMailHost zimbraMailAlias",
        "# name alice@a.example\nzimbraMailAlias: al@a.example\nzimbraMailHost: store1.example.test\n\n",
    ),
    shown("gaa", "alice@a.example\n"),
    done("gaa b.example"),
    shown("gc default description", "# name default\n\n"),
    shown("gcf zimbraDefaultDomainName", "zimbraDefaultDomainName: a.example\n"),
    shown(
        "gacf zimbraReverseProxyMailMode zimbraDefaultDomainName zimbraIPMode",
        "zimbraDefaultDomainName: a.example\nzimbraIPMode: ipv4\nzimbraReverseProxyMailMode: redirect\n",
    ),
    shown(
        "garpu",
        "127.0.0.2:7072/service/extension/nginx-lookup 127.0.0.3:7072/service/extension/nginx-lookup \n",
    ),
    shown("garpb", "    server 127.0.0.2:8443;\n    server 127.0.0.3:8443;\n"),
    done("garpd"),
];

const WRITING: &[Row] = &[
    // The two lines that every administrator knows.
    done("modifyServer proxy1.example.test zimbraReverseProxyMailMode https"),
    done("modifyDomain a.example +zimbraVirtualHostName webmail.a.example"),
    shown(
        "gs -e proxy1.example.test zimbraReverseProxyMailMode",
        "# name proxy1.example.test\nzimbraReverseProxyMailMode: https\n\n",
    ),
    shown(
        "gd -e a.example zimbraVirtualHostname",
        "# name a.example\nzimbraVirtualHostname: mail.a.example\nzimbraVirtualHostname: webmail.a.example\n\n",
    ),
    // What is there already, or not there, is no error.
    done("md id-a +zimbraVirtualHostname WEBMAIL.a.example -zimbraVirtualHostname x.a.example"),
    done("md a.example -ZIMBRAvirtualhostname Mail.a.example"),
    shown(
        "gd -e a.example zimbraVirtualHostname",
        "# name a.example\nzimbraVirtualHostname: webmail.a.example\n\n",
    ),
    shown(
        "md b.example +zimbraVirtualHostname webmail.a.example",
        "WARNING: Virtual hostname conflicts detected. The following virtual hostnames are already in use by other \
         domains: webmail.a.example (a.example)  This may cause routing issues.\n",
    ),
    done("md b.example zimbraVirtualHostname ''"),
    done("md b.example zimbraVirtualHostname ''"),
    shown("gd -e b.example zimbraVirtualHostname", "# name b.example\n\n"),
    done("ms proxy1.example.test zimbrareverseproxymailenabled false zimbraReverseProxyMailMode BOTH"),
    shown(
        "gs -e proxy1.example.test zimbraReverseProxyMailEnabled zimbraReverseProxyMailMode",
        "# name proxy1.example.test\nzimbraReverseProxyMailEnabled: FALSE\nzimbraReverseProxyMailMode: both\n\n",
    ),
    done("mcf zimbraReverseProxyAuthWaitInterval 5s zimbraDefaultDomainName ''"),
    shown(
        "gcf zimbraReverseProxyAuthWaitInterval",
        "zimbraReverseProxyAuthWaitInterval: 5s\n",
    ),
    done("gcf zimbraDefaultDomainName"),
    // Refused, and nothing is changed.
    refused(
        "ms proxy1.example.test zimbraImapProxyBindPort 1143 zimbraReverseProxyMailMode mixed",
        "ERROR: account.INVALID_ATTR_VALUE (invalid attr value: zimbraReverseProxyMailMode: expected one of https, \
         redirect, both, found \"mixed\")\n",
    ),
    shown(
        "gs -e proxy1.example.test zimbraImapProxyBindPort",
        "# name proxy1.example.test\n\n",
    ),
    refused("md a.example +zimbraVirtualHostname mail", "account.INVALID_ATTR_VALUE"),
    refused(
        "md a.example zimbraDomainAllowedIPs 10.0.0.0/99",
        "account.INVALID_ATTR_VALUE",
    ),
    refused(
        "mcf zimbraReverseProxyConnectTimeout soon",
        "account.INVALID_ATTR_VALUE",
    ),
    refused(
        "ms proxy1.example.test zimbraReverseProxyMailMod https",
        "did you mean zimbraReverseProxyMailMode?",
    ),
    refused(
        "ms proxy1.example.test zimbraImapProxyBindPort 993",
        "port 993 conflict",
    ),
    refused("md a.example zimbraId other", "zimbraId is immutable"),
    refused(
        "ma alice@a.example zimbraMailHost store9.example.test",
        "is not the name of a server",
    ),
    refused(
        "ms proxy1.example.test zimbraServiceEnabled mta",
        "error: cannot replace multi-valued attr value unless -r is specified\n",
    ),
    done("-r ms proxy1.example.test zimbraServiceEnabled mta +zimbraServiceEnabled proxy"),
    done("ms proxy1.example.test -zimbraServiceEnabled mta"),
    shown(
        "gs -e proxy1.example.test zimbraServiceEnabled",
        "# name proxy1.example.test\nzimbraServiceEnabled: proxy\n\n",
    ),
    // Entries come and go.
    shown("cs store3.example.test zimbraServiceEnabled mailbox", "ID\n"),
    refused(
        "cs Store3.example.test",
        "ERROR: account.SERVER_EXISTS (server already exists: store3.example.test)\n",
    ),
    shown(
        "gs store3.example.test zimbraId zimbraServiceEnabled",
        "# name store3.example.test\nzimbraId: ID\nzimbraServiceEnabled: mailbox\n\n",
    ),
    shown("cd new.c.example zimbraVirtualHostname *.c.example", "ID\n"),
    refused(
        "cd new.c.example",
        "ERROR: account.DOMAIN_EXISTS (domain already exists: new.c.example)\n",
    ),
    shown("cd c.example", "ID\n"),
    refused("cd bad_name.example", "service.INVALID_REQUEST"),
    shown("cad alias.example c.example", "ID\n"),
    shown(
        "gd alias.example zimbraDomainType",
        "# name alias.example\nzimbraDomainType: alias\n\n",
    ),
    shown(
        "ca bob@c.example '' zimbraMailHost store3.example.test zimbraMailAlias robert@c.example",
        "ID\n",
    ),
    refused(
        "ca robert@c.example ''",
        "ERROR: account.ACCOUNT_EXISTS (email address already exists: robert@c.example)\n",
    ),
    refused("ca eve@nowhere.example ''", "account.NO_SUCH_DOMAIN"),
    refused(
        "ma alice@a.example +zimbraMailAlias robert@c.example",
        "account.ACCOUNT_EXISTS",
    ),
    done("ma robert@c.example zimbraMailHost store1.example.test"),
    shown(
        "ga bob@c.example zimbraMailHost zimbraMailAlias",
        "# name bob@c.example\nzimbraMailAlias: robert@c.example\nzimbraMailHost: store1.example.test\n\n",
    ),
    shown("gaa c.example", "bob@c.example\n"),
    refused(
        "dd c.example",
        "ERROR: account.DOMAIN_NOT_EMPTY (domain not empty: c.example)\n",
    ),
    refused("ds store1.example.test", "store1.example.test holds 2 accounts"),
    done("da bob@c.example"),
    refused("da bob@c.example", "account.NO_SUCH_ACCOUNT"),
    refused("dd c.example", "alias.example is an alias of c.example"),
    done("dd alias.example"),
    done("dd new.c.example"),
    done("dd c.example"),
    done("ds store3.example.test"),
    shown("gad", "a.example\nb.example\n"),
    shown("gas", "proxy1.example.test\nstore1.example.test\nstore2.example.test\n"),
    // Not understood.
    (
        "modifyServer proxy1.example.test zimbraReverseProxyMailMode",
        "modifyServer is expecting at least 3 arguments but 2 arguments have been provided\nusage:  modifyServer(ms) \
         {name|id} [attr1 value1 [attr2 value2...]]\nFor general help, type : zmprov --help\n",
        "",
        1,
    ),
    refused("fc colours", "invalid cache type colours"),
    refused("fc all", "names no admin.socket"),
];

#[test]
fn the_same_words_have_the_same_answers() -> Result<()> {
    Stage::run(|stage| {
        let (yaml, ldap, mut slapd) = both(stage)?;
        for (line, out, err, code) in READING.iter().chain(WRITING) {
            let words: Vec<&str> = line.split(' ').map(|w| if w == "''" { "" } else { w }).collect();
            let (one, other) = (yaml.say(&words)?, ldap.say(&words)?);
            assert_eq!((one.out.as_str(), one.code), (*out, *code), "{line}: {one:?}");
            let as_expected = if err.is_empty() {
                one.err.is_empty()
            } else {
                one.err.contains(err)
            };
            assert!(as_expected, "{line}: {one:?}");
            assert_eq!(one, other, "{line}");
        }
        ensure!(slapd.is_running(), "slapd has ended");
        let text = std::fs::read_to_string(stage.path().join("yaml/directory.yaml"))?;
        ensure!(text.contains("zimbraReverseProxyMailMode: both"), "{text}");
        Ok(())
    })
}

#[test]
fn commands_come_from_a_file_or_standard_input() -> Result<()> {
    Stage::run(|stage| {
        let (yaml, ldap, _slapd) = both(stage)?;
        let lines = "# first\nms proxy1.example.test zimbraReverseProxyMailMode 'https'\ngs nobody\n\n\
                     gs -e proxy1.example.test zimbraReverseProxyMailMode\nfrobnicate 'x\n";
        let file = stage.file("commands", "gcf zimbraDefaultDomainName\nexit\ngas\n")?;
        for prov in [yaml, ldap] {
            let said = prov.read(lines)?;
            assert_eq!(said.code, 2);
            assert_eq!(said.err, "ERROR: account.NO_SUCH_SERVER (no such server: nobody)\n");
            assert_eq!(
                said.out,
                "# name proxy1.example.test\nzimbraReverseProxyMailMode: https\n\na quote is not closed\n"
            );
            let said = prov.must(&["-f", file.to_str().context("path")?])?;
            assert_eq!(said, "zimbraDefaultDomainName: a.example\n");
        }
        Ok(())
    })
}

/// Commands of a file are done together: with the answers, the exit code and, byte for byte, the file that they have
/// one by one.
#[test]
fn a_file_of_commands_says_and_does_what_they_do_one_by_one() -> Result<()> {
    Stage::run(|stage| {
        let prov = |folder: &str| -> Result<(Prov, PathBuf)> {
            let file = stage.file(&format!("{folder}/directory.yaml"), directory().yaml())?;
            let prov = Prov::new(stage, folder, &yaml_source(POLL))?;
            Ok((prov, file))
        };
        let ((alone, one), (together, all)) = (prov("alone")?, prov("together")?);
        let lines = READING.iter().chain(WRITING).map(|(line, ..)| *line);
        let lines: Vec<&str> = lines.filter(|line| !line.starts_with('-')).collect();
        let (mut out, mut err, mut code) = (String::new(), String::new(), 0);
        for line in &lines {
            let words: Vec<&str> = line.split(' ').map(|w| if w == "''" { "" } else { w }).collect();
            let said = alone.say(&words)?;
            out += &said.out;
            err += &said.err.replace("/alone/", "/together/");
            code = code.max(said.code);
        }
        let before = std::fs::metadata(&all)?.ino();
        let file = stage.file("commands", lines.join("\n"))?;
        let said = together.say(&["-f", file.to_str().context("path")?])?;
        assert_eq!(said, Said { out, err, code });
        let (one, all_now) = (std::fs::read_to_string(one)?, std::fs::read_to_string(&all)?);
        assert_eq!(without_all_ids(&one), without_all_ids(&all_now));
        ensure!(std::fs::metadata(&all)?.ino() != before, "nothing was written");
        Ok(())
    })
}

/// New ids in the text of a file.
fn without_all_ids(text: &str) -> String {
    text.lines().map(|line| without_ids(line) + "\n").collect()
}

/// Who waits for each answer gets it before he says more, and the change is in the file by then.
#[test]
fn a_conversation_is_answered_line_by_line() -> Result<()> {
    use std::io::{BufRead, BufReader, Write};
    Stage::run(|stage| {
        let (yaml, _ldap, _slapd) = both(stage)?;
        let mut child = yaml.command()?.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut say = child.stdin.take().context("stdin")?;
        let mut answers = BufReader::new(child.stdout.take().context("stdout")?).lines();
        for round in 0..3 {
            writeln!(say, "cd d{round}.example")?;
            let id = answers.next().context("no answer")??;
            assert_eq!(without_ids(&id), "ID");
            let text = std::fs::read_to_string(stage.path().join("yaml/directory.yaml"))?;
            ensure!(text.contains(&id), "{text}");
        }
        // Several at once see each other; the last one wants to be by itself.
        write!(
            say,
            "cd e.example\nmd e.example description x\ngd e.example description\nfc config\n"
        )?;
        drop(say);
        let rest: Vec<String> = answers.collect::<Result<_, _>>()?;
        assert_eq!(rest.len(), 4, "{rest:?}");
        assert_eq!(&rest[1..3], ["# name e.example", "description: x"]);
        ensure!(!child.wait()?.success(), "there is no portico to flush");
        let text = std::fs::read_to_string(stage.path().join("yaml/directory.yaml"))?;
        ensure!(text.contains("description: x"), "{text}");
        Ok(())
    })
}

#[test]
fn certificates_are_judged_before_they_are_stored() -> Result<()> {
    Stage::run(|stage| {
        let (yaml, ldap, _slapd) = both(stage)?;
        let ca = Authority::new(&stage.dir("ca")?)?;
        let good = ca.server(&["mail.a.example", "*.c.example"])?;
        let other = ca.server(&["other.example"])?;
        let old = ca.expired(&["old.example"])?;
        let file = |path: &Path| format!("file:{}", path.display());
        let crt = |pair: &Pair| file(&pair.certificate_file);
        let key = |pair: &Pair| file(&pair.key_file);
        // As when two files were put together and the first lacked its last line end.
        let glued = good.certificate.replace("-----\n-----BEGIN", "----------BEGIN");
        ensure!(glued != good.certificate, "nothing to mend");
        for prov in [yaml, ldap] {
            let refused = |words: &[&str], why: &str| -> Result<()> {
                let said = prov.say(&[&["md", "a.example"], words].concat())?;
                ensure!(
                    said.code == 2 && said.err.contains(why) && said.out.is_empty(),
                    "{said:?}"
                );
                let stored = prov.must(&["-fd", "gd", "-e", "a.example", "zimbraSSLPrivateKey"])?;
                ensure!(!stored.contains("PRIVATE"), "stored all the same");
                Ok(())
            };
            let (c, k) = ("zimbraSSLCertificate", "zimbraSSLPrivateKey");
            refused(&[c, &crt(&good), k, &key(&other)], "does not belong to the certificate")?;
            refused(&[c, &crt(&old), k, &key(&old)], "the certificate expired on")?;
            refused(&[c, &key(&good), k, &key(&good)], "expected PEM text")?;
            refused(&[c, "file:nowhere.crt", k, &key(&good)], "nowhere.crt: No such file")?;
            let broken = good.certificate.replacen("\nMII", "\nAAA", 1);
            refused(&[c, &broken, k, &key(&good)], "does not parse")?;

            prov.must(&["md", "a.example", c, &glued, k, &good.key])?;
            let stored = prov.must(&["gd", "-e", "a.example", c, k])?;
            ensure!(
                stored.contains(&good.certificate) && stored.contains("Key: VALUE-BLOCKED"),
                "{stored}"
            );
            assert_eq!(prov.must(&["garpd"])?, "a.example mail.a.example \n");
            // The key that is there counts for a certificate that comes alone.
            let said = prov.say(&["md", "a.example", c, &crt(&other)])?;
            ensure!(said.code == 2 && said.err.contains("does not belong"), "{said:?}");
            let said = prov.say(&["md", "a.example", "+zimbraVirtualHostname", "imap.a.example"])?;
            assert_eq!(
                said.err,
                "WARNING: the certificate of a.example is not good for these virtual host names: imap.a.example\n"
            );
            assert_eq!(said.code, 0);
            let said = prov.say(&["md", "a.example", "-zimbraVirtualHostname", "imap.a.example", k, ""])?;
            ensure!(
                said.code == 0 && said.err.contains("there is no zimbraSSLPrivateKey"),
                "{said:?}"
            );
            prov.must(&["md", "a.example", c, ""])?;
        }
        Ok(())
    })
}

#[test]
fn many_at_once_lose_nothing() -> Result<()> {
    Stage::run(|stage| {
        let (yaml, ldap, _slapd) = both(stage)?;
        for prov in [&yaml, &ldap] {
            std::thread::scope(|scope| {
                let threads: Vec<_> = (0..6)
                    .map(|n| {
                        scope.spawn(move || -> Result<()> {
                            for round in 0..3 {
                                let name = format!("h{n}-{round}.a.example");
                                prov.must(&["md", "a.example", "+zimbraVirtualHostname", &name])?;
                            }
                            Ok(())
                        })
                    })
                    .collect();
                threads
                    .into_iter()
                    .try_for_each(|t| t.join().map_err(|_| anyhow::anyhow!("panic"))?)
            })?;
            let shown = prov.must(&["gd", "-e", "a.example", "zimbraVirtualHostname"])?;
            assert_eq!(shown.matches("zimbraVirtualHostname: ").count(), 1 + 18, "{shown}");
        }
        Ok(())
    })
}

/// The entries that a filter finds have these lines.
const PLACES: [(&str, &[&str]); 4] = [
    (
        "(cn=store3.example.test)",
        &[
            "dn: cn=store3.example.test,cn=servers,cn=zimbra",
            "zimbraServiceHostname: store3.example.test",
        ],
    ),
    (
        "(zimbraDomainName=mail.new.example)",
        &[
            "dn: dc=mail,dc=new,dc=example",
            "objectClass: dcObject",
            "objectClass: organization",
            "zimbraDomainType: local",
            "zimbraDomainStatus: active",
        ],
    ),
    ("(dc=new)", &["dn: dc=new,dc=example", "objectClass: organization"]),
    (
        "(objectClass=inetOrgPerson)",
        &[
            "dn: uid=o'hara\\2Bx,ou=people,dc=mail,dc=new,dc=example",
            "objectClass: zimbraAccount",
            "mail: o'hara+x@mail.new.example",
            "zimbraMailDeliveryAddress: o'hara+x@mail.new.example",
            "zimbraMailTransport: lmtp:store3.example.test:7025",
            "zimbraAccountStatus: active",
            // {SSHA512}
            "userPassword:: e1NTSEE1MTJ9",
        ],
    ),
];

#[test]
fn entries_in_ldap_have_the_places_and_classes_of_carbonio() -> Result<()> {
    const ACCOUNT: &str = "o'hara+x@mail.new.example";
    Stage::run(|stage| {
        let (_, prov, slapd) = both(stage)?;
        prov.must(&["cs", "store3.example.test"])?;
        prov.must(&["cd", "mail.new.example"])?;
        let host = ["zimbraMailHost", "store3.example.test"];
        prov.must(&[&["ca", ACCOUNT, "s3cret-w0rd"], &host[..]].concat())?;
        for (filter, expected) in PLACES {
            let found = slapd.search(filter, &["*"])?;
            for line in expected {
                ensure!(found.contains(line), "no {line} in {found}");
            }
        }
        let shown = prov.must(&["ga", "-e", ACCOUNT])?;
        ensure!(shown.contains("userPassword: VALUE-BLOCKED\n"), "{shown}");

        add_alias_entry(&slapd)?;
        prov.must(&["da", ACCOUNT])?;
        prov.must(&["dd", "mail.new.example"])?;
        let left = slapd.search("(|(uid=oh)(dc=mail))", &["dn"])?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })
}

/// Alias entries of an account go with it.
fn add_alias_entry(slapd: &Slapd) -> Result<()> {
    let found = slapd.search("(uid=o'hara+x)", &["zimbraId"])?;
    let id = found.lines().find_map(|line| line.strip_prefix("zimbraId: "));
    slapd.change(&format!(
        "dn: uid=oh,ou=people,dc=mail,dc=new,dc=example\nchangetype: add\nobjectClass: zimbraAlias\nuid: oh\n\
         zimbraId: alias-1\nzimbraAliasTargetId: {}\n",
        id.context("no id")?
    ))
}

#[test]
fn a_replica_sends_changes_on_and_readers_may_not_write() -> Result<()> {
    Stage::run(|stage| {
        let (_, _, slapd) = both(stage)?;
        let replica = slapd.replica(stage, "replica")?;
        until("the replica to be filled", Duration::from_secs(30), || {
            let found = replica.search("(uid=zmnginx)", &["userPassword"]);
            Ok(found.ok().filter(|text| text.contains("userPassword")))
        })?;
        let change = ["mcf", "zimbraReverseProxyMailMode", "both"];
        let urls = [replica.url(), slapd.url()];
        let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
        let alone = Prov::new(stage, "alone", &slapd.source_of(&urls[..1], POLL))?;
        let said = alone.say(&change)?;
        ensure!(
            said.code == 2 && said.err.contains("is a replica and sends us to ldap://"),
            "{said:?}"
        );
        let both = Prov::new(stage, "both", &slapd.source_of(&urls, POLL))?;
        both.must(&change)?;
        until("the change to reach the replica", Duration::from_secs(30), || {
            Ok(alone.must(&["gcf", change[1]])?.contains("both").then_some(()))
        })?;
        let password = slapd.password_file(READER);
        let password = password.to_str().context("path")?;
        let reader = ["--bind-dn", READER.0, "--bind-password-file", password];
        let said = both.say(&[&reader[..], &change[..2], &["https"]].concat())?;
        ensure!(said.code == 2 && said.err.contains("service.PERM_DENIED"), "{said:?}");
        let said = alone.say(&["--bind-dn", "cn=x", "gas"])?;
        ensure!(said.code == 1 && said.err.contains("go together"), "{said:?}");
        Ok(())
    })
}

/// The directory with an account on the played server at these ports.
fn with_a_mailbox(imap: u16, http: u16) -> Directory {
    let mut directory = directory();
    directory
        .config("zimbraReverseProxySSLToUpstreamEnabled", "FALSE")
        .config("zimbraReverseProxyImapStartTlsMode", "on");
    let server = directory.server("store1.example.test");
    server.insert("zimbraImapBindPort".into(), imap.into());
    server.insert("zimbraMailPort".into(), http.into());
    let mover = directory.account("mover@a.example");
    mover.insert("zimbraId".into(), "id-mover".into());
    mover.insert("zimbraMailHost".into(), "store1.example.test".into());
    directory
}

/// Portico in front of one mailbox server that is played here.
struct RunningNode {
    portico: Portico,
    prov: Prov,
    ca: Authority,
    http: SocketAddrV4,
    https: SocketAddrV4,
    imap: SocketAddrV4,
    imaps: SocketAddrV4,
    _store: Fake,
    _web: WebBackend,
    _slapd: Vec<Slapd>,
}

impl RunningNode {
    fn open(stage: &Stage, in_ldap: bool) -> Result<Self> {
        Self::open_with(stage, in_ldap, POLL, &[])
    }

    /// With a node that looks for changes only so often; `more` are lines for the section `directory`.
    fn open_with(stage: &Stage, in_ldap: bool, poll: &str, more: &[&str]) -> Result<Self> {
        Self::open_from(stage, |directory| {
            let slapd = in_ldap.then(|| Slapd::start(stage, "slapd", directory)).transpose()?;
            let mut source = slapd
                .as_ref()
                .map_or_else(|| yaml_source(poll), |slapd| slapd.source(poll));
            source.extend(more.iter().map(|line| (*line).to_owned()));
            Ok((source, slapd.into_iter().collect()))
        })
    }

    /// With a node whose section `directory` has these lines.
    fn open_from(stage: &Stage, source: impl FnOnce(&Directory) -> Result<(Vec<String>, Vec<Slapd>)>) -> Result<Self> {
        let ca = Authority::new(&stage.dir("ca")?)?;
        let pair = ca.server(&[FRONT])?;
        let ip = Ipv4Addr::new(127, 0, 0, 2);
        let mail = SocketAddrV4::new(ip, stage.port()?);
        let store = Fake::start(mail, None, idle)?;
        let web = WebBackend::start(stage, "store1", ip, &pair, Vec::new(), stage.dir("mail")?)?;
        let endpoint = || -> Result<SocketAddrV4> { Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, stage.port()?)) };
        let (http, https, imap, imaps) = (endpoint()?, endpoint()?, endpoint()?, endpoint()?);
        let directory = with_a_mailbox(mail.port(), web.http.port());
        let (source, servers) = source(&directory)?;
        let listen = |(address, serve, tls)| Listener {
            address: SocketAddr::V4(address),
            serve,
            tls,
            proxies: Vec::new(),
            more: Vec::new(),
        };
        let node = Node {
            name: NODE.to_owned(),
            directory: source,
            listeners: [
                (http, Serve::Web, Tls::No),
                (https, Serve::Web, Tls::Implicit),
                (imap, Serve::Imap, Tls::StartTls),
                (imaps, Serve::Imap, Tls::Implicit),
            ]
            .map(listen)
            .to_vec(),
            certificate: (pair.certificate_file, pair.key_file),
            upstream_ca: ca.file(),
            tls: Vec::new(),
            admin: Vec::new(),
            web: Vec::new(),
            more: Vec::new(),
        };
        let portico = Portico::start(stage, &node, &directory, "info")?;
        let conf = portico.dir().join("portico.yaml");
        Ok(Self {
            portico,
            prov: Prov { conf },
            ca,
            http,
            https,
            imap,
            imaps,
            _store: store,
            _web: web,
            _slapd: servers,
        })
    }

    /// Changes the mode of the clear port, and asks there as soon as `prov` has returned.
    fn change_mode(&self, options: &[&str], mode: &str, status: &str) -> Result<String> {
        let change = ["modifyServer", NODE, "zimbraReverseProxyMailMode", mode];
        let said = self.prov.say(&[options, &change].concat())?;
        ensure!(said.code == 0, "{said:?}");
        let found = self.clear_status()?;
        ensure!(found == status, "{mode}: {found}, {said:?}");
        Ok(said.err)
    }

    /// The status of a request to the clear port.
    fn clear_status(&self) -> Result<String> {
        let mut wire = Wire::clear(self.http)?;
        wire.send(request("mail.a.example"))?;
        let line = wire.line()?;
        Ok(line.split(' ').nth(1).unwrap_or_default().to_owned())
    }

    /// The common name of the certificate for a name, on every listener with TLS.
    fn certificates(&self, name: &str) -> Result<Vec<String>> {
        let tls = self.ca.connector(&[])?;
        let mut starttls = Wire::clear(self.imap)?;
        starttls.line()?;
        starttls.imap_ok("s0 STARTTLS")?;
        let wires = [
            Wire::clear(self.https)?.start_tls_any_name(&tls, name)?,
            Wire::clear(self.imaps)?.start_tls_any_name(&tls, name)?,
            starttls.start_tls_any_name(&tls, name)?,
        ];
        wires.iter().map(Wire::certificate_name).collect()
    }

    /// A session that waits for mail.
    fn idle_session(&self, name: &str) -> Result<Wire> {
        let mut wire = Wire::clear(self.imap)?;
        wire.line()?;
        wire.imap_ok(&format!("l0 LOGIN {name} whatever"))?;
        wire.say("i1 IDLE")?;
        let line = wire.line()?;
        ensure!(line.starts_with('+'), "{line}");
        Ok(wire)
    }

    /// One request on a connection of its own.
    fn https_request(&self) -> Result<()> {
        let mut wire = Wire::tls(self.https, &self.ca.connector(&[])?, FRONT)?;
        wire.send(request(FRONT))?;
        let line = wire.line()?;
        ensure!(line.starts_with("HTTP/1.1 200"), "{line}");
        Ok(())
    }

    /// What a change must bring about, and how long it took.
    fn soon(&self, what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        until(what, SOON, || Ok(is_so()?.then_some(())))?;
        println!("{what}: seen {:?} after the command", start.elapsed());
        Ok(())
    }
}

fn request(host: &str) -> String {
    format!("GET /home/alice@a.example/inbox HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
}

/// A mailbox server that takes a login and then knows IDLE.
fn idle(peer: &mut Peer) -> Result<()> {
    peer.imap_login("OK logged in")?;
    loop {
        let line = peer.line()?;
        match line.split_once(' ') {
            Some((_, "IDLE")) => peer.say("+ idling")?,
            Some((tag, _)) => peer.say(&format!("{tag} OK done"))?,
            None => peer.say("i1 OK idle done")?,
        }
    }
}

fn changes_are_taken_over(in_ldap: bool) -> Result<()> {
    Stage::run(|stage| {
        let mut running = RunningNode::open(stage, in_ldap)?;
        let mut sessions = (0..SESSIONS)
            .map(|_| running.idle_session("alice@a.example"))
            .collect::<Result<Vec<_>>>()?;
        let (ended, requests) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        std::thread::scope(|scope| -> Result<()> {
            let browsing = scope.spawn(|| -> Result<()> {
                while !ended.load(Ordering::SeqCst) {
                    running.https_request()?;
                    requests.fetch_add(1, Ordering::SeqCst);
                }
                Ok(())
            });
            let changed = change_everything(&running);
            ended.store(true, Ordering::SeqCst);
            match browsing.join() {
                Ok(browsed) => browsed.context("a request of the loop failed")?,
                Err(_) => bail!("the loop of requests panicked"),
            }
            changed
        })?;
        let count = requests.load(Ordering::SeqCst);
        ensure!(count > 10, "only {count} requests");
        for wire in &mut sessions {
            wire.say("DONE")?;
            let line = wire.line()?;
            ensure!(line == "i1 OK idle done", "{line}");
        }
        ensure!(running.portico.is_running(), "Portico has ended");
        Ok(())
    })
}

fn change_everything(running: &RunningNode) -> Result<()> {
    assert_eq!(running.clear_status()?, "302");
    for (mode, status) in [("https", "403"), ("both", "200"), ("redirect", "302")] {
        running
            .prov
            .must(&["modifyServer", NODE, "zimbraReverseProxyMailMode", mode])?;
        running.soon(mode, || Ok(running.clear_status()? == status))?;
    }
    let name = "new.a.example";
    assert_eq!(running.certificates(name)?, [FRONT; 3]);
    let pair = running.ca.server(&[name, "mail.a.example"])?;
    let file = |path: &Path| format!("file:{}", path.display());
    let (certificate, key) = (file(&pair.certificate_file), file(&pair.key_file));
    running.prov.must(&[
        "modifyDomain",
        "a.example",
        "+zimbraVirtualHostName",
        name,
        "zimbraSSLCertificate",
        &certificate,
        "zimbraSSLPrivateKey",
        &key,
    ])?;
    running.soon("the certificate on every listener", || {
        Ok(running.certificates(name)? == [name; 3])
    })?;
    let mover = "mover@a.example";
    // A moved account: its next login goes elsewhere, here to a server that is not there.
    running
        .prov
        .must(&["ma", mover, "zimbraMailHost", "store2.example.test"])?;
    running.soon("the move", || Ok(running.idle_session(mover).is_err()))?;
    running
        .prov
        .must(&["ma", mover, "zimbraMailHost", "store1.example.test"])?;
    running.soon("the move back", || Ok(running.idle_session(mover).is_ok()))?;
    running.prov.must(&["flushCache", "all"])?;
    running.prov.must(&["fc", "account", mover])?;
    Ok(())
}

#[test]
fn a_running_portico_takes_changes_of_the_file_over() -> Result<()> {
    changes_are_taken_over(false)
}

#[test]
fn a_running_portico_takes_changes_in_ldap_over() -> Result<()> {
    changes_are_taken_over(true)
}

/// The node looks for changes every hour: what is in force was told by slapd, or `prov` had it looked for.
#[test]
fn a_change_is_in_force_when_prov_returns() -> Result<()> {
    for (in_ldap, more) in [(false, &[][..]), (true, &[]), (true, &["  sync: false"])] {
        Stage::run(|stage| {
            let running = RunningNode::open_with(stage, in_ldap, "1h", more)?;
            let said = running.change_mode(&["--wait", "node"], "both", "200")?;
            ensure!(
                said.starts_with(&format!("in force on {NODE} (configuration ")),
                "{said}"
            );
            let said = running.change_mode(&[], "https", "403")?;
            ensure!(said.is_empty(), "{said}");
            running.change_mode(&[], "redirect", "302")?;
            Ok(())
        })?;
    }
    Ok(())
}

/// The node reads where the change does not arrive, or there is none. The change is stored all the same.
#[test]
fn prov_says_where_a_change_is_not_in_force() -> Result<()> {
    Stage::run(|stage| {
        let slapd = Slapd::start(stage, "slapd", &directory())?;
        let prov = Prov::new(stage, "alone", &slapd.source(POLL))?;
        let change = |mode| ["--wait", "node", "mcf", "zimbraReverseProxyMailMode", mode];
        let said = prov.say(&change("both"))?;
        ensure!(
            said.code == 3 && said.err.contains("no node has taken it over"),
            "{said:?}"
        );
        prov.must(&change("https")[2..])?;
        let said = prov.say(&["--wait", "ever", "mcf", "zimbraReverseProxyMailMode", "both"])?;
        ensure!(
            said.code == 1 && said.out.contains("--wait is node, all or none"),
            "{said:?}"
        );

        Ok(())
    })?;
    Stage::run(|stage| {
        // It reads from a copy that looks again in an hour, and sends changes on to the provider.
        let running = RunningNode::open_from(stage, |directory| {
            let slapd = Slapd::start(stage, "slapd", directory)?;
            let replica = slapd.late_replica(stage, "replica")?;
            until("the replica to be filled", Duration::from_secs(30), || {
                let found = replica.search("(uid=zmnginx)", &["userPassword"]);
                Ok(found.ok().filter(|text| text.contains("userPassword")))
            })?;
            let urls = [replica.url(), slapd.url()];
            let source = replica.source_of(&urls.each_ref().map(String::as_str), POLL);
            Ok((source, vec![slapd, replica]))
        })?;
        let said = running
            .prov
            .say(&["--wait", "node", "mcf", "zimbraReverseProxyConnectTimeout", "9s"])?;
        let words = format!("stored, but not in force on {NODE} after 5 s: this node does not see it yet");
        ensure!(said.code == 3 && said.err.contains(&words), "{said:?}");
        Ok(())
    })
}
