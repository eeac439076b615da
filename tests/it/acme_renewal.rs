//! Renewal of certificates at the time that the authority says (RFC 9773).

use anyhow::{Context, Result, ensure};
use portico_tests::acme_authority::{AcmeAuthority, Resource, time_text};
use portico_tests::config::{Directory, Node};
use portico_tests::town::Town;
use portico_tests::until;

use crate::acme::{IMAP, MAIL, PATIENCE, orders_of};
use crate::acme_strict::{play, served};
use crate::scene::Scene;

/// In seconds.
const DAY: i64 = 24 * 60 * 60;

/// Waits until `portico certificates` says that the certificate is renewed between these days from now.
fn renews(scene: &Scene, days: [i64; 2]) -> Result<()> {
    let [start, end] = [time_text(days[0] * DAY)?, time_text(days[1] * DAY)?];
    let mut last = String::new();
    until("the time of renewal", PATIENCE, || {
        last = orders_of(scene)?["renews"].as_str().unwrap_or_default().to_owned();
        Ok((start < last && last < end).then_some(()))
    })
    .with_context(|| format!("it is {last}, not between {start} and {end}"))
}

#[test]
fn a_certificate_is_renewed_when_the_authority_says_and_once_a_day_at_most() -> Result<()> {
    let later = |_: &Town, authority: &AcmeAuthority, _: &mut Node, _: &mut Directory| {
        authority.behave(|behaviour| {
            behaviour.renewal = Some([20 * DAY, 21 * DAY]);
            // On its first day none is renewed because the authority wants it.
            behaviour.life[0] = 2 * DAY;
        });
    };
    play(&[MAIL, IMAP], later, |scene, authority| {
        served(scene, &[MAIL, IMAP])?;
        renews(scene, [20, 22])?;
        let told = || {
            let words = "the authority wants its certificate renewed from ";
            scene.portico.output().contains(words)
        };
        ensure!(!told(), "what it says first is no news");
        assert_eq!(
            (authority.issued().len(), authority.count(Resource::RenewalInfo)),
            (1, 1)
        );
        // It is put off, and asked for again.
        authority.behave(|behaviour| behaviour.renewal = Some([30 * DAY, 31 * DAY]));
        scene.portico.reload()?;
        renews(scene, [30, 32])?;
        ensure!(told(), "it is not in the log");
        assert_eq!(authority.issued().len(), 1);
        // All certificates are to be renewed at once.
        authority.behave(|behaviour| behaviour.renewal = Some([-2 * DAY, -DAY]));
        scene.portico.reload()?;
        let asked = || authority.count(Resource::RenewalInfo);
        until("a second certificate, and what is said of it", PATIENCE, || {
            Ok((authority.issued().len() == 2 && asked() == 4).then_some(()))
        })?;
        assert_eq!(authority.replaced(), 1, "it was not ordered in place of the first one");
        scene.portico.reload()?;
        until("a fifth question", PATIENCE, || Ok((asked() == 5).then_some(())))?;
        renews(scene, [0, 2])?;
        assert_eq!(authority.issued().len(), 2, "not again within a day");
        Ok(())
    })
}

#[test]
fn without_such_times_a_certificate_is_renewed_by_its_life() -> Result<()> {
    let never = |_: &Town, _: &AcmeAuthority, _: &mut Node, _: &mut Directory| {};
    play(&[MAIL], never, |scene, authority| {
        served(scene, &[MAIL])?;
        // A third of 90 days, give or take a fifteenth.
        renews(scene, [53, 67])?;
        assert_eq!(authority.count(Resource::RenewalInfo), 0);
        Ok(())
    })
}
