//! HTTP/2 towards a server, under an engine that is told that it speaks HTTP/1.
//!
//! The engine's own HTTP/2 needs its own TLS. Here one request at a time goes over a connection: the request that the
//! engine writes is read as HTTP/1 and sent as a stream, and the answer is written as the engine reads it. Trailers are
//! not passed on, as in HTTP/1.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::response::Parts;
use http::{Method, Request, StatusCode, Uri, Version};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::upstream::early::Answered;

/// What a server may send ahead of us: one frame, with its head, fits into the 8 KiB that the library reads into at
/// first; for a larger one it takes twice as much. A window that grew while a client reads would have to be told by
/// SETTINGS, which some servers act on before they confirm them, and then the library takes their data for a breach.
const WINDOW: u32 = 8_000;
/// The window of a connection, which has one stream at a time: never the smaller one.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Most of a request body that waits for the server's window.
const SEND_BUFFER: usize = 64 * 1024;
/// Most of a head, as much as the engine takes in HTTP/1.
const HEAD_MAX: usize = 1024 * 1024;
/// Most fields of a request; the engine takes no more from a client, and we add some.
const FIELDS_MAX: usize = 320;
/// Fields that HTTP/2 does not have (RFC 9113 §8.2.2).
const HOP_BY_HOP: [&str; 7] = [
    "connection",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// A connection without a stream.
pub(crate) struct Http2Link(SendRequest<Bytes>);

impl Http2Link {
    /// Begins HTTP/2 on a connection that has agreed to it.
    ///
    /// # Errors
    /// It has ended.
    pub(crate) async fn begin<S>(io: S) -> Result<Self, h2::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buffer_size(SEND_BUFFER)
            .max_header_list_size(HEAD_MAX as u32)
            .enable_push(false)
            .handshake(io)
            .await?;
        // It ends when the connection does, and that ends when nobody holds its link or a stream.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                log::debug!("a connection over HTTP/2 has ended: {error}");
            }
        });
        Ok(Self(send))
    }

    /// Whether it takes another stream.
    pub(crate) fn is_open(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        matches!(self.0.poll_ready(&mut cx), Poll::Ready(Ok(())))
    }
}

/// One request and its answer.
pub(crate) struct Exchange {
    link: Http2Link,
    sending: Sending,
    answer: Answer,
    /// What the engine has not read yet of the answer.
    owed: Owed,
    /// Bytes of the answer that count against its window until the engine has read them.
    unreleased: usize,
    answered: Answered,
}

/// Bytes of an answer for the engine. The data are not copied before it reads them: where they came in is the one place
/// that they take.
#[derive(Default)]
struct Owed {
    /// A head, or the size of a chunk.
    front: BytesMut,
    data: Bytes,
    back: &'static [u8],
}

impl Owed {
    fn is_empty(&self) -> bool {
        self.front.is_empty() && self.data.is_empty() && self.back.is_empty()
    }

    /// More of the body, in a chunk if so.
    fn put(&mut self, data: Bytes, chunked: bool, last: bool) {
        if chunked && !data.is_empty() {
            let size = format!("{:x}\r\n", data.len());
            self.front.extend_from_slice(size.as_bytes());
        }
        self.back = match (chunked, data.is_empty(), last) {
            (false, ..) | (true, true, false) => b"",
            (true, true, true) => b"0\r\n\r\n",
            (true, false, false) => b"\r\n",
            (true, false, true) => b"\r\n0\r\n\r\n",
        };
        self.data = data;
    }

    fn read(&mut self, buf: &mut ReadBuf<'_>) {
        self.front.advance(copy(&self.front, buf));
        self.data.advance(copy(&self.data, buf));
        self.back = &self.back[copy(self.back, buf)..];
    }
}

/// As many of these bytes as there is room for. Returns how many.
fn copy(bytes: &[u8], buf: &mut ReadBuf<'_>) -> usize {
    let count = buf.remaining().min(bytes.len());
    buf.put_slice(&bytes[..count]);
    count
}

/// How far the request is.
enum Sending {
    Head(BytesMut),
    Body(SendStream<Bytes>, RequestFraming),
    Done,
    /// The server does not take the rest.
    Broken,
}

/// How far the answer is.
enum Answer {
    /// There is no request yet; who waits for its answer.
    None(Option<Waker>),
    Head(ResponseFuture, Method),
    Body {
        body: RecvStream,
        chunked: bool,
    },
    Over,
}

impl Exchange {
    pub(crate) fn new(link: Http2Link) -> Self {
        Self {
            link,
            sending: Sending::Head(BytesMut::new()),
            answer: Answer::None(None),
            owed: Owed::default(),
            unreleased: 0,
            answered: Answered::No,
        }
    }

    /// The connection, if it can carry another request.
    pub(crate) fn finish(mut self) -> Option<Http2Link> {
        let whole = self.is_over() && self.link.is_open();
        whole.then_some(self.link)
    }

    /// Whether request and answer have ended well.
    pub(crate) fn is_over(&self) -> bool {
        matches!((&self.sending, &self.answer), (Sending::Done, Answer::Over)) && self.owed.is_empty()
    }

    /// How far the server has answered, while it takes nothing of the request.
    pub(crate) fn poll_answered(&mut self, cx: &mut Context<'_>) -> Answered {
        while matches!(self.answer, Answer::Head(..)) && self.owed.front.len() < HEAD_MAX {
            match self.poll_answer(cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(())) => {}
                // There will be no answer. The engine hears of it when it reads.
                Poll::Ready(Err(_)) => return Answered::Decided,
            }
        }
        match self.answer {
            Answer::Over => Answered::Decided,
            _ => self.answered,
        }
    }

    /// Gathers the head, and sends it when it is whole. Returns how much of `buf` belongs to it.
    fn write_head(&mut self, buf: &[u8]) -> io::Result<usize> {
        let Sending::Head(head) = &mut self.sending else {
            return Ok(0);
        };
        let before = head.len();
        head.extend_from_slice(buf);
        let Some(end) = head.windows(4).position(|end| end == b"\r\n\r\n") else {
            return match head.len() > HEAD_MAX {
                true => Err(invalid("a request head above the limit")),
                false => Ok(buf.len()),
            };
        };
        let head = head.split_to(end + 4);
        let (request, framing) = read_head(&head)?;
        let method = request.method().clone();
        let (response, stream) = self.link.0.send_request(request, framing.is_over()).map_err(broken)?;
        let waited = std::mem::replace(&mut self.answer, Answer::Head(response, method));
        if let Answer::None(Some(waiting)) = waited {
            waiting.wake();
        }
        self.sending = match framing.is_over() {
            true => Sending::Done,
            false => Sending::Body(stream, framing),
        };
        Ok(head.len() - before)
    }

    fn poll_body(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Sending::Body(stream, framing) = &mut self.sending else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let (passed, data) = framing.next(buf)?;
        let sent = match (passed, data) {
            // What is read of the framing is not read again.
            (1.., _) | (_, 0) => Ok(0),
            _ => ready!(poll_capacity(stream, cx, data)),
        };
        let sent = sent.and_then(|count| {
            framing.pass(count);
            if count > 0 || framing.is_over() {
                let data = Bytes::copy_from_slice(&buf[..count]);
                stream.send_data(data, framing.is_over()).map_err(broken)?;
            }
            Ok(passed + count)
        });
        match &sent {
            Ok(_) if framing.is_over() => self.sending = Sending::Done,
            Ok(_) => {}
            Err(_) => {
                self.sending = Sending::Broken;
                // What the server says of the whole request says more.
                if matches!(self.answer, Answer::Head(..))
                    && let Poll::Ready(Err(why)) = self.poll_answer(cx)
                {
                    return Poll::Ready(Err(why));
                }
            }
        }
        Poll::Ready(sent)
    }

    /// Waits for more of the answer, and writes it down as HTTP/1.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.answer {
            Answer::None(waiting) => {
                *waiting = Some(cx.waker().clone());
                Poll::Pending
            }
            Answer::Over => Poll::Ready(Ok(())),
            Answer::Head(response, method) => {
                // The answer itself may have come before the error that this would be.
                if let Poll::Ready(Some(Ok(interim))) = response.poll_informational(cx) {
                    let (parts, ()) = interim.into_parts();
                    write_answer_head(&mut self.owed.front, &parts, None);
                    return Poll::Ready(Ok(()));
                }
                let (parts, body) = ready!(Pin::new(response).poll(cx)).map_err(broken)?.into_parts();
                let bodyless = *method == Method::HEAD
                    || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
                let framing = match () {
                    () if bodyless || parts.headers.contains_key(CONTENT_LENGTH) => None,
                    () if body.is_end_stream() => Some("content-length: 0\r\n"),
                    () => Some("transfer-encoding: chunked\r\n"),
                };
                self.answered = Answered::with(parts.status);
                write_answer_head(&mut self.owed.front, &parts, framing);
                let chunked = framing.is_some() && !body.is_end_stream();
                self.answer = match body.is_end_stream() {
                    true => Answer::Over,
                    false => Answer::Body { body, chunked },
                };
                Poll::Ready(Ok(()))
            }
            Answer::Body { body, chunked } => {
                let released = std::mem::take(&mut self.unreleased);
                if released > 0 {
                    body.flow_control().release_capacity(released).map_err(broken)?;
                }
                let chunked = *chunked;
                let data = ready!(body.poll_data(cx)).transpose().map_err(broken)?;
                let last = data.is_none() || body.is_end_stream();
                let data = data.unwrap_or_default();
                self.unreleased = data.len();
                self.owed.put(data, chunked, last);
                if last {
                    self.answer = Answer::Over;
                }
                Poll::Ready(Ok(()))
            }
        }
    }
}

/// Waits until the server takes some of so many bytes.
fn poll_capacity(stream: &mut SendStream<Bytes>, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
    stream.reserve_capacity(wanted);
    loop {
        match stream.capacity() {
            0 => {}
            capacity => return Poll::Ready(Ok(capacity.min(wanted))),
        }
        match ready!(stream.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }
}

impl AsyncRead for Exchange {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // An empty frame is no end.
        while self.owed.is_empty() && !matches!(self.answer, Answer::Over) {
            ready!(self.poll_answer(cx))?;
        }
        self.owed.read(buf);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Exchange {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.sending {
            Sending::Head(_) => Poll::Ready(self.write_head(buf)),
            Sending::Body(..) | Sending::Broken => self.poll_body(cx, buf),
            // The farewell of a body that has ended.
            Sending::Done => Poll::Ready(Ok(buf.len())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// What is not over is reset when it is dropped.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Where the body that the engine writes ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RequestFraming {
    Sized(u64),
    Chunked(Chunk),
}

/// Where we are in a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chunk {
    Size(u64),
    Data(u64),
    Last,
    End,
}

impl RequestFraming {
    fn of(headers: &HeaderMap) -> io::Result<Self> {
        if headers.contains_key(TRANSFER_ENCODING) {
            return Ok(Self::Chunked(Chunk::Size(0)));
        }
        let Some(length) = headers.get(CONTENT_LENGTH) else {
            return Ok(Self::Sized(0));
        };
        let length = length.to_str().ok().and_then(|length| length.trim().parse().ok());
        length.map(Self::Sized).ok_or_else(|| invalid("a length that is none"))
    }

    fn is_over(self) -> bool {
        matches!(self, Self::Sized(0) | Self::Chunked(Chunk::End))
    }

    /// How many bytes at the beginning are no data, and how many data follow them.
    fn next(&mut self, buf: &[u8]) -> io::Result<(usize, usize)> {
        let mut passed = 0;
        loop {
            let left = match self {
                Self::Sized(left) | Self::Chunked(Chunk::Data(left)) if *left > 0 => *left,
                Self::Sized(_) | Self::Chunked(Chunk::End) => return Ok((buf.len(), 0)),
                Self::Chunked(chunk) => {
                    let Some(&byte) = buf.get(passed) else {
                        return Ok((passed, 0));
                    };
                    *chunk = chunk.after(byte).ok_or_else(|| invalid("a body that is not chunked"))?;
                    passed += 1;
                    continue;
                }
            };
            let data = (buf.len() - passed) as u64;
            return Ok((passed, data.min(left) as usize));
        }
    }

    /// So many data have been sent.
    fn pass(&mut self, data: usize) {
        if let Self::Sized(left) | Self::Chunked(Chunk::Data(left)) = self {
            *left -= data as u64;
        }
    }
}

impl Chunk {
    fn after(self, byte: u8) -> Option<Self> {
        match (self, byte) {
            (Self::Size(0), b'\n') => Some(Self::Last),
            (Self::Size(size), b'\n') => Some(Self::Data(size)),
            (Self::Last, b'\n') => Some(Self::End),
            (_, b'\r') => Some(self),
            (Self::Size(size), digit) => {
                let digit = char::from(digit).to_digit(16)?;
                size.checked_mul(16).map(|size| Self::Size(size + u64::from(digit)))
            }
            // Behind the data of a chunk.
            (Self::Data(0), b'\n') => Some(Self::Size(0)),
            _ => None,
        }
    }
}

/// The request that the engine has written, and how its body will be written.
fn read_head(head: &[u8]) -> io::Result<(Request<()>, RequestFraming)> {
    let mut fields = vec![httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut parsed = httparse::Request::new(&mut fields);
    parsed.parse(head).map_err(|error| invalid(&error.to_string()))?;
    let mut headers = HeaderMap::with_capacity(parsed.headers.len());
    for field in parsed.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(io::Error::other)?;
        headers.append(name, HeaderValue::from_bytes(field.value).map_err(io::Error::other)?);
    }
    let framing = RequestFraming::of(&headers)?;
    let host = headers
        .remove(HOST)
        .ok_or_else(|| invalid("a request without a host"))?;
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    let uri = Uri::builder()
        .scheme("https")
        .authority(host.as_bytes())
        .path_and_query(parsed.path.unwrap_or("/"))
        .build();
    let mut request = Request::new(());
    *request.method_mut() = parsed.method.unwrap_or("GET").parse().map_err(io::Error::other)?;
    *request.uri_mut() = uri.map_err(io::Error::other)?;
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = headers;
    Ok((request, framing))
}

fn write_answer_head(out: &mut BytesMut, parts: &Parts, framing: Option<&str>) {
    let reason = parts.status.canonical_reason().unwrap_or_default();
    out.extend_from_slice(format!("HTTP/1.1 {} {reason}\r\n", parts.status.as_str()).as_bytes());
    for (name, value) in &parts.headers {
        if !HOP_BY_HOP.contains(&name.as_str()) {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                out.extend_from_slice(part);
            }
        }
    }
    out.extend_from_slice(framing.unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn broken(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, error)
}

/// Whether the server says that it has not processed the request: it refuses the stream, or has gone away before it
/// (RFC 9113 §8.7).
pub(crate) fn is_unprocessed(error: &io::Error) -> bool {
    let error: Option<&h2::Error> = error.get_ref().and_then(|inner| inner.downcast_ref());
    error.is_some_and(|error| {
        let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
        // The library gives this to streams that the server does not count among the last ones.
        error.is_remote() && (refused || error.is_go_away())
    })
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::sync::watch;
    use tokio::time::timeout;

    use super::*;

    /// The data of a body that comes in pieces of this size.
    fn data(mut framing: RequestFraming, wire: &[u8], size: usize) -> io::Result<(Vec<u8>, bool)> {
        let mut data = Vec::new();
        for mut piece in wire.chunks(size) {
            while !piece.is_empty() {
                let (passed, count) = framing.next(piece)?;
                data.extend_from_slice(&piece[passed..passed + count]);
                framing.pass(count);
                piece = &piece[passed + count..];
            }
        }
        Ok((data, framing.is_over()))
    }

    #[test]
    fn bodies_are_read_as_the_engine_writes_them() {
        let chunked = RequestFraming::Chunked(Chunk::Size(0));
        for size in 1..40 {
            for (framing, wire, expected) in [
                (RequestFraming::Sized(0), "", ""),
                (RequestFraming::Sized(5), "hello", "hello"),
                (
                    chunked,
                    "5\r\nhello\r\nC\r\n, big world!\r\n0\r\n\r\n",
                    "hello, big world!",
                ),
                (chunked, "0\r\n\r\n", ""),
            ] {
                let (got, over) = data(framing, wire.as_bytes(), size).unwrap();
                assert_eq!(
                    (got.as_slice(), over),
                    (expected.as_bytes(), true),
                    "{wire:?} by {size}"
                );
            }
            let (got, over) = data(chunked, b"5\r\nhello\r\n", size).unwrap();
            assert_eq!((got.as_slice(), over), (&b"hello"[..], false));
        }
        for wire in ["x\r\n", "5\r\nhellox", "fffffffffffffffff\r\n"] {
            assert!(data(chunked, wire.as_bytes(), 100).is_err(), "{wire:?}");
        }
    }

    #[test]
    fn heads_are_read_as_the_engine_writes_them() {
        let head = "POST /a?b=c HTTP/1.1\r\nHost: a.test:8443\r\nConnection: close\r\nTE: trailers\r\nX-A: 1\r\nX-A: 2\r\n\
                    Transfer-Encoding: chunked\r\n\r\n";
        let (request, framing) = read_head(head.as_bytes()).unwrap();
        assert_eq!(request.uri(), "https://a.test:8443/a?b=c");
        assert_eq!(request.method(), Method::POST);
        let fields: Vec<_> = request
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()))
            .collect();
        assert_eq!(fields, [("x-a", &b"1"[..]), ("x-a", &b"2"[..])]);
        assert_eq!(framing, RequestFraming::Chunked(Chunk::Size(0)));
        for (head, why) in [
            ("GET / HTTP/1.1\r\n\r\n", "without a host"),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
                "a length that is none",
            ),
        ] {
            let error = read_head(head.as_bytes()).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    /// A server that answers each request with its body, and says in a field how it has heard it.
    async fn echo(io: DuplexStream) {
        let mut connection = h2::server::handshake(io).await.unwrap();
        while let Some(accepted) = connection.accept().await {
            let (request, mut respond) = accepted.unwrap();
            tokio::spawn(async move {
                let heard = format!("{} {}", request.method(), request.uri());
                let response = http::Response::builder().header("x-heard", heard);
                let mut body = request.into_body();
                let mut out = respond
                    .send_response(response.body(()).unwrap(), body.is_end_stream())
                    .unwrap();
                while let Some(data) = body.data().await {
                    let data = data.unwrap();
                    body.flow_control().release_capacity(data.len()).unwrap();
                    out.send_data(data, false).unwrap();
                }
                let _nothing_where_the_answer_has_ended = out.send_data(Bytes::new(), true);
            });
        }
    }

    async fn begin() -> Http2Link {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        tokio::spawn(echo(theirs));
        Http2Link::begin(ours).await.unwrap()
    }

    /// Sends a request as the engine does, reads the answer as far as it is whole, and says what it is.
    async fn exchange(link: Http2Link, head: &str, body: &[u8]) -> (String, Exchange) {
        let (mut reader, mut writer) = tokio::io::split(Exchange::new(link));
        let head = head.as_bytes().to_vec();
        let body = body.to_vec();
        let writing = tokio::spawn(async move {
            writer.write_all(&head).await.unwrap();
            let _the_server_may_not_want_it = writer.write_all(&body).await;
            writer
        });
        let mut answer = Vec::new();
        reader.read_to_end(&mut answer).await.unwrap();
        let exchange = reader.unsplit(writing.await.unwrap());
        (String::from_utf8(answer).unwrap(), exchange)
    }

    #[tokio::test]
    async fn requests_go_one_after_the_other_over_a_connection() {
        let long = "x".repeat(300_000);
        let chunked = format!("5\r\nhello\r\n{:X}\r\n{long}\r\n0\r\n\r\n", long.len());
        let mut link = begin().await;
        for (head, body, expected) in [
            ("GET /a?b=c HTTP/1.1\r\nHost: a.test\r\n\r\n", "", None),
            (
                "POST /a HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\n",
                "hello",
                Some("hello".to_owned()),
            ),
            (
                "POST /a HTTP/1.1\r\nHost: a.test\r\nContent-Length: 300000\r\n\r\n",
                &long,
                Some(long.clone()),
            ),
            (
                "PUT /a HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n",
                &chunked,
                Some(format!("hello{long}")),
            ),
        ] {
            let (answer, exchange) = exchange(link, head, body.as_bytes()).await;
            let (got, rest) = answer.split_once("\r\n\r\n").unwrap();
            assert!(got.starts_with("HTTP/1.1 200 OK\r\n"), "{got}");
            assert!(got.contains("x-heard: ") && got.contains(" https://a.test/a"), "{got}");
            match expected {
                None => assert!(got.ends_with("content-length: 0") && rest.is_empty(), "{got}"),
                Some(expected) => {
                    assert!(got.ends_with("transfer-encoding: chunked"), "{got}");
                    let wire = rest.as_bytes();
                    let (data, over) = data(RequestFraming::Chunked(Chunk::Size(0)), wire, wire.len()).unwrap();
                    assert!(over && data == expected.as_bytes(), "{} bytes", data.len());
                }
            }
            link = exchange.finish().expect("the connection can be used again");
        }
    }

    /// A server that answers with bytes without end, and says how many it was allowed to send.
    async fn pour(io: DuplexStream, sent: watch::Sender<usize>) {
        let mut connection = h2::server::handshake(io).await.unwrap();
        while let Some(accepted) = connection.accept().await {
            let sent = sent.clone();
            sent.send_replace(0);
            tokio::spawn(async move {
                let mut out = accepted
                    .unwrap()
                    .1
                    .send_response(http::Response::new(()), false)
                    .unwrap();
                out.reserve_capacity(1024 * 1024);
                while let Some(Ok(_)) = poll_fn(|cx| out.poll_capacity(cx)).await {
                    let allowed = out.capacity();
                    out.send_data(Bytes::from(vec![b'x'; allowed]), false).unwrap();
                    sent.send_modify(|sent| *sent += allowed);
                    out.reserve_capacity(1024 * 1024);
                }
            });
        }
    }

    #[tokio::test]
    async fn a_server_may_send_no_more_ahead_than_its_window() {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let (sent, mut was_sent) = watch::channel(0);
        tokio::spawn(pour(theirs, sent));
        let mut exchange = Exchange::new(Http2Link::begin(ours).await.unwrap());
        exchange
            .write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
            .await
            .unwrap();
        let mut wait = async |size: u32| {
            let all = was_sent.wait_for(|sent| *sent >= size as usize);
            *timeout(Duration::from_secs(10), all).await.unwrap().unwrap()
        };
        assert_eq!(wait(WINDOW).await, WINDOW as usize);
        // What is read may be sent again.
        let mut read = vec![0; 2 * WINDOW as usize];
        exchange.read_exact(&mut read).await.unwrap();
        assert!(wait(2 * WINDOW).await <= 3 * WINDOW as usize);
    }
}
