//! Reads the records of a TLS client with one system call each.
//!
//! AWS-LC asks for the five octets of a record's header, then for its body, then in vain for the next header. Here all that
//! is there is read at once, as far as it is little, and kept for the next question. What is kept takes memory only while
//! there is something. The library's own reading ahead allocates room for the largest record in each flight, and was dearer
//! (docs/performance.md).

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most that is read for a question of less. Requests and commands are shorter; of what is longer no more has to be copied.
const LITTLE: usize = 2048;

/// The bytes below TLS.
pub(crate) struct RecordReader<S> {
    stream: S,
    /// Read, and not asked for yet.
    ahead: Bytes,
}

impl<S> RecordReader<S> {
    /// Reads from this stream, whose handshake has not begun.
    pub(super) fn new(stream: S) -> Self {
        let ahead = Bytes::new();
        Self { stream, ahead }
    }

    /// The stream below.
    pub(crate) fn stream(&self) -> &S {
        &self.stream
    }

    /// The same to write to: what is read from it is missing above.
    pub(crate) fn stream_mut(&mut self) -> &mut S {
        &mut self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for RecordReader<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ahead.is_empty() {
            if buf.remaining() >= LITTLE {
                return Pin::new(&mut this.stream).poll_read(cx, buf);
            }
            let mut little = [MaybeUninit::uninit(); LITTLE];
            let mut read = ReadBuf::uninit(&mut little);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read))?;
            let asked = buf.remaining().min(read.filled().len());
            let (asked, more) = read.filled().split_at(asked);
            buf.put_slice(asked);
            if !more.is_empty() {
                this.ahead = Bytes::copy_from_slice(more);
            }
            return Poll::Ready(Ok(()));
        }
        let count = buf.remaining().min(this.ahead.len());
        buf.put_slice(&this.ahead[..count]);
        match count == this.ahead.len() {
            true => this.ahead = Bytes::new(),
            false => this.ahead.advance(count),
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for RecordReader<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn what_is_read_is_what_was_sent_however_it_is_asked_for() {
        let sent: Vec<u8> = (0..20_000_u32).map(|at| (at % 251) as u8).collect();
        for asked in [1, 5, 100, LITTLE - 1, LITTLE, LITTLE + 1, 16_384] {
            for segment in [1, 7, 1_448, 20_000] {
                let (mut client, server) = tokio::io::duplex(segment);
                let text = sent.clone();
                let writing = tokio::spawn(async move { client.write_all(&text).await });
                let mut reader = RecordReader::new(server);
                let (mut got, mut buffer) = (Vec::new(), vec![0; asked]);
                loop {
                    match reader.read(&mut buffer).await.unwrap() {
                        0 => break,
                        count => got.extend_from_slice(&buffer[..count]),
                    }
                }
                writing.await.unwrap().unwrap();
                assert!(got == sent, "{asked} {segment}");
                assert!(reader.ahead.is_empty());
            }
        }
    }

    #[tokio::test]
    async fn header_and_body_of_a_record_are_one_read() {
        let (mut client, server) = tokio::io::duplex(4096);
        client.write_all(b"head.body of the record").await.unwrap();
        let mut reader = RecordReader::new(server);
        let mut header = [0; 5];
        reader.read_exact(&mut header).await.unwrap();
        assert_eq!(reader.ahead, "body of the record");
        let mut body = [0; 18];
        reader.read_exact(&mut body).await.unwrap();
        assert!(reader.ahead.is_empty() && body.starts_with(b"body"));
    }
}
