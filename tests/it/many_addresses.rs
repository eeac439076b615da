//! Failed logins from very many addresses: what they cost in memory, and what a login of somebody else costs after them.
//!
//! `PORTICO_GUESSES=1000000 PORTICO_LOGINS=2000` makes as many of them; the suite makes few, and prints the same.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use portico_tests::amount;
use portico_tests::config::{Directory, Node};
use portico_tests::town::people;

use crate::scene::{Scene, play_with};
use crate::throttle::imap;

/// Who guesses at the same time.
const THREADS: usize = 16;
/// What the throttle may take: its tables are full at 61 MiB, and 4 MiB are the failures whose clients have not heard
/// of them. Besides, the process may take what a log that grows quickly needs.
const MOST_KIB: u64 = (64 + 24) * 1024;

/// The addresses are those of this machine, of which 16 million lead to it.
fn address(n: usize) -> IpAddr {
    let [_, high, middle, low] = (n as u32).to_be_bytes();
    IpAddr::from([127, 16 + high, middle, low])
}

#[test]
fn failures_of_a_million_addresses_cost_others_nothing() -> Result<()> {
    let (guesses, logins) = (amount("PORTICO_GUESSES", 3_000), amount("PORTICO_LOGINS", 50));
    let change = |_: &_, node: &mut Node, directory: &mut Directory| {
        node.more.push(("throttle".to_owned(), "{}".to_owned()));
        node.more.push(("limits".to_owned(), "{exempt: []}".to_owned()));
        directory
            .config("zimbraReverseProxyAuthWaitInterval", "10ms")
            .config("zimbraReverseProxyImapStartTlsMode", "on");
        Ok(())
    };
    play_with(people(), change, |scene| {
        honest(scene, logins)?;
        let (cpu_before, rss_before) = (honest(scene, logins)?, scene.portico.rss_at_rest_kib()?);
        let begun = scene.portico.cpu_ticks()?;
        flood(scene, guesses)?;
        let cpu = scene.portico.cpu_ticks()? - begun;
        let (cpu_after, rss_after) = (honest(scene, logins)?, scene.portico.rss_at_rest_kib()?);
        let grown = rss_after.saturating_sub(rss_before);
        println!("{guesses} guesses, each from an address of its own: {cpu} ticks of CPU, {grown} KiB");
        println!("{logins} logins of a known account: {cpu_before} ticks before, {cpu_after} after");
        ensure!(grown <= MOST_KIB, "{rss_before} KiB before, {rss_after} after");
        let metrics = scene.metrics()?;
        let counted = format!("portico_logins_total{{outcome=\"unknown_user\",protocol=\"imap\"}} {guesses}\n");
        ensure!(metrics.contains(&counted), "{metrics}");
        Ok(())
    })
}

/// Logs in so often where the account is known; returns what it cost in ticks.
fn honest(scene: &Scene, logins: usize) -> Result<u64> {
    let begun = scene.portico.cpu_ticks()?;
    let person = scene.town.person("alice")?;
    for _ in 0..logins {
        let answer = imap(scene, IpAddr::from([127, 0, 0, 1]), &person.name, &person.password())?;
        ensure!(answer.starts_with("a1 OK"), "{answer}");
    }
    Ok(scene.portico.cpu_ticks()? - begun)
}

/// Each guess is the first of its address, and at a name that nobody has guessed at.
fn flood(scene: &Scene, guesses: usize) -> Result<()> {
    let guess = |thread: usize| -> Result<()> {
        for n in (thread..guesses).step_by(THREADS) {
            let answer = imap(scene, address(n), &format!("nobody{n}@a.example"), "guess")?;
            ensure!(answer.starts_with("a1 NO [AUTHENTICATIONFAILED]"), "{n}: {answer}");
        }
        Ok(())
    };
    let guess = &guess;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || guess(thread))).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("no panic"))
    })
}
