//! A process in the background (`-d`): the command that waits for it, and its PID file.
//!
//! Putting it there is Pingora's. With `daemon_wait_for_ready` the command that did it waits for SIGUSR1 of the new
//! process. Pingora sends it before a socket is open, and not at all where the server is prepared as we do it; so it is
//! sent from here, when all listeners are open.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pingora::server::configuration::ServerConf;

/// How long to try to notify it, unless `daemon_notify_timeout_seconds` says otherwise (Pingora's default).
const PATIENCE: Duration = Duration::from_secs(60);
/// Time from one try to the next.
const PAUSE: Duration = Duration::from_millis(50);

/// The command that waits until the process in the background serves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WaitingCommand {
    pid: Pid,
    patience: Duration,
}

impl WaitingCommand {
    /// The command, if it will wait. To be called in it, before it forks the process in the background.
    pub(crate) fn new(conf: &ServerConf) -> Option<Self> {
        let patience = conf
            .daemon_notify_timeout_seconds
            .map_or(PATIENCE, |seconds| Duration::from_secs(seconds.get()));
        (conf.daemon && conf.daemon_wait_for_ready).then(|| Self {
            pid: Pid::this(),
            patience,
        })
    }

    /// Notifies it that this process serves: as soon as it handles the signal, which would kill it before that, and
    /// until it is gone.
    pub(crate) async fn notify(self) {
        let begun = Instant::now();
        while begun.elapsed() < self.patience {
            let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid));
            let Some(status) = status.ok().filter(|status| lives(status)) else {
                return;
            };
            if catches(&status, Signal::SIGUSR1)
                && let Err(error) = kill(self.pid, Signal::SIGUSR1)
            {
                log::debug!("process {} is not told yet that this one serves: {error}", self.pid);
            }
            tokio::time::sleep(PAUSE).await;
        }
        log::warn!("process {} waits, and cannot be told that this one serves", self.pid);
    }
}

/// Whether a process with this `/proc/PID/status` has not ended. It may be a zombie.
fn lives(status: &str) -> bool {
    !status.lines().any(|line| line.starts_with("State:\tZ"))
}

/// Whether a process with this `/proc/PID/status` has a handler for the signal.
fn catches(status: &str, signal: Signal) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal as u32 - 1)) != 0)
}

/// A process that SIGUSR2 has started takes the place of the one that started it in `pid_file`, too, if that one
/// stands there. The file is never seen half written, and no link is followed: in a folder that all may write, any
/// user can make one.
pub(crate) fn take_pid_file(path: &Path) {
    let old = std::os::unix::process::parent_id().to_string();
    let stands = std::fs::read_to_string(path).is_ok_and(|text| text.trim() == old);
    if stands && let Err(error) = replace(path) {
        log::warn!("{} has the old process: {error}", path.display());
    }
}

fn replace(path: &Path) -> io::Result<()> {
    let pid = std::process::id();
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{pid}"));
    let written = File::create_new(&beside).and_then(|mut file| file.write_all(format!("{pid}\n").as_bytes()));
    let replaced = written.and_then(|()| std::fs::rename(&beside, path));
    if replaced.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handlers_are_seen() {
        let status = "Name:\tportico\nSigIgn:\t0000000000001000\nSigCgt:\t0000000000000200\n";
        assert!(catches(status, Signal::SIGUSR1));
        assert!(!catches(status, Signal::SIGUSR2));
        assert!(!catches("Name:\tportico\n", Signal::SIGUSR1));
    }

    #[test]
    fn the_pid_file_is_taken_from_the_parent_and_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let parent = std::os::unix::process::parent_id().to_string();
        let (file, other, link) = (
            dir.path().join("pid"),
            dir.path().join("other"),
            dir.path().join("link"),
        );
        std::fs::write(&file, format!("{parent}\n")).unwrap();
        std::fs::write(&other, &parent).unwrap();
        std::os::unix::fs::symlink(&other, &link).unwrap();
        for path in [&file, &link] {
            take_pid_file(path);
        }
        let text = |path: &Path| std::fs::read_to_string(path).unwrap();
        assert_eq!(text(&file), format!("{}\n", std::process::id()));
        assert_eq!(text(&other), parent);
        // It names another process now.
        std::fs::write(&file, "1").unwrap();
        take_pid_file(&file);
        assert_eq!(text(&file), "1");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[tokio::test]
    async fn a_process_that_has_ended_is_not_notified() {
        let status = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let waiting = WaitingCommand {
            pid: Pid::from_raw(i32::try_from(child.id()).unwrap()),
            patience: PATIENCE,
        };
        let told = tokio::time::timeout(PATIENCE / 2, waiting.notify()).await;
        // It was not waited for, so it is still there as a zombie.
        assert!(!lives(&status(child.id())) && lives(&status(std::process::id())));
        child.wait().unwrap();
        told.unwrap();
    }
}
