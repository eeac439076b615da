//! Clients without a login cannot fill the logs: what they cause is a few lines and a count.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use portico_tests::town::BALANCER;
use portico_tests::until;
use portico_tests::wire::Wire;

use crate::scene::{Scene, play};

/// Connections of each kind.
const MANY: usize = 400;
/// Lines that one kind may write in the time that this takes: two shares, and the count.
const FEW: usize = 101;

#[test]
fn strangers_cause_few_lines() -> Result<()> {
    play(|scene| {
        for _ in 0..MANY {
            let mut wire = Wire::clear(scene.town.endpoints.imaps)?;
            wire.send("no TLS at all\r\n")?;
            let mut wire = Wire::clear_from(IpAddr::V4(BALANCER), scene.town.behind.pop3)?;
            wire.send("no PROXY header\r\n")?;
            // A client that goes away is no line at all.
            drop(Wire::clear(scene.town.endpoints.https)?);
        }
        for kind in ["no TLS with", "no PROXY header from"] {
            let left_out = format!("left out: {}", endpoint(scene, kind));
            until(&left_out, Duration::from_secs(30), || {
                Ok(scene.portico.output().contains(&left_out).then_some(()))
            })?;
            let output = scene.portico.output();
            // This Portico tells of details, too.
            let lines = output
                .lines()
                .filter(|line| line.contains(kind) && !line.contains("DEBUG"));
            let count = lines.count();
            ensure!(count <= FEW, "{count} lines of {kind}");
        }
        let output = scene.portico.output();
        let https = format!("INFO  proxy_app::listen] {}", scene.town.endpoints.https);
        ensure!(
            !output.contains(&https),
            "clients that have gone are told of:\n{output}"
        );
        Ok(())
    })
}

/// The story: one byte on a mail port was a line of 243 bytes in the audit log, without limit.
#[test]
fn clients_that_leave_without_a_login_cause_few_records() -> Result<()> {
    play(|scene| {
        for _ in 0..60 {
            let mut wire = Wire::clear(scene.town.endpoints.imap)?;
            wire.line()?;
            wire.send("x")?;
        }
        let ended = [("event", "session_end"), ("outcome", "client_gone")];
        // All of them have come and gone, and the records are in order.
        until("sixty ends", Duration::from_secs(30), || {
            let metrics = scene.metrics()?;
            let accepted = format!(
                "portico_connections_total{{listener=\"{}\"}} 60",
                scene.town.endpoints.imap
            );
            let is_over = metrics.contains(&accepted) && metrics.contains("\nportico_connections_open 0\n");
            Ok(is_over.then_some(()))
        })?;
        drop(scene.login("bob")?);
        scene.portico.record(&[("event", "login"), ("outcome", "ok")])?;
        let records = scene.portico.count(&ended)?;
        ensure!((1..=20).contains(&records), "{records} records");
        Ok(())
    })
}

/// How a line of this kind begins.
fn endpoint(scene: &Scene, kind: &str) -> String {
    let endpoint = match kind {
        "no TLS with" => scene.town.endpoints.imaps,
        _ => scene.town.behind.pop3,
    };
    format!("{endpoint}: {kind}")
}
