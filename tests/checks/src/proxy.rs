//! The PROXY header parser: whatever a balancer, or a client that pretends to be one, sends first.

use proxy_app::listen::proxy_protocol::{Progress, parse};

/// Longest unfinished header: the fixed part of version 2 and the most that is taken behind it.
const UNFINISHED_MAX: usize = 16 + 2048;

pub(crate) fn check(bytes: &[u8]) {
    match parse(bytes) {
        Ok(Progress::Complete(header, length)) => {
            assert!(length <= bytes.len());
            // Every proper beginning asks for more, and what follows does not matter.
            for n in 1..length {
                assert_eq!(parse(&bytes[..n]), Ok(Progress::Incomplete));
            }
            assert_eq!(parse(&bytes[..length]), Ok(Progress::Complete(header, length)));
        }
        // An unfinished header is bounded, so a connection cannot be made to hold more.
        Ok(Progress::Incomplete) => assert!(bytes.len() < UNFINISHED_MAX),
        // Once wrong, more bytes do not make it right.
        Err(error) => assert_eq!(parse(&[bytes, b"\r\n"].concat()), Err(error)),
    }
}
