//! A server's answer to an upgrade: its head, and where the body of an answer ends that is not a web socket. Bodies
//! pass as they come, so only their ends are looked for and nothing is decoded. What follows an end does not pass, nor
//! does what is malformed.

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderName, HeaderValue};
use pingora::http::ResponseHeader;

use super::{HEADERS_MAX, answer_head};
use crate::http::behind::ChunkPosition;

/// The head of an answer.
#[derive(Debug)]
pub(super) struct AnswerHead {
    /// Its bytes.
    pub(super) length: usize,
    /// Whether it is a 101 that agrees to a web socket.
    pub(super) is_switched: bool,
    /// The head as the client gets it.
    pub(super) response: ResponseHeader,
    /// How many of the bytes behind it are of its body.
    pub(super) begun: usize,
    /// What follows them.
    pub(super) rest: Rest,
}

impl AnswerHead {
    /// The head at the beginning of these bytes; `None` if it is not whole.
    ///
    /// # Errors
    /// It is not a head, or not one that can be passed on.
    pub(super) fn parse(bytes: &[u8]) -> Result<Option<Self>, &'static str> {
        const BABBLE: &str = "the server's answer to an upgrade is not HTTP";
        let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut parsed = httparse::Response::new(&mut fields);
        let length = match parsed.parse(bytes) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(BABBLE),
        };
        let status = parsed.code.unwrap_or_default();
        let mut response = ResponseHeader::build(status, Some(parsed.headers.len())).map_err(|_| BABBLE)?;
        for field in parsed.headers.iter() {
            let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| BABBLE)?;
            let value = HeaderValue::from_bytes(field.value).map_err(|_| BABBLE)?;
            response.append_header(name, value).map_err(|_| BABBLE)?;
        }
        let upgrade = response.headers.get(UPGRADE);
        let is_switched =
            status == 101 && upgrade.is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"));
        if status == 101 && !is_switched {
            return Err("the server switches to a protocol that nobody asked for");
        }
        let mut rest = Rest::behind(&mut response)?;
        let begun = rest.pass(&bytes[length..]);
        let begun = begun.ok_or("the server's answer to an upgrade has malformed chunks")?;
        answer_head::strip(&mut response);
        Ok(Some(Self {
            length,
            is_switched,
            response,
            begun,
            rest,
        }))
    }
}

/// An answer's head as it is sent; the connection ends behind its body.
pub(super) fn wire(response: &ResponseHeader) -> Vec<u8> {
    let mut out = line_and_fields(response);
    out.extend_from_slice(b"Connection: close\r\n\r\n");
    out
}

/// The head of an answer that agrees, as it is sent.
pub(super) fn switched_wire(response: &ResponseHeader) -> Vec<u8> {
    let mut out = line_and_fields(response);
    out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    out
}

/// The head of an interim answer as it is sent.
pub(super) fn interim_wire(response: &ResponseHeader) -> Vec<u8> {
    let mut out = line_and_fields(response);
    out.extend_from_slice(b"\r\n");
    out
}

fn line_and_fields(response: &ResponseHeader) -> Vec<u8> {
    let reason = response.status.canonical_reason().unwrap_or_default();
    let mut out = format!("HTTP/1.1 {} {reason}\r\n", response.status.as_u16()).into_bytes();
    response.header_to_h1_wire(&mut out);
    out
}

/// The part of a body that is still to come (RFC 9112 §6.3).
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// This many bytes.
    Length(u64),
    /// Chunks.
    Chunked(ChunkPosition),
    /// Everything until the server ends the connection.
    UntilEnd,
}

impl Rest {
    /// The body that follows a head. Makes the head say its length once and clearly.
    fn behind(response: &mut ResponseHeader) -> Result<Self, &'static str> {
        let status = response.status;
        let codings: Vec<_> = response.headers.get_all(TRANSFER_ENCODING).iter().cloned().collect();
        if status.is_informational() || matches!(status.as_u16(), 204 | 304) {
            if status != 304 {
                response.remove_header(&CONTENT_LENGTH);
            }
            response.remove_header(&TRANSFER_ENCODING);
            Ok(Self::Length(0))
        } else if codings.is_empty() {
            Ok(length(response)?.map_or(Self::UntilEnd, Rest::Length))
        } else if matches!(&codings[..], [only] if only.as_bytes().eq_ignore_ascii_case(b"chunked")) {
            response.remove_header(&CONTENT_LENGTH);
            Ok(Self::Chunked(ChunkPosition::FIRST))
        } else {
            Err("the server's answer to an upgrade has a transfer coding that is not known")
        }
    }

    /// Whether all has come.
    pub(super) fn is_over(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunks) => *chunks == ChunkPosition::Over,
            Self::UntilEnd => false,
        }
    }

    /// Takes note of bytes that have come. Returns how many of them belong to the body; `None` if they are malformed.
    pub(super) fn pass(&mut self, bytes: &[u8]) -> Option<usize> {
        match self {
            Self::Length(left) => {
                let theirs = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= theirs as u64;
                Some(theirs)
            }
            Self::Chunked(chunks) => chunks.pass(bytes),
            Self::UntilEnd => Some(bytes.len()),
        }
    }
}

/// The one length that an answer has, said once; several equal ones count as one (RFC 9110 §8.6).
fn length(response: &mut ResponseHeader) -> Result<Option<u64>, &'static str> {
    const UNCLEAR: &str = "the server's answer to an upgrade has no clear length";
    let mut length = None;
    for line in response.headers.get_all(CONTENT_LENGTH) {
        for value in line.to_str().map_err(|_| UNCLEAR)?.split(',') {
            let value = value.trim();
            if value.is_empty() || !value.bytes().all(|b| b.is_ascii_digit()) {
                return Err(UNCLEAR);
            }
            let value: u64 = value.parse().map_err(|_| UNCLEAR)?;
            if length.replace(value).is_some_and(|before| before != value) {
                return Err(UNCLEAR);
            }
        }
    }
    if let Some(length) = length {
        response
            .insert_header(CONTENT_LENGTH, length.to_string())
            .map_err(|_| UNCLEAR)?;
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(answer: &str, status: u16, body: &str, over: bool, wired: &str) {
        let head = AnswerHead::parse(answer.as_bytes()).unwrap().unwrap();
        assert_eq!(head.response.status.as_u16(), status, "{answer:?}");
        assert_eq!(
            (&answer[head.length..head.length + head.begun], head.rest.is_over()),
            (body, over),
            "{answer:?}"
        );
        assert_eq!(String::from_utf8(wire(&head.response)).unwrap(), wired, "{answer:?}");
    }

    #[test]
    fn heads_of_answers() {
        assert!(AnswerHead::parse(b"HTTP/1.1 101 Sw").unwrap().is_none());
        for babble in [
            "* OK IMAP ready\r\n",
            "HTTP/1.1 101 x\r\nUpgrade: h2c\r\n\r\n",
            "HTTP/1.1 101 x\r\n\r\n",
            "HTTP/1.1 200 x\r\nContent-Length: 1, 2\r\n\r\n",
            "HTTP/1.1 200 x\r\nContent-Length: +1\r\n\r\n",
            "HTTP/1.1 200 x\r\nTransfer-Encoding: xchunked\r\n\r\n",
            "HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            "HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n",
        ] {
            assert!(AnswerHead::parse(babble.as_bytes()).is_err(), "{babble:?}");
        }
        let head = AnswerHead::parse(b"HTTP/1.1 101 x\r\nUpgrade: WebSocket\r\n\r\nframe")
            .unwrap()
            .unwrap();
        assert!(head.is_switched && head.length == 38, "{head:?}");
        check(
            "HTTP/1.1 403 No\r\nContent-Length: 3\r\nConnection: keep-alive, X-Hop\r\nUpgrade: websocket\r\nX-Hop: 1\r\n\r\nno!EXTRA",
            403,
            "no!",
            true,
            "HTTP/1.1 403 Forbidden\r\nContent-Length: 3\r\nConnection: close\r\n\r\n",
        );
        check(
            "HTTP/1.0 200 OK\r\nX: y\r\n\r\nab",
            200,
            "ab",
            false,
            "HTTP/1.1 200 OK\r\nx: y\r\nConnection: close\r\n\r\n",
        );
        check(
            "HTTP/1.1 204 x\r\nContent-Length: 7\r\n\r\nEXTRA",
            204,
            "",
            true,
            "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
        );
        check(
            "HTTP/1.1 200 x\r\nContent-Length: 2, 2\r\n\r\na",
            200,
            "a",
            false,
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n",
        );
    }
}
