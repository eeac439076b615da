//! A real name server that takes signed changes: BIND 9.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::Stage;
use crate::child::Child;

/// The key that may change zones, and its secret in base64.
pub const KEY: &str = "portico";
/// See [`KEY`].
pub const SECRET: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

/// A running name server, an authority for its zones and for nothing else.
pub struct Bind {
    address: SocketAddrV4,
    config: PathBuf,
    log: PathBuf,
    child: Child,
}

/// A zone: its name, its records besides the first ones, and whether [`KEY`] may change texts in it.
pub struct Zone<'z> {
    /// Without the final dot.
    pub name: &'z str,
    /// As in a zone file.
    pub records: &'z str,
    /// Whether it may.
    pub changes: bool,
}

impl Bind {
    /// Starts one with these zones. All names in them that have nothing else lead to 127.0.0.1.
    pub fn start(stage: &Stage, zones: &[Zone<'_>]) -> Result<Self> {
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, stage.port()?);
        let dir = stage.dir("bind")?;
        let mut config = format!(
            "options {{ directory \"{0}\"; listen-on port {1} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; \
             pid-file none; session-keyfile \"{0}/session.key\"; recursion no; dnssec-validation no; notify no; \
             allow-query {{ any; }}; }};\ncontrols {{ }};\n\
             key \"{KEY}\" {{ algorithm hmac-sha256; secret \"{SECRET}\"; }};\n",
            dir.display(),
            address.port()
        );
        for Zone { name, records, changes } in zones {
            let first = "$TTL 60\n@ SOA ns root 1 60 60 60 60\n@ NS ns\nns A 127.0.0.1\n@ A 127.0.0.1\n* A 127.0.0.1\n";
            stage.file(&format!("bind/{name}.zone"), format!("{first}{records}\n"))?;
            let policy = match changes {
                true => format!("update-policy {{ grant {KEY} zonesub TXT; }};"),
                false => String::new(),
            };
            config.push_str(&format!(
                "zone \"{name}\" {{ type primary; file \"{name}.zone\"; {policy} }};\n"
            ));
        }
        let config = stage.file("bind/named.conf", config)?;
        let log = dir.join("named.log");
        let child = spawn(&config, address, &log)?;
        Ok(Self {
            address,
            config,
            log,
            child,
        })
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddrV4 {
        self.address
    }

    /// The texts that stand at a name, in order.
    pub fn texts(&self, name: &str) -> Result<Vec<String>> {
        let (port, server) = (self.address.port().to_string(), format!("@{}", self.address.ip()));
        let out = Command::new("dig")
            .args(["+short", "+norecurse", "-p", &port, &server, "TXT", name])
            .output()
            .context("dig: try scripts/install")?;
        ensure!(out.status.success(), "dig: {}", out.status);
        let said = String::from_utf8(out.stdout)?;
        let mut texts: Vec<String> = said.lines().map(|line| line.trim_matches('"').to_owned()).collect();
        texts.sort_unstable();
        Ok(texts)
    }

    /// Ends it.
    pub fn kill(&mut self) {
        self.child.kill();
    }

    /// Starts it again.
    pub fn start_again(&mut self) -> Result<()> {
        self.child = spawn(&self.config, self.address, &self.log)?;
        Ok(())
    }
}

fn spawn(config: &Path, address: SocketAddrV4, log: &Path) -> Result<Child> {
    let config = config.display().to_string();
    let mut child = Child::spawn("named", "named", &["-g", "-4", "-c", &config], &[], log)?;
    child.wait_listening(&[address])?;
    Ok(child)
}
