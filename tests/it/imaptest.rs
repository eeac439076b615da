//! imaptest's own test scripts, straight at a Dovecot and through Portico: the same comes of them.

use std::fs::Permissions;
use std::net::SocketAddrV4;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Result, ensure};
use portico_tests::imaptest::{self, Verdict};
use portico_tests::town::people;

use crate::scene::{Scene, play_with};

/// Plays a test with listeners and servers that take logins in clear text.
fn play_clear(test: impl FnOnce(&mut Scene) -> Result<()>) -> Result<()> {
    let change = |_: &_, _: &mut _, directory: &mut portico_tests::config::Directory| {
        directory
            .config("zimbraReverseProxyImapStartTlsMode", "on")
            .config("zimbraReverseProxySSLToUpstreamEnabled", "FALSE");
        Ok(())
    };
    play_with(people(), change, test)
}

/// What came of the scripts straight at Alice's server, and through Portico.
fn both_ways(scene: &Scene, program: &Path, scripts: &Path) -> Result<[Verdict; 2]> {
    let alice = scene.town.person("alice")?;
    let store = &scene.town.stores[alice.store].dovecot;
    let play = |at| imaptest::play(program, at, &alice.name, &alice.password(), scripts);
    Ok([
        play(SocketAddrV4::new(store.ip, store.imap))?,
        play(scene.town.endpoints.imap)?,
    ])
}

/// There is no package of it, so it runs where it is: CONTRIBUTING.md.
#[test]
fn its_own_tests() -> Result<()> {
    let (Some(program), Some(scripts)) = (imaptest::find(), imaptest::scripts()) else {
        println!("not run: IMAPTEST or IMAPTEST_TESTS names none");
        return Ok(());
    };
    play_clear(|scene| {
        // From here on its server's capabilities are shown before a login, too.
        scene.login("alice")?;
        let [direct, through] = both_ways(scene, &program, &scripts)?;
        println!("{}", through.counts.join("\n"));
        ensure!(direct == through, "direct: {direct:#?}\nthrough Portico: {through:#?}");
        Ok(())
    })
}

/// Plays scripts of one command and a part of its answer, and prints what imaptest does.
const STAND_IN: &str = r#"#!/usr/bin/env python3
import os, socket, sys
args = dict(arg.split("=", 1) for arg in sys.argv[1:])
names, failed = sorted(os.listdir(args["test"])), 0
for name in names:
    state, command, wanted = open(os.path.join(args["test"], name)).read().split("\n")[:3]
    wire = socket.create_connection((args["host"], int(args["port"]))).makefile("rwb")
    wire.readline()
    def say(tag, text):
        wire.write(b"%s %s\r\n" % (tag, text.encode()))
        wire.flush()
        lines = []
        while not lines or not lines[-1].startswith(tag):
            lines.append(wire.readline())
            assert lines[-1], lines
        return b"".join(lines).decode()
    if state == "auth":
        say(b"a", "LOGIN %s %s" % (args["user"], args["pass"]))
    if wanted not in say(b"b", command):
        failed += 1
        print("*** Test %s command 1/1 (line 2)\n - failed: no %s" % (name, wanted), file=sys.stderr)
print("%d test groups: %d failed, 0 skipped due to missing capabilities" % (len(names), failed))
print("base protocol: %d/%d individual commands failed" % (failed, len(names)))
print("extensions: 0/0 individual commands failed")
sys.exit(failed > 0)
"#;

/// With a program that stands in for it: what is the same behind a login, and what is not before it.
#[test]
fn differences_are_found() -> Result<()> {
    play_clear(|scene| {
        let program = scene.stage.file("imaptest", STAND_IN)?;
        std::fs::set_permissions(&program, Permissions::from_mode(0o700))?;
        let same = [
            ("select", "auth\nSELECT INBOX\nOK [READ-WRITE]\n"),
            ("namespace", "auth\nNAMESPACE\n* NAMESPACE\n"),
            ("nowhere", "auth\nSELECT nowhere\nOK\n"),
            ("noop", "nonauth\nNOOP\nb OK\n"),
        ];
        for (name, script) in same {
            scene.stage.file(&format!("scripts/{name}"), script)?;
        }
        let scripts = scene.stage.dir("scripts")?;
        let [direct, through] = both_ways(scene, &program, &scripts)?;
        ensure!(direct == through, "{direct:?} {through:?}");
        ensure!(direct.failed.iter().eq(["nowhere command 1/1 (line 2)"]), "{direct:?}");
        // Before the login it is Portico that answers.
        scene.stage.file("scripts/who", "nonauth\nID NIL\nDovecot\n")?;
        let [direct, through] = both_ways(scene, &program, &scripts)?;
        ensure!(
            through.failed.len() == direct.failed.len() + 1,
            "{direct:?} {through:?}"
        );
        ensure!(through.failed.contains("who command 1/1 (line 2)"), "{through:?}");
        Ok(())
    })
}
