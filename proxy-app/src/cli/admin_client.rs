//! The client of the admin API: one request over the socket of the running process.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Method;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::admin::api_error::ApiError;

/// How long the running process may take for an answer; longer than its own limit for a request.
const PATIENCE: Duration = Duration::from_secs(70);
/// Most of an answer: some hundred thousand sessions.
const ANSWER_MAX: usize = 256 * 1024 * 1024;

/// A client of a running process.
pub(crate) struct AdminClient {
    socket: PathBuf,
}

impl AdminClient {
    /// For the process at this socket.
    pub(crate) fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// Sends a GET.
    ///
    /// # Errors
    /// No process answers, or it refuses the request.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.ask(Method::GET, path, &()).await
    }

    /// Sends a request with a body.
    ///
    /// # Errors
    /// No process answers, or it refuses the request.
    pub(crate) async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        self.ask(method, path, body).await
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        let answer = async {
            let body = self.open(method, path, body).await?;
            let limited = http_body_util::Limited::new(body, ANSWER_MAX);
            let bytes = limited.collect().await.map_err(|error| anyhow::anyhow!("{error}"))?;
            serde_json::from_slice(&bytes.to_bytes()).context("the answer is not what it should be")
        };
        let answer = tokio::time::timeout(PATIENCE, answer).await;
        answer.with_context(|| format!("no answer at {}", self.socket.display()))?
    }

    /// The body of a successful response.
    ///
    /// # Errors
    /// No process answers, or it refuses the request.
    pub(crate) async fn open(&self, method: Method, path: &str, body: &impl Serialize) -> anyhow::Result<Incoming> {
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.with_context(|| format!("no Portico answers at {}", self.socket.display()))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header(hyper::header::HOST, "portico")
            .header(hyper::header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(serde_json::to_vec(body)?)))?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(response.into_body());
        }
        let limited = http_body_util::Limited::new(response.into_body(), ANSWER_MAX);
        let bytes = limited
            .collect()
            .await
            .map_err(|error| anyhow::anyhow!("{error}"))?
            .to_bytes();
        bail!(refusal(status, &bytes))
    }
}

fn refusal(status: hyper::StatusCode, body: &[u8]) -> String {
    let Ok(failure) = serde_json::from_slice::<ApiError>(body) else {
        let text = String::from_utf8_lossy(body);
        return format!("{status}: {}", text.lines().next().unwrap_or_default());
    };
    let problems = failure.problems.iter().map(|problem| format!("\n{problem}"));
    failure.error + &problems.collect::<String>()
}
