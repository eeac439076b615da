//! One test's own place: a temporary directory, ports of its own, and the logs to show when it fails.

use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

/// Ports are taken from below the kernel's ephemeral range (32768 …), or some connection's own end might sit on one.
const PORTS: std::ops::Range<u16> = 11000..31000;
/// How much of each log is shown when something fails.
const SHOWN: usize = 6000;
/// How long a condition may take to come true, on a machine with other things to do.
const PATIENCE: Duration = Duration::from_secs(20);

/// A place for one test or one demo. Everything in it is gone when it is dropped, unless `STAGE_KEEP` is set.
pub struct Stage {
    dir: TempDir,
    ports: Mutex<Vec<File>>,
}

impl Stage {
    /// Makes the temporary directory.
    pub fn new() -> Result<Self> {
        allow_open_files()?;
        let mut dir = tempfile::Builder::new()
            .prefix("portico-")
            .tempdir()
            .context("making a temporary directory")?;
        dir.disable_cleanup(std::env::var_os("STAGE_KEEP").is_some());
        // Dovecot's processes are other users, where we are root.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        Ok(Self {
            dir,
            ports: Mutex::new(Vec::new()),
        })
    }

    /// Plays a test; if it fails, shows the logs of all programs.
    pub fn run(play: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        let stage = Self::new()?;
        let end = play(&stage);
        if end.is_err() {
            stage.show_logs();
        }
        end
    }

    /// The directory of the whole stage.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A directory in it, made if it is not there.
    pub fn dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.path().join(name);
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(dir)
    }

    /// Writes a file into it.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.dir.path().join(name);
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// A port that is free on every address, and ours until the stage is dropped: other stages, in other
    /// processes too, get other ones.
    pub fn port(&self) -> Result<u16> {
        let span = PORTS.end - PORTS.start;
        let first = (RandomState::new().build_hasher().finish() % u64::from(span)) as u16;
        for step in 0..span {
            if let Some(lock) = lock_port(PORTS.start + (first + step) % span)? {
                self.ports.lock().expect("nobody panics holding it").push(lock);
                return Ok(PORTS.start + (first + step) % span);
            }
        }
        bail!("no free port in {PORTS:?}")
    }

    /// The given port if it is free, or else another one.
    pub fn port_near(&self, wanted: u16) -> Result<u16> {
        match lock_port(wanted)? {
            Some(lock) => {
                self.ports.lock().expect("nobody panics holding it").push(lock);
                Ok(wanted)
            }
            None => self.port(),
        }
    }

    /// Shows the end of every log on standard error.
    pub fn show_logs(&self) {
        let mut logs = Vec::new();
        find_logs(self.dir.path(), &mut logs);
        for log in logs {
            let text = fs::read(&log).unwrap_or_default();
            let tail = &text[text.len().saturating_sub(SHOWN)..];
            eprintln!("--- {}\n{}", log.display(), String::from_utf8_lossy(tail));
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
    }
}

/// Polls until there is an answer; fails after the deadline, with what was awaited.
pub fn until<T>(what: &str, deadline: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(answer) = ask().with_context(|| format!("waiting for {what}"))? {
            return Ok(answer);
        }
        if Instant::now() > end {
            bail!("waited {deadline:?} for {what}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Polls until the condition is true; panics after `PATIENCE`, with what was awaited. For the tests of the libraries.
pub async fn wait_until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < end, "waited {PATIENCE:?} for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Hundreds of sessions need more than the customary 1024, here and in the children, which inherit it.
fn allow_open_files() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = hard.min(65536);
    if soft < wanted {
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)?;
    }
    Ok(())
}

fn lock_port(port: u16) -> Result<Option<File>> {
    let uid = nix::unistd::getuid();
    let dir = std::env::temp_dir().join(format!("portico-ports-{uid}"));
    fs::create_dir_all(&dir)?;
    let lock = File::create(dir.join(port.to_string()))?;
    if lock.try_lock().is_err() {
        return Ok(None);
    }
    Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok().then_some(lock))
}

fn find_logs(dir: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            find_logs(&path, found);
        } else if path.extension().is_some_and(|e| e == "log" || e == "yaml") {
            found.push(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_distinct() -> Result<()> {
        let (one, two) = (Stage::new()?, Stage::new()?);
        let mut ports: Vec<u16> = (0..20).map(|_| one.port()).collect::<Result<_>>()?;
        ports.extend((0..20).map(|_| two.port()).collect::<Result<Vec<_>>>()?);
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 40);
        Ok(())
    }
}
