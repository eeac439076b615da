//! A real HAProxy as balancer in front: passes TCP on, with a PROXY header that names the client.

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result};

use crate::Stage;
use crate::child::Child;

/// Version of the PROXY header that it sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// Text.
    V1,
    /// Binary.
    V2,
}

/// One of its forwarded addresses.
#[derive(Debug, Clone, Copy)]
pub struct Forward {
    /// Where it listens.
    pub from: SocketAddrV4,
    /// Where it connects to.
    pub to: SocketAddrV4,
    /// What it sends first.
    pub header: Header,
}

/// A running HAProxy. It is killed when dropped.
pub struct HaProxy {
    child: Child,
}

impl HaProxy {
    /// Starts it with this configuration, which listens on these addresses.
    pub fn start_with(stage: &Stage, config: &str, listens: &[SocketAddrV4]) -> Result<Self> {
        let config = stage.file("haproxy/haproxy.cfg", config)?;
        let args = ["-db", "-f", config.to_str().context("path")?];
        let mut child = Child::spawn("haproxy", "haproxy", &args, &[], &config.with_file_name("output.log"))?;
        child.wait_listening(listens)?;
        Ok(Self { child })
    }

    /// Ends it as a power cut would.
    pub fn kill(&mut self) {
        self.child.kill();
    }

    /// Starts it with these forwards; it connects from the address `source`.
    pub fn start(stage: &Stage, source: Ipv4Addr, forwards: &[Forward]) -> Result<Self> {
        let listens: Vec<SocketAddrV4> = forwards.iter().map(|w| w.from).collect();
        Self::start_with(stage, &config(source, forwards)?, &listens)
    }
}

fn config(source: Ipv4Addr, forwards: &[Forward]) -> Result<String> {
    let mut out =
        String::from("defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 30m\n  timeout server 30m\n");
    for (number, way) in forwards.iter().enumerate() {
        let send = match way.header {
            Header::V1 => "send-proxy",
            Header::V2 => "send-proxy-v2",
        };
        writeln!(out, "listen way{number}\n  bind {}", way.from)?;
        writeln!(out, "  source {source}\n  server portico {} {send}", way.to)?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use super::*;
    use crate::wire::Wire;

    #[test]
    fn sends_the_address_of_the_client() -> Result<()> {
        Stage::run(|stage| {
            let server = TcpListener::bind("127.0.0.1:0")?;
            let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, server.local_addr()?.port());
            let from = SocketAddrV4::new(Ipv4Addr::LOCALHOST, stage.port()?);
            let _haproxy = HaProxy::start(
                stage,
                Ipv4Addr::new(127, 0, 0, 9),
                &[Forward {
                    from,
                    to,
                    header: Header::V1,
                }],
            )?;
            let client = Wire::clear_from(Ipv4Addr::new(127, 0, 0, 77).into(), from)?;
            let (mut accepted, peer) = server.accept()?;
            assert_eq!(peer.ip().to_string(), "127.0.0.9");
            let expected = format!(
                "PROXY TCP4 127.0.0.77 127.0.0.1 {} {}\r\n",
                client.local()?.port(),
                from.port()
            );
            let mut header = vec![0; expected.len()];
            accepted.read_exact(&mut header)?;
            assert_eq!(String::from_utf8(header)?, expected);
            Ok(())
        })
    }
}
