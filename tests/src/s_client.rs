//! `openssl s_client`: what another TLS library sees of a listener.

use std::io::Write;
use std::net::SocketAddrV4;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

/// What it prints of a visit to this listener, asking for this name, with these arguments besides. It says something,
/// and listens until the other side ends.
pub fn s_client(endpoint: SocketAddrV4, name: &str, say: &str, more: &[&str]) -> Result<String> {
    let mut child = Command::new("openssl")
        .args(["s_client", "-ign_eof", "-servername", name, "-connect"])
        .arg(endpoint.to_string())
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("openssl: try scripts/install")?;
    // It may have ended already, after a failed handshake.
    let _ended = child.stdin.take().context("no stdin")?.write_all(say.as_bytes());
    let out = child.wait_with_output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(text(&out.stdout) + &text(&out.stderr))
}
