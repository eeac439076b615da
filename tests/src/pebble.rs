//! A real ACME authority for tests: pebble, and the name server by which it finds names.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::Stage;
use crate::certs::Authority;
use crate::child::Child;
use crate::wire::Wire;

/// A running authority. It asks for challenges at one port of 127.0.0.1, whatever the name.
pub struct Pebble {
    address: SocketAddrV4,
    dns: SocketAddrV4,
    management: SocketAddrV4,
    config: PathBuf,
    log: PathBuf,
    child: Child,
    _names: Child,
}

/// Of a hundred good nonces so many are refused: a client has to try again.
const REFUSED_NONCES: &str = "30";

impl Pebble {
    /// Starts one that asks for challenges at these ports: HTTP-01, and TLS-ALPN-01.
    pub fn start(stage: &Stage, ca: &Authority, http_port: u16, tls_port: u16) -> Result<Self> {
        Self::start_with(stage, ca, [http_port, tls_port], &json!({}), None)
    }

    /// The same with more keys of its configuration, and with another name server than its own.
    pub fn start_with(
        stage: &Stage,
        ca: &Authority,
        [http_port, tls_port]: [u16; 2],
        more: &Value,
        name_server: Option<SocketAddrV4>,
    ) -> Result<Self> {
        let [address, dns, management] = [stage.port()?, stage.port()?, stage.port()?].map(local);
        let pair = ca.server(&["127.0.0.1"])?;
        let dir = stage.dir("pebble")?;
        let mut config = json!({
            "listenAddress": address.to_string(),
            "managementListenAddress": "",
            "certificate": pair.certificate_file,
            "privateKey": pair.key_file,
            "httpPort": http_port,
            "tlsPort": tls_port,
            "ocspResponderURL": "",
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        let config = stage.file("pebble/config.json", json!({"pebble": config}).to_string())?;
        let args = [
            "-dns01",
            &dns.to_string(),
            "-management",
            &management.to_string(),
            "-http01",
            "",
            "-https01",
            "",
            "-tlsalpn01",
            "",
            "-defaultIPv6",
            "",
        ];
        let mut names = Child::spawn(
            "challtestsrv",
            "pebble-challtestsrv",
            &args,
            &[],
            &dir.join("names.log"),
        )?;
        names.wait_listening(&[dns, management])?;
        let log = dir.join("pebble.log");
        let dns = name_server.unwrap_or(dns);
        let child = spawn(&config, address, dns, &log)?;
        Ok(Self {
            address,
            config,
            log,
            dns,
            management,
            child,
            _names: names,
        })
    }

    /// Where a client begins.
    pub fn directory_url(&self) -> String {
        format!("https://{}/dir", self.address)
    }

    /// Whether this name can be found.
    pub fn find(&self, name: &str, is_found: bool) -> Result<()> {
        let path = if is_found { "clear-servfail" } else { "set-servfail" };
        let body = json!({"host": name}).to_string();
        let mut wire = Wire::clear(self.management)?;
        wire.send(format!(
            "POST /{path} HTTP/1.1\r\nHost: names\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ))?;
        let answer = wire.line()?;
        ensure!(answer.contains(" 200 "), "{path}: {answer}");
        Ok(())
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.child.kill();
    }

    /// Starts it again; it has forgotten everything.
    pub fn start_again(&mut self) -> Result<()> {
        self.child = spawn(&self.config, self.address, self.dns, &self.log)?;
        Ok(())
    }
}

fn local(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
}

fn spawn(config: &Path, address: SocketAddrV4, dns: SocketAddrV4, log: &Path) -> Result<Child> {
    let (config, dns) = (config.display().to_string(), dns.to_string());
    let args = ["-strict", "-config", &config, "-dnsserver", &dns];
    let env = [("PEBBLE_VA_NOSLEEP", "1"), ("PEBBLE_WFE_NONCEREJECT", REFUSED_NONCES)];
    let mut child = Child::spawn("pebble", "pebble", &args, &env, log)?;
    child.wait_listening(&[address])?;
    Ok(child)
}
