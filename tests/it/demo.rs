//! The demo of `make run`: every line that it prints to try works, and it leaves nothing behind.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use portico_tests::child::Child;
use portico_tests::portico::binary;
use portico_tests::{Stage, until};

#[test]
fn every_printed_line_works() -> Result<()> {
    Stage::run(|stage| {
        let log = stage.path().join("demo.log");
        let temp = stage.dir("tmp")?;
        let binary = binary()?;
        let env = [
            ("PORTICO_BIN", binary.to_str().context("path")?),
            ("TMPDIR", temp.to_str().context("path")?),
        ];
        std::fs::set_permissions(&temp, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let mut demo = Child::spawn("stage", env!("CARGO_BIN_EXE_stage"), &["--any-ports"], &env, &log)?;
        let printed = until("the demo to be up", Duration::from_secs(60), || {
            ensure!(demo.is_running(), "it ended:\n{}", demo.output());
            let printed = demo.output();
            Ok(printed.contains("tail -f").then_some(printed))
        })?;
        let lines: Vec<&str> = printed
            .lines()
            .map(str::trim)
            .filter(|l| l.starts_with("curl") || l.starts_with("printf") || l.contains(" -c "))
            .collect();
        ensure!(lines.len() > 15, "{printed}");
        for line in lines {
            works(line)?;
        }
        let audit = printed
            .lines()
            .find_map(|l| l.trim().strip_prefix("tail -f "))
            .context("no audit log")?;
        let audit = std::fs::read_to_string(audit)?;
        ensure!(
            audit
                .lines()
                .any(|l| l.contains("\"via\":\"127.0.0.9:") && l.contains("\"client\":\"127.0.0.1:")),
            "{audit}"
        );
        demo.signal(Signal::SIGINT)?;
        let status = demo.wait(Duration::from_secs(20))?;
        ensure!(status.success(), "{status}\n{}", demo.output());
        is_empty_of_stages(&temp)
    })
}

fn works(line: &str) -> Result<()> {
    let out = Command::new("sh").args(["-c", line]).output()?;
    let said = String::from_utf8_lossy(&out.stdout);
    ensure!(
        out.status.success(),
        "{line}\n{said}\n{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let store = if line.contains("bob@a.example") {
        "store2"
    } else {
        "store1"
    };
    let expected = match line {
        l if l.ends_with(" status") => "ready       yes".to_owned(),
        l if l.ends_with("explain al") => format!("mailbox     on {store}"),
        l if l.ends_with(" logins") => "alice@a.example".to_owned(),
        l if l.ends_with(" sessions") => "SESSION".to_owned(),
        l if l.contains(" prov ") => "zimbraVirtualHostname: mail.a.example".to_owned(),
        l if l.contains("/metrics") => "portico_logins_total{".to_owned(),
        l if l.contains("MAILINDEX") || l.contains("/1'") => format!("This mail lives on {store}"),
        l if l.contains("/home/") => format!("\"server\":\"{store}\""),
        l if l.contains("AuthRequest") => "ZM_AUTH_TOKEN=".to_owned(),
        l if l.contains("/any/page") => "302".to_owned(),
        l if l.contains("STATUS") => "MESSAGES 3".to_owned(),
        _ => "+OK 3 ".to_owned(),
    };
    ensure!(said.contains(&expected), "{line}\nexpected {expected:?} in {said:?}");
    Ok(())
}

/// The port locks may stay; the temporary directory and everything that lived in it may not.
fn is_empty_of_stages(temp: &Path) -> Result<()> {
    let left: Vec<_> = std::fs::read_dir(temp)?.flatten().map(|e| e.file_name()).collect();
    ensure!(
        left.iter().all(|n| n.to_string_lossy().starts_with("portico-ports")),
        "left behind: {left:?}"
    );
    let marker = temp.to_str().context("path")?;
    for process in std::fs::read_dir("/proc")?.flatten() {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        ensure!(
            !String::from_utf8_lossy(&line).contains(marker),
            "still runs: {}",
            String::from_utf8_lossy(&line)
        );
    }
    Ok(())
}
