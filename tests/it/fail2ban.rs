//! The filter for fail2ban finds guessing in both forms of the audit log, and nothing else.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use portico_tests::town::FRONT;
use portico_tests::until;
use portico_tests::wire::Wire;

use crate::scene::{Scene, greeted, play};

/// Who guesses.
const GUESSER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 77));

/// Guesses whose client does not wait for the answer.
const HANG_UPS: usize = 3;

#[test]
fn guesses_are_found_in_json() -> Result<()> {
    play(guess)
}

#[test]
fn guesses_are_found_in_carbonios_form() -> Result<()> {
    play(|scene| {
        scene.portico.stop()?;
        std::fs::remove_file(scene.portico.dir().join("audit.log"))?;
        let file = scene.portico.dir().join("portico.yaml");
        let yaml = std::fs::read_to_string(&file)?;
        std::fs::write(&file, yaml.replace("  audit: ", "  audit_format: carbonio\n  audit: "))?;
        scene.portico.start_again("info")?;
        guess(scene)
    })
}

fn guess(scene: &mut Scene) -> Result<()> {
    // Guesses are worth hanging up on where they take time.
    scene.town.stores[0].dovecot.delay_guesses()?;
    let tls = scene.town.ca.connector(&[])?;
    let greeted = || -> Result<Wire> {
        let wire = Wire::clear_from(GUESSER, scene.town.endpoints.imaps)?.start_tls(&tls, FRONT)?;
        greeted(wire, "* OK")
    };
    let imaps = |command: &str| greeted()?.imap(command).map(drop);
    for n in 0..HANG_UPS {
        // Right ones are answered at once; who does not hear from the server by then knows enough.
        let mut wire = greeted()?;
        wire.say(&format!("a LOGIN alice@a.example wr0ng-{n}"))?;
        ensure!(wire.is_silent(std::time::Duration::from_millis(250))?, "no delay");
    }
    imaps("a LOGIN alice@a.example wrong")?;
    imaps("a LOGIN nobody@a.example wrong")?;
    // A client that wants the bans to hit others, or none.
    imaps("a LOGIN \"x] [ip=1.2.3.4;oip=1.2.3.4;cid=1;] security - cmd=Auth; account=y\" wrong")?;
    imaps("a LOGIN \"x\\\",\\\"client\\\":\\\"1.2.3.4:5\\\",\\\"outcome\\\":\\\"ok\" wrong")?;
    // These are nobody's guesses.
    drop(scene.login("carol")?);
    imaps(&format!("a LOGIN alice@a.example {}", "x".repeat(8193)))?;
    scene.town.stores[1].dovecot.stop()?;
    imaps("a LOGIN bob@a.example bob-c4n4ry-two")?;

    let log = scene.portico.dir().join("audit.log");
    until("all lines", std::time::Duration::from_secs(20), || {
        let text = std::fs::read_to_string(&log)?;
        let refused = text.matches("bad_credentials").count() + text.matches("invalid password").count();
        let all = text.contains("upstream_down") && text.contains("password_too_long") && refused > HANG_UPS;
        Ok(all.then_some(()))
    })?;
    let found = scene.run(
        "fail2ban-regex",
        &[
            "--print-all-matched",
            log.to_str().context("path")?,
            filter().to_str().context("path")?,
        ],
    )?;
    ensure!(found.contains(&format!(" {} matched", HANG_UPS + 4)), "{found}");
    let addresses = scene.run(
        "fail2ban-regex",
        &[
            "--out",
            "ip",
            log.to_str().context("path")?,
            filter().to_str().context("path")?,
        ],
    )?;
    let addresses: Vec<&str> = addresses.split_whitespace().collect();
    ensure!(addresses == ["127.0.0.77"; HANG_UPS + 4], "{addresses:?}");
    Ok(())
}

fn filter() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf/fail2ban/filter.d/portico.conf")
}
