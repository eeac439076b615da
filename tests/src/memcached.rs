//! A real memcached, and what can go wrong with one.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::Stage;
use crate::child::Child;

/// How long it may take for an answer.
const ANSWER: Duration = Duration::from_secs(10);

/// How its answers end.
const ENDS: [&str; 4] = ["END\r\n", "STORED\r\n", "DELETED\r\n", "NOT_FOUND\r\n"];

/// A running memcached. It is killed when dropped.
pub struct Memcached {
    address: SocketAddrV4,
    child: Child,
    log: std::path::PathBuf,
}

impl Memcached {
    /// Starts an empty one.
    pub fn start(stage: &Stage) -> Result<Self> {
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, stage.port()?);
        let log = stage.dir("memcached")?.join("output.log");
        let child = spawn(address, &log)?;
        Ok(Self { address, child, log })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddrV4 {
        self.address
    }

    /// The value under a key as it is on the wire, with its length as the server sends it.
    pub fn get(&self, key: &str) -> Result<Option<String>> {
        let answer = self.say(&format!("get {key}\r\n"))?;
        if answer == "END\r\n" {
            return Ok(None);
        }
        let value = answer.split("\r\n").nth(1).unwrap_or_default().to_owned();
        ensure!(
            answer == format!("VALUE {key} 0 {}\r\n{value}\r\nEND\r\n", value.len()),
            "{answer:?}"
        );
        Ok(Some(value))
    }

    /// Adds an entry as an nginx proxy does.
    pub fn add(&self, key: &str, value: &str) -> Result<()> {
        let answer = self.say(&format!("add {key} 0 3600 {}\r\n{value}\r\n", value.len()))?;
        ensure!(answer == "STORED\r\n", "{answer:?}");
        Ok(())
    }

    /// Sends a command on a connection of its own; returns the whole answer.
    pub fn say(&self, command: &str) -> Result<String> {
        let mut tcp = TcpStream::connect(self.address).context("memcached")?;
        tcp.set_read_timeout(Some(ANSWER))?;
        tcp.write_all(command.as_bytes())?;
        let mut wire = BufReader::new(tcp);
        let mut answer = String::new();
        while !ENDS.iter().any(|end| answer.ends_with(end)) {
            let heard = wire.read_line(&mut answer)?;
            ensure!(heard > 0, "memcached closed the connection after {answer:?}");
        }
        Ok(answer)
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.child.kill();
    }

    /// Starts it again, empty.
    pub fn start_again(&mut self) -> Result<()> {
        self.child = spawn(self.address, &self.log)?;
        Ok(())
    }

    /// Stops it in the middle of whatever it does.
    pub fn freeze(&self) -> Result<()> {
        self.child.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    pub fn thaw(&self) -> Result<()> {
        self.child.signal(Signal::SIGCONT)
    }
}

/// The key on the wire for a logical key.
pub fn wire_key(logical: &str) -> String {
    let digest = openssl::sha::sha256(logical.as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn spawn(address: SocketAddrV4, log: &std::path::Path) -> Result<Child> {
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    let args = ["-l", &ip, "-p", &port, "-U", "0", "-u", "root", "-m", "16", "-t", "1"];
    let mut child = Child::spawn("memcached", "memcached", &args, &[], log)?;
    child.wait_listening(&[address])?;
    Ok(child)
}
