//! A connection of our own for the synchronization: whole messages within bounds.
//!
//! The library queues what a server sends without a limit, and panics at what it does not expect. Here a server that
//! sends faster than we read has to wait, as TCP wants it. Nothing here has a time limit of its own.

use std::io;
use std::ops::Range;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::ber::{Begins, SEQUENCE, head};
use super::search_entry::SearchEntry;
use super::sync_message::{Incoming, Said, look, parse};
use crate::tls_words::reasons;

/// Longest message. An entry with fifty thousand aliases has half of that.
pub(super) const MAX_MESSAGE: usize = 4 * 1024 * 1024;
/// Bytes that are read at once.
const AT_ONCE: usize = 16 * 1024;

/// Why the synchronization ended, or did not begin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum SyncEnd {
    /// The server does not list the control.
    #[error("the server does not offer it")]
    NotOffered,
    /// The directory does not say how far it has come.
    #[error("the directory has no contextCSN")]
    NoPoint,
    /// It knows no way from our point to its own.
    #[error("the server cannot go on from here: {0}")]
    Cookie(String),
    /// Another refusal.
    #[error("the server refuses it: {0}")]
    Refused(String),
    /// The connection cannot be made, or has ended.
    #[error("the connection failed: {0}")]
    Broken(String),
    /// No answer in time.
    #[error("the server does not answer within {0:?}")]
    Late(Duration),
    /// Not the protocol.
    #[error("the server speaks nonsense")]
    Nonsense,
    /// It would have to list too much.
    #[error("the server would list more than {0} entries")]
    Long(usize),
    /// An entry cannot be read as it was told.
    #[error("{0}")]
    Unread(String),
    /// Searches go to another server now.
    #[error("another server is used now")]
    Elsewhere,
}

impl From<io::Error> for SyncEnd {
    fn from(error: io::Error) -> Self {
        Self::Broken(reasons(&error.to_string()).into_owned())
    }
}

/// The content of the first message, if all of it is there.
///
/// # Errors
///
/// It is no message, or too long.
pub(super) fn first_message(bytes: &[u8]) -> Result<Option<Range<usize>>, SyncEnd> {
    match head(bytes) {
        Begins::With(head) if head.tag == SEQUENCE && head.content <= MAX_MESSAGE => {
            let content = head.len..head.len + head.content;
            Ok(Some(content).filter(|content| content.end <= bytes.len()))
        }
        Begins::TooShort => Ok(None),
        Begins::With(_) | Begins::Nonsense => Err(SyncEnd::Nonsense),
    }
}

/// TCP or TLS.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// An open connection.
pub(super) struct SyncWire<S = Box<dyn Stream>> {
    stream: S,
    read: Vec<u8>,
}

impl<S: Stream> SyncWire<S> {
    pub(super) fn of(stream: S) -> Self {
        let read = Vec::new();
        Self { stream, read }
    }

    /// The stream again, if nothing was read that nobody has asked for.
    pub(super) fn into_unread(self) -> Option<S> {
        self.read.is_empty().then_some(self.stream)
    }

    /// Sends a request.
    pub(super) async fn send(&mut self, request: &[u8]) -> Result<(), SyncEnd> {
        self.stream.write_all(request).await?;
        Ok(self.stream.flush().await?)
    }

    /// The next message. Nothing is lost where this is dropped.
    pub(super) async fn next(&mut self) -> Result<Incoming, SyncEnd> {
        loop {
            if let Some(first) = first_message(&self.read)? {
                let message = self.take(first);
                return message.ok_or(SyncEnd::Nonsense);
            }
            self.read.reserve(AT_ONCE);
            if self.stream.read_buf(&mut self.read).await? == 0 {
                return Err(SyncEnd::Broken("the server has closed it".to_owned()));
            }
        }
    }

    /// Whether the next message is there already.
    pub(super) fn has_next(&self) -> bool {
        matches!(first_message(&self.read), Ok(Some(_)))
    }

    fn take(&mut self, first: Range<usize>) -> Option<Incoming> {
        let rest = self.read.split_off(first.end);
        let whole = std::mem::replace(&mut self.read, rest);
        parse(&whole[first])
    }

    /// Waits for the answer to this request; the server must have done what was asked.
    pub(super) async fn agreed(&mut self, request: u32) -> Result<(), SyncEnd> {
        match self.next().await? {
            Incoming {
                id,
                what: Said::Done(outcome),
            } if id == request => match outcome.code {
                0 => Ok(()),
                _ => Err(SyncEnd::Refused(outcome.to_string())),
            },
            _ => Err(SyncEnd::Nonsense),
        }
    }

    /// The values of one entry. The caller sets the time limit.
    pub(super) async fn entry(&mut self, request: u32, dn: &str, wanted: &[&str]) -> Result<SearchEntry, SyncEnd> {
        self.send(&look(request, dn, wanted)).await?;
        let mut found = None;
        loop {
            match self.next().await? {
                Incoming { id, what } if id == request => match what {
                    Said::Entry(entry, _) => found = Some(entry),
                    Said::Done(outcome) if outcome.code == 0 => return Ok(found.unwrap_or_default()),
                    Said::Done(outcome) => return Err(SyncEnd::Refused(outcome.to_string())),
                    Said::Info(_) | Said::Nothing => {}
                },
                _ => return Err(SyncEnd::Nonsense),
            }
        }
    }
}
