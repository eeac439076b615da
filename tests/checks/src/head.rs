//! The check of an HTTP/1 request head: the same verdict however its bytes arrive, nothing gathered without bound, and
//! what is let through ends for the engine's parser where it ends for us.

use httparse::{EMPTY_HEADER, Request, Status};
use proxy_app::http::HEAD_MAX;
use proxy_app::web::connection::{HeadError, complete};

/// As many headers as the engine takes.
const HEADERS_MAX: usize = 256;

/// What comes of a connection.
#[derive(Debug, PartialEq)]
enum Verdict {
    /// A whole head, and how long it is.
    Whole(usize),
    Refused,
    Waits,
}

pub(crate) fn check(mut bytes: &[u8]) {
    // Empty lines in front of a request are taken away before (RFC 9112 §2.2).
    while let Some(rest) = bytes.strip_prefix(b"\r\n") {
        bytes = rest;
    }
    let verdict = crate::check_ways(bytes, gather);
    if let Verdict::Whole(length) = verdict {
        check_whole(&bytes[..length]);
    }
}

/// As a connection gathers a head.
fn gather(pieces: &[&[u8]]) -> Verdict {
    let mut head = Vec::new();
    for piece in pieces.iter().flat_map(|piece| piece.chunks(4096)) {
        head.extend_from_slice(piece);
        match complete(&head) {
            Ok(Some(length)) => return Verdict::Whole(length),
            Ok(None) => assert!(head.len() <= HEAD_MAX),
            Err(HeadError::Refused(_)) => return Verdict::Refused,
            Err(HeadError::Io) => panic!("nothing is read here"),
        }
    }
    Verdict::Waits
}

fn check_whole(head: &[u8]) {
    assert!(head.len() <= HEAD_MAX);
    assert!(!head.contains(&0));
    for (at, byte) in head.iter().enumerate() {
        match byte {
            b'\n' => assert_eq!(head.get(at.wrapping_sub(1)), Some(&b'\r'), "a bare LF"),
            b'\r' => assert_eq!(head.get(at + 1), Some(&b'\n'), "a bare CR"),
            b' ' | b'\t' => assert_ne!(head.get(at.wrapping_sub(1)), Some(&b'\n'), "a continuation"),
            _ => {}
        }
    }
    let mut headers = [EMPTY_HEADER; HEADERS_MAX];
    match Request::new(&mut headers).parse(head) {
        Ok(Status::Complete(end)) => assert_eq!(end, head.len(), "the engine sees another end"),
        Ok(Status::Partial) => panic!("the engine would wait for more"),
        Err(_) => {}
    }
}
