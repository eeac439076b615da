//! One mailbox server stops and comes back: its users hear so at once, the others notice nothing.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::scene::{Scene, play, timed};

const SOON: Duration = Duration::from_secs(5);

#[test]
fn a_stopped_server_concerns_its_own_users_only() -> Result<()> {
    play(|scene| {
        scene.deliver_marks()?;
        let (mut alice, mut bob) = (scene.login("alice")?, scene.login("bob")?);
        scene.town.stores[0].dovecot.stop()?;
        alice.rest()?;
        bob.imap_ok("b1 NOOP")?;
        imap_is_unavailable(scene)?;
        pop3_is_unavailable(scene)?;
        bob.imap_ok("b2 NOOP")?;
        let mut dave = scene.login("dave")?;
        scene.is_inbox_of(&mut dave, "dave")?;
        scene
            .portico
            .record(&[("user", "alice@a.example"), ("outcome", "upstream_down")])?;

        scene.town.stores[0].dovecot.start_again()?;
        let mut alice = scene.login("alice")?;
        scene.is_inbox_of(&mut alice, "alice")
    })
}

fn imap_is_unavailable(scene: &Scene) -> Result<()> {
    let (answer, wait) = timed(|| scene.imaps()?.imap("a1 LOGIN alice@a.example alice-c4n4ry-one"))?;
    ensure!(
        answer.last().is_some_and(|l| l.starts_with("a1 NO [UNAVAILABLE]")),
        "{answer:?}"
    );
    ensure!(wait < SOON, "{wait:?}");
    Ok(())
}

fn pop3_is_unavailable(scene: &Scene) -> Result<()> {
    let (answer, wait) = timed(|| {
        let mut wire = scene.pop3s()?;
        wire.pop_ok("USER carol@b.example")?;
        wire.pop("PASS carol-c4n4ry-three")
    })?;
    ensure!(answer.starts_with("-ERR [SYS/TEMP]"), "{answer:?}");
    ensure!(wait < SOON, "{wait:?}");
    Ok(())
}
