//! One lookup service: its connections, and whether it failed lately.
//!
//! A connection carries one question at a time and goes back to the others only when its answer has ended exactly
//! where it said. After anything else it is closed.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::wire::{self, MAX_BODY, Malformed, Response};
use super::{BoxStream, Dial, HandlerUrl};

/// Connections that wait for a question. More would be kept for nothing after a rush.
const MAX_IDLE: usize = 16;
/// How long a connection waits. Jetty closes after 30 s.
const IDLE: Duration = Duration::from_secs(20);
/// Bytes read at once; an answer is a few hundred.
const READ: usize = 2048;

/// A service.
pub(super) struct Handler {
    pub(super) url: HandlerUrl,
    retry: Duration,
    idle: Mutex<Vec<(Instant, BoxStream)>>,
    failed_at: Mutex<Option<Instant>>,
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("it closed the connection")]
    Closed,
    /// The connection had been waiting, and nothing came back on it: it may have been closed long ago.
    #[error("it closed the connection")]
    Outdated,
    #[error("{0}")]
    Malformed(#[from] Malformed),
    #[error("HTTP status {0}")]
    Status(u16),
}

impl Handler {
    pub(super) fn new(url: HandlerUrl, retry: Duration) -> Self {
        Self {
            url,
            retry,
            idle: Mutex::default(),
            failed_at: Mutex::default(),
        }
    }

    /// Whether it has not failed lately.
    pub(super) fn is_well(&self) -> bool {
        self.failed_at.lock().is_none_or(|at| at.elapsed() >= self.retry)
    }

    /// Notes a failure, and returns which service failed and why.
    pub(super) fn failed(&self, why: &str) -> String {
        let text = format!("lookup service {}: {why}", self.url.address());
        if self.failed_at.lock().replace(Instant::now()).is_none() {
            log::warn!("{text}");
        }
        text
    }

    /// Sends a request and reads the response, on a connection that waits or on a new one.
    pub(super) async fn ask(&self, dial: &dyn Dial, request: &[u8]) -> Result<Response, Fault> {
        while let Some(stream) = self.waiting() {
            match self.exchange(stream, request, Fault::Outdated).await {
                Err(Fault::Outdated) => {}
                result => return self.judged(result),
            }
        }
        let stream = dial.connect(&self.url).await?;
        let result = self.exchange(stream, request, Fault::Closed).await;
        self.judged(result)
    }

    fn judged(&self, result: Result<Response, Fault>) -> Result<Response, Fault> {
        let response = result?;
        if response.status != 200 {
            return Err(Fault::Status(response.status));
        }
        if self.failed_at.lock().take().is_some() {
            log::info!("lookup service {} answers again", self.url.address());
        }
        Ok(response)
    }

    fn waiting(&self) -> Option<BoxStream> {
        let mut idle = self.idle.lock();
        idle.retain(|(since, _)| since.elapsed() < IDLE);
        idle.pop().map(|(_, stream)| stream)
    }

    /// `silence` is what it means if nothing at all comes back.
    async fn exchange(&self, mut stream: BoxStream, request: &[u8], silence: Fault) -> Result<Response, Fault> {
        if stream.write_all(request).await.is_err() || stream.flush().await.is_err() {
            return Err(silence);
        }
        let mut heard = Vec::with_capacity(READ);
        let response = loop {
            match stream.read_buf(&mut heard).await {
                Ok(0) | Err(_) if heard.is_empty() => return Err(silence),
                Ok(0) => return Err(Fault::Closed),
                Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
            if let Some(response) = wire::response(&heard)? {
                break response;
            }
        };
        if self.finish(&mut stream, &response, heard.len()).await {
            self.keep(stream);
        }
        Ok(response)
    }

    /// Reads the rest of the body. True if the connection is good for another question.
    async fn finish(&self, stream: &mut BoxStream, response: &Response, mut heard: usize) -> bool {
        let Some(length) = response.body.filter(|length| *length <= MAX_BODY) else {
            return false;
        };
        let end = response.head + length;
        let mut rest = [0; READ];
        while heard < end {
            match stream.read(&mut rest).await {
                Ok(0) | Err(_) => return false,
                Ok(n) => heard += n,
            }
        }
        heard == end
    }

    fn keep(&self, stream: BoxStream) {
        let mut idle = self.idle.lock();
        if idle.len() < MAX_IDLE {
            idle.push((Instant::now(), stream));
        }
    }
}
