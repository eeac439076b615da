//! The first message of a TLS client, as it is looked at before TLS begins.

use proxy_app::listen::client_hello::{HELLO_MAX, HelloProgress, parse};

pub(crate) fn check(bytes: &[u8]) {
    match parse(bytes) {
        // What follows does not matter.
        HelloProgress::Complete(hello) => {
            let more = parse(&[bytes, b"\x17\x03\x03"].concat());
            assert_eq!(more, HelloProgress::Complete(hello));
        }
        // An unfinished message is bounded, and so are all of its beginnings: a connection is not looked at for ever.
        HelloProgress::Incomplete => {
            assert!(bytes.len() < HELLO_MAX);
            for end in super::cuts(bytes.len()) {
                assert_eq!(parse(&bytes[..end]), HelloProgress::Incomplete);
            }
        }
        // Once wrong, more bytes do not make it right.
        HelloProgress::Other => assert_eq!(parse(&[bytes, b"\x16\x03\x01"].concat()), HelloProgress::Other),
    }
}
