//! What is counted goes on over an upgrade: the old process tells it as long as it has sessions, and the new one adds
//! it to its own.
//!
//! It goes over the connection at which the new process has asked, behind its word that it serves: a new process that
//! knows nothing of it hangs up there, and an old one does. What is told in the last moments before a kill is lost.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::admin::scrape;
use crate::app::env::AdminEnv;
use crate::node::metrics::Metrics;
use crate::node::metrics::previous::{Counts, MAX_TEXT};

/// How often the old process tells what it has counted, if it has counted something. Scrapes are rarer.
const EVERY: Duration = Duration::from_secs(2);
/// How long the new process may take to read it. It does nothing else at this connection.
const WRITE: Duration = Duration::from_secs(2);

/// What an old process has counted, on its way to the new one.
pub(crate) struct ToldCounts {
    end: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl ToldCounts {
    /// Tells it now, and again and again.
    pub(crate) fn begin(successor: UnixStream, env: Arc<AdminEnv>) -> Self {
        let (end, ended) = oneshot::channel();
        let task = tokio::spawn(tell(successor, env, ended));
        Self { end, task }
    }

    /// Tells it for the last time.
    pub(crate) async fn finish(self) {
        drop(self.end);
        let _too_late = timeout(WRITE, self.task).await;
    }
}

async fn tell(mut successor: UnixStream, env: Arc<AdminEnv>, mut ended: oneshot::Receiver<()>) {
    let (mut told, mut is_last) = (Vec::new(), false);
    loop {
        let line = scrape::counts(&env);
        if line != told {
            match timeout(WRITE, successor.write_all(&line)).await {
                Ok(Ok(())) => told = line,
                _ => return log::debug!("the new process does not take what is counted here"),
            }
        }
        if is_last {
            return;
        }
        is_last = timeout(EVERY, &mut ended).await.is_ok();
    }
}

/// Takes what the previous process counts, until it ends.
pub(crate) async fn take(previous: std::os::unix::net::UnixStream, metrics: Arc<Metrics>) {
    if let Err(error) = take_lines(previous, &metrics).await {
        log::warn!("what the previous process has counted is not used: {error:#}");
    }
    metrics.take_previous(None);
}

async fn take_lines(previous: std::os::unix::net::UnixStream, metrics: &Metrics) -> anyhow::Result<()> {
    previous.set_nonblocking(true)?;
    let mut reader = BufReader::new(UnixStream::from_std(previous)?);
    loop {
        let mut line = Vec::new();
        // It may have nothing to say for a day: it is one of ours, and its end is heard.
        (&mut reader).take(MAX_TEXT as u64).read_until(b'\n', &mut line).await?;
        ensure!(line.len() < MAX_TEXT, "it is too long");
        // Its end, in the middle of a line if it was killed.
        if line.last() != Some(&b'\n') {
            return Ok(());
        }
        metrics.take_previous(Some(Counts::read(&line)?));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const TOLD: &str = r#"{"version":1,"series":[{"name":"portico_directory_questions_total","labels":{},"count":7}]}"#;

    /// What is counted after a previous process has said this and ended.
    async fn after(said: &str) -> String {
        let metrics = Arc::new(Metrics::new().unwrap());
        metrics.await_previous();
        let (mut old, new) = std::os::unix::net::UnixStream::pair().unwrap();
        old.write_all(said.as_bytes()).unwrap();
        drop(old);
        take(new, metrics.clone()).await;
        // Nothing is waited for any more.
        metrics.settled().await;
        metrics.text(|_| {}).unwrap()
    }

    #[tokio::test]
    async fn what_cannot_be_used_is_left_alone() {
        const LINE: &str = "portico_directory_questions_total 7";
        assert!(after(&format!("{TOLD}\n")).await.contains(LINE));
        let of_another_version = TOLD.replace("\"version\":1", "\"version\":2");
        let cut = &TOLD[..60];
        let absurd = r#"{"version":1,"series":[{"name":"portico_phase_seconds","labels":{"protocol":"imap","phase":"tls"},"count":1,"times":{"seconds":4607182418800017408,"within":[7,1]}}]}"#;
        let foreign = r#"{"version":1,"series":[{"name":"portico_sessions","labels":{"protocol":"imap","state":"other"},"count":7},{"name":"portico_x_total 7\n","labels":{},"count":7}]}"#;
        for bad in [
            "",
            "\n",
            cut,
            &format!("{cut}\n"),
            &format!("{of_another_version}\n"),
            TOLD,
            &format!("{absurd}\n"),
            &format!("{foreign}\n"),
        ] {
            let text = after(bad).await;
            assert!(!text.contains(" 7"), "{bad}: {text}");
        }
        // What came before counts.
        assert!(after(&format!("{TOLD}\n{cut}\n")).await.contains(LINE));
    }
}
