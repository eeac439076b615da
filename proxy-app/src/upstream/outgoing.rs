//! What the HTTP engine writes of a request of HTTP/1, held against its own head: no byte behind its end goes out. To the
//! server it would be the beginning of another request, and everybody behind would get the answer of somebody else.

use std::io;

use crate::http::behind::RequestBody;

/// A request that is being written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OutgoingRequest {
    /// Bytes of its head that are still to be written.
    head: usize,
    body: RequestBody,
}

impl OutgoingRequest {
    /// One whose head these bytes are.
    pub(crate) fn begin(head: &[u8]) -> Self {
        Self {
            head: head.len(),
            body: match is_plain(head) {
                true => RequestBody::Sized(0),
                false => RequestBody::of(head),
            },
        }
    }

    /// Whether all of these bytes belong to it.
    ///
    /// # Errors
    /// They do not.
    pub(crate) fn check(mut self, bytes: &[u8]) -> io::Result<()> {
        match self.pass(bytes) {
            true => Ok(()),
            false => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "bytes behind the end of a request",
            )),
        }
    }

    /// Takes note of bytes that have been written. Returns whether all of them belong to it.
    pub(crate) fn pass(&mut self, bytes: &[u8]) -> bool {
        let of_head = self.head.min(bytes.len());
        self.head -= of_head;
        let of_body = &bytes[of_head..];
        of_body.is_empty() || self.body.pass(of_body) == of_body.len()
    }
}

/// Whether nothing in a head announces a body or asks for another protocol: most heads need not be taken apart.
fn is_plain(head: &[u8]) -> bool {
    let is_telling = |line: &[u8]| {
        let starts = |name: &[u8]| {
            line.get(..name.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(name))
        };
        match line.first() {
            Some(b'c' | b'C') => starts(b"content-length") || line.starts_with(b"CONNECT "),
            Some(b't' | b'T') => starts(b"transfer-encoding"),
            Some(b'u' | b'U') => starts(b"upgrade"),
            _ => false,
        }
    };
    !head.split(|&byte| byte == b'\n').any(is_telling)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(fields: &str, body: &str, surplus: &str) {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        for size in [1, 2, 5, 100] {
            let mut request = OutgoingRequest::begin(head.as_bytes());
            for piece in [&head, body].concat().as_bytes().chunks(size) {
                assert!(
                    request.check(piece).is_ok() && request.pass(piece),
                    "{fields:?} {body:?}"
                );
            }
            assert!(request.check(surplus.as_bytes()).is_err(), "{fields:?} {body:?}");
        }
    }

    #[test]
    fn nothing_goes_out_behind_a_request() {
        check("", "", "GET");
        check("Accept: */*\r\nCookie: upgrade\r\nTE: trailers\r\n", "", "GET");
        check("CONTENT-length: 3\r\n", "abc", "d");
        check("Content-Length: 3\r\n", "abc", "d");
        check("Content-Length: 0\r\n", "", "0\r\n\r\n");
        check("Transfer-Encoding: chunked\r\n", "3\r\nabc\r\n0\r\n\r\n", "0\r\n\r\n");
        check("Transfer-Encoding: chunked\r\n", "0\r\n\r\n", "0\r\n\r\n");
    }
}
