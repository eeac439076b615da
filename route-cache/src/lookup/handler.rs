//! One lookup service: its connections, and whether it failed lately.
//!
//! A connection carries one question at a time and goes back to the others only when its answer has ended exactly
//! where it said. After anything else it is closed.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
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
pub struct HttpService {
    pub(super) url: HandlerUrl,
    retry: Duration,
    /// Whether the body of an answer is wanted.
    reads: bool,
    idle: Mutex<Vec<(Instant, BoxStream)>>,
    failed_at: Mutex<Option<Instant>>,
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum ServiceFault {
    /// The connection failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// It ended before the answer did.
    #[error("it closed the connection")]
    Closed,
    /// The connection had been waiting, and nothing came back on it: it may have been closed long ago.
    #[error("it closed the connection")]
    Outdated,
    /// The answer is no HTTP response that we read.
    #[error("{0}")]
    Malformed(#[from] Malformed),
    /// The answer has another status than 200.
    #[error("HTTP status {0}")]
    Status(u16),
}

impl HttpService {
    pub(super) fn new(url: HandlerUrl, retry: Duration) -> Self {
        Self {
            url,
            retry,
            reads: false,
            idle: Mutex::default(),
            failed_at: Mutex::default(),
        }
    }

    /// A service whose answers have a body that is wanted, of at most 16 KiB. Whoever asks sees to its failures.
    pub fn reading(url: HandlerUrl) -> Self {
        Self {
            reads: true,
            ..Self::new(url, Duration::ZERO)
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

    /// Sends a request and reads the response, on a connection that waits or on a new one. The caller has a time limit.
    ///
    /// # Errors
    /// It could not be reached, its answer was no HTTP, or its status was not 200.
    pub async fn ask(&self, dial: &dyn Dial, request: &[u8]) -> Result<Response, ServiceFault> {
        while let Some(stream) = self.waiting() {
            match self.exchange(stream, request, ServiceFault::Outdated).await {
                Err(ServiceFault::Outdated) => {}
                result => return self.judged(result),
            }
        }
        let stream = dial.connect(&self.url).await?;
        let result = self.exchange(stream, request, ServiceFault::Closed).await;
        self.judged(result)
    }

    fn judged(&self, result: Result<Response, ServiceFault>) -> Result<Response, ServiceFault> {
        let response = result?;
        if response.status != 200 {
            return Err(ServiceFault::Status(response.status));
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
    async fn exchange(
        &self,
        mut stream: BoxStream,
        request: &[u8],
        silence: ServiceFault,
    ) -> Result<Response, ServiceFault> {
        if stream.write_all(request).await.is_err() || stream.flush().await.is_err() {
            return Err(silence);
        }
        let mut heard = Vec::with_capacity(READ);
        let mut response = loop {
            match stream.read_buf(&mut heard).await {
                Ok(0) | Err(_) if heard.is_empty() => return Err(silence),
                Ok(0) => return Err(ServiceFault::Closed),
                Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
            if let Some(response) = wire::response(&heard)? {
                break response;
            }
        };
        let reusable = response.body.is_some_and(|length| length <= MAX_BODY);
        if self.reads && response.is_chunked() {
            let is_clean = finish_chunked(&mut stream, &mut response, heard).await?;
            if is_clean && response.keeps_chunked {
                self.keep(stream);
            }
        } else if reusable || self.reads {
            let is_clean = self.finish(&mut stream, &mut response, heard).await?;
            if is_clean && reusable {
                self.keep(stream);
            }
        }
        Ok(response)
    }

    /// Reads the rest of the body. True if nothing came behind it.
    async fn finish(
        &self,
        stream: &mut BoxStream,
        response: &mut Response,
        mut heard: Vec<u8>,
    ) -> Result<bool, ServiceFault> {
        let length = response.length().filter(|length| *length <= MAX_BODY);
        let end = response.head + length.ok_or(wire::NO_LENGTH)?;
        while heard.len() < end {
            match stream.read_buf(&mut heard).await {
                Ok(0) | Err(_) if self.reads => return Err(ServiceFault::Closed),
                Ok(0) | Err(_) => return Ok(false),
                Ok(_) => {}
            }
        }
        let is_clean = heard.len() == end;
        if self.reads {
            heard.truncate(end);
            response.content = heard.split_off(response.head);
        }
        Ok(is_clean)
    }

    fn keep(&self, stream: BoxStream) {
        let mut idle = self.idle.lock();
        if idle.len() < MAX_IDLE {
            idle.push((Instant::now(), stream));
        }
    }
}

/// Reads the rest of a body in chunks. True if nothing came behind it.
async fn finish_chunked(
    stream: &mut BoxStream,
    response: &mut Response,
    mut heard: Vec<u8>,
) -> Result<bool, ServiceFault> {
    loop {
        if let Some((content, end)) = wire::unchunked(&heard[response.head..])? {
            response.content = content;
            return Ok(heard.len() == response.head + end);
        }
        if stream.read_buf(&mut heard).await? == 0 {
            return Err(ServiceFault::Closed);
        }
    }
}
