//! Bytes that are gathered before they are written: small writes of the engine leave together.

use std::io;
use std::task::{Poll, ready};

/// What is written and not yet sent. Its buffer lives only from write to flush.
#[derive(Default)]
pub(crate) struct Gathered {
    bytes: Vec<u8>,
    sent: usize,
}

impl Gathered {
    pub(crate) const fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Adds bytes. The first ones make room for so many, in order that the next need not.
    pub(crate) fn add(&mut self, bytes: &[u8], room: usize) {
        if self.bytes.is_empty() {
            self.bytes.reserve(room);
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Sends all with this `write`, and goes on at the next call where it has stopped.
    pub(crate) fn poll_out(&mut self, mut write: impl FnMut(&[u8]) -> Poll<io::Result<usize>>) -> Poll<io::Result<()>> {
        while self.sent < self.bytes.len() {
            match ready!(write(&self.bytes[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.sent += count,
            }
        }
        *self = Self::default();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_sent_is_sent_later_and_once() {
        let mut gathered = Gathered::default();
        gathered.add(b"abc", 8);
        gathered.add(b"def", 8);
        let mut sent = Vec::new();
        let mut room = 4;
        let mut write = |bytes: &[u8]| match bytes.len().min(room) {
            0 => Poll::Pending,
            count => {
                room -= count;
                sent.extend_from_slice(&bytes[..count]);
                Poll::Ready(Ok(count))
            }
        };
        assert!(gathered.poll_out(&mut write).is_pending());
        assert!(!gathered.is_empty());
        assert!(gathered.poll_out(&mut |_: &[u8]| Poll::Pending).is_pending());
        let rest = |bytes: &[u8]| {
            sent.extend_from_slice(bytes);
            Poll::Ready(Ok(bytes.len()))
        };
        assert!(gathered.poll_out(rest).is_ready());
        assert!(gathered.is_empty());
        assert_eq!(sent, b"abcdef");
    }

    #[test]
    fn a_writer_that_takes_nothing_is_an_error() {
        let mut gathered = Gathered::default();
        gathered.add(b"abc", 0);
        let Poll::Ready(Err(error)) = gathered.poll_out(|_| Poll::Ready(Ok(0))) else {
            panic!("no error");
        };
        assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    }
}
