//! An open file that is read off the threads that serve, and keeps no buffer between two reads.
//!
//! tokio's own file keeps what it has read into: 16 KiB for each answer whose client does not read.

use std::fs::Metadata;
use std::future::{Future, Ready, ready};
use std::io::{self, SeekFrom};
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncSeek, ReadBuf};
use tokio::task::JoinHandle;
use tower_http::services::fs::File;

/// A file, and how far it is read.
pub(crate) struct OpenFile {
    file: Arc<std::fs::File>,
    at: u64,
    read: Option<JoinHandle<io::Result<Vec<u8>>>>,
}

impl OpenFile {
    /// From its beginning.
    pub(crate) const fn new(file: Arc<std::fs::File>) -> Self {
        Self {
            file,
            at: 0,
            read: None,
        }
    }
}

impl AsyncRead for OpenFile {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let read = this.read.get_or_insert_with(|| {
            let (file, at) = (this.file.clone(), this.at);
            // Made by the thread that frees it, which costs the allocator less.
            let bytes = vec![0; buf.remaining()];
            tokio::task::spawn_blocking(move || read_at(&file, at, bytes))
        });
        let bytes = ready!(Pin::new(read).poll(cx));
        this.read = None;
        let bytes = bytes.map_err(io::Error::other)??;
        // There may be less room now than when it was asked for: the rest is read again.
        let count = bytes.len().min(buf.remaining());
        buf.put_slice(&bytes[..count]);
        this.at += count as u64;
        Poll::Ready(Ok(()))
    }
}

fn read_at(file: &std::fs::File, at: u64, mut bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    loop {
        match file.read_at(&mut bytes, at) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => {
                bytes.truncate(read?);
                return Ok(bytes);
            }
        }
    }
}

impl AsyncSeek for OpenFile {
    fn start_seek(mut self: Pin<&mut Self>, position: SeekFrom) -> io::Result<()> {
        let at = match position {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.file.metadata()?.len().checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        self.read = None;
        Ok(())
    }

    fn poll_complete(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(Ok(self.at))
    }
}

impl File for OpenFile {
    type Metadata = Metadata;
    type MetadataFuture<'a> = Ready<io::Result<Metadata>>;

    /// The system has it in memory while a file is open.
    fn metadata(&self) -> Self::MetadataFuture<'_> {
        ready(self.file.metadata())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncSeekExt};

    use super::*;

    #[tokio::test]
    async fn it_is_read_from_where_one_wants_and_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "0123456789").unwrap();
        let mut file = OpenFile::new(Arc::new(std::fs::File::open(&path).unwrap()));
        let mut three = [0; 3];
        file.read_exact(&mut three).await.unwrap();
        assert_eq!(&three, b"012");
        for (to, expected) in [
            (SeekFrom::Current(2), "56789"),
            (SeekFrom::Start(8), "89"),
            (SeekFrom::End(-4), "6789"),
            (SeekFrom::Start(20), ""),
        ] {
            file.seek(to).await.unwrap();
            let mut rest = String::new();
            file.read_to_string(&mut rest).await.unwrap();
            assert_eq!(rest, expected, "{to:?}");
            if to == SeekFrom::Current(2) {
                assert_eq!(file.at, 10);
            }
        }
        assert!(file.seek(SeekFrom::Current(-30)).await.is_err());
        assert_eq!(file.metadata().await.unwrap().len(), 10);
    }

    /// The reader may come back with less room than it had.
    #[tokio::test]
    async fn no_byte_is_lost_between_two_rooms() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "0123456789").unwrap();
        let mut file = OpenFile::new(Arc::new(std::fs::File::open(&path).unwrap()));
        let mut bytes = [0; 8];
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(
            Pin::new(&mut file)
                .poll_read(&mut cx, &mut ReadBuf::new(&mut bytes))
                .is_pending()
        );
        file.read_exact(&mut bytes[..3]).await.unwrap();
        file.read_exact(&mut bytes[3..]).await.unwrap();
        assert_eq!(&bytes, b"01234567");
    }
}
