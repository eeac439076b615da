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

/// A running memcached. It is killed when dropped.
pub struct Memcached {
    address: SocketAddrV4,
    child: Child,
    log: std::path::PathBuf,
}

impl Memcached {
    /// Starts an empty one.
    pub fn start(stage: &Stage) -> Result<Memcached> {
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, stage.port()?);
        let log = stage.dir("memcached")?.join("output.log");
        let child = spawn(address, &log)?;
        Ok(Memcached { address, child, log })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddrV4 {
        self.address
    }

    /// The value under a key as it is on the wire, with its length as the server says it.
    pub fn get(&self, key: &str) -> Result<Option<String>> {
        let mut wire = self.connect()?;
        write!(wire.get_mut(), "get {key}\r\n")?;
        let mut head = String::new();
        wire.read_line(&mut head)?;
        if head == "END\r\n" {
            return Ok(None);
        }
        let mut value = String::new();
        wire.read_line(&mut value)?;
        let value = value.trim_end_matches(['\r', '\n']).to_owned();
        ensure!(
            head == format!("VALUE {key} 0 {}\r\n", value.len()),
            "{head:?} {value:?}"
        );
        Ok(Some(value))
    }

    /// Adds an entry as an nginx proxy does.
    pub fn add(&self, key: &str, value: &str) -> Result<()> {
        let mut wire = self.connect()?;
        write!(wire.get_mut(), "add {key} 0 3600 {}\r\n{value}\r\n", value.len())?;
        let mut answer = String::new();
        wire.read_line(&mut answer)?;
        ensure!(answer == "STORED\r\n", "{answer:?}");
        Ok(())
    }

    fn connect(&self) -> Result<BufReader<TcpStream>> {
        let tcp = TcpStream::connect(self.address).context("memcached")?;
        tcp.set_read_timeout(Some(ANSWER))?;
        Ok(BufReader::new(tcp))
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
