//! Reading into memory that all connections of a thread share: none of them holds a buffer while it waits.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::ready;

use tokio::io::{AsyncRead, ReadBuf};

use crate::connection::BoxStream;

/// What one read before login may bring.
const READ: usize = 4096;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into_boxed_slice());
}

/// Reads once, and lets `take` see the bytes; none is the end. They are wiped afterwards: a password may be among them.
pub(crate) async fn read_with<T>(stream: &mut BoxStream, take: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
    let mut take = Some(take);
    poll_fn(|cx| {
        BUFFER.with_borrow_mut(|buffer| {
            let mut read = ReadBuf::new(buffer);
            ready!(Pin::new(&mut *stream).poll_read(cx, &mut read))?;
            let taken = take.take().map(|take| take(read.filled()));
            read.filled_mut().fill(0);
            taken.ok_or_else(|| io::ErrorKind::Other.into()).into()
        })
    })
    .await
}
