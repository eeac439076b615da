//! A directory file that is empty, or ends too soon, takes no account away.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portico_tests::until;

use crate::admin::{done, said};
use crate::scene::{Scene, play_with};
use portico_tests::config::yaml_source;
use portico_tests::town::people;

const SOON: Duration = Duration::from_secs(20);

/// Whether the node says that it holds a reading back, and why.
fn held_back(scene: &Scene) -> Result<Option<String>> {
    let status: serde_json::Value = serde_json::from_str(&done(&scene.portico, &["status", "--json"])?)?;
    Ok(status["directory_refused"].as_str().map(str::to_owned))
}

/// Puts this text in place of the file in the way of who has no other: emptied, then written.
fn write(scene: &Scene, text: &str) -> Result<()> {
    Ok(std::fs::write(scene.portico.dir().join("directory.yaml"), text)?)
}

fn is_known(scene: &Scene, local: &str) -> Result<bool> {
    let name = &scene.town.person(local)?.name;
    Ok(!done(&scene.portico, &["route", "explain", name])?.contains("there is no such account"))
}

/// As far as before the line that begins so.
fn upto<'a>(text: &'a str, line: &str) -> Result<&'a str> {
    let end = text
        .find(&format!("\n{line}"))
        .with_context(|| format!("no {line} in {text}"))?;
    Ok(&text[..=end])
}

fn play(test: impl FnOnce(&mut Scene) -> Result<()>) -> Result<()> {
    let look_often = |_: &_, node: &mut portico_tests::config::Node, _: &mut _| {
        node.directory = yaml_source("200ms");
        Ok(())
    };
    play_with(people(), look_often, test)
}

#[test]
fn no_account_is_lost_with_a_file_that_is_empty_or_cut_off() -> Result<()> {
    play(|scene| {
        let whole = scene.town.directory().yaml();
        // In another order, all kinds of entries are there although the end is missing.
        let (but_classes, classes) = whole.split_at(upto(&whole, "cos:")?.len());
        let end = but_classes.find("\n  \"dave@").context("no dave")?;
        let few_gone = format!("{classes}{}", &but_classes[..end]);
        drop(scene.login("alice")?);
        for (text, reason) in [
            ("", "all servers are gone"),
            ("# nothing\n# but comments\n", "all servers are gone"),
            (upto(&whole, "domains:")?, "all domains are gone"),
            (
                upto(&whole, "accounts:")?,
                " are gone; if that is meant, portico reload",
            ),
            ("accounts: [\n", ""),
            // Good, and few are gone, but it was cut off.
            (&few_gone, "its last line has no end"),
            (whole.trim_end(), "its last line has no end"),
        ] {
            write(scene, text)?;
            until("the reading to be held back", SOON, || {
                Ok(held_back(scene)?.filter(|why| why.contains(reason)))
            })?;
            let status = done(&scene.portico, &["status"])?;
            ensure!(status.contains("directory   not in force: "), "{status}");
            for local in ["alice", "bob"] {
                scene.login(local)?.imap_ok("a1 NOOP")?;
            }
            write(scene, &whole)?;
            until("the whole file to be in force", SOON, || {
                Ok(held_back(scene)?.is_none().then_some(()))
            })?;
        }
        ensure!(scene.portico.output().contains("ERROR"), "no alarm");
        Ok(())
    })
}

/// What an administrator asks for is done, but a directory without servers or domains only with `--force`.
#[test]
fn a_reload_takes_entries_away_where_an_administrator_asks_for_it() -> Result<()> {
    play(|scene| {
        let whole = scene.town.directory().yaml();
        write(scene, upto(&whole, "accounts:")?)?;
        let reloaded = done(&scene.portico, &["reload"])?;
        ensure!(!is_known(scene, "bob")?, "{reloaded}");
        for (text, why) in [
            ("", "all servers are gone"),
            (upto(&whole, "domains:")?, "all domains are gone"),
        ] {
            write(scene, text)?;
            let refused = said(&scene.portico, &["reload"])?;
            ensure!(refused.code == 1 && refused.err.contains(why), "{}", refused.err);
        }
        done(&scene.portico, &["reload", "--force"])?;
        ensure!(held_back(scene)?.is_none(), "still held back");
        write(scene, &whole)?;
        until("everybody to be back", SOON, || {
            Ok(is_known(scene, "bob")?.then_some(()))
        })
    })
}
