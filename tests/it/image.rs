//! The files of the image, started like a container: as the first process of its own process space, without root,
//! with the configuration mounted and nothing else of this machine to be seen.
//!
//! `scripts/check-image` gives the files of a built image (`PORTICO_ROOT`); else they are assembled here.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portico_tests::child::Child;
use portico_tests::portico::binary;
use portico_tests::town::{FRONT, Town, people};
use portico_tests::wire::Wire;
use portico_tests::{Stage, until};

use crate::scene::{greeted, timed};

/// The user of the image.
const USER: &str = "10001";
/// `shutdown_timeout` here.
const STATED: Duration = Duration::from_secs(6);
const SOON: Duration = Duration::from_secs(30);

#[test]
fn the_image_serves_and_stops_in_time() -> Result<()> {
    Stage::run(|stage| {
        let root = root(stage)?;
        ensure!(!root.join("bin/sh").exists(), "there is a shell in it");
        let town = Town::build(stage, people())?;
        let mounted = configuration(stage, &town)?;
        let mut container = start(stage, &root, &mounted)?;
        let endpoints = town.endpoints;
        container.wait_listening(&[endpoints.https, endpoints.imaps])?;

        let tls = town.ca.connector(&[])?;
        let mut alice = greeted(Wire::tls(endpoints.imaps, &tls, FRONT)?, "* OK")?;
        alice.imap_ok("a1 LOGIN alice@a.example alice-c4n4ry-one")?;
        let mut web = Wire::tls(endpoints.https, &tls, FRONT)?;
        web.send(format!(
            "GET /home/alice@a.example/x HTTP/1.1\r\nHost: {FRONT}\r\nConnection: close\r\n\r\n"
        ))?;
        let answer = String::from_utf8_lossy(&web.rest()?).into_owned();
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        until("an audit line on standard output", SOON, || {
            Ok(container.output().contains("\"outcome\":\"ok\"").then_some(()))
        })?;

        let first = first_process(container.pid())?;
        let status = std::fs::read_to_string(format!("/proc/{first}/status"))?;
        if nix::unistd::getuid().is_root() {
            ensure!(status.contains(&format!("Uid:\t{USER}\t{USER}")), "{status}");
        }
        let inside = status
            .lines()
            .find_map(|l| l.strip_prefix("NSpid:"))
            .context("no NSpid")?;
        ensure!(
            inside.split_whitespace().last() == Some("1"),
            "not the first process: {inside}"
        );
        // In a container there is no upgrade, and it says so.
        kill(first, Signal::SIGUSR2)?;
        until("the refusal", SOON, || {
            Ok(container.output().contains("start a new container").then_some(()))
        })?;
        alice.imap_ok("a2 NOOP")?;
        let (status, wait) = timed(|| {
            kill(first, Signal::SIGTERM)?;
            let said = alice.rest()?;
            ensure!(said.starts_with(b"* BYE"), "{said:?}");
            container.wait(SOON)
        })?;
        ensure!(status.success(), "{status}\n{}", container.output());
        // A second for a busy machine.
        ensure!(wait < STATED + Duration::from_secs(1), "{wait:?}");
        Ok(())
    })
}

/// The files of a built image, or those that it would be built from.
fn root(stage: &Stage) -> Result<PathBuf> {
    if let Some(root) = std::env::var_os("PORTICO_ROOT") {
        return Ok(root.into());
    }
    let root = stage.path().join("rootfs");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/rootfs");
    let out = Command::new(script).arg(&root).arg(binary()?).output()?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Ok(root)
}

/// What is mounted at /etc/portico. Nothing can be written there.
fn configuration(stage: &Stage, town: &Town) -> Result<PathBuf> {
    let dir = stage.dir("mounted")?;
    let mut node = town.node();
    node.more
        .push(("shutdown_timeout".to_owned(), format!("{}s", STATED.as_secs())));
    let to_output = [
        ("\"/run/portico/access.log\"", "\"-\""),
        ("\"/run/portico/audit.log\"", "\"-\""),
    ];
    town.configure(&dir, node, &to_output)?;
    Ok(dir)
}

fn start(stage: &Stage, root: &Path, mounted: &Path) -> Result<Child> {
    let is_root = nix::unistd::getuid().is_root();
    let user = if is_root {
        format!("--userspec={USER}:{USER}")
    } else {
        "--userspec=0:0".to_owned()
    };
    let script = format!(
        "mount --bind {mounted} {root}/etc/portico && mount -o remount,ro,bind {root}/etc/portico && \
         mount -t proc proc {root}/proc && \
         exec chroot {user} {root} /usr/local/bin/portico -c /etc/portico/portico.yaml",
        mounted = mounted.display(),
        root = root.display(),
    );
    let mut args = vec!["--mount", "--pid", "--fork", "--kill-child"];
    if !is_root {
        args.push("--map-root-user");
    }
    args.extend(["sh", "-c", &script]);
    Child::spawn(
        "image",
        "unshare",
        &args,
        &[("RUST_LOG", "info")],
        &stage.path().join("container.log"),
    )
}

/// The process that is number 1 inside.
fn first_process(unshare: u32) -> Result<Pid> {
    let children = std::fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"))?;
    Ok(Pid::from_raw(
        children
            .trim()
            .parse()
            .with_context(|| format!("children {children:?}"))?,
    ))
}
