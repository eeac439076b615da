//! A program that we start and that ends with us.

use std::fs::OpenOptions;
use std::net::SocketAddrV4;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::until;

/// How long a program may take to open its sockets.
const START: Duration = Duration::from_secs(20);

/// A running program with a process group of its own. Dropping it kills the group.
pub struct Child {
    name: String,
    process: std::process::Child,
    log: PathBuf,
}

impl Child {
    /// Starts it; what it prints is appended to `log`. If we die, even by SIGKILL, the kernel ends it.
    pub fn spawn(name: &str, program: &str, args: &[&str], env: &[(&str, &str)], log: &Path) -> Result<Self> {
        let out = OpenOptions::new().create(true).append(true).open(log)?;
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", program])
            .args(args)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {program}: try scripts/install"))?;
        Ok(Self {
            name: name.to_owned(),
            process,
            log: log.to_owned(),
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// Waits until it accepts on all these addresses. Looks at the kernel's table, so it hears nothing of it.
    pub fn wait_listening(&mut self, addresses: &[SocketAddrV4]) -> Result<()> {
        let name = self.name.clone();
        let end = until(&format!("{name} to listen on {addresses:?}"), START, || {
            if let Some(status) = self.process.try_wait()? {
                bail!("{name} ended: {status}");
            }
            Ok(all_listening(addresses)?.then_some(()))
        });
        end.with_context(|| format!("it wrote:\n{}", self.output()))
    }

    /// CPU time used so far by it and its children, user and system, in clock ticks of 10 ms.
    pub fn cpu_ticks(&self) -> Result<u64> {
        let own = cpu_ticks_of(self.pid())?;
        let children = format!("/proc/{0}/task/{0}/children", self.pid());
        let children = std::fs::read_to_string(children)?;
        children
            .split_whitespace()
            .try_fold(own, |sum, child| Ok(sum + cpu_ticks_of(child.parse()?)?))
    }

    /// What it printed so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Sends it (and only it) a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.as_pid(), signal).with_context(|| format!("{signal} to {}", self.name))
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let what = format!("{} to end", self.name);
        until(&what, deadline, || Ok(self.process.try_wait()?))
    }

    /// Asks it to end (SIGTERM), and kills what is left of its group after the deadline.
    pub fn stop(&mut self, deadline: Duration) -> Result<()> {
        if self.is_running() {
            self.signal(Signal::SIGTERM)?;
            let _ended = self.wait(deadline);
        }
        self.kill();
        Ok(())
    }

    /// Kills its whole group now.
    pub fn kill(&mut self) {
        let _gone = killpg(self.as_pid(), Signal::SIGKILL);
        let _status = self.process.wait();
    }

    fn as_pid(&self) -> Pid {
        Pid::from_raw(self.process.id() as i32)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

fn cpu_ticks_of(pid: u32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().context("stat")?.split_whitespace().collect();
    let ticks = |at: usize| -> Result<u64> { Ok(fields.get(at).context("stat")?.parse()?) };
    Ok(ticks(11)? + ticks(12)?)
}

fn all_listening(addresses: &[SocketAddrV4]) -> Result<bool> {
    let table = std::fs::read_to_string("/proc/net/tcp")?;
    let listening: Vec<&str> = table.lines().filter_map(listener).collect();
    Ok(addresses.iter().all(|a| {
        let exact = format!("{:08X}:{:04X}", u32::from(*a.ip()).swap_bytes(), a.port());
        let any = format!("00000000:{:04X}", a.port());
        listening.contains(&exact.as_str()) || listening.contains(&any.as_str())
    }))
}

/// The local address in a line of /proc/net/tcp, if the socket is in state LISTEN.
fn listener(line: &str) -> Option<&str> {
    let mut fields = line.split_whitespace().skip(1);
    let local = fields.next()?;
    (fields.nth(1)? == "0A").then_some(local)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn sees_a_listening_socket() -> Result<()> {
        let socket = TcpListener::bind("127.0.0.5:0")?;
        let port = socket.local_addr()?.port();
        assert!(all_listening(&[SocketAddrV4::new([127, 0, 0, 5].into(), port)])?);
        assert!(!all_listening(&[SocketAddrV4::new([127, 0, 0, 6].into(), port)])?);
        Ok(())
    }
}
