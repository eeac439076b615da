//! Programs of the administrator's own. They are run without a shell; their exit code decides.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// Octets of what it says that are kept: the last ones, for the reason of a failure.
const HEARD: usize = 2048;
/// What it may need to find other programs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How often it is looked whether it has ended.
const LOOK: Duration = Duration::from_millis(50);
/// How long it is listened to when it has failed.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A program that runs. When it is dropped, all that it has started ends.
struct Running(Option<Child>);

impl Running {
    /// Its exit status, if it has ended within this time.
    async fn ended(&mut self, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
        let end = Instant::now() + limit;
        let Some(child) = &mut self.0 else {
            return Ok(None);
        };
        loop {
            match child.try_wait()? {
                Some(status) => return Ok(Some(status)),
                None if Instant::now() >= end => return Ok(None),
                None => sleep(LOOK).await,
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(mut child) = self.0.take() else { return };
        if let Ok(group) = i32::try_from(child.id()) {
            // What it has left behind may still be at work. There may be nothing.
            let _gone = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        // The system keeps it until somebody has heard how it ended, which is at once.
        let _status = std::thread::Builder::new().spawn(move || child.wait());
    }
}

/// Runs a program with its arguments, with these variables in its environment besides `PATH`.
///
/// # Errors
/// It cannot be started, does not end in time, or says with its exit code that it has failed.
pub(crate) async fn run(words: &[String], variables: &[(&str, &str)], limit: Duration) -> Result<(), String> {
    let (program, arguments) = words.split_first().ok_or("no program is named")?;
    let child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn();
    let mut child = child.map_err(|error| format!("{program} cannot be run: {error}"))?;
    let errors = child.stderr.take();
    let mut running = Running(Some(child));
    let said = LastSaid::default();
    let mut hearing = JoinSet::new();
    if let Some(errors) = errors {
        let errors = pipe::Receiver::from_owned_fd(errors.into()).map_err(|error| format!("{program}: {error}"))?;
        hearing.spawn(hear(errors, said.clone()));
    }
    let status = running
        .ended(limit)
        .await
        .map_err(|error| format!("{program}: {error}"))?;
    drop(running);
    match status {
        None => Err(format!("{program} has not ended within {limit:?}")),
        Some(status) if status.success() => Ok(()),
        Some(status) => {
            // What it has left running may hold the pipe open, and has nothing to say.
            let _all_is_heard = timeout(LAST_WORDS, hearing.join_next()).await;
            Err(format!("{program}: {status}: {}", last_line(&said.lock())))
        }
    }
}

/// The last of what a program has said so far.
type LastSaid = Arc<Mutex<Vec<u8>>>;

/// Reads what it says to the end, and keeps the last of it.
async fn hear(mut errors: pipe::Receiver, said: LastSaid) {
    let mut buffer = [0; HEARD];
    while let Ok(count @ 1..) = errors.read(&mut buffer).await {
        let mut said = said.lock();
        said.extend_from_slice(&buffer[..count]);
        let more = said.len().saturating_sub(HEARD);
        said.drain(..more);
    }
}

/// Fit for a log.
fn last_line(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let line = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    line.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn run_within(words: &[&str], limit: u64) -> Result<(), String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        run(&words, &[("WORD", "told")], Duration::from_millis(limit)).await
    }

    #[tokio::test]
    async fn its_exit_code_decides_and_its_time_is_limited() {
        let sh = |script: &'static str| ["/bin/sh", "-c", script, "program", "a@x"];
        run_within(&sh("test \"$1 $WORD\" = 'a@x told'"), 60_000).await.unwrap();
        let failed = run_within(&sh("echo first >&2; echo 'no space' >&2; exit 7"), 60_000).await;
        let failed = failed.unwrap_err();
        assert!(failed.ends_with("exit status: 7: no space"), "{failed}");
        let long = run_within(&sh("sleep 60 & wait"), 50).await.unwrap_err();
        assert!(long.contains("has not ended within"), "{long}");
        let none = run_within(&["/nowhere/program"], 60_000).await.unwrap_err();
        assert!(none.contains("cannot be run"), "{none}");
        // A program that says more than anybody reads, and what no terminal should get.
        let rubbish = run_within(
            &sh("yes | head -c 1000000 >&2; printf '\\033[31mred\\n' >&2; exit 1"),
            60_000,
        )
        .await;
        let rubbish = rubbish.unwrap_err();
        assert!(rubbish.ends_with(": [31mred"), "{rubbish}");
        // What it leaves running holds nobody up.
        let begun = Instant::now();
        let left = run_within(&sh("setsid sleep 30 & echo why >&2; exit 1"), 60_000).await;
        let left = left.unwrap_err();
        assert!(left.ends_with(": why"), "{left}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    }
}
