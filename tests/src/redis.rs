//! A real Redis, and what can go wrong with one.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::Stage;
use crate::certs::Authority;
use crate::child::Child;

/// How long it may take for an answer.
const ANSWER: Duration = Duration::from_secs(10);

/// A running Redis. It is killed when dropped.
pub struct Redis {
    address: SocketAddrV4,
    config: PathBuf,
    log: PathBuf,
    child: Child,
    sentinel: bool,
}

impl Redis {
    /// Starts an empty one that lets everybody in.
    pub fn start(stage: &Stage) -> Result<Self> {
        Self::start_as(stage, "redis", "")
    }

    /// Starts one with further lines of its configuration.
    pub fn start_as(stage: &Stage, name: &str, more: &str) -> Result<Self> {
        let port = stage.port()?;
        Self::launch(stage, name, port, &format!("port {port}\n{more}"), false)
    }

    /// Starts one that takes TLS only, with a certificate for `redis.example.test` and 127.0.0.1, and a user of its
    /// own: `portico`, who may use nothing but keys and channels of that prefix.
    pub fn start_guarded(stage: &Stage, ca: &Authority, password: &str) -> Result<Self> {
        let port = stage.port()?;
        let pair = ca.server(&["127.0.0.1"])?;
        let mut config = format!("port 0\ntls-port {port}\ntls-auth-clients yes\n");
        write!(
            config,
            "tls-cert-file {}\ntls-key-file {}\ntls-ca-cert-file {}\n",
            pair.certificate_file.display(),
            pair.key_file.display(),
            ca.file().display()
        )?;
        writeln!(config, "user default off")?;
        writeln!(config, "user portico on >{password} {ACL}")?;
        Self::launch(stage, "redis-guarded", port, &config, false)
    }

    /// Starts a Sentinel that knows one primary, called `main`.
    pub fn start_sentinel(stage: &Stage, primary: SocketAddrV4) -> Result<Self> {
        let port = stage.port()?;
        let config = format!(
            "port {port}\nsentinel monitor main {} {} 1\n",
            primary.ip(),
            primary.port()
        );
        Self::launch(stage, "sentinel", port, &config, true)
    }

    fn launch(stage: &Stage, name: &str, port: u16, config: &str, sentinel: bool) -> Result<Self> {
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let dir = stage.dir(name)?;
        let common = format!("bind 127.0.0.1\ndir {}\ndaemonize no\n", dir.display());
        let storage = if sentinel {
            ""
        } else {
            "save \"\"\nappendonly no\nio-threads 1\n"
        };
        let config = stage.file(&format!("{name}/redis.conf"), format!("{common}{storage}{config}"))?;
        let log = dir.join("output.log");
        let child = spawn(&config, address, &log, sentinel)?;
        Ok(Self {
            address,
            config,
            log,
            child,
            sentinel,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddrV4 {
        self.address
    }

    /// Its answer to a command, as it is on the wire up to the first line's end, on a connection of its own.
    pub fn say(&self, command: &str) -> Result<String> {
        let mut tcp = TcpStream::connect(self.address).context("redis")?;
        tcp.set_read_timeout(Some(ANSWER))?;
        tcp.write_all(format!("{command}\r\n").as_bytes())?;
        let mut answer = String::new();
        let heard = BufReader::new(tcp).read_line(&mut answer)?;
        ensure!(heard > 0, "redis closed the connection after {command:?}");
        Ok(answer.trim_end().to_owned())
    }

    /// The number that it answers to a command.
    pub fn number(&self, command: &str) -> Result<i64> {
        let answer = self.say(command)?;
        let number = answer
            .strip_prefix(':')
            .with_context(|| format!("{command}: {answer}"))?;
        Ok(number.parse()?)
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.child.kill();
    }

    /// Starts it again, empty.
    pub fn start_again(&mut self) -> Result<()> {
        self.child = spawn(&self.config, self.address, &self.log, self.sentinel)?;
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

/// What docs/several-nodes.md lets the user of Portico do.
pub const ACL: &str = "resetchannels resetkeys ~{portico}:* &{portico}:* -@all +hello +auth +subscribe +publish +time \
                       +expire +del +hset +hsetnx +hget +hdel +hgetall +hscan +xadd +xread +multi +exec";

fn spawn(config: &std::path::Path, address: SocketAddrV4, log: &std::path::Path, sentinel: bool) -> Result<Child> {
    let config = config.display().to_string();
    let mut args = vec![config.as_str()];
    args.extend(sentinel.then_some("--sentinel"));
    let mut child = Child::spawn("redis", "redis-server", &args, &[], log)?;
    child.wait_listening(&[address])?;
    Ok(child)
}
