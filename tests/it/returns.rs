//! When a mailbox server comes back, its clients are let in at a pace.

use std::time::Duration;

use anyhow::{Result, ensure};
use portico_tests::town::people;
use portico_tests::until;

use crate::scene::{Scene, play_with};

fn answer(scene: &Scene) -> Result<String> {
    let (mut wire, alice) = (scene.imaps()?, scene.town.person("alice")?);
    let said = wire.imap(&format!("a1 LOGIN {} {}", alice.name, alice.password()))?;
    Ok(said.last().cloned().unwrap_or_default())
}

/// Many at once; how many got in, and how many were told to come again.
fn storm(scene: &Scene, count: usize) -> Result<(usize, usize)> {
    let answers = std::thread::scope(|threads| -> Result<Vec<String>> {
        let all: Vec<_> = (0..count).map(|_| threads.spawn(|| answer(scene))).collect();
        all.into_iter()
            .map(|one| one.join().expect("it does not panic"))
            .collect()
    })?;
    let with = |start: &str| answers.iter().filter(|one| one.starts_with(start)).count();
    let (taken, told) = (with("a1 OK"), with("a1 NO [UNAVAILABLE]"));
    ensure!(taken + told == count, "{answers:?}");
    Ok((taken, told))
}

#[test]
fn a_server_that_comes_back_is_not_stormed() -> Result<()> {
    let pace = "{return_rate: 2, return_time: 4s, return_wait: 1s}";
    play_with(
        people(),
        |_, node, _| {
            node.more.push(("mail".to_owned(), pace.to_owned()));
            Ok(())
        },
        |scene| {
            ensure!(storm(scene, 20)? == (20, 0), "it has not been down");
            scene.town.stores[0].dovecot.stop()?;
            ensure!(storm(scene, 20)? == (0, 20));
            let metrics = scene.metrics()?;
            ensure!(
                metrics.contains("portico_servers_returning{state=\"down\",upstream=\"store1.example.test\"} 1"),
                "{metrics}"
            );
            // The other server has not been down.
            scene.login("bob")?;
            scene.town.stores[0].dovecot.start_again()?;
            until("the server is back", Duration::from_secs(10), || {
                Ok(answer(scene)?.starts_with("a1 OK").then_some(()))
            })?;
            let (taken, told) = storm(scene, 20)?;
            // Two each second, for a second; a slow machine may take longer for the storm than that.
            ensure!((1..20).contains(&taken) && told > 0, "{taken} of 20");
            scene.login("bob")?;
            let record = scene
                .portico
                .record(&[("outcome", "busy"), ("account", "alice@a.example")])?;
            ensure!(
                record["why"] == "too many logins at this moment, please try again",
                "{record}"
            );
            std::thread::sleep(Duration::from_secs(4));
            ensure!(storm(scene, 20)? == (20, 0), "it has been back for long");
            Ok(())
        },
    )
}
