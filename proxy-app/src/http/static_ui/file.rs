//! An open file, read in pieces of the size that its client is good for.
//!
//! What the system has in memory is read at once; for the rest a thread waits that does not serve. Between two pieces no
//! buffer is kept. tower-http opens the file and says what of it is asked for; its own body reads pieces of one size.

use std::fs::Metadata;
use std::future::{Ready, ready};
use std::io::{self, IoSliceMut, SeekFrom};
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use rustix::io::{ReadWriteFlags, preadv2};
use tokio::io::{AsyncRead, AsyncSeek, ReadBuf};
use tower_http::services::fs::File;

/// A file, and where tower-http wants it read.
#[derive(Clone)]
pub(crate) struct OpenFile {
    file: Arc<std::fs::File>,
    from: Arc<AtomicU64>,
}

impl OpenFile {
    /// From its beginning.
    pub(crate) fn new(file: std::fs::File) -> Self {
        Self {
            file: Arc::new(file),
            from: Arc::default(),
        }
    }

    /// So many bytes of it as a body.
    pub(crate) fn body(self, length: u64) -> FileBody {
        FileBody {
            at: self.from.load(Ordering::Relaxed),
            file: self.file,
            left: length,
        }
    }
}

/// What of a file is still to be sent.
pub(crate) struct FileBody {
    file: Arc<std::fs::File>,
    at: u64,
    left: u64,
}

impl FileBody {
    /// The next bytes, so many at most; `None`: that was all.
    ///
    /// # Errors
    /// It cannot be read, or has become shorter: what was sent must not look whole, which a compressed answer would.
    pub(crate) async fn next(&mut self, most: usize) -> io::Result<Option<Bytes>> {
        let most = usize::try_from(self.left).map_or(most, |left| left.min(most));
        if most == 0 {
            return Ok(None);
        }
        let bytes = match read_cached(&self.file, self.at, most) {
            Some(bytes) => bytes,
            None => {
                let (file, at) = (self.file.clone(), self.at);
                let read = tokio::task::spawn_blocking(move || read_at(&file, at, most));
                read.await.map_err(io::Error::other)??
            }
        };
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += bytes.len() as u64;
        self.left -= bytes.len() as u64;
        Ok(Some(bytes.into()))
    }
}

/// What the system has in memory of these bytes, from the first on; `None`: nothing, or it cannot say.
fn read_cached(file: &std::fs::File, at: u64, most: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; most];
    let read = preadv2(file, &mut [IoSliceMut::new(&mut bytes)], at, ReadWriteFlags::NOWAIT);
    let count = read.ok().filter(|count| *count > 0)?;
    bytes.truncate(count);
    Some(bytes)
}

fn read_at(file: &std::fs::File, at: u64, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; most];
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
    fn start_seek(self: Pin<&mut Self>, position: SeekFrom) -> io::Result<()> {
        let SeekFrom::Start(at) = position else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        self.from.store(at, Ordering::Relaxed);
        Ok(())
    }

    fn poll_complete(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(Ok(self.from.load(Ordering::Relaxed)))
    }
}

/// It is read as a [`FileBody`].
impl AsyncRead for OpenFile {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
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
    use tokio::io::AsyncSeekExt;

    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, OpenFile) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, text).unwrap();
        let open = OpenFile::new(std::fs::File::open(&path).unwrap());
        (folder, open)
    }

    #[tokio::test]
    async fn it_is_read_from_where_one_wants_and_as_far() {
        let (_folder, mut file) = file("0123456789");
        assert_eq!(file.metadata().await.unwrap().len(), 10);
        for (from, length, most, expected) in [
            (0, 10, 4, &["0123", "4567", "89"][..]),
            (3, 4, 3, &["345", "6"]),
            (8, 2, 8, &["89"]),
            (0, 0, 8, &[]),
        ] {
            file.seek(SeekFrom::Start(from)).await.unwrap();
            let mut body = file.clone().body(length);
            let mut got = Vec::new();
            while let Some(bytes) = body.next(most).await.unwrap() {
                got.push(String::from_utf8(bytes.to_vec()).unwrap());
            }
            assert_eq!(got, expected, "{length} from {from}");
        }
    }

    #[tokio::test]
    async fn a_file_that_becomes_shorter_is_not_sent_as_if_it_were_whole() {
        let (folder, file) = file("0123456789");
        let mut body = file.body(10);
        assert_eq!(body.next(4).await.unwrap().as_deref(), Some(&b"0123"[..]));
        std::fs::write(folder.path().join("a"), "012345").unwrap();
        assert_eq!(body.next(4).await.unwrap().as_deref(), Some(&b"45"[..]));
        let end = body.next(4).await.map_err(|error| error.kind());
        assert_eq!(end, Err(io::ErrorKind::UnexpectedEof));
    }

    /// Both ways read the same; which one is taken depends on what the system has in memory.
    #[test]
    fn what_is_in_memory_is_read_as_the_rest_is() {
        let (_folder, file) = file("0123456789");
        for (at, most) in [(0, 10), (2, 3), (8, 5)] {
            let waited = read_at(&file.file, at, most).unwrap();
            assert!(read_cached(&file.file, at, most).is_none_or(|cached| cached == waited));
        }
        assert_eq!(read_cached(&file.file, 10, 5), None);
    }
}
