//! A client of HTTP/2 that sends any frame (RFC 9113), also what no library would send.

use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::fake::Peer;
use crate::wire::Wire;

/// What an answer may take, on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// RFC 9113 §6.1, and so on: the kinds of frames.
pub const DATA: u8 = 0;
/// RFC 9113 §6.2.
pub const HEADERS: u8 = 1;
/// RFC 9113 §6.3.
pub const PRIORITY: u8 = 2;
/// RFC 9113 §6.4.
pub const RST_STREAM: u8 = 3;
/// RFC 9113 §6.5.
pub const SETTINGS: u8 = 4;
/// RFC 9113 §6.7.
pub const PING: u8 = 6;
/// RFC 9113 §6.8.
pub const GOAWAY: u8 = 7;
/// RFC 9113 §6.9.
pub const WINDOW_UPDATE: u8 = 8;
/// RFC 9113 §6.10.
pub const CONTINUATION: u8 = 9;

/// The flag of a frame that ends its stream.
pub const END_STREAM: u8 = 1;
/// The flag of a frame that ends a head.
pub const END_HEADERS: u8 = 4;

/// A connection, after the preface.
pub struct Raw {
    /// What it sends its frames on.
    pub wire: Wire,
    /// The stream that the next request opens.
    pub next: u32,
    host: String,
}

impl Raw {
    /// Begins on a connection that has agreed on HTTP/2, with requests for `host`.
    pub fn over(mut wire: Wire, host: &str, settings: &[u8]) -> Result<Self> {
        ensure!(wire.alpn().as_deref() == Some("h2"), "no HTTP/2");
        wire.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
        wire.send(frame(SETTINGS, 0, 0, settings))?;
        let host = host.to_owned();
        Ok(Self { wire, next: 1, host })
    }

    /// Opens a stream with these fields behind the usual ones.
    pub fn ask(&mut self, path: &str, more: &[(&str, &str)], end: bool) -> Result<u32> {
        let stream = self.next;
        self.next += 2;
        let block = block(&[&usual(&self.host, path)[..], more].concat());
        self.wire.send(frame(HEADERS, 4 | u8::from(end), stream, &block))?;
        Ok(stream)
    }

    /// The next frame: kind, flags, stream, payload; none at the end of the connection.
    pub fn frame(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let head = self.wire.bytes(9).ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let payload = self.wire.bytes(length as usize).ok()?;
        Some((head[3], head[4], stream, payload))
    }

    /// Whether an answer begins on this stream; no if it is reset or the connection ends.
    pub fn is_answered(&mut self, stream: u32) -> Result<bool> {
        self.wire.patience(SOON)?;
        while let Some((kind, _, on, _)) = self.frame() {
            match kind {
                HEADERS if on == stream => return Ok(true),
                RST_STREAM if on == stream => return Ok(false),
                GOAWAY => return Ok(false),
                _ => {}
            }
        }
        Ok(false)
    }

    /// Sends exactly these fields and this body, and returns the body of the answer.
    pub fn exchange(&mut self, fields: &[(&str, &str)], body: &[&[u8]]) -> Result<Vec<u8>> {
        let stream = self.next;
        self.next += 2;
        let end = |last: bool| if last { END_STREAM } else { 0 };
        let head = frame(HEADERS, END_HEADERS | end(body.is_empty()), stream, &block(fields));
        self.wire.send(head)?;
        for (at, part) in body.iter().enumerate() {
            self.wire.send(frame(DATA, end(at + 1 == body.len()), stream, part))?;
        }
        self.body(stream)
    }

    /// The body of the answer on this stream.
    pub fn body(&mut self, stream: u32) -> Result<Vec<u8>> {
        self.wire.patience(SOON)?;
        let mut body = Vec::new();
        while let Some((kind, flags, on, payload)) = self.frame() {
            match kind {
                RST_STREAM if on == stream => bail!("reset: {payload:?}"),
                GOAWAY => bail!("the connection ends: {payload:?}"),
                DATA if on == stream => body.extend(payload),
                _ => {}
            }
            if matches!(kind, DATA | HEADERS) && on == stream && flags & END_STREAM != 0 {
                return Ok(body);
            }
        }
        bail!("no end of the answer")
    }

    /// Sends until the connection is ended from the other side; how many were sent.
    pub fn flood(&mut self, most: usize, mut next: impl FnMut(&mut Self) -> Vec<u8>) -> Result<usize> {
        for sent in 0..most {
            let frames = next(self);
            if self.wire.send(frames).is_err() {
                return Ok(sent);
            }
        }
        // The kernel may have taken all of it.
        self.wire.patience(Duration::from_secs(5))?;
        while let Some((kind, ..)) = self.frame() {
            if kind == GOAWAY {
                return Ok(most);
            }
        }
        ensure!(
            self.wire.send(frame(PING, 0, 0, &[0; 8])).is_err() || self.wire.rest().is_ok(),
            "it is still open"
        );
        Ok(most)
    }
}

/// The server's side of a connection.
pub struct Http2Peer<'a>(&'a mut Peer);

impl<'a> Http2Peer<'a> {
    /// Reads what a client says first.
    pub fn begin(peer: &'a mut Peer) -> Result<Self> {
        peer.bytes(24)?;
        peer.send(frame(SETTINGS, 0, 0, &[]))?;
        Ok(Self(peer))
    }

    /// The next frame: kind, flags, stream, payload. Settings are confirmed; no window is given for data.
    pub fn frame(&mut self) -> Result<(u8, u8, u32, Vec<u8>)> {
        loop {
            let head = self.0.bytes(9)?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            let payload = self.0.bytes(length as usize)?;
            match (head[3], head[4]) {
                (SETTINGS, 0) => self.send(frame(SETTINGS, 1, 0, &[]))?,
                (PING, 0) => self.send(frame(PING, 1, 0, &payload))?,
                (kind, flags) => return Ok((kind, flags, stream, payload)),
            }
        }
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        self.0.send(bytes)
    }

    /// Sends a whole answer.
    pub fn answer(&mut self, stream: u32, status: &str, body: &str) -> Result<()> {
        let head = frame(HEADERS, END_HEADERS, stream, &block(&[(":status", status)]));
        self.send([head, frame(DATA, END_STREAM, stream, body.as_bytes())].concat())
    }
}

/// A frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The fields that every request has.
pub fn usual<'a>(host: &'a str, path: &'a str) -> [(&'a str, &'a str); 4] {
    [
        (":method", "GET"),
        (":scheme", "https"),
        (":path", path),
        (":authority", host),
    ]
}

/// HPACK without a table: literals (RFC 7541 §6.2.2).
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        for text in [name, value] {
            let mut left = text.len();
            if left < 127 {
                out.push(left as u8);
            } else {
                out.push(127);
                left -= 127;
                while left >= 128 {
                    out.push((left % 128) as u8 | 128);
                    left /= 128;
                }
                out.push(left as u8);
            }
            out.extend_from_slice(text.as_bytes());
        }
    }
    out
}
