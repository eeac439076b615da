//! The program under test: started from its built binary, watched through its files.

use std::fs::Permissions;
use std::net::{SocketAddr, SocketAddrV4};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::child::Child;
use crate::config::{Directory, Node};
use crate::{Stage, secrets, until};

/// How long a record of the audit log may take to appear.
const RECORD: Duration = Duration::from_secs(10);
/// How long memory may take to be at rest.
const AT_REST: Duration = Duration::from_secs(30);
/// How long an upgrade may take.
const HAND_OVER: Duration = Duration::from_secs(40);
/// What the old process logs when the new one serves.
const TAKEN_OVER: &str = "a new process has taken over";

/// A running Portico. It is killed when dropped, and its logs are searched for the secrets of the stage and for panics.
pub struct Portico {
    dir: PathBuf,
    node: Node,
    child: Child,
}

impl Portico {
    /// Writes the two files and starts it, with `RUST_LOG` as given.
    pub fn start(stage: &Stage, node: &Node, directory: &Directory, rust_log: &str) -> Result<Self> {
        Self::start_in(stage, node, directory, &[("RUST_LOG", rust_log)])
    }

    /// The same with this environment.
    pub fn start_in(stage: &Stage, node: &Node, directory: &Directory, env: &[(&str, &str)]) -> Result<Self> {
        Self::start_at(stage, "portico", node, directory, env)
    }

    /// The same in a directory of this name, where there are several.
    pub fn start_at(
        stage: &Stage,
        name: &str,
        node: &Node,
        directory: &Directory,
        env: &[(&str, &str)],
    ) -> Result<Self> {
        let dir = stage.dir(name)?;
        std::fs::write(dir.join("portico.yaml"), node.yaml(&dir))?;
        write_secret(&dir.join("directory.yaml"), &directory.yaml())?;
        let child = spawn(&dir, node, "info", env)?;
        Ok(Self {
            dir,
            node: node.clone(),
            child,
        })
    }

    /// Replaces the directory file, in one step.
    pub fn replace_directory(&self, directory: &Directory) -> Result<()> {
        let new = self.dir.join("directory.new");
        write_secret(&new, &directory.yaml())?;
        Ok(std::fs::rename(&new, self.dir.join("directory.yaml"))?)
    }

    /// The directory with its files: configuration, logs, what it printed.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.is_running()
    }

    /// All records of the audit log so far.
    pub fn audit(&self) -> Result<Vec<Value>> {
        let text = std::fs::read_to_string(self.dir.join("audit.log")).unwrap_or_default();
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        complete
            .lines()
            .map(|l| serde_json::from_str(l).with_context(|| format!("audit line {l:?}")))
            .collect()
    }

    /// Waits for a record in which all these fields have these values, and returns it.
    pub fn record(&self, fields: &[(&str, &str)]) -> Result<Value> {
        let found = until(&format!("an audit record with {fields:?}"), RECORD, || {
            Ok(self.audit()?.into_iter().find(|r| matches(r, fields)))
        });
        found.with_context(|| format!("records: {:#?}", self.audit().unwrap_or_default()))
    }

    /// How many records have these values now.
    pub fn count(&self, fields: &[(&str, &str)]) -> Result<usize> {
        Ok(self.audit()?.iter().filter(|r| matches(r, fields)).count())
    }

    /// The access log so far.
    pub fn access_log(&self) -> String {
        std::fs::read_to_string(self.dir.join("access.log")).unwrap_or_default()
    }

    /// Resident memory, in KiB.
    pub fn rss_kib(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status
            .lines()
            .find_map(|l| l.strip_prefix("VmRSS:"))
            .context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
    }

    /// Resident memory in KiB, once it has not grown by half a MiB for three seconds. A process that has just started is
    /// not at rest: what it still takes would be counted against the client that a test measures.
    pub fn rss_at_rest_kib(&self) -> Result<u64> {
        let (mut most, mut since) = (0, Instant::now());
        until("memory to be at rest", AT_REST, || {
            let now = self.rss_kib()?;
            if now > most + 512 {
                (most, since) = (now, Instant::now());
            }
            Ok((since.elapsed() > Duration::from_secs(3)).then_some(now))
        })
    }

    /// CPU time used so far, user and system, in clock ticks of 10 ms.
    pub fn cpu_ticks(&self) -> Result<u64> {
        self.child.cpu_ticks()
    }

    /// Replaces the node file.
    pub fn replace_node(&mut self, node: &Node) -> Result<()> {
        std::fs::write(self.dir.join("portico.yaml"), node.yaml(&self.dir))?;
        self.node = node.clone();
        Ok(())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.child.signal(signal)
    }

    /// What it, and every other process with these files, printed so far.
    pub fn output(&self) -> String {
        self.child.output()
    }

    /// Starts a process with these files that is to take over (`-u`), and returns at once.
    pub fn successor(&self, rust_log: &str) -> Result<Child> {
        spawn_with(&self.dir, &["-u"], rust_log, &[])
    }

    /// Runs the command that puts a process with these files in the background (`-d`), and returns how it ended.
    pub fn in_background(&self, more: &[&str]) -> Result<std::process::ExitStatus> {
        spawn_with(&self.dir, &[&["-d"], more].concat(), "info", &[])?.wait(HAND_OVER)
    }

    /// The process that is in the background.
    pub fn background_pid(&self) -> Result<nix::unistd::Pid> {
        let text = std::fs::read_to_string(self.dir.join("pid"))?;
        Ok(nix::unistd::Pid::from_raw(text.trim().parse()?))
    }

    /// Lets a new process take over. From here on this is the new one; returns the old one.
    pub fn upgrade(&mut self, rust_log: &str) -> Result<Child> {
        let before = self.successions();
        let mut successor = self.successor(rust_log)?;
        until("the new process to take over", HAND_OVER, || {
            ensure!(successor.is_running(), "the new process ended:\n{}", successor.output());
            Ok((self.successions() > before).then_some(()))
        })?;
        Ok(std::mem::replace(&mut self.child, successor))
    }

    /// How often a new process has taken over.
    pub fn successions(&self) -> usize {
        self.output().matches(TAKEN_OVER).count()
    }

    /// The same files with another process, which has taken over.
    pub fn adopt(&self, child: Child) -> Self {
        Self {
            dir: self.dir.clone(),
            node: self.node.clone(),
            child,
        }
    }

    /// Reads everything again (SIGHUP) and waits until it has.
    pub fn reload(&self) -> Result<()> {
        let reloads = || self.count(&[("event", "config"), ("why", "reloaded")]);
        let before = reloads()?;
        self.signal(Signal::SIGHUP)?;
        until("the reload", RECORD, || Ok((reloads()? > before).then_some(())))
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self, deadline: Duration) -> Result<std::process::ExitStatus> {
        self.child.wait(deadline)
    }

    /// Ends it as a power cut would.
    pub fn kill(&mut self) {
        self.child.kill();
    }

    /// Asks it to end and waits until it has.
    pub fn stop(&mut self) -> Result<()> {
        self.child.signal(Signal::SIGTERM)?;
        self.child.wait(Duration::from_secs(20)).map(drop)
    }

    /// Ends it and starts it again with the same files.
    pub fn restart(&mut self, rust_log: &str) -> Result<()> {
        self.stop()?;
        self.start_again(rust_log)
    }

    /// Starts it again with the same files after it has ended.
    pub fn start_again(&mut self, rust_log: &str) -> Result<()> {
        self.child = spawn(&self.dir, &self.node, rust_log, &[])?;
        Ok(())
    }

    /// Fails if any of these secrets stands in any file that it wrote.
    pub fn must_not_have_written(&self, wanted: &[Vec<u8>]) -> Result<()> {
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.is_file() {
                let written = std::fs::read(&path)?;
                let found = secrets::shown(&written, wanted);
                ensure!(found.is_none(), "{} has a secret at {found:?}", path.display());
            }
        }
        Ok(())
    }
}

/// Keys stand in it.
fn write_secret(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text)?;
    Ok(std::fs::set_permissions(path, Permissions::from_mode(0o600))?)
}

impl Drop for Portico {
    fn drop(&mut self) {
        let checked = secrets::must_not_be_logged(&self.dir).and_then(|()| must_not_have_panicked(&self.dir));
        if let Err(error) = checked
            && !std::thread::panicking()
        {
            panic!("{error:#}");
        }
    }
}

/// Fails if a task of the program has panicked, although it went on.
fn must_not_have_panicked(dir: &Path) -> Result<()> {
    let said = std::fs::read(dir.join("output.log")).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let line = said.lines().find(|line| line.contains("panicked at"));
    ensure!(line.is_none(), "it has panicked: {line:?}");
    Ok(())
}

/// The built program: `PORTICO_BIN`, or `portico` in the build directory of the running executable.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("PORTICO_BIN") {
        return Ok(PathBuf::from(path));
    }
    let me = std::env::current_exe()?;
    for dir in me.ancestors().skip(1).take(2) {
        let path = dir.join("portico");
        if path.is_file() {
            return Ok(path);
        }
    }
    bail!(
        "there is no `portico` beside {}: run `cargo build --workspace` first, or set PORTICO_BIN",
        me.display()
    )
}

fn spawn(dir: &Path, node: &Node, rust_log: &str, env: &[(&str, &str)]) -> Result<Child> {
    let mut child = spawn_with(dir, &[], rust_log, env)?;
    let listeners = node.listeners.iter().filter_map(|listener| match listener.address {
        SocketAddr::V4(address) => Some(address),
        SocketAddr::V6(_) => None,
    });
    let addresses: Vec<SocketAddrV4> = listeners.collect();
    child.wait_listening(&addresses)?;
    Ok(child)
}

fn spawn_with(dir: &Path, more: &[&str], rust_log: &str, env: &[(&str, &str)]) -> Result<Child> {
    let config = dir.join("portico.yaml");
    let binary = binary()?;
    let binary = binary.to_str().context("path")?;
    let args = [&["-c", config.to_str().context("path")?], more].concat();
    let env = [&[("RUST_LOG", rust_log)], env].concat();
    Child::spawn("portico", binary, &args, &env, &dir.join("output.log"))
}

fn matches(record: &Value, fields: &[(&str, &str)]) -> bool {
    fields.iter().all(|(key, value)| match record.get(*key) {
        Some(Value::String(text)) => text == value,
        Some(Value::Number(number)) => number.to_string().as_str() == *value,
        Some(_) => false,
        None => false,
    })
}
